//! One run: chaos, then calm in which everything must come to rest, then the end of everything.

use super::agent::{Agent, Then};
use super::options::Options;
use super::words::Speech;
use crate::proto::id::DomId;
use crate::proto::ring::Word;
use crate::proto::wire::Kind;
use crate::server::Pass;
use crate::sim::Simulation;
use crate::sim::journal::{Journal, PageId, Seen};
use crate::sim::memory::Memory;
use crate::sim::model::{Model, show};
use crate::sim::random::Random;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// How many rounds all honest clients have, once the faults are over, to get what they are due.
const CALM_ROUNDS: usize = 20_000;

/// How many passes the server may take over what lies in all rings.
const SETTLE_PASSES: usize = 500;

/// How many entries of the journal a report shows.
const SHOWN: usize = 60;

/// The most possibilities of what happened that are followed.
const POSSIBLE_MAX: usize = 1024;

/// Within so many calls of the world the server fails when it is to.
const FAILS_WITHIN: u32 = 40;

/// Pages of the server's domain at the start, and the most: more than any of these runs needs, since the model does not
/// know what fits.
const PAGES: (usize, usize) = (1500, 15_800);

/// What is wrong, or nothing.
pub(super) type Outcome = Result<(), String>;

/// A run in progress.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) simulation: Simulation,
    pub(super) model: Model,
    /// What else may have happened, after a failure of the server.
    others: Vec<Model>,
    /// The server has failed since the last judgement.
    failed: bool,
    /// When it is to fail, if it is; of its own, so that the rest of the run stays what it is.
    failures: Option<Random>,
    pub(super) agents: BTreeMap<u16, Agent>,
    /// How many requests of the toolstack about the rings of each domain have no answer yet.
    pub(super) pending: BTreeMap<u16, u32>,
    journal: Journal,
    /// A hash of everything that passed.
    pub(super) trace: u64,
    /// A block was refused to the server: from then on the model does not know what it does.
    pub(super) blind: bool,
    /// The last entries, if somebody wants to read them.
    pub(super) last: Option<VecDeque<Seen>>,
}

