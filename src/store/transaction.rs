//! Transactions: an overlay of touched nodes over the live tree.
//!
//! # What a transaction sees
//! Nothing is copied when it starts. What is accessed is recorded: reads, probes whether something
//! exists, and the parents consulted on the way all count. Permissions are kept from the first access on,
//! a value from the moment it is read or written; nodes that were not touched show their present state. A path
//! probed as missing stays missing, and so does all below. The list of a touched node's children is not kept: if it changes,
//! the transaction cannot commit any more, and until it ends it may see the change.
//!
//! A subtree that is removed whole, and in which nothing else was touched, is kept as a list of
//! its nodes and their generations, so that even a large one costs little.
//!
//! # When it conflicts
//! At commit every node that it touched must still have the generation it had at the first access.
//! A path that was missing needs no look of its own, because the nearest node above was touched too, and gets
//! a new generation when a child appears. So:
//!
//! 1. A reads `/x`; B, outside or in a transaction of its own, writes `/x`; A ends with EAGAIN.
//! 2. A writes `/x/a`, B writes `/x/b`, both new: the second to commit fails, since both changed
//!    the children of `/x`.
//! 3. A writes `/x` and B writes `/y`: both commit, in any order.
//! 4. A finds `/x/a` missing, B makes and removes it: A fails, since `/x` has a new generation.
//!
//! Everybody else is free at all times: requests outside transactions never fail because of one.

mod books;
mod handover;
mod restore;
mod save;
mod session;

pub(super) use restore::Unfilled;

use super::path;
use super::perms::{Access, Party};
use super::tree::{Found, Node, Tree, bytes_hash, entry_bytes};
use super::watch::Class;
use crate::mem::{Bytes, NIL, NoMemory};
use crate::proto::id::{DomId, TxId};
use alloc::boxed::Box;
use alloc::vec::Vec;
use hashbrown::HashTable;

/// What a touched path counts for besides path and value: about what it costs here.
const TOUCHED_BYTES: usize = 200;

/// What announcing a change takes besides its path.
const EVENT_COST: usize = 256;

/// A live node below one that was removed: its handle and its generation then.
pub(super) type Below = (u32, u64);

/// The live node as it was at the first access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    pub(super) node: u32,
    generation: u64,
    /// Its permissions then, with a use of their own.
    pub(super) list: u32,
}

/// A node as the transaction sees it.
#[derive(Debug)]
pub(super) struct Copy {
    /// `None` as long as nobody asked for it: it is the live one.
    pub(super) value: Option<Bytes>,
    /// With a use of its own.
    pub(super) list: u32,
    pub(super) generation: u64,
    pub(super) children_bytes: u32,
}

/// A path that the transaction has accessed.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) path: Box<[u8]>,
    /// `None` if there was nothing.
    pub(super) base: Option<Base>,
    /// `None` if there is nothing as the transaction sees it.
    pub(super) now: Option<Copy>,
    /// Made in this transaction, perhaps after a removal: it has no live children.
    fresh: bool,
    /// The value or the permissions are other than the live ones.
    modified: bool,
    /// The event to send at commit.
    event: Option<Class>,
    /// Places in `touched` of children made here, in that order; those removed since are still there.
    added: Vec<u32>,
    /// Its own place in its parent's `added`, or `NIL`.
    place: u32,
    /// The live nodes below, parents first, if it was removed together with them.
    removed: Vec<Below>,
    /// How many nodes such a list had that did not hold any more at a live update; `base` does not either then.
    lost: usize,
}

/// An open transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: TxId,
    touched: Vec<Touched>,
    index: HashTable<u32>,
    seed: u64,
    /// A request in it failed for want of quota or memory: it cannot commit.
    pub(super) poisoned: bool,
    /// Bytes charged to the connection's domain.
    pub(super) bytes: usize,
    /// Nodes in the `removed` lists.
    below: usize,
    /// How many nodes more each owner would have.
    delta: Vec<(DomId, i64)>,
}

/// A change that a commit makes known.
#[derive(Debug)]
pub(super) struct Announcement {
    pub(super) path: Box<[u8]>,
    pub(super) class: Class,
    /// The permissions before the transaction, with a use of their own, or `NIL`.
    pub(super) old_list: u32,
    /// The node is gone: whoever may read its parent only is not told.
    pub(super) gone: bool,
}

impl Transaction {
    /// Upper bound of what touching one path allocates, apart from the path and the value.
    pub(super) const TOUCH_COST: usize = 4 * size_of::<Touched>();

