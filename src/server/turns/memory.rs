//! Shares of the memory: who may still have some when little is left.
//!
//! A failed allocation fails one request, whoever sent it. This decides who is refused first: those who hold the
//! most. The privileged domain is refused last.
//!
//! | bytes | are kept for |
//! |---|---|
//! | [`CLEANUP`] | the privileged domain: looking, removing, ending transactions, CONTROL |
//! | [`GROW`] | the privileged domain: one domain more, with its nodes, watches and transactions |
//! | [`MINIMUM`] for each connection | that domain, so that a guest can start beside others that have taken all they may |
//! | [`FIRST`] for each connection, out of three quarters of [`GROW`] | the first requests of a domain that has nothing yet |
//!
//! A guest grows beyond its minimum only while it would not hold more than what is then left for all. So no list
//! of holders is needed: as free memory shrinks, the largest are refused first, and of N guests that take what
//! they can, each gets about one part of N + 1.
//!
//! Only memory that can really be had counts ([`HeapStats::free`]). `docs/administration.md`, "Memory", has the
//! sum for an administrator.

use crate::proto::id::DomId;
use crate::proto::request::Request;
use crate::proto::text::count;
use crate::proto::wire::PAYLOAD_MAX;
use crate::server::Server;
use crate::server::platform::{HeapStats, Platform};
use crate::server::requests::{Asker, MemoryUse};
use crate::store::Store;
use crate::store::quota::Quota;

/// Kept for the privileged domain when it reads and cleans up: enough for some requests with their replies, and a
/// transaction that removes.
const CLEANUP: usize = 256 * 1024;

/// Kept for the privileged domain to grow: one domain more has some 200 nodes, as many watches of its backends,
/// and the transactions that make them.
const GROW: usize = 512 * 1024;

/// Kept for each connection. All of it together is at most one part of [`MINIMA_PART`] of the memory.
const MINIMUM: usize = 64 * 1024;
const MINIMA_PART: usize = 8;

/// What a domain may hold out of the privileged domain's reserve, of which a quarter stays. A domain that was just
/// made begins with a request, and that is part of making one. It is enough for a node with the longest value.
const FIRST: usize = 16 * 1024;
const LEFT_OF_GROW: usize = GROW / 4;

/// The most that any request takes: itself, its reply, the bookkeeping of a connection, and a page for each table
/// that grows by one.
const REQUEST: usize = 8 * PAYLOAD_MAX;

/// The most that one level of a path takes, as a node, touched in a transaction, or watched.
const LEVEL: usize = 1024;

/// To read a request: a page for its payload.
const READ: usize = 2 * PAYLOAD_MAX;

/// Who asks for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Share {
    /// The privileged domain.
    Privileged,
    /// Another domain.
    Guest {
        /// Bytes that are charged to it.
        held: usize,
        /// How many connections there are.
        connections: usize,
    },
}

impl Share {
    /// The share of a guest, or, with `None`, of the privileged domain.
    pub(in crate::server) fn of(guest: Option<usize>, connections: usize) -> Self {
        guest.map_or(Self::Privileged, |held| Self::Guest { held, connections })
    }

    /// How much has to be left after it has got `bytes` more.
    fn floor(self, memory_use: MemoryUse, bytes: usize) -> usize {
        match (self, memory_use) {
            (Self::Privileged, MemoryUse::Frees | MemoryUse::Looks) => 0,
            (Self::Privileged, MemoryUse::Grows) => CLEANUP,
            (Self::Guest { .. }, MemoryUse::Frees) => CLEANUP / 2,
            (Self::Guest { .. }, MemoryUse::Looks) => CLEANUP,
            (Self::Guest { held, .. }, MemoryUse::Grows) if after(held, bytes) <= FIRST => {
                CLEANUP + LEFT_OF_GROW
            }
            (Self::Guest { .. }, MemoryUse::Grows) => CLEANUP + GROW,
        }
    }

    /// Whether it may have `bytes` more. What has to be left is asked of Xen first, so that it is there.
    fn allows<P: Platform>(self, platform: &mut P, memory_use: MemoryUse, bytes: usize) -> bool {
        if !platform.reserve(self.floor(memory_use, bytes).saturating_add(bytes)) {
            return false;
        }
        let grows = memory_use == MemoryUse::Grows && self != Self::Privileged;
        !grows || self.is_within(platform.heap(), memory_use, bytes)
    }

