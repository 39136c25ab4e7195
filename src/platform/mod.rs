//! The server's world on Xen: [`Platform`](crate::server::platform::Platform) and
//! [`RingPage`](crate::proto::ring::RingPage) on the runtime, `xen_kernel_rt`.
//!
//! | file | has |
//! |---|---|
//! | `xen` | `Platform` |
//! | [`ring`] | `RingPage` |
//! | `domctl` | what Xen says of other domains |
//! | `channels` | what event channels tell of them where Xen does not |

#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod channels;
#[cfg(any(test, target_os = "none"))]
mod domctl;
pub mod ring;
#[cfg(target_os = "none")]
mod xen;

#[cfg(target_os = "none")]
pub use xen::XenPlatform;
