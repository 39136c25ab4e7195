//! The live nodes below one that a transaction removes: walked together with the overlay, so that each is looked at
//! once, by the record nearest above it.

use super::overlay::Open;
use super::{Places, Touched};
use crate::mem::NIL;
use crate::store::perms::Party;
use crate::store::tree::{Node, Tree, entry_bytes};
use crate::store::watch::Class;

/// A walk below a node, parents first: no stack, no list.
struct Walk {
    top: u32,
    /// The live node.
    at: u32,
    /// The nearest record at it or above.
    record: u32,
    /// How many levels above that record is.
    levels: u32,
}

impl Walk {
    /// Goes to a child of the present node, or of the one above it.
    fn enter(&mut self, tree: &Tree, places: &Places, child: u32) {
        self.at = child;
        if self.levels > 0 {
            self.levels = self.levels.saturating_add(1);
            return;
        }
        let has_any = places.get(self.record).is_some_and(|record| record.first != NIL);
        let name = tree.node(child).filter(|_| has_any).map(|child| child.name);
        match name.and_then(|name| places.child(self.record, name)) {
            Some(known) => self.record = known,
            None => self.levels = 1,
        }
    }

    /// Goes to the node above.
    fn leave(&mut self, tree: &Tree, places: &Places) {
        self.at = tree.node(self.at).map_or(NIL, |node| node.parent);
        match self.levels.checked_sub(1) {
            Some(levels) => self.levels = levels,
            None => self.record = places.get(self.record).and_then(Touched::above).unwrap_or(NIL),
        }
    }

    /// Goes on: below the present node if `deeper`, else beside it, or beside one above. `false` at the end.
    fn next(&mut self, tree: &Tree, places: &Places, deeper: bool) -> bool {
        #[cfg(test)]
        super::steps::add();
        if deeper {
            let first = tree.node(self.at).map_or(NIL, |node| tree.family(node).first);
            if first != NIL {
                self.enter(tree, places, first);
                return true;
            }
        }
        while self.at != self.top {
            let Some(beside) = tree.node(self.at).map(|node| node.next) else { return false };
            self.leave(tree, places);
            if beside != NIL {
                self.enter(tree, places, beside);
                return true;
            }
        }
        false
    }

    /// The record of the present node, if it has one that was accessed.
    fn accessed<'a>(&self, places: &'a Places) -> Option<&'a Touched> {
        let record = places.get(self.record).filter(|_| self.levels == 0);
        record.filter(|record| record.accessed)
    }
}

impl Places {
    /// How many live nodes go with one that is removed, as the transaction sees them and as far as it has not accessed
    /// them, and how many of these the party's domain owns. More than `most` are not counted.
    pub(super) fn count_hidden(
        &self,
        tree: &Tree,
        top: u32,
        party: &Party,
        most: usize,
    ) -> (usize, i64) {
        let touched = self.get(top).filter(|top| !top.is_fresh() && top.is_intact(tree));
        let Some(base) = touched.and_then(|top| top.base) else { return (0, 0) };
        let (mut count, mut own) = (0_usize, 0_i64);
        if !self.has_records_below(top) {
            let (mut list, mut is_own) = (NIL, false);
            for (_, node) in tree.below(base.node).take(most.saturating_add(1)) {
                if node.list != list {
                    (list, is_own) = (node.list, tree.owner(node.list) == party.domid);
                }
                count = count.saturating_add(1);
                own = own.saturating_add(i64::from(is_own));
            }
            return (count, own);
        }
        let mut walk = Walk { top: base.node, at: base.node, record: top, levels: 0 };
        let mut deeper = true;
        while count <= most && walk.next(tree, self, deeper) {
            deeper = true;
            let Some(node) = tree.node(walk.at) else { break };
            if let Some(record) = walk.accessed(self) {
                // What hides what is live is gone already, and with a node that has changed nothing goes any more.
                deeper = !record.hides() && record.is_intact(tree);
                continue;
            }
            count = count.saturating_add(1);
            let is_own = tree.owner(node.list) == party.domid;
            own = own.saturating_add(i64::from(is_own));
        }
        (count, own)
    }

    /// Whether a walk has to look for records. Without that it is several times quicker.
    fn has_records_below(&self, top: u32) -> bool {
        self.get(top).is_some_and(|top| top.first != NIL)
    }

