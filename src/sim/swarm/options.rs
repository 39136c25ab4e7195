//! The shape of a run: what its seed switches on and off.

use crate::sim::model::Setting;
use crate::sim::random::Random;
use alloc::string::String;
use core::fmt;
use std::format;

/// How many kinds of requests a workload mixes.
pub(super) const KINDS: usize = 18;

/// The limits of the server's defaults, but none for memory. Only the server knows how many bytes something takes,
/// so the model cannot foresee where such a limit applies.
const DEFAULTS: [u32; 10] = [1000, 128, 20, 0, 0, 10, 1024, 5, 2048, 2048];

/// Limits that every workload runs into.
const TIGHT: [u32; 10] = [18, 5, 3, 0, 0, 2, 14, 3, 24, 110];

/// What a seed chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many domains may live at once besides the first.
    pub guests: u16,
    /// How many of them are hostile.
    pub hostile: u16,
    /// How long it goes on.
    pub steps: u32,
    /// How often each kind of request is chosen.
    pub mix: [u32; KINDS],
    /// How many names there are: the fewer, the more often requests meet.
    pub names: usize,
    /// The longest piece that is written or read at once.
    pub piece: usize,
    /// How many requests a client has outstanding.
    pub outstanding: usize,
    /// How often the toolstack does something: once in so many steps.
    pub toolstack: u32,
    /// One in so many signals gets lost; 0 for none.
    pub losses: u32,
    /// One in so many requests for memory is refused; 0 for none.
    pub refusals: u32,
    /// Unread events expire, and the clock jumps far enough for it.
    pub expiry: bool,
    /// The hypervisor tells what changed, and unique ids.
    pub tells_changes: bool,
    /// The hypervisor tells anything about domains.
    pub tells_states: bool,
    /// Clients write when the server has just looked.
    pub late_writes: bool,
    /// Honest clients let their ring fill up for a while.
    pub lazy: bool,
    /// The server is replaced by a successor once in so many steps; 0 for never.
    pub updates: u32,
    /// The server fails once in so many steps; 0 for never.
    pub failures: u32,
    /// What the server was told of limits and time.
    pub setting: Setting,
}

impl Options {
    /// What this seed chooses.
    #[must_use]
    pub fn draw(random: &mut Random) -> Self {
        let mut mix = [0; KINDS];
        for weight in &mut mix {
            // Some kinds not at all, some very often.
            *weight = if random.one_in(5) { 0 } else { 1 + random.below(10) };
        }
        let mut limits = DEFAULTS;
        for (limit, tight) in limits.iter_mut().zip(TIGHT) {
            if random.one_in(4) {
                *limit = tight;
            }
        }
        let expiry = random.one_in(6);
        let tells_states = !random.one_in(10);
        let guests = 1 + random.below(6);
        Self {
            guests: u16::try_from(guests).unwrap_or(1),
            hostile: u16::try_from(if random.one_in(2) { 0 } else { random.below(guests + 1) })
                .unwrap_or(0),
            steps: 60 + random.below(400),
            mix,
            names: random.pick(&[1, 2, 5, 5]),
            piece: random.pick(&[1, 7, 40, 300, 2000, 2000]),
            outstanding: random.pick(&[1, 1, 2, 5, 12]),
            toolstack: random.pick(&[4, 15, 40, 200]),
            losses: random.pick(&[0, 0, 0, 0, 3, 20]),
            refusals: random.pick(&[0, 0, 0, 0, 0, 7, 60]),
            expiry,
            tells_changes: tells_states && !random.one_in(4),
            tells_states,
            late_writes: random.one_in(3),
            lazy: random.one_in(3),
            updates: random.pick(&[0, 0, 100, 20, 5, 1]),
            failures: 0,
            setting: Setting { limits, event_timeout_ms: expiry.then_some(2000) },
        }
    }

    /// Has the server fail now and then. Then Xen reports which domains changed, since the model does not know of
    /// an interrupted look at all of them. And memory that is there is not refused, since the server cannot go on
    /// without it.
    pub fn fail(&mut self, random: &mut Random) {
        self.failures = random.pick(&[15, 40, 100]);
        self.refusals = 0;
        (self.tells_changes, self.tells_states) = (true, true);
    }

    /// The server's command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        let names = "nodes watches outstanding memory soft-memory transactions transaction-nodes \
                     node-permissions path-max node-size";
        let seconds = self.setting.event_timeout_ms.unwrap_or(0) / 1000;
        let mut line = format!("-w watch-event={seconds} -q memory=0");
        if self.failures > 0 {
            // However often it fails, it goes on, and nobody is given up for it.
            line.push_str(" --test-failures");
        }
        for (name, value) in names.split(' ').zip(self.setting.limits) {
            if name != "soft-memory" {
                line.push_str(&format!(" -Q {name}={value}"));
            }
        }
        line
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guests {} hostile {} steps {} names {} piece {} outstanding {} toolstack {} losses {} refusals {} \
             expiry {} tells {}/{} late {} lazy {} updates {} failures {} limits {:?} mix {:?}",
            self.guests,
            self.hostile,
            self.steps,
            self.names,
            self.piece,
            self.outstanding,
            self.toolstack,
            self.losses,
            self.refusals,
            self.expiry,
            self.tells_changes,
            self.tells_states,
            self.late_writes,
            self.lazy,
            self.updates,
            self.failures,
            self.setting.limits,
            self.mix
        )
    }
}
