//! Places for records with 32-bit handles, in chunks of one page that never move.
//!
//! When a vector doubles, one insertion copies everything into one large block. A server with a million nodes must
//! not charge one unlucky guest for that. So here only a list of pages grows; each of these pages describes many
//! chunks. A chunk without records is given back.
//!
//! A place can be *promised*: then a later insertion finds it, whatever is inserted in between.

use super::{
    NIL, NoMemory, TryVec, block_bytes, room_bytes, try_array, try_boxed, try_with_capacity,
};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Bytes of a chunk, of which whole records use as many as they can: a block that the allocator gives without
/// waste.
const CHUNK_BYTES: usize = 4096;

/// Chunks whose facts share a page.
const PAGE: usize = 128;

/// A place in a chunk.
#[derive(Debug)]
enum Slot<T> {
    Used(T),
    /// The next free place of the chunk, or `NONE`.
    Free(u16),
}

/// No place of a chunk.
const NONE: u16 = u16::MAX;

/// Places for records.
#[derive(Debug)]
struct Chunk<T> {
    /// Empty if the chunk was given back.
    slots: Box<[Slot<T>]>,
    /// The first free place, or `NONE`.
    free: u16,
    used: u16,
    /// Neighbours in the list that it is in: of chunks with free places, of those kept for promises, or of those
    /// that were given back.
    prev: u32,
    next: u32,
}
const _: () = assert!(size_of::<Chunk<u64>>() * PAGE <= CHUNK_BYTES);

impl<T> Chunk<T> {
    fn without_places() -> Self {
        Self { slots: Box::default(), free: NONE, used: 0, prev: NIL, next: NIL }
    }
}

