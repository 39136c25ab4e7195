//! One request from its header to its reply.
//!
//! Checks and queueing follow the order of the C server ("C xenstored 4.22 behaviour"): type, privilege,
//! transaction, grammar, then the handler. The events that a request causes are queued ahead of its own reply.
//! Only the first event of a new watch follows the reply.
//!
//! A handler returns its answer, so none can end without one (XSA-481). A handler may destroy any connection, its
//! own too (XSA-425). So it holds no reference to one, and the caller looks the connection up again afterwards.

use super::operations::{Rules, Who, Within};
use crate::mem::{Budget, NoMemory};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::request::{Grammar, Request};
use crate::proto::wire::{Header, Kind, PAYLOAD_MAX};
use crate::server::Server;
use crate::server::admin::{Refused, Repeated};
use crate::server::platform::Platform;
use crate::server::rings::{
    Busy, CauseId, Connections, List, Lost, Messages, Payload, Sums, message_cost,
};
use crate::server::turns::{Asked, Cause, Causes, Share, hold_cause, memory};
use crate::store::Caller;
use crate::store::quota::Quota;
use crate::store::{Accounts, Post, Store};
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// Replies up to this size are never refused for memory.
const SHORT_REPLY: usize = 16;

/// The most scratch space for a reply, in bytes, that is kept from one request to the next.
const REPLY_KEPT: usize = 2 * PAYLOAD_MAX;

/// Units of work for each byte of a request and of its reply, besides what the store spends.
const BYTE_WORK: u64 = 2;

/// Units of work for any request.
const REQUEST_WORK: u64 = 1200;

/// Puts the events of the store into the queues of their receivers, as far as those may have them.
#[derive(Debug)]
pub(in crate::server) struct Delivery<'a, P: Platform> {
    platform: &'a mut P,
    connections: &'a mut Connections<P::Ring>,
    messages: &'a mut Messages,
    causes: &'a mut Causes,
    /// The request that causes them, if one does.
    asked: Option<Asked>,
}

impl<P: Platform> Post for Delivery<'_, P> {
    fn event(&mut self, accounts: &mut Accounts, id: ConnId, path: &[u8], token: &[u8]) {
        let Some(connection) = self.connections.get(id) else { return };
        if !connection.is_connected() {
            return;
        }
        let payload = self.messages.payload(path, token);
        let delivered = self.deliver(accounts, id, &payload);
        self.messages.put_back(payload);
        if let Err(lost) = delivered {
            self.lose(id, lost);
        }
    }
}

impl<P: Platform> Delivery<'_, P> {
    /// Queues one event, unless the same one waits.
    fn deliver(
        &mut self,
        accounts: &mut Accounts,
        id: ConnId,
        payload: &[u8],
    ) -> Result<(), Option<Lost>> {
        let connection = self.connections.get(id).ok_or(None)?;
        if payload.len() > PAYLOAD_MAX || self.messages.swallows(&connection.queue, payload) {
            return Ok(());
        }
        let cost = message_cost(payload.len());
        let payer = connection.payer();
        let held = payer.map(|domid| accounts.used(domid, Quota::Memory));
        let share = Share::of(held, self.connections.len());
        if !memory::can_queue(self.platform, share, cost) {
            return Err(Some(Lost::Memory));
        }
        if let Some(domid) = payer {
            if !accounts.permits(domid, Quota::Memory, cost) {
                return Err(Some(Lost::Quota));
            }
            if connection.queue.has_too_many_specials(payload) {
                return Err(None);
            }
        }
        let no_memory = |NoMemory| Some(Lost::Memory);
        let cause = hold_cause(self.causes, self.connections, accounts, self.asked);
        let cause = cause.map_err(no_memory)?;
        let connection = self.connections.get_mut(id).ok_or(None)?;
        // Most are read at once; the others get their deadline when it has been tried.
        let pushed = self.messages.push_event(&mut connection.queue, payload, cause, None, payer);
        if let Err(error) = pushed {
            self.forget_cause(accounts, cause);
            return Err(no_memory(error));
        }
        connection.figures.queued(payload.len());
        self.connections.count(id, Sums::EVENT);
        if let Some(domid) = payer {
            accounts.charge(domid, Quota::Memory, cost);
        }
        self.connections.push(List::Ready, id);
        Ok(())
    }

    /// Counts an event that is lost, and notes why if the administrator may be told.
    fn lose(&mut self, id: ConnId, lost: Option<Lost>) {
        self.connections.count(id, Sums::dropped(1));
        let Some(connection) = self.connections.get_mut(id).filter(|_| lost.is_some()) else {
            return;
        };
        let is_told = lost == Some(Lost::Quota) && connection.told.knows(Quota::Memory);
        if connection.lost.is_some() || is_told {
            self.connections.count(id, Sums::REFUSAL);
        } else {
            connection.lost = lost;
            self.connections.push(List::Lost, id);
        }
    }

    /// Makes an event that its receiver must get, unless the same one waits.
    fn make_event(
        &mut self,
        accounts: &mut Accounts,
        id: ConnId,
        payload: &[u8],
    ) -> Result<Option<u32>, NoMemory> {
        let connection = self.connections.get(id).ok_or(NoMemory)?;
        if payload.len() > PAYLOAD_MAX || self.messages.swallows(&connection.queue, payload) {
            return Ok(None);
        }
        let (payer, cost) = (connection.payer(), message_cost(payload.len()));
        if !payer.is_none_or(|domid| accounts.allows(domid, Quota::Memory, cost)) {
            return Err(NoMemory);
        }
        let cause = hold_cause(self.causes, self.connections, accounts, self.asked)?;
        let connection = self.connections.get(id).ok_or(NoMemory)?;
        let made = self.messages.make_event(&connection.queue, payload, cause, None, payer);
        if made.is_err() {
            self.forget_cause(accounts, cause);
        }
        made.map(Some)
    }

    /// A message that was to wait because of a request does not.
    fn forget_cause(&mut self, accounts: &mut Accounts, cause: Option<CauseId>) {
        let Some(CauseId(id)) = cause else { return };
        let Some(Cause { waiting, connection }) = self.causes.get_mut(id) else { return };
        *waiting = waiting.saturating_sub(1);
        if *waiting > 0 {
            return;
        }
        if let Some(connection) = self.connections.get(*connection) {
            accounts.refund(connection.domid, Quota::Outstanding, 1);
        }
        let _ = self.causes.remove(id);
    }
}

