//! When the guard acts, and what it does then.
//!
//! A xenstore domain that Xen has shut down, for whatever reason, is to go on. That takes three steps:
//!
//! 1. the try is counted, in the domain's own memory, so that it counts for the next guard, too, if this one dies;
//! 2. the processor is set as the image has published it;
//! 3. the domain is resumed.
//!
//! Up to the last step the domain stands still, and nothing of what it needs changes. So whoever begins again at the first step, wherever
//! the guard before has ended, does right. Once the new instance serves, it publishes anew, with no try counted.
//!
//! A domain that has stopped for a replacement ([`replace`](crate::replace)) is not touched while the program that replaces it lives.
//! If that ends too early, the guard has the old domain go on, or goes on where it has ended.
//!
//! A domain that runs is left alone, unless it is silent towards dom0 ([`silence`](crate::silence)): then it gets an NMI, which
//! the server takes for a failure of its own; and if that does not help, it is shut down, and revived as any other.
//!
//! The guard never acts on a domain that is being taken apart, or that somebody has paused: Xen does not tell who has, so it
//! was the administrator.

use crate::silence::{Sight, Silence, Verdict};
use std::fmt::{Display, Formatter};
use std::time::Duration;
use xen_kernel_rt::abi::domctl::info;
use xen_kernel_rt::abi::sched::{SHUTDOWN_NAMES, SHUTDOWN_SUSPEND};
use xen_kernel_rt::revival::record::{Record, Unusable};

/// How long the guard waits before each try to revive one instance. The last pause is longer than the minute after which
/// the server has forgotten its failures (`server/failure`). There are no more tries than these.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(65),
];

/// How often a domain is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// After so long it is tried again to go on with a replacement that was broken off: what was in the way may be gone.
const FINISH_AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked whether there is one, and whether what could not be done can be done now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A revived domain serves long before that.
const PATIENCE: Duration = Duration::from_secs(5);
/// A processor that was asleep when the domain was shut down sleeps on; after so long it is woken.
const ASLEEP: Duration = Duration::from_millis(100);

/// What Xen says of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// Bits as in [`info`].
    pub flags: u64,
    /// Its UUID.
    pub handle: [u8; 16],
    /// How long its processor has run, in nanoseconds.
    pub ran_ns: u64,
}

/// The steps of a revival.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The try is counted.
    Counted,
    /// The processor is set.
    Set,
    /// The domain goes on.
    Resumed,
}

/// The guard's world. An error is a sentence for the journal.
pub trait Host {
    /// The domid that the toolstack has written down as the xenstore's.
    fn store(&mut self) -> Option<u16>;
    /// What Xen says of a domain; `None` if there is none.
    ///
    /// # Errors
    /// Xen does not tell.
    fn info(&mut self, domid: u16) -> Result<Option<Info>, String>;
    /// What the domain's image has published, and how many tries are counted there.
    ///
    /// # Errors
    /// Its page cannot be read; the second: of no use.
    fn record(&mut self, domid: u16) -> Result<Result<(Record, u64), Unusable>, String>;
    /// Counts tries there.
    ///
    /// # Errors
    /// Its page cannot be written.
    fn count(&mut self, domid: u16, tries: u64) -> Result<(), String>;
    /// Sets the processor.
    ///
    /// # Errors
    /// Xen's refusal.
    fn set(&mut self, domid: u16, record: &Record, reason: u64) -> Result<(), String>;
    /// Has the domain go on.
    ///
    /// # Errors
    /// Xen's refusal.
    fn resume(&mut self, domid: u16) -> Result<(), String>;
    /// How far dom0's ring was read, if a request waits in it and the server has nothing to wait for.
    fn unread(&mut self) -> Option<u32>;
    /// Whether the domain's image says that it leaves dom0's ring unread on purpose; `None` if it says nothing.
    fn is_held(&mut self, domid: u16) -> Option<bool>;
    /// Shuts it down as its watchdog would.
    ///
    /// # Errors
    /// Xen's refusal.
    fn shut_down(&mut self, domid: u16) -> Result<(), String>;
    /// Whether a program is replacing it now.
    fn is_replaced(&mut self) -> bool;
    /// Goes on with a replacement that was broken off when the old domain was gone already; `None` if there is none.
    ///
    /// # Errors
    /// Why nobody serves yet.
    fn finish_replacement(&mut self) -> Option<Result<(), String>>;
    /// Wakes its processor.
    ///
    /// # Errors
    /// Xen's refusal.
    fn wake(&mut self, domid: u16) -> Result<(), String>;
    /// A clock.
    fn now(&self) -> Duration;
    /// A line for the journal. It never waits.
    fn say(&mut self, line: String);
    /// A step is done.
    fn done(&mut self, step: Step);
}

