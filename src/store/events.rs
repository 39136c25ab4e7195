//! Telling watches: which events a change causes, and who may know.
//!
//! A change is told to the watches at the places on the way to its path, in the order of their registration. No
//! list of them is made: there is one cursor for each place that has watches, and the cursor with the oldest
//! watch is next. When the budget is over the rest is left as an [`Announcement`], which goes on where it was.

use super::domain::Accounts;
use super::perms::{Access, Party, rights};
use super::removal::Removal;
use super::row::Row;
use super::transaction::{Fill, OpenOf, WayAhead};
use super::tree::Tree;
use super::watch::{Class, PlaceAhead, Watch, Watches};
use crate::mem::{Budget, Map, NIL, NoMemory, Progress, TryVec, room_bytes, try_bytes};
use crate::proto::error::XsError;
use crate::proto::id::ConnId;
use crate::proto::wire::PAYLOAD_MAX;
use alloc::boxed::Box;
use alloc::vec::Vec;

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

/// What an event costs besides its payload.
const EVENT_BYTES: usize = 96;

/// Units of work that an event takes.
const EVENT_WORK: u64 = 500;

/// Units of work that looking at a watch takes that is not told.
const LOOK_WORK: u64 = 30;

/// What a connection is to the store.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) party: Party,
    /// The last transaction id that was given out.
    pub(super) last_tx: u32,
    /// Its open transactions.
    pub(super) open: OpenOf,
    /// Those that are over, with something left to be done.
    pub(super) ending: OpenOf,
    /// Its first and its last watch, in the order of registration.
    pub(super) watches: (u32, u32),
    /// What its request has begun.
    pub(super) work: Work,
    /// The error that its request came to after that.
    pub(super) failed: Option<XsError>,
    /// How far the place of the watch is that it has asked for and that takes several turns.
    pub(super) ahead: Option<PlaceAhead>,
    /// How far the way is that a request in a transaction takes several turns for.
    pub(super) way: Option<WayAhead>,
    /// Its watches and transactions are to go after that.
    pub(super) reset: bool,
    /// It is gone itself, and only what it has begun and what it had is left; with the one that went next.
    pub(super) gone: Option<Option<ConnId>>,
}

impl Conn {
    pub(super) fn new(party: Party, last_tx: u32) -> Self {
        Self {
            party,
            last_tx,
            open: OpenOf::NONE,
            ending: OpenOf::NONE,
            watches: (NIL, NIL),
            work: Work::Nothing,
            failed: None,
            ahead: None,
            way: None,
            reset: false,
            gone: None,
        }
    }
}

/// What a request has begun and a later turn goes on with.
#[derive(Debug, Default)]
pub(super) enum Work {
    #[default]
    Nothing,
    /// A change is told to the rest of its watches.
    Announce(Announcement),
    /// A subtree that is out of everybody's sight is freed, and that is told.
    Remove(Removal),
    /// Many nodes are made, each below the one before.
    Make(Row),
    /// The same in a transaction.
    Fill(Fill),
}

/// All connections.
#[derive(Debug)]
pub(super) struct Conns(Map<ConnId, Conn>);

impl Conns {
    pub(super) const fn new(seed: u64) -> Self {
        Self(Map::new(seed))
    }

    #[inline]
    pub(super) fn get(&self, conn: &ConnId) -> Option<&Conn> {
        self.0.get(*conn)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, conn: &ConnId) -> Option<&mut Conn> {
        self.0.get_mut(*conn)
    }

    /// Bytes that it takes of the allocator, apart from what they own.
    pub(super) fn taken(&self) -> usize {
        self.0.taken()
    }

    pub(super) fn contains_key(&self, conn: &ConnId) -> bool {
        self.0.contains(*conn)
    }

    /// A new connection, instead of one with the same id.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn insert(&mut self, id: ConnId, conn: Conn) -> Result<(), NoMemory> {
        self.0.insert(id, conn).map(|_| ())
    }

    pub(super) fn remove(&mut self, conn: &ConnId) -> Option<Conn> {
        self.0.remove(*conn)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnId, &Conn)> {
        self.0.iter()
    }

    /// The first connection with at least this handle, with its handle: for going through all in slices.
    pub(super) fn next_from(&self, handle: u32) -> Option<(u32, ConnId)> {
        self.0.next_from(handle).map(|(handle, id, _)| (handle, id))
    }
}

/// Which watches an announcement is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Audience {
    /// Of a node: as far as the depths of the watches reach.
    Node,
    /// Of a special name with a domid, those at the name alone that ask for domids.
    Domids,
    /// Of a special name alone, those that do not.
    Plain,
}

impl Audience {
    fn wants(self, watch: &Watch, levels: u32) -> bool {
        match self {
            Self::Node => watch.depth().is_none_or(|depth| levels <= depth),
            Self::Domids => levels == 0 || watch.depth().is_some_and(|depth| depth > 0),
            Self::Plain => watch.depth().is_none(),
        }
    }
}

