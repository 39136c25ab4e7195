//! Permission lists: each is stored once and counted, and its entries are linked for each domain that they name, so
//! that the rights of a domain that is gone go one list at a time.

use super::Tree;
use crate::mem::{
    Budget, NIL, NoMemory, Progress, Record, Table, block_bytes, try_fill, try_slice,
};
use crate::proto::id::DomId;
use crate::store::perms::Entry;
use alloc::boxed::Box;
use core::hash::{BuildHasher, Hasher};
use foldhash::fast::FixedState;

/// Units of work that taking a domain's rights out of a list takes.
const STRIP_WORK: u64 = 200;
/// Besides, for each entry of the list.
const ENTRY_WORK: u64 = 60;

/// An entry of a list: the list and the place in it.
pub(in crate::store) type Right = (u32, u32);

/// No entry.
pub(in crate::store) const NO_RIGHT: Right = (NIL, 0);

/// An entry's neighbours among those for the same domain.
#[derive(Clone, Copy, Debug)]
struct Link {
    prev: Right,
    next: Right,
}

/// A permission list shared by all nodes that have it.
#[derive(Debug)]
pub(in crate::store) struct List {
    entries: Box<[Entry]>,
    /// One for each entry; none if the list names nobody whose rights are listed.
    links: Box<[Link]>,
    /// How many entries there are: some may have been taken out.
    len: u32,
    pub(in crate::store) users: u32,
    chain: u32,
    /// Its owner pays for it.
    is_paid: bool,
}

impl List {
    /// Bytes of its blocks.
    fn blocks(&self) -> usize {
        let entries = block_bytes(size_of_val(&*self.entries));
        entries.saturating_add(block_bytes(size_of_val(&*self.links)))
    }

    /// What its owner pays for it: all of it, once, whatever the number of nodes that have it.
    pub(in crate::store) fn bytes(&self) -> usize {
        Tree::LIST_BYTES.saturating_add(self.blocks())
    }

    /// Whether its owner pays for it.
    pub(in crate::store) fn is_paid(&self) -> bool {
        self.is_paid
    }

    /// The entries.
    pub(in crate::store) fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len as usize).unwrap_or(&[])
    }
}

