//! The hypervisor's side of the simulated world.

use super::journal::{Journal, PageId, Seen};
use super::memory::Memory;
use super::page::{SimPage, WeakPage};
use super::random::Random;
use crate::proto::handover::HANDOVER;
use crate::proto::id::{DomId, EvtchnPort};
use crate::proto::sentence::Sentence;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::server::platform::{
    Change, DomainState, Event, HeapStats, Identity, Platform, PlatformError,
};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{RefCell, RefMut};
use core::fmt;
use xen_kernel_rt::memory::bounded::outside;

/// The port that every simulated domain offers first.
const FIRST_OFFER: u32 = 10;

/// The domain that the server lives in.
const OWN_DOMID: DomId = DomId(32_000);

/// A simulated domain.
#[derive(Debug)]
struct Domain {
    unique_id: u64,
    /// What older versions of Xen show instead of the unique id.
    handle: [u8; 16],
    cpu_time: u64,
    /// It may build and destroy domains.
    control: bool,
    page: SimPage,
    /// The ring page is granted to the server.
    granted: bool,
    shutdown: bool,
    /// Ports that the server may bind.
    offers: BTreeSet<u32>,
    next_offer: u32,
    /// Signals from the server that it has got.
    signals: u64,
}

/// Everything that the world consists of.
#[derive(Debug)]
struct State {
    now_ms: u64,
    domains: BTreeMap<DomId, Domain>,
    next_unique_id: u64,
    /// The server's ports and what they lead to.
    ports: BTreeMap<EvtchnPort, (DomId, u32)>,
    next_port: u32,
    /// How many domains the server has lived in before this one.
    own_serial: u64,
    /// The server says that it leaves the first domain's ring unread on purpose.
    is_held_back: bool,
    events: VecDeque<Event>,
    changed: BTreeSet<DomId>,
    /// Xen tells which domains changed, and their unique ids.
    tells_changes: bool,
    /// Xen tells anything about domains at all.
    tells_states: bool,
    /// If not, the end of a domain can be seen nevertheless.
    shows_ends: bool,
    heap_free: usize,
    /// The memory of the server's domain, if it has an end.
    memory: Option<Memory>,
    /// Domains about which Xen tells nothing, though it does about others (an XSM policy).
    hidden: BTreeSet<DomId>,
    /// One in so many requests for memory is refused although there is some; 0 for none.
    refusals: u32,
    /// One in so many signals, in both directions, gets lost; 0 for none.
    losses: u32,
    chance: Random,
    hash_seed: u64,
    next_page: PageId,
    /// Every page that somebody has: the server may have mapped a page whose domain is gone.
    pages: BTreeMap<PageId, WeakPage>,
    /// The most bytes that a region takes.
    region_max: usize,
    /// The server fails when it has called the world so often.
    calls_left: Option<u32>,
    journal: Journal,
    console: Vec<String>,
}

/// A handle of the world; clones are handles of the same.
#[derive(Clone, Debug)]
pub struct World(Rc<RefCell<State>>);

/// What the server gets of the world.
#[derive(Debug)]
pub struct SimPlatform(World);

impl Default for World {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(State {
            now_ms: 1000,
            domains: BTreeMap::new(),
            next_unique_id: 1,
            ports: BTreeMap::new(),
            next_port: 1,
            own_serial: 0,
            is_held_back: false,
            events: VecDeque::new(),
            changed: BTreeSet::new(),
            tells_changes: true,
            tells_states: true,
            shows_ends: false,
            heap_free: usize::MAX,
            memory: None,
            hidden: BTreeSet::new(),
            refusals: 0,
            losses: 0,
            chance: Random::new(0),
            hash_seed: 0x5eed,
            next_page: 0,
            pages: BTreeMap::new(),
            region_max: usize::MAX,
            calls_left: None,
            journal: Journal::default(),
            console: Vec::new(),
        })))
    }
}

impl World {
    /// A world without domains.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// The server's access. As Xen does, this marks all domains as changed.
    #[must_use]
    pub fn platform(&self) -> SimPlatform {
        let mut state = self.state();
        let existing = state.domains.keys().copied().collect::<Vec<_>>();
        state.changed.extend(existing);
        drop(state);
        SimPlatform(self.clone())
    }

    /// The access of a server that takes over from another one: nothing is marked.
    #[must_use]
    pub fn successor(&self) -> SimPlatform {
        SimPlatform(self.clone())
    }

