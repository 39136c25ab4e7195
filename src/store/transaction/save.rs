//! Open transactions, written down for a successor.

use crate::proto::handover::FieldWriter;
use crate::proto::id::{ConnId, TxId};
use crate::proto::stream::{self, OutOfRoom, Sink, WriteError};
use crate::store::Store;
use alloc::vec::Vec;

impl Store {
    /// A connection's open transactions, in the order of their ids.
    fn open(&self, conn: ConnId) -> Vec<TxId> {
        let open = self.conns.get(&conn).map(|conn| conn.open.iter().copied());
        let mut open: Vec<TxId> = open.into_iter().flatten().collect();
        open.sort_unstable();
        open
    }

    /// Announces a connection's transactions; what they have touched comes after all nodes.
    ///
    /// # Errors
    /// As the writer.
    pub fn write_transactions<S: Sink>(
        &self,
        conn: ConnId,
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        let mut open = self.open(conn).into_iter();
        open.try_for_each(|tx| writer.transaction(stream::Transaction { conn, tx }))
    }

    /// What the stream does not say of those transactions, and the last id given out.
    ///
    /// # Errors
    /// The sink is full.
    pub fn write_transaction_fields<S: Sink>(
        &self,
        conn: ConnId,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        let mut open =
            self.open(conn).into_iter().filter_map(|tx| self.transactions.get(&(conn, tx)));
        open.try_for_each(|tx| tx.write_head(fields))
    }

    /// The last transaction id that a connection was given.
    #[must_use]
    pub fn last_transaction(&self, conn: ConnId) -> u32 {
        self.conns.get(&conn).map_or(0, |conn| conn.last_tx)
    }

    /// Writes what the transactions of these connections have touched.
    ///
    /// # Errors
    /// As the writer.
    pub fn write_touched<S: Sink>(
        &self,
        conns: &[ConnId],
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        for conn in conns {
            for tx in self.open(*conn) {
                if let Some(tx) = self.transactions.get(&(*conn, tx)) {
                    tx.write_nodes(&self.tree, *conn, writer)?;
                }
            }
        }
        Ok(())
    }

    /// What the stream does not say of that.
    ///
    /// # Errors
    /// The sink is full.
    pub fn write_touched_fields<S: Sink>(
        &self,
        conns: &[ConnId],
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        for conn in conns {
            for tx in self.open(*conn) {
                if let Some(tx) = self.transactions.get(&(*conn, tx)) {
                    tx.write_touched(&self.tree, fields)?;
                }
            }
        }
        Ok(())
    }
}
