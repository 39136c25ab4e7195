//! What a connection is owed, and what it gets.

use super::Event;
use crate::proto::wire::{HEADER_SIZE, Header, Kind};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// The request of a connection that caused a message.
pub(super) type Cause = (u32, u64);

/// What a list of children depends on: the node's generation as the caller sees it. If a transaction mixes it with
/// what is there by now, also the present generation and the transaction.
pub(super) type Generation = (u64, Option<(u64, u32, u32)>);

/// What a message must say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body {
    /// Exactly this.
    Exact(Vec<u8>),
    /// A generation of this node, and then a part of its list of children from an offset on.
    Part { path: Vec<u8>, generation: Generation, list: Vec<u8>, offset: i64 },
    /// A domain's account that shows these figures.
    Usage { nodes: usize, watches: usize, transactions: usize },
    /// Whatever the administrator likes to read.
    Anything,
}

/// When a message comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// In its turn.
    Now,
    /// The reply comes when everything has been looked at, which takes turns. Events of what others did meanwhile
    /// may come before it.
    Look,
    /// It tells what became of a domain, or is the reply to a request that waits for that. These messages keep
    /// their order among themselves. They take turns, so what others did meanwhile may come before them.
    News,
}

/// A message that must come.
#[derive(Clone, Debug)]
struct Owed {
    kind: u32,
    req_id: u32,
    tx_id: u32,
    body: Body,
    cause: Option<Cause>,
    deadline_ms: Option<u64>,
    /// It may as well not come.
    unsure: bool,
    /// With those of the same group that follow each other it may come in any order; 0 for none.
    group: u64,
    pace: Pace,
    /// The request that it is due to, or 0.
    origin: u64,
    /// The same event was owed already. It comes if that was written before this one was queued.
    repeats: bool,
}

/// One connection's messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Output {
    owed: VecDeque<Owed>,
    /// Bytes of the message that is being written.
    started: Vec<u8>,
    /// The server has failed, and perhaps while it handled the request of a reply that is owed.
    pub(super) may_fail: bool,
    /// How the server spelled the generations of each node.
    generations: BTreeMap<(Vec<u8>, Generation), Vec<u8>>,
}

/// The length of the message that starts here, as soon as it is all there.
pub(super) fn message_length(bytes: &[u8]) -> Option<usize> {
    let header: [u8; HEADER_SIZE] = bytes.get(..HEADER_SIZE)?.try_into().ok()?;
    let length = HEADER_SIZE + Header::from_bytes(&header).len as usize;
    (bytes.len() >= length).then_some(length)
}

impl Output {
    /// A reply is owed.
    pub(super) fn reply(
        &mut self,
        header: Header,
        body: Body,
        cause: Option<Cause>,
        pace: Pace,
        origin: u64,
    ) {
        let Header { kind, req_id, tx_id, .. } = header;
        let (deadline_ms, unsure, group, repeats) = (None, false, 0, false);
        self.owed.push_back(Owed {
            kind,
            req_id,
            tx_id,
            body,
            cause,
            deadline_ms,
            unsure,
            group,
            pace,
            origin,
            repeats,
        });
    }

    /// An event is owed, unless the same one waits already.
    pub(super) fn event(
        &mut self,
        event: Event,
        cause: Option<u64>,
        deadline_ms: Option<u64>,
        mut unsure: bool,
        now_ms: u64,
        origin: u64,
    ) {
        let Event { payload, group, news, .. } = event;
        if payload.len() > 4096 {
            return;
        }
        let body = Body::Exact(payload);
        let kind = Kind::WatchEvent.number();
        let mut repeats = false;
        for twin in self.owed.iter().filter(|owed| owed.kind == kind && owed.body == body) {
            if !twin.may_be_gone(now_ms) {
                if !news && twin.pace != Pace::News {
                    return;
                }
                // One of both may be queued when the other one has been written.
                repeats = true;
            }
            unsure = true;
        }
        let cause = cause.map(|cause| ((cause >> 32) as u32, cause & 0xffff_ffff));
        self.owed.push_back(Owed {
            kind: Kind::WatchEvent.number(),
            req_id: 0,
            tx_id: 0,
            body,
            cause,
            deadline_ms,
            unsure,
            group,
            pace: if news { Pace::News } else { Pace::Now },
            origin,
            repeats,
        });
    }

    /// The watches of these events are gone. What became of domains is told in turns, and after this one nothing comes.
    pub(super) fn unwatched(&mut self, is_its: impl Fn(&[u8]) -> bool) {
        let news = self.owed.iter_mut().filter(|owed| owed.pace == Pace::News && owed.is_event());
        for owed in news {
            let Body::Exact(payload) = &owed.body else { continue };
            owed.unsure |= is_its(payload);
        }
    }

