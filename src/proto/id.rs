//! Identifiers shared by all layers, each a type of its own so that they cannot be confused.

use crate::mem::Key;
pub use xen_kernel_rt::id::{DomId, EvtchnPort};

/// A connection of the server; never re-used while the server runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

/// A transaction identifier of a message header; 0 means "no transaction".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TxId(pub u32);

impl TxId {
    /// The header's value for "not in a transaction".
    pub const NONE: Self = Self(0);
}

impl Key for DomId {
    fn bits(self) -> u64 {
        u64::from(self.0)
    }
}

impl Key for ConnId {
    fn bits(self) -> u64 {
        u64::from(self.0)
    }
}

impl Key for TxId {
    fn bits(self) -> u64 {
        u64::from(self.0)
    }
}

impl Key for EvtchnPort {
    fn bits(self) -> u64 {
        u64::from(self.0)
    }
}

impl Key for (ConnId, TxId) {
    fn bits(self) -> u64 {
        u64::from(self.0.0) << 32 | u64::from(self.1.0)
    }
}
