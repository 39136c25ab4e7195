//! What transactions need of the tree besides: names by their handles, and nodes and values that are in no tree yet.

use super::{ASIDE, Name, Tree, Value, bytes_hash, child_hash};
use crate::mem::{NIL, NoMemory, Table, try_bytes};

impl Tree {
    /// What a name takes, besides the block of a long one.
    pub(in crate::store) const NAME_BYTES: usize = Table::<Name>::RECORD_BYTES;

    /// A name by its handle.
    pub(in crate::store) fn name_of(&self, name: u32) -> &[u8] {
        self.names.get(name).map_or(&[], |name| name.bytes.get())
    }

    /// The handle of a name that somebody uses.
    #[inline]
    pub(in crate::store) fn find_name(&self, name: &[u8]) -> Option<u32> {
        if let [one] = *name {
            return self.one(one);
        }
        let hash = bytes_hash(self.names.seed(), name);
        self.names.find(hash, |record| record.bytes.get() == name)
    }

    /// The handle of a name of one byte that somebody uses.
    #[inline]
    pub(super) fn one(&self, byte: u8) -> Option<u32> {
        self.ones.get(usize::from(byte)).copied().filter(|handle| *handle != NIL)
    }

    /// One use more of a name.
    #[inline]
    pub(in crate::store) fn retain_name(&mut self, handle: u32) {
        if let Some(name) = self.names.get_mut(handle) {
            name.users = name.users.saturating_add(1);
        }
    }

    /// A child by the handle of its name.
    pub(in crate::store) fn child_named(&self, parent: u32, name: u32) -> Option<u32> {
        let hash = child_hash(self.nodes.seed(), parent, name);
        self.nodes.find(hash, |node| node.parent == parent && node.name == name)
    }

    /// A copy of a node's value, to be put into a node or [given up](Self::drop_value).
    ///
    /// # Errors
    /// There is no memory.
    pub(in crate::store) fn copy_value(&mut self, handle: u32) -> Result<Value, NoMemory> {
        match self.nodes.get(handle).map(|node| node.value) {
            Some(Value::Long(long)) => {
                let copy = try_bytes(self.long.get(long).map_or(&[], |value| value))?;
                self.keep_long(copy)
            }
            Some(short @ Value::Short { .. }) => Ok(short),
            None => self.keep(&[]),
        }
    }

    /// Replaces the value of a node that was [made](Self::make_detached) and is in no tree yet, and returns the old one;
    /// of any other node the new one.
    pub(in crate::store) fn swap_detached(&mut self, handle: u32, value: Value) -> Option<Value> {
        let node = self.nodes.get_mut(handle).filter(|node| node.parent == ASIDE);
        Some(match node {
            Some(node) => core::mem::replace(&mut node.value, value),
            None => value,
        })
    }

    /// Replaces the permissions of a node that was made and is in no tree yet. Takes over one use of `list`.
    pub(in crate::store) fn relist_detached(&mut self, handle: u32, list: u32) {
        let node = self.nodes.get_mut(handle).filter(|node| node.parent == ASIDE);
        let old = node.map_or(list, |node| core::mem::replace(&mut node.list, list));
        self.release_list(old);
    }
}
