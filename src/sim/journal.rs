//! What passes between the server and its world, in order: everything that the server can know, and everything
//! that others can see of it. A judge needs nothing else, and trusts nothing else.

use crate::proto::id::{DomId, EvtchnPort};
use crate::server::platform::DomainState;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// The number of a page, unlike that of every other page of its world.
pub type PageId = u32;

/// One thing that passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The server took these bytes out of a request ring.
    Took(PageId, Vec<u8>),
    /// The server put these bytes into a response ring.
    Put(PageId, Vec<u8>),
    /// The server emptied a page's rings.
    Emptied(PageId),
    /// The server wrote the page's error word.
    GaveUp(PageId, u32),
    /// The ring page of a domain was mapped, or its mapping refused.
    Mapped(DomId, Option<PageId>),
    /// A port of a domain was bound, or that was refused.
    Bound(DomId, Option<EvtchnPort>),
    /// The server is in another domain now, whose ports follow, up to the next look.
    Moved,
    /// A port was closed.
    Unbound(EvtchnPort),
    /// The hypervisor named a domain that changed.
    Changed(DomId, DomainState),
    /// The hypervisor was asked what changed, and does not know that question.
    Scan,
    /// A new server looks at all domains to be sure, without news of any.
    Look,
    /// The hypervisor was asked about one domain.
    State(DomId, DomainState),
    /// The hypervisor has no more changes to tell.
    ScanEnd,
    /// Memory was asked for; whether it was there.
    Memory(usize, bool),
    /// The server read the clock.
    Clock(u64),
    /// The server failed in its code.
    Failed,
    /// Nothing is left of what dead domains had, and everybody has been told what became of domains.
    Settled,
}

/// A record of what passed; clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct Journal(Rc<RefCell<Option<Vec<Seen>>>>);

impl Journal {
    /// From now on everything is noted down.
    pub fn open(&self) {
        self.0.borrow_mut().get_or_insert_default();
    }

    /// Notes something down, if anybody cares.
    pub(super) fn note(&self, seen: impl FnOnce() -> Seen) {
        if let Some(entries) = &mut *self.0.borrow_mut() {
            entries.push(seen());
        }
    }

    /// Replaces the last entry if that turns out to have been misunderstood.
    pub(super) fn correct(&self, is_wrong: impl FnOnce(&Seen) -> bool, right: Seen) {
        if let Some(last) = self.0.borrow_mut().as_mut().and_then(|entries| entries.last_mut())
            && is_wrong(last)
        {
            *last = right;
        }
    }

    /// Takes what was noted since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Seen> {
        self.0.borrow_mut().as_mut().map(core::mem::take).unwrap_or_default()
    }
}
