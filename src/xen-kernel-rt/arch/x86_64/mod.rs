//! x86-64, as the Intel Software Developer's Manual (SDM) and AMD's describe it.

#[cfg(target_os = "none")]
pub(crate) mod bridge;
mod bytes;
#[cfg(target_os = "none")]
pub(crate) mod cpu;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
pub(crate) mod hypercall;
#[cfg(target_os = "none")]
pub(crate) mod paging;
#[cfg(target_os = "none")]
pub(crate) mod stack;
#[cfg(target_os = "none")]
pub(crate) mod traps;
