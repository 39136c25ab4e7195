//! Which frames of physical memory are free.
//!
//! There is one bit per frame, so single frames can be given back in any order and still form the aligned run that
//! a second image needs. Above it are two levels with a bit for each word of the level below that is not zero. So
//! finding a free frame takes the same few steps wherever it is: a word of the highest level stands for a
//! gibibyte.
//!
//! Single frames are taken from the bottom and runs from the top, which keeps the top in one piece as long as
//! possible. What goes back to Xen comes from the top, too.

/// Frames that one word of the bitmap covers.
pub(crate) const PER_WORD: usize = u64::BITS as usize;

/// A set of frames.
#[derive(Debug)]
pub(crate) struct Frames {
    /// A set bit is a frame of the set.
    words: &'static mut [u64],
    /// A set bit is a word of the level below that is not zero.
    middle: &'static mut [u64],
    top: &'static mut [u64],
    count: usize,
}

/// Words of each level for so many frames.
const fn levels(frames: usize) -> [usize; 3] {
    let words = frames.div_ceil(PER_WORD);
    let middle = words.div_ceil(PER_WORD);
    [words, middle, middle.div_ceil(PER_WORD)]
}

impl Frames {
    /// The empty set, which stays empty.
    #[must_use]
    pub(crate) const fn none() -> Self {
        Self { words: &mut [], middle: &mut [], top: &mut [], count: 0 }
    }

    /// Words of memory that a set of the first `frames` frames takes.
    #[must_use]
    pub(crate) const fn words_for(frames: usize) -> usize {
        let [words, middle, top] = levels(frames);
        words + middle + top
    }

    /// An empty set of the first `frames` frames in [`words_for`](Self::words_for) words of memory. If those are
    /// fewer it is as [`none`](Self::none).
    pub(crate) fn new(memory: &'static mut [u64], frames: usize) -> Self {
        memory.fill(0);
        let [words, middle, top] = levels(frames);
        let parts = memory.split_at_mut_checked(words).and_then(|(words, rest)| {
            let (middle, rest) = rest.split_at_mut_checked(middle)?;
            Some((words, middle, rest.get_mut(..top)?))
        });
        match parts {
            Some((words, middle, top)) => Self { words, middle, top, count: 0 },
            None => Self::none(),
        }
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// How many the bitmap can tell of.
    #[must_use]
    pub(crate) fn capacity(&self) -> usize {
        self.words.len() * PER_WORD
    }

    /// The bitmap.
    #[must_use]
    pub(crate) fn words(&self) -> &[u64] {
        self.words
    }

    /// Whether a frame is in the set.
    #[must_use]
    pub(crate) fn contains(&self, frame: usize) -> bool {
        self.words.get(frame / PER_WORD).is_some_and(|w| w >> (frame % PER_WORD) & 1 == 1)
    }

    /// Adds a frame. One that is there already, or that the bitmap does not cover, changes nothing.
    pub(crate) fn give(&mut self, frame: usize) {
        let (index, bit) = (frame / PER_WORD, 1 << (frame % PER_WORD));
        let Some(word) = self.words.get_mut(index).filter(|word| **word & bit == 0) else { return };
        let was_empty = *word == 0;
        *word |= bit;
        self.count += 1;
        if was_empty {
            let above = index / PER_WORD;
            self.middle[above] |= 1 << (index % PER_WORD);
            self.top[above / PER_WORD] |= 1 << (above % PER_WORD);
        }
    }

    /// The lowest frame.
    #[must_use]
    pub(crate) fn first(&self) -> Option<usize> {
        let top = self.top.iter().position(|word| *word != 0)?;
        let middle = top * PER_WORD + lowest(self.top[top]);
        let word = middle * PER_WORD + lowest(self.middle[middle]);
        Some(word * PER_WORD + lowest(self.words[word]))
    }

    /// Takes the lowest frame.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let frame = self.first()?;
        self.remove(frame);
        Some(frame)
    }