/// The places. A handle is the number of a chunk and, in the low bits, of a place in it.
#[derive(Debug)]
pub struct Arena<T> {
    pages: Vec<Box<[Chunk<T>; PAGE]>>,
    /// Numbers below are of chunks.
    chunks: u32,
    /// The first chunk with free places and records.
    open: u32,
    /// The first chunk without records that is kept because places in it are promised.
    spare: u32,
    /// The first number whose chunk was given back. The last number is never one of them.
    vacant: u32,
    len: u32,
    /// Places without records.
    places: u32,
    /// How many of them are promised.
    promised: u32,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Arena<T> {
    const PLACES: usize = CHUNK_BYTES / size_of::<Slot<T>>();
    const PLACE_BITS: u32 = Self::PLACES.next_power_of_two().trailing_zeros();
    const PLACE_MASK: u32 = (1 << Self::PLACE_BITS) - 1;
    #[expect(clippy::cast_possible_truncation, reason = "a chunk has fewer places than bytes")]
    const PLACES_U32: u32 = Self::PLACES as u32;

    /// Upper bound of the bytes that one insertion allocates, apart from what the record owns: a chunk, and a page
    /// for the facts of more chunks.
    pub const INSERT_BYTES: usize = 2 * CHUNK_BYTES;

    /// What a record takes at most, as long as its chunk is full.
    pub const RECORD_BYTES: usize = CHUNK_BYTES.div_ceil(Self::PLACES);

    /// No place yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pages: Vec::new(),
            chunks: 0,
            open: NIL,
            spare: NIL,
            vacant: NIL,
            len: 0,
            places: 0,
            promised: 0,
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn chunk(&self, number: u32) -> Option<&Chunk<T>> {
        self.pages.get(number as usize / PAGE)?.get(number as usize % PAGE)
    }

    #[inline]
    fn chunk_mut(&mut self, number: u32) -> Option<&mut Chunk<T>> {
        self.pages.get_mut(number as usize / PAGE)?.get_mut(number as usize % PAGE)
    }

    /// The record with this handle.
    #[inline]
    #[must_use]
    pub fn get(&self, handle: u32) -> Option<&T> {
        let chunk = self.chunk(handle >> Self::PLACE_BITS)?;
        match chunk.slots.get((handle & Self::PLACE_MASK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    /// The record with this handle.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        let chunk = self.chunk_mut(handle >> Self::PLACE_BITS)?;
        match chunk.slots.get_mut((handle & Self::PLACE_MASK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    /// Puts a record into a chunk with room, and returns its handle.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the record is lost.
    // So that a record is made where it stays.
    #[inline(always)]
    pub fn insert(&mut self, record: T) -> Result<u32, NoMemory> {
        if self.places <= self.promised {
            self.add_chunk()?;
        }
        Ok(self.put(record))
    }

    /// Promises a place, so that a later [`insert_promised`](Self::insert_promised) cannot fail.
    ///
    /// # Errors
    /// There is no memory.
    pub fn promise(&mut self) -> Result<(), NoMemory> {
        if self.places <= self.promised {
            self.add_chunk()?;
        }
        self.promised = self.promised.saturating_add(1);
        Ok(())
    }

    /// Takes back a promise. One of the chunks that were made for promises stays.
    pub fn withdraw(&mut self) {
        self.promised = self.promised.saturating_sub(1);
        // One is kept: who promises and withdraws again and again should not pay for a chunk each time.
        let more = self.chunk(self.spare).map_or(NIL, |spare| spare.next);
        if more != NIL && self.can_give_back() {
            let number = self.spare;
            self.spare = self.leave(self.spare, number);
            self.give_back(number);
        }
    }

    /// As [`insert`](Self::insert), in a place that was [kept](Self::promise). Without one the answer is `NIL`.
    #[inline]
    pub fn insert_promised(&mut self, record: T) -> u32 {
        self.promised = self.promised.saturating_sub(1);
        self.put(record)
    }

    /// Puts a record into a free place; there must be one.
    #[inline(always)]
    fn put(&mut self, record: T) -> u32 {
        if self.open == NIL {
            self.open_spare();
        }
        let number = self.open;
        let Some(chunk) = self.chunk_mut(number) else { return NIL };
        let place = chunk.free;
        let Some(slot) = chunk.slots.get_mut(usize::from(place)) else { return NIL };
        let Slot::Free(next) = core::mem::replace(slot, Slot::Used(record)) else { return NIL };
        chunk.free = next;
        chunk.used = chunk.used.wrapping_add(1);
        if next == NONE {
            self.open = self.leave(self.open, number);
        }
        self.len = self.len.wrapping_add(1);
        self.places = self.places.wrapping_sub(1);
        number << Self::PLACE_BITS | u32::from(place)
    }

    /// Takes a record out of its chunk, and gives that back if it was the last.
    // So that a record that nobody wants is not moved.
    #[inline(always)]
    pub fn remove(&mut self, handle: u32) -> Option<T> {
        self.remove_if(handle, |_| true)
    }

    /// As [`remove`](Self::remove), but only if it is the wanted record.
    #[inline(always)]
    pub fn remove_if(&mut self, handle: u32, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let number = handle >> Self::PLACE_BITS;
        #[expect(clippy::cast_possible_truncation, reason = "places are few")]
        let place = (handle & Self::PLACE_MASK) as u16;
        let chunk = self.chunk_mut(number)?;
        let slot = chunk.slots.get_mut(usize::from(place))?;
        match slot {
            Slot::Used(record) if is_wanted(record) => {}
            Slot::Used(_) | Slot::Free(_) => return None,
        }
        let was_full = chunk.free == NONE;
        let old = core::mem::replace(slot, Slot::Free(chunk.free));
        chunk.free = place;
        chunk.used = chunk.used.wrapping_sub(1);
        let is_empty = chunk.used == 0;
        self.len = self.len.wrapping_sub(1);
        self.places = self.places.wrapping_add(1);
        if was_full || is_empty {
            self.relist(number, was_full, is_empty);
        }
        match old {
            Slot::Used(record) => Some(record),
            Slot::Free(_) => None,
        }
    }

    /// Puts a chunk into the list: it has its first free place, or nothing but free places.
    #[cold]
    fn relist(&mut self, number: u32, was_full: bool, is_empty: bool) {
        if !is_empty {
            self.open = self.enter(self.open, number);
            return;
        }
        if !was_full {
            self.open = self.leave(self.open, number);
        }
        // One is kept: a table with now one record and now none should not pay for a chunk each time. It is that with
        // the lower number, so that the list of chunks becomes short.
        let spare = self.spare;
        if spare == NIL || !self.can_give_back() {
            self.spare = self.enter(spare, number);
        } else if number < spare {
            self.spare = self.leave(spare, spare);
            self.spare = self.enter(self.spare, number);
            self.give_back(spare);
        } else {
            self.give_back(number);
        }
    }

    /// Whether a chunk without records may be given back: then none of its places is promised.
    fn can_give_back(&self) -> bool {
        self.places.saturating_sub(Self::PLACES_U32) >= self.promised
    }

    /// Every handle is smaller.
    #[must_use]
    pub fn bound(&self) -> u32 {
        self.chunks << Self::PLACE_BITS
    }

    /// The first record whose handle is at least this one, with its handle: for going through all in slices. For
    /// each page of chunks that holds records it looks at no more than one that holds none.
    #[must_use]
    pub fn next_from(&self, handle: u32) -> Option<(u32, &T)> {
        let mut number = handle >> Self::PLACE_BITS;
        let mut place = (handle & Self::PLACE_MASK) as usize;
        while number < self.chunks {
            let slots = self.chunk(number).map_or(&[][..], |chunk| &chunk.slots);
            let mut rest = (0_u32..).zip(slots).skip(place);
            if let Some((place, record)) = rest.find_map(|(place, slot)| match slot {
                Slot::Used(record) => Some((place, record)),
                Slot::Free(_) => None,
            }) {
                return Some((number << Self::PLACE_BITS | place, record));
            }
            number = number.saturating_add(1);
            place = 0;
        }
        None
    }

    /// Every record with its handle, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let chunks = self.pages.iter().flat_map(|page| page.iter());
        (0_u32..).zip(chunks).flat_map(|(number, chunk)| {
            let first = number << Self::PLACE_BITS;
            (first..).zip(&chunk.slots).filter_map(|(handle, slot)| match slot {
                Slot::Used(record) => Some((handle, record)),
                Slot::Free(_) => None,
            })
        })
    }

    /// Every record with its handle, in no useful order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let chunks = self.pages.iter_mut().flat_map(|page| page.iter_mut());
        (0_u32..).zip(chunks).flat_map(|(number, chunk)| {
            let first = number << Self::PLACE_BITS;
            (first..).zip(&mut chunk.slots).filter_map(|(handle, slot)| match slot {
                Slot::Used(record) => Some((handle, record)),
                Slot::Free(_) => None,
            })
        })
    }

    /// Adds a chunk, all of whose places are free.
    #[cold]
    fn add_chunk(&mut self) -> Result<(), NoMemory> {
        let mut slots = try_with_capacity(Self::PLACES)?;
        let last = u16::try_from(Self::PLACES).map_or(NONE, |places| places.wrapping_sub(1));
        for place in 0..=last {
            let next = if place == last { NONE } else { place.wrapping_add(1) };
            slots.try_push(Slot::Free(next))?;
        }
        let slots = try_boxed(slots)?;
        let number = match self.vacant {
            NIL => {
                let number = self.chunks;
                // Handles are numbers of 32 bits, of which the last is none.
                if number >= NIL >> Self::PLACE_BITS {
                    return Err(NoMemory);
                }
                if number as usize / PAGE >= self.pages.len() {
                    self.pages.try_push(try_array(|_| Chunk::without_places())?)?;
                }
                self.chunks = number.wrapping_add(1);
                number
            }
            number => {
                self.vacant = self.leave(self.vacant, number);
                number
            }
        };
        if let Some(chunk) = self.chunk_mut(number) {
            *chunk = Chunk { slots, free: 0, used: 0, prev: NIL, next: NIL };
        }
        self.spare = self.enter(self.spare, number);
        self.places = self.places.saturating_add(Self::PLACES_U32);
        Ok(())
    }

    /// Takes the first of the chunks that are kept for promises, for records.
    #[cold]
    fn open_spare(&mut self) {
        let number = self.spare;
        if number != NIL {
            self.spare = self.leave(self.spare, number);
            self.open = self.enter(self.open, number);
        }
    }

    /// Gives back a chunk without records, which is in no list; also its number, if that is the last.
    fn give_back(&mut self, number: u32) {
        if let Some(chunk) = self.chunk_mut(number) {
            *chunk = Chunk::without_places();
        }
        self.places = self.places.saturating_sub(Self::PLACES_U32);
        self.vacant = self.enter(self.vacant, number);
        // At most as many as were given back before.
        while let Some(last) = self.chunks.checked_sub(1)
            && self.chunk(last).is_some_and(|chunk| chunk.slots.is_empty())
        {
            self.vacant = self.leave(self.vacant, last);
            self.chunks = last;
        }
        // A page more than is needed is kept, so that one record at the border does not cost a page each time.
        let needed = (self.chunks as usize).div_ceil(PAGE);
        if self.chunks == 0 {
            self.pages = Vec::new();
        } else {
            self.pages.truncate(needed.saturating_add(1));
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
        let Some(chunk) = self.chunk(number) else { return first };
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

    /// Bytes that it takes of the allocator, apart from what the records own.
    #[must_use]
    pub fn taken(&self) -> usize {
        let places = self.len.saturating_add(self.places);
        let chunks = places.wrapping_div(Self::PLACES_U32) as usize;
        let chunk = const { block_bytes(Self::PLACES * size_of::<Slot<T>>()) };
        let page = const { block_bytes(size_of::<[Chunk<T>; PAGE]>()) };
        chunks
            .saturating_mul(chunk)
            .saturating_add(self.pages.len().saturating_mul(page))
            .saturating_add(room_bytes(&self.pages))
    }

    /// Whether it holds no memory for records.
    pub(super) fn has_no_place(&self) -> bool {
        self.chunks == 0
    }

    /// Whether it holds no memory.
    #[cfg(test)]
    pub(crate) fn chunks(&self) -> u32 {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_stay_and_places_are_used_again() {
        let mut arena = Arena::new();
        let handles: Vec<u32> = (0..3000_u64).map(|value| arena.insert(value).unwrap()).collect();
        assert_eq!(arena.len(), 3000);
        for handle in handles.iter().step_by(3) {
            assert_eq!(arena.remove(*handle).map(|value| value % 3), Some(0));
            assert_eq!(arena.remove(*handle), None);
        }
        for (value, handle) in (0..3000).zip(&handles) {
            assert_eq!(arena.get(*handle).copied(), (value % 3 != 0).then_some(value));
        }
        let chunks = arena.chunks;
        (0..1000).for_each(|value| _ = arena.insert(value).unwrap());
        assert_eq!((arena.len(), arena.chunks), (3000, chunks), "holes are filled first");
        assert_eq!(arena.get(NIL), None);
        let (mut at, mut seen) = (0, 0);
        while let Some((handle, _)) = arena.next_from(at) {
            seen += 1;
            at = handle + 1;
        }
        assert_eq!(seen, 3000);
    }

    #[test]
    fn chunks_and_their_pages_are_given_back() {
        let mut arena = Arena::new();
        let first = arena.insert(0_u64).unwrap();
        let handles: Vec<u32> = (0..100_000).map(|value| arena.insert(value).unwrap()).collect();
        // Whole chunks in the middle, then all.
        let (middle, rest) = handles.split_at(50_000);
        middle.iter().rev().for_each(|handle| _ = arena.remove(*handle));
        let chunks = arena.pages.iter().flat_map(|page| page.iter());
        let held = chunks.filter(|chunk| !chunk.slots.is_empty()).count();
        assert!(held * Arena::<u64>::PLACES < 51_000, "{held}");
        rest.iter().for_each(|handle| _ = arena.remove(*handle));
        assert_eq!((arena.chunks, arena.vacant), (2, NIL), "one is kept");
        assert!(arena.pages.len() <= 2);
        assert_eq!(arena.remove(first), Some(0));
        assert_eq!((arena.chunks, arena.len()), (1, 0), "one is kept");
        assert!(arena.insert(7) == Ok(first) && arena.get(first) == Some(&7));
    }

    #[test]
    fn what_is_promised_is_kept() {
        let mut arena = Arena::<u64>::new();
        let places = Arena::<u64>::PLACES_U32;
        for _ in 0..places + 1 {
            arena.promise().unwrap();
        }
        assert_eq!(arena.chunks, 2);
        // Others do not take the places, and do not give them back.
        let others: Vec<u32> = (0..u64::from(places)).map(|n| arena.insert(n).unwrap()).collect();
        assert_eq!(arena.places - arena.promised, places - 1);
        others.iter().for_each(|handle| _ = arena.remove(*handle));
        assert!(arena.places >= arena.promised);
        let kept: Vec<u32> = (0..places).map(|_| arena.insert_promised(1)).collect();
        assert!(kept.iter().all(|handle| arena.get(*handle) == Some(&1)));
        arena.withdraw();
        assert_eq!(arena.promised, 0);
        kept.iter().for_each(|handle| _ = arena.remove(*handle));
        assert!(arena.chunks <= 1 && arena.len == 0);
    }

    #[test]
    fn promises_that_are_withdrawn_leave_one_chunk() {
        let mut arena = Arena::<u64>::new();
        let places = 3 * Arena::<u64>::PLACES_U32;
        (0..places).for_each(|_| arena.promise().unwrap());
        assert_eq!(arena.places, places);
        (0..places).for_each(|_| arena.withdraw());
        assert_eq!((arena.places, arena.promised), (Arena::<u64>::PLACES_U32, 0));
    }

    /// Free places in all chunks, and how many chunks of the lists have some.
    fn free_places<T>(arena: &Arena<T>) -> u32 {
        let chunks = arena.pages.iter().flat_map(|page| page.iter()).take(arena.chunks as usize);
        let slots = chunks.flat_map(|chunk| chunk.slots.iter());
        slots.filter(|slot| matches!(slot, Slot::Free(_))).count().try_into().unwrap()
    }

    #[test]
    fn places_are_counted_whatever_happens() {
        let mut arena = Arena::<[u64; 60]>::new();
        let mut handles = Vec::new();
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut phase = 0;
        for round in 0..20_000 {
            if round % 500 == 0 {
                phase = next(3);
            }
            match next(10) {
                0 => arena.promise().unwrap(),
                1 if arena.promised > 0 => arena.withdraw(),
                2 if arena.promised > 0 => handles.push(arena.insert_promised([round; 60])),
                3..=6 if phase != 1 || next(4) == 0 => {
                    handles.push(arena.insert([round; 60]).unwrap());
                }
                _ if !handles.is_empty() && (phase != 0 || next(4) == 0) => {
                    let at = usize::try_from(next(handles.len() as u64)).unwrap();
                    let handle = handles.swap_remove(at);
                    assert!(arena.remove(handle).is_some(), "round {round}");
                }
                _ => {}
            }
            assert!(handles.last() != Some(&NIL), "round {round}: no place");
            assert_eq!(arena.places, free_places(&arena), "round {round}");
            assert!(arena.places >= arena.promised, "round {round}");
            assert_eq!(arena.len() as usize, handles.len());
        }
    }
}
