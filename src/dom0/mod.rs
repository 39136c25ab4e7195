//! What a program in dom0 asks of Xen and of its kernel. The images do not use this.
//!
//! * `/dev/xen/privcmd` (Linux, `include/uapi/xen/privcmd.h`) passes a hypercall on as it is.
//! * `/dev/xen/xenbus_backend` (`include/xen/xenbus_dev.h`) gives dom0's own ring to a xenstore domain, and shows it.
//!
//! The system calls that need `unsafe` are in this folder, and in no other of the programs for the host.

pub mod privcmd;

use self::privcmd::{Command, PAGE_SIZE, Privcmd, ioctl, map_page, munmap, open};
use crate::proto::ring::Word;
use core::ffi::{c_ulong, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;
use xen_kernel_rt::abi::xen::VIRQ_DOM_EXC;

/// `IOCTL_XENBUS_BACKEND_SETUP`, `_IO('B', 1)`.
const IOCTL_BACKEND_SETUP: c_ulong = 0x4201;
/// Versions of the interface that are tried: 0x15 is Xen 4.17's; the rest is for later ones.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x15..=0x20;
/// How long Xen may say that a call has not finished.
const BUSY_FOR: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };
/// `EACCES`: Xen has another version of the interface.
const OTHER_VERSION: i32 = 13;

/// A command, in whichever version of the interface Xen has.
fn command(domain: u16, command: Command) -> io::Result<()> {
    let device = Privcmd::open()?;
    let mut refusal = None;
    for version in VERSIONS {
        match again_while_busy(|| device.domctl(version, domain, command)) {
            Err(error) if error.raw_os_error() == Some(OTHER_VERSION) => refusal = Some(error),
            result => return result.map(|_| ()),
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Makes a call again as long as Xen says that it has not finished (EAGAIN), but not for ever.
///
/// # Errors
/// As the call; or EAGAIN after ten seconds.
pub fn again_while_busy<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < BUSY_FOR =>
            {
                // Others may have to run first.
                std::thread::yield_now();
            }
            result => return result,
        }
    }
}

/// Destroys a domain without a word to the xenstore or to the toolstack.
///
/// # Errors
/// The refusal of Xen or of the kernel.
pub fn destroy(domain: u16) -> io::Result<()> {
    command(domain, Command::Destroy)
}

/// Has Xen tell this domain about the shutdown and death of others, and dom0 no more.
///
/// # Errors
/// The refusal of Xen or of the kernel.
pub fn hear_of_domains(domain: u16) -> io::Result<()> {
    command(domain, Command::SetVirqHandler(VIRQ_DOM_EXC))
}

/// dom0's own ring, as `/dev/xen/xenbus_backend` shows it.
#[derive(Debug)]
pub struct OwnRing {
    device: File,
    page: NonNull<c_void>,
}

impl OwnRing {
    /// Maps it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn map() -> io::Result<Self> {
        let device = open("/dev/xen/xenbus_backend")?;
        let page = map_page(&device)?;
        Ok(Self { device, page })
    }

    fn word(&self, word: Word) -> &AtomicU32 {
        // SAFETY: inside the page, which is mapped as long as `self` is.
        let word = unsafe { self.page.byte_add(word as usize) }.cast::<u32>();
        // SAFETY: valid and aligned as the page is; others who write to it do so from outside this program.
        unsafe { AtomicU32::from_ptr(word.as_ptr()) }
    }

    /// The index of the first byte that the server has not taken, if there is one and dom0's kernel has read all that the
    /// server has written: then it is the server's turn.
    #[must_use]
    pub fn unread(&self) -> Option<u32> {
        // What the kernel writes first is read last: a reply that it has taken meanwhile is no request that waits.
        let [cons, prod, replies_cons, replies_prod] =
            [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd]
                .map(|index| self.word(index).load(Ordering::Acquire));
        (cons != prod && replies_cons == replies_prod).then_some(cons)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_has_not_finished_is_made_again_but_not_for_ever() {
        let busy = || io::Error::from(io::ErrorKind::WouldBlock);
        let mut left = 3;
        let done = again_while_busy(|| {
            left -= 1;
            if left > 0 { Err(busy()) } else { Ok(left) }
        });
        assert_eq!(done.unwrap(), 0);
        let never = again_while_busy(|| Err::<(), _>(busy()));
        assert_eq!(never.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let refused = again_while_busy(|| Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
