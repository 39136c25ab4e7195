//! What the store knows of each domain: its limits, what it uses of them, what it owns.
//!
//! Everything a guest makes the server hold is counted here, at the place where it is
//! stored, so that the figures can be recounted from the data (see `check.rs`).

use super::quota::{Quota, Quotas};
use crate::mem::{Boxed, NIL, NoMemory, try_array};
use crate::proto::id::DomId;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::Hash;
use core::sync::atomic::{AtomicUsize, Ordering};
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

/// Makes a map that lost most of its entries smaller, so that a crowd that is gone holds no memory. It
/// takes as many removals as the map then has room, so a removal costs no more than before on average.
pub(crate) fn give_room_back<K: Eq + Hash, V>(map: &mut HashMap<K, V, FixedState>) {
    if map.capacity() <= map.len().saturating_add(1).saturating_mul(4) {
        return;
    }
    // Not `shrink_to_fit`, which panics where there is no memory for the smaller map.
    let mut smaller = HashMap::with_hasher(map.hasher().clone());
    if smaller.try_reserve(map.len()).is_ok() {
        smaller.extend(map.drain());
        *map = smaller;
    }
}

/// A tracked domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) quotas: Quotas,
    pub(super) used: Quotas,
    pub(super) peak: Quotas,
    /// Bytes of its memory that are messages queued by the server.
    pub(super) queued: usize,
    /// The first and the last node that it owns, in the order in which it came to own them. Not kept for the
    /// privileged domain, whose nodes nobody removes.
    pub(super) owned: (u32, u32),
    /// Handles of the permission lists with an entry for it that is not stale, likewise.
    pub(super) lists: HashSet<u32, FixedState>,
}

impl Domain {
    fn charge(&mut self, quota: Quota, amount: usize) {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX);
        let used = self.used.get(quota).saturating_add(amount);
        self.used.set(quota, used);
        if used > self.peak.get(quota) {
            self.peak.set(quota, used);
        }
    }
}

/// No quota has this place.
const NONE: usize = usize::MAX;

/// Places for 256 domains whose domids follow each other.
type Page = [Option<Boxed<Domain>>; 256];

/// The accounts of all tracked domains. Every request looks several of them up, so a domid is a place and not a key.
#[derive(Debug)]
pub struct Accounts {
    /// By the upper half of the domid; a page is there if one of its domains is.
    pages: [Option<Box<Page>>; 256],
    pub(super) privileged: DomId,
    /// The limits that a domain starts with.
    pub(super) initial: Quotas,
    hasher: FixedState,
    /// The place of the quota that was last found to be used up. Looking at a limit changes nothing else, so it is
    /// no reason to need all of this exclusively.
    refused: AtomicUsize,
}

/// The page of a domid and the place in it.
fn place(domid: DomId) -> (usize, usize) {
    let [low, high] = domid.0.to_le_bytes();
    (usize::from(high), usize::from(low))
}

impl Accounts {
    pub(super) fn new(seed: u64, privileged: DomId, initial: Quotas) -> Self {
        let hasher = FixedState::with_seed(seed);
        let pages = [const { None }; 256];
        let refused = AtomicUsize::new(NONE);
        let mut domains = Self { pages, privileged, initial, hasher, refused };
        // Without memory for that there is no store, either.
        let _ = domains.learn(privileged);
        domains
    }

    pub(super) fn learn(&mut self, domid: DomId) -> Result<(), NoMemory> {
        let (quotas, hasher) = (self.initial, self.hasher.clone());
        let (page, at) = place(domid);
        let Some(page) = self.pages.get_mut(page) else { return Ok(()) };
        let page = match page {
            Some(page) => page,
            None => page.insert(try_array(|_| None)?),
        };
        let Some(slot @ None) = page.get_mut(at) else { return Ok(()) };
        *slot = Some(Boxed::new(Domain {
            quotas,
            used: Quotas::ZERO,
            peak: Quotas::ZERO,
            queued: 0,
            owned: (NIL, NIL),
            lists: HashSet::with_hasher(hasher),
        })?);
        Ok(())
    }

