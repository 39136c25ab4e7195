//! One request about nodes: who asks, in which transaction, what is seen, allowed and changed.
//!
//! Every operation is written once for both cases, the live tree and a transaction's view of it: the
//! difference is inside `Session::view` and the few places that change something.

use super::events::{Notifier, Post, Work};
use super::generation::{ListOf, Mixed};
use super::path::{self, Path, Text};
use super::perms::{Access, Entry, Party, Rights};
use super::quota::Quota;
use super::removal::Removal;
use super::row::{self, Row};
use super::transaction::{Fill, Open, WayAhead};
use super::tree::{Found, NODE_BYTES, ROOT, Tree, entry_bytes, name_block, value_bytes};
use super::watch::Class;
use crate::mem::{NIL, NoMemory, Progress, TryVec, try_slice};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId};
use crate::proto::text::count;
use crate::proto::wire::PAYLOAD_MAX;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write;

/// The most bytes of an entry of a permission list as text: a letter, five digits, a NUL.
const ENTRY_TEXT_MAX: usize = 7;

/// What there is at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    /// A node of the live tree.
    Live(u32),
    /// A node as the transaction sees it.
    Copied(u32),
}

/// What there is on the way to a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spot<'a> {
    /// The node.
    There(Sight),
    /// Nodes are missing.
    Missing(Gap<'a>),
}

/// The nodes that are missing on the way to a path, its own and perhaps some above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap<'a> {
    /// The nearest node above that exists; of a special name this is the root.
    pub(super) above: Sight,
    pub(super) path: &'a [u8],
    /// How many bytes of the path lead to the node above: 0 for the root.
    pub(super) there: usize,
}

impl<'a> Gap<'a> {
    /// The names of the nodes, from the top down.
    pub(super) fn names(self) -> impl Iterator<Item = &'a [u8]> {
        path::components(self.rest())
    }

    fn rest(self) -> &'a [u8] {
        self.path.get(self.there..).unwrap_or(&[])
    }

    /// How many they are: there is a slash in front of each, but for special names.
    pub(super) fn count(self) -> usize {
        count(self.rest(), b'/').max(1)
    }
}

/// The parts of a node that requests ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) value: &'a [u8],
    pub(super) list: u32,
    pub(super) generation: u64,
    pub(super) children_bytes: usize,
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Session<'a, P> {
    pub(super) conn: ConnId,
    pub(super) tree: &'a mut Tree,
    pub(super) notifier: Notifier<'a, P>,
    pub(super) party: Party,
    pub(super) tx: Option<Open<'a>>,
    /// What is left for later turns.
    pub(super) work: &'a mut Work,
    /// How far the way to a path of many levels is in the transaction, as long as the request has not gone it.
    pub(super) way: Option<WayAhead>,
    /// The budget did not reach for the way: the request is asked again.
    pub(super) again: bool,
}

