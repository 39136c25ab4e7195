//! A map from domids, in the order of domids: the domid is the place in it.

use crate::mem::{Boxed, NoMemory, block_bytes, try_array};
use crate::proto::id::DomId;
use alloc::boxed::Box;

/// Places in a block: half a page of pointers.
const BLOCK: usize = 256;

type Block<T> = [Option<Boxed<T>>; BLOCK];

/// The map.
#[derive(Debug)]
pub(in crate::server) struct ByDomid<T> {
    /// By the upper half of the domid.
    blocks: [Option<Box<Block<T>>>; 256],
    len: usize,
}

fn place(domid: DomId) -> (usize, usize) {
    let [low, high] = domid.0.to_le_bytes();
    (usize::from(high), usize::from(low))
}

impl<T> ByDomid<T> {
    pub(in crate::server) fn new() -> Self {
        Self { blocks: [const { None }; 256], len: 0 }
    }

    /// Bytes that it takes of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        let block = const { block_bytes(size_of::<Block<T>>()) };
        let blocks = self.blocks.iter().flatten().count().saturating_mul(block);
        blocks.saturating_add(self.len.saturating_mul(const { block_bytes(size_of::<T>()) }))
    }

    pub(in crate::server) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(in crate::server) fn get(&self, domid: DomId) -> Option<&T> {
        let (block, at) = place(domid);
        self.blocks.get(block)?.as_ref()?.get(at)?.as_deref()
    }

    #[inline]
    pub(in crate::server) fn get_mut(&mut self, domid: DomId) -> Option<&mut T> {
        let (block, at) = place(domid);
        self.blocks.get_mut(block)?.as_mut()?.get_mut(at)?.as_deref_mut()
    }

    pub(in crate::server) fn contains(&self, domid: DomId) -> bool {
        self.get(domid).is_some()
    }

    /// Sets the value of a domid.
    pub(in crate::server) fn insert(&mut self, domid: DomId, value: T) -> Result<(), NoMemory> {
        if let Some(old) = self.get_mut(domid) {
            *old = value;
            return Ok(());
        }
        let boxed = Boxed::new(value)?;
        let (number, at) = place(domid);
        let Some(block) = self.blocks.get_mut(number) else { return Err(NoMemory) };
        let block = match block {
            Some(block) => block,
            None => block.insert(try_array(|_| None)?),
        };
        if let Some(slot) = block.get_mut(at) {
            *slot = Some(boxed);
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }

    pub(in crate::server) fn remove(&mut self, domid: DomId) -> Option<T> {
        let (number, at) = place(domid);
        let slot = self.blocks.get_mut(number)?;
        let block = slot.as_mut()?;
        let old = block.get_mut(at)?.take()?;
        self.len = self.len.saturating_sub(1);
        if block.iter().all(Option::is_none) {
            *slot = None;
        }
        Some(old.into_inner())
    }

    /// The first one from a domid on.
    pub(in crate::server) fn next_from(&self, domid: DomId) -> Option<(DomId, &T)> {
        let (first, mut at) = place(domid);
        // Slices, since others are skipped one by one.
        for (high, block) in self.blocks.iter().enumerate().skip(first) {
            let slots = block.as_ref().and_then(|block| block.get(at..)).unwrap_or_default();
            let mut found =
                slots.iter().enumerate().filter_map(|(n, slot)| Some((n, slot.as_deref()?)));
            if let Some((n, value)) = found.next() {
                let domid = high.wrapping_mul(BLOCK).wrapping_add(at).wrapping_add(n);
                return Some((DomId(u16::try_from(domid).ok()?), value));
            }
            at = 0;
        }
        None
    }

    /// Every one from a domid on, ascending.
    pub(in crate::server) fn range(&self, from: DomId) -> impl Iterator<Item = (DomId, &T)> {
        let mut next = Some(from);
        core::iter::from_fn(move || {
            let (domid, value) = self.next_from(next?)?;
            next = domid.0.checked_add(1).map(DomId);
            Some((domid, value))
        })
    }

    /// Every one, ascending.
    pub(in crate::server) fn iter(&self) -> impl Iterator<Item = (DomId, &T)> {
        self.range(DomId(0))
    }
}
