//! How one instance becomes the next: live update, going on after a failure, a start from another server's stream.

mod failure;
mod restore;
mod revive;
mod save;
mod update;

pub(in crate::server) use failure::{Failures, InProgress};
pub use restore::split_tail;
pub(in crate::server) use restore::{Account, NO_MEMORY};
pub use update::Offer;
pub(in crate::server) use update::{Passage, Requester, Upload};