    /// The server's domain is destroyed: its ports are closed, and what was bound can be bound again.
    pub fn lose_server(&self) {
        let mut state = self.state();
        for (_, (domid, remote_port)) in core::mem::take(&mut state.ports) {
            if let Some(domain) = state.domains.get_mut(&domid) {
                domain.offers.insert(remote_port);
            }
        }
    }

    /// Chooses how many bytes can be handed over.
    pub fn set_region_max(&self, bytes: usize) {
        self.state().region_max = bytes;
    }

    /// Forgets the pages that nobody has any more.
    pub(super) fn forget_lost_pages(&self) {
        self.state().pages.retain(|_, page| page.get().is_some());
    }

    /// Makes a domain with a granted, empty ring page and an offered port; returns the port.
    pub fn create(&self, domid: DomId) -> u32 {
        let mut state = self.state();
        let unique_id = state.next_unique_id;
        state.next_unique_id += 1;
        state.next_page += 1;
        let page = SimPage::watched(state.journal.clone(), state.next_page);
        let number = state.next_page;
        state.pages.insert(number, page.weak());
        let domain = Domain {
            unique_id,
            handle: u128::from(unique_id).to_le_bytes(),
            cpu_time: 0,
            control: domid == DomId(0),
            page,
            granted: true,
            shutdown: false,
            offers: BTreeSet::from([FIRST_OFFER]),
            next_offer: FIRST_OFFER + 1,
            signals: 0,
        };
        state.domains.insert(domid, domain);
        FIRST_OFFER
    }

