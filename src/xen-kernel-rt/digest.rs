//! A hash over what passes from one image to the next.

/// Bytes that a [`Digest`] takes at a time.
const BLOCK: usize = 16;

/// A hash of all bytes that are put into it, however they are cut. It finds damage and forgotten fields. It is no
/// protection against somebody who looks for a collision, since both sides are ours.
#[derive(Clone, Debug)]
pub struct Digest {
    state: u64,
    /// Bytes that are not yet a whole block.
    tail: [u8; BLOCK],
    tail_len: usize,
    len: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { state: 0x243f_6a88_85a3_08d3, tail: [0; BLOCK], tail_len: 0, len: 0 }
    }
}

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u64 {
        let mut digest = Self::default();
        digest.add(bytes);
        digest.finish()
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.len = self.len.wrapping_add(bytes.len() as u64);
        let mut rest = bytes;
        if self.tail_len > 0 {
            let room = self.tail.get_mut(self.tail_len..).unwrap_or(&mut []);
            let taken = room.len().min(rest.len());
            let (first, more) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            for (to, from) in room.iter_mut().zip(first) {
                *to = *from;
            }
            self.tail_len = self.tail_len.saturating_add(taken);
            rest = more;
            if self.tail_len < BLOCK {
                return;
            }
            self.state = mix(self.state, &self.tail);
            self.tail_len = 0;
        }
        let mut state = self.state;
        while let Some((block, more)) = rest.split_first_chunk() {
            state = mix(state, block);
            rest = more;
        }
        self.state = state;
        for (to, from) in self.tail.iter_mut().zip(rest) {
            *to = *from;
        }
        self.tail_len = rest.len();
    }

    /// The hash.
    #[must_use]
    pub fn finish(&self) -> u64 {
        let mut last = [0; BLOCK];
        for (to, from) in last.iter_mut().zip(self.tail.iter().take(self.tail_len)) {
            *to = *from;
        }
        fold(mix(self.state, &last), self.len, 0)
    }
}

/// Folds a block into a state.
fn mix(state: u64, block: &[u8; BLOCK]) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *block;
    let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    fold(state, first, u64::from_le_bytes([i, j, k, l, m, n, o, p]))
}

/// Folds two words into a state: both halves of a product of 128 bits, so that every bit counts. The state is
/// beside the product, too, so a factor of 0 does not erase what came before.
fn fold(state: u64, first: u64, second: u64) -> u64 {
    let first = u128::from(state ^ first ^ 0x9e37_79b9_7f4a_7c15);
    let second = u128::from(state.rotate_left(32) ^ second ^ 0xa076_1d64_78bd_642f);
    let product = first.wrapping_mul(second);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high ^ state.wrapping_mul(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_digest_depends_on_every_bit_and_not_on_the_cuts() {
        let bytes: Vec<u8> = (0..100_u8).collect();
        let whole = Digest::of(&bytes);
        for first in 0..bytes.len() {
            for second in [0, 1, 7, 8, 9, 30] {
                let second = (first + second).min(bytes.len());
                let mut digest = Digest::default();
                digest.add(&bytes[..first]);
                digest.add(&bytes[first..second]);
                digest.add(&bytes[second..]);
                assert_eq!(digest.finish(), whole, "{first} {second}");
            }
        }
        for at in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[at / 8] ^= 1 << (at % 8);
            assert_ne!(Digest::of(&other), whole, "{at}");
        }
        assert_ne!(Digest::of(&[0; 8]), Digest::of(&[0; 16]));
        assert_ne!(Digest::of(&[]), Digest::of(&[0]));
    }
}
