//! What waits to be written to one connection: replies and events in one order.
//!
//! All messages of all connections are records of one table, chained in queues, so a queue grows and shrinks by
//! one message at a time. A message may be written in any number of pieces. One that has been started is never
//! dropped, since the client could not find the next header. An event that already waits swallows its repetition,
//! which the table finds by the hash of queue and payload.
//!
//! A message that leaves a queue is *done*: it stays in a chain of its own until its accounts are settled.

use crate::mem::{
    NIL, NoMemory, Record, Table, TryVec, block_bytes, room_bytes, try_bytes, try_with_capacity,
};
use crate::proto::id::DomId;
use crate::proto::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use foldhash::fast::FixedState;
use held::Held;

mod handover;
mod held;
#[cfg(test)]
mod tests;

/// The request that made the server send a message; see `accounts.rs`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::server) struct CauseId(pub(in crate::server) u64);

/// The bytes of a message: what is static needs no memory of its own.
pub(in crate::server) type Payload = Cow<'static, [u8]>;

/// The most bytes after a header. A message that another server has started is kept as one without a header of its
/// own.
const RAW_MAX: usize = PAYLOAD_MAX + HEADER_SIZE;

/// The most bytes that waiting events of special names may take for one unprivileged connection. A client that
/// lets more wait looks at all domains anyway when it has read these.
const SPECIAL_MAX: usize = 6 * 1024;

/// What a message takes, besides the block of its payload.
const MESSAGE_BYTES: usize = Table::<Message>::RECORD_BYTES;

/// What a message with a payload of so many bytes costs its receiver's memory quota: its record, and a block for
/// the payload. A text of the program itself takes no block, but is charged, too: a successor has a copy of it.
pub(in crate::server) const fn message_cost(payload: usize) -> usize {
    block_bytes(payload).saturating_add(MESSAGE_BYTES)
}

/// The bytes behind a header.
#[derive(Debug)]
enum Content {
    Static(&'static [u8]),
    Own(Box<[u8]>),
}

impl Content {
    fn get(&self) -> &[u8] {
        match self {
            Self::Static(text) => text,
            Self::Own(bytes) => bytes,
        }
    }

    /// What its block takes.
    fn block(&self) -> usize {
        match self {
            Self::Static(_) => 0,
            Self::Own(bytes) => block_bytes(bytes.len()),
        }
    }
}

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sort {
    Reply,
    Event,
    /// A record that its queue keeps for a reply when there is no other.
    Kept,
}

/// A message that waits, or a record that is kept for one.
#[derive(Debug)]
pub(in crate::server) struct Message {
    header: [u8; HEADER_SIZE],
    content: Content,
    cause: Option<CauseId>,
    /// When an unread event is dropped.
    deadline_ms: Option<u64>,
    /// The hash of queue and payload for an event, any number otherwise.
    key: u64,
    /// The number of its queue.
    queue: u64,
    prev: u32,
    next: u32,
    chain: u32,
    /// Who is charged for it; `None` if nobody is.
    payer: Option<DomId>,
    sort: Sort,
    /// The record is its queue's own.
    is_kept: bool,
}

impl Record for Message {
    fn hash(&self, _seed: u64) -> u64 {
        self.key
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

impl Message {
    /// Bytes of all of it.
    fn total(&self) -> usize {
        HEADER_SIZE.saturating_add(self.content.get().len())
    }

    /// What it takes.
    fn cost(&self) -> usize {
        message_cost(self.content.get().len())
    }

    fn is_special(&self) -> bool {
        self.sort == Sort::Event && self.content.get().first() == Some(&b'@')
    }
}

/// Messages that have left their queue, in that order.
#[derive(Debug)]
pub(in crate::server) struct Done {
    first: u32,
    last: u32,
}

impl Done {
    /// None.
    pub(in crate::server) const NONE: Self = Self { first: NIL, last: NIL };

    pub(in crate::server) fn is_empty(&self) -> bool {
        self.first == NIL
    }
}

/// What one message gives back when it is done.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Released {
    /// Whose memory quota, and how much.
    pub(in crate::server) refund: Option<(DomId, usize)>,
    pub(in crate::server) cause: Option<CauseId>,
}

/// All messages.
#[derive(Debug)]
pub(in crate::server) struct Messages {
    table: Table<Message>,
    hasher: FixedState,
    /// Numbers that were given out.
    numbers: u64,
    /// Scratch space for the payload of an event.
    room: Vec<u8>,
    held: Held,
}

impl Messages {
    /// None yet; `seed` keys the hashes.
    pub(in crate::server) fn new(seed: u64) -> Result<Self, NoMemory> {
        let (table, hasher) = (Table::new(seed), FixedState::with_seed(seed));
        let held = Held::default();
        Ok(Self { table, hasher, numbers: 0, room: try_with_capacity(RAW_MAX)?, held })
    }

