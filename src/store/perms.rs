//! Permission lists: an owner with a default for everybody else, then entries for single domains.

use crate::proto::id::DomId;
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
    /// What that domain may do; in the first entry: what everybody may do that no entry names.
    pub access: Access,
    /// Stored and shown, but never matches: the domain did not exist when the entry was made.
    pub stale: bool,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(self.access.letter()), self.domid)
    }
}

/// Who is behind a connection, as far as permissions go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Its own domain.
    pub domid: DomId,
    /// The domain whose rights it has besides its own (SET_TARGET).
    pub target: Option<DomId>,
    /// May do everything and is bound by no quota.
    pub privileged: bool,
}

impl Party {
    /// Whether an entry for `domid` speaks of this party.
    fn is_meant_by(&self, domid: DomId) -> bool {
        domid == self.domid || Some(domid) == self.target || domid == DomId::ANY
    }
}

/// What a party may do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rights {
    pub(super) access: Access,
    /// May change the permissions.
    pub(super) owner: bool,
}

/// Evaluates a permission list: the owner may do everything, then the first entry that
/// speaks of the party decides, then the owner entry's default. Stale entries never match.
///
/// Source: `docs/misc/xenstore.txt`, SET_PERMS; that the first match decides is the C server's rule.
pub(super) fn rights(entries: &[Entry], party: &Party) -> Rights {
    let all = Rights { access: Access::Both, owner: true };
    let Some((owner, others)) = entries.split_first() else {
        return Rights { access: Access::None, owner: false };
    };
    if party.privileged || !owner.stale && party.is_meant_by(owner.domid) {
        return all;
    }
    let entry = others.iter().find(|entry| !entry.stale && party.is_meant_by(entry.domid));
    Rights { access: entry.unwrap_or(owner).access, owner: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn list(text: &str) -> Vec<Entry> {
        text.split(',')
            .map(|entry| {
                let (entry, stale) = match entry.strip_suffix('!') {
                    Some(entry) => (entry, true),
                    None => (entry, false),
                };
                let access = Access::from_letter(entry.as_bytes()[0]).unwrap();
                Entry { domid: DomId(entry[1..].parse().unwrap()), access, stale }
            })
            .collect()
    }

    #[test]
    fn the_first_entry_that_matches_decides() {
        let guest = Party { domid: DomId(5), target: None, privileged: false };
        let stub = Party { domid: DomId(9), target: Some(DomId(5)), privileged: false };
        for (text, access, owner) in [
            ("n0", Access::None, false),
            ("r0", Access::Read, false),
            ("n5", Access::Both, true),
            ("n0,r5", Access::Read, false),
            ("b0,n5", Access::None, false),
            ("n0,w5,b5", Access::Write, false),
            ("n0,b5!", Access::None, false),
            ("n0,b5!,r5", Access::Read, false),
            ("n0,r32757", Access::Read, false),
            ("n0,n32757,b5", Access::None, false),
            ("n0,r9", Access::None, false),
        ] {
            let rights = rights(&list(text), &guest);
            assert_eq!((rights.access, rights.owner), (access, owner), "{text}");
        }
        for (text, access, owner) in [
            ("n5", Access::Both, true),
            ("n0,r9,b5", Access::Read, false),
            ("n0,b5", Access::Both, false),
        ] {
            let rights = rights(&list(text), &stub);
            assert_eq!((rights.access, rights.owner), (access, owner), "{text}");
        }
    }

    #[test]
    fn privilege_is_everything() {
        let dom0 = Party { domid: DomId(0), target: None, privileged: true };
        assert_eq!(rights(&list("n5,n0"), &dom0), Rights { access: Access::Both, owner: true });
    }

    #[test]
    fn a_target_of_domain_0_conveys_no_privilege() {
        let stub = Party { domid: DomId(9), target: Some(DomId(0)), privileged: false };
        assert_eq!(rights(&list("n5"), &stub).access, Access::None);
    }
}
