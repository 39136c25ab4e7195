//! One request, from its header to its reply.

mod dispatch;
mod handlers;
mod operations;

pub(in crate::server) use dispatch::{Answer, Asker, Reply, error_payload};
pub(in crate::server) use operations::MemoryUse;
