//! Watches, in a trie of places: an event costs the levels of its path that are watched and the watches there.
//!
//! A [`Place`] is a path with watches, or with places below it, whether or not a node exists there. So whether
//! there is a watch below a path is known at its place, and the removal of a large subtree that nobody watches looks
//! nothing up.
//!
//! A watch that somebody has to come back to is *pinned*: if it is removed meanwhile, it stays in the list of its
//! place, dead, until the last pin is gone.

use super::events::Conn;
use super::path;
use super::tree::{Tree, bytes_hash, child_hash, name_block};
use crate::mem::{Budget, NIL, NoMemory, Progress, Record, Table, TryVec, block_bytes, try_bytes};
use crate::proto::id::ConnId;
use crate::proto::text::count;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Which watches an event is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Those at the path itself.
    Exact,
    /// Those at the path and at every path above it, as far as their depth reaches.
    Subtree,
}

/// "All levels": the depth of a watch in the old form of the request.
const ALL: u32 = u32::MAX;

/// One watch.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) token: Box<[u8]>,
    /// Watches of a connection get their events in the order of registration.
    pub(super) serial: u64,
    pub(super) conn: ConnId,
    /// How many levels below the path it reaches, or [`ALL`].
    depth: u32,
    place: u32,
    /// The lower half of the hash of connection, place and token, which identifies a watch.
    key: u32,
    pub(super) next_here: u32,
    prev_here: u32,
    next_own: u32,
    prev_own: u32,
    chain: u32,
    /// What it counts for in its domain's memory.
    pub(super) bytes: u32,
    /// How many come back to it.
    pins: u16,
    /// Bytes in front of the client's own spelling of the path.
    home: u8,
    /// It was removed, and is there for the pins only.
    is_dead: bool,
}
const _: () = assert!(size_of::<Watch>() <= 72);

impl Watch {
    /// How many levels below the path it reaches; `None` for all, in the old form of the request.
    pub(super) fn depth(&self) -> Option<u32> {
        (self.depth != ALL).then_some(self.depth)
    }

    /// Bytes in front of the client's own spelling of the path.
    pub(super) fn home(&self) -> usize {
        usize::from(self.home)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead
    }
}

impl Record for Watch {
    fn hash(&self, _seed: u64) -> u64 {
        u64::from(self.key)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
    fn is_listed(&self) -> bool {
        !self.is_dead
    }
}

/// A path with watches at it or below it.
#[derive(Debug)]
pub(super) struct Place {
    /// `NIL` for the root and for special names.
    parent: u32,
    /// A name with a use of its own; that of a special place is the whole path. `NIL` for the root.
    name: u32,
    first: u32,
    last: u32,
    /// How many places are directly below, and how many keep it besides.
    below: u32,
    /// The next one in the list of those that may be of no use any more.
    next_idle: u32,
    chain: u32,
}

/// Units of work that making a place takes, or freeing one, and finding one.
const PLACE_WORK: u64 = 240;
const FIND_WORK: u64 = 80;

/// Units of work for places that are of no use any more and are freed at once.
const FREED_AT_ONCE: u64 = 40 * PLACE_WORK;

/// The way to the place of a watch that is being made, or looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceAhead {
    /// A place on it, which is kept.
    at: u32,
    /// How many bytes of the path lead there.
    there: usize,
}