    /// Takes the highest frame.
    pub(crate) fn take_last(&mut self) -> Option<usize> {
        let top = self.top.iter().rposition(|word| *word != 0)?;
        let middle = top * PER_WORD + highest(self.top[top]);
        let word = middle * PER_WORD + highest(self.middle[middle]);
        let frame = word * PER_WORD + highest(self.words[word]);
        self.remove(frame);
        Some(frame)
    }

    /// Takes a frame out, if it is in the set.
    pub(crate) fn withhold(&mut self, frame: usize) {
        if self.contains(frame) {
            self.remove(frame);
        }
    }

    /// Mends the set after a change was interrupted at any instruction. Whether a frame is in the set is one bit,
    /// so that is never in doubt; everything else is made anew from it. `false` if more was wrong than one change
    /// leaves: then the bits may be wrong, too.
    #[must_use]
    pub(crate) fn mend(&mut self) -> bool {
        let count = self.words.iter().map(|word| word.count_ones() as usize).sum();
        let wrong = self.count.abs_diff(count)
            + mend_level(self.words, self.middle)
            + mend_level(self.middle, self.top);
        self.count = count;
        // One frame, one word of each level.
        wrong <= 3
    }

    /// Takes a frame out that is in the set.
    fn remove(&mut self, frame: usize) {
        let index = frame / PER_WORD;
        self.words[index] &= !(1 << (frame % PER_WORD));
        self.count -= 1;
        if self.words[index] == 0 {
            let above = index / PER_WORD;
            self.middle[above] &= !(1 << (index % PER_WORD));
            if self.middle[above] == 0 {
                self.top[above / PER_WORD] &= !(1 << (above % PER_WORD));
            }
        }
    }

    /// Takes the highest run of `count` frames that starts at a multiple of `align`.
    pub(crate) fn take_run(&mut self, count: usize, align: usize) -> Option<usize> {
        if count == 0 || align == 0 {
            return None;
        }
        let last = self.capacity().checked_sub(count)? / align;
        let start = (0..=last)
            .rev()
            .map(|i| i * align)
            .find(|&start| (start..start + count).all(|frame| self.contains(frame)))?;
        (start..start + count).for_each(|frame| self.remove(frame));
        Some(start)
    }
}

/// Makes a level from the one below; returns how many bits were wrong.
fn mend_level(below: &[u64], level: &mut [u64]) -> usize {
    let mut wrong = 0;
    for (word, below) in level.iter_mut().zip(below.chunks(PER_WORD)) {
        let right = below
            .iter()
            .enumerate()
            .fold(0, |bits, (bit, word)| bits | u64::from(*word != 0) << bit);
        wrong += (*word ^ right).count_ones() as usize;
        *word = right;
    }
    wrong
}

/// The lowest set bit of a word that is not zero.
fn lowest(word: u64) -> usize {
    word.trailing_zeros() as usize
}

