//! The database: nodes, permissions, transactions, watches, quotas. State without I/O or clock.
//!
//! [`Store`] is the whole of it; nothing else changes anything. A request names its connection and
//! transaction, appends its reply to a buffer, and hands the watch events it causes to a [`Post`], one at a time. What a request costs depends on the depth of its path and on what it touches, never on
//! how many nodes, watches, connections or transactions there are.
//!
//! Rooms: `path` and `perms` are rules without state; `tree` holds the nodes, `domain` the accounts, `watch` the watches, `transaction` the overlays;
//! `session` is what a request does with them, `events` whom it tells, `check` the recount of it all.

#![forbid(unsafe_code)]
// Nothing that a client sends may reach a panic: whoever wants one here has to say why.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
// Memory may be refused: .clippy.toml has the calls that do not say so.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)
)]

mod check;
mod deaths;
mod domain;
mod events;
mod generation;
mod handover;
mod inspect;
mod path;
pub mod perms;
pub mod quota;
mod removal;
mod restore;
mod row;
mod save;
mod session;
mod sums;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;
mod watch;

pub use domain::{Accounts, Domids};
pub use events::Post;
pub use inspect::Inspection;
pub use perms::Party;
pub use restore::Restoring;
pub use sums::Sums;

use crate::mem::{Budget, NIL, NoMemory, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, TxId};
use alloc::vec::Vec;
use deaths::Cleanup;
use events::{Announcement, Conn, Conns, Nobody, Notifier, Work};
use path::{Names, Path};
use perms::Entry;
use quota::{Quota, Quotas};
use session::Session;
use transaction::{Transactions, WayAhead};
use tree::{ROOT, Tree};
use watch::{Watches, watch_bytes};

/// Who asks, and in which transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The connection.
    pub conn: ConnId,
    /// The transaction, [`TxId::NONE`] for none.
    pub tx: TxId,
}

/// What a request looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// The names of the children.
    Directory,
    /// The same, from this byte of the list on.
    DirectoryPart(i64),
    /// The value.
    Read,
    /// The permissions.
    GetPerms,
}

/// How much memory the server holds for a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Less than its limits say.
    Fine,
    /// So many bytes, more than the limit at which the administrator is warned.
    Soft {
        /// Bytes held.
        used: u32,
        /// The limit.
        limit: u32,
    },
    /// More than it may have.
    Over,
}

/// The two special names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// `@introduceDomain`: a domain was introduced.
    IntroduceDomain,
    /// `@releaseDomain`: a domain shut down or went away.
    ReleaseDomain,
}

impl Special {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IntroduceDomain => "@introduceDomain",
            Self::ReleaseDomain => "@releaseDomain",
        }
    }
}

/// Everything that the server knows.
///
/// Paths are taken as the client spelled them; relative ones start at the directory of the connection's
/// own domain. The privileged domain is tracked from the start.
#[derive(Debug)]
pub struct Store {
    tree: Tree,
    watches: Watches,
    conns: Conns,
    transactions: Transactions,
    /// Scratch space for the path of a request.
    spelling: Vec<u8>,
    headroom: usize,
    dropped: u64,
    /// An announcement that was not finished, until whoever caused it has seen to it.
    rest: Option<Announcement>,
    /// The first and the last connection that is gone and has something left.
    gone: Option<(ConnId, ConnId)>,
    cleanup: Cleanup,
}