impl Run {
    /// A run; in one with `failures` the server fails now and then in the middle of its work.
    pub(super) fn new(seed: u64, failures: bool, tell: bool) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let mut options = Options::draw(&mut random);
        let mut failures = failures.then(|| Random::new(!seed));
        if let Some(failures) = &mut failures {
            options.fail(failures);
        }
        let mut model = Model::new(options.setting.clone());
        let (simulation, client) =
            Simulation::start_watched(&options.command_line(), |world, page| {
                world.seed(random.next_u64());
                world.set_memory(Memory::new(PAGES.0, PAGES.1));
                world.journal().open();
                world.set_tells_changes(options.tells_changes);
                world.set_tells_states(options.tells_states);
                // Without a draw of its own, so that the other runs stay what they are.
                world.set_shows_ends(options.guests % 2 == 0);
                model.set_honest(page, true);
            });
        let journal = simulation.world.journal();
        let mut dom0 = Agent::new(0, client, false);
        dom0.start_over();
        let mut run = Self {
            options,
            random,
            simulation,
            model,
            others: Vec::new(),
            failed: false,
            failures,
            agents: BTreeMap::from([(0, dom0)]),
            pending: BTreeMap::new(),
            journal,
            trace: 0xcbf2_9ce4_8422_2325,
            blind: false,
            last: tell.then(VecDeque::new),
        };
        run.judge()?;
        Ok(run)
    }

    /// From now on the client behind this page keeps the rules, or it does not.
    pub(super) fn set_honest(&mut self, page: PageId, honest: bool) {
        for model in core::iter::once(&mut self.model).chain(&mut self.others) {
            model.set_honest(page, honest);
        }
    }

    pub(super) fn dom0(&mut self) -> &mut Agent {
        self.agents.get_mut(&0).expect("the first domain never goes")
    }

    /// Everything, from the beginning to the end.
    pub(super) fn play(&mut self) -> Outcome {
        self.order(Kind::Mkdir, &["/shared"], Then::Nothing);
        self.order(Kind::SetPerms, &["/shared", "b0"], Then::Nothing);
        let world = self.simulation.world.clone();
        world.set_losses(self.options.losses);
        world.set_refusals(self.options.refusals);
        for _ in 0..self.options.steps {
            self.step()?;
            if self.blind {
                break;
            }
        }
        world.set_losses(0);
        world.set_refusals(0);
        world.set_failure(None);
        if self.blind {
            self.simulation.check()?;
        }
        self.calm()?;
        if !self.blind {
            self.recount()?;
        }
        self.end()
    }

    /// As [`play`](Self::play), with the `n`-th block refused that the server asks for. Says whether that came.
    pub(super) fn play_refused(&mut self, n: u64) -> Result<bool, String> {
        self.memory().fail_nth(n);
        self.play()?;
        Ok(self.blind)
    }

    /// The memory of the server's domain.
    pub(super) fn memory(&self) -> Memory {
        self.simulation.world.memory().expect("each run has it")
    }

    /// One step of chaos.
    fn step(&mut self) -> Outcome {
        if self.random.one_in(self.options.toolstack) {
            self.toolstack();
        }
        let domids: Vec<u16> = self.agents.keys().copied().collect();
        for domid in domids {
            if self.random.one_in(2) {
                self.act(domid)?;
            }
        }
        let world = self.simulation.world.clone();
        if self.random.one_in(20) {
            let domid = self.random.below(u32::from(self.options.guests) + 1);
            world.signal(DomId(u16::try_from(domid).unwrap_or(0)));
        }
        let far = if self.options.expiry { 2500 } else { 30 };
        let pause = if self.random.one_in(10) { self.random.below(far) } else { 0 };
        world.set_clock(world.now_ms() + u64::from(pause));
        for _ in 0..self.random.below(3) {
            self.pass()?;
        }
        if let Some(failures) = &mut self.failures
            && !world.has_failure()
            && failures.one_in(self.options.failures)
        {
            world.set_failure(Some(failures.below(FAILS_WITHIN)));
        }
        if self.options.updates > 0 && self.random.one_in(self.options.updates) {
            self.update()?;
        }
        if self.random.one_in(30) {
            self.settle()?;
            self.simulation.check()?;
        }
        Ok(())
    }

    /// One client does something.
    fn act(&mut self, domid: u16) -> Outcome {
        let piece = 1 + self.random.index(self.options.piece);
        let late = self.options.late_writes && self.random.one_in(3);
        let world = self.simulation.world.clone();
        let Some(agent) = self.agents.get_mut(&domid) else { return Ok(()) };
        if agent.hostile && !agent.frozen && self.random.one_in(12) {
            agent.misbehave(&mut self.random);
        }
        if self.random.one_in(30) && self.firmware(domid)? {
            return Ok(());
        }
        let Some(agent) = self.agents.get_mut(&domid) else { return Ok(()) };
        agent.chat(&mut self.random, &self.options);
        let mut answered = Vec::new();
        agent.work(&world, piece, late, &mut answered)?;
        self.react(&answered);
        Ok(())
    }

    /// The firmware of an honest guest ends and leaves an empty ring to the kernel without telling anybody. The
    /// server may look between any two of its stores.
    fn firmware(&mut self, domid: u16) -> Result<bool, String> {
        const ORDER: [Word; 4] = [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd];
        let Some(agent) = self.agents.get_mut(&domid) else { return Ok(false) };
        let page = agent.client.page().clone();
        let read = page.word(Word::RspProd) == page.word(Word::RspCons);
        let fit = domid != 0 && !agent.hostile && !agent.frozen && agent.is_content() && read;
        if !fit || !self.model.is_quiet(page.id()) {
            return Ok(false);
        }
        page.fill_rings();
        let first = self.random.index(ORDER.len());
        for place in 0..ORDER.len() {
            page.set_word(ORDER[(first + place) % ORDER.len()], 0);
            if self.random.one_in(2) {
                self.simulation.world.signal(DomId(domid));
                self.pass()?;
            }
        }
        Ok(true)
    }

    /// A live update, which nobody must notice. The first domain asks for it, or it comes at any other moment.
    /// Sometimes its successor fails. Or another domain takes the server's place, unless the server may fail: one that fails
    /// before it serves is built once more, which is dom0's business.
    fn update(&mut self) -> Outcome {
        if self.random.one_in(4) {
            for words in [&["-b", "4"][..], &["-d", "4", "\x7fELF"], &["-s", "-t", "60"]] {
                self.order(Kind::Control, &[&["live-update"], words].concat(), Then::Nothing);
            }
            return Ok(());
        }
        let kind = self.random.below(4);
        let may_fail = self.options.failures > 0;
        let result = self.survive(|simulation| match kind {
            0 => simulation.fail_to_hand_over(),
            1 if !may_fail => simulation.replace(),
            _ => simulation.hand_over(),
        })?;
        let Some(result) = result else { return self.judge() };
        let may_be_short = self.options.refusals > 0 || self.memory().figures().refused > 0;
        match result {
            Err(why) if !may_be_short || !why.contains("memory") => {
                Err(format!("a live update failed: {why}"))
            }
            Ok(()) | Err(_) => self.judge(),
        }
    }

    /// The server works once, and is judged.
    fn pass(&mut self) -> Result<Pass, String> {
        let pass = self.survive(Simulation::pass)?;
        self.judge()?;
        Ok(pass.unwrap_or(Pass::More))
    }

    /// Does something with the server; `None` if it has failed meanwhile and gone on.
    fn survive<R>(&mut self, f: impl FnOnce(&mut Simulation) -> R) -> Result<Option<R>, String> {
        let done = self.simulation.survive(f);
        let done = done.map_err(|why| format!("it does not go on after a failure: {why}"))?;
        self.failed |= done.is_none();
        Ok(done)
    }

    /// As long as nobody else does anything, the server comes to an end and would sleep.
    pub(super) fn settle(&mut self) -> Outcome {
        for _ in 0..SETTLE_PASSES {
            if self.pass()? != Pass::More {
                return Ok(());
            }
        }
        Err(String::from("nothing happens any more, but the server does not go to sleep"))
    }

    fn judge(&mut self) -> Outcome {
        let seen = self.journal.take();
        for entry in &seen {
            self.trace = hash(self.trace, entry);
            let (page, bytes) = match entry {
                Seen::Put(page, bytes) => (*page, Some(&bytes[..])),
                Seen::Emptied(page) => (*page, None),
                _ => continue,
            };
            if let Some(agent) = self.agents.values_mut().find(|agent| agent.page() == page) {
                agent.expect(bytes);
            }
        }
        if let Some(last) = &mut self.last {
            last.extend(seen.iter().filter(|seen| !is_noise(seen)).cloned());
            last.drain(..last.len().saturating_sub(SHOWN));
        }
        let memory = self.memory();
        if !self.blind && memory.figures().refused > 0 {
            memory.fail_nth(0);
            self.blind = true;
        }
        let failed = core::mem::take(&mut self.failed);
        if self.blind {
            Ok(())
        } else if !failed && self.others.is_empty() {
            self.model.judge(&seen)
        } else {
            self.judge_all(&seen, failed)
        }
    }

    /// Judges by all that may have happened; what cannot have happened is dropped.
    fn judge_all(&mut self, seen: &[Seen], failed: bool) -> Outcome {
        let mut left = Vec::new();
        let mut verdict = Ok(());
        let others = core::mem::take(&mut self.others);
        for mut model in core::iter::once(self.model.clone()).chain(others) {
            let judged = if failed {
                model.judge_failure(seen, &mut left)
            } else {
                let judged = model.judge(seen);
                left.extend(judged.is_ok().then_some(model));
                judged
            };
            verdict = verdict.and(judged);
        }
        left.truncate(POSSIBLE_MAX);
        if left.is_empty() {
            return verdict;
        }
        self.model = left.remove(0);
        self.others = left;
        Ok(())
    }

    /// The faults are over. Every honest client must get all that is due, in bounded time, and with no help but
    /// the signals that the server itself sends.
    fn calm(&mut self) -> Outcome {
        let hostile: Vec<u16> =
            self.agents.values().filter(|agent| agent.hostile).map(|agent| agent.domid).collect();
        for domid in hostile {
            self.death(domid);
        }
        if self.options.losses > 0 || self.options.refusals > 0 {
            for (domid, agent) in &mut self.agents {
                self.simulation.world.signal(DomId(*domid));
                agent.wake();
            }
        }
        self.rest()
    }

    /// Lets everybody work, without new requests, until nothing is left to do.
    pub(super) fn rest(&mut self) -> Outcome {
        for _ in 0..CALM_ROUNDS {
            let mut moved = false;
            let mut answered = Vec::new();
            for agent in self.agents.values_mut() {
                moved |= agent.work(&self.simulation.world, 4096, false, &mut answered)?;
            }
            self.react(&answered);
            match self.pass()? {
                Pass::More | Pass::HandOver => moved = true,
                Pass::Idle(_) if moved || self.is_signalled() => moved = true,
                Pass::Idle(Some(at_ms)) => {
                    moved = true;
                    self.simulation.world.set_clock(at_ms);
                }
                Pass::Idle(None) => {}
            }
            if !moved && self.agents.values().all(|agent| agent.frozen || agent.lazy_steps() == 0) {
                return self.is_at_rest();
            }
        }
        Err(String::from("no rest in sight"))
    }

    fn is_signalled(&self) -> bool {
        let world = &self.simulation.world;
        self.agents.values().any(|agent| agent.is_signalled(world))
    }

    /// Nothing moves any more: then nothing may be owed.
    fn is_at_rest(&mut self) -> Outcome {
        while !self.others.is_empty() && self.looks_at_rest().is_err() {
            self.model = self.others.remove(0);
        }
        self.looks_at_rest()
    }

    fn looks_at_rest(&self) -> Outcome {
        for agent in self.agents.values() {
            if self.blind {
                // Who is introduced is not known any more, but the first domain is.
                if agent.domid == 0 && !agent.is_content() {
                    return Err(format!("the first domain waits for {} replies", agent.waiting()));
                }
                continue;
            }
            if !self.model.reaches(agent.page()) || agent.frozen {
                continue;
            }
            if let Some(owed) = self.model.owed(agent.page()) {
                return Err(owed);
            }
            if !agent.is_content() {
                let (domid, waiting) = (agent.domid, agent.waiting());
                return Err(format!("domain {domid} waits for {waiting} replies in vain"));
            }
        }
        self.simulation.check()
    }

    /// Looks at everything once: each reply is judged as it comes.
    fn recount(&mut self) -> Outcome {
        let paths: Vec<String> = self
            .model
            .nodes()
            .filter(|path| path.starts_with(b"/"))
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        for path in paths {
            for kind in [Kind::Read, Kind::GetPerms, Kind::Directory] {
                self.order(kind, &[&path], Then::Nothing);
            }
        }
        for domid in 0..=self.options.guests {
            self.order(Kind::Control, &["quota", &format!("{domid}")], Then::Nothing);
        }
        self.rest()
    }

    /// When all guests are gone and what the first domain has made is removed, it is as at the start.
    fn end(&mut self) -> Outcome {
        let was_blind = self.blind;
        let mut missing = self.take_all_away()?;
        if missing.is_some() && self.blind && !was_blind {
            // The block was refused to one of these last requests, which is asked once more.
            missing = self.take_all_away()?;
        }
        missing.map_or(Ok(()), Err)
    }

    /// Removes all that there is; what is not as at the start then, in words.
    fn take_all_away(&mut self) -> Result<Option<String>, String> {
        let domids: Vec<u16> = self.agents.keys().copied().filter(|domid| *domid != 0).collect();
        for domid in domids {
            self.death(domid);
        }
        if !self.options.tells_states {
            // Of those that died before, too: the request may have been refused.
            for domid in 1..=self.options.guests {
                self.order(Kind::Release, &[&format!("{domid}")], Then::Nothing);
            }
        }
        self.order(Kind::ResetWatches, &[""], Then::Nothing);
        self.rest()?;
        self.order(Kind::Directory, &["/"], Then::Nothing);
        self.rest()?;
        let names = String::from_utf8_lossy(&self.dom0().last_reply).into_owned();
        let tops = names.split_terminator('\0').map(|name| format!("/{name}"));
        let tops = tops.collect::<Vec<_>>();
        for top in tops {
            self.order(Kind::Rm, &[&top], Then::Nothing);
        }
        self.order(Kind::Mkdir, &["/tool/xenstored"], Then::Nothing);
        self.order(Kind::Control, &["check"], Then::Nothing);
        self.rest()?;
        let report = Speech::new(Kind::Control, &["memreport"]);
        self.dom0().say(&report, Then::Nothing);
        self.rest()?;
        let report = String::from_utf8_lossy(&self.dom0().last_reply).into_owned();
        let mut wanted = Vec::from(["nodes: 5", "watches: 0", "transactions: 0", "connections: 1"]);
        wanted.extend(["ports: 1", "queued messages: 0", "unfinished requests: 0"]);
        if self.options.tells_states {
            wanted.push("domains: 1");
        }
        let missing = wanted.iter().find(|line| !report.lines().any(|other| other == **line));
        Ok(missing.map(|line| format!("at the end {line} was expected in\n{report}")))
    }
}

