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

mod check;
mod domain;
mod events;
mod generation;
mod handover;
mod path;
pub mod perms;
pub mod quota;
mod restore;
mod save;
mod session;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;
mod watch;

pub use domain::Accounts;
pub use events::Post;
pub use perms::Party;
pub use restore::Restoring;

use crate::mem::{Budget, NIL, NoMemory, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, TxId};
use alloc::format;
use alloc::vec::Vec;
pub(crate) use domain::give_room_back;
use events::{Bell, Conn, Conns, Nobody};
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use path::{Names, Path};
use perms::Entry;
use quota::{Quota, Quotas};
use session::Session;
use transaction::Transaction;
use tree::{ROOT, Tree};
use watch::{Match, Watches, watch_bytes};

/// Who asks, and in which transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The connection.
    pub conn: ConnId,
    /// The transaction, [`TxId::NONE`] for none.
    pub tx: TxId,
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
    transactions: HashMap<(ConnId, TxId), Transaction, FixedState>,
    found: Vec<Match>,
    /// Scratch space for the path of a request.
    spelling: Vec<u8>,
    headroom: usize,
    dropped: u64,
    seed: u64,
    /// Domains of which something has to be done, in that order.
    dying: Vec<Death>,
}

/// What has to be done because of a domain.
#[derive(Debug)]
struct Death {
    domid: DomId,
    forget: bool,
    announce: Option<(Special, bool)>,
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
        let hasher = FixedState::with_seed(seed);
        Ok(Self {
            tree: Tree::new(seed, Accounts::new(seed, privileged, quotas))?,
            watches: Watches::new(seed),
            conns: HashMap::with_hasher(hasher.clone()),
            transactions: HashMap::with_hasher(hasher),
            found: Vec::new(),
            spelling: Vec::new(),
            headroom: usize::MAX,
            dropped: 0,
            seed,
            dying: Vec::new(),
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
        self.tree.domains.get(domid).is_some() && !self.is_dying(domid)
    }

    /// Whether the domain was [forgotten](Self::forget) and something of it, or of an announcement about it, is
    /// still there: a request that names it has to wait until that is done.
    #[must_use]
    pub fn is_dying(&self, domid: DomId) -> bool {
        self.dying.iter().any(|death| death.domid == domid && death.forget)
    }

    /// Starts tracking a domain that exists; nothing changes if it is tracked already. It must not be
    /// [dying](Self::is_dying).
    ///
    /// # Errors
    /// There is no memory.
    pub fn learn(&mut self, domid: DomId) -> Result<(), NoMemory> {
        self.tree.domains.learn(domid)
    }

    /// The domain is gone: its nodes go with everything below them (watches are told), every right given
    /// to it goes (nobody is told), so does its account. All that happens in
    /// [`go_on_deaths`](Self::go_on_deaths), after what its connection had; guests do not know the domain any
    /// more from now on. Nothing happens for the privileged domain or one that is not tracked.
    pub fn forget(&mut self, domid: DomId) {
        if domid != self.privileged() && self.knows(domid) {
            self.dying.push(Death { domid, forget: true, announce: None });
        }
    }

    /// Goes on with everything that is nobody's request: connections that were [dropped](Self::disconnect), then
    /// domains that were [forgotten](Self::forget) and [announcements](Self::announce), in their order.
    pub fn go_on_deaths(&mut self, budget: &mut Budget, post: &mut impl Post) -> Progress {
        for death in core::mem::take(&mut self.dying) {
            if death.forget {
                self.bury(death.domid, budget, post);
            }
            if let Some((special, plain)) = death.announce {
                self.fire_special(special, death.domid, plain, budget, post);
            }
        }
        Progress::Done
    }

    /// Whether [`go_on_deaths`](Self::go_on_deaths) has something to do.
    #[must_use]
    pub fn has_deaths(&self) -> bool {
        !self.dying.is_empty()
    }

    fn bury(&mut self, domid: DomId, budget: &mut Budget, post: &mut impl Post) {
        while let Some(owned) = self.tree.first_owned(domid) {
            let node = self.tree.topmost_owned(owned, domid);
            let path = self.tree.path(node);
            if node == ROOT || self.tree.special.contains(&node) {
                self.hand_back(node);
            } else {
                let (tree, mut bell) = self.tree_and_bell(budget, post);
                session::remove_tree(tree, &mut bell, node, &path);
            }
        }
        self.tree.strip(domid);
        self.tree.domains.remove(domid);
        for conn in self.conns.values_mut() {
            conn.party.target = conn.party.target.filter(|target| *target != domid);
        }
    }

    /// Gives a node that cannot be removed to the privileged domain.
    fn hand_back(&mut self, node: u32) {
        let mut entries =
            Vec::from(self.tree.node(node).map_or(&[][..], |node| self.tree.entries(node.list)));
        if let Some(owner) = entries.first_mut() {
            owner.domid = self.tree.domains.privileged;
        }
        // Where there is no memory for another list, nobody else has a right any more.
        let list = self.tree.intern(&entries).unwrap_or_else(|_| self.tree.private_list());
        // The privileged domain needs no record of what it owns.
        let _ = self.tree.set_list(node, list);
    }

    /// Every tracked domain, ascending.
    #[must_use]
    pub fn domids(&self) -> Vec<DomId> {
        self.tree.domains.ids()
    }

    /// What a tracked domain uses of something now, and the most it ever did.
    #[must_use]
    pub fn usage(&self, domid: DomId, quota: Quota) -> Option<(u32, u32)> {
        let domain = self.tree.domains.get(domid)?;
        Some((domain.used.get(quota), domain.peak.get(quota)))
    }

    /// Forgets the most that every domain ever used: from now on it is what it uses now.
    pub fn reset_peaks(&mut self) {
        for domain in self.tree.domains.iter_mut() {
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

    /// Announces what became of a tracked domain: `@name/domid` for the watches that ask for domains, and if
    /// `plain`, the name alone for the others. If the domain is [dying](Self::is_dying), that comes after its
    /// nodes are gone. What the budget does not suffice for goes on in [`go_on_deaths`](Self::go_on_deaths).
    pub fn announce(
        &mut self,
        special: Special,
        domid: DomId,
        plain: bool,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        match self.dying.iter_mut().find(|death| death.domid == domid && death.announce.is_none()) {
            Some(death) => death.announce = Some((special, plain)),
            None => {
                let announce = Some((special, plain));
                self.dying.push(Death { domid, forget: false, announce });
            }
        }
        self.go_on_deaths(budget, post)
    }

    fn fire_special(
        &mut self,
        special: Special,
        domid: DomId,
        plain: bool,
        budget: &mut Budget,
        post: &mut impl Post,
    ) {
        let name = special.name().as_bytes();
        let node = match special {
            Special::IntroduceDomain => self.tree.special[0],
            Special::ReleaseDomain => self.tree.special[1],
        };
        let list = self.tree.node(node).map_or(NIL, |node| node.list);
        let above = self.tree.node(ROOT).map_or(NIL, |root| root.list);
        let with_domid = format!("{}/{domid}", special.name()).into_bytes();
        let mut found = Vec::new();
        self.watches.collect(&with_domid, &mut found, |_| true);
        self.watches.collect(name, &mut found, |watch| watch.depth.is_some_and(|depth| depth > 0));
        found.sort_unstable();
        let (tree, mut bell) = self.tree_and_bell(budget, post);
        bell.tell(tree, &with_domid, &found, &[list, above]);
        if plain {
            found.clear();
            self.watches.collect(name, &mut found, |watch| watch.depth.is_none());
            found.sort_unstable();
            let (tree, mut bell) = self.tree_and_bell(budget, post);
            bell.tell(tree, name, &found, &[list, above]);
        }
    }

    // Connections.

    /// A new connection.
    ///
    /// # Errors
    /// There is no memory.
    pub fn connect(&mut self, conn: ConnId, party: Party) -> Result<(), NoMemory> {
        self.conns.try_reserve(1).map_err(|_| NoMemory)?;
        let open = HashSet::with_hasher(FixedState::with_seed(self.seed));
        self.conns.insert(conn, Conn { party, last_tx: 0, open });
        Ok(())
    }

    /// Drops the connection with all it has: at once it gets no events any more and has no
    /// [`party`](Self::party), the rest goes in [`go_on_deaths`](Self::go_on_deaths). What a request of it had
    /// begun is brought to its end there, since others rely on the events.
    pub fn disconnect(&mut self, conn: ConnId) {
        let _done = self.reset(conn, &mut Budget::endless(), &mut Nobody);
        self.conns.remove(&conn);
        give_room_back(&mut self.conns);
    }

    /// Goes on with what a request of a connection has begun. Until it is done the request has no reply, and the
    /// connection no other request.
    pub fn go_on(&mut self, conn: ConnId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        let _ = (conn, budget, post);
        Progress::Done
    }

    /// Whether a connection has something to [go on](Self::go_on) with. A request that was refused may have, too: a
    /// transaction that could not commit is given up in slices.
    #[must_use]
    pub fn is_busy(&self, conn: ConnId) -> bool {
        let _ = conn;
        false
    }

    /// Brings everything to its end that was begun: after it nobody is busy and nobody is dying.
    pub fn finish(&mut self, post: &mut impl Post) {
        let _done = self.go_on_deaths(&mut Budget::endless(), post);
    }

    /// Drops the connection's watches and transactions, after what a request of it has begun. With
    /// [`More`](Progress::More) it goes on in [`go_on`](Self::go_on).
    pub fn reset(&mut self, conn: ConnId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        let _ = (&budget, &post);
        while let Some(watch) = self.watches.first_of(conn) {
            self.remove_watch(conn, watch);
        }
        let open = self.conns.get_mut(&conn).map(|conn| core::mem::take(&mut conn.open));
        for tx in open.into_iter().flatten() {
            if let Some(tx) = self.close_transaction(conn, tx) {
                tx.discard(&mut self.tree);
            }
        }
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.open = HashSet::with_hasher(FixedState::with_seed(self.seed));
        }
        Progress::Done
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
        self.conns.get(&conn).map(|conn| conn.party)
    }

    // Requests. A reply is appended to `reply`; after an error nothing was.

    /// DIRECTORY.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`, `EACCES`; `E2BIG` if the list does not fit a message.
    pub fn directory(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.at(caller, path, Names::Ordinary, |session, path| session.directory(path, reply))
    }

    /// DIRECTORY_PART, from byte `offset` of the list on; an offset outside of it is its end.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`, `EACCES`.
    pub fn directory_part(
        &mut self,
        caller: Caller,
        path: &[u8],
        offset: i64,
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.at(caller, path, Names::Ordinary, |session, path| {
            session.directory_part(path, offset, reply)
        })
    }

    /// READ.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`, `EACCES`.
    pub fn read(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.at(caller, path, Names::Ordinary, |session, path| session.read(path, reply))
    }

    /// GET_PERMS.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`, `EACCES`.
    pub fn get_perms(
        &mut self,
        caller: Caller,
        path: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        self.at(caller, path, Names::OrSpecial, |session, path| session.get_perms(path, reply))
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
        let entries = session::mark_stale(&self.tree, entries);
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
        let domid = self.party(conn).ok_or(XsError::EINVAL)?.domid;
        let path = self.path(conn, path, Names::OrSpecial)?;
        if self.watches.find(conn, path.bytes(), token).is_some() {
            return Err(XsError::EEXIST);
        }
        let bytes = watch_bytes(path.bytes(), token);
        if !self.allows(domid, Quota::Watches, 1) {
            return Err(XsError::ENOSPC);
        }
        if !self.allows(domid, Quota::Memory, bytes) {
            return Err(XsError::ENOMEM);
        }
        self.watches.add(conn, &path, token, depth)?;
        self.tree.domains.take(domid, Quota::Watches, 1);
        self.tree.domains.take(domid, Quota::Memory, bytes);
        Ok(())
    }

    /// UNWATCH. Events already queued stay queued.
    ///
    /// # Errors
    /// `EINVAL`; `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let path = self.path(conn, path, Names::OrSpecial)?;
        let watch = self.watches.find(conn, path.bytes(), token).ok_or(XsError::ENOENT)?;
        self.remove_watch(conn, watch);
        Ok(())
    }

    fn remove_watch(&mut self, conn: ConnId, watch: u32) {
        let bytes = self.watches.remove(watch);
        if let Some(party) = self.party(conn) {
            self.tree.domains.give_back(party.domid, Quota::Watches, 1);
            self.tree.domains.give_back(party.domid, Quota::Memory, bytes);
        }
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

    /// Looks at a path that a connection spelled.
    fn at(
        &mut self,
        caller: Caller,
        raw: &[u8],
        names: Names,
        look: impl FnOnce(&mut Session<'_, Nobody>, &Path) -> Result<(), XsError>,
    ) -> Result<(), XsError> {
        self.with(caller, raw, names, &mut Budget::endless(), &mut Nobody, look)
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
        self.with(caller, raw, names, budget, post, act)?;
        Ok(Progress::Done)
    }

    fn with<P: Post>(
        &mut self,
        caller: Caller,
        raw: &[u8],
        names: Names,
        budget: &mut Budget,
        post: &mut P,
        act: impl FnOnce(&mut Session<'_, P>, &Path) -> Result<(), XsError>,
    ) -> Result<(), XsError> {
        let party = self.party(caller.conn).ok_or(XsError::EINVAL)?;
        let max = self.path_max(&party);
        let path = Path::new(core::mem::take(&mut self.spelling), raw, names, party.domid, max)?;
        let tx = match caller.tx {
            TxId::NONE => None,
            id => Some(self.transactions.get_mut(&(caller.conn, id)).ok_or(XsError::ENOENT)?),
        };
        let bell = Bell {
            watches: &self.watches,
            conns: &self.conns,
            post,
            budget,
            found: &mut self.found,
            headroom: &mut self.headroom,
            dropped: &mut self.dropped,
        };
        let result =
            act(&mut Session { conn: caller.conn, tree: &mut self.tree, bell, party, tx }, &path);
        self.spelling = path.into_room();
        result
    }

    fn tree_and_bell<'a, P: Post>(
        &'a mut self,
        budget: &'a mut Budget,
        post: &'a mut P,
    ) -> (&'a mut Tree, Bell<'a, P>) {
        let bell = Bell {
            watches: &self.watches,
            conns: &self.conns,
            post,
            budget,
            found: &mut self.found,
            headroom: &mut self.headroom,
            dropped: &mut self.dropped,
        };
        (&mut self.tree, bell)
    }
}

#[cfg(test)]
impl Store {
    /// The permissions of a node as text, for tests.
    fn perms_text(&mut self, path: &[u8]) -> alloc::string::String {
        let tree::Found::Node(node) = self.tree.find(path) else { return "missing".into() };
        let list = self.tree.node(node).unwrap().list;
        let entries = self.tree.entries(list).iter();
        let text = |entry: &Entry| format!("{entry}{}", if entry.stale { "!" } else { "" });
        entries.map(text).collect::<Vec<_>>().join(",")
    }
}
