//! The overlay of one transaction: its records as a tree, beside the live one.

use super::{
    Now, OpenOf, Places, State, TOUCHED_BYTES, TRANSACTION_BYTES, Touched, Transaction,
    Transactions,
};
use crate::mem::{NIL, NoMemory, Table};
use crate::proto::id::{ConnId, DomId, TxId};
use crate::store::perms::{Access, Party};
use crate::store::tree::{Node, ROOT, Tree, entry_bytes, name_block, value_bytes};
use crate::store::watch::Class;
use core::ops::{Deref, DerefMut};

/// Marks the handle of a transaction where otherwise that of a record stands. No table has so many records.
const HEAD: u32 = 1 << 31;

/// Mixes two small numbers into a hash whose low bits are good.
pub(super) fn mix(seed: u64, a: u32, b: u32) -> u64 {
    let key = u64::from(a) << 32 | u64::from(b);
    let mixed = (key ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

/// A transaction with what it has touched.
#[derive(Debug)]
pub(in crate::store) struct Open<'a> {
    pub(in crate::store) handle: u32,
    pub(in crate::store) tx: &'a mut Transaction,
    pub(in crate::store) places: &'a mut Places,
}

impl Touched {
    /// A record that is only a step on the way.
    fn step(parent: u32, name: u32) -> Self {
        Self {
            parent,
            name,
            chain: NIL,
            first: NIL,
            last: NIL,
            next: NIL,
            prev: NIL,
            after: NIL,
            number: 0,
            accessed: false,
            modified: false,
            has_made: false,
            promised: false,
            event: None,
            seen: NIL,
            made: NIL,
            below: 0,
            removed_at: None,
            base: None,
            now: None,
            value: None,
        }
    }

    /// Whether it was made in the transaction: it has no live children.
    pub(super) fn is_fresh(&self) -> bool {
        self.made != NIL
    }

    /// Whether nothing live below it is seen: the node is missing, or was made in the transaction.
    pub(super) fn hides(&self) -> bool {
        self.accessed && (self.now.is_none() || self.is_fresh())
    }

    /// The record above, if it has one.
    pub(super) fn above(&self) -> Option<u32> {
        (self.parent & HEAD == 0).then_some(self.parent)
    }

    /// The node in the tree, after the commit for one that was made here.
    pub(super) fn node(&self) -> u32 {
        if self.is_fresh() { self.made } else { self.base.map_or(NIL, |base| base.node) }
    }

    /// What it holds of its domain's memory.
    pub(super) fn bytes(&self, tree: &Tree) -> usize {
        let value = self.value.as_ref().map_or(0, |value| tree.kept(value).len());
        let made = tree.node(self.made).map_or(0, |made| tree.bytes(made));
        TOUCHED_BYTES
            .saturating_add(name_bytes(tree.name_of(self.name).len()))
            .saturating_add(value_bytes(value))
            .saturating_add(made)
    }
}

/// What a name counts for that somebody uses.
fn name_bytes(len: usize) -> usize {
    name_block(len).saturating_add(Tree::NAME_BYTES)
}

/// What a step on the way counts for.
pub(super) fn step_bytes(name: usize) -> usize {
    TOUCHED_BYTES.saturating_add(name_bytes(name))
}

impl Transactions {
    /// The handle of an open transaction.
    pub(in crate::store) fn find(&self, conn: ConnId, id: TxId) -> Option<u32> {
        let hash = mix(self.heads.seed(), conn.0, id.0);
        let same = |tx: &Transaction| tx.conn == conn && tx.id == id && tx.state == State::Open;
        self.heads.find(hash, same)
    }

    /// An open transaction.
    pub(in crate::store) fn get_mut(&mut self, conn: ConnId, id: TxId) -> Option<Open<'_>> {
        self.at(self.find(conn, id)?)
    }

    /// A transaction by its handle.
    pub(in crate::store) fn at(&mut self, handle: u32) -> Option<Open<'_>> {
        let tx = self.heads.get_mut(handle)?;
        Some(Open { handle, tx, places: &mut self.places })
    }

    /// The open transactions of a connection, in the order of their start, with their handles.
    pub(in crate::store) fn of(&self, open: OpenOf) -> impl Iterator<Item = (u32, &Transaction)> {
        let at = |handle: u32| self.heads.get(handle).map(|tx| (handle, tx));
        core::iter::successors(at(open.first), move |(_, tx)| at(tx.next))
    }

    /// A new one, as the last of its connection.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        id: TxId,
        domid: DomId,
        open: &mut OpenOf,
    ) -> Result<u32, NoMemory> {
        let handle = self.heads.insert(Transaction {
            conn,
            id,
            domid,
            state: State::Open,
            poisoned: false,
            bytes: TRANSACTION_BYTES,
            accessed: 0,
            below: 0,
            delta: 0,
            root: NIL,
            special: NIL,
            first: NIL,
            last: NIL,
            prev: open.last,
            next: NIL,
            chain: NIL,
        })?;
        if let Some(before) = self.heads.get_mut(open.last) {
            before.next = handle;
        } else {
            open.first = handle;
        }
        open.last = handle;
        self.open = self.open.saturating_add(1);
        Ok(handle)
    }

    /// Takes an open one out of its connection's list.
    pub(super) fn close(&mut self, handle: u32, open: &mut OpenOf) {
        let Some(tx) = self.heads.get_mut(handle) else { return };
        let (prev, next) = (tx.prev, tx.next);
        tx.state = State::Leaving;
        match self.heads.get_mut(prev) {
            Some(before) => before.next = next,
            None => open.first = next,
        }
        match self.heads.get_mut(next) {
            Some(after) => after.prev = prev,
            None => open.last = prev,
        }
        self.open = self.open.saturating_sub(1);
    }

    /// Takes one out that has no records any more, and returns what it still held.
    pub(super) fn remove(&mut self, handle: u32) -> Option<Transaction> {
        self.heads.remove(handle)
    }

    pub(super) fn head(&self, handle: u32) -> Option<&Transaction> {
        self.heads.get(handle)
    }

    /// The records of a transaction in the order of first access, with their handles.
    pub(super) fn in_order(&self, tx: &Transaction) -> impl Iterator<Item = (u32, &Touched)> {
        let at = |handle: u32| self.places.get(handle).map(|touched| (handle, touched));
        core::iter::successors(at(tx.first), move |(_, touched)| at(touched.after))
    }

    /// The transaction that a record belongs to, for the consistency check.
    pub(super) fn owner_of(&self, at: &Touched) -> u32 {
        let mut at = at;
        while let Some(above) = at.above() {
            let Some(above) = self.places.get(above) else { return NIL };
            at = above;
        }
        at.parent & !HEAD
    }
}

