//! The whole state, taken over from a predecessor. This happens on trial, so nothing here changes the world.
//!
//! The stream and the private part are read in step (see `save`). Both are untrusted. If anything does not fit
//! together, it is refused with a sentence, and the predecessor goes on. What can be computed from the rest is
//! computed; the accounts of all domains must then be what the predecessor said.

use super::failure::Failures;
use super::update::{Passage, Requester};
use crate::mem::{Map, NoMemory, TryVec, try_with_capacity};
use crate::proto::assemble::{AssembleError, Assembler};
use crate::proto::handover::{
    FAILURES_SINCE, FieldReader, HANDOVER, PRICES_SINCE, Short, Source, TAIL_SINCE, Tail,
};
use crate::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{self, Endpoint, Record, Version};
use crate::server::Server;
use crate::server::admin::{History, LineBudget, log};
use crate::server::domains::Domain;
use crate::server::platform::{Identity, Platform};
use crate::server::rings::{CauseId, Connection, Figures, List};
use crate::server::turns::{Cause, Reserve, memory};
use crate::store::quota::{Quota, Quotas};
use crate::store::{Party, Restoring};
use alloc::vec::Vec;

/// The sentence for a lack of memory.
pub(in crate::server) const NO_MEMORY: &str = "there is not enough memory to take everything over";

/// Memory that is asked for at once.
const STEP: usize = 128 * 1024;

/// Bytes for a domain, and for a request of which something still waits.
const DOMAIN_BYTES: usize = 1024;
const CAUSE_BYTES: usize = 128;

/// The fewest bytes that a domain and a request take in the private part.
const DOMAIN_FIELDS: usize = 2 + 1 + 4 + 1 + 1 + 3 * 4 * Quota::COUNT;
const CAUSE_FIELDS: usize = 12;

/// The fewest bytes that a node takes in the stream.
const NODE_LEN: usize = 32;

/// A sentence that says what does not fit together.
type Refusal = Sentence;

/// What the head says about the store.
struct StoreHead {
    initial: Quotas,
    generation: u64,
    dropped: u64,
}

/// What a domain must have used, and its maximum, when everything is restored.
#[derive(Debug)]
pub(in crate::server) struct Account {
    pub(in crate::server) domid: DomId,
    pub(in crate::server) peak: Quotas,
    pub(in crate::server) used: Quotas,
}

/// What has been seen while going through the records.
pub(in crate::server) struct Seen {
    /// Memory that is known to be there.
    room: usize,
    last: Option<ConnId>,
    tokens: Map<u64, ()>,
}

impl Seen {
    /// Nothing; `seed` keys the hashes.
    pub(in crate::server) fn new(seed: u64) -> Self {
        Self { room: 0, last: None, tokens: Map::new(seed) }
    }

    /// Makes sure that so many bytes can be allocated.
    pub(in crate::server) fn reserve<P: Platform>(
        &mut self,
        platform: &mut P,
        bytes: usize,
    ) -> Result<(), Refusal> {
        if self.room < bytes {
            let room = bytes.saturating_add(STEP);
            if !platform.reserve(room.saturating_add(Restoring::MARGIN)) {
                return Err(Sentence::from(NO_MEMORY));
            }
            self.room = room;
        }
        self.room = self.room.saturating_sub(bytes);
        Ok(())
    }
}

impl<P: Platform> Server<P> {
    /// A server with everything that its predecessor wrote, on trial: it has changed nothing outside of itself,
    /// and must not before [`take_over`](Self::take_over).
    ///
    /// Without a private part it is a start from another server's stream, which is no trial: rings are mapped
    /// and ports bound. [`take_over`](Self::take_over) then takes the place of [`start`](Self::start).
    ///
    /// # Errors
    /// What does not fit together, as a sentence; of a live update nothing has happened then.
    pub fn restore(
        platform: P,
        command_line: &str,
        stream: &[u8],
        private: &[u8],
    ) -> Result<Self, Sentence> {
        if private.is_empty() {
            let mut server = Self::new(platform, command_line);
            return server.revive(stream).map(|()| server);
        }
        let (private, mut tail) = split_tail(private)?;
        Self::restore_from(platform, command_line, stream, private, &mut tail)
    }

