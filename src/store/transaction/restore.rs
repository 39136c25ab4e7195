//! Open transactions, put together again.

use super::handover::{Pieces, Refusal};
use crate::mem::{NIL, TryVec};
use crate::proto::error::XsError;
use crate::proto::handover::FieldReader;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::sentence::sentence;
use crate::proto::stream;
use crate::store::path::{Names, Path};
use crate::store::quota::Quota;
use crate::store::{Restoring, Store};
use alloc::vec::Vec;

/// A transaction whose touched paths are still to come.
#[derive(Debug)]
pub(in crate::store) struct TransactionHead {
    conn: ConnId,
    tx: TxId,
    handle: u32,
    /// How many.
    left: usize,
    pieces: Pieces,
}

impl<'a> Restoring<'a> {
    /// An open transaction. Without fields it is one that cannot commit.
    ///
    /// # Errors
    /// It belongs to nobody or is there twice, or its fields are damaged.
    pub fn transaction(
        &mut self,
        transaction: stream::Transaction,
        fields: Option<&mut FieldReader<'_>>,
    ) -> Result<(), Refusal> {
        let stream::Transaction { conn, tx } = transaction;
        let Store { tree, transactions, conns, .. } = &mut self.store;
        let state = conns.get_mut(&conn);
        let state =
            state.ok_or_else(|| sentence!("a transaction of no connection ({})", conn.0))?;
        let domid = state.party.domid;
        if tx == TxId::NONE || transactions.find(conn, tx).is_some() {
            return Err(sentence!("transaction {} of domain {} is there twice", tx.0, domid));
        }
        let handle = transactions.add(conn, tx, domid, &mut state.open)?;
        let mut left = 0;
        match (fields, transactions.at(handle)) {
            (Some(fields), Some(open)) => left = open.tx.read_head(fields)?,
            _ => state.last_tx = state.last_tx.max(tx.0),
        }
        tree.domains.take(domid, Quota::Transactions, 1);
        let new = TransactionHead { conn, tx, handle, left, pieces: Pieces::default() };
        self.unfilled.try_push(new).map_err(|error| sentence!("{error}"))?;
        Ok(())
    }

    /// A path that a transaction has touched. The transactions are filled in the order of their announcement.
    ///
    /// # Errors
    /// It does not fit, or its fields are damaged.
    pub fn touched(
        &mut self,
        node: &stream::Node<'a>,
        fields: &mut FieldReader<'_>,
    ) -> Result<(), Refusal> {
        self.complete()?;
        let refused = |what: &str| {
            Err(sentence!("{what}: node {} in a transaction", node.path.escape_ascii()))
        };
        let (Some(unfilled), Some(pending)) = (self.unfilled.get_mut(self.filled), node.pending)
        else {
            return refused("no transaction wants it");
        };
        if (unfilled.conn, unfilled.tx) != (pending.conn, pending.tx) {
            return refused("it is another one's turn");
        }
        unfilled.left = unfilled.left.saturating_sub(1);
        // Whatever else was touched was spelled by `Path`.
        match Path::of_any_length(Vec::new(), node.path, Names::OrSpecial, DomId(0)) {
            Ok(_) if matches!(node.path.first(), Some(b'/' | b'@')) => {}
            Err(XsError::ENOMEM) => return refused("no memory is left"),
            Ok(_) | Err(_) => return refused("this is no path"),
        }
        let list = if node.perms.is_empty() {
            NIL
        } else {
            if let Err(unfit) = self.take_list(node.perms) {
                return refused(unfit.of_a_node());
            }
            self.count_uses();
            self.list
        };
        let newest = self.newest;
        let Store { tree, transactions, .. } = &mut self.store;
        let unfilled = self.unfilled.get_mut(self.filled);
        let open = unfilled.and_then(|unfilled| {
            transactions.at(unfilled.handle).map(|open| (open, &mut unfilled.pieces))
        });
        let Some((mut open, pieces)) = open else { return refused("no transaction wants it") };
        open.restore_touched(tree, node, list, newest, pieces, fields)
    }

    /// Closes the transactions that have all they touched.
    pub(in crate::store) fn complete(&mut self) -> Result<(), Refusal> {
        while let Some(TransactionHead { conn, handle, left: 0, pieces, .. }) =
            self.unfilled.get(self.filled)
        {
            let Store { tree, transactions, conns, .. } = &mut self.store;
            if let Some(mut done) = transactions.at(*handle) {
                if self.closed {
                    done.complete(pieces)?;
                } else {
                    done.mark_conflicting(tree)?;
                }
                let bytes = done.tx.bytes;
                if let Some(conn) = conns.get(conn) {
                    tree.domains.take(conn.party.domid, Quota::Memory, bytes);
                }
            }
            self.filled = self.filled.saturating_add(1);
        }
        Ok(())
    }
}
