//! The store, put together again from the records of a stream and, if the same program wrote it, from the
//! fields of the private part, which is read in step with the records.
//!
//! Both are untrusted: what does not fit together is refused with a sentence, and nothing is
//! allocated by a number that was not checked against what is there. Nodes come parents first, so
//! the place of each is found from the one before: no path is looked up from the root.

use super::Store;
use super::events::Conn;
use super::path::{Names, Path, split_name};
use super::perms::{Entry, Party};
use super::quota::{Quota, Quotas};
use super::save::special;
use super::transaction::{TOUCH_COST, TransactionHead};
use super::tree::{Found, Place, ROOT, Tree, node_bytes};
use super::watch::{Watches, watch_bytes};
use crate::mem::{NIL, NoMemory, TryVec};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream;
use alloc::vec::Vec;

/// What does not fit together, as a sentence.
type Refusal = Sentence;

fn no_memory(_: NoMemory) -> Refusal {
    sentence!("{NoMemory}")
}

/// Why permissions are not taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unfit {
    /// They name a domain that is not known.
    Stranger,
    /// There is no memory.
    NoMemory,
}

impl Unfit {
    /// The same for the permissions of a node.
    pub(super) fn of_a_node(self) -> &'static str {
        match self {
            Self::Stranger => "its permissions name a domain that is not known",
            Self::NoMemory => "no memory is left",
        }
    }
}

impl From<NoMemory> for Unfit {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<Unfit> for Sentence {
    fn from(unfit: Unfit) -> Self {
        Self::from(match unfit {
            Unfit::Stranger => "permissions name a domain that is not known",
            Unfit::NoMemory => "no memory is left",
        })
    }
}

/// Nodes in a row that have the same owner, whose account does not have them yet.
#[derive(Debug)]
struct Run {
    owner: DomId,
    nodes: u32,
    bytes: usize,
}

impl Run {
    fn add(&mut self, owner: DomId, bytes: usize, tree: &mut Tree) {
        if owner != self.owner {
            self.end(tree);
            self.owner = owner;
        }
        self.nodes = self.nodes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Charges the owner.
    fn end(&mut self, tree: &mut Tree) {
        tree.domains.own(self.owner, self.nodes, self.bytes);
        (self.nodes, self.bytes) = (0, 0);
    }
}

/// A store that is being put together.
#[derive(Debug)]
pub struct Restoring<'a> {
    pub(super) store: Store,
    /// Domains are known beforehand; otherwise whoever is named becomes known.
    pub(super) closed: bool,
    /// The path of the node made last.
    here: &'a [u8],
    /// That node and those above it, with the lengths of their paths.
    above: Vec<(u32, usize)>,
    /// The permissions of that node, as they came, as they are, and their handle with a use.
    perms: stream::Perms<'a>,
    entries: Vec<Entry>,
    pub(super) list: u32,
    /// Uses of `list` that were given away and are not counted yet: they come in rows.
    uses: u32,
    /// Which of the root and the special nodes have come.
    fixed: [bool; 3],
    pub(super) newest: u64,
    run: Run,
    /// Transactions, of which so many have all that they touched.
    pub(super) unfilled: Vec<TransactionHead>,
    pub(super) filled: usize,
}

impl<'a> Restoring<'a> {
    /// Nothing yet. `closed` says that every domain is announced before anything names it.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(
        seed: u64,
        privileged: DomId,
        initial: Quotas,
        closed: bool,
    ) -> Result<Self, NoMemory> {
        let mut above = Vec::new();
        above.try_push((ROOT, 0))?;
        Ok(Self {
            store: Store::bare(seed, privileged, initial)?,
            closed,
            here: &[],
            above,
            perms: stream::Perms::NONE,
            entries: Vec::new(),
            list: NIL,
            uses: 0,
            fixed: [false; 3],
            newest: 0,
            run: Run { owner: privileged, nodes: 0, bytes: 0 },
            unfilled: Vec::new(),
            filled: 0,
        })
    }

    /// What tables may take at once when they grow, besides [`cost`](Self::cost).
    pub const MARGIN: usize = Tree::FIXED_COST + Watches::FIXED_COST;

