//! The rules of each message type, one row each.
//!
//! A row says who may send the message, whether it belongs to a transaction, what it does to memory, and whether
//! it can make others' transactions fail. A new type does not compile until it has a row. [`Request::parse`] has
//! its arguments and [`Server::handle`](crate::server::Server) its effect; both have a row for each type, too.
//!
//! Source: `docs/misc/xenstore.txt`; for who may send what, and what names a transaction, "C xenstored 4.22 behaviour"
//! (`docs/protocol.md`).

use crate::proto::request::Request;
use crate::proto::wire::Kind;
use crate::server::admin::Command;

/// Who may send a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Who {
    Everybody,
    /// The privileged domain. Others get EACCES.
    Privileged,
}

/// What the transaction id in a request's header means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Within {
    /// The transaction that the request belongs to. It must be open, or the answer is ENOENT.
    Transaction,
    /// Nothing: the request is about the live store in any case.
    Nothing,
}

/// What a request does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum MemoryUse {
    /// Afterwards there is more free memory, or as much.
    Frees,
    /// It takes some for its reply.
    Looks,
    /// It can make the server hold more than before.
    Grows,
}

/// What a type does to memory. That can depend on who sends it and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Memory {
    /// The same for everybody and everywhere.
    Always(MemoryUse),
    /// It looks at a node. A guest's transaction remembers that.
    Looks,
    /// It removes a node. A guest's transaction remembers that, too. The privileged domain removes out of the
    /// reserve, and is trusted to end the transaction.
    Removes,
    /// It makes something, or changes it.
    Makes,
    /// It begins a transaction, or commits one. For the privileged domain that is a way to remove.
    Transaction,
    /// What the command that it names does (`src/server/admin/control.rs`).
    Command,
}

/// Whether a request that succeeds can make others' transactions fail. A guest pays for that with its write rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Conflicts {
    Nobody,
    /// Whoever has a transaction open, if it is sent outside of one.
    AtOnce,
    /// Whoever else has a transaction open, if it commits.
    AtCommit,
}

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) struct Rules {
    pub(in crate::server) who: Who,
    pub(in crate::server) within: Within,
    pub(in crate::server) memory: Memory,
    pub(in crate::server) conflicts: Conflicts,
}

impl Rules {
    /// The row of a type; `None` for the two that only a server sends.
    #[rustfmt::skip]
    pub(in crate::server) const fn of(kind: Kind) -> Option<Self> {
        use Conflicts::{AtCommit, AtOnce, Nobody};
        use Who::{Everybody, Privileged};
        use Within::{Nothing, Transaction};
        const LOOKS: Memory = Memory::Looks;
        const FREES: Memory = Memory::Always(MemoryUse::Frees);
        let (who, within, memory, conflicts) = match kind {
            Kind::Directory          => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::DirectoryPart      => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::Read               => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::GetPerms           => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::Write              => (Everybody,  Transaction, Memory::Makes,       AtOnce),
            Kind::Mkdir              => (Everybody,  Transaction, Memory::Makes,       AtOnce),
            Kind::Rm                 => (Everybody,  Transaction, Memory::Removes,     AtOnce),
            Kind::SetPerms           => (Everybody,  Transaction, Memory::Makes,       AtOnce),
            Kind::TransactionStart   => (Everybody,  Transaction, Memory::Transaction, Nobody),
            Kind::TransactionEnd     => (Everybody,  Transaction, Memory::Transaction, AtCommit),
            Kind::Watch              => (Everybody,  Nothing,     Memory::Makes,       Nobody),
            Kind::Unwatch            => (Everybody,  Nothing,     FREES,               Nobody),
            Kind::ResetWatches       => (Everybody,  Transaction, FREES,               Nobody),
            Kind::GetDomainPath      => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::GetFeature         => (Everybody,  Transaction, LOOKS,               Nobody),
            Kind::SetFeature         => (Privileged, Transaction, Memory::Makes,       Nobody),
            Kind::GetQuota           => (Privileged, Transaction, LOOKS,               Nobody),
            Kind::SetQuota           => (Privileged, Transaction, LOOKS,               Nobody),
            Kind::IsDomainIntroduced => (Privileged, Transaction, LOOKS,               Nobody),
            Kind::Introduce          => (Privileged, Transaction, Memory::Makes,       Nobody),
            Kind::Release            => (Privileged, Transaction, FREES,               Nobody),
            Kind::Resume             => (Privileged, Transaction, FREES,               Nobody),
            Kind::SetTarget          => (Privileged, Transaction, Memory::Makes,       Nobody),
            Kind::Control            => (Privileged, Transaction, Memory::Command,     Nobody),
            Kind::WatchEvent | Kind::Error => return None,
        };
        Some(Self { who, within, memory, conflicts })
    }

