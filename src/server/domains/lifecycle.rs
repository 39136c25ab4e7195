//! The domains that the server knows, from their introduction to their death.
//!
//! A domain is *tracked* from the first time anybody names it while it exists. It is *introduced* while it has a
//! connection (which may be ignored). It is *destroyed* when Xen says that it is dead or the toolstack releases
//! it. The server's own domain counts as introduced, but has no connection, since it has no client.
//!
//! # A domid that is used again
//! Nothing of a dead domain may be left for the next one with its domid. Where Xen has unique ids, they show the
//! difference. Older versions of Xen report a death when it is complete, and the server looks before it handles
//! any request that came after. Only a death and a birth between two such looks could go unseen:
//!
//! * An *introduced* domain cannot be replaced unseen. The server maps one of its pages, and Xen gives a domid
//!   away only when the last page of its domain is free (`domain_destroy` in `xen/common/domain.c`). This holds
//!   for ignored connections, too, whose pages stay mapped for that reason.
//! * A domain may be only *tracked*, because rights were given to it before its introduction. The server
//!   recognizes it by its handle and the time it has run, each time it is named again and at its introduction.
//! * One case is left: within one pass of the server, a domain is destroyed before its introduction and built
//!   again with the same domid and the same UUID, and neither has run. Then the rights are those of the failed
//!   attempt to build the same guest.
//!
//! Where Xen does not let the server ask, the platform may still see that a domain is gone, and RELEASE says so,
//! too. Nobody sees which domain has shut down. So any news of a change is announced as the shutdown of every
//! domain that is still there.
//!
//! Order and events are those of the C server ("C xenstored 4.22 behaviour"; `docs/misc/xenstore.txt`,
//! INTRODUCE and the following).

use crate::mem::{NoMemory, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, EvtchnPort};
use crate::proto::ring::{self, RingPage, Word};
use crate::proto::wire::features;
use crate::server::Server;
use crate::server::platform::{Change, DomainState, Identity, Platform};
use crate::server::requests::{Answer, Reply};
use crate::server::rings::{Busy, Connection, List, Queue};
use crate::server::turns::WriteCredit;
use crate::store::{Party, Special};
use core::fmt::Arguments;

/// How many changed domains are asked for in one scan: more than there can be.
pub(in crate::server) const CHANGES_PER_SCAN: usize = 1 << 16;

/// Units of work for asking what became of a domain, and for the end of one, not counting what it has in the
/// store.
const ASK_WORK: u64 = 500;
const END_WORK: u64 = 3000;

/// The answer when a domain is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Known {
    /// It is tracked.
    Yes,
    /// There is no such domain.
    No,
    /// Something of the former domain with that domid is still there.
    Dying,
}

/// A look at what became of domains, which goes on in later turns.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Scan {
    /// All tracked domains are looked at, from this one on. `None` while Xen says which have changed.
    next: Option<DomId>,
    /// Why it began.
    look: Look,
    /// Domains have changed since: another look has to follow.
    again: bool,
    /// A domain whose shutdown has been seen but not announced yet.
    announced: Option<DomId>,
}

/// A domain that the server knows.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Domain {
    /// What distinguishes it from another domain with the same domid, as last seen.
    pub(in crate::server) identity: Identity,
    /// The feature bits that it is shown, or will be.
    pub(in crate::server) features: u32,
    /// Its connection; with one it counts as introduced.
    pub(in crate::server) connection: Option<ConnId>,
    /// Whether its shutdown has been announced.
    pub(in crate::server) shutdown_reported: bool,
}

impl Domain {
    pub(in crate::server) fn new(identity: Identity) -> Self {
        Self { identity, features: features::OFFERED, connection: None, shutdown_reported: false }
    }
}

impl<P: Platform> Server<P> {
    /// Whether the server knows the domain, after asking Xen if need be.
    pub(in crate::server) fn learn(&mut self, domid: DomId) -> Result<Known, XsError> {
        let known = self.renew(domid)?;
        if known != Known::No || !domid.is_ordinary() {
            return Ok(known);
        }
        let identity = match self.ask(domid) {
            DomainState::Gone => return Ok(Known::No),
            DomainState::Exists { identity, .. } => identity,
            DomainState::Unknown => Identity::Unknown,
        };
        self.track(domid, identity)?;
        Ok(Known::Yes)
    }

