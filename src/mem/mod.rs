//! Memory that may be refused: containers that grow without one large block and without copying everything. Their
//! types say that growth may fail.
//!
//! | file | has |
//! |---|---|
//! | `alloc` | the calls that allocate, each with an answer for "there is none" |
//! | `arena`, `table`, `map` | records with 32-bit handles, found by a hash, kept by a key |
//! | `bytes` | short byte strings in place |
//! | `budget` | how much work may be done in one turn |

#![forbid(unsafe_code)]
// Nothing that a client sends may reach a panic: whoever wants one here has to say why.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing
    )
)]
// Memory may be refused: .clippy.toml has the calls that do not say so.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)
)]

mod alloc;
mod arena;
mod budget;
mod bytes;
mod map;
mod table;

pub use alloc::{
    Boxed, TryVec, room_bytes, try_array, try_boxed, try_bytes, try_fill, try_slice,
    try_with_capacity,
};
pub use arena::Arena;
pub use budget::{Budget, Progress};
pub use bytes::Bytes;
pub use map::{Key, Map};
pub use table::{Record, Table};
/// What the allocator takes for a block of some length.
pub use xen_kernel_rt::memory::block_bytes;

/// "No record": the handle that no record has.
pub const NIL: u32 = u32::MAX;

/// There is no memory for this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl core::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no memory is left")
    }
}

impl core::error::Error for NoMemory {}
