//! Hypercalls of a program in dom0, for tests there; the images have no use for them.
//!
//! `/dev/xen/privcmd` (Linux, `include/uapi/xen/privcmd.h`) passes a hypercall on as it is. This file belongs to
//! the player of `scripts/player`, which includes it, and is here because it is unsafe.

use core::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `struct xen_domctl` of `xen/include/public/domctl.h`, its union empty: the command here takes nothing else.
#[repr(C)]
struct Domctl {
    cmd: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    u: [u64; 16],
}

/// `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_HYPERCALL: c_ulong = 0x0030_5000;
/// `__HYPERVISOR_domctl`.
const HYPERVISOR_DOMCTL: u64 = 36;
/// `XEN_DOMCTL_destroydomain`.
const DESTROY_DOMAIN: u32 = 2;
/// Versions of the interface that are tried: 0x15 is Xen 4.17's; the rest is for later ones.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x15..=0x20;
/// `EACCES`: Xen has another version of the interface.
const OTHER_VERSION: i32 = 13;
/// `EAGAIN`: not finished yet.
const AGAIN: i32 = 11;

unsafe extern "C" {
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
}

fn domctl(device: &File, argument: &mut Domctl) -> io::Result<()> {
    let address = core::ptr::from_mut(argument).expose_provenance() as u64;
    let mut call = Hypercall { op: HYPERVISOR_DOMCTL, arg: [address, 0, 0, 0, 0] };
    // SAFETY: the request takes a `Hypercall`, which names a `Domctl` that is ours alone and of the size that
    // Xen copies; the one command used here changes nothing of this process.
    let result = unsafe { ioctl(device.as_raw_fd(), IOCTL_HYPERCALL, &raw mut call) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Destroys a domain without a word to the xenstore or to the toolstack.
pub(crate) fn destroy(domain: u16) -> io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/xen/privcmd")?;
    let mut refusal = None;
    for interface_version in VERSIONS {
        let (pad, u) = ([0; 3], [0; 16]);
        let mut argument = Domctl { cmd: DESTROY_DOMAIN, interface_version, domain, pad, u };
        loop {
            match domctl(&device, &mut argument) {
                Err(error) if error.raw_os_error() == Some(AGAIN) => {}
                Err(error) if error.raw_os_error() == Some(OTHER_VERSION) => {
                    refusal = Some(error);
                    break;
                }
                result => return result,
            }
        }
    }
    refusal.map_or(Ok(()), Err)
}
