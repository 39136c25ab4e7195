//! One request from its header to its reply.
//!
//! The order of checks, and of what is queued, is that of the C server ("C xenstored 4.22 behaviour"): type, privilege,
//! transaction, grammar, then the handler; the events that a request causes are queued ahead of its own
//! reply, except the first event of a new watch, which follows it.
//!
//! A handler returns its answer, so none can end without one (XSA-481). It may destroy any connection, its
//! own too (XSA-425): it holds no reference to one, and whoever goes on afterwards looks it up again.

use super::Server;
use super::accounts::Asked;
use super::log::Repeated;
use super::memory;
use super::platform::Platform;
use super::queue::{MESSAGE_OVERHEAD, Payload};
use super::refusals::Refused;
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::request::{Grammar, Request};
use crate::proto::wire::{Header, Kind, PAYLOAD_MAX};
use crate::store::Caller;
use crate::store::quota::Quota;
use crate::store::{Accounts, Post};
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// Replies up to this size are never refused for memory.
const SHORT_REPLY: usize = 16;

/// Bytes of a reply for which room is kept from one request to the next.
const REPLY_KEPT: usize = 256;

/// Events for which room is kept from one request to the next.
const EVENTS_KEPT: usize = 32;

/// Events that the store has handed over, until they are in their queues.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    events: Vec<(ConnId, Vec<u8>)>,
}

impl Post for Gathered {
    fn event(&mut self, _: &mut Accounts, conn: ConnId, path: &[u8], token: &[u8]) {
        self.events.push((conn, [path, &[0], token, &[0]].concat()));
    }
}

/// What a request that succeeded answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// `OK`.
    Done,
    /// These bytes.
    Data(Vec<u8>),
    /// `OK`, and behind it the first event of the new watch, with this payload.
    Watching(Vec<u8>),
    /// Nothing yet: the reply comes when the update has happened or failed.
    Later,
}

/// What a handler returns.
pub(super) type Answer = Result<Reply, XsError>;

/// The facts about a caller that handlers use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) id: ConnId,
    pub(super) req_id: u32,
    pub(super) tx: TxId,
    pub(super) domid: DomId,
    pub(super) privileged: bool,
    pub(super) features: u32,
}

impl Asker {
    /// The caller as the store knows it.
    pub(super) fn caller(self) -> Caller {
        Caller { conn: self.id, tx: self.tx }
    }
}

/// Whether only the privileged domain may send this.
fn is_privileged_only(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Control
            | Kind::Introduce
            | Kind::Release
            | Kind::IsDomainIntroduced
            | Kind::Resume
            | Kind::SetTarget
            | Kind::SetFeature
            | Kind::GetQuota
            | Kind::SetQuota
    )
}

/// Whether a request changes the store at once, outside a transaction.
fn is_write(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::Write { .. }
            | Request::Mkdir { .. }
            | Request::Rm { .. }
            | Request::SetPerms { .. }
    )
}

/// The payload of an ERROR message, which needs no memory.
fn error_payload(error: XsError) -> &'static [u8] {
    match error {
        XsError::EINVAL => b"EINVAL\0",
        XsError::EACCES => b"EACCES\0",
        XsError::EEXIST => b"EEXIST\0",
        XsError::EISDIR => b"EISDIR\0",
        XsError::ENOENT => b"ENOENT\0",
        XsError::ENOMEM => b"ENOMEM\0",
        XsError::ENOSPC => b"ENOSPC\0",
        XsError::EIO => b"EIO\0",
        XsError::ENOTEMPTY => b"ENOTEMPTY\0",
        XsError::ENOSYS => b"ENOSYS\0",
        XsError::EROFS => b"EROFS\0",
        XsError::EBUSY => b"EBUSY\0",
        XsError::EAGAIN => b"EAGAIN\0",
        XsError::EISCONN => b"EISCONN\0",
        XsError::E2BIG => b"E2BIG\0",
        XsError::EPERM => b"EPERM\0",
    }
}

