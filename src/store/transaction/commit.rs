//! The end of a transaction: what is looked at, what changes at once, and what is left to be done in slices.

use super::overlay::Open;
use super::{Places, State};
use crate::mem::{Budget, NIL, NoMemory, Progress, TryVec};
use crate::store::Store;
use crate::store::events::Post;
use crate::store::path;
use crate::store::quota::Quota;
use crate::store::tree::{Found, ROOT, Tree, value_bytes};
use crate::store::watch::Class;
use alloc::vec::Vec;

/// Units of work for each path: looking at it and applying it, telling of it, freeing its record.
const APPLY_WORK: u64 = 100;
const TELL_WORK: u64 = 200;
const LEVEL_WORK: u64 = 40;
const FREE_WORK: u64 = 150;

/// In place of the node told last: all were. The root never goes.
const ALL: u32 = ROOT;

impl Open<'_> {
    /// Whether anything that it touched has changed since, or an owner it gave a node to is gone.
    pub(super) fn conflicts(&mut self, tree: &Tree, budget: &mut Budget) -> bool {
        // The list of the node before: neighbours mostly have the same.
        let mut owned = NIL;
        let mut at = self.tx.first;
        while let Some(touched) = self.get(at) {
            budget.spend(APPLY_WORK);
            if let Some(base) = &touched.base {
                let node = tree.node(base.node);
                if node.is_none_or(|node| node.generation() != base.generation) {
                    return true;
                }
            }
            if let Some(now) = &touched.now
                && now.list != owned
            {
                if tree.entries(now.list).first().is_none_or(|owner| owner.stale) {
                    return true;
                }
                owned = now.list;
            }
            if touched.removed_at.is_some() && self.places.is_changed_below(tree, at) {
                return true;
            }
            at = touched.after;
        }
        tree.has_detached() && self.has_lost_nodes(tree)
    }

    /// Whether a node that it touched is not in the tree any more. What was taken out and is not yet freed looks as
    /// before, so while there is such a thing all paths are walked, each step once: from below, since every node knows
    /// what is above it.
    fn has_lost_nodes(&mut self, tree: &Tree) -> bool {
        // First, of steps on the way nothing is known.
        let mut at = self.tx.root;
        while let Some(touched) = self.places.get_mut(at) {
            if touched.base.is_none() {
                touched.seen = NIL;
            }
            at = if touched.first == NIL { self.beside(at) } else { touched.first };
        }
        at = self.deepest(self.tx.root);
        while let Some(touched) = self.places.get(at) {
            let node = touched.base.map_or(touched.seen, |base| base.node);
            let (above, next) = (touched.above(), touched.next);
            if node != NIL && above.is_some() {
                let parent = tree.node(node).map_or(NIL, |node| node.parent);
                if tree.node(parent).is_none() {
                    return true;
                }
                if let Some(above) = above.and_then(|above| self.places.get_mut(above)) {
                    above.seen = parent;
                }
            }
            at = match next {
                NIL => above.unwrap_or(NIL),
                next => self.deepest(next),
            };
        }
        false
    }

    /// The record first below one that has none below.
    fn deepest(&self, at: u32) -> u32 {
        let mut at = at;
        while let Some(touched) = self.get(at).filter(|touched| touched.first != NIL) {
            at = touched.first;
        }
        at
    }

    /// The record beside one, or beside the nearest one above that has one.
    fn beside(&self, at: u32) -> u32 {
        let mut at = at;
        while let Some(touched) = self.get(at) {
            match (touched.next, touched.above()) {
                (NIL, Some(above)) => at = above,
                (next, _) => return next,
            }
        }
        NIL
    }

    /// Applies everything to the live tree, after [`conflicts`](Self::conflicts) said no. Nothing is allocated.
    pub(super) fn apply(&mut self, tree: &mut Tree) {
        let mut at = self.tx.first;
        while let Some(touched) = self.places.get_mut(at) {
            let here = core::mem::replace(&mut at, touched.after);
            touched.seen = touched.node();
            if let Some(base) = touched.base.filter(|_| touched.removed_at.is_some()) {
                tree.detach(base.node);
            } else if touched.modified && touched.made == NIL {
                self.apply_changes(tree, here);
            }
        }
        at = self.tx.first;
        while let Some(touched) = self.places.get(at) {
            let after = touched.after;
            if touched.has_made {
                let (node, first) = (touched.seen, touched.first);
                self.attach_children(tree, node, first);
            }
            at = after;
        }
        self.tx.state = State::Telling { at: self.tx.first, below: NIL };
    }

    /// Writes value and permissions of a node that was there before.
    fn apply_changes(&mut self, tree: &mut Tree, at: u32) {
        let Some(touched) = self.places.get_mut(at) else { return };
        let (Some(base), Some(now)) = (touched.base, touched.now) else { return };
        let promised = core::mem::take(&mut touched.promised);
        let value = touched.value.take();
        // Whoever has written, be it the same again, has changed the node.
        let lists = promised && (now.list != base.list || value.is_none());
        if let Some(value) = value {
            let bytes = value_bytes(tree.kept(&value).len());
            self.refund(tree, bytes);
            tree.put_value(base.node, value);
        }
        if lists {
            tree.retain_list(now.list);
            tree.set_list_promised(base.node, now.list);
        } else if promised {
            tree.withdraw_owner();
        }
    }

    /// Attaches the nodes that were made below one, in the order in which they were made.
    fn attach_children(&mut self, tree: &mut Tree, parent: u32, first: u32) {
        let mut at = first;
        while let Some(touched) = self.places.get_mut(at) {
            // From now on it is the tree's.
            let made = core::mem::replace(&mut touched.made, NIL);
            at = touched.next;
            if made != NIL {
                let bytes = tree.node(made).map_or(0, |node| tree.bytes(node));
                self.refund(tree, bytes);
                tree.attach(parent, made);
            }
        }
    }

    /// Its domain holds so many bytes less for it.
    pub(super) fn refund(&mut self, tree: &mut Tree, bytes: usize) {
        self.tx.bytes = self.tx.bytes.saturating_sub(bytes);
        tree.domains.give_back(self.tx.domid, Quota::Memory, bytes);
    }

    /// Frees the record that is first in its branch; `false` if there is none left.
    fn free_one(&mut self, tree: &mut Tree, budget: &mut Budget) -> bool {
        let top = if self.tx.root == NIL { self.tx.special } else { self.tx.root };
        let mut at = top;
        while let Some(touched) = self.places.get(at).filter(|touched| touched.first != NIL) {
            at = touched.first;
            budget.spend(10);
        }
        // From there on up as far as records have no others beside them: so a branch is walked down once.
        loop {
            let Some((above, next)) = self.free(tree, at) else { return false };
            budget.spend(FREE_WORK);
            let Some(parent) = above.and_then(|above| self.places.get_mut(above)) else {
                if at == self.tx.root {
                    self.tx.root = NIL;
                } else {
                    self.tx.special = next;
                }
                return true;
            };
            parent.first = next;
            if next != NIL || budget.is_over() {
                return true;
            }
            at = above.unwrap_or(NIL);
        }
    }

    /// Frees a record that has none below; the ones above and beside it.
    pub(super) fn free(&mut self, tree: &mut Tree, at: u32) -> Option<(Option<u32>, u32)> {
        let bytes = self.places.get(at)?.bytes(tree);
        self.refund(tree, bytes);
        let gone = self.places.remove(at)?;
        tree.release_list(gone.base.map_or(NIL, |base| base.list));
        tree.release_list(gone.now.map_or(NIL, |now| now.list));
        if let Some(value) = &gone.value {
            tree.drop_value(value);
        }
        if gone.made != NIL {
            tree.drop_detached(gone.made);
        }
        if gone.promised {
            tree.withdraw_owner();
        }
        if gone.name != NIL {
            tree.release_name(gone.name);
        }
        Some((gone.above(), gone.next))
    }
}

