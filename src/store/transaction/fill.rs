//! A request in a transaction that makes many levels: in slices, all of them or none. Nobody else sees anything of it,
//! and the connection asks for nothing else meanwhile.

use super::overlay::Open;
use crate::mem::{Budget, NIL, NoMemory, Progress, block_bytes, try_bytes};
use crate::proto::error::XsError;
use crate::proto::id::ConnId;
use crate::proto::text::count;
use crate::store::Store;
use crate::store::events::{Post, Work};
use crate::store::path;
use crate::store::session::{Gap, Session};
use crate::store::tree::{Tree, entry_bytes};
use crate::store::watch::Class;
use alloc::boxed::Box;

/// Units of work that making a level takes, and taking it back.
const MAKE_WORK: u64 = 600;
const UNMAKE_WORK: u64 = 400;

/// Levels that are made, each below the one before.
#[derive(Debug)]
pub(in crate::store) struct Fill {
    /// The transaction.
    tx: u32,
    path: Box<[u8]>,
    /// For the last of them.
    value: Box<[u8]>,
    /// How many bytes of the path lead to the last that exists.
    made: usize,
    /// Their permissions, with a use of their own.
    list: u32,
    /// The record that they are all below, and that of the last that exists.
    above: u32,
    at: u32,
    /// What was made is taken back, since this went wrong.
    failed: Option<XsError>,
}

impl Fill {
    /// What is missing on the way to a path, below the record `above`. Takes over one use of `list`.
    ///
    /// # Errors
    /// There is no memory; the use is the caller's.
    pub(in crate::store) fn new(
        tx: u32,
        gap: Gap<'_>,
        above: u32,
        value: &[u8],
        list: u32,
    ) -> Result<Self, NoMemory> {
        let (path, value) = (try_bytes(gap.path)?, try_bytes(value)?);
        Ok(Self { tx, path, value, made: gap.there, list, above, at: above, failed: None })
    }

    /// How many levels are not yet made.
    pub(in crate::store) fn missing(&self) -> usize {
        let rest = self.path.get(self.made..).filter(|_| self.failed.is_none()).unwrap_or(&[]);
        count(rest, b'/')
    }

    /// Bytes that it takes of the allocator.
    pub(in crate::store) fn taken(&self) -> usize {
        block_bytes(self.path.len()).saturating_add(block_bytes(self.value.len()))
    }

    /// Takes back what was made.
    pub(in crate::store) fn give_up(&mut self, error: XsError) {
        self.failed.get_or_insert(error);
    }

    fn go_on<P: Post>(&mut self, session: &mut Session<'_, P>) -> Progress {
        while self.failed.is_none() {
            let Some(name) = path::components(self.path.get(self.made..).unwrap_or(&[])).next()
            else {
                return Progress::Done;
            };
            if session.notifier.budget.is_over() {
                return Progress::More;
            }
            let there = self.made.saturating_add(name.len()).saturating_add(1);
            let is_last = there >= self.path.len();
            let value = if is_last { &*self.value } else { &[] };
            match session.make_level(self.at, name, value, self.list, is_last) {
                Ok(at) => (self.at, self.made) = (at, there),
                Err(error) => self.failed = session.spoiled::<()>(Err(error)).err(),
            }
            session.notifier.budget.spend(MAKE_WORK);
        }
        if let Some(error) = self.failed {
            let _spoiled = session.spoiled::<()>(Err(error));
        }
        while self.at != self.above {
            if session.notifier.budget.is_over() {
                return Progress::More;
            }
            self.at = session.unmake_level(self.at).unwrap_or(self.above);
            session.notifier.budget.spend(UNMAKE_WORK);
        }
        Progress::Done
    }
}

impl<P: Post> Session<'_, P> {
    /// Makes the node of a record below another one, which was accessed and has found it missing; the record.
    fn make_level(
        &mut self,
        above: u32,
        name: &[u8],
        value: &[u8],
        list: u32,
        is_last: bool,
    ) -> Result<u32, XsError> {
        let at = self.make_copied(above, name, value, list)?;
        let Some(tx) = self.tx.as_mut() else { return Err(XsError::EIO) };
        let Some(touched) = tx.get_mut(at) else { return Err(XsError::EIO) };
        let made = core::mem::replace(&mut touched.made, NIL);
        let before = self.transaction_bytes(at);
        if let Some(tx) = self.tx.as_mut() {
            tx.create(self.tree, at, made, list);
            if is_last {
                tx.announce(at, Class::Subtree);
            }
        }
        self.charge_transaction(at, before);
        Ok(at)
    }

    /// Takes back such a node, which has none below; the record above.
    fn unmake_level(&mut self, at: u32) -> Option<u32> {
        let before = self.transaction_bytes(at);
        let above = self.tx.as_mut().and_then(|tx| tx.unmake(self.tree, at));
        self.charge_transaction(at, before);
        above
    }
}

impl Open<'_> {
    /// Takes back a node that was made; the record above.
    fn unmake(&mut self, tree: &mut Tree, at: u32) -> Option<u32> {
        self.forget(tree, at, Class::Exact);
        let touched = self.get(at)?;
        let (above, bytes) = (touched.above()?, entry_bytes(tree.name_of(touched.name)));
        if let Some(now) = self.get_mut(above).and_then(|above| above.now.as_mut()) {
            now.children_bytes = now.children_bytes.saturating_sub(bytes);
        }
        Some(above)
    }
}

impl Store {
    /// Goes on with what a connection's request makes in a transaction.
    #[inline(never)]
    pub(in crate::store) fn go_on_filling(
        &mut self,
        conn: ConnId,
        mut fill: Fill,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        let progress = self
            .in_transaction(conn, fill.tx, budget, post, |session| fill.go_on(session))
            .unwrap_or(Progress::Done);
        let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
        if progress == Progress::More {
            state.work = Work::Fill(fill);
            return progress;
        }
        state.failed = fill.failed;
        self.tree.release_list(fill.list);
        Progress::Done
    }
}