impl<P: Platform> Server<P> {
    /// Handles the complete request of a connection.
    pub(super) fn execute(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        // Out of the connection, since the connection may not outlive the request.
        let mut assembler = core::mem::take(&mut connection.assembler);
        if let Some((header, payload)) = assembler.complete() {
            connection.figures.received(payload.len());
            let asker = Asker {
                id,
                req_id: header.req_id,
                tx: TxId(header.tx_id),
                domid: connection.domid,
                privileged: connection.privileged,
                features: connection.features,
            };
            let asked = self.name_cause(asker);
            let answer = self.answer(asker, header.kind, payload);
            self.trace_answer(id, header, &answer);
            self.deliver_events(asked);
            self.queue_answer(id, header, answer, asked);
        }
        assembler.clear();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.assembler = assembler;
        if !connection.privileged {
            let domid = connection.domid;
            self.watch_soft_memory(id, self.store.memory_level(domid));
        }
    }

    /// Checks a request in the order that clients know, and has it handled.
    fn answer(&mut self, asker: Asker, kind: u32, payload: &[u8]) -> Answer {
        let kind = Kind::from_number(kind)
            .filter(|kind| !matches!(kind, Kind::WatchEvent | Kind::Error))
            .ok_or(XsError::ENOSYS)?;
        self.trace_request(asker, kind, payload);
        // Of whatever was looked at before.
        let _ = self.store.take_refused();
        if is_privileged_only(kind) && !asker.privileged {
            return Err(XsError::EACCES);
        }
        let ignores_tx = matches!(kind, Kind::Watch | Kind::Unwatch);
        if !ignores_tx && asker.tx != TxId::NONE && !self.store.has_transaction(asker.id, asker.tx)
        {
            return Err(XsError::ENOENT);
        }
        let grammar = Grammar { features: asker.features, privileged: asker.privileged };
        let request = Request::parse(kind, payload, grammar)?;
        let in_transaction = !ignores_tx && asker.tx != TxId::NONE;
        if !self.admits(&request, in_transaction, asker.privileged, payload.len()) {
            return Err(XsError::ENOMEM);
        }
        let (open, before) = (self.store.open_transactions(), self.store.generation());
        let answer = self.handle(asker, &request);
        if answer.is_ok() && self.store.generation() != before {
            self.pay_for_write(asker, &request, open);
        }
        answer
    }

    /// Charges the write-rate limit for a change that can make others' transactions fail; `open` is how many
    /// there were when it was asked for.
    fn pay_for_write(&mut self, asker: Asker, request: &Request<'_>, open: usize) {
        if asker.privileged {
            return;
        }
        let disturbs = if let Request::TransactionEnd { commit } = request {
            *commit && open > 1
        } else {
            asker.tx == TxId::NONE && is_write(request) && open > 0
        };
        if !disturbs {
            return;
        }
        let guests = self.guests();
        if let Some(connection) = self.connections.get_mut(&asker.id) {
            connection.credit.pay(self.now_ms, guests, &mut self.reserve);
        }
    }

