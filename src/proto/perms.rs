//! Permissions as SET_PERMS, GET_PERMS and the migration stream write them: a letter and a domain.
//!
//! `store::perms` decides what they mean.

use super::id::DomId;
use core::fmt;

/// What a domain may do with a node; the letters `n r w b` of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Access {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Both.
    Both,
}

impl Access {
    /// The letter on the wire.
    #[must_use]
    pub fn letter(self) -> u8 {
        match self {
            Self::None => b'n',
            Self::Read => b'r',
            Self::Write => b'w',
            Self::Both => b'b',
        }
    }

    /// The access with this letter.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'n' => Some(Self::None),
            b'r' => Some(Self::Read),
            b'w' => Some(Self::Write),
            b'b' => Some(Self::Both),
            _ => None,
        }
    }

    /// Whether this includes all of `wanted`.
    #[must_use]
    pub fn includes(self, wanted: Self) -> bool {
        match wanted {
            Self::None => true,
            Self::Read => matches!(self, Self::Read | Self::Both),
            Self::Write => matches!(self, Self::Write | Self::Both),
            Self::Both => self == Self::Both,
        }
    }
}

/// One entry of a permission list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Whom it is for. In the first entry: the owner, who may do everything.
    pub domid: DomId,
    /// What that domain may do. In the first entry: what every domain may do that no entry names.
    pub access: Access,
    /// Stored and shown, but never matches: the domain did not exist when the entry was made.
    pub stale: bool,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(self.access.letter()), self.domid)
    }
}
