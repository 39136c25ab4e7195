//! An open transaction, written down for a successor.
//!
//! The stream says what the document has a place for: each touched path with value and permissions as the
//! transaction sees them, in the order of first access. The private part says the rest. Handles mean
//! nothing to the successor, so the live node that was seen first is written as a fact: it is unchanged since,
//! and then the successor finds it by its path; or it is not, and then the transaction cannot commit any more,
//! whatever comes, so nothing else about that node matters.

use super::{Base, Below, Copy, Touched, Transaction};
use crate::mem::{Bytes, NIL};
use crate::proto::handover::{FieldReader, FieldWriter};
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{self, OutOfRoom, Pending, Perms, Sink, Touch, WriteError};
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
type Refusal = Sentence;

impl Transaction {
    /// Writes every touched path into the stream.
    pub(in crate::store) fn write_nodes<S: Sink>(
        &self,
        tree: &Tree,
        conn: ConnId,
        writer: &mut stream::Writer<S>,
    ) -> Result<(), WriteError> {
        for touched in &self.touched {
            let now = touched.now.as_ref();
            let touch = match now {
                // The document has no other way to say that there is nothing.
                None => Touch::Deleted,
                Some(_) if touched.fresh || touched.modified => Touch::ReadAndWritten,
                Some(_) => Touch::Read,
            };
            let value = now.and_then(|now| now.value.as_ref());
            writer.node(&stream::Node {
                path: &touched.path,
                value: value.map_or(&[], Bytes::get),
                perms: now.map_or(Perms::NONE, |now| Perms::from(tree.entries(now.list))),
                pending: Some(Pending { conn, tx: self.id, touch }),
            })?;
        }
        Ok(())
    }

    /// What the private part says of it as a whole.
    pub(in crate::store) fn write_head<S: Sink>(
        &self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.flag(self.poisoned)?;
        fields.count(self.touched.len())?;
        // As many entries as there are owners: few.
        let mut delta = self.delta.clone();
        delta.retain(|(_, delta)| *delta != 0);
        delta.sort_unstable();
        fields.count(delta.len())?;
        for (domid, delta) in delta {
            fields.u16(domid.0)?;
            fields.i64(delta)?;
        }
        Ok(())
    }

    /// What the private part says of every touched path.
    pub(in crate::store) fn write_touched<S: Sink>(
        &self,
        tree: &Tree,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        for touched in &self.touched {
            let event = match touched.event {
                None => 0_u16,
                Some(Class::Exact) => 1,
                Some(Class::Subtree) => 2,
            };
            let kept = touched.now.as_ref().is_some_and(|now| now.value.is_some());
            let bits = [
                (BASE, touched.base.is_some()),
                (INTACT, touched.is_intact(tree)),
                (FRESH, touched.fresh),
                (MODIFIED, touched.modified),
                (KEPT, kept),
            ];
            let set = bits.into_iter().filter(|(_, is_set)| *is_set);
            fields.u16(set.fold(event << EVENT_SHIFT, |all, (bit, _)| all | bit))?;
            fields.count(touched.below())?;
            fields.count(self.live_added(touched).count())?;
            for child in self.live_added(touched) {
                fields.count(self.find(&child.path).map_or(0, |at| at as usize))?;
            }
            if let Some(now) = &touched.now {
                fields.u64(now.generation)?;
                fields.u32(now.children_bytes)?;
            }
        }
        Ok(())
    }

