//! Places for records with 32-bit handles, in chunks of one page that never move.
//!
//! A vector doubles: now and then one insertion copies everything. A server with a million nodes must not
//! make one unlucky guest pay for that, so here only the list of chunks does. A chunk without records
//! is given back.

use alloc::vec::Vec;

/// "No record".
pub(super) const NIL: u32 = u32::MAX;

/// Bytes of a chunk, as far as whole records fit: what the allocator gives without waste.
const CHUNK_BYTES: usize = 4096;

/// A place in a chunk.
#[derive(Debug)]
enum Slot<T> {
    Used(T),
    /// The next free place of the chunk, or `NIL`.
    Free(u32),
}

/// Places for records.
#[derive(Debug)]
struct Chunk<T> {
    /// The places that were used at least once; empty if the chunk was given back.
    slots: Vec<Slot<T>>,
    /// The first free place among them, or `NIL`.
    free: u32,
    used: u32,
    /// Neighbours in the list of chunks with free places, or in that of those that were given back.
    prev: u32,
    next: u32,
}

/// The places. A handle is the number of a chunk and, in the low bits, of a place in it.
#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    /// The first chunk with free places.
    open: u32,
    /// The first number whose chunk was given back. The last number is never one of them.
    vacant: u32,
    len: u32,
}

impl<T> Arena<T> {
    const PLACES: usize = CHUNK_BYTES / size_of::<Slot<T>>();
    const PLACE_BITS: u32 = Self::PLACES.next_power_of_two().trailing_zeros();
    const PLACE_MASK: u32 = (1 << Self::PLACE_BITS) - 1;

    /// Upper bound of the bytes that one insertion allocates, apart from what the record owns and the
    /// list of chunks.
    pub(super) const INSERT_BYTES: usize = CHUNK_BYTES;

    /// What a record takes at most, as long as its chunk is full.
    pub(super) const RECORD_BYTES: usize = CHUNK_BYTES.div_ceil(Self::PLACES);

