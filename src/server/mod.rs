//! The service: who asks, when they are served, and how much they may have.
//!
//! A [`Server`] is one value that owns everything: the world behind [`platform::Platform`], the store, the connections.
//! It runs to completion on one CPU:
//!
//! * `schedule`: one pass after the other; who is served when, and when to sleep.
//! * `connection`, `queue`: bytes of one client, in and out.
//! * `dispatch`, `handlers`: one request from its header to its reply.
//! * `start`: the first steps.
//! * `domains`: introduction, shutdown and death of domains. `local`: clients that come another way.
//! * `control`, `stats`, `figures`, `dump`: what administrators ask.
//! * `accounts`, `memory`, `rate`: who pays for what waits, and what is refused.
//! * `update`, `save`, `restore`: live update. `revive`: a start from another server's stream.
//! * `options`: the command line. `log`, `refusals`: what goes to the console.
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

mod accounts;
mod connection;
mod control;
mod dispatch;
mod domains;
mod dump;
mod figures;
mod handlers;
mod local;
mod log;
mod memory;
pub mod options;
pub mod platform;
mod queue;
mod rate;
mod refusals;
mod restore;
mod revive;
mod save;
mod schedule;
mod start;
mod stats;
mod update;

pub use schedule::Pass;
pub use update::Offer;

use crate::proto::id::{ConnId, DomId, EvtchnPort};
use crate::store::Store;
use accounts::Cause;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use connection::{Connection, Figures};
use core::fmt;
use dispatch::Gathered;
use domains::Domain;
use dump::Dump;
use figures::History;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use log::{LineBudget, Repeated, Switches};
use options::Options;
use platform::Platform;
use queue::{CauseId, Released};
use rate::Reserve;
use restore::Account;
pub use restore::split_tail;
use stats::Latency;
use update::{Passage, Upload};

/// A store as it is at the start.
#[expect(
    clippy::expect_used,
    reason = "nobody is there yet; without memory for it there is no server"
)]
fn empty_store(seed: u64, privileged: DomId, options: &Options) -> Store {
    Store::new(seed, privileged, options.quotas).expect("memory for an empty store")
}

/// A map whose hashes a guest cannot foresee.
type Map<K, V> = HashMap<K, V, FixedState>;

/// The whole xenstore service.
pub struct Server<P: Platform> {
    platform: P,
    store: Store,
    options: Options,
    /// The domain that may do everything.
    privileged: DomId,
    /// The domain that the server runs in, where Xen tells.
    own_domid: Option<DomId>,
    /// Domains that existed before the server did, until it has looked whether they wait for it.
    existing: Vec<DomId>,
    connections: Map<ConnId, Box<Connection<P::Ring>>>,
    ports: Map<EvtchnPort, ConnId>,
    domains: BTreeMap<DomId, Domain>,
    /// Requests of which something still waits in a queue.
    causes: Map<CauseId, Cause>,
    /// Connections that may have work, in the order in which they get their turn.
    ready: VecDeque<ConnId>,
    /// Connections served since the last look before sleeping.
    served: Vec<ConnId>,
    /// Scratch space.
    released: Released,
    reply: Vec<u8>,
    gathered: Gathered,
    /// Connections that are not read because they, or the server, have no memory left.
    short_of_memory: Vec<ConnId>,
    /// What idle domains leave to busy ones in the write-rate limit.
    reserve: Reserve,
    /// When a connection wants to be served even if nobody signals; one entry each at most.
    timers: BTreeSet<(u64, ConnId)>,
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
    warned_of_unknown_states: bool,
    /// Events that the store had dropped when that was last reported.
    dropped_before: u64,
    next_drop_line_ms: u64,
    /// The rations of lines, by [`Repeated`].
    line_budgets: [LineBudget; Repeated::COUNT],
    switches: Switches,
    /// As it was given, for a successor that gets no other.
    command_line: String,
    /// The image of a successor, as far as it is here.
    upload: Option<Upload>,
    /// The stream that an administrator fetches.
    dump: Option<Dump>,
    last_dump: u64,
    /// What the predecessor said that its domains use, if it counted by other prices; until the trial is over.
    said: Vec<Account>,
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
        let (existing, control) = start::find_existing(&mut platform);
        let mut server = Self::blank(platform, command_line);
        server.existing = existing;
        server.privileged = server.options.privileged.or(control).unwrap_or(DomId(0));
        let seed = server.platform.hash_seed();
        server.store = empty_store(seed, server.privileged, &server.options);
        server.know_privileged();
        server
    }

    /// A server with nothing but its command line.
    fn blank(mut platform: P, command_line: &str) -> Self {
        let options = Options::parse(command_line);
        for complaint in &options.complaints {
            platform.log(format_args!("command line: {complaint}"));
        }
        let (seed, now_ms) = (platform.hash_seed(), platform.now_ms());
        let own_domid = platform.own_domid();
        let privileged = options.privileged.unwrap_or(DomId(0));
        Self {
            platform,
            store: empty_store(seed, privileged, &options),
            options,
            privileged,
            own_domid,
            existing: Vec::new(),
            connections: HashMap::with_hasher(FixedState::with_seed(seed)),
            ports: HashMap::with_hasher(FixedState::with_seed(seed)),
            domains: BTreeMap::new(),
            causes: HashMap::with_hasher(FixedState::with_seed(seed)),
            ready: VecDeque::new(),
            served: Vec::new(),
            released: Released::default(),
            reply: Vec::new(),
            gathered: Gathered::default(),
            short_of_memory: Vec::new(),
            reserve: Reserve::default(),
            timers: BTreeSet::new(),
            next_connection: 1,
            next_cause: 0,
            now_ms,
            started_ms: now_ms,
            next_rescan_ms: now_ms,
            latency: Latency::default(),
            unmeasured: 0,
            past: Figures::default(),
            history: History::default(),
            warned_of_unknown_states: false,
            dropped_before: 0,
            next_drop_line_ms: now_ms,
            line_budgets: [LineBudget::default(); Repeated::COUNT],
            switches: Switches::default(),
            command_line: String::from(command_line),
            upload: None,
            dump: None,
            last_dump: 0,
            said: Vec::new(),
            passage: None,
        }
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

    /// Checks everything against everything: the store against itself, and the connections against it.
    ///
    /// # Errors
    /// What is wrong, one finding a line.
    pub fn check(&self) -> Result<(), String> {
        let mut findings = self.store.check().err().unwrap_or_default();
        self.check_connections(&mut findings);
        if findings.is_empty() { Ok(()) } else { Err(findings) }
    }
}