    /// Upper bound of the bytes that taking in a record allocates.
    #[must_use]
    pub fn cost(record: &stream::Record<'_>) -> usize {
        let texts = match record {
            stream::Record::Node(node) => return Self::node_cost(node),
            stream::Record::Watch(watch) => watch.path.len().saturating_add(watch.token.len()),
            stream::Record::Connection(connection) => {
                // A message of nothing but a header costs more than that header.
                connection.input.len().saturating_add(connection.output.len().saturating_mul(16))
            }
            stream::Record::Global(_)
            | stream::Record::Transaction(_)
            | stream::Record::GlobalQuota(_)
            | stream::Record::Domain(_)
            | stream::Record::Unknown(_) => 0,
        };
        texts.saturating_mul(3).saturating_add(TOUCH_COST)
    }

    /// The same for a node's record.
    #[must_use]
    pub fn node_cost(node: &stream::Node<'_>) -> usize {
        let perms = node.perms.len().saturating_mul(size_of::<Entry>());
        let texts = node.path.len().saturating_add(node.value.len()).saturating_add(perms);
        texts.saturating_mul(3).saturating_add(TOUCH_COST)
    }

    /// The same for a node with texts of so many bytes.
    pub(super) fn texts_cost(texts: usize) -> usize {
        texts.saturating_mul(3).saturating_add(TOUCH_COST)
    }

    /// Makes everything ready for so many nodes. Whether they come does not matter, only that there is room:
    /// [`EXPECT_BYTES`](Self::EXPECT_BYTES) for each.
    pub fn expect(&mut self, nodes: usize) {
        self.store.tree.expect(u32::try_from(nodes).unwrap_or(u32::MAX));
    }

    /// Upper bound of what each node takes that is expected.
    pub const EXPECT_BYTES: usize = Tree::EXPECT_BYTES;

    /// Upper bound of what the records of a touched path take besides: every second byte of it can start a name.
    #[must_use]
    pub fn touched_cost(node: &stream::Node<'_>) -> usize {
        TOUCH_COST.saturating_mul(node.path.len().div_ceil(2))
    }

    /// What has been put together so far.
    #[must_use]
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// A tracked domain with its limits.
    ///
    /// # Errors
    /// There is no memory.
    pub fn domain(&mut self, domid: DomId, quotas: Quotas) -> Result<(), NoMemory> {
        self.store.tree.domains.learn(domid)?;
        if let Some(domain) = self.store.tree.domains.get_mut(domid) {
            domain.quotas = quotas;
        }
        Ok(())
    }

    /// A connection, and the last transaction id that it was given.
    ///
    /// # Errors
    /// There is one with this id already.
    pub fn connect(&mut self, conn: ConnId, party: Party, last_tx: u32) -> Result<(), Refusal> {
        if self.store.conns.contains_key(&conn) {
            return Err(sentence!("connection {} is there twice", conn.0));
        }
        self.store.conns.insert(conn, Conn::new(party, last_tx)).map_err(no_memory)
    }

    /// A watch, with its depth as the private part has it.
    ///
    /// # Errors
    /// It belongs to nobody, its path is none, or it is there twice.
    pub fn watch(&mut self, watch: &stream::Watch<'_>, depth: Option<u32>) -> Result<(), Refusal> {
        let store = &mut self.store;
        let conn = watch.conn;
        let party =
            store.party(conn).ok_or_else(|| sentence!("a watch of no connection ({})", conn.0))?;
        let path = Path::of_any_length(Vec::new(), watch.path, Names::OrSpecial, party.domid)
            .map_err(|error| {
                if error == XsError::ENOMEM {
                    return Sentence::from(NoMemory);
                }
                sentence!("a watch of domain {} on no path", party.domid)
            })?;
        if store.watches.find(&store.tree, conn, path.bytes(), watch.token).is_some() {
            return Err(sentence!("a watch of domain {} is there twice", party.domid));
        }
        let Some(state) = store.conns.get_mut(&conn) else { return Ok(()) };
        let whose = (conn, state);
        let added = store.watches.add(&mut store.tree, whose, &path, watch.token, depth);
        added.map_err(no_memory)?;
        let bytes = watch_bytes(path.bytes(), watch.token);
        store.tree.domains.take(party.domid, Quota::Watches, 1);
        store.tree.domains.take(party.domid, Quota::Memory, bytes);
        Ok(())
    }

