//! The domains that the server knows, from their introduction to their death.
//!
//! A domain is *tracked* from the first time anybody names it while it exists, *introduced* while it has a
//! connection (which may be ignored), and *destroyed* when Xen says that it is dead or the toolstack
//! releases it. The server's own domain counts as introduced, but has no connection: nobody is there to ask.
//!
//! # A domid that is used again
//! Nothing of a dead domain may be left for the next one with its domid. Where Xen has unique ids, they tell.
//! Older versions of Xen tell of a death when it is complete, and the server looks before it handles any
//! request that came after; what could go unseen is a death and a birth between two such looks:
//!
//! * An *introduced* domain cannot be replaced unseen: the server maps one of its pages, and Xen gives a domid
//!   away only when the last page of its domain is free (`domain_destroy` in `xen/common/domain.c`). This holds
//!   for ignored connections, too, whose pages stay mapped for that reason.
//! * One that is only *tracked*, because rights were given to it before its introduction, is recognized by
//!   its handle and the time it has run, each time it is named again and at its introduction.
//! * What is left: a domain that is destroyed before it was introduced and built again with the same domid and
//!   the same UUID, neither having run, within one pass of the server. Its rights are those of the failed attempt to
//!   build the same guest.
//!
//! Where Xen does not let the server ask, the platform may still see that a domain is gone, and RELEASE tells. Nobody
//! sees which one has shut down: so any news of a change is announced as the shutdown of each that is still there.
//!
//! Order and events are those of the C server ("C xenstored 4.22 behaviour"; `docs/misc/xenstore.txt`,
//! INTRODUCE and the following).

use super::Server;
use super::connection::Connection;
use super::dispatch::{Answer, Reply};
use super::platform::{Change, DomainState, Identity, Platform};
use super::queue::{Queue, Released};
use super::rate::WriteCredit;
use crate::mem::Budget;
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, EvtchnPort};
use crate::proto::ring::{self, RingPage, Word};
use crate::proto::wire::features;
use crate::store::{Party, Special, give_room_back};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// How many changed domains are asked for in one scan: more than can exist.
pub(super) const CHANGES_PER_SCAN: usize = 1 << 16;

/// A domain that the server knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Domain {
    /// What tells it from another domain with the same domid, as it was last seen.
    pub(super) identity: Identity,
    /// The feature bits that it is, or will be, shown.
    pub(super) features: u32,
    /// Its connection; with one it counts as introduced.
    pub(super) connection: Option<ConnId>,
    /// Its shutdown has been announced.
    pub(super) shutdown_reported: bool,
}

impl Domain {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, features: features::OFFERED, connection: None, shutdown_reported: false }
    }
}

impl<P: Platform> Server<P> {
    /// Whether the server knows the domain, after asking Xen if need be.
    pub(super) fn learn(&mut self, domid: DomId) -> bool {
        let is_tracked = self.renew(domid);
        if is_tracked || !domid.is_ordinary() {
            return is_tracked;
        }
        let identity = match self.ask(domid) {
            DomainState::Gone => return false,
            DomainState::Exists { identity, .. } => identity,
            DomainState::Unknown => Identity::Unknown,
        };
        self.track(domid, identity);
        true
    }

    /// As [`learn`](Self::learn), but on behalf of a guest: where Xen does not tell, it could make the server
    /// remember every domid there is.
    pub(super) fn learn_certain(&mut self, domid: DomId) {
        if self.renew(domid) || !domid.is_ordinary() {
            return;
        }
        if let DomainState::Exists { identity, .. } = self.ask(domid) {
            self.track(domid, identity);
        }
    }

    /// Whether a domain is tracked, after making sure that one without a connection is still the same.
    fn renew(&mut self, domid: DomId) -> bool {
        let Some(domain) = self.domains.get(&domid) else { return false };
        if domain.connection.is_some() || domid == self.privileged {
            return true;
        }
        if let DomainState::Exists { identity, .. } = self.ask(domid) {
            if self.is_replaced(domid, identity) {
                self.destroy(domid);
                self.track(domid, identity);
            }
        }
        true
    }

    fn track(&mut self, domid: DomId, identity: Identity) {
        self.domains.insert(domid, Domain::new(identity));
        let _ = self.store.learn(domid);
        self.trace("obj", format_args!("domain {domid}: known"));
    }

    /// The privileged domain is known from the start, whether or not it is connected.
    pub(super) fn know_privileged(&mut self) {
        self.domains.insert(self.privileged, Domain::new(Identity::Unknown));
    }

    /// Asks Xen about a domain.
    fn ask(&mut self, domid: DomId) -> DomainState {
        let state = self.platform.domain_state(domid);
        if state == DomainState::Unknown && !self.warned_of_unknown_states {
            self.warned_of_unknown_states = true;
            self.platform.log(format_args!(
                "Xen does not tell this domain about others: whenever one has changed, all are announced"
            ));
        }
        state
    }

