//! The server goes on after a failure of its own: a panic, a fault, a stack that was too small.
//!
//! Whatever failed, the memory of the domain is still there. So the failed instance does what a live update does:
//! it writes its state into a region and hands that over to a fresh copy of its own image. Two things differ. The
//! request that was being handled gets EIO, since nobody knows how far it got. And the state may be half changed,
//! so the successor counts anew what everybody holds, and does not compare it with what was said.
//!
//! A guest that finds a way to make the server fail must not gain by it: the second time within [`WINDOW_MS`] its
//! connection is given up. If no guest was served at the third failure or a later one, the kept state may be
//! damaged. Then everything that clients can make again is dropped: transactions end in EAGAIN, and one event for
//! each watch replaces the events that waited. After [`FAILURES_MAX`] failures in that time the server does not go
//! on, and the domain ends.

use super::update::Offer;
use crate::proto::error::XsError;
use crate::proto::handover::{FieldReader, FieldWriter, Short};
use crate::proto::id::ConnId;
use crate::proto::ring::RingError;
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::{Header, Kind};
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::error_payload;
use crate::server::rings::{Busy, List};
use crate::store::Special;

/// How long a failure is remembered.
const WINDOW_MS: u64 = 60_000;

/// After so many failures in that time the server still goes on.
const FAILURES_MAX: usize = 4;

/// From so many failures in that time on, the kept state is in doubt if no guest is to blame.
const DOUBTFUL: usize = 3;

/// What the server is doing, in case it fails.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct InProgress {
    /// The connection that is served.
    pub(in crate::server) conn: Option<ConnId>,
    /// The request of that connection that is handled.
    pub(in crate::server) header: Option<Header>,
}

/// A failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failure {
    at_ms: u64,
    /// Who was served then.
    conn: Option<ConnId>,
}

/// The failures of the last minute, over all instances.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(in crate::server) struct Failures {
    recent: heapless::Vec<Failure, FAILURES_MAX>,
    /// This instance goes on after a failure, and has not begun to serve.
    pub(in crate::server) is_repair: bool,
}

impl Failures {
    /// Notes a failure; `false` if there were too many.
    fn add(&mut self, at_ms: u64, conn: Option<ConnId>) -> bool {
        self.recent.retain(|failure| at_ms.saturating_sub(failure.at_ms) < WINDOW_MS);
        self.is_repair = true;
        self.recent.push(Failure { at_ms, conn }).is_ok()
    }

    /// Who was served at the last failure, and whether at an earlier one, too.
    fn last(&self) -> (Option<ConnId>, bool) {
        let Some((last, earlier)) = self.recent.split_last() else { return (None, false) };
        (last.conn, last.conn.is_some() && earlier.iter().any(|other| other.conn == last.conn))
    }

    /// Writes them for a successor.
    pub(in crate::server) fn write<S: Sink>(
        &self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.flag(self.is_repair)?;
        fields.count(self.recent.len())?;
        for Failure { at_ms, conn } in &self.recent {
            fields.u64(*at_ms)?;
            fields.maybe_u32(conn.map(|conn| conn.0))?;
        }
        Ok(())
    }

    /// Reads them.
    pub(in crate::server) fn read(fields: &mut FieldReader<'_>) -> Result<Self, Short> {
        let mut new = Self { is_repair: fields.flag()?, ..Self::default() };
        for _ in 0..fields.count(FAILURE_FIELDS)? {
            let at_ms = fields.u64()?;
            let conn = fields.maybe_u32()?.map(ConnId);
            // More than an instance keeps are no reason to fail: the first ones count.
            let _is_kept = new.recent.push(Failure { at_ms, conn });
        }
        Ok(new)
    }
}

/// The fewest bytes that a failure takes in the private part.
const FAILURE_FIELDS: usize = 9;

impl<P: Platform> Server<P> {
    /// The server has failed, at any place of its code: answers the request that was being handled, and writes
    /// everything into a region, as [`leave`](Self::leave) does. It must not serve after that.
    ///
    /// # Errors
    /// Why it cannot go on, as a sentence; then the domain has to end.
    pub fn leave_failed(&mut self) -> Result<Offer<P::Region>, Sentence> {
        let in_progress = core::mem::take(&mut self.in_progress);
        let now_ms = self.platform.now_ms();
        if !self.failures.add(now_ms, in_progress.conn) && !self.options.is_test {
            return Err(sentence!(
                "{} failures within {} seconds",
                FAILURES_MAX.saturating_add(1),
                WINDOW_MS.wrapping_div(1000)
            ));
        }
        let in_doubt = self.is_in_doubt();
        self.asked = None;
        // Not handed over; the next piece of it is told so.
        self.upload = None;
        if let Some(requester) = self.passage.take().and_then(|passage| passage.requester) {
            self.answer_failed(requester.conn, Some(requester.header()));
        }
        if let Some(id) = in_progress.conn {
            self.answer_failed(id, in_progress.header);
        }
        self.mend();
        if in_doubt {
            self.store.doom_transactions();
            self.drop_events();
        }
        self.leave()
    }

    /// Whether this is not the first failure, and no guest is to blame for it.
    fn is_in_doubt(&self) -> bool {
        let (conn, _) = self.failures.last();
        let connection = conn.and_then(|id| self.connections.get(id));
        self.failures.recent.len() >= DOUBTFUL
            && connection.is_none_or(|connection| connection.privileged)
            && !self.options.is_test
    }