impl Record for List {
    fn hash(&self, seed: u64) -> u64 {
        list_hash(seed, self.entries())
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

fn list_hash(seed: u64, entries: &[Entry]) -> u64 {
    let mut hasher = FixedState::with_seed(seed).build_hasher();
    for entry in entries {
        hasher.write_u16(entry.domid.0);
        hasher.write_u8(entry.access.letter());
        hasher.write_u8(u8::from(entry.stale));
    }
    hasher.finish()
}

impl Tree {
    /// What a permission list takes besides its blocks.
    pub(in crate::store) const LIST_BYTES: usize = Table::<List>::RECORD_BYTES;

    pub(in crate::store) fn entries(&self, list: u32) -> &[Entry] {
        self.lists.get(list).map_or(&[], List::entries)
    }

    /// The handle of a permission list, with one use more.
    ///
    /// # Errors
    /// There is no memory.
    pub(in crate::store) fn intern(&mut self, entries: &[Entry]) -> Result<u32, NoMemory> {
        let hash = list_hash(self.lists.seed(), entries);
        if let Some(handle) = self.lists.find(hash, |list| *list.entries() == *entries) {
            self.retain_list(handle);
            return Ok(handle);
        }
        let is_listed = |entry: &Entry| self.is_listed(*entry);
        let links: Box<[Link]> = if entries.iter().any(is_listed) {
            try_fill(entries.len(), Link { prev: NO_RIGHT, next: NO_RIGHT })?
        } else {
            Box::default()
        };
        let len = u32::try_from(entries.len()).unwrap_or(0);
        let entries_of = try_slice(entries)?;
        let mut list =
            List { entries: entries_of, links, len, users: 1, chain: NIL, is_paid: false };
        let (blocks, bytes) = (list.blocks(), list.bytes());
        let owner = entries.first().filter(|owner| !owner.stale).map(|owner| owner.domid);
        let payer = owner.filter(|owner| self.domains.get(*owner).is_some());
        list.is_paid = payer.is_some();
        let handle = self.lists.insert(list)?;
        let _is_paid = payer.is_some_and(|payer| self.domains.take_list(payer, bytes));
        self.blocks.lists = self.blocks.lists.saturating_add(blocks);
        if payer.is_none() {
            self.blocks.unpaid = self.blocks.unpaid.saturating_add(bytes);
        }
        (0..len).for_each(|place| self.link_right((handle, place)));
        Ok(handle)
    }

    /// Nobody pays for a list any more, which is in the hands of a transaction or on its way out.
    fn stop_paying(&mut self, handle: u32) {
        let Some(list) = self.lists.get_mut(handle) else { return };
        if core::mem::take(&mut list.is_paid) {
            let bytes = list.bytes();
            let owner = self.owner(handle);
            self.domains.give_back_list(owner, bytes);
            self.blocks.unpaid = self.blocks.unpaid.saturating_add(bytes);
        }
    }

    /// Whether a list was made for the one who has a use of it, and for nobody else.
    pub(in crate::store) fn is_new_list(&self, list: u32) -> bool {
        self.lists.get(list).is_some_and(|list| list.users == 1)
    }

    /// Whether a domain's rights are listed, and this is one.
    fn is_listed(&self, entry: Entry) -> bool {
        !entry.stale
            && entry.domid != self.domains.privileged
            && self.domains.get(entry.domid).is_some()
    }

    /// One use more of a permission list.
    pub(in crate::store) fn retain_list(&mut self, handle: u32) {
        self.retain_uses(handle, 1);
    }

    /// So many uses more.
    pub(in crate::store) fn retain_uses(&mut self, handle: u32, uses: u32) {
        if let Some(list) = self.lists.get_mut(handle) {
            list.users = list.users.saturating_add(uses);
        }
    }

    /// One use less.
    pub(in crate::store) fn release_list(&mut self, handle: u32) {
        self.release_uses(handle, 1);
    }

    pub(super) fn release_uses(&mut self, handle: u32, uses: u32) {
        let Some(list) = self.lists.get_mut(handle) else { return };
        list.users = list.users.saturating_sub(uses);
        if list.users == 0 {
            self.remove_list(handle);
        }
    }

    #[inline(never)]
    fn remove_list(&mut self, handle: u32) {
        self.unlink_rights(handle);
        self.stop_paying(handle);
        let Some(list) = self.lists.remove(handle) else { return };
        self.blocks.lists = self.blocks.lists.saturating_sub(list.blocks());
        self.blocks.unpaid = self.blocks.unpaid.saturating_sub(list.bytes());
    }

    /// The list that a new node gets: its parent's, owned by `creator` if that is somebody.
    ///
    /// # Errors
    /// There is no memory.
    pub(in crate::store) fn inherit(
        &mut self,
        parent_list: u32,
        creator: Option<DomId>,
    ) -> Result<u32, NoMemory> {
        let Some(creator) = creator.filter(|domid| *domid != self.owner(parent_list)) else {
            self.retain_list(parent_list);
            return Ok(parent_list);
        };
        self.intern_for(parent_list, creator)
    }

    /// The same list with another owner, with one use more.
    ///
    /// # Errors
    /// There is no memory.
    pub(in crate::store) fn intern_for(
        &mut self,
        list: u32,
        owner: DomId,
    ) -> Result<u32, NoMemory> {
        let mut entries = try_slice(self.entries(list))?;
        if let Some(first) = entries.first_mut() {
            first.domid = owner;
            first.stale = false;
        }
        self.intern(&entries)
    }

    // Rights by domain.

    fn link_mut(&mut self, (list, place): Right) -> Option<&mut Link> {
        self.lists.get_mut(list)?.links.get_mut(place as usize)
    }

    /// Enters a right in front of those of its domain.
    fn link_right(&mut self, right: Right) {
        let Some(entry) = self.entries(right.0).get(right.1 as usize).copied() else { return };
        if !self.is_listed(entry) {
            return;
        }
        let Some(domain) = self.domains.get_mut(entry.domid) else { return };
        let next = core::mem::replace(&mut domain.rights, right);
        if let Some(after) = self.link_mut(next) {
            after.prev = right;
        }
        if let Some(link) = self.link_mut(right) {
            *link = Link { prev: NO_RIGHT, next };
        }
    }

    /// Takes every entry of a list out of those of its domain.
    fn unlink_rights(&mut self, list: u32) {
        let len =
            self.lists.get(list).map_or(0, |list| if list.links.is_empty() { 0 } else { list.len });
        for place in 0..len {
            let right = (list, place);
            let Some(entry) = self.entries(list).get(place as usize).copied() else { return };
            if !self.is_listed(entry) {
                continue;
            }
            let Some(link) = self.link_mut(right).copied() else { return };
            if let Some(after) = self.link_mut(link.next) {
                after.prev = link.prev;
            }
            match self.link_mut(link.prev) {
                Some(before) => before.next = link.next,
                None => {
                    if let Some(domain) = self.domains.get_mut(entry.domid) {
                        domain.rights = link.next;
                    }
                }
            }
        }
    }

    /// Takes the rights of a domain that is gone, so that no later domain with its domid inherits
    /// one, as far as the budget reaches: then it is called again. Where it is the owner (only what an open transaction
    /// has prepared, or what is being freed, can still say so) the entry is marked, and that transaction will not commit.
    pub(in crate::store) fn strip_some(&mut self, domid: DomId, budget: &mut Budget) -> Progress {
        while let Some((list, _)) = self.domains.get(domid).map(|domain| domain.rights)
            && list != NIL
        {
            self.strip(list, domid);
            let entries = self.entries(list).len() as u64;
            budget.spend(ENTRY_WORK.saturating_mul(entries).saturating_add(STRIP_WORK));
            if budget.is_over() {
                return Progress::More;
            }
        }
        Progress::Done
    }

    fn strip(&mut self, handle: u32, domid: DomId) {
        self.unlink_rights(handle);
        if self.owner(handle) == domid && self.is_anybodys(handle) {
            self.stop_paying(handle);
        }
        self.lists.rekey(handle, |list| {
            let mut kept = 0_usize;
            for place in 0..list.len as usize {
                let Some(mut entry) = list.entries.get(place).copied() else { break };
                let is_its = entry.domid == domid && !entry.stale;
                if is_its && place > 0 {
                    continue;
                }
                entry.stale |= is_its;
                if let Some(to) = list.entries.get_mut(kept) {
                    *to = entry;
                }
                kept = kept.saturating_add(1);
            }
            list.len = u32::try_from(kept).unwrap_or(list.len);
        });
        let len = self.lists.get(handle).map_or(0, |list| list.len);
        (0..len).for_each(|place| self.link_right((handle, place)));
    }

    /// Every permission list with its handle, for the consistency check.
    pub(in crate::store) fn lists(&self) -> impl Iterator<Item = (u32, &List)> {
        self.lists.iter()
    }

    /// How many entries of lists are a domain's, as they are linked, but at most so many; for the consistency check.
    pub(in crate::store) fn rights_of(&self, domid: DomId, most: usize) -> usize {
        let link = |right: Right| -> Option<Link> {
            self.lists.get(right.0)?.links.get(right.1 as usize).copied()
        };
        let first = self.domains.get(domid).map_or(NO_RIGHT, |domain| domain.rights);
        let next = |link_of: &Link| link(link_of.next);
        core::iter::successors(link(first), next).take(most).count()
    }

    /// How many entries ought to be.
    pub(in crate::store) fn rights_expected(&self, domid: DomId) -> usize {
        let entries = self.lists.iter().flat_map(|(_, list)| list.entries());
        entries.filter(|entry| entry.domid == domid && self.is_listed(**entry)).count()
    }
}
