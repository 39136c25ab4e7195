//! The live tree: nodes in an arena, names and permission lists shared.
//!
//! * A node is found by (parent, name) in a hash index, whatever the number of its siblings.
//! * Children are linked in the order of their creation, which is the order DIRECTORY shows.
//! * Equal names and equal permission lists are stored once and counted.
//! * Walks follow the links and need neither recursion nor a stack.
//!
//! Every mutation keeps the accounts of the owners; whether something is *allowed* is decided
//! above, in `request.rs` and `transaction.rs`.

use super::bytes::Bytes;
use super::domain::Domains;
use super::path;
use super::perms::{Access, Entry, Party, Rights, rights};
use super::table::{NIL, Record, Table};
use crate::proto::id::DomId;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use foldhash::fast::FixedState;

/// The handle of the root, which is the first node made and never goes away.
pub(super) const ROOT: u32 = 0;

/// What a node counts for besides its value and name: what it costs here if it shares neither its name nor
/// its permission list with any other, with its places in the indices and in the set of its owner's nodes.
pub(super) const NODE_BYTES: usize =
    size_of::<Node>() + size_of::<Name>() + size_of::<List>() + 5 * size_of::<Entry>() + 32;

/// What the header of a node counts for in its size, and each entry of its permissions: the C
/// server's figures, so that a guest meets `node-size` at the same place.
const SIZE_HEADER: usize = 16;
const SIZE_ENTRY: usize = 8;

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Bytes,
    /// Changes whenever the value, the permissions or the list of children do; never the same twice.
    pub(super) generation: u64,
    pub(super) parent: u32,
    pub(super) name: u32,
    pub(super) list: u32,
    pub(super) first_child: u32,
    pub(super) last_child: u32,
    pub(super) next: u32,
    pub(super) prev: u32,
    chain: u32,
    /// Bytes of the list of children, each name with its NUL.
    pub(super) children_bytes: u32,
}

impl Node {
    /// A node without children or siblings.
    fn new(parent: u32, name: u32, value: Bytes, list: u32, generation: u64) -> Self {
        Self {
            value,
            generation,
            parent,
            name,
            list,
            first_child: NIL,
            last_child: NIL,
            next: NIL,
            prev: NIL,
            chain: NIL,
            children_bytes: 0,
        }
    }
}

