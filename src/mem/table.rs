//! A hash table of records with 32-bit handles that never moves more than a few records at a time.
//!
//! The records are in an [`Arena`], which never moves them. The hash index grows by *linear hashing*: each
//! insertion splits at most one bucket in two, and each removal joins at most a few. The chain of a bucket runs
//! through the records themselves. If there is no memory for more buckets, the chains get longer until there is.
//! So the index is never a reason to refuse a record.

use super::arena::Arena;
use super::{NIL, NoMemory, TryVec, block_bytes, room_bytes, try_array};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Bucket heads per block of the index: a page.
const BLOCK: u32 = 1024;

/// The index never has fewer buckets; a power of two.
const MIN_BUCKETS: u32 = 16;

/// With more than so many buckets for each record, a removal makes the index smaller. It does not do so as soon as
/// there are more buckets than records: many removals in a row are common, and an empty bucket is joined faster
/// than a full one.
const SPARE: u32 = 4;

/// A record of a [`Table`].
pub trait Record {
    /// The hash of the record's key; must not change while it is in the table.
    fn hash(&self, seed: u64) -> u64;
    /// The next record of the same bucket: a place for the table's use.
    fn chain(&self) -> u32;
    /// Changes the next record of the same bucket.
    fn set_chain(&mut self, next: u32);
    /// Whether it can be found by its key. It is asked only for records that were ever made
    /// [without that](Table::insert_unlisted) or [lost it](Table::unlist).
    fn is_listed(&self) -> bool {
        true
    }
}

/// The table.
#[derive(Debug)]
pub struct Table<T> {
    records: Arena<T>,
    /// In separate blocks, so that they stay where they are when the list grows.
    blocks: Vec<Box<[u32; BLOCK as usize]>>,
    /// Buckets in use: those above the largest power of two below are the halves already split off.
    buckets: u32,
    /// One less than the power of two that is not less than `buckets`.
    mask: u32,
    seed: u64,
}

impl<T: Record> Table<T> {
    /// Upper bound of the bytes that one insertion allocates, apart from what the record owns.
    pub const INSERT_BYTES: usize = Arena::<T>::INSERT_BYTES + BLOCK as usize * size_of::<u32>();

    /// The most bytes that a record takes with its place in the index, while the table does not shrink.
    pub const RECORD_BYTES: usize = Arena::<T>::RECORD_BYTES + size_of::<u32>();

