//! Who is served when: one pass after the other, until nothing is left, then sleep.
//!
//! A pass collects what happened and then gives turns. A turn belongs to one connection, or to work that is
//! nobody's request: looking what became of domains, and clearing away what dead ones had. A turn is measured in
//! work ([`TURN`]), not in requests. Longer work goes on in a later turn, with others in between. Between any two
//! turns the privileged domain's ring is looked at. So nobody waits for more than one turn of each of the others,
//! and the privileged domain waits for one turn in all.
//!
//! A pass ends when about one turn's work is done, or nothing is left, so that news does not wait either. Once in
//! a turn at most it tells each peer what was taken from and put into its ring. Linux guests save on signals. A
//! guest that sees that its last request is not taken yet sends no signal for the next. A guest that reads from a
//! response ring that was not full sends none either (`docs/misc/xenstore-ring.txt`). So before the next sleep the
//! server looks once more, behind a full barrier, at the rings that it has served since the last one. An idle
//! server sleeps without any deadline.

use super::memory::{self, Share};
use super::timers::Timer;
use crate::mem::{Budget, Progress};
use crate::proto::id::{ConnId, DomId};
use crate::proto::ring::{self, RingError};
use crate::proto::wire::Header;
use crate::server::Server;
use crate::server::handover::InProgress;
use crate::server::platform::{Event, Platform};
use crate::server::requests::Reply;
use crate::server::rings::{Busy, Connection, Done, Fault, List, Sums, Suspension, Verdict};
use crate::store::Store;
use crate::store::quota::Quota;

/// Units of work in one turn; one more step of work may follow the last unit. A unit is up to four instructions,
/// since an event is charged what telling it takes, and not what its receiver takes (benches/slices.rs counts).
pub(in crate::server) const TURN: u64 = 20_000;

/// Units in one turn of finding out what became of domains: enough to do a few domains at once, whose questions
/// and ends are charged in full.
const SCAN_TURN: u64 = 50_000;

/// Units for a look at a connection, and for a request without its work in the store.
const SERVE_WORK: u64 = 500;

/// How many requests of one connection are handled before the others have their turn.
const REQUESTS_PER_TURN: usize = 8;

/// How many signals are collected in one pass, so that a storm of them cannot keep requests waiting.
const EVENTS_PER_PASS: usize = 256;

/// How many connections of a list are looked at in one pass.
const LOOKS_PER_PASS: usize = 64;

/// How many events get their deadline, or are dropped because nobody read them, in one turn.
const EVENTS_PER_TURN: usize = 100;

/// The most that a node takes that is being made, with a name of a few bytes.
const LEVEL_BYTES: usize = 512;

/// One of so many requests is measured: reading the clock may cost more than the request itself.
pub(in crate::server) const MEASURED_OF: u32 = 64;

/// How often all rings are looked at, for clients that forget to signal; only while awake anyway.
const RESCAN_MS: u64 = 1000;

/// What is left after a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// More work: another pass is due.
    More,
    /// Nothing to do until something happens or the clock reaches this moment.
    Idle(Option<u64>),
    /// A live update was asked for: [`Server::hand_over`] is due, and until then nothing is served.
    HandOver,
}

/// The result of trying to read a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Read {
    Complete,
    /// There is none now.
    Nothing,
}

/// Who may have a turn, in the order of the turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Stage {
    /// Finding out what became of domains: before any request, which may come from a new domain with an old domid.
    Scan,
    /// Clearing away what dead domains had, and then going on with a check.
    CleanUp,
    /// The privileged domain.
    Privileged,
    /// The others, one after the other.
    Others,
}

impl Stage {
    fn next(self) -> Self {
        match self {
            Self::Scan => Self::CleanUp,
            Self::CleanUp => Self::Privileged,
            Self::Privileged => Self::Others,
            Self::Others => Self::Scan,
        }
    }
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