    /// How many records there are: one for each message, and one that each queue keeps.
    pub(in crate::server) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes that they take of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        let rooms = self.held.blocks.saturating_add(room_bytes(&self.room));
        self.table.taken().saturating_add(rooms)
    }

    /// What is charged for messages, and how many of those bytes they take.
    pub(in crate::server) fn charged(&self) -> (usize, usize) {
        (self.held.charged, self.held.paid)
    }

    /// The length of a message's payload.
    pub(in crate::server) fn payload_len(&self, message: u32) -> usize {
        self.get(message).map_or(0, |message| message.content.get().len())
    }

    fn number(&mut self) -> u64 {
        self.numbers = self.numbers.wrapping_add(1);
        self.numbers
    }

    /// The queue of a new connection, with a record for a reply.
    pub(in crate::server) fn new_queue(&mut self) -> Result<Queue, NoMemory> {
        let number = self.number();
        let kept = self.table.insert(Message {
            header: [0; HEADER_SIZE],
            content: Content::Static(&[]),
            cause: None,
            deadline_ms: None,
            key: scatter(number),
            queue: number,
            prev: NIL,
            next: NIL,
            chain: NIL,
            payer: None,
            sort: Sort::Kept,
            is_kept: true,
        })?;
        Ok(Queue::empty(number, kept))
    }

    /// Drops the queue of a connection that is gone. The messages in it are done.
    pub(in crate::server) fn end_queue(&mut self, queue: &mut Queue, done: &mut Done) {
        queue.clear(self, done);
        drop(self.table.remove(core::mem::replace(&mut queue.kept, NIL)));
    }

    /// The payload of an event, in scratch space that has to be [put back](Self::put_back).
    pub(in crate::server) fn payload(&mut self, path: &[u8], token: &[u8]) -> Vec<u8> {
        let mut room = core::mem::take(&mut self.room);
        room.clear();
        for part in [path, &[0], token, &[0]] {
            // There is room for all payloads that are allowed; what is longer is dropped for its length.
            if room.try_extend(part).is_err() {
                break;
            }
        }
        room
    }

    /// Puts scratch space back.
    pub(in crate::server) fn put_back(&mut self, room: Vec<u8>) {
        self.room = room;
    }

    /// The hash of a queue's event.
    fn key(&self, queue: &Queue, payload: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(queue.number);
        hasher.write(payload);
        hasher.finish()
    }

    /// Whether an event with this payload waits already and replaces another one.
    pub(in crate::server) fn swallows(&self, queue: &Queue, payload: &[u8]) -> bool {
        if queue.len == 0 {
            return false;
        }
        let same = |message: &Message| {
            message.queue == queue.number
                && message.sort == Sort::Event
                && message.content.get() == payload
        };
        self.table.find(self.key(queue, payload), same).is_some()
    }

    /// Appends a reply, and returns what it takes.
    ///
    /// # Errors
    /// There is no memory for it, and nothing has changed.
    pub(in crate::server) fn push_reply(
        &mut self,
        queue: &mut Queue,
        header: Header,
        payload: &Payload,
        cause: Option<CauseId>,
        payer: Option<DomId>,
    ) -> Result<usize, NoMemory> {
        let content = match payload {
            Cow::Borrowed(text) => Content::Static(text),
            // As large as what is charged, and not as large as the scratch space.
            Cow::Owned(bytes) => Content::Own(try_bytes(bytes)?),
        };
        self.push_content(queue, header, content, cause, payer)
    }

