//! Nodes and permissions in the simplest form: one map from path to node, everything copied, nothing shared.

use super::text::{self, ANY};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// One entry of a permission list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Perm {
    pub(super) letter: u8,
    pub(super) domid: u16,
    /// Shown, but matches nobody.
    pub(super) stale: bool,
}

/// A permission list.
pub(super) type Perms = Vec<Perm>;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Party {
    pub(super) domid: u16,
    pub(super) target: Option<u16>,
    pub(super) privileged: bool,
}

/// What somebody may do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rights {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) owner: bool,
}

/// The rights that a list gives: the owner's, else the first entry's that fits, else the default.
pub(super) fn rights(perms: &[Perm], party: Party) -> Rights {
    let fits = |perm: &&Perm| {
        let meant = [Some(party.domid), party.target, Some(ANY)].contains(&Some(perm.domid));
        !perm.stale && meant
    };
    let Some(owner) = perms.first() else {
        return Rights { read: false, write: false, owner: false };
    };
    if party.privileged || fits(&owner) {
        return Rights { read: true, write: true, owner: true };
    }
    let letter = perms[1..].iter().find(fits).unwrap_or(owner).letter;
    Rights { read: b"rb".contains(&letter), write: b"wb".contains(&letter), owner: false }
}

/// A list as GET_PERMS shows it.
pub(super) fn perms_text(perms: &[Perm]) -> Vec<u8> {
    text::join(perms.iter().map(|perm| {
        let letter = char::from(perm.letter);
        std::format!("{letter}{}", perm.domid).into_bytes()
    }))
}

/// A domain is gone: nothing may match its successor.
pub(super) fn strip(perms: &mut Perms, domid: u16) {
    let mut first = true;
    perms.retain_mut(|perm| {
        let is_first = core::mem::take(&mut first);
        let meant = perm.domid == domid && !perm.stale;
        perm.stale |= meant;
        is_first || !meant
    });
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) perms: Perms,
    /// Names, in the order of creation.
    pub(super) children: Vec<Vec<u8>>,
    pub(super) generation: u64,
}

impl Node {
    /// The length of the list of children.
    pub(super) fn list_len(&self) -> usize {
        self.children.iter().map(|name| name.len() + 1).sum()
    }
}

/// A change that watches are told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) path: Vec<u8>,
    /// Also for watches above; otherwise only for those at the very path.
    pub(super) subtree: bool,
    /// Whoever may read by one of these is told.
    pub(super) lists: Vec<Perms>,
}

/// All nodes, the special ones among them.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<Vec<u8>, Node>,
    counter: u64,
}

impl Tree {
    /// What a server starts with.
    pub(super) fn new(privileged: u16) -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), counter: 0 };
        let closed = Perm { letter: b'n', domid: privileged, stale: false };
        let open = Perm { letter: b'r', domid: ANY, stale: false };
        for path in [&b"/"[..], b"/tool", b"/tool/xenstored", b"@introduceDomain"] {
            tree.create(path, Vec::new(), Vec::from([closed]));
        }
        tree.create(b"@releaseDomain", Vec::new(), Vec::from([closed, open]));
        tree
    }

    /// A number that was never used before.
    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Makes a node; the one above must exist.
    pub(super) fn create(&mut self, path: &[u8], value: Vec<u8>, perms: Perms) {
        let generation = self.next();
        let node = Node { value, perms, children: Vec::new(), generation };
        self.nodes.insert(path.to_vec(), node);
        if path.starts_with(b"/")
            && let Some(above) = text::parent(path)
        {
            let generation = self.next();
            let above = self.nodes.get_mut(&above).expect("a node is made below another");
            above.children.push(text::name(path));
            above.generation = generation;
        }
    }

    /// Removes a node that has no children.
    pub(super) fn remove(&mut self, path: &[u8]) {
        self.nodes.remove(path);
        let generation = self.next();
        if let Some(above) = text::parent(path).and_then(|above| self.nodes.get_mut(&above)) {
            let name = text::name(path);
            above.children.retain(|child| *child != name);
            above.generation = generation;
        }
    }

    /// Removes a node with everything below, children before parents, and says what is told of it.
    pub(super) fn remove_subtree(&mut self, path: &[u8], subtree: bool, changes: &mut Vec<Change>) {
        for name in self.nodes[path].children.clone() {
            self.remove_subtree(&text::child(path, &name), false, changes);
        }
        let lists = Vec::from([self.nodes[path].perms.clone(), self.perms_above(path)]);
        changes.push(Change { path: path.to_vec(), subtree, lists });
        self.remove(path);
    }

    /// Replaces a value or the permissions.
    pub(super) fn change(&mut self, path: &[u8], change: impl FnOnce(&mut Node)) {
        let generation = self.next();
        if let Some(node) = self.nodes.get_mut(path) {
            change(node);
            node.generation = generation;
        }
    }

    /// The permissions of the node above; an empty list gives nobody anything.
    pub(super) fn perms_above(&self, path: &[u8]) -> Perms {
        let above = text::parent(path).and_then(|above| self.nodes.get(&above));
        above.map_or(Vec::new(), |above| above.perms.clone())
    }

    /// How many nodes a domain owns.
    pub(super) fn owned(&self, domid: u16) -> usize {
        self.nodes.values().filter(|node| node.perms[0].domid == domid).count()
    }
}
