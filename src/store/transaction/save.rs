//! Open transactions, written down for a successor.

use super::Transactions;
use crate::proto::handover::FieldWriter;
use crate::proto::id::ConnId;
use crate::proto::stream::{self, OutOfRoom, Sink, WriteError};
use crate::store::Store;

impl Store {
    /// A connection's open transactions, in the order of their start, with their handles.
    fn open(&self, conn: ConnId) -> impl Iterator<Item = (u32, &super::Transaction)> {
        let open = self.conns.get(&conn).map_or(super::OpenOf::NONE, |conn| conn.open);
        self.transactions.of(open)
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
        let mut open = self.open(conn);
        open.try_for_each(|(_, tx)| writer.transaction(stream::Transaction { conn, tx: tx.id }))
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
        self.open(conn).try_for_each(|(_, tx)| Transactions::write_head(tx, fields))
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
            for (_, tx) in self.open(*conn) {
                self.transactions.write_nodes(&self.tree, tx, writer)?;
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
            for (_, tx) in self.open(*conn) {
                self.transactions.write_touched(&self.tree, tx, fields)?;
            }
        }
        Ok(())
    }
}