    /// One pass over what may have work.
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
        if core::mem::take(&mut self.slept) {
            // There may be memory again.
            self.short_left = self.connections.listed(List::Short);
        }
        self.collect_events();
        self.collect_timers();
        self.expire_upload();
        self.expire_dump();
        self.tell_left_out();
        self.tell_drops();
        self.rescan();
        self.give_turns();
        if self.is_leaving() {
            return Pass::HandOver;
        }
        self.look_again();
        let is_held = self.holds_back();
        self.platform.hold_back(is_held);
        if self.has_more() {
            return Pass::More;
        }
        self.slept = true;
        let timer = self.timers.first().map(|timer| timer.at_ms);
        let expiry = [self.upload_expires_ms(), self.dump_expires_ms()];
        let lines = [self.left_out_due_ms(), self.drops_due_ms()];
        let all = [timer].into_iter().chain(expiry).chain(lines);
        Pass::Idle(all.flatten().min())
    }

    /// Whether another pass is due at once.
    fn has_more(&self) -> bool {
        !self.connections.is_empty(List::Ready)
            || !self.connections.is_empty(List::Served)
            || self.has_background_work()
            || self.rescanned.is_some()
            || self.short_left > 0
            || self.timers.first().is_some_and(|timer| timer.at_ms <= self.now_ms)
    }

    /// Whether the ring of the first domain, dom0's, is left unread on purpose.
    fn holds_back(&self) -> bool {
        let id = self.connection_of(self.options.first_domain);
        id.and_then(|id| self.connections.get(id)).is_none_or(Connection::is_held_back)
    }

    fn has_background_work(&self) -> bool {
        self.scan.is_some() || self.has_clearing()
    }

    /// Whether something is left of what dead domains had, or not everybody has been told what became of domains.
    #[must_use]
    pub fn is_cleaning_up(&self) -> bool {
        self.store.has_deaths()
    }

    fn has_cleanup(&self) -> bool {
        self.store.has_deaths() || !self.trash.is_empty()
    }

    fn has_clearing(&self) -> bool {
        self.has_cleanup() || self.is_checking()
    }

    /// Gives turns until about one turn's work is done.
    fn give_turns(&mut self) {
        // Those that become ready meanwhile wait for the next pass.
        let mut others = self.connections.listed(List::Ready);
        let mut pass = Budget::new(TURN);
        while let Some(stage) = self.next_stage(others) {
            self.stage = stage.next();
            let units = if stage == Stage::Scan { SCAN_TURN } else { TURN };
            self.budget = Budget::new(units);
            match stage {
                Stage::Scan => self.scan_on(),
                Stage::CleanUp if self.has_cleanup() => self.clean_up(),
                Stage::CleanUp if self.checking.is_some() => self.check_on(),
                Stage::CleanUp => self.maxima_on(),
                Stage::Privileged => {
                    if let Some(id) = self.connection_of(self.privileged) {
                        self.connections.leave(List::Ready, id);
                        self.serve(id);
                    }
                }
                Stage::Others => {
                    others = others.saturating_sub(1);
                    if let Some(id) = self.connections.pop(List::Ready) {
                        self.serve(id);
                    }
                }
            }
            pass.spend(units.saturating_sub(self.budget.left()));
            if self.is_leaving() || pass.is_over() {
                return;
            }
        }
        self.stage = Stage::Scan;
    }

    /// Whose turn it is; `None` if nobody has anything to do.
    fn next_stage(&mut self, others: usize) -> Option<Stage> {
        let others = others > 0 && !self.connections.is_empty(List::Ready);
        let mut stage = self.stage;
        for _ in 0..4 {
            let has_work = match stage {
                Stage::Scan => self.scan.is_some(),
                Stage::CleanUp => self.has_clearing(),
                Stage::Privileged => self.privileged_has_work(others),
                Stage::Others => others,
            };
            if has_work {
                return Some(stage);
            }
            stage = stage.next();
        }
        None
    }

    /// Whether the privileged domain has something in its ring. The server looks without a signal only where
    /// others would have their turn before the next pass.
    fn privileged_has_work(&self, others: bool) -> bool {
        let id = self.connection_of(self.privileged);
        let Some(connection) = id.and_then(|id| self.connections.get(id)) else { return false };
        if connection.is_ready() {
            return true;
        }
        (others || self.has_background_work())
            && connection.is_connected()
            && !connection.is_in_doubt()
            && connection.has_requests()
    }

    /// Makes `now_ms` exact, for work that waits for a moment. Otherwise a pass uses [`Platform::rough_ms`].
    pub(in crate::server) fn read_clock(&mut self) -> u64 {
        self.now_ms = self.now_ms.max(self.platform.now_ms());
        self.now_ms
    }

    /// Has a connection served in a later turn.
    pub(in crate::server) fn mark_ready(&mut self, id: ConnId) {
        if self.connections.get(id).is_some_and(Connection::is_connected) {
            self.connections.push(List::Ready, id);
        }
    }

    /// Has a suspended ring looked at again.
    pub(in crate::server) fn resume(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.suspension = None;
        }
        self.mark_ready(id);
    }

    fn collect_events(&mut self) {
        for _ in 0..EVENTS_PER_PASS {
            match self.platform.next_event() {
                Some(Event::Port(port)) => {
                    if let Some(id) = self.ports.get(port).copied() {
                        self.mark_ready(id);
                    }
                }
                Some(Event::DomainChange) => self.scan_domains(),
                None => break,
            }
        }
    }

    fn collect_timers(&mut self) {
        for _ in 0..LOOKS_PER_PASS {
            let Some(Timer { at_ms, id }) = self.timers.first() else { break };
            if at_ms > self.now_ms {
                break;
            }
            self.timers.set(&mut self.connections, id, None);
            if let Some(connection) = self.connections.get_mut(id) {
                connection.wake_at_ms = None;
            }
            self.mark_ready(id);
        }
    }

    /// Looks at all rings, in case signals were lost. Idle domains also hand over what they earned.
    fn rescan(&mut self) {
        if self.rescanned.is_none() {
            if self.now_ms < self.next_rescan_ms {
                return;
            }
            self.next_rescan_ms = self.now_ms.saturating_add(RESCAN_MS);
            self.rescanned = self.connections.first(List::All);
        }
        let guests = self.guests();
        for _ in 0..LOOKS_PER_PASS {
            let Some(id) = self.rescanned else { return };
            self.rescanned = self.connections.next(List::All, id);
            let Some(connection) = self.connections.get_mut(id) else { continue };
            connection.credit.earn(self.now_ms, guests, &mut self.reserve);
            if connection.has_work() {
                self.mark_ready(id);
            }
        }
    }

    /// The last look before sleeping.
    fn look_again(&mut self) {
        for _ in 0..LOOKS_PER_PASS {
            let Some(id) = self.connections.pop(List::Served) else { break };
            self.short_left = self.connections.listed(List::Short);
            if self.connections.get(id).is_some_and(Connection::has_work) {
                self.mark_ready(id);
            }
        }
        if !self.connections.is_empty(List::Ready) || !self.connections.is_empty(List::Served) {
            return;
        }
        // Something happened since those that are short of memory were looked at, each of them once.
        for _ in 0..self.short_left.min(LOOKS_PER_PASS) {
            self.short_left = self.short_left.saturating_sub(1);
            let Some(id) = self.connections.pop(List::Short) else { return };
            match self.suspension(id) {
                Some(Suspension::Memory) => self.connections.push(List::Short, id),
                Some(Suspension::Outstanding | Suspension::Rate(_)) | None => self.resume(id),
            }
        }
    }

    /// Serves one connection within its budget.
    fn serve(&mut self, id: ConnId) {
        self.budget.spend(SERVE_WORK);
        self.in_progress = InProgress { conn: Some(id), header: None };
        let now_ms = self.now_ms;
        let Some(connection) = self.connections.get_mut(id) else { return };
        let mut is_fine = false;
        if connection.is_connected() {
            if connection.queue.earliest_ms().is_some_and(|earliest| earliest <= now_ms) {
                self.expire_events(id);
            }
            match self.exchange(id) {
                Ok(()) => is_fine = true,
                Err(fault) => self.blame(id, fault),
            }
        }
        self.conclude(id, is_fine);
        self.in_progress = InProgress::default();
    }

    /// Drops events that nobody has read in time.
    fn expire_events(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let (messages, mut done) = (&mut self.messages, Done::NONE);
        let expire = connection.queue.expire(messages, self.now_ms, EVENTS_PER_TURN, &mut done);
        let (dropped, has_more) = expire;
        self.connections.count(id, Sums::dropped(dropped as u64));
        self.settle_done(&mut done);
        if has_more {
            self.mark_ready(id);
        }
    }

    /// Writes what waits, goes on with what was begun, handles requests, writes what they gave.
    fn exchange(&mut self, id: ConnId) -> Result<(), Fault> {
        self.send(id)?;
        if !self.go_on(id).is_done() {
            return self.send(id);
        }
        let mut left = REQUESTS_PER_TURN;
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
            left = left.saturating_sub(1);
            if left == 0 || self.budget.is_over() || self.is_leaving() {
                self.mark_ready(id);
                break;
            }
            // Nothing has changed for a request that waits.
            if self.connections.get(id).is_none_or(|connection| connection.waits) {
                break;
            }
        }
        self.send(id)
    }

    /// Goes on with what the last request of a connection has begun. Its reply comes when that is done.
    pub(in crate::server) fn go_on(&mut self, id: ConnId) -> Progress {
        let Some(connection) = self.connections.get(id) else { return Progress::Done };
        let Some(busy) = connection.busy else { return Progress::Done };
        let asked = match busy {
            Busy::Reply { asked, .. } => asked,
            Busy::StartOver => None,
            Busy::News { header, domid } => return self.answer_when_told(id, header, domid),
            // Its turns are the server's; its end marks the connection ready.
            Busy::Check => return Progress::More,
        };
        self.check_making(id);
        let (store, budget, mut mail) = self.mail(asked);
        let progress = store.go_on(id, budget, &mut mail);
        self.report_drops();
        if !progress.is_done() {
            self.mark_ready(id);
            return Progress::More;
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.busy = None;
        }
        let failure = self.store.take_failure(id);
        match busy {
            Busy::Reply { header, answer, asked } => {
                let answer = failure.map_or(answer, Err);
                self.queue_answer(id, header, answer.map(|()| Reply::Done), asked);
            }
            Busy::StartOver => self.empty_ring(id),
            Busy::News { .. } | Busy::Check => {}
        }
        Progress::Done
    }

    /// Answers a request about a domain if that is [settled](Self::is_unsettled) by now, which happens in turns of its own.
    fn answer_when_told(&mut self, id: ConnId, header: Header, domid: DomId) -> Progress {
        if self.is_unsettled(domid) {
            self.mark_ready(id);
            return Progress::More;
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.busy = None;
        }
        self.queue_answer(id, header, Ok(Reply::Done), None);
        Progress::Done
    }

    /// Refuses what a request has still to make if memory has run short since it was admitted.
    #[inline(never)]
    fn check_making(&mut self, id: ConnId) {
        let levels = self.store.still_to_make(id);
        let Some(connection) = self.connections.get(id).filter(|_| levels > 0) else { return };
        let held = memory::held(&self.store, connection.domid);
        let guest = (!connection.privileged).then_some(held);
        let share = Share::of(guest, self.connections.len());
        if !memory::can_queue(&mut self.platform, share, levels.saturating_mul(LEVEL_BYTES)) {
            self.store.make_no_more(id);
        }
    }

    /// Completes everything that goes on in later turns. Afterwards nobody waits for work, and none of it has to
    /// be handed over.
    pub(in crate::server) fn finish_work(&mut self) {
        self.budget = Budget::endless();
        loop {
            while self.scan.is_some() {
                self.scan_on();
            }
            while self.store.has_deaths() || !self.trash.is_empty() {
                self.clean_up();
            }
            self.finish_check();
            let mut next = self.connections.first(List::All);
            let mut is_done = true;
            while let Some(id) = next {
                next = self.connections.next(List::All, id);
                self.in_progress = InProgress { conn: Some(id), header: None };
                // It may depend on another one.
                is_done &= self.go_on(id).is_done();
                if self.connections.get(id).is_some_and(|connection| connection.waits) {
                    self.execute(id);
                    // Perhaps it has only begun now.
                    is_done = false;
                }
            }
            self.in_progress = InProgress::default();
            // A request that waited may have been about a domain that is replaced.
            if is_done && !self.has_background_work() {
                break;
            }
        }
    }

    fn send(&mut self, id: ConnId) -> Result<(), Fault> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(()) };
        // What waits for one that starts over is dropped, whatever its ring looks like.
        let is_of_use = connection.is_connected() && !connection.starts_over();
        if !is_of_use || connection.queue.is_empty() {
            return Ok(());
        }
        let mut done = Done::NONE;
        let result = connection.send(&mut self.messages, &mut done);
        self.settle_done(&mut done);
        result
    }

    fn read_request(&mut self, id: ConnId) -> Result<Read, Fault> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Read::Nothing) };
        if !connection.is_connected() || connection.busy.is_some() || !connection.queue.can_reply()
        {
            return Ok(Read::Nothing);
        }
        if connection.waits {
            return Ok(Read::Complete);
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
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Read::Nothing) };
        let before = core::mem::replace(&mut connection.suspension, suspension);
        let domid = connection.domid;
        if suspension == Some(Suspension::Memory) {
            self.connections.push(List::Short, id);
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
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Read::Nothing) };
        Ok(if connection.receive()? { Read::Complete } else { Read::Nothing })
    }

    /// Why a ring must not be read now.
    fn suspension(&mut self, id: ConnId) -> Option<Suspension> {
        let guests = self.guests();
        let connection = self.connections.get_mut(id)?;
        let obstacle = Self::obstacle(connection, &mut self.platform, &self.store);
        if obstacle.is_some() || connection.privileged || !connection.credit.is_in_debt() {
            return obstacle;
        }
        let now_ms = self.read_clock();
        let connection = self.connections.get_mut(id)?;
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
        if !memory::can_read(platform, connection.privileged) {
            Some(Suspension::Memory)
        } else if connection.privileged {
            None
        } else if !allows(Quota::Outstanding) {
            Some(Suspension::Outstanding)
        } else {
            (!allows(Quota::Memory)).then_some(Suspension::Memory)
        }
    }

    /// Signals the peer if bytes were put into its ring or taken out of it and it does not know.
    pub(in crate::server) fn signal(platform: &mut P, connection: &mut Connection<P::Ring>) {
        // Forgotten only when it is done, for a failure in between.
        if connection.must_notify {
            if let Some(port) = connection.port {
                platform.notify(port);
            }
            connection.must_notify = false;
        }
    }

    /// What follows after a connection was served, or could not be: signal, timer, place in the lists. `is_fine`
    /// says that all indices made sense.
    fn conclude(&mut self, id: ConnId, is_fine: bool) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if is_fine {
            connection.trust();
        }
        Self::signal(&mut self.platform, connection);
        let (is_served, is_ready) = (connection.links.is_in(List::Served), connection.is_ready());
        if connection.queue.has_undated() && !connection.privileged {
            self.date_events(id, EVENTS_PER_TURN);
            self.set_timer(id);
        } else if connection.next_look_ms() != connection.wake_at_ms {
            self.set_timer(id);
        }
        // Who is ready is looked at in any case.
        if !is_served && !is_ready {
            self.connections.push(List::Served, id);
        }
    }

    /// Sets the deadlines of the events that a guest has not been able to read at once. What is more than `most`
    /// waits for a later turn.
    pub(in crate::server) fn date_events(&mut self, id: ConnId, most: usize) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(timeout_ms) = self.options.watch_event_timeout_ms else { return };
        if connection.privileged || !connection.queue.has_undated() {
            return;
        }
        let deadline_ms = self.read_clock().saturating_add(timeout_ms);
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.queue.date(&mut self.messages, deadline_ms, most);
        if connection.queue.has_undated() {
            self.mark_ready(id);
        }
    }

    /// Brings the list of timers up to date with one connection.
    pub(in crate::server) fn set_timer(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let wanted = connection.next_look_ms();
        if wanted == connection.wake_at_ms {
            return;
        }
        connection.wake_at_ms = wanted;
        self.timers.set(&mut self.connections, id, wanted);
    }

    /// Handles a ring that breaks the rules.
    fn blame(&mut self, id: ConnId, fault: Fault) {
        let now_ms = self.read_clock();
        let Some(connection) = self.connections.get_mut(id) else { return };
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
                connection.suspension = Some(Suspension::Memory);
                self.connections.push(List::Short, id);
            }
            Fault::Oversize(len) => {
                // With that header it must not stay as it is, whatever happens on the way to the console.
                self.ignore(id, RingError::Protocol);
                self.tell(id, format_args!("a request announced {len} bytes of payload"));
            }
        }
    }

    /// The signals of a client that is given up must not wake the server any more.
    pub(in crate::server) fn close_ignored(&mut self, id: ConnId) {
        let connection = self.connections.get(id).filter(|connection| !connection.is_connected());
        let Some(port) = connection.and_then(|connection| connection.port) else { return };
        self.close(port);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.port = None;
        }
    }

    /// Gives up a ring: its domain is not served any more until it is released.
    pub(in crate::server) fn ignore(&mut self, id: ConnId, why: RingError) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.ignore(why, &mut self.messages, &mut self.trash);
        self.store.disconnect(id);
        if let Some(port) = connection.port {
            // The client may wait for the word that was just written.
            self.platform.notify(port);
        }
        self.close_ignored(id);
        self.drop_upload_of(id, "its connection was given up");
        self.set_timer(id);
        let why = match why {
            RingError::Comm => "its event channel or page cannot be used",
            RingError::RingIndex => "its ring indices are impossible",
            RingError::Protocol => "it violated the protocol",
        };
        self.tell(id, format_args!("connection given up: {why}"));
    }
}
