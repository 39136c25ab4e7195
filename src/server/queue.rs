//! What waits to be written to one connection: replies and events in one order.
//!
//! A message may be written in any number of pieces; one that has been started is never dropped, since the
//! client could not find the next header. An event that waits already swallows its repetition.

use crate::proto::handover::{FieldReader, FieldWriter};
use crate::proto::sentence::Sentence;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};
use alloc::borrow::Cow;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// The request that made the server send a message; see `accounts.rs`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct CauseId(pub(super) u64);

/// The bytes of a message: what is static needs no memory of its own.
pub(super) type Payload = Cow<'static, [u8]>;

/// What a message costs its receiver's memory quota besides its payload: its place in a queue that may be
/// half empty, its place in the index of events, and what the heap adds to an allocation. The C server
/// counts 16 bytes here, which is not what it costs either.
///
/// Like all prices it is the same in all versions of this server, which have to come to the same accounts.
pub(super) const MESSAGE_OVERHEAD: usize = 192;
const _: () = assert!(2 * size_of::<Message>() + 32 <= MESSAGE_OVERHEAD);

/// What becomes free because messages were written or dropped.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// Bytes of the receiver's memory quota.
    pub(super) bytes: usize,
    /// The causes of those messages.
    pub(super) causes: Vec<CauseId>,
    /// Events that were dropped because nobody read them in time.
    pub(super) expired: usize,
}

/// The most bytes behind a header: a message that another server has started is kept as one without a
/// header of its own.
const RAW_MAX: usize = PAYLOAD_MAX + HEADER_SIZE;

#[derive(Debug)]
struct Message {
    header: [u8; HEADER_SIZE],
    payload: Payload,
    cause: Option<CauseId>,
    /// When an unread event is dropped.
    deadline_ms: Option<u64>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Reply,
    Event,
    /// Dropped, but still in its place so that the places of the others do not change.
    Dropped,
}

/// The queue of one connection.
#[derive(Debug)]
pub(super) struct Queue {
    messages: VecDeque<Message>,
    /// The place of the front message; places count up from 0 for the queue's life.
    front: u64,
    /// Bytes of the front message that have been written.
    sent: usize,
    /// How many of `messages` are dropped ones.
    dropped: usize,
    /// Places of the waiting events, by the hash of their payload.
    events: HashTable<u64>,
    /// Events at the end have no deadline yet.
    undated: bool,
    /// No deadline passes before this moment; `None` if there is no deadline.
    earliest_ms: Option<u64>,
    hasher: FixedState,
}

