//! One connection: a ring, its event channel, the request that is being read, and the messages that wait.
//!
//! Nothing here knows what a request means or who else is connected. Every access to the page is one pass
//! over a snapshot of its indices (`proto::ring`).

use super::connections::{Links, List};
use super::queue::{Done, Messages, Queue};
use crate::mem::NIL;
use crate::proto::assemble::{AssembleError, Assembler};
use crate::proto::error::XsError;
use crate::proto::handover::{FieldReader, FieldWriter, Short};
use crate::proto::id::{DomId, EvtchnPort};
use crate::proto::ring::{self, BadIndices, Requests, Responses, RingError, RingPage, Word};
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::{HEADER_SIZE, Header, features};
use crate::server::admin::{Repeated, Told, log};
use crate::server::turns::{Asked, WriteCredit};

/// How often impossible indices are looked at again before they cost the connection: the firmware of an HVM
/// guest zeroes the four words one by one, and the server may look just then.
const DOUBT_TRIES: u32 = 5;

/// The pause before each of those looks.
const DOUBT_PAUSE_MS: u64 = 10;

/// What is wrong with a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Fault {
    /// The indices make no sense; it may pass.
    Indices,
    /// A header announced more than a payload may have.
    Oversize(u32),
    /// There is no memory for a request, so it stays in the ring: nobody's fault.
    NoMemory,
    /// A header of nothing but ones: firmware fills its rings with them when it is done, so perhaps the
    /// indices were seen while they were being zeroed.
    Ones,
}

impl From<BadIndices> for Fault {
    fn from(_: BadIndices) -> Self {
        Self::Indices
    }
}

/// Whether a connection is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum State {
    /// It is.
    Connected,
    /// The ring is neither read nor written any more; the domain stays introduced.
    Ignored,
}

/// Why a ring is not read although there may be something in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Suspension {
    /// Too many of its requests have answers and events that are not all read yet.
    Outstanding,
    /// The domain holds as much memory as it may, or the server has none left.
    Memory,
    /// It writes faster than others can commit their transactions; it may go on at this moment.
    Rate(u64),
}

/// Work that goes on in later turns. Until it is done the connection's ring is not read.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) enum Busy {
    /// The reply to a request.
    Reply { header: Header, answer: Result<(), XsError>, asked: Option<Asked> },
    /// The reply to a request about a domain. It comes when everybody has been told what the request did to that
    /// domain.
    News { header: Header, domid: DomId },
    /// The ring is emptied, and the domain may start over.
    StartOver,
    /// The end of the check that it asked for.
    Check,
}

/// Why an event was not delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Lost {
    /// Its receiver may not hold more memory.
    Quota,
    /// The server has no memory left.
    Memory,
}

/// Impossible indices were seen.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    tries: u32,
    until_ms: u64,
}

/// The result of another look at impossible indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Verdict {
    /// Look again later.
    Wait,
    /// Give the ring up: no honest client takes so long.
    Condemned,
}

/// Figures for the administrator.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct Figures {
    pub(in crate::server) requests: u64,
    pub(in crate::server) events: u64,
    pub(in crate::server) dropped_events: u64,
    /// Bytes of complete requests.
    pub(in crate::server) bytes_in: u64,
    /// Bytes of replies and events, read or not.
    pub(in crate::server) bytes_out: u64,
}

impl Figures {
    /// Adds the figures of another connection.
    pub(in crate::server) fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.events = self.events.saturating_add(other.events);
        self.dropped_events = self.dropped_events.saturating_add(other.dropped_events);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    /// Counts a message that is queued.
    pub(in crate::server) fn queued(&mut self, payload: usize) {
        self.bytes_out = self.bytes_out.saturating_add(message_bytes(payload));
    }

    /// Counts the bytes of a request that is complete.
    pub(in crate::server) fn received(&mut self, payload: usize) {
        self.bytes_in = self.bytes_in.saturating_add(message_bytes(payload));
    }
}

