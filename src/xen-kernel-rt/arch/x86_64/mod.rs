//! x86-64.

mod bytes;
#[cfg(target_os = "none")]
pub(crate) mod cpu;
