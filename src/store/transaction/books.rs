//! Transactions as the store knows them: start, end, and the books.

use super::Transaction;
use crate::mem::{Budget, NIL, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, TxId};
use crate::store::quota::Quota;
use crate::store::session::parent_list;
use crate::store::tree::Found;
use crate::store::{Post, Store, give_room_back};

impl Store {
    /// Whether `tx` is an open transaction of this connection.
    #[must_use]
    pub fn has_transaction(&self, conn: ConnId, tx: TxId) -> bool {
        self.transactions.contains_key(&(conn, tx))
    }

    /// How many transactions are open anywhere.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.transactions.len()
    }

    /// TRANSACTION_START.
    ///
    /// # Errors
    /// `ENOSPC` if the domain has as many open as it may.
    pub fn start_transaction(&mut self, conn: ConnId) -> Result<TxId, XsError> {
        let domid = self.party(conn).ok_or(XsError::EINVAL)?.domid;
        if !self.allows(domid, Quota::Transactions, 1) {
            return Err(XsError::ENOSPC);
        }
        let state = self.conns.get_mut(&conn).ok_or(XsError::EINVAL)?;
        // Ids count up from 1; after 2^32 transactions those still open are skipped.
        loop {
            state.last_tx = state.last_tx.wrapping_add(1);
            if state.last_tx != 0 && !state.open.contains(&TxId(state.last_tx)) {
                break;
            }
        }
        let id = TxId(state.last_tx);
        state.open.insert(id);
        self.transactions.insert((conn, id), Transaction::new(id, self.seed));
        self.tree.domains.take(domid, Quota::Transactions, 1);
        self.tree.advance();
        Ok(id)
    }

    /// TRANSACTION_END. Whatever the result, the transaction is over.
    ///
    /// # Errors
    /// `ENOENT` if there is no such transaction. For a commit, in this order: `ENOMEM` if a request in
    /// it was refused for want of quota or memory, or memory does not suffice now; `ENOSPC` if it
    /// would take its domain over the quota of nodes; `EAGAIN` if it conflicts.
    pub fn end_transaction(
        &mut self,
        conn: ConnId,
        tx: TxId,
        commit: bool,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Result<Progress, XsError> {
        let party = self.party(conn).ok_or(XsError::ENOENT)?;
        let tx = self.close_transaction(conn, tx).ok_or(XsError::ENOENT)?;
        if !commit {
            tx.discard(&mut self.tree);
            return Ok(Progress::Done);
        }
        let watches = &self.watches;
        let watched = |path: &[u8]| watches.any_below(path);
        let cost = tx.commit_bytes(watched);
        let more = usize::try_from(tx.delta(party.domid)).unwrap_or(0);
        let refusal = if tx.poisoned || self.headroom < cost {
            Some(XsError::ENOMEM)
        } else if more > 0 && !party.privileged && !self.allows(party.domid, Quota::Nodes, more) {
            Some(XsError::ENOSPC)
        } else if tx.conflicts(&self.tree) {
            Some(XsError::EAGAIN)
        } else {
            None
        };
        if let Some(error) = refusal {
            tx.discard(&mut self.tree);
            return Err(error);
        }
        self.headroom = self.headroom.saturating_sub(cost);
        for news in tx.apply(&mut self.tree, watched) {
            let (tree, mut bell) = self.tree_and_bell(budget, post);
            let (now, above) = match tree.find(&news.path) {
                Found::Node(node) if !news.gone => {
                    (tree.node(node).map_or(NIL, |node| node.list), parent_list(tree, &news.path))
                }
                Found::Node(_) | Found::Above { .. } => (NIL, NIL),
            };
            bell.ring(tree, &news.path, news.class, &[news.old_list, now, above]);
            tree.release_list(news.old_list);
        }
        Ok(Progress::Done)
    }

    /// Takes a transaction out of the books.
    pub(in crate::store) fn close_transaction(
        &mut self,
        conn: ConnId,
        id: TxId,
    ) -> Option<Transaction> {
        let tx = self.transactions.remove(&(conn, id))?;
        give_room_back(&mut self.transactions);
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.open.remove(&tx.id);
            let domid = conn.party.domid;
            self.tree.domains.give_back(domid, Quota::Transactions, 1);
            self.tree.domains.give_back(domid, Quota::Memory, tx.bytes);
        }
        Some(tx)
    }
}
