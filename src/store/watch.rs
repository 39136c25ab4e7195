//! Watches, indexed by path: an event costs the depth of its path and the watches that match.
//!
//! A [`Place`] is a path with watches, whether or not a node exists there. An ordered list of all places
//! answers whether there is one below a path, so that the removal of a large subtree that nobody
//! watches looks nothing up.

use super::domain::give_room_back;
use super::path;
use super::tree::bytes_hash;
use crate::mem::{NIL, NoMemory, Record, Table, try_bytes};
use crate::proto::id::ConnId;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use core::ops::Bound;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Which watches an event is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Those at the path itself.
    Exact,
    /// Those at the path and at every path above it, as far as their depth reaches.
    Subtree,
}

/// One watch.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) conn: ConnId,
    /// Bytes in front of the client's own spelling of the path.
    pub(super) home: usize,
    pub(super) token: Box<[u8]>,
    /// How many levels below the path it reaches; `None` for all, in the old form of the request.
    pub(super) depth: Option<u32>,
    /// Watches of a connection get their events in the order of registration.
    serial: u64,
    place: u32,
    /// The hash of (connection, path, token), which identifies a watch.
    key: u64,
    next_here: u32,
    prev_here: u32,
    next_own: u32,
    prev_own: u32,
    chain: u32,
}

