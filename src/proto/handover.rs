//! The private part of a hand-over: how its fields are written and read, and the digest over everything.
//!
//! A live update hands the whole state over as a record stream ([`stream`](super::stream)), followed by a private
//! part with all that the stream's document leaves out. The private part is for this program only and has a
//! version of its own ([`HANDOVER`]). Its fields follow each other in a fixed order, little endian, without gaps,
//! so the same state always gives the same bytes.
//!
//! Nearly all of a state is nodes. Before version 4 they are in the stream, each with its whole path. From version
//! 4 on they are in the *tail* of the private part, each with its place below the one before. So each name is
//! written only as often as the store has it. A successor reads the tail through a [`Source`], piece by piece;
//! what was read may be gone.
//!
//! Both parts are untrusted bytes: every length is checked before it is used.

use super::sentence::Sentence;
use super::stream::{OutOfRoom, Sink};
use crate::mem::{NoMemory, TryVec};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
pub use xen_kernel_rt::digest::Digest;

/// The versions of the private part that this program reads; it writes any of them.
///
/// 1: the first. 2: also how many requests are left until the next one is measured. 3: also the sum of request times, how
/// often the server was replaced and restarted, what was refused and told, and each kind of lines has a ration. 4: nodes in the tail; other
/// prices, so the memory that a domain is said to use by an older version is counted anew, and it is said without
/// permission lists; the failures of the last minute.
pub const HANDOVER: RangeInclusive<u32> = 1..=NEWEST;

/// With the feature `handover-1` the image behaves at a hand-over like one from before version 2. Tests of an
/// upgrade and a downgrade need that.
const NEWEST: u32 = if cfg!(feature = "handover-1") { 1 } else { 4 };

/// The first version that has a tail.
pub const TAIL_SINCE: u32 = 4;

/// The first version that tells of failures.
pub const FAILURES_SINCE: u32 = 4;

/// The first version with the prices of today.
pub const PRICES_SINCE: u32 = 4;

/// The private part ends where more was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Short;

impl From<Short> for Sentence {
    fn from(_: Short) -> Self {
        Self::from("the private part ends too early")
    }
}

/// Writes fields.
#[derive(Debug)]
pub struct FieldWriter<'a, S>(pub &'a mut S);

impl<S: Sink> FieldWriter<'_, S> {
    /// One byte.
    ///
    /// # Errors
    /// The sink is full; so for all others.
    pub fn u8(&mut self, value: u8) -> Result<(), OutOfRoom> {
        self.0.append(&[value])
    }

    /// A flag.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn flag(&mut self, value: bool) -> Result<(), OutOfRoom> {
        self.u8(u8::from(value))
    }

    /// Two bytes.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u16(&mut self, value: u16) -> Result<(), OutOfRoom> {
        self.0.append(&value.to_le_bytes())
    }

    /// Four bytes.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u32(&mut self, value: u32) -> Result<(), OutOfRoom> {
        self.0.append(&value.to_le_bytes())
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn u64(&mut self, value: u64) -> Result<(), OutOfRoom> {
        self.0.append(&value.to_le_bytes())
    }

    /// Eight bytes with a sign.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn i64(&mut self, value: i64) -> Result<(), OutOfRoom> {
        self.0.append(&value.to_le_bytes())
    }

    /// A flag, and eight bytes if it is set.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn maybe_u64(&mut self, value: Option<u64>) -> Result<(), OutOfRoom> {
        self.flag(value.is_some())?;
        value.map_or(Ok(()), |value| self.u64(value))
    }

    /// A flag, and four bytes if it is set.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn maybe_u32(&mut self, value: Option<u32>) -> Result<(), OutOfRoom> {
        self.flag(value.is_some())?;
        value.map_or(Ok(()), |value| self.u32(value))
    }

    /// How many things follow; four bytes.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn count(&mut self, value: usize) -> Result<(), OutOfRoom> {
        self.u32(u32::try_from(value).map_err(|_| OutOfRoom)?)
    }

    /// Bytes with their number in front.
    ///
    /// # Errors
    /// As [`u8`](Self::u8).
    pub fn bytes(&mut self, value: &[u8]) -> Result<(), OutOfRoom> {
        self.count(value.len())?;
        self.0.append(value)
    }
}

/// Reads fields.
#[derive(Clone, Debug)]
pub struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    /// From the first of these bytes on.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// Exactly so many bytes.
    ///
    /// # Errors
    /// [`Short`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Short)?;
        self.0 = rest;
        Ok(*first)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`Short`]; so for all others.
    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(|[byte]| byte)
    }

    /// A flag; whatever is not 0 is set.
    ///
    /// # Errors
    /// [`Short`].
    pub fn flag(&mut self) -> Result<bool, Short> {
        Ok(self.u8()? != 0)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`Short`].
    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`Short`].
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`Short`].
    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes with a sign.
    ///
    /// # Errors
    /// [`Short`].
    pub fn i64(&mut self) -> Result<i64, Short> {
        self.array().map(i64::from_le_bytes)
    }

    /// A flag, and eight bytes if it is set.
    ///
    /// # Errors
    /// [`Short`].
    pub fn maybe_u64(&mut self) -> Result<Option<u64>, Short> {
        if self.flag()? { self.u64().map(Some) } else { Ok(None) }
    }

    /// A flag, and four bytes if it is set.
    ///
    /// # Errors
    /// [`Short`].
    pub fn maybe_u32(&mut self) -> Result<Option<u32>, Short> {
        if self.flag()? { self.u32().map(Some) } else { Ok(None) }
    }

    /// How many things follow, each of at least `size` bytes. More than the bytes can hold is an error.
    ///
    /// # Errors
    /// [`Short`].
    pub fn count(&mut self, size: usize) -> Result<usize, Short> {
        let count = self.u32()? as usize;
        let fits = count.checked_mul(size).is_some_and(|bytes| bytes <= self.0.len());
        if fits { Ok(count) } else { Err(Short) }
    }

    /// Bytes with their number in front.
    ///
    /// # Errors
    /// [`Short`].
    pub fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let count = self.count(1)?;
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Short)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// Bytes that are read once, from front to back.
pub trait Source {
    /// Fills `into` with the next bytes.
    ///
    /// # Errors
    /// [`Short`]: there are fewer.
    fn read(&mut self, into: &mut [u8]) -> Result<(), Short>;

