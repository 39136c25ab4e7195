//! What a consistency check asks of the transactions.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "for tests: no server calls it for anybody"
    )
)]

use super::{TRANSACTION_BYTES, Touched, Transactions};
use crate::mem::NIL;
use crate::store::tree::Tree;
use alloc::collections::BTreeMap;

impl Transactions {
    fn records(&self) -> impl Iterator<Item = &Touched> {
        self.places.iter().map(|(_, touched)| touched)
    }

    /// Every use that they have of a permission list.
    pub(in crate::store) fn list_uses(&self) -> impl Iterator<Item = u32> {
        self.records().flat_map(|touched| {
            let now = touched.now.map(|now| now.list);
            let base = touched.base.map(|base| base.list).filter(|list| *list != NIL);
            [base, now].into_iter().flatten()
        })
    }

    /// Every use that they have of a name.
    pub(in crate::store) fn name_uses(&self) -> impl Iterator<Item = u32> {
        self.records().map(|touched| touched.name).filter(|name| *name != NIL)
    }

    /// How many nodes they have made that are in no tree.
    pub(in crate::store) fn made(&self) -> usize {
        self.records().filter(|touched| touched.is_fresh()).count()
    }

    /// What each of them holds, by its handle.
    pub(in crate::store) fn recount(&self, tree: &Tree) -> BTreeMap<u32, usize> {
        let heads = self.heads.iter().map(|(handle, _)| (handle, TRANSACTION_BYTES));
        let mut counted: BTreeMap<u32, usize> = heads.collect();
        for touched in self.records() {
            let held = counted.entry(self.owner_of(touched)).or_default();
            *held = held.saturating_add(touched.bytes(tree));
        }
        counted
    }
}