/// Where the guard is with the domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It runs, as far as anybody can tell.
    Well,
    /// It was found shut down at that time.
    Down { since: Duration },
    /// It was found shut down then, and resumed then; has it come back?
    Resumed { since: Duration, at: Duration, is_woken: bool },
}

/// The guard.
#[derive(Debug)]
pub struct Guard {
    /// The domain, and which of that number.
    domain: Option<(u16, [u8; 16])>,
    phase: Phase,
    /// What was said last: the same is not said twice in a row.
    said: String,
    /// How long it has been silent towards dom0.
    silence: Silence,
    /// A replacement that was broken off could not be gone on with: when that is tried again.
    finish_at: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            domain: None,
            phase: Phase::Well,
            said: String::new(),
            silence: Silence::default(),
            finish_at: Duration::ZERO,
        }
    }
}

/// The reason of a shutdown.
struct Reason(u64);

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match usize::try_from(self.0).ok().and_then(|n| SHUTDOWN_NAMES.get(n)) {
            Some(name) => f.write_str(name),
            None => write!(f, "reason {}", self.0),
        }
    }
}

impl Guard {
    /// Looks once, and acts if that is needed. Says how long to wait before the next look.
    pub fn look(&mut self, host: &mut impl Host) -> Duration {
        let Some(domid) = host.store() else {
            self.leave(host, "there is no xenstore domain any more");
            return LOOK_AGAIN;
        };
        if host.now() >= self.finish_at
            && let Some(finished) = host.finish_replacement()
        {
            self.finish_at = host.now().saturating_add(FINISH_AGAIN);
            let line = match finished {
                Ok(()) => "is over now".to_owned(),
                Err(why) => format!("cannot be gone on with: {why}"),
            };
            self.say_once(
                host,
                format!("a replacement of domain {domid} that was broken off {line}"),
            );
        }
        let info = match host.info(domid) {
            Ok(Some(info)) => info,
            Ok(None) => return self.see_none(host, domid),
            Err(why) => {
                self.say_once(host, format!("domain {domid} cannot be watched: {why}"));
                return LOOK_AGAIN;
            }
        };
        if info.flags & info::DYING != 0 {
            self.leave(host, &format!("domain {domid}, the xenstore, is being destroyed"));
            return LOOK_AGAIN;
        }
        if domid == 0 || info.flags & info::HVM_GUEST == 0 {
            self.say_once(host, format!("domain {domid} cannot be the xenstore: no PVH domain"));
            return LOOK_AGAIN;
        }
        if self.domain != Some((domid, info.handle)) {
            self.domain = Some((domid, info.handle));
            self.silence = Silence::default();
            // Another guard may have ended right behind the last step.
            let now = host.now();
            self.phase = match host.record(domid) {
                Ok(Ok((_, 1..))) => Phase::Resumed { since: now, at: now, is_woken: false },
                _ => Phase::Well,
            };
            let how =
                if info.flags & info::XS_DOMAIN == 0 { ", without Xen's flag for it" } else { "" };
            self.say_once(host, format!("watching domain {domid}, the xenstore{how}"));
        }
        if info.flags & info::SHUTDOWN == 0 {
            self.see_running(host, domid, info)
        } else if info.flags & info::PAUSED != 0 {
            self.say_once(
                host,
                format!(
                    "domain {domid} is shut down and paused: it is left alone until it is unpaused"
                ),
            );
            LOOK
        } else {
            self.see_shut_down(host, domid, info.flags >> info::SHUTDOWN_REASON & 0xff)
        }
    }

