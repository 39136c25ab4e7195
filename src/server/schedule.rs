//! Who is served when: one pass after the other, until nothing is left, then sleep.
//!
//! A pass collects what happened, serves each connection that may have work for at most
//! [`REQUESTS_PER_PASS`] requests, and tells each peer at most once what was taken from and put into its ring.
//! Linux guests save on signals: one that sees its last request not taken yet sends none for the next, and one
//! that reads from a response ring that was not full sends none either (`docs/misc/xenstore-ring.txt`).
//! So the rings served since the last sleep are looked at once more, behind a full barrier, before
//! the next. An idle server sleeps without any deadline.

use super::Server;
use super::connection::{Connection, Fault, Suspension, Verdict};
use super::memory;
use super::platform::{Event, Platform};
use super::queue::Released;
use crate::proto::id::ConnId;
use crate::proto::ring::{self, RingError};
use crate::store::Store;
use crate::store::quota::Quota;

/// How many requests of one connection are handled before the others have their turn.
const REQUESTS_PER_PASS: usize = 8;

/// How many signals are collected in one pass, so that a storm of them cannot keep requests waiting.
const EVENTS_PER_PASS: usize = 4096;

/// One of so many requests is measured: reading the clock may cost more than the request itself.
pub(super) const MEASURED_OF: u32 = 64;

/// Causes for which room is kept from one message sent to the next.
const RELEASED_KEPT: usize = 64;

/// Connections for whose list room is kept from one pass to the next.
const SERVED_KEPT: usize = 64;

/// How often all rings are looked at, for clients that forget to signal; only while awake anyway.
const RESCAN_MS: u64 = 1000;

/// What is left after a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// More work: another pass is due.
    More,
    /// Nothing, until something happens or the clock reaches this moment.
    Idle(Option<u64>),
    /// A live update was asked for: [`Server::hand_over`] is due, and until then nothing is served.
    HandOver,
}

/// What the attempt to read a request gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Read {
    Complete,
    /// Nothing to be had now.
    Nothing,
}

impl<P: Platform> Server<P> {
    /// One pass, and if nothing is left to do, sleep until something happens.
    pub fn step(&mut self) {
        match self.pass() {
            Pass::More => {}
            Pass::Idle(deadline_ms) => self.platform.wait(deadline_ms),
            Pass::HandOver => self.hand_over(),
        }
    }

