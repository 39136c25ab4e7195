//! Bytes in and out: connections, the queues of what waits for them, and where to find whom.

mod connection;
mod connections;
mod queue;
mod sums;

pub(in crate::server) use connection::{
    Busy, Connection, Fault, Figures, Lost, Suspension, Verdict,
};
pub(in crate::server) use connections::{Connections, List, Sums};
pub(in crate::server) use queue::{
    CauseId, Done, Messages, Payload, Queue, Released, message_cost,
};
