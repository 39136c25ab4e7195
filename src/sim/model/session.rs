//! One request about nodes, in a transaction or not.
//!
//! A transaction is a list of the paths it has accessed, in the order of first access, each with what was
//! there then and what the transaction has made of it (behaviour of C xenstored; where this server
//! chose differently, `docs/conformance.md`).

use super::text;
use super::tree::{Change, Node, Party, Perms, Rights, Tree, perms_text, rights};
use alloc::vec::Vec;

/// The name of an error.
pub(super) type Error = &'static str;

/// Limits of the caller, in the order of GET_QUOTA.
pub(super) type Limits = [u32; 10];

pub(super) const NODES: usize = 0;
pub(super) const WATCHES: usize = 1;
pub(super) const OUTSTANDING: usize = 2;
pub(super) const TRANSACTIONS: usize = 5;
pub(super) const TX_NODES: usize = 6;
pub(super) const PERMISSIONS: usize = 7;
pub(super) const PATH_MAX: usize = 8;
pub(super) const NODE_SIZE: usize = 9;

/// The most bytes of a reply.
const PAYLOAD_MAX: usize = 4096;

/// Whether a path lies above another one.
fn is_above(above: &[u8], path: &[u8]) -> bool {
    let rest = path.strip_prefix(above);
    path != above && rest.is_some_and(|rest| above == b"/" || rest.first() == Some(&b'/'))
}

/// A node as the caller sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct View {
    pub(super) value: Vec<u8>,
    pub(super) perms: Perms,
    pub(super) generation: u64,
    list_len: usize,
    /// Made in the transaction; its number among the nodes that it made.
    made: Option<u64>,
}

/// What was there at the first access.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Base {
    perms: Perms,
    generation: u64,
}

/// A path that a transaction has accessed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Touched {
    path: Vec<u8>,
    base: Option<Base>,
    now: Option<View>,
    modified: bool,
    /// The value was asked for or written, so it stays as it is.
    kept: bool,
    /// An event at commit; whether it is one for watches above, too.
    event: Option<bool>,
}

/// An open transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Tx {
    touched: Vec<Touched>,
    /// What went with a subtree that was removed whole, by the subtree's path.
    hidden: Vec<(Vec<u8>, Touched)>,
    pub(super) poisoned: bool,
    made: u64,
}

impl Tx {
    fn at(&mut self, path: &[u8]) -> Option<&mut Touched> {
        self.touched.iter_mut().find(|touched| touched.path == path)
    }

    /// Everything accessed, with what went with it behind it.
    fn all(&self) -> impl Iterator<Item = &Touched> {
        self.touched.iter().flat_map(|touched| {
            let with_it = self.hidden.iter().filter(|(top, _)| *top == touched.path);
            core::iter::once(touched).chain(with_it.map(|(_, hidden)| hidden))
        })
    }

    /// Whether the transaction sees nothing below a path's parents but what it made itself.
    fn hides(&self, path: &[u8]) -> bool {
        self.touched.iter().any(|above| {
            let lost = above.now.as_ref().is_none_or(|now| now.made.is_some());
            lost && is_above(&above.path, path)
        })
    }

    /// A domain is gone.
    pub(super) fn strip(&mut self, domid: u16) {
        let hidden = self.hidden.iter_mut().map(|(_, hidden)| hidden);
        for touched in self.touched.iter_mut().chain(hidden) {
            let base = touched.base.as_mut().map(|base| &mut base.perms);
            let now = touched.now.as_mut().map(|now| &mut now.perms);
            for perms in [base, now].into_iter().flatten() {
                super::tree::strip(perms, domid);
            }
        }
    }

    /// How many nodes more a domain would own.
    fn delta(&self, domid: u16) -> i64 {
        let one = |perms: Option<&Perms>| i64::from(perms.is_some_and(|p| p[0].domid == domid));
        self.all().fold(0, |sum, touched| {
            let before = one(touched.base.as_ref().map(|base| &base.perms));
            sum + one(touched.now.as_ref().map(|now| &now.perms)) - before
        })
    }

