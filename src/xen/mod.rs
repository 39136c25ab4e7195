//! The real world: Xen, seen from inside a PVH domain with one vCPU.
//!
//! This is the only part of the package with `unsafe`. It knows nothing of xenstore, except in `platform`, which
//! makes it the server's world, and in `shared_page`, which makes a page a ring page.
//!
//! | file | wraps |
//! |---|---|
//! | `start` | from `boot/head.S` to the program, in order |
//! | `hypercall`, `abi` | the hypercall instruction; structures of the public headers |
//! | `cpu` | instructions without a name in `core` |
//! | `bytes` | copies, fills and comparisons of memory |
//! | `layout`, `frames`, `surplus` | what memory there is, which of it is free, when it goes back to Xen |
//! | `memory`, `heap`, `runs` | page tables, the allocator |
//! | `console`, `traps` | lines for people; faults and panics |
//! | `evtchn`, `time` | events and sleep; clock and one-shot timer |
//! | `watch`, `hang` | a loop without end is noticed |
//! | `gnttab`, `shared_page` | other domains' pages |
//! | `domctl` | what Xen says of other domains |
//! | `channels` | what event channels tell of them where Xen does not |
//! | `restart`, `revival` | coming back after a failure, and when dom0 gives the processor back |
//! | `handover` | live update: from one image to the next, and back |
//! | `platform` | [`crate::server::platform::Platform`] on top of all that |
//!
//! These hold after `start`:
//! * An interrupt handler (`boot/traps.S`, `watch`) takes no lock and changes nothing that the program uses, or it
//!   ends what it interrupts. So no lock is ever contended.
//! * Every page that is mapped is populated. No page is both writable and executable.
//! * While an image is on trial (`handover`), one interrupt is let through. It changes nothing, or ends the trial
//!   for good.
//! * A program without `restart::guard` has interrupts on only while it sleeps.
//!
//! `dom0` is no part of the domain. It is for programs that run beside it in dom0.
//!
//! `bounded` is for programs on the host: the allocator of the image over memory with an end.
//!
//! The files without hardware in them are compiled for the host's tests, too.

// A page holds many things of different alignment; casts here follow checked addresses.
#![expect(
    clippy::cast_ptr_alignment,
    reason = "pages are cast to what Xen or the processor has there"
)]

pub mod abi;
#[cfg(not(target_os = "none"))]
pub mod bounded;
#[cfg(any(test, target_os = "none"))]
mod bytes;
#[cfg(any(test, target_os = "none"))]
pub mod frames;
pub mod heap;
#[cfg(any(test, target_os = "none"))]
pub mod layout;
pub mod runs;
#[cfg(any(test, target_os = "none"))]
pub mod shared_page;

#[cfg(target_os = "none")]
mod channels;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(any(test, target_os = "none"))]
mod domctl;
#[cfg(any(test, target_os = "none"))]
pub mod evtchn;
#[cfg(target_os = "none")]
pub mod gnttab;
#[cfg(target_os = "none")]
pub mod handover;
#[cfg(any(test, target_os = "none"))]
pub mod hang;
#[cfg(target_os = "none")]
mod hypercall;
#[cfg(target_os = "none")]
pub mod memory;
#[cfg(target_os = "none")]
pub mod platform;
#[cfg(target_os = "none")]
pub mod restart;
#[cfg(target_os = "none")]
mod revival;
#[cfg(target_os = "none")]
pub mod start;
pub mod surplus;
#[cfg(any(test, target_os = "none"))]
pub mod time;
#[cfg(target_os = "none")]
pub mod traps;
#[cfg(target_os = "none")]
mod watch;

/// `DOMID_SELF`, as the structures of [`abi`] have it.
#[cfg(target_os = "none")]
const DOMID_SELF: u16 = crate::proto::id::DomId::SELF.0;
