//! The whole state, written for a successor: the record stream, then the private part.
//!
//! Both follow the same order, so a reader can go through them in step: connections with their watches and
//! transactions, then nodes, then what transactions have touched. Nothing in them depends on handles, addresses,
//! capacities or the order of hash tables. So a successor that has restored everything writes the same bytes
//! again, and a digest proves it.
//!
//! The private part is `write_head`, `write_domains`, `write_causes`, then for each connection
//! `write_connection_fields` with the depths of its watches and the heads of its transactions, then what is known
//! of each touched path, then the tail: all nodes, and its length. In versions without a tail the stream has the
//! nodes. The private part then has the generation of each, before what is known of each touched path.

use super::update::Passage;
use crate::mem::{NoMemory, TryVec, try_with_capacity};
use crate::proto::handover::{Digest, FAILURES_SINCE, FieldWriter, HANDOVER, TAIL_SINCE};
use crate::proto::id::{ConnId, DomId, EvtchnPort};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{
    self, Buffered, DepthLayout, Endpoint, OutOfRoom, Sink, Version, WriteError,
};
use crate::server::Server;
use crate::server::admin::{LineBudget, log};
use crate::server::domains::Domain;
use crate::server::platform::{Identity, Platform};
use crate::server::rings::Connection;
use crate::store::quota::{Quota, Quotas};

/// Whom a stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// This program, with a private part of this version.
    Successor(u32),
    /// Any server: without transactions, which no other one understands.
    Anybody,
}

