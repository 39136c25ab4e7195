//! A hash table of records with 32-bit handles that never moves more than a few records at a time.
//!
//! Ordinary hash tables and vectors double: now and then one insertion copies everything. A server
//! with a million nodes must not make one unlucky guest pay for that, so here
//! * records live in chunks that are never moved; a handle is a chunk number and a place in it, and a
//!   chunk without records is given back;
//! * the hash index grows by *linear hashing*: each insertion splits at most one bucket in two, each
//!   removal joins at most two. The chain of a bucket runs through the records themselves.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// "No record".
pub(super) const NIL: u32 = u32::MAX;

/// Records per chunk.
const CHUNK: u32 = 64;

/// Bucket heads per block of the index.
const BLOCK: u32 = 256;

/// The index never has fewer buckets; a power of two.
const MIN_BUCKETS: u32 = 16;

/// A record of a [`Table`].
pub(super) trait Record {
    /// The hash of the record's key; must not change while it is in the table.
    fn hash(&self, seed: u64) -> u64;
    /// The next record of the same bucket: a place for the table's use.
    fn chain(&self) -> u32;
    /// Changes the next record of the same bucket.
    fn set_chain(&mut self, next: u32);
}

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
    slots: [Slot<T>; CHUNK as usize],
    /// The first free place, or `NIL`.
    free: u32,
    used: u32,
    /// Neighbours in the list of chunks with free places.
    prev: u32,
    next: u32,
}

/// The table.
#[derive(Debug)]
#[expect(
    clippy::vec_box,
    reason = "blocks and chunks must stay where they are when the list grows"
)]
pub(super) struct Table<T> {
    /// By their numbers; `None` was given back.
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// Numbers without a chunk.
    vacant: Vec<u32>,
    /// The first chunk with free places.
    open: u32,
    len: u32,
    blocks: Vec<Box<[u32; BLOCK as usize]>>,
    /// Buckets in use: those above the largest power of two below are the halves already split off.
    buckets: u32,
    seed: u64,
}

impl<T: Record> Table<T> {
    /// Upper bound of the bytes that one insertion allocates, apart from what the record owns.
    pub(super) const INSERT_BYTES: usize =
        size_of::<Chunk<T>>() + BLOCK as usize * size_of::<u32>();