/// Bytes of a message with a payload of that size.
fn message_bytes(payload: usize) -> u64 {
    payload.saturating_add(HEADER_SIZE) as u64
}

impl Figures {
    fn numbers(&mut self) -> [&mut u64; 5] {
        let Self { requests, events, dropped_events, bytes_in, bytes_out } = self;
        [requests, events, dropped_events, bytes_in, bytes_out]
    }

    /// Writes them for a successor.
    pub(in crate::server) fn write<S: Sink>(
        mut self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        self.numbers().into_iter().try_for_each(|number| fields.u64(*number))
    }

    /// Reads them.
    pub(in crate::server) fn read(fields: &mut FieldReader<'_>) -> Result<Self, Short> {
        let mut new = Self::default();
        for number in new.numbers() {
            *number = fields.u64()?;
        }
        Ok(new)
    }
}

/// One connection.
#[derive(Debug)]
pub(in crate::server) struct Connection<R> {
    /// Who is behind it.
    pub(in crate::server) domid: DomId,
    /// Whether it may do everything and is bound by no quota.
    pub(in crate::server) privileged: bool,
    /// Whether it came another way than by the introduction of its domain.
    pub(in crate::server) is_local: bool,
    /// The feature bits that the domain has been shown.
    pub(in crate::server) features: u32,
    /// Our end of the event channel; `None` if it could not be bound.
    pub(in crate::server) port: Option<EvtchnPort>,
    pub(in crate::server) ring: R,
    pub(in crate::server) assembler: Assembler,
    pub(in crate::server) queue: Queue,
    state: State,
    doubt: Option<Doubt>,
    /// Whether the peer has to be told that bytes were taken or put.
    pub(in crate::server) must_notify: bool,
    /// Its neighbours in the server's lists.
    pub(in crate::server) links: Links,
    /// Why the last event was lost, if the administrator has to be told.
    pub(in crate::server) lost: Option<Lost>,
    pub(in crate::server) busy: Option<Busy>,
    /// A complete request in the assembler waits until a domain that it names is quite gone.
    pub(in crate::server) waits: bool,
    pub(in crate::server) suspension: Option<Suspension>,
    /// When to serve it even if nobody signals: its time in the server's timers.
    pub(in crate::server) wake_at_ms: Option<u64>,
    /// Its place among the timers, or [`NIL`].
    pub(in crate::server) timer: u32,
    pub(in crate::server) credit: WriteCredit,
    pub(in crate::server) figures: Figures,
    /// Until then no line of this kind is printed about it.
    pub(in crate::server) quiet_until_ms: [u64; Repeated::COUNT],
    /// What the administrator was told about it.
    pub(in crate::server) told: Told,
}

impl<R: RingPage> Connection<R> {
    /// A connection whose ring has not been touched yet.
    pub(in crate::server) fn new(
        domid: DomId,
        ring: R,
        port: Option<EvtchnPort>,
        queue: Queue,
    ) -> Self {
        Self {
            domid,
            privileged: false,
            is_local: false,
            features: features::OFFERED,
            port,
            ring,
            assembler: Assembler::new(),
            queue,
            state: State::Connected,
            doubt: None,
            must_notify: false,
            links: Links::NONE,
            lost: None,
            busy: None,
            waits: false,
            suspension: None,
            wake_at_ms: None,
            timer: NIL,
            credit: WriteCredit::default(),
            figures: Figures::default(),
            quiet_until_ms: [0; Repeated::COUNT],
            told: Told::default(),
        }
    }

    /// Whether it waits for its turn.
    pub(in crate::server) fn is_ready(&self) -> bool {
        self.links.is_in(List::Ready)
    }

    /// Who pays for messages to it.
    pub(in crate::server) fn payer(&self) -> Option<DomId> {
        (!self.privileged).then_some(self.domid)
    }

