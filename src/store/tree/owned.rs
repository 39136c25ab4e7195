//! Who owns which node: a record for each node that somebody else than the privileged domain owns.
//!
//! A domain's records are linked in the order in which it came to own the nodes, so that what is left of a domain that
//! is gone can be taken away piece by piece, and nothing has to be collected before.

use super::Tree;
use crate::mem::{NIL, NoMemory, Record};
use crate::proto::id::DomId;

/// A node that is owned.
#[derive(Debug)]
pub(super) struct Owned {
    node: u32,
    /// Neighbours in the owner's list.
    prev: u32,
    next: u32,
    chain: u32,
}

impl Record for Owned {
    fn hash(&self, seed: u64) -> u64 {
        owned_hash(seed, self.node)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

fn owned_hash(seed: u64, node: u32) -> u64 {
    let mixed = (u64::from(node) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl Tree {
    /// Keeps a place for one node more that is owned: then [`set_list_promised`](Self::set_list_promised) cannot fail.
    ///
    /// # Errors
    /// There is no memory.
    pub(in crate::store) fn promise_owner(&mut self) -> Result<(), NoMemory> {
        self.owned.promise()
    }

    /// Gives such a place back.
    pub(in crate::store) fn withdraw_owner(&mut self) {
        self.owned.withdraw();
    }

    /// Replaces the permissions of a node of the tree. Takes over one use of `list`, and a promise.
    pub(in crate::store) fn set_list_promised(&mut self, handle: u32, list: u32) {
        let generation = self.advance();
        let Some(node) = self.nodes.get_mut(handle) else { return self.withdraw_owner() };
        node.set_generation(generation);
        let old = core::mem::replace(&mut node.list, list);
        if self.owner(old) == self.owner(list) {
            self.withdraw_owner();
        } else {
            self.disown(old, handle);
            self.own_promised(list, handle);
        }
        self.release_list(old);
    }

    /// The owner that a list names has one node more, for which there is a promise.
    #[inline]
    pub(super) fn own_promised(&mut self, list: u32, handle: u32) {
        let owner = self.owner(list);
        let bytes = self.node(handle).map_or(0, |node| self.bytes(node));
        self.domains.own(owner, 1, bytes);
        if owner == self.domains.privileged {
            self.withdraw_owner();
        } else {
            self.link_owned(owner, handle);
        }
    }

    /// As [`own_promised`](Self::own_promised), without a promise and without the account.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn enter_owned(&mut self, list: u32, handle: u32) -> Result<(), NoMemory> {
        let owner = self.owner(list);
        if owner != self.domains.privileged {
            self.promise_owner()?;
            self.link_owned(owner, handle);
        }
        Ok(())
    }

    fn link_owned(&mut self, owner: DomId, node: u32) {
        let Some(domain) = self.domains.get_mut(owner) else { return self.withdraw_owner() };
        let prev = domain.owned.1;
        let made = self.owned.insert_promised(Owned { node, prev, next: NIL, chain: NIL });
        domain.owned.1 = made;
        if prev == NIL {
            domain.owned.0 = made;
        }
        if let Some(before) = self.owned.get_mut(prev) {
            before.next = made;
        }
    }

    /// The owner that a list names has one node less.
    fn disown(&mut self, list: u32, handle: u32) {
        let owner = self.owner(list);
        let bytes = self.node(handle).map_or(0, |node| self.bytes(node));
        if self.is_anybodys(list) {
            self.domains.disown(owner, 1, bytes);
        }
        if owner != self.domains.privileged {
            self.unlink_owned(owner, handle);
        }
    }

    /// Whether the owner that a list names is still there. Otherwise what it had is nobody's: a domain that has the
    /// same domid now has nothing to do with it.
    pub(in crate::store) fn is_anybodys(&self, list: u32) -> bool {
        self.entries(list).first().is_some_and(|owner| !owner.stale)
    }

    pub(super) fn unlink_owned(&mut self, owner: DomId, node: u32) {
        let hash = owned_hash(self.owned.seed(), node);
        let Some(handle) = self.owned.find(hash, |owned| owned.node == node) else { return };
        let Some(gone) = self.owned.remove(handle) else { return };
        if let Some(before) = self.owned.get_mut(gone.prev) {
            before.next = gone.next;
        }
        if let Some(after) = self.owned.get_mut(gone.next) {
            after.prev = gone.prev;
        }
        let Some(domain) = self.domains.get_mut(owner) else { return };
        if domain.owned.0 == handle {
            domain.owned.0 = gone.next;
        }
        if domain.owned.1 == handle {
            domain.owned.1 = gone.prev;
        }
    }

    /// The node that a domain has owned longest.
    pub(in crate::store) fn first_owned(&self, domid: DomId) -> Option<u32> {
        let first = self.domains.get(domid)?.owned.0;
        self.owned.get(first).map(|owned| owned.node)
    }

    /// The topmost node above one, or it itself, that the same domain owns, how many levels there are above, and
    /// whether it is in the tree.
    pub(in crate::store) fn topmost_owned(&self, handle: u32, domid: DomId) -> (u32, u32, bool) {
        let (mut top, mut at, mut levels) = (handle, handle, 0_u32);
        while let Some(node) = self.node(at) {
            if self.owner(node.list) == domid {
                top = at;
            }
            at = node.parent;
            levels = levels.saturating_add(1);
        }
        (top, levels, at == NIL)
    }

    /// A node that somebody else frees already is not a domain's any more that is gone.
    pub(in crate::store) fn disclaim(&mut self, handle: u32, domid: DomId) {
        self.unlink_owned(domid, handle);
    }

    /// Gives a node to the privileged domain, as its list says. Takes over one use of `list`.
    pub(in crate::store) fn give_back_node(&mut self, handle: u32, list: u32) {
        let generation = self.advance();
        let Some(node) = self.nodes.get_mut(handle) else { return };
        node.set_generation(generation);
        let old = core::mem::replace(&mut node.list, list);
        self.disown(old, handle);
        let bytes = self.node(handle).map_or(0, |node| self.bytes(node));
        self.domains.own(self.domains.privileged, 1, bytes);
        self.release_list(old);
    }

    /// The nodes that a domain owns, in the order in which it came to own them.
    pub(in crate::store) fn owned_by(&self, domid: DomId) -> impl Iterator<Item = u32> {
        let first = self.domains.get(domid).map_or(NIL, |domain| domain.owned.0);
        core::iter::successors(self.owned.get(first), |owned| self.owned.get(owned.next))
            .map(|owned| owned.node)
    }

    /// How many nodes have an owner's record, for the consistency check.
    pub(in crate::store) fn owned_count(&self) -> usize {
        self.owned.len()
    }
}
