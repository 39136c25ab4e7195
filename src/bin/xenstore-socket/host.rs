//! The server's world without Xen: a clock, a log, and rings that are all in this program.

use crate::page::Page;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;
use core::hash::{BuildHasher, Hasher};
use std::hash::RandomState;
use std::io::Write as _;
use std::time::Instant;
use xenstore_stubdom::proto::id::{DomId, EvtchnPort};
use xenstore_stubdom::proto::sentence::Sentence;
use xenstore_stubdom::proto::stream::{OutOfRoom, Sink};
use xenstore_stubdom::server::platform::{
    Change, DomainState, Event, HeapStats, Platform, PlatformError,
};

/// What passes between the server and its clients besides bytes.
#[derive(Debug)]
pub(crate) struct Signals {
    /// To the server.
    events: VecDeque<Event>,
    /// From the server: whose ring it has touched.
    touched: BTreeSet<EvtchnPort>,
    next_port: u32,
}

/// A handle of the signals; clones are handles of the same.
#[derive(Clone, Debug)]
pub(crate) struct World(Rc<RefCell<Signals>>);

impl World {
    pub(crate) fn new() -> Self {
        let (events, touched) = (VecDeque::new(), BTreeSet::new());
        Self(Rc::new(RefCell::new(Signals { events, touched, next_port: 1 })))
    }

    /// A port that nobody has had before; 2^32 of them last longer than any program runs.
    pub(crate) fn new_port(&self) -> EvtchnPort {
        let mut signals = self.0.borrow_mut();
        let port = signals.next_port;
        signals.next_port = port.wrapping_add(1);
        EvtchnPort(port)
    }

    /// Tells the server that a ring has changed.
    pub(crate) fn signal(&self, port: EvtchnPort) {
        self.0.borrow_mut().events.push_back(Event::Port(port));
    }

    /// The next of the rings that the server has touched.
    pub(crate) fn next_touched(&self) -> Option<EvtchnPort> {
        self.0.borrow_mut().touched.pop_first()
    }
}

/// What becomes of any attempt.
const REFUSED: PlatformError = PlatformError { call: "live update", code: 38 };

/// There is no live update here, so nothing is ever handed over.
#[derive(Debug)]
pub(crate) enum NoRegion {}

impl Sink for NoRegion {
    fn append(&mut self, _: &[u8]) -> Result<(), OutOfRoom> {
        match *self {}
    }
}

/// What the server gets of this world.
#[derive(Debug)]
pub(crate) struct Host {
    world: World,
    start: Instant,
    seed: u64,
}

impl Host {
    pub(crate) fn new(world: World) -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self { world, start: Instant::now(), seed }
    }
}

impl Platform for Host {
    type Ring = Page;
    type Region = NoRegion;

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn rough_ms(&self) -> u64 {
        self.now_ms()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A program in the control domain, as a daemon is.
    fn own_domid(&self) -> Option<DomId> {
        Some(DomId(0))
    }

    fn hash_seed(&self) -> u64 {
        self.seed
    }

    fn next_event(&mut self) -> Option<Event> {
        self.world.0.borrow_mut().events.pop_front()
    }

    /// The loop around the server waits for it.
    fn wait(&mut self, _: Option<u64>) {}

    /// Every domain has a ring to which it never writes.
    fn map_ring(&mut self, _: DomId) -> Result<Page, PlatformError> {
        Ok(Page::new())
    }

    fn bind(&mut self, _: DomId, _: u32) -> Result<EvtchnPort, PlatformError> {
        Ok(self.world.new_port())
    }

    /// What was said on the port before still counts.
    fn unbind(&mut self, _: EvtchnPort) {}

    fn notify(&mut self, port: EvtchnPort) {
        self.world.0.borrow_mut().touched.insert(port);
    }

    fn domain_state(&mut self, _: DomId) -> DomainState {
        DomainState::Unknown
    }

    fn next_change(&mut self) -> Change {
        Change::Unsupported
    }

    /// The operating system decides.
    fn reserve(&mut self, _: usize) -> bool {
        true
    }

    fn heap(&self) -> HeapStats {
        HeapStats { used: 0, size: 0, limit: usize::MAX, free: usize::MAX }
    }

    fn check_image(&mut self, _: &[u8]) -> Result<u32, Sentence> {
        Err(Sentence::from("this server is a program of the host and takes no images"))
    }

    fn new_region(&mut self) -> Result<NoRegion, PlatformError> {
        Err(REFUSED)
    }

    fn ring_token(&self, _: &Page) -> u64 {
        0
    }

    fn adopt_ring(&mut self, _: DomId, _: u64) -> Result<Page, PlatformError> {
        Err(REFUSED)
    }

    fn replace(&mut self, _: &[u8], _: &str, region: NoRegion, _: usize, _: u64) -> Sentence {
        match region {}
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        // Nobody may be there to read it.
        drop(writeln!(std::io::stderr(), "{line}"));
    }
}