/// Where the announcement of a change is at one place on the way to its path.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The number of the next watch here.
    serial: u64,
    /// That watch.
    watch: u32,
    /// Levels from the place to the path.
    levels: u16,
    is_pinned: bool,
}

/// Cursors without an allocation: most paths have no more places with watches.
const FEW: usize = 8;

/// Cursors, as a heap: the one with the oldest watch is the first.
#[derive(Debug)]
struct Cursors {
    few: heapless::Vec<Cursor, FEW>,
    /// All of them, if there are more.
    many: Vec<Cursor>,
}

impl Cursors {
    const NONE: Self = Self { few: heapless::Vec::new(), many: Vec::new() };

    fn all(&mut self) -> &mut [Cursor] {
        if self.many.is_empty() { &mut self.few } else { &mut self.many }
    }

    fn first(&self) -> Option<Cursor> {
        self.few.first().or(self.many.first()).copied()
    }

    fn add(&mut self, cursor: Cursor) -> Result<(), NoMemory> {
        if !self.many.is_empty() {
            self.many.try_push(cursor)?;
        } else if self.few.push(cursor).is_err() {
            self.many.try_room(FEW.saturating_mul(4))?;
            self.many.try_extend(&self.few)?;
            self.many.try_push(cursor)?;
            self.few.clear();
        }
        self.rise();
        Ok(())
    }

    /// Moves the last one up to its place.
    fn rise(&mut self) {
        let all = self.all();
        let mut at = all.len().saturating_sub(1);
        while let Some(above) = at.checked_sub(1).map(|at| at / 2) {
            if serial(all, above) <= serial(all, at) {
                return;
            }
            all.swap(above, at);
            at = above;
        }
    }

    /// Moves the first one down to its place.
    fn sink(&mut self) {
        let all = self.all();
        let mut at = 0_usize;
        loop {
            let left = at.saturating_mul(2).saturating_add(1);
            let right = left.saturating_add(1);
            let below = if serial(all, right) < serial(all, left) { right } else { left };
            if below >= all.len() || serial(all, at) <= serial(all, below) {
                return;
            }
            all.swap(at, below);
            at = below;
        }
    }

    /// The first one stands at another watch now, or at none.
    fn replace_first(&mut self, cursor: Option<Cursor>) {
        let all = self.all();
        let last = all.last().copied();
        if let Some(first) = all.first_mut()
            && let Some(new) = cursor.or(last)
        {
            *first = new;
        }
        if cursor.is_none() {
            if self.many.is_empty() {
                let _ = self.few.pop();
            } else {
                let _ = self.many.pop();
            }
        }
        self.sink();
    }
}

fn serial(all: &[Cursor], at: usize) -> u64 {
    all.get(at).map_or(u64::MAX, |cursor| cursor.serial)
}

/// A change of which not everybody knows yet.
#[derive(Debug)]
pub(super) struct Announcement {
    path: Box<[u8]>,
    audience: Audience,
    /// Permission lists by which one may know, each with a use of its own, or `NIL`.
    lists: [u32; 3],
    cursors: Cursors,
    /// Watches with greater numbers came later and are not told.
    until: u64,
}

impl Announcement {
    /// The path that has changed.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Bytes that the cursors take of the allocator.
    pub(super) fn room(&self) -> usize {
        room_bytes(&self.cursors.many)
    }
}

/// Tells watches.
#[derive(Debug)]
pub(super) struct Notifier<'a, P> {
    pub(super) watches: &'a mut Watches,
    pub(super) conns: &'a Conns,
    pub(super) post: &'a mut P,
    pub(super) budget: &'a mut Budget,
    /// Bytes that the request may still have queued.
    pub(super) headroom: &'a mut usize,
    /// An announcement that was not finished: whoever rang has to see to it.
    pub(super) rest: &'a mut Option<Announcement>,
    /// Events that were dropped because memory did not reach.
    pub(super) dropped: &'a mut u64,
}

