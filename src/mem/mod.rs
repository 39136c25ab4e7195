//! What every layer above knows of memory.
//!
//! | file | has |
//! |---|---|
//! | `classes` | what the allocator takes for a block of some length |

#![forbid(unsafe_code)]

pub mod classes;

pub use classes::block_bytes;