impl Record for Node {
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

/// Mixes a parent and a name, both small numbers, into a hash whose low bits are good.
fn child_hash(seed: u64, parent: u32, name: u32) -> u64 {
    let key = u64::from(parent) << 32 | u64::from(name);
    let mixed = (key ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

/// Hashes bytes with the store's seed.
pub(super) fn bytes_hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut hasher = FixedState::with_seed(seed).build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

/// A name shared by all nodes that have it.
#[derive(Debug)]
struct Name {
    bytes: Bytes,
    users: u32,
    chain: u32,
}

impl Record for Name {
    fn hash(&self, seed: u64) -> u64 {
        bytes_hash(seed, self.bytes.get())
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// A permission list shared by all nodes that have it.
#[derive(Debug)]
pub(super) struct List {
    pub(super) entries: Box<[Entry]>,
    pub(super) users: u32,
    chain: u32,
}

impl Record for List {
    fn hash(&self, seed: u64) -> u64 {
        list_hash(seed, &self.entries)
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

/// What a walk came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The node.
    Node(u32),
    /// There is none; this is the nearest one above that exists.
    Above(u32),
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Table<Node>,
    names: Table<Name>,
    lists: Table<List>,
    pub(super) domains: Domains,
    /// `@introduceDomain` and `@releaseDomain`: nodes without a place in the tree.
    pub(super) special: [u32; 2],
    generation: u64,
}

impl Tree {
    /// Upper bound of the bytes that making one node allocates, apart from its name and value.
    pub(super) const NODE_COST: usize = size_of::<Node>() + 2 * size_of::<Name>();
    /// Upper bound of what each node takes that is [expected](Self::expect).
    pub(super) const EXPECT_BYTES: usize = Table::<Node>::EXPECT_BYTES;
    /// Upper bound of what a request allocates whatever it creates: one chunk of each table, and sets
    /// of an owner that grow.
    pub(super) const FIXED_COST: usize = Table::<Node>::INSERT_BYTES
        + Table::<Name>::INSERT_BYTES
        + Table::<List>::INSERT_BYTES
        + 32 * 1024;

    /// A tree of nothing but the root and the two special nodes.
    pub(super) fn new(seed: u64, mut domains: Domains) -> Self {
        domains.learn(domains.privileged);
        let owner = domains.privileged;
        let mut tree = Self {
            nodes: Table::new(seed),
            names: Table::new(seed),
            lists: Table::new(seed),
            domains,
            special: [NIL; 2],
            generation: 0,
        };
        let closed = Entry { domid: owner, access: Access::None, stale: false };
        let all = Entry { domid: DomId::ANY, access: Access::Read, stale: false };
        let private = tree.intern(&[closed]);
        tree.insert(NIL, NIL, Bytes::EMPTY, private);
        tree.retain_list(private);
        let introduce = tree.insert(NIL, NIL, Bytes::EMPTY, private);
        let public = tree.intern(&[closed, all]);
        let release = tree.insert(NIL, NIL, Bytes::EMPTY, public);
        tree.special = [introduce, release];
        tree
    }

    /// The latest generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The next generation.
    pub(super) fn advance(&mut self) -> u64 {
        self.generation = self.generation.saturating_add(1);
        self.generation
    }

    // Looking.

    pub(super) fn node(&self, handle: u32) -> Option<&Node> {
        self.nodes.get(handle)
    }

    pub(super) fn name(&self, node: &Node) -> &[u8] {
        self.names.get(node.name).map_or(&[], |name| name.bytes.get())
    }

    pub(super) fn entries(&self, list: u32) -> &[Entry] {
        self.lists.get(list).map_or(&[], |list| &list.entries)
    }

    /// The owner that a permission list names.
    pub(super) fn owner(&self, list: u32) -> DomId {
        self.entries(list).first().map_or(self.domains.privileged, |entry| entry.domid)
    }

    pub(super) fn rights(&self, list: u32, party: &Party) -> Rights {
        rights(self.entries(list), party)
    }

    /// A child by its name.
    pub(super) fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let hash = bytes_hash(self.names.seed(), name);
        let name = self.names.find(hash, |record| record.bytes.get() == name)?;
        let hash = child_hash(self.nodes.seed(), parent, name);
        self.nodes.find(hash, |node| node.parent == parent && node.name == name)
    }

    /// Walks a canonical path.
    pub(super) fn find(&self, path: &[u8]) -> Found {
        match path {
            b"@introduceDomain" => Found::Node(self.special[0]),
            b"@releaseDomain" => Found::Node(self.special[1]),
            [b'@', ..] => Found::Above(ROOT),
            _ => {
                let mut at = ROOT;
                for name in path::components(path) {
                    match self.child(at, name) {
                        Some(child) => at = child,
                        None => return Found::Above(at),
                    }
                }
                Found::Node(at)
            }
        }
    }

    /// The children of a node, in the order of their creation.
    pub(super) fn children(&self, parent: u32) -> impl Iterator<Item = (u32, &Node)> {
        let first = self.node(parent).map_or(NIL, |node| node.first_child);
        let at = move |handle| self.node(handle).map(|node| (handle, node));
        core::iter::successors(at(first), move |(_, node)| at(node.next))
    }

    /// Every node below one, parents first and in the order of their creation.
    pub(super) fn below(&self, top: u32) -> impl Iterator<Item = (u32, &Node)> {
        let mut at = self.node(top).map(|node| (top, node));
        core::iter::from_fn(move || {
            let (mut handle, mut node) = at?;
            let mut next = node.first_child;
            // Without children it goes on beside the nearest node above that has something there.
            while next == NIL && handle != top {
                next = node.next;
                if next == NIL {
                    handle = node.parent;
                    node = self.node(handle)?;
                }
            }
            at = self.node(next).map(|node| (next, node));
            at
        })
    }

    /// The path of a node of the tree.
    pub(super) fn path(&self, handle: u32) -> Vec<u8> {
        let upwards = core::iter::successors(self.node(handle), |node| self.node(node.parent));
        let mut names: Vec<&[u8]> = upwards.map(|node| self.name(node)).collect();
        names.pop();
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path::push(&mut path, name);
        }
        if path.is_empty() { Vec::from(b"/") } else { path }
    }

    /// The size of a node in the sense of the quota `node-size`.
    pub(super) fn size(&self, list: u32, value: usize, children_bytes: usize) -> usize {
        let entries = self.entries(list).len().saturating_mul(SIZE_ENTRY);
        SIZE_HEADER.saturating_add(entries).saturating_add(value).saturating_add(children_bytes)
    }

    /// What a node counts for in its owner's memory.
    pub(super) fn bytes(&self, node: &Node) -> usize {
        node_bytes(self.name(node), &node.value)
    }

    /// How many nodes there are, the special ones included.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    // Changing.

    /// Makes a node below `parent`, as its last child. Takes over one use of `list`.
    pub(super) fn create(&mut self, parent: u32, name: &[u8], value: Bytes, list: u32) -> u32 {
        let name_handle = self.intern_name(name);
        let handle = self.insert(parent, name_handle, value, list);
        let generation = self.advance();
        if let Some(above) = self.nodes.get_mut(parent) {
            above.generation = generation;
        }
        self.link(parent, name, handle);
        handle
    }

    /// Makes the node the last child of its parent.
    fn link(&mut self, parent: u32, name: &[u8], handle: u32) {
        let mut last = NIL;
        if let Some(above) = self.nodes.get_mut(parent) {
            above.children_bytes = above.children_bytes.saturating_add(entry_bytes(name));
            last = core::mem::replace(&mut above.last_child, handle);
            if last == NIL {
                above.first_child = handle;
            }
        }
        if let Some(before) = self.nodes.get_mut(last) {
            before.next = handle;
        }
        if let Some(node) = self.nodes.get_mut(handle) {
            node.prev = last;
        }
    }

    fn insert(&mut self, parent: u32, name: u32, value: Bytes, list: u32) -> u32 {
        let generation = self.advance();
        let handle = self.nodes.insert(Node::new(parent, name, value, list, generation));
        let bytes = self.node(handle).map_or(0, |node| self.bytes(node));
        self.domains.own(self.owner(list), &[handle], bytes);
        handle
    }

    // Putting a tree together again.

    /// Makes the index ready for so many nodes, at most [`EXPECT_BYTES`](Self::EXPECT_BYTES) for each.
    pub(super) fn expect(&mut self, nodes: u32) {
        self.nodes.expect(nodes);
    }

    /// Makes a node as it was, as the last child of its parent, whose generation stays. Takes over one use of
    /// `list`, unless there is a node of that name: then nothing happens. The caller tells its owner of it.
    pub(super) fn restore(
        &mut self,
        parent: u32,
        name: &[u8],
        value: Bytes,
        list: u32,
        generation: u64,
    ) -> Option<u32> {
        let name_handle = self.intern_name(name);
        let hash = child_hash(self.nodes.seed(), parent, name_handle);
        let same = |node: &Node| node.parent == parent && node.name == name_handle;
        if self.nodes.find(hash, same).is_some() {
            self.release_name(name_handle);
            return None;
        }
        let node = Node::new(parent, name_handle, value, list, generation);
        let handle = self.nodes.insert(node);
        self.link(parent, name, handle);
        Some(handle)
    }

    /// Makes one of the nodes that are always there as it was. Takes over one use of `list`.
    pub(super) fn restore_fixed(&mut self, handle: u32, value: Bytes, list: u32, generation: u64) {
        self.set_list(handle, list);
        self.set_value(handle, value);
        if let Some(node) = self.nodes.get_mut(handle) {
            node.generation = generation;
        }
    }

    /// Goes on counting generations behind this one.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Replaces a value.
    pub(super) fn set_value(&mut self, handle: u32, value: Bytes) {
        let generation = self.advance();
        let Some(node) = self.nodes.get_mut(handle) else { return };
        let (new, old) = (value.len(), node.value.len());
        node.value = value;
        node.generation = generation;
        let owner = self.owner(self.node(handle).map_or(NIL, |node| node.list));
        self.domains.refund(owner, super::quota::Quota::Memory, old);
        self.domains.charge(owner, super::quota::Quota::Memory, new);
    }

    /// Replaces the permissions. Takes over one use of `list`.
    pub(super) fn set_list(&mut self, handle: u32, list: u32) {
        let generation = self.advance();
        let Some(bytes) = self.node(handle).map(|node| self.bytes(node)) else { return };
        let Some(node) = self.nodes.get_mut(handle) else { return };
        node.generation = generation;
        let old = core::mem::replace(&mut node.list, list);
        let (from, to) = (self.owner(old), self.owner(list));
        if from != to {
            self.domains.disown(from, handle, bytes);
            self.domains.own(to, &[handle], bytes);
        }
        self.release_list(old);
    }

    /// Removes a node without children from the tree.
    pub(super) fn remove_leaf(&mut self, handle: u32) {
        let Some(bytes) = self.node(handle).map(|node| self.bytes(node)) else { return };
        let Some(node) = self.nodes.remove(handle) else { return };
        self.domains.disown(self.owner(node.list), handle, bytes);
        let generation = self.advance();
        let gone = self.names.get(node.name).map_or(0, |name| entry_bytes(name.bytes.get()));
        if let Some(above) = self.nodes.get_mut(node.parent) {
            above.generation = generation;
            above.children_bytes = above.children_bytes.saturating_sub(gone);
            if above.first_child == handle {
                above.first_child = node.next;
            }
            if above.last_child == handle {
                above.last_child = node.prev;
            }
        }
        if let Some(before) = self.nodes.get_mut(node.prev) {
            before.next = node.next;
        }
        if let Some(after) = self.nodes.get_mut(node.next) {
            after.prev = node.prev;
        }
        self.release_name(node.name);
        self.release_list(node.list);
    }

    // Names.

    fn intern_name(&mut self, bytes: &[u8]) -> u32 {
        let hash = bytes_hash(self.names.seed(), bytes);
        if let Some(handle) = self.names.find(hash, |name| name.bytes.get() == bytes)
            && let Some(name) = self.names.get_mut(handle)
        {
            name.users = name.users.saturating_add(1);
            return handle;
        }
        self.names.insert(Name { bytes: Bytes::new(bytes), users: 1, chain: NIL })
    }

    fn release_name(&mut self, handle: u32) {
        if let Some(name) = self.names.get_mut(handle) {
            name.users = name.users.saturating_sub(1);
            if name.users == 0 {
                self.names.remove(handle);
            }
        }
    }

    // Permission lists.

    /// The handle of a permission list, with one use more.
    pub(super) fn intern(&mut self, entries: &[Entry]) -> u32 {
        let hash = list_hash(self.lists.seed(), entries);
        if let Some(handle) = self.lists.find(hash, |list| *list.entries == *entries) {
            self.retain_list(handle);
            return handle;
        }
        let handle = self.lists.insert(List { entries: entries.into(), users: 1, chain: NIL });
        for entry in entries.iter().filter(|entry| !entry.stale) {
            if entry.domid != self.domains.privileged
                && let Some(domain) = self.domains.get_mut(entry.domid)
            {
                domain.lists.insert(handle);
            }
        }
        handle
    }

    /// One use more of a permission list.
    pub(super) fn retain_list(&mut self, handle: u32) {
        if let Some(list) = self.lists.get_mut(handle) {
            list.users = list.users.saturating_add(1);
        }
    }

    /// One use less.
    pub(super) fn release_list(&mut self, handle: u32) {
        let Some(list) = self.lists.get_mut(handle) else { return };
        list.users = list.users.saturating_sub(1);
        if list.users > 0 {
            return;
        }
        let Some(list) = self.lists.remove(handle) else { return };
        for entry in &list.entries {
            if let Some(domain) = self.domains.get_mut(entry.domid) {
                domain.lists.remove(&handle);
            }
        }
    }

    /// The list that a new node gets: its parent's, owned by `creator` if that is somebody.
    pub(super) fn inherit(&mut self, parent_list: u32, creator: Option<DomId>) -> u32 {
        let Some(creator) = creator.filter(|domid| *domid != self.owner(parent_list)) else {
            self.retain_list(parent_list);
            return parent_list;
        };
        let mut entries = Vec::from(self.entries(parent_list));
        if let Some(owner) = entries.first_mut() {
            owner.domid = creator;
            owner.stale = false;
        }
        self.intern(&entries)
    }

    /// Takes every right of a domain that is gone, so that no later domain with its domid inherits
    /// one. Where it is the owner (only what an open transaction has prepared can still say so) the entry is
    /// marked, and that transaction will not commit.
    pub(super) fn strip(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(domid) else { return };
        let lists = core::mem::take(&mut domain.lists);
        for handle in lists {
            self.lists.rekey(handle, |list| {
                let entries = list.entries.iter().enumerate();
                list.entries = entries
                    .filter(|(place, entry)| *place == 0 || entry.domid != domid || entry.stale)
                    .map(|(place, entry)| Entry {
                        stale: entry.stale || place == 0 && entry.domid == domid,
                        ..*entry
                    })
                    .collect();
            });
        }
    }

    /// Every permission list with its handle, for the consistency check.
    pub(super) fn lists(&self) -> impl Iterator<Item = (u32, &List)> {
        self.lists.iter()
    }

    /// Every name with its handle and number of users, for the consistency check.
    pub(super) fn names(&self) -> impl Iterator<Item = (u32, u32)> {
        self.names.iter().map(|(handle, name)| (handle, name.users))
    }
}

/// What a node counts for in its owner's memory.
pub(super) fn node_bytes(name: &[u8], value: &Bytes) -> usize {
    NODE_BYTES.saturating_add(value.len()).saturating_add(name.len())
}

/// What a child adds to its parent's list of children.
pub(super) fn entry_bytes(name: &[u8]) -> u32 {
    u32::try_from(name.len()).unwrap_or(u32::MAX).saturating_add(1)
}