    fn push_content(
        &mut self,
        queue: &mut Queue,
        header: Header,
        content: Content,
        cause: Option<CauseId>,
        payer: Option<DomId>,
    ) -> Result<usize, NoMemory> {
        let number = self.number();
        // Nobody pays for what no request caused that is counted, so that a successor knows who pays.
        let payer = payer.filter(|_| cause.is_some());
        let message = Message {
            header: header.to_bytes(),
            content,
            cause,
            deadline_ms: None,
            key: scatter(number),
            queue: queue.number,
            prev: NIL,
            next: NIL,
            chain: NIL,
            payer,
            sort: Sort::Reply,
            is_kept: false,
        };
        let held = self.held.with(&message, usize::saturating_add);
        let handle = self.table.insert(message)?;
        self.held = held;
        Ok(self.append(queue, handle))
    }

    /// Appends a reply in the record that the queue keeps, for which nobody pays. Until it is written, the queue
    /// must not get another reply.
    pub(in crate::server) fn push_kept(
        &mut self,
        queue: &mut Queue,
        header: Header,
        text: &'static [u8],
    ) {
        let Some(message) = self.table.get_mut(queue.kept) else { return };
        message.header = header.to_bytes();
        message.content = Content::Static(text);
        message.sort = Sort::Reply;
        queue.kept_waits = true;
        queue.append(self, queue.kept);
    }

    /// Appends an event; without a deadline it waits for [`date`](Queue::date), if that is ever called.
    ///
    /// # Errors
    /// There is no memory for it, and nothing has changed.
    pub(in crate::server) fn push_event(
        &mut self,
        queue: &mut Queue,
        payload: &[u8],
        cause: Option<CauseId>,
        deadline_ms: Option<u64>,
        payer: Option<DomId>,
    ) -> Result<(), NoMemory> {
        let handle = self.make_event(queue, payload, cause, deadline_ms, payer)?;
        let _cost = self.append(queue, handle);
        Ok(())
    }

    /// Makes an event for a queue, which has to be [appended](Self::append) before anything else is done with it.
    ///
    /// # Errors
    /// There is no memory for it, and nothing has changed.
    pub(in crate::server) fn make_event(
        &mut self,
        queue: &Queue,
        payload: &[u8],
        cause: Option<CauseId>,
        deadline_ms: Option<u64>,
        payer: Option<DomId>,
    ) -> Result<u32, NoMemory> {
        let content = Content::Own(try_bytes(payload)?);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: Kind::WatchEvent.number(), req_id: 0, tx_id: 0, len };
        let key = self.key(queue, payload);
        let message = Message {
            header: header.to_bytes(),
            content,
            cause,
            deadline_ms,
            key,
            queue: queue.number,
            prev: NIL,
            next: NIL,
            chain: NIL,
            payer,
            sort: Sort::Event,
            is_kept: false,
        };
        let held = self.held.with(&message, usize::saturating_add);
        let made = self.table.insert_hashed(key, message)?;
        self.held = held;
        Ok(made)
    }

    /// Appends an event that was made, and returns what it takes.
    pub(in crate::server) fn append(&mut self, queue: &mut Queue, event: u32) -> usize {
        queue.append(self, event);
        self.get(event).map_or(0, Message::cost)
    }

    /// Drops an event that was made and not appended. Nobody has paid for it.
    pub(in crate::server) fn discard(&mut self, event: u32, done: &mut Done) {
        if let Some(message) = self.table.get_mut(event) {
            let held = self.held.with(message, usize::saturating_sub);
            message.payer = None;
            self.held = held.with(message, usize::saturating_add);
            message.queue = 0;
            done.add(self, event, event);
        }
    }

    /// Takes the first message of those that are done, and says what becomes free.
    pub(in crate::server) fn settle(&mut self, done: &mut Done) -> Option<Released> {
        if done.first == NIL {
            return None;
        }
        let message = self.table.remove(done.first)?;
        self.held = self.held.with(&message, usize::saturating_sub);
        done.first = message.next;
        if done.first == NIL {
            done.last = NIL;
        }
        let refund = message.payer.map(|domid| (domid, message.cost()));
        Some(Released { refund, cause: message.cause })
    }