impl Store {
    /// The initial tree: `/`, `/tool` and `/tool/xenstored`, owned by `privileged`.
    ///
    /// `seed` keys the hash tables, `quotas` are the limits that a domain starts with.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(seed: u64, privileged: DomId, quotas: Quotas) -> Result<Self, NoMemory> {
        let mut store = Self::bare(seed, privileged, quotas)?;
        let list = store.tree.node(ROOT).map_or(NIL, |root| root.list);
        let mut parent = ROOT;
        for name in [&b"tool"[..], b"xenstored"] {
            store.tree.retain_list(list);
            parent = store.tree.create(parent, name, &[], list)?;
        }
        Ok(store)
    }

    /// Nothing but the root and the special nodes.
    fn bare(seed: u64, privileged: DomId, quotas: Quotas) -> Result<Self, NoMemory> {
        Ok(Self {
            tree: Tree::new(seed, Accounts::new(privileged, quotas))?,
            watches: Watches::new(seed),
            conns: Conns::new(seed),
            transactions: Transactions::new(seed),
            spelling: Vec::new(),
            headroom: usize::MAX,
            dropped: 0,
            rest: None,
            gone: None,
            cleanup: Cleanup::default(),
        })
    }

    // Domains.

    /// The domain that may do everything.
    #[must_use]
    pub fn privileged(&self) -> DomId {
        self.tree.domains.privileged
    }

    /// Whether the domain is tracked and has not been [forgotten](Self::forget).
    #[must_use]
    pub fn knows(&self, domid: DomId) -> bool {
        self.tree.domains.knows(domid)
    }

    /// Starts tracking a domain that exists; nothing changes if it is tracked already. It must not be
    /// [dying](Self::is_dying).
    ///
    /// # Errors
    /// There is no memory.
    pub fn learn(&mut self, domid: DomId) -> Result<(), NoMemory> {
        self.tree.domains.learn(domid)
    }

    /// Every tracked domain, ascending.
    #[must_use]
    pub fn domids(&self) -> Domids {
        self.tree.domains.ids()
    }

    /// What a tracked domain uses of something now, and the most it ever did.
    #[must_use]
    pub fn usage(&self, domid: DomId, quota: Quota) -> Option<(u32, u32)> {
        let domain = self.tree.domains.get(domid)?;
        Some((domain.used.get(quota), domain.peak.get(quota)))
    }

    /// Forgets the most that a domain ever used: from now on it is what it uses now.
    pub fn reset_peak(&mut self, domid: DomId) {
        if let Some(domain) = self.tree.domains.get_mut(domid) {
            domain.peak = domain.used;
        }
    }

    /// How much memory is held for a domain, by its limits.
    #[must_use]
    pub fn memory_level(&self, domid: DomId) -> Level {
        let Some(domain) = self.tree.domains.get(domid) else { return Level::Fine };
        let used = domain.used.get(Quota::Memory);
        if !domain.quotas.allows(Quota::Memory, used as usize) {
            Level::Over
        } else if !domain.quotas.allows(Quota::SoftMemory, used as usize) {
            Level::Soft { used, limit: domain.quotas.get(Quota::SoftMemory) }
        } else {
            Level::Fine
        }
    }

    /// A limit of a tracked domain, or with `None` the one that new domains start with.
    #[must_use]
    pub fn quota(&self, domid: Option<DomId>, quota: Quota) -> Option<u32> {
        let quotas = match domid {
            Some(domid) => &self.tree.domains.get(domid)?.quotas,
            None => &self.tree.domains.initial,
        };
        Some(quotas.get(quota))
    }

    /// Changes a limit; `false` if the domain is not tracked.
    pub fn set_quota(&mut self, domid: Option<DomId>, quota: Quota, value: u32) -> bool {
        let quotas = match domid {
            Some(domid) => self.tree.domains.get_mut(domid).map(|domain| &mut domain.quotas),
            None => Some(&mut self.tree.domains.initial),
        };
        quotas.map(|quotas| quotas.set(quota, value)).is_some()
    }

    /// Adds to what a domain uses of something that the server holds for it: requests outstanding,
    /// or bytes of messages queued. A domain that is not tracked is ignored.
    pub fn charge(&mut self, domid: DomId, quota: Quota, amount: usize) {
        self.tree.domains.charge(domid, quota, amount);
    }

    /// Takes back a [`charge`](Self::charge).
    pub fn refund(&mut self, domid: DomId, quota: Quota, amount: usize) {
        self.tree.domains.refund(domid, quota, amount);
    }

    /// Whether a domain may use `more` of something in addition to what it uses.
    #[must_use]
    pub fn allows(&self, domid: DomId, quota: Quota, more: usize) -> bool {
        self.tree.domains.allows(domid, quota, more)
    }

    /// The quota that was last found to be used up since this was last asked: after a refusal, the one for
    /// want of which it was refused.
    #[must_use]
    pub fn take_refused(&self) -> Option<Quota> {
        self.tree.domains.take_refused()
    }

    /// The accounts of the domains, for whoever hands events on.
    pub fn accounts_mut(&mut self) -> &mut Accounts {
        &mut self.tree.domains
    }

    // Connections.

    /// A new connection.
    ///
    /// # Errors
    /// There is no memory.
    pub fn connect(&mut self, conn: ConnId, party: Party) -> Result<(), NoMemory> {
        self.conns.insert(conn, Conn::new(party, 0))
    }

    /// Gives the connection the rights of another domain besides its own.
    pub fn set_target(&mut self, conn: ConnId, target: Option<DomId>) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.party.target = target;
        }
    }

    /// Who is behind a connection.
    #[must_use]
    pub fn party(&self, conn: ConnId) -> Option<Party> {
        self.conns.get(&conn).filter(|conn| conn.gone.is_none()).map(|conn| conn.party)
    }

    // Requests. A reply is appended to `reply`; after an error nothing was.

    /// DIRECTORY.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn directory(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.look_at_once(caller, Look::Directory, path, reply)
    }

    /// DIRECTORY_PART, from byte `offset` of the list on; an offset outside of it is its end.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn directory_part(
        &mut self,
        caller: Caller,
        path: &[u8],
        offset: i64,
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.look_at_once(caller, Look::DirectoryPart(offset), path, reply)
    }

    /// READ.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn read(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.look_at_once(caller, Look::Read, path, reply)
    }

    /// GET_PERMS.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn get_perms(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.look_at_once(caller, Look::GetPerms, path, reply)
    }

    fn look_at_once(
        &mut self,
        caller: Caller,
        what: Look,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.look(caller, what, path, reply, &mut Budget::endless()).map(|_done| ())
    }

    /// A request that looks at a node. With [`More`](Progress::More) the budget did not reach and nothing was appended:
    /// the same is asked again in a later turn, and nothing else of this connection before.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`, `EACCES`; of DIRECTORY `E2BIG` if the list does not fit a message; in a transaction `ENOSPC` and
    /// `ENOMEM`.
    pub fn look(
        &mut self,
        caller: Caller,
        what: Look,
        path: &[u8],
        reply: &mut Vec<u8>,
        budget: &mut Budget,
    ) -> Result<Progress, XsError> {
        let names = if what == Look::GetPerms { Names::OrSpecial } else { Names::Ordinary };
        self.with(caller, path, names, budget, &mut Nobody, |session, path| match what {
            Look::Directory => session.directory(path, reply),
            Look::DirectoryPart(offset) => session.directory_part(path, offset, reply),
            Look::Read => session.read(path, reply),
            Look::GetPerms => session.get_perms(path, reply),
        })
    }

    /// Whether the last request of a connection has to be asked again, in a later turn: it was not begun.
    #[must_use]
    pub fn is_asked_again(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|conn| conn.way.is_some() || conn.ahead.is_some())
    }

    /// WRITE.
    ///
    /// # Errors
    /// `EINVAL`, `EACCES`; `ENOSPC` or `ENOMEM` where a quota or memory refuses.
    pub fn write(
        &mut self,
        caller: Caller,
        path: &[u8],
        value: &[u8],
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Result<Progress, XsError> {
        self.change(caller, path, Names::Ordinary, budget, post, |session, path| {
            session.write(path, value)
        })
    }

    /// MKDIR.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn mkdir(
        &mut self,
        caller: Caller,
        path: &[u8],
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Result<Progress, XsError> {
        self.change(caller, path, Names::Ordinary, budget, post, |session, path| {
            session.mkdir(path)
        })
    }

    /// RM.
    ///
    /// # Errors
    /// `EINVAL`, also for `/`; `EACCES`; `ENOENT` if not even the node above exists.
    pub fn rm(
        &mut self,
        caller: Caller,
        path: &[u8],
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Result<Progress, XsError> {
        self.change(caller, path, Names::Ordinary, budget, post, |session, path| session.rm(path))
    }

    /// The first check of SET_PERMS: whether the caller may set that many entries.
    ///
    /// # Errors
    /// `ENOSPC` if not.
    pub fn check_perms_count(&self, conn: ConnId, count: usize) -> Result<(), XsError> {
        let party = self.party(conn).ok_or(XsError::EINVAL)?;
        let domain = self.tree.domains.get(party.domid);
        let quota = Quota::NodePermissions;
        let within = domain
            .is_none_or(|domain| self.tree.domains.note(quota, domain.quotas.allows(quota, count)));
        (party.privileged || within).then_some(()).ok_or(XsError::ENOSPC)
    }

    /// SET_PERMS, after the entries have been parsed. Entries of domains that are not tracked are
    /// stored as stale; the server tracks those that exist before it calls this.
    ///
    /// # Errors
    /// `ENOENT` if the owner does not exist; `EINVAL`, also for "all domains" as owner; `EACCES` without
    /// ownership; `EPERM` where an unprivileged owner gives the node away; `ENOSPC`.
    pub fn set_perms(
        &mut self,
        caller: Caller,
        path: &[u8],
        entries: &[Entry],
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Result<Progress, XsError> {
        let entries = session::mark_stale(&self.tree, entries)?;
        match entries.first() {
            Some(owner) if owner.domid == DomId::ANY => return Err(XsError::EINVAL),
            Some(owner) if owner.stale => return Err(XsError::ENOENT),
            Some(_) => {}
            None => return Err(XsError::EINVAL),
        }
        self.change(caller, path, Names::OrSpecial, budget, post, |session, path| {
            session.set_perms(path, &entries)
        })
    }

    /// WATCH. The server queues the reply, then the first event: the path as spelled and the token.
    ///
    /// # Errors
    /// `EINVAL`; `EEXIST` if the connection has a watch with this path and token; `ENOSPC` or `ENOMEM`
    /// where a quota or memory refuses.
    pub fn watch(
        &mut self,
        conn: ConnId,
        path: &[u8],
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<(), XsError> {
        let budget = &mut Budget::endless();
        self.watch_some(conn, path, token, depth, budget).map(|_done| ())
    }

    /// As [`watch`](Self::watch). A path of many levels takes longer than the budget reaches: with
    /// [`More`](Progress::More) the same is asked again in a later turn, and nothing else of this connection before.
    ///
    /// # Errors
    /// As there.
    pub fn watch_some(
        &mut self,
        conn: ConnId,
        path: &[u8],
        token: &[u8],
        depth: Option<u32>,
        budget: &mut Budget,
    ) -> Result<Progress, XsError> {
        let domid = self.party(conn).ok_or(XsError::EINVAL)?.domid;
        let path = self.path(conn, path, Names::OrSpecial)?;
        let is_long = path.is_deep();
        let bytes = watch_bytes(path.bytes(), token);
        let watches = self.allows(domid, Quota::Watches, 1);
        let is_allowed = watches && self.allows(domid, Quota::Memory, bytes);
        if !is_long || !is_allowed {
            self.abandon_request(conn);
            if self.watches.find(&self.tree, conn, path.bytes(), token).is_some() {
                return Err(XsError::EEXIST);
            }
        }
        if !is_allowed {
            return Err(if watches { XsError::ENOMEM } else { XsError::ENOSPC });
        }
        let state = self.conns.get_mut(&conn).ok_or(XsError::EINVAL)?;
        if is_long {
            let ahead = state.ahead.take();
            let made = self.watches.make_place_some(&mut self.tree, path.bytes(), ahead, budget)?;
            let place = match made {
                Ok(place) => place,
                Err(ahead) => {
                    state.ahead = Some(ahead);
                    return Ok(Progress::More);
                }
            };
            if self.watches.find_at(conn, place, token).is_some() {
                return Err(XsError::EEXIST);
            }
            let (whose, at) = ((conn, state), (&path, place));
            self.watches.add_at(&mut self.tree, whose, at, token, depth)?;
        } else {
            self.watches.add(&mut self.tree, (conn, state), &path, token, depth)?;
        }
        self.tree.domains.take(domid, Quota::Watches, 1);
        self.tree.domains.take(domid, Quota::Memory, bytes);
        Ok(Progress::Done)
    }

    /// A request that was to be [asked again](Self::is_asked_again) is not: it was answered without the store, or its
    /// connection starts over. How far it had come is forgotten, since the next one is another.
    pub fn abandon_request(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.way = None;
        if let Some(ahead) = state.ahead.take() {
            self.watches.give_up(&mut self.tree, ahead);
        }
    }

    /// UNWATCH. Events already queued stay queued.
    ///
    /// # Errors
    /// `EINVAL`; `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        self.unwatch_some(conn, path, token, &mut Budget::endless()).map(|_done| ())
    }

    /// As [`unwatch`](Self::unwatch). A path of many levels takes longer than the budget reaches, as in
    /// [`watch_some`](Self::watch_some).
    ///
    /// # Errors
    /// As there.
    pub fn unwatch_some(
        &mut self,
        conn: ConnId,
        path: &[u8],
        token: &[u8],
        budget: &mut Budget,
    ) -> Result<Progress, XsError> {
        let path = self.path(conn, path, Names::OrSpecial)?;
        let (tree, watches) = (&mut self.tree, &mut self.watches);
        let found = if path.is_deep() {
            let state = self.conns.get_mut(&conn).ok_or(XsError::EINVAL)?;
            let found = watches.find_place_some(tree, path.bytes(), state.ahead.take(), budget);
            let place = match found {
                Ok(place) => place.ok_or(XsError::ENOENT)?,
                Err(ahead) => {
                    state.ahead = Some(ahead);
                    return Ok(Progress::More);
                }
            };
            // It may have been kept for this request alone.
            let found = watches.find_at(conn, place, token);
            if found.is_none() {
                watches.drop_unused(tree, place);
            }
            found
        } else {
            watches.find(tree, conn, path.bytes(), token)
        };
        self.remove_watch(conn, found.ok_or(XsError::ENOENT)?, budget);
        Ok(Progress::Done)
    }

    /// Removes the watch that a connection has set last, of which it does not know yet.
    pub fn unwatch_last(&mut self, conn: ConnId, budget: &mut Budget) {
        let last = self.conns.get(&conn).map_or(NIL, |state| state.watches.1);
        self.remove_watch(conn, last, budget);
    }

    /// Tells a connection of each of its watches, as when it was set: it may have missed an event.
    pub fn ring_all(&mut self, conn: ConnId, post: &mut impl Post) {
        let Self { tree, watches, conns, .. } = self;
        let Some(state) = conns.get(&conn) else { return };
        let mut path = Vec::new();
        for watch in watches.of(state) {
            path.clear();
            // Without memory for it nobody can be told.
            if watches.path(tree, watch, &mut path).is_ok() {
                let spelled = path.get(watch.home()..).unwrap_or(&path);
                post.event(&mut tree.domains, conn, spelled, &watch.token);
            }
        }
    }

    fn remove_watch(&mut self, conn: ConnId, watch: u32, budget: &mut Budget) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        let bytes = self.watches.remove(&mut self.tree, state, watch, budget);
        self.tree.domains.give_back(state.party.domid, Quota::Watches, 1);
        self.tree.domains.give_back(state.party.domid, Quota::Memory, bytes);
    }

    // Memory.

    /// An upper bound of the heap bytes that a request with this many bytes of payload needs, apart
    /// from what is limited by [`set_headroom`](Self::set_headroom).
    #[must_use]
    pub fn worst_case_bytes(&self, payload: usize) -> usize {
        // Every second byte of a path can start a node.
        let nodes = payload.saturating_mul(Tree::NODE_COST / 2).saturating_add(payload);
        nodes
            .saturating_add(payload.saturating_mul(4))
            .saturating_add(Tree::FIXED_COST)
            .saturating_add(Watches::FIXED_COST)
    }

    /// How many bytes the next request may allocate for what has no bound of its own: the nodes it touches in
    /// a transaction and the events it causes. Beyond it transactions get ENOMEM and events are
    /// dropped and counted.
    pub fn set_headroom(&mut self, bytes: usize) {
        self.headroom = bytes;
    }

    /// Events dropped so far for want of memory.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.dropped
    }

    // Figures.

    /// A number that changes whenever a node does.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.tree.generation()
    }

    /// How many nodes there are, the two special ones included.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.tree.len()
    }

    /// How many watches there are.
    #[must_use]
    pub fn watch_count(&self) -> usize {
        self.watches.len()
    }

    // Helpers.

    /// The canonical form of a path that a connection spelled.
    fn path(&self, conn: ConnId, raw: &[u8], names: Names) -> Result<Path, XsError> {
        let party = self.party(conn).ok_or(XsError::EINVAL)?;
        Path::new(Vec::new(), raw, names, party.domid, self.path_max(&party))
    }

    /// The longest path of a party; 0 for any.
    fn path_max(&self, party: &Party) -> u32 {
        let domain = self.tree.domains.get(party.domid).filter(|_| !party.privileged);
        domain.map_or(0, |domain| domain.quotas.get(Quota::PathMax))
    }

    /// Changes something at a path that a connection spelled.
    fn change<P: Post>(
        &mut self,
        caller: Caller,
        raw: &[u8],
        names: Names,
        budget: &mut Budget,
        post: &mut P,
        act: impl FnOnce(&mut Session<'_, P>, &Path) -> Result<(), XsError>,
    ) -> Result<Progress, XsError> {
        if self.is_busy(caller.conn) {
            // Nobody asks before the last request is done; whoever does, waits.
            let _done = self.go_on(caller.conn, &mut Budget::endless(), post);
        }
        let progress = self.with(caller, raw, names, budget, post, act)?;
        Ok(if self.keep_rest(caller.conn) { Progress::More } else { progress })
    }

    /// Does something in the session of a connection. With [`More`](Progress::More) the connection has work, or the way of
    /// its request was too long for one turn.
    fn with<P: Post>(
        &mut self,
        caller: Caller,
        raw: &[u8],
        names: Names,
        budget: &mut Budget,
        post: &mut P,
        act: impl FnOnce(&mut Session<'_, P>, &Path) -> Result<(), XsError>,
    ) -> Result<Progress, XsError> {
        let party = self.party(caller.conn).ok_or(XsError::EINVAL)?;
        let max = self.path_max(&party);
        let path = Path::new(core::mem::take(&mut self.spelling), raw, names, party.domid, max)?;
        let tx = match caller.tx {
            TxId::NONE => None,
            id => Some(self.transactions.get_mut(caller.conn, id).ok_or(XsError::ENOENT)?),
        };
        let way = if tx.is_some() && path.is_deep() {
            let ahead = self.conns.get_mut(&caller.conn).and_then(|conn| conn.way.take());
            Some(ahead.unwrap_or(WayAhead::BEGIN))
        } else {
            None
        };
        let notifier = Notifier {
            watches: &mut self.watches,
            conns: &self.conns,
            post,
            budget,
            rest: &mut self.rest,
            headroom: &mut self.headroom,
            dropped: &mut self.dropped,
        };
        let (conn, tree, mut work) = (caller.conn, &mut self.tree, Work::Nothing);
        let mut session =
            Session { conn, tree, notifier, party, tx, work: &mut work, way, again: false };
        let result = act(&mut session, &path);
        let way = session.way.filter(|_| session.again);
        self.spelling = path.into_room();
        if way.is_some()
            && let Some(state) = self.conns.get_mut(&conn)
        {
            state.way = way;
            return Ok(Progress::More);
        }
        result?;
        // Moved only if it is something, since it is large.
        if !matches!(work, Work::Nothing)
            && let Some(state) = self.conns.get_mut(&conn)
        {
            state.work = work;
            return Ok(Progress::More);
        }
        Ok(Progress::Done)
    }

    /// Does something in an open transaction that a request of a connection has begun.
    fn in_transaction<P: Post, T>(
        &mut self,
        conn: ConnId,
        handle: u32,
        budget: &mut Budget,
        post: &mut P,
        act: impl FnOnce(&mut Session<'_, P>) -> T,
    ) -> Option<T> {
        let party = self.conns.get(&conn)?.party;
        let tx = self.transactions.at(handle);
        let notifier = Notifier {
            watches: &mut self.watches,
            conns: &self.conns,
            post,
            budget,
            rest: &mut self.rest,
            headroom: &mut self.headroom,
            dropped: &mut self.dropped,
        };
        let (tree, mut work) = (&mut self.tree, Work::Nothing);
        let mut session =
            Session { conn, tree, notifier, party, tx, work: &mut work, way: None, again: false };
        Some(act(&mut session))
    }

    fn tree_and_notifier<'a, P: Post>(
        &'a mut self,
        budget: &'a mut Budget,
        post: &'a mut P,
    ) -> (&'a mut Tree, Notifier<'a, P>) {
        let (tree, notifier, _) = self.parts(budget, post);
        (tree, notifier)
    }

    /// The same, and what is being cleared away.
    fn parts<'a, P: Post>(
        &'a mut self,
        budget: &'a mut Budget,
        post: &'a mut P,
    ) -> (&'a mut Tree, Notifier<'a, P>, &'a mut Cleanup) {
        let notifier = Notifier {
            watches: &mut self.watches,
            conns: &self.conns,
            post,
            budget,
            rest: &mut self.rest,
            headroom: &mut self.headroom,
            dropped: &mut self.dropped,
        };
        (&mut self.tree, notifier, &mut self.cleanup)
    }
}

#[cfg(test)]
impl Store {
    /// The permissions of a node as text, for tests.
    fn perms_text(&mut self, path: &[u8]) -> alloc::string::String {
        let tree::Found::Node(node) = self.tree.find(path) else { return "missing".into() };
        let list = self.tree.node(node).unwrap().list;
        let entries = self.tree.entries(list).iter();
        let text = |entry: &Entry| alloc::format!("{entry}{}", if entry.stale { "!" } else { "" });
        entries.map(text).collect::<Vec<_>>().join(",")
    }
}
