//! A start from the stream of another server: C xenstored's, or a dump of this one. The domain is built in its
//! predecessor's place.
//!
//! Unlike a live update this is no trial. There is no predecessor to go back to, and the guests know nothing of
//! the new domain yet. So rings are mapped and ports bound anew: the first domain's port is that of the command
//! line, every other's that of its page. The ports in the stream are the predecessor's own.
//!
//! A host without a xenstore is of no use. So what cannot be taken over is left out, with a line on the console:
//! * connections of sockets, and records of unknown types;
//! * what belonged to domains that are gone: it ends as it would have with their deaths;
//! * everything but the ring of a first domain whose ring was never used: the host has started anew;
//! * a ring without a port: its domain is introduced, but served only while the server is awake anyway, until the
//!   toolstack introduces it again.
//!
//! Open transactions stay open and end in EAGAIN: if an id that was handed out became unknown, kernels would wait
//! for ever. Watches get no first event again.

use super::restore::{NO_MEMORY, Seen};
use crate::mem::{Map, NoMemory, TryVec};
use crate::proto::assemble::Assembler;
use crate::proto::id::{ConnId, DomId};
use crate::proto::ring::{RingPage, Word};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{self, Endpoint, Record};
use crate::proto::wire::{HEADER_SIZE, Header, features};
use crate::server::Server;
use crate::server::at_the_start;
use crate::server::domains::{ByDomid, Domain};
use crate::server::platform::{DomainState, Identity, Platform};
use crate::server::rings::{Connection, List, Messages, Queue};
use crate::server::turns::{Reserve, Timers, WriteCredit};
use crate::store::quota::Quota;
use crate::store::{Party, Restoring, Special};
use alloc::vec::Vec;

/// What is still to be done after the store of a stream is complete.
struct Found<'a> {
    /// The stream's numbers of connections that were taken over, and ours.
    ids: Map<ConnId, ConnId>,
    /// Domains that were connected and are gone, or whose domid is another domain's now.
    gone: Vec<DomId>,
    /// The feature bits that domains are shown, or will be.
    features: Vec<(DomId, u32)>,
    /// The bytes of their requests that were read.
    inputs: Vec<(ConnId, &'a [u8])>,
    /// Records of unknown types, and those that did not fit.
    unknown: usize,
    misfits: usize,
}

impl Found<'_> {
    /// Nothing; `seed` keys the hashes.
    fn new(seed: u64) -> Self {
        let (gone, features, inputs) = (Vec::new(), Vec::new(), Vec::new());
        Self { ids: Map::new(seed), gone, features, inputs, unknown: 0, misfits: 0 }
    }
}

impl<P: Platform> Server<P> {
    /// A server that begins with the stream that its domain builder has loaded, or with an empty store if that is
    /// no stream: a host without a xenstore is of no use. It serves at once: nothing has to be started.
    pub fn start_from(platform: P, command_line: &str, module: &[u8]) -> Self {
        let mut server = Self::new(platform, command_line);
        let stream = stream::in_module(module).map_err(|error| sentence!("{error}"));
        match stream.and_then(|stream| server.revive(stream)) {
            Ok(()) => server.take_over(),
            Err(why) => {
                let len = module.len();
                server.platform.log(format_args!(
                    "the module of {len} bytes is not taken over: {why}; the store starts empty"
                ));
                server.start();
            }
        }
        server
    }

    /// Takes over what a stream says, into a server that has not started. If that fails, the server is as it was.
    pub(in crate::server) fn revive(&mut self, stream: &[u8]) -> Result<(), Sentence> {
        let revived = self.revive_all(stream);
        if revived.is_err() {
            while let Some(id) = self.connections.first(List::All) {
                let Some(connection) = self.connections.remove(id) else { continue };
                if let Some(port) = connection.port {
                    self.platform.unbind(port);
                }
            }
            let seed = self.platform.hash_seed();
            self.messages = at_the_start(Messages::new(seed));
            self.ports = Map::new(seed);
            self.timers = Timers::default();
            self.domains = ByDomid::new();
            self.reserve = Reserve::default();
            at_the_start(self.know_privileged());
        }
        revived
    }

    fn revive_all(&mut self, stream: &[u8]) -> Result<(), Sentence> {
        let reader = stream::Reader::new(stream).map_err(|error| sentence!("{error}"))?;
        let seed = self.platform.hash_seed();
        let mut new = Restoring::new(seed, self.privileged, self.options.quotas, false)
            .map_err(|error| sentence!("{error}"))?;
        let (mut found, mut seen) = (Found::new(seed), Seen::new(seed));
        for record in reader {
            let record = record.map_err(|error| sentence!("{error}"))?;
            seen.reserve(&mut self.platform, Restoring::cost(&record))?;
            if let Err(why) = self.revive_record(&record, &mut new, &mut found) {
                found.misfits = found.misfits.saturating_add(1);
                // Whatever is wrong is probably wrong many times.
                if found.misfits < 20 {
                    self.platform.log(format_args!("left out: {why}"));
                }
            }
        }
        self.store = new.finish(None, 0)?;
        if found.unknown > 0 || found.misfits > 0 {
            let Found { unknown, misfits, .. } = found;
            self.platform.log(format_args!(
                "left out of the stream: {unknown} records of unknown types, {misfits} that do not fit"
            ));
        }
        self.revive_domains(&found);
        self.finish_work();
        self.revive_features(&found);
        for (id, input) in found.inputs {
            self.revive_input(id, input);
        }
        if self.connection_of(self.options.first_domain).is_none() {
            self.open_first();
        }
        self.open_existing();
        Ok(())
    }

