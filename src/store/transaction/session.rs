//! What a request about nodes does in a transaction.

use super::overlay::step_bytes;
use super::{Open, Touched};
use crate::mem::NIL;
use crate::proto::error::XsError;
use crate::store::events::Post;
use crate::store::path;
use crate::store::quota::Quota;
use crate::store::session::{Gap, Session, Sight, Spot};
use crate::store::tree::{Found, ROOT, Value, value_bytes};
use crate::store::watch::Class;

/// So many records are freed at once that are of no use after a refusal. Others stay to the end of the transaction, which
/// cannot commit.
const PRUNED_AT_ONCE: usize = 100;

/// Where a walk along a path has come to, in the overlay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The record of the path itself.
    pub(super) at: u32,
    /// How many levels of the path there are, and how many of them may be seen as they are outside: below them is
    /// something that is missing in the transaction, or was made in it.
    pub(super) levels: u32,
    pub(super) open: u32,
}

impl<P: Post> Session<'_, P> {
    /// The way to a path in the transaction. It is an access to the node there, or if there is none, to each missing one
    /// and the nearest one above.
    pub(in crate::store) fn walk_copied<'a>(
        &mut self,
        path: &'a [u8],
    ) -> Result<Spot<'a>, XsError> {
        let way = self.way(path)?;
        let (mut at, mut level) = (way.at, way.levels);
        let mut there = path.len();
        loop {
            let exists = match self.access(at, level > way.open) {
                Ok(exists) => exists,
                Err(error) => {
                    self.prune(way.at);
                    return Err(error);
                }
            };
            if exists {
                let found = Sight::Copied(at);
                return Ok(if at == way.at {
                    Spot::There(found)
                } else {
                    Spot::Missing(Gap { above: found, path, there })
                });
            }
            let Some(open) = self.tx.as_mut() else { return Err(XsError::EIO) };
            let Some(touched) = open.get(at) else { return Err(XsError::EIO) };
            let above = touched.above();
            there = there.saturating_sub(self.tree.name_of(touched.name).len().saturating_add(1));
            level = level.saturating_sub(1);
            at = match above {
                Some(above) => above,
                // Above special names is the root, as far as rights go.
                None if at != open.tx.root => {
                    there = 0;
                    level = 0;
                    self.root()?
                }
                None => return Err(XsError::EIO),
            };
        }
    }

    /// The record of the root.
    pub(super) fn root(&mut self) -> Result<u32, XsError> {
        if self.tx.as_ref().is_some_and(|open| open.tx.root == NIL) {
            self.check_step(0)?;
        }
        let Some(open) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let is_new = open.tx.root == NIL;
        let made = open.root().map_err(XsError::from);
        let root = self.spoiled(made)?;
        if is_new {
            self.charge_transaction(root, 0);
        }
        Ok(root)
    }

    /// Walks a path down, through the live tree and the overlay side by side, and makes the records that are missing.
    fn way(&mut self, path: &[u8]) -> Result<Way, XsError> {
        if path.first() == Some(&b'@') {
            return self.special_way(path);
        }
        let mut at = self.root()?;
        let (mut live, mut levels, mut open) = (ROOT, 0_u32, u32::MAX);
        let mut is_known = true;
        for name in path::components(path) {
            let Some(tx) = self.tx.as_ref() else { return Err(XsError::EIO) };
            if open == u32::MAX && tx.get(at).is_some_and(Touched::hides) {
                open = levels;
            }
            levels = levels.saturating_add(1);
            let handle = self.tree.find_name(name);
            live = match handle {
                Some(handle) if live != NIL => self.tree.child_named(live, handle).unwrap_or(NIL),
                _ => NIL,
            };
            let known = handle.filter(|_| is_known).and_then(|handle| tx.places.child(at, handle));
            at = match known {
                Some(known) => known,
                None => {
                    is_known = false;
                    match self.step(at, name) {
                        Ok(step) => step,
                        Err(error) => {
                            self.prune(at);
                            return Err(error);
                        }
                    }
                }
            };
            if let Some(touched) = self.tx.as_mut().and_then(|tx| tx.get_mut(at)) {
                touched.seen = live;
            }
        }
        Ok(Way { at, levels, open })
    }

    /// The same for a special name.
    fn special_way(&mut self, path: &[u8]) -> Result<Way, XsError> {
        let live = match self.tree.find(path) {
            Found::Node(live) => live,
            Found::Above { .. } => NIL,
        };
        let name = self.tree.find_name(path);
        let known = name.and_then(|name| self.tx.as_ref()?.special(name));
        let at = match known {
            Some(known) => known,
            None => self.step(NIL, path)?,
        };
        if let Some(touched) = self.tx.as_mut().and_then(|tx| tx.get_mut(at)) {
            touched.seen = live;
        }
        Ok(Way { at, levels: 1, open: 1 })
    }

    /// Makes a record below another one, of a special name if that is `NIL`.
    pub(super) fn step(&mut self, above: u32, name: &[u8]) -> Result<u32, XsError> {
        self.check_step(name.len())?;
        let named = self.tree.intern_name(name).map_err(XsError::from);
        let handle = self.spoiled(named)?;
        let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let made = if above == NIL { tx.add_special(handle) } else { tx.add(above, handle) };
        if made.is_err() {
            self.tree.release_name(handle);
        }
        let at = self.spoiled(made.map_err(XsError::from))?;
        self.charge_transaction(at, 0);
        Ok(at)
    }

    /// After a refusal: frees a record and those above that lead to nothing that was accessed.
    pub(super) fn prune(&mut self, from: u32) {
        let mut at = Some(from);
        let mut left = PRUNED_AT_ONCE;
        while let Some(open) = self.tx.as_mut() {
            let Some(here) = at.filter(|_| left > 0) else { return };
            left = left.saturating_sub(1);
            let is_idle = |touched: &&Touched| !touched.accessed && touched.first == NIL;
            let Some(touched) = open.get(here).filter(is_idle) else { return };
            at = touched.above();
            open.unlink(here);
            open.free(self.tree, here);
        }
    }

    /// Whether the transaction may have a record more: it is made because a node more is accessed.
    fn check_step(&mut self, name: usize) -> Result<(), XsError> {
        let count = self.tx.as_ref().map_or(0, Open::len);
        self.check_transaction(count.saturating_add(1), step_bytes(name))
    }

    /// Accesses a path; whether there is a node as the transaction sees it.
    pub(super) fn access(&mut self, at: u32, is_hidden: bool) -> Result<bool, XsError> {
        let Some(tx) = self.tx.as_ref() else { return Err(XsError::EIO) };
        let Some(touched) = tx.get(at) else { return Err(XsError::EIO) };
        if touched.accessed {
            return Ok(touched.now.is_some());
        }
        let live = if is_hidden { NIL } else { touched.seen };
        let count = tx.len().saturating_add(1);
        self.check_transaction(count, 0)?;
        let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
        tx.access(self.tree, at, live);
        // A request that was given up on its way may have seen it before.
        Ok(tx.get(at).is_some_and(|touched| touched.now.is_some()))
    }

    /// Keeps the value of a node that is read in the transaction.
    pub(in crate::store) fn keep_value(&mut self, at: u32) -> Result<(), XsError> {
        let Some(tx) = self.tx.as_ref() else { return Ok(()) };
        if tx.get(at).is_none() || tx.places.has_value(at) {
            return Ok(());
        }
        let Some((live, node)) = tx.places.live(self.tree, at, &self.party) else { return Ok(()) };
        let (bytes, count) = (value_bytes(self.tree.value(node).len()), tx.len());
        self.check_transaction(count, bytes)?;
        let copied = self.tree.copy_value(live).map_err(XsError::from);
        let value = self.spoiled(copied)?;
        self.put_copied(at, value);
        Ok(())
    }

    /// Gives a touched node a value of its own.
    fn put_copied(&mut self, at: u32, value: Value) {
        let before = self.transaction_bytes(at);
        let old = match self.tx.as_mut().and_then(|tx| tx.get_mut(at)) {
            Some(touched) if touched.is_fresh() => self.tree.swap_detached(touched.made, value),
            Some(touched) => touched.value.replace(value),
            None => Some(value),
        };
        if let Some(old) = old {
            self.tree.drop_value(&old);
        }
        self.charge_transaction(at, before);
    }

    /// Replaces the value of a node.
    pub(in crate::store) fn replace_copied(
        &mut self,
        at: u32,
        value: &[u8],
    ) -> Result<(), XsError> {
        let kept = self.tree.keep(value).map_err(XsError::from);
        let value = self.spoiled(kept)?;
        self.put_copied(at, value);
        let generation = self.tree.advance();
        if let Some(tx) = self.tx.as_mut() {
            if let Some(touched) = tx.get_mut(at) {
                touched.modified = true;
                if let Some(now) = &mut touched.now {
                    now.generation = generation;
                }
            }
            tx.announce(at, Class::Subtree);
        }
        Ok(())
    }

    /// Replaces the permissions. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; the use is the caller's.
    pub(in crate::store) fn set_list_copied(&mut self, at: u32, list: u32) -> Result<(), XsError> {
        let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let Some(touched) = tx.get_mut(at) else { return Err(XsError::EIO) };
        let made = touched.made;
        if made == NIL && !touched.promised {
            touched.promised = true;
            let promised = self.tree.promise_owner().map_err(XsError::from);
            if promised.is_err() {
                touched.promised = false;
            }
            self.spoiled(promised)?;
        }
        let generation = self.tree.advance();
        if made != NIL {
            self.tree.retain_list(list);
            self.tree.relist_detached(made, list);
        }
        let Some(tx) = self.tx.as_mut() else { return Ok(()) };
        let Some(touched) = tx.get_mut(at) else { return Ok(()) };
        touched.modified = true;
        if let Some(now) = &mut touched.now {
            now.generation = generation;
            let old = core::mem::replace(&mut now.list, list);
            tx.count(self.tree, old, -1);
            tx.count(self.tree, list, 1);
            self.tree.release_list(old);
        }
        tx.announce(at, Class::Subtree);
        Ok(())
    }

    /// Whether the transaction may touch that many nodes, and hold so many bytes more for its domain. If not, it is
    /// spoiled.
    fn check_transaction(&mut self, count: usize, bytes: usize) -> Result<(), XsError> {
        let checked = if !self.within(Quota::TransactionNodes, count) {
            Err(XsError::ENOSPC)
        } else if !self.tree.domains.allows(self.party.domid, Quota::Memory, bytes)
            || !self.notifier.spend(bytes)
        {
            Err(XsError::ENOMEM)
        } else {
            Ok(())
        };
        self.spoiled(checked)
    }

    pub(super) fn transaction_bytes(&self, at: u32) -> usize {
        let touched = self.tx.as_ref().and_then(|tx| tx.get(at));
        touched.map_or(0, |touched| touched.bytes(self.tree))
    }

    /// Charges what a record holds now, after it held `before`.
    pub(super) fn charge_transaction(&mut self, at: u32, before: usize) {
        let now = self.transaction_bytes(at);
        if let Some(open) = self.tx.as_mut() {
            open.tx.bytes = open.tx.bytes.saturating_add(now).saturating_sub(before);
        }
        self.tree.domains.take(self.party.domid, Quota::Memory, now);
        self.tree.domains.give_back(self.party.domid, Quota::Memory, before);
    }

    /// Passes a result on; a refusal for want of quota or memory spoils the transaction.
    pub(in crate::store) fn spoiled<T>(
        &mut self,
        result: Result<T, XsError>,
    ) -> Result<T, XsError> {
        if let (Err(XsError::ENOSPC | XsError::ENOMEM), Some(open)) = (&result, &mut self.tx) {
            open.tx.poisoned = true;
        }
        result
    }

    /// Makes nodes: first all of them aside, which may fail, then they are what the transaction sees.
    pub(in crate::store) fn create_copied(
        &mut self,
        above: u32,
        gap: Gap<'_>,
        count: usize,
        list: u32,
        value: &[u8],
    ) -> Result<(), XsError> {
        let mut at = above;
        for (left, name) in (0..count).rev().zip(gap.names()) {
            let value = if left == 0 { value } else { &[] };
            let made = self.make_copied(at, name, value, list);
            match made {
                Ok(below) => at = below,
                Err(error) => {
                    self.unmake(at, above);
                    return self.spoiled(Err(error));
                }
            }
        }
        at = above;
        for (left, name) in (0..count).rev().zip(gap.names()) {
            let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
            let below = self.tree.find_name(name).and_then(|name| tx.places.child(at, name));
            let Some(below) = below else { return Err(XsError::EIO) };
            let made =
                tx.get_mut(below).map_or(NIL, |touched| core::mem::replace(&mut touched.made, NIL));
            let before = self.transaction_bytes(below);
            if let Some(tx) = self.tx.as_mut() {
                tx.create(self.tree, below, made, list);
                if left == 0 {
                    tx.announce(below, Class::Subtree);
                }
            }
            self.charge_transaction(below, before);
            at = below;
        }
        Ok(())
    }

    /// Makes the node of a record below another one, which has found it missing; the record.
    pub(super) fn make_copied(
        &mut self,
        above: u32,
        name: &[u8],
        value: &[u8],
        list: u32,
    ) -> Result<u32, XsError> {
        let made = self.tree.make_detached(name, value, list)?;
        // It took over one use.
        self.tree.retain_list(list);
        let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let at = self.tree.find_name(name).and_then(|name| tx.places.child(above, name));
        let Some(touched) = at.and_then(|at| tx.get_mut(at)) else {
            self.tree.drop_detached(made);
            return Err(XsError::EIO);
        };
        touched.made = made;
        Ok(at.unwrap_or(NIL))
    }

    /// Takes back what [`make_copied`](Self::make_copied) has made from a record up to one above.
    fn unmake(&mut self, from: u32, above: u32) {
        let mut at = from;
        while at != above {
            let Some(touched) = self.tx.as_mut().and_then(|tx| tx.get_mut(at)) else { return };
            let made = core::mem::replace(&mut touched.made, NIL);
            at = touched.above().unwrap_or(above);
            self.tree.drop_detached(made);
        }
    }

    /// Removes a subtree in the transaction: first is looked how much that is, which may fail, then
    /// everything is removed, which cannot.
    pub(in crate::store) fn remove_copied(&mut self, top: u32) -> Result<(), XsError> {
        let Some(tx) = self.tx.as_ref() else { return Err(XsError::EIO) };
        let above = tx.get(top).and_then(Touched::above);
        if let Some(above) = above {
            let is_hidden = tx.places.is_hidden(above);
            self.access(above, is_hidden)?;
        }
        let Some(tx) = self.tx.as_ref() else { return Err(XsError::EIO) };
        let mut own = 0;
        if !self.party.privileged {
            let domain = self.tree.domains.get(self.party.domid);
            let limit =
                domain.map_or(0, |domain| domain.quotas.get(Quota::TransactionNodes) as usize);
            let most = if limit == 0 { usize::MAX } else { limit.saturating_sub(tx.len()) };
            let hidden;
            (hidden, own) = tx.places.count_hidden(self.tree, top, &self.party, most);
            let count = tx.len().saturating_add(hidden);
            self.check_transaction(count, 0)?;
        }
        let Some(open) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let freed = open.remove(self.tree, top, own);
        open.tx.bytes = open.tx.bytes.saturating_sub(freed);
        self.tree.domains.give_back(self.party.domid, Quota::Memory, freed);
        Ok(())
    }
}