    /// How many bytes are left.
    fn left(&self) -> usize;
}

impl Source for &[u8] {
    fn read(&mut self, into: &mut [u8]) -> Result<(), Short> {
        let (first, rest) = self.split_at_checked(into.len()).ok_or(Short)?;
        into.copy_from_slice(first);
        *self = rest;
        Ok(())
    }

    fn left(&self) -> usize {
        self.len()
    }
}

/// Why a [`Tail`] gave nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TailError {
    /// It ends where more was expected.
    Short,
    /// There is no memory for the piece.
    NoMemory,
}

impl From<Short> for TailError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

impl From<TailError> for Sentence {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Short => Short.into(),
            TailError::NoMemory => Self::from("there is not enough memory to read the state"),
        }
    }
}

/// Bytes that are asked of a [`Source`] at a time.
const PULLED: usize = 2032;

/// Reads fields from a [`Source`]. What was read stays until more is asked for.
#[derive(Debug)]
pub struct Tail<'a, S> {
    source: &'a mut S,
    bytes: Vec<u8>,
    at: usize,
}

impl<'a, S: Source> Tail<'a, S> {
    /// From the first byte on.
    pub fn new(source: &'a mut S) -> Self {
        Self { source, bytes: Vec::new(), at: 0 }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.source.left().saturating_add(self.bytes.len()).saturating_sub(self.at)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`TailError`].
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&[u8], TailError> {
        let start = self.at;
        let end = start.saturating_add(len);
        if end <= self.bytes.len() {
            self.at = end;
            return self.bytes.get(start..end).ok_or(TailError::Short);
        }
        self.pull(len)?;
        self.at = len;
        self.bytes.get(..len).ok_or(TailError::Short)
    }

    /// Moves the unread bytes to the front, and fills up after them until `len` bytes are there.
    #[inline(never)]
    fn pull(&mut self, len: usize) -> Result<(), TailError> {
        if len > self.left() {
            return Err(TailError::Short);
        }
        let kept = self.bytes.len().saturating_sub(self.at);
        self.bytes.copy_within(self.at.., 0);
        self.bytes.truncate(kept);
        self.at = 0;
        let wanted = len.max(PULLED).saturating_sub(kept).min(self.source.left());
        let resized = self.bytes.try_resize(kept.saturating_add(wanted), 0);
        resized.map_err(|NoMemory| TailError::NoMemory)?;
        Ok(self.source.read(self.bytes.get_mut(kept..).unwrap_or(&mut []))?)
    }

    /// Fields of a fixed length.
    ///
    /// # Errors
    /// [`TailError`].
    pub fn fields(&mut self, len: usize) -> Result<FieldReader<'_>, TailError> {
        self.take(len).map(FieldReader::new)
    }
}

impl Sink for Digest {
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        self.add(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_gives_the_same_bytes_whatever_is_asked_for() {
        let bytes: Vec<u8> = (0..=255_u8).cycle().take(20_000).collect();
        for step in [1, 7, 15, 1000, 2031, 2032, 2033, 5000, 20_000] {
            let mut source = &bytes[..];
            let mut tail = Tail::new(&mut source);
            let (mut at, mut small) = (0, false);
            while !tail.is_empty() {
                let len = if small { 3 } else { step }.min(tail.left());
                assert_eq!(tail.take(len).unwrap(), &bytes[at..at + len]);
                at += len;
                small = !small;
            }
            assert_eq!(at, bytes.len());
            assert_eq!(tail.take(1), Err(TailError::Short));
        }
        let mut source = &bytes[..5];
        let mut tail = Tail::new(&mut source);
        assert_eq!(tail.take(6), Err(TailError::Short));
        assert_eq!(tail.take(5).unwrap(), &bytes[..5]);
    }

    #[test]
    fn fields_come_back_and_counts_are_bounded() {
        let mut bytes = Vec::new();
        let mut writer = FieldWriter(&mut bytes);
        writer.u16(0x1234).unwrap();
        writer.maybe_u64(Some(7)).unwrap();
        writer.maybe_u32(None).unwrap();
        writer.i64(-5).unwrap();
        writer.bytes(b"abc").unwrap();
        let mut reader = FieldReader::new(&bytes);
        assert_eq!(reader.u16(), Ok(0x1234));
        assert_eq!((reader.maybe_u64(), reader.maybe_u32()), (Ok(Some(7)), Ok(None)));
        assert_eq!((reader.i64(), reader.bytes()), (Ok(-5), Ok(&b"abc"[..])));
        assert!(reader.is_empty());
        assert_eq!(reader.u8(), Err(Short));
        assert_eq!(FieldReader::new(&[9, 0, 0, 0, 1]).bytes(), Err(Short));
        assert_eq!(FieldReader::new(&[2, 0, 0, 0, 1, 2, 3]).count(2), Err(Short));
    }
}