    pub(super) fn new(id: TxId, seed: u64) -> Self {
        Self {
            id,
            touched: Vec::new(),
            index: HashTable::new(),
            seed,
            poisoned: false,
            bytes: 0,
            below: 0,
            delta: Vec::new(),
        }
    }

    /// How many nodes it has accessed.
    pub(super) fn len(&self) -> usize {
        self.touched.len().saturating_add(self.below)
    }

    pub(super) fn get(&self, at: u32) -> Option<&Touched> {
        self.touched.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Touched> {
        self.touched.get_mut(at as usize)
    }

    /// The place of a path that was accessed before.
    pub(super) fn find(&self, path: &[u8]) -> Option<u32> {
        let same = |at: &u32| self.get(*at).is_some_and(|touched| *touched.path == *path);
        self.index.find(bytes_hash(self.seed, path), same).copied()
    }

    /// Accesses a path for the first time.
    pub(super) fn touch(&mut self, tree: &mut Tree, path: &[u8]) -> u32 {
        let live = match tree.find(path) {
            Found::Node(handle) if !self.is_below_missing(path) => Some(handle),
            Found::Node(_) | Found::Above { .. } => None,
        };
        let live = live.and_then(|handle| tree.node(handle).map(|node| (handle, node)));
        let (base, now) = live.map_or((None, None), |(handle, node)| {
            let base = Base { node: handle, generation: node.generation(), list: node.list };
            let copy = Copy {
                value: None,
                list: node.list,
                generation: node.generation(),
                children_bytes: tree.family(node).bytes,
            };
            (Some(base), Some(copy))
        });
        for list in [base.map(|base| base.list), now.as_ref().map(|now| now.list)] {
            tree.retain_list(list.unwrap_or(NIL));
        }
        let at = u32::try_from(self.touched.len()).unwrap_or(NIL);
        self.touched.push(Touched {
            path: path.into(),
            base,
            now,
            fresh: false,
            modified: false,
            event: None,
            added: Vec::new(),
            place: NIL,
            removed: Vec::new(),
            lost: 0,
        });
        self.list(path, at);
        at
    }

    /// Enters a path into the index.
    fn list(&mut self, path: &[u8], at: u32) {
        let (touched, seed) = (&self.touched, self.seed);
        let hash_of = |at: &u32| {
            touched.get(*at as usize).map_or(0, |touched| bytes_hash(seed, &touched.path))
        };
        self.index.insert_unique(bytes_hash(seed, path), at, hash_of);
    }

    /// Whether a node above is missing as the transaction sees it, or was made in it: below is nothing then
    /// but what the transaction makes itself.
    fn is_below_missing(&self, path: &[u8]) -> bool {
        let lost = |above: &[u8]| {
            let touched = self.find(above).and_then(|at| self.get(at));
            touched.is_some_and(|touched| touched.now.is_none() || touched.fresh)
        };
        path::upwards(path).skip(1).any(lost)
    }

    /// What a touched path holds of its connection's memory.
    pub(super) fn touched_bytes(&self, at: u32) -> usize {
        self.get(at).map_or(0, |touched| {
            let value = touched.now.as_ref().and_then(|now| now.value.as_ref());
            TOUCHED_BYTES
                .saturating_add(touched.path.len())
                .saturating_add(value.map_or(0, Bytes::len))
                .saturating_add(touched.below().saturating_mul(size_of::<Below>()))
        })
    }

    /// The live node at a touched path, for what was not copied. After a change, which takes the chance to
    /// commit, that is whatever is there now, if the party may read it.
    fn live<'a>(&self, tree: &'a Tree, at: u32, party: &Party) -> Option<(u32, &'a Node)> {
        let touched = self.get(at)?;
        let base = touched.base?;
        // By its path: the handle may have gone to quite another node.
        let Found::Node(handle) = tree.find(&touched.path) else { return None };
        let node = tree.node(handle)?;
        let same = handle == base.node && node.generation() == base.generation;
        let shown = same || tree.rights(node.list, party).access.includes(Access::Read);
        shown.then_some((handle, node))
    }

    /// The generation that a node has outside if it is not the one of the first access, 0 if it is gone.
    /// `None` also for a node that was made here: nothing outside is part of its list.
    pub(super) fn changed_meanwhile(&self, tree: &Tree, at: u32) -> Option<u64> {
        let touched = self.get(at).filter(|touched| !touched.fresh)?;
        let base = touched.base?;
        let live = match tree.find(&touched.path) {
            Found::Node(handle) => tree.node(handle).map_or(0, Node::generation),
            Found::Above { .. } => 0,
        };
        // A base that did not hold at a live update is not known any more.
        (base.node == NIL || live != base.generation).then_some(live)
    }

