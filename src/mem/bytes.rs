//! Short byte strings that need no allocation: most values and names of a xenstore are a few bytes.

use super::{NoMemory, try_bytes};
use alloc::boxed::Box;

/// The longest string that is stored in place.
const INLINE: usize = 22;

/// An owned, immutable byte string.
pub enum Bytes {
    /// In place: only the first `len` bytes count.
    Inline {
        /// How many.
        len: u8,
        /// They, and what does not count.
        bytes: [u8; INLINE],
    },
    /// Everything longer.
    Heap(Box<[u8]>),
}

impl Bytes {
    /// The string without bytes.
    pub const EMPTY: Self = Self::Inline { len: 0, bytes: [0; INLINE] };

    /// What a string of this length takes besides itself.
    #[must_use]
    pub const fn block_len(len: usize) -> usize {
        if len <= INLINE { 0 } else { len }
    }

    /// Copies a string.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(from: &[u8]) -> Result<Self, NoMemory> {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..from.len()), u8::try_from(from.len())) {
            (Some(to), Ok(len)) => {
                to.copy_from_slice(from);
                Ok(Self::Inline { len, bytes })
            }
            _ => try_bytes(from).map(Self::Heap),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn get(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Self::Heap(bytes) => bytes,
        }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Inline { len, .. } => usize::from(*len),
            Self::Heap(bytes) => bytes.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl core::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn every_length_comes_back() {
        for len in 0..100_u8 {
            let bytes = vec![len; usize::from(len)];
            assert_eq!(Bytes::new(&bytes).unwrap().get(), &bytes[..]);
        }
    }

    #[test]
    fn a_string_costs_24_bytes() {
        assert_eq!(size_of::<Bytes>(), 24);
    }
}