impl Run {
    /// The server ends, and gives all its memory back.
    pub(super) fn leave(self) -> Outcome {
        self.simulation.end()
    }

    /// The last entries for people, one a line.
    pub(super) fn story(&self) -> String {
        let mut story = String::new();
        for seen in self.last.iter().flatten() {
            story.push_str(&match seen {
                Seen::Took(page, bytes) => format!("page {page} > {}\n", show(bytes)),
                Seen::Put(page, bytes) => format!("page {page} < {}\n", show(bytes)),
                other => format!("{other:?}\n"),
            });
        }
        story
    }
}

/// Whether an entry says little to people.
fn is_noise(seen: &Seen) -> bool {
    matches!(seen, Seen::Memory(_, true) | Seen::Clock(_) | Seen::Settled)
}

/// Adds an entry to a hash (FNV-1a).
fn hash(mut hash: u64, seen: &Seen) -> u64 {
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match seen {
        Seen::Took(page, bytes) | Seen::Put(page, bytes) => {
            add(&page.to_le_bytes());
            add(bytes);
        }
        Seen::Emptied(page) => add(&page.to_le_bytes()),
        Seen::Settled => {}
        Seen::Clock(now_ms) => add(&now_ms.to_le_bytes()),
        Seen::Memory(bytes, granted) => {
            add(&[u8::from(*granted), u8::try_from(*bytes % 251).unwrap_or(0)]);
        }
        other => add(format!("{other:?}").as_bytes()),
    }
    hash
}
