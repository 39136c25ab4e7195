//! Transactions as the store knows them: start, end, and what is left to be done after the end.

use super::{OpenOf, TRANSACTION_BYTES};
use crate::mem::{Budget, NIL, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, TxId};
use crate::store::Store;
use crate::store::events::Post;
use crate::store::quota::Quota;

impl Store {
    /// Whether `tx` is an open transaction of this connection.
    #[must_use]
    pub fn has_transaction(&self, conn: ConnId, tx: TxId) -> bool {
        self.transactions.find(conn, tx).is_some()
    }

    /// How many transactions are open anywhere.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.transactions.open()
    }

    /// TRANSACTION_START.
    ///
    /// # Errors
    /// `ENOSPC` if the domain has as many open as it may; `ENOMEM`.
    pub fn start_transaction(&mut self, conn: ConnId) -> Result<TxId, XsError> {
        let domid = self.party(conn).ok_or(XsError::EINVAL)?.domid;
        if !self.allows(domid, Quota::Transactions, 1) {
            return Err(XsError::ENOSPC);
        }
        if !self.allows(domid, Quota::Memory, TRANSACTION_BYTES) {
            return Err(XsError::ENOMEM);
        }
        let state = self.conns.get_mut(&conn).ok_or(XsError::EINVAL)?;
        // Ids count up from 1; after 2^32 transactions those still open are skipped.
        let mut last = state.last_tx;
        let id = loop {
            last = last.wrapping_add(1);
            if last != 0 && self.transactions.find(conn, TxId(last)).is_none() {
                break TxId(last);
            }
        };
        self.transactions.add(conn, id, domid, &mut state.open)?;
        state.last_tx = last;
        self.tree.domains.take(domid, Quota::Transactions, 1);
        self.tree.domains.take(domid, Quota::Memory, TRANSACTION_BYTES);
        self.tree.advance();
        Ok(id)
    }

    /// TRANSACTION_END. Whatever the result, the transaction is over; what is left to be done is done by
    /// [`go_on`](Self::go_on), also after an error.
    ///
    /// # Errors
    /// `ENOENT` if there is no such transaction. For a commit, in this order: `ENOMEM` if a request in
    /// it was refused for want of quota or memory; `ENOSPC` if it
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
        let handle = self.transactions.find(conn, tx).ok_or(XsError::ENOENT)?;
        self.close_transaction(conn, handle);
        let refusal =
            commit.then(|| self.commit(handle, party.privileged, budget)).and_then(Result::err);
        let progress = self.go_on_endings(conn, budget, post);
        let progress = if self.keep_rest(conn) { Progress::More } else { progress };
        refusal.map_or(Ok(progress), Err)
    }

    /// What a commit changes, at once.
    fn commit(
        &mut self,
        handle: u32,
        privileged: bool,
        budget: &mut Budget,
    ) -> Result<(), XsError> {
        let mut open = self.transactions.at(handle).ok_or(XsError::ENOENT)?;
        let more = usize::try_from(open.delta()).unwrap_or(0);
        let domains = &self.tree.domains;
        if open.tx.poisoned {
            return Err(XsError::ENOMEM);
        }
        if more > 0 && !privileged && !domains.allows(open.tx.domid, Quota::Nodes, more) {
            return Err(XsError::ENOSPC);
        }
        if open.conflicts(&self.tree, budget) {
            return Err(XsError::EAGAIN);
        }
        open.apply(&mut self.tree);
        Ok(())
    }

    /// Takes a transaction out of the books: it is not open any more, and among what its connection has to bring to an
    /// end.
    pub(in crate::store) fn close_transaction(&mut self, conn: ConnId, handle: u32) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        self.transactions.close(handle, &mut state.open);
        self.transactions.queue(handle, &mut state.ending);
        self.tree.domains.give_back(state.party.domid, Quota::Transactions, 1);
    }

    /// Closes all transactions of a connection.
    pub(in crate::store) fn close_transactions(&mut self, conn: ConnId) {
        while let Some(first) = self.conns.get(&conn).and_then(|state| state.open.first()) {
            self.close_transaction(conn, first);
        }
    }

    /// Whether a connection has transactions to bring to an end.
    pub(in crate::store) fn has_endings(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|state| state.ending.first().is_some())
    }

    /// Brings the closed transactions of a connection to their end.
    pub(in crate::store) fn go_on_endings(
        &mut self,
        conn: ConnId,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        while let Some(handle) = self.conns.get(&conn).and_then(|state| state.ending.first()) {
            let next = self.transactions.head(handle).map_or(NIL, |tx| tx.next);
            if self.go_on_ending(handle, budget, post) == Progress::More {
                return Progress::More;
            }
            if let Some(state) = self.conns.get_mut(&conn) {
                state.ending.take_first(next);
            }
            if self.rest.is_some() || budget.is_over() && next != NIL {
                return Progress::More;
            }
        }
        Progress::Done
    }
}

impl OpenOf {
    /// The first one.
    pub(in crate::store) fn first(self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// The first one is gone; this one follows.
    fn take_first(&mut self, next: u32) {
        self.first = next;
        if next == NIL {
            self.last = NIL;
        }
    }
}

impl super::Transactions {
    /// Puts a closed one behind the others that a connection has to bring to an end.
    fn queue(&mut self, handle: u32, ending: &mut OpenOf) {
        let Some(tx) = self.heads.get_mut(handle) else { return };
        (tx.prev, tx.next) = (ending.last, NIL);
        match self.heads.get_mut(ending.last) {
            Some(before) => before.next = handle,
            None => ending.first = handle,
        }
        ending.last = handle;
    }
}