    /// A message, unless the handle is none.
    fn get(&self, handle: u32) -> Option<&Message> {
        if handle == NIL { None } else { self.table.get(handle) }
    }
}

/// Mixes consecutive numbers.
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// The queue of one connection.
#[derive(Debug)]
pub(in crate::server) struct Queue {
    /// A number that no other queue has, nor had this one before it was cleared.
    number: u64,
    first: u32,
    last: u32,
    len: usize,
    /// Bytes of the first message that have been written.
    sent: usize,
    /// From this message on no event has a deadline.
    undated: u32,
    /// No deadline passes before this moment; `None` if there is no deadline.
    earliest_ms: Option<u64>,
    /// The record for a reply, and whether it waits.
    kept: u32,
    kept_waits: bool,
    /// What waiting events of special names take.
    special: usize,
}

impl Queue {
    /// One in which nothing waits, with its number and the message that is kept for a reply.
    const fn empty(number: u64, kept: u32) -> Self {
        Self {
            number,
            first: NIL,
            last: NIL,
            len: 0,
            sent: 0,
            undated: NIL,
            earliest_ms: None,
            kept,
            kept_waits: false,
            special: 0,
        }
    }

    /// Whether nothing waits.
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.first == NIL
    }

    /// How many messages wait.
    pub(in crate::server) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is room for a reply even without memory.
    pub(in crate::server) fn can_reply(&self) -> bool {
        !self.kept_waits
    }

    /// Whether one more event of a special name with so many bytes is too much.
    pub(in crate::server) fn has_too_many_specials(&self, payload: &[u8]) -> bool {
        payload.first() == Some(&b'@')
            && self.special.saturating_add(message_cost(payload.len())) > SPECIAL_MAX
    }

    /// The moment at which [`expire`](Self::expire) may have something to do.
    pub(in crate::server) fn earliest_ms(&self) -> Option<u64> {
        self.earliest_ms
    }

    /// Whether [`date`](Self::date) has something to do.
    pub(in crate::server) fn has_undated(&self) -> bool {
        self.undated != NIL
    }

    /// Gives a deadline to the next `most` of the events that have none.
    pub(in crate::server) fn date(
        &mut self,
        messages: &mut Messages,
        deadline_ms: u64,
        most: usize,
    ) {
        for _ in 0..most {
            if self.undated == NIL {
                return;
            }
            let Some(message) = messages.table.get_mut(self.undated) else { return };
            if message.sort == Sort::Event && message.deadline_ms.is_none() {
                message.deadline_ms = Some(deadline_ms);
                self.earliest_ms = self.earliest_ms.or(Some(deadline_ms));
            }
            self.undated = message.next;
        }
    }

    /// Puts a message at the end.
    fn append(&mut self, messages: &mut Messages, handle: u32) {
        let last = self.last;
        let Some(message) = messages.table.get_mut(handle) else { return };
        message.prev = last;
        message.next = NIL;
        if message.sort == Sort::Event {
            match message.deadline_ms {
                None if self.undated == NIL => self.undated = handle,
                None => {}
                Some(deadline_ms) => {
                    let earliest_ms = self.earliest_ms.unwrap_or(deadline_ms);
                    self.earliest_ms = Some(earliest_ms.min(deadline_ms));
                }
            }
            if message.is_special() {
                self.special = self.special.saturating_add(message.cost());
            }
        }
        self.last = handle;
        self.len = self.len.saturating_add(1);
        if last == NIL {
            self.first = handle;
        } else if let Some(before) = messages.table.get_mut(last) {
            before.next = handle;
        }
    }

    /// Takes a message out, which is done then.
    fn take(&mut self, messages: &mut Messages, handle: u32, done: &mut Done) {
        let Some(message) = messages.table.get_mut(handle) else { return };
        let (prev, next) = (message.prev, message.next);
        if message.is_special() {
            self.special = self.special.saturating_sub(message.cost());
        }
        message.next = NIL;
        if message.is_kept {
            message.sort = Sort::Kept;
            message.content = Content::Static(&[]);
            self.kept_waits = false;
        } else {
            done.add(messages, handle, handle);
        }
        if self.undated == handle {
            self.undated = next;
        }
        self.len = self.len.saturating_sub(1);
        if prev == NIL {
            self.first = next;
            self.sent = 0;
        } else if let Some(before) = messages.table.get_mut(prev) {
            before.next = next;
        }
        if next == NIL {
            self.last = prev;
        } else if let Some(after) = messages.table.get_mut(next) {
            after.prev = prev;
        }
        if self.first == NIL {
            self.undated = NIL;
            self.earliest_ms = None;
        }
    }

    /// Hands the waiting bytes to `put`, which says how many it took, until it takes fewer than it is offered.
    pub(in crate::server) fn write(
        &mut self,
        messages: &mut Messages,
        mut put: impl FnMut(&[u8]) -> usize,
        done: &mut Done,
    ) {
        while let Some(message) = messages.get(self.first) {
            let total = message.total();
            while self.sent < total {
                let rest = match message.header.get(self.sent..) {
                    Some(rest) if !rest.is_empty() => rest,
                    _ => message
                        .content
                        .get()
                        .get(self.sent.saturating_sub(HEADER_SIZE)..)
                        .unwrap_or(&[]),
                };
                let taken = put(rest);
                self.sent = self.sent.saturating_add(taken);
                if taken < rest.len() {
                    return;
                }
            }
            self.take(messages, self.first, done);
        }
    }

    /// Drops the events whose time is over, `most` of them, except one that has been started. Returns how many, and
    /// whether that was not all.
    pub(in crate::server) fn expire(
        &mut self,
        messages: &mut Messages,
        now_ms: u64,
        most: usize,
        done: &mut Done,
    ) -> (usize, bool) {
        if self.earliest_ms.is_none_or(|earliest| now_ms < earliest) {
            return (0, false);
        }
        let mut at = self.first;
        if self.sent > 0 {
            at = messages.get(at).map_or(NIL, |message| message.next);
        }
        let mut dropped = 0_usize;
        self.earliest_ms = None;
        while let Some(message) = messages.get(at) {
            let next = message.next;
            if message.sort == Sort::Event {
                // Deadlines only grow along the queue.
                match message.deadline_ms {
                    None => break,
                    Some(deadline_ms) if deadline_ms > now_ms => {
                        self.earliest_ms = Some(deadline_ms);
                        break;
                    }
                    Some(deadline_ms) if dropped >= most => {
                        self.earliest_ms = Some(deadline_ms);
                        return (dropped, true);
                    }
                    Some(_) => {
                        self.take(messages, at, done);
                        dropped = dropped.saturating_add(1);
                    }
                }
            }
            at = next;
        }
        (dropped, false)
    }

    /// Drops all events, except one that has been started.
    pub(in crate::server) fn drop_events(&mut self, messages: &mut Messages, done: &mut Done) {
        let mut at = self.first;
        if self.sent > 0 {
            at = messages.get(at).map_or(NIL, |message| message.next);
        }
        // No longer than there can be any, in case that the chain goes round.
        for _ in 0..messages.len() {
            let Some(message) = messages.get(at) else { break };
            let (next, is_event) = (message.next, message.sort == Sort::Event);
            if is_event {
                self.take(messages, at, done);
            }
            at = next;
        }
    }

    /// Drops everything. What was waiting swallows nothing any more.
    pub(in crate::server) fn clear(&mut self, messages: &mut Messages, done: &mut Done) {
        if self.kept_waits {
            self.take(messages, self.kept, done);
        }
        if self.first != NIL {
            done.add(messages, self.first, self.last);
        }
        let (number, kept) = (messages.number(), self.kept);
        *self = Self::empty(number, kept);
    }
}

impl Done {
    /// Adds a chain of messages.
    fn add(&mut self, messages: &mut Messages, first: u32, last: u32) {
        if self.last == NIL {
            self.first = first;
        } else if let Some(before) = messages.table.get_mut(self.last) {
            before.next = first;
        }
        self.last = last;
    }
}