    /// The value of a touched node that exists. One that was not asked for before is the live one.
    pub(super) fn value<'a>(&'a self, tree: &'a Tree, at: u32, party: &Party) -> Option<&'a [u8]> {
        match &self.get(at)?.now.as_ref()?.value {
            Some(value) => Some(value.get()),
            None => self.live(tree, at, party).map(|(_, node)| tree.value(node)),
        }
    }

    /// Keeps the value of a node that was read, so that it reads the same from now on.
    pub(super) fn keep_value(
        &mut self,
        tree: &Tree,
        at: u32,
        party: &Party,
    ) -> Result<(), NoMemory> {
        let value = self.value(tree, at, party).map(Bytes::new).transpose()?;
        if let Some(now) = self.get_mut(at).and_then(|touched| touched.now.as_mut())
            && now.value.is_none()
        {
            now.value = value;
        }
        Ok(())
    }

    /// How many nodes more a domain would own.
    pub(super) fn delta(&self, domid: DomId) -> i64 {
        self.delta.iter().find(|(owner, _)| *owner == domid).map_or(0, |(_, delta)| *delta)
    }

    fn count(&mut self, domid: DomId, change: i64) {
        match self.delta.iter_mut().find(|(owner, _)| *owner == domid) {
            Some((_, delta)) => *delta = delta.saturating_add(change),
            None => self.delta.push((domid, change)),
        }
    }

    /// Makes a node at a path that was found missing. Takes over one use of `list`.
    /// The parent must have been touched and exist.
    pub(super) fn create(&mut self, tree: &mut Tree, at: u32, value: Bytes, list: u32) {
        self.count(tree.owner(list), 1);
        let generation = tree.advance();
        let Some(touched) = self.get_mut(at) else { return };
        touched.now = Some(Copy { value: Some(value), list, generation, children_bytes: 0 });
        touched.fresh = true;
        touched.added.clear();
        let bytes = entry_bytes(path::name(&touched.path));
        let above = path::parent(&touched.path).map(Box::<[u8]>::from);
        let above = above.and_then(|above| self.find(&above));
        let Some(parent) = above.and_then(|above| self.get_mut(above)) else { return };
        let place = u32::try_from(parent.added.len()).unwrap_or(NIL);
        parent.added.push(at);
        if let Some(now) = &mut parent.now {
            now.generation = generation;
            now.children_bytes = now.children_bytes.saturating_add(bytes);
        }
        if let Some(touched) = self.get_mut(at) {
            touched.place = place;
        }
    }