    /// An empty table, hashing with `seed`. The index comes with the first record.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { records: Arena::new(), blocks: Vec::new(), buckets: 0, mask: 0, seed }
    }

    /// The seed for hashing a key that is looked for.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len() as usize
    }

    /// Bytes that it takes of the allocator, apart from what the records own.
    #[must_use]
    pub fn taken(&self) -> usize {
        let block = const { block_bytes(BLOCK as usize * size_of::<u32>()) };
        let blocks = self.blocks.len().saturating_mul(block);
        self.records.taken().saturating_add(blocks).saturating_add(room_bytes(&self.blocks))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record with this handle.
    #[inline]
    #[must_use]
    pub fn get(&self, handle: u32) -> Option<&T> {
        self.records.get(handle)
    }

    /// The record with this handle. Its key must not be changed through this; see
    /// [`rekey`](Self::rekey).
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        self.records.get_mut(handle)
    }

    /// The handle of the first record with this hash for which `is_it` holds.
    pub fn find(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<u32> {
        let mut handle = self.head(self.bucket(hash));
        while let Some(record) = self.get(handle) {
            if is_it(record) {
                return Some(handle);
            }
            handle = record.chain();
        }
        None
    }

    /// As [`find`](Self::find). `is_it` may change the record that it accepts, but not its key.
    pub fn find_mut(&mut self, hash: u64, is_it: impl Fn(&mut T) -> bool) -> Option<u32> {
        let mut handle = self.head(self.bucket(hash));
        while let Some(record) = self.records.get_mut(handle) {
            if is_it(record) {
                return Some(handle);
            }
            handle = record.chain();
        }
        None
    }

    /// Adds a record and returns its handle. Does not look for an equal one.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the record is lost.
    pub fn insert(&mut self, record: T) -> Result<u32, NoMemory> {
        let hash = record.hash(self.seed);
        self.insert_hashed(hash, record)
    }

    /// As [`insert`](Self::insert), for a record whose hash is known.
    ///
    /// # Errors
    /// As there.
    // So that a record is made where it stays.
    #[inline(always)]
    pub fn insert_hashed(&mut self, hash: u64, mut record: T) -> Result<u32, NoMemory> {
        if self.records.len() >= self.buckets {
            self.split();
            // Without a single bucket no record is ever found.
            if self.buckets == 0 {
                return Err(NoMemory);
            }
        }
        let bucket = self.bucket(hash);
        record.set_chain(self.head(bucket));
        let handle = self.records.insert(record)?;
        self.set_head(bucket, handle);
        Ok(handle)
    }

    /// Adds a record that is not found by its key until [`list`](Self::list). Until then [`Record::is_listed`] is
    /// `false`.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the record is lost.
    pub fn insert_unlisted(&mut self, record: T) -> Result<u32, NoMemory> {
        if self.buckets == 0 {
            self.split();
            if self.buckets == 0 {
                return Err(NoMemory);
            }
        }
        self.records.insert(record)
    }

    /// Makes a record found by its key from now on.
    pub fn list(&mut self, handle: u32) {
        if self.records.len() > self.buckets {
            self.split();
        }
        self.link(handle);
    }

    /// Makes a record not found by its key any more.
    pub fn unlist(&mut self, handle: u32) {
        let Some(record) = self.get(handle) else { return };
        let (hash, chain) = (record.hash(self.seed), record.chain());
        self.unlink(handle, hash, chain);
    }

    /// Promises a place for a record, so that a later [`insert_promised`](Self::insert_promised) cannot fail.
    ///
    /// # Errors
    /// There is no memory.
    pub fn promise(&mut self) -> Result<(), NoMemory> {
        if self.buckets == 0 {
            self.split();
            if self.buckets == 0 {
                return Err(NoMemory);
            }
        }
        self.records.promise()
    }

    /// Gives a place back that was kept.
    pub fn withdraw(&mut self) {
        self.records.withdraw();
        if self.records.has_no_place() {
            self.fit(0);
        }
    }

    /// As [`insert`](Self::insert), in a place that was [kept](Self::promise).
    pub fn insert_promised(&mut self, mut record: T) -> u32 {
        if self.records.len() >= self.buckets {
            self.split();
        }
        let bucket = self.bucket(record.hash(self.seed));
        record.set_chain(self.head(bucket));
        let handle = self.records.insert_promised(record);
        self.set_head(bucket, handle);
        handle
    }

    /// Makes the index ready for so many records at once, instead of with each. The records need not come. If
    /// there is no memory for that, the index grows with the records as always.
    pub fn expect(&mut self, records: u32) {
        if records <= self.buckets {
            return;
        }
        let blocks = records.div_ceil(BLOCK) as usize;
        let more = blocks.saturating_sub(self.blocks.len());
        if self.blocks.try_room(more).is_err() {
            return;
        }
        while self.blocks.len() < blocks {
            let Ok(block) = try_array(|_| NIL) else { break };
            if self.blocks.try_push(block).is_err() {
                break;
            }
        }
        let room = u32::try_from(self.blocks.len()).unwrap_or(0).saturating_mul(BLOCK);
        self.rebuild(records.min(room));
    }

    /// Makes the index anew with so many buckets, for which there are blocks.
    fn rebuild(&mut self, buckets: u32) {
        self.blocks.iter_mut().for_each(|block| block.fill(NIL));
        self.blocks.truncate(buckets.div_ceil(BLOCK) as usize);
        self.set_buckets(buckets);
        // Not a list of those that exist: there may be no memory for it.
        for handle in 0..self.records.bound() {
            if self.get(handle).is_some_and(Record::is_listed) {
                self.link(handle);
            }
        }
    }

    /// Upper bound of the bytes that [`expect`](Self::expect) allocates for each record that is there or expected.
    pub const EXPECT_BYTES: usize = 3 * size_of::<u32>();

    /// Takes a record out.
    pub fn remove(&mut self, handle: u32) -> Option<T> {
        let record = self.take(handle);
        self.fit(1);
        record
    }

    /// As [`remove`](Self::remove), for one of many: [`fit`](Self::fit) has to follow.
    // So that a record that nobody wants is not moved.
    #[inline(always)]
    pub fn take(&mut self, handle: u32) -> Option<T> {
        self.take_if(handle, |_| true)
    }

    /// As [`take`](Self::take), but only if it is the wanted record.
    #[inline(always)]
    pub fn take_if(&mut self, handle: u32, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let record = self.records.remove_if(handle, is_wanted)?;
        if record.is_listed() {
            self.unlink(handle, record.hash(self.seed), record.chain());
        }
        Some(record)
    }

    /// Makes the index smaller if it is too large. The number of removals before bounds the work.
    pub fn fit(&mut self, removed: u32) {
        let len = self.records.len();
        let is_small = self.buckets <= MIN_BUCKETS && !self.records.has_no_place();
        if len >= self.buckets / SPARE || is_small {
            return;
        }
        self.shrink(len, removed);
    }

    #[cold]
    fn shrink(&mut self, len: u32, removed: u32) {
        if self.records.has_no_place() {
            // Nothing is left, and nothing is promised.
            self.blocks = Vec::new();
            (self.buckets, self.mask) = (0, 0);
            return;
        }
        // Unless the records left are spread over places that were others'.
        if removed > len && self.records.bound() / SPARE <= removed {
            self.rebuild(len.max(MIN_BUCKETS));
            return;
        }
        // As many as a table has to lose that loses all its records.
        let joins = removed.saturating_mul(SPARE);
        let wanted = self.buckets.saturating_sub(joins).max(len).max(MIN_BUCKETS);
        while self.buckets > wanted {
            self.drop_empty(wanted);
            if self.buckets > wanted {
                self.join();
            }
        }
        self.blocks.truncate(self.buckets.div_ceil(BLOCK) as usize);
    }

    /// Changes a record in a way that may change its hash.
    pub fn rekey(&mut self, handle: u32, change: impl FnOnce(&mut T)) {
        let Some(record) = self.get(handle) else { return };
        let (hash, chain) = (record.hash(self.seed), record.chain());
        self.unlink(handle, hash, chain);
        if let Some(record) = self.get_mut(handle) {
            change(record);
        }
        self.link(handle);
    }

    /// Every record with its handle, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.records.iter()
    }

    /// Every record with its handle, in no useful order. Keys must not be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.records.iter_mut()
    }

    /// The first record whose handle is at least this one, with its handle: for going through all in slices.
    #[must_use]
    pub fn next_from(&self, handle: u32) -> Option<(u32, &T)> {
        self.records.next_from(handle)
    }

    /// The bucket for a hash: its low bits, as many as the number of buckets needs.
    fn bucket(&self, hash: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
        let bucket = hash as u32 & self.mask;
        if bucket < self.buckets { bucket } else { bucket & (self.mask >> 1) }
    }

    fn head(&self, bucket: u32) -> u32 {
        let block = self.blocks.get((bucket / BLOCK) as usize);
        block.and_then(|block| block.get((bucket % BLOCK) as usize)).copied().unwrap_or(NIL)
    }

    fn head_mut(&mut self, bucket: u32) -> Option<&mut u32> {
        let block = self.blocks.get_mut((bucket / BLOCK) as usize)?;
        block.get_mut((bucket % BLOCK) as usize)
    }

    fn set_head(&mut self, bucket: u32, handle: u32) {
        if let Some(head) = self.head_mut(bucket) {
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

    /// Takes a record with this hash out of its bucket's chain, in which `next` follows it.
    fn unlink(&mut self, handle: u32, hash: u64, next: u32) {
        let bucket = self.bucket(hash);
        let Some(head) = self.head_mut(bucket) else { return };
        if *head == handle {
            *head = next;
            return;
        }
        let mut at = *head;
        while let Some(record) = self.get_mut(at) {
            let after = record.chain();
            if after == handle {
                record.set_chain(next);
                return;
            }
            at = after;
        }
    }

    /// Adds a bucket, and moves the records into it that belong there from the bucket that it splits. Without
    /// memory for more buckets nothing happens.
    fn split(&mut self) {
        let new = self.buckets;
        if new % BLOCK == 0 && (new / BLOCK) as usize == self.blocks.len() && !self.add_block() {
            return;
        }
        if new == 0 {
            (self.buckets, self.mask) = (MIN_BUCKETS, MIN_BUCKETS.wrapping_sub(1));
            return;
        }
        let high = new.saturating_add(1).next_power_of_two();
        let old = new ^ (high >> 1);
        self.buckets = new.saturating_add(1);
        self.mask = high.wrapping_sub(1);
        let mut at = self.head(old);
        self.set_head(old, NIL);
        self.set_head(new, NIL);
        while let Some(record) = self.get(at) {
            let next = record.chain();
            self.link(at);
            at = next;
        }
    }

    /// Adds a block of bucket heads; `false` if there is no memory for it.
    #[cold]
    fn add_block(&mut self) -> bool {
        let block = try_array(|_| NIL);
        block.and_then(|block| self.blocks.try_push(block)).is_ok()
    }

    /// Removes the last buckets that are empty and of one block. In an index that is too large most are.
    fn drop_empty(&mut self, wanted: u32) {
        let last = self.buckets.wrapping_sub(1);
        let start = last & !(BLOCK - 1);
        let Some(block) = self.blocks.get((start / BLOCK) as usize) else { return };
        let heads = block.get(..=(last % BLOCK) as usize).unwrap_or_default();
        let most = self.buckets.wrapping_sub(wanted.max(start)) as usize;
        let empty = heads.iter().rev().take(most).take_while(|head| **head == NIL).count();
        #[expect(clippy::cast_possible_truncation, reason = "no more than a block has")]
        self.set_buckets(self.buckets.wrapping_sub(empty as u32));
    }

    fn set_buckets(&mut self, buckets: u32) {
        self.buckets = buckets;
        self.mask = buckets.next_power_of_two().wrapping_sub(1);
    }

    /// Removes the last bucket, and moves its records back to the one it was split from.
    fn join(&mut self) {
        let last = self.buckets.wrapping_sub(1);
        self.set_buckets(last);
        let Some(head) = self.head_mut(last) else { return };
        let mut at = core::mem::replace(head, NIL);
        while at != NIL {
            let Some(next) = self.get(at).map(Record::chain) else { break };
            self.link(at);
            at = next;
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
            table.insert(Number { value, chain: NIL }).unwrap();
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
        assert!(table.records.chunks() <= 1 && table.blocks.len() <= 1, "memory is given back");
        assert_eq!((table.buckets, table.blocks.len()), (MIN_BUCKETS, 1));
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn an_index_that_was_made_ready_is_as_one_that_grew() {
        for expected in [0, 16, 17, 255, 256, 257, 1000, 5000] {
            let mut table = Table::new(7);
            (0..3).for_each(|value| _ = table.insert(Number { value, chain: NIL }).unwrap());
            table.expect(expected);
            assert!((0..3).all(|value| find(&table, value).is_some()));
            (3..1000).for_each(|value| _ = table.insert(Number { value, chain: NIL }).unwrap());
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
        let first = table.insert(Number { value: 1, chain: NIL }).unwrap();
        let second = table.insert(Number { value: 2, chain: NIL }).unwrap();
        for value in 10..1000 {
            table.insert(Number { value, chain: NIL }).unwrap();
        }
        assert_eq!(table.get(second).unwrap().value, 2);
        table.remove(first).unwrap();
        assert!(table.get(first).is_none());
        assert_eq!(table.insert(Number { value: 3, chain: NIL }), Ok(first));
    }

    #[test]
    fn a_record_is_found_under_its_new_key() {
        let mut table = Table::new(1);
        for value in 0..100 {
            table.insert(Number { value, chain: NIL }).unwrap();
        }
        let handle = find(&table, 5).unwrap();
        table.rekey(handle, |number| number.value = 1000);
        assert_eq!(find(&table, 5), None);
        assert_eq!(find(&table, 1000), Some(handle));
    }
}
