//! All connections, and the lists that they are in.
//!
//! A list is a chain through the connections themselves. So entering a list takes no memory, a connection that is
//! gone is in no list, and taking the first costs the same for any length.

use super::connection::{Connection, Figures};
use crate::mem::{Map, NIL, NoMemory};
use crate::proto::id::ConnId;
use core::cell::Cell;

/// The lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(in crate::server) enum List {
    /// Every connection, in the order of introduction, which is that of their ids.
    All,
    /// Those that may have work, in the order in which they get their turn.
    Ready,
    /// Those served since the last look before sleeping.
    Served,
    /// Those that are not read because they, or the server, have no memory left.
    Short,
    /// Those that lost an event, which the administrator has to be told.
    Lost,
}

/// How many lists there are.
const LISTS: usize = 5;

/// A connection's neighbours in one list.
#[derive(Clone, Copy, Debug)]
struct Link {
    is_in: bool,
    prev: u32,
    next: u32,
}

/// A connection's neighbours in all lists.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Links([Link; LISTS]);

impl Links {
    /// In none.
    pub(in crate::server) const NONE: Self =
        Self([Link { is_in: false, prev: NIL, next: NIL }; LISTS]);

    fn of(&self, list: List) -> Link {
        let [all, ready, served, short, lost] = self.0;
        match list {
            List::All => all,
            List::Ready => ready,
            List::Served => served,
            List::Short => short,
            List::Lost => lost,
        }
    }

    fn of_mut(&mut self, list: List) -> &mut Link {
        let [all, ready, served, short, lost] = &mut self.0;
        match list {
            List::All => all,
            List::Ready => ready,
            List::Served => served,
            List::Short => short,
            List::Lost => lost,
        }
    }

    /// Whether it is in a list.
    pub(in crate::server) fn is_in(&self, list: List) -> bool {
        self.of(list).is_in
    }
}

/// The ends of one list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
    len: usize,
}

/// Counts of what connections have done. The sum over all connections is kept, so that nobody who asks has to look
/// at each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::server) struct Sums {
    pub(in crate::server) requests: u64,
    pub(in crate::server) events: u64,
    pub(in crate::server) dropped_events: u64,
    /// What was refused for want of a quota.
    pub(in crate::server) refused: u64,
}

impl Sums {
    pub(in crate::server) const EVENT: Self = Self { events: 1, ..Self::NONE };
    pub(in crate::server) const REFUSAL: Self = Self { refused: 1, ..Self::NONE };
    pub(in crate::server) const REQUEST: Self = Self { requests: 1, ..Self::NONE };
    pub(in crate::server) const NONE: Self =
        Self { requests: 0, events: 0, dropped_events: 0, refused: 0 };

    /// Events that their receiver does not get.
    pub(in crate::server) const fn dropped(dropped_events: u64) -> Self {
        Self { dropped_events, ..Self::NONE }
    }

    /// The sum of both, or the difference. What was added can be subtracted again, so it wraps.
    pub(in crate::server) fn with(self, more: Self, change: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: change(self.requests, more.requests),
            events: change(self.events, more.events),
            dropped_events: change(self.dropped_events, more.dropped_events),
            refused: change(self.refused, more.refused),
        }
    }

    /// What one connection has done.
    fn of<R>(connection: &Connection<R>) -> Self {
        let Figures { requests, events, dropped_events, .. } = connection.figures;
        Self { requests, events, dropped_events, refused: connection.told.refused }
    }
}

/// The connections.
#[derive(Debug)]
pub(in crate::server) struct Connections<R> {
    map: Map<ConnId, Connection<R>>,
    /// The one that was looked up last, and its handle: in its turn a connection is looked up again and again.
    last: Cell<(ConnId, u32)>,
    lists: [Ends; LISTS],
    /// What they have done, all together.
    sums: Sums,
}

impl<R> Connections<R> {
    pub(in crate::server) fn new(seed: u64) -> Self {
        Self {
            map: Map::new(seed),
            last: Cell::new((ConnId(0), NIL)),
            lists: [Ends { first: NIL, last: NIL, len: 0 }; LISTS],
            sums: Sums::NONE,
        }
    }

    /// Bytes that they take of the allocator, including the requests that are being read.
    pub(in crate::server) fn taken(&self) -> usize {
        let requests = self.iter().map(|(_, connection)| connection.assembler.taken());
        requests.fold(self.map.taken(), usize::saturating_add)
    }

    pub(in crate::server) fn len(&self) -> usize {
        self.map.len()
    }

    #[inline]
    pub(in crate::server) fn get(&self, id: ConnId) -> Option<&Connection<R>> {
        self.map.at(self.find(id)?).map(|(_, connection)| connection)
    }

    #[inline]
    fn find(&self, id: ConnId) -> Option<u32> {
        let (last, handle) = self.last.get();
        if last == id && handle != NIL {
            return Some(handle);
        }
        let handle = self.map.find(id)?;
        self.last.set((id, handle));
        Some(handle)
    }

    #[inline]
    pub(in crate::server) fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection<R>> {
        let handle = self.find(id)?;
        self.map.at_mut(handle).map(|(_, connection)| connection)
    }

    /// Makes sure that one more can be [entered](Self::insert).
    pub(in crate::server) fn promise(&mut self) -> Result<(), NoMemory> {
        self.map.promise()
    }

    /// The promised connection does not come.
    pub(in crate::server) fn withdraw(&mut self) {
        self.map.withdraw();
    }

