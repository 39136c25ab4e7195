//! What the tree takes of the allocator, and what of that is charged to domains.

use super::{Blocks, Family, NODE_BYTES, Name, Node, Owned, Tree};
use crate::mem::{Arena, Table};
use alloc::boxed::Box;

impl Tree {
    /// Bytes that it takes of the allocator.
    pub(in crate::store) fn taken(&self) -> usize {
        let Blocks { values, names, lists, .. } = self.blocks;
        [
            self.nodes.taken(),
            self.families.taken(),
            self.long.taken(),
            self.names.taken(),
            self.lists.taken(),
            self.owned.taken(),
            self.domains.taken(),
            values,
            names,
            lists,
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// What is charged for nodes, values, names and lists when each node is in the tree and belongs to somebody, or is a
    /// transaction's; `names` are the blocks of long names, once for each of their users that are not nodes and are
    /// not charged here. And what the records and blocks take for which it is charged, all names included.
    pub(in crate::store) fn charged(&self, names: usize) -> (usize, usize) {
        let Blocks { values, lists, unpaid, .. } = self.blocks;
        let long = (self.long.len() as usize).saturating_mul(Arena::<Box<[u8]>>::RECORD_BYTES);
        let lists = self.lists.len().saturating_mul(Self::LIST_BYTES).saturating_add(lists);
        let once = values.saturating_add(long).saturating_add(lists.saturating_sub(unpaid));
        let nodes = self.nodes.len().saturating_mul(NODE_BYTES);
        let uses = self.blocks.name_uses.saturating_sub(names);
        let charged = nodes.saturating_add(uses).saturating_add(once);
        let records = [
            self.nodes.len().saturating_mul(Table::<Node>::RECORD_BYTES),
            self.names.len().saturating_mul(Table::<Name>::RECORD_BYTES),
            self.owned.len().saturating_mul(Table::<Owned>::RECORD_BYTES),
            (self.families.len() as usize).saturating_mul(Arena::<Family>::RECORD_BYTES),
            self.blocks.names,
            once,
        ];
        (charged, records.into_iter().fold(0, usize::saturating_add))
    }

    /// What the records own in blocks of their own, counted one by one; for the consistency check.
    pub(in crate::store) fn recount_blocks(&self) -> Blocks {
        let mut found = Blocks::default();
        for (_, value) in self.long.iter() {
            found.values = found.values.saturating_add(crate::mem::block_bytes(value.len()));
        }
        for (_, name) in self.names.iter() {
            let block = super::name_block(name.bytes.len());
            found.names = found.names.saturating_add(block);
            let uses = block.saturating_mul(name.users as usize);
            found.name_uses = found.name_uses.saturating_add(uses);
        }
        for (_, list) in self.lists.iter() {
            let blocks = list.bytes().saturating_sub(Self::LIST_BYTES);
            found.lists = found.lists.saturating_add(blocks);
            let unpaid = if list.is_paid() { 0 } else { list.bytes() };
            found.unpaid = found.unpaid.saturating_add(unpaid);
        }
        found
    }

    /// What it keeps in mind of that.
    pub(in crate::store) fn blocks(&self) -> Blocks {
        self.blocks
    }
}
