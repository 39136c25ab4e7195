//! The service: who asks, when they are served, and how much they may have.
//!
//! A [`Server`] is one value that owns everything: the world behind [`platform::Platform`], the store, the connections.
//! It runs to completion on one CPU:
//!
//! * `turns`: who is served when, and how much each may have: `schedule`, `timers`, `rate`, `memory`, `accounts`.
//! * `rings`: bytes of one client, in and out: `connection`, `queue`; where to find whom: `connections`, `sums`.
//! * `requests`: one request from its header to its reply: `operations`, `dispatch`, `handlers`.
//! * `domains`: introduction, shutdown and death: `lifecycle`, `by_domid`. The first steps: `start`. Clients that come
//!   another way: `local`.
//! * `admin`: what administrators ask and are told: `control`, `checking`, `dump`, `stats`, `figures`, `options`, `log`,
//!   `refusals`.
//! * `handover`: how one instance becomes the next: live update (`update`, `save`, `restore`), going on after a failure
//!   (`failure`), a start from another server's stream (`revive`).
//!
//! What a room offers to the others stands in its `mod.rs`.
#![forbid(unsafe_code)]
// Nothing that a client sends may reach a panic: whoever wants one here has to say why.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
// Memory may be refused: .clippy.toml has the calls that do not say so.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)
)]

mod admin;
mod domains;
mod handover;
pub mod platform;
mod requests;
mod rings;
mod turns;

pub use handover::Offer;
pub use turns::Pass;

use crate::mem::{Budget, Map, NoMemory, TryVec};
use crate::proto::id::{ConnId, DomId, EvtchnPort};
use crate::store::Store;
use admin::Dump;
use admin::History;
use admin::Latency;
use admin::Options;
use admin::{Checking, Maxima};
use admin::{LineBudget, Repeated, Switches};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use domains::ByDomid;
use domains::{Domain, Scan};
use handover::Account;
pub use handover::split_tail;
use handover::{Failures, InProgress};
use handover::{Passage, Upload};
use platform::Platform;
use rings::Connections;
use rings::Figures;
use rings::{Done, Messages};
use turns::Reserve;
use turns::Stage;
use turns::Timers;
use turns::{Asked, Causes};

/// The memory that the server needs before it has any client.
#[expect(clippy::expect_used, reason = "nobody is there yet who could have caused it")]
fn at_the_start<T>(made: Result<T, NoMemory>) -> T {
    made.expect("memory for an empty server")
}

/// The budget for work before the first guest is served, and for tests.
#[cfg_attr(not(test), expect(clippy::disallowed_types, reason = "see there"))]
type Text = alloc::string::String;

/// The whole xenstore service.
pub struct Server<P: Platform> {
    platform: P,
    store: Store,
    options: Options,
    /// The domain that may do everything.
    privileged: DomId,
    /// The domain that the server runs in, where Xen tells.
    own_domid: Option<DomId>,
    /// Domains that existed before the server did, until the server has looked whether they wait for it.
    existing: Vec<DomId>,
    connections: Connections<P::Ring>,
    /// What waits for them.
    messages: Messages,
    /// Messages that have left the queues of connections, whose accounts are not settled yet.
    trash: Done,
    ports: Map<EvtchnPort, ConnId>,
    domains: ByDomid<Domain>,
    /// Requests of which something still waits in a queue.
    causes: Causes,
    /// How much work the turn may still do.
    budget: Budget,
    /// Whose turn is next.
    stage: Stage,
    /// Finding out what became of domains, if that is under way.
    scan: Option<Scan>,
    /// The request that is being handled, if its messages are charged.
    asked: Option<Asked>,
    /// Scratch space.
    reply: Vec<u8>,
    /// How many connections that are short of memory have to be looked at before the server may sleep.
    short_left: usize,
    /// Nothing was left to do when the last pass ended.
    slept: bool,
    /// The next connection in the look at all rings that is under way.
    rescanned: Option<ConnId>,
    /// What idle domains leave to busy ones in the write-rate limit.
    reserve: Reserve,
    /// When connections want to be served even if nobody signals.
    timers: Timers,
    next_connection: u32,
    next_cause: u64,
    /// The latest moment that is known; see [`Server::read_clock`].
    now_ms: u64,
    started_ms: u64,
    next_rescan_ms: u64,
    /// How long requests took, and how many are left until the next one is measured.
    latency: Latency,
    unmeasured: u32,
    /// The figures of connections that are no more.
    past: Figures,
    /// What became of the server itself.
    history: History,
    /// What it is doing, and when it has failed.
    in_progress: InProgress,
    failures: Failures,
    warned_of_unknown_states: bool,
    /// Events that the store had dropped when that was last reported.
    dropped_before: u64,
    next_drop_line_ms: u64,
    /// The rations of lines, by [`Repeated`].
    line_budgets: [LineBudget; Repeated::COUNT],
    switches: Switches,
    /// The command line as it was given, for a successor that gets no other.
    command_line: Text,
    /// The part of a successor's image that has arrived.
    upload: Option<Upload>,
    /// The stream that an administrator is fetching.
    dump: Option<Dump>,
    last_dump: u64,
    /// What the predecessor said that its domains use, if it counted by other prices. It is kept until the trial
    /// is over.
    said: Vec<Account>,
    /// A check that an administrator has asked for.
    checking: Option<Checking>,
    /// What guests used at most, while somebody waits for that answer.
    maxima: Option<Maxima>,
    /// The hand-over that is due, or that made this instance.
    passage: Option<Passage>,
}