    /// Drops the events that wait for anybody.
    fn drop_events(&mut self) {
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            if let Some(connection) = self.connections.get_mut(id) {
                connection.queue.drop_events(&mut self.messages, &mut self.trash);
            }
        }
    }

    /// Tells everybody of each watch, for the events that were dropped.
    fn ring_all(&mut self) {
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            let (store, _, mut mail) = self.mail(None);
            store.ring_all(id, &mut mail);
        }
        self.report_drops();
    }

    /// Completes what the failure may have interrupted between two tables: domains, connections and ports that
    /// only one of them knows.
    fn mend(&mut self) {
        for domid in self.store.domids() {
            let is_lost = !self.domains.contains(domid) && !self.store.is_dying(domid);
            if domid != self.privileged && is_lost {
                self.store.forget(domid);
                self.announce(Special::ReleaseDomain, domid, true);
            }
        }
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            let Some(connection) = self.connections.get(id) else { continue };
            if connection.is_local || self.connection_of(connection.domid) == Some(id) {
                self.close_ignored(id);
            } else {
                let _gone = self.detach(id);
            }
        }
        let mut at = 0;
        while let Some((handle, port, id)) = self.ports.next_from(at).map(|(h, p, id)| (h, p, *id))
        {
            at = handle.saturating_add(1);
            if self.connections.get(id).is_none_or(|connection| connection.port != Some(port)) {
                self.close(port);
            }
        }
    }

    /// Goes on after a failure, in a fresh copy of this image. Returns only if that is not possible, with the reason; then
    /// the domain has to end.
    pub fn restart(&mut self) -> Sentence {
        match self.leave_failed() {
            Ok(Offer { region, stream_len, deadline_ms }) => {
                self.platform.restart(&self.command_line, region, stream_len, deadline_ms)
            }
            Err(why) => why,
        }
    }

    /// The reply to the request during which the server has failed. It takes no memory, for that may be what was
    /// missing.
    fn answer_failed(&mut self, id: ConnId, handled: Option<Header>) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let busy = connection.busy.take();
        let header = handled.or(match busy {
            Some(Busy::Reply { header, .. } | Busy::News { header, .. }) => Some(header),
            Some(Busy::StartOver | Busy::Check) | None => None,
        });
        let Some(header) = header else {
            connection.busy = busy;
            return;
        };
        connection.waits = false;
        let payload = error_payload(XsError::EIO);
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let reply = Header { kind: Kind::Error.number(), len, ..header };
        if connection.queue.can_reply() {
            self.messages.push_kept(&mut connection.queue, reply, payload);
        }
    }

    /// Whether this instance goes on after a failure. Then its state may differ from what was said.
    #[must_use]
    pub fn is_repair(&self) -> bool {
        self.failures.is_repair
    }

    /// The last step of going on: tells what has happened, and gives up the connection during whose requests the
    /// server has failed twice.
    pub(in crate::server) fn conclude_failure(&mut self) {
        if self.is_in_doubt() {
            self.ring_all();
            self.platform.log(format_args!(
                "the third failure within {} seconds: transactions end in EAGAIN, each watch is told once",
                WINDOW_MS.wrapping_div(1000)
            ));
        }
        let (conn, is_again) = self.failures.last();
        let who = conn.and_then(|id| self.connections.get(id).map(|c| (id, c.domid, c.privileged)));
        let Some((id, domid, privileged)) = who else {
            self.platform.log(format_args!("went on after a failure; nobody was being served"));
            return;
        };
        self.platform.log(format_args!("went on after a failure while domain {domid} was served"));
        if is_again && !privileged && !self.options.is_test {
            self.ignore(id, RingError::Comm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_the_server_twice_in_a_minute_is_known() {
        let mut failures = Failures::default();
        assert_eq!(failures.last(), (None, false));
        assert!(failures.add(0, Some(ConnId(3))));
        assert_eq!(failures.last(), (Some(ConnId(3)), false));
        assert!(failures.add(10, None));
        assert!(failures.add(20, Some(ConnId(3))));
        assert_eq!(failures.last(), (Some(ConnId(3)), true));
        assert!(failures.add(WINDOW_MS + 15, Some(ConnId(3))));
        assert_eq!(failures.recent.len(), 2);
        assert!(failures.add(2 * WINDOW_MS + 15, Some(ConnId(3))));
        assert_eq!(failures.last(), (Some(ConnId(3)), false));
    }

    #[test]
    fn too_many_are_the_end() {
        let mut failures = Failures::default();
        for n in 0..FAILURES_MAX {
            assert!(failures.add(n as u64, None));
        }
        assert!(!failures.add(50, None));
        assert!(failures.add(WINDOW_MS + 50, None));
    }

    #[test]
    fn a_successor_reads_what_was_written() {
        let mut failures = Failures::default();
        failures.add(7, Some(ConnId(1)));
        failures.add(8, None);
        let mut bytes = alloc::vec::Vec::new();
        failures.write(&mut FieldWriter(&mut bytes)).unwrap();
        assert_eq!(Failures::read(&mut FieldReader::new(&bytes)), Ok(failures));
    }
}
