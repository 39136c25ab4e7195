//! What belongs to the processor.

mod x86_64;

#[cfg(target_os = "none")]
pub(crate) use x86_64::cpu;