impl<P: Post> Session<'_, P> {
    /// Lists the names of the children, each with a NUL.
    pub(super) fn directory(&mut self, path: &Path, reply: &mut Vec<u8>) -> Result<(), XsError> {
        let sight = self.permitted(path.bytes(), Access::Read)?;
        if self.view(sight)?.children_bytes > PAYLOAD_MAX {
            return Err(XsError::E2BIG);
        }
        let start = reply.len();
        let mut room = Ok(());
        self.each_child(sight, |name| {
            room = reply.try_extend(name).and_then(|()| reply.try_push(0));
            room.is_ok()
        });
        Ok(room.inspect_err(|_| reply.truncate(start))?)
    }

    /// Lists the names of the children from a byte of the list on: the generation, as many whole
    /// names as fit, and another NUL if these are the last.
    pub(super) fn directory_part(
        &mut self,
        path: &Path,
        offset: i64,
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        let sight = self.permitted(path.bytes(), Access::Read)?;
        let shown = self.list_of(sight)?.shown(self.tree.nodes.seed());
        let start = reply.len();
        // All that is ever written here fits into that.
        reply.try_room(PAYLOAD_MAX)?;
        let _fits = write!(Text(reply), "{shown}\0");
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        // One byte stays free for the NUL behind the last name.
        let room = PAYLOAD_MAX.saturating_sub(reply.len().saturating_sub(start)).saturating_sub(1);
        let (mut at, mut used, mut whole) = (0_usize, 0_usize, true);
        self.each_child(sight, |name| {
            let skip = offset.saturating_sub(at).min(name.len().saturating_add(1));
            at = at.saturating_add(name.len()).saturating_add(1);
            if skip > name.len() {
                return true;
            }
            let rest = name.get(skip..).unwrap_or(&[]);
            let before = used;
            used = used.saturating_add(rest.len()).saturating_add(1);
            whole = used <= room;
            if whole {
                whole = reply.try_extend(rest).and_then(|()| reply.try_push(0)).is_ok();
            } else if before == 0 {
                // A name of an earlier version that fits into no message: clients put bytes together, and ask on
                // from the next one. Each part has to bring some.
                let _fits = reply.try_extend(rest.get(..room).unwrap_or(rest));
            }
            whole
        });
        if whole {
            reply.try_push(0)?;
        }
        Ok(())
    }

    /// Appends the value.
    pub(super) fn read(&mut self, path: &Path, reply: &mut Vec<u8>) -> Result<(), XsError> {
        let sight = self.permitted(path.bytes(), Access::Read)?;
        if let Sight::Copied(at) = sight {
            self.keep_value(at)?;
        }
        Ok(reply.try_extend(self.view(sight)?.value)?)
    }

    /// Appends the permission list, each entry with a NUL.
    pub(super) fn get_perms(&mut self, path: &Path, reply: &mut Vec<u8>) -> Result<(), XsError> {
        let sight = self.permitted(path.bytes(), Access::Read)?;
        let entries = self.tree.entries(self.view(sight)?.list);
        reply.try_room(entries.len().saturating_mul(ENTRY_TEXT_MAX))?;
        for entry in entries {
            let _fits = write!(Text(reply), "{entry}\0");
        }
        Ok(())
    }

    /// Sets a value; makes the node, and all that are missing above it, if there is none.
    pub(super) fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), XsError> {
        match self.spot(path.bytes(), Access::Write)? {
            Spot::There(sight) => self.replace(sight, path, value),
            Spot::Missing(gap) => self.create(gap, Some(value)),
        }
    }

    /// Makes a node with an empty value unless there is one.
    pub(super) fn mkdir(&mut self, path: &Path) -> Result<(), XsError> {
        match self.spot(path.bytes(), Access::Write)? {
            Spot::There(_) => Ok(()),
            Spot::Missing(gap) => self.create(gap, None),
        }
    }

    /// Removes a node and everything below. Removing what is not there is fine as long as the node
    /// directly above exists.
    pub(super) fn rm(&mut self, path: &Path) -> Result<(), XsError> {
        let path = path.bytes();
        let sight = match self.spot(path, Access::Write)? {
            Spot::There(sight) => sight,
            Spot::Missing(gap) if gap.names().nth(1).is_none() => return Ok(()),
            Spot::Missing(_) => return Err(XsError::ENOENT),
        };
        if path == b"/" {
            return Err(XsError::EINVAL);
        }
        match sight {
            Sight::Live(handle) => {
                let mut removal = Removal::new(self.tree, handle);
                if removal.start(self.tree, &mut self.notifier, path) == Progress::More {
                    *self.work = Work::Remove(removal);
                }
                Ok(())
            }
            Sight::Copied(at) => self.remove_copied(at),
        }
    }

    /// Replaces the permissions. `entries` have their stale marks already.
    pub(super) fn set_perms(&mut self, path: &Path, entries: &[Entry]) -> Result<(), XsError> {
        let path = path.bytes();
        let sight = self.permitted(path, Access::Write)?;
        let view = self.view(sight)?;
        if !self.tree.rights(view.list, &self.party).owner {
            return Err(XsError::EACCES);
        }
        let new_owner = entries.first().map(|entry| entry.domid);
        if !self.party.privileged && new_owner != Some(self.tree.owner(view.list)) {
            return Err(XsError::EPERM);
        }
        let (old, value, children_bytes) = (view.list, view.value.len(), view.children_bytes);
        let list = self.tree.intern(entries)?;
        let checked = self.check_size(list, value, children_bytes).and_then(|()| {
            // A new one is charged already.
            let is_free = self.party.privileged || !self.tree.is_new_list(list);
            let owner = self.tree.owner(list);
            let allowed = is_free || self.tree.domains.allows(owner, Quota::Memory, 0);
            allowed.then_some(()).ok_or(XsError::ENOMEM)
        });
        if let Err(error) = self.spoiled(checked) {
            self.tree.release_list(list);
            return Err(error);
        }
        match sight {
            Sight::Copied(at) => {
                if let Err(error) = self.set_list_copied(at, list) {
                    self.tree.release_list(list);
                    return Err(error);
                }
            }
            Sight::Live(handle) => {
                self.tree.retain_list(old);
                if let Err(error) = self.tree.set_list(handle, list) {
                    self.tree.release_list(list);
                    self.tree.release_list(old);
                    return Err(error.into());
                }
                let above = parent_list(self.tree, handle, path);
                self.notifier.ring(self.tree, path, Class::Subtree, &[old, list, above]);
                self.tree.release_list(old);
            }
        }
        Ok(())
    }

    // Seeing.

    /// The node at a path.
    ///
    /// # Errors
    /// As [`spot`](Self::spot), and `ENOENT` if there is none.
    fn permitted(&mut self, path: &[u8], wanted: Access) -> Result<Sight, XsError> {
        match self.spot(path, wanted)? {
            Spot::There(sight) => Ok(sight),
            Spot::Missing(_) => Err(XsError::ENOENT),
        }
    }

    /// What there is at a path.
    ///
    /// # Errors
    /// `EACCES` if the caller has not this access to it, or if there is none, to the nearest node above: nobody
    /// learns what exists where he may not look.
    fn spot<'a>(&mut self, path: &'a [u8], wanted: Access) -> Result<Spot<'a>, XsError> {
        let spot = self.walk(path)?;
        let (Spot::There(sight) | Spot::Missing(Gap { above: sight, .. })) = spot;
        let allowed = self.rights(sight)?.access.includes(wanted);
        allowed.then_some(spot).ok_or(XsError::EACCES)
    }

    /// The way to a path. In a transaction that is an access to each node that is looked at.
    fn walk<'a>(&mut self, path: &'a [u8]) -> Result<Spot<'a>, XsError> {
        let missing = |above, there| Spot::Missing(Gap { above, path, there });
        if let Some(mut ahead) = self.way.take() {
            let spot = self.walk_deep(path, &mut ahead)?;
            if spot.is_none() {
                self.way = Some(ahead);
                self.again = true;
            }
            return spot.ok_or(XsError::EAGAIN);
        }
        if self.tx.is_some() {
            return self.walk_copied(path);
        }
        Ok(match self.tree.find_for(self.conn, path) {
            Found::Node(handle) => Spot::There(Sight::Live(handle)),
            Found::Above { node, there } => missing(Sight::Live(node), there),
        })
    }

    fn view(&self, sight: Sight) -> Result<View<'_>, XsError> {
        let view = match sight {
            Sight::Live(handle) => self.tree.node(handle).map(|node| View {
                value: self.tree.value(node),
                list: node.list,
                generation: node.generation(),
                children_bytes: self.tree.family(node).bytes as usize,
            }),
            Sight::Copied(at) => {
                let tx = self.tx.as_ref();
                let now = tx.and_then(|tx| tx.get(at)?.now.as_ref());
                let value = tx.and_then(|tx| tx.places.value(self.tree, at, &self.party));
                now.map(|now| View {
                    value: value.unwrap_or(&[]),
                    list: now.list,
                    generation: now.generation,
                    children_bytes: now.children_bytes as usize,
                })
            }
        };
        // A sight is of something that exists; were it not, the request fails and nobody else notices.
        view.ok_or(XsError::EIO)
    }

    /// What the list of a node's children depends on.
    fn list_of(&self, sight: Sight) -> Result<ListOf, XsError> {
        let own = self.view(sight)?.generation;
        let mixed = match (sight, self.tx.as_ref()) {
            (Sight::Copied(at), Some(open)) => {
                let live = open.places.changed_meanwhile(self.tree, at);
                live.map(|live| Mixed { live, conn: self.conn, tx: open.tx.id })
            }
            _ => None,
        };
        Ok(ListOf { own, mixed })
    }

    fn rights(&self, sight: Sight) -> Result<Rights, XsError> {
        Ok(self.tree.rights(self.view(sight)?.list, &self.party))
    }

    /// Calls `each` with the name of every child, in order, until it returns false.
    fn each_child(&self, sight: Sight, mut each: impl FnMut(&[u8]) -> bool) {
        match (sight, &self.tx) {
            (Sight::Live(handle), _) => {
                let _all = self.tree.children(handle).all(|(_, node)| each(self.tree.name(node)));
            }
            (Sight::Copied(at), Some(tx)) => {
                tx.places.each_child(self.tree, at, &self.party, each);
            }
            (Sight::Copied(_), None) => {}
        }
    }

    /// Whether the value that is seen is held for what is seen alone.
    fn is_own(&self, sight: Sight) -> bool {
        match (sight, &self.tx) {
            (Sight::Copied(at), Some(tx)) => tx.places.has_value(at),
            (Sight::Copied(_), None) | (Sight::Live(_), _) => true,
        }
    }

    // Limits.

    /// Whether `amount` is within one of the caller's limits that count no stock.
    pub(super) fn within(&self, quota: Quota, amount: usize) -> bool {
        let domains = &self.tree.domains;
        let domain = domains.get(self.party.domid);
        self.party.privileged
            || domain.is_none_or(|domain| domains.note(quota, domain.quotas.allows(quota, amount)))
    }

    fn check_size(&self, list: u32, value: usize, children_bytes: usize) -> Result<(), XsError> {
        let size = self.tree.size(list, value, children_bytes);
        self.within(Quota::NodeSize, size).then_some(()).ok_or(XsError::ENOSPC)
    }

    // Changing.

    /// Replaces the value of a node that exists.
    fn replace(&mut self, sight: Sight, path: &Path, value: &[u8]) -> Result<(), XsError> {
        let view = self.view(sight)?;
        let (list, old) = (view.list, value_bytes(view.value.len()));
        // What a transaction has not copied is nothing that it gives up.
        let old = if self.is_own(sight) { old } else { 0 };
        let checked = self.check_size(list, value.len(), view.children_bytes).and_then(|()| {
            let more = value_bytes(value.len()).saturating_sub(old);
            let payer = if self.tx.is_some() { self.party.domid } else { self.tree.owner(list) };
            let free = self.party.privileged || more == 0;
            let allowed = free || self.tree.domains.allows(payer, Quota::Memory, more);
            allowed.then_some(()).ok_or(XsError::ENOMEM)
        });
        self.spoiled(checked)?;
        match sight {
            Sight::Copied(at) => self.replace_copied(at, value)?,
            Sight::Live(handle) => {
                self.tree.set_value(handle, value)?;
                let above = self.tree.node(handle).and_then(|node| self.tree.node(node.parent));
                let above = above.map_or(NIL, |above| above.list);
                self.notifier.ring(self.tree, path.bytes(), Class::Subtree, &[list, above]);
            }
        }
        Ok(())
    }

    /// Makes a node and all that are missing above it: all of them or none.
    fn create(&mut self, gap: Gap<'_>, written: Option<&[u8]>) -> Result<(), XsError> {
        let value = written.unwrap_or(&[]);
        let above_list = self.view(gap.above)?.list;
        let creator = (!self.party.privileged).then_some(self.party.domid);
        let list = self.tree.inherit(above_list, creator)?;
        let count = gap.count();
        let checked = self.check_create(gap, count, list, value);
        if count > row::AT_ONCE && checked.is_ok() {
            return match (&self.tx, gap.above) {
                (Some(tx), Sight::Copied(above)) => {
                    let fill = Fill::new(tx.handle, gap, above, value, list);
                    let fill = fill.inspect_err(|_| self.tree.release_list(list));
                    *self.work = Work::Fill(self.spoiled(fill.map_err(XsError::from))?);
                    Ok(())
                }
                _ => self.begin_row(gap, list, written),
            };
        }
        let made = self.spoiled(checked).and_then(|()| match gap.above {
            Sight::Live(handle) => self.create_live(handle, gap, count, list, value),
            Sight::Copied(at) => self.create_copied(at, gap, count, list, value),
        });
        let made = self.spoiled(made);
        if made.is_ok() && self.tx.is_none() {
            // All but the first are below a node that was made just now.
            let parent_list = if count == 1 { above_list } else { list };
            self.notifier.ring(self.tree, gap.path, Class::Subtree, &[list, parent_list]);
        }
        self.tree.release_list(list);
        made
    }

    /// Leaves it to later turns to make many nodes. Takes over one use of `list`.
    #[inline(never)]
    fn begin_row(
        &mut self,
        gap: Gap<'_>,
        list: u32,
        written: Option<&[u8]>,
    ) -> Result<(), XsError> {
        let row = Row::new(gap.path, gap.there, written, list);
        *self.work = Work::Make(row.inspect_err(|_| self.tree.release_list(list))?);
        // It is a change from now on, for whoever counts them.
        self.tree.advance();
        Ok(())
    }

    /// Whether the caller may make these nodes: their number, their sizes, that of the node above.
    fn check_create(
        &self,
        gap: Gap<'_>,
        count: usize,
        list: u32,
        value: &[u8],
    ) -> Result<(), XsError> {
        if self.party.privileged {
            return Ok(());
        }
        let domid = self.party.domid;
        let pending = self.tx.as_ref().map_or(0, Open::delta);
        let used = self.tree.domains.get(domid).map_or(0, |domain| domain.used.get(Quota::Nodes));
        let owned = i64::from(used).saturating_add(pending);
        let owned = usize::try_from(owned).unwrap_or(0).saturating_add(count);
        if !self.within(Quota::Nodes, owned) {
            return Err(XsError::ENOSPC);
        }
        let view = self.view(gap.above)?;
        let mut above = (view.list, view.value.len(), view.children_bytes);
        // No name is longer than all together without the shortest that the others can be.
        let entries = gap.rest().len();
        let longest = entries.saturating_sub(count.saturating_sub(1).saturating_mul(2));
        let domain = self.tree.domains.get(domid);
        let size = self.tree.size(list, 0, longest);
        let all_fit = domain.is_none_or(|domain| domain.quotas.allows(Quota::NodeSize, size));
        for name in gap.names() {
            let child = entry_bytes(name) as usize;
            let (list_above, value_above, children_above) = above;
            self.check_size(list_above, value_above, children_above.saturating_add(child))?;
            if all_fit {
                break;
            }
            above = (list, 0, 0);
        }
        let mut bytes = count.saturating_mul(NODE_BYTES).saturating_add(value_bytes(value.len()));
        if name_block(longest) > 0 {
            let blocks = gap.names().map(|name| name_block(name.len()));
            bytes = blocks.fold(bytes, usize::saturating_add);
        }
        self.check_size(list, value.len(), 0)?;
        let allowed = self.tree.domains.allows(domid, Quota::Memory, bytes);
        allowed.then_some(()).ok_or(XsError::ENOMEM)
    }

    fn create_live(
        &mut self,
        above: u32,
        gap: Gap<'_>,
        count: usize,
        list: u32,
        value: &[u8],
    ) -> Result<(), XsError> {
        let first = self.tree.make_row(gap.names(), count, value, list)?;
        self.tree.attach_row(above, first);
        Ok(())
    }
}

/// The permissions of the live node directly above one, whose path this is; those of the root for a special name, and
/// `NIL` above the root.
pub(super) fn parent_list(tree: &Tree, handle: u32, path: &[u8]) -> u32 {
    let above = match path {
        [b'@', ..] => ROOT,
        _ => tree.node(handle).map_or(NIL, |node| node.parent),
    };
    tree.node(above).map_or(NIL, |node| node.list)
}

/// Marks the entries of domains that the server does not track, so that they never match: whoever
/// gets such a domid later must not find rights waiting.
pub(super) fn mark_stale(tree: &Tree, entries: &[Entry]) -> Result<Box<[Entry]>, NoMemory> {
    let mut entries = try_slice(entries)?;
    for entry in &mut entries {
        entry.stale |= entry.domid != DomId::ANY && !tree.domains.knows(entry.domid);
    }
    Ok(entries)
}
