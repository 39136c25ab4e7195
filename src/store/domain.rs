//! What the store knows of each domain: its limits, what it uses of them, what it owns.
//!
//! Everything a guest makes the server hold is counted here, at the place where it is
//! stored, so that the figures can be recounted from the data (see `check.rs`).

use super::Special;
use super::events::Audience;
use super::quota::{Quota, Quotas};
use super::tree::{NO_RIGHT, Right};
use crate::mem::{Boxed, NIL, NoMemory, block_bytes, try_array};
use crate::proto::id::DomId;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicUsize, Ordering};

/// What is to be done because of a domain, in this order: it is in a list of all that have some.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Affairs {
    /// It is gone: its nodes and its rights go, then its account.
    pub(super) forget: bool,
    /// `@introduceDomain` is to be announced, with and without its domid.
    pub(super) introduce: bool,
    pub(super) introduce_plain: bool,
    /// `@releaseDomain` is to be announced with its domid, and without it.
    pub(super) release: bool,
    pub(super) release_plain: bool,
    /// It is in the list; who comes next there.
    pub(super) is_listed: bool,
    next: Option<DomId>,
}

impl Affairs {
    /// What became of the domain has been told to these.
    pub(super) fn told(&mut self, special: Special, audience: Audience) {
        match (special, audience) {
            (Special::IntroduceDomain, Audience::Plain) => self.introduce_plain = false,
            (Special::IntroduceDomain, _) => {
                (self.introduce, self.introduce_plain) = (false, true);
            }
            (Special::ReleaseDomain, Audience::Plain) => self.release_plain = false,
            (Special::ReleaseDomain, _) => self.release = false,
        }
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
    /// Bytes of it that are permission lists of nodes that it owns.
    pub(super) listed: usize,
    /// The first and the last node that it owns, in the order in which it came to own them. Not kept for the
    /// privileged domain, whose nodes nobody removes.
    pub(super) owned: (u32, u32),
    /// The first of the entries of permission lists that are its and not stale, likewise.
    pub(super) rights: Right,
    /// What is to be done because of it.
    pub(super) affairs: Affairs,
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
    /// The first and the last domain because of which something is to be done.
    affairs: Option<(DomId, DomId)>,
    /// The place of the quota that was last found to be used up. Looking at a limit changes nothing else, so it is
    /// no reason to need all of this exclusively.
    refused: AtomicUsize,
}

/// The domains that were tracked at some moment, ascending: a bit for each domid, so that it takes no memory.
#[derive(Debug)]
pub struct Domids {
    there: [u64; 1024],
    next: usize,
}

impl Iterator for Domids {
    type Item = DomId;
    fn next(&mut self) -> Option<DomId> {
        while let Some(word) = self.there.get_mut(self.next) {
            let bit = word.trailing_zeros();
            if bit < u64::BITS {
                *word &= word.wrapping_sub(1);
                let domid = self.next.wrapping_mul(64).wrapping_add(bit as usize);
                return u16::try_from(domid).ok().map(DomId);
            }
            self.next = self.next.saturating_add(1);
        }
        None
    }
}

/// The page of a domid and the place in it.
fn place(domid: DomId) -> (usize, usize) {
    let [low, high] = domid.0.to_le_bytes();
    (usize::from(high), usize::from(low))
}

impl Accounts {
    pub(super) fn new(privileged: DomId, initial: Quotas) -> Self {
        let pages = [const { None }; 256];
        let refused = AtomicUsize::new(NONE);
        let mut domains = Self { pages, privileged, initial, affairs: None, refused };
        // Without memory for that there is no store, either.
        let _ = domains.learn(privileged);
        domains
    }

