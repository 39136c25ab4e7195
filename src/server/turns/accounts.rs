//! Who is charged for what waits in queues.
//!
//! * The receiver of a message pays for its bytes until it has read the message or the message was dropped.
//! * The sender of a request has one unit outstanding while its reply, or an event that it caused, waits in a
//!   queue. So nobody can make the server queue without bound for others. A reply that goes into the ring at once,
//!   as most do, is never charged.
//!
//! Nothing is charged for privileged domains ("C xenstored 4.22 behaviour").

use crate::mem::{Map, NoMemory};
use crate::proto::id::ConnId;
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::Asker;
use crate::server::rings::{CauseId, Connections, Done, Released, Suspension};
use crate::store::Accounts;
use crate::store::quota::Quota;

/// Units of work for a message that was written or dropped.
const SETTLE_WORK: u64 = 200;

/// A request of which something still waits.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Cause {
    /// Who asked. If that connection is gone, so is its account.
    pub(in crate::server) connection: ConnId,
    /// How many messages wait.
    pub(in crate::server) waiting: usize,
}

/// The requests of which something still waits, by the numbers of their [`CauseId`]s.
pub(in crate::server) type Causes = Map<u64, Cause>;

/// The request that is being handled, as the cause of the messages that wait.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Asked {
    cause: CauseId,
    connection: ConnId,
}

/// One more message waits because of this request. The first one is charged for it. `None` if nothing is charged
/// for it.
///
/// # Errors
/// There is no memory for that; nothing has changed.
pub(in crate::server) fn hold_cause<R>(
    causes: &mut Causes,
    connections: &Connections<R>,
    accounts: &mut Accounts,
    asked: Option<Asked>,
) -> Result<Option<CauseId>, NoMemory> {
    let Some(Asked { cause: id, connection }) = asked else { return Ok(None) };
    if let Some(cause) = causes.get_mut(id.0) {
        cause.waiting = cause.waiting.saturating_add(1);
        return Ok(Some(id));
    }
    let Some(domid) = connections.get(connection).map(|connection| connection.domid) else {
        return Ok(None);
    };
    causes.insert(id.0, Cause { connection, waiting: 1 })?;
    accounts.charge(domid, Quota::Outstanding, 1);
    Ok(Some(id))
}

impl<P: Platform> Server<P> {
    /// Gives the request of an asker a number; `None` if nothing is charged for it.
    pub(in crate::server) fn name_cause(&mut self, asker: Asker) -> Option<Asked> {
        if asker.privileged {
            return None;
        }
        let cause = CauseId(self.next_cause);
        self.next_cause = self.next_cause.wrapping_add(1);
        Some(Asked { cause, connection: asker.id })
    }

    /// One message less waits because of this request.
    pub(in crate::server) fn drop_cause(&mut self, id: CauseId) {
        let Some(cause) = self.causes.get_mut(id.0) else { return };
        cause.waiting = cause.waiting.saturating_sub(1);
        if cause.waiting > 0 {
            return;
        }
        let asker = cause.connection;
        let _ = self.causes.remove(id.0);
        let Some(connection) = self.connections.get(asker) else { return };
        self.store.refund(connection.domid, Quota::Outstanding, 1);
        if connection.suspension == Some(Suspension::Outstanding) {
            self.mark_ready(asker);
        }
    }

    /// Settles the accounts after messages were written or dropped. None of them is left then.
    pub(in crate::server) fn settle_done(&mut self, done: &mut Done) {
        while let Some(released) = self.messages.settle(done) {
            self.release_message(released);
        }
    }

    fn release_message(&mut self, released: Released) {
        self.budget.spend(SETTLE_WORK);
        if let Some((domid, bytes)) = released.refund {
            self.store.refund(domid, Quota::Memory, bytes);
        }
        if let Some(cause) = released.cause {
            self.drop_cause(cause);
        }
    }

    /// Goes on with settling the accounts after queues were dropped as a whole.
    pub(in crate::server) fn empty_trash(&mut self) {
        while !self.budget.is_over() {
            let Some(released) = self.messages.settle(&mut self.trash) else { return };
            self.release_message(released);
        }
    }
}
