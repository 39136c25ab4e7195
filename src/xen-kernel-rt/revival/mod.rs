//! Going on after the domain was shut down: what the guard in dom0 needs for it, and where the image goes on.

pub mod record;

#[cfg(target_os = "none")]
mod publish;
#[cfg(target_os = "none")]
pub use publish::hold_back;
#[cfg(target_os = "none")]
pub(crate) use publish::{publish, withdraw};
