//! The live tree: nodes in an arena, names and permission lists shared.
//!
//! * A node is found by (parent, name) in a hash index, whatever the number of its siblings.
//! * Children are linked in the order of their creation, which is the order DIRECTORY shows.
//! * Equal names and equal permission lists are stored once and counted.
//! * Most nodes are leaves with a short value: only others have a [`Family`] or a long value, elsewhere.
//! * Walks follow the links and need neither recursion nor a stack.
//!
//! Every mutation keeps the accounts of the owners; whether something is *allowed* is decided
//! above, in `request.rs` and `transaction.rs`.

mod detached;
mod lists;
mod named;
mod owned;
mod sums;

use super::domain::Accounts;
use super::path;
use super::perms::{Access, Entry, Party, Rights, rights};
use crate::mem::{Arena, Bytes, NIL, NoMemory, Record, Table, TryVec, block_bytes, try_bytes};
use crate::proto::id::{ConnId, DomId};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use foldhash::fast::FixedState;
use lists::List;
pub(super) use lists::{NO_RIGHT, Right};
use owned::Owned;

/// "Nobody's child": the parent of a node that is in no tree.
const ASIDE: u32 = NIL - 1;

/// The handle of the root, which is the first node made and never goes away.
pub(super) const ROOT: u32 = 0;

/// What a node counts for besides the blocks of its value and name: its records, if it shares its name with no other and
/// has children. A successor has to come to the same accounts as its predecessor, so if this or another price changes, the
/// hand-over gets a new version ([`PRICES_SINCE`](crate::proto::handover::PRICES_SINCE)).
pub(super) const NODE_BYTES: usize = Table::<Node>::RECORD_BYTES
    + Table::<Name>::RECORD_BYTES
    + Table::<Owned>::RECORD_BYTES
    + Arena::<Family>::RECORD_BYTES;

/// What the header of a node counts for in its size, and each entry of its permissions: the C
/// server's figures, so that a guest meets `node-size` at the same place.
const SIZE_HEADER: usize = 16;
const SIZE_ENTRY: usize = 8;

/// The longest value that is stored in its node.
const SHORT_MAX: usize = 14;

/// A value. It is a handle: whoever has one and does not put it into a node has to give it up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// In place: only the first `len` bytes count.
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    /// Everything longer: a handle in [`Tree::long`].
    Long(u32),
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    value: Value,
    /// The two halves of the generation, lower first: a whole one would make the node larger.
    generation: [u32; 2],
    pub(super) parent: u32,
    pub(super) name: u32,
    pub(super) list: u32,
    /// A handle in [`Tree::families`]; `NIL` if there are no children.
    family: u32,
    pub(super) next: u32,
    pub(super) prev: u32,
    chain: u32,
}
const _: () = assert!(size_of::<Node>() == 52);

/// The children of a node that has any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Family {
    pub(super) first: u32,
    pub(super) last: u32,
    /// Bytes of the list of children, each name with its NUL.
    pub(super) bytes: u32,
}

impl Family {
    /// Nobody.
    const NONE: Self = Self { first: NIL, last: NIL, bytes: 0 };
}

impl Node {
    /// A node without children or siblings.
    fn new(parent: u32, name: u32, value: Value, list: u32, generation: u64) -> Self {
        let mut node = Self {
            value,
            generation: [0; 2],
            parent,
            name,
            list,
            family: NIL,
            next: NIL,
            prev: NIL,
            chain: NIL,
        };
        node.set_generation(generation);
        node
    }

    pub(super) fn has_children(&self) -> bool {
        self.family != NIL
    }