    /// The live node at a touched path, if what the transaction sees below it are live nodes, of which
    /// none was touched.
    pub(super) fn untouched_subtree(&self, tree: &Tree, at: u32) -> Option<u32> {
        let top = self.get(at).filter(|top| !top.fresh)?;
        let has_children = top.now.as_ref().is_some_and(|now| now.children_bytes > 0);
        let is_below = |path: &[u8]| {
            path.strip_prefix(&*top.path).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        let base = top.base.filter(|_| has_children)?;
        tree.node(base.node).filter(|node| node.generation() == base.generation)?;
        (!self.touched.iter().any(|other| is_below(&other.path))).then_some(base.node)
    }

    /// Notes the live nodes below one that is about to be removed.
    pub(super) fn remove_below(&mut self, tree: &Tree, at: u32, below: Vec<Below>) {
        for (node, _) in &below {
            let list = tree.node(*node).map_or(NIL, |node| node.list);
            self.count(tree.owner(list), -1);
        }
        self.below = self.below.saturating_add(below.len());
        if let Some(touched) = self.get_mut(at) {
            touched.removed = below;
        }
    }

    /// Removes a node that has no children left, or none but those noted by
    /// [`remove_below`](Self::remove_below). The parent must have been touched.
    pub(super) fn remove(&mut self, tree: &mut Tree, at: u32) {
        let generation = tree.advance();
        let Some(touched) = self.get_mut(at) else { return };
        let Some(now) = touched.now.take() else { return };
        touched.fresh = false;
        touched.modified = false;
        touched.place = NIL;
        let bytes = entry_bytes(path::name(&touched.path));
        let above = path::parent(&touched.path).map(Box::<[u8]>::from);
        self.count(tree.owner(now.list), -1);
        tree.release_list(now.list);
        let above = above.and_then(|above| self.find(&above));
        if let Some(parent) = above.and_then(|above| self.get_mut(above)?.now.as_mut()) {
            parent.generation = generation;
            parent.children_bytes = parent.children_bytes.saturating_sub(bytes);
        }
    }

    /// Replaces a value.
    pub(super) fn set_value(&mut self, tree: &mut Tree, at: u32, value: Bytes) {
        let generation = tree.advance();
        let Some(touched) = self.get_mut(at) else { return };
        touched.modified = true;
        if let Some(now) = &mut touched.now {
            now.value = Some(value);
            now.generation = generation;
        }
    }

    /// Replaces the permissions. Takes over one use of `list`.
    pub(super) fn set_list(&mut self, tree: &mut Tree, at: u32, list: u32) {
        let generation = tree.advance();
        let Some(touched) = self.get_mut(at) else { return };
        touched.modified = true;
        let Some(now) = &mut touched.now else { return };
        now.generation = generation;
        let old = core::mem::replace(&mut now.list, list);
        let (from, to) = (tree.owner(old), tree.owner(list));
        self.count(from, -1);
        self.count(to, 1);
        tree.release_list(old);
    }

    /// Wants an event for a path at commit; `Subtree` wins over `Exact`.
    pub(super) fn announce(&mut self, at: u32, class: Class) {
        if let Some(touched) = self.get_mut(at) {
            touched.event = touched.event.max(Some(class));
        }
    }

    /// The names of a node's children as the transaction sees them, in order.
    ///
    /// They are the present ones. Where something has changed since the first access, the rights that the
    /// copy gives say nothing about them: then `party` must have the right to read the present node.
    pub(super) fn children(&self, tree: &Tree, at: u32, party: &Party) -> Vec<Vec<u8>> {
        let Some(parent) = self.get(at) else { return Vec::new() };
        let mut names = Vec::new();
        let mut path = Vec::from(&*parent.path);
        path::push(&mut path, b"");
        let stem = path.len();
        if let Some((handle, _)) = self.live(tree, at, party).filter(|_| !parent.fresh) {
            for (_, child) in tree.children(handle) {
                path.truncate(stem);
                path.extend_from_slice(tree.name(child));
                let touched = self.find(&path).and_then(|at| self.get(at));
                if touched.is_none_or(|touched| touched.now.is_some() && touched.place == NIL) {
                    names.push(Vec::from(tree.name(child)));
                }
            }
        }
        for child in self.live_added(parent) {
            names.push(Vec::from(path::name(&child.path)));
        }
        names
    }

    /// The children made here that still exist.
    fn live_added<'a>(&'a self, parent: &'a Touched) -> impl Iterator<Item = &'a Touched> {
        (0_u32..).zip(&parent.added).filter_map(|(place, at)| {
            self.get(*at).filter(|child| child.now.is_some() && child.place == place)
        })
    }

    /// Whether anything that it touched has changed since, or an owner it gave a node to is gone.
    pub(super) fn conflicts(&self, tree: &Tree) -> bool {
        let differs = |handle: u32, generation: u64| {
            tree.node(handle).is_none_or(|node| node.generation() != generation)
        };
        self.touched.iter().any(|touched| {
            let below =
                touched.removed.iter().any(|(node, generation)| differs(*node, *generation));
            let base = touched.base.is_some_and(|base| differs(base.node, base.generation));
            let changed = below || base;
            let ownerless = touched
                .now
                .as_ref()
                .is_some_and(|now| tree.entries(now.list).first().is_none_or(|owner| owner.stale));
            changed || ownerless
        })
    }

    /// Upper bound of what a commit allocates: a node and an event for each touched path, and an
    /// event for each node below one that was removed, if anybody watches there.
    pub(super) fn commit_bytes(&self, watched: impl Fn(&[u8]) -> bool) -> usize {
        self.touched.iter().fold(0, |sum, touched| {
            let told = !touched.removed.is_empty() && watched(&touched.path);
            let below = if told { touched.removed.len() } else { 0 };
            sum.saturating_add(Tree::NODE_COST)
                .saturating_add(below.saturating_add(1).saturating_mul(EVENT_COST))
                .saturating_add(touched.path.len())
        })
    }

    /// Applies everything to the live tree, after [`conflicts`](Self::conflicts) said no, and returns
    /// what there is to announce, in the order of first access. `watched` tells whether anybody watches
    /// below a path.
    pub(super) fn apply(
        mut self,
        tree: &mut Tree,
        watched: impl Fn(&[u8]) -> bool,
    ) -> Vec<Announcement> {
        let mut by_depth: Vec<u32> = (0_u32..).zip(&self.touched).map(|(at, _)| at).collect();
        by_depth.sort_by_key(|at| self.get(*at).map_or(0, |touched| touched.path.len()));
        let mut below = Vec::new();
        for at in by_depth.iter().rev() {
            let touched = self.get(*at);
            if let Some(touched) = touched.filter(|t| t.now.is_none() || t.fresh)
                && let Some(base) = touched.base
            {
                if watched(&touched.path) {
                    below.push((*at, touched.announcements_below(tree)));
                }
                for (node, _) in touched.removed.iter().rev() {
                    tree.remove(*node);
                }
                tree.remove(base.node);
            }
        }
        for at in by_depth {
            self.apply_one(tree, at);
        }
        below.sort_by_key(|(at, _)| *at);
        let mut below = below.into_iter().peekable();
        let mut news = Vec::new();
        for (at, touched) in (0_u32..).zip(core::mem::take(&mut self.touched)) {
            news.extend(touched.announcement(tree));
            if let Some((_, more)) = below.next_if(|(top, _)| *top == at) {
                news.extend(more);
            }
        }
        news
    }

    /// Writes one node and makes its new children.
    fn apply_one(&mut self, tree: &mut Tree, at: u32) {
        let Some(touched) = self.get_mut(at) else { return };
        let added = core::mem::take(&mut touched.added);
        let Found::Node(handle) = tree.find(&touched.path) else { return };
        if core::mem::take(&mut touched.modified)
            && !touched.fresh
            && let Some(now) = &mut touched.now
        {
            tree.retain_list(now.list);
            // Admitted by `commit_bytes`.
            let _ = tree.set_list(handle, now.list);
            if let Some(value) = now.value.take() {
                // Admitted by `commit_bytes`.
                let _ = tree.set_value(handle, value.get());
            }
        }
        for (place, child) in (0_u32..).zip(added) {
            let Some(child) = self.get_mut(child) else { continue };
            if let Some(now) = child.now.as_mut().filter(|_| child.place == place) {
                let value = now.value.take().unwrap_or(Bytes::EMPTY);
                tree.retain_list(now.list);
                // Admitted by `commit_bytes`.
                let _ = tree.create(handle, path::name(&child.path), value.get(), now.list);
            }
        }
    }

    /// Gives back what it holds in the tree's tables, without applying anything.
    pub(super) fn discard(self, tree: &mut Tree) {
        for touched in self.touched {
            tree.release_list(touched.base.map_or(NIL, |base| base.list));
            tree.release_list(touched.now.map_or(NIL, |now| now.list));
        }
    }

    /// Every use that it has of a permission list, for the consistency check.
    pub(super) fn list_uses(&self) -> impl Iterator<Item = u32> {
        self.touched.iter().flat_map(|touched| {
            let now = touched.now.as_ref().map(|now| now.list);
            let base = touched.base.map(|base| base.list).filter(|list| *list != NIL);
            [base, now].into_iter().flatten()
        })
    }
}

impl Touched {
    /// How many nodes were removed together with this one.
    fn below(&self) -> usize {
        self.removed.len().saturating_add(self.lost)
    }

    /// What is to be told of the live nodes that go with this one, before they go.
    fn announcements_below(&self, tree: &mut Tree) -> Vec<Announcement> {
        let mut news = Vec::new();
        for (handle, _) in &self.removed {
            let old_list = tree.node(*handle).map_or(NIL, |node| node.list);
            tree.retain_list(old_list);
            let path = tree.path(*handle).into();
            news.push(Announcement { path, class: Class::Exact, old_list, gone: true });
        }
        news
    }

    /// What is to be told of this path after the commit; gives back the uses of permission lists
    /// that this does not need.
    fn announcement(self, tree: &mut Tree) -> Option<Announcement> {
        let gone = self.now.is_none();
        tree.release_list(self.now.map_or(NIL, |now| now.list));
        let old_list = self.base.map_or(NIL, |base| base.list);
        match self.event {
            Some(class) if !gone || self.base.is_some() => {
                Some(Announcement { path: self.path, class, old_list, gone })
            }
            _ => {
                tree.release_list(old_list);
                None
            }
        }
    }
}
