//! The removal of a subtree: at once it is out of everybody's sight, then it is freed in slices, children first, and the
//! watches are told: those at a node below of that node, and last those at or above the top of the top.

use super::events::{Announcement, Notifier, Post};
use super::path;
use super::tree::Tree;
use super::watch::Class;
use crate::mem::{NIL, NoMemory, Progress, TryVec, try_bytes};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Units of work that one level takes on the way down to the next node.
const LEVEL_WORK: u64 = 150;

/// Units of work that taking a single node away takes.
const LEAF_WORK: u64 = 600;

/// A removal that was begun.
#[derive(Debug)]
pub(super) struct Removal {
    /// The node's path as it was; nothing if there was no memory for it, and then nobody is told.
    pub(super) path: Option<Box<[u8]>>,
    pub(super) rest: Rest,
}

/// What is left of it.
#[derive(Debug)]
pub(super) struct Rest {
    /// The node; it is in no tree any more.
    top: u32,
    /// The permissions of the node above it, with a use of their own.
    above: u32,
    /// Everything is gone but the node itself, and this was told.
    is_told: bool,
    /// What was told last, as far as not everybody knows yet.
    pub(super) news: Option<Announcement>,
}

impl Removal {
    /// Takes a node out of the tree, with everything below.
    pub(super) fn new(tree: &mut Tree, top: u32) -> Self {
        let parent = tree.node(top).map_or(NIL, |node| node.parent);
        let above = tree.node(parent).map_or(NIL, |node| node.list);
        tree.retain_list(above);
        tree.detach(top);
        Self { path: None, rest: Rest { top, above, is_told: false, news: None } }
    }

    /// The same, with the path as nobody else knows it.
    pub(super) fn with_path(mut self, path: Option<Vec<u8>>) -> Self {
        self.path = path.and_then(|path| try_bytes(&path).ok());
        self
    }

    /// As far as the budget reaches, for the request that knows the path: then it keeps a copy.
    pub(super) fn start<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        path: &[u8],
    ) -> Progress {
        let progress = self.rest.work(tree, notifier, Some(path));
        if progress == Progress::More {
            self.path = try_bytes(path).ok();
            if self.path.is_none() {
                *notifier.dropped = notifier.dropped.saturating_add(1);
            }
        }
        progress
    }

    /// Goes on, as far as the budget reaches.
    pub(super) fn go_on<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
    ) -> Progress {
        let Self { path, rest } = self;
        if let Some(news) = &mut rest.news {
            if notifier.go_on(tree, news) == Progress::More {
                return Progress::More;
            }
            rest.news = None;
            if notifier.budget.is_over() {
                return Progress::More;
            }
        }
        rest.work(tree, notifier, path.as_deref())
    }
}

impl Rest {
    fn work<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        path: Option<&[u8]>,
    ) -> Progress {
        let has_children = tree.node(self.top).is_some_and(|node| node.has_children());
        if has_children
            && let Some(path) = path
            && notifier.any_below(tree, path)
            && self.tell_below(tree, notifier, path) == Progress::More
        {
            return Progress::More;
        }
        if tree.free_below(self.top, notifier.budget) == Progress::More {
            return Progress::More;
        }
        if !self.is_told
            && let Some(path) = path
        {
            let list = tree.node(self.top).map_or(NIL, |node| node.list);
            notifier.ring(tree, path, Class::Subtree, &[list, self.above]);
            self.is_told = true;
            // Moved only if there is one, since it is large.
            if notifier.rest.is_some() {
                self.news = notifier.rest.take();
                return Progress::More;
            }
        }
        let _done = tree.free_some(self.top, notifier.budget);
        tree.release_list(core::mem::replace(&mut self.above, NIL));
        Progress::Done
    }

    /// Removes what is below one by one, and tells who watches there.
    fn tell_below<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        path: &[u8],
    ) -> Progress {
        let mut here = Vec::new();
        let told = here.try_extend(path).and_then(|()| self.walk(tree, notifier, &mut here));
        told.unwrap_or_else(|NoMemory| {
            // Without its path nobody can be told of a node.
            *notifier.dropped = notifier.dropped.saturating_add(1);
            Progress::Done
        })
    }

    fn walk<P: Post>(
        &mut self,
        tree: &mut Tree,
        notifier: &mut Notifier<'_, P>,
        here: &mut Vec<u8>,
    ) -> Result<Progress, NoMemory> {
        let mut at = self.top;
        loop {
            while let Some((child, name)) = tree.first_child(at) {
                at = child;
                here.try_push(b'/')?;
                here.try_extend(tree.name_of(name))?;
                notifier.budget.spend(LEVEL_WORK);
            }
            if at == self.top {
                return Ok(Progress::Done);
            }
            let Some(node) = tree.node(at) else { return Ok(Progress::Done) };
            let (parent, list) = (node.parent, node.list);
            let above = tree.node(parent).map_or(NIL, |node| node.list);
            notifier.ring(tree, here, Class::Exact, &[list, above]);
            self.news = notifier.rest.take();
            let up = path::parent(here).map_or(0, <[u8]>::len);
            here.truncate(up);
            tree.take_leaf(at);
            notifier.budget.spend(LEAF_WORK);
            at = parent;
            if self.news.is_some() || notifier.budget.is_over() {
                return Ok(Progress::More);
            }
        }
    }
}