    /// A node as everybody sees it. Without a generation it gets a new one.
    ///
    /// # Errors
    /// There is no node above it, it is there twice, or its name or permissions are none.
    pub fn node(
        &mut self,
        node: &stream::Node<'a>,
        generation: Option<u64>,
    ) -> Result<(), Refusal> {
        let placed = self.take_list(node.perms).map_err(Unfit::of_a_node).and_then(|()| {
            let placed = self.place(node, generation);
            if placed.is_err() {
                self.uses = self.uses.saturating_sub(1);
            }
            placed
        });
        // The reason first: the sentence has an end, and the path may be long.
        placed.map_err(|what| sentence!("{what}: node {}", node.path.escape_ascii()))
    }

    /// Puts a node in its place, with a use of `self.list`.
    fn place(
        &mut self,
        node: &stream::Node<'a>,
        generation: Option<u64>,
    ) -> Result<(), &'static str> {
        self.owner()?;
        let generation = match generation {
            Some(generation) => generation,
            None => self.store.tree.advance(),
        };
        let value = node.value;
        let tree = &mut self.store.tree;
        let fixed = match node.path {
            b"/" => Some((0_usize, ROOT)),
            name @ [b'@', ..] => special(name)
                .and_then(|place| Some((place.saturating_add(1), *tree.special.get(place)?))),
            _ => None,
        };
        if let Some((place, handle)) = fixed {
            return self.put_fixed(place, handle, value, generation);
        }
        let place =
            self.find_place(node.path)?.ok_or("there is no node above it, or its name is none")?;
        let tree = &mut self.store.tree;
        let bytes = node_bytes(place.name, value);
        let made = tree.restore(&place, value, self.list, generation);
        let made = made.map_err(|_| "no memory is left")?.ok_or("it is there twice")?;
        self.made(bytes, generation)?;
        self.here = node.path;
        // What is above was found by the path, so it need not be the one before.
        let kept = self.above.try_push((made, self.here.len()));
        kept.map_err(|NoMemory| "no memory is left")?;
        Ok(())
    }

    /// The owner that the permissions name.
    fn owner(&self) -> Result<DomId, &'static str> {
        match self.entries.first() {
            Some(owner) if !owner.stale && owner.domid != DomId::ANY => Ok(owner.domid),
            _ => Err("it has no owner"),
        }
    }

    /// Makes one of the nodes that are always there as it was, with a use of `self.list`.
    pub(super) fn put_fixed(
        &mut self,
        place: usize,
        handle: u32,
        value: &[u8],
        generation: u64,
    ) -> Result<(), &'static str> {
        self.owner()?;
        self.newest = self.newest.max(generation);
        match self.fixed.get_mut(place) {
            Some(came) if !*came => *came = true,
            _ => return Err("it is there twice"),
        }
        let made = self.store.tree.restore_fixed(handle, value, self.list, generation);
        made.map_err(|NoMemory| "no memory is left")
    }

    /// A node was made, with a use of `self.list`: its owner gets it.
    #[inline]
    pub(super) fn made(&mut self, bytes: usize, generation: u64) -> Result<(), &'static str> {
        let owner = self.owner()?;
        self.newest = self.newest.max(generation);
        self.run.add(owner, bytes, &mut self.store.tree);
        Ok(())
    }

    /// Where a path leads to; with a use of its last name.
    fn find_place<'p>(&mut self, path: &'p [u8]) -> Result<Option<Place<'p>>, &'static str> {
        let no_memory = |NoMemory| "no memory is left";
        if self.closed && !self.fixed.first().is_some_and(|root| *root) {
            return Ok(None);
        }
        while let Some((handle, len)) = self.above.last() {
            if path.get(*len) == Some(&b'/') && path.get(..*len) == self.here.get(..*len) {
                // Behind the path of that node comes one name more. It was looked at when it came first.
                let Some(name) = path.get(len.saturating_add(1)..) else { return Ok(None) };
                let known = self.store.tree.intern_checked(name).map_err(no_memory)?;
                if let Some(name_handle) = known {
                    return Ok(Some(Place { parent: *handle, name, name_handle }));
                }
            }
            // The root is above everything.
            if *len == 0 {
                break;
            }
            self.above.pop();
        }
        let split = split_name(path).filter(|_| path.first() == Some(&b'/'));
        let Some((stem, name)) = split else { return Ok(None) };
        // Only others' streams have another order.
        let parent = match self.store.tree.find(stem) {
            Found::Node(handle) if !self.closed && stem.first() == Some(&b'/') => handle,
            Found::Node(_) | Found::Above { .. } => return Ok(None),
        };
        let name_handle = self.store.tree.intern_checked(name).map_err(no_memory)?;
        Ok(name_handle.map(|name_handle| Place { parent, name, name_handle }))
    }

    /// Makes `list` the handle of these permissions, and gives the caller a use of it.
    ///
    /// # Errors
    /// They name somebody whom they cannot, or there is no memory.
    #[inline]
    pub(super) fn take_list(&mut self, perms: stream::Perms<'a>) -> Result<(), Unfit> {
        if !perms.is_written_as(&self.perms) {
            self.read_list(perms)?;
        }
        self.uses = self.uses.saturating_add(1);
        Ok(())
    }

    /// Counts the uses of `list` that were given away since the last time.
    pub(super) fn count_uses(&mut self) {
        let uses = core::mem::take(&mut self.uses);
        self.store.tree.retain_uses(self.list, uses);
    }

    /// The same, for permissions that are not those of the node before; without a use for the caller.
    fn read_list(&mut self, perms: stream::Perms<'a>) -> Result<(), Unfit> {
        self.count_uses();
        self.perms = stream::Perms::NONE;
        if self.entries.is_empty() || !perms.is(&self.entries) {
            self.replace_list(perms.iter())?;
        }
        self.perms = perms;
        Ok(())
    }

    /// One more node has the permissions `list`.
    #[inline]
    pub(super) fn use_list(&mut self) {
        self.uses = self.uses.saturating_add(1);
    }

    /// Makes `list` the handle of these permissions.
    ///
    /// # Errors
    /// They name somebody whom they cannot, or there is no memory.
    pub(super) fn replace_list(
        &mut self,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<(), Unfit> {
        self.count_uses();
        self.store.tree.release_list(core::mem::replace(&mut self.list, NIL));
        let replaced = self.intern_entries(entries);
        match replaced {
            Ok(list) => self.list = list,
            // They are not those of `list`.
            Err(_) => self.entries.clear(),
        }
        replaced.map(|_| ())
    }

    fn intern_entries(&mut self, entries: impl Iterator<Item = Entry>) -> Result<u32, Unfit> {
        let tree = &mut self.store.tree;
        self.entries.clear();
        for entry in entries {
            self.entries.try_push(entry)?;
        }
        for entry in self.entries.iter().filter(|entry| !entry.stale) {
            if entry.domid != DomId::ANY && tree.domains.get(entry.domid).is_none() {
                if self.closed || !entry.domid.is_ordinary() {
                    return Err(Unfit::Stranger);
                }
                tree.domains.learn(entry.domid)?;
            }
        }
        Ok(tree.intern(&self.entries)?)
    }

    /// The store. `generation` is the latest one given out, `None` if they were new, and `dropped` the number of
    /// events dropped so far.
    ///
    /// # Errors
    /// Something is missing.
    pub fn finish(mut self, generation: Option<u64>, dropped: u64) -> Result<Store, Refusal> {
        self.run.end(&mut self.store.tree);
        self.complete()?;
        if self.filled < self.unfilled.len() {
            return Err(Sentence::from("a transaction lacks nodes that it has touched"));
        }
        if self.closed && self.fixed.contains(&false) {
            return Err(Sentence::from("the root or a special node is missing"));
        }
        if let Some(generation) = generation {
            if generation < self.newest {
                return Err(Sentence::from("a node is newer than the last change"));
            }
            self.store.tree.set_generation(generation);
        }
        self.count_uses();
        self.store.tree.release_list(self.list);
        self.store.dropped = dropped;
        Ok(self.store)
    }
}

impl Store {
    /// Sets the greatest use of a domain. `false` if it is less than the present one.
    pub fn set_peak(&mut self, domid: DomId, peak: Quotas) -> bool {
        let Some(domain) = self.tree.domains.get_mut(domid) else { return false };
        domain.peak = peak;
        Quota::ALL.into_iter().all(|quota| domain.used.get(quota) <= peak.get(quota))
    }
}