    /// The record of what passes between the server and this world.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.state().journal.clone()
    }

    /// Seeds the faults below, and the server's hash tables if it has not been made yet.
    pub fn seed(&self, seed: u64) {
        let mut state = self.state();
        state.chance = Random::new(seed);
        state.hash_seed = state.chance.next_u64();
    }

    /// Refuses memory once in so many times although there is some; 0 for never.
    pub fn set_refusals(&self, one_in: u32) {
        self.state().refusals = one_in;
    }

    /// Has the server panic when it has called the world so many times more, wherever that is; `None` for never.
    /// Only calls in the middle of its work count: memory, signals, lines, questions about domains, their pages
    /// and ports.
    pub fn set_failure(&self, calls: Option<u32>) {
        self.state().calls_left = calls;
    }

    /// Whether the failure that was set has not happened yet.
    #[must_use]
    pub fn has_failure(&self) -> bool {
        self.state().calls_left.is_some()
    }

    /// Runs a look at the server, which does not fail meanwhile.
    pub(super) fn look<R>(&self, f: impl FnOnce() -> R) -> R {
        let left = self.state().calls_left.take();
        let seen = f();
        self.state().calls_left = left;
        seen
    }

    /// A call that counts for [`set_failure`](Self::set_failure).
    fn count_call(&self) {
        let is_over = {
            let mut state = self.state();
            let left = state.calls_left;
            state.calls_left = left.and_then(|left| left.checked_sub(1));
            left == Some(0)
        };
        if is_over {
            // As a panic, without a word about it.
            outside(|| std::panic::resume_unwind(Box::new("the server fails on purpose")));
        }
    }

    /// Loses one in so many signals, in both directions; 0 for none.
    pub fn set_losses(&self, one_in: u32) {
        self.state().losses = one_in;
    }

    /// Whether there is such a domain.
    #[must_use]
    pub fn exists(&self, domid: DomId) -> bool {
        self.state().domains.contains_key(&domid)
    }

    /// A notification that domains changed, true or not.
    pub fn announce_change(&self) {
        self.state().events.push_back(Event::DomainChange);
    }

    /// Offers one more port of a domain to the server.
    ///
    /// # Panics
    /// If there is no such domain.
    pub fn offer(&self, domid: DomId) -> u32 {
        let mut state = self.state();
        let domain = state.domains.get_mut(&domid).expect("the domain exists");
        let port = domain.next_offer;
        domain.next_offer += 1;
        domain.offers.insert(port);
        port
    }

    /// The handle of a domain changes, as when a toolstack renames it.
    pub fn set_handle(&self, domid: DomId, handle: [u8; 16]) {
        if let Some(domain) = self.state().domains.get_mut(&domid) {
            domain.handle = handle;
        }
    }

    /// A domain has run for so many nanoseconds.
    pub fn set_cpu_time(&self, domid: DomId, ns: u64) {
        if let Some(domain) = self.state().domains.get_mut(&domid) {
            domain.cpu_time = ns;
        }
    }

    /// Chooses whether a domain has control.
    pub fn set_control(&self, domid: DomId, control: bool) {
        if let Some(domain) = self.state().domains.get_mut(&domid) {
            domain.control = control;
        }
    }

    /// The domid of the domain that the server lives in.
    #[must_use]
    pub fn own_domid(&self) -> DomId {
        OWN_DOMID
    }

    /// Takes the grant of the ring page back, or gives it again.
    pub fn set_granted(&self, domid: DomId, granted: bool) {
        if let Some(domain) = self.state().domains.get_mut(&domid) {
            domain.granted = granted;
        }
    }

    /// The domain shuts down, or, resumed, is no longer shut down. Xen tells about the former.
    pub fn set_shutdown(&self, domid: DomId, shutdown: bool) {
        let mut state = self.state();
        if let Some(domain) = state.domains.get_mut(&domid) {
            domain.shutdown = shutdown;
        }
        if shutdown {
            state.changed.insert(domid);
            state.events.push_back(Event::DomainChange);
        }
    }

    /// The domain dies.
    pub fn destroy(&self, domid: DomId) {
        let mut state = self.state();
        state.domains.remove(&domid);
        state.changed.insert(domid);
        state.events.push_back(Event::DomainChange);
    }

    /// Chooses whether Xen tells which domains changed and their unique ids, as it does from 4.21 on.
    pub fn set_tells_changes(&self, tells: bool) {
        self.state().tells_changes = tells;
    }

    /// Chooses whether the server may ask about domains at all.
    pub fn set_tells_states(&self, tells: bool) {
        self.state().tells_states = tells;
    }

    /// Chooses whether the end of a domain can be seen where Xen tells nothing.
    pub fn set_shows_ends(&self, shows: bool) {
        self.state().shows_ends = shows;
    }

    /// Gives the server's domain memory with an end. Before the server is made.
    pub fn set_memory(&self, memory: Memory) {
        self.state().memory = Some(memory);
    }

    /// The memory of the server's domain, if it has an end.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        self.state().memory.clone()
    }

    /// Runs the server's own code, on its own memory.
    pub fn serve<R>(&self, f: impl FnOnce() -> R) -> R {
        match self.memory() {
            Some(memory) => memory.enter(f),
            None => f(),
        }
    }

    /// Chooses whether Xen refuses to tell about this domain, as an XSM policy may.
    pub fn set_hidden(&self, domid: DomId, hidden: bool) {
        let mut state = self.state();
        if hidden {
            state.hidden.insert(domid);
        } else {
            state.hidden.remove(&domid);
        }
    }

    /// Chooses how many bytes the server's heap has left.
    pub fn set_heap_free(&self, bytes: usize) {
        self.state().heap_free = bytes;
    }

    /// The page of a domain.
    ///
    /// # Panics
    /// If there is no such domain.
    #[must_use]
    pub fn page(&self, domid: DomId) -> SimPage {
        self.state().domains.get(&domid).expect("the domain exists").page.clone()
    }

    /// A domain signals the server, if they are connected.
    pub fn signal(&self, domid: DomId) {
        let mut state = self.state();
        if state.loses() {
            return;
        }
        let ports = state.ports.iter().filter(|(_, (peer, _))| *peer == domid);
        let events = ports.map(|(port, _)| Event::Port(*port)).collect::<Vec<_>>();
        state.events.extend(events);
    }

    /// The server's domain is destroyed, with its ports and what was pending on them; the other ends can be bound again, by
    /// whoever has its domid. Says what each port was bound to. The next domain's ports have other numbers, which are those
    /// that others had.
    pub fn lose_ports(&self) -> Vec<(DomId, EvtchnPort, u32)> {
        let mut state = self.state();
        state.events.clear();
        state.next_port = 2;
        state.own_serial += 1;
        let ports = core::mem::take(&mut state.ports);
        let lost = ports.into_iter().map(|(port, (domid, remote))| {
            if let Some(domain) = state.domains.get_mut(&domid) {
                domain.offers.insert(remote);
            }
            (domid, port, remote)
        });
        lost.collect()
    }

    /// How many signals a domain has got from the server.
    #[must_use]
    pub fn signals(&self, domid: DomId) -> u64 {
        self.state().domains.get(&domid).map_or(0, |domain| domain.signals)
    }

    /// Whether the server says that it leaves the first domain's ring unread on purpose.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.state().is_held_back
    }

    /// How many ports the server has bound.
    #[must_use]
    pub fn bound_ports(&self) -> usize {
        self.state().ports.len()
    }

    /// The clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.state().now_ms
    }

    /// Moves the clock; never back.
    pub fn set_clock(&self, now_ms: u64) {
        let mut state = self.state();
        state.now_ms = state.now_ms.max(now_ms);
    }

    /// Takes the lines that the server has printed.
    #[must_use]
    pub fn take_console(&self) -> Vec<String> {
        core::mem::take(&mut self.state().console)
    }
}