impl Record for Watch {
    fn hash(&self, _seed: u64) -> u64 {
        self.key
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// A path with watches.
#[derive(Debug)]
pub(super) struct Place {
    path: Rc<[u8]>,
    first: u32,
    last: u32,
    chain: u32,
}

impl Record for Place {
    fn hash(&self, seed: u64) -> u64 {
        bytes_hash(seed, &self.path)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// A watch that an event is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Match {
    pub(super) conn: ConnId,
    serial: u64,
    pub(super) watch: u32,
}

/// All watches.
#[derive(Debug)]
pub(super) struct Watches {
    watches: Table<Watch>,
    places: Table<Place>,
    /// The paths of all places.
    ordered: BTreeSet<Rc<[u8]>>,
    /// The first and the last watch of each connection that has one.
    own: HashMap<ConnId, (u32, u32), FixedState>,
    serial: u64,
}

impl Watches {
    /// Upper bound of what adding one watch allocates, apart from its path and token.
    pub(super) const FIXED_COST: usize =
        Table::<Watch>::INSERT_BYTES + Table::<Place>::INSERT_BYTES + 16 * 1024;

    pub(super) fn new(seed: u64) -> Self {
        Self {
            watches: Table::new(seed),
            places: Table::new(seed),
            ordered: BTreeSet::new(),
            own: HashMap::with_hasher(FixedState::with_seed(seed)),
            serial: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(super) fn get(&self, watch: u32) -> Option<&Watch> {
        self.watches.get(watch)
    }

    /// The path that a watch is set on.
    pub(super) fn path(&self, watch: &Watch) -> &[u8] {
        self.places.get(watch.place).map_or(&[], |place| &place.path)
    }

    /// The watch that a connection has set with this path and token.
    pub(super) fn find(&self, conn: ConnId, path: &[u8], token: &[u8]) -> Option<u32> {
        let key = self.key(conn, path, token);
        let same = |watch: &Watch| {
            watch.conn == conn && *watch.token == *token && self.path(watch) == path
        };
        self.watches.find(key, same)
    }

    fn key(&self, conn: ConnId, path: &[u8], token: &[u8]) -> u64 {
        let mut hasher = FixedState::with_seed(self.watches.seed()).build_hasher();
        hasher.write_u32(conn.0);
        hasher.write(path);
        hasher.write_u8(0);
        hasher.write(token);
        hasher.finish()
    }

    /// Adds a watch; there must be none with the same path and token.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        path: &path::Path,
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<(), NoMemory> {
        self.serial = self.serial.saturating_add(1);
        let key = self.key(conn, path.bytes(), token);
        let token = try_bytes(token)?;
        let place = self.find_or_add(path.bytes())?;
        let prev_here = self.places.get(place).map_or(NIL, |place| place.last);
        let prev_own = self.own.get(&conn).map_or(NIL, |(_, last)| *last);
        let made = self.watches.insert(Watch {
            conn,
            home: path.home(),
            token,
            depth,
            serial: self.serial,
            place,
            key,
            next_here: NIL,
            prev_here,
            next_own: NIL,
            prev_own,
            chain: NIL,
        });
        let Ok(watch) = made else {
            self.drop_unused(place);
            return Err(NoMemory);
        };
        if let Some(before) = self.watches.get_mut(prev_here) {
            before.next_here = watch;
        }
        if let Some(before) = self.watches.get_mut(prev_own) {
            before.next_own = watch;
        }
        if let Some(place) = self.places.get_mut(place) {
            place.last = watch;
            if place.first == NIL {
                place.first = watch;
            }
        }
        self.own.entry(conn).or_insert((watch, watch)).1 = watch;
        Ok(())
    }

    /// Removes a watch and returns what it held for its connection: bytes of path and token.
    pub(super) fn remove(&mut self, watch: u32) -> usize {
        let Some(gone) = self.watches.remove(watch) else { return 0 };
        if let Some(before) = self.watches.get_mut(gone.prev_here) {
            before.next_here = gone.next_here;
        }
        if let Some(after) = self.watches.get_mut(gone.next_here) {
            after.prev_here = gone.prev_here;
        }
        if let Some(before) = self.watches.get_mut(gone.prev_own) {
            before.next_own = gone.next_own;
        }
        if let Some(after) = self.watches.get_mut(gone.next_own) {
            after.prev_own = gone.prev_own;
        }
        if let Some(ends) = self.own.get_mut(&gone.conn) {
            if ends.0 == watch {
                ends.0 = gone.next_own;
            }
            if ends.1 == watch {
                ends.1 = gone.prev_own;
            }
            if ends.0 == NIL {
                self.own.remove(&gone.conn);
                give_room_back(&mut self.own);
            }
        }
        let Some(place) = self.places.get_mut(gone.place) else { return 0 };
        if place.first == watch {
            place.first = gone.next_here;
        }
        if place.last == watch {
            place.last = gone.prev_here;
        }
        let bytes = watch_bytes(&place.path, &gone.token);
        self.drop_unused(gone.place);
        bytes
    }

    /// Removes a place without watches.
    fn drop_unused(&mut self, place: u32) {
        if self.places.get(place).is_some_and(|place| place.first == NIL)
            && let Some(place) = self.places.remove(place)
        {
            self.ordered.remove(&place.path);
        }
    }

    /// The first watch of a connection, if it has any: for removing them one by one.
    pub(super) fn first_of(&self, conn: ConnId) -> Option<u32> {
        self.own.get(&conn).map(|(first, _)| *first)
    }

    /// Every watch of a connection, in the order of registration.
    pub(super) fn of(&self, conn: ConnId) -> impl Iterator<Item = &Watch> {
        let first = self.first_of(conn).and_then(|watch| self.get(watch));
        core::iter::successors(first, |watch| self.get(watch.next_own))
    }

    /// Whether there is a watch below a path.
    pub(super) fn any_below(&self, path: &[u8]) -> bool {
        let mut below = Vec::from(path);
        path::push(&mut below, b"");
        let next = self.ordered.range::<[u8], _>((Bound::Excluded(&below[..]), Bound::Unbounded));
        next.into_iter().next().is_some_and(|path| path.starts_with(&below))
    }

    /// Collects the watches that an event at `path` is for, in the order in which they are told.
    pub(super) fn matches(&self, path: &[u8], class: Class, found: &mut Vec<Match>) {
        if self.watches.is_empty() {
            return;
        }
        for (levels, above) in (0_u32..).zip(path::upwards(path)) {
            self.collect(above, found, |watch| watch.depth.is_none_or(|depth| levels <= depth));
            if class == Class::Exact {
                break;
            }
        }
        found.sort_unstable();
    }

    /// Collects the watches at one path for which `wanted` holds.
    pub(super) fn collect(
        &self,
        path: &[u8],
        found: &mut Vec<Match>,
        wanted: impl Fn(&Watch) -> bool,
    ) {
        let place = self.place(path).and_then(|place| self.places.get(place));
        let mut at = place.map_or(NIL, |place| place.first);
        while let Some(watch) = self.get(at) {
            if wanted(watch) {
                found.push(Match { conn: watch.conn, serial: watch.serial, watch: at });
            }
            at = watch.next_here;
        }
    }

    fn place(&self, path: &[u8]) -> Option<u32> {
        self.places.find(bytes_hash(self.places.seed(), path), |place| *place.path == *path)
    }

    fn find_or_add(&mut self, path: &[u8]) -> Result<u32, NoMemory> {
        if let Some(place) = self.place(path) {
            return Ok(place);
        }
        let path: Rc<[u8]> = path.into();
        self.ordered.insert(Rc::clone(&path));
        self.places.insert(Place { path, first: NIL, last: NIL, chain: NIL })
    }
}

/// What a watch counts for besides its texts: a price, as [`NODE_BYTES`](super::tree::NODE_BYTES) is.
const WATCH_BYTES: usize = 80;
const _: () = assert!(size_of::<Watch>() <= WATCH_BYTES);

/// What a watch counts for in the memory of its connection's domain.
pub(super) fn watch_bytes(path: &[u8], token: &[u8]) -> usize {
    path.len().saturating_add(token.len()).saturating_add(WATCH_BYTES)
}