    /// As [`learn`](Self::learn), but on behalf of a guest: where Xen does not tell, it could make the server
    /// remember every domid there is.
    pub(in crate::server) fn learn_certain(&mut self, domid: DomId) -> Result<(), XsError> {
        if self.renew(domid)? != Known::No || !domid.is_ordinary() {
            return Ok(());
        }
        match self.ask(domid) {
            DomainState::Exists { identity, .. } => self.track(domid, identity),
            DomainState::Gone | DomainState::Unknown => Ok(()),
        }
    }

    /// Whether a domain is tracked, after making sure that one without a connection is still the same.
    fn renew(&mut self, domid: DomId) -> Result<Known, XsError> {
        if self.store.is_dying(domid) {
            return Ok(Known::Dying);
        }
        let Some(domain) = self.domains.get(domid) else { return Ok(Known::No) };
        if domain.connection.is_some() || domid == self.privileged {
            return Ok(Known::Yes);
        }
        if let DomainState::Exists { identity, .. } = self.ask(domid) {
            if self.is_replaced(domid, identity) {
                self.destroy(domid);
                if self.store.is_dying(domid) {
                    return Ok(Known::Dying);
                }
                self.track(domid, identity)?;
            }
        }
        Ok(Known::Yes)
    }

    fn track(&mut self, domid: DomId, identity: Identity) -> Result<(), XsError> {
        self.domains.insert(domid, Domain::new(identity))?;
        if let Err(error) = self.store.learn(domid) {
            let _ = self.domains.remove(domid);
            return Err(error.into());
        }
        self.trace("obj", format_args!("domain {domid}: known"));
        Ok(())
    }

