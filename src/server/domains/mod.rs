//! Domains that come, shut down and go, and the first steps of the server.

mod by_domid;
mod lifecycle;
mod local;
mod start;

pub(in crate::server) use by_domid::ByDomid;
pub(in crate::server) use lifecycle::{Domain, Known, Look, Scan};
pub(in crate::server) use start::find_existing;