    /// Changes whenever the value, the permissions or the list of children do; never the same twice.
    pub(super) fn generation(&self) -> u64 {
        let [low, high] = self.generation;
        u64::from(low) | u64::from(high) << 32
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    fn set_generation(&mut self, generation: u64) {
        self.generation = [generation as u32, (generation >> 32) as u32];
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
    fn is_listed(&self) -> bool {
        self.parent != ASIDE
    }
}

/// Mixes a parent and a name, both small numbers, into a hash whose low bits are good.
pub(super) fn child_hash(seed: u64, parent: u32, name: u32) -> u64 {
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

/// Where a node is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) parent: u32,
    pub(super) name: &'a [u8],
    pub(super) name_handle: u32,
}

/// What a walk came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The node.
    Node(u32),
    /// There is none.
    Above {
        /// The nearest one above that exists.
        node: u32,
        /// How many bytes of the path lead to it: 0 for the root.
        there: usize,
    },
}

/// Clients whose last look is remembered: those whose ids are the same in their lowest bits share it.
const RECENT: usize = 32;

/// The longest path of a directory that is remembered.
const GLANCE_MAX: usize = 51;

/// Where a client looked last: its next request is mostly about the same directory.
#[derive(Debug)]
struct RecentDirectory {
    /// How many removals there had been. Nodes never move, so it holds until the next one.
    removals: u64,
    node: u32,
    /// The directory's path: only the first `len` bytes count. 0 for none yet.
    len: u8,
    bytes: [u8; GLANCE_MAX],
}

impl RecentDirectory {
    const NONE: Self = Self { removals: 0, node: NIL, len: 0, bytes: [0; GLANCE_MAX] };

    fn directory(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Table<Node>,
    families: Arena<Family>,
    /// Values that are too long for their node.
    long: Arena<Box<[u8]>>,
    names: Table<Name>,
    /// The handles of the names of one byte, or `NIL`: the deepest paths are made of them.
    ones: [u32; 256],
    lists: Table<List>,
    /// The nodes that others than the privileged domain own.
    owned: Table<Owned>,
    pub(super) domains: Accounts,
    /// `@introduceDomain` and `@releaseDomain`: nodes without a place in the tree.
    pub(super) special: [u32; 2],
    /// The permissions of nodes that only the privileged domain may look at, with a use of its own.
    pub(super) private: u32,
    generation: u64,
    recent: [RecentDirectory; RECENT],
    removals: u64,
    /// Nodes that were taken out of the tree with what is below, and are not yet freed.
    leaving: u32,
    /// Nodes that were made and are not yet in the tree.
    aside: u32,
    blocks: Blocks,
}

/// Bytes that the allocator takes for what records own in blocks of their own.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Blocks {
    /// Long values.
    pub(super) values: usize,
    /// Long names, and the same once for each user of each.
    pub(super) names: usize,
    pub(super) name_uses: usize,
    /// Permission lists.
    pub(super) lists: usize,
    /// Permission lists that nobody pays for, with their records.
    pub(super) unpaid: usize,
}

impl Tree {
    /// Upper bound of the bytes that making one node allocates, apart from its name and value.
    pub(super) const NODE_COST: usize = Table::<Node>::RECORD_BYTES
        + 2 * Table::<Name>::RECORD_BYTES
        + Arena::<Family>::RECORD_BYTES
        + Arena::<Box<[u8]>>::RECORD_BYTES;
    /// Upper bound of what each node takes that is [expected](Self::expect).
    pub(super) const EXPECT_BYTES: usize = Table::<Node>::EXPECT_BYTES;
    /// Upper bound of what a request allocates whatever it creates: one chunk of each table, and sets
    /// of an owner that grow.
    pub(super) const FIXED_COST: usize = Table::<Node>::INSERT_BYTES
        + Arena::<Family>::INSERT_BYTES
        + Arena::<Box<[u8]>>::INSERT_BYTES
        + Table::<Name>::INSERT_BYTES
        + Table::<List>::INSERT_BYTES
        + 32 * 1024;

