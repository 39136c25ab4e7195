//! The store, written down for a successor: records of the stream, and the fields of the private part in the
//! same order.
//!
//! Nothing is copied on the way: a walk over the nodes keeps one path, and lists are sorted only where
//! their number is that of connections or of one connection's transactions.

use super::Store;
use super::quota::Quotas;
use super::tree::{Node, ROOT, Tree};
use crate::proto::handover::FieldWriter;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::stream::{self, OutOfRoom, Perms, Sink, WriteError};
use alloc::vec::Vec;

/// The names of the special nodes, in the order of [`Tree::special`].
const SPECIAL: [&[u8]; 2] = [b"@introduceDomain", b"@releaseDomain"];

impl Store {
    /// Writes a connection's watches, in the order of their registration.
    ///
    /// # Errors
    /// As the writer.
    pub fn write_watches<S: Sink>(
        &self,
        conn: ConnId,
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        for watch in self.watches.of(conn) {
            let path = self.watches.path(watch);
            let depth = watch.depth.map(|depth| u16::try_from(depth).unwrap_or(u16::MAX));
            writer.watch(&stream::Watch {
                conn,
                path: path.get(watch.home..).unwrap_or(path),
                token: &watch.token,
                depth,
            })?;
        }
        Ok(())
    }

    /// What the stream may not say of those watches.
    ///
    /// # Errors
    /// The sink is full.
    pub fn write_watch_fields<S: Sink>(
        &self,
        conn: ConnId,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        self.watches.of(conn).try_for_each(|watch| fields.maybe_u32(watch.depth))
    }

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

    /// Writes every node: the tree, parents first and siblings in their order, then the special ones.
    ///
    /// # Errors
    /// As the writer.
    pub fn write_nodes<S: Sink>(&self, writer: &mut stream::Writer<S>) -> Result<(), WriteError> {
        let Some(root) = self.tree.node(ROOT) else { return Ok(()) };
        // Neighbours mostly have the same permissions.
        let (mut list, mut perms) = (root.list, Perms::from(self.tree.entries(root.list)));
        write_node(&self.tree, b"/", root, perms, writer)?;
        let mut here = Vec::new();
        // The nodes above the last one written, with the lengths of their paths.
        let mut above = Vec::from([(ROOT, 0)]);
        for (handle, node) in self.tree.below(ROOT) {
            while let Some((last, len)) = above.last() {
                if *last == node.parent {
                    here.truncate(*len);
                    break;
                }
                above.pop();
            }
            here.push(b'/');
            here.extend_from_slice(self.tree.name(node));
            if node.list != list {
                (list, perms) = (node.list, Perms::from(self.tree.entries(node.list)));
            }
            write_node(&self.tree, &here, node, perms, writer)?;
            if node.has_children() {
                above.push((handle, here.len()));
            }
        }
        for (name, handle) in SPECIAL.into_iter().zip(self.tree.special) {
            if let Some(node) = self.tree.node(handle) {
                let perms = Perms::from(self.tree.entries(node.list));
                write_node(&self.tree, name, node, perms, writer)?;
            }
        }
        Ok(())
    }

    /// The generations of those nodes.
    ///
    /// # Errors
    /// The sink is full.
    pub fn write_node_fields<S: Sink>(
        &self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        if let Some(root) = self.tree.node(ROOT) {
            fields.u64(root.generation())?;
        }
        // Loops, since there are many of them: one chain of iterators takes three times as long.
        for (_, node) in self.tree.below(ROOT) {
            fields.u64(node.generation())?;
        }
        for node in self.tree.special {
            if let Some(node) = self.tree.node(node) {
                fields.u64(node.generation())?;
            }
        }
        Ok(())
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

    /// The limits, the greatest use and the present use of a domain.
    #[must_use]
    pub fn accounts(&self, domid: DomId) -> Option<(Quotas, Quotas, Quotas)> {
        let domain = self.tree.domains.get(domid)?;
        Some((domain.quotas, domain.peak, domain.used))
    }

    /// The limits that a domain starts with.
    #[must_use]
    pub fn initial_quotas(&self) -> Quotas {
        self.tree.domains.initial
    }
}

fn write_node<S: Sink>(
    tree: &Tree,
    path: &[u8],
    node: &Node,
    perms: Perms<'_>,
    writer: &mut stream::Writer<S>,
) -> Result<(), WriteError> {
    // Every name was looked at when it came.
    writer.named_node(&stream::Node { path, value: tree.value(node), perms, pending: None })
}

/// Which of the special nodes has this name.
pub(super) fn special(name: &[u8]) -> Option<usize> {
    SPECIAL.iter().position(|special| *special == name)
}