/// The highest one.
fn highest(word: u64) -> usize {
    word.checked_ilog2().map_or(0, |bit| bit as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::collections::BTreeSet;
    use alloc::vec;

    fn frames(capacity: usize, free: impl Iterator<Item = usize>) -> Frames {
        let memory = Box::leak(vec![u64::MAX; Frames::words_for(capacity)].into_boxed_slice());
        let mut frames = Frames::new(memory, capacity);
        free.for_each(|f| frames.give(f));
        frames
    }

    #[test]
    fn single_frames_come_from_the_bottom_and_go_back() {
        let mut f = frames(192, [190, 5, 64, 5].into_iter());
        assert_eq!(f.count(), 3);
        assert_eq!([f.take(), f.take(), f.take(), f.take()], [Some(5), Some(64), Some(190), None]);
        f.give(64);
        f.give(7);
        assert_eq!([f.take_last(), f.take(), f.take()], [Some(64), Some(7), None]);
    }

    #[test]
    fn runs_are_aligned_and_come_from_the_top() {
        let mut f = frames(256, 1..250);
        assert_eq!(f.take_run(64, 64), Some(128));
        assert_eq!(f.take_run(64, 64), Some(64));
        assert_eq!(f.take_run(64, 64), None);
        assert_eq!(f.count(), 249 - 128);
        f.give(64);
        assert_eq!(f.take_run(2, 1), Some(248));
        assert_eq!(f.take_run(1000, 1), None);
    }

    #[test]
    fn frames_beyond_the_bitmap_are_ignored() {
        let mut f = frames(64, [64, 1000].into_iter());
        assert_eq!((f.count(), f.take()), (0, None));
        let mut f = Frames::new(Box::leak(vec![0; 2].into_boxed_slice()), 64);
        f.give(1);
        assert_eq!((f.count(), f.take(), f.take_last()), (0, None, None));
    }

    #[test]
    fn a_change_that_was_broken_off_is_mended() {
        let capacity = 70_000;
        for (frame, level) in [(69_999, 0), (69_999, 1), (69_999, 2), (64, 0), (65, 1), (5, 2)] {
            let mut f = frames(capacity, [5, 64, 4096].into_iter());
            // As far as `give` may have come.
            f.words[frame / 64] |= 1 << (frame % 64);
            if level > 0 {
                f.middle[frame / 4096] |= 1 << (frame / 64 % 64);
            }
            if level > 1 {
                f.top[0] |= 1 << (frame / 4096);
            }
            assert!(f.mend());
            let mut all = BTreeSet::from([5, 64, 4096, frame]);
            assert_eq!(f.count(), all.len());
            while let Some(frame) = all.pop_first() {
                assert_eq!(f.take(), Some(frame));
            }
            assert_eq!((f.take(), f.count()), (None, 0));
            // As far as `remove` may have come.
            let mut f = frames(capacity, [frame].into_iter());
            f.words[frame / 64] = 0;
            if level > 0 {
                f.count = 0;
            }
            if level > 1 {
                f.middle[frame / 4096] = 0;
            }
            assert!(f.mend());
            assert_eq!((f.count(), f.take(), f.take_last()), (0, None, None));
        }
    }

    #[test]
    fn books_that_contradict_each_other_are_found() {
        let mut f = frames(4096, 1..200);
        f.withhold(3);
        f.withhold(3);
        assert_eq!(f.count(), 198);
        assert!(f.mend());
        f.words[2] = 0;
        assert!(!f.mend());
        let mut f = frames(4096, 1..200);
        f.count += 5;
        assert!(!f.mend());
    }

    #[test]
    fn frames_at_both_ends_come_and_go() {
        // 4 GiB: four words in the top level.
        let capacity = if cfg!(miri) { 1 << 14 } else { 1 << 20 };
        let last = capacity - 1;
        let mut f = frames(capacity, [last].into_iter());
        assert!(f.top.len() <= 4);
        for frame in [0, last / 2, 63, 4096] {
            f.give(frame);
            assert_eq!((f.take(), f.take_last()), (Some(frame), Some(last)));
            f.give(last);
        }
    }

    #[test]
    fn all_levels_agree_whatever_happens() {
        let capacity = if cfg!(miri) { 9000 } else { 600_000 };
        let mut f = frames(capacity, core::iter::empty());
        let mut model = BTreeSet::new();
        let mut seed = 7_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for round in 0..if cfg!(miri) { 300 } else { 30_000 } {
            let filling = round / 1000 % 2 == 0;
            match random(10) {
                what if what < 6 && filling => {
                    let frame = random(capacity);
                    f.give(frame);
                    model.insert(frame);
                }
                ..5 => assert_eq!(f.take(), model.pop_first()),
                5..8 => assert_eq!(f.take_last(), model.pop_last()),
                _ => {
                    let start = random(capacity - 70);
                    for frame in start..start + 70 {
                        f.give(frame);
                        model.insert(frame);
                    }
                    let last = model.last().copied().unwrap_or(0);
                    assert!(f.contains(last) && !f.contains(last + 1));
                }
            }
            assert_eq!(f.count(), model.len());
        }
        while let Some(frame) = model.pop_first() {
            assert_eq!(f.take(), Some(frame));
        }
        assert_eq!((f.take(), f.take_last()), (None, None));
    }
}