    /// A transaction as its head says, and how many paths it has touched.
    pub(in crate::store) fn restore(
        id: TxId,
        seed: u64,
        fields: &mut FieldReader<'_>,
    ) -> Result<(Self, usize), Refusal> {
        let mut new = Self::new(id, seed);
        new.poisoned = fields.flag()?;
        let count = fields.count(TOUCHED_FIELDS)?;
        for _ in 0..fields.count(10)? {
            new.delta.push((DomId(fields.u16()?), fields.i64()?));
        }
        if !new.delta.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(sentence!("the owners of transaction {} are not in order", id.0));
        }
        Ok((new, count))
    }

    /// Makes a transaction of which nothing is known one that must not commit: it ends in EAGAIN.
    pub(in crate::store) fn doom(&mut self, tree: &mut Tree) {
        let root = tree.node(ROOT).map(|root| Copy {
            value: None,
            list: root.list,
            generation: root.generation(),
            children_bytes: tree.family(root).bytes,
        });
        tree.retain_list(root.as_ref().map_or(NIL, |root| root.list));
        let base = Some(Base { node: NIL, generation: 0, list: NIL });
        let at = self.add(Touched { base, now: root, ..Touched::nothing(b"/") });
        self.bytes = self.touched_bytes(at);
    }

    /// Adds a touched path as a stream and the private part describe it. `list` are the permissions as the
    /// transaction sees them, with one use, `NIL` if there is nothing.
    pub(in crate::store) fn restore_touched(
        &mut self,
        tree: &mut Tree,
        node: &stream::Node<'_>,
        list: u32,
        fields: &mut FieldReader<'_>,
    ) -> Result<(), Refusal> {
        let bits = fields.u16()?;
        let is_set = |bit| bits & bit != 0;
        let mut new = Touched::nothing(node.path);
        new.fresh = is_set(FRESH);
        new.modified = is_set(MODIFIED);
        new.event = match (bits >> EVENT_SHIFT) & EVENT_MASK {
            0 => None,
            1 => Some(Class::Exact),
            _ => Some(Class::Subtree),
        };
        let below = fields.u32()? as usize;
        for _ in 0..fields.count(4)? {
            new.added.push(fields.u32()?);
        }
        if list != NIL {
            new.now = Some(Copy {
                value: is_set(KEPT)
                    .then(|| Bytes::new(node.value))
                    .transpose()
                    .map_err(|error| sentence!("{error}"))?,
                list,
                generation: fields.u64()?,
                children_bytes: fields.u32()?,
            });
        }
        if is_set(INTACT) {
            let found = match tree.find(node.path) {
                Found::Node(handle) => tree.node(handle).map(|found| (handle, found)),
                Found::Above { .. } => None,
            };
            let (handle, found) =
                found.ok_or("a node that a transaction has touched is missing")?;
            let (generation, list) = (found.generation(), found.list);
            new.base = Some(Base { node: handle, generation, list });
            if below > 0 {
                let most = below.saturating_add(1);
                let nodes = tree.below(handle).take(most);
                new.removed = nodes.map(|(at, node)| (at, node.generation())).collect();
            }
            if new.removed.len() != below {
                return Err(Sentence::from("a transaction removed other nodes than there are"));
            }
            tree.retain_list(list);
        } else if is_set(BASE) {
            new.base = Some(Base { node: NIL, generation: 0, list: NIL });
            new.lost = below;
        } else if below > 0 {
            return Err(Sentence::from("a transaction removed nodes below one that did not exist"));
        }
        if self.find(node.path).is_some() {
            return Err(Sentence::from("a transaction has touched a path twice"));
        }
        let at = self.add(new);
        self.bytes = self.bytes.saturating_add(self.touched_bytes(at));
        Ok(())
    }

    /// Upper bound of what restoring the list of nodes below the next touched path allocates.
    pub(in crate::store) fn restore_bytes(mut fields: FieldReader<'_>, nodes: usize) -> usize {
        let intact = fields.u16().is_ok_and(|bits| bits & INTACT != 0);
        let below = fields.u32().ok().filter(|_| intact).unwrap_or(0);
        nodes.min(below as usize).saturating_mul(3).saturating_mul(size_of::<Below>())
    }

    fn add(&mut self, touched: Touched) -> u32 {
        let at = u32::try_from(self.touched.len()).unwrap_or(NIL);
        let path = touched.path.clone();
        self.below = self.below.saturating_add(touched.below());
        self.touched.push(touched);
        self.list(&path, at);
        at
    }

    /// Links the children that were made in it, after all touched paths are there, and looks whether a commit
    /// could do what they say.
    pub(in crate::store) fn complete(&mut self, tree: &Tree) -> Result<(), Refusal> {
        for at in 0..self.touched.len() {
            let Some(parent) = self.touched.get(at) else { break };
            let added = parent.added.clone();
            let above = parent.path.clone();
            for (place, child) in (0_u32..).zip(added) {
                let child = self.get_mut(child).filter(|child| {
                    let is_free = child.place == NIL && child.fresh && child.now.is_some();
                    is_free && path::parent(&child.path) == Some(&*above)
                });
                child.ok_or("a transaction made a child that does not belong there")?.place = place;
            }
        }
        let fine = self.touched.iter().all(|touched| self.is_removable(tree, touched));
        fine.then_some(())
            .ok_or_else(|| Sentence::from("a transaction removed a node but not its children"))
    }

    /// Whether nothing would be left below a node if it were removed as the transaction wants.
    fn is_removable(&self, tree: &Tree, touched: &Touched) -> bool {
        let goes = |touched: &Touched| touched.now.is_none() || touched.fresh;
        let live = touched.base.filter(|base| base.node != NIL && goes(touched));
        let Some(base) = live.filter(|_| touched.removed.is_empty()) else { return true };
        let mut path = Vec::from(&*touched.path);
        path::push(&mut path, b"");
        let stem = path.len();
        tree.children(base.node).all(|(_, child)| {
            path.truncate(stem);
            path.extend_from_slice(tree.name(child));
            self.find(&path).and_then(|at| self.get(at)).is_some_and(goes)
        })
    }
}

impl Touched {
    /// A path where nothing was and nothing is.
    fn nothing(path: &[u8]) -> Self {
        Self {
            path: path.into(),
            base: None,
            now: None,
            fresh: false,
            modified: false,
            event: None,
            added: Vec::new(),
            place: NIL,
            removed: Vec::new(),
            lost: 0,
        }
    }

    /// Whether the live nodes that it stands for are as they were at the first access.
    fn is_intact(&self, tree: &Tree) -> bool {
        let same = |handle: u32, generation: u64| {
            tree.node(handle).is_some_and(|node| node.generation() == generation)
        };
        self.base.is_some_and(|base| same(base.node, base.generation))
            && self.removed.iter().all(|(node, generation)| same(*node, *generation))
    }
}
