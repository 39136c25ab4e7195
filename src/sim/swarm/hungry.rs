//! The role *hungry*: guests that take memory and time in every way that they know. The server's memory has an end
//! and grows as Xen likes.
//!
//! Each guest mixes the attacks of `docs/attacks.md`: watches with long tokens on what changes much, nodes of
//! every size, long names, deep chains, transactions that touch a lot, removals in them, replies and events that
//! nobody reads. Domains come and die, many in one look. The model cannot say what a server that is short of
//! memory does with each request. So the judges here are
//!
//! * the first domain and honest guests, which know what they have written. A request is done as a whole, or it is
//!   refused with ENOMEM and has changed nothing. A reply comes soon, whatever the others do;
//! * the server's own accounts, which balance at any moment;
//! * the allocator: when everybody is gone, so is what they took, and when the server is gone, everything is.

use super::Report;
use crate::proto::id::DomId;
use crate::proto::wire::{HEADER_SIZE, Kind};
use crate::server::Pass;
use crate::sim::client::{Client, Message};
use crate::sim::host::Host;
use crate::sim::memory::Memory;
use crate::sim::random::Random;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use std::format;
use xen_kernel_rt::memory::bounded::Growth;

/// What is wrong, or nothing.
type Outcome = Result<(), String>;

/// Within so many passes the first domain's request must be answered.
const PASSES: usize = 2000;

/// Within so many rounds an honest guest's request must be answered. It has to wait for its turn and for the
/// write-rate limit.
const ROUNDS: usize = 20_000;

/// Bytes that a guest may have waiting to be sent.
const BACKLOG: usize = 400_000;

/// Pages that may stay taken when all guests are gone: what the server keeps for the next burst, and slabs with
/// a block or two.
const LEFT_OVER: usize = 160;

/// Pages that no crowd of this size fills.
const AMPLE: usize = 10_000;

/// What a seed chose.
#[derive(Clone, Debug)]
pub(super) struct Appetite {
    guests: u16,
    honest: u16,
    steps: u32,
    /// Pages at the start, and the most.
    pages: (usize, usize),
    growth: Growth,
    /// Xen has no more from this step on.
    sold_out: Option<u32>,
    /// One in so many steps, some block of the next hundreds is refused; 0 for never.
    faults: u32,
    /// One in so many steps, the server is replaced; 0 for never.
    updates: u32,
    /// One in so many steps, domains die or come.
    lives: u32,
    /// Which acts this crowd knows.
    acts: u32,
    /// How many of ten read what comes for them.
    readers: u32,
}

impl Appetite {
    fn draw(random: &mut Random) -> Self {
        let start = random.pick(&[1024, 1536, 1536, 2000, 3000]);
        let limit = random.pick(&[start, start, start * 2, 15_800]);
        let seed = random.next_u64() | 1;
        Self {
            guests: 1 + u16::try_from(random.below(8)).unwrap_or(0),
            honest: 1 + u16::try_from(random.below(3)).unwrap_or(0),
            steps: 40 + random.below(200),
            pages: (start, limit),
            growth: match random.below(4) {
                0 => Growth::Random { per_mille: random.pick(&[50, 500, 900]), seed },
                1 => Growth::Until(random.index(600)),
                _ => Growth::Granted,
            },
            sold_out: random.one_in(3).then(|| random.below(200)),
            faults: random.pick(&[0, 0, 0, 3, 20]),
            updates: random.pick(&[0, 0, 0, 40, 10]),
            lives: random.pick(&[5, 20, 60]),
            acts: random.below(1 << ACTS) | random.below(1 << ACTS),
            readers: random.pick(&[0, 3, 8, 10]),
        }
    }
}

impl fmt::Display for Appetite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hungry {self:?}")
    }
}

/// What a seed chose, for people.
pub(super) fn describe(seed: u64) -> String {
    format!("{}", Appetite::draw(&mut Random::new(seed)))
}

/// How many acts there are.
const ACTS: u32 = 14;

/// A guest that is never full.
#[derive(Debug)]
struct Eater {
    domid: u16,
    client: Client,
    outgoing: VecDeque<u8>,
    /// Transactions that it knows to be open.
    open: Vec<u32>,
    reads: bool,
    /// A number for names and tokens that are new.
    fresh: u32,
}