    /// As [`restore`](Self::restore), with the tail of the private part from a source of its own: see
    /// [`split_tail`].
    ///
    /// # Errors
    /// As there.
    pub fn restore_from<S: Source>(
        platform: P,
        command_line: &str,
        stream: &[u8],
        private: &[u8],
        tail: &mut S,
    ) -> Result<Self, Sentence> {
        let mut server = Self::blank(platform, command_line)?;
        match server.fill(stream, private, tail) {
            Ok(()) => Ok(server),
            Err(why) => {
                server.abandon();
                Err(why)
            }
        }
    }

    /// Drops everything and leaves the world as it is: the predecessor goes on.
    pub fn abandon(mut self) {
        while let Some(id) = self.connections.first(List::All) {
            if let Some(connection) = self.connections.remove(id) {
                self.platform.leave_ring(connection.ring);
            }
        }
    }

    fn fill<S: Source>(
        &mut self,
        stream: &[u8],
        private: &[u8],
        tail: &mut S,
    ) -> Result<(), Refusal> {
        let mut fields = FieldReader::new(private);
        let handover = fields.u32()?;
        if !HANDOVER.contains(&handover) {
            let (first, last) = (HANDOVER.start(), HANDOVER.end());
            return Err(sentence!(
                "the private part is of version {handover}, this image reads {first} to {last}"
            ));
        }
        let mut reader = stream::Reader::new(stream).map_err(damaged)?;
        let head = self.read_head(&mut fields, reader.version(), handover)?;
        let seed = self.platform.hash_seed();
        let mut seen = Seen::new(seed);
        let mut new = Restoring::new(seed, self.privileged, head.initial, true)
            .map_err(|error| sentence!("{error}"))?;
        let accounts = self.read_domains(&mut fields, &mut new, &mut seen)?;
        self.read_causes(&mut fields, &mut seen)?;
        if handover >= TAIL_SINCE {
            let platform = &mut self.platform;
            new.tail(&mut Tail::new(tail), |bytes| seen.reserve(platform, bytes))?;
        } else {
            // Not more than the stream can hold, whatever the accounts say.
            let said = accounts.iter().map(|account| account.used.get(Quota::Nodes) as usize);
            let said = said.fold(0, usize::saturating_add);
            let nodes = said.min(stream.len().wrapping_div(NODE_LEN));
            seen.reserve(&mut self.platform, nodes.saturating_mul(Restoring::EXPECT_BYTES))?;
            new.expect(nodes);
        }
        loop {
            while let Some(node) = reader.next_node() {
                self.take_in_node(&node.map_err(damaged)?, &mut fields, &mut new, &mut seen)?;
            }
            let Some(record) = reader.next() else { break };
            self.take_in(&record.map_err(damaged)?, &mut fields, &mut new, &mut seen)?;
        }
        if !fields.is_empty() || tail.left() > 0 {
            return Err(Sentence::from("the private part is longer than the stream"));
        }
        self.store = new.finish(Some(head.generation), head.dropped)?;
        self.count_causes()?;
        if self.failures.is_repair {
            self.count_anew(&accounts)?;
        } else {
            let same_prices = handover >= PRICES_SINCE;
            self.compare(&accounts, same_prices)?;
            if !same_prices {
                self.said = accounts;
            }
        }
        if seen.last.is_some_and(|last| last.0 >= self.next_connection) {
            return Err(Sentence::from("the number of the next connection is in use"));
        }
        let mut first = None;
        self.check_connections(&mut |finding| {
            first.get_or_insert_with(|| Sentence::from(finding));
        });
        first.map_or(Ok(()), Err)
    }

