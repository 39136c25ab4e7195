//! An open transaction, written down for a successor.
//!
//! The stream says what the document has a place for: each touched path with value and permissions as the
//! transaction sees them, in the order of first access. The private part says the rest. Handles mean
//! nothing to the successor, so the live node that was seen first is written as a fact: it is unchanged since,
//! and then the successor finds it by its path; or it is not, and then the transaction cannot commit any more,
//! whatever comes, so nothing else about that node matters. The same holds for what was removed together with a node: if it
//! is as it was then, it is newer than nothing that the successor starts with.

use super::overlay::Open;
use super::{Base, Now, OpenOf, Places, Touched, Transaction, Transactions};
use crate::mem::{NIL, Table, TryVec};
use crate::proto::error::XsError;
use crate::proto::handover::{FieldReader, FieldWriter};
use crate::proto::id::DomId;
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{self, OutOfRoom, Pending, Perms, Sink, Touch, WriteError};
use crate::store::Store;
use crate::store::events::Work;
use crate::store::path;
use crate::store::tree::{Found, ROOT, Tree};
use crate::store::watch::Class;
use alloc::vec::Vec;

/// There was a live node at the first access.
const BASE: u16 = 1;
/// It is unchanged, and so are those below if it was removed with them.
const INTACT: u16 = 1 << 1;
const FRESH: u16 = 1 << 2;
const MODIFIED: u16 = 1 << 3;
/// The value is the transaction's own copy.
const KEPT: u16 = 1 << 4;
/// The event at commit: none, exact, subtree.
const EVENT_SHIFT: u32 = 5;
const EVENT_MASK: u16 = 3;

/// The fewest bytes that a touched path takes in the private part.
const TOUCHED_FIELDS: usize = 10;

/// What does not fit together, as a sentence.
pub(super) type Refusal = Sentence;

impl Transactions {
    /// Writes every path that a transaction has touched into the stream.
    pub(super) fn write_nodes<S: Sink>(
        &self,
        tree: &Tree,
        tx: &Transaction,
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        let mut path = Vec::new();
        for (at, touched) in self.in_order(tx) {
            let touch = match touched.now {
                // The document has no other way to say that there is nothing.
                None => Touch::Deleted,
                Some(_) if touched.is_fresh() || touched.modified => Touch::ReadAndWritten,
                Some(_) => Touch::Read,
            };
            let value = match &touched.value {
                Some(value) => tree.kept(value),
                None => tree.node(touched.made).map_or(&[][..], |made| tree.value(made)),
            };
            // Without memory for a path there is none for a successor, either.
            self.places.path(tree, at, &mut path).map_err(|_| OutOfRoom)?;
            writer.node(&stream::Node {
                path: &path,
                value,
                perms: touched.now.map_or(Perms::NONE, |now| Perms::from(tree.entries(now.list))),
                pending: Some(Pending { conn: tx.conn, tx: tx.id, touch }),
            })?;
        }
        Ok(())
    }

    /// What the private part says of a transaction as a whole.
    pub(super) fn write_head<S: Sink>(
        tx: &Transaction,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.flag(tx.poisoned)?;
        fields.count(tx.accessed as usize)?;
        // Once there was an entry for each owner.
        fields.count(usize::from(tx.delta != 0))?;
        if tx.delta != 0 {
            fields.u16(tx.domid.0)?;
            fields.i64(tx.delta)?;
        }
        Ok(())
    }

    /// What the private part says of every touched path.
    pub(super) fn write_touched<S: Sink>(
        &self,
        tree: &Tree,
        tx: &Transaction,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        let places = &self.places;
        for (at, touched) in self.in_order(tx) {
            let event = match touched.event {
                None => 0_u16,
                Some(Class::Exact) => 1,
                Some(Class::Subtree) => 2,
            };
            let is_intact = touched.is_intact(tree) && !places.is_changed_below(tree, at);
            let kept = touched.now.is_some() && (touched.is_fresh() || touched.value.is_some());
            let bits = [
                (BASE, touched.base.is_some()),
                (INTACT, is_intact),
                (FRESH, touched.is_fresh()),
                (MODIFIED, touched.modified),
                (KEPT, kept),
            ];
            let set = bits.into_iter().filter(|(_, is_set)| *is_set);
            fields.u16(set.fold(event << EVENT_SHIFT, |all, (bit, _)| all | bit))?;
            fields.u32(touched.below)?;
            let made = |touched: &Touched| {
                let first = if touched.has_made { touched.first } else { NIL };
                let below =
                    core::iter::successors(places.get(first), |child| places.get(child.next));
                below.filter(|child| child.is_fresh())
            };
            fields.count(made(touched).count())?;
            for child in made(touched) {
                fields.u32(child.number)?;
            }
            if let Some(now) = &touched.now {
                fields.u64(now.generation)?;
                fields.u32(now.children_bytes)?;
            }
        }
        Ok(())
    }
}