/// A client that knows what it has written, and waits for each reply.
#[derive(Debug)]
struct Honest {
    domid: u16,
    /// Where its nodes are.
    home: String,
    nodes: BTreeMap<u32, String>,
}

/// A run in progress.
struct Feast {
    appetite: Appetite,
    random: Random,
    host: Host,
    eaters: Vec<Eater>,
    honest: Vec<(Honest, Client)>,
    dom0: Honest,
    next_domid: u16,
    /// Domains that died and whose node, which the first domain watches, went with them.
    mortals: Vec<u16>,
    /// How often the first domain has renewed its watch.
    renewals: u32,
    trace: u64,
    requests: u64,
}

/// Plays one seed.
pub(super) fn play(seed: u64) -> Result<Report, String> {
    let mut random = Random::new(seed);
    let appetite = Appetite::draw(&mut random);
    let memory = Memory::new(appetite.pages.0, appetite.pages.1);
    memory.set_growth(appetite.growth);
    let mut host = Host::start_bounded("", memory);
    host.world().seed(random.next_u64());
    host.ask(Kind::SetPerms, "@releaseDomain\0r0\0")?;
    host.ask(Kind::Watch, "/local/domain\0deaths 0\0")?;
    let home = String::from("/tool/honest");
    let dom0 = Honest { domid: 0, home, nodes: BTreeMap::new() };
    let mut feast = Feast {
        appetite,
        random,
        host,
        eaters: Vec::new(),
        honest: Vec::new(),
        dom0,
        next_domid: 1,
        mortals: Vec::new(),
        renewals: 0,
        trace: 0xcbf2_9ce4_8422_2325,
        requests: 0,
    };
    feast.begin()?;
    for step in 0..feast.appetite.steps {
        feast.step(step).map_err(|what| format!("step {step}: {what}"))?;
    }
    let (trace, requests) = (feast.trace, feast.requests);
    feast.end()?;
    Ok(Report { trace, requests })
}

impl Feast {
    fn begin(&mut self) -> Outcome {
        for _ in 0..self.appetite.honest {
            let domid = self.next_domid;
            self.next_domid += 1;
            let client = self.host.guest(domid, 3)?;
            let home = String::from("data");
            self.honest.push((Honest { domid, home, nodes: BTreeMap::new() }, client));
        }
        for _ in 0..self.appetite.guests {
            self.birth()?;
        }
        Ok(())
    }

    /// A new guest comes. If Xen gives no memory, there may be none for it.
    fn birth(&mut self) -> Outcome {
        let domid = self.next_domid;
        self.next_domid = if domid < 30_000 { domid + 1 } else { 1 };
        match self.host.guest(domid, 3) {
            Ok(client) => {
                let reads = self.random.below(10) < self.appetite.readers;
                let (outgoing, open) = (VecDeque::new(), Vec::new());
                self.eaters.push(Eater { domid, client, outgoing, open, reads, fresh: 0 });
                Ok(())
            }
            Err(what) if what.ends_with("ENOMEM") => {
                self.host.world().destroy(DomId(domid));
                self.settle()?;
                match self.host.ask(Kind::Rm, &format!("/local/domain/{domid}\0")) {
                    Err(error) if error != "ENOENT" => Err(format!("RM of a new home: {error}")),
                    _ => Ok(()),
                }
            }
            Err(what) => Err(what),
        }
    }

    fn settle(&mut self) -> Outcome {
        for _ in 0..PASSES {
            if let Pass::Idle(_) = self.host.simulation.pass() {
                return Ok(());
            }
        }
        Err(String::from("the server does not come to an end"))
    }

