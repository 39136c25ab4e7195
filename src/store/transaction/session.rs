//! What a request about nodes does in a transaction.

use super::{Below, Transaction};
use crate::mem::Bytes;
use crate::proto::error::XsError;
use crate::store::events::Post;
use crate::store::path;
use crate::store::quota::Quota;
use crate::store::session::{Gap, Session, Sight, Spot};
use crate::store::watch::Class;
use alloc::vec::Vec;

impl<P: Post> Session<'_, P> {
    /// What the transaction sees at a canonical path, which is an access.
    pub(in crate::store) fn look(&mut self, path: &[u8]) -> Result<Option<Sight>, XsError> {
        let at = self.touch(path)?;
        let there = self.tx.as_ref().and_then(|tx| tx.get(at)?.now.as_ref()).is_some();
        Ok(there.then_some(Sight::Copied(at)))
    }

    /// The way to a path in the transaction: an access to each node that is looked at.
    pub(in crate::store) fn walk_copied<'a>(
        &mut self,
        path: &'a [u8],
    ) -> Result<Spot<'a>, XsError> {
        let missing = |above, there| Spot::Missing(Gap { above, path, there });
        if let Some(sight) = self.look(path)? {
            return Ok(Spot::There(sight));
        }
        for above in path::upwards(path).skip(1) {
            if let Some(sight) = self.look(above)? {
                return Ok(missing(sight, if above == b"/" { 0 } else { above.len() }));
            }
        }
        Ok(missing(self.look(b"/")?.ok_or(XsError::EIO)?, 0))
    }

    /// The place of a path in the transaction, taking the copy at the first access.
    pub(in crate::store) fn touch(&mut self, path: &[u8]) -> Result<u32, XsError> {
        let Some(tx) = self.tx.as_deref_mut() else { return Err(XsError::EIO) };
        if let Some(at) = tx.find(path) {
            return Ok(at);
        }
        let count = tx.len().saturating_add(1);
        let cost = Transaction::TOUCH_COST.saturating_add(path.len().saturating_mul(2));
        self.check_transaction(count, path.len(), cost)?;
        let Some(tx) = self.tx.as_deref_mut() else { return Err(XsError::EIO) };
        let at = tx.touch(self.tree, path);
        self.charge_transaction(at, 0);
        Ok(at)
    }

    /// Keeps the value of a node that is read in the transaction.
    pub(in crate::store) fn keep_value(&mut self, at: u32) -> Result<(), XsError> {
        let Some(tx) = self.tx.as_deref() else { return Ok(()) };
        let kept = tx.get(at).and_then(|touched| touched.now.as_ref()?.value.as_ref()).is_some();
        let (bytes, count) =
            (tx.value(self.tree, at, &self.party).map_or(0, <[u8]>::len), tx.len());
        if kept {
            return Ok(());
        }
        self.check_transaction(count, bytes, bytes)?;
        let before = self.transaction_bytes(at);
        if let Some(tx) = self.tx.as_deref_mut() {
            tx.keep_value(self.tree, at, &self.party)?;
        }
        self.charge_transaction(at, before);
        Ok(())
    }

    /// Whether the transaction may touch that many nodes, hold so many bytes more for its domain, and
    /// allocate `cost`. If not, it is spoiled.
    fn check_transaction(
        &mut self,
        count: usize,
        bytes: usize,
        cost: usize,
    ) -> Result<(), XsError> {
        let checked = if !self.within(Quota::TransactionNodes, count) {
            Err(XsError::ENOSPC)
        } else if !self.tree.domains.allows(self.party.domid, Quota::Memory, bytes)
            || !self.bell.spend(cost)
        {
            Err(XsError::ENOMEM)
        } else {
            Ok(())
        };
        self.spoiled(checked)
    }

    pub(in crate::store) fn transaction_bytes(&self, at: u32) -> usize {
        self.tx.as_ref().map_or(0, |tx| tx.touched_bytes(at))
    }

    /// Charges what a touched path holds now, after it held `before`.
    pub(in crate::store) fn charge_transaction(&mut self, at: u32, before: usize) {
        let now = self.transaction_bytes(at);
        if let Some(tx) = self.tx.as_deref_mut() {
            tx.bytes = tx.bytes.saturating_add(now).saturating_sub(before);
        }
        self.tree.domains.take(self.party.domid, Quota::Memory, now);
        self.tree.domains.give_back(self.party.domid, Quota::Memory, before);
    }

    /// Passes a result on; a refusal for want of quota or memory spoils the transaction.
    pub(in crate::store) fn spoiled<T>(
        &mut self,
        result: Result<T, XsError>,
    ) -> Result<T, XsError> {
        if let (Err(XsError::ENOSPC | XsError::ENOMEM), Some(tx)) = (&result, &mut self.tx) {
            tx.poisoned = true;
        }
        result
    }

    pub(in crate::store) fn create_copied(
        &mut self,
        gap: Gap<'_>,
        count: usize,
        list: u32,
        value: &[u8],
    ) -> Result<(), XsError> {
        for (left, level) in (0..count).rev().zip(gap.levels()) {
            let Some(at) = self.tx.as_ref().and_then(|tx| tx.find(level)) else { continue };
            let before = self.transaction_bytes(at);
            let value = if left == 0 { value } else { &[] };
            let value = Bytes::new(value)?;
            self.tree.retain_list(list);
            if let Some(tx) = self.tx.as_deref_mut() {
                tx.create(self.tree, at, value, list);
                if left == 0 {
                    tx.announce(at, Class::Subtree);
                }
            }
            self.charge_transaction(at, before);
        }
        Ok(())
    }

    /// Removes a subtree in the transaction: first everything is noted, which may fail, then
    /// everything is removed, which cannot.
    pub(in crate::store) fn remove_copied(&mut self, top: u32, path: &[u8]) -> Result<(), XsError> {
        if let Some(above) = path::parent(path) {
            self.touch(above)?;
        }
        let untouched = self.tx.as_ref().and_then(|tx| tx.untouched_subtree(self.tree, top));
        let order = match untouched {
            Some(live) => {
                self.note_below(top, live)?;
                Vec::from([top])
            }
            None => self.touch_below(top, path)?,
        };
        for at in order.into_iter().rev() {
            let class = if at == top { Class::Subtree } else { Class::Exact };
            let before = self.transaction_bytes(at);
            if let Some(tx) = self.tx.as_deref_mut() {
                tx.remove(self.tree, at);
                tx.announce(at, class);
            }
            self.charge_transaction(at, before);
        }
        Ok(())
    }

    /// Notes the live nodes below one, of which the transaction has touched none.
    fn note_below(&mut self, top: u32, live: u32) -> Result<(), XsError> {
        let count = self.tx.as_ref().map_or(0, |tx| tx.len());
        let domain = self.tree.domains.get(self.party.domid).filter(|_| !self.party.privileged);
        let limit = domain.map_or(0, |domain| domain.quotas.get(Quota::TransactionNodes) as usize);
        let limit = if limit == 0 { usize::MAX } else { limit.saturating_sub(count) };
        // A list that grows is there twice for a moment.
        let cost = size_of::<Below>().saturating_mul(3);
        let room = self.bell.headroom.checked_div(cost).unwrap_or(0);
        // One more than there may be is enough to be refused.
        let most = limit.min(room).saturating_add(1);
        let nodes = self.tree.below(live).take(most);
        let below: Vec<Below> = nodes.map(|(handle, node)| (handle, node.generation())).collect();
        let bytes = size_of::<Below>().saturating_mul(below.len());
        let count = count.saturating_add(below.len());
        self.check_transaction(count, bytes, cost.saturating_mul(below.len()))?;
        let before = self.transaction_bytes(top);
        if let Some(tx) = self.tx.as_deref_mut() {
            tx.remove_below(self.tree, top, below);
        }
        self.charge_transaction(top, before);
        Ok(())
    }

    /// Touches everything below a node that the transaction sees, and returns their places and that
    /// of the node, parents first.
    fn touch_below(&mut self, top: u32, path: &[u8]) -> Result<Vec<u32>, XsError> {
        let mut order = Vec::new();
        let mut waiting = Vec::from([(top, Vec::from(path))]);
        while let Some((at, path)) = waiting.pop() {
            order.push(at);
            let names =
                self.tx.as_ref().map_or(Vec::new(), |tx| tx.children(self.tree, at, &self.party));
            let mut children = Vec::new();
            for name in names {
                let mut child = path.clone();
                path::push(&mut child, &name);
                children.push((self.touch(&child)?, child));
            }
            waiting.extend(children.into_iter().rev());
        }
        Ok(order)
    }
}