impl Queue {
    /// An empty queue; `seed` keys the hashes.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            messages: VecDeque::new(),
            front: 0,
            sent: 0,
            dropped: 0,
            events: HashTable::new(),
            undated: false,
            earliest_ms: None,
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.messages.len().saturating_sub(self.dropped)
    }

    /// The moment at which [`expire`](Self::expire) may have something to do.
    pub(super) fn earliest_ms(&self) -> Option<u64> {
        self.earliest_ms
    }

    /// Whether [`date`](Self::date) has something to do.
    pub(super) fn has_undated(&self) -> bool {
        self.undated
    }

    /// Gives a deadline to the events that have none.
    pub(super) fn date(&mut self, deadline_ms: u64) {
        self.undated = false;
        let events = self.messages.iter_mut().rev().filter(|message| message.state == State::Event);
        for event in events.take_while(|event| event.deadline_ms.is_none()) {
            event.deadline_ms = Some(deadline_ms);
            self.earliest_ms = self.earliest_ms.or(Some(deadline_ms));
        }
    }

    /// Appends a reply.
    pub(super) fn push_reply(&mut self, header: Header, payload: Payload, cause: Option<CauseId>) {
        let header = header.to_bytes();
        let state = State::Reply;
        self.messages.push_back(Message { header, payload, cause, deadline_ms: None, state });
    }

    /// Whether an event with this payload waits already and will do for another one. Special events
    /// are counted by their readers, so they are never merged.
    pub(super) fn swallows(&self, payload: &[u8]) -> bool {
        if payload.first() == Some(&b'@') {
            return false;
        }
        let same = |place: &u64| self.payload_at(*place).is_some_and(|waiting| waiting == payload);
        self.events.find(self.hasher.hash_one(payload), same).is_some()
    }

    /// Appends an event; without a deadline it waits for [`date`](Self::date), if that is ever called.
    pub(super) fn push_event(
        &mut self,
        payload: Vec<u8>,
        cause: Option<CauseId>,
        deadline_ms: Option<u64>,
    ) {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: Kind::WatchEvent.number(), req_id: 0, tx_id: 0, len };
        let place = self.front.wrapping_add(self.messages.len() as u64);
        let hash = self.hasher.hash_one(payload.as_slice());
        self.messages.push_back(Message {
            header: header.to_bytes(),
            payload: Cow::Owned(payload),
            cause,
            deadline_ms,
            state: State::Event,
        });
        self.undated |= deadline_ms.is_none();
        self.enlist(place, hash, deadline_ms);
    }

    /// Enters an event into the index.
    fn enlist(&mut self, place: u64, hash: u64, deadline_ms: Option<u64>) {
        let Self { events, messages, front, hasher, .. } = self;
        events.insert_unique(hash, place, |place| hash_at(messages, *front, hasher, *place));
        self.earliest_ms = match (self.earliest_ms, deadline_ms) {
            (Some(earliest), Some(deadline)) => Some(earliest.min(deadline)),
            (earliest, deadline) => earliest.or(deadline),
        };
    }

    /// Hands the waiting bytes to `put`, which says how many it took, until it takes fewer than it is offered.
    pub(super) fn write(&mut self, mut put: impl FnMut(&[u8]) -> usize, released: &mut Released) {
        while let Some(message) = self.messages.front() {
            if message.state != State::Dropped {
                let total = message.total();
                while self.sent < total {
                    let rest = match message.header.get(self.sent..) {
                        Some(rest) if !rest.is_empty() => rest,
                        _ => message
                            .payload
                            .get(self.sent.saturating_sub(HEADER_SIZE)..)
                            .unwrap_or(&[]),
                    };
                    let taken = put(rest);
                    self.sent = self.sent.saturating_add(taken);
                    if taken < rest.len() {
                        return;
                    }
                }
            }
            self.pop_front(released);
        }
    }

    /// Drops the events whose time is over, except one that has been started.
    pub(super) fn expire(&mut self, now_ms: u64, released: &mut Released) {
        if self.earliest_ms.is_none_or(|earliest| now_ms < earliest) {
            return;
        }
        let started = if self.sent > 0 { 1 } else { 0 };
        self.earliest_ms = None;
        for index in started..self.messages.len() {
            let Some(message) = self.messages.get(index) else { break };
            let (State::Event, Some(deadline)) = (message.state, message.deadline_ms) else {
                continue;
            };
            if deadline > now_ms {
                // Deadlines only grow along the queue.
                self.earliest_ms = Some(deadline);
                break;
            }
            self.drop_event(index, released);
        }
        // Each message is moved at most once for each one dropped.
        if self.dropped.saturating_mul(2) > self.messages.len() {
            self.compact();
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, released: &mut Released) {
        while !self.messages.is_empty() {
            self.pop_front(released);
        }
        self.sent = 0;
    }

    fn payload_at(&self, place: u64) -> Option<&[u8]> {
        let index = usize::try_from(place.wrapping_sub(self.front)).ok()?;
        Some(&self.messages.get(index)?.payload)
    }

    /// Takes an event out of the index.
    fn unlist(&mut self, place: u64, payload: &[u8]) {
        let hash = self.hasher.hash_one(payload);
        if let Ok(entry) = self.events.find_entry(hash, |listed| *listed == place) {
            let _ = entry.remove();
        }
    }

    fn pop_front(&mut self, released: &mut Released) {
        let Some(message) = self.messages.pop_front() else { return };
        self.sent = 0;
        match message.state {
            State::Dropped => self.dropped = self.dropped.saturating_sub(1),
            State::Event => {
                self.unlist(self.front, &message.payload);
                release(&message, released);
            }
            State::Reply => release(&message, released),
        }
        self.front = self.front.wrapping_add(1);
        if self.messages.is_empty() {
            // A burst's worth of memory is given back; a connection at rest holds next to nothing.
            self.messages.shrink_to(4);
            if self.events.capacity() > 16 {
                self.events = HashTable::new();
            }
            self.undated = false;
            self.earliest_ms = None;
        }
    }

    fn drop_event(&mut self, index: usize, released: &mut Released) {
        let Some(message) = self.messages.get_mut(index) else { return };
        release(message, released);
        message.state = State::Dropped;
        let payload = core::mem::take(&mut message.payload);
        self.unlist(self.front.wrapping_add(index as u64), &payload);
        self.dropped = self.dropped.saturating_add(1);
        released.expired = released.expired.saturating_add(1);
    }

    /// Removes the dropped ones, which changes the places of all others.
    fn compact(&mut self) {
        self.messages.retain(|message| message.state != State::Dropped);
        self.dropped = 0;
        self.events = HashTable::new();
        let Self { events, messages, front, hasher, .. } = self;
        for (index, message) in messages.iter().enumerate() {
            if message.state == State::Event {
                let hash = hasher.hash_one(&*message.payload);
                let place = front.wrapping_add(index as u64);
                events
                    .insert_unique(hash, place, |place| hash_at(messages, *front, hasher, *place));
            }
        }
    }
}