    fn step(&mut self, step: u32) -> Outcome {
        let memory = self.host.memory();
        if self.appetite.sold_out == Some(step) {
            memory.set_growth(Growth::Refused);
        }
        if self.appetite.faults > 0 && self.random.one_in(self.appetite.faults) {
            memory.fail_nth(1 + u64::from(self.random.below(400)));
        }
        for place in 0..self.eaters.len() {
            if self.random.one_in(2) {
                self.act(place);
            }
        }
        for _ in 0..1 + self.random.below(6) {
            self.carry();
            let _ = self.host.simulation.pass();
        }
        self.ask_dom0()?;
        if self.random.one_in(3) {
            self.ask_honest()?;
        }
        if self.random.one_in(self.appetite.lives) {
            self.deaths_and_births()?;
        }
        if self.random.one_in(25) {
            let world = self.host.world();
            world.set_clock(world.now_ms() + u64::from(self.random.below(30_000)));
        }
        if self.appetite.updates > 0 && self.random.one_in(self.appetite.updates) {
            self.update()?;
        }
        if self.random.one_in(10) {
            self.look()?;
        }
        Ok(())
    }

    /// Several domains die in one look, others take their place.
    fn deaths_and_births(&mut self) -> Outcome {
        let deaths = self.random.index(self.eaters.len() + 1);
        let mut homes = Vec::new();
        // The first domain's watch is the newest, so it is told last.
        // The old one goes when the new one is there: a guest may remove its node in between.
        let old = self.renewals;
        self.renewals += 1;
        for (kind, number) in [(Kind::Watch, self.renewals), (Kind::Unwatch, old)] {
            let watch = format!("/local/domain\0deaths {number}\0");
            let _may_be_refused = self.dom0_asks(kind, &watch)?;
        }
        for _ in 0..deaths {
            let place = self.random.index(self.eaters.len());
            let eater = self.eaters.swap_remove(place);
            self.host.world().destroy(DomId(eater.domid));
            homes.push(eater.domid);
        }
        for domid in homes {
            if self.has_lost_its_node(domid)? {
                self.mortals.push(domid);
            }
            let answer = self.dom0_asks(Kind::Rm, &format!("/local/domain/{domid}\0"))?;
            if let Err(error) = answer.filter_faults(&self.host) {
                return Err(format!("RM of the home of domain {domid}: {error}"));
            }
        }
        for _ in 0..deaths {
            self.birth()?;
        }
        Ok(())
    }

    /// Whether the death of a domain has come as far as its node. The first domain waits for that with every
    /// second death. It may remove the home of the others while the server still clears away other dead domains,
    /// and then gets only that event.
    fn has_lost_its_node(&mut self, domid: u16) -> Result<bool, String> {
        for _ in 0..PASSES {
            let node = format!("/local/domain/{domid}/data\0");
            let reply = self.dom0_asks(Kind::Directory, &node)?;
            if reply.0.is_err_and(|error| error == "ENOENT") {
                return Ok(true);
            }
            if domid % 2 == 1 {
                return Ok(false);
            }
        }
        Err(format!("domain {domid} is dead, and its node stays"))
    }