    #[inline]
    pub(super) fn get(&self, domid: DomId) -> Option<&Domain> {
        let (page, at) = place(domid);
        self.pages.get(page)?.as_ref()?.get(at)?.as_deref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        let (page, at) = place(domid);
        self.pages.get_mut(page)?.as_mut()?.get_mut(at)?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, domid: DomId) {
        let (number, at) = place(domid);
        let Some(slot) = self.pages.get_mut(number) else { return };
        let Some(page) = slot else { return };
        if let Some(domain) = page.get_mut(at) {
            *domain = None;
        }
        if page.iter().all(Option::is_none) {
            *slot = None;
        }
    }

    /// Every tracked domain, ascending.
    pub(super) fn ids(&self) -> Vec<DomId> {
        let mut ids = Vec::new();
        for (high, page) in (0..=u8::MAX).zip(&self.pages) {
            let domains = (0..=u8::MAX).zip(page.iter().flat_map(|page| page.iter()));
            let there = domains.filter(|(_, domain)| domain.is_some());
            ids.extend(there.map(|(low, _)| DomId(u16::from_le_bytes([low, high]))));
        }
        ids
    }

    /// Every tracked domain.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        let pages = self.pages.iter_mut().flatten();
        pages.flat_map(|page| page.iter_mut().flatten().map(|domain| &mut **domain))
    }

    /// Adds to what a domain uses of something that somebody above the store holds for it: requests outstanding, or
    /// bytes of messages queued. A domain that is not tracked is ignored.
    pub fn charge(&mut self, domid: DomId, quota: Quota, amount: usize) {
        if let Some(domain) = self.get_mut(domid) {
            domain.charge(quota, amount);
            if quota == Quota::Memory {
                domain.queued = domain.queued.saturating_add(amount);
            }
        }
    }

    /// Takes back a [`charge`](Self::charge).
    pub fn refund(&mut self, domid: DomId, quota: Quota, amount: usize) {
        self.give_back(domid, quota, amount);
        if quota == Quota::Memory
            && let Some(domain) = self.get_mut(domid)
        {
            domain.queued = domain.queued.saturating_sub(amount);
        }
    }

    /// Adds to what a domain uses of the store. An untracked domain holds nothing, so it is ignored.
    pub(super) fn take(&mut self, domid: DomId, quota: Quota, amount: usize) {
        if let Some(domain) = self.get_mut(domid) {
            domain.charge(quota, amount);
        }
    }

    /// Takes back a [`take`](Self::take).
    pub(super) fn give_back(&mut self, domid: DomId, quota: Quota, amount: usize) {
        if let Some(domain) = self.get_mut(domid) {
            let amount = u32::try_from(amount).unwrap_or(u32::MAX);
            domain.used.set(quota, domain.used.get(quota).saturating_sub(amount));
        }
    }

    /// Whether a domain may use `more` of something in addition to what it uses.
    #[must_use]
    pub fn allows(&self, domid: DomId, quota: Quota, more: usize) -> bool {
        domid == self.privileged
            || self.get(domid).is_none_or(|domain| {
                let used = domain.used.get(quota) as usize;
                self.note(quota, domain.quotas.allows(quota, used.saturating_add(more)))
            })
    }

    /// Keeps in mind which quota refuses something, if it does, for whoever tells the administrator.
    pub(super) fn note(&self, quota: Quota, is_allowed: bool) -> bool {
        if !is_allowed {
            self.refused.store(quota as usize, Ordering::Relaxed);
        }
        is_allowed
    }

    /// The quota that was last found to be used up since this was last asked.
    pub(super) fn take_refused(&self) -> Option<Quota> {
        let place = self.refused.swap(NONE, Ordering::Relaxed);
        Quota::ALL.get(place).copied()
    }

    /// A domain now owns so many nodes more, which take so many bytes together.
    pub(super) fn own(&mut self, domid: DomId, nodes: u32, bytes: usize) {
        self.take(domid, Quota::Nodes, nodes as usize);
        self.take(domid, Quota::Memory, bytes);
    }

    /// A domain no longer owns so many nodes, which took so many bytes together.
    pub(super) fn disown(&mut self, domid: DomId, nodes: u32, bytes: usize) {
        self.give_back(domid, Quota::Nodes, nodes as usize);
        self.give_back(domid, Quota::Memory, bytes);
    }
}