impl<P: Post> Notifier<'_, P> {
    /// Takes bytes out of the headroom, or none if they are more than it has.
    pub(super) fn spend(&mut self, bytes: usize) -> bool {
        let left = self.headroom.checked_sub(bytes);
        *self.headroom = left.unwrap_or(*self.headroom);
        left.is_some()
    }

    /// Whether there is a watch below a path.
    pub(super) fn any_below(&self, tree: &Tree, path: &[u8]) -> bool {
        self.watches.any_below(tree, path)
    }

    /// Tells of a change at `path` every matching watch of a connection that may read
    /// by one of the permission lists: those of the node before and after, and that of the node above. What the budget
    /// does not reach for is in `rest`, where nothing may be before.
    pub(super) fn ring(&mut self, tree: &mut Tree, path: &[u8], class: Class, lists: &[u32]) {
        if self.watches.is_empty() {
            return;
        }
        let mut cursors = Cursors::NONE;
        let watches = &*self.watches;
        let gathered = match class {
            Class::Exact => match watches.first_at(tree, path) {
                NIL => Ok(()),
                first => cursors.add(cursor(watches, first, 0)),
            },
            Class::Subtree => watches.on_the_way(tree, path, |first, levels| {
                let levels = u16::try_from(levels).unwrap_or(u16::MAX);
                cursors.add(cursor(watches, first, levels))
            }),
        };
        self.start(tree, path, Audience::Node, lists, &mut cursors, gathered);
    }

    /// Tells of what a special name is for.
    pub(super) fn ring_special(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        audience: Audience,
        lists: &[u32],
    ) {
        let mut cursors = Cursors::NONE;
        let watches = &*self.watches;
        let name = path.split(|byte| *byte == b'/').next().unwrap_or(path);
        let places = match audience {
            Audience::Domids => [(path, 0), (name, 1)],
            Audience::Node | Audience::Plain => [(name, 0), (&[][..], 0)],
        };
        let mut gathered = Ok(());
        for (path, levels) in places {
            let first = watches.first_at(tree, path);
            if first != NIL {
                gathered = gathered.and_then(|()| cursors.add(cursor(watches, first, levels)));
            }
        }
        self.start(tree, path, audience, lists, &mut cursors, gathered);
    }

    fn start(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        audience: Audience,
        lists: &[u32],
        cursors: &mut Cursors,
        gathered: Result<(), NoMemory>,
    ) {
        if gathered.is_err() {
            *self.dropped = self.dropped.saturating_add(1);
            return;
        }
        let until = self.watches.serial();
        if self.tell(tree, path, audience, lists, cursors, until).is_done() {
            return;
        }
        let Ok(path) = try_bytes(path) else {
            *self.dropped = self.dropped.saturating_add(1);
            return;
        };
        let mut kept = [NIL; 3];
        for (kept, list) in kept.iter_mut().zip(lists) {
            tree.retain_list(*list);
            *kept = *list;
        }
        for cursor in cursors.all() {
            self.watches.pin(cursor.watch);
            cursor.is_pinned = true;
        }
        let cursors = core::mem::replace(cursors, Cursors::NONE);
        *self.rest = Some(Announcement { path, audience, lists: kept, cursors, until });
    }

    /// Goes on with an announcement.
    pub(super) fn go_on(&mut self, tree: &mut Tree, rest: &mut Announcement) -> Progress {
        let Announcement { path, audience, lists, cursors, until } = rest;
        let progress = self.tell(tree, path, *audience, lists, cursors, *until);
        if progress.is_done() {
            lists.iter().for_each(|list| tree.release_list(*list));
            return progress;
        }
        for cursor in cursors.all() {
            if !core::mem::replace(&mut cursor.is_pinned, true) {
                self.watches.pin(cursor.watch);
            }
        }
        progress
    }

    fn tell(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        audience: Audience,
        lists: &[u32],
        cursors: &mut Cursors,
        until: u64,
    ) -> Progress {
        let mut last: Option<(ConnId, bool)> = None;
        let mut is_over = false;
        while let Some(at) = cursors.first() {
            if is_over {
                return Progress::More;
            }
            let Some(watch) = self.watches.get(at.watch) else {
                cursors.replace_first(None);
                continue;
            };
            let next = watch.next_here;
            self.budget.spend(LOOK_WORK);
            if !watch.is_dead()
                && watch.serial <= until
                && audience.wants(watch, u32::from(at.levels))
            {
                let conn = watch.conn;
                let may_read = match last {
                    Some((same, may_read)) if same == conn => may_read,
                    _ => may_read(self.conns, tree, conn, lists),
                };
                last = Some((conn, may_read));
                // A client that registered a relative path is told relative paths.
                let path = path.get(watch.home()..).unwrap_or(path);
                let size = path.len().saturating_add(watch.token.len()).saturating_add(2);
                let fits = may_read && size <= PAYLOAD_MAX;
                let room = self.headroom.checked_sub(size.saturating_add(EVENT_BYTES));
                if let Some(room) = room.filter(|_| fits) {
                    *self.headroom = room;
                    self.post.event(&mut tree.domains, conn, path, &watch.token);
                    self.budget.spend(EVENT_WORK);
                } else if fits {
                    *self.dropped = self.dropped.saturating_add(1);
                }
            }
            let moved = (next != NIL).then(|| cursor(self.watches, next, at.levels));
            cursors.replace_first(moved.filter(|next| next.serial <= until));
            if at.is_pinned {
                self.watches.unpin(tree, at.watch);
            }
            is_over = self.budget.is_over();
        }
        Progress::Done
    }
}

/// A cursor at a watch.
fn cursor(watches: &Watches, watch: u32, levels: u16) -> Cursor {
    let serial = watches.get(watch).map_or(u64::MAX, |watch| watch.serial);
    Cursor { serial, watch, levels, is_pinned: false }
}

fn may_read(conns: &Conns, tree: &Tree, conn: ConnId, lists: &[u32]) -> bool {
    conns.get(&conn).is_some_and(|conn| {
        // The emulator of a dead domain is told of the end of what that had.
        let may =
            |list: &u32| rights(tree.entries(*list), &conn.party).access.includes(Access::Read);
        conn.gone.is_none() && (conn.party.privileged || lists.iter().any(may))
    })
}