/// What is read of a transaction before it has all its records.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Its records, in the order of first access.
    records: Vec<u32>,
    /// The numbers of nodes that were made, in the order in which they were made below each, with that of the node above.
    made: Vec<(u32, u32)>,
}

impl Transaction {
    /// Reads what its head says; how many paths it has touched.
    pub(super) fn read_head(&mut self, fields: &mut FieldReader<'_>) -> Result<usize, Refusal> {
        self.poisoned = fields.flag()?;
        let count = fields.count(TOUCHED_FIELDS)?;
        let mut last = None;
        for _ in 0..fields.count(10)? {
            let (domid, delta) = (DomId(fields.u16()?), fields.i64()?);
            if last.is_some_and(|last| last >= domid) {
                return Err(sentence!("the owners of transaction {} are not in order", self.id.0));
            }
            last = Some(domid);
            if domid == self.domid {
                self.delta = delta;
            }
        }
        Ok(count)
    }
}

impl Store {
    /// Has every open transaction end in EAGAIN, whatever it has done, and forgets that. What was kept of it is neither
    /// looked at nor freed, for it may be damaged: this store is not used any more but to be written down.
    pub fn doom_transactions(&mut self) {
        let Self { tree, transactions, conns, .. } = self;
        let none = Places(Table::new(transactions.places.0.seed()));
        core::mem::forget(core::mem::replace(&mut transactions.places, none));
        let most = transactions.open();
        let mut from = 0;
        while let Some((handle, id)) = conns.next_from(from) {
            from = handle.saturating_add(1);
            let Some(conn) = conns.get_mut(&id) else { continue };
            // Whatever else knows places by their old numbers must not go on with them.
            (conn.way, conn.ending) = (None, OpenOf::NONE);
            if let Work::Fill(_) = conn.work {
                (conn.work, conn.failed) = (Work::Nothing, Some(XsError::EIO));
            }
            let mut next = conn.open.first;
            // No longer than there can be any, in case that the list goes round.
            for _ in 0..most {
                let Some(mut open) = transactions.at(next) else { break };
                next = open.tx.next;
                open.tx.empty();
                // Without memory for that it ends in ENOMEM.
                open.tx.poisoned |= open.mark_conflicting(tree).is_err();
            }
        }
    }
}

