//! Numbers that Xen gives, each a type of its own so that they cannot be confused.

use core::fmt;

/// A Xen domain identifier (`domid_t`, `xen/include/public/xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomId(pub u16);

impl DomId {
    /// The first domid that no ordinary domain can have (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// "The calling domain" in hypercalls (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// "No domain" (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7ff4);
    /// "Every domain" in permission lists (`DOMID_ANY`, 32757 on the wire).
    pub const ANY: Self = Self(0x7ff5);

    /// Whether a real domain can have this identifier.
    #[must_use]
    pub fn is_ordinary(self) -> bool {
        self < Self::FIRST_RESERVED
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event channel port of this domain (`evtchn_port_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EvtchnPort(pub u32);