    /// Whether it must fail: something that it touched has changed, or a node would get an owner that is gone.
    fn conflicts(&self, tree: &Tree) -> bool {
        self.all().any(|touched| {
            let was = touched.base.as_ref().map(|base| base.generation);
            let is = tree.nodes.get(&touched.path).map(|node| node.generation);
            // Found missing only because the transaction itself had removed what is above: that has
            // its own look, and a child that is still there is nobody's change.
            let own = was.is_none()
                && self.touched.iter().any(|above| {
                    above.base.is_some() && is_above(&above.path, &touched.path) && {
                        above.now.as_ref().is_none_or(|now| now.made.is_some())
                    }
                });
            was != is && !own || touched.now.as_ref().is_some_and(|now| now.perms[0].stale)
        })
    }

    /// Ends it. `Ok` has what is to be told.
    pub(super) fn commit(
        mut self,
        tree: &mut Tree,
        party: Party,
        limits: &Limits,
    ) -> Result<Vec<Change>, Error> {
        let delta = self.delta(party.domid);
        let count = i64::try_from(tree.owned(party.domid)).unwrap_or(i64::MAX) + delta;
        if self.poisoned {
            return Err("ENOMEM");
        }
        if delta > 0 && !party.privileged && limits[NODES] > 0 && count > i64::from(limits[NODES]) {
            return Err("ENOSPC");
        }
        if self.conflicts(tree) {
            return Err("EAGAIN");
        }
        let changes: Vec<Touched> = self.all().cloned().collect();
        self.touched.clone_from(&changes);
        // Deepest first, what is gone or was made anew goes.
        self.touched.sort_by_key(|touched| core::cmp::Reverse(touched.path.len()));
        for touched in &self.touched {
            let replaced = touched.now.as_ref().is_none_or(|now| now.made.is_some());
            if touched.base.is_some() && replaced {
                tree.remove(&touched.path);
            }
        }
        let mut made = self.touched.clone();
        made.retain(|touched| touched.now.as_ref().is_some_and(|now| now.made.is_some()));
        made.sort_by_key(|touched| touched.now.as_ref().and_then(|now| now.made));
        for touched in made {
            let now = touched.now.expect("only such are left");
            tree.create(&touched.path, now.value, now.perms);
        }
        for touched in self.touched {
            if let Some(now) = touched.now.filter(|now| touched.modified && now.made.is_none()) {
                tree.change(&touched.path, |node| {
                    if touched.kept {
                        node.value = now.value;
                    }
                    node.perms = now.perms;
                });
            }
        }
        Ok(changes.into_iter().filter_map(|touched| touched.told(tree)).collect())
    }
}

impl Touched {
    /// The event for it after the commit. It goes to those who could read the node before, or can read it or its
    /// parent now. If the node is gone, it goes only to the former.
    fn told(self, tree: &Tree) -> Option<Change> {
        let subtree = self.event?;
        let mut lists: Vec<Perms> = self.base.iter().map(|base| base.perms.clone()).collect();
        if self.now.is_some() {
            lists.push(tree.nodes[&self.path].perms.clone());
            lists.push(tree.perms_above(&self.path));
        } else if self.base.is_none() {
            return None;
        }
        Some(Change { path: self.path, subtree, lists })
    }
}

/// A generation, another one outside of the transaction, and a list.
pub(super) type Part = (u64, Option<u64>, Vec<u8>);

/// A request in progress.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) tx: Option<&'a mut Tx>,
    pub(super) party: Party,
    pub(super) limits: Limits,
    pub(super) changes: Vec<Change>,
}

