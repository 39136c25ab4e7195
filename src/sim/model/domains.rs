//! Domains that come, shut down and go.

use super::output::Output;
use super::text::RESERVED;
use super::tree::strip;
use super::{Conn, Domain, Event, FEATURES, Model, PRIVILEGED, state_of};
use crate::proto::id::{DomId, EvtchnPort};
use crate::server::platform::{DomainState, Identity};
use crate::sim::journal::{PageId, Seen};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

impl Model {
    /// The domain that the server was started for.
    pub(super) fn first_domain(&mut self, domid: DomId, page: Option<PageId>, rest: &[Seen]) {
        let port = rest.iter().find_map(|seen| match seen {
            Seen::Bound(_, port) => *port,
            _ => None,
        });
        if let (Some(page), Some(port)) = (page, port) {
            self.connect(domid.0, page, port);
        }
    }

    fn connect(&mut self, domid: u16, page: PageId, port: EvtchnPort) {
        let id = self.next_conn;
        self.next_conn += 1;
        let domain = self.domains.get_mut(&domid).expect("it is tracked");
        domain.conn = Some(id);
        let conn = Conn {
            domid,
            page,
            port: Some(port),
            features: domain.features,
            target: None,
            live: true,
            inbox: Vec::new(),
            out: Output::default(),
            watches: Vec::new(),
            txs: BTreeMap::new(),
            last_tx: 0,
            waiting: None,
            starts: false,
        };
        self.conns.insert(id, conn);
    }

    /// Whether a domain is known, after asking the hypervisor if need be. A guest makes the server remember
    /// only domains that certainly exist.
    pub(super) fn learn(
        &mut self,
        domid: u16,
        answers: &[Seen],
        guess: bool,
    ) -> Result<bool, String> {
        if self.domains.contains_key(&domid) {
            return Ok(true);
        }
        if domid >= RESERVED {
            return Ok(false);
        }
        let identity = match state_of(answers, domid) {
            // Guests do not wait, and do not know it any more.
            None if !guess && self.dying.contains(&domid) => return Ok(false),
            None => return Err(format!("nobody asked whether domain {domid} exists")),
            Some(DomainState::Exists { identity, .. }) => identity,
            Some(DomainState::Unknown) if guess => Identity::Unknown,
            Some(DomainState::Unknown | DomainState::Gone) => return Ok(false),
        };
        self.track(domid, identity);
        Ok(true)
    }

    fn track(&mut self, domid: u16, identity: Identity) {
        let limits = self.setting.limits;
        let domain =
            Domain { identity, features: FEATURES, conn: None, shutdown_told: false, limits };
        self.domains.insert(domid, domain);
    }

    fn is_replaced(&self, domid: u16, now: Identity) -> bool {
        let known = self.domains.get(&domid);
        known.is_some_and(|known| known.identity.is_replaced_by(now, known.conn.is_some()))
    }