    /// What a request of this type does to memory.
    pub(in crate::server) fn memory_use(
        self,
        request: &Request<'_>,
        in_transaction: bool,
        privileged: bool,
    ) -> MemoryUse {
        let remembers = in_transaction && !privileged;
        match self.memory {
            Memory::Always(memory_use) => memory_use,
            Memory::Looks if remembers => MemoryUse::Grows,
            Memory::Looks => MemoryUse::Looks,
            Memory::Removes if remembers => MemoryUse::Grows,
            Memory::Removes => MemoryUse::Frees,
            Memory::Makes => MemoryUse::Grows,
            Memory::Transaction
                if privileged || *request == (Request::TransactionEnd { commit: false }) =>
            {
                MemoryUse::Frees
            }
            Memory::Transaction => MemoryUse::Grows,
            Memory::Command => {
                let Request::Control { command, .. } = request else { return MemoryUse::Looks };
                Command::memory_use(command)
            }
        }
    }

    /// Whether a request of this type, which has changed the store, can have made others' transactions fail; `open` is
    /// how many were open when it was sent.
    pub(in crate::server) fn has_conflicted(
        self,
        request: &Request<'_>,
        in_transaction: bool,
        open: usize,
    ) -> bool {
        match self.conflicts {
            Conflicts::Nobody => false,
            Conflicts::AtOnce => !in_transaction && open > 0,
            // One of them is its own.
            Conflicts::AtCommit => {
                *request == (Request::TransactionEnd { commit: true }) && open > 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_use(
        request: &Request<'_>,
        kind: Kind,
        in_transaction: bool,
        privileged: bool,
    ) -> MemoryUse {
        Rules::of(kind).unwrap().memory_use(request, in_transaction, privileged)
    }

    #[test]
    fn inside_a_transaction_only_what_ends_it_is_free() {
        let rm = Request::Rm { path: b"/a" };
        assert_eq!(memory_use(&rm, Kind::Rm, false, false), MemoryUse::Frees);
        assert_eq!(memory_use(&rm, Kind::Rm, true, false), MemoryUse::Grows);
        assert_eq!(memory_use(&rm, Kind::Rm, true, true), MemoryUse::Frees);
        let read = Request::Read { path: b"/a" };
        assert_eq!(memory_use(&read, Kind::Read, false, false), MemoryUse::Looks);
        assert_eq!(memory_use(&read, Kind::Read, true, false), MemoryUse::Grows);
        assert_eq!(memory_use(&read, Kind::Read, true, true), MemoryUse::Looks);
        let write = Request::Write { path: b"/a", value: b"" };
        assert_eq!(memory_use(&write, Kind::Write, true, true), MemoryUse::Grows);
        let end = |commit, privileged| {
            let request = Request::TransactionEnd { commit };
            memory_use(&request, Kind::TransactionEnd, true, privileged)
        };
        assert_eq!(end(false, false), MemoryUse::Frees);
        assert_eq!(end(true, false), MemoryUse::Grows);
        assert_eq!(end(true, true), MemoryUse::Frees);
    }

    #[test]
    fn a_guest_cannot_send_what_is_about_other_domains() {
        let privileged = Kind::ALL
            .into_iter()
            .filter(|kind| Rules::of(*kind).is_some_and(|rules| rules.who == Who::Privileged));
        let expected = [
            Kind::Control,
            Kind::Introduce,
            Kind::Release,
            Kind::IsDomainIntroduced,
            Kind::Resume,
            Kind::SetTarget,
            Kind::SetFeature,
            Kind::GetQuota,
            Kind::SetQuota,
        ];
        assert!(privileged.eq(expected));
    }

    #[test]
    fn what_only_a_server_sends_has_no_rules() {
        let without = Kind::ALL.into_iter().filter(|kind| Rules::of(*kind).is_none());
        assert!(without.eq([Kind::WatchEvent, Kind::Error]));
    }

    #[test]
    fn a_commit_disturbs_others_and_not_itself() {
        let rules = Rules::of(Kind::TransactionEnd).unwrap();
        let commit =
            |open| rules.has_conflicted(&Request::TransactionEnd { commit: true }, true, open);
        assert!(!commit(1) && commit(2));
        assert!(!rules.has_conflicted(&Request::TransactionEnd { commit: false }, true, 2));
        let rules = Rules::of(Kind::Mkdir).unwrap();
        let mkdir = Request::Mkdir { path: b"/a" };
        assert!(rules.has_conflicted(&mkdir, false, 1));
        assert!(!rules.has_conflicted(&mkdir, true, 1) && !rules.has_conflicted(&mkdir, false, 0));
    }
}
