//! Admission by memory: what is begun can be finished.
//!
//! A request starts only if the heap has room for the most it can take. Requests that free memory or only look
//! at something may go on where others are refused, out of a reserve that nothing else touches; so an
//! administrator can always look around and clean up.

use super::Server;
use super::platform::Platform;
use crate::proto::request::Request;
use crate::proto::wire::PAYLOAD_MAX;

/// Kept for requests that free memory or only look. Enough for an administrator's `xenstore-rm`, which
/// uses a transaction, to remove ten thousand nodes at once.
const STANDING_RESERVE: usize = 512 * 1024;

/// The part of it that requests which only look leave to those that free.
const RESERVE_FOR_FREEING: usize = 64 * 1024;

/// The most that the server itself needs around a request: the request, its reply, and the
/// bookkeeping of a new connection or some queued messages.
const OWN_WORST_CASE: usize = 4 * PAYLOAD_MAX;

/// Below this nothing is even read.
const READ_NEEDS: usize = 2 * PAYLOAD_MAX;

/// What an event takes besides its payload.
const EVENT_OVERHEAD: usize = 256;

/// What a request does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Appetite {
    /// Afterwards there is more, or as much.
    Frees,
    /// It takes some for its reply.
    Looks,
    /// It can make the server hold more than before.
    Grows,
}

/// What a request does to memory. In a transaction even looking is remembered. Who is privileged may remove
/// in a transaction out of the reserve; he is trusted to end it.
fn appetite(request: &Request<'_>, in_transaction: bool, privileged: bool) -> Appetite {
    match request {
        Request::TransactionStart
        | Request::Rm { .. }
        | Request::TransactionEnd { commit: true }
            if privileged =>
        {
            Appetite::Frees
        }
        Request::Unwatch { .. }
        | Request::TransactionEnd { commit: false }
        | Request::ResetWatches
        | Request::Release { .. }
        | Request::Resume { .. } => Appetite::Frees,
        _ if in_transaction => Appetite::Grows,
        Request::Rm { .. } => Appetite::Frees,
        Request::Control { .. }
        | Request::Directory { .. }
        | Request::Read { .. }
        | Request::GetPerms { .. }
        | Request::GetDomainPath { .. }
        | Request::IsDomainIntroduced { .. }
        | Request::DirectoryPart { .. }
        | Request::GetFeature { .. }
        | Request::GetQuotaNames
        | Request::GetQuota { .. }
        | Request::SetQuota { .. } => Appetite::Looks,
        Request::Watch { .. }
        | Request::TransactionStart
        | Request::TransactionEnd { commit: true }
        | Request::Introduce { .. }
        | Request::Write { .. }
        | Request::Mkdir { .. }
        | Request::SetPerms { .. }
        | Request::SetTarget { .. }
        | Request::SetFeature { .. } => Appetite::Grows,
    }
}

impl<P: Platform> Server<P> {
    /// Whether there is memory for a request. If so, the store knows how much it may use.
    pub(super) fn admits(
        &mut self,
        request: &Request<'_>,
        in_transaction: bool,
        privileged: bool,
        payload_len: usize,
    ) -> bool {
        let needed = match appetite(request, in_transaction, privileged) {
            Appetite::Frees => OWN_WORST_CASE,
            Appetite::Looks => OWN_WORST_CASE.saturating_add(RESERVE_FOR_FREEING),
            Appetite::Grows => OWN_WORST_CASE
                .saturating_add(STANDING_RESERVE)
                .saturating_add(self.store.worst_case_bytes(payload_len)),
        };
        let admitted = self.platform.reserve(needed);
        self.limit_store(needed);
        admitted
    }

    /// Lets the store use what is there for something that no request asked for.
    pub(super) fn give_headroom(&mut self) {
        self.limit_store(OWN_WORST_CASE);
    }

    /// Tells the store how much it may allocate for what has no bound of its own, besides `needed`.
    fn limit_store(&mut self, needed: usize) {
        self.store.set_headroom(self.platform.heap().free.saturating_sub(needed));
    }
}

/// Whether there is memory to read a request from a ring at all.
pub(super) fn can_read<P: Platform>(platform: &mut P) -> bool {
    platform.reserve(READ_NEEDS)
}

/// Whether there is memory to queue an event.
pub(super) fn can_queue<P: Platform>(platform: &mut P, payload_len: usize) -> bool {
    platform.reserve(payload_len.saturating_add(EVENT_OVERHEAD).saturating_add(READ_NEEDS))
}

/// Whether there is memory for the image of a successor.
pub(super) fn can_upload<P: Platform>(platform: &mut P, size: usize) -> bool {
    platform.reserve(size.saturating_add(STANDING_RESERVE).saturating_add(OWN_WORST_CASE))
}

/// Whether there is memory to write the state down, which sorts so many ids.
pub(super) fn can_save<P: Platform>(platform: &mut P, ids: usize) -> bool {
    platform.reserve(ids.saturating_mul(16).saturating_add(OWN_WORST_CASE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_a_transaction_only_what_ends_it_is_free() {
        let rm = Request::Rm { path: b"/a" };
        assert_eq!(appetite(&rm, false, false), Appetite::Frees);
        assert_eq!(appetite(&rm, true, false), Appetite::Grows);
        assert_eq!(appetite(&rm, true, true), Appetite::Frees);
        let read = Request::Read { path: b"/a" };
        assert_eq!(appetite(&read, false, false), Appetite::Looks);
        assert_eq!(appetite(&read, true, true), Appetite::Grows);
        let end = |commit| Request::TransactionEnd { commit };
        assert_eq!(appetite(&end(false), true, false), Appetite::Frees);
        assert_eq!(appetite(&end(true), true, false), Appetite::Grows);
        assert_eq!(appetite(&end(true), true, true), Appetite::Frees);
    }
}
