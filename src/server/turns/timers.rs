//! When connections want to be served even if nobody signals: a heap with one place for each connection.
//!
//! A connection gets its place when it is made, so setting a timer takes no memory. The heap is a binary one
//! (Williams 1964) in blocks of a page. Each connection knows its place.

use crate::mem::{NIL, NoMemory, TryVec, block_bytes, room_bytes, try_array};
use crate::proto::id::ConnId;
use crate::server::rings::Connections;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Timers in a block.
const BLOCK: usize = 256;
const _: () = assert!(BLOCK * size_of::<Timer>() == 4096);

/// When, and for whom. If two have the same moment, the older connection comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::server) struct Timer {
    pub(in crate::server) at_ms: u64,
    pub(in crate::server) id: ConnId,
}

/// All timers that are set.
#[derive(Debug, Default)]
pub(in crate::server) struct Timers {
    blocks: Vec<Box<[Timer; BLOCK]>>,
    /// How many are set.
    len: usize,
    /// How many connections have a place.
    places: usize,
}

impl Timers {
    /// Bytes that they take of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        let block = const { block_bytes(size_of::<[Timer; BLOCK]>()) };
        let blocks = self.blocks.len().saturating_mul(block);
        blocks.saturating_add(room_bytes(&self.blocks))
    }

    /// Makes a place for one more connection.
    pub(in crate::server) fn promise(&mut self) -> Result<(), NoMemory> {
        if self.places >= self.blocks.len().saturating_mul(BLOCK) {
            let block = try_array(|_| Timer { at_ms: 0, id: ConnId(0) })?;
            self.blocks.try_push(block)?;
        }
        self.places = self.places.saturating_add(1);
        Ok(())
    }

    /// Removes the place of a connection that is gone, whose timer is not set.
    pub(in crate::server) fn withdraw(&mut self) {
        self.places = self.places.saturating_sub(1);
        // One block more than is needed stays, so that a single connection at the border costs none each time.
        self.blocks.truncate(self.places.div_ceil(BLOCK).saturating_add(1));
        if self.places == 0 {
            self.blocks = Vec::new();
        }
    }

    /// Whether none is set.
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next one.
    pub(in crate::server) fn first(&self) -> Option<Timer> {
        if self.len == 0 { None } else { self.get(0) }
    }

    /// Sets the timer of a connection, which must have a place; `None` clears it.
    pub(in crate::server) fn set<R>(
        &mut self,
        connections: &mut Connections<R>,
        id: ConnId,
        at_ms: Option<u64>,
    ) {
        let Some(connection) = connections.get_mut(id) else { return };
        let place = connection.timer as usize;
        match (connection.timer == NIL, at_ms) {
            (true, None) => {}
            (true, Some(at_ms)) => {
                let place = self.len;
                self.len = place.saturating_add(1);
                self.settle(connections, place, Timer { at_ms, id });
            }
            (false, Some(at_ms)) => self.settle(connections, place, Timer { at_ms, id }),
            (false, None) => {
                connection.timer = NIL;
                let last = self.len.saturating_sub(1);
                self.len = last;
                if let Some(moved) = self.get(last).filter(|_| place != last) {
                    self.settle(connections, place, moved);
                }
            }
        }
    }

    fn get(&self, place: usize) -> Option<Timer> {
        self.blocks.get(place / BLOCK)?.get(place % BLOCK).copied()
    }

    /// Puts a timer at a place, and tells its connection.
    fn put<R>(&mut self, connections: &mut Connections<R>, place: usize, timer: Timer) {
        let slot =
            self.blocks.get_mut(place / BLOCK).and_then(|block| block.get_mut(place % BLOCK));
        if let Some(slot) = slot {
            *slot = timer;
        }
        if let Some(connection) = connections.get_mut(timer.id) {
            connection.timer = u32::try_from(place).unwrap_or(NIL);
        }
    }

    /// Puts a timer where it belongs, beginning at a place that is free.
    fn settle<R>(&mut self, connections: &mut Connections<R>, place: usize, timer: Timer) {
        let mut at = place;
        while at > 0 {
            let above = at.wrapping_sub(1) / 2;
            let Some(parent) = self.get(above).filter(|parent| timer < *parent) else { break };
            self.put(connections, at, parent);
            at = above;
        }
        loop {
            let left = at.saturating_mul(2).saturating_add(1);
            let children = (left..self.len).take(2);
            let least = children.filter_map(|child| Some((self.get(child)?, child))).min();
            let Some((child, below)) = least.filter(|(child, _)| *child < timer) else { break };
            self.put(connections, at, child);
            at = below;
        }
        self.put(connections, at, timer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::DomId;
    use crate::proto::ring::{RingPage, Word};
    use crate::server::rings::Connection;
    use crate::server::rings::Messages;

    struct NoRing;

    impl RingPage for NoRing {
        fn load(&self, _: Word) -> u32 {
            0
        }
        fn store(&mut self, _: Word, _: u32) {}
        fn copy_request(&self, _: usize, _: &mut [u8]) {}
        fn copy_response(&mut self, _: usize, _: &[u8]) {}
        fn barrier(&self) {}
    }

    #[test]
    fn whatever_is_set_and_taken_back_they_come_in_order() {
        let (mut connections, mut timers) = (Connections::new(1), Timers::default());
        let mut messages = Messages::new(1).unwrap();
        for id in 1..=600 {
            connections.promise().unwrap();
            timers.promise().unwrap();
            let queue = messages.new_queue().unwrap();
            let made = Connection::new(DomId(1), NoRing, None, queue);
            connections.insert(ConnId(id), made);
        }
        // Numbers without a visible order (Knuth's MMIX constants).
        let mut state = 7_u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % limit
        };
        let mut wanted = [None; 601];
        for _ in 0..10_000 {
            let id = 1 + u32::try_from(below(600)).unwrap();
            let at_ms = (below(3) > 0).then(|| below(100));
            timers.set(&mut connections, ConnId(id), at_ms);
            wanted[id as usize] = at_ms;
            let first = (1..)
                .map(ConnId)
                .zip(&wanted[1..])
                .filter_map(|(id, at_ms)| at_ms.map(|at_ms| Timer { at_ms, id }));
            assert_eq!(timers.first(), first.min());
        }
        while let Some(Timer { id, .. }) = timers.first() {
            timers.set(&mut connections, id, None);
        }
        (0..600).for_each(|_| timers.withdraw());
        assert!(timers.is_empty() && timers.blocks.is_empty());
    }
}
