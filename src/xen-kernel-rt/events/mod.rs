//! Event channels: ports, and which of them have news.

#[cfg_attr(test, expect(dead_code, reason = "the domain uses more of it than the tests"))]
pub(crate) mod two_level;

#[cfg(target_os = "none")]
pub use ports::{Peer, bind, bind_virq, close, is_missing, offer, peer, signal};
pub use two_level::PORTS;
#[cfg(target_os = "none")]
mod ports;