    /// The part of this that needs only numbers.
    fn is_within(self, heap: HeapStats, memory_use: MemoryUse, bytes: usize) -> bool {
        let floor = self.floor(memory_use, bytes);
        if heap.free < floor.saturating_add(bytes) {
            return false;
        }
        let (Self::Guest { held, connections }, MemoryUse::Grows) = (self, memory_use) else {
            return true;
        };
        let minimum = minimum(heap.limit, connections);
        let after = after(held, bytes);
        let kept = floor.saturating_add(minimum.saturating_mul(connections));
        after <= minimum.max(FIRST) || after <= heap.free.saturating_sub(kept)
    }
}

/// What a domain holds after a request for so many bytes. What every request needs for a moment is no part of
/// that.
const fn after(held: usize, bytes: usize) -> usize {
    held.saturating_add(bytes.saturating_sub(REQUEST))
}

/// What each of so many connections can have, whatever the others hold.
fn minimum(memory: usize, connections: usize) -> usize {
    let part = memory.wrapping_div(MINIMA_PART);
    part.checked_div(connections).unwrap_or(part).min(MINIMUM)
}

/// Upper bound of what a request can make the server hold.
fn need(request: &Request<'_>, payload_len: usize) -> usize {
    let path = request.path().unwrap_or_default();
    let levels = count(path, b'/').saturating_add(1);
    REQUEST
        .saturating_add(levels.saturating_mul(LEVEL))
        .saturating_add(payload_len.saturating_mul(2))
}

impl<P: Platform> Server<P> {
    /// Whether there is memory for a request. If so, the store knows how much it may use.
    pub(in crate::server) fn admits(
        &mut self,
        asker: Asker,
        request: &Request<'_>,
        memory_use: MemoryUse,
        payload_len: usize,
    ) -> bool {
        let guest = (!asker.privileged).then(|| held(&self.store, asker.domid));
        let share = Share::of(guest, self.connections.len());
        let bytes = match memory_use {
            MemoryUse::Frees | MemoryUse::Looks => READ,
            MemoryUse::Grows => need(request, payload_len),
        };
        let admitted = share.allows(&mut self.platform, memory_use, bytes);
        self.limit_store(share.floor(memory_use, bytes));
        admitted
    }

    /// Lets the store use all that is there, for work that no request asked for.
    pub(in crate::server) fn give_headroom(&mut self) {
        self.limit_store(0);
    }

    /// Tells the store how much it may allocate for work without a bound of its own, if `kept` has to be left.
    fn limit_store(&mut self, kept: usize) {
        self.store.set_headroom(self.platform.heap().free.saturating_sub(kept));
    }
}

/// Bytes that are charged to a domain.
pub(in crate::server) fn held(store: &Store, domid: DomId) -> usize {
    store.usage(domid, Quota::Memory).map_or(0, |(used, _)| used as usize)
}

/// Whether there is memory to read a request from a ring at all.
pub(in crate::server) fn can_read<P: Platform>(platform: &mut P, privileged: bool) -> bool {
    let share = Share::of((!privileged).then_some(0), 0);
    share.allows(platform, MemoryUse::Frees, READ)
}

/// Whether a message of so many bytes may wait.
pub(in crate::server) fn can_queue<P: Platform>(
    platform: &mut P,
    share: Share,
    bytes: usize,
) -> bool {
    share.allows(platform, MemoryUse::Grows, bytes)
}

/// Whether there is memory for the image of a successor, or for a dump.
pub(in crate::server) fn can_upload<P: Platform>(platform: &mut P, size: usize) -> bool {
    Share::Privileged.allows(platform, MemoryUse::Grows, size)
}