    /// INTRODUCE. The first part are events, the second is the result.
    pub(super) fn introduce(
        &mut self,
        domid: u16,
        port: u32,
        answers: &[Seen],
        fails: bool,
    ) -> Result<(Vec<Event>, Result<(), &'static str>), String> {
        if port == 0 || domid >= RESERVED {
            return Ok((Vec::new(), Err("EINVAL")));
        }
        let identity = match state_of(answers, domid) {
            Some(DomainState::Exists { identity, .. }) => identity,
            _ => Identity::Unknown,
        };
        let mut events = Vec::new();
        if self.is_replaced(domid, identity) {
            events = self.destroy(domid);
        }
        let mapped = answers.iter().find_map(|seen| match seen {
            Seen::Mapped(DomId(other), page) if *other == domid => Some(*page),
            _ => None,
        });
        // The last one: the new port may be the old one, which has to be closed before.
        let bound = answers.iter().rev().find_map(|seen| match seen {
            Seen::Bound(DomId(other), port) if *other == domid => Some(*port),
            _ => None,
        });
        let known = self.domains.get(&domid).and_then(|domain| domain.conn);
        let is_known = known.is_some();
        if let Some(id) = known {
            let conn = self.conns.get_mut(&id).expect("an introduced domain has a connection");
            conn.port = if conn.live { bound.flatten() } else { None };
            if fails && !answers.contains(&Seen::Emptied(conn.page)) {
                // The old port is closed, and that is all: whoever gets EIO introduces the domain again.
                return Ok((events, Ok(())));
            }
            if conn.live && bound.is_none() {
                return Err(format!("domain {domid}: its new port was not bound"));
            }
        } else {
            let Some(page) = mapped.ok_or("the ring was not mapped")? else {
                return Ok((events, Err("EINVAL")));
            };
            let Some(port) = bound.ok_or("the port was not bound")? else {
                return Ok((events, Err("EINVAL")));
            };
            if !self.domains.contains_key(&domid) {
                self.track(domid, identity);
            }
            self.connect(domid, page, port);
            if domid != PRIVILEGED {
                events.extend(self.told_special("@introduceDomain", domid, true));
            }
        }
        let id = self.domains[&domid].conn.expect("it has one now");
        let page = self.conns[&id].page;
        self.reset(id);
        if !answers.contains(&Seen::Emptied(page)) {
            let conn = self.conns.get_mut(&id).filter(|conn| is_known && conn.live);
            // What it has may take turns to go. Only then comes the reply.
            conn.ok_or_else(|| format!("domain {domid}: its ring was not emptied"))?.starts = true;
        }
        Ok((events, Ok(())))
    }

    /// RELEASE, and death.
    pub(super) fn destroy(&mut self, domid: u16) -> Vec<Event> {
        if domid == PRIVILEGED {
            return Vec::new();
        }
        let Some(domain) = self.domains.remove(&domid) else { return Vec::new() };
        self.dying.insert(domid);
        if let Some(id) = domain.conn {
            self.conns.remove(&id);
        }
        let mut changes = Vec::new();
        // In the order of their paths; what went with its parent is gone.
        let owned: Vec<Vec<u8>> = self.tree.nodes.keys().cloned().collect();
        for path in owned {
            if self.tree.nodes.get(&path).is_none_or(|node| node.perms[0].domid != domid) {
                continue;
            }
            if path == b"/" || path.starts_with(b"@") {
                self.tree.change(&path, |node| node.perms[0].domid = PRIVILEGED);
            } else {
                self.tree.remove_subtree(&path, true, &mut changes);
            }
        }
        let mut events = self.told(&changes);
        // The order of the subtrees is the server's business.
        let group = self.tree.next();
        for event in &mut events {
            (event.group, event.news) = (group, true);
        }
        for node in self.tree.nodes.values_mut() {
            strip(&mut node.perms, domid);
        }
        for conn in self.conns.values_mut() {
            conn.target = conn.target.filter(|target| *target != domid);
            for tx in conn.txs.values_mut() {
                tx.strip(domid);
            }
        }
        if domain.conn.is_some() {
            events.extend(self.told_special("@releaseDomain", domid, true));
        }
        events
    }