    /// What became of domains is told: all of that is queued now, if it was not swallowed by an equal event.
    pub(super) fn settled(&mut self) {
        let mut place = 0;
        while let Some(owed) = self.owed.get(place) {
            let is_twin = |other: &Owed| other.kind == owed.kind && other.body == owed.body;
            if owed.repeats && self.owed.iter().take(place).any(is_twin) {
                self.owed.remove(place);
            } else {
                place += 1;
            }
        }
        for owed in self.owed.iter_mut().filter(|owed| owed.pace == Pace::News) {
            owed.pace = Pace::Now;
        }
    }

    /// The causes of what is owed.
    pub(super) fn causes(&self) -> impl Iterator<Item = Cause> {
        self.owed.iter().filter_map(|owed| owed.cause)
    }

    /// Whether nothing is owed.
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty() && self.started.is_empty()
    }

    /// Whether all that is owed must come.
    pub(super) fn is_certain(&self) -> bool {
        self.owed.iter().all(|owed| !owed.unsure && owed.deadline_ms.is_none())
    }

    /// Something that must come and has not.
    pub(super) fn owed(&self, now_ms: u64) -> Option<String> {
        let first = self.owed.iter().find(|owed| !owed.may_be_gone(now_ms));
        match first {
            Some(owed) => Some(owed.text()),
            None if self.started.is_empty() => None,
            None => Some(String::from("the rest of a message")),
        }
    }

    /// The server wrote these bytes. Returns the request that was answered with EIO, though it was carried out.
    pub(super) fn put(&mut self, bytes: &[u8], now_ms: u64) -> Result<Option<u64>, String> {
        let mut failed = None;
        self.started.extend_from_slice(bytes);
        while let Some(length) = message_length(&self.started) {
            let message: Vec<u8> = self.started.drain(..length).collect();
            if let Err(what) = self.settle(&message, now_ms) {
                let origin = self.settle_failed(&message, now_ms).ok_or(what)?;
                self.forget(origin);
                failed = Some(origin);
            }
        }
        Ok(failed)
    }

    /// The reply says that the server has failed, where that is possible.
    fn settle_failed(&mut self, message: &[u8], now_ms: u64) -> Option<u64> {
        let (head, payload) = message.split_at_checked(HEADER_SIZE)?;
        let header = Header::from_bytes(head.try_into().ok()?);
        let is_eio = header.kind == Kind::Error.number() && payload == b"EIO\0";
        if !is_eio || !core::mem::take(&mut self.may_fail) {
            return None;
        }
        let is_it = |owed: &Owed| {
            owed.kind != Kind::WatchEvent.number()
                && (owed.req_id, owed.tx_id) == (header.req_id, header.tx_id)
        };
        let found = self.owed.iter().position(is_it)?;
        let it = self.owed.remove(found)?;
        let is_fine = |other: &Owed| {
            other.may_be_gone(now_ms) || other.origin == it.origin || it.may_overtake(other)
        };
        self.owed.iter().take(found).all(is_fine).then_some(it.origin)
    }

    /// The request that caused these events has failed, so they may be lost. No other events may be.
    pub(super) fn forget(&mut self, origin: u64) {
        self.may_fail = false;
        for owed in self.owed.iter_mut().filter(|owed| owed.origin == origin) {
            owed.unsure = true;
        }
    }

    /// A message is complete: it must be what is owed next, or what may come before that.
    fn settle(&mut self, message: &[u8], now_ms: u64) -> Result<(), String> {
        let Self { owed, generations, .. } = self;
        let found = (0..owed.len()).find(|place| {
            let Some(wanted) = owed.get(*place) else { return false };
            let mut before = owed.iter().take(*place);
            before.all(|other| other.may_be_gone(now_ms) || wanted.may_overtake(other))
                && wanted.is(message, generations)
        });
        let Some(found) = found else {
            let due = self.owed.iter().find(|owed| !owed.may_be_gone(now_ms));
            let due = due.map_or_else(|| String::from("nothing"), Owed::text);
            return Err(format!("got {}, due was {due}", show(message)));
        };
        let Some(settled) = self.owed.remove(found) else { return Ok(()) };
        // What might have been dropped and should have come before has been.
        let mut place = 0;
        self.owed.retain(|other| {
            place += 1;
            place > found || settled.may_overtake(other)
        });
        self.doubt_twin(Some(&settled), now_ms);
        Ok(())
    }
}

