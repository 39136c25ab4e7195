//! Nodes that are in no tree: made before they are needed, or taken away and not yet freed.
//!
//! So what may be refused for want of memory is done first, what everybody sees changes at once and cannot fail, and
//! what takes long is done afterwards, in slices.

use super::{ASIDE, Family, NODE_BYTES, Node, ROOT, Tree, Value};
use crate::mem::{Budget, NIL, NoMemory, Progress};
use crate::proto::id::DomId;

/// Units of work that freeing a node takes.
const FREE_WORK: u64 = 200;

/// The most nodes of which an owner is told at once.
const RUN_MAX: u32 = 64;

/// Nodes in a row that have the same permission list, whose owner has not been told that they are gone.
#[derive(Debug)]
struct Run {
    list: u32,
    owner: DomId,
    count: u32,
    /// What their names and values take.
    blocks: usize,
}

impl Run {
    /// No node yet.
    const NONE: Self = Self { list: NIL, owner: DomId(0), count: 0, blocks: 0 };
}

impl Tree {
    /// Makes a node that is in no tree and that nobody owns, with all that [`attach`](Self::attach) will need.
    /// Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; nothing has changed, and the use is the caller's.
    pub(in crate::store) fn make_detached(
        &mut self,
        name: &[u8],
        value: &[u8],
        list: u32,
    ) -> Result<u32, NoMemory> {
        let name = self.intern_name(name)?;
        let made = self.make_named(name, value, list);
        if made.is_err() {
            self.release_name(name);
        }
        made
    }

    fn make_named(&mut self, name: u32, value: &[u8], list: u32) -> Result<u32, NoMemory> {
        let value = self.keep(value)?;
        let made = self.make_with(name, value, list);
        if made.is_err() {
            self.drop_value(&value);
        }
        made
    }

    fn make_with(&mut self, name: u32, value: Value, list: u32) -> Result<u32, NoMemory> {
        // For its parent, which may have no children then.
        self.families.promise()?;
        let made = self.owned.promise().and_then(|()| {
            let made = self.nodes.insert_unlisted(Node::new(ASIDE, name, value, list, 0));
            if made.is_err() {
                self.owned.withdraw();
            }
            made
        });
        if made.is_err() {
            self.families.withdraw();
        }
        self.aside = self.aside.saturating_add(u32::from(made.is_ok()));
        made
    }

    /// Frees a node that was made and never attached.
    pub(in crate::store) fn drop_detached(&mut self, handle: u32) {
        if self.nodes.get(handle).is_none_or(|node| node.parent != ASIDE) {
            return;
        }
        let Some(node) = self.nodes.remove(handle) else { return };
        self.aside = self.aside.saturating_sub(1);
        self.families.withdraw();
        self.owned.withdraw();
        self.drop_value(&node.value);
        self.release_name(node.name);
        self.release_list(node.list);
    }

    /// Makes a node that was [made](Self::make_detached) before the last child of another one: from now on it is seen,
    /// and its owner pays for it.
    #[inline]
    pub(in crate::store) fn attach(&mut self, parent: u32, handle: u32) {
        let generation = self.advance();
        let Some(node) = self.nodes.get_mut(handle) else { return };
        self.aside = self.aside.saturating_sub(1);
        node.parent = parent;
        node.set_generation(generation);
        let (name, list) = (node.name, node.list);
        self.nodes.list(handle);
        self.own_promised(list, handle);
        let generation = self.advance();
        match self.nodes.get_mut(parent) {
            Some(above) => {
                above.set_generation(generation);
                if above.family == NIL {
                    above.family = self.families.insert_promised(Family::NONE);
                } else {
                    self.families.withdraw();
                }
            }
            None => self.families.withdraw(),
        }
        let len = self.names.get(name).map_or(0, |name| name.bytes.len());
        self.link(parent, len, handle);
    }