    /// The hypervisor told what changed, one domain after the other.
    pub(super) fn scan<'a>(&mut self, seen: &'a [Seen]) -> Result<&'a [Seen], String> {
        let is_end = |seen: &Seen| *seen == Seen::ScanEnd;
        let states_of = |seen: &[Seen]| {
            let states = seen.iter().filter_map(|seen| match seen {
                Seen::Changed(domid, state) => Some((domid.0, *state)),
                _ => None,
            });
            states.collect::<Vec<_>>()
        };
        let Some(end) = seen.iter().position(is_end) else {
            // Clearing away what is dead takes turns: the scan goes on in the next pass.
            let is_scan = |seen: &&Seen| {
                matches!(
                    seen,
                    Seen::Changed(..) | Seen::State(..) | Seen::Unbound(_) | Seen::Memory(..)
                )
            };
            let (part, rest) = seen.split_at(seen.iter().take_while(is_scan).count());
            self.changed(states_of(part), part);
            return Ok(rest);
        };
        let (scan, rest) = seen.split_at(end);
        // The last shutdown is told of when the list is over.
        let after = rest[1..].iter().take_while(|seen| matches!(seen, Seen::Memory(..))).count();
        let answers = &seen[..=end + after];
        self.changed(states_of(scan), answers);
        self.all_looked_at(answers);
        Ok(rest)
    }

    /// Whether the look at all domains goes on with this one.
    pub(super) fn goes_on_with(&self, domid: u16) -> bool {
        let next = self.looking.next;
        next.and_then(|next| self.domains.range(next..).next())
            .is_some_and(|(next, _)| *next == domid)
    }

    /// The hypervisor has to be asked about every domain, from where the last turn came to on.
    pub(super) fn scan_all<'a>(
        &mut self,
        seen: &'a [Seen],
        has_news: bool,
    ) -> Result<&'a [Seen], String> {
        let mut states = Vec::new();
        let mut tracked = self.domains.range(self.looking.next.unwrap_or(0)..).map(|(id, _)| id);
        let mut end = 0;
        let mut wanted = tracked.next();
        let is_part = |seen: &&Seen| {
            // A new server looks at all before anything else.
            !has_news || matches!(seen, Seen::State(..) | Seen::Memory(..) | Seen::Unbound(_))
        };
        for (place, seen) in seen.iter().take_while(is_part).enumerate() {
            match (wanted, seen) {
                (Some(domid), Seen::State(DomId(asked), state)) if domid == asked => {
                    states.push((*asked, *state));
                    wanted = tracked.next();
                    end = place + 1;
                }
                (Some(_), _) => {}
                (None, _) => break,
            }
        }
        self.looking.next = wanted.copied();
        // What happened to the last one counts, too.
        let is_more = |seen: &&Seen| matches!(seen, Seen::Memory(..) | Seen::Unbound(_));
        let end = end + seen[end..].iter().take_while(is_more).count();
        // Without news nobody has shut down, as far as can be seen.
        states.retain(|(_, state)| has_news || *state != DomainState::Unknown);
        self.changed(states, &seen[..end]);
        if self.looking.next.is_none() {
            self.all_looked_at(&seen[..end]);
        }
        Ok(&seen[end..])
    }

    /// What became of domains.
    fn changed(&mut self, states: Vec<(u16, DomainState)>, answers: &[Seen]) {
        let unsure = is_short(answers);
        for (domid, state) in states {
            let Some(domain) = self.domains.get(&domid) else { continue };
            let introduced = domain.conn.is_some();
            match state {
                DomainState::Unknown if introduced && domid != PRIVILEGED => {
                    let before = self.looking.pending.replace(domid);
                    self.tell_shutdown(before, false, unsure);
                }
                DomainState::Unknown => {}
                DomainState::Exists { shutdown, identity, .. }
                    if !self.is_replaced(domid, identity) =>
                {
                    let Some(domain) = self.domains.get_mut(&domid) else { continue };
                    if identity != Identity::Unknown {
                        domain.identity = identity;
                    }
                    if shutdown && introduced && !domain.shutdown_told {
                        domain.shutdown_told = true;
                        let before = self.looking.pending.replace(domid);
                        self.tell_shutdown(before, false, unsure);
                    }
                }
                DomainState::Exists { .. } | DomainState::Gone => {
                    if introduced {
                        let before = self.looking.pending.take();
                        self.tell_shutdown(before, false, unsure);
                    }
                    let events = self.destroy(domid);
                    self.queue_events(events, None, unsure, 0);
                }
            }
        }
    }

    /// The look at domains is over.
    fn all_looked_at(&mut self, answers: &[Seen]) {
        let last = self.looking.pending.take();
        self.tell_shutdown(last, true, is_short(answers));
    }

    fn tell_shutdown(&mut self, domid: Option<u16>, plain: bool, unsure: bool) {
        if let Some(domid) = domid {
            let events = self.told_special("@releaseDomain", domid, plain);
            self.queue_events(events, None, unsure, 0);
        }
    }
}

/// Whether memory was refused.
fn is_short(answers: &[Seen]) -> bool {
    answers.iter().any(|seen| matches!(seen, Seen::Memory(_, false)))
}