/// What a request that succeeded answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::server) enum Reply {
    /// `OK`.
    Done,
    /// These bytes.
    Data(Vec<u8>),
    /// These bytes, which are always the same.
    Text(&'static [u8]),
    /// `OK`, and after it the first event of the new watch, which is made already. `None` if the same one waits.
    Watching(Option<u32>),
    /// This, as soon as the work is done, which goes on in later turns.
    Working(Result<(), XsError>),
    /// `OK`, as soon as everybody has been told what became of this domain.
    Telling(DomId),
    /// Nothing yet: a domain that the request names is not quite gone. The request is tried again.
    Wait,
    /// Nothing yet: the reply comes when the update has happened or failed.
    Later,
}

/// What a handler returns.
pub(in crate::server) type Answer = Result<Reply, XsError>;

/// The facts about a caller that handlers use.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Asker {
    pub(in crate::server) id: ConnId,
    pub(in crate::server) req_id: u32,
    pub(in crate::server) tx: TxId,
    pub(in crate::server) domid: DomId,
    pub(in crate::server) privileged: bool,
    pub(in crate::server) features: u32,
}

impl Asker {
    /// The caller as the store knows it.
    pub(in crate::server) fn caller(self) -> Caller {
        Caller { conn: self.id, tx: self.tx }
    }
}

