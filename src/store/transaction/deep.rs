//! Requests in a transaction about a path of many levels. The way there is walked in slices, before the request itself,
//! which is asked again until that is done.
//!
//! First the records of the way are made. Then, in one go, is looked whether all that was found on the way outside is
//! still so, since others have had their turns; from that moment on the node that counts is accessed, so that any change
//! of it is a conflict. Then the missing ones are accessed, and the request goes on from there.

use super::session::Way;
use super::{Base, Now, Open, Places};
use crate::mem::{NIL, Progress};
use crate::proto::error::XsError;
use crate::store::events::Post;
use crate::store::path;
use crate::store::session::{Gap, Session, Sight, Spot};
use crate::store::tree::{ROOT, Tree};

/// Units of work that making a record takes, finding one, looking whether it still holds, and accessing one.
const STEP_WORK: u64 = 500;
const KNOWN_WORK: u64 = 160;
const HOLDS_WORK: u64 = 30;
const ACCESS_WORK: u64 = 220;

/// So often the way is walked again because others have changed something on it. Then it is walked in one go.
const TRIES: u8 = 3;

/// How far the way to a path is.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct WayAhead {
    stage: Stage,
    tries: u8,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Begin,
    /// Records are made, down to this one.
    Down {
        way: Way,
        /// How many bytes of the path lead there.
        there: usize,
        /// It and all above were there before.
        is_known: bool,
    },
    /// All are there.
    Made(Way),
    /// Missing ones are accessed, up to the nearest that exists.
    Up {
        way: Way,
        at: u32,
        level: u32,
        there: usize,
    },
}

impl WayAhead {
    /// Nothing was done yet.
    pub(in crate::store) const BEGIN: Self = Self { stage: Stage::Begin, tries: 0 };
}

impl<P: Post> Session<'_, P> {
    /// As [`walk_copied`](Self::walk_copied), for a path of many levels. `None` if the budget did not reach: then it is
    /// called again, with the same path.
    pub(in crate::store) fn walk_deep<'a>(
        &mut self,
        path: &'a [u8],
        ahead: &mut WayAhead,
    ) -> Result<Option<Spot<'a>>, XsError> {
        loop {
            match ahead.stage {
                Stage::Begin => {
                    let at = self.root()?;
                    let way = Way { at, levels: 0, open: u32::MAX };
                    ahead.stage = Stage::Down { way, there: 0, is_known: true };
                }
                Stage::Down { way, there, is_known } => {
                    let mut down = (way, there, is_known);
                    let progress = self.go_down(path, &mut down, ahead.tries >= TRIES)?;
                    let (way, there, is_known) = down;
                    if progress == Progress::More {
                        ahead.stage = Stage::Down { way, there, is_known };
                        return Ok(None);
                    }
                    ahead.stage = Stage::Made(way);
                }
                Stage::Made(way) => {
                    let Some(open) = self.tx.as_ref() else { return Err(XsError::EIO) };
                    let holds = open.places.still_holds(self.tree, way);
                    let levels = u64::from(way.levels);
                    self.notifier.budget.spend(levels.saturating_mul(HOLDS_WORK));
                    let Some(nearest) = holds else {
                        ahead.tries = ahead.tries.saturating_add(1);
                        ahead.stage = Stage::Begin;
                        continue;
                    };
                    // What comes later is a conflict. It is accessed when its turn comes.
                    if let Some((at, live)) = nearest
                        && let Some(tx) = self.tx.as_mut()
                    {
                        tx.take_down(self.tree, at, live);
                    }
                    ahead.tries = 0;
                    let (at, level) = (way.at, way.levels);
                    ahead.stage = Stage::Up { way, at, level, there: path.len() };
                }
                Stage::Up { way, at, level, there } => {
                    let mut up = (at, level, there);
                    let spot = self.go_up(path, way, &mut up);
                    let (at, level, there) = up;
                    ahead.stage = Stage::Up { way, at, level, there };
                    return spot.inspect_err(|_| self.prune(way.at));
                }
            }
            if self.notifier.budget.is_over() && ahead.tries < TRIES {
                return Ok(None);
            }
        }
    }

    /// Makes the records of the way, or finds them.
    fn go_down(
        &mut self,
        path: &[u8],
        (way, there, is_known): &mut (Way, usize, bool),
        at_once: bool,
    ) -> Result<Progress, XsError> {
        let rest = path.get(*there..).unwrap_or(&[]);
        for name in path::components(rest) {
            if self.notifier.budget.is_over() && !at_once {
                return Ok(Progress::More);
            }
            let Some(tx) = self.tx.as_ref() else { return Err(XsError::EIO) };
            let Some(above) = tx.get(way.at) else { return Err(XsError::EIO) };
            if way.open == u32::MAX && above.hides() {
                way.open = way.levels;
            }
            let handle = self.tree.find_name(name);
            let live = match handle {
                Some(handle) if above.seen != NIL => self.tree.child_named(above.seen, handle),
                _ => None,
            };
            let known =
                handle.filter(|_| *is_known).and_then(|handle| tx.places.child(way.at, handle));
            self.notifier.budget.spend(if known.is_some() { KNOWN_WORK } else { STEP_WORK });
            way.at = match known {
                Some(known) => known,
                None => {
                    *is_known = false;
                    self.step(way.at, name).inspect_err(|_| self.prune(way.at))?
                }
            };
            way.levels = way.levels.saturating_add(1);
            *there = there.saturating_add(name.len()).saturating_add(1);
            if let Some(touched) = self.tx.as_mut().and_then(|tx| tx.get_mut(way.at)) {
                touched.seen = live.unwrap_or(NIL);
            }
        }
        Ok(Progress::Done)
    }

    /// Accesses one after the other, up to one that exists.
    fn go_up<'a>(
        &mut self,
        path: &'a [u8],
        way: Way,
        (at, level, there): &mut (u32, u32, usize),
    ) -> Result<Option<Spot<'a>>, XsError> {
        loop {
            let exists = self.access(*at, *level > way.open)?;
            self.notifier.budget.spend(ACCESS_WORK);
            if exists {
                let found = Sight::Copied(*at);
                return Ok(Some(if *at == way.at {
                    Spot::There(found)
                } else {
                    Spot::Missing(Gap { above: found, path, there: *there })
                }));
            }
            let Some(open) = self.tx.as_ref() else { return Err(XsError::EIO) };
            let Some(touched) = open.get(*at) else { return Err(XsError::EIO) };
            let name = self.tree.name_of(touched.name).len();
            *at = touched.above().ok_or(XsError::EIO)?;
            *there = there.saturating_sub(name.saturating_add(1));
            *level = level.saturating_sub(1);
            if self.notifier.budget.is_over() {
                return Ok(None);
            }
        }
    }
}

