//! When a program counts as hung: it has run for long, and no turn of it has ended.

use super::time::NS_PER_MS;

/// How long the processor may run without the end of a turn. The longest turn that is known takes a tenth of that.
pub(crate) const LIMIT_NS: u64 = 5_000 * NS_PER_MS;

/// What was seen of a program.
#[derive(Debug, Default)]
pub(crate) struct Hang {
    /// Turns that had ended when their number was last seen to change.
    turns: u64,
    /// How long the processor had run then.
    ran_ns: u64,
}

impl Hang {
    /// Of one that nobody has looked at.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { turns: 0, ran_ns: 0 }
    }

    /// Looks at it: so many turns have ended, and so many nanoseconds has the processor run for it. Whether it hangs.
    pub(crate) fn look(&mut self, turns: u64, ran_ns: u64) -> bool {
        if self.turns != turns {
            *self = Self { turns, ran_ns };
        }
        ran_ns.saturating_sub(self.ran_ns) >= LIMIT_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000 * NS_PER_MS;

    #[test]
    fn a_turn_without_end_is_a_hang() {
        let mut hang = Hang::new();
        assert!(!hang.look(7, 100 * S));
        for second in 1..5 {
            assert!(!hang.look(7, (100 + second) * S));
        }
        assert!(hang.look(7, 105 * S));
    }

    #[test]
    fn long_turns_that_end_are_none() {
        let mut hang = Hang::new();
        for turn in 1..100 {
            assert!(!hang.look(turn, turn * 4 * S));
            assert!(!hang.look(turn, (turn * 4 + 3) * S));
        }
    }

    /// A domain that is paused, waits for a processor or sleeps with its host gets ticks, but does not run.
    #[test]
    fn time_that_passes_without_the_processor_does_not_count() {
        let mut hang = Hang::new();
        assert!(!hang.look(7, 100 * S));
        for tick in 0..10_000 {
            assert!(!hang.look(7, 100 * S + tick * NS_PER_MS / 10));
        }
        // Xen's figure may step back by a hair.
        assert!(!hang.look(7, 99 * S));
        assert!(hang.look(7, 106 * S));
    }
}