impl Deref for Places {
    type Target = Table<Touched>;
    fn deref(&self) -> &Table<Touched> {
        &self.0
    }
}

impl DerefMut for Places {
    fn deref_mut(&mut self) -> &mut Table<Touched> {
        &mut self.0
    }
}

impl Places {
    /// The record below another one.
    pub(super) fn child(&self, parent: u32, name: u32) -> Option<u32> {
        #[cfg(test)]
        super::steps::add();
        let hash = mix(self.0.seed(), parent, name);
        self.0.find(hash, |touched| touched.parent == parent && touched.name == name)
    }

    /// Whether a node above is missing as the transaction sees it, or was made in it: below is nothing then
    /// but what the transaction makes itself.
    pub(super) fn is_hidden(&self, at: u32) -> bool {
        let mut at = self.get(at).and_then(Touched::above);
        while let Some(above) = at.and_then(|at| self.get(at)) {
            #[cfg(test)]
            super::steps::add();
            if above.hides() {
                return true;
            }
            at = above.above();
        }
        false
    }

    /// The live node at a touched path, of which `seen` is the present one, for what was not copied. After a change, which
    /// takes the chance to commit, that is whatever is there now, if the party may read it.
    pub(super) fn live<'a>(
        &self,
        tree: &'a Tree,
        at: u32,
        party: &Party,
    ) -> Option<(u32, &'a Node)> {
        let touched = self.get(at)?;
        let base = touched.base?;
        let node = tree.node(touched.seen)?;
        let same = touched.seen == base.node && node.generation() == base.generation;
        let shown = same || tree.rights(node.list, party).access.includes(Access::Read);
        shown.then_some((touched.seen, node))
    }

    /// The value of a touched node that exists. One that was not asked for before is the live one.
    pub(in crate::store) fn value<'a>(
        &'a self,
        tree: &'a Tree,
        at: u32,
        party: &Party,
    ) -> Option<&'a [u8]> {
        let touched = self.get(at)?;
        touched.now.as_ref()?;
        if touched.is_fresh() {
            return tree.node(touched.made).map(|made| tree.value(made));
        }
        match &touched.value {
            Some(value) => Some(tree.kept(value)),
            None => self.live(tree, at, party).map(|(_, node)| tree.value(node)),
        }
    }

    /// Whether the value of a touched node is the transaction's own.
    pub(in crate::store) fn has_value(&self, at: u32) -> bool {
        self.get(at).is_some_and(|touched| touched.is_fresh() || touched.value.is_some())
    }

    /// The generation that a node has outside if it is not the one of the first access, 0 if it is gone.
    /// `None` also for a node that was made here: nothing outside is part of its list.
    pub(in crate::store) fn changed_meanwhile(&self, tree: &Tree, at: u32) -> Option<u64> {
        let touched = self.get(at).filter(|touched| !touched.is_fresh())?;
        let base = touched.base?;
        let live = tree.node(touched.seen).map_or(0, Node::generation);
        // A base that did not hold at a live update is not known any more.
        (base.node == NIL || live != base.generation).then_some(live)
    }

    /// Calls `each` with the name of every child of a node as the transaction sees them, in order, until it returns
    /// false.
    ///
    /// They are the present ones. Where something has changed since the first access, the rights that the
    /// copy gives say nothing about them: then `party` must have the right to read the present node.
    pub(in crate::store) fn each_child(
        &self,
        tree: &Tree,
        at: u32,
        party: &Party,
        mut each: impl FnMut(&[u8]) -> bool,
    ) {
        let Some(parent) = self.get(at) else { return };
        if let Some((handle, _)) = self.live(tree, at, party).filter(|_| !parent.is_fresh()) {
            for (_, child) in tree.children(handle) {
                let known = if parent.first == NIL { None } else { self.child(at, child.name) };
                let hides = known.and_then(|known| self.get(known)).is_some_and(Touched::hides);
                if !hides && !each(tree.name(child)) {
                    return;
                }
            }
        }
        let mut below = if parent.has_made { parent.first } else { NIL };
        while let Some(child) = self.get(below) {
            if child.is_fresh() && !each(tree.name_of(child.name)) {
                return;
            }
            below = child.next;
        }
    }
}

