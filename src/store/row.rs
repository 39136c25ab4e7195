//! A request that makes many levels at once: they are made in slices, out of everybody's sight, and put into the tree
//! together at the end, all of them or none.
//!
//! For others the request comes when that happens: then is looked again at whatever can have changed meanwhile.
//! If it is not what the nodes were made for, they are freed and the request begins anew.

use super::Store;
use super::events::{Notifier, Post, Work};
use super::path;
use super::perms::{Access, Party};
use super::quota::Quota;
use super::tree::{Found, ROOT, Tree, entry_bytes};
use super::watch::Class;
use super::{Budget, Caller};
use crate::mem::{NIL, NoMemory, Progress, try_bytes};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, TxId};
use crate::proto::text::count;
use alloc::boxed::Box;

/// So many levels are made in one go.
pub(super) const AT_ONCE: usize = 24;

/// Units of work that making a level takes.
const MAKE_WORK: u64 = 400;

/// Units of work that finding one takes.
const FIND_WORK: u64 = 40;

/// Nodes that are being made, each below the one before.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) path: Box<[u8]>,
    /// For the last of them; `None` for MKDIR.
    pub(super) value: Option<Box<[u8]>>,
    /// How many bytes of the path lead to the node that they will be below.
    there: usize,
    /// How many lead to the last that was made.
    made: usize,
    /// Their permissions, with a use of their own.
    list: u32,
    /// The first and the last of them.
    top: u32,
    last: u32,
    /// They are freed; what comes then.
    end: Option<End>,
}

/// What comes when all was freed that was made.
#[derive(Clone, Copy, Debug)]
enum End {
    Again,
    Refuse(XsError),
}

/// How far it has come.
enum Came {
    More,
    Done,
    Ends(End),
}

impl Row {
    /// What is missing on the way to a path of which so many bytes are there. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; the use is the caller's.
    pub(super) fn new(
        path: &[u8],
        there: usize,
        value: Option<&[u8]>,
        list: u32,
    ) -> Result<Self, NoMemory> {
        let value = value.map(try_bytes).transpose()?;
        let path = try_bytes(path)?;
        Ok(Self { path, value, there, made: there, list, top: NIL, last: NIL, end: None })
    }

    /// How many nodes are not yet made.
    fn missing(&self) -> usize {
        let rest = self.path.get(self.made..).unwrap_or(&[]);
        count(rest, b'/')
    }

    /// As far as the budget reaches. `party` is who asks, if he is still there.
    fn go_on<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        party: Option<&Party>,
    ) -> Came {
        if self.end.is_none() {
            match self.make(tree, notifier, party) {
                Ok(Progress::More) => return Came::More,
                Ok(Progress::Done) => return Came::Done,
                Err(end) => self.give_up(tree, end),
            }
        }
        if self.top != NIL && tree.free_some(self.top, notifier.budget) == Progress::More {
            return Came::More;
        }
        self.top = NIL;
        tree.release_list(core::mem::replace(&mut self.list, NIL));
        Came::Ends(self.end.unwrap_or(End::Again))
    }

    fn give_up(&mut self, tree: &mut Tree, end: End) {
        if self.end.replace(end).is_none() {
            tree.abandon(self.top);
        }
    }

    fn make<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        party: Option<&Party>,
    ) -> Result<Progress, End> {
        let party = party.ok_or(End::Refuse(XsError::EIO))?;
        // Else the domain is gone that would own them.
        if !tree.is_anybodys(self.list) {
            return Err(End::Again);
        }
        while let Some(name) = path::components(self.path.get(self.made..).unwrap_or(&[])).next() {
            if notifier.budget.is_over() {
                return Ok(Progress::More);
            }
            let made = self.made.saturating_add(name.len()).saturating_add(1);
            let value = self.value.as_deref().filter(|_| made >= self.path.len());
            let node = tree.make_detached(name, value.unwrap_or(&[]), self.list);
            let node = node.map_err(|NoMemory| End::Refuse(XsError::ENOMEM))?;
            tree.retain_list(self.list);
            match self.last {
                NIL => self.top = node,
                last => tree.attach(last, node),
            }
            (self.last, self.made) = (node, made);
            notifier.budget.spend(MAKE_WORK);
        }
        if notifier.budget.is_over() {
            return Ok(Progress::More);
        }
        let above = self.above(tree, party)?;
        tree.attach(above, self.top);
        let levels = (self.there as u64).wrapping_div(2);
        notifier.budget.spend(FIND_WORK.saturating_mul(levels));
        let list = core::mem::replace(&mut self.list, NIL);
        // All but the first are below one that was made just now.
        notifier.ring(tree, &self.path, Class::Subtree, &[list]);
        tree.release_list(list);
        Ok(Progress::Done)
    }

    /// The node that they are to be below, if the request, had it come now, would have put the same there.
    fn above(&self, tree: &mut Tree, party: &Party) -> Result<u32, End> {
        let there = self.path.get(..self.there).unwrap_or(&[]);
        let above = match tree.find(there) {
            _ if there.is_empty() => ROOT,
            Found::Node(above) => above,
            Found::Above { .. } => return Err(End::Again),
        };
        let rest = self.path.get(self.there..).unwrap_or(&[]);
        let first = path::components(rest).next().unwrap_or(&[]);
        let node = tree.node(above).ok_or(End::Again)?;
        let (list, value) = (node.list, tree.value(node).len());
        let children =
            (tree.family(node).bytes as usize).saturating_add(entry_bytes(first) as usize);
        let size = tree.size(list, value, children);
        let domain = tree.domains.get(party.domid);
        let fits = party.privileged
            || domain.is_none_or(|domain| domain.quotas.allows(Quota::NodeSize, size));
        let may = tree.rights(list, party).access.includes(Access::Write);
        if !fits || !may || tree.child(above, first).is_some() {
            return Err(End::Again);
        }
        let creator = (!party.privileged).then_some(party.domid);
        let inherited = tree.inherit(list, creator);
        let inherited = inherited.map_err(|NoMemory| End::Refuse(XsError::ENOMEM))?;
        tree.release_list(inherited);
        if inherited == self.list { Ok(above) } else { Err(End::Again) }
    }
}