    /// Makes nodes each of which is to be below the one before: all of them or none. The last gets the value, each a use
    /// of `list`. The first of them; [`attach_row`](Self::attach_row) puts them into the tree.
    ///
    /// # Errors
    /// There is no memory; nothing has changed.
    pub(in crate::store) fn make_row<'n>(
        &mut self,
        names: impl Iterator<Item = &'n [u8]>,
        count: usize,
        value: &[u8],
        list: u32,
    ) -> Result<u32, NoMemory> {
        let (mut first, mut last) = (NIL, NIL);
        for (left, name) in (0..count).rev().zip(names) {
            let value = if left == 0 { value } else { &[] };
            let made = match self.make_detached(name, value, list) {
                Ok(made) => made,
                Err(NoMemory) => {
                    self.drop_row(first);
                    return Err(NoMemory);
                }
            };
            self.retain_list(list);
            match self.nodes.get_mut(last) {
                Some(last) => last.next = made,
                None => first = made,
            }
            last = made;
        }
        Ok(first)
    }

    /// Frees what [`make_row`](Self::make_row) made.
    fn drop_row(&mut self, first: u32) {
        let mut at = first;
        while let Some(node) = self.nodes.get(at) {
            let next = node.next;
            self.drop_detached(at);
            at = next;
        }
    }

    /// Attaches what [`make_row`](Self::make_row) made.
    pub(in crate::store) fn attach_row(&mut self, parent: u32, first: u32) {
        let (mut parent, mut at) = (parent, first);
        while let Some(node) = self.nodes.get(at) {
            let next = node.next;
            self.attach(parent, at);
            parent = at;
            at = next;
        }
    }

    /// Takes a node with everything below out of the tree: it is not seen any more. Until it is
    /// [freed](Self::free_some) its owners pay for it.
    pub(in crate::store) fn detach(&mut self, handle: u32) {
        let Some(node) = self.nodes.get(handle) else { return };
        let (parent, name, prev, next) = (node.parent, node.name, node.prev, node.next);
        if parent == ASIDE {
            return;
        }
        self.nodes.unlist(handle);
        self.leaving = self.leaving.saturating_add(1);
        self.removals = self.removals.wrapping_add(1);
        let generation = self.advance();
        let gone = self.names.get(name).map_or(0, |name| super::entry_len(name.bytes.len()));
        if let Some(above) = self.nodes.get_mut(parent) {
            above.set_generation(generation);
            if let Some(family) = self.families.get_mut(above.family) {
                family.bytes = family.bytes.saturating_sub(gone);
                if family.first == handle {
                    family.first = next;
                }
                if family.last == handle {
                    family.last = prev;
                }
                if family.first == NIL {
                    self.families.remove(core::mem::replace(&mut above.family, NIL));
                }
            }
        }
        if let Some(before) = self.nodes.get_mut(prev) {
            before.next = next;
        }
        if let Some(after) = self.nodes.get_mut(next) {
            after.prev = prev;
        }
        if let Some(node) = self.nodes.get_mut(handle) {
            (node.parent, node.prev, node.next) = (ASIDE, NIL, NIL);
        }
    }

    /// Treats a node that was made and never attached, with what was attached to it, as one that was taken
    /// [out](Self::detach) of the tree.
    pub(in crate::store) fn abandon(&mut self, handle: u32) {
        let Some(node) = self.nodes.get(handle).filter(|node| node.parent == ASIDE) else { return };
        let list = node.list;
        self.aside = self.aside.saturating_sub(1);
        self.leaving = self.leaving.saturating_add(1);
        self.families.withdraw();
        if self.is_anybodys(list) {
            self.own_promised(list, handle);
        } else {
            self.owned.withdraw();
        }
    }

    /// Whether something that was taken out of the tree is not yet freed: then a handle may lead to what nobody sees.
    pub(in crate::store) fn has_detached(&self) -> bool {
        self.leaving > 0
    }

    /// Whether a node is in the tree, and so is all that is above it.
    pub(in crate::store) fn is_in_place(&self, handle: u32) -> bool {
        let mut at = handle;
        while at != ROOT && !self.special.contains(&at) {
            match self.node(at) {
                Some(node) => at = node.parent,
                None => return false,
            }
        }
        true
    }

    /// Whether a node is in no tree itself; those below it do not say so.
    #[cfg_attr(not(test), expect(dead_code, reason = "for transactions, soon"))]
    pub(in crate::store) fn is_detached(&self, handle: u32) -> bool {
        self.node(handle).is_some_and(|node| node.parent == ASIDE)
    }

    /// Whether a node is in the tree: it costs the depth of the node.
    pub(in crate::store) fn is_attached(&self, handle: u32) -> bool {
        let mut at = handle;
        while let Some(node) = self.node(at) {
            at = node.parent;
        }
        at == NIL && handle != NIL
    }

    /// Frees a node that was [taken out](Self::detach) of the tree and everything below, children first, as far as
    /// the budget reaches: then it is called again. As whole families go, nothing is unlinked from its siblings, and
    /// accounts and permission lists are told of nodes in a row that have the same.
    pub(in crate::store) fn free_some(&mut self, top: u32, budget: &mut Budget) -> Progress {
        self.free(top, true, budget)
    }

    fn free(&mut self, top: u32, with_top: bool, budget: &mut Budget) -> Progress {
        let mut run = Run::NONE;
        let (mut removed, mut names) = (0_u32, 0);
        let mut at = top;
        loop {
            let stays = at == top && !with_top;
            let leaf = self.nodes.take_if(at, |node| node.family == NIL && !stays);
            let Some(node) = leaf else {
                let Some(node) = self.nodes.get(at) else { break };
                if node.family == NIL {
                    at = NIL;
                    break;
                }
                // Those before it are gone: its family begins here, if the next slice comes by.
                let (parent, down) = (node.parent, self.family(node).first);
                if at != top {
                    self.begin_family(parent, at);
                }
                at = down;
                continue;
            };
            let (parent, next) = (node.parent, node.next);
            self.free_leaf(at, node, &mut run, &mut names);
            removed = removed.saturating_add(1);
            budget.spend(FREE_WORK);
            if at == top {
                self.leaving = self.leaving.saturating_sub(1);
                at = NIL;
                break;
            }
            at = next;
            if at == NIL {
                // It was the last of its family: now its parent has no children.
                at = parent;
                let Some(parent) = self.nodes.get_mut(at) else { break };
                self.families.remove(core::mem::replace(&mut parent.family, NIL));
                if budget.is_over() && (at != top || with_top) {
                    break;
                }
            } else if budget.is_over() {
                self.begin_family(parent, at);
                break;
            }
        }
        self.end_run(&mut run);
        self.nodes.fit(removed);
        self.names.fit(names);
        if at == NIL || self.nodes.get(top).is_none() { Progress::Done } else { Progress::More }
    }

    /// As [`free_some`](Self::free_some), but the node itself stays.
    pub(in crate::store) fn free_below(&mut self, top: u32, budget: &mut Budget) -> Progress {
        self.free(top, false, budget)
    }

    /// The first child of a node, and the name of that.
    pub(in crate::store) fn first_child(&self, handle: u32) -> Option<(u32, u32)> {
        let first = self.node(handle).map(|node| self.family(node).first)?;
        self.node(first).map(|child| (first, child.name))
    }

    /// Takes a node without children that is out of everybody's sight away from its siblings, and frees it.
    pub(in crate::store) fn take_leaf(&mut self, handle: u32) {
        self.detach(handle);
        let _done = self.free_some(handle, &mut Budget::endless());
    }

    /// Makes a node the first child of its parent.
    fn begin_family(&mut self, parent: u32, first: u32) {
        let family = self.nodes.get(parent).map_or(NIL, |parent| parent.family);
        if let Some(family) = self.families.get_mut(family) {
            family.first = first;
        }
    }

    /// Frees what a node had that was taken out of the list of nodes. It is not unlinked from its siblings.
    #[inline]
    fn free_leaf(&mut self, at: u32, node: Node, run: &mut Run, names: &mut u32) {
        let Node { name, list, value, .. } = node;
        let value = self.drop_value(&value);
        let name = self.release_one(name, names);
        if list != run.list || run.count == 0 || run.count == RUN_MAX {
            self.end_run(run);
            run.list = list;
            run.owner = self.owner(list);
        }
        if run.owner != self.domains.privileged {
            self.unlink_owned(run.owner, at);
        }
        run.count = run.count.wrapping_add(1);
        run.blocks = run.blocks.wrapping_add(name).wrapping_add(value);
    }

    fn end_run(&mut self, run: &mut Run) {
        if run.count > 0 {
            let prices = NODE_BYTES.saturating_mul(run.count as usize);
            if self.is_anybodys(run.list) {
                self.domains.disown(run.owner, run.count, prices.saturating_add(run.blocks));
            }
            self.release_uses(run.list, run.count);
        }
        (run.count, run.blocks) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::domain::Accounts;
    use crate::store::perms::{Access, Entry};
    use crate::store::quota::{Quota, Quotas};
    use crate::store::tree::Found;
    use alloc::vec::Vec;

    const GUEST: DomId = DomId(5);

    fn tree() -> (Tree, u32) {
        let mut tree = Tree::new(7, Accounts::new(DomId(0), Quotas::default())).unwrap();
        tree.domains.learn(GUEST).unwrap();
        let list = tree.intern(&[Entry { domid: GUEST, access: Access::None, stale: false }]);
        (tree, list.unwrap())
    }

    fn make(tree: &mut Tree, name: &[u8], list: u32) -> u32 {
        tree.retain_list(list);
        tree.make_detached(name, b"a value that is too long for its node", list).unwrap()
    }

    fn owned(tree: &Tree) -> u32 {
        tree.domains.get(GUEST).unwrap().used.get(Quota::Nodes)
    }

    /// Nodes, families, values, names, lists and owners' records.
    fn counts(tree: &Tree) -> [usize; 6] {
        let (families, long) = (tree.families.len(), tree.long.len());
        let few = [families, long].map(|few| few as usize);
        [tree.len(), few[0], few[1], tree.names.len(), tree.lists.len(), tree.owned.len()]
    }

    #[test]
    fn what_was_made_is_seen_when_it_is_attached() {
        let (mut tree, list) = tree();
        let before = counts(&tree);
        let (a, b) = (make(&mut tree, b"a", list), make(&mut tree, b"b", list));
        assert_eq!(tree.find(b"/a"), Found::Above { node: ROOT, there: 0 });
        assert!(tree.is_detached(a) && !tree.is_attached(a) && owned(&tree) == 0);
        tree.attach(ROOT, a);
        tree.attach(a, b);
        assert_eq!((tree.find(b"/a"), tree.find(b"/a/b")), (Found::Node(a), Found::Node(b)));
        assert_eq!((owned(&tree), tree.owned_by(GUEST).count()), (2, 2));
        assert!(!tree.is_detached(b) && tree.is_attached(b));
        tree.detach(a);
        assert_eq!(tree.find(b"/a"), Found::Above { node: ROOT, there: 0 });
        assert!(tree.is_detached(a) && !tree.is_attached(b) && owned(&tree) == 2);
        assert_eq!(tree.free_some(a, &mut Budget::endless()), Progress::Done);
        assert_eq!((counts(&tree), owned(&tree)), (before, 0));
        // All but the permission list, which is still in use.
        let bytes = tree.lists.get(list).unwrap().bytes();
        assert_eq!(tree.domains.get(GUEST).unwrap().used.get(Quota::Memory) as usize, bytes);
        tree.release_list(list);
        assert_eq!(tree.domains.get(GUEST).unwrap().used.get(Quota::Memory), 0);
    }

    #[test]
    fn what_was_made_for_nothing_leaves_nothing() {
        let (mut tree, list) = tree();
        let before = counts(&tree);
        let made: Vec<u32> = (0..500).map(|_| make(&mut tree, b"same", list)).collect();
        for handle in &made {
            tree.drop_detached(*handle);
        }
        assert_eq!((counts(&tree), tree.lists.get(list).unwrap().users), (before, 1));
        // A node of the tree is not taken for one.
        tree.drop_detached(ROOT);
        assert!(tree.node(ROOT).is_some());
    }

    #[test]
    fn a_tree_is_freed_in_slices_of_any_size() {
        for (deep, wide) in [(1, 500), (400, 1), (7, 9)] {
            let (mut tree, list) = tree();
            let before = counts(&tree);
            for units in [1, 1000, 3000, 100_000] {
                let top = make(&mut tree, b"top", list);
                tree.attach(ROOT, top);
                let mut at = top;
                for _ in 0..deep {
                    for _ in 0..wide {
                        let name = alloc::format!("n{}", tree.len());
                        let child = make(&mut tree, name.as_bytes(), list);
                        tree.attach(at, child);
                    }
                    at = tree.family(tree.node(at).unwrap()).last;
                }
                tree.detach(top);
                let mut turns = 0_u64;
                while tree.free_some(top, &mut Budget::new(units)) == Progress::More {
                    turns += 1;
                    assert!(tree.node(top).is_some());
                }
                let nodes = deep * wide + 1;
                let each = units.div_ceil(FREE_WORK);
                assert!(turns <= nodes / each && turns + 1 >= nodes / each, "{turns} {nodes}");
                assert_eq!((counts(&tree), owned(&tree)), (before, 0));
            }
        }
    }

    #[test]
    fn permissions_and_values_change_without_memory_that_was_promised() {
        let (mut tree, list) = tree();
        let node = make(&mut tree, b"a", list);
        tree.attach(ROOT, node);
        let private = tree.private_list();
        tree.set_list(node, private).unwrap();
        assert_eq!((owned(&tree), tree.first_owned(GUEST)), (0, None));
        tree.promise_owner().unwrap();
        tree.retain_list(list);
        tree.set_list_promised(node, list);
        assert_eq!((owned(&tree), tree.first_owned(GUEST)), (1, Some(node)));
        let value = tree.keep(b"another value that is long enough").unwrap();
        tree.put_value(node, value);
        assert_eq!(tree.value(tree.node(node).unwrap()), b"another value that is long enough");
        let spare = tree.keep(b"another value that nobody wants").unwrap();
        assert_eq!(tree.drop_value(&spare), crate::store::tree::value_bytes(31));
        assert_eq!(tree.long.len(), 1);
        assert_ne!(tree.node(node).unwrap().name, NIL);
    }
}