    /// The connection of an introduced domain.
    pub(super) fn connection_of(&self, domid: DomId) -> Option<ConnId> {
        self.domains.get(&domid)?.connection
    }

    // ---- requests ----

    /// INTRODUCE: maps the ring and binds the port of a new domain, or starts over with a known one.
    pub(super) fn introduce(&mut self, domid: DomId, port: u32) -> Answer {
        if port == 0 || !domid.is_ordinary() {
            return Err(XsError::EINVAL);
        }
        if self.own_domid == Some(domid) {
            return Ok(Reply::Done);
        }
        // If Xen does not know it, mapping its page will tell.
        let identity = self.identity(domid);
        if self.is_replaced(domid, identity) {
            self.destroy(domid);
        }
        if let Some(id) = self.connection_of(domid) {
            self.reintroduce(id, domid, port);
            return Ok(Reply::Done);
        }
        let page = match self.platform.map_ring(domid) {
            Ok(page) => page,
            Err(error) => {
                let what = "its ring cannot be mapped";
                self.platform.log(format_args!("domain {domid}: {what}: {error}"));
                return Err(XsError::EINVAL);
            }
        };
        let id = self.open(domid, page, port, identity)?;
        if domid != self.privileged {
            self.announce(Special::IntroduceDomain, domid, true);
            self.deliver_events(None);
        }
        self.start_over(id);
        Ok(Reply::Done)
    }

    /// What Xen says of who a domain is.
    pub(super) fn identity(&mut self, domid: DomId) -> Identity {
        match self.ask(domid) {
            DomainState::Exists { identity, .. } => identity,
            DomainState::Gone | DomainState::Unknown => Identity::Unknown,
        }
    }

    /// Binds the port of a domain whose ring is mapped, and makes the connection.
    pub(super) fn open(
        &mut self,
        domid: DomId,
        mut page: P::Ring,
        port: u32,
        identity: Identity,
    ) -> Result<ConnId, XsError> {
        // A domain builder may know better than the toolstack.
        let remote_port = match page.load(Word::EvtchnPort) {
            0 => port,
            better => better,
        };
        let bound = match self.platform.bind(domid, remote_port) {
            Ok(bound) => bound,
            Err(error) => {
                let what = "its event channel cannot be bound";
                self.platform
                    .log(format_args!("domain {domid}: {what} (port {remote_port}): {error}"));
                return Err(XsError::EINVAL);
            }
        };
        if !self.domains.contains_key(&domid) {
            self.track(domid, identity);
        }
        let features = self.domains.get(&domid).map_or(features::OFFERED, |domain| domain.features);
        page.store(Word::ServerFeatures, features);
        let mut connection =
            Connection::new(domid, page, Some(bound), Queue::new(self.platform.hash_seed()));
        connection.features = features;
        connection.credit = WriteCredit::new(self.now_ms, &mut self.reserve);
        connection.privileged = domid == self.privileged;
        Ok(self.attach(connection, bound))
    }

    /// Enters a new connection everywhere.
    pub(super) fn attach(&mut self, connection: Connection<P::Ring>, port: EvtchnPort) -> ConnId {
        let id = ConnId(self.next_connection);
        // 2^32 introductions take longer than any host lives.
        self.next_connection = self.next_connection.wrapping_add(1);
        let (domid, privileged) = (connection.domid, connection.privileged);
        let is_local = connection.is_local;
        self.trace("obj", format_args!("domain {domid}: connection opened"));
        self.ports.insert(port, id);
        self.connections.insert(id, Box::new(connection));
        // Without memory for that its requests fail.
        let _ = self.store.connect(id, Party { domid, target: None, privileged });
        if let Some(domain) = self.domains.get_mut(&domid).filter(|_| !is_local) {
            domain.connection = Some(id);
        }
        id
    }

    /// INTRODUCE of a domain that is introduced: a new port, and everything else as at the beginning.
    /// An ignored connection stays ignored.
    fn reintroduce(&mut self, id: ConnId, domid: DomId, remote_port: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let is_connected = connection.is_connected();
        if let Some(old) = connection.port.take() {
            self.ports.remove(&old);
            self.platform.unbind(old);
        }
        let bound =
            if is_connected { self.platform.bind(domid, remote_port).map(Some) } else { Ok(None) };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match bound {
            Ok(None) => {}
            Ok(Some(port)) => {
                connection.port = Some(port);
                self.ports.insert(port, id);
            }
            // The request succeeds nevertheless: stock toolstacks rely on that.
            Err(error) => self.platform.log(format_args!(
                "domain {domid}: its new event channel cannot be bound (port {remote_port}): {error}"
            )),
        }
        self.start_over(id);
    }