    /// A tree of nothing but the root and the two special nodes.
    pub(super) fn new(seed: u64, mut domains: Accounts) -> Result<Self, NoMemory> {
        domains.learn(domains.privileged)?;
        let owner = domains.privileged;
        let mut tree = Self {
            nodes: Table::new(seed),
            families: Arena::new(),
            long: Arena::new(),
            names: Table::new(seed),
            ones: [NIL; 256],
            lists: Table::new(seed),
            owned: Table::new(seed),
            domains,
            special: [NIL; 2],
            private: NIL,
            generation: 0,
            recent: [const { RecentDirectory::NONE }; RECENT],
            removals: 0,
            leaving: 0,
            aside: 0,
            blocks: Blocks::default(),
        };
        let closed = Entry { domid: owner, access: Access::None, stale: false };
        let all = Entry { domid: DomId::ANY, access: Access::Read, stale: false };
        let private = tree.intern(&[closed])?;
        tree.private = private;
        tree.retain_list(private);
        tree.insert_fixed(private)?;
        tree.retain_list(private);
        let introduce = tree.insert_fixed(private)?;
        let public = tree.intern(&[closed, all])?;
        let release = tree.insert_fixed(public)?;
        tree.special = [introduce, release];
        Ok(tree)
    }

    /// The permission list of nodes that only the privileged domain may look at, with a use more.
    pub(super) fn private_list(&mut self) -> u32 {
        self.retain_list(self.private);
        self.private
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

    pub(super) fn value<'a>(&'a self, node: &'a Node) -> &'a [u8] {
        self.kept(&node.value)
    }

    /// The children of a node, by their ends.
    pub(super) fn family(&self, node: &Node) -> Family {
        self.families.get(node.family).copied().unwrap_or(Family::NONE)
    }

    /// The node with this handle or the next one, in the order of handles.
    pub(super) fn next_node(&self, from: u32) -> Option<(u32, &Node)> {
        self.nodes.next_from(from)
    }

    /// Whether a node is the top of what is in no tree.
    pub(super) fn is_aside(&self, node: &Node) -> bool {
        node.parent == ASIDE
    }

    /// The owner that a permission list names.
    pub(super) fn owner(&self, list: u32) -> DomId {
        self.entries(list).first().map_or(self.domains.privileged, |entry| entry.domid)
    }

    pub(super) fn rights(&self, list: u32, party: &Party) -> Rights {
        match party.target {
            // It is its target no more when that is cleared away, which takes turns. The rights end at once.
            Some(target) if self.domains.is_dying(target) => {
                rights(self.entries(list), &Party { target: None, ..*party })
            }
            _ => rights(self.entries(list), party),
        }
    }

    /// A child by its name.
    pub(super) fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.child_named(parent, self.find_name(name)?)
    }

    /// Walks a canonical path.
    pub(super) fn find(&self, path: &[u8]) -> Found {
        match path {
            b"@introduceDomain" => Found::Node(self.special[0]),
            b"@releaseDomain" => Found::Node(self.special[1]),
            [b'@', ..] => Found::Above { node: ROOT, there: 0 },
            _ => self.walk(path),
        }
    }

    /// Walks an absolute path.
    fn walk(&self, path: &[u8]) -> Found {
        let (mut at, mut here, mut rest) = (ROOT, self.nodes.get(ROOT), path);
        loop {
            let (child, behind) = match rest {
                // The deepest paths are made of such names, and most of their nodes have one child.
                [b'/', one, behind @ ..] if *one != b'/' && matches!(behind, [] | [b'/', ..]) => {
                    let name = self.one(*one);
                    (name.and_then(|name| self.first_or_named(at, here?, name)), behind)
                }
                _ => {
                    let Some(name) = path::components(rest).next() else { return Found::Node(at) };
                    let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
                    let behind = rest.get(slashes.saturating_add(name.len())..).unwrap_or(&[]);
                    let child = self.child(at, name);
                    (child.and_then(|child| Some((child, self.nodes.get(child)?))), behind)
                }
            };
            let Some((child, node)) = child else {
                return Found::Above { node: at, there: path.len().saturating_sub(rest.len()) };
            };
            (at, here, rest) = (child, Some(node), behind);
        }
    }

