//! The database: state without I/O or clock.
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
