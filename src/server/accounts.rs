//! Who is charged for what waits in queues.
//!
//! * The receiver of a message pays for its bytes until it has read it or it has been dropped.
//! * The sender of a request has one unit outstanding as long as its reply or an event that it caused waits in a
//!   queue. So nobody can make the server queue without bound for others. A reply that goes into the ring at once,
//!   as most do, is never charged.
//!
//! Nothing is charged for privileged domains ("C xenstored 4.22 behaviour").

use super::Server;
use super::connection::Suspension;
use super::dispatch::Asker;
use super::platform::Platform;
use super::queue::{CauseId, Released};
use crate::proto::id::ConnId;
use crate::store::give_room_back;
use crate::store::quota::Quota;

/// A request of which something still waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause {
    /// Who asked. If that connection is gone, so is its account.
    pub(super) connection: ConnId,
    /// How many messages wait.
    pub(super) waiting: usize,
}

/// The request that is being handled, as what makes messages wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    cause: CauseId,
    connection: ConnId,
}

impl<P: Platform> Server<P> {
    /// Gives the request of an asker a number; `None` if nothing is charged for it.
    pub(super) fn name_cause(&mut self, asker: Asker) -> Option<Asked> {
        if asker.privileged {
            return None;
        }
        let cause = CauseId(self.next_cause);
        self.next_cause = self.next_cause.wrapping_add(1);
        Some(Asked { cause, connection: asker.id })
    }

    /// One more message waits because of this request, for which the first one is charged.
    pub(super) fn hold_cause(&mut self, asked: Option<Asked>) -> Option<CauseId> {
        let Asked { cause: id, connection } = asked?;
        if let Some(cause) = self.causes.get_mut(&id) {
            cause.waiting = cause.waiting.saturating_add(1);
            return Some(id);
        }
        let domid = self.connections.get(&connection)?.domid;
        self.store.charge(domid, Quota::Outstanding, 1);
        self.causes.insert(id, Cause { connection, waiting: 1 });
        Some(id)
    }

    /// One thing less waits because of this request.
    pub(super) fn drop_cause(&mut self, id: CauseId) {
        let Some(cause) = self.causes.get_mut(&id) else { return };
        cause.waiting = cause.waiting.saturating_sub(1);
        if cause.waiting > 0 {
            return;
        }
        let asker = cause.connection;
        self.causes.remove(&id);
        give_room_back(&mut self.causes);
        let Some(connection) = self.connections.get(&asker) else { return };
        self.store.refund(connection.domid, Quota::Outstanding, 1);
        if connection.suspension == Some(Suspension::Outstanding) {
            self.mark_ready(asker);
        }
    }

    /// Settles the accounts after messages to `receiver` were written or dropped. Nothing of `released` is left then.
    pub(super) fn settle_released(&mut self, receiver: ConnId, released: &mut Released) {
        let expired = core::mem::take(&mut released.expired) as u64;
        let bytes = core::mem::take(&mut released.bytes);
        if let Some(connection) = self.connections.get_mut(&receiver) {
            if !connection.privileged && bytes > 0 {
                self.store.refund(connection.domid, Quota::Memory, bytes);
            }
            connection.figures.dropped_events =
                connection.figures.dropped_events.saturating_add(expired);
        }
        for cause in released.causes.drain(..) {
            self.drop_cause(cause);
        }
    }
}