impl Open<'_> {
    pub(in crate::store) fn get(&self, at: u32) -> Option<&Touched> {
        #[cfg(test)]
        super::steps::add();
        self.places.get(at)
    }

    pub(in crate::store) fn get_mut(&mut self, at: u32) -> Option<&mut Touched> {
        self.places.get_mut(at)
    }

    /// How many nodes it has accessed.
    pub(in crate::store) fn len(&self) -> usize {
        (self.tx.accessed as usize).saturating_add(self.tx.below)
    }

    /// How many nodes more its domain would own.
    pub(in crate::store) fn delta(&self) -> i64 {
        self.tx.delta
    }

    /// The record of a special name, whose handle this is.
    pub(super) fn special(&self, name: u32) -> Option<u32> {
        self.places.child(HEAD | self.handle, name)
    }

    /// Adds a step on the way below another one. Takes over the use of the name.
    ///
    /// # Errors
    /// There is no memory; the use is the caller's.
    pub(super) fn add(&mut self, parent: u32, name: u32) -> Result<u32, NoMemory> {
        let mut step = Touched::step(parent, name);
        let before = self.places.get(parent).map_or(NIL, |above| above.last);
        step.prev = before;
        let at = self.places.insert(step)?;
        if let Some(above) = self.places.get_mut(parent) {
            above.last = at;
            if before == NIL {
                above.first = at;
            }
        }
        if let Some(before) = self.places.get_mut(before) {
            before.next = at;
        }
        Ok(at)
    }

    /// The record of the root, made if there is none.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn root(&mut self) -> Result<u32, NoMemory> {
        if self.tx.root == NIL {
            self.tx.root = self.add(HEAD | self.handle, NIL)?;
        }
        if let Some(root) = self.places.get_mut(self.tx.root) {
            root.seen = ROOT;
        }
        Ok(self.tx.root)
    }

    /// Adds the record of a special name. Takes over the use of the name.
    ///
    /// # Errors
    /// There is no memory; the use is the caller's.
    pub(super) fn add_special(&mut self, name: u32) -> Result<u32, NoMemory> {
        let at = self.add(HEAD | self.handle, name)?;
        if let Some(new) = self.places.get_mut(at) {
            new.next = self.tx.special;
        }
        self.tx.special = at;
        Ok(at)
    }

    /// Takes a record that has none below out of its place.
    pub(super) fn unlink(&mut self, at: u32) {
        let Some(touched) = self.places.get(at) else { return };
        let (parent, prev, next) = (touched.parent, touched.prev, touched.next);
        if self.tx.root == at {
            self.tx.root = NIL;
        } else if self.tx.special == at {
            self.tx.special = next;
        }
        if let Some(above) = self.places.get_mut(parent) {
            if above.first == at {
                above.first = next;
            }
            if above.last == at {
                above.last = prev;
            }
        }
        if let Some(before) = self.places.get_mut(prev) {
            before.next = next;
        }
        if let Some(after) = self.places.get_mut(next) {
            after.prev = prev;
        }
    }

    /// Makes a record the last of those below the one above.
    pub(super) fn move_to_end(&mut self, at: u32) {
        let Some(touched) = self.places.get(at) else { return };
        let (parent, prev, next) = (touched.parent, touched.prev, touched.next);
        if next == NIL {
            return;
        }
        let Some(above) = self.places.get_mut(parent) else { return };
        let last = core::mem::replace(&mut above.last, at);
        if prev == NIL {
            above.first = next;
        }
        if let Some(before) = self.places.get_mut(prev) {
            before.next = next;
        }
        if let Some(after) = self.places.get_mut(next) {
            after.prev = prev;
        }
        if let Some(last) = self.places.get_mut(last) {
            last.next = at;
        }
        if let Some(touched) = self.places.get_mut(at) {
            (touched.prev, touched.next) = (last, NIL);
        }
    }

    /// Puts a record at the end of the order of first access.
    pub(super) fn enlist(&mut self, at: u32) {
        let last = core::mem::replace(&mut self.tx.last, at);
        if let Some(last) = self.places.get_mut(last) {
            last.after = at;
        } else {
            self.tx.first = at;
        }
        if let Some(touched) = self.places.get_mut(at) {
            touched.accessed = true;
            touched.number = self.tx.accessed;
        }
        self.tx.accessed = self.tx.accessed.saturating_add(1);
    }

    /// Accesses a path for the first time. `live` is the node that the transaction sees there, or `NIL`.
    pub(super) fn access(&mut self, tree: &mut Tree, at: u32, live: u32) {
        self.enlist(at);
        self.take_down(tree, at, live);
    }

    /// The owner of a list has so many nodes more: only the transaction's own domain is held to a number.
    pub(super) fn count(&mut self, tree: &Tree, list: u32, change: i64) {
        if tree.owner(list) == self.tx.domid {
            self.tx.delta = self.tx.delta.saturating_add(change);
        }
    }

    /// Makes the node at a path that was found missing one that was [made](Tree::make_detached) for it. The parent must
    /// have been touched and exist.
    pub(super) fn create(&mut self, tree: &mut Tree, at: u32, made: u32, list: u32) {
        self.count(tree, list, 1);
        let generation = tree.advance();
        tree.retain_list(list);
        let Some(touched) = self.get_mut(at) else { return };
        touched.made = made;
        touched.now = Some(Now { list, children_bytes: 0, generation });
        let (name, above) = (touched.name, touched.parent);
        let bytes = entry_bytes(tree.name_of(name));
        if let Some(parent) = self.get_mut(above) {
            parent.has_made = true;
            if let Some(now) = &mut parent.now {
                now.generation = generation;
                now.children_bytes = now.children_bytes.saturating_add(bytes);
            }
        }
        self.move_to_end(at);
    }

    /// Forgets what a record has made of its node, which does not exist any more; `false` if it did not before.
    pub(super) fn forget(&mut self, tree: &mut Tree, at: u32, event: Class) -> bool {
        let Some(touched) = self.get_mut(at) else { return false };
        let Some(now) = touched.now.take() else { return false };
        touched.modified = false;
        touched.event = touched.event.max(Some(event));
        let made = core::mem::replace(&mut touched.made, NIL);
        let promised = core::mem::take(&mut touched.promised);
        if let Some(value) = touched.value.take() {
            tree.drop_value(&value);
        }
        if made != NIL {
            tree.drop_detached(made);
        }
        if promised {
            tree.withdraw_owner();
        }
        self.count(tree, now.list, -1);
        tree.release_list(now.list);
        true
    }

    /// Wants an event for a path at commit; `Subtree` wins over `Exact`.
    pub(super) fn announce(&mut self, at: u32, class: Class) {
        if let Some(touched) = self.get_mut(at) {
            touched.event = touched.event.max(Some(class));
        }
    }
}
