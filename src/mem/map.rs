//! A map from small numbers to values. Unlike a hash map it needs no single large block.

use super::table::{Record, Table};
use super::{NIL, NoMemory};
use core::cell::Cell;

/// A key: a number that identifies it.
pub trait Key: Copy + Eq {
    /// The number.
    fn bits(self) -> u64;
}

impl Key for u64 {
    fn bits(self) -> u64 {
        self
    }
}

impl Key for u32 {
    fn bits(self) -> u64 {
        u64::from(self)
    }
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    chain: u32,
}

/// A number's hash, whose low bits are good.
fn mix(seed: u64, bits: u64) -> u64 {
    let mixed = (bits ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl<K: Key, V> Record for Entry<K, V> {
    fn hash(&self, seed: u64) -> u64 {
        mix(seed, self.key.bits())
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// The map. An entry has a handle, too, which stays the same while the entry is there.
#[derive(Debug)]
pub struct Map<K, V> {
    table: Table<Entry<K, V>>,
    /// The place of the last entry that was looked up: it is often looked up again at once.
    last: Cell<u32>,
}

impl<K: Key, V> Map<K, V> {
    /// What an entry takes at most.
    pub const RECORD_BYTES: usize = Table::<Entry<K, V>>::RECORD_BYTES;

    /// An empty map, hashing with `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { table: Table::new(seed), last: Cell::new(NIL) }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it takes of the allocator, apart from what the values own.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.table.taken()
    }

    /// The handle of an entry.
    #[must_use]
    pub fn find(&self, key: K) -> Option<u32> {
        let last = self.last.get();
        if self.table.get(last).is_some_and(|entry| entry.key == key) {
            return Some(last);
        }
        let hash = mix(self.table.seed(), key.bits());
        let found = self.table.find(hash, |entry| entry.key == key)?;
        self.last.set(found);
        Some(found)
    }

    /// Whether there is an entry.
    #[must_use]
    pub fn contains(&self, key: K) -> bool {
        self.find(key).is_some()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: K) -> Option<&V> {
        let handle = self.find(key)?;
        self.table.get(handle).map(|entry| &entry.value)
    }

    /// The value of a key.
    #[must_use]
    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let handle = self.find(key)?;
        self.table.get_mut(handle).map(|entry| &mut entry.value)
    }

    /// The entry with this handle.
    #[must_use]
    pub fn at(&self, handle: u32) -> Option<(K, &V)> {
        self.table.get(handle).map(|entry| (entry.key, &entry.value))
    }

    /// The entry with this handle.
    #[must_use]
    pub fn at_mut(&mut self, handle: u32) -> Option<(K, &mut V)> {
        self.table.get_mut(handle).map(|entry| (entry.key, &mut entry.value))
    }

    /// Sets the value of a key, and returns the old one.
    ///
    /// # Errors
    /// There is no memory; the map is as before.
    pub fn insert(&mut self, key: K, value: V) -> Result<Option<V>, NoMemory> {
        match self.get_mut(key) {
            Some(old) => Ok(Some(core::mem::replace(old, value))),
            None => {
                let _handle = self.table.insert(Entry { key, value, chain: NIL })?;
                Ok(None)
            }
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let handle = self.find(key)?;
        self.table.remove(handle).map(|entry| entry.value)
    }

    /// Every entry, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.table.iter().map(|(_, entry)| (entry.key, &entry.value))
    }

    /// Every entry, in no useful order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut V)> {
        self.table.iter_mut().map(|(_, entry)| (entry.key, &mut entry.value))
    }

    /// The first entry whose handle is at least this one, with its handle: for going through all in slices.
    #[must_use]
    pub fn next_from(&self, handle: u32) -> Option<(u32, K, &V)> {
        self.table.next_from(handle).map(|(handle, entry)| (handle, entry.key, &entry.value))
    }

    /// Keeps a place for an entry, so that a later [`insert_promised`](Self::insert_promised) cannot fail.
    ///
    /// # Errors
    /// There is no memory.
    pub fn promise(&mut self) -> Result<(), NoMemory> {
        self.table.promise()
    }

    /// Gives a place back that was kept.
    pub fn withdraw(&mut self) {
        self.table.withdraw();
    }

    /// Adds an entry, whose key must not be there, in a place that was kept.
    pub fn insert_promised(&mut self, key: K, value: V) {
        let _handle = self.table.insert_promised(Entry { key, value, chain: NIL });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_a_map() {
        let mut map = Map::new(5);
        for number in 0..1000_u32 {
            assert_eq!(map.insert(number, number), Ok(None));
        }
        assert_eq!(map.insert(7_u32, 8), Ok(Some(7)));
        assert_eq!((map.get(7_u32), map.get(1000_u32), map.len()), (Some(&8), None, 1000));
        map.iter_mut().for_each(|(_, value)| *value += 1);
        let (mut at, mut sum) = (0, 0);
        while let Some((handle, _, value)) = map.next_from(at) {
            sum += value;
            at = handle + 1;
        }
        assert_eq!(sum, 1000 * 999 / 2 + 1 + 1000);
        assert_eq!(map.iter().count(), 1000);
        for number in 0..1000_u32 {
            assert!(map.remove(number).is_some() && !map.contains(number));
        }
        assert!(map.is_empty() && map.next_from(0).is_none());
    }
}