/// Whether there is memory to write the state down, which sorts so many ids.
pub(in crate::server) fn can_save<P: Platform>(platform: &mut P, ids: usize) -> bool {
    Share::Privileged.allows(
        platform,
        MemoryUse::Looks,
        ids.saturating_mul(16).saturating_add(READ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const MIB: usize = 1 << 20;

    /// Guests that take what they get, a little at a time.
    struct Crowd {
        memory: usize,
        held: Vec<usize>,
    }

    impl Crowd {
        fn free(&self) -> usize {
            self.memory - self.held.iter().sum::<usize>()
        }

        fn takes(&mut self, guest: usize, bytes: usize) -> bool {
            let heap = HeapStats { free: self.free(), limit: self.memory, ..HeapStats::default() };
            let share = Share::of(Some(self.held[guest]), self.held.len());
            let fine = share.is_within(heap, MemoryUse::Grows, bytes);
            if fine {
                self.held[guest] += bytes;
            }
            fine
        }

        fn feast(&mut self) {
            while (0..self.held.len()).filter(|guest| self.takes(*guest, 5000)).count() > 0 {}
        }
    }

    #[test]
    fn guests_get_equal_parts_and_leave_the_privileged_domain_its_own() {
        for guests in [1, 5, 31, 200] {
            let mut crowd = Crowd { memory: 60 * MIB, held: vec![0; guests] };
            crowd.feast();
            let (least, most) =
                (crowd.held.iter().min().unwrap(), crowd.held.iter().max().unwrap());
            assert!(
                *most <= 60 * MIB / guests && *least + 100_000 > *most,
                "{guests}: {least} {most}"
            );
            assert!(crowd.free() >= CLEANUP + GROW, "{guests}: {}", crowd.free());
            // Whoever comes now still gets a minimum.
            crowd.held.push(0);
            let before = crowd.free();
            while crowd.takes(guests, 1000) {}
            let got = before - crowd.free();
            assert!(got + 1000 > minimum(60 * MIB, guests + 1), "{guests}: {got}");
            assert!(crowd.free() >= CLEANUP + GROW);
        }
    }

    #[test]
    fn who_holds_the_most_is_refused_first() {
        let mut crowd = Crowd { memory: 20 * MIB, held: vec![0; 3] };
        // One alone gets half of it.
        while crowd.takes(0, 5000) {}
        assert!(crowd.held[0] > 8 * MIB, "{}", crowd.held[0]);
        assert!(crowd.takes(1, MIB) && crowd.takes(2, MIB));
        assert!(!crowd.takes(0, 100));
        assert!(crowd.takes(1, MIB) && !crowd.takes(0, 100));
    }

    #[test]
    fn the_reserves_are_the_privileged_domains_alone() {
        let guest = Share::of(Some(FIRST + 1), 3);
        let may = |free: usize, share: Share, memory_use| {
            let heap = HeapStats { free, limit: 60 * MIB, ..HeapStats::default() };
            share.is_within(heap, memory_use, 1000)
        };
        let all = [MemoryUse::Frees, MemoryUse::Looks, MemoryUse::Grows];
        assert_eq!(all.map(|memory_use| may(MIB, guest, memory_use)), [true; 3]);
        assert_eq!(
            all.map(|memory_use| may(CLEANUP + GROW, guest, memory_use)),
            [true, true, false]
        );
        assert_eq!(all.map(|memory_use| may(CLEANUP, guest, memory_use)), [true, false, false]);
        assert_eq!(all.map(|memory_use| may(CLEANUP / 2, guest, memory_use)), [false; 3]);
        // A domain that was just made has its first request out of what is kept for making one, but not all of that.
        let newcomer = Share::of(Some(0), 3);
        let enough = CLEANUP + LEFT_OF_GROW + 1000;
        assert_eq!(all.map(|memory_use| may(enough, newcomer, memory_use)), [true; 3]);
        assert_eq!(
            all.map(|memory_use| may(enough - 1, newcomer, memory_use)),
            [true, true, false]
        );
        let privileged = Share::Privileged;
        assert_eq!(all.map(|memory_use| may(CLEANUP + 1000, privileged, memory_use)), [true; 3]);
        assert_eq!(all.map(|memory_use| may(CLEANUP, privileged, memory_use)), [true, true, false]);
        assert_eq!(all.map(|memory_use| may(1000, privileged, memory_use)), [true, true, false]);
    }

    #[test]
    fn a_request_needs_what_its_path_makes() {
        let write = |path| need(&Request::Write { path, value: b"" }, path.len());
        assert!(write(b"/a/b") < write(b"/a/b/c/d/e/f/g"));
        assert!(write(b"/aaaaaaaaaa") < write(b"/a/a/a/a/a/"));
    }
}
