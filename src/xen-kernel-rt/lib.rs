//! The runtime for a Rust program that is a domain of Xen: PVH, one vCPU, no kernel beneath.
//!
//! The README shows the smallest such program. All that is unsafe is in here, so the program itself can do without.
//!
//! | file | has |
//! |---|---|
//! | `start` | from `boot/head.S` to the program, in order; [`Machine`](start::Machine) |
//! | `arch` | what belongs to the processor |
//! | [`abi`], `hypercall` | structures of Xen's public headers; calls of Xen |
//! | [`memory`] | frames, page tables, the allocator |
//! | `console`, `traps` | lines for people; faults and panics |
//! | `events`, `time` | events and sleep; clock and one-shot timer |
//! | `watch`, `hang` | a loop without end is noticed |
//! | `gnttab`, `shared_page` | other domains' pages |
//! | `domains` | questions about other domains |
//! | `restart`, [`revival`] | coming back after a failure, and when dom0 gives the processor back |
//! | `handover`, [`slot`] | from one image to the next in the same domain, and back |
//! | [`id`], [`digest`], [`error`] | Xen's numbers; a hash; what Xen refuses |
//!
//! These hold after `start`:
//! * An interrupt handler (`boot/traps.S`, `watch`) takes no lock and changes nothing that the program uses, or it
//!   ends what it interrupts. So no lock is ever contended.
//! * Every page that is mapped is populated. No page is both writable and executable.
//! * While an image is on trial (`handover`), one interrupt is let through. It changes nothing, or ends the trial
//!   for good.
//! * A program without `restart::guard` has interrupts on only while it sleeps.
//!
//! The files without hardware in them are compiled for the host, too: for the tests, and for programs that only need
//! those.

#![no_std]
#![expect(
    unsafe_code,
    reason = "the real world: hypercalls, page tables, memory shared with others"
)]
// A page holds many things of different alignment; casts here follow checked addresses.
#![expect(
    clippy::cast_ptr_alignment,
    reason = "pages are cast to what Xen or the processor has there"
)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod abi;
#[cfg(any(test, target_os = "none"))]
mod arch;
pub mod digest;
pub mod domains;
pub mod error;
pub mod id;
pub mod memory;
pub mod revival;
pub mod shared_page;
pub mod slot;

#[cfg(target_os = "none")]
pub mod console;
#[cfg(any(test, target_os = "none"))]
pub mod events;
#[cfg(target_os = "none")]
pub mod gnttab;
#[cfg(target_os = "none")]
pub mod handover;
#[cfg(any(test, target_os = "none"))]
mod hang;
#[cfg(target_os = "none")]
pub mod hypercall;
#[cfg(target_os = "none")]
pub mod random;
#[cfg(target_os = "none")]
pub mod restart;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(test, expect(dead_code, reason = "the domain uses more of it than the tests"))]
mod time;
#[cfg(target_os = "none")]
pub mod traps;
#[cfg(target_os = "none")]
pub mod watch;

pub use error::Refusal;

/// `DOMID_SELF`, as the structures of [`abi`] have it.
#[cfg(target_os = "none")]
const DOMID_SELF: u16 = id::DomId::SELF.0;