    /// Writes the reply to a request, or queues it.
    pub(super) fn queue_answer(
        &mut self,
        id: ConnId,
        header: Header,
        answer: Answer,
        asked: Option<Asked>,
    ) {
        let (answer, first_event) = match answer {
            Ok(Reply::Later) => return,
            Ok(Reply::Done) => (Ok(Cow::Borrowed(&b"OK\0"[..])), None),
            Ok(Reply::Watching(event)) => (Ok(Cow::Borrowed(&b"OK\0"[..])), Some(event)),
            Ok(Reply::Data(bytes)) if bytes.len() > PAYLOAD_MAX => (Err(XsError::E2BIG), None),
            Ok(Reply::Data(bytes)) => (Ok(Cow::Owned(bytes)), None),
            Err(error) => (Err(error), None),
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.is_connected() {
            return;
        }
        let fits = |payload: &Payload| {
            let cost = payload.len().saturating_add(MESSAGE_OVERHEAD);
            connection.privileged
                || payload.len() <= SHORT_REPLY
                || self.store.allows(connection.domid, Quota::Memory, cost)
        };
        let answer = if answer.as_ref().is_ok_and(|payload| !fits(payload)) {
            self.refuse(id, Quota::Memory, Refused::Reply);
            Err(XsError::ENOMEM)
        } else {
            answer
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (kind, payload): (u32, Payload) = match answer {
            Ok(payload) => (header.kind, payload),
            Err(error) => (Kind::Error.number(), Cow::Borrowed(error_payload(error))),
        };
        connection.figures.queued(payload.len());
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let header = Header { kind, len, ..header };
        if first_event.is_none() && connection.put_whole(header, &payload) {
            self.keep_reply_room(payload);
            return;
        }
        self.queue_reply(id, header, payload, asked);
        if let Some(event) = first_event {
            self.deliver(id, event, asked);
        }
    }

    /// Queues a reply that does not fit into the ring, or has others before it.
    fn queue_reply(&mut self, id: ConnId, header: Header, payload: Payload, asked: Option<Asked>) {
        let cause = self.hold_cause(asked);
        // As large as what is charged, and not as large as the scratch space.
        let exact = match &payload {
            Cow::Borrowed(text) => Cow::Borrowed(*text),
            Cow::Owned(bytes) => Cow::Owned(Vec::from(bytes.as_slice())),
        };
        self.keep_reply_room(payload);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.privileged {
            let cost = exact.len().saturating_add(MESSAGE_OVERHEAD);
            self.store.charge(connection.domid, Quota::Memory, cost);
        }
        connection.queue.push_reply(header, exact, cause);
    }

    /// Scratch space for a reply.
    pub(super) fn reply_room(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.reply)
    }

    /// Keeps the room of a reply for the next one.
    pub(super) fn keep_reply_room(&mut self, reply: Payload) {
        if let Cow::Owned(mut room) = reply
            && room.capacity() <= REPLY_KEPT
        {
            room.clear();
            self.reply = room;
        }
    }

    /// Queues the events that the store has gathered.
    pub(super) fn deliver_events(&mut self, asked: Option<Asked>) {
        let mut gathered = core::mem::take(&mut self.gathered);
        for (conn, payload) in gathered.events.drain(..) {
            self.deliver(conn, payload, asked);
        }
        // A burst's worth of memory is given back.
        if gathered.events.capacity() <= EVENTS_KEPT {
            self.gathered = gathered;
        }
        self.tell_drops();
    }

    /// Queues one event.
    fn deliver(&mut self, id: ConnId, payload: Vec<u8>, asked: Option<Asked>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.is_connected()
            || payload.len() > PAYLOAD_MAX
            || connection.queue.swallows(&payload)
        {
            return;
        }
        let cost = payload.len().saturating_add(MESSAGE_OVERHEAD);
        let has_room = memory::can_queue(&mut self.platform, payload.len());
        let may_have =
            connection.privileged || self.store.allows(connection.domid, Quota::Memory, cost);
        if !has_room || !may_have {
            self.drop_undeliverable(id, has_room);
            return;
        }
        connection.figures.events = connection.figures.events.saturating_add(1);
        connection.figures.queued(payload.len());
        if !connection.privileged {
            self.store.charge(connection.domid, Quota::Memory, cost);
        }
        let cause = self.hold_cause(asked);
        if let Some(connection) = self.connections.get_mut(&id) {
            // Most are read at once; the others get their deadline when it has been tried.
            connection.queue.push_event(payload, cause, None);
        }
        self.mark_ready(id);
    }

    /// An event for which there is no memory: either the receiver's quota is used up, or the server has none.
    fn drop_undeliverable(&mut self, id: ConnId, has_room: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.figures.dropped_events = connection.figures.dropped_events.saturating_add(1);
        if has_room {
            self.refuse(id, Quota::Memory, Refused::Event);
        } else {
            self.guest_log(
                id,
                Repeated::NoMemory,
                format_args!("event dropped, no memory is left"),
            );
        }
    }

    /// How many domains share the income of the write-rate limit.
    pub(super) fn guests(&self) -> usize {
        self.connections.len()
    }
}