impl State {
    /// Whether the next signal gets lost.
    fn loses(&mut self) -> bool {
        self.losses > 0 && self.chance.one_in(self.losses)
    }

    fn domain_state(&self, domid: DomId) -> DomainState {
        if self.hidden.contains(&domid) && self.domains.contains_key(&domid) {
            return DomainState::Unknown;
        }
        if !self.tells_states {
            if self.shows_ends && domid != OWN_DOMID && !self.domains.contains_key(&domid) {
                return DomainState::Gone;
            }
            return DomainState::Unknown;
        }
        if domid == OWN_DOMID {
            let identity = if self.tells_changes {
                Identity::Unique(u64::MAX.wrapping_sub(self.own_serial))
            } else {
                // Each has run for less time than the one before.
                let cpu_time = u64::MAX.wrapping_sub(self.own_serial);
                Identity::Traits { handle: [1; 16], cpu_time }
            };
            return DomainState::Exists { shutdown: false, control: false, identity };
        }
        self.domains.get(&domid).map_or(DomainState::Gone, |domain| DomainState::Exists {
            shutdown: domain.shutdown,
            control: self.tells_changes && domain.control,
            identity: if self.tells_changes {
                Identity::Unique(domain.unique_id)
            } else {
                Identity::Traits { handle: domain.handle, cpu_time: domain.cpu_time }
            },
        })
    }
}

/// What is handed over from one server to the next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// All of it.
    pub bytes: Vec<u8>,
    max: usize,
}

impl Sink for Region {
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        if bytes.len() > self.max.saturating_sub(self.bytes.len()) {
            return Err(OutOfRoom);
        }
        outside(|| self.bytes.extend_from_slice(bytes));
        Ok(())
    }
}

impl Platform for SimPlatform {
    type Ring = SimPage;
    type Region = Region;

    fn now_ms(&self) -> u64 {
        outside(|| {
            let now_ms = self.0.now_ms();
            self.0.state().journal.note(|| Seen::Clock(now_ms));
            now_ms
        })
    }

    fn rough_ms(&self) -> u64 {
        outside(|| {
            let now_ms = self.now_ms();
            now_ms.saturating_sub(now_ms.wrapping_rem(1000))
        })
    }

    fn now_us(&self) -> u64 {
        outside(|| self.0.now_ms().saturating_mul(1000))
    }

    fn own_domid(&self) -> Option<DomId> {
        outside(|| Some(OWN_DOMID))
    }

    fn hash_seed(&self) -> u64 {
        outside(|| self.0.state().hash_seed)
    }

    fn next_event(&mut self) -> Option<Event> {
        outside(|| self.0.state().events.pop_front())
    }

    fn hold_back(&mut self, is_held: bool) {
        self.0.state().is_held_back = is_held;
    }

    fn wait(&mut self, deadline_ms: Option<u64>) {
        outside(|| {
            if let Some(deadline_ms) = deadline_ms {
                self.0.set_clock(deadline_ms);
            }
        });
    }

    fn map_ring(&mut self, domid: DomId) -> Result<SimPage, PlatformError> {
        self.0.count_call();
        outside(|| {
            let state = self.0.state();
            let page = state.domains.get(&domid).filter(|domain| domain.granted).map(|d| &d.page);
            state.journal.note(|| Seen::Mapped(domid, page.map(SimPage::id)));
            page.cloned().ok_or(PlatformError { call: "GNTTABOP_map_grant_ref", code: 3 })
        })
    }

    fn bind(&mut self, domid: DomId, remote_port: u32) -> Result<EvtchnPort, PlatformError> {
        self.0.count_call();
        outside(|| {
            let mut state = self.0.state();
            let offered =
                state.domains.get_mut(&domid).is_some_and(|d| d.offers.remove(&remote_port));
            if !offered {
                state.journal.note(|| Seen::Bound(domid, None));
                return Err(PlatformError { call: "EVTCHNOP_bind_interdomain", code: 22 });
            }
            let port = EvtchnPort(state.next_port);
            state.next_port += 1;
            state.ports.insert(port, (domid, remote_port));
            state.journal.note(|| Seen::Bound(domid, Some(port)));
            // Xen marks a freshly bound port as pending.
            state.events.push_back(Event::Port(port));
            Ok(port)
        })
    }