impl Record for Place {
    fn hash(&self, seed: u64) -> u64 {
        child_hash(seed, self.parent, self.name)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// All watches.
#[derive(Debug)]
pub(super) struct Watches {
    watches: Table<Watch>,
    places: Table<Place>,
    serial: u64,
    /// Watches that are only there for their pins.
    dead: usize,
    held: Held,
    /// The first place that may be of no use any more. Each of them is kept until it is looked at.
    idle: u32,
}

impl Watches {
    /// Upper bound of what adding one watch allocates, apart from its path and token.
    pub(super) const FIXED_COST: usize =
        Table::<Watch>::INSERT_BYTES + Table::<Place>::INSERT_BYTES;

    pub(super) const fn new(seed: u64) -> Self {
        let held = Held { tokens: 0, names: 0, charged: 0 };
        Self {
            watches: Table::new(seed),
            places: Table::new(seed),
            serial: 0,
            dead: 0,
            held,
            idle: NIL,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.watches.len().saturating_sub(self.dead)
    }

    /// Whether there is no watch at all.
    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    pub(super) fn get(&self, watch: u32) -> Option<&Watch> {
        self.watches.get(watch)
    }

    /// The number of the last watch that was registered: those with greater ones came later.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    // Places.

    fn child(&self, parent: u32, name: u32) -> Option<u32> {
        let hash = child_hash(self.places.seed(), parent, name);
        self.places.find(hash, |place| place.parent == parent && place.name == name)
    }

    /// The place of the root, or of a special name.
    fn first_place(&self, tree: &Tree, path: &[u8]) -> Option<u32> {
        match path {
            [b'/', ..] => self.child(NIL, NIL),
            name => self.child(NIL, tree.find_name(name)?),
        }
    }

    /// The place of a path.
    pub(super) fn place(&self, tree: &Tree, path: &[u8]) -> Option<u32> {
        let mut at = self.first_place(tree, path)?;
        if path.starts_with(b"/") {
            for name in path::components(path) {
                at = self.below(tree, at, name)?;
            }
        }
        Some(at)
    }

    /// The place directly below one.
    pub(super) fn below(&self, tree: &Tree, place: u32, name: &[u8]) -> Option<u32> {
        let has_any = self.places.get(place).is_some_and(|place| place.below > 0);
        if has_any { self.child(place, tree.find_name(name)?) } else { None }
    }

    /// Calls `each` with every place on the way to a path that has watches, from the top down, and with the number of
    /// levels from there to the path.
    pub(super) fn on_the_way(
        &self,
        tree: &Tree,
        path: &[u8],
        mut each: impl FnMut(u32, u32) -> Result<(), NoMemory>,
    ) -> Result<(), NoMemory> {
        let Some(mut at) = self.first_place(tree, path) else { return Ok(()) };
        // A special name is a place with nothing below.
        let walked = if path.starts_with(b"/") { path } else { &[] };
        let mut names = path::components(walked);
        // Counted for the first place that wants to know.
        let (mut all, mut above) = (None, 0_u32);
        loop {
            let first = self.places.get(at).map_or(NIL, |place| place.first);
            if first != NIL {
                each(first, all.get_or_insert_with(|| levels(walked)).saturating_sub(above))?;
            }
            let next = names.next().and_then(|name| self.below(tree, at, name));
            let Some(next) = next else { return Ok(()) };
            at = next;
            above = above.saturating_add(1);
        }
    }

    /// The first watch at a path.
    pub(super) fn first_at(&self, tree: &Tree, path: &[u8]) -> u32 {
        let place = self.place(tree, path).and_then(|place| self.places.get(place));
        place.map_or(NIL, |place| place.first)
    }

    /// Whether there is a watch below a path.
    pub(super) fn any_below(&self, tree: &Tree, path: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let place = self.place(tree, path).and_then(|place| self.places.get(place));
        place.is_some_and(|place| place.below > 0)
    }

    /// Appends the path that a watch is set on.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn path(
        &self,
        tree: &Tree,
        watch: &Watch,
        to: &mut Vec<u8>,
    ) -> Result<(), NoMemory> {
        let Some(place) = self.places.get(watch.place) else { return Ok(()) };
        if place.parent == NIL {
            let name = if place.name == NIL { b"/" } else { tree.name_of(place.name) };
            return to.try_extend(name);
        }
        // Upwards, so each name backwards; then all of it is turned round.
        let start = to.len();
        let mut at = place;
        while at.parent != NIL {
            let name = tree.name_of(at.name);
            to.try_room(name.len().saturating_add(1))?;
            for byte in name.iter().rev() {
                to.try_push(*byte)?;
            }
            to.try_push(b'/')?;
            let Some(above) = self.places.get(at.parent) else { break };
            at = above;
        }
        if let Some(path) = to.get_mut(start..) {
            path.reverse();
        }
        Ok(())
    }

    /// Makes the place of a path, with all above it.
    fn make_place(&mut self, tree: &mut Tree, path: &[u8]) -> Result<u32, NoMemory> {
        if !path.starts_with(b"/") {
            return self.make_below(tree, NIL, Some(path));
        }
        let mut at = self.make_below(tree, NIL, None)?;
        for name in path::components(path) {
            match self.make_below(tree, at, Some(name)) {
                Ok(next) => at = next,
                Err(NoMemory) => {
                    self.drop_unused(tree, at);
                    return Err(NoMemory);
                }
            }
        }
        Ok(at)
    }

    /// Makes the place of a path, from where the last turn came to on, as far as the budget reaches. Then the place that
    /// it has come to is kept for the next turn.
    ///
    /// # Errors
    /// There is no memory; what was made for nothing goes.
    pub(super) fn make_place_some(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        ahead: Option<PlaceAhead>,
        budget: &mut Budget,
    ) -> Result<Result<u32, PlaceAhead>, NoMemory> {
        let (mut at, mut there) = match ahead {
            Some(PlaceAhead { at, there }) => (at, there),
            None => (self.make_below(tree, NIL, None)?, 0),
        };
        if ahead.is_none() {
            self.keep(at);
        }
        for name in path::components(path.get(there..).unwrap_or(&[])) {
            if budget.is_over() {
                return Ok(Err(PlaceAhead { at, there }));
            }
            let next = self.make_below(tree, at, Some(name));
            if let Ok(next) = next {
                self.keep(next);
            }
            self.let_go(at);
            budget.spend(PLACE_WORK);
            at = next.inspect_err(|_| self.drop_unused(tree, at))?;
            there = there.saturating_add(name.len()).saturating_add(1);
        }
        self.let_go(at);
        Ok(Ok(at))
    }

    /// Looks for the place of a path, from where the last turn came to on, as far as the budget reaches. Then the place
    /// that it has come to is kept for the next turn.
    pub(super) fn find_place_some(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        ahead: Option<PlaceAhead>,
        budget: &mut Budget,
    ) -> Result<Option<u32>, PlaceAhead> {
        let begin = || self.first_place(tree, path).map(|at| PlaceAhead { at, there: 0 });
        let is_kept = ahead.is_some();
        let Some(PlaceAhead { mut at, mut there }) = ahead.or_else(begin) else { return Ok(None) };
        if !is_kept {
            self.keep(at);
        }
        for name in path::components(path.get(there..).unwrap_or(&[])) {
            if budget.is_over() {
                return Err(PlaceAhead { at, there });
            }
            budget.spend(FIND_WORK);
            let Some(next) = self.below(tree, at, name) else {
                self.give_up(tree, PlaceAhead { at, there });
                return Ok(None);
            };
            self.keep(next);
            self.let_go(at);
            at = next;
            there = there.saturating_add(name.len()).saturating_add(1);
        }
        self.let_go(at);
        Ok(Some(at))
    }

    /// Whoever wanted the place does not any more.
    pub(super) fn give_up(&mut self, tree: &mut Tree, ahead: PlaceAhead) {
        self.let_go(ahead.at);
        self.drop_unused(tree, ahead.at);
    }

    /// Somebody comes back to a place, which stays until then.
    fn keep(&mut self, place: u32) {
        if let Some(place) = self.places.get_mut(place) {
            place.below = place.below.saturating_add(1);
        }
    }

    fn let_go(&mut self, place: u32) {
        if let Some(place) = self.places.get_mut(place) {
            place.below = place.below.saturating_sub(1);
        }
    }

    fn make_below(
        &mut self,
        tree: &mut Tree,
        parent: u32,
        name: Option<&[u8]>,
    ) -> Result<u32, NoMemory> {
        let name = name.map_or(Ok(NIL), |name| tree.intern_name(name))?;
        if let Some(there) = self.child(parent, name) {
            tree.release_name(name);
            return Ok(there);
        }
        let place =
            Place { parent, name, first: NIL, last: NIL, below: 0, next_idle: NIL, chain: NIL };
        let made = self.places.insert(place);
        if made.is_err() {
            tree.release_name(name);
            return made;
        }
        let block = name_block(tree.name_of(name).len());
        self.held.names = self.held.names.saturating_add(block);
        if let Some(above) = self.places.get_mut(parent) {
            above.below = above.below.saturating_add(1);
        }
        made
    }

    /// Removes a place without watches and without places below, and those above that are so then. What more there is
    /// than can go at once is left to [`tidy`](Self::tidy).
    pub(super) fn drop_unused(&mut self, tree: &mut Tree, place: u32) {
        self.drop_some(tree, place, &mut Budget::new(FREED_AT_ONCE));
    }

    /// Whether there are places that may be of no use any more.
    pub(super) fn is_untidy(&self) -> bool {
        self.idle != NIL
    }

    /// Removes places that are of no use any more, as far as the budget reaches.
    pub(super) fn tidy(&mut self, tree: &mut Tree, budget: &mut Budget) -> Progress {
        while let Some(place) = self.places.get_mut(self.idle) {
            let at = core::mem::replace(&mut self.idle, place.next_idle);
            self.let_go(at);
            self.drop_some(tree, at, budget);
            if budget.is_over() && self.is_untidy() {
                return Progress::More;
            }
        }
        Progress::Done
    }

    fn drop_some(&mut self, tree: &mut Tree, place: u32, budget: &mut Budget) {
        let mut at = place;
        while let Some(place) = self.places.get_mut(at) {
            if place.first != NIL || place.below > 0 {
                return;
            }
            if budget.is_over() {
                place.next_idle = core::mem::replace(&mut self.idle, at);
                self.keep(at);
                return;
            }
            budget.spend(PLACE_WORK);
            let (parent, name) = (place.parent, place.name);
            self.places.remove(at);
            let block = tree.release_name(name);
            self.held.names = self.held.names.saturating_sub(block);
            if let Some(above) = self.places.get_mut(parent) {
                above.below = above.below.saturating_sub(1);
            }
            at = parent;
        }
    }

    // Watches.

    /// The watch that a connection has set with this path and token.
    pub(super) fn find(&self, tree: &Tree, conn: ConnId, path: &[u8], token: &[u8]) -> Option<u32> {
        self.find_at(conn, self.place(tree, path)?, token)
    }

    /// The same, by the place of the path.
    pub(super) fn find_at(&self, conn: ConnId, place: u32, token: &[u8]) -> Option<u32> {
        let key = self.key(conn, place, token);
        let same =
            |watch: &Watch| watch.conn == conn && watch.place == place && *watch.token == *token;
        self.watches.find(u64::from(key), same)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low bits are good enough")]
    fn key(&self, conn: ConnId, place: u32, token: &[u8]) -> u32 {
        let token = bytes_hash(self.watches.seed(), token);
        child_hash(token, conn.0, place) as u32
    }

    /// Adds a watch of a connection; there must be none with the same path and token.
    ///
    /// # Errors
    /// There is no memory; nothing has changed.
    pub(super) fn add(
        &mut self,
        tree: &mut Tree,
        (id, conn): (ConnId, &mut Conn),
        path: &path::Path,
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<(), NoMemory> {
        let place = self.make_place(tree, path.bytes())?;
        self.add_at(tree, (id, conn), (path, place), token, depth)
    }

    /// As [`add`](Self::add), at a place that was made for it.
    ///
    /// # Errors
    /// There is no memory; the place goes, too.
    pub(super) fn add_at(
        &mut self,
        tree: &mut Tree,
        (id, conn): (ConnId, &mut Conn),
        (path, place): (&path::Path, u32),
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<(), NoMemory> {
        let copy = try_bytes(token).inspect_err(|_| self.drop_unused(tree, place))?;
        let prev_here = self.places.get(place).map_or(NIL, |place| place.last);
        let prev_own = conn.watches.1;
        let (bytes, block) = (watch_bytes(path.bytes(), token), block_bytes(token.len()));
        let made = self.watches.insert(Watch {
            token: copy,
            serial: self.serial.saturating_add(1),
            conn: id,
            depth: depth.map_or(ALL, |depth| depth.min(ALL.saturating_sub(1))),
            place,
            key: self.key(id, place, token),
            next_here: NIL,
            prev_here,
            next_own: NIL,
            prev_own,
            chain: NIL,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            pins: 0,
            home: u8::try_from(path.home()).unwrap_or(0),
            is_dead: false,
        });
        let Ok(watch) = made else {
            self.drop_unused(tree, place);
            return Err(NoMemory);
        };
        self.held.charged = self.held.charged.saturating_add(bytes);
        self.held.tokens = self.held.tokens.saturating_add(block);
        self.serial = self.serial.saturating_add(1);
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
        conn.watches.1 = watch;
        if prev_own == NIL {
            conn.watches.0 = watch;
        }
        Ok(())
    }

    /// Removes a watch of a connection, and returns what it counted for. The budget pays for places that are of no use any
    /// more and go at once.
    pub(super) fn remove(
        &mut self,
        tree: &mut Tree,
        conn: &mut Conn,
        watch: u32,
        budget: &mut Budget,
    ) -> usize {
        let Some(gone) = self.watches.get(watch).filter(|watch| !watch.is_dead) else { return 0 };
        let (prev, next, pins) = (gone.prev_own, gone.next_own, gone.pins);
        let (bytes, block) = (gone.bytes as usize, block_bytes(gone.token.len()));
        self.held.charged = self.held.charged.saturating_sub(bytes);
        self.held.tokens = self.held.tokens.saturating_sub(block);
        if let Some(before) = self.watches.get_mut(prev) {
            before.next_own = next;
        }
        if let Some(after) = self.watches.get_mut(next) {
            after.prev_own = prev;
        }
        if conn.watches.0 == watch {
            conn.watches.0 = next;
        }
        if conn.watches.1 == watch {
            conn.watches.1 = prev;
        }
        if pins == 0 {
            self.free(tree, watch, budget);
            return bytes;
        }
        self.watches.unlist(watch);
        self.dead = self.dead.saturating_add(1);
        if let Some(dead) = self.watches.get_mut(watch) {
            dead.is_dead = true;
            dead.token = Box::default();
        }
        bytes
    }

    /// Takes a watch that is in nobody's own list any more out of its place.
    fn free(&mut self, tree: &mut Tree, watch: u32, budget: &mut Budget) {
        let Some(gone) = self.watches.remove(watch) else { return };
        if let Some(before) = self.watches.get_mut(gone.prev_here) {
            before.next_here = gone.next_here;
        }
        if let Some(after) = self.watches.get_mut(gone.next_here) {
            after.prev_here = gone.prev_here;
        }
        let Some(place) = self.places.get_mut(gone.place) else { return };
        if place.first == watch {
            place.first = gone.next_here;
        }
        if place.last == watch {
            place.last = gone.prev_here;
        }
        let mut at_once = Budget::new(FREED_AT_ONCE);
        self.drop_some(tree, gone.place, &mut at_once);
        budget.spend(FREED_AT_ONCE.saturating_sub(at_once.left()));
    }

    /// Somebody will come back to a watch.
    pub(super) fn pin(&mut self, watch: u32) {
        if let Some(watch) = self.watches.get_mut(watch) {
            // As many as there are connections at most.
            watch.pins = watch.pins.saturating_add(1);
        }
    }

    /// Somebody has come back to a watch.
    pub(super) fn unpin(&mut self, tree: &mut Tree, watch: u32) {
        let Some(pinned) = self.watches.get_mut(watch) else { return };
        pinned.pins = pinned.pins.saturating_sub(1);
        if pinned.is_dead && pinned.pins == 0 {
            self.dead = self.dead.saturating_sub(1);
            self.free(tree, watch, &mut Budget::endless());
        }
    }

    /// Every watch of a connection, in the order of registration.
    pub(super) fn of(&self, conn: &Conn) -> impl Iterator<Item = &Watch> {
        let first = self.get(conn.watches.0);
        core::iter::successors(first, |watch| self.get(watch.next_own))
    }

    /// The name that each place uses, for the consistency check.
    pub(super) fn name_uses(&self) -> impl Iterator<Item = u32> {
        self.places.iter().map(|(_, place)| place.name).filter(|name| *name != NIL)
    }

    /// How many places there are that nothing keeps, for the consistency check, or that count wrongly what is below.
    pub(super) fn faults(&self) -> usize {
        let wrong = |(handle, place): &(u32, &Place)| {
            let below = self.places.iter().filter(|(_, other)| other.parent == *handle).count();
            place.first == NIL && place.below == 0 || below != place.below as usize
        };
        self.places.iter().filter(wrong).count()
    }
}

/// The levels of an absolute path: 0 for the root.
pub(super) fn levels(path: &[u8]) -> u32 {
    if path == b"/" {
        return 0;
    }
    u32::try_from(count(path, b'/')).unwrap_or(u32::MAX)
}

/// What a watch counts for in the memory of its connection's domain: itself, its token, and every place on the way to its
/// path, as if nobody else had a watch there.
pub(super) fn watch_bytes(path: &[u8], token: &[u8]) -> usize {
    let itself = WATCH_BYTES.saturating_add(block_bytes(token.len())).saturating_add(PLACE_BYTES);
    if !path.starts_with(b"/") {
        return itself.saturating_add(name_block(path.len()));
    }
    let places = PLACE_BYTES.saturating_mul(levels(path) as usize);
    let sum = itself.saturating_add(places);
    // With a slash in every eighth of it, as in paths of many levels, no name is long enough for a block.
    if path.chunks_exact(SHORT / 2).all(|part| part.contains(&b'/')) {
        return sum;
    }
    path::components(path).fold(sum, |sum, name| sum.saturating_add(name_block(name.len())))
}

/// No name of so many bytes has a block.
const SHORT: usize = 16;
const _: () = assert!(name_block(SHORT) == 0);

/// What a watch takes besides its token.
const WATCH_BYTES: usize = Table::<Watch>::RECORD_BYTES;

/// What a place takes besides the block of a long name, if nobody else uses that name.
const PLACE_BYTES: usize = Table::<Place>::RECORD_BYTES + Tree::NAME_BYTES;

/// What watches take, and what is charged for them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Held {
    /// The blocks of tokens.
    tokens: usize,
    /// The blocks of long names, once for each place.
    names: usize,
    /// What all watches together count for.
    charged: usize,
}

impl Watches {
    /// Bytes that they take of the allocator.
    pub(super) fn taken(&self) -> usize {
        self.watches.taken().saturating_add(self.places.taken()).saturating_add(self.held.tokens)
    }

    /// What they count for together, and what their records and blocks take of that, without the names.
    pub(super) fn charged(&self) -> (usize, usize) {
        let watches = self.watches.len().saturating_mul(WATCH_BYTES);
        let places = self.places.len().saturating_mul(Table::<Place>::RECORD_BYTES);
        (self.held.charged, watches.saturating_add(places).saturating_add(self.held.tokens))
    }

    /// What the blocks of long names take that places use, once for each of them.
    pub(super) fn name_blocks(&self) -> usize {
        self.held.names
    }
}
