//! The consistency check that CONTROL `check` runs: in slices, without memory of its own, while others go on.
//!
//! Between two slices anything may change, so each step looks only at what belongs together and is looked at whole: a node
//! with its neighbours, a domain with all that is counted for it. What takes a walk over everything at once is
//! left to the check that tests run (`check`).

use super::Store;
use super::quota::Quota;
use super::tree::{Node, ROOT, entry_bytes};
use super::watch::watch_bytes;
use crate::mem::{Budget, NIL, Progress};
use crate::proto::id::DomId;
use alloc::vec::Vec;
use core::fmt::Arguments;

/// Units of work for a node, for one of a domain's nodes, for one of its watches, and for a place without a domain.
const NODE_WORK: u64 = 500;
const OWNED_WORK: u64 = 100;
const WATCH_WORK: u64 = 300;
const PLACE_WORK: u64 = 10;

/// How far a check has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inspection {
    /// The next node is this one or behind it.
    Nodes(u32),
    /// The next domain is this one or behind it.
    Domains(u16),
}

impl Inspection {
    /// At the beginning.
    pub const START: Self = Self::Nodes(0);
}

impl Store {
    /// Goes on with a check as far as the budget reaches. What is wrong is given to `report`.
    pub fn inspect(
        &self,
        at: &mut Inspection,
        budget: &mut Budget,
        report: &mut dyn FnMut(Arguments<'_>),
    ) -> Progress {
        loop {
            if budget.is_over() {
                return Progress::More;
            }
            match *at {
                Inspection::Nodes(from) => match self.tree.next_node(from) {
                    Some((handle, node)) => {
                        self.inspect_node(handle, node, report);
                        budget.spend(NODE_WORK);
                        *at = Inspection::Nodes(handle.saturating_add(1));
                    }
                    None => *at = Inspection::Domains(0),
                },
                Inspection::Domains(domid) => {
                    budget.spend(PLACE_WORK);
                    if self.knows(DomId(domid)) {
                        self.inspect_domain(DomId(domid), budget, report);
                    }
                    match domid.checked_add(1) {
                        Some(next) => *at = Inspection::Domains(next),
                        None => return Progress::Done,
                    }
                }
            }
        }
    }

    /// A node, what is above it, beside it and first below it.
    fn inspect_node(&self, handle: u32, node: &Node, report: &mut dyn FnMut(Arguments<'_>)) {
        let tree = &self.tree;
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                report(format_args!("node {handle} {what}"));
            }
        };
        let owner = tree.entries(node.list).first();
        // The nodes of a domain that is dying are its own until they go.
        let is_known = |domid| self.knows(domid) || self.is_dying(domid);
        let fine = owner.is_some_and(|owner| !owner.stale && is_known(owner.domid));
        // Those of one that is gone are nobody's on their way out.
        expect(fine || !tree.is_attached(handle), "has no owner that is tracked");
        let family = tree.family(node);
        let parent_of = |child: u32| tree.node(child).map(|child| child.parent);
        for child in [family.first, family.last].into_iter().filter(|child| *child != NIL) {
            expect(parent_of(child) == Some(handle), "has a child that is another one's");
        }
        let least = tree.node(family.first).map_or(0, |child| entry_bytes(tree.name(child)));
        expect(family.bytes >= least, "counts its children wrongly");
        // These, and one that is on its way out or in, are nobody's children.
        if handle == ROOT || tree.special.contains(&handle) || tree.is_aside(node) {
            return;
        }
        let Some(above) = tree.node(node.parent) else {
            return expect(false, "has nothing above it");
        };
        let found = tree.child(node.parent, tree.name(node)) == Some(handle);
        expect(found, "is not found by its name");
        let ends = tree.family(above);
        // Of a family that goes child by child the one behind the last that went still names it.
        let before = match tree.node(node.prev) {
            Some(before) if ends.first != handle => before.next,
            _ => ends.first,
        };
        let behind = tree.node(node.next).map_or(ends.last, |behind| behind.prev);
        expect(before == handle && behind == handle, "is linked wrongly");
    }

    /// All that is counted for a domain. The nodes of the privileged one are nowhere listed.
    fn inspect_domain(
        &self,
        domid: DomId,
        budget: &mut Budget,
        report: &mut dyn FnMut(Arguments<'_>),
    ) {
        let Some(domain) = self.tree.domains.get(domid) else { return };
        // Without memory for a path the bytes are not compared.
        let (mut path, mut is_sure) = (Vec::new(), true);
        let (mut watches, mut transactions, mut bytes) =
            (0_usize, 0_usize, domain.queued.saturating_add(domain.listed));
        for (_, state) in self.conns.iter().filter(|(_, state)| state.party.domid == domid) {
            for watch in self.watches.of(state) {
                watches = watches.saturating_add(1);
                path.clear();
                is_sure &= self.watches.path(&self.tree, watch, &mut path).is_ok();
                bytes = bytes.saturating_add(watch_bytes(&path, &watch.token));
            }
            for (_, tx) in self.transactions.of(state.open) {
                transactions = transactions.saturating_add(1);
                bytes = bytes.saturating_add(tx.bytes);
            }
            // Those that are over are not counted any more, but hold memory until they have come to their end.
            for (_, tx) in self.transactions.of(state.ending) {
                bytes = bytes.saturating_add(tx.bytes);
            }
        }
        budget.spend(WATCH_WORK.saturating_mul(watches as u64));
        let mut expect = |what: Quota, real: usize| {
            let said = domain.used.get(what) as usize;
            if said != real {
                let name = what.name();
                report(format_args!(
                    "domain {domid} uses {real} of {name}, its account says {said}"
                ));
            }
        };
        expect(Quota::Watches, watches);
        expect(Quota::Transactions, transactions);
        if domid == self.privileged() {
            return;
        }
        let mut nodes = 0_usize;
        // One more than there can be is enough.
        for handle in self.tree.owned_by(domid).take(self.node_count().saturating_add(1)) {
            nodes = nodes.saturating_add(1);
            let node = self.tree.node(handle);
            bytes = bytes.saturating_add(node.map_or(0, |node| self.tree.bytes(node)));
        }
        budget.spend(OWNED_WORK.saturating_mul(nodes as u64));
        expect(Quota::Nodes, nodes);
        if is_sure {
            expect(Quota::Memory, bytes);
        }
    }
}
