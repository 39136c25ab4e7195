//! The service: who asks, when they are served, and how much they may have.
#![forbid(unsafe_code)]
// Nothing that a client sends may reach a panic: whoever wants one here has to say why.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod options;
pub mod platform;
mod queue;
