//! All nodes, written down for a successor and taken over by it: the tail of a hand-over (`proto::handover`).
//!
//! Parents come first and siblings in their order. A node says how many levels it is above where a child of the one
//! before would be, so that a name is written once for each node that has it, and a state takes no more bytes
//! than the store charges for it, whatever names guests chose.
//!
//! ```text
//! tail:  nodes: u32, then the root, the nodes below it, the special nodes
//! node:  flags: u8 (1: permissions as before), up: u16, name: u16, value: u16, generation: u64,
//!        entries: u16 and 4 bytes each unless as before, the name, the value
//! ```

use super::Store;
use super::perms::{Access, Entry};
use super::restore::Restoring;
use super::tree::{Node, Place, ROOT, Tree, node_bytes};
use crate::mem::NoMemory;
use crate::proto::handover::{FieldReader, FieldWriter, Source, Tail};
use crate::proto::id::DomId;
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{OutOfRoom, Sink};

/// What does not fit together, as a sentence.
type Refusal = Sentence;

/// The permissions are those of the node before.
const SAME: u8 = 1;

/// Bytes of a node's fields of a fixed length.
const HEAD: usize = 15;

/// Bytes of an entry.
const ENTRY: usize = 4;

/// The special nodes' place among those that are always there; the root's is the first.
const SPECIAL: usize = 1;

/// What was written before.
struct Before {
    list: u32,
    parent: u32,
    handle: u32,
}

impl Store {
    /// Writes every node.
    ///
    /// # Errors
    /// The sink is full, or a name or a value is longer than can be.
    pub fn write_tree<S: Sink>(
        &self,
        in_doubt: bool,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        let tree = &self.tree;
        let count = if in_doubt {
            let specials = tree.special.into_iter().filter(|handle| tree.node(*handle).is_some());
            tree.below(ROOT).count().saturating_add(specials.count()).saturating_add(1)
        } else {
            tree.len()
        };
        fields.count(count)?;
        let Some(root) = tree.node(ROOT) else { return Ok(()) };
        put_node(tree, root, 0, false, fields.0)?;
        let mut before = Before { list: root.list, parent: ROOT, handle: ROOT };
        for (handle, node) in tree.below(ROOT) {
            let up = levels(tree, &before, node.parent)?;
            put_node(tree, node, up, same_list(tree, node.list, before.list), fields.0)?;
            before = Before { list: node.list, parent: node.parent, handle };
        }
        for handle in tree.special {
            if let Some(node) = tree.node(handle) {
                put_node(tree, node, 0, same_list(tree, node.list, before.list), fields.0)?;
                before.list = node.list;
            }
        }
        Ok(())
    }
}

/// Whether two lists say the same. Two of the same entries can be there, after a domain was taken out of one: the
/// successor has it once, and must write the same bytes.
#[inline]
fn same_list(tree: &Tree, one: u32, other: u32) -> bool {
    one == other || tree.entries(one) == tree.entries(other)
}

/// How many levels the next node's parent is above the node before.
#[inline]
fn levels(tree: &Tree, before: &Before, parent: u32) -> Result<u16, OutOfRoom> {
    if parent == before.handle {
        return Ok(0);
    }
    let (mut up, mut at) = (1_u16, before.parent);
    while at != parent {
        at = tree.node(at).ok_or(OutOfRoom)?.parent;
        up = up.checked_add(1).ok_or(OutOfRoom)?;
    }
    Ok(up)
}

#[inline]
fn put_node<S: Sink>(
    tree: &Tree,
    node: &Node,
    up: u16,
    same: bool,
    sink: &mut S,
) -> Result<(), OutOfRoom> {
    let (name, value) = (tree.name(node), tree.value(node));
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).map_err(|_| OutOfRoom);
    let entries = if same { &[][..] } else { tree.entries(node.list) };
    let mut head = [0; HEAD];
    let mut place = &mut head[..];
    let mut fields = FieldWriter(&mut place);
    fields.u8(if same { SAME } else { 0 })?;
    fields.u16(up)?;
    fields.u16(len(name)?)?;
    fields.u16(len(value)?)?;
    fields.u64(node.generation())?;
    let mut whole = HEAD.saturating_add(name.len()).saturating_add(value.len());
    if !same {
        whole = whole.saturating_add(entries.len().saturating_mul(ENTRY)).saturating_add(2);
    }
    // There are many of them, so all of it is put into one place, where the sink has it.
    match sink.place(whole) {
        Some(mut place) => put_parts(&mut place, &head, (!same).then_some(entries), name, value),
        None => put_parts(sink, &head, (!same).then_some(entries), name, value),
    }
}