    /// A child by the handle of its name, quicker if it is the first.
    #[inline]
    fn first_or_named(&self, at: u32, parent: &Node, name: u32) -> Option<(u32, &Node)> {
        let first = self.families.get(parent.family)?.first;
        match self.nodes.get(first) {
            Some(child) if child.name == name => Some((first, child)),
            _ => {
                let child = self.child_named(at, name)?;
                Some((child, self.nodes.get(child)?))
            }
        }
    }

    /// As [`find`](Self::find), quicker for a client that looks again where it looked last.
    pub(super) fn find_for(&mut self, conn: ConnId, path: &[u8]) -> Found {
        // Of special names and of what is right below the root there is nothing to remember.
        let slash = path.iter().rposition(|byte| *byte == b'/').filter(|_| path.starts_with(b"/"));
        let Some(directory @ [_, ..]) = slash.and_then(|slash| path.get(..slash)) else {
            return self.find(path);
        };
        let name = path.get(directory.len().saturating_add(1)..).unwrap_or(&[]);
        let known = self.recent.get(conn.0 as usize % RECENT);
        let known = known
            .filter(|known| known.removals == self.removals && known.directory() == directory)
            .map(|known| known.node);
        let node = match known.map_or_else(|| self.find(directory), Found::Node) {
            Found::Node(node) => node,
            above @ Found::Above { .. } => return above,
        };
        if known.is_none() {
            self.remember(conn, directory, node);
        }
        match self.child(node, name) {
            Some(child) => Found::Node(child),
            None => Found::Above { node, there: directory.len() },
        }
    }

    /// Remembers where a client looked, unless the path is too long for that.
    fn remember(&mut self, conn: ConnId, directory: &[u8], node: u32) {
        let Some(known) = self.recent.get_mut(conn.0 as usize % RECENT) else { return };
        let room = known.bytes.get_mut(..directory.len());
        let (Some(room), Ok(len)) = (room, u8::try_from(directory.len())) else { return };
        room.copy_from_slice(directory);
        (known.len, known.node, known.removals) = (len, node, self.removals);
    }

    /// The children of a node, in the order of their creation.
    pub(super) fn children(&self, parent: u32) -> impl Iterator<Item = (u32, &Node)> {
        let first = self.node(parent).map_or(NIL, |node| self.family(node).first);
        let at = move |handle| self.node(handle).map(|node| (handle, node));
        core::iter::successors(at(first), move |(_, node)| at(node.next))
    }

