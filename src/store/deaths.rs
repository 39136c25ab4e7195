//! What nobody asked for: connections that are gone, domains that are gone, and announcements about domains.
//!
//! First what a connection had begun and what it had, then domain after domain: its nodes (watches are told), its
//! rights (nobody is told), the announcement of that, its account. All of it in slices, and nothing is collected:
//! the next thing to do is always found anew.

use super::events::{Announcement, Audience, Post, Work};
use super::removal::Removal;
use super::tree::ROOT;
use super::{Special, Store};
use crate::mem::{Budget, NIL, Progress};
use crate::proto::id::{ConnId, DomId};
use alloc::vec::Vec;

/// Units of work that taking a watch away takes.
const WATCH_WORK: u64 = 400;

/// Units of work that looking at a connection takes.
const CONN_WORK: u64 = 40;

/// How far the domain has come whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Cleanup {
    /// The subtree of its that is being removed.
    pub(super) removal: Option<Removal>,
    /// What is being announced, as far as not everybody knows yet.
    pub(super) news: Option<Announcement>,
    /// The first connection that may still have it as its target.
    targets: u32,
}

impl Store {
    /// Whether the domain was [forgotten](Self::forget) and something of it, or of an announcement about it, is
    /// still there: a request that names it has to wait until that is done.
    #[must_use]
    pub fn is_dying(&self, domid: DomId) -> bool {
        self.tree.domains.is_dying(domid)
    }

    /// Whether something is still to be done because of a domain: it is dying, or not everybody has been told what
    /// became of it.
    #[must_use]
    pub fn has_affairs(&self, domid: DomId) -> bool {
        self.tree.domains.get(domid).is_some_and(|domain| domain.affairs.is_listed)
    }

    /// The domain is gone: its nodes go with everything below them (watches are told), every right given
    /// to it goes (nobody is told), so does its account. All that happens in
    /// [`go_on_deaths`](Self::go_on_deaths), after what its connection had; guests do not know the domain any
    /// more from now on. Nothing happens for the privileged domain or one that is not tracked.
    pub fn forget(&mut self, domid: DomId) {
        if domid != self.privileged() {
            self.tree.domains.enlist(domid, |affairs| affairs.forget = true);
        }
    }

    /// Announces what became of a tracked domain: `@name/domid` for the watches that ask for domains, and if
    /// `plain`, the name alone for the others. If the domain is [dying](Self::is_dying), that comes after its
    /// nodes are gone. What the budget does not suffice for goes on in [`go_on_deaths`](Self::go_on_deaths). A domain
    /// that is not tracked any more is dying again until it is announced.
    pub fn announce(
        &mut self,
        special: Special,
        domid: DomId,
        plain: bool,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        self.will_announce(special, domid, plain);
        self.go_on_deaths(budget, post)
    }