impl<P: Platform> fmt::Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.connections.len())
            .field("domains", &self.domains.len())
            .finish_non_exhaustive()
    }
}

impl<P: Platform> Server<P> {
    /// A server that has not started: it knows its command line and has an initial store.
    pub fn new(mut platform: P, command_line: &str) -> Self {
        let (existing, control) = domains::find_existing(&mut platform);
        let mut server = at_the_start(Self::blank(platform, command_line));
        server.existing = existing;
        server.privileged = server.options.privileged.or(control).unwrap_or(DomId(0));
        let seed = server.platform.hash_seed();
        let quotas = server.options.quotas;
        server.store = at_the_start(Store::new(seed, server.privileged, quotas));
        at_the_start(server.know_privileged());
        server
    }

    /// A server with nothing but its command line.
    ///
    /// # Errors
    /// There is no memory, which for a successor on trial is no wonder.
    fn blank(mut platform: P, command_line: &str) -> Result<Self, NoMemory> {
        let options = Options::parse(command_line);
        for complaint in &options.complaints {
            platform.log(format_args!("command line: {complaint}"));
        }
        let (seed, now_ms) = (platform.hash_seed(), platform.now_ms());
        let own_domid = platform.own_domid();
        let privileged = options.privileged.unwrap_or(DomId(0));
        let mut words = Vec::new();
        words.try_extend(command_line.as_bytes())?;
        Ok(Self {
            platform,
            store: Store::new(seed, privileged, options.quotas)?,
            options,
            privileged,
            own_domid,
            existing: Vec::new(),
            connections: Connections::new(seed),
            messages: Messages::new(seed)?,
            trash: Done::NONE,
            ports: Map::new(seed),
            domains: ByDomid::new(),
            causes: Map::new(seed),
            budget: Budget::endless(),
            stage: Stage::Scan,
            scan: None,
            asked: None,
            reply: Vec::new(),
            short_left: 0,
            slept: false,
            rescanned: None,
            reserve: Reserve::default(),
            timers: Timers::default(),
            next_connection: 1,
            next_cause: 0,
            now_ms,
            started_ms: now_ms,
            next_rescan_ms: now_ms,
            latency: Latency::default(),
            unmeasured: 0,
            past: Figures::default(),
            history: History::default(),
            in_progress: InProgress::default(),
            failures: Failures::default(),
            warned_of_unknown_states: false,
            dropped_before: 0,
            next_drop_line_ms: now_ms,
            line_budgets: [LineBudget::default(); Repeated::COUNT],
            switches: Switches::default(),
            command_line: Text::from_utf8(words).unwrap_or_default(),
            upload: None,
            dump: None,
            last_dump: 0,
            checking: None,
            maxima: None,
            said: Vec::new(),
            passage: None,
        })
    }

    /// Connects the domains that wait for the server and lets them start. Call this once, before the
    /// first step.
    pub fn start(&mut self) {
        let privileged = self.privileged;
        match self.own_domid {
            Some(own) => self.platform.log(format_args!(
                "serving in domain {own}; domain {privileged} is privileged"
            )),
            None => self.platform.log(format_args!(
                "serving in a domain whose domid Xen does not tell; domain {privileged} is privileged"
            )),
        }
        self.open_first();
        self.open_existing();
    }

    /// Serves for ever, after [`start`](Self::start) or [`take_over`](Self::take_over).
    pub fn run(&mut self) -> ! {
        loop {
            self.step();
        }
    }

    /// Checks everything: the store against itself, and the connections against the store. For tests: it takes
    /// memory and time without bounds, unlike CONTROL `check`.
    ///
    /// # Errors
    /// What is wrong, one finding a line.
    pub fn check(&self) -> Result<(), Text> {
        let mut findings = self.store.check().err().unwrap_or_default();
        self.check_connections(&mut |finding| {
            // Writing to a string does not fail.
            let _ = writeln!(findings, "{finding}");
        });
        for domid in self.store.domids() {
            if !self.domains.contains(domid) {
                let _ = writeln!(findings, "domain {domid}: known to the store only");
            }
        }
        if findings.is_empty() { Ok(()) } else { Err(findings) }
    }

    /// Checks that every byte of the heap is accounted for, and that the accounts are true. There must be no other
    /// server on the same heap.
    ///
    /// # Errors
    /// What is wrong, one finding a line.
    pub fn check_bytes(&self) -> Result<(), Text> {
        let mut findings = Text::new();
        self.check_sums(0, &mut |finding| {
            // Writing to a string does not fail.
            let _ = writeln!(findings, "{finding}");
        });
        if findings.is_empty() { Ok(()) } else { Err(findings) }
    }
}