    /// One record, and what the private part has to say about it.
    fn take_in<'a>(
        &mut self,
        record: &Record<'a>,
        fields: &mut FieldReader<'_>,
        new: &mut Restoring<'a>,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        if let Record::Node(node) = record {
            return self.take_in_node(node, fields, new, seen);
        }
        seen.reserve(&mut self.platform, Restoring::cost(record))?;
        match record {
            Record::Connection(connection) => self.read_connection(connection, fields, new, seen),
            Record::Watch(watch) => new.watch(watch, fields.maybe_u32()?),
            Record::Transaction(transaction) => new.transaction(*transaction, Some(fields)),
            // The private part says more.
            Record::Node(_) | Record::Global(_) | Record::GlobalQuota(_) | Record::Domain(_) => {
                Ok(())
            }
            Record::Unknown(unknown) => {
                Err(sentence!("the stream has a record of type {}, which is unknown", unknown.kind))
            }
        }
    }

    /// A node's record, likewise.
    fn take_in_node<'a>(
        &mut self,
        node: &stream::Node<'a>,
        fields: &mut FieldReader<'_>,
        new: &mut Restoring<'a>,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        let bytes = Restoring::node_cost(node);
        if node.pending.is_none() {
            seen.reserve(&mut self.platform, bytes)?;
            return new.node(node, Some(fields.u64()?));
        }
        let bytes = bytes.saturating_add(Restoring::touched_cost(node));
        seen.reserve(&mut self.platform, bytes)?;
        new.touched(node, fields)
    }

    fn read_head(
        &mut self,
        fields: &mut FieldReader<'_>,
        version: Version,
        handover: u32,
    ) -> Result<StoreHead, Refusal> {
        let stopped_us = fields.u64()?;
        let requester = if fields.flag()? {
            let (conn, req_id) = (ConnId(fields.u32()?), fields.u32()?);
            Some(Requester { conn, req_id, tx: TxId(fields.u32()?) })
        } else {
            None
        };
        self.passage = Some(Passage::new(requester, stopped_us, version, handover));
        self.privileged = DomId(fields.u16()?);
        let initial = read_quotas(fields)?;
        self.next_connection = fields.u32()?;
        self.next_cause = fields.u64()?;
        self.started_ms = fields.u64()?;
        self.next_rescan_ms = fields.u64()?;
        self.reserve = Reserve::from_number(fields.i64()?);
        if fields.count(8)? != self.latency.0.len() {
            return Err(Sentence::from("the histogram of request times has another size"));
        }
        for count in &mut self.latency.0 {
            *count = fields.u64()?;
        }
        if handover >= 2 {
            self.unmeasured = fields.u32()?;
        }
        if handover >= 3 {
            self.history = History::read(fields)?;
        }
        if handover >= FAILURES_SINCE {
            self.failures = Failures::read(fields)?;
        }
        self.past = Figures::read(fields)?;
        self.warned_of_unknown_states = fields.flag()?;
        let (generation, dropped) = (fields.u64()?, fields.u64()?);
        self.dropped_before = fields.u64()?;
        self.next_drop_line_ms = fields.u64()?;
        for budget in log::kept_mut(&mut self.line_budgets, handover) {
            let (since_ms, used) = (fields.u64()?, fields.u32()?);
            *budget = LineBudget { since_ms, used, left_out: fields.u32()? };
        }
        self.switches.on = fields.flag()?;
        for (_, wanted) in &mut self.switches.each {
            *wanted = fields.flag()?;
        }
        Ok(StoreHead { initial, generation, dropped })
    }

    fn read_domains(
        &mut self,
        fields: &mut FieldReader<'_>,
        new: &mut Restoring<'_>,
        seen: &mut Seen,
    ) -> Result<Vec<Account>, Refusal> {
        let count = fields.count(DOMAIN_FIELDS)?;
        seen.reserve(&mut self.platform, count.saturating_mul(DOMAIN_BYTES))?;
        let mut accounts: Vec<Account> = try_with_capacity(count).map_err(no_memory)?;
        for _ in 0..count {
            let (domid, domain) = read_domain(fields)?;
            let is_next = accounts.last().is_none_or(|last| last.domid < domid);
            if !is_next || !domid.is_ordinary() {
                return Err(sentence!("domain {domid} is out of order"));
            }
            new.domain(domid, read_quotas(fields)?).map_err(|error| sentence!("{error}"))?;
            let peak = read_quotas(fields)?;
            let account = Account { domid, peak, used: read_quotas(fields)? };
            accounts.try_push(account).map_err(no_memory)?;
            self.domains.insert(domid, domain).map_err(no_memory)?;
        }
        if !self.domains.contains(self.privileged) {
            return Err(Sentence::from("the privileged domain is missing"));
        }
        Ok(accounts)
    }

    fn read_causes(
        &mut self,
        fields: &mut FieldReader<'_>,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        let count = fields.count(CAUSE_FIELDS)?;
        seen.reserve(&mut self.platform, count.saturating_mul(CAUSE_BYTES))?;
        let mut last = None;
        for _ in 0..count {
            let (id, connection) = (fields.u64()?, ConnId(fields.u32()?));
            if last >= Some(id) || id >= self.next_cause {
                return Err(Sentence::from("the unfinished requests are out of order"));
            }
            last = Some(id);
            self.causes.insert(id, Cause { connection, waiting: 0 }).map_err(no_memory)?;
        }
        Ok(())
    }

    fn read_connection(
        &mut self,
        record: &stream::Connection<'_>,
        fields: &mut FieldReader<'_>,
        new: &mut Restoring<'_>,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        let id = record.id;
        let Endpoint::Ring { domid, target, port } = record.endpoint else {
            return Err(sentence!("connection {} is no ring", id.0));
        };
        let wrong = |what: &str| Err(sentence!("the connection of domain {domid}: {what}"));
        let (token, has_port, last_tx) = (fields.u64()?, fields.flag()?, fields.u32()?);
        if seen.last >= Some(id) || seen.tokens.insert(token, ()).map_err(no_memory)?.is_some() {
            return wrong("it is there twice");
        }
        seen.last = Some(id);
        let known = |domid: &DomId| self.domains.contains(*domid);
        if self.connection_of(domid) != Some(id) || !target.iter().all(known) {
            return wrong("its domain or its target does not know of it");
        }
        if has_port && (port == EvtchnPort(0) || self.ports.contains(port)) {
            return wrong("its port is another one's");
        }
        // So that nothing can go wrong with memory once there is a ring.
        let queue = self.promise_connection().map_err(no_memory)?;
        let adopted = self.platform.adopt_ring(domid, token);
        let ring = adopted
            .map_err(|error| sentence!("domain {domid}: its ring cannot be taken over: {error}"))?;
        // From here on it is the server's, which does not unmap it if something is wrong.
        match has_port {
            true => self.ports.insert_promised(port, id),
            false => self.ports.withdraw(),
        }
        let port = has_port.then_some(port);
        let mut made = Connection::new(domid, ring, port, queue);
        let filled = self.fill_connection(&mut made, record, fields, new);
        let (privileged, is_connected) = (made.privileged, made.is_connected());
        self.connections.insert(id, made);
        filled?;
        if is_connected {
            new.connect(id, Party { domid, target, privileged }, last_tx)?;
        }
        Ok(())
    }

    fn fill_connection(
        &mut self,
        made: &mut Connection<P::Ring>,
        record: &stream::Connection<'_>,
        fields: &mut FieldReader<'_>,
        new: &mut Restoring<'_>,
    ) -> Result<(), Refusal> {
        let domid = made.domid;
        let privileged = domid == self.privileged;
        made.privileged = privileged;
        let handover = self.passage.as_ref().map_or(0, |passage| passage.handover);
        made.read_fields(handover, fields)?;
        let assembler = match Assembler::restore(record.input) {
            Err(AssembleError::NoMemory) => return Err(Sentence::from(NO_MEMORY)),
            Ok(assembler) => assembler,
            Err(AssembleError::Oversize(_)) => None,
        };
        made.assembler = assembler
            .ok_or_else(|| sentence!("the request that domain {domid} has begun is damaged"))?;
        let causes = &mut self.causes;
        let payer = made.payer();
        let messages = &mut self.messages;
        messages.restore(&mut made.queue, record.output, payer, fields, |cause| {
            if let Some(CauseId(cause)) = cause {
                let cause = causes.get_mut(cause).ok_or_else(|| {
                    Sentence::from("a message waits for a request that is finished")
                })?;
                cause.waiting = cause.waiting.saturating_add(1);
            }
            Ok(())
        })?;
        if let Some(domid) = payer {
            new.store().charge(domid, Quota::Memory, made.queue.held(messages));
        }
        if usize::from(record.partial) != made.queue.partial(messages) {
            return Err(sentence!("the message that domain {domid} is being sent is damaged"));
        }
        if made.is_connected() || made.queue.is_empty() && made.assembler.is_empty() {
            Ok(())
        } else {
            Err(sentence!("something waits for domain {domid}, whose ring was given up"))
        }
    }

    /// Charges for the unfinished requests.
    fn count_causes(&mut self) -> Result<(), Refusal> {
        for (_, cause) in self.causes.iter() {
            if cause.waiting == 0 {
                return Err(Sentence::from("an unfinished request waits for nothing"));
            }
            if let Some(connection) = self.connections.get(cause.connection) {
                self.store.charge(connection.domid, Quota::Outstanding, 1);
            }
        }
        Ok(())
    }

    /// Checks that everything that was counted during the restore is what the predecessor had counted; the memory
    /// only if both used the same prices. After a failure the predecessor's numbers may be half changed, so the
    /// new counts hold.
    fn count_anew(&mut self, accounts: &[Account]) -> Result<(), Refusal> {
        for Account { domid, peak, .. } in accounts {
            let used = self.store.accounts(*domid).map_or(Quotas::ZERO, |(_, _, used)| used);
            let mut peak = *peak;
            for quota in Quota::ALL {
                peak.set(quota, peak.get(quota).max(used.get(quota)));
            }
            if !self.store.set_peak(*domid, peak) {
                return Err(sentence!("domain {domid} uses more than it ever did"));
            }
        }
        Ok(())
    }

    fn compare(&mut self, accounts: &[Account], same_prices: bool) -> Result<(), Refusal> {
        for Account { domid, peak, used } in accounts {
            let found = self.store.used_without_lists(*domid);
            let mut peak = *peak;
            if !same_prices {
                let held = memory::held(&self.store, *domid);
                let most = peak.get(Quota::Memory).max(u32::try_from(held).unwrap_or(u32::MAX));
                peak.set(Quota::Memory, most);
            }
            let compared = |quota: &Quota| same_prices || *quota != Quota::Memory;
            for quota in Quota::ALL.into_iter().filter(compared) {
                let (found, said) = (found.get(quota), used.get(quota));
                if found != said {
                    let name = quota.name();
                    return Err(sentence!(
                        "domain {domid}: {name}: {found} came, {said} were said"
                    ));
                }
            }
            if !self.store.set_peak(*domid, peak) {
                return Err(sentence!("domain {domid} uses more than it ever did"));
            }
        }
        Ok(())
    }
}