    /// As [`announce`](Self::announce), but nobody is told yet.
    pub fn will_announce(&mut self, special: Special, domid: DomId, plain: bool) {
        if self.tree.domains.get(domid).is_none() {
            if self.tree.domains.learn(domid).is_err() {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            self.tree.domains.enlist(domid, |affairs| affairs.forget = true);
        }
        self.tree.domains.enlist(domid, |affairs| match special {
            Special::IntroduceDomain => affairs.introduce = true,
            Special::ReleaseDomain => {
                affairs.release = true;
                affairs.release_plain |= plain;
            }
        });
    }

    /// Whether [`go_on_deaths`](Self::go_on_deaths) has something to do.
    #[must_use]
    pub fn has_deaths(&self) -> bool {
        self.gone.is_some()
            || self.tree.domains.first_affair().is_some()
            || self.watches.is_untidy()
    }

    /// Goes on with everything that is nobody's request: connections that were [dropped](Self::disconnect), then
    /// domains that were [forgotten](Self::forget) and [announcements](Self::announce), in their order.
    pub fn go_on_deaths(&mut self, budget: &mut Budget, post: &mut impl Post) -> Progress {
        while let Some((first, last)) = self.gone {
            if self.go_on(first, budget, post) == Progress::More {
                return Progress::More;
            }
            let conn = self.conns.remove(&first);
            let next = conn.and_then(|conn| conn.gone.flatten());
            self.gone = next.map(|next| (next, last));
            if budget.is_over() {
                return Progress::More;
            }
        }
        while let Some(domid) = self.tree.domains.first_affair() {
            if self.go_on_affairs(domid, budget, post) == Progress::More {
                return Progress::More;
            }
            if budget.is_over() && self.has_deaths() {
                return Progress::More;
            }
        }
        self.watches.tidy(&mut self.tree, budget)
    }

    fn go_on_affairs(
        &mut self,
        domid: DomId,
        budget: &mut Budget,
        post: &mut impl Post,
    ) -> Progress {
        let forget = self.is_dying(domid);
        if forget && self.clean_up(domid, budget, post) == Progress::More {
            return Progress::More;
        }
        loop {
            // It stays where it is meanwhile, for a failure of the server in between.
            let (tree, mut notifier, cleanup) = self.parts(budget, post);
            if let Some(news) = &mut cleanup.news
                && notifier.go_on(tree, news) == Progress::More
            {
                return Progress::More;
            }
            self.cleanup.news = None;
            if budget.is_over() {
                return Progress::More;
            }
            let Some(domain) = self.tree.domains.get(domid) else { break };
            let affairs = &domain.affairs;
            let (special, audience) = if affairs.introduce {
                (Special::IntroduceDomain, Audience::Domids)
            } else if affairs.introduce_plain {
                (Special::IntroduceDomain, Audience::Plain)
            } else if affairs.release {
                (Special::ReleaseDomain, Audience::Domids)
            } else if affairs.release_plain {
                (Special::ReleaseDomain, Audience::Plain)
            } else {
                break;
            };
            self.ring_special(special, domid, audience, budget, post);
            // Only now, likewise. Who is told twice by that has the same event waiting, which swallows it.
            let Some(domain) = self.tree.domains.get_mut(domid) else { break };
            domain.affairs.told(special, audience);
        }
        self.tree.domains.settle();
        if forget {
            self.tree.domains.remove(domid);
        }
        self.cleanup = Cleanup::default();
        Progress::Done
    }

    fn ring_special(
        &mut self,
        special: Special,
        domid: DomId,
        audience: Audience,
        budget: &mut Budget,
        post: &mut impl Post,
    ) {
        let node = match special {
            Special::IntroduceDomain => self.tree.special[0],
            Special::ReleaseDomain => self.tree.special[1],
        };
        let list = self.tree.node(node).map_or(NIL, |node| node.list);
        let above = self.tree.node(ROOT).map_or(NIL, |root| root.list);
        let mut path = [0; SPECIAL_MAX];
        let len = special_path(special, (audience == Audience::Domids).then_some(domid), &mut path);
        let path = path.get(..len).unwrap_or(&[]);
        let (tree, mut notifier) = self.tree_and_notifier(budget, post);
        notifier.ring_special(tree, path, audience, &[list, above]);
        self.cleanup.news = self.rest.take();
    }

    /// Takes away what a domain has.
    fn clean_up(&mut self, domid: DomId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        loop {
            let (tree, mut notifier, cleanup) = self.parts(budget, post);
            if let Some(removal) = &mut cleanup.removal {
                if removal.go_on(tree, &mut notifier) == Progress::More {
                    return Progress::More;
                }
                self.cleanup.removal = None;
                if budget.is_over() {
                    return Progress::More;
                }
            }
            let Some(owned) = self.tree.first_owned(domid) else { break };
            self.take_away(owned, domid, budget);
            if budget.is_over() {
                return Progress::More;
            }
        }
        if self.tree.strip_some(domid, budget) == Progress::More {
            return Progress::More;
        }
        while let Some((handle, conn)) = self.conns.next_from(self.cleanup.targets) {
            self.cleanup.targets = handle.saturating_add(1);
            if let Some(conn) = self.conns.get_mut(&conn) {
                conn.party.target = conn.party.target.filter(|target| *target != domid);
            }
            budget.spend(CONN_WORK);
            if budget.is_over() {
                return Progress::More;
            }
        }
        Progress::Done
    }

    /// Begins to take away the topmost node above one, or it itself, that a domain owns.
    fn take_away(&mut self, owned: u32, domid: DomId, budget: &mut Budget) {
        let (top, levels, is_attached) = self.tree.topmost_owned(owned, domid);
        budget.spend(u64::from(levels).saturating_mul(LEVEL_WORK).saturating_add(LEVEL_WORK));
        if !is_attached {
            // Somebody else frees it already; its account is no matter any more.
            self.tree.disclaim(owned, domid);
        } else if top == ROOT || self.tree.special.contains(&top) {
            self.hand_back(top);
        } else {
            let mut path = Vec::new();
            let known = self.tree.path_to(top, &mut path).is_ok();
            if !known {
                self.dropped = self.dropped.saturating_add(1);
            }
            let removal = Removal::new(&mut self.tree, top);
            self.cleanup.removal = Some(removal.with_path(known.then_some(path)));
        }
    }

    /// Gives a node that cannot be removed to the privileged domain.
    fn hand_back(&mut self, node: u32) {
        let list = self.tree.node(node).map_or(NIL, |node| node.list);
        let list = self.tree.intern_for(list, self.privileged());
        // Where there is no memory for another list, nobody else has a right any more.
        let list = list.unwrap_or_else(|_| self.tree.private_list());
        // The privileged domain needs no record of what it owns, so no promise is used up.
        self.tree.give_back_node(node, list);
    }

    // Connections.

    /// Drops the connection with all it has: at once it gets no events any more and has no
    /// [`party`](Self::party), the rest goes in [`go_on_deaths`](Self::go_on_deaths). What a request of it had
    /// begun is brought to its end there, since others rely on the events.
    pub fn disconnect(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        if state.gone.is_some() {
            return;
        }
        state.gone = Some(None);
        state.reset = true;
        let last = self.gone.map(|(_, last)| last);
        if let Some(last) = last.and_then(|last| self.conns.get_mut(&last)) {
            last.gone = Some(Some(conn));
        }
        self.gone = Some(self.gone.map_or((conn, conn), |(first, _)| (first, conn)));
    }

    /// Goes on with what a request of a connection has begun. Until it is done the request has no reply, and the
    /// connection no other request.
    pub fn go_on(&mut self, conn: ConnId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
        if let Work::Make(_) = state.work {
            let progress = self.go_on_making(conn, budget, post);
            let rest = self.keep_rest(conn) || budget.is_over() && self.is_busy(conn);
            if rest || progress == Progress::More {
                return Progress::More;
            }
        }
        let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
        let mut work = match core::mem::take(&mut state.work) {
            Work::Fill(fill) => {
                if self.go_on_filling(conn, fill, budget, post) == Progress::More {
                    return Progress::More;
                }
                Work::Nothing
            }
            work @ (Work::Nothing | Work::Announce(_) | Work::Remove(_) | Work::Make(_)) => work,
        };
        let (tree, mut notifier) = self.tree_and_notifier(budget, post);
        let progress = match &mut work {
            Work::Nothing | Work::Make(_) | Work::Fill(_) => Progress::Done,
            Work::Announce(news) => notifier.go_on(tree, news),
            Work::Remove(removal) => removal.go_on(tree, &mut notifier),
        };
        let Some(state) = self.conns.get_mut(&conn) else { return progress };
        if progress == Progress::More {
            state.work = work;
            return progress;
        }
        if budget.is_over() && self.is_busy(conn) {
            return Progress::More;
        }
        let progress = self.go_on_endings(conn, budget, post);
        if self.keep_rest(conn) || progress == Progress::More {
            return Progress::More;
        }
        self.go_on_reset(conn, budget, post)
    }

    /// Keeps what was not told, for the connection whose request it is. Whether there was something.
    pub(super) fn keep_rest(&mut self, conn: ConnId) -> bool {
        let Some(rest) = self.rest.take() else { return false };
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.work = Work::Announce(rest);
        }
        true
    }

