//! [`Platform`] on Xen: the server's world. It has no logic of its own.

use super::abi::domctl::Domctl;
use super::abi::event_channel::BindVirq;
use super::abi::grant_table::RESERVED_XENSTORE;
use super::abi::xen::{VIRQ_DOM_EXC, errno};
use super::channels::{self, Channels};
use super::domctl::{self, Domctls, Hypervisor, Question};
use super::gnttab::{self, GrantedPage};
use super::handover::{self, Region, Request, Successor};
use super::start::Machine;
use super::traps::{self, Fault};
use super::{console, cpu, hypercall, memory, watch};
use crate::proto::handover::HANDOVER;
use crate::proto::id::{DomId, EvtchnPort};
use crate::proto::image::Image;
use crate::proto::sentence::{Sentence, sentence};
use crate::server::platform::{Change, DomainState, Event, HeapStats, Platform, PlatformError};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

/// The world of a xenstore domain.
#[derive(Debug)]
pub struct XenPlatform {
    machine: Machine,
    domctls: Domctls,
    /// Where Xen does not let this domain ask.
    channels: Option<Channels>,
    /// The port of `VIRQ_DOM_EXC`, unless Xen gives that to another domain.
    changes: Option<EvtchnPort>,
    seed: u64,
    own_domid: Option<DomId>,
    /// The moment when Xen was last asked again for memory that it had refused.
    asked_again_ms: u64,
    /// The state comes from another domain, and this server is not yet in its place.
    moved: Option<Moved>,
    /// For tests: after so many looks at the memory that is left it fails.
    looks_left: Cell<Option<u32>>,
}

/// What a server needs that takes over from another domain.
#[derive(Debug)]
struct Moved {
    /// Rings are not mapped: the domains have granted this one nothing.
    is_rehearsal: bool,
    /// Tokens of rings, by their own order, and what they were called by the old domain.
    tokens: Vec<(u64, u64)>,
}

impl Moved {
    /// A ring for the old domain's token.
    fn ring(&mut self, domid: DomId, token: u64) -> Result<GrantedPage, PlatformError> {
        let no_memory = PlatformError { call: "list of tokens", code: errno::ENOMEM };
        self.tokens.try_reserve(1).map_err(|_| no_memory)?;
        let mapped = match self.is_rehearsal {
            true => None,
            false => GrantedPage::map(domid, RESERVED_XENSTORE)
                .inspect_err(|error| {
                    // It may have died meanwhile, which is found later and undone in good order.
                    console::line(format_args!(
                        "domain {domid}: its ring cannot be mapped: {error}"
                    ));
                })
                .ok(),
        };
        let ring = mapped.map_or_else(GrantedPage::blank, Ok)?;
        let own = ring.token();
        let place = self.tokens.partition_point(|(other, _)| *other < own);
        self.tokens.insert(place, (own, token));
        Ok(ring)
    }

    /// What the old domain called a ring.
    fn old_token(&self, own: u64) -> u64 {
        let place = self.tokens.binary_search_by_key(&own, |(token, _)| *token);
        place.ok().and_then(|place| self.tokens.get(place)).map_or(own, |(_, old)| *old)
    }
}

/// After so long Xen is asked again for memory that it has refused.
const ASK_AGAIN_MS: u64 = 1000;

impl XenPlatform {
    /// Takes over the machine. Where Xen denies something, this is reported and done without.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let changes = match machine.inherited_changes() {
            Some(inherited) => inherited,
            None => domctl::bind_changes(&mut Xen),
        };
        let own_domid = super::start::own_domid();
        let domctls = Domctls::probe(&mut Xen);
        let channels = domctls.is_denied().then(|| Channels::new(own_domid));
        Self {
            machine,
            domctls,
            channels,
            changes,
            seed: seed(),
            own_domid,
            asked_again_ms: 0,
            moved: None,
            looks_left: Cell::new(None),
        }
    }

    /// The same for a state that comes from another domain, which this one is to replace, or only to rehearse that.
    #[must_use]
    pub fn of_another_domain(machine: Machine, is_rehearsal: bool) -> Self {
        let moved = Some(Moved { is_rehearsal, tokens: Vec::new() });
        Self { moved, ..Self::new(machine) }
    }

    /// Whether Xen has refused memory, and that is so long ago that it may be asked again.
    fn may_ask_again(&mut self) -> bool {
        let now = self.machine.rough_ms();
        if now.saturating_sub(self.asked_again_ms) < ASK_AGAIN_MS || !memory::forget_refusal() {
            return false;
        }
        self.asked_again_ms = now;
        true
    }

    /// The machine beneath.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