    fn unbind(&mut self, port: EvtchnPort) {
        self.0.count_call();
        outside(|| {
            let mut state = self.0.state();
            state.journal.note(|| Seen::Unbound(port));
            if let Some((domid, remote_port)) = state.ports.remove(&port) {
                // The other end can be bound again.
                if let Some(domain) = state.domains.get_mut(&domid) {
                    domain.offers.insert(remote_port);
                }
            }
        });
    }

    fn notify(&mut self, port: EvtchnPort) {
        self.0.count_call();
        outside(|| {
            let mut state = self.0.state();
            if let Some((domid, _)) = state.ports.get(&port).copied() {
                if state.loses() {
                    return;
                }
                if let Some(domain) = state.domains.get_mut(&domid) {
                    domain.signals += 1;
                }
            }
        });
    }

    fn domain_state(&mut self, domid: DomId) -> DomainState {
        self.0.count_call();
        outside(|| {
            let state = self.0.state();
            let answer = state.domain_state(domid);
            state.journal.note(|| Seen::State(domid, answer));
            answer
        })
    }

    fn next_change(&mut self) -> Change {
        self.0.count_call();
        outside(|| {
            let mut state = self.0.state();
            if !state.tells_changes || !state.tells_states {
                state.journal.note(|| Seen::Scan);
                return Change::Unsupported;
            }
            match state.changed.pop_first() {
                Some(domid) => {
                    let answer = state.domain_state(domid);
                    state.journal.note(|| Seen::Changed(domid, answer));
                    Change::Domain(domid, answer)
                }
                None => {
                    state.journal.note(|| Seen::ScanEnd);
                    Change::Done
                }
            }
        })
    }

    fn reserve(&mut self, bytes: usize) -> bool {
        self.0.count_call();
        outside(|| {
            let mut state = self.0.state();
            let refused = state.refusals;
            let is_there = state.memory.as_ref().is_none_or(|memory| memory.reserve(bytes));
            let granted = is_there
                && bytes <= state.heap_free
                && !(refused > 0 && state.chance.one_in(refused));
            state.journal.note(|| Seen::Memory(bytes, granted));
            granted
        })
    }

    fn heap(&self) -> HeapStats {
        self.0.count_call();
        outside(|| {
            let state = self.0.state();
            let free = state.heap_free;
            let Some(memory) = &state.memory else {
                return HeapStats { used: 0, size: free, limit: free, free };
            };
            let stats = memory.stats();
            HeapStats { free: stats.free.min(free), ..stats }
        })
    }

    fn held(&self) -> Option<usize> {
        outside(|| self.0.state().memory.as_ref().map(|_| 0))
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        self.0.count_call();
        outside(|| {
            self.0.state().console.push(line.to_string());
        });
    }

    fn check_image(&mut self, image: &[u8]) -> Result<u32, Sentence> {
        outside(|| {
            if image.starts_with(b"\x7fELF") {
                Ok(*HANDOVER.end())
            } else {
                Err(Sentence::from("the file is not an ELF image"))
            }
        })
    }

    fn new_region(&mut self) -> Result<Region, PlatformError> {
        outside(|| {
            let max = self.0.state().region_max;
            if max == 0 {
                return Err(PlatformError { call: "XENMEM_populate_physmap", code: 12 });
            }
            Ok(Region { bytes: Vec::new(), max })
        })
    }

    fn ring_token(&self, ring: &SimPage) -> u64 {
        outside(|| ring.id().into())
    }

    fn adopt_ring(&mut self, _domid: DomId, token: u64) -> Result<SimPage, PlatformError> {
        outside(|| {
            let state = self.0.state();
            let page = u32::try_from(token).ok().and_then(|page| state.pages.get(&page)?.get());
            page.ok_or(PlatformError { call: "adopt", code: 2 })
        })
    }

    fn leave_ring(&mut self, ring: SimPage) {
        outside(|| {
            // A view of a page is nothing that has to be given back.
            drop(ring);
        });
    }

    fn replace(
        &mut self,
        _image: &[u8],
        _command_line: &str,
        _region: Region,
        _stream_len: usize,
        _deadline_ms: u64,
    ) -> Sentence {
        outside(|| Sentence::from("in this world servers are replaced by Simulation::hand_over"))
    }
}
