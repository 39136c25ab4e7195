//! What administrators ask and are told: CONTROL, figures, the command line, the console.

mod checking;
mod control;
mod dump;
mod figures;
pub(in crate::server) mod log;
mod options;
mod refusals;
mod stats;

pub(in crate::server) use checking::{Checking, Maxima};
pub(in crate::server) use control::{Command, text};
pub(in crate::server) use dump::Dump;
pub(in crate::server) use figures::History;
pub(in crate::server) use log::{LineBudget, Repeated, Switches};
pub(in crate::server) use options::Options;
pub(in crate::server) use refusals::{Refused, Told};
pub(in crate::server) use stats::Latency;