// What a live update hands over.
impl Queue {
    fn waiting(&self) -> impl Iterator<Item = &Message> + Clone {
        self.messages.iter().filter(|message| message.state != State::Dropped)
    }

    /// Every waiting byte, in pieces: what is left of a message that has been started, then whole messages.
    pub(super) fn unsent(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut skip = self.sent;
        let parts = self.waiting().flat_map(|message| [&message.header[..], &*message.payload]);
        parts.map(move |part| {
            let skipped = skip.min(part.len());
            skip = skip.saturating_sub(skipped);
            part.get(skipped..).unwrap_or(&[])
        })
    }

    /// How many of those bytes are the rest of a message that has been started.
    pub(super) fn partial(&self) -> usize {
        let whole = self.waiting().next().map_or(0, |message| message.total());
        if self.sent > 0 { whole.saturating_sub(self.sent) } else { 0 }
    }

    /// What is not seen in the waiting bytes: those sent already of the first message, and of each
    /// message what it is and why it waits.
    pub(super) fn write_fields<S: Sink>(
        &self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.count(self.sent)?;
        if let Some(first) = self.waiting().next().filter(|_| self.sent > 0) {
            let (header, payload) = (&first.header[..], &*first.payload);
            fields.0.append(header.get(..self.sent).unwrap_or(header))?;
            let more = self.sent.saturating_sub(HEADER_SIZE);
            fields.0.append(payload.get(..more).unwrap_or(payload))?;
        }
        fields.count(self.len())?;
        for message in self.waiting() {
            fields.flag(message.state == State::Event)?;
            fields.maybe_u64(message.cause.map(|cause| cause.0))?;
            fields.maybe_u64(message.deadline_ms)?;
        }
        Ok(())
    }