    /// A live update, which may find no memory; then everything goes on.
    fn update(&mut self) -> Outcome {
        let world = self.host.world();
        let result = match self.random.below(4) {
            0 => self.host.simulation.fail_to_hand_over(),
            _ => self.host.simulation.hand_over(),
        };
        world.signal(DomId(0));
        match result {
            Err(why) if !format!("{why}").contains("memory") => {
                Err(format!("a live update failed: {why}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Checks that the accounts balance.
    fn look(&mut self) -> Outcome {
        self.host.memory().fail_nth(0);
        // What was begun is finished first.
        self.settle()?;
        self.host.simulation.check()
    }

    /// If memory was never short, the first domain has got an event for the node of every domain that died.
    fn hears_of_deaths(&mut self) -> Outcome {
        self.settle()?;
        let _reply = self.dom0_asks(Kind::Directory, "/\0")?;
        let is_sure = self.appetite.growth == Growth::Granted
            && self.appetite.sold_out.is_none()
            && self.appetite.faults == 0
            && self.appetite.pages.1 > AMPLE
            && self.host.memory().figures().refused == 0;
        let is_missing = |domid: &&u16| {
            let path = format!("/local/domain/{domid}/data").into_bytes();
            !self.host.heard.contains(&path)
        };
        match self.mortals.iter().find(is_missing).filter(|_| is_sure) {
            Some(domid) => Err(format!("the first domain has not heard of the end of {domid}")),
            None => Ok(()),
        }
    }

    /// Everybody is gone.
    fn end(mut self) -> Outcome {
        let memory = self.host.memory();
        memory.fail_nth(0);
        self.hears_of_deaths()?;
        memory.fail_nth(0);
        memory.set_growth(Growth::Granted);
        self.look()?;
        for eater in &self.eaters {
            self.host.world().destroy(DomId(eater.domid));
        }
        for (honest, _) in &self.honest {
            self.host.world().destroy(DomId(honest.domid));
        }
        self.eaters.clear();
        self.honest.clear();
        self.settle()?;
        self.host.simulation.sleep(60_000);
        for (kind, payload) in
            [(Kind::ResetWatches, "\0"), (Kind::Rm, "/local\0"), (Kind::Rm, "/tool/honest\0")]
        {
            match self.host.ask(kind, payload) {
                Err(error) if error != "ENOENT" => return Err(format!("at the end: {error}")),
                _ => {}
            }
        }
        self.host.simulation.sleep(60_000);
        self.host.check()?;
        for (name, wanted) in [("watches", 0), ("transactions", 0), ("connections", 1)] {
            let figure = self.host.figure(name)?;
            if figure != wanted {
                return Err(format!("at the end {name} are {figure}, not {wanted}"));
            }
        }
        let pages = memory.figures().pages;
        if pages > LEFT_OVER {
            return Err(format!("at the end {pages} pages are still taken"));
        }
        self.host.end()
    }
}

/// The result of a request, for clients that know when a refusal is right.
struct Reply(Result<Vec<u8>, String>);

impl Reply {
    /// A refusal for want of memory is right if some block was refused on purpose.
    fn filter_faults(self, _host: &Host) -> Result<Vec<u8>, String> {
        match self.0 {
            Err(error) if error == "ENOMEM" || error == "ENOENT" => Ok(Vec::new()),
            other => other,
        }
    }
}

// The judges.
impl Feast {
    /// The first domain asks, and is answered soon.
    fn dom0_asks(&mut self, kind: Kind, payload: &str) -> Result<Reply, String> {
        self.requests += 1;
        let client = &mut self.host.dom0;
        let (bytes, req_id) = client.request(kind.number(), 0, payload.as_bytes());
        let mut rest = &bytes[..];
        for _ in 0..PASSES {
            rest = &rest[client.write(rest)..];
            let _ = self.host.simulation.pass();
            client.read(usize::MAX);
            while let Some(message) = client.next_message() {
                if message.header.kind == Kind::WatchEvent.number() {
                    let path = message.payload.split(|byte| *byte == 0).next();
                    self.host.heard.extend(path.map(Vec::from));
                }
                if let Some(reply) = reply_to(&message, req_id) {
                    self.trace = mix(self.trace, &message.payload);
                    return Ok(Reply(reply));
                }
            }
        }
        Err(format!("{kind:?} of the first domain is not answered in {PASSES} passes"))
    }

    /// An honest guest asks; all others go on meanwhile.
    fn honest_asks(&mut self, place: usize, kind: Kind, payload: &str) -> Result<Reply, String> {
        self.requests += 1;
        let (bytes, req_id) = self.honest[place].1.request(kind.number(), 0, payload.as_bytes());
        let mut rest = &bytes[..];
        for _ in 0..ROUNDS {
            let client = &mut self.honest[place].1;
            rest = &rest[client.write(rest)..];
            let pass = self.host.simulation.pass();
            client.read(usize::MAX);
            while let Some(message) = client.next_message() {
                if let Some(reply) = reply_to(&message, req_id) {
                    self.trace = mix(self.trace, &message.payload);
                    return Ok(Reply(reply));
                }
            }
            if let Pass::Idle(until) = pass {
                let world = self.host.world();
                world.set_clock(until.unwrap_or_else(|| world.now_ms() + 100));
            }
        }
        Err(format!("{kind:?} of an honest guest is never answered"))
    }

    fn ask_dom0(&mut self) -> Outcome {
        for _ in 0..1 + self.random.below(3) {
            let (kind, payload, name) = self.dom0.think(&mut self.random, 40);
            // The first domain has a reserve: it is refused only what was refused to it on purpose.
            let was_pending = self.host.memory().is_failure_pending();
            let reply = self.dom0_asks(kind, &payload)?;
            let may_fail = was_pending && !self.host.memory().is_failure_pending();
            self.dom0.judge(kind, &payload, name, reply.0, may_fail)?;
        }
        if self.random.one_in(10) {
            let what = self.random.pick(&["check\0", "memreport\0", "quota\x001\0", "stats\0"]);
            let reply = self.dom0_asks(Kind::Control, what)?;
            match reply.0 {
                Err(error) if !["ENOMEM", "ENOENT"].contains(&&*error) => {
                    return Err(format!("CONTROL {what:?}: {error}"));
                }
                Ok(text) if what == "check\0" && text != b"OK\0" => {
                    return Err(format!("check: {}", String::from_utf8_lossy(&text)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn ask_honest(&mut self) -> Outcome {
        let place = self.random.index(self.honest.len());
        let (kind, payload, name) = self.honest[place].0.think(&mut self.random, 15);
        let reply = self.honest_asks(place, kind, &payload)?;
        self.honest[place].0.judge(kind, &payload, name, reply.0, true)
    }
}

impl Honest {
    /// Something to ask about one of so many nodes.
    fn think(&self, random: &mut Random, names: u32) -> (Kind, String, u32) {
        let name = random.below(names);
        let path = format!("{}/{name}", self.home);
        match random.below(4) {
            0 | 1 => (Kind::Read, format!("{path}\0"), name),
            2 => {
                let value = random.pick(&["v", "value"]).repeat(1 + random.index(60));
                (Kind::Write, format!("{path}\0{value}"), name)
            }
            _ => (Kind::Rm, format!("{path}\0"), name),
        }
    }

    /// Whether a reply is what it must be.
    fn judge(
        &mut self,
        kind: Kind,
        payload: &str,
        name: u32,
        reply: Result<Vec<u8>, String>,
        may_fail: bool,
    ) -> Outcome {
        let known = self.nodes.get(&name);
        let is_right = match (kind, &reply) {
            (_, Err(error)) if error == "ENOMEM" => may_fail,
            (Kind::Read, Ok(value)) => known.is_some_and(|known| known.as_bytes() == value),
            (Kind::Read, Err(error)) => known.is_none() && error == "ENOENT",
            (Kind::Rm, Err(error)) => known.is_none() && error == "ENOENT",
            (Kind::Rm | Kind::Write, Ok(ok)) => ok == b"OK\0",
            _ => false,
        };
        if !is_right {
            let (domid, short) = (self.domid, payload.get(..60).unwrap_or(payload));
            let reply = reply.map(|value| String::from_utf8_lossy(&value).into_owned());
            return Err(format!(
                "domain {domid}: {kind:?} {short:?} gave {reply:?}, was {known:?}"
            ));
        }
        match (kind, reply) {
            (Kind::Write, Ok(_)) => {
                let value = payload.split_once('\0').map_or("", |(_, value)| value);
                self.nodes.insert(name, String::from(value));
            }
            (Kind::Rm, Ok(_)) => {
                self.nodes.remove(&name);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The reply to a request, if this message is it.
fn reply_to(message: &Message, req_id: u32) -> Option<Result<Vec<u8>, String>> {
    let Message { header, payload } = message;
    if header.req_id != req_id || header.kind == Kind::WatchEvent.number() {
        return None;
    }
    let name = || String::from_utf8_lossy(payload).trim_end_matches('\0').into();
    Some(if header.kind == Kind::Error.number() { Err(name()) } else { Ok(payload.clone()) })
}

/// Adds bytes to a hash (FNV-1a).
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

// The eaters.
impl Feast {
    /// Moves bytes between the hungry guests and their rings.
    fn carry(&mut self) {
        for eater in &mut self.eaters {
            let (front, _) = eater.outgoing.as_slices();
            let written = eater.client.write(front);
            eater.outgoing.drain(..written);
            if eater.reads {
                eater.client.read(usize::MAX);
            }
            while let Some(Message { header, payload }) = eater.client.next_message() {
                self.trace = mix(self.trace, &payload);
                if header.kind == Kind::TransactionStart.number() {
                    let text = String::from_utf8_lossy(&payload);
                    eater.open.extend(text.trim_end_matches('\0').parse::<u32>().ok());
                }
            }
        }
    }

    /// A guest thinks of something.
    fn act(&mut self, place: usize) {
        let random = &mut self.random;
        let act = random.below(ACTS);
        if self.appetite.acts >> act & 1 == 0 {
            return;
        }
        let others: Vec<u16> = self.eaters.iter().map(|eater| eater.domid).collect();
        let other = random.pick(&others);
        let Some(eater) = self.eaters.get_mut(place) else { return };
        if eater.outgoing.len() > BACKLOG {
            return;
        }
        let many = random.pick(&[1, 10, 130, 300]);
        let tx = if random.one_in(2) { eater.open.last().copied().unwrap_or(0) } else { 0 };
        match act {
            0 => eater.watch(random, many, "data"),
            1 => eater.watch(random, many, &format!("/local/domain/{other}/data")),
            2 => {
                let special = random.pick(&["@releaseDomain", "@introduceDomain", "/", "/local"]);
                eater.watch(random, many, special);
            }
            3 => eater.write(random, tx, many, 1900),
            4 => eater.write(random, tx, many, 10),
            5 => {
                let top = format!("data/{}", "n".repeat(1000 + random.index(900)));
                for _ in 0..many {
                    let path = format!("{top}/{}", nth(eater.next()));
                    eater.say(tx, Kind::Mkdir, &[&path]);
                }
            }
            6 => {
                // A deep chain, and a look at its end, so that a removal walks all of it.
                let chain = format!("data{}", "/c".repeat(1 + random.index(990)));
                eater.say(0, Kind::Mkdir, &[&chain]);
                eater.say(tx, Kind::Read, &[&chain]);
                eater.say(tx, Kind::Rm, &["data/c"]);
            }
            7 => eater.say(0, Kind::TransactionStart, &[""]),
            8 => {
                if let Some(tx) = eater.open.pop() {
                    eater.say(tx, Kind::TransactionEnd, &[random.pick(&["T", "T", "T", "F"])]);
                }
            }
            9 => eater.say(tx, Kind::Rm, &[&format!("data/{}", random.below(12))]),
            10 => {
                for _ in 0..many {
                    let path = format!("data/{}", nth(random.below(200)));
                    let kind = random.pick(&[Kind::Read, Kind::Directory, Kind::GetPerms]);
                    eater.say(tx, kind, &[&path]);
                }
            }
            11 => {
                let path = format!("data/{}", nth(random.below(200)));
                let (own, other) = (format!("b{}", eater.domid), format!("b{other}"));
                eater.say(tx, Kind::SetPerms, &[&path, &own, &other]);
            }
            12 if random.one_in(4) => eater.say(0, Kind::ResetWatches, &[""]),
            12 => eater.say(tx, Kind::Rm, &["data"]),
            _ => eater.reads = !eater.reads,
        }
    }
}

/// The `n`-th of many names below a node: a node has only so many children.
fn nth(n: u32) -> String {
    format!("{}/{}", n / 100, n % 100)
}

impl Eater {
    fn next(&mut self) -> u32 {
        self.fresh = (self.fresh + 1) % 1200;
        self.fresh
    }

    fn say(&mut self, tx: u32, kind: Kind, words: &[&str]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        self.send(tx, kind, &payload);
    }

    fn send(&mut self, tx: u32, kind: Kind, payload: &[u8]) {
        if self.outgoing.len() <= BACKLOG + HEADER_SIZE {
            let (bytes, _) = self.client.request(kind.number(), tx, payload);
            self.outgoing.extend(bytes);
        }
    }

    fn watch(&mut self, random: &mut Random, many: u32, path: &str) {
        let token = "T".repeat(random.pick(&[1, 100, 1000, 2000]));
        for _ in 0..many.min(130) {
            let number = self.next();
            self.say(0, Kind::Watch, &[path, &format!("{token}{number}")]);
        }
    }

    fn write(&mut self, random: &mut Random, tx: u32, many: u32, size: usize) {
        let value = "v".repeat(1 + random.index(size));
        for _ in 0..many {
            let path = format!("data/{}", nth(self.next()));
            let payload = format!("{path}\0{value}");
            self.send(tx, Kind::Write, payload.as_bytes());
        }
    }
}