    /// The privileged domain is known from the start, whether or not it is connected.
    ///
    /// # Errors
    /// There is no memory for that: without it there is no server.
    pub(in crate::server) fn know_privileged(&mut self) -> Result<(), NoMemory> {
        self.domains.insert(self.privileged, Domain::new(Identity::Unknown))
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
    pub(in crate::server) fn connection_of(&self, domid: DomId) -> Option<ConnId> {
        self.domains.get(domid)?.connection
    }

    // ---- requests ----

    /// INTRODUCE: maps the ring and binds the port of a new domain, or starts over with a known one.
    pub(in crate::server) fn introduce(&mut self, asker: DomId, domid: DomId, port: u32) -> Answer {
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
        if self.store.is_dying(domid) {
            return Ok(Reply::Wait);
        }
        if let Some(id) = self.connection_of(domid) {
            self.reintroduce(id, domid, port);
            // Who introduces itself has its reply in the ring that starts over.
            return Ok(if domid == asker { Reply::Done } else { self.when_told(domid) });
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
        // First of all that it is to be announced: from here on a failure finds it introduced.
        if domid != self.privileged {
            self.store.will_announce(Special::IntroduceDomain, domid, true);
        }
        self.start_over(id);
        self.clean_up();
        Ok(self.when_told(domid))
    }

    /// `OK`, when everything that became of a domain is done, however many turns that takes.
    fn when_told(&self, domid: DomId) -> Reply {
        if self.is_unsettled(domid) { Reply::Telling(domid) } else { Reply::Done }
    }

    /// Whether not everybody has been told what became of a domain, or its ring is not yet emptied for a new start: what
    /// it wrote there after the reply would be lost.
    pub(in crate::server) fn is_unsettled(&self, domid: DomId) -> bool {
        let connection = self.connection_of(domid).and_then(|id| self.connections.get(id));
        // Nobody waits for one that is given up meanwhile.
        let is_awaited =
            |connection: &Connection<_>| connection.is_connected() && connection.starts_over();
        self.store.has_affairs(domid) || connection.is_some_and(is_awaited)
    }

    /// The identity of a domain, as Xen shows it.
    pub(in crate::server) fn identity(&mut self, domid: DomId) -> Identity {
        match self.ask(domid) {
            DomainState::Exists { identity, .. } => identity,
            DomainState::Gone | DomainState::Unknown => Identity::Unknown,
        }
    }

    /// Binds the port of a domain whose ring is mapped, and makes the connection.
    pub(in crate::server) fn open(
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
        let made = self.make_connection(domid, identity);
        let queue = match made {
            Ok(queue) => queue,
            Err(error) => {
                self.platform.unbind(bound);
                return Err(error);
            }
        };
        let features = self.domains.get(domid).map_or(features::OFFERED, |domain| domain.features);
        page.store(Word::ServerFeatures, features);
        let mut connection = Connection::new(domid, page, Some(bound), queue);
        connection.features = features;
        connection.credit = WriteCredit::new(self.now_ms, &mut self.reserve);
        connection.privileged = domid == self.privileged;
        self.attach(connection, bound).map_err(|error| {
            self.platform.unbind(bound);
            error.into()
        })
    }

    /// Has the domain of a new connection tracked, and makes room for the connection.
    fn make_connection(&mut self, domid: DomId, identity: Identity) -> Result<Queue, XsError> {
        if !self.domains.contains(domid) {
            self.track(domid, identity)?;
        }
        Ok(self.promise_connection()?)
    }

    /// Makes room for a connection, so that [`attach`](Self::attach) finds it, and returns its queue.
    pub(in crate::server) fn promise_connection(&mut self) -> Result<Queue, NoMemory> {
        self.connections.promise()?;
        if let Err(error) = self.timers.promise() {
            self.connections.withdraw();
            return Err(error);
        }
        if let Err(error) = self.ports.promise() {
            self.timers.withdraw();
            self.connections.withdraw();
            return Err(error);
        }
        let queue = self.messages.new_queue();
        if queue.is_err() {
            self.ports.withdraw();
            self.timers.withdraw();
            self.connections.withdraw();
        }
        queue
    }

    /// The connection for which there is [room](Self::promise_connection) does not come.
    pub(in crate::server) fn withdraw_connection(&mut self, mut queue: Queue) {
        self.messages.end_queue(&mut queue, &mut self.trash);
        self.ports.withdraw();
        self.timers.withdraw();
        self.connections.withdraw();
    }

    /// Enters a new connection everywhere. There must be [room](Self::promise_connection) for it.
    ///
    /// # Errors
    /// There is no memory in the store; nothing has changed, but the room and the connection are gone.
    pub(in crate::server) fn attach(
        &mut self,
        connection: Connection<P::Ring>,
        port: EvtchnPort,
    ) -> Result<ConnId, NoMemory> {
        let id = ConnId(self.next_connection);
        let (domid, privileged) = (connection.domid, connection.privileged);
        let is_local = connection.is_local;
        if let Err(error) = self.store.connect(id, Party { domid, target: None, privileged }) {
            connection.credit.leave(&mut self.reserve);
            self.withdraw_connection(connection.queue);
            return Err(error);
        }
        // 2^32 introductions take longer than any host lives.
        self.next_connection = self.next_connection.wrapping_add(1);
        self.trace("obj", format_args!("domain {domid}: connection opened"));
        self.ports.insert_promised(port, id);
        self.connections.insert(id, connection);
        if let Some(domain) = self.domains.get_mut(domid).filter(|_| !is_local) {
            domain.connection = Some(id);
        }
        Ok(id)
    }

    /// INTRODUCE of a domain that is introduced: a new port, and everything else as at the beginning.
    /// An ignored connection stays ignored.
    fn reintroduce(&mut self, id: ConnId, domid: DomId, remote_port: u32) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let (is_connected, old) = (connection.is_connected(), connection.port);
        // Before the old one is closed: whoever fails in between can still be reached.
        let bound = is_connected.then(|| self.platform.bind(domid, remote_port));
        if let Some(Ok(port)) = bound {
            let is_kept = self.ports.insert(port, id).is_ok();
            if let Some(connection) = self.connections.get_mut(id).filter(|_| is_kept) {
                connection.port = Some(port);
            }
        }
        if let Some(old) = old {
            self.close(old);
        }
        let bound = match bound {
            // It may be the one that was bound until now.
            Some(Err(_)) => self.platform.bind(domid, remote_port).map(Some),
            Some(Ok(port)) => Ok(Some(port)),
            None => Ok(None),
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.port = connection.port.filter(|port| Some(*port) != old);
        match bound {
            Ok(None) => {}
            Ok(Some(port)) if connection.port == Some(port) => {}
            Ok(Some(port)) if self.ports.insert(port, id).is_ok() => connection.port = Some(port),
            Ok(Some(port)) => {
                self.platform.unbind(port);
                let what = "there is no memory for its new event channel";
                self.platform.log(format_args!("domain {domid}: {what}"));
            }
            // The request succeeds nevertheless: stock toolstacks rely on that.
            Err(error) => self.platform.log(format_args!(
                "domain {domid}: its new event channel cannot be bound (port {remote_port}): {error}"
            )),
        }
        self.start_over(id);
    }

    /// Drops everything that the domain had set up, empties the ring, and tells the domain if it waits for that.
    fn start_over(&mut self, id: ConnId) {
        self.drop_upload_of(id, "its connection starts over");
        let (store, budget, mut mail) = self.mail(None);
        let progress = store.reset(id, budget, &mut mail);
        let is_served = self.connections.get(id).is_some_and(Connection::is_connected);
        // One that is ignored has no turns: what it had goes with the dead.
        if progress == Progress::Done || !is_served {
            return self.empty_ring(id);
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.busy = Some(Busy::StartOver);
        }
        self.connections.push(List::Ready, id);
    }

    /// Empties the ring, drops what waits for the domain, and tells the domain if it waits for that.
    pub(in crate::server) fn empty_ring(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.forget_messages(&mut self.messages, &mut self.trash);
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
        self.mark_ready(id);
    }

    /// RELEASE: as if the domain had died. The privileged domain and the server's own cannot be released. The
    /// reply comes when all of it is over: nothing of the domain is left, and all watchers have been told.
    pub(in crate::server) fn release(&mut self, domid: DomId) -> Answer {
        self.must_be_introduced(domid)?;
        self.destroy(domid);
        Ok(self.when_told(domid))
    }

    /// RESUME: the next shutdown of the domain is announced again.
    pub(in crate::server) fn resume_domain(&mut self, domid: DomId) -> Answer {
        self.must_be_introduced(domid)?;
        if let Some(domain) = self.domains.get_mut(domid) {
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
    pub(in crate::server) fn is_introduced(&self, domid: DomId) -> Answer {
        let is_self = domid == DomId::SELF || self.own_domid == Some(domid);
        let introduced = is_self || self.connection_of(domid).is_some();
        Ok(Reply::Text(if introduced { b"T\0" } else { b"F\0" }))
    }

    /// SET_TARGET: the first domain gets the rights of the second, whose devices it emulates.
    pub(in crate::server) fn set_target(&mut self, domid: DomId, target: DomId) -> Answer {
        let own_domid = self.own_domid;
        let find = |server: &Self, domid| match server.connection_of(domid) {
            // Introduced, but without a connection.
            None if own_domid == Some(domid) => Err(XsError::EINVAL),
            found => found.ok_or(XsError::ENOENT),
        };
        let id = find(self, domid)?;
        find(self, target)?;
        if !self.connections.get(id).is_some_and(|connection| connection.is_connected()) {
            return Err(XsError::EINVAL);
        }
        self.store.set_target(id, Some(target));
        Ok(Reply::Done)
    }

    // ---- shutdown and death ----

    /// Starts to find out what became of the domains, after Xen said that something did. This has a turn before
    /// that of any connection.
    pub(in crate::server) fn scan_domains(&mut self) {
        match &mut self.scan {
            Some(scan) => scan.again = true,
            None => self.scan = Some(Scan::new(Look::News)),
        }
    }

    /// Finds out at once what became of every tracked domain.
    pub(in crate::server) fn look_at_domains(&mut self, look: Look) {
        self.scan = Some(Scan { next: Some(DomId(0)), ..Scan::new(look) });
        while self.look_at_next() {}
        self.announce_shutdown(Plain::Yes);
        self.scan = self.scan.filter(|scan| scan.again).map(|_| Scan::new(Look::News));
    }

    /// Goes on with finding that out. The progress is always stored, for a failure in between.
    pub(in crate::server) fn scan_on(&mut self) {
        while let Some(scan) = self.scan
            && !self.budget.is_over()
        {
            if self.look_at_next() {
                continue;
            }
            // One plain event for all that shut down, with the last of them.
            self.announce_shutdown(Plain::Yes);
            self.scan = scan.again.then(|| Scan::new(Look::News));
        }
    }

    /// Looks at one domain; `false` if there is none left.
    fn look_at_next(&mut self) -> bool {
        self.budget.spend(ASK_WORK);
        let Some(scan) = self.scan else { return false };
        let Some(from) = scan.next else {
            match self.platform.next_change() {
                Change::Domain(domid, state) => self.domain_changed(domid, state),
                Change::Done => return false,
                Change::Unsupported => {
                    if let Some(scan) = &mut self.scan {
                        scan.next = Some(DomId(0));
                    }
                }
            }
            return true;
        };
        let Some((domid, _)) = self.domains.next_from(from) else { return false };
        let state = self.ask(domid);
        if state != DomainState::Unknown || scan.look == Look::News {
            self.domain_changed(domid, state);
        }
        if let Some(scan) = &mut self.scan {
            scan.next = Some(DomId(domid.0.saturating_add(1)));
        }
        true
    }

    /// Acts on the state of one domain.
    fn domain_changed(&mut self, domid: DomId, state: DomainState) {
        let Some(domain) = self.domains.get(domid) else { return };
        let is_introduced = domain.connection.is_some();
        match state {
            // It may be the one that has shut down; whoever cares has to look.
            DomainState::Unknown if is_introduced && domid != self.privileged => {
                self.announce_shutdown(Plain::No);
                self.announce_next(domid);
            }
            DomainState::Unknown => {}
            DomainState::Exists { shutdown, identity, .. }
                if !self.is_replaced(domid, identity) =>
            {
                let Some(domain) = self.domains.get_mut(domid) else { return };
                if identity != Identity::Unknown {
                    domain.identity = identity;
                }
                if shutdown && is_introduced && !domain.shutdown_reported {
                    self.announce_shutdown(Plain::No);
                    self.announce_next(domid);
                    if let Some(domain) = self.domains.get_mut(domid) {
                        domain.shutdown_reported = true;
                    }
                }
            }
            DomainState::Exists { .. } | DomainState::Gone => {
                // The plain event of a death stands for those before it.
                if is_introduced {
                    self.announce_shutdown(Plain::No);
                }
                self.destroy(domid);
            }
        }
    }

    /// Announces what became of a domain. If it is dead, this comes after all that it had is gone.
    pub(in crate::server) fn announce(&mut self, special: Special, domid: DomId, plain: bool) {
        let (store, budget, mut mail) = self.mail(None);
        let _goes_on = store.announce(special, domid, plain, budget, &mut mail);
        self.report_drops();
    }

    /// Announces the shutdown that was seen last.
    fn announce_shutdown(&mut self, plain: Plain) {
        if let Some(domid) = self.scan.and_then(|scan| scan.announced) {
            self.announce(Special::ReleaseDomain, domid, plain == Plain::Yes);
            if let Some(scan) = &mut self.scan {
                scan.announced = None;
            }
        }
    }

    /// The shutdown of a domain was seen. It is announced when the next one is seen, or at the end of the look.
    fn announce_next(&mut self, domid: DomId) {
        if let Some(scan) = &mut self.scan {
            scan.announced = Some(domid);
        }
    }

    /// Goes on with clearing away what dead domains had, and what waited for connections that are gone.
    pub(in crate::server) fn clean_up(&mut self) {
        let (store, budget, mut mail) = self.mail(None);
        let _goes_on = store.go_on_deaths(budget, &mut mail);
        self.report_drops();
        self.empty_trash();
        // There is memory again for those that wait for it.
        self.short_left = self.connections.listed(List::Short);
    }

    /// Whether another domain has this domid now.
    fn is_replaced(&self, domid: DomId, identity: Identity) -> bool {
        self.domains.get(domid).is_some_and(|domain| {
            domain.identity.is_replaced_by(identity, domain.connection.is_some())
        })
    }

    /// Removes a domain and everything it has. The privileged domain is never removed: without
    /// it there is no host.
    pub(in crate::server) fn destroy(&mut self, domid: DomId) {
        if domid == self.privileged {
            self.platform.log(format_args!("domain {domid} is gone; it was the privileged one"));
            return;
        }
        if !self.domains.contains(domid) {
            return;
        }
        self.budget.spend(END_WORK);
        self.trace("obj", format_args!("domain {domid}: forgotten"));
        self.give_headroom();
        let Some(domain) = self.domains.remove(domid) else { return };
        // First of all it gets no events any more, not even about its own nodes.
        let connection = domain.connection.and_then(|id| self.detach(id));
        // Others lose the rights that they had as its emulators, too.
        self.store.forget(domid);
        if domain.connection.is_some() {
            self.announce(Special::ReleaseDomain, domid, true);
        }
        // What is little is gone at once.
        self.clean_up();
        if let Some(port) = connection.as_ref().and_then(|connection| connection.port) {
            self.close(port);
        }
        // This unmaps the page.
        drop(connection);
    }

    /// Closes a port, and then forgets it, so that after a failure in between every open port is still known.
    pub(in crate::server) fn close(&mut self, port: EvtchnPort) {
        self.platform.unbind(port);
        let _ = self.ports.remove(port);
    }

    /// Checks that connections, domains, ports and the store agree; gives every finding to `report`.
    pub(in crate::server) fn check_connections(&self, report: &mut dyn FnMut(Arguments<'_>)) {
        let mut claim = |holds: bool, what: &str, domid: DomId| {
            if !holds {
                report(format_args!("domain {domid}: {what}"));
            }
        };
        for (domid, domain) in self.domains.iter() {
            claim(self.store.knows(domid), "unknown to the store", domid);
            let connection = domain.connection.and_then(|id| self.connections.get(id));
            let is_whole = domain.connection.is_none() || connection.is_some();
            claim(is_whole, "its connection is missing", domid);
        }
        for (id, connection) in self.connections.iter() {
            let domid = connection.domid;
            let in_place = connection.is_local || self.connection_of(domid) == Some(id);
            claim(in_place, "has a stray connection", domid);
            let listed = connection.port.is_none_or(|port| self.ports.get(port) == Some(&id));
            claim(listed, "its port is not listed", domid);
            let known = self.store.party(id).is_some() == connection.is_connected();
            claim(known, "the store does not agree on its connection", domid);
            if connection.is_connected() {
                let is_kept = connection.waits || !self.store.is_asked_again(id);
                claim(is_kept, "something is kept of a request that is over", domid);
                let goes_on = connection.busy.is_some() || !self.store.is_busy(id);
                claim(goes_on, "nobody goes on with what its request has begun", domid);
            }
        }
        if self.connections.sums() != self.connections.sums_of_each() {
            report(format_args!("the sums of all connections are not what each has done"));
        }
    }

    /// Takes a connection out of everything but the hypervisor.
    pub(in crate::server) fn detach(&mut self, id: ConnId) -> Option<Connection<P::Ring>> {
        self.drop_upload_of(id, "its connection is gone");
        self.store.disconnect(id);
        self.timers.set(&mut self.connections, id, None);
        if self.rescanned == Some(id) {
            self.rescanned = self.connections.next(List::All, id);
        }
        let mut connection = self.connections.remove(id)?;
        self.timers.withdraw();
        connection.credit.leave(&mut self.reserve);
        self.past.add(connection.figures);
        self.history.refused = self.history.refused.saturating_add(connection.told.refused);
        self.trace("obj", format_args!("domain {}: connection closed", connection.domid));
        connection.forget_messages(&mut self.messages, &mut self.trash);
        self.messages.end_queue(&mut connection.queue, &mut self.trash);
        Some(connection)
    }
}

impl Scan {
    fn new(look: Look) -> Self {
        Self { next: None, look, again: false, announced: None }
    }
}

/// Why all domains are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Look {
    /// Xen said that something became of one.
    News,
    /// To be sure.
    Check,
}

/// Whether a plain `@releaseDomain` goes with the one that has the domid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plain {
    Yes,
    No,
}