    /// The record behind one in a walk through all below `top`, parents first; `NIL` at the end.
    fn next_below(&self, top: u32, at: u32) -> u32 {
        let mut at = at;
        let mut next = self.get(at).map_or(NIL, |touched| touched.first);
        while next == NIL && at != top {
            let Some(touched) = self.get(at) else { return NIL };
            next = touched.next;
            at = touched.above().unwrap_or(top);
        }
        next
    }

    /// How many live nodes go with one that is removed and are seen to by its record.
    pub(super) fn hidden_below(&self, tree: &Tree, top: u32) -> u32 {
        let mut count = 0_u32;
        self.each_hidden(tree, top, |_| {
            count = count.saturating_add(1);
            true
        });
        count
    }

    /// Whether a live node below a removed one is newer than the removal. What was accessed itself has its own look.
    pub(super) fn is_changed_below(&self, tree: &Tree, top: u32) -> bool {
        let removed_at = self.get(top).and_then(|touched| touched.removed_at);
        let Some(removed_at) = removed_at else { return false };
        !self.each_hidden(tree, top, |generation| generation <= removed_at)
    }

    /// Calls `fits` with the generation of each live node below a removed one that its record sees to: they were removed
    /// with it, and were not accessed while they were seen. `false` as soon as it says so.
    pub(super) fn each_hidden(
        &self,
        tree: &Tree,
        top: u32,
        mut fits: impl FnMut(u64) -> bool,
    ) -> bool {
        let touched = self.get(top).filter(|touched| touched.removed_at.is_some());
        let Some(base) = touched.and_then(|touched| touched.base) else { return true };
        if !self.has_records_below(top) {
            return tree.below(base.node).all(|(_, node)| fits(node.generation()));
        }
        let mut walk = Walk { top: base.node, at: base.node, record: top, levels: 0 };
        let mut deeper = true;
        while walk.next(tree, self, deeper) {
            let record = walk.accessed(self);
            // One that was removed itself looks after what is below it.
            deeper = record.is_none_or(|record| record.removed_at.is_none());
            let is_hidden = record.is_none_or(|record| record.base.is_none());
            let generation = tree.node(walk.at).map_or(u64::MAX, Node::generation);
            if is_hidden && !fits(generation) {
                return false;
            }
        }
        true
    }
}

impl Open<'_> {
    /// Removes a node that exists as the transaction sees it, with everything below: all records there say so from now
    /// on, and what is live there may not change any more. The parent must have been touched. Returns the bytes that it
    /// holds less.
    pub(super) fn remove(&mut self, tree: &mut Tree, top: u32, own: i64) -> usize {
        let mut freed = 0_usize;
        let removed_at = tree.generation();
        self.tx.delta = self.tx.delta.saturating_sub(own);
        let mut at = top;
        while at != NIL {
            let is_fresh = self.get(at).is_some_and(Touched::is_fresh);
            let before = self.get(at).map_or(0, |touched| touched.bytes(tree));
            let class = if at == top { Class::Subtree } else { Class::Exact };
            let existed = self.forget(tree, at, class);
            if let Some(touched) = self.get_mut(at).filter(|_| existed && !is_fresh)
                && touched.base.is_some()
            {
                touched.removed_at.get_or_insert(removed_at);
            }
            freed = freed.saturating_add(before);
            let held = self.get(at).map_or(0, |touched| touched.bytes(tree));
            freed = freed.saturating_sub(held);
            at = self.places.next_below(top, at);
        }
        // Each of them sees to the live nodes between it and the next ones.
        at = top;
        while at != NIL {
            let is_new = |touched: &&Touched| touched.removed_at == Some(removed_at);
            if self.get(at).filter(is_new).is_some_and(|touched| touched.is_intact(tree)) {
                let below = self.places.hidden_below(tree, at);
                self.tx.below = self.tx.below.saturating_add(below as usize);
                if let Some(touched) = self.get_mut(at) {
                    touched.below = below;
                }
            }
            at = self.places.next_below(top, at);
        }
        let generation = tree.advance();
        let Some(touched) = self.get(top) else { return freed };
        let bytes = entry_bytes(tree.name_of(touched.name));
        let above = touched.above().unwrap_or(NIL);
        if let Some(now) = self.get_mut(above).and_then(|above| above.now.as_mut()) {
            now.generation = generation;
            now.children_bytes = now.children_bytes.saturating_sub(bytes);
        }
        freed
    }
}
