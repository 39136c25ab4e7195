//! How much work one turn may do, so that nobody waits long for the next.

/// A number of units of work, each about one instruction of the processor. Work is charged *after* it is done, so
/// every turn makes progress, even with a budget that is smaller than one step.
#[derive(Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    /// So many units.
    #[must_use]
    pub const fn new(units: u64) -> Self {
        Self { left: units }
    }

    /// As much as it takes: for tests, and where nobody waits.
    #[must_use]
    pub const fn endless() -> Self {
        Self { left: u64::MAX }
    }

    /// Work was done.
    #[inline]
    pub const fn spend(&mut self, units: u64) {
        self.left = self.left.saturating_sub(units);
    }

    /// Nothing is left: what takes longer goes on in another turn.
    #[inline]
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Units that are left.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }
}

/// How far something has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "what is not done has to go on"]
pub enum Progress {
    /// To its end.
    Done,
    /// The budget was over before.
    More,
}

impl Progress {
    /// Whether it has come to its end.
    #[must_use]
    pub fn is_done(self) -> bool {
        self == Self::Done
    }
}