impl Session<'_> {
    fn limit(&self, quota: usize, amount: usize) -> bool {
        self.party.privileged || self.limits[quota] == 0 || amount <= self.limits[quota] as usize
    }

    /// What is at a path; in a transaction this is an access.
    fn look(&mut self, path: &[u8]) -> Result<Option<View>, Error> {
        let live = self.tree.nodes.get(path);
        let view = live.map(|node| View {
            value: node.value.clone(),
            perms: node.perms.clone(),
            generation: node.generation,
            list_len: node.list_len(),
            made: None,
        });
        let base = live.map(|node| Base { perms: node.perms.clone(), generation: node.generation });
        let Some(tx) = &mut self.tx else { return Ok(view) };
        if let Some(touched) = tx.at(path) {
            let touched = touched.clone();
            let value = self.value(&touched);
            return Ok(touched.now.map(|now| View { value, ..now }));
        }
        let (base, view) = if tx.hides(path) { (None, None) } else { (base, view) };
        let count = tx.touched.len() + tx.hidden.len() + 1;
        if !self.limit(TX_NODES, count) {
            return self.poison("ENOSPC");
        }
        let touched = Touched {
            path: path.to_vec(),
            base,
            now: view.clone(),
            modified: false,
            kept: false,
            event: None,
        };
        if let Some(tx) = &mut self.tx {
            tx.touched.push(touched);
        }
        Ok(view)
    }

    /// The value of a touched node: what was kept, else the present one, after a change only for those who
    /// may read the present node.
    fn value(&self, touched: &Touched) -> Vec<u8> {
        match (&touched.now, self.shown(touched)) {
            (Some(now), _) if touched.kept => now.value.clone(),
            (Some(_), Some(node)) => node.value.clone(),
            _ => Vec::new(),
        }
    }

    /// The live node of which the caller is shown what the transaction has not kept.
    fn shown(&self, touched: &Touched) -> Option<&Node> {
        let (node, base) = self.tree.nodes.get(&touched.path).zip(touched.base.as_ref())?;
        let same = node.generation == base.generation;
        (same || rights(&node.perms, self.party).read).then_some(node)
    }

    fn poison<T>(&mut self, error: Error) -> Result<T, Error> {
        if let Some(tx) = &mut self.tx {
            tx.poisoned = true;
        }
        Err(error)
    }

    /// The nearest node above a path that exists, with its path.
    fn nearest(&mut self, path: &[u8]) -> Result<(Vec<u8>, View), Error> {
        let mut at = path.to_vec();
        loop {
            at = text::parent(&at).expect("the root exists");
            if let Some(view) = self.look(&at)? {
                return Ok((at, view));
            }
        }
    }

    /// The node at a path if the right that `wanted` names is there.
    fn permitted(&mut self, path: &[u8], wanted: fn(Rights) -> bool) -> Result<View, Error> {
        if let Some(view) = self.look(path)? {
            let allowed = wanted(rights(&view.perms, self.party));
            return if allowed { Ok(view) } else { Err("EACCES") };
        }
        let (_, above) = self.nearest(path)?;
        Err(if wanted(rights(&above.perms, self.party)) { "ENOENT" } else { "EACCES" })
    }

    fn children(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let Some(tx) = &self.tx else {
            return self.tree.nodes.get(path).map_or(Vec::new(), |node| node.children.clone());
        };
        let touched = |path: &[u8]| tx.touched.iter().find(|touched| touched.path == path);
        let Some(here) = touched(path) else { return Vec::new() };
        let kept = here.now.as_ref().is_some_and(|now| now.made.is_none());
        let same = self.shown(here).filter(|_| kept);
        let mut names = same.map_or(Vec::new(), |node| node.children.clone());
        names.retain(|name| {
            touched(&text::child(path, name))
                .is_none_or(|child| child.now.as_ref().is_some_and(|now| now.made.is_none()))
        });
        let is_below = |touched: &&Touched| text::parent(&touched.path).as_deref() == Some(path);
        let mut made: Vec<(u64, Vec<u8>)> = tx
            .touched
            .iter()
            .filter(is_below)
            .filter_map(|touched| Some((touched.now.as_ref()?.made?, text::name(&touched.path))))
            .collect();
        made.sort_unstable();
        names.extend(made.into_iter().map(|(_, name)| name));
        names
    }

    /// READ.
    pub(super) fn read(&mut self, path: &[u8]) -> Result<Vec<u8>, Error> {
        let value = self.permitted(path, |rights| rights.read)?.value;
        let touched = self.tx.as_mut().and_then(|tx| tx.at(path)).map(|touched| touched.clone());
        let shown = touched.is_some_and(|touched| self.shown(&touched).is_some());
        if let Some(touched) = self.tx.as_mut().and_then(|tx| tx.at(path)).filter(|_| shown)
            && let Some(now) = &mut touched.now
            && !core::mem::replace(&mut touched.kept, true)
        {
            now.value.clone_from(&value);
        }
        Ok(value)
    }

    /// GET_PERMS.
    pub(super) fn get_perms(&mut self, path: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(perms_text(&self.permitted(path, |rights| rights.read)?.perms))
    }

    /// DIRECTORY.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Vec<u8>, Error> {
        let view = self.permitted(path, |rights| rights.read)?;
        if view.list_len > PAYLOAD_MAX {
            return Err("E2BIG");
        }
        Ok(text::join(self.children(path)))
    }

    /// DIRECTORY_PART: the node's generation, if a transaction sees a node that has changed since, the present
    /// one, too, and the whole list.
    pub(super) fn directory_part(&mut self, path: &[u8]) -> Result<Part, Error> {
        let view = self.permitted(path, |rights| rights.read)?;
        let touched = self.tx.as_mut().and_then(|tx| tx.at(path)).map(|touched| touched.clone());
        let base = touched.and_then(|touched| touched.base).filter(|_| view.made.is_none());
        let live = self.tree.nodes.get(path).map_or(0, |node| node.generation);
        let mixed = base.filter(|base| base.generation != live).map(|_| live);
        Ok((view.generation, mixed, text::join(self.children(path))))
    }

    /// WRITE, or with `None` MKDIR.
    pub(super) fn write(&mut self, path: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        match (self.permitted(path, |rights| rights.write), value) {
            (Ok(_), None) => Ok(()),
            (Ok(view), Some(value)) => self.replace(path, &view, value),
            (Err("ENOENT"), _) => self.create(path, value.unwrap_or(b"")),
            (Err(error), _) => Err(error),
        }
    }

    fn fits(&self, perms: &Perms, value: usize, list_len: usize) -> bool {
        self.limit(NODE_SIZE, 16 + 8 * perms.len() + value + list_len)
    }

    /// Changes a node that exists, now or in the transaction, and has that told.
    fn change(&mut self, path: &[u8], change: impl Fn(&mut Vec<u8>, &mut Perms)) {
        let old = self.tree.nodes.get(path).map(|node| node.perms.clone());
        let generation = self.tree.next();
        if let Some(tx) = &mut self.tx {
            let touched = tx.at(path).expect("it was looked at");
            touched.modified = true;
            touched.event = Some(true);
            if let Some(now) = &mut touched.now {
                change(&mut now.value, &mut now.perms);
                now.generation = generation;
            }
            return;
        }
        self.tree.change(path, |node| change(&mut node.value, &mut node.perms));
        let mut lists: Vec<Perms> = old.into_iter().collect();
        lists.push(self.tree.nodes[path].perms.clone());
        lists.push(self.tree.perms_above(path));
        self.changes.push(Change { path: path.to_vec(), subtree: true, lists });
    }

    fn replace(&mut self, path: &[u8], view: &View, value: &[u8]) -> Result<(), Error> {
        if !self.fits(&view.perms, value.len(), view.list_len) {
            return self.poison("ENOSPC");
        }
        self.change(path, |old, _| *old = value.to_vec());
        if let Some(touched) = self.tx.as_mut().and_then(|tx| tx.at(path)) {
            touched.kept = true;
        }
        Ok(())
    }

    fn create(&mut self, path: &[u8], value: &[u8]) -> Result<(), Error> {
        let (top, above) = self.nearest(path)?;
        let mut missing = Vec::from([path.to_vec()]);
        while let Some(next) = missing.last().and_then(|last| text::parent(last)) {
            if next == top {
                break;
            }
            missing.push(next);
        }
        let mut perms = above.perms.clone();
        if !self.party.privileged {
            perms[0].stale &= perms[0].domid == self.party.domid;
            perms[0].domid = self.party.domid;
        }
        let domid = self.party.domid;
        let pending = self.tx.as_ref().map_or(0, |tx| tx.delta(domid));
        let used = i64::try_from(self.tree.owned(domid)).unwrap_or(i64::MAX) + pending;
        if !self.limit(NODES, usize::try_from(used).unwrap_or(0) + missing.len()) {
            return self.poison("ENOSPC");
        }
        let mut below = 0;
        for (place, path) in missing.iter().enumerate() {
            if !self.fits(&perms, if place == 0 { value.len() } else { 0 }, below) {
                return self.poison("ENOSPC");
            }
            below = text::name(path).len() + 1;
        }
        if !self.fits(&above.perms, above.value.len(), above.list_len + below) {
            return self.poison("ENOSPC");
        }
        for level in missing.iter().rev() {
            let value = if level == path { value.to_vec() } else { Vec::new() };
            self.create_one(level, value, perms.clone(), level == path);
        }
        Ok(())
    }

    fn create_one(&mut self, path: &[u8], value: Vec<u8>, perms: Perms, told: bool) {
        let Some(tx) = &mut self.tx else {
            self.tree.create(path, value, perms.clone());
            if told {
                let lists = Vec::from([perms, self.tree.perms_above(path)]);
                self.changes.push(Change { path: path.to_vec(), subtree: true, lists });
            }
            return;
        };
        tx.made += 1;
        let (made, generation) = (Some(tx.made), self.tree.next());
        let touched = tx.at(path).expect("it was looked at");
        touched.now = Some(View { value, perms, generation, list_len: 0, made });
        touched.kept = true;
        if told {
            touched.event = Some(true);
        }
        let above = text::parent(path).and_then(|above| tx.at(&above)?.now.as_mut());
        if let Some(above) = above {
            above.list_len += text::name(path).len() + 1;
            above.generation = generation;
        }
    }

    /// RM.
    pub(super) fn rm(&mut self, path: &[u8]) -> Result<(), Error> {
        match self.permitted(path, |rights| rights.write) {
            Ok(_) if path == b"/" => Err("EINVAL"),
            Ok(_) if self.tx.is_some() => self.rm_in_tx(path),
            Ok(_) => {
                self.tree.remove_subtree(path, true, &mut self.changes);
                Ok(())
            }
            Err("ENOENT") => {
                let above = text::parent(path).expect("the root exists");
                self.look(&above)?.map(|_| ()).ok_or("ENOENT")
            }
            Err(error) => Err(error),
        }
    }

    /// What is removed with a node: all live nodes below that the transaction still sees and has not accessed,
    /// each with its nearest path above. Below a node that has changed nothing counts any more.
    fn hidden_below(&self, top: &[u8]) -> Vec<(Vec<u8>, Touched)> {
        let mut hidden = Vec::new();
        let Some(tx) = &self.tx else { return hidden };
        let seen = |path: &[u8]| tx.touched.iter().find(|touched| touched.path == path);
        let intact = |touched: &Touched| {
            let is_live = touched.now.as_ref().is_some_and(|now| now.made.is_none());
            let live = self.tree.nodes.get(&touched.path).map(|node| node.generation);
            is_live && live.is_some() && live == touched.base.as_ref().map(|base| base.generation)
        };
        let mut waiting = Vec::new();
        if seen(top).is_some_and(intact) {
            waiting.push((top.to_vec(), top.to_vec()));
        }
        while let Some((path, mut nearest)) = waiting.pop() {
            let node = &self.tree.nodes[&path];
            match seen(&path) {
                Some(touched) if intact(touched) => nearest.clone_from(&path),
                Some(_) => continue,
                None => {
                    let base =
                        Some(Base { perms: node.perms.clone(), generation: node.generation });
                    let event = Some(false);
                    let gone = Touched {
                        path: path.clone(),
                        base,
                        now: None,
                        modified: false,
                        kept: false,
                        event,
                    };
                    hidden.push((nearest.clone(), gone));
                }
            }
            let below = node.children.iter().rev().map(|name| text::child(&path, name));
            waiting.extend(below.map(|path| (path, nearest.clone())));
        }
        hidden
    }

    /// Everything goes that the transaction sees there.
    fn rm_in_tx(&mut self, top: &[u8]) -> Result<(), Error> {
        let above = text::parent(top);
        if let Some(above) = &above {
            self.look(above)?;
        }
        let hidden = self.hidden_below(top);
        let count = self.tx.as_ref().map_or(0, |tx| tx.touched.len() + tx.hidden.len());
        if !self.limit(TX_NODES, count + hidden.len()) {
            return self.poison("ENOSPC");
        }
        let generation = self.tree.next();
        let Some(tx) = &mut self.tx else { return Ok(()) };
        tx.hidden.extend(hidden);
        for touched in &mut tx.touched {
            let is_there = touched.path == top || is_above(top, &touched.path);
            if is_there && touched.now.take().is_some() {
                touched.modified = false;
                touched.event = Some(touched.event == Some(true) || touched.path == top);
            }
        }
        let above = above.and_then(|above| tx.at(&above)?.now.as_mut());
        if let Some(above) = above {
            above.list_len = above.list_len.saturating_sub(text::name(top).len() + 1);
            above.generation = generation;
        }
        Ok(())
    }

    /// SET_PERMS, its entries judged.
    pub(super) fn set_perms(&mut self, path: &[u8], perms: &Perms) -> Result<(), Error> {
        let view = self.permitted(path, |rights| rights.write)?;
        if !rights(&view.perms, self.party).owner {
            return Err("EACCES");
        }
        if !self.party.privileged && view.perms[0].domid != perms[0].domid {
            return Err("EPERM");
        }
        if !self.fits(perms, view.value.len(), view.list_len) {
            return self.poison("ENOSPC");
        }
        self.change(path, |_, old| old.clone_from(perms));
        Ok(())
    }
}