impl Open<'_> {
    /// Makes a transaction of which nothing is known one that must not commit: it ends in EAGAIN.
    pub(super) fn mark_conflicting(&mut self, tree: &mut Tree) -> Result<(), Refusal> {
        let at = self.root()?;
        self.enlist(at);
        let node = tree.node(ROOT).map(|root| Now {
            list: root.list,
            children_bytes: tree.family(root).bytes,
            generation: root.generation(),
        });
        tree.retain_list(node.map_or(NIL, |now| now.list));
        if let Some(root) = self.get_mut(at) {
            root.base = Some(Base { node: NIL, list: NIL, generation: 0 });
            root.now = node;
        }
        self.hold(tree, at);
        Ok(())
    }

    /// Counts what a record holds.
    fn hold(&mut self, tree: &Tree, at: u32) {
        let bytes = self.get(at).map_or(0, |touched| touched.bytes(tree));
        self.tx.bytes = self.tx.bytes.saturating_add(bytes);
    }

    /// The record of a path, made if there is none, with all above.
    fn restore_path(&mut self, tree: &mut Tree, path: &[u8]) -> Result<u32, Refusal> {
        if path.first() == Some(&b'@') {
            let name = tree.intern_name(path)?;
            if let Some(known) = self.special(name) {
                tree.release_name(name);
                return Ok(known);
            }
            let made = self.add_special(name);
            if made.is_err() {
                tree.release_name(name);
            }
            let made = made?;
            self.hold(tree, made);
            return Ok(made);
        }
        let is_new = self.tx.root == NIL;
        let mut at = self.root()?;
        if is_new {
            self.hold(tree, at);
        }
        for name in path::components(path) {
            let handle = tree.intern_name(name)?;
            at = match self.places.child(at, handle) {
                Some(known) => {
                    tree.release_name(handle);
                    known
                }
                None => {
                    let made = self.add(at, handle);
                    if made.is_err() {
                        tree.release_name(handle);
                    }
                    let made = made?;
                    self.hold(tree, made);
                    made
                }
            };
        }
        Ok(at)
    }

    /// Adds a touched path as a stream and the private part describe it. `list` are the permissions as the
    /// transaction sees them, with one use, `NIL` if there is nothing. `live` is the node at the path, and `newest` the
    /// newest generation of all nodes.
    pub(super) fn restore_touched(
        &mut self,
        tree: &mut Tree,
        node: &stream::Node<'_>,
        list: u32,
        newest: u64,
        pieces: &mut Pieces,
        fields: &mut FieldReader<'_>,
    ) -> Result<(), Refusal> {
        let found = match tree.find(node.path) {
            Found::Node(handle) => handle,
            Found::Above { .. } => NIL,
        };
        let at = self.restore_path(tree, node.path)?;
        if self.get(at).is_some_and(|touched| touched.accessed) {
            return Err(Sentence::from("a transaction has touched a path twice"));
        }
        let before = self.get(at).map_or(0, |touched| touched.bytes(tree));
        self.enlist(at);
        pieces.records.try_push(at)?;
        let bits = fields.u16()?;
        let is_set = |bit| bits & bit != 0;
        let event = match (bits >> EVENT_SHIFT) & EVENT_MASK {
            0 => None,
            1 => Some(Class::Exact),
            _ => Some(Class::Subtree),
        };
        let below = fields.u32()?;
        let number = self.get(at).map_or(0, |touched| touched.number);
        let made = fields.count(4)?;
        for _ in 0..made {
            pieces.made.try_push((number, fields.u32()?))?;
        }
        let now = if list == NIL {
            None
        } else {
            Some(Now { list, generation: fields.u64()?, children_bytes: fields.u32()? })
        };
        let base = restore_base(tree, bits, below, found)?;
        let is_fresh = is_set(FRESH) && now.is_some();
        let fresh = if is_fresh {
            let above = self.get(at).and_then(Touched::above);
            if above.is_none() {
                return Err(Sentence::from("a transaction made a node that is always there"));
            }
            let name = path::name(node.path);
            let fresh = tree.make_detached(name, node.value, list)?;
            tree.retain_list(list);
            fresh
        } else {
            NIL
        };
        let value = if is_set(KEPT) && now.is_some() && !is_fresh {
            Some(tree.keep(node.value)?)
        } else {
            None
        };
        let promised = is_set(MODIFIED) && !is_fresh && now.is_some();
        if promised {
            tree.promise_owner()?;
        }
        if let Some(touched) = self.get_mut(at) {
            touched.modified = is_set(MODIFIED);
            touched.has_made = made > 0;
            touched.promised = promised;
            touched.event = event;
            touched.made = fresh;
            touched.below = below;
            let is_gone = now.is_none() || is_fresh;
            touched.removed_at = base.filter(|_| is_gone).map(|_| newest);
            (touched.base, touched.now, touched.value) = (base, now, value);
        }
        self.tx.below = self.tx.below.saturating_add(below as usize);
        let after = self.get(at).map_or(0, |touched| touched.bytes(tree));
        self.tx.bytes = self.tx.bytes.saturating_add(after).saturating_sub(before);
        Ok(())
    }

    /// Puts the nodes that were made in it into their order, after all touched paths are there, and looks whether a
    /// commit could do what they say.
    pub(super) fn complete(&mut self, pieces: &Pieces) -> Result<(), Refusal> {
        let mut left = 0_usize;
        for at in &pieces.records {
            let is_fresh = self.get(*at).is_some_and(Touched::is_fresh);
            left = left.saturating_add(usize::from(is_fresh));
        }
        for (above, child) in &pieces.made {
            let record = |number: u32| pieces.records.get(number as usize).copied().unwrap_or(NIL);
            let (above, child) = (record(*above), record(*child));
            let is_there = self.get(above).is_some_and(|above| above.now.is_some());
            let fits = self
                .get(child)
                .is_some_and(|touched| touched.is_fresh() && touched.parent == above);
            if !is_there || !fits {
                return Err(Sentence::from(
                    "a transaction made a child that does not belong there",
                ));
            }
            self.move_to_end(child);
            left = left.saturating_sub(1);
        }
        if left != 0 {
            return Err(Sentence::from("a transaction made a node that is nobody's child"));
        }
        Ok(())
    }
}

/// The live node that was there at the first access, as the bits say; `found` is the one that is there now.
fn restore_base(
    tree: &mut Tree,
    bits: u16,
    below: u32,
    found: u32,
) -> Result<Option<Base>, Refusal> {
    if bits & INTACT != 0 {
        let found = tree.node(found).map(|node| (found, node.list, node.generation()));
        let (node, list, generation) =
            found.ok_or("a node that a transaction has touched is missing")?;
        tree.retain_list(list);
        return Ok(Some(Base { node, list, generation }));
    }
    if bits & BASE != 0 {
        return Ok(Some(Base { node: NIL, list: NIL, generation: 0 }));
    }
    if below > 0 {
        return Err(Sentence::from("a transaction removed nodes below one that did not exist"));
    }
    Ok(None)
}

impl Touched {
    /// Whether the live node that it stands for is as it was at the first access.
    pub(super) fn is_intact(&self, tree: &Tree) -> bool {
        let same = |base: Base| {
            tree.node(base.node).is_some_and(|node| node.generation() == base.generation)
                // After a failure what was being removed may still be there.
                && (!tree.has_detached() || tree.is_in_place(base.node))
        };
        self.base.is_some_and(same)
    }
}