/// The payload of an ERROR message, which needs no memory.
pub(in crate::server) fn error_payload(error: XsError) -> &'static [u8] {
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
    /// The store, the work that this turn may do, and who takes the events of a request.
    pub(in crate::server) fn mail(
        &mut self,
        asked: Option<Asked>,
    ) -> (&mut Store, &mut Budget, Delivery<'_, P>) {
        let Self { store, budget, platform, connections, messages, causes, .. } = self;
        (store, budget, Delivery { platform, connections, messages, causes, asked })
    }

    /// Handles the complete request of a connection.
    pub(in crate::server) fn execute(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        // Out of the connection, since the connection may not outlive the request.
        let mut assembler = core::mem::take(&mut connection.assembler);
        let is_again = core::mem::take(&mut connection.waits);
        let mut waits = false;
        if let Some((header, payload)) = assembler.complete() {
            self.in_progress.header = Some(header);
            if !is_again {
                connection.figures.received(payload.len());
            }
            let asker = Asker {
                id,
                req_id: header.req_id,
                tx: TxId(header.tx_id),
                domid: connection.domid,
                privileged: connection.privileged,
                features: connection.features,
            };
            if !is_again {
                self.connections.count(id, Sums::REQUEST);
            }
            let asked = self.name_cause(asker);
            self.asked = asked;
            let answer = self.answer(asker, header.kind, payload);
            self.asked = None;
            self.spend_on_request(payload.len(), &answer);
            self.report_drops();
            waits = answer == Ok(Reply::Wait);
            if !waits {
                self.trace_answer(id, header, &answer);
                self.queue_answer(id, header, answer, asked);
            }
            self.in_progress.header = None;
        }
        if !waits {
            assembler.clear();
            if is_again {
                self.store.abandon_request(id);
            }
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.assembler = assembler;
        connection.waits = waits;
        if waits {
            self.mark_ready(id);
        } else if !connection.privileged {
            let domid = connection.domid;
            self.watch_soft_memory(id, self.store.memory_level(domid));
        }
    }

    fn spend_on_request(&mut self, payload: usize, answer: &Answer) {
        let reply = if let Ok(Reply::Data(bytes)) = answer { bytes.len() } else { 0 };
        let bytes = payload.saturating_add(reply) as u64;
        self.budget.spend(REQUEST_WORK.saturating_add(bytes.saturating_mul(BYTE_WORK)));
    }

    /// Checks a request in the order that clients know, and has it handled.
    fn answer(&mut self, asker: Asker, kind: u32, payload: &[u8]) -> Answer {
        let kind = Kind::from_number(kind).ok_or(XsError::ENOSYS)?;
        let rules = Rules::of(kind).ok_or(XsError::ENOSYS)?;
        self.trace_request(asker, kind, payload);
        // Of whatever was looked at before.
        let _ = self.store.take_refused();
        if rules.who == Who::Privileged && !asker.privileged {
            return Err(XsError::EACCES);
        }
        let in_transaction = rules.within == Within::Transaction && asker.tx != TxId::NONE;
        if in_transaction && !self.store.has_transaction(asker.id, asker.tx) {
            return Err(XsError::ENOENT);
        }
        let grammar = Grammar { features: asker.features, privileged: asker.privileged };
        let request = Request::parse(kind, payload, grammar)?;
        let memory_use = rules.memory_use(&request, in_transaction, asker.privileged);
        if !self.admits(asker, &request, memory_use, payload.len()) {
            return Err(XsError::ENOMEM);
        }
        if asker.privileged && self.has_to_wait(&request) {
            return Ok(Reply::Wait);
        }
        let (open, before) = (self.store.open_transactions(), self.store.generation());
        let answer = self.handle(asker, &request);
        let is_refused = matches!(answer, Err(_) | Ok(Reply::Working(Err(_))));
        if !is_refused
            && self.store.generation() != before
            && rules.has_conflicted(&request, in_transaction, open)
        {
            self.pay_for_write(asker);
        }
        answer
    }

    /// Charges the write-rate limit for a change that may make others' transactions fail.
    fn pay_for_write(&mut self, asker: Asker) {
        if asker.privileged {
            return;
        }
        let guests = self.guests();
        if let Some(connection) = self.connections.get_mut(asker.id) {
            connection.credit.pay(self.now_ms, guests, &mut self.reserve);
        }
    }

    /// Writes the reply to a request, or queues it.
    pub(in crate::server) fn queue_answer(
        &mut self,
        id: ConnId,
        header: Header,
        answer: Answer,
        asked: Option<Asked>,
    ) {
        let (answer, first_event) = match answer {
            Ok(Reply::Later | Reply::Wait) => return,
            Ok(Reply::Working(answer)) => {
                return self.answer_when_done(id, Busy::Reply { header, answer, asked });
            }
            Ok(Reply::Telling(domid)) => {
                return self.answer_when_done(id, Busy::News { header, domid });
            }
            Ok(Reply::Done) => (Ok(Cow::Borrowed(&b"OK\0"[..])), None),
            Ok(Reply::Text(text)) => (Ok(Cow::Borrowed(text)), None),
            Ok(Reply::Watching(event)) => (Ok(Cow::Borrowed(&b"OK\0"[..])), Some(event)),
            Ok(Reply::Data(bytes)) if bytes.len() > PAYLOAD_MAX => (Err(XsError::E2BIG), None),
            Ok(Reply::Data(bytes)) => (Ok(Cow::Owned(bytes)), None),
            Err(error) => (Err(error), None),
        };
        let connection = self.connections.get_mut(id).filter(|to| to.is_connected());
        let Some(connection) = connection else {
            if let Some(Some(event)) = first_event {
                self.messages.discard(event, &mut self.trash);
            }
            return;
        };
        let fits = |payload: &Payload| {
            connection.privileged
                || payload.len() <= SHORT_REPLY
                || self.store.allows(connection.domid, Quota::Memory, message_cost(payload.len()))
        };
        let answer = if answer.as_ref().is_ok_and(|payload| !fits(payload)) {
            self.refuse(id, Quota::Memory, Refused::Reply);
            Err(XsError::ENOMEM)
        } else {
            answer
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        let (kind, payload): (u32, Payload) = match answer {
            Ok(payload) => (header.kind, payload),
            Err(error) => (Kind::Error.number(), Cow::Borrowed(error_payload(error))),
        };
        connection.figures.queued(payload.len());
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let header = Header { kind, len, ..header };
        if first_event.is_none() && connection.put_whole(header, &payload) {
            // From here on it needs no other reply.
            self.in_progress.header = None;
            self.keep_reply_room(payload);
            return;
        }
        self.queue_reply(id, header, payload, asked);
        self.in_progress.header = None;
        if let Some(Some(event)) = first_event {
            self.append_event(id, event);
        }
    }

    /// The reply comes when the work is done; until then no other request of the connection is read.
    fn answer_when_done(&mut self, id: ConnId, busy: Busy) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.busy = Some(busy);
            self.mark_ready(id);
        }
    }

    /// Queues a reply that does not fit into the ring, or has others before it. If there is no memory for that,
    /// the connection has a place for a short reply, and is not read until that is written.
    fn queue_reply(&mut self, id: ConnId, header: Header, payload: Payload, asked: Option<Asked>) {
        let queued = self.try_queue_reply(id, header, &payload, asked);
        let Some(connection) = self.connections.get_mut(id).filter(|_| queued.is_err()) else {
            self.keep_reply_room(payload);
            return;
        };
        let (header, text) = match &payload {
            Cow::Borrowed(text) => (header, *text),
            Cow::Owned(_) => {
                let text = error_payload(XsError::ENOMEM);
                let len = u32::try_from(text.len()).unwrap_or(0);
                (Header { kind: Kind::Error.number(), len, ..header }, text)
            }
        };
        self.messages.push_kept(&mut connection.queue, header, text);
        self.keep_reply_room(payload);
    }

    fn try_queue_reply(
        &mut self,
        id: ConnId,
        header: Header,
        payload: &Payload,
        asked: Option<Asked>,
    ) -> Result<(), NoMemory> {
        let (store, _, mail) = self.mail(asked);
        let accounts = store.accounts_mut();
        let cause = hold_cause(mail.causes, mail.connections, accounts, asked)?;
        let Some(connection) = mail.connections.get_mut(id) else { return Err(NoMemory) };
        let payer = connection.payer();
        let pushed = mail.messages.push_reply(&mut connection.queue, header, payload, cause, payer);
        match (pushed, payer) {
            (Err(error), _) => {
                if let Some(cause) = cause {
                    self.drop_cause(cause);
                }
                Err(error)
            }
            (Ok(cost), Some(domid)) => {
                accounts.charge(domid, Quota::Memory, cost);
                Ok(())
            }
            (Ok(_), None) => Ok(()),
        }
    }

    /// Makes the first event of a new watch, for which clients wait. `None` if the same one waits.
    pub(in crate::server) fn make_event(
        &mut self,
        asker: Asker,
        path: &[u8],
        token: &[u8],
    ) -> Result<Option<u32>, XsError> {
        let (store, _, mut mail) = self.mail(self.asked);
        let payload = mail.messages.payload(path, token);
        let made = mail.make_event(store.accounts_mut(), asker.id, &payload);
        mail.messages.put_back(payload);
        made.map_err(XsError::from)
    }

    /// Queues an event that is made already.
    fn append_event(&mut self, id: ConnId, event: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.figures.queued(self.messages.payload_len(event));
        let cost = self.messages.append(&mut connection.queue, event);
        if let Some(domid) = connection.payer() {
            self.store.charge(domid, Quota::Memory, cost);
        }
        self.connections.count(id, Sums::EVENT);
        self.mark_ready(id);
    }

    /// Scratch space for a reply.
    pub(in crate::server) fn reply_room(&mut self) -> Result<Vec<u8>, XsError> {
        let mut room = core::mem::take(&mut self.reply);
        if room.capacity() < PAYLOAD_MAX {
            room.try_reserve_exact(PAYLOAD_MAX).map_err(|_| XsError::ENOMEM)?;
        }
        Ok(room)
    }

    /// Keeps the space of a reply for the next one.
    pub(in crate::server) fn keep_reply_room(&mut self, reply: Payload) {
        if let Cow::Owned(mut room) = reply
            && room.capacity() <= REPLY_KEPT
        {
            room.clear();
            self.reply = room;
        }
    }

    /// Tells the administrator of events that could not be delivered.
    pub(in crate::server) fn report_drops(&mut self) {
        while let Some(id) = self.connections.pop(List::Lost) {
            let Some(connection) = self.connections.get_mut(id) else { return };
            match connection.lost.take() {
                Some(Lost::Quota) => self.refuse(id, Quota::Memory, Refused::Event),
                Some(Lost::Memory) => self.guest_log(
                    id,
                    Repeated::NoMemory,
                    format_args!("event dropped, no memory is left"),
                ),
                None => {}
            }
        }
        self.tell_drops();
    }

    /// How many domains share the income of the write-rate limit.
    pub(in crate::server) fn guests(&self) -> usize {
        self.connections.len()
    }
}