impl Store {
    /// How many nodes a connection's request still has to make.
    #[must_use]
    pub fn still_to_make(&self, conn: ConnId) -> usize {
        match self.conns.get(&conn).map(|conn| &conn.work) {
            Some(Work::Make(row)) if row.end.is_none() => row.missing(),
            Some(Work::Fill(fill)) => fill.missing(),
            _ => 0,
        }
    }

    /// There is no memory for what a connection's request still has to make.
    pub fn make_no_more(&mut self, conn: ConnId) {
        match self.conns.get_mut(&conn).map(|conn| &mut conn.work) {
            Some(Work::Make(row)) => row.give_up(&mut self.tree, End::Refuse(XsError::ENOMEM)),
            Some(Work::Fill(fill)) => fill.give_up(XsError::ENOMEM),
            _ => {}
        }
    }

    /// The error that a request has come to in later turns, after [`go_on`](Self::go_on) is done.
    pub fn take_failure(&mut self, conn: ConnId) -> Option<XsError> {
        self.conns.get_mut(&conn)?.failed.take()
    }

    /// Goes on with what a connection's request makes.
    #[inline(never)]
    pub(super) fn go_on_making(
        &mut self,
        conn: ConnId,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        loop {
            let party = self.party(conn);
            let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
            let is_over = state.reset || state.gone.is_some();
            let mut row = match core::mem::take(&mut state.work) {
                Work::Make(row) => row,
                other @ (Work::Nothing | Work::Announce(_) | Work::Remove(_) | Work::Fill(_)) => {
                    state.work = other;
                    return Progress::Done;
                }
            };
            let (tree, mut notifier) = self.tree_and_notifier(budget, post);
            let again = match row.go_on(tree, &mut notifier, party.as_ref()) {
                Came::Done => return Progress::Done,
                Came::More => {
                    if let Some(state) = self.conns.get_mut(&conn) {
                        state.work = Work::Make(row);
                    }
                    return Progress::More;
                }
                Came::Ends(End::Refuse(error)) => Err(error),
                // Who asked starts over, or is gone.
                Came::Ends(End::Again) if is_over => Err(XsError::EIO),
                Came::Ends(End::Again) => {
                    let caller = Caller { conn, tx: TxId::NONE };
                    match &row.value {
                        Some(value) => self.write(caller, &row.path, value, budget, post),
                        None => self.mkdir(caller, &row.path, budget, post),
                    }
                }
            };
            let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
            state.failed = again.err();
            if !matches!(state.work, Work::Make(_)) {
                // What else it has begun is gone on with as that of any request.
                return Progress::Done;
            }
            if budget.is_over() {
                return Progress::More;
            }
        }
    }
}
