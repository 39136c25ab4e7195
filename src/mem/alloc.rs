//! The calls that allocate. The layers that guests reach use only these. The type of each says that there may be
//! no memory.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "the one place for them, each behind a try_reserve"
    )
)]

use super::{NoMemory, block_bytes};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

/// One value in a block of its own.
#[derive(Debug)]
pub struct Boxed<T>(Box<[T; 1]>);

impl<T> Boxed<T> {
    /// Moves a value into a block of its own.
    ///
    /// # Errors
    /// There is no memory; the value is lost.
    pub fn new(value: T) -> Result<Self, NoMemory> {
        let mut one = try_with_capacity(1)?;
        one.push(value);
        one.into_boxed_slice().try_into().map(Self).map_err(|_| NoMemory)
    }

    /// The value, without its block.
    #[must_use]
    pub fn into_inner(self) -> T {
        let [value] = *self.0;
        value
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}

/// Bytes that the allocator takes for a list's capacity, apart from what its elements own.
#[must_use]
pub fn room_bytes<T>(list: &Vec<T>) -> usize {
    block_bytes(list.capacity().saturating_mul(size_of::<T>()))
}

/// An empty list with room for so many.
///
/// # Errors
/// There is no memory.
pub fn try_with_capacity<T>(capacity: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
    Ok(list)
}

/// A copy of a string in a block of its length; none for the empty one.
///
/// # Errors
/// There is no memory.
pub fn try_bytes(from: &[u8]) -> Result<Box<[u8]>, NoMemory> {
    try_slice(from)
}

/// A copy of a slice in a block of its length; none for the empty one.
///
/// # Errors
/// There is no memory.
pub fn try_slice<T: Copy>(from: &[T]) -> Result<Box<[T]>, NoMemory> {
    let mut list = try_with_capacity(from.len())?;
    list.extend_from_slice(from);
    // The room is exact, so nothing is moved.
    Ok(list.into_boxed_slice())
}

/// A list in a block of its length. It was [made](try_with_capacity) with exactly that capacity.
///
/// # Errors
/// It was not, so that it would have to be moved.
pub fn try_boxed<T>(list: Vec<T>) -> Result<Box<[T]>, NoMemory> {
    if list.len() == list.capacity() { Ok(list.into_boxed_slice()) } else { Err(NoMemory) }
}

/// A block of so many copies of a value.
///
/// # Errors
/// There is no memory.
pub fn try_fill<T: Copy>(len: usize, value: T) -> Result<Box<[T]>, NoMemory> {
    let mut list = try_with_capacity(len)?;
    list.resize(len, value);
    Ok(list.into_boxed_slice())
}

/// A block of `N` values, each made from its place.
///
/// # Errors
/// There is no memory.
pub fn try_array<T, const N: usize>(make: impl Fn(usize) -> T) -> Result<Box<[T; N]>, NoMemory> {
    let mut list = try_with_capacity(N)?;
    list.extend((0..N).map(make));
    list.into_boxed_slice().try_into().map_err(|_| NoMemory)
}

/// The operations of a [`Vec`] where there may be no memory. After a refusal it is as it was before.
pub trait TryVec<T> {
    /// Appends one.
    ///
    /// # Errors
    /// There is no memory; the value is lost.
    fn try_push(&mut self, value: T) -> Result<(), NoMemory>;

    /// Appends copies.
    ///
    /// # Errors
    /// There is no memory.
    fn try_extend(&mut self, from: &[T]) -> Result<(), NoMemory>
    where
        T: Copy;

    /// Makes the list so long; new elements get this value.
    ///
    /// # Errors
    /// There is no memory.
    fn try_resize(&mut self, len: usize, value: T) -> Result<(), NoMemory>
    where
        T: Copy;

    /// Makes room for so many more.
    ///
    /// # Errors
    /// There is no memory.
    fn try_room(&mut self, more: usize) -> Result<(), NoMemory>;
}

impl<T> TryVec<T> for Vec<T> {
    #[inline]
    fn try_push(&mut self, value: T) -> Result<(), NoMemory> {
        self.try_room(1)?;
        self.push(value);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, from: &[T]) -> Result<(), NoMemory>
    where
        T: Copy,
    {
        self.try_room(from.len())?;
        self.extend_from_slice(from);
        Ok(())
    }

    #[inline]
    fn try_resize(&mut self, len: usize, value: T) -> Result<(), NoMemory>
    where
        T: Copy,
    {
        let more = len.saturating_sub(self.len());
        self.try_reserve_exact(more).map_err(|_| NoMemory)?;
        self.resize(len, value);
        Ok(())
    }

    #[inline]
    fn try_room(&mut self, more: usize) -> Result<(), NoMemory> {
        self.try_reserve(more).map_err(|_| NoMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_away_comes_back() {
        let mut boxed = Boxed::new(7_u64).unwrap();
        *boxed += 1;
        assert_eq!((*boxed, boxed.into_inner()), (8, 8));
        assert_eq!(*try_bytes(b"abc").unwrap(), *b"abc");
        assert_eq!(try_bytes(b"").unwrap().len(), 0);
        assert_eq!(*try_array::<_, 3>(|place| place * 2).unwrap(), [0, 2, 4]);
    }

    #[test]
    fn what_no_memory_can_hold_is_refused_and_changes_nothing() {
        let mut list = Vec::from([1_u64]);
        assert_eq!(list.try_room(usize::MAX / 16), Err(NoMemory));
        assert_eq!(list, [1]);
        assert!(try_with_capacity::<u64>(usize::MAX / 16).is_err());
    }
}