    /// There is no domain of that domid.
    fn see_none(&mut self, host: &mut impl Host, domid: u16) -> Duration {
        if host.is_replaced() {
            self.say_once(host, format!("domain {domid} is being replaced: it is left alone"));
            return LOOK;
        }
        let line = format!(
            "domain {domid}, the xenstore, does not exist any more: what it knew is gone, and the host needs a reboot"
        );
        self.leave(host, &line);
        LOOK_AGAIN
    }

    /// No domain to watch.
    fn leave(&mut self, host: &mut impl Host, line: &str) {
        self.phase = Phase::Well;
        if self.domain.take().is_some() {
            self.say_once(host, line.to_owned());
        }
    }

    /// Listens whether it serves dom0.
    fn listen(&mut self, host: &mut impl Host, domid: u16, info: Info) {
        let unread = host.unread().filter(|_| info.flags & info::PAUSED == 0);
        let sight = unread.map(|unread| Sight {
            unread,
            ran_ns: info.ran_ns,
            is_blocked: info.flags & info::BLOCKED != 0,
        });
        let verdict = self.silence.look(host.now(), sight, || host.is_held(domid));
        let (how, step) = match verdict {
            Verdict::Nothing => return,
            Verdict::ServesAgain => {
                self.said.clear();
                return self.say_once(host, format!("domain {domid} serves dom0 again"));
            }
            Verdict::Held { seconds } => {
                let line = format!(
                    "domain {domid} has left a request of dom0's unread for {seconds} s, and knows why: it is left alone"
                );
                return self.say_once(host, line);
            }
            Verdict::Sleeps { seconds, step } => {
                (format!("sleeps, and has left a request of dom0's unread for {seconds} s"), step)
            }
            Verdict::Works { seconds, step } => {
                (format!("has worked for {seconds} s and left a request of dom0's unread"), step)
            }
        };
        let (what, done) = if step % 2 == 0 {
            ("it gets an NMI", host.wake(domid))
        } else {
            ("it is shut down, to be revived", host.shut_down(domid))
        };
        let but = done.err().map_or_else(String::new, |why| format!(", which Xen refuses: {why}"));
        self.say_once(host, format!("domain {domid} {how}: {what}{but}"));
    }

    fn see_running(&mut self, host: &mut impl Host, domid: u16, info: Info) -> Duration {
        let flags = info.flags;
        match self.phase {
            Phase::Well => self.listen(host, domid, info),
            // Somebody else has resumed it.
            Phase::Down { .. } => self.phase = Phase::Well,
            Phase::Resumed { since, at, is_woken } => {
                let now = host.now();
                let serves = matches!(host.record(domid), Ok(Ok((_, 0))));
                if serves {
                    let took = now.saturating_sub(since).as_millis();
                    self.say_once(host, format!("domain {domid} serves again, after {took} ms"));
                    self.phase = Phase::Well;
                } else if now.saturating_sub(at) > PATIENCE {
                    let line =
                        format!("domain {domid} runs again, but has not said that it serves");
                    self.say_once(host, line);
                    self.phase = Phase::Well;
                } else if !is_woken && flags & info::BLOCKED != 0 && now.saturating_sub(at) > ASLEEP
                {
                    if let Err(why) = host.wake(domid) {
                        self.say_once(host, format!("domain {domid} cannot be woken: {why}"));
                    }
                    self.phase = Phase::Resumed { since, at, is_woken: true };
                }
            }
        }
        LOOK
    }

