//! Open transactions, put together again.

use super::Transaction;
use crate::mem::NIL;
use crate::proto::handover::FieldReader;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream;
use crate::store::path::{Names, Path};
use crate::store::quota::Quota;
use crate::store::{Restoring, Store};
use alloc::vec::Vec;

/// What does not fit together, as a sentence.
type Refusal = Sentence;

/// A transaction whose touched paths are still to come.
#[derive(Debug)]
pub(in crate::store) struct Unfilled {
    conn: ConnId,
    tx: TxId,
    /// How many.
    left: usize,
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
        let seed = self.store.seed;
        let state = self.store.conns.get_mut(&conn);
        let state =
            state.ok_or_else(|| sentence!("a transaction of no connection ({})", conn.0))?;
        if tx == TxId::NONE || !state.open.insert(tx) {
            return Err(sentence!(
                "transaction {} of domain {} is there twice",
                tx.0,
                state.party.domid
            ));
        }
        let domid = state.party.domid;
        let (new, left) = match fields {
            Some(fields) => Transaction::restore(tx, seed, fields)?,
            None => {
                state.last_tx = state.last_tx.max(tx.0);
                (Transaction::new(tx, seed), 0)
            }
        };
        self.store.transactions.insert((conn, tx), new);
        self.store.tree.domains.take(domid, Quota::Transactions, 1);
        self.unfilled.push_back(Unfilled { conn, tx, left });
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
            Err(sentence!("node {} in a transaction: {what}", node.path.escape_ascii()))
        };
        let (Some(unfilled), Some(pending)) = (self.unfilled.front_mut(), node.pending) else {
            return refused("no transaction wants it");
        };
        if (unfilled.conn, unfilled.tx) != (pending.conn, pending.tx) {
            return refused("it is another one's turn");
        }
        unfilled.left = unfilled.left.saturating_sub(1);
        let key = (unfilled.conn, unfilled.tx);
        // Whatever else was touched was spelled by `Path`.
        if Path::of_any_length(Vec::new(), node.path, Names::OrSpecial, DomId(0)).is_err()
            || !matches!(node.path.first(), Some(b'/' | b'@'))
        {
            return refused("this is no path");
        }
        let list = if node.perms.is_empty() {
            NIL
        } else if self.take_list(node.perms) {
            self.count_uses();
            self.list
        } else {
            return refused("its permissions name a domain that is not known");
        };
        let Store { tree, transactions, .. } = &mut self.store;
        let Some(tx) = transactions.get_mut(&key) else {
            return refused("no transaction wants it");
        };
        tx.restore_touched(tree, node, list, fields)
    }

    /// Closes the transactions that have all they touched.
    pub(in crate::store) fn complete(&mut self) -> Result<(), Refusal> {
        while let Some(Unfilled { conn, tx, left: 0 }) = self.unfilled.front() {
            let Store { tree, transactions, conns, .. } = &mut self.store;
            if let Some(done) = transactions.get_mut(&(*conn, *tx)) {
                if self.closed {
                    done.complete(tree)?;
                } else {
                    done.doom(tree);
                }
                let bytes = done.bytes;
                if let Some(conn) = conns.get(conn) {
                    tree.domains.take(conn.party.domid, Quota::Memory, bytes);
                }
            }
            self.unfilled.pop_front();
        }
        Ok(())
    }
}