    /// Every node below one, parents first and in the order of their creation.
    pub(super) fn below(&self, top: u32) -> impl Iterator<Item = (u32, &Node)> {
        let mut at = self.node(top).map(|node| (top, node));
        core::iter::from_fn(move || {
            let (mut handle, mut node) = at?;
            let mut next = self.family(node).first;
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

    /// Appends the path of a node of the tree.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn path_to(&self, handle: u32, to: &mut Vec<u8>) -> Result<(), NoMemory> {
        // Upwards, so each name backwards; then all of it is turned round.
        let start = to.len();
        let mut at = handle;
        while let Some(node) = self.node(at).filter(|_| at != ROOT) {
            let name = self.name(node);
            to.try_room(name.len().saturating_add(1))?;
            for byte in name.iter().rev() {
                to.try_push(*byte)?;
            }
            to.try_push(b'/')?;
            at = node.parent;
        }
        if to.len() == start {
            to.try_push(b'/')?;
        }
        if let Some(path) = to.get_mut(start..) {
            path.reverse();
        }
        Ok(())
    }

    /// The size of a node in the sense of the quota `node-size`.
    pub(super) fn size(&self, list: u32, value: usize, children_bytes: usize) -> usize {
        let entries = self.entries(list).len().saturating_mul(SIZE_ENTRY);
        SIZE_HEADER.saturating_add(entries).saturating_add(value).saturating_add(children_bytes)
    }

    /// What a node counts for in its owner's memory.
    pub(super) fn bytes(&self, node: &Node) -> usize {
        node_bytes(self.name(node), self.value(node))
    }

    /// How many nodes there are, the special ones included. Those that were made and that nobody sees do not count.
    pub(super) fn len(&self) -> usize {
        self.nodes.len().saturating_sub(self.aside as usize)
    }

    /// How many were made and are not yet in the tree.
    pub(super) fn aside(&self) -> usize {
        self.aside as usize
    }

    // Changing.

    /// Makes a node below `parent`, as its last child. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the use is the caller's.
    pub(super) fn create(
        &mut self,
        parent: u32,
        name: &[u8],
        value: &[u8],
        list: u32,
    ) -> Result<u32, NoMemory> {
        let handle = self.make_detached(name, value, list)?;
        self.attach(parent, handle);
        Ok(handle)
    }

    /// Makes sure that a node can have children.
    #[inline]
    fn prepare_family(&mut self, parent: u32) -> Result<(), NoMemory> {
        if let Some(above) = self.nodes.get_mut(parent)
            && above.family == NIL
        {
            above.family = self.families.insert(Family::NONE)?;
        }
        Ok(())
    }

    /// Makes the node the last child of its parent, which is prepared for it.
    #[inline]
    fn link(&mut self, parent: u32, name_len: usize, handle: u32) {
        let Some(above) = self.nodes.get(parent) else { return };
        let Some(family) = self.families.get_mut(above.family) else { return };
        family.bytes = family.bytes.saturating_add(entry_len(name_len));
        let last = core::mem::replace(&mut family.last, handle);
        if last == NIL {
            family.first = handle;
        }
        if let Some(before) = self.nodes.get_mut(last) {
            before.next = handle;
        }
        if let Some(node) = self.nodes.get_mut(handle) {
            (node.prev, node.next) = (last, NIL);
        }
    }

    /// One of the nodes that are always there, without a place in the tree.
    fn insert_fixed(&mut self, list: u32) -> Result<u32, NoMemory> {
        let generation = self.advance();
        let value = Value::Short { len: 0, bytes: [0; SHORT_MAX] };
        let handle = self.nodes.insert(Node::new(NIL, NIL, value, list, generation))?;
        self.domains.own(self.domains.privileged, 1, NODE_BYTES);
        Ok(handle)
    }

    /// A value to be put into a node, or [given up](Self::drop_value).
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn keep(&mut self, value: &[u8]) -> Result<Value, NoMemory> {
        let mut bytes = [0; SHORT_MAX];
        match (bytes.get_mut(..value.len()), u8::try_from(value.len())) {
            (Some(to), Ok(len)) => {
                to.copy_from_slice(value);
                Ok(Value::Short { len, bytes })
            }
            _ => self.keep_long(try_bytes(value)?),
        }
    }

    /// A value that has a block.
    fn keep_long(&mut self, value: Box<[u8]>) -> Result<Value, NoMemory> {
        let block = block_bytes(value.len());
        let kept = self.long.insert(value)?;
        self.blocks.values = self.blocks.values.saturating_add(block);
        Ok(Value::Long(kept))
    }

    /// Gives the block of a value back; what the value took.
    fn drop_long(&mut self, handle: u32) -> usize {
        let len = self.long.remove(handle).map_or(0, |value| value.len());
        self.blocks.values = self.blocks.values.saturating_sub(block_bytes(len));
        value_bytes(len)
    }

    /// The bytes of a value that is in no node.
    pub(super) fn kept<'a>(&'a self, value: &'a Value) -> &'a [u8] {
        match value {
            Value::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Value::Long(handle) => self.long.get(*handle).map_or(&[], |value| value),
        }
    }

    /// Frees a value that is in no node, or not any more; what it took.
    #[inline]
    pub(super) fn drop_value(&mut self, value: &Value) -> usize {
        match value {
            Value::Short { .. } => 0,
            Value::Long(handle) => self.drop_long(*handle),
        }
    }

    // Putting a tree together again.

    /// Makes the index ready for so many nodes, at most [`EXPECT_BYTES`](Self::EXPECT_BYTES) for each.
    pub(super) fn expect(&mut self, nodes: u32) {
        self.nodes.expect(nodes);
    }

    /// Makes a node as it was, as the last child of its parent, whose generation stays. Takes over the use of the
    /// name, and one of `list` unless there is a node of that name: then nothing happens. The caller tells its
    /// owner of it.
    pub(super) fn restore(
        &mut self,
        place: &Place<'_>,
        value: &[u8],
        list: u32,
        generation: u64,
    ) -> Result<Option<u32>, NoMemory> {
        let Place { parent, name, name_handle } = *place;
        let hash = child_hash(self.nodes.seed(), parent, name_handle);
        let same = |node: &Node| node.parent == parent && node.name == name_handle;
        if self.nodes.find(hash, same).is_some() {
            self.release_name(name_handle);
            return Ok(None);
        }
        let value = self.keep(value)?;
        let node = Node::new(parent, name_handle, value, list, generation);
        self.prepare_family(parent)?;
        let handle = self.nodes.insert_hashed(hash, node)?;
        self.link(parent, name.len(), handle);
        self.enter_owned(list, handle)?;
        Ok(Some(handle))
    }

    /// Makes one of the nodes that are always there as it was. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; a store that is put together is thrown away then.
    pub(super) fn restore_fixed(
        &mut self,
        handle: u32,
        value: &[u8],
        list: u32,
        generation: u64,
    ) -> Result<(), NoMemory> {
        self.set_list(handle, list)?;
        self.set_value(handle, value)?;
        if let Some(node) = self.nodes.get_mut(handle) {
            node.set_generation(generation);
        }
        Ok(())
    }

    /// Goes on counting generations behind this one.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Replaces a value.
    ///
    /// # Errors
    /// There is no memory; nothing has changed.
    pub(super) fn set_value(&mut self, handle: u32, value: &[u8]) -> Result<(), NoMemory> {
        let value = self.keep(value)?;
        self.put_value(handle, value);
        Ok(())
    }

    /// Replaces the value of a node of the tree by one that was made before.
    pub(super) fn put_value(&mut self, handle: u32, value: Value) {
        let new = self.kept(&value).len();
        let generation = self.advance();
        let Some(node) = self.nodes.get_mut(handle) else {
            self.drop_value(&value);
            return;
        };
        node.set_generation(generation);
        let old = core::mem::replace(&mut node.value, value);
        let list = node.list;
        let (old, new) = (self.drop_value(&old), value_bytes(new));
        // Most values are in their node, both before and after.
        if old != new {
            let owner = self.owner(list);
            self.domains.give_back(owner, super::quota::Quota::Memory, old);
            self.domains.take(owner, super::quota::Quota::Memory, new);
        }
    }

    /// Replaces the permissions. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the use is the caller's.
    pub(super) fn set_list(&mut self, handle: u32, list: u32) -> Result<(), NoMemory> {
        self.promise_owner()?;
        self.set_list_promised(handle, list);
        Ok(())
    }

    // Names.

    /// The handle of a name, with one use more.
    pub(super) fn intern_name(&mut self, bytes: &[u8]) -> Result<u32, NoMemory> {
        if let [one] = *bytes
            && let Some(known) = self.one(one)
        {
            self.retain_name(known);
            return Ok(known);
        }
        let hash = bytes_hash(self.names.seed(), bytes);
        self.use_name(hash, bytes).map_or_else(|| self.add_name(hash, bytes), Ok)
    }

    /// As [`intern_name`](Self::intern_name); `None` if this is no name.
    pub(super) fn intern_checked(&mut self, bytes: &[u8]) -> Result<Option<u32>, NoMemory> {
        let hash = bytes_hash(self.names.seed(), bytes);
        match self.use_name(hash, bytes) {
            None if path::is_name(bytes) => self.add_name(hash, bytes).map(Some),
            known => Ok(known),
        }
    }

    #[inline]
    fn use_name(&mut self, hash: u64, bytes: &[u8]) -> Option<u32> {
        let found = self.names.find_mut(hash, |name| {
            let is_it = name.bytes.get() == bytes;
            name.users = name.users.saturating_add(u32::from(is_it));
            is_it
        });
        let block = if found.is_some() { name_block(bytes.len()) } else { 0 };
        self.blocks.name_uses = self.blocks.name_uses.saturating_add(block);
        found
    }

    fn add_name(&mut self, hash: u64, bytes: &[u8]) -> Result<u32, NoMemory> {
        let name = Name { bytes: Bytes::new(bytes)?, users: 1, chain: NIL };
        let handle = self.names.insert_hashed(hash, name)?;
        let block = name_block(bytes.len());
        self.blocks.names = self.blocks.names.saturating_add(block);
        self.blocks.name_uses = self.blocks.name_uses.saturating_add(block);
        if let [one] = *bytes {
            self.set_one(one, handle);
        }
        Ok(handle)
    }

    /// The handle of a name of one byte from now on.
    fn set_one(&mut self, byte: u8, handle: u32) {
        if let Some(one) = self.ones.get_mut(usize::from(byte)) {
            *one = handle;
        }
    }

    /// One use less of a name; what its block takes.
    #[inline]
    pub(super) fn release_name(&mut self, handle: u32) -> usize {
        let mut gone = 0;
        let block = self.release_one(handle, &mut gone);
        if gone > 0 {
            self.names.fit(gone);
        }
        block
    }

    /// As [`release_name`](Self::release_name), one of many: counts those that are gone, for which the index is
    /// [made to fit](Table::fit) afterwards.
    #[inline]
    fn release_one(&mut self, handle: u32, gone: &mut u32) -> usize {
        let Some(name) = self.names.get_mut(handle) else { return 0 };
        let block = name_block(name.bytes.len());
        name.users = name.users.saturating_sub(1);
        let is_last = name.users == 0;
        self.blocks.name_uses = self.blocks.name_uses.saturating_sub(block);
        if is_last {
            self.remove_name(handle, block);
            *gone = gone.saturating_add(1);
        }
        block
    }

    #[inline(never)]
    fn remove_name(&mut self, handle: u32, block: usize) {
        if let Some([one]) = self.names.take(handle).as_ref().map(|name| name.bytes.get()) {
            self.set_one(*one, NIL);
        }
        self.blocks.names = self.blocks.names.saturating_sub(block);
    }

    /// Every name with its handle and number of users, for the consistency check.
    pub(super) fn names(&self) -> impl Iterator<Item = (u32, u32)> {
        self.names.iter().map(|(handle, name)| (handle, name.users))
    }
}

/// What a node counts for in its owner's memory.
pub(super) fn node_bytes(name: &[u8], value: &[u8]) -> usize {
    NODE_BYTES.saturating_add(name_block(name.len())).saturating_add(value_bytes(value.len()))
}

/// What the block of a name takes: short ones have none.
#[inline]
pub(super) const fn name_block(len: usize) -> usize {
    block_bytes(Bytes::block_len(len))
}

/// What a value takes: short ones are in their node.
#[inline]
pub(super) fn value_bytes(len: usize) -> usize {
    if len <= SHORT_MAX {
        return 0;
    }
    block_bytes(len).saturating_add(Arena::<Box<[u8]>>::RECORD_BYTES)
}

/// What a child adds to its parent's list of children.
pub(super) fn entry_bytes(name: &[u8]) -> u32 {
    entry_len(name.len())
}

/// The same, by the length of its name.
fn entry_len(name: usize) -> u32 {
    u32::try_from(name).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
impl Tree {
    /// Breaks a node, for tests of what finds that.
    pub(super) fn damage(&mut self, handle: u32, how: impl FnOnce(&mut Node)) {
        how(self.nodes.get_mut(handle).unwrap());
    }
}
