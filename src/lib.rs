//! The xenstore of a Xen host as a stub domain: memory-safe, `no_std`, and replaced by a newer image while the
//! guests keep running.
//!
//! Layers, in order of dependency; an arrow points at what a layer may name:
//!
//! ```text
//!     main.rs ──► platform ──┐
//!                            ├──► server ──► store ──► proto ──► mem
//!     tests ───────► sim ────┘
//! ```
//!
//! * [`mem`]: containers and accounts of memory that may be refused; budgets of work.
//! * [`proto`]: bytes. Wire messages, ring arithmetic, record stream. No state, no I/O.
//! * [`store`]: state. Nodes, permissions, transactions, watches, quotas. No I/O, no clock.
//! * [`server`]: who, when, how much. Connections, dispatch, domains, CONTROL, live update. It talks to the world
//!   through [`server::platform::Platform`] and [`proto::ring::RingPage`] only.
//! * [`transcript`]: conversations as text, and their player, for tests on every level. It needs [`proto`] only,
//!   and is beside the server, not in it.
//! * [`platform`]: the real world, on the bare target only.
//! * `sim`: the simulated world, on the host only.
//! * `dom0`: what programs in dom0 ask of Xen, on the host only.
//!
//! Beneath `platform` is the runtime, `xen_kernel_rt`, a package of its own. All `unsafe` of the image is in there. The
//! lower layers use only what of it touches no hardware: domids, a digest, the sizes of blocks.

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
#[expect(unsafe_code, reason = "system calls and devices of dom0's kernel")]
pub mod dom0;

pub mod platform;