/// The Xen beneath us.
struct Xen;

impl Hypervisor for Xen {
    fn ask(&mut self, question: Question, domain: DomId) -> Result<Domctl, i32> {
        let mut argument = question.about(domain);
        // SAFETY: (1) a question takes no address; (2) it is only answered.
        match unsafe { hypercall::perform_on_memory(&mut argument) } {
            Ok(_) => Ok(argument),
            Err(error) => Err(error.code),
        }
    }

    fn bind_dom_exc(&mut self) -> Result<EvtchnPort, PlatformError> {
        let mut virq = BindVirq { virq: VIRQ_DOM_EXC, ..Default::default() };
        hypercall::perform(&mut virq)?;
        Ok(EvtchnPort(virq.port))
    }

    fn is_missing(&mut self, domain: DomId) -> bool {
        channels::is_missing(domain)
    }

    fn own_domid(&self) -> Option<DomId> {
        super::start::own_domid()
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        console::line(line);
    }
}

/// A number that a guest cannot know: the processor's random source where there is one, and the
/// low bits of a fast counter around a slow instruction in any case.
fn seed() -> u64 {
    let mut seed = cpu::random().unwrap_or(0);
    for _ in 0..16 {
        // CPUID always goes through the hypervisor, which takes a different time each time.
        let _ = cpu::cpuid(0, 0);
        seed = mix(seed ^ cpu::tsc());
    }
    seed
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit changes half the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Platform for XenPlatform {
    type Ring = GrantedPage;
    type Region = Region;

    fn now_ms(&self) -> u64 {
        self.machine.now_ms()
    }

    fn rough_ms(&self) -> u64 {
        self.machine.rough_ms()
    }

    fn now_us(&self) -> u64 {
        self.machine.now_us()
    }

    fn own_domid(&self) -> Option<DomId> {
        self.own_domid
    }

    fn hash_seed(&self) -> u64 {
        self.seed
    }

    fn next_event(&mut self) -> Option<Event> {
        let port = self.machine.next_port()?;
        Some(if self.changes == Some(port) { Event::DomainChange } else { Event::Port(port) })
    }

    fn wait(&mut self, deadline_ms: Option<u64>) {
        self.may_ask_again();
        let mut deadline_ms = deadline_ms;
        if memory::needs_tending() {
            let again = memory::tend(self.machine.now_ms());
            deadline_ms = [deadline_ms, again].into_iter().flatten().min();
        }
        self.machine.wait(deadline_ms);
    }

    fn map_ring(&mut self, domid: DomId) -> Result<GrantedPage, PlatformError> {
        GrantedPage::map(domid, RESERVED_XENSTORE)
    }

    fn bind(&mut self, domid: DomId, remote_port: u32) -> Result<EvtchnPort, PlatformError> {
        match &mut self.channels {
            Some(channels) => channels.bind(&self.machine, domid, remote_port),
            None => channels::bind(domid, remote_port),
        }
    }

    fn unbind(&mut self, port: EvtchnPort) {
        match &mut self.channels {
            Some(channels) => channels.unbind(&self.machine, port),
            None => self.machine.close_port(port),
        }
    }

    fn notify(&mut self, port: EvtchnPort) {
        self.machine.notify(port);
    }

    fn domain_state(&mut self, domid: DomId) -> DomainState {
        match &self.channels {
            Some(channels) => channels.state(domid),
            None => self.domctls.state(&mut Xen, domid),
        }
    }

    fn next_change(&mut self) -> Change {
        if let Some(channels) = &mut self.channels {
            channels.sweep(&self.machine);
        }
        self.domctls.next_change(&mut Xen)
    }

    fn reserve(&mut self, bytes: usize) -> bool {
        memory::reserve(bytes) || self.may_ask_again() && memory::reserve(bytes)
    }

    fn heap(&self) -> HeapStats {
        if let Some(looks) = self.looks_left.get() {
            self.looks_left.set(looks.checked_sub(1));
            assert!(looks > 0, "on purpose, in the middle of a request");
        }
        memory::heap()
    }

    fn held(&self) -> Option<usize> {
        // What the map of channels takes is not known; there is one only where Xen does not let this domain ask.
        self.channels.is_none().then(gnttab::held)
    }

    fn hypercalls(&self) -> u64 {
        hypercall::made()
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        console::line(line);
    }

    fn check_image(&mut self, image: &[u8]) -> Result<u32, Sentence> {
        let image = Image::parse(image).map_err(|error| sentence!("{error}"))?;
        image.check_versions(HANDOVER).map_err(|error| sentence!("{error}"))
    }

    fn prepare(&mut self) {
        memory::prepare(handover::pages_wanted());
    }

    fn new_region(&mut self) -> Result<Region, PlatformError> {
        Region::new()
    }

    fn ring_token(&self, ring: &GrantedPage) -> u64 {
        let token = ring.token();
        self.moved.as_ref().map_or(token, |moved| moved.old_token(token))
    }

    fn adopt_ring(&mut self, domid: DomId, token: u64) -> Result<GrantedPage, PlatformError> {
        match &mut self.moved {
            None => GrantedPage::adopt(token),
            Some(moved) => moved.ring(domid, token),
        }
    }

    fn replace(
        &mut self,
        image: &[u8],
        command_line: &str,
        region: Region,
        stream_len: usize,
        deadline_ms: u64,
    ) -> Sentence {
        match Image::parse(image) {
            Ok(image) => self.machine.hand_over(&Request {
                image: Successor::Uploaded(image),
                command_line,
                region: &region,
                stream_len,
                changes: self.changes.map(|port| port.0),
                deadline_ms,
            }),
            Err(error) => sentence!("{error}"),
        }
    }

    fn restart(
        &mut self,
        command_line: &str,
        region: Region,
        stream_len: usize,
        deadline_ms: u64,
    ) -> Sentence {
        self.machine.hand_over(&Request {
            image: Successor::Own,
            command_line,
            region: &region,
            stream_len,
            changes: self.changes.map(|port| port.0),
            deadline_ms,
        })
    }

    fn offer(&mut self, line: &str, region: Region, stream_len: usize) -> Sentence {
        self.machine.offer(line, region, stream_len)
    }

    fn fail(&mut self, what: &[u8]) -> bool {
        match what {
            b"panic" => traps::provoke(Fault::Panic),
            b"page-fault" => traps::provoke(Fault::Null),
            b"overflow" => traps::provoke(Fault::StackOverflow),
            b"hang" => traps::provoke(Fault::Hang),
            b"triple-fault" => traps::provoke(Fault::TripleFault),
            b"shutdown" => traps::provoke(Fault::Shutdown),
            b"hang-again" => {
                watch::hang_in_restart();
                traps::provoke(Fault::Panic)
            }
            b"heap" => memory::fail_in_growth(Fault::Panic),
            b"doubt" => memory::fail_in_doubt(Fault::Panic),
            b"window" => gnttab::fail_holding_window(Fault::Panic),
            b"frames" => memory::fail_holding_frames(Fault::Panic),
            b"memory" => {
                core::hint::black_box(alloc::vec![0_u8; usize::MAX / 4]);
                false
            }
            // In the middle of a later request: at the so-manieth look at the memory that is left.
            _ => core::str::from_utf8(what).ok().and_then(|text| text.parse().ok()).is_some_and(
                |looks| {
                    self.looks_left.set(Some(looks));
                    true
                },
            ),
        }
    }

    fn commit(&mut self) {
        self.moved = None;
        self.machine.commit();
    }
}
