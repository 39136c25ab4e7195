//! What a program in dom0 asks of Xen and of its kernel, for programs there; the images have no use for it.
//!
//! * `/dev/xen/privcmd` (Linux, `include/uapi/xen/privcmd.h`) passes a hypercall on as it is.
//! * `/dev/xen/xenbus_backend` (`include/xen/xenbus_dev.h`) gives dom0's own ring to a xenstore domain, and shows it.
//!
//! Here because it is unsafe.

use core::ffi::{c_int, c_ulong, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::proto::ring::Word;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `struct xen_domctl` of `xen/include/public/domctl.h`, the union as words.
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
/// `IOCTL_XENBUS_BACKEND_SETUP`, `_IO('B', 1)`.
const IOCTL_BACKEND_SETUP: c_ulong = 0x4201;
/// `__HYPERVISOR_domctl`.
const HYPERVISOR_DOMCTL: u64 = 36;
/// `XEN_DOMCTL_destroydomain`.
const DESTROY_DOMAIN: u32 = 2;
/// `XEN_DOMCTL_set_virq_handler`.
const SET_VIRQ_HANDLER: u32 = 66;
/// `VIRQ_DOM_EXC`.
const VIRQ_DOM_EXC: u64 = 3;
/// Versions of the interface that are tried: 0x15 is Xen 4.17's; the rest is for later ones.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x15..=0x20;
/// `EACCES`: Xen has another version of the interface.
const OTHER_VERSION: i32 = 13;
/// `EAGAIN`: not finished yet.
const AGAIN: i32 = 11;
/// `PROT_READ | PROT_WRITE` and `MAP_SHARED`.
const READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;
const PAGE_SIZE: usize = 4096;

unsafe extern "C" {
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, length: usize) -> c_int;
}

fn open(device: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(device);
    file.map_err(|error| io::Error::new(error.kind(), std::format!("{device}: {error}")))
}

fn domctl(device: &File, argument: &mut Domctl) -> io::Result<()> {
    let address = core::ptr::from_mut(argument).expose_provenance() as u64;
    let mut call = Hypercall { op: HYPERVISOR_DOMCTL, arg: [address, 0, 0, 0, 0] };
    // SAFETY: the request takes a `Hypercall`, which names a `Domctl` that is ours alone and of the size that
    // Xen copies; the commands of this file take no addresses and change nothing of this process.
    let result = unsafe { ioctl(device.as_raw_fd(), IOCTL_HYPERCALL, &raw mut call) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One of this file's commands, in whichever version of the interface Xen has.
fn command(cmd: u32, domain: u16, data: u64) -> io::Result<()> {
    let device = open("/dev/xen/privcmd")?;
    let mut refusal = None;
    for interface_version in VERSIONS {
        let (pad, mut u) = ([0; 3], [0; 16]);
        u[0] = data;
        let mut argument = Domctl { cmd, interface_version, domain, pad, u };
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

/// Destroys a domain without a word to the xenstore or to the toolstack.
///
/// # Errors
/// The refusal of Xen or of the kernel.
pub fn destroy(domain: u16) -> io::Result<()> {
    command(DESTROY_DOMAIN, domain, 0)
}

/// Has Xen tell this domain about the shutdown and death of others, and dom0 no more.
///
/// # Errors
/// The refusal of Xen or of the kernel.
pub fn hear_of_domains(domain: u16) -> io::Result<()> {
    command(SET_VIRQ_HANDLER, domain, VIRQ_DOM_EXC)
}

/// dom0's own ring, as `/dev/xen/xenbus_backend` shows it.
#[derive(Debug)]
struct OwnRing {
    device: File,
    page: NonNull<c_void>,
}

impl OwnRing {
    fn map() -> io::Result<Self> {
        let device = open("/dev/xen/xenbus_backend")?;
        // SAFETY: a mapping at an address of the kernel's choice, of a device that has exactly this page.
        let page = unsafe {
            mmap(core::ptr::null_mut(), PAGE_SIZE, READ_WRITE, MAP_SHARED, device.as_raw_fd(), 0)
        };
        // MAP_FAILED is the address with all bits set.
        let page = NonNull::new(page).filter(|page| page.addr().get() != usize::MAX);
        Ok(Self { device, page: page.ok_or_else(io::Error::last_os_error)? })
    }

    fn word(&self, word: Word) -> &AtomicU32 {
        // SAFETY: inside the page, which is mapped as long as `self` is.
        let word = unsafe { self.page.byte_add(word as usize) }.cast::<u32>();
        // SAFETY: valid and aligned as the page is; others who write to it do so from outside this program.
        unsafe { AtomicU32::from_ptr(word.as_ptr()) }
    }

    /// Whether any request or reply has ever been in it.
    fn is_used(&self) -> bool {
        let indices = [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd];
        indices.iter().any(|&index| self.word(index).load(Ordering::Acquire) != 0)
    }
}

impl Drop for OwnRing {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and no word of it is borrowed any more. It cannot fail, then.
        unsafe { munmap(self.page.as_ptr(), PAGE_SIZE) };
    }
}

/// Whether dom0's kernel has talked to a xenstore since it booted. It never does to a second one.
///
/// # Errors
/// The kernel's refusal to show the ring.
pub fn ring_is_used() -> io::Result<bool> {
    Ok(OwnRing::map()?.is_used())
}

/// Makes this domain the server of dom0's own ring: grants it the page, makes a port for it and writes the port
/// into the page, where the server looks for it. Says the port.
///
/// # Errors
/// The kernel's refusal, or that it has talked to a server already.
pub fn offer_ring(domain: u16) -> io::Result<u32> {
    // Mapped first: what can fail without harm goes before what cannot be undone.
    let ring = OwnRing::map()?;
    if ring.is_used() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "dom0's kernel has a xenstore"));
    }
    // SAFETY: the request takes a number and no address.
    let port =
        unsafe { ioctl(ring.device.as_raw_fd(), IOCTL_BACKEND_SETUP, c_ulong::from(domain)) };
    let port = u32::try_from(port).map_err(|_| io::Error::last_os_error())?;
    ring.word(Word::EvtchnPort).store(port, Ordering::Release);
    Ok(port)
}
