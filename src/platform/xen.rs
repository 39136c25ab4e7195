//! [`Platform`] on Xen. It has no logic of its own.

use super::channels::{self, Channels};
use super::domctl::{self, Domctls, Hypervisor};
use crate::proto::handover::HANDOVER;
use crate::proto::image::Image;
use crate::proto::replacement::{self, Offer};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{OutOfRoom, Sink};
use crate::server::platform::{Change, DomainState, Event, HeapStats, Platform, PlatformError};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use xen_kernel_rt::abi::domctl::Domctl;
use xen_kernel_rt::abi::grant_table::RESERVED_XENSTORE;
use xen_kernel_rt::abi::xen::{VIRQ_DOM_EXC, errno};
use xen_kernel_rt::domains::{self, Question};
use xen_kernel_rt::gnttab::{self, GrantedPage};
use xen_kernel_rt::handover::{self, Failure, Region, Request, Successor};
use xen_kernel_rt::id::{DomId, EvtchnPort};
use xen_kernel_rt::slot::NewImage;
use xen_kernel_rt::start::{self, Machine};
use xen_kernel_rt::traps::{self, Fault};
use xen_kernel_rt::{Refusal, console, events, hypercall, memory, random, revival, watch};

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
    /// Whose ring could not be mapped. It gets no port either, so that its toolstack can introduce it again.
    unmapped: Vec<DomId>,
}

impl Moved {
    /// A ring for the old domain's token.
    fn ring(&mut self, domid: DomId, token: u64) -> Result<GrantedPage, PlatformError> {
        let no_memory = PlatformError { call: "list of tokens", code: errno::ENOMEM };
        self.tokens.try_reserve(1).map_err(|_| no_memory)?;
        self.unmapped.try_reserve(1).map_err(|_| no_memory)?;
        let mapped = match self.is_rehearsal {
            true => None,
            false => GrantedPage::map(domid, RESERVED_XENSTORE)
                .inspect_err(|error| {
                    // It may have died meanwhile, which is found later and undone in good order.
                    console::line(format_args!(
                        "domain {domid}: its ring cannot be mapped: {error}"
                    ));
                    self.unmapped.push(domid);
                })
                .ok(),
        };
        let ring = mapped.map_or_else(GrantedPage::blank, Ok).map_err(refused)?;
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
        let own_domid = start::own_domid();
        let domctls = Domctls::probe(&mut Xen);
        let channels = domctls.is_denied().then(|| Channels::new(own_domid));
        Self {
            machine,
            domctls,
            channels,
            changes,
            seed: random::seed(),
            own_domid,
            asked_again_ms: 0,
            moved: None,
            looks_left: Cell::new(None),
        }
    }

    /// The same for a state that comes from another domain, which this one is to replace, or only to rehearse that.
    #[must_use]
    pub fn of_another_domain(machine: Machine, is_rehearsal: bool) -> Self {
        let moved = Some(Moved { is_rehearsal, tokens: Vec::new(), unmapped: Vec::new() });
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
        domains::ask(question, domain)
    }

    fn bind_dom_exc(&mut self) -> Result<EvtchnPort, PlatformError> {
        events::bind_virq(VIRQ_DOM_EXC).map_err(refused)
    }

    fn is_missing(&mut self, domain: DomId) -> bool {
        events::is_missing(domain)
    }

    fn own_domid(&self) -> Option<DomId> {
        start::own_domid()
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        console::line(line);
    }
}

impl Sink for Region {
    #[inline]
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        Self::append(self, bytes).map_err(|_| OutOfRoom)
    }
}

/// The runtime's refusal in the server's words.
fn refused(refusal: Refusal) -> PlatformError {
    PlatformError { call: refusal.call, code: refusal.code }
}

/// Why a hand-over came to nothing.
fn sentence_of(failure: &Failure) -> Sentence {
    let Failure::NoMemory(bytes) = failure else { return sentence!("{failure}") };
    sentence!(
        "not enough memory: the new image needs {} KiB beside this one; raise the memory of the \
         xenstore domain, or its maximum",
        bytes / 1024
    )
}