impl Places {
    /// Writes the path of a record: from its end, since records know what is above.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn path(&self, tree: &Tree, at: u32, path: &mut Vec<u8>) -> Result<(), NoMemory> {
        path.clear();
        let mut at = Some(at);
        while let Some(touched) = at.and_then(|at| self.get(at)) {
            #[cfg(test)]
            super::steps::add();
            at = touched.above();
            let start = path.len();
            path.try_extend(tree.name_of(touched.name))?;
            path.get_mut(start..).unwrap_or_default().reverse();
            // Of special names and of the root there is nothing above.
            if at.is_some() {
                path.try_push(b'/')?;
            }
        }
        if path.is_empty() {
            path.try_push(b'/')?;
        }
        path.reverse();
        Ok(())
    }
}

impl Store {
    /// Goes on with the end of a transaction: tells what it did, frees what it removed, then its records.
    pub(super) fn go_on_ending(
        &mut self,
        handle: u32,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        loop {
            let Some(open) = self.transactions.at(handle) else { return Progress::Done };
            match open.tx.state {
                State::Open => return Progress::Done,
                State::Telling { at: NIL, .. } => open.tx.state = State::Leaving,
                State::Telling { at, below } => {
                    let after = open.get(at).map_or(NIL, |touched| touched.after);
                    let state = match self.tell_one(handle, at, below, budget, post) {
                        Some(below) => State::Telling { at, below },
                        None => State::Telling { at: after, below: NIL },
                    };
                    if let Some(open) = self.transactions.at(handle) {
                        open.tx.state = state;
                    }
                }
                State::Leaving => {
                    let mut open = open;
                    if !open.free_one(&mut self.tree, budget) {
                        let bytes = open.tx.bytes;
                        open.refund(&mut self.tree, bytes);
                        self.transactions.remove(handle);
                        return Progress::Done;
                    }
                }
            }
            if budget.is_over() {
                return Progress::More;
            }
        }
    }