    fn see_shut_down(&mut self, host: &mut impl Host, domid: u16, reason: u64) -> Duration {
        if host.is_replaced() {
            self.say_once(host, format!("domain {domid} is being replaced: it is left alone"));
            return LOOK;
        }
        // Only a store says how it is revived: somebody else may have its domid in a file that is out of date.
        if reason == u64::from(SHUTDOWN_SUSPEND) && matches!(host.record(domid), Ok(Ok(_))) {
            // Nothing has failed: it goes on where it stopped.
            let line = match host.resume(domid) {
                Ok(()) => format!(
                    "domain {domid} waited for a replacement that was broken off: it goes on"
                ),
                Err(why) => {
                    format!("domain {domid} waits for a replacement that was broken off: {why}")
                }
            };
            self.say_once(host, line);
            return LOOK;
        }
        let now = host.now();
        let since = match self.phase {
            Phase::Down { since } => since,
            Phase::Well | Phase::Resumed { .. } => now,
        };
        self.phase = Phase::Down { since };
        let what = format!("domain {domid} was shut down ({})", Reason(reason));
        let (record, tries) = match host.record(domid) {
            Ok(Ok(found)) => found,
            Ok(Err(why)) => {
                self.say_once(host, format!("{what} and cannot be revived: {why}"));
                return LOOK_AGAIN;
            }
            Err(why) => {
                self.say_once(host, format!("{what}, and its memory cannot be read: {why}"));
                return LOOK_AGAIN;
            }
        };
        let Some(pause) = usize::try_from(tries).ok().and_then(|tries| PAUSES.get(tries)) else {
            let line =
                format!("{what} again after {tries} tries: given up. The host needs a reboot");
            self.say_once(host, line);
            return LOOK_AGAIN;
        };
        if now.saturating_sub(since) < *pause {
            let seconds = pause.as_secs();
            self.say_once(host, format!("{what} after try {tries}: the next one in {seconds} s"));
            return LOOK;
        }
        let tries = tries.saturating_add(1);
        match revive(host, domid, &record, reason, tries) {
            Ok(()) => {
                let at = host.now();
                let took = at.saturating_sub(now).as_millis();
                self.say_once(host, format!("{what}: revived, try {tries}, in {took} ms"));
                self.phase = Phase::Resumed { since, at, is_woken: false };
                LOOK
            }
            Err(why) => {
                self.say_once(host, format!("{what} and cannot be revived: {why}"));
                LOOK_AGAIN
            }
        }
    }

    fn say_once(&mut self, host: &mut impl Host, line: String) {
        if line != self.said {
            host.say(line.clone());
            self.said = line;
        }
    }
}

