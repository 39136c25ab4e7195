//! Who is served when, and how much each may have: passes and turns, moments to wake up at, shares of time and memory.

mod accounts;
pub(in crate::server) mod memory;
mod rate;
mod schedule;
mod timers;

pub(in crate::server) use accounts::{Asked, Cause, Causes, hold_cause};
pub(in crate::server) use memory::Share;
pub(in crate::server) use rate::{Reserve, WriteCredit};
pub use schedule::Pass;
pub(in crate::server) use schedule::{MEASURED_OF, Stage};
pub(in crate::server) use timers::Timers;