    /// Tells of one path that a committed transaction has touched, then of what was removed with it, of which `below` is
    /// the node told last, and frees that. If it does not come to the end, the node told last by now.
    fn tell_one(
        &mut self,
        handle: u32,
        at: u32,
        below: u32,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Option<u32> {
        let open = self.transactions.at(handle)?;
        let touched = open.get(at)?;
        let top = touched.base.filter(|_| touched.removed_at.is_some()).map(|base| base.node);
        let gone = touched.now.is_none();
        let event = touched.event.filter(|_| below == NIL && (!gone || touched.base.is_some()));
        let old_list = touched.base.map_or(NIL, |base| base.list);
        let list = touched.now.map_or(NIL, |now| now.list);
        let is_heard = !self.watches.is_empty();
        if top.is_none() && (event.is_none() || !is_heard) {
            budget.spend(APPLY_WORK / 4);
            return None;
        }
        budget.spend(TELL_WORK);
        let mut path = core::mem::take(&mut self.spelling);
        let mut is_known = is_heard;
        if is_heard && open.places.path(&self.tree, at, &mut path).is_err() {
            is_known = false;
            self.dropped = self.dropped.saturating_add(1);
        }
        budget.spend(LEVEL_WORK.saturating_mul(path.len() as u64 / 8));
        if let Some(class) = event.filter(|_| is_known) {
            let (tree, mut notifier) = self.tree_and_notifier(budget, post);
            let (now, above) = match tree.find(&path) {
                Found::Node(node) if !gone => tree.node(node).map_or((list, NIL), |node| {
                    // Above special names is the root, as far as rights go.
                    let is_special = path.first() == Some(&b'@');
                    let above = tree.node(if is_special { ROOT } else { node.parent });
                    (node.list, above.map_or(NIL, |above| above.list))
                }),
                Found::Above { .. } if !gone => (list, NIL),
                Found::Node(_) | Found::Above { .. } => (NIL, NIL),
            };
            notifier.ring(tree, &path, class, &[old_list, now, above]);
        }
        let mut left = None;
        if let Some(top) = top.filter(|_| self.rest.is_some()) {
            // Not everybody knows of the top.
            left = Some(if below == NIL { top } else { below });
        } else if let Some(top) = top {
            let from = if below == NIL { top } else { below };
            let told = if is_known && below != ALL && self.watches.any_below(&self.tree, &path) {
                self.tell_removed(top, from, &mut path, budget, post)
            } else {
                None
            };
            left = told.or_else(|| {
                let progress = self.tree.free_some(top, budget);
                (progress == Progress::More).then_some(ALL)
            });
        }
        self.spelling = path;
        left
    }

    /// Tells who watches below a node that was taken out of the tree, from the one told last on. If it does not come to
    /// the end, the node told last by now. `path` is the top's.
    fn tell_removed(
        &mut self,
        top: u32,
        from: u32,
        path: &mut Vec<u8>,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Option<u32> {
        let mut at = from;
        if self.push_names(top, from, path).is_err() {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        loop {
            let mut next = self.tree.node(at).map_or(NIL, |node| self.tree.family(node).first);
            while next == NIL && at != top {
                let node = self.tree.node(at)?;
                next = node.next;
                at = node.parent;
                let up = path::parent(path).map_or(0, <[u8]>::len);
                path.truncate(up);
                budget.spend(LEVEL_WORK);
            }
            let node = self.tree.node(next)?;
            let (name, list) = (node.name, node.list);
            let name = self.tree.name_of(name);
            if path.try_push(b'/').and_then(|()| path.try_extend(name)).is_err() {
                self.dropped = self.dropped.saturating_add(1);
                return None;
            }
            at = next;
            budget.spend(LEVEL_WORK);
            let (tree, mut notifier) = self.tree_and_notifier(budget, post);
            notifier.ring(tree, path, Class::Exact, &[list]);
            if budget.is_over() || self.rest.is_some() {
                return Some(at);
            }
        }
    }

    /// Adds the names that lead from a node to one below it.
    fn push_names(&self, top: u32, below: u32, path: &mut Vec<u8>) -> Result<(), NoMemory> {
        let len = path.len();
        let mut at = below;
        while at != top {
            let Some(node) = self.tree.node(at) else { break };
            let start = path.len();
            path.try_extend(self.tree.name(node))?;
            path.get_mut(start..).unwrap_or_default().reverse();
            path.try_push(b'/')?;
            at = node.parent;
        }
        path.get_mut(len..).unwrap_or_default().reverse();
        Ok(())
    }
}