fn revive(
    host: &mut impl Host,
    domid: u16,
    record: &Record,
    reason: u64,
    tries: u64,
) -> Result<(), String> {
    host.count(domid, tries)?;
    host.done(Step::Counted);
    host.set(domid, record, reason)?;
    host.done(Step::Set);
    host.resume(domid)?;
    host.done(Step::Resumed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_kernel_rt::revival::record::NO_DOMID;

    const CRASH: u64 = 3;
    const STORE: u64 = info::HVM_GUEST | info::XS_DOMAIN;
    const DOWN: u64 = STORE | info::SHUTDOWN | CRASH << info::SHUTDOWN_REASON;

    const SUSPENDED: u64 = STORE | info::SHUTDOWN | 2 << info::SHUTDOWN_REASON;

    /// What the domain does once it is resumed.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Then {
        Serves,
        Fails,
        Sleeps,
    }

    /// A host with one domain.
    #[derive(Debug)]
    struct Simulated {
        store: Option<u16>,
        info: Option<Info>,
        record: Result<u64, Unusable>,
        then: Then,
        is_set: bool,
        resumed: u32,
        woken: u32,
        /// A request of dom0's waits, and what the image says of that.
        unread: Option<u32>,
        held: Option<bool>,
        /// An NMI does not help.
        is_stuck: bool,
        now: Duration,
        lines: Vec<String>,
        is_replaced: bool,
        broken_off: Option<Result<(), String>>,
        /// The guard dies behind this step: nothing that it does after that has an effect.
        dies_behind: Option<Step>,
        is_dead: bool,
    }

    fn host(flags: u64) -> Simulated {
        Simulated {
            store: Some(1),
            info: Some(Info { flags, handle: [7; 16], ran_ns: 0 }),
            record: Ok(0),
            then: Then::Serves,
            is_set: false,
            resumed: 0,
            woken: 0,
            unread: None,
            held: Some(false),
            is_stuck: false,
            now: Duration::from_secs(1000),
            lines: Vec::new(),
            is_replaced: false,
            broken_off: None,
            dies_behind: None,
            is_dead: false,
        }
    }

    impl Simulated {
        fn alive(&self) -> Result<(), String> {
            if self.is_dead { Err("dead".to_owned()) } else { Ok(()) }
        }

        fn shut_down(&mut self) {
            self.info = Some(Info { flags: DOWN, handle: [7; 16], ran_ns: 0 });
            self.is_set = false;
        }

        /// Looks for that long.
        fn run(&mut self, guard: &mut Guard, seconds: u64) {
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end && !self.is_dead {
                let pause = guard.look(self);
                self.now += pause;
            }
        }

        fn told(&self, part: &str) -> usize {
            self.lines.iter().filter(|line| line.contains(part)).count()
        }
    }

    impl Host for Simulated {
        fn store(&mut self) -> Option<u16> {
            self.store
        }
        fn info(&mut self, domid: u16) -> Result<Option<Info>, String> {
            assert_eq!(Some(domid), self.store);
            Ok(self.info)
        }
        fn record(&mut self, _: u16) -> Result<Result<(Record, u64), Unusable>, String> {
            let record = Record { domid: NO_DOMID, ..Record::default() };
            Ok(self.record.map(|tries| (record, tries)))
        }
        fn count(&mut self, _: u16, tries: u64) -> Result<(), String> {
            self.alive()?;
            self.record = Ok(tries);
            Ok(())
        }
        fn set(&mut self, _: u16, _: &Record, reason: u64) -> Result<(), String> {
            self.alive()?;
            assert_eq!(reason, CRASH);
            self.is_set = true;
            Ok(())
        }
        fn resume(&mut self, _: u16) -> Result<(), String> {
            self.alive()?;
            let suspended = self.info.is_some_and(|info| info.flags == SUSPENDED);
            assert!(self.is_set || suspended, "resumed where it had failed");
            self.resumed += 1;
            match self.then {
                Then::Fails => self.shut_down(),
                Then::Serves => {
                    self.record = Ok(0);
                    self.info = Some(Info { flags: STORE, handle: [7; 16], ran_ns: 0 });
                }
                Then::Sleeps => {
                    self.info =
                        Some(Info { flags: STORE | info::BLOCKED, handle: [7; 16], ran_ns: 0 });
                }
            }
            Ok(())
        }
        fn is_replaced(&mut self) -> bool {
            self.is_replaced
        }
        fn finish_replacement(&mut self) -> Option<Result<(), String>> {
            let finished = self.broken_off.clone();
            if finished == Some(Ok(())) {
                self.info = Some(Info { flags: STORE, handle: [7; 16], ran_ns: 0 });
                self.broken_off = None;
            }
            finished
        }
        fn wake(&mut self, _: u16) -> Result<(), String> {
            self.woken += 1;
            self.record = Ok(0);
            if !self.is_stuck {
                self.unread = None;
            }
            Ok(())
        }
        fn unread(&mut self) -> Option<u32> {
            self.unread
        }
        fn is_held(&mut self, _: u16) -> Option<bool> {
            self.held
        }
        fn shut_down(&mut self, _: u16) -> Result<(), String> {
            assert_eq!(self.record, Ok(0), "nothing says how to go on");
            self.shut_down();
            self.unread = None;
            Ok(())
        }
        fn now(&self) -> Duration {
            self.now
        }
        fn say(&mut self, line: String) {
            self.lines.push(line);
        }
        fn done(&mut self, step: Step) {
            self.is_dead |= self.dies_behind == Some(step);
        }
    }

    #[test]
    fn a_domain_that_runs_is_left_alone() {
        let (mut guard, mut host) = (Guard::default(), host(STORE));
        host.run(&mut guard, 10);
        assert_eq!((host.resumed, host.is_set, host.woken), (0, false, 0));
        assert_eq!(host.lines, ["watching domain 1, the xenstore"]);
    }

    #[test]
    fn one_that_sleeps_over_a_request_of_dom0_is_woken_and_then_shut_down() {
        let (mut guard, mut host) = (Guard::default(), host(STORE | info::BLOCKED));
        for n in 1..4 {
            host.unread = Some(8);
            host.run(&mut guard, 11);
            assert_eq!(
                (host.woken, host.resumed, host.told("serves dom0 again")),
                (n, 0, n as usize)
            );
        }
        // Not at once again, and not by an NMI alone.
        (host.unread, host.is_stuck) = (Some(8), true);
        host.run(&mut guard, 25);
        assert_eq!((host.woken, host.resumed), (4, 0));
        host.run(&mut guard, 10);
        assert_eq!((host.woken, host.resumed, host.told("to be revived")), (4, 1, 1));
        assert_eq!((host.told("revived, try 1"), host.told("serves again")), (1, 1));
    }

    #[test]
    fn one_that_is_paused_or_waits_on_purpose_is_not_silent() {
        for (flags, held) in [
            (STORE | info::BLOCKED | info::PAUSED, Some(false)),
            (STORE | info::BLOCKED, Some(true)),
            (STORE | info::BLOCKED, None),
            (STORE, Some(false)),
        ] {
            let (mut guard, mut host) = (Guard::default(), host(flags));
            (host.unread, host.held) = (Some(8), held);
            host.run(&mut guard, 600);
            assert_eq!(
                (host.woken, host.resumed, host.is_set),
                (0, 0, false),
                "{flags:x} {held:?}"
            );
            assert!(host.lines.len() < 15);
        }
    }

    #[test]
    fn one_that_was_shut_down_goes_on_at_once() {
        let (mut guard, mut host) = (Guard::default(), host(STORE));
        for _ in 0..50 {
            host.run(&mut guard, 3);
            host.shut_down();
            host.run(&mut guard, 1);
        }
        assert_eq!(host.resumed, 50);
        assert_eq!(host.lines[1], "domain 1 was shut down (crash): revived, try 1, in 0 ms");
        assert_eq!(host.lines[2], "domain 1 serves again, after 25 ms");
    }

    #[test]
    fn tries_have_an_end_whoever_makes_them() {
        let mut host = host(DOWN);
        host.then = Then::Fails;
        let mut guard = Guard::default();
        host.run(&mut guard, 30);
        assert_eq!(host.resumed, 4);
        host.run(&mut guard, 600);
        assert_eq!((host.resumed, host.told("given up")), (5, 1));
        // A new guard begins where the old one ended.
        host.run(&mut Guard::default(), 600);
        assert_eq!((host.resumed, host.told("given up")), (5, 2));
        assert!(host.lines.len() < 20, "{:#?}", host.lines);
    }

    #[test]
    fn a_guard_may_die_behind_each_step() {
        for step in [Step::Counted, Step::Set, Step::Resumed] {
            let mut host = host(DOWN);
            host.dies_behind = Some(step);
            host.run(&mut Guard::default(), 5);
            assert!(host.is_dead, "{step:?}");
            (host.dies_behind, host.is_dead) = (None, false);
            host.run(&mut Guard::default(), 5);
            assert_eq!((host.resumed, host.record), (1, Ok(0)), "{step:?}");
        }
        // Right behind the last one, with a processor that was asleep.
        let mut host = host(DOWN);
        (host.dies_behind, host.then) = (Some(Step::Resumed), Then::Sleeps);
        host.run(&mut Guard::default(), 5);
        (host.dies_behind, host.is_dead) = (None, false);
        host.run(&mut Guard::default(), 5);
        assert_eq!((host.resumed, host.woken), (1, 1));
    }

    #[test]
    fn a_processor_that_was_asleep_is_woken_once() {
        let (mut guard, mut host) = (Guard::default(), host(DOWN));
        host.then = Then::Sleeps;
        host.run(&mut guard, 5);
        assert_eq!((host.resumed, host.woken, host.told("serves again")), (1, 1, 1));
    }

    #[test]
    fn whoever_pauses_it_is_heeded() {
        let (mut guard, mut host) = (Guard::default(), host(STORE | info::PAUSED));
        host.run(&mut guard, 5);
        assert_eq!(host.lines.len(), 1);
        host.info = Some(Info { flags: DOWN | info::PAUSED, handle: [7; 16], ran_ns: 0 });
        host.run(&mut guard, 5);
        assert_eq!((host.resumed, host.told("left alone")), (0, 1));
        host.shut_down();
        host.run(&mut guard, 5);
        assert_eq!(host.resumed, 1);
    }

    #[test]
    fn no_other_domain_is_touched() {
        let hopeless = [
            (Some(1), DOWN | info::DYING),
            (Some(1), DOWN & !info::HVM_GUEST),
            (Some(0), DOWN),
            (None, DOWN),
        ];
        for (store, flags) in hopeless {
            let mut host = host(flags);
            host.store = store;
            host.run(&mut Guard::default(), 5);
            assert_eq!((host.resumed, host.is_set, host.record), (0, false, Ok(0)), "{store:?}");
        }
        // One whose image has published nothing, or for another domain.
        for why in [Unusable::Nothing, Unusable::OtherDomain(5), Unusable::Damaged] {
            let mut host = host(DOWN);
            host.record = Err(why);
            host.run(&mut Guard::default(), 5);
            assert_eq!((host.resumed, host.told("cannot be revived")), (0, 1), "{why}");
        }
    }

    #[test]
    fn a_replacement_is_left_alone_until_its_program_ends() {
        let (mut guard, mut host) = (Guard::default(), host(SUSPENDED));
        host.is_replaced = true;
        host.run(&mut guard, 5);
        assert_eq!((host.resumed, host.told("is being replaced")), (0, 1));
        host.is_replaced = false;
        host.run(&mut guard, 5);
        assert_eq!((host.resumed, host.is_set, host.record), (1, false, Ok(0)));
        // Whatever it dies of meanwhile.
        host.is_replaced = true;
        host.shut_down();
        host.run(&mut guard, 5);
        host.info = None;
        host.run(&mut guard, 5);
        assert_eq!((host.resumed, host.told("does not exist")), (1, 0));
    }

    #[test]
    fn a_replacement_that_was_broken_off_is_gone_on_with_once() {
        let (mut guard, mut host) = (Guard::default(), host(STORE));
        host.run(&mut guard, 1);
        (host.info, host.broken_off) = (None, Some(Ok(())));
        host.run(&mut guard, 5);
        assert_eq!((host.told("is over now"), host.info.is_some()), (1, true));
        (host.info, host.broken_off) = (None, Some(Err("why".to_owned())));
        host.run(&mut guard, 50);
        assert_eq!(host.told("cannot be gone on with: why"), 1);
        // What was in the way is gone.
        host.broken_off = Some(Ok(()));
        host.run(&mut guard, 60);
        assert_eq!((host.told("is over now"), host.info.is_some()), (2, true));
    }

    #[test]
    fn a_guest_that_is_suspended_is_none_of_the_guards_business() {
        let (mut guard, mut host) = (Guard::default(), host(SUSPENDED));
        host.record = Err(Unusable::Nothing);
        host.run(&mut guard, 30);
        assert_eq!((host.resumed, host.is_set), (0, false));
    }

    #[test]
    fn a_new_domain_is_a_new_story() {
        let (mut guard, mut host) = (Guard::default(), host(STORE));
        host.run(&mut guard, 1);
        host.info = None;
        host.run(&mut guard, 5);
        host.info = Some(Info { flags: STORE & !info::XS_DOMAIN, handle: [8; 16], ran_ns: 0 });
        host.run(&mut guard, 5);
        assert_eq!(
            host.lines[1..],
            [
                "domain 1, the xenstore, does not exist any more: what it knew is gone, and the host needs a reboot",
                "watching domain 1, the xenstore, without Xen's flag for it"
            ]
        );
    }
}