    /// Whether it is served.
    pub(in crate::server) fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Whether what it had is going, before its ring is emptied.
    pub(in crate::server) fn starts_over(&self) -> bool {
        matches!(self.busy, Some(Busy::StartOver))
    }

    /// Reads from the ring until the request is complete or nothing is left. `Ok(true)` if it is complete.
    /// What belongs to the next request stays in the ring.
    pub(in crate::server) fn receive(&mut self) -> Result<bool, Fault> {
        let mut pass = Requests::open(&self.ring)?;
        let was_empty = self.assembler.is_empty();
        let Self { assembler, ring, .. } = self;
        match assembler.fill(pass.available(), |room| _ = pass.take(ring, room)) {
            Ok(is_complete) => {
                self.must_notify |= pass.close(&mut self.ring);
                Ok(is_complete)
            }
            // What cannot be followed is not taken from the ring either.
            Err(AssembleError::Oversize(u32::MAX)) if was_empty => {
                self.assembler.clear();
                Err(Fault::Ones)
            }
            Err(AssembleError::Oversize(len)) => Err(Fault::Oversize(len)),
            Err(AssembleError::NoMemory) => {
                self.must_notify |= pass.close(&mut self.ring);
                Err(Fault::NoMemory)
            }
        }
    }

    /// Writes a message at once if none waits and it fits whole; `false` if not.
    pub(in crate::server) fn put_whole(&mut self, header: Header, payload: &[u8]) -> bool {
        if !self.queue.is_empty() {
            return false;
        }
        // Indices that make no sense are found out when the queue is written.
        let Ok(mut pass) = Responses::open(&self.ring) else { return false };
        if pass.space() < payload.len().saturating_add(HEADER_SIZE) {
            return false;
        }
        pass.put(&mut self.ring, &header.to_bytes());
        pass.put(&mut self.ring, payload);
        self.must_notify |= pass.close(&mut self.ring);
        true
    }