    /// Enters one that was [promised](Self::promise). Ids only grow.
    pub(in crate::server) fn insert(&mut self, id: ConnId, connection: Connection<R>) {
        self.sums = self.sums.with(Sums::of(&connection), u64::wrapping_add);
        self.map.insert_promised(id, connection);
        self.push(List::All, id);
    }

    /// Takes one out, of all lists, too.
    pub(in crate::server) fn remove(&mut self, id: ConnId) -> Option<Connection<R>> {
        for list in [List::All, List::Ready, List::Served, List::Short, List::Lost] {
            self.leave(list, id);
        }
        self.last.set((ConnId(0), NIL));
        let removed = self.map.remove(id)?;
        self.sums = self.sums.with(Sums::of(&removed), u64::wrapping_sub);
        Some(removed)
    }

    /// Counts something that a connection has done.
    #[inline]
    pub(in crate::server) fn count(&mut self, id: ConnId, more: Sums) {
        let Some(connection) = self.get_mut(id) else { return };
        let Figures { requests, events, dropped_events, .. } = &mut connection.figures;
        *requests = requests.wrapping_add(more.requests);
        *events = events.wrapping_add(more.events);
        *dropped_events = dropped_events.wrapping_add(more.dropped_events);
        let refused = &mut connection.told.refused;
        *refused = refused.wrapping_add(more.refused);
        self.sums = self.sums.with(more, u64::wrapping_add);
    }

    /// What all that are there have done together.
    pub(in crate::server) fn sums(&self) -> Sums {
        self.sums
    }

    /// The same, computed by a walk over all: for checks.
    pub(in crate::server) fn sums_of_each(&self) -> Sums {
        let add = |sums: Sums, (_, connection)| sums.with(Sums::of(connection), u64::wrapping_add);
        self.iter().fold(Sums::NONE, add)
    }

    /// Every connection, in the order of introduction.
    pub(in crate::server) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection<R>)> + Clone {
        let mut at = self.ends(List::All).first;
        core::iter::from_fn(move || {
            let (id, connection) = self.map.at(at)?;
            at = connection.links.of(List::All).next;
            Some((id, connection))
        })
    }

    /// The first of a list.
    pub(in crate::server) fn first(&self, list: List) -> Option<ConnId> {
        self.map.at(self.ends(list).first).map(|(id, _)| id)
    }

    /// The one after another one in a list.
    pub(in crate::server) fn next(&self, list: List, id: ConnId) -> Option<ConnId> {
        let next = self.get(id)?.links.of(list).next;
        self.map.at(next).map(|(id, _)| id)
    }

    /// How many are in a list.
    pub(in crate::server) fn listed(&self, list: List) -> usize {
        self.ends(list).len
    }

    /// Whether nobody is in a list.
    pub(in crate::server) fn is_empty(&self, list: List) -> bool {
        self.ends(list).first == NIL
    }

    /// Puts a connection at the end of a list, unless it is in it.
    pub(in crate::server) fn push(&mut self, list: List, id: ConnId) {
        let Some(handle) = self.find(id) else { return };
        let last = self.ends(list).last;
        let Some((_, connection)) = self.map.at_mut(handle) else { return };
        let link = connection.links.of_mut(list);
        if link.is_in {
            return;
        }
        *link = Link { is_in: true, prev: last, next: NIL };
        if let Some((_, before)) = self.map.at_mut(last) {
            before.links.of_mut(list).next = handle;
        }
        let ends = self.ends_mut(list);
        ends.last = handle;
        if ends.first == NIL {
            ends.first = handle;
        }
        ends.len = ends.len.saturating_add(1);
    }

    /// Takes the first out of a list.
    pub(in crate::server) fn pop(&mut self, list: List) -> Option<ConnId> {
        let first = self.ends(list).first;
        let (id, connection) = self.map.at_mut(first)?;
        let next = core::mem::replace(
            connection.links.of_mut(list),
            Link { is_in: false, prev: NIL, next: NIL },
        )
        .next;
        self.bridge(list, NIL, next);
        Some(id)
    }

    /// Takes a connection out of a list, if it is in it.
    pub(in crate::server) fn leave(&mut self, list: List, id: ConnId) {
        let Some(connection) = self.get_mut(id) else { return };
        let link = connection.links.of_mut(list);
        if !link.is_in {
            return;
        }
        let Link { prev, next, .. } =
            core::mem::replace(link, Link { is_in: false, prev: NIL, next: NIL });
        self.bridge(list, prev, next);
    }

    /// Joins the neighbours of one that has left.
    fn bridge(&mut self, list: List, prev: u32, next: u32) {
        match self.map.at_mut(prev) {
            Some((_, before)) => before.links.of_mut(list).next = next,
            None => self.ends_mut(list).first = next,
        }
        match self.map.at_mut(next) {
            Some((_, after)) => after.links.of_mut(list).prev = prev,
            None => self.ends_mut(list).last = prev,
        }
        let ends = self.ends_mut(list);
        ends.len = ends.len.saturating_sub(1);
    }

    fn ends(&self, list: List) -> Ends {
        let [all, ready, served, short, lost] = self.lists;
        match list {
            List::All => all,
            List::Ready => ready,
            List::Served => served,
            List::Short => short,
            List::Lost => lost,
        }
    }

    fn ends_mut(&mut self, list: List) -> &mut Ends {
        let [all, ready, served, short, lost] = &mut self.lists;
        match list {
            List::All => all,
            List::Ready => ready,
            List::Served => served,
            List::Short => short,
            List::Lost => lost,
        }
    }
}
