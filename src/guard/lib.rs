//! The guard of the xenstore domain: a program in dom0 that has the domain go on when Xen has shut it down.
//!
//! It needs no xenstore for that, no disk and no memory beyond what it has locked at its start: all of these may hang when
//! the xenstore is gone. [`guard`] has the rules, [`silence`] when a domain that runs counts as silent, [`context`] the state of a processor, [`host`] what it asks of Xen. [`replace`]
//! puts another domain in its place, which [`builder`] describes.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod builder;
pub mod context;
pub mod guard;
pub mod host;
pub mod lines;
pub mod mover;
pub mod replace;
pub mod silence;