    /// Writes waiting messages until all are written or the ring is full to its last byte.
    pub(in crate::server) fn send(
        &mut self,
        messages: &mut Messages,
        done: &mut Done,
    ) -> Result<(), Fault> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let Self { queue, ring, .. } = self;
        let mut pass = Responses::open(ring)?;
        queue.write(messages, |bytes| pass.put(ring, bytes), done);
        self.must_notify |= pass.close(ring);
        Ok(())
    }

    /// For the look before the server sleeps: whether the client did something without a signal.
    pub(in crate::server) fn has_work(&self) -> bool {
        if !self.is_connected() || self.doubt.is_some() {
            return false;
        }
        self.ring.barrier();
        self.has_requests() || (!self.queue.is_empty() && ring::has_space(&self.ring))
    }

    /// Whether there is something in its ring that may be read.
    pub(in crate::server) fn has_requests(&self) -> bool {
        self.suspension.is_none()
            && self.busy.is_none()
            && self.queue.can_reply()
            && ring::has_requests(&self.ring)
    }

    /// Whether there is a reason not to read its ring.
    pub(in crate::server) fn is_held_back(&self) -> bool {
        let may_be_read = self.is_connected()
            && self.doubt.is_none()
            && self.suspension.is_none()
            && self.busy.is_none()
            && !self.waits
            && self.queue.can_reply();
        !may_be_read
    }

    /// Whether its indices made no sense when they were last looked at.
    pub(in crate::server) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// The indices make sense.
    pub(in crate::server) fn trust(&mut self) {
        self.doubt = None;
    }

    /// The indices make no sense.
    pub(in crate::server) fn doubt(&mut self, now_ms: u64) -> Verdict {
        let tries = self.doubt.map_or(0, |doubt| doubt.tries);
        if self.doubt.is_some_and(|doubt| now_ms < doubt.until_ms) {
            // A signal made the server look again early; only the passing of time counts.
            return Verdict::Wait;
        }
        if tries >= DOUBT_TRIES {
            return Verdict::Condemned;
        }
        let until_ms = now_ms.saturating_add(DOUBT_PAUSE_MS);
        self.doubt = Some(Doubt { tries: tries.saturating_add(1), until_ms });
        Verdict::Wait
    }

    /// What only a successor needs to know.
    pub(in crate::server) fn write_fields<S: Sink>(
        &self,
        handover: u32,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        // A field that is added does not compile until it is said here what becomes of it.
        let Self {
            features,
            state,
            doubt,
            credit,
            figures,
            quiet_until_ms,
            told,
            // The stream has them: its record of the connection, with what is in the assembler and in the queue.
            domid: _,
            port: _,
            assembler: _,
            queue: _,
            // Its token is written ahead of these fields.
            ring: _,
            // These follow from who it is.
            privileged: _,
            is_local: _,
            // A successor finds them out: it looks at every ring, and signals every peer.
            must_notify: _,
            links: _,
            waits: _,
            suspension: _,
            wake_at_ms: _,
            timer: _,
            // A hand-over finishes what was begun.
            busy: _,
            // A line on the console, at most.
            lost: _,
        } = self;
        fields.flag(*state == State::Connected)?;
        fields.u32(*features)?;
        fields.flag(doubt.is_some())?;
        if let Some(Doubt { tries, until_ms }) = doubt {
            fields.u32(*tries)?;
            fields.u64(*until_ms)?;
        }
        let (credit, since_ms) = credit.numbers();
        fields.i64(credit)?;
        fields.u64(since_ms)?;
        figures.write(fields)?;
        for quiet_until_ms in log::kept(quiet_until_ms, handover) {
            fields.u64(*quiet_until_ms)?;
        }
        if handover >= 3 {
            told.write(fields)?;
        }
        Ok(())
    }

    /// Takes over what a predecessor wrote.
    pub(in crate::server) fn read_fields(
        &mut self,
        handover: u32,
        fields: &mut FieldReader<'_>,
    ) -> Result<(), Short> {
        self.state = if fields.flag()? { State::Connected } else { State::Ignored };
        self.features = fields.u32()?;
        if fields.flag()? {
            self.doubt = Some(Doubt { tries: fields.u32()?, until_ms: fields.u64()? });
        }
        self.credit = WriteCredit::from_numbers((fields.i64()?, fields.u64()?));
        self.figures = Figures::read(fields)?;
        for quiet_until_ms in log::kept_mut(&mut self.quiet_until_ms, handover) {
            *quiet_until_ms = fields.u64()?;
        }
        if handover >= 3 {
            self.told = Told::read(fields)?;
        }
        Ok(())
    }

    /// Stops serving it, and says why in the page if the domain knows the word.
    pub(in crate::server) fn ignore(
        &mut self,
        why: RingError,
        messages: &mut Messages,
        done: &mut Done,
    ) {
        if self.features & features::ERROR != 0 {
            self.ring.store(Word::Error, why as u32);
        }
        self.state = State::Ignored;
        self.forget_messages(messages, done);
    }

    /// Drops the request that is being read, and everything that waits.
    pub(in crate::server) fn forget_messages(&mut self, messages: &mut Messages, done: &mut Done) {
        self.assembler.clear();
        self.queue.clear(messages, done);
        self.busy = None;
        self.waits = false;
        self.doubt = None;
        self.suspension = None;
    }

    /// When it wants to be served even if nobody signals.
    pub(in crate::server) fn next_look_ms(&self) -> Option<u64> {
        if !self.is_connected() {
            return None;
        }
        let rate = match self.suspension {
            Some(Suspension::Rate(until)) => Some(until),
            Some(Suspension::Outstanding | Suspension::Memory) | None => None,
        };
        let doubt = self.doubt.map(|doubt| doubt.until_ms);
        [rate, doubt, self.queue.earliest_ms()].into_iter().flatten().min()
    }
}