    /// The queue with these unsent bytes. `each` gets the cause and the payload's size of every message.
    pub(super) fn restore(
        seed: u64,
        unsent: &[u8],
        fields: &mut FieldReader<'_>,
        mut each: impl FnMut(Option<CauseId>, usize) -> Result<(), Sentence>,
    ) -> Result<Self, Sentence> {
        let damaged = || Sentence::from("messages that wait do not have the length that they say");
        let mut queue = Self::new(seed);
        let mut sent = fields.bytes()?;
        queue.sent = sent.len();
        let mut rest = unsent;
        let mut take = |into: &mut [u8]| {
            let early = sent.len().min(into.len());
            let (first, second) = into.split_at_mut_checked(early)?;
            let from;
            (from, sent) = sent.split_at_checked(early)?;
            first.copy_from_slice(from);
            let from;
            (from, rest) = rest.split_at_checked(second.len())?;
            second.copy_from_slice(from);
            Some(())
        };
        for place in 0..fields.count(3)? {
            let is_event = fields.flag()?;
            let cause = fields.maybe_u64()?.map(CauseId);
            let deadline_ms = fields.maybe_u64()?;
            let mut header = [0; HEADER_SIZE];
            take(&mut header).ok_or_else(damaged)?;
            let Header { kind, len, .. } = Header::from_bytes(&header);
            let len = usize::try_from(len).ok().filter(|len| *len <= RAW_MAX);
            let mut payload = alloc::vec![0; len.ok_or_else(damaged)?];
            take(&mut payload).ok_or_else(damaged)?;
            if is_event != (kind == Kind::WatchEvent.number()) {
                return Err(Sentence::from(
                    "a message that waits is not of the kind that it is said to be",
                ));
            }
            each(cause, payload.len())?;
            let hash = queue.hasher.hash_one(payload.as_slice());
            let state = if is_event { State::Event } else { State::Reply };
            let payload = Cow::Owned(payload);
            queue.messages.push_back(Message { header, payload, cause, deadline_ms, state });
            if is_event {
                queue.enlist(place as u64, hash, deadline_ms);
            }
        }
        let first = queue.messages.front().map_or(0, Message::total);
        if !rest.is_empty() || queue.sent > 0 && queue.sent >= first {
            return Err(damaged());
        }
        Ok(queue)
    }
}

// A start from another server's stream.
impl Queue {
    /// What all of it costs its receiver's memory quota.
    pub(super) fn held(&self) -> usize {
        let cost = |message: &Message| message.payload.len().saturating_add(MESSAGE_OVERHEAD);
        self.waiting().fold(0, |sum, message| sum.saturating_add(cost(message)))
    }

    /// Takes over another server's unsent bytes: `partial` bytes of a message that it has started, then whole
    /// messages. Returns how many bytes at the end make no message and are left out.
    pub(super) fn revive(
        &mut self,
        partial: usize,
        unsent: &[u8],
        deadline_ms: Option<u64>,
    ) -> usize {
        let (first, mut rest) =
            unsent.split_at_checked(partial.min(RAW_MAX)).unwrap_or((unsent, &[]));
        if let (false, Ok(len)) = (first.is_empty(), u32::try_from(first.len())) {
            // As if nothing but a header had been sent.
            let header = Header { kind: Kind::Error.number(), req_id: 0, tx_id: 0, len };
            self.push_reply(header, Cow::Owned(Vec::from(first)), None);
            self.sent = HEADER_SIZE;
        }
        while let Some((header, behind)) = rest.split_first_chunk() {
            let header = Header::from_bytes(header);
            let len = usize::try_from(header.len).ok().filter(|len| *len <= PAYLOAD_MAX);
            let Some((payload, more)) = len.and_then(|len| behind.split_at_checked(len)) else {
                break;
            };
            if header.kind == Kind::WatchEvent.number() {
                self.push_event(Vec::from(payload), None, deadline_ms);
            } else {
                self.push_reply(header, Cow::Owned(Vec::from(payload)), None);
            }
            rest = more;
        }
        rest.len()
    }
}

impl Message {
    /// Bytes of all of it.
    fn total(&self) -> usize {
        HEADER_SIZE.saturating_add(self.payload.len())
    }
}

/// The hash of the event at a place.
fn hash_at(messages: &VecDeque<Message>, front: u64, hasher: &FixedState, place: u64) -> u64 {
    let message =
        usize::try_from(place.wrapping_sub(front)).ok().and_then(|index| messages.get(index));
    hasher.hash_one(message.map_or(&[][..], |message| &*message.payload))
}

