//! Which frames of physical memory are free.
//!
//! One bit per frame, so that single frames can be given back in any order and still form the aligned
//! run that a second image needs. Single frames are taken from the bottom and runs from
//! the top, which keeps the top in one piece as long as possible.

/// Frames that one word of the bitmap covers.
pub const PER_WORD: usize = u64::BITS as usize;

/// The free frames of memory that is populated.
#[derive(Debug)]
pub struct Frames {
    /// A set bit is a free frame.
    words: &'static mut [u64],
    free: usize,
    /// No word below this one has a free frame.
    hint: usize,
}

impl Frames {
    /// No frame at all.
    #[must_use]
    pub const fn none() -> Self {
        Self { words: &mut [], free: 0, hint: 0 }
    }

    /// A bitmap in which no frame is free yet.
    pub fn new(words: &'static mut [u64]) -> Self {
        words.fill(0);
        Self { words, free: 0, hint: 0 }
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free
    }

    /// How many the bitmap can tell of.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.words.len() * PER_WORD
    }

    /// The bitmap.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.words
    }

    fn is_free(&self, frame: usize) -> bool {
        self.words.get(frame / PER_WORD).is_some_and(|w| w >> (frame % PER_WORD) & 1 == 1)
    }

    /// Makes a frame free. One that is free already, or that the bitmap does not cover, stays as it is.
    pub fn give(&mut self, frame: usize) {
        let index = frame / PER_WORD;
        let bit = 1 << (frame % PER_WORD);
        if let Some(word) = self.words.get_mut(index).filter(|word| **word & bit == 0) {
            *word |= bit;
            self.free += 1;
            self.hint = self.hint.min(index);
        }
    }

    /// Takes the lowest free frame.
    pub fn take(&mut self) -> Option<usize> {
        let rest = self.words.get_mut(self.hint..)?;
        let (index, word) = rest.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        self.free -= 1;
        self.hint += index;
        Some(self.hint * PER_WORD + bit)
    }

    /// Takes the highest run of `count` free frames that starts at a multiple of `align`.
    pub fn take_run(&mut self, count: usize, align: usize) -> Option<usize> {
        if count == 0 || align == 0 {
            return None;
        }
        let last = self.capacity().checked_sub(count)? / align;
        let start = (0..=last)
            .rev()
            .map(|i| i * align)
            .find(|&start| (start..start + count).all(|frame| self.is_free(frame)))?;
        for frame in start..start + count {
            if let Some(word) = self.words.get_mut(frame / PER_WORD) {
                *word &= !(1 << (frame % PER_WORD));
            }
        }
        self.free -= count;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec;

    fn frames(words: usize, free: impl Iterator<Item = usize>) -> Frames {
        let mut frames = Frames::new(Box::leak(vec![u64::MAX; words].into_boxed_slice()));
        free.for_each(|f| frames.give(f));
        frames
    }

    #[test]
    fn single_frames_come_from_the_bottom_and_go_back() {
        let mut f = frames(3, [190, 5, 64, 5].into_iter());
        assert_eq!(f.free(), 3);
        assert_eq!([f.take(), f.take(), f.take(), f.take()], [Some(5), Some(64), Some(190), None]);
        f.give(64);
        f.give(7);
        assert_eq!([f.take(), f.take(), f.take()], [Some(7), Some(64), None]);
    }

    #[test]
    fn runs_are_aligned_and_come_from_the_top() {
        let mut f = frames(4, 1..250);
        assert_eq!(f.take_run(64, 64), Some(128));
        assert_eq!(f.take_run(64, 64), Some(64));
        assert_eq!(f.take_run(64, 64), None);
        assert_eq!(f.free(), 249 - 128);
        f.give(64);
        assert_eq!(f.take_run(2, 1), Some(248));
        assert_eq!(f.take_run(1000, 1), None);
    }

    #[test]
    fn frames_beyond_the_bitmap_are_ignored() {
        let mut f = frames(1, [64, 1000].into_iter());
        assert_eq!((f.free(), f.take()), (0, None));
    }
}
