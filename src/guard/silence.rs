//! When a domain that runs counts as silent.
//!
//! The server watches itself, and Xen's watchdog ends a restart that hangs. This is for what neither of them sees: a server
//! that sleeps although there is work, since a signal was lost or all ports are masked; a loop in which nothing
//! interrupts it; a loop that feeds its own watch.
//!
//! The guard sees dom0's own ring, as the kernel shows it, and is no client for that. A server is silent if
//!
//! * a request waits in dom0's ring, no byte of it is taken, and dom0 has read all replies; and
//! * the server does not say that it leaves that ring unread on purpose (it works on an earlier request of dom0's, or
//!   there is no memory for another one); and
//! * through all this time it has either slept for [`ASLEEP`] without using its processor at all, or used it for [`WORKED`].
//!
//! So an idle server is none, whatever it sleeps; nor is a domain that is paused, or that gets no processor. The longest turn
//! after which dom0's ring is looked at takes some milliseconds. A restart or a trial of an image may take [`WORKED`] at most,
//! since Xen's watchdog ends them before. Time in which the guard itself did not run does not count.
//!
//! Who is silent towards guests only is not seen from here.

use std::time::Duration;

/// How long the domain may sleep while a request of dom0's waits.
pub const ASLEEP: Duration = Duration::from_secs(10);
/// How long its processor may work meanwhile: longer than Xen's watchdog lets a restart work (20 s).
pub const WORKED: Duration = Duration::from_secs(30);
/// After so much of either, the server's own word counts.
const ASKED: Duration = Duration::from_secs(1);
/// After so long a request that is left unread on purpose is worth a line.
const LONG: Duration = Duration::from_secs(60);
/// The most that counts from one look to the next.
const BETWEEN: Duration = Duration::from_millis(200);
/// After each step, twice as much is waited for, up to 2 to the power of this.
const DOUBLINGS: u32 = 6;

/// What is seen of a server for which a request waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// How far dom0's ring was read.
    pub unread: u32,
    /// How long the processor has run.
    pub ran_ns: u64,
    /// It sleeps now.
    pub is_blocked: bool,
}

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "seconds are those for which a request has waited, or the processor has worked"
)]
pub enum Verdict {
    /// All is well, or it is too early to tell.
    Nothing,
    /// After something was done about it, a request was taken.
    ServesAgain,
    /// It says that this is on purpose.
    Held { seconds: u64 },
    /// It sleeps; so many steps were taken before this one.
    Sleeps { seconds: u64, step: u32 },
    /// It works on something else.
    Works { seconds: u64, step: u32 },
}

/// What was seen so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Silence {
    /// The last sight, and when that was.
    last: Option<(Duration, Sight)>,
    asleep: Duration,
    worked: Duration,
    /// How long a request was left unread on purpose.
    held: Duration,
    /// Steps that were taken since a request was last taken.
    steps: u32,
}

impl Silence {
    /// Looks once: `sight` is `None` if no request waits. Asks for the server's own word only if it matters.
    pub fn look(
        &mut self,
        now: Duration,
        sight: Option<Sight>,
        is_held: impl FnOnce() -> Option<bool>,
    ) -> Verdict {
        let Some(sight) = sight else { return self.reset(None) };
        let Some((at, last)) = self.last.replace((now, sight)) else { return Verdict::Nothing };
        if last.unread != sight.unread {
            return self.reset(Some((now, sight)));
        }
        let passed = now.saturating_sub(at).min(BETWEEN);
        let ran = Duration::from_nanos(sight.ran_ns.saturating_sub(last.ran_ns));
        if sight.is_blocked && ran.is_zero() {
            self.asleep = self.asleep.saturating_add(passed);
        } else {
            self.worked = self.worked.saturating_add(ran.min(passed.saturating_mul(2)));
        }
        self.held = self.held.saturating_add(passed);
        if self.asleep.max(self.worked) < ASKED {
            return Verdict::Nothing;
        }
        if is_held() != Some(false) {
            let held = self.held;
            (self.asleep, self.worked) = (Duration::ZERO, Duration::ZERO);
            return if held >= LONG {
                self.held = Duration::ZERO;
                Verdict::Held { seconds: held.as_secs() }
            } else {
                Verdict::Nothing
            };
        }
        let times = 1 << self.steps.min(DOUBLINGS);
        let (asleep, worked, step) = (self.asleep, self.worked, self.steps);
        let verdict = if asleep >= ASLEEP.saturating_mul(times) {
            Verdict::Sleeps { seconds: asleep.as_secs(), step }
        } else if worked >= WORKED.saturating_mul(times) {
            Verdict::Works { seconds: worked.as_secs(), step }
        } else {
            return Verdict::Nothing;
        };
        *self = Self { steps: step.saturating_add(1), ..Self::default() };
        verdict
    }

