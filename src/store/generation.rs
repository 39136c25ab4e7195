//! What clients see of generations.
//!
//! Inside they are one counter for the whole store. A client must see that its list has changed, but not how
//! busy others are meanwhile, so it is shown a keyed hash: SipHash, of which a thousand known pairs tell nothing about
//! the next. Source: `docs/misc/xenstore.txt`, DIRECTORY_PART: the same generation means the same list.

use crate::proto::id::{ConnId, TxId};
use core::hash::Hasher;

/// A list of children, for comparing it with itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ListOf {
    /// The generation of the node as the caller sees it.
    pub(super) own: u64,
    /// In a transaction, if the node has changed since it was accessed first: then the list is a mixture of what
    /// there is now and what this transaction has made of it.
    pub(super) mixed: Option<Mixed>,
}

/// What else such a list depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mixed {
    /// The present generation of the node outside; 0 if there is none any more.
    pub(super) live: u64,
    pub(super) conn: ConnId,
    pub(super) tx: TxId,
}

impl ListOf {
    /// The number for clients: the same for the same list, and for no other.
    pub(super) fn shown(self, seed: u64) -> u64 {
        #[expect(deprecated, reason = "it is SipHash with a key of one's own, and in core")]
        let mut hasher = core::hash::SipHasher::new_with_keys(seed, !seed);
        hasher.write_u64(self.own);
        if let Some(Mixed { live, conn, tx }) = self.mixed {
            hasher.write_u64(live);
            hasher.write_u32(conn.0);
            hasher.write_u32(tx.0);
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn no_two_lists_show_the_same_and_none_shows_its_number() {
        let mut seen = BTreeSet::new();
        for own in 0..1000 {
            assert!(seen.insert(ListOf { own, mixed: None }.shown(7)));
            for live in 0..3 {
                let mixed = Mixed { live, conn: ConnId(1), tx: TxId(2) };
                assert!(seen.insert(ListOf { own, mixed: Some(mixed) }.shown(7)));
            }
        }
        // Those of a quiet store are spread over everything that 64 bits hold.
        let steps = seen.iter().zip(seen.iter().skip(1)).map(|(a, b)| b - a);
        assert!(steps.min().unwrap() > 1 << 20);
        assert_ne!(
            ListOf { own: 1, mixed: None }.shown(7),
            ListOf { own: 1, mixed: None }.shown(8)
        );
    }
}
