//! Telling watches: which events a change causes, and who may know.

use super::domain::Accounts;
use super::perms::{Access, Party};
use super::tree::Tree;
use super::watch::{Class, Match, Watches};
use crate::mem::Budget;
use crate::proto::id::ConnId;
use crate::proto::wire::PAYLOAD_MAX;
use alloc::vec::Vec;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Who takes the watch events, one at a time.
pub trait Post {
    /// Hands over an event for a connection: the path as that client spells it, and the token. Together with two NULs
    /// they are at most [`PAYLOAD_MAX`] bytes. `accounts` is where the receiver pays.
    fn event(&mut self, accounts: &mut Accounts, conn: ConnId, path: &[u8], token: &[u8]);
}

/// For what causes no events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nobody;

impl Post for Nobody {
    fn event(&mut self, _: &mut Accounts, _: ConnId, _: &[u8], _: &[u8]) {}
}

/// Units of work that an event takes.
const EVENT_WORK: u64 = 400;

/// What a connection is to the store.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) party: Party,
    /// The last transaction id that was given out.
    pub(super) last_tx: u32,
    /// Its open transactions.
    pub(super) open: hashbrown::HashSet<crate::proto::id::TxId, FixedState>,
}

/// All connections.
pub(super) type Conns = HashMap<ConnId, Conn, FixedState>;

/// What an event costs besides its payload.
const EVENT_BYTES: usize = 96;

/// Tells watches, as far as memory reaches.
#[derive(Debug)]
pub(super) struct Bell<'a, P> {
    pub(super) watches: &'a Watches,
    pub(super) conns: &'a Conns,
    pub(super) post: &'a mut P,
    pub(super) budget: &'a mut Budget,
    /// Scratch space.
    pub(super) found: &'a mut Vec<Match>,
    /// Bytes that the request may still allocate.
    pub(super) headroom: &'a mut usize,
    /// Events that were dropped because memory did not reach.
    pub(super) dropped: &'a mut u64,
}

/// Matches for which room is kept from one event to the next.
const FOUND_KEPT: usize = 32;

impl<P: Post> Bell<'_, P> {
    /// Takes bytes out of the headroom, or none if they are more than it has.
    pub(super) fn spend(&mut self, bytes: usize) -> bool {
        match self.headroom.checked_sub(bytes) {
            Some(left) => {
                *self.headroom = left;
                true
            }
            None => false,
        }
    }

    /// Whether there is a watch below a path.
    pub(super) fn any_below(&self, path: &[u8]) -> bool {
        self.watches.any_below(path)
    }

    /// Queues the events of a change at `path`, for every matching watch of a connection that may read
    /// by one of the permission lists: those of the node before and after, and that of the node above.
    pub(super) fn ring(&mut self, tree: &mut Tree, path: &[u8], class: Class, lists: &[u32]) {
        let mut found = core::mem::take(self.found);
        found.clear();
        self.watches.matches(path, class, &mut found);
        self.tell(tree, path, &found, lists);
        // The room for a crowd is given back; what a few need is kept.
        *self.found = if found.capacity() > FOUND_KEPT { Vec::new() } else { found };
    }

    /// As [`ring`](Self::ring), for watches already found.
    pub(super) fn tell(&mut self, tree: &mut Tree, path: &[u8], found: &[Match], lists: &[u32]) {
        let mut last: Option<(ConnId, bool)> = None;
        for Match { conn, watch, .. } in found {
            let may_read = match last {
                Some((same, may_read)) if same == *conn => may_read,
                _ => self.may_read(tree, *conn, lists),
            };
            last = Some((*conn, may_read));
            let Some(watch) = self.watches.get(*watch).filter(|_| may_read) else { continue };
            // A client that registered a relative path is told relative paths.
            let path = path.get(watch.home..).unwrap_or(path);
            let size = path.len().saturating_add(watch.token.len()).saturating_add(2);
            if size > PAYLOAD_MAX {
                continue;
            }
            if !self.spend(size.saturating_add(EVENT_BYTES)) {
                *self.dropped = self.dropped.saturating_add(1);
                continue;
            }
            self.post.event(&mut tree.domains, *conn, path, &watch.token);
            self.budget.spend(EVENT_WORK);
        }
    }

    fn may_read(&self, tree: &Tree, conn: ConnId, lists: &[u32]) -> bool {
        self.conns.get(&conn).is_some_and(|conn| {
            let may = |list: &u32| tree.rights(*list, &conn.party).access.includes(Access::Read);
            conn.party.privileged || lists.iter().any(may)
        })
    }
}