/// The limits with their names.
fn named(quotas: Quotas) -> [(&'static [u8], u32); Quota::COUNT] {
    Quota::ALL.map(|quota| (quota.name().as_bytes(), quotas.get(quota)))
}

impl<P: Platform> Server<P> {
    /// Writes everything and returns how many bytes of it are the stream; the rest is the private part.
    ///
    /// # Errors
    /// A sentence: the sink is full, or the version is unknown.
    pub fn save<S: Sink>(
        &self,
        version: Version,
        handover: u32,
        sink: &mut S,
    ) -> Result<usize, Sentence> {
        if !HANDOVER.contains(&handover) {
            return Err(sentence!("version {handover} of the private part is unknown here"));
        }
        let sink = &mut Buffered::new(sink);
        let written =
            self.write_stream(version, DepthLayout::Document, Scope::Successor(handover), sink);
        let written = written.and_then(|len| sink.flush().map(|()| len).map_err(WriteError::from));
        let stream_len =
            written.map_err(|error| sentence!("the state was not written: {error}"))?;
        let private = self.write_private(handover, &mut FieldWriter(sink));
        private.and_then(|()| sink.flush()).map_err(|OutOfRoom| {
            Sentence::from("the state was not written: no memory for the private part")
        })?;
        Ok(stream_len)
    }

    /// Writes only the stream, in a form that C xenstored reads. The reader loses what the stream cannot say,
    /// above all open transactions.
    ///
    /// # Errors
    /// A sentence: the sink is full.
    pub fn dump<S: Sink>(
        &self,
        version: Version,
        depths: DepthLayout,
        sink: &mut S,
    ) -> Result<usize, Sentence> {
        let written = self.write_stream(version, depths, Scope::Anybody, sink);
        written.map_err(|error| sentence!("the state was not written: {error}"))
    }

    /// The digest of what [`save`](Self::save) writes, in the versions in which this instance got it.
    ///
    /// # Errors
    /// As there.
    pub fn digest(&self) -> Result<u64, Sentence> {
        let mut digest = Digest::default();
        let passage = self.passage.as_ref();
        let stream = passage.map_or(Version::Two, |passage| passage.stream);
        let handover = passage.map_or(*HANDOVER.end(), |passage| passage.handover);
        self.save(stream, handover, &mut digest)?;
        Ok(digest.finish())
    }

    fn write_stream<S: Sink>(
        &self,
        version: Version,
        depths: DepthLayout,
        scope: Scope,
        sink: &mut S,
    ) -> Result<usize, WriteError> {
        let mut writer = stream::Writer::new(sink, version)?.with_depths(depths);
        let socket = stream::Global::NO_SOCKET;
        writer.global(stream::Global { socket, evtchn: socket })?;
        let initial = named(self.store.initial_quotas());
        writer.global_quota(&stream::GlobalQuota {
            per_domain: stream::Quotas::from(&initial[..]),
            global_only: stream::Quotas::NONE,
        })?;
        for (id, connection) in self.connections.iter() {
            self.write_connection(id, connection, version, &mut writer)?;
            self.store.write_watches(id, &mut writer)?;
            if scope != Scope::Anybody {
                self.store.write_transactions(id, &mut writer)?;
            }
        }
        if !matches!(scope, Scope::Successor(TAIL_SINCE..)) {
            self.store.write_nodes(&mut writer)?;
        }
        if scope != Scope::Anybody {
            self.store.write_touched(self.connections.iter().map(|(id, _)| id), &mut writer)?;
        }
        for (domid, domain) in self.domains.iter() {
            let Some((quotas, _, used)) = self.store.accounts(domid) else { continue };
            // C xenstored dies of one that is neither connected nor an owner (seen in 4.22).
            if domain.connection.is_none() && used.get(Quota::Nodes) == 0 {
                continue;
            }
            let quotas = named(quotas);
            writer.domain(&stream::Domain {
                domid,
                features: Some(domain.features),
                quotas: stream::Quotas::from(&quotas[..]),
            })?;
        }
        // The length of END is not among what was written so far.
        let len = writer.written().saturating_add(stream::RECORD_HEADER_SIZE);
        let _sink = writer.finish()?;
        Ok(len)
    }

    fn write_connection<S: Sink>(
        &self,
        id: ConnId,
        connection: &Connection<P::Ring>,
        version: Version,
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        let domid = connection.domid;
        let identity = self.domains.get(domid).map(|domain| domain.identity);
        let unique_id = match identity {
            Some(Identity::Unique(id)) if version >= Version::Two => Some(id),
            _ => None,
        };
        let target = self.store.party(id).and_then(|party| party.target);
        // A connection without a port is one that is given up.
        let port = connection.port.unwrap_or(EvtchnPort(0));
        let (header, payload) = connection.assembler.partial();
        let partial = connection.queue.partial(&self.messages);
        let record = stream::Connection {
            id,
            endpoint: Endpoint::Ring { domid, target, port },
            input: &[],
            output: &[],
            partial: u16::try_from(partial).unwrap_or(u16::MAX),
            unique_id,
        };
        let input = [header, payload].into_iter();
        writer.connection_of_parts(&record, input, connection.queue.unsent(&self.messages))
    }

    fn write_private<S: Sink>(
        &self,
        handover: u32,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.u32(handover)?;
        self.write_head(handover, fields)?;
        self.write_domains(fields)?;
        self.write_causes(fields)?;
        for (id, connection) in self.connections.iter() {
            self.write_connection_fields(id, connection, handover, fields)?;
            self.store.write_watch_fields(id, fields)?;
            self.store.write_transaction_fields(id, fields)?;
        }
        if handover < TAIL_SINCE {
            self.store.write_node_fields(fields)?;
            return self
                .store
                .write_touched_fields(self.connections.iter().map(|(id, _)| id), fields);
        }
        self.store.write_touched_fields(self.connections.iter().map(|(id, _)| id), fields)?;
        let mut tail = Counted { sink: &mut *fields.0, count: 0 };
        self.store.write_tree(self.failures.is_repair, &mut FieldWriter(&mut tail))?;
        let len = tail.count;
        fields.u64(len)
    }

    /// The hand-over itself, and the server's own fields.
    #[expect(clippy::too_many_lines, reason = "half of it says what becomes of each field")]
    fn write_head<S: Sink>(
        &self,
        handover: u32,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        // A field that is added does not compile until it is said here what becomes of it.
        let Self {
            passage,
            privileged,
            store,
            next_connection,
            next_cause,
            started_ms,
            next_rescan_ms,
            reserve,
            latency,
            unmeasured,
            history,
            failures,
            past,
            warned_of_unknown_states,
            dropped_before,
            next_drop_line_ms,
            line_budgets,
            switches,
            // They have parts of their own, here or in the stream; ports are those of the connections.
            connections: _,
            messages: _,
            ports: _,
            domains: _,
            causes: _,
            said: _,
            // The successor's own, or told to it in another way.
            platform: _,
            options: _,
            own_domid: _,
            command_line: _,
            now_ms: _,
            timers: _,
            existing: _,
            // Of the turn, and of work that a hand-over finishes or does without.
            trash: _,
            budget: _,
            stage: _,
            scan: _,
            asked: _,
            reply: _,
            short_left: _,
            slept: _,
            rescanned: _,
            in_progress: _,
            // An administrator begins them anew.
            upload: _,
            dump: _,
            last_dump: _,
            checking: _,
            maxima: _,
        } = self;
        fields.u64(passage.as_ref().map_or(0, |passage| passage.stopped_us))?;
        let requester = passage.as_ref().and_then(|passage: &Passage| passage.requester);
        fields.flag(requester.is_some())?;
        if let Some(requester) = requester {
            fields.u32(requester.conn.0)?;
            fields.u32(requester.req_id)?;
            fields.u32(requester.tx.0)?;
        }
        fields.u16(privileged.0)?;
        write_quotas(store.initial_quotas(), fields)?;
        fields.u32(*next_connection)?;
        fields.u64(*next_cause)?;
        fields.u64(*started_ms)?;
        fields.u64(*next_rescan_ms)?;
        fields.i64(reserve.number())?;
        fields.count(latency.0.len())?;
        latency.0.into_iter().try_for_each(|count| fields.u64(count))?;
        if handover >= 2 {
            fields.u32(*unmeasured)?;
        }
        if handover >= 3 {
            history.write(fields)?;
        }
        if handover >= FAILURES_SINCE {
            failures.write(fields)?;
        }
        past.write(fields)?;
        fields.flag(*warned_of_unknown_states)?;
        fields.u64(store.generation())?;
        fields.u64(store.dropped_events())?;
        fields.u64(*dropped_before)?;
        fields.u64(*next_drop_line_ms)?;
        for LineBudget { since_ms, used, left_out } in log::kept(line_budgets, handover) {
            fields.u64(*since_ms)?;
            fields.u32(*used)?;
            fields.u32(*left_out)?;
        }
        fields.flag(switches.on)?;
        switches.each.into_iter().try_for_each(|(_, wanted)| fields.flag(wanted))
    }

    fn write_domains<S: Sink>(&self, fields: &mut FieldWriter<'_, S>) -> Result<(), OutOfRoom> {
        fields.count(self.domains.len())?;
        for (domid, domain) in self.domains.iter() {
            write_domain(domid, domain, fields)?;
            let accounts = self.store.accounts(domid);
            let (quotas, mut peak, _) =
                accounts.unwrap_or((Quotas::ZERO, Quotas::ZERO, Quotas::ZERO));
            let mut used = self.store.used_without_lists(domid);
            // On trial, what was read has to be written again.
            if let Ok(place) = self.said.binary_search_by_key(&domid, |account| account.domid)
                && let Some(said) = self.said.get(place)
            {
                (peak, used) = (said.peak, said.used);
            }
            [quotas, peak, used].into_iter().try_for_each(|quotas| write_quotas(quotas, fields))?;
        }
        Ok(())
    }

    /// Requests of which something still waits, and whose they are.
    fn write_causes<S: Sink>(&self, fields: &mut FieldWriter<'_, S>) -> Result<(), OutOfRoom> {
        let causes = self.causes.iter().map(|(id, cause)| (id, cause.connection.0));
        // As many as guests may have outstanding.
        let mut sorted = try_with_capacity(self.causes.len()).map_err(|NoMemory| OutOfRoom)?;
        for cause in causes {
            sorted.try_push(cause).map_err(|NoMemory| OutOfRoom)?;
        }
        sorted.sort_unstable();
        let causes = sorted;
        fields.count(causes.len())?;
        for (id, connection) in causes {
            fields.u64(id)?;
            fields.u32(connection)?;
        }
        Ok(())
    }

    fn write_connection_fields<S: Sink>(
        &self,
        id: ConnId,
        connection: &Connection<P::Ring>,
        handover: u32,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.u64(self.platform.ring_token(&connection.ring))?;
        fields.flag(connection.port.is_some())?;
        fields.u32(self.store.last_transaction(id))?;
        connection.write_fields(handover, fields)?;
        connection.queue.write_fields(&self.messages, fields)
    }
}

/// Counts what it passes on.
struct Counted<S> {
    sink: S,
    count: u64,
}

impl<S: Sink> Sink for Counted<S> {
    #[inline(always)]
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        self.count = self.count.saturating_add(bytes.len() as u64);
        self.sink.append(bytes)
    }

    #[inline(always)]
    fn place(&mut self, len: usize) -> Option<&mut [u8]> {
        let place = self.sink.place(len)?;
        self.count = self.count.saturating_add(len as u64);
        Some(place)
    }
}

fn write_quotas<S: Sink>(quotas: Quotas, fields: &mut FieldWriter<'_, S>) -> Result<(), OutOfRoom> {
    Quota::ALL.into_iter().try_for_each(|quota| fields.u32(quotas.get(quota)))
}

fn write_domain<S: Sink>(
    domid: DomId,
    domain: &Domain,
    fields: &mut FieldWriter<'_, S>,
) -> Result<(), OutOfRoom> {
    let Domain { identity, features, connection, shutdown_reported } = *domain;
    fields.u16(domid.0)?;
    match identity {
        Identity::Unknown => fields.u8(0)?,
        Identity::Unique(id) => {
            fields.u8(1)?;
            fields.u64(id)?;
        }
        Identity::Traits { handle, cpu_time } => {
            fields.u8(2)?;
            fields.0.append(&handle)?;
            fields.u64(cpu_time)?;
        }
    }
    fields.u32(features)?;
    fields.maybe_u32(connection.map(|id| id.0))?;
    fields.flag(shutdown_reported)
}