    /// One pass over everything that may have work.
    pub fn pass(&mut self) -> Pass {
        if self.is_leaving() {
            return Pass::HandOver;
        }
        let has_line = self.left_out_due_ms().is_some() || self.drops_due_ms().is_some();
        if self.timers.is_empty() && self.upload.is_none() && self.dump.is_none() && !has_line {
            self.now_ms = self.now_ms.max(self.platform.rough_ms());
        } else {
            self.read_clock();
        }
        self.collect_events();
        self.collect_timers();
        self.expire_upload();
        self.expire_dump();
        self.tell_left_out();
        self.tell_drops();
        self.rescan();
        // Those that become ready meanwhile wait for the next pass.
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            self.serve(id);
            if self.is_leaving() {
                return Pass::HandOver;
            }
        }
        self.look_again();
        if self.ready.is_empty() {
            let timer = self.timers.first().map(|(at_ms, _)| *at_ms);
            let expiry = [self.upload_expires_ms(), self.dump_expires_ms()];
            let lines = [self.left_out_due_ms(), self.drops_due_ms()];
            let all = [timer].into_iter().chain(expiry).chain(lines);
            Pass::Idle(all.flatten().min())
        } else {
            Pass::More
        }
    }

    /// Makes `now_ms` exact, for whoever is about to wait for a moment that it says. Where nobody does, a pass goes
    /// by [`Platform::rough_ms`].
    pub(super) fn read_clock(&mut self) -> u64 {
        self.now_ms = self.now_ms.max(self.platform.now_ms());
        self.now_ms
    }

    /// Has a connection served in the next pass.
    pub(super) fn mark_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            if !connection.is_ready && connection.is_connected() {
                connection.is_ready = true;
                self.ready.push_back(id);
            }
        }
    }

    /// Has a suspended ring looked at again.
    pub(super) fn resume(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.suspension = None;
        }
        self.mark_ready(id);
    }

    fn collect_events(&mut self) {
        let mut domains_changed = false;
        for _ in 0..EVENTS_PER_PASS {
            match self.platform.next_event() {
                Some(Event::Port(port)) => {
                    if let Some(id) = self.ports.get(&port).copied() {
                        self.mark_ready(id);
                    }
                }
                Some(Event::DomainChange) => domains_changed = true,
                None => break,
            }
        }
        // Before any request: a new domain must not meet what belongs to its dead predecessor.
        if domains_changed {
            self.scan_domains();
        }
    }

    fn collect_timers(&mut self) {
        while let Some((at_ms, id)) = self.timers.first().copied() {
            if at_ms > self.now_ms {
                break;
            }
            self.timers.pop_first();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.wake_at_ms = None;
            }
            self.mark_ready(id);
        }
    }

    /// The net under lost signals. Idle domains hand over what they earned, too.
    fn rescan(&mut self) {
        if self.now_ms < self.next_rescan_ms {
            return;
        }
        self.next_rescan_ms = self.now_ms.saturating_add(RESCAN_MS);
        let guests = self.guests();
        for (id, connection) in &mut self.connections {
            connection.credit.earn(self.now_ms, guests, &mut self.reserve);
            if !connection.is_ready && connection.has_work() {
                connection.is_ready = true;
                self.ready.push_back(*id);
            }
        }
    }

    /// The last look before sleeping.
    fn look_again(&mut self) {
        let mut served = core::mem::take(&mut self.served);
        for id in served.drain(..) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.was_served = false;
            if connection.has_work() {
                self.mark_ready(id);
            }
        }
        // The room for a crowd is given back; what a few need is kept.
        if served.capacity() <= SERVED_KEPT {
            self.served = served;
        }
        if !self.ready.is_empty() {
            return;
        }
        for id in core::mem::take(&mut self.short_of_memory) {
            match self.suspension(id) {
                Some(Suspension::Memory) => self.short_of_memory.push(id),
                Some(Suspension::Outstanding | Suspension::Rate(_)) | None => self.resume(id),
            }
        }
    }

    /// Serves one connection within its budget.
    fn serve(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.is_ready = false;
        let mut is_fine = false;
        if connection.is_connected() {
            if connection.queue.earliest_ms().is_some_and(|earliest| earliest <= now_ms) {
                let mut released = Released::default();
                connection.queue.expire(now_ms, &mut released);
                self.settle_released(id, &mut released);
            }
            match self.exchange(id) {
                Ok(()) => is_fine = true,
                Err(fault) => self.blame(id, fault),
            }
        }
        self.conclude(id, is_fine);
    }

    /// Writes what waits, handles requests, writes what they gave.
    fn exchange(&mut self, id: ConnId) -> Result<(), Fault> {
        self.send(id)?;
        let mut budget = REQUESTS_PER_PASS;
        while self.read_request(id)? == Read::Complete {
            match self.unmeasured.checked_sub(1) {
                Some(unmeasured) => {
                    self.unmeasured = unmeasured;
                    self.execute(id);
                }
                None => {
                    self.unmeasured = MEASURED_OF.saturating_sub(1);
                    let from_us = self.platform.now_us();
                    self.execute(id);
                    let us = self.platform.now_us().saturating_sub(from_us);
                    self.latency.add(us);
                    self.history.measured_us = self.history.measured_us.saturating_add(us);
                }
            }
            budget = budget.saturating_sub(1);
            if budget == 0 || self.is_leaving() {
                self.mark_ready(id);
                break;
            }
        }
        self.send(id)
    }

    fn send(&mut self, id: ConnId) -> Result<(), Fault> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if !connection.is_connected() || connection.queue.is_empty() {
            return Ok(());
        }
        let mut released = core::mem::take(&mut self.released);
        let result = connection.send(&mut released);
        self.settle_released(id, &mut released);
        if released.causes.capacity() <= RELEASED_KEPT {
            self.released = released;
        }
        result
    }

    fn read_request(&mut self, id: ConnId) -> Result<Read, Fault> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(Read::Nothing) };
        if !connection.is_connected() {
            return Ok(Read::Nothing);
        }
        if !ring::has_requests(&connection.ring) {
            // There is nothing that could be kept from being read. Who is short of memory stays in the list.
            connection.suspension =
                connection.suspension.filter(|suspension| *suspension == Suspension::Memory);
            return Ok(Read::Nothing);
        }
        if connection.suspension.is_none()
            && !connection.credit.is_in_debt()
            && Self::obstacle(connection, &mut self.platform, &self.store).is_none()
        {
            return Ok(if connection.receive()? { Read::Complete } else { Read::Nothing });
        }
        let suspension = self.suspension(id);
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(Read::Nothing) };
        let before = core::mem::replace(&mut connection.suspension, suspension);
        let domid = connection.domid;
        if suspension == Some(Suspension::Memory) && before != suspension {
            self.short_of_memory.push(id);
        }
        if before != suspension {
            self.tell_suspension(id, suspension);
        }
        if let (Some(Suspension::Rate(until)), true) = (suspension, before != suspension) {
            let ms = until.saturating_sub(self.now_ms);
            self.trace("wrl", format_args!("domain {domid}: writes too fast, waits {ms} ms"));
        }
        if suspension.is_some() {
            return Ok(Read::Nothing);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(Read::Nothing) };
        Ok(if connection.receive()? { Read::Complete } else { Read::Nothing })
    }

    /// Why a ring must not be read now.
    fn suspension(&mut self, id: ConnId) -> Option<Suspension> {
        let guests = self.guests();
        let connection = self.connections.get_mut(&id)?;
        let obstacle = Self::obstacle(connection, &mut self.platform, &self.store);
        if obstacle.is_some() || connection.privileged || !connection.credit.is_in_debt() {
            return obstacle;
        }
        let now_ms = self.read_clock();
        let connection = self.connections.get_mut(&id)?;
        let until = connection.credit.blocked_until(now_ms, guests, &mut self.reserve);
        until.map(Suspension::Rate)
    }

    /// The part of [`suspension`](Self::suspension) for which the time does not matter.
    fn obstacle(
        connection: &Connection<P::Ring>,
        platform: &mut P,
        store: &Store,
    ) -> Option<Suspension> {
        let allows = |quota| store.allows(connection.domid, quota, 1);
        if !memory::can_read(platform) {
            Some(Suspension::Memory)
        } else if connection.privileged {
            None
        } else if !allows(Quota::Outstanding) {
            Some(Suspension::Outstanding)
        } else {
            (!allows(Quota::Memory)).then_some(Suspension::Memory)
        }
    }

    /// After a connection was served, or could not be: signal, timer, place in the lists. `is_fine` says that
    /// all indices made sense.
    fn conclude(&mut self, id: ConnId, is_fine: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if is_fine {
            connection.trust();
        }
        if core::mem::take(&mut connection.must_notify) {
            if let Some(port) = connection.port {
                self.platform.notify(port);
            }
        }
        if !connection.was_served {
            connection.was_served = true;
            self.served.push(id);
        }
        if connection.queue.has_undated() {
            self.date_events(id);
            self.set_timer(id);
        } else if connection.next_look_ms() != connection.wake_at_ms {
            self.set_timer(id);
        }
    }

    /// Says until when the events wait that a guest has not been able to read at once.
    pub(super) fn date_events(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(timeout_ms) = self.options.watch_event_timeout_ms else { return };
        if connection.privileged || !connection.queue.has_undated() {
            return;
        }
        let deadline_ms = self.read_clock().saturating_add(timeout_ms);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.queue.date(deadline_ms);
        }
    }

    /// Brings the list of timers up to date with one connection.
    pub(super) fn set_timer(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let wanted = connection.next_look_ms();
        if wanted == connection.wake_at_ms {
            return;
        }
        if let Some(old) = core::mem::replace(&mut connection.wake_at_ms, wanted) {
            self.timers.remove(&(old, id));
        }
        if let Some(new) = wanted {
            self.timers.insert((new, id));
        }
    }

    /// A ring is not as it should be.
    fn blame(&mut self, id: ConnId, fault: Fault) {
        let now_ms = self.read_clock();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match fault {
            Fault::Indices => {
                if connection.doubt(now_ms) == Verdict::Condemned {
                    self.ignore(id, RingError::RingIndex);
                }
            }
            Fault::Ones => {
                if connection.doubt(now_ms) == Verdict::Condemned {
                    self.ignore(id, RingError::Protocol);
                }
            }
            Fault::NoMemory => {
                if connection.suspension.replace(Suspension::Memory) != Some(Suspension::Memory) {
                    self.short_of_memory.push(id);
                }
            }
            Fault::Oversize(len) => {
                self.tell(id, format_args!("a request announced {len} bytes of payload"));
                self.ignore(id, RingError::Protocol);
            }
        }
    }

    /// Gives a ring up: nothing of its domain is served any more until it is released.
    fn ignore(&mut self, id: ConnId, why: RingError) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut released = Released::default();
        connection.ignore(why, &mut released);
        if let Some(port) = connection.port.take() {
            // The client may wait for the word that was just written. After that its
            // signals must not wake the server any more.
            self.platform.notify(port);
            self.ports.remove(&port);
            self.platform.unbind(port);
        }
        self.settle_released(id, &mut released);
        self.drop_upload_of(id, "its connection was given up");
        self.store.disconnect(id);
        self.set_timer(id);
        let why = match why {
            RingError::Comm => "its event channel or page cannot be used",
            RingError::RingIndex => "its ring indices are impossible",
            RingError::Protocol => "it violated the protocol",
        };
        self.tell(id, format_args!("connection given up: {why}"));
    }
}