    /// The server does what it should.
    fn reset(&mut self, last: Option<(Duration, Sight)>) -> Verdict {
        let steps = self.steps;
        *self = Self { last, ..Self::default() };
        if steps > 0 { Verdict::ServesAgain } else { Verdict::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(25);

    /// A domain for which a request waits.
    struct Seen {
        silence: Silence,
        now: Duration,
        sight: Sight,
        /// Nanoseconds that it runs from one look to the next.
        runs_ns: u64,
        held: Option<bool>,
    }

    fn seen() -> Seen {
        let sight = Sight { unread: 16, ran_ns: 5_000_000_000, is_blocked: true };
        let (silence, now) = (Silence::default(), Duration::from_secs(100));
        Seen { silence, now, sight, runs_ns: 0, held: Some(false) }
    }

    impl Seen {
        /// Looks for that long; says what followed, and after how many seconds.
        fn run(&mut self, seconds: u64) -> Vec<(u64, Verdict)> {
            let (begun, mut all) = (self.now, Vec::new());
            while self.now < begun + Duration::from_secs(seconds) {
                self.now += LOOK;
                self.sight.ran_ns += self.runs_ns;
                let held = self.held;
                match self.silence.look(self.now, Some(self.sight), || held) {
                    Verdict::Nothing => {}
                    verdict => all.push(((self.now - begun).as_secs(), verdict)),
                }
            }
            all
        }
    }

    #[test]
    fn one_that_sleeps_over_a_request_is_silent_and_each_step_comes_later() {
        let mut seen = seen();
        let steps = [(10, 10, 0), (30, 20, 1), (70, 40, 2), (150, 80, 3)];
        let steps = steps.map(|(at, seconds, step)| (at, Verdict::Sleeps { seconds, step }));
        assert_eq!(seen.run(160), steps);
        // A byte is taken.
        seen.sight.unread = 20;
        assert_eq!(seen.run(1), [(0, Verdict::ServesAgain)]);
        assert_eq!(seen.run(10), [(9, Verdict::Sleeps { seconds: 10, step: 0 })]);
        // Or all of it.
        let none = seen.silence.look(seen.now, None, || None);
        assert_eq!((none, seen.silence), (Verdict::ServesAgain, Silence::default()));
    }

    #[test]
    fn one_that_works_on_something_else_is_silent_after_longer() {
        let mut seen = seen();
        (seen.sight.is_blocked, seen.runs_ns) = (false, 25_000_000);
        assert_eq!(seen.run(40), [(30, Verdict::Works { seconds: 30, step: 0 })]);
        // With a tenth of the processor it takes ten times as long.
        let mut slow = self::seen();
        (slow.sight.is_blocked, slow.runs_ns) = (false, 2_500_000);
        assert_eq!(slow.run(320), [(300, Verdict::Works { seconds: 30, step: 0 })]);
    }

    #[test]
    fn whoever_serves_is_none() {
        let mut seen = seen();
        for n in 0..100 {
            seen.sight.unread = n;
            assert_eq!(seen.run(9), []);
        }
        // Nor one that gets no processor.
        seen.sight.is_blocked = false;
        assert_eq!(seen.run(1000), []);
    }

    #[test]
    fn whoever_waits_on_purpose_or_says_nothing_is_left_alone() {
        for held in [Some(true), None] {
            for (is_blocked, runs_ns) in [(true, 0), (false, 25_000_000)] {
                let mut seen = seen();
                (seen.held, seen.runs_ns, seen.sight.is_blocked) = (held, runs_ns, is_blocked);
                let told = seen.run(130);
                assert!(matches!(
                    told[..],
                    [(60, Verdict::Held { .. }), (120, Verdict::Held { .. })]
                ));
                // What was on purpose does not count.
                seen.held = Some(false);
                assert_eq!(seen.run(9), []);
            }
        }
    }

    #[test]
    fn time_without_looks_does_not_count() {
        let mut seen = seen();
        for _ in 0..30 {
            seen.now += Duration::from_secs(1000);
            assert_eq!(seen.run(0), []);
            assert_eq!(
                seen.silence.look(seen.now, Some(seen.sight), || Some(false)),
                Verdict::Nothing
            );
        }
    }
}