/// A private part without its tail, and the tail. A version that has one ends with its length.
///
/// # Errors
/// It is longer than the private part.
pub fn split_tail(private: &[u8]) -> Result<(&[u8], &[u8]), Sentence> {
    if FieldReader::new(private).u32()? < TAIL_SINCE {
        return Ok((private, &[]));
    }
    let (rest, len) = private.split_last_chunk().ok_or(Short)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let start = rest.len().checked_sub(len).ok_or(Short)?;
    Ok(rest.split_at_checked(start).ok_or(Short)?)
}

fn no_memory(NoMemory: NoMemory) -> Refusal {
    Sentence::from(NO_MEMORY)
}

fn damaged(error: stream::StreamError) -> Refusal {
    sentence!("the stream is damaged: {error}")
}

fn read_quotas(fields: &mut FieldReader<'_>) -> Result<Quotas, Short> {
    let mut quotas = Quotas::ZERO;
    for quota in Quota::ALL {
        quotas.set(quota, fields.u32()?);
    }
    Ok(quotas)
}

fn read_domain(fields: &mut FieldReader<'_>) -> Result<(DomId, Domain), Refusal> {
    let domid = DomId(fields.u16()?);
    let identity = match fields.u8()? {
        0 => Identity::Unknown,
        1 => Identity::Unique(fields.u64()?),
        2 => Identity::Traits { handle: fields.array()?, cpu_time: fields.u64()? },
        _ => return Err(sentence!("domain {domid} is described in an unknown way")),
    };
    let features = fields.u32()?;
    let connection = fields.maybe_u32()?.map(ConnId);
    let shutdown_reported = fields.flag()?;
    Ok((domid, Domain { identity, features, connection, shutdown_reported }))
}