    /// No place yet.
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), open: NIL, vacant: NIL, len: 0 }
    }

    /// How many records there are.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The record with this handle.
    #[inline]
    pub(super) fn get(&self, handle: u32) -> Option<&T> {
        let chunk = self.chunks.get((handle >> Self::PLACE_BITS) as usize)?;
        match chunk.slots.get((handle & Self::PLACE_MASK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    /// The record with this handle.
    #[inline]
    pub(super) fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut((handle >> Self::PLACE_BITS) as usize)?;
        match chunk.slots.get_mut((handle & Self::PLACE_MASK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    /// Puts a record into the first chunk with room, and returns its handle.
    // So that a record is made where it stays.
    #[inline(always)]
    pub(super) fn insert(&mut self, record: T) -> u32 {
        if self.open == NIL {
            self.add_chunk();
        }
        let number = self.open;
        let Some(chunk) = self.chunk_mut(number) else { return NIL };
        let mut place = chunk.free;
        match chunk.slots.get_mut(place as usize) {
            Some(slot) => {
                let Slot::Free(next) = core::mem::replace(slot, Slot::Used(record)) else {
                    return NIL;
                };
                chunk.free = next;
            }
            None => {
                place = u32::try_from(chunk.slots.len()).unwrap_or(NIL);
                chunk.slots.push(Slot::Used(record));
            }
        }
        chunk.used = chunk.used.saturating_add(1);
        if chunk.used as usize == Self::PLACES {
            self.open = self.leave(self.open, number);
        }
        self.len = self.len.saturating_add(1);
        number << Self::PLACE_BITS | place
    }

    /// Takes a record out of its chunk, and gives that back if it was the last.
    // So that a record that nobody wants is not moved.
    #[inline(always)]
    pub(super) fn remove(&mut self, handle: u32) -> Option<T> {
        let number = handle >> Self::PLACE_BITS;
        let place = handle & Self::PLACE_MASK;
        let chunk = self.chunks.get_mut(number as usize)?;
        let slot = chunk.slots.get_mut(place as usize)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let old = core::mem::replace(slot, Slot::Free(chunk.free));
        chunk.free = place;
        let was_full = chunk.used as usize == Self::PLACES;
        chunk.used = chunk.used.wrapping_sub(1);
        let is_empty = chunk.used == 0;
        self.len = self.len.wrapping_sub(1);
        if was_full || is_empty {
            self.relist(number, was_full, is_empty);
        }
        match old {
            Slot::Used(record) => Some(record),
            Slot::Free(_) => None,
        }
    }

    /// A chunk has its first free place, or nothing but free places.
    #[cold]
    fn relist(&mut self, number: u32, was_full: bool, is_empty: bool) {
        if was_full {
            self.open = self.enter(self.open, number);
        }
        if is_empty {
            self.give_back(number);
        }
    }

    /// Every handle is smaller.
    pub(super) fn bound(&self) -> u32 {
        u32::try_from(self.chunks.len()).map_or(NIL, |chunks| chunks << Self::PLACE_BITS)
    }

    /// Every record with its handle, in no useful order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0_u32..).zip(&self.chunks).flat_map(|(number, chunk)| {
            let first = number << Self::PLACE_BITS;
            (first..).zip(&chunk.slots).filter_map(|(handle, slot)| match slot {
                Slot::Used(record) => Some((handle, record)),
                Slot::Free(_) => None,
            })
        })
    }

    fn chunk_mut(&mut self, number: u32) -> Option<&mut Chunk<T>> {
        self.chunks.get_mut(number as usize)
    }

    fn add_chunk(&mut self) {
        let slots = Vec::with_capacity(Self::PLACES);
        let chunk = Chunk { slots, free: NIL, used: 0, prev: NIL, next: NIL };
        let number = match self.vacant {
            NIL => {
                self.chunks.push(chunk);
                u32::try_from(self.chunks.len()).unwrap_or(NIL).saturating_sub(1)
            }
            number => {
                self.vacant = self.leave(self.vacant, number);
                if let Some(place) = self.chunk_mut(number) {
                    *place = chunk;
                }
                number
            }
        };
        self.open = self.enter(self.open, number);
    }

    /// Gives a chunk without records back, and its number, too, if it is the last.
    fn give_back(&mut self, number: u32) {
        self.open = self.leave(self.open, number);
        if let Some(chunk) = self.chunk_mut(number) {
            chunk.slots = Vec::new();
            chunk.free = NIL;
        }
        self.vacant = self.enter(self.vacant, number);
        while let Some(last) = self.chunks.last()
            && last.slots.capacity() == 0
        {
            let number = u32::try_from(self.chunks.len()).unwrap_or(NIL).saturating_sub(1);
            self.vacant = self.leave(self.vacant, number);
            self.chunks.pop();
        }
        self.give_room_back();
    }

    /// Makes a list of chunks that lost most of them smaller. It takes as many chunks as the list then has room, so it
    /// costs no more than they did.
    fn give_room_back(&mut self) {
        if self.chunks.capacity() <= self.chunks.len().saturating_add(1).saturating_mul(4) {
            return;
        }
        // Not `shrink_to_fit`, which panics where there is no memory for the smaller list.
        let mut smaller = Vec::new();
        if smaller.try_reserve_exact(self.chunks.len()).is_ok() {
            smaller.append(&mut self.chunks);
            self.chunks = smaller;
        }
    }

    /// Puts a chunk in front of a list, and returns the list's new first.
    fn enter(&mut self, first: u32, number: u32) -> u32 {
        if let Some(chunk) = self.chunk_mut(first) {
            chunk.prev = number;
        }
        if let Some(chunk) = self.chunk_mut(number) {
            chunk.prev = NIL;
            chunk.next = first;
        }
        number
    }

    /// Takes a chunk out of a list, and returns the list's new first.
    fn leave(&mut self, first: u32, number: u32) -> u32 {
        let Some(chunk) = self.chunk_mut(number) else { return first };
        let (prev, next) = (chunk.prev, chunk.next);
        if let Some(after) = self.chunk_mut(next) {
            after.prev = prev;
        }
        match self.chunk_mut(prev) {
            Some(before) => {
                before.next = next;
                first
            }
            None => next,
        }
    }
}

#[cfg(test)]
impl<T> Arena<T> {
    /// Whether no chunk is held.
    pub(super) fn is_bare(&self) -> bool {
        self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_stay_and_places_are_used_again() {
        let mut arena = Arena::new();
        let handles: Vec<u32> = (0..3000_u64).map(|value| arena.insert(value)).collect();
        assert_eq!(arena.len(), 3000);
        for handle in handles.iter().step_by(3) {
            assert_eq!(arena.remove(*handle).map(|value| value % 3), Some(0));
            assert_eq!(arena.remove(*handle), None);
        }
        for (value, handle) in (0..3000).zip(&handles) {
            assert_eq!(arena.get(*handle).copied(), (value % 3 != 0).then_some(value));
        }
        let chunks = arena.chunks.len();
        (0..1000).for_each(|value| _ = arena.insert(value));
        assert_eq!((arena.len(), arena.chunks.len()), (3000, chunks), "holes are filled first");
        assert_eq!(arena.get(NIL), None);
    }

    #[test]
    fn chunks_and_their_list_are_given_back() {
        let mut arena = Arena::new();
        let first = arena.insert(0_u64);
        let handles: Vec<u32> = (0..100_000).map(|value| arena.insert(value)).collect();
        // Whole chunks in the middle, then all.
        let (middle, rest) = handles.split_at(50_000);
        middle.iter().rev().for_each(|handle| _ = arena.remove(*handle));
        let held = arena.chunks.iter().filter(|chunk| chunk.slots.capacity() > 0).count();
        assert!(held * Arena::<u64>::PLACES < 51_000, "{held}");
        rest.iter().for_each(|handle| _ = arena.remove(*handle));
        assert_eq!((arena.chunks.len(), arena.vacant), (1, NIL));
        assert!(arena.chunks.capacity() <= 8);
        assert_eq!(arena.remove(first), Some(0));
        assert!(arena.is_bare());
        assert!(arena.insert(7) == first && arena.get(first) == Some(&7));
    }
}
