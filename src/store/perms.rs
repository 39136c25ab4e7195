//! Permission lists: an owner with a default for everybody else, then entries for single domains.

pub use crate::proto::perms::{Access, Entry};

use crate::proto::id::DomId;

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
    /// Whether an entry for `domid` is about this party.
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

/// Evaluates a permission list. The owner may do everything. Otherwise the first entry about the party decides,
/// and then the owner entry's default. Stale entries never match.
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
