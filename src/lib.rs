//! The xenstore of a Xen host as a stub domain: memory-safe, `no_std`, and replaced by a newer image while the
//! guests keep running.
//!
//! Layers, in order of dependency; an arrow points at what a layer may name:
//!
//! ```text
//!     main.rs ──► xen ──┐
//!                       ├──► server ──► store ──► proto ──► mem
//!     tests ───► sim ───┘
//! ```
//!
//! * [`mem`]: containers and accounts of memory that may be refused; budgets of work.
//! * [`proto`]: bytes. Wire messages, ring arithmetic, record stream. No state, no I/O.
//! * [`store`]: state. Nodes, permissions, transactions, watches, quotas. No I/O, no clock.
//! * [`server`]: who, when, how much. Connections, dispatch, domains, CONTROL, live update. It talks to the world
//!   through [`server::platform::Platform`] and [`proto::ring::RingPage`] only.
//! * [`transcript`]: conversations as text, and their player, for tests on every level. It needs [`proto`] only,
//!   and is beside the server, not in it.
//! * `xen`: the real world; the one place with `unsafe`. It is on the bare target only, but for its allocator.
//! * `sim`: the simulated world, on the host only.
//! * `dom0`: what programs in dom0 ask of Xen, on the host only; a file of `xen`.

#![no_std]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

/// What an image calls itself, in its answers and in its file, where the brackets make it easy to find.
pub const VERSION: &str = if cfg!(feature = "handover-1") {
    concat!("[xenstore-stubdom ", env!("CARGO_PKG_VERSION"), ", hand-over 1]")
} else {
    concat!("[xenstore-stubdom ", env!("CARGO_PKG_VERSION"), "]")
};

pub mod mem;
pub mod proto;
pub mod server;
#[cfg(not(target_os = "none"))]
pub mod sim;
pub mod store;
pub mod transcript;

#[cfg(not(target_os = "none"))]
#[path = "xen/dom0.rs"]
#[expect(unsafe_code, reason = "hypercalls and devices; the file is part of src/xen")]
pub mod dom0;

#[expect(
    unsafe_code,
    reason = "the real world: hypercalls, page tables, memory shared with others"
)]
pub mod xen;