    pub(super) fn learn(&mut self, domid: DomId) -> Result<(), NoMemory> {
        let quotas = self.initial;
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
            listed: 0,
            owned: (NIL, NIL),
            rights: NO_RIGHT,
            affairs: Affairs::default(),
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
    pub(super) fn ids(&self) -> Domids {
        let mut ids = Domids { there: [0; 1024], next: 0 };
        for (words, page) in ids.there.chunks_exact_mut(4).zip(&self.pages) {
            let Some(page) = page else { continue };
            for (word, domains) in words.iter_mut().zip(page.chunks_exact(64)) {
                for (bit, domain) in (0_u32..).zip(domains) {
                    *word |= u64::from(domain.is_some()) << bit;
                }
            }
        }
        ids
    }

    /// Whether a domain is tracked and not gone.
    pub(super) fn knows(&self, domid: DomId) -> bool {
        self.get(domid).is_some_and(|domain| !domain.affairs.forget)
    }

    /// Whether a domain is gone, and something of it is still there.
    pub(super) fn is_dying(&self, domid: DomId) -> bool {
        self.get(domid).is_some_and(|domain| domain.affairs.forget)
    }

    /// Something is to be done because of a domain: it is the last in the list, if it was not in it.
    pub(super) fn enlist(&mut self, domid: DomId, change: impl FnOnce(&mut Affairs)) {
        let Some(domain) = self.get_mut(domid) else { return };
        change(&mut domain.affairs);
        if core::mem::replace(&mut domain.affairs.is_listed, true) {
            return;
        }
        let last = self.affairs.map(|(_, last)| last);
        if let Some(last) = last.and_then(|last| self.get_mut(last)) {
            last.affairs.next = Some(domid);
        }
        self.affairs = Some(self.affairs.map_or((domid, domid), |(first, _)| (first, domid)));
    }

    /// The first domain because of which something is to be done.
    pub(super) fn first_affair(&self) -> Option<DomId> {
        self.affairs.map(|(first, _)| first)
    }

    /// It is done.
    pub(super) fn settle(&mut self) {
        let Some((first, last)) = self.affairs else { return };
        let next = self.get_mut(first).and_then(|domain| {
            domain.affairs.is_listed = false;
            domain.affairs.next.take()
        });
        self.affairs = next.map(|next| (next, last));
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

    /// A permission list of so many bytes has this owner; whether that is somebody who pays for it.
    pub(super) fn take_list(&mut self, domid: DomId, bytes: usize) -> bool {
        self.take(domid, Quota::Memory, bytes);
        let Some(domain) = self.get_mut(domid) else { return false };
        domain.listed = domain.listed.saturating_add(bytes);
        true
    }

    /// The owner does not pay for such a list any more.
    pub(super) fn give_back_list(&mut self, domid: DomId, bytes: usize) {
        self.give_back(domid, Quota::Memory, bytes);
        if let Some(domain) = self.get_mut(domid) {
            domain.listed = domain.listed.saturating_sub(bytes);
        }
    }

    /// Bytes that all accounts say together.
    pub(super) fn sum(&self) -> usize {
        let domains = self.pages.iter().flatten().flat_map(|page| page.iter().flatten());
        domains.fold(0, |sum, domain| sum.saturating_add(domain.used.get(Quota::Memory) as usize))
    }

    /// Bytes that the accounts themselves take of the allocator.
    pub(super) fn taken(&self) -> usize {
        const PAGE: usize = block_bytes(size_of::<Page>());
        const DOMAIN: usize = block_bytes(size_of::<Domain>());
        self.pages.iter().flatten().fold(0, |sum: usize, page| {
            let domains = page.iter().flatten().count();
            sum.saturating_add(PAGE).saturating_add(domains.saturating_mul(DOMAIN))
        })
    }

    /// Whether a domain may use `more` of something in addition to what it uses.
    #[must_use]
    pub fn allows(&self, domid: DomId, quota: Quota, more: usize) -> bool {
        self.note(quota, self.permits(domid, quota, more))
    }

    /// As [`allows`](Self::allows), for what no request is refused for.
    #[must_use]
    pub fn permits(&self, domid: DomId, quota: Quota, more: usize) -> bool {
        domid == self.privileged
            || self.get(domid).is_none_or(|domain| {
                let used = domain.used.get(quota) as usize;
                domain.quotas.allows(quota, used.saturating_add(more))
            })
    }

    /// How much a domain uses of something.
    #[must_use]
    pub fn used(&self, domid: DomId, quota: Quota) -> usize {
        self.get(domid).map_or(0, |domain| domain.used.get(quota) as usize)
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