impl Places {
    /// `None` if a walk would find something else outside, on the way to a record, than what was found there. Otherwise
    /// the nearest record, from the end of the way, of a node that exists, with that, if it was not accessed before.
    fn still_holds(&self, tree: &Tree, way: Way) -> Option<Option<(u32, u32)>> {
        let (mut at, mut level) = (way.at, way.levels);
        let mut touched = self.get(at)?;
        let mut nearest = None;
        let mut is_found = false;
        loop {
            if !is_found {
                let live = if level > way.open { NIL } else { touched.seen };
                is_found = if touched.accessed { touched.now.is_some() } else { live != NIL };
                nearest = (is_found && !touched.accessed).then_some((at, live));
            }
            let Some((handle, above)) =
                touched.above().and_then(|above| self.get(above).map(|record| (above, record)))
            else {
                return (touched.seen == ROOT).then_some(nearest);
            };
            let fits = match tree.node(touched.seen) {
                Some(node) => node.parent == above.seen && node.name == touched.name,
                None if touched.seen != NIL => false,
                None => above.seen == NIL || tree.child_named(above.seen, touched.name).is_none(),
            };
            if !fits {
                return None;
            }
            (at, touched, level) = (handle, above, level.saturating_sub(1));
        }
    }
}

impl Open<'_> {
    /// What the transaction sees at a path from now on, if it accesses it.
    pub(super) fn take_down(&mut self, tree: &mut Tree, at: u32, live: u32) {
        let Some(node) = tree.node(live) else { return };
        let (list, generation) = (node.list, node.generation());
        let children_bytes = tree.family(node).bytes;
        let Some(touched) = self.places.get_mut(at) else { return };
        if touched.base.is_none() {
            touched.base = Some(Base { node: live, list, generation });
            touched.now = Some(Now { list, children_bytes, generation });
            tree.retain_uses(list, 2);
        }
    }
}
