//! The protocol as bytes: the form of a message, the layout of a ring page, the names of the words on the wire.
//!
//! Nothing here keeps state between messages of different connections, performs I/O, or knows what a node is.
//! Identifiers that every layer shares are here, too, since this is the lowest layer.
//!
//! Sources: `docs/misc/xenstore.txt`, `docs/misc/xenstore-ring.txt`, `docs/designs/xenstore-migration.md` and
//! `xen/include/public/io/xs_wire.h` of Xen.

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
// Memory may be refused: .clippy.toml has the calls that do not say so.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)
)]

pub mod assemble;
pub mod error;
pub mod handover;
pub mod id;
pub mod image;
pub mod perms;
pub mod replacement;
pub mod request;
pub mod ring;
pub mod sentence;
pub mod stream;
pub mod text;
pub mod wire;