    /// Empties the ring and drops everything the domain had set up, then tells it if it waits for that.
    fn start_over(&mut self, id: ConnId) {
        self.drop_upload_of(id, "its connection starts over");
        let _done = self.store.reset(id, &mut Budget::endless(), &mut self.gathered);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut released = Released::default();
        connection.forget_messages(&mut released);
        ring::reset(&mut connection.ring);
        if connection.is_connected() && connection.features & features::ERROR != 0 {
            // What was wrong with the ring before is over.
            connection.ring.store(Word::Error, 0);
        }
        if connection.ring.load(Word::Connection) != 0 {
            // The client starts the moment that it sees this, so the empty ring must be visible before.
            connection.ring.barrier();
            connection.ring.store(Word::Connection, 0);
            if let Some(port) = connection.port {
                self.platform.notify(port);
            }
        }
        self.settle_released(id, &mut released);
        self.mark_ready(id);
    }

    /// RELEASE: as if the domain had died. The privileged domain and the server's own cannot be released.
    pub(super) fn release(&mut self, domid: DomId) -> Answer {
        self.must_be_introduced(domid)?;
        self.destroy(domid);
        Ok(Reply::Done)
    }

    /// RESUME: the next shutdown of the domain is announced again.
    pub(super) fn resume_domain(&mut self, domid: DomId) -> Answer {
        self.must_be_introduced(domid)?;
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.shutdown_reported = false;
        }
        Ok(Reply::Done)
    }

    fn must_be_introduced(&self, domid: DomId) -> Result<ConnId, XsError> {
        if domid == self.privileged || self.own_domid == Some(domid) {
            return Err(XsError::EINVAL);
        }
        self.connection_of(domid).ok_or(XsError::ENOENT)
    }

    /// IS_DOMAIN_INTRODUCED.
    pub(super) fn is_introduced(&self, domid: DomId) -> Reply {
        let is_self = domid == DomId::SELF || self.own_domid == Some(domid);
        let introduced = is_self || self.connection_of(domid).is_some();
        Reply::Data(if introduced { b"T\0".to_vec() } else { b"F\0".to_vec() })
    }

    /// SET_TARGET: the first domain gets the rights of the second, whose devices it emulates.
    pub(super) fn set_target(&mut self, domid: DomId, target: DomId) -> Answer {
        let own_domid = self.own_domid;
        let find = |server: &Self, domid| match server.connection_of(domid) {
            // Introduced, but without a connection.
            None if own_domid == Some(domid) => Err(XsError::EINVAL),
            found => found.ok_or(XsError::ENOENT),
        };
        let id = find(self, domid)?;
        find(self, target)?;
        if !self.connections.get(&id).is_some_and(|connection| connection.is_connected()) {
            return Err(XsError::EINVAL);
        }
        self.store.set_target(id, Some(target));
        Ok(Reply::Done)
    }

    // ---- shutdown and death ----

    /// Finds out what became of the domains after Xen said that something did.
    pub(super) fn scan_domains(&mut self) {
        let mut announced = None;
        for _ in 0..CHANGES_PER_SCAN {
            match self.platform.next_change() {
                Change::Domain(domid, state) => self.domain_changed(domid, state, &mut announced),
                Change::Done => break,
                Change::Unsupported => return self.look_at_domains(Look::News),
            }
        }
        // One plain event for all that shut down, with the last of them.
        self.announce_shutdown(&mut announced, Plain::Yes);
    }

    /// Looks what became of every tracked domain.
    pub(super) fn look_at_domains(&mut self, look: Look) {
        let mut announced = None;
        let tracked = self.domains.keys().copied().collect::<Vec<_>>();
        for domid in tracked {
            let state = self.ask(domid);
            if state != DomainState::Unknown || look == Look::News {
                self.domain_changed(domid, state, &mut announced);
            }
        }
        self.announce_shutdown(&mut announced, Plain::Yes);
    }

    /// Acts on the state of one domain. `announced` is a domain whose shutdown has been seen but not announced yet.
    fn domain_changed(&mut self, domid: DomId, state: DomainState, announced: &mut Option<DomId>) {
        let Some(domain) = self.domains.get(&domid) else { return };
        let is_introduced = domain.connection.is_some();
        match state {
            // It may be the one that has shut down; whoever cares has to look.
            DomainState::Unknown if is_introduced && domid != self.privileged => {
                self.announce_shutdown(announced, Plain::No);
                *announced = Some(domid);
            }
            DomainState::Unknown => {}
            DomainState::Exists { shutdown, identity, .. }
                if !self.is_replaced(domid, identity) =>
            {
                let Some(domain) = self.domains.get_mut(&domid) else { return };
                if identity != Identity::Unknown {
                    domain.identity = identity;
                }
                if shutdown && is_introduced && !domain.shutdown_reported {
                    domain.shutdown_reported = true;
                    self.announce_shutdown(announced, Plain::No);
                    *announced = Some(domid);
                }
            }
            DomainState::Exists { .. } | DomainState::Gone => {
                // The plain event of a death stands for those before it.
                if is_introduced {
                    self.announce_shutdown(announced, Plain::No);
                }
                self.destroy(domid);
            }
        }
    }

    pub(super) fn announce(&mut self, special: Special, domid: DomId, plain: bool) {
        let (budget, post) = (&mut Budget::endless(), &mut self.gathered);
        let _done = self.store.announce(special, domid, plain, budget, post);
    }

    fn announce_shutdown(&mut self, announced: &mut Option<DomId>, plain: Plain) {
        if let Some(domid) = announced.take() {
            self.announce(Special::ReleaseDomain, domid, plain == Plain::Yes);
            self.deliver_events(None);
        }
    }

    /// Whether another domain has this domid now.
    fn is_replaced(&self, domid: DomId, identity: Identity) -> bool {
        self.domains.get(&domid).is_some_and(|domain| {
            domain.identity.is_replaced_by(identity, domain.connection.is_some())
        })
    }

    /// Removes a domain and everything it has. The privileged domain is never removed: without
    /// it there is no host.
    pub(super) fn destroy(&mut self, domid: DomId) {
        if domid == self.privileged {
            self.platform.log(format_args!("domain {domid} is gone; it was the privileged one"));
            return;
        }
        let Some(domain) = self.domains.remove(&domid) else { return };
        self.trace("obj", format_args!("domain {domid}: forgotten"));
        // First of all it gets no events any more, not even about its own nodes.
        let connection = domain.connection.and_then(|id| self.detach(id));
        // Others lose the rights that they had as its emulators, too.
        self.give_headroom();
        self.store.forget(domid);
        let _done = self.store.go_on_deaths(&mut Budget::endless(), &mut self.gathered);
        if let Some(port) = connection.as_ref().and_then(|connection| connection.port) {
            self.ports.remove(&port);
            give_room_back(&mut self.ports);
            self.platform.unbind(port);
        }
        // This unmaps the page.
        drop(connection);
        if domain.connection.is_some() {
            self.announce(Special::ReleaseDomain, domid, true);
        }
        self.deliver_events(None);
    }

    /// Whether connections, domains, ports and the store agree; what does not is added to `findings`.
    pub(super) fn check_connections(&self, findings: &mut String) {
        let mut claim = |holds: bool, what: &str, domid: DomId| {
            if !holds {
                // Writing to a string does not fail.
                let _ = writeln!(findings, "domain {domid}: {what}");
            }
        };
        for (domid, domain) in &self.domains {
            claim(self.store.knows(*domid), "unknown to the store", *domid);
            let connection = domain.connection.and_then(|id| self.connections.get(&id));
            let is_whole = domain.connection.is_none() || connection.is_some();
            claim(is_whole, "its connection is missing", *domid);
        }
        for (id, connection) in &self.connections {
            let domid = connection.domid;
            let in_place = connection.is_local || self.connection_of(domid) == Some(*id);
            claim(in_place, "has a stray connection", domid);
            let listed = connection.port.is_none_or(|port| self.ports.get(&port) == Some(id));
            claim(listed, "its port is not listed", domid);
            let known = self.store.party(*id).is_some() == connection.is_connected();
            claim(known, "the store does not agree on its connection", domid);
        }
        for domid in self.store.domids() {
            claim(self.domains.contains_key(&domid), "known to the store only", domid);
        }
    }

    /// Takes a connection out of everything but the hypervisor.
    pub(super) fn detach(&mut self, id: ConnId) -> Option<Box<Connection<P::Ring>>> {
        self.store.disconnect(id);
        let mut connection = self.connections.remove(&id)?;
        give_room_back(&mut self.connections);
        self.drop_upload_of(id, "its connection is gone");
        connection.credit.leave(&mut self.reserve);
        self.past.add(connection.figures);
        self.history.refused = self.history.refused.saturating_add(connection.told.refused);
        self.trace("obj", format_args!("domain {}: connection closed", connection.domid));
        if let Some(at_ms) = connection.wake_at_ms {
            self.timers.remove(&(at_ms, id));
        }
        let mut released = Released::default();
        connection.forget_messages(&mut released);
        self.settle_released(id, &mut released);
        Some(connection)
    }
}

/// Why all domains are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// Xen said that something became of one.
    News,
    /// To be sure.
    Check,
}

/// Whether a `@releaseDomain` without domid goes with the one that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plain {
    Yes,
    No,
}
