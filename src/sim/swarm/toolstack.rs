//! What happens to domains, and what the toolstack does about it.

use super::agent::{Agent, Then};
use super::run::Run;
use super::words::Speech;
use crate::proto::id::DomId;
use crate::proto::wire::Kind;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

impl Run {
    /// Something happens to some domain.
    pub(super) fn toolstack(&mut self) {
        let domid =
            1 + u16::try_from(self.random.below(u32::from(self.options.guests))).unwrap_or(0);
        let name = format!("{domid}");
        let world = self.simulation.world.clone();
        if !world.exists(DomId(domid)) {
            // Without unique ids nobody can tell it from its predecessor, unless that is forgotten.
            if self.options.tells_changes || !self.model.knows(domid) {
                self.birth(domid);
            }
            return;
        }
        match self.random.below(14) {
            0..=2 => self.death(domid),
            3 if self.options.tells_changes => {
                self.death(domid);
                self.birth(domid);
            }
            4 | 5 => {
                self.freeze(domid);
                self.order(Kind::Release, &[&name], Then::Settled(domid));
                if self.random.one_in(2) {
                    self.introduce(domid);
                }
            }
            6 | 7 => {
                self.freeze(domid);
                self.introduce(domid);
            }
            8 => world.set_shutdown(DomId(domid), true),
            9 => {
                world.set_shutdown(DomId(domid), false);
                self.order(Kind::Resume, &[&name], Then::Nothing);
            }
            10 | 11 => {
                let target = format!("{}", self.random.below(u32::from(self.options.guests) + 1));
                self.order(Kind::SetTarget, &[&name, &target], Then::Nothing);
            }
            12 => world.announce_change(),
            _ => {
                let granted = self.random.one_in(2);
                world.set_granted(DomId(domid), granted);
            }
        }
    }

    /// Has the first domain send a request.
    pub(super) fn order(&mut self, kind: Kind, words: &[&str], then: Then) {
        if let Then::Settled(domid) = then {
            *self.pending.entry(domid).or_default() += 1;
        }
        self.dom0().say(&Speech::new(kind, words), then);
    }

    fn freeze(&mut self, domid: u16) {
        if let Some(agent) = self.agents.get_mut(&domid) {
            agent.freeze();
        }
    }

    /// The hypervisor makes a domain, and the toolstack what belongs to it.
    fn birth(&mut self, domid: u16) {
        self.simulation.world.create(DomId(domid));
        let client = self.simulation.client(DomId(domid));
        let hostile = domid <= self.options.hostile;
        let agent = Agent::new(domid, client, hostile);
        self.set_honest(agent.page(), !hostile);
        self.agents.insert(domid, agent);
        let home = format!("/local/domain/{domid}");
        let owner = format!("n{domid}");
        if !self.random.one_in(5) {
            self.order(Kind::Mkdir, &[&home], Then::Nothing);
            self.order(Kind::SetPerms, &[&home, &owner], Then::Nothing);
        }
        if self.random.one_in(8) {
            let mask = self.random.pick(&["2", "6", "10", "14"]);
            self.order(Kind::SetFeature, &[&format!("{domid}"), mask], Then::Nothing);
        }
        if !self.random.one_in(8) {
            self.introduce(domid);
        }
    }

    pub(super) fn introduce(&mut self, domid: u16) {
        let port = match self.random.below(12) {
            0 => 0,
            1 => 77,
            _ => self.simulation.world.offer(DomId(domid)),
        };
        let words = [format!("{domid}"), String::from("1"), format!("{port}")];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.order(Kind::Introduce, &words, Then::Settled(domid));
    }

    /// The hypervisor destroys a domain; the toolstack may tell, too.
    pub(super) fn death(&mut self, domid: u16) {
        self.simulation.world.destroy(DomId(domid));
        self.agents.remove(&domid);
        if !self.options.tells_states || self.random.one_in(3) {
            self.order(Kind::Release, &[&format!("{domid}")], Then::Nothing);
        }
    }

    /// The toolstack got answers.
    pub(super) fn react(&mut self, answered: &[Then]) {
        for then in answered {
            let Then::Settled(domid) = then else { continue };
            let pending = self.pending.entry(*domid).or_default();
            *pending = pending.saturating_sub(1);
            if *pending > 0 {
                continue;
            }
            if let Some(agent) = self.agents.get_mut(domid).filter(|agent| agent.frozen)
                && self.model.serves(agent.page())
            {
                agent.thaw();
            }
        }
    }
}
