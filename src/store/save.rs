//! The store, written down for a successor: records of the stream, and the fields of the private part in the
//! same order.
//!
//! Nothing is copied on the way: a walk over the nodes keeps one path, and lists are sorted only where
//! their number is that of connections or of one connection's transactions.

use super::Store;
use super::quota::{Quota, Quotas};
use super::tree::{Node, ROOT, Tree};
use crate::mem::TryVec;
use crate::proto::handover::FieldWriter;
use crate::proto::id::{ConnId, DomId};
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
        let Some(state) = self.conns.get(&conn) else { return Ok(()) };
        let mut path = Vec::new();
        for watch in self.watches.of(state) {
            path.clear();
            self.watches.path(&self.tree, watch, &mut path).map_err(|_| OutOfRoom)?;
            let depth = watch.depth().map(|depth| u16::try_from(depth).unwrap_or(u16::MAX));
            writer.watch(&stream::Watch {
                conn,
                path: path.get(watch.home()..).unwrap_or(&path),
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
        let Some(state) = self.conns.get(&conn) else { return Ok(()) };
        self.watches.of(state).try_for_each(|watch| fields.maybe_u32(watch.depth()))
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
        let mut above = Vec::new();
        above.try_push((ROOT, 0)).map_err(|_| OutOfRoom)?;
        for (handle, node) in self.tree.below(ROOT) {
            while let Some((last, len)) = above.last() {
                if *last == node.parent {
                    here.truncate(*len);
                    break;
                }
                above.pop();
            }
            let name = self.tree.name(node);
            here.try_push(b'/').and_then(|()| here.try_extend(name)).map_err(|_| OutOfRoom)?;
            if node.list != list {
                (list, perms) = (node.list, Perms::from(self.tree.entries(node.list)));
            }
            write_node(&self.tree, &here, node, perms, writer)?;
            if node.has_children() {
                above.try_push((handle, here.len())).map_err(|_| OutOfRoom)?;
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

    /// The limits, the greatest use and the present use of a domain.
    #[must_use]
    pub fn accounts(&self, domid: DomId) -> Option<(Quotas, Quotas, Quotas)> {
        let domain = self.tree.domains.get(domid)?;
        Some((domain.quotas, domain.peak, domain.used))
    }

    /// What a successor has to come to when it counts what a domain uses: all but its permission lists. Of those it may have
    /// fewer, since lists that have become the same are one there.
    #[must_use]
    pub fn used_without_lists(&self, domid: DomId) -> Quotas {
        let Some(domain) = self.tree.domains.get(domid) else { return Quotas::ZERO };
        let mut used = domain.used;
        let listed = u32::try_from(domain.listed).unwrap_or(u32::MAX);
        used.set(Quota::Memory, used.get(Quota::Memory).saturating_sub(listed));
        used
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