#[inline(always)]
fn put_parts<S: Sink>(
    sink: &mut S,
    head: &[u8; HEAD],
    entries: Option<&[Entry]>,
    name: &[u8],
    value: &[u8],
) -> Result<(), OutOfRoom> {
    sink.append(head)?;
    if let Some(entries) = entries {
        sink.append(&u16::try_from(entries.len()).map_err(|_| OutOfRoom)?.to_le_bytes())?;
        for entry in entries {
            let [a, b] = entry.domid.0.to_le_bytes();
            sink.append(&[entry.access.letter(), u8::from(entry.stale), a, b])?;
        }
    }
    sink.append(name)?;
    sink.append(value)
}

/// A node's fields of a fixed length.
struct Head {
    same: bool,
    up: u16,
    name: usize,
    value: usize,
    generation: u64,
}

impl Head {
    fn read(mut fields: FieldReader<'_>) -> Result<Self, Refusal> {
        let same = fields.u8()? & SAME != 0;
        let (up, name, value) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let generation = fields.u64()?;
        Ok(Self { same, up, name: usize::from(name), value: usize::from(value), generation })
    }
}

/// An entry of a permission list.
fn entry(raw: &[u8]) -> Option<Entry> {
    let [letter, stale, a, b] = *raw else { return None };
    let access = Access::from_letter(letter)?;
    Some(Entry { domid: DomId(u16::from_le_bytes([a, b])), access, stale: stale != 0 })
}

impl Restoring<'_> {
    /// Takes in every node. `reserve` makes sure that so many bytes can be allocated.
    ///
    /// # Errors
    /// They do not fit together, or there is no memory.
    pub fn tail<S: Source>(
        &mut self,
        tail: &mut Tail<'_, S>,
        mut reserve: impl FnMut(usize) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let count = tail.fields(4)?.u32()? as usize;
        let special = self.store.tree.special;
        let below = count.checked_sub(special.len()).and_then(|count| count.checked_sub(1));
        let below = below.ok_or("the root or a special node is missing")?;
        // Not more than can come.
        let expected = count.min(tail.left().wrapping_div(HEAD));
        reserve(expected.saturating_mul(Self::EXPECT_BYTES))?;
        self.expect(expected);
        self.tail_fixed(tail, 0, ROOT)?;
        let mut at = ROOT;
        for _ in 0..below {
            at = self.tail_node(tail, at, &mut reserve)?;
        }
        for (place, handle) in (SPECIAL..).zip(special) {
            self.tail_fixed(tail, place, handle)?;
        }
        Ok(())
    }

    /// Takes in the permissions of the next node, if they are others, for one node.
    fn tail_list<S: Source>(&mut self, tail: &mut Tail<'_, S>, same: bool) -> Result<(), Refusal> {
        if !same {
            let len = usize::from(tail.fields(2)?.u16()?).saturating_mul(ENTRY);
            let entries = tail.take(len)?.chunks_exact(ENTRY);
            if entries.clone().any(|raw| entry(raw).is_none()) {
                return Err(Sentence::from("a permission has none of the letters n, r, w, b"));
            }
            self.replace_list(entries.filter_map(entry))?;
        }
        self.use_list();
        Ok(())
    }

    /// Takes in one of the nodes that are always there.
    fn tail_fixed<S: Source>(
        &mut self,
        tail: &mut Tail<'_, S>,
        place: usize,
        handle: u32,
    ) -> Result<(), Refusal> {
        let head = Head::read(tail.fields(HEAD)?)?;
        self.tail_list(tail, head.same)?;
        tail.take(head.name)?;
        let value = tail.take(head.value)?;
        Ok(self.put_fixed(place, handle, value, head.generation)?)
    }

    /// Takes in the next node, behind the one with the handle `at`. Returns its handle.
    #[inline]
    fn tail_node<S: Source>(
        &mut self,
        tail: &mut Tail<'_, S>,
        at: u32,
        reserve: &mut impl FnMut(usize) -> Result<(), Refusal>,
    ) -> Result<u32, Refusal> {
        let head = Head::read(tail.fields(HEAD)?)?;
        reserve(Self::texts_cost(head.name.saturating_add(head.value)))?;
        self.tail_list(tail, head.same)?;
        let mut parent = at;
        for _ in 0..head.up {
            let node = self.store.tree.node(parent).filter(|_| parent != ROOT);
            parent = node.ok_or("a node is above the root")?.parent;
        }
        let texts = tail.take(head.name.saturating_add(head.value))?;
        let (name, value) = texts.split_at_checked(head.name).unwrap_or((texts, &[]));
        let wrong = |what: &str| sentence!("{what}: node {}", name.escape_ascii());
        let no_memory =
            |NoMemory| Sentence::from("there is not enough memory to take everything over");
        let tree = &mut self.store.tree;
        let name_handle = tree.intern_checked(name).map_err(no_memory)?;
        let name_handle = name_handle.ok_or_else(|| wrong("this is no name"))?;
        let place = Place { parent, name, name_handle };
        let made = tree.restore(&place, value, self.list, head.generation).map_err(no_memory)?;
        let made = made.ok_or_else(|| wrong("it is there twice"))?;
        self.made(node_bytes(name, value), head.generation).map_err(wrong)?;
        Ok(made)
    }
}
