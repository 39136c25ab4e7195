//! What belongs to the processor. Another one would be another folder beside `x86_64`, with the same names in it.
//!
//! | file | has |
//! |---|---|
//! | `entry` | from Xen's entry to Rust |
//! | `cpu`, `hypercall` | instructions without a name in `core`; the one that asks Xen |
//! | `paging` | page tables |
//! | `traps` | tables of the processor for exceptions and interrupts; sleep |
//! | `stack` | a mark in the stack, and the way back to it |
//! | `bridge` | the code between two images |
//! | `bytes` | copies, fills and comparisons of memory |

mod x86_64;

#[cfg(target_os = "none")]
pub(crate) use x86_64::{bridge, cpu, hypercall, paging, stack, traps};