/// Offers a region to dom0 for another domain, and stops until dom0 has this one go on. Says why it does.
fn offer(machine: &mut Machine, line: &str, mut region: Region, stream_len: usize) -> Sentence {
    if console::kept(replacement::OFFSET) != Some(replacement::WANTED) {
        return Sentence::from("nobody in dom0 waits for its state: xenstore-stubdom replace does");
    }
    let (len, digest) = (region.len(), region.digest());
    if line.len() >= handover::COMMAND_LINE_MAX || region.append(line.as_bytes()).is_err() {
        return Sentence::from("there is no memory for its command line");
    }
    let offer = Offer {
        region: region.first_frame(),
        stream_len: stream_len as u64,
        private_len: len.saturating_sub(stream_len) as u64,
        line_len: line.len() as u64,
        digest,
    };
    if !console::keep(replacement::OFFSET, &offer.to_bytes()) {
        return Sentence::from("there is no console page, so dom0 cannot be told of its state");
    }
    // Returns when dom0 resumes the domain.
    machine.suspend();
    if !console::keep(replacement::OFFSET, &[0; replacement::SIZE]) {
        console::both(format_args!("xen: an offer to dom0 that does not hold any more stays"));
    }
    Sentence::from("dom0 has this domain go on")
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

    fn hold_back(&mut self, is_held: bool) {
        revival::hold_back(is_held);
    }

    fn map_ring(&mut self, domid: DomId) -> Result<GrantedPage, PlatformError> {
        GrantedPage::map(domid, RESERVED_XENSTORE).map_err(refused)
    }

    fn bind(&mut self, domid: DomId, remote_port: u32) -> Result<EvtchnPort, PlatformError> {
        if self.moved.as_ref().is_some_and(|moved| moved.unmapped.contains(&domid)) {
            return Err(PlatformError { call: "its ring is not mapped", code: errno::ENOENT });
        }
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
        let memory::HeapStats { used, size, limit, free } = memory::heap();
        HeapStats { used, size, limit, free }
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
        Region::new().map_err(refused)
    }

    fn ring_token(&self, ring: &GrantedPage) -> u64 {
        let token = ring.token();
        self.moved.as_ref().map_or(token, |moved| moved.old_token(token))
    }

    fn adopt_ring(&mut self, domid: DomId, token: u64) -> Result<GrantedPage, PlatformError> {
        match &mut self.moved {
            None => GrantedPage::adopt(token).map_err(refused),
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
        let image = match Image::parse(image) {
            Ok(image) => image,
            Err(error) => return sentence!("{error}"),
        };
        let new =
            NewImage::new(image.size(), image.entry(), image.segments(), image.bridge_layout());
        let Some(new) = new else { return Sentence::from("the image has too many segments") };
        sentence_of(&self.machine.hand_over(&Request {
            image: Successor::New(&new),
            command_line,
            region: &region,
            stream_len,
            changes: self.changes,
            deadline_ms,
        }))
    }

    fn restart(
        &mut self,
        command_line: &str,
        region: Region,
        stream_len: usize,
        deadline_ms: u64,
    ) -> Sentence {
        sentence_of(&self.machine.hand_over(&Request {
            image: Successor::Own,
            command_line,
            region: &region,
            stream_len,
            changes: self.changes,
            deadline_ms,
        }))
    }

    fn offer(&mut self, line: &str, region: Region, stream_len: usize) -> Sentence {
        offer(&mut self.machine, line, region, stream_len)
    }

    fn fail(&mut self, what: &[u8]) -> bool {
        match what {
            b"panic" => traps::provoke(Fault::Panic),
            b"page-fault" => traps::provoke(Fault::Null),
            b"overflow" => traps::provoke(Fault::StackOverflow),
            b"hang" => traps::provoke(Fault::Hang),
            b"triple-fault" => traps::provoke(Fault::TripleFault),
            b"shutdown" => traps::provoke(Fault::Shutdown),
            b"hang-masked" => traps::provoke(Fault::HangMasked),
            b"deaf" => {
                self.machine.mask_all();
                true
            }
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