    /// Drops a connection's watches and transactions, if that is to be.
    fn go_on_reset(&mut self, conn: ConnId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        if self.conns.get(&conn).is_some_and(|conn| conn.reset) {
            self.abandon_request(conn);
        }
        while let Some(state) = self.conns.get(&conn).filter(|conn| conn.reset) {
            let first = state.watches.0;
            if first == NIL {
                break;
            }
            if budget.is_over() {
                return Progress::More;
            }
            self.remove_watch(conn, first, budget);
            budget.spend(WATCH_WORK);
        }
        let Some(state) = self.conns.get_mut(&conn) else { return Progress::Done };
        if !core::mem::take(&mut state.reset) {
            return Progress::Done;
        }
        // Nobody gets that answer any more.
        state.failed = None;
        self.close_transactions(conn);
        self.go_on_endings(conn, budget, post)
    }

    /// Whether a connection has something to [go on](Self::go_on) with. A request that was refused may have, too: a
    /// transaction that could not commit is given up in slices.
    #[must_use]
    pub fn is_busy(&self, conn: ConnId) -> bool {
        let state = self.conns.get(&conn);
        state.is_some_and(|conn| conn.reset || !matches!(conn.work, Work::Nothing))
            || self.has_endings(conn)
    }

    /// Drops the connection's watches and transactions, after what a request of it has begun. With
    /// [`More`](Progress::More) it goes on in [`go_on`](Self::go_on).
    pub fn reset(&mut self, conn: ConnId, budget: &mut Budget, post: &mut impl Post) -> Progress {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.reset = true;
        }
        self.go_on(conn, budget, post)
    }

    /// Whether nothing is left to be done of what was begun.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.has_deaths() && !self.conns.iter().any(|(id, _)| self.is_busy(id))
    }

    /// Brings everything to its end that was begun: after it nobody is busy and nobody is dying.
    pub fn finish(&mut self, post: &mut impl Post) {
        let _done = self.go_on_deaths(&mut Budget::endless(), post);
        let mut at = 0;
        while let Some((handle, conn)) = self.conns.next_from(at) {
            let _done = self.go_on(conn, &mut Budget::endless(), post);
            at = handle.saturating_add(1);
        }
    }
}

/// Units of work that a level takes on the way up.
const LEVEL_WORK: u64 = 40;

/// The longest special name with a domid.
const SPECIAL_MAX: usize = 32;

/// Writes a special name, with a slash and a domid if there is one; how long it is.
fn special_path(special: Special, domid: Option<DomId>, to: &mut [u8; SPECIAL_MAX]) -> usize {
    use core::fmt::Write;
    let mut text = heapless::String::<SPECIAL_MAX>::new();
    let _fits = match domid {
        Some(domid) => write!(text, "{}/{domid}", special.name()),
        None => write!(text, "{}", special.name()),
    };
    if let Some(to) = to.get_mut(..text.len()) {
        to.copy_from_slice(text.as_bytes());
    }
    text.len()
}