    fn revive_record<'a>(
        &mut self,
        record: &Record<'a>,
        new: &mut Restoring<'a>,
        found: &mut Found<'a>,
    ) -> Result<(), Sentence> {
        match record {
            Record::Connection(connection) => self.revive_connection(connection, new, found),
            Record::Watch(watch) => match found.ids.get(watch.conn) {
                Some(conn) => {
                    new.watch(&stream::Watch { conn: *conn, ..*watch }, watch.depth.map(u32::from))
                }
                None => Ok(()),
            },
            Record::Transaction(transaction) => match found.ids.get(transaction.conn) {
                Some(conn) => {
                    new.transaction(stream::Transaction { conn: *conn, ..*transaction }, None)
                }
                None => Ok(()),
            },
            // Its transaction will not commit.
            Record::Node(node) if node.pending.is_some() => Ok(()),
            Record::Node(node) => new.node(node, None),
            Record::GlobalQuota(quotas) => {
                for (name, value) in quotas.per_domain.iter() {
                    if let Some(quota) = Quota::from_name(name) {
                        new.store().set_quota(None, quota, value);
                    }
                }
                Ok(())
            }
            Record::Domain(domain) => {
                new.store().learn(domain.domid).map_err(|error| sentence!("{error}"))?;
                for (name, value) in domain.quotas.iter() {
                    if let Some(quota) = Quota::from_name(name) {
                        new.store().set_quota(Some(domain.domid), quota, value);
                    }
                }
                if let Some(mask) = domain.features {
                    let mask = mask & features::OFFERED;
                    found.features.try_push((domain.domid, mask)).map_err(no_memory)?;
                }
                Ok(())
            }
            Record::Global(_) => Ok(()),
            Record::Unknown(_) => {
                found.unknown = found.unknown.saturating_add(1);
                Ok(())
            }
        }
    }

    fn revive_connection<'a>(
        &mut self,
        record: &stream::Connection<'a>,
        new: &mut Restoring<'_>,
        found: &mut Found<'a>,
    ) -> Result<(), Sentence> {
        let Endpoint::Ring { domid, target, .. } = record.endpoint else {
            return Err(sentence!("connection {}, which is a socket's", record.id.0));
        };
        if !domid.is_ordinary() || self.connection_of(domid).is_some() {
            return Err(sentence!("connection {}, of domain {domid}", record.id.0));
        }
        let state = self.platform.domain_state(domid);
        let identity = match state {
            DomainState::Exists { identity, .. } => identity,
            DomainState::Gone | DomainState::Unknown => Identity::Unknown,
        };
        let other = match (record.unique_id, identity) {
            (Some(before), Identity::Unique(now)) => before != now,
            _ => false,
        };
        new.store().learn(domid).map_err(|error| sentence!("{error}"))?;
        if state == DomainState::Gone || other {
            found.gone.try_push(domid).map_err(no_memory)?;
            return Ok(());
        }
        let queue = self.promise_connection().map_err(no_memory)?;
        let page = match self.platform.map_ring(domid) {
            Ok(page) => page,
            Err(error) => {
                self.withdraw_connection(queue);
                return Err(sentence!("domain {domid}: its ring cannot be mapped: {error}"));
            }
        };
        // Of a client that has never said anything the stream cannot tell how far it is, nor what it waits for.
        let is_another = domid == self.options.first_domain && is_unused(&page);
        let nothing = stream::Connection { input: &[], output: &[], partial: 0, ..*record };
        let record = if is_another { &nothing } else { record };
        let made = self.revive_ring(domid, page, queue, record);
        if !made.privileged {
            new.store().charge(domid, Quota::Memory, made.queue.held(&self.messages));
        }
        let id = ConnId(self.next_connection);
        self.next_connection = self.next_connection.wrapping_add(1);
        let target = target.filter(|target| target.is_ordinary());
        if let Some(target) = target {
            new.store().learn(target).map_err(|error| sentence!("{error}"))?;
        }
        let domain = Domain {
            identity,
            features: made.features,
            connection: Some(id),
            // Announced again if it still is so, as after a start.
            shutdown_reported: false,
        };
        if let Err(error) = self.domains.insert(domid, domain) {
            if let Some(port) = made.port {
                self.platform.unbind(port);
            }
            self.withdraw_connection(made.queue);
            return Err(no_memory(error));
        }
        match made.port {
            Some(port) => self.ports.insert_promised(port, id),
            None => self.ports.withdraw(),
        }
        let privileged = made.privileged;
        self.connections.insert(id, made);
        if is_another {
            self.platform.log(format_args!(
                "left out: what waited for domain {domid} and what it watched: it has started since"
            ));
        } else {
            let _none = found.ids.insert(record.id, id).map_err(no_memory)?;
        }
        found.inputs.try_push((id, record.input)).map_err(no_memory)?;
        new.connect(id, Party { domid, target, privileged }, 0)
    }

    /// A connection with its port bound, and with what waits for the domain.
    fn revive_ring(
        &mut self,
        domid: DomId,
        page: P::Ring,
        queue: Queue,
        record: &stream::Connection<'_>,
    ) -> Connection<P::Ring> {
        let named = self.options.event_port.filter(|_| domid == self.options.first_domain);
        let port = match named.unwrap_or_else(|| page.load(Word::EvtchnPort)) {
            0 => Err(Sentence::from("its page names none")),
            remote => self.platform.bind(domid, remote).map_err(|error| sentence!("{error}")),
        };
        let port = match port {
            Ok(port) => Some(port),
            Err(why) => {
                self.platform.log(format_args!(
                    "domain {domid}: no event channel until it is introduced again: {why}"
                ));
                None
            }
        };
        let mask = page.load(Word::ServerFeatures) & features::OFFERED;
        let mut made = Connection::new(domid, page, port, queue);
        made.features = mask;
        made.privileged = domid == self.privileged;
        made.credit = WriteCredit::new(self.now_ms, &mut self.reserve);
        let timeout = self.options.watch_event_timeout_ms.filter(|_| !made.privileged);
        let deadline_ms = timeout.map(|ms| self.now_ms.saturating_add(ms));
        let (payer, queue) = (made.payer(), &mut made.queue);
        let (partial, output) = (usize::from(record.partial), record.output);
        let left = self.messages.revive(queue, partial, output, payer, deadline_ms);
        if left > 0 {
            self.platform.log(format_args!("domain {domid}: {left} bytes for it make no message"));
        }
        made.ring.store(Word::Connection, 0);
        // The client may wait for an answer to a signal that nobody got.
        made.must_notify = true;
        made
    }

    /// Tracks every domain that the stream named, and removes those that are gone.
    fn revive_domains(&mut self, found: &Found<'_>) {
        for domid in self.store.domids() {
            if self.domains.contains(domid) {
                continue;
            }
            let state = self.platform.domain_state(domid);
            let identity = match state {
                DomainState::Exists { identity, .. } => identity,
                DomainState::Gone | DomainState::Unknown => Identity::Unknown,
            };
            let was_connected = found.gone.contains(&domid);
            // Without memory for it nothing of it could be looked after.
            if self.domains.insert(domid, Domain::new(identity)).is_err() {
                self.store.forget(domid);
                continue;
            }
            if state == DomainState::Gone || was_connected {
                self.platform.log(format_args!("domain {domid} is gone"));
                self.destroy(domid);
            }
            if was_connected {
                self.give_headroom();
                self.announce(Special::ReleaseDomain, domid, true);
            }
        }
    }

    /// A domain that is connected has been shown what its page says.
    fn revive_features(&mut self, found: &Found<'_>) {
        for (domid, mask) in &found.features {
            let domain = self.domains.get_mut(*domid);
            if let Some(domain) = domain.filter(|domain| domain.connection.is_none()) {
                domain.features = *mask;
            }
        }
    }

    /// Carries out the requests that the predecessor had read, and keeps the one that it was reading.
    fn revive_input(&mut self, id: ConnId, input: &[u8]) {
        let mut rest = input;
        while let Some(header) = rest.first_chunk() {
            let len = usize::try_from(Header::from_bytes(header).len).unwrap_or(usize::MAX);
            let whole = rest.split_at_checked(HEADER_SIZE.saturating_add(len));
            let Some((message, more)) = whole else { break };
            self.receive_from(id, message);
            self.execute(id);
            rest = more;
        }
        self.receive_from(id, rest);
    }

    fn receive_from(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match Assembler::restore(bytes) {
            Ok(Some(assembler)) => connection.assembler = assembler,
            Ok(None) | Err(_) => {
                let domid = connection.domid;
                self.platform
                    .log(format_args!("domain {domid}: what it had sent cannot be followed"));
            }
        }
    }
}

fn no_memory(NoMemory: NoMemory) -> Sentence {
    Sentence::from(NO_MEMORY)
}

/// Whether nobody has ever used a ring.
fn is_unused<R: RingPage>(page: &R) -> bool {
    let words = [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd];
    words.into_iter().all(|word| page.load(word) == 0)
}