impl Output {
    /// An event that might have been dropped has come. Or an equal one behind it has, with nothing certain between
    /// them: then the first need not come any more.
    fn doubt_twin(&mut self, settled: Option<&Owed>, now_ms: u64) {
        let Some(settled) = settled.filter(|owed| owed.may_be_gone(now_ms)) else { return };
        for owed in &mut self.owed {
            if owed.kind == settled.kind && owed.body == settled.body {
                owed.unsure = true;
            }
            if !owed.may_be_gone(now_ms) {
                return;
            }
        }
    }
}

impl Owed {
    fn is_event(&self) -> bool {
        self.kind == Kind::WatchEvent.number()
    }

    /// Whether it may come before another one that has been owed for longer.
    fn may_overtake(&self, other: &Self) -> bool {
        let is_event = self.is_event();
        let is_reply = !other.is_event();
        if other.group != 0 && other.group == self.group {
            return true;
        }
        match other.pace {
            Pace::Now => false,
            Pace::Look => is_event,
            // Replies keep the order of their requests.
            Pace::News if is_reply => is_event,
            Pace::News => self.pace != Pace::News,
        }
    }

    fn may_be_gone(&self, now_ms: u64) -> bool {
        self.unsure || self.deadline_ms.is_some_and(|deadline| deadline <= now_ms)
    }

    fn text(&self) -> String {
        let body = match &self.body {
            Body::Exact(bytes) => format!("{}", bytes.escape_ascii()),
            other => format!("{other:?}"),
        };
        format!("type {} id {} tx {} \"{body}\"", self.kind, self.req_id, self.tx_id)
    }

    fn is(
        &self,
        message: &[u8],
        generations: &mut BTreeMap<(Vec<u8>, Generation), Vec<u8>>,
    ) -> bool {
        let (head, payload) = message.split_at(HEADER_SIZE);
        let Ok(head) = head.try_into() else { return false };
        let header = Header::from_bytes(head);
        if (header.kind, header.req_id, header.tx_id) != (self.kind, self.req_id, self.tx_id) {
            return false;
        }
        match &self.body {
            Body::Exact(bytes) => bytes == payload,
            Body::Part { path, generation, list, offset } => {
                let Some(end) = payload.iter().position(|byte| *byte == 0) else { return false };
                let (text, part) = payload.split_at(end);
                let key = (path.clone(), *generation);
                is_new_or_same(generations, key, text)
                    && part[1..] == part_of(list, *offset, text.len() + 1)
            }
            Body::Usage { nodes, watches, transactions } => {
                let text = String::from_utf8_lossy(payload);
                [("nodes", nodes), ("watches", watches), ("transactions", transactions)]
                    .into_iter()
                    .all(|(name, wanted)| usage(&text, name) == Some(*wanted))
            }
            Body::Anything => true,
        }
    }
}

/// A node's generation has one spelling, and no other generation of that node has the same.
fn is_new_or_same(
    generations: &mut BTreeMap<(Vec<u8>, Generation), Vec<u8>>,
    key: (Vec<u8>, Generation),
    text: &[u8],
) -> bool {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return false;
    }
    if let Some(known) = generations.get(&key) {
        return known == text;
    }
    if generations.iter().any(|((path, _), known)| *path == key.0 && known == text) {
        return false;
    }
    generations.insert(key, text.to_vec());
    true
}

/// What DIRECTORY_PART shows behind the generation, which takes `before` bytes.
fn part_of(list: &[u8], offset: i64, before: usize) -> Vec<u8> {
    let offset = usize::try_from(offset).unwrap_or(list.len()).min(list.len());
    let mut part = Vec::new();
    for name in list[offset..].split_inclusive(|byte| *byte == 0) {
        if before + part.len() + name.len() > 4096 - 1 {
            return part;
        }
        part.extend_from_slice(name);
    }
    part.push(0);
    part
}

/// A figure of a domain's account.
fn usage(text: &str, name: &str) -> Option<usize> {
    text.lines().find_map(|line| {
        let (what, rest) = line.split_once(':')?;
        let figure = rest.split_whitespace().next()?;
        if what.trim() == name { figure.parse().ok() } else { None }
    })
}

/// Messages for people, also where the first or the last of them is only a part.
#[must_use]
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some(head) = rest.first_chunk() {
        let Header { kind, req_id, tx_id, len } = Header::from_bytes(head);
        let Some(name) = Kind::from_number(kind).filter(|_| len <= 4096) else { break };
        let end = (HEADER_SIZE + len as usize).min(rest.len());
        let payload = rest[HEADER_SIZE..end].escape_ascii();
        text.push_str(&format!("{name:?}#{req_id}"));
        if tx_id != 0 {
            text.push_str(&format!(".{tx_id}"));
        }
        text.push_str(&format!(" \"{payload}\" "));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        text.push_str(&format!("bytes \"{}\"", rest.escape_ascii()));
    }
    text
}