/// Notes what a message held.
fn release(message: &Message, released: &mut Released) {
    let bytes = message.payload.len().saturating_add(MESSAGE_OVERHEAD);
    released.bytes = released.bytes.saturating_add(bytes);
    released.causes.extend(message.cause);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(len: u32) -> Header {
        Header { kind: 2, req_id: 1, tx_id: 0, len }
    }

    fn drain(queue: &mut Queue, step: usize) -> (Vec<u8>, Released) {
        let (mut bytes, mut released) = (Vec::new(), Released::default());
        while !queue.is_empty() {
            let mut left = step;
            let put = |from: &[u8]| {
                let n = from.len().min(left);
                left -= n;
                bytes.extend_from_slice(&from[..n]);
                n
            };
            queue.write(put, &mut released);
        }
        (bytes, released)
    }

    fn event(queue: &mut Queue, text: &str, deadline_ms: u64) {
        if !queue.swallows(text.as_bytes()) {
            queue.push_event(text.as_bytes().to_vec(), None, Some(deadline_ms));
        }
    }

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let fill = |queue: &mut Queue| {
            queue.push_reply(reply(0), Cow::Borrowed(b""), Some(CauseId(1)));
            queue.push_event(b"/a\0t\0".to_vec(), Some(CauseId(1)), None);
            queue.push_reply(reply(3), Cow::Borrowed(b"OK\0"), Some(CauseId(2)));
        };
        let mut whole = Queue::new(1);
        fill(&mut whole);
        let (expected, released) = drain(&mut whole, 1000);
        assert_eq!(expected.len(), 3 * 16 + 8);
        assert_eq!((released.bytes, released.causes.len()), (3 * MESSAGE_OVERHEAD + 8, 3));
        for step in 1..40 {
            let mut queue = Queue::new(1);
            fill(&mut queue);
            assert_eq!(drain(&mut queue, step).0, expected);
        }
    }

    #[test]
    fn a_waiting_event_swallows_its_repetition_until_it_is_written() {
        let mut queue = Queue::new(1);
        for round in 0..3 {
            for name in 0..100 {
                event(&mut queue, &alloc::format!("/{name}"), round);
            }
        }
        assert_eq!(queue.len(), 100);
        // Also one that has been started.
        queue.write(|from| from.len().min(5), &mut Released::default());
        event(&mut queue, "/0", 0);
        assert_eq!(queue.len(), 100);
        event(&mut queue, "@releaseDomain", 0);
        event(&mut queue, "@releaseDomain", 0);
        assert_eq!(queue.len(), 102);
        drain(&mut queue, 999);
        event(&mut queue, "/0", 0);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn unread_events_expire_but_replies_and_a_started_event_stay() {
        let mut queue = Queue::new(1);
        event(&mut queue, "/started", 10);
        queue.write(|_| 3, &mut Released::default());
        queue.push_reply(reply(0), Cow::Borrowed(b""), None);
        for n in 0..50 {
            event(&mut queue, &alloc::format!("/{n}"), 10);
        }
        event(&mut queue, "/later", 20);
        let mut released = Released::default();
        queue.expire(9, &mut released);
        assert_eq!((queue.len(), released.expired), (53, 0));
        queue.expire(10, &mut released);
        assert_eq!((queue.len(), released.expired), (3, 50));
        assert_eq!(queue.earliest_ms(), Some(20));
        // What expired no longer swallows; what is still there does, also after the places moved.
        event(&mut queue, "/7", 30);
        event(&mut queue, "/later", 30);
        assert_eq!(queue.len(), 4);
        queue.expire(30, &mut released);
        assert_eq!(queue.len(), 2);
        queue.clear(&mut released);
        assert!(queue.is_empty());
        assert_eq!(queue.earliest_ms(), None);
    }

    #[test]
    fn a_reader_that_never_reads_costs_no_memory_for_what_expired() {
        let mut queue = Queue::new(1);
        queue.push_reply(reply(0), Cow::Borrowed(b""), None);
        for n in 0..10_000_u64 {
            event(&mut queue, &alloc::format!("/{n}"), n);
            queue.expire(n.saturating_sub(10), &mut Released::default());
        }
        assert!(queue.messages.len() < 50);
    }
}
