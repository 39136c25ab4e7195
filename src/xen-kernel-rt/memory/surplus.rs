//! When pages go back to Xen.
//!
//! What the domain was built with stays, and so does a reserve of free pages beyond it. The rest goes back once
//! nothing has been asked of Xen for a while. It goes in small steps, so that nobody waits for it. It does not
//! begin for a little more than the reserve.

/// Free pages that stay, besides those in use.
pub(crate) const KEEP: usize = 1024;

/// So many pages beyond the reserve are worth a beginning.
pub(crate) const WORTH: usize = 256;

/// Pages of one step.
pub(crate) const STEP: usize = 32;

/// Time between steps.
pub(crate) const STEP_MS: u64 = 50;

/// So long nothing must have been asked of Xen.
pub(crate) const QUIET_MS: u64 = 10_000;

/// The plan.
#[derive(Debug)]
pub(crate) struct Surplus {
    /// The next moment to look at it.
    due_ms: u64,
    /// Begun, and not at the reserve yet.
    giving: bool,
    /// Something was asked of Xen, or a live update needs memory, since the plan was looked at.
    disturbed: bool,
}

/// What there is, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// Free.
    pub(crate) free: usize,
    /// Populated, free or not.
    pub(crate) populated: usize,
    /// Populated when the domain was built.
    pub(crate) built: usize,
}

impl Surplus {
    /// Nothing to give.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { due_ms: 0, giving: false, disturbed: false }
    }

    /// Memory is needed: not now.
    pub(crate) fn disturb(&mut self) {
        self.disturbed = true;
    }

    /// Pages that could go back.
    fn size(pages: Pages) -> usize {
        pages.free.saturating_sub(KEEP).min(pages.populated.saturating_sub(pages.built))
    }

    /// Whether [`step`](Self::step) is to be called with the time: there is something to do, now or later.
    #[must_use]
    pub(crate) fn is_pending(&self, pages: Pages) -> bool {
        let size = Self::size(pages);
        size >= WORTH || self.giving && size > 0
    }

    /// How many pages are to go back now, and when to look again.
    pub(crate) fn step(&mut self, pages: Pages, now_ms: u64) -> (usize, Option<u64>) {
        if core::mem::take(&mut self.disturbed) {
            self.giving = false;
            self.due_ms = now_ms.saturating_add(QUIET_MS);
        }
        if !self.is_pending(pages) {
            self.giving = false;
            return (0, None);
        }
        if now_ms < self.due_ms {
            return (0, Some(self.due_ms));
        }
        self.giving = true;
        self.due_ms = now_ms.saturating_add(STEP_MS);
        (Self::size(pages).min(STEP), Some(self.due_ms))
    }
}

impl Default for Surplus {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_back_in_steps_down_to_the_reserve() {
        let mut plan = Surplus::new();
        let mut pages = Pages { free: 6000, populated: 8000, built: 2000 };
        plan.disturb();
        assert!(plan.is_pending(pages));
        let mut now = 100;
        assert_eq!(plan.step(pages, now), (0, Some(now + QUIET_MS)));
        assert_eq!(plan.step(pages, now + 1), (0, Some(now + QUIET_MS)));
        now += QUIET_MS;
        let mut steps = 0;
        while let (given, Some(next)) = plan.step(pages, now) {
            assert!(given <= STEP);
            pages.free -= given;
            pages.populated -= given;
            now = next;
            steps += 1;
        }
        assert_eq!((pages.free, steps), (KEEP, (6000 - KEEP).div_ceil(STEP)));
        // A little more is no reason to begin again.
        pages.free += WORTH - 1;
        assert!(!plan.is_pending(pages));
        assert_eq!(plan.step(pages, now), (0, None));
        pages.free += 1;
        assert_eq!(plan.step(pages, now), (STEP, Some(now + STEP_MS)));
        plan.disturb();
        assert_eq!(plan.step(pages, now + STEP_MS), (0, Some(now + STEP_MS + QUIET_MS)));
    }

    #[test]
    fn what_the_domain_was_built_with_stays() {
        let mut plan = Surplus::new();
        let pages = Pages { free: 6000, populated: 8000, built: 8000 };
        assert!(!plan.is_pending(pages));
        assert_eq!(plan.step(pages, 1), (0, None));
        let pages = Pages { populated: 8000 + WORTH, ..pages };
        assert_eq!(plan.step(pages, 1), (STEP, Some(1 + STEP_MS)));
        let pages = Pages { populated: 8003, ..pages };
        assert_eq!(plan.step(pages, 1 + STEP_MS).0, 3);
    }
}