    /// An empty table, hashing with `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            chunks: Vec::new(),
            vacant: Vec::new(),
            open: NIL,
            len: 0,
            blocks: Vec::from([Box::new([NIL; BLOCK as usize])]),
            buckets: MIN_BUCKETS,
            seed,
        }
    }

    /// The seed for hashing a key that is looked for.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The record with this handle.
    pub(super) fn get(&self, handle: u32) -> Option<&T> {
        let chunk = self.chunks.get((handle / CHUNK) as usize)?.as_ref()?;
        match chunk.slots.get((handle % CHUNK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    /// The record with this handle. Its key must not be changed through this; see
    /// [`rekey`](Self::rekey).
    pub(super) fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        let chunk = self.chunk_mut(handle / CHUNK)?;
        match chunk.slots.get_mut((handle % CHUNK) as usize) {
            Some(Slot::Used(record)) => Some(record),
            _ => None,
        }
    }

    fn chunk_mut(&mut self, number: u32) -> Option<&mut Chunk<T>> {
        self.chunks.get_mut(number as usize)?.as_deref_mut()
    }

    /// The handle of the first record with this hash for which `is_it` holds.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<u32> {
        let mut handle = self.head(self.bucket(hash));
        while let Some(record) = self.get(handle) {
            if is_it(record) {
                return Some(handle);
            }
            handle = record.chain();
        }
        None
    }

    /// Adds a record and returns its handle. Does not look for an equal one.
    pub(super) fn insert(&mut self, mut record: T) -> u32 {
        if self.open == NIL {
            self.add_chunk();
        }
        self.len = self.len.saturating_add(1);
        if self.len > self.buckets {
            self.split();
        }
        let bucket = self.bucket(record.hash(self.seed));
        record.set_chain(self.head(bucket));
        let handle = self.take_place(record);
        self.set_head(bucket, handle);
        handle
    }

    /// Makes the index ready for so many records at once, instead of with each. Whether they come does not matter.
    pub(super) fn expect(&mut self, records: u32) {
        if records <= self.buckets {
            return;
        }
        let handles: Vec<u32> = self.iter().map(|(handle, _)| handle).collect();
        self.blocks.iter_mut().for_each(|block| block.fill(NIL));
        let blocks = records.div_ceil(BLOCK) as usize;
        self.blocks.resize_with(blocks, || Box::new([NIL; BLOCK as usize]));
        self.buckets = records;
        handles.into_iter().for_each(|handle| self.link(handle));
    }

    /// Upper bound of the bytes that [`expect`](Self::expect) allocates for each record that is there or expected.
    pub(super) const EXPECT_BYTES: usize = 3 * size_of::<u32>();

    /// Takes a record out.
    pub(super) fn remove(&mut self, handle: u32) -> Option<T> {
        self.get(handle)?;
        self.unlink(handle);
        let record = self.leave_place(handle)?;
        self.len = self.len.saturating_sub(1);
        // Two at a time: with one, buckets would go away only as fast as records, and half of them stay.
        for _ in 0..2 {
            if self.len < self.buckets / 2 && self.buckets > MIN_BUCKETS {
                self.join();
            }
        }
        Some(record)
    }

    /// Changes a record in a way that may change its hash.
    pub(super) fn rekey(&mut self, handle: u32, change: impl FnOnce(&mut T)) {
        if self.get(handle).is_none() {
            return;
        }
        self.unlink(handle);
        if let Some(record) = self.get_mut(handle) {
            change(record);
        }
        self.link(handle);
    }

    /// Every record with its handle, in no useful order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0_u32..).zip(&self.chunks).flat_map(|(number, chunk)| {
            let first = number.saturating_mul(CHUNK);
            let slots = chunk.iter().flat_map(|chunk| chunk.slots.iter());
            (first..).zip(slots).filter_map(|(handle, slot)| match slot {
                Slot::Used(record) => Some((handle, record)),
                Slot::Free(_) => None,
            })
        })
    }

    fn add_chunk(&mut self) {
        let mut next = 0_u32;
        let slots = core::array::from_fn(|_| {
            next = next.saturating_add(1);
            Slot::Free(if next == CHUNK { NIL } else { next })
        });
        let chunk = Some(Box::new(Chunk { slots, free: 0, used: 0, prev: NIL, next: NIL }));
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            u32::try_from(self.chunks.len()).unwrap_or(NIL).saturating_sub(1)
        });
        if let Some(place) = self.chunks.get_mut(number as usize) {
            *place = chunk;
        }
        self.open_chunk(number);
    }

    /// Puts a record into the first chunk with room, and returns its handle.
    fn take_place(&mut self, record: T) -> u32 {
        let number = self.open;
        let Some(chunk) = self.chunk_mut(number) else { return NIL };
        let place = chunk.free;
        if let Some(slot) = chunk.slots.get_mut(place as usize)
            && let Slot::Free(next) = *slot
        {
            chunk.free = next;
            *slot = Slot::Used(record);
        }
        chunk.used = chunk.used.saturating_add(1);
        if chunk.free == NIL {
            self.close_chunk(number);
        }
        number.saturating_mul(CHUNK).saturating_add(place)
    }

    /// Takes a record out of its chunk, and gives that back if it was the last.
    fn leave_place(&mut self, handle: u32) -> Option<T> {
        let number = handle / CHUNK;
        let chunk = self.chunk_mut(number)?;
        let was_full = chunk.free == NIL;
        let slot = chunk.slots.get_mut((handle % CHUNK) as usize)?;
        let old = core::mem::replace(slot, Slot::Free(chunk.free));
        chunk.free = handle % CHUNK;
        chunk.used = chunk.used.saturating_sub(1);
        let is_empty = chunk.used == 0;
        if was_full {
            self.open_chunk(number);
        }
        if is_empty {
            self.close_chunk(number);
            if let Some(place) = self.chunks.get_mut(number as usize) {
                *place = None;
            }
            self.vacant.push(number);
        }
        match old {
            Slot::Used(record) => Some(record),
            Slot::Free(_) => None,
        }
    }

    /// Puts a chunk in front of those with free places.
    fn open_chunk(&mut self, number: u32) {
        let next = core::mem::replace(&mut self.open, number);
        if let Some(chunk) = self.chunk_mut(next) {
            chunk.prev = number;
        }
        if let Some(chunk) = self.chunk_mut(number) {
            chunk.prev = NIL;
            chunk.next = next;
        }
    }

    /// Takes a chunk out of the list of those with free places.
    fn close_chunk(&mut self, number: u32) {
        let Some(chunk) = self.chunk_mut(number) else { return };
        let (prev, next) = (chunk.prev, chunk.next);
        match self.chunk_mut(prev) {
            Some(before) => before.next = next,
            None => self.open = next,
        }
        if let Some(after) = self.chunk_mut(next) {
            after.prev = prev;
        }
    }

    /// The bucket for a hash: its low bits, as many as there are buckets for.
    fn bucket(&self, hash: u64) -> u32 {
        let mask = self.buckets.next_power_of_two().wrapping_sub(1);
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
        let hash = hash as u32;
        let bucket = hash & mask;
        if bucket < self.buckets { bucket } else { hash & (mask >> 1) }
    }

    fn head(&self, bucket: u32) -> u32 {
        let block = self.blocks.get((bucket / BLOCK) as usize);
        block.and_then(|block| block.get((bucket % BLOCK) as usize)).copied().unwrap_or(NIL)
    }

    fn set_head(&mut self, bucket: u32, handle: u32) {
        let block = self.blocks.get_mut((bucket / BLOCK) as usize);
        if let Some(head) = block.and_then(|block| block.get_mut((bucket % BLOCK) as usize)) {
            *head = handle;
        }
    }

    /// Puts a record in front of its bucket's chain.
    fn link(&mut self, handle: u32) {
        let seed = self.seed;
        let Some(hash) = self.get(handle).map(|record| record.hash(seed)) else { return };
        let bucket = self.bucket(hash);
        let head = self.head(bucket);
        if let Some(record) = self.get_mut(handle) {
            record.set_chain(head);
        }
        self.set_head(bucket, handle);
    }

    /// Takes a record out of its bucket's chain.
    fn unlink(&mut self, handle: u32) {
        let Some(record) = self.get(handle) else { return };
        let (next, bucket) = (record.chain(), self.bucket(record.hash(self.seed)));
        let mut at = self.head(bucket);
        if at == handle {
            self.set_head(bucket, next);
            return;
        }
        while let Some(record) = self.get_mut(at) {
            let after = record.chain();
            if after == handle {
                record.set_chain(next);
                return;
            }
            at = after;
        }
    }

    /// Adds a bucket, and moves the records there that belong there from the one it splits.
    fn split(&mut self) {
        let new = self.buckets;
        let high = new.saturating_add(1).next_power_of_two();
        let old = new ^ (high >> 1);
        if new % BLOCK == 0 && (new / BLOCK) as usize == self.blocks.len() {
            self.blocks.push(Box::new([NIL; BLOCK as usize]));
        }
        self.buckets = new.saturating_add(1);
        let mut at = self.head(old);
        self.set_head(old, NIL);
        self.set_head(new, NIL);
        while let Some(record) = self.get(at) {
            let next = record.chain();
            self.link(at);
            at = next;
        }
    }

    /// Removes the last bucket, and moves its records back to the one it was split from.
    fn join(&mut self) {
        let last = self.buckets.saturating_sub(1);
        let mut at = self.head(last);
        self.set_head(last, NIL);
        self.buckets = last;
        while let Some(record) = self.get(at) {
            let next = record.chain();
            self.link(at);
            at = next;
        }
        if last % BLOCK == 0 && (last / BLOCK) as usize >= 1 {
            self.blocks.truncate((last / BLOCK) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Number {
        value: u64,
        chain: u32,
    }

    impl Record for Number {
        fn hash(&self, seed: u64) -> u64 {
            (self.value ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
        }
        fn chain(&self) -> u32 {
            self.chain
        }
        fn set_chain(&mut self, next: u32) {
            self.chain = next;
        }
    }

    fn find(table: &Table<Number>, value: u64) -> Option<u32> {
        let hash = Number { value, chain: NIL }.hash(table.seed());
        table.find(hash, |number| number.value == value)
    }

    #[test]
    fn everything_is_found_while_growing_and_shrinking() {
        let mut table = Table::new(7);
        for value in 0..5000 {
            table.insert(Number { value, chain: NIL });
            assert!(find(&table, value / 2).is_some());
        }
        assert_eq!(table.len(), 5000);
        assert!((0..5000).all(|value| find(&table, value).is_some()));
        for value in 0..5000 {
            let handle = find(&table, value).unwrap();
            assert_eq!(table.remove(handle).unwrap().value, value);
            assert!(find(&table, value).is_none());
            assert!(value == 4999 || find(&table, 4999).is_some());
        }
        assert_eq!(table.len(), 0);
        assert!(table.chunks.iter().all(|chunk| chunk.is_none()), "memory is given back");
        assert_eq!((table.buckets, table.blocks.len()), (MIN_BUCKETS, 1));
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn an_index_that_was_made_ready_is_as_one_that_grew() {
        for expected in [0, 16, 17, 255, 256, 257, 1000, 5000] {
            let mut table = Table::new(7);
            (0..3).for_each(|value| _ = table.insert(Number { value, chain: NIL }));
            table.expect(expected);
            assert!((0..3).all(|value| find(&table, value).is_some()));
            (3..1000).for_each(|value| _ = table.insert(Number { value, chain: NIL }));
            assert!((0..1000).all(|value| find(&table, value).is_some()), "{expected}");
            assert_eq!(table.buckets, expected.max(1000));
            for value in 0..1000 {
                let handle = find(&table, value).unwrap();
                table.remove(handle).unwrap();
            }
            // What was expected and did not come leaves as fast as what did.
            assert!(table.buckets <= expected.max(1000) - 984, "{expected}");
        }
    }

    #[test]
    fn handles_stay_and_places_are_used_again() {
        let mut table = Table::new(1);
        let first = table.insert(Number { value: 1, chain: NIL });
        let second = table.insert(Number { value: 2, chain: NIL });
        for value in 10..1000 {
            table.insert(Number { value, chain: NIL });
        }
        assert_eq!(table.get(second).unwrap().value, 2);
        table.remove(first).unwrap();
        assert!(table.get(first).is_none());
        assert_eq!(table.insert(Number { value: 3, chain: NIL }), first);
    }

    #[test]
    fn a_record_is_found_under_its_new_key() {
        let mut table = Table::new(1);
        for value in 0..100 {
            table.insert(Number { value, chain: NIL });
        }
        let handle = find(&table, 5).unwrap();
        table.rekey(handle, |number| number.value = 1000);
        assert_eq!(find(&table, 5), None);
        assert_eq!(find(&table, 1000), Some(handle));
    }
}
