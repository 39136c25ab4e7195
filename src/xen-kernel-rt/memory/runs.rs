//! Addresses for blocks of several pages.
//!
//! A run takes a power of two of consecutive pages out of a window of addresses. Others put the memory behind
//! them, and no more pages than the block needs. A run that comes back waits for the next request of its class, so
//! both are O(1). There are plenty of addresses, and they are never given back.
//!
//! The free runs of a class are chained. The caller keeps the link where the run is: in an entry of a page table
//! that maps nothing, or in the page itself.

/// Classes of runs: 2, 4, 8 ... pages.
const CLASSES: usize = 32;

/// The runs of a window.
#[derive(Debug)]
pub(crate) struct Runs {
    /// Pages of the window, and those that belonged to a run at least once: the first ones.
    size: usize,
    fresh: usize,
    /// For each class the first free run: its first page plus one; 0 for none.
    free: [usize; CLASSES],
}

/// The class of runs of `count` pages.
fn class(count: usize) -> Option<usize> {
    let class = count.max(2).checked_next_power_of_two()?.trailing_zeros() as usize - 1;
    (class < CLASSES).then_some(class)
}

impl Runs {
    /// A window of `size` pages.
    #[must_use]
    pub(crate) const fn new(size: usize) -> Self {
        Self { size, fresh: 0, free: [0; CLASSES] }
    }

    /// The second half of a window, whose first half belongs to whoever used it before.
    #[cfg(any(test, target_os = "none"))]
    #[must_use]
    pub(crate) const fn second_half(size: usize) -> Self {
        Self { size, fresh: size / 2, free: [0; CLASSES] }
    }

    /// The first page of a run for `count` pages; `link` reads what [`give`](Self::give) has left there.
    pub(crate) fn take(
        &mut self,
        count: usize,
        link: impl FnOnce(usize) -> usize,
    ) -> Option<usize> {
        let class = class(count)?;
        if let Some(first) = self.free[class].checked_sub(1) {
            self.free[class] = link(first);
            return Some(first);
        }
        let first = self.fresh;
        let end = first.checked_add(2 << class).filter(|&end| end <= self.size)?;
        self.fresh = end;
        Some(first)
    }

    /// Takes back a run that was taken for `count` pages. Returns the link to be left there.
    #[must_use]
    pub(crate) fn give(&mut self, first: usize, count: usize) -> usize {
        class(count).map_or(0, |class| core::mem::replace(&mut self.free[class], first + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn runs_come_back_in_their_class() {
        let mut runs = Runs::new(16);
        let mut links = vec![0; 16];
        let take = |runs: &mut Runs, links: &[usize], count| runs.take(count, |at| links[at]);
        assert_eq!(take(&mut runs, &links, 2), Some(0));
        assert_eq!(take(&mut runs, &links, 3), Some(2));
        assert_eq!(take(&mut runs, &links, 2), Some(6));
        assert_eq!(take(&mut runs, &links, 8), Some(8));
        assert_eq!(take(&mut runs, &links, 2), None);
        for (first, count) in [(0, 2), (6, 2), (2, 4)] {
            links[first] = runs.give(first, count);
        }
        assert_eq!(take(&mut runs, &links, 4), Some(2));
        assert_eq!(take(&mut runs, &links, 3), None);
        assert_eq!(take(&mut runs, &links, 2), Some(6));
        assert_eq!(take(&mut runs, &links, 2), Some(0));
        assert_eq!(take(&mut runs, &links, 2), None);
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let mut runs = Runs::new(usize::MAX);
        assert_eq!(runs.take(usize::MAX, |_| 0), None);
        assert_eq!(runs.take(1 << 40, |_| 0), None);
        assert_eq!(Runs::new(1).take(2, |_| 0), None);
        assert_eq!(Runs::second_half(16).take(2, |_| 0), Some(8));
        assert_eq!(Runs::second_half(16).take(16, |_| 0), None);
    }
}
