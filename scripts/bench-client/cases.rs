//! What is measured, and in which state of the store.

use crate::link::{Failure, Link};
use core::time::Duration;
use std::fs;
use std::time::Instant;
use xenstore_stubdom::proto::wire::Kind;

/// What is written; `src/bin/null-responder` answers a READ with the same.
const VALUE: &str = "0123456789";

/// How long bringing the store into a state may take, in instructions. What takes longer is not measured.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Nodes of the tree below one parent, and of all of it.
const GROUP: usize = 200;
const TREE: usize = 20_400;
const LARGE_TREE: usize = 200_000;

/// How long this domain is left alone before something is measured: printing costs it time, too.
const QUIET: Duration = Duration::from_secs(1);

/// Where one state is measured: a node that exists, and one that is made and removed.
struct Place {
    existing: String,
    new: String,
}

/// One run of the client.
pub(crate) struct Bench {
    pub(crate) server: String,
    client: String,
    pub(crate) rounds: usize,
    pub(crate) link: Link,
    /// Figures that are not printed yet.
    pub(crate) lines: Vec<String>,
    /// How many were.
    printed: usize,
}

/// The middle one.
fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, Duration::as_nanos)
}

impl Bench {
    pub(crate) fn new(server: &str, client: &str, rounds: usize) -> Result<Self, Failure> {
        let (server, client, link) = (server.to_owned(), client.to_owned(), Link::open()?);
        std::thread::sleep(QUIET);
        Ok(Self { server, client, rounds, link, lines: Vec::new(), printed: 0 })
    }

    /// One case; `words` are what some of them want to know. Returns how many figures were printed.
    pub(crate) fn run(&mut self, case: &str, words: &[String]) -> Result<usize, Failure> {
        let result = self.case(case, words);
        self.flush();
        result.map(|()| self.printed)
    }

    fn case(&mut self, case: &str, words: &[String]) -> Result<(), Failure> {
        match case {
            "base" if words.is_empty() => self.measure("empty", &self.home()),
            // Somebody else has brought the store into this state.
            "base" => self.measure(&words.join(" "), &self.home()),
            "transactions" => self.transactions(100),
            "watches" => self.watches(&[2_000, 20_000]),
            "children" => self.children(&[2_000, 20_000]),
            "tree" => self.tree(TREE),
            "large" => self.tree(LARGE_TREE),
            "guest" => self.test_guest(words),
            "introduce" => self.introduce(words),
            "printed" => self.repeat(words, "empty"),
            "fill" => self.prepare("20400 nodes", 0..TREE, Self::write_tree_node).map(drop),
            "crowd" => self.crowd(words),
            "update" => self.updates(words, &[0, TREE, LARGE_TREE]),
            "replay" => self.replay(words),
            _ => Err(format!("no case {case}")),
        }
    }

    /// Below this everything happens: a guest has a folder of its own.
    fn place(&self) -> &'static str {
        if self.client == "dom0" { "/bench" } else { "data/bench" }
    }

    fn home(&self) -> Place {
        let place = self.place();
        Place { existing: format!("{place}/node"), new: format!("{place}/new") }
    }

    /// Notes a figure.
    pub(crate) fn say(
        &mut self,
        state: &str,
        what: &str,
        unit: &str,
        value: impl core::fmt::Display,
    ) {
        self.lines.push(format!("=\t{}\t{state}\t{what}\t{unit}\t{value}", self.client));
    }

    /// Prints the figures so far, while nothing is measured.
    pub(crate) fn flush(&mut self) {
        self.printed += self.lines.len();
        for line in self.lines.drain(..) {
            println!("{line}");
        }
        std::thread::sleep(QUIET);
    }

    pub(crate) fn write(&mut self, path: &str, value: &str) -> Result<Duration, Failure> {
        self.link.time(Kind::Write, 0, format!("{path}\0{value}").as_bytes())
    }

    /// All base requests.
    fn measure(&mut self, state: &str, place: &Place) -> Result<(), Failure> {
        let Place { existing, new } = place;
        self.write(existing, VALUE)?;
        let found = self.link.ask(Kind::Read, 0, format!("{existing}\0").as_bytes())?;
        if found != VALUE.as_bytes() {
            return Err(format!("{existing} is {}", found.escape_ascii()));
        }
        let name = format!("{existing}\0");
        let value = format!("{existing}\0{VALUE}");
        self.each(state, "READ", 1, |link| link.time(Kind::Read, 0, name.as_bytes()))?;
        self.each(state, "WRITE existing", 1, |link| link.time(Kind::Write, 0, value.as_bytes()))?;
        self.each(state, "DIRECTORY, empty", 1, |link| {
            link.time(Kind::Directory, 0, name.as_bytes())
        })?;
        self.pairs(state, new)?;
        self.each(state, "start, read, write, commit", 4, |link| {
            let (tx, start) = link.start()?;
            let read = link.time(Kind::Read, tx, name.as_bytes())?;
            let write = link.time(Kind::Write, tx, value.as_bytes())?;
            let commit = link.time(Kind::TransactionEnd, tx, b"T\0")?;
            Ok(start + read + write + commit)
        })?;
        self.link.watch(existing, "token")?;
        self.each(state, "WRITE until its event is read", 1, |link| {
            link.time_with_event(Kind::Write, value.as_bytes())
        })?;
        let watch = format!("{existing}\0token\0");
        self.link.ask(Kind::Unwatch, 0, watch.as_bytes())?;
        self.flush();
        Ok(())
    }

    /// A request that leaves everything as it was: time, and hypercalls for each of its `requests`.
    fn each(
        &mut self,
        state: &str,
        what: &str,
        requests: usize,
        mut act: impl FnMut(&mut Link) -> Result<Duration, Failure>,
    ) -> Result<(), Failure> {
        // The kernel of dom0 treats two processes that have just begun to talk otherwise than later on.
        for _ in 0..self.rounds {
            act(&mut self.link)?;
        }
        let before = self.hypercalls();
        let mut times = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            times.push(act(&mut self.link)?);
        }
        self.say_hypercalls(state, what, before, self.rounds * requests);
        self.say(state, what, "instructions", median(times));
        Ok(())
    }

    /// WRITE of a new node and RM of it, in turn.
    fn pairs(&mut self, state: &str, new: &str) -> Result<(), Failure> {
        let (mut made, mut removed) = (Vec::new(), Vec::new());
        let before = self.hypercalls();
        for _ in 0..self.rounds {
            made.push(self.write(new, VALUE)?);
            removed.push(self.link.time(Kind::Rm, 0, format!("{new}\0").as_bytes())?);
        }
        self.say_hypercalls(state, "WRITE new and RM", before, 2 * self.rounds);
        self.say(state, "WRITE new", "instructions", median(made));
        self.say(state, "RM", "instructions", median(removed));
        Ok(())
    }

    /// How many hypercalls our images have made, and how many it took to ask; none from a daemon.
    pub(crate) fn hypercalls(&mut self) -> Option<(u64, u64)> {
        if !matches!(self.server.as_str(), "ours" | "null") || self.client != "dom0" {
            return None;
        }
        let first = self.link.figure("stats", "hypercalls:")?;
        let second = self.link.figure("stats", "hypercalls:")?;
        Some((second, second - first))
    }

    pub(crate) fn say_hypercalls(
        &mut self,
        state: &str,
        what: &str,
        before: Option<(u64, u64)>,
        count: usize,
    ) {
        let after = before.and_then(|_| self.link.figure("stats", "hypercalls:"));
        if let (Some((before, asking)), Some(after)) = (before, after) {
            let made = (after - before).saturating_sub(asking);
            let each = format!("{:.2}", made as f64 / count as f64);
            self.say(state, what, "hypercalls", each);
        }
    }

    /// Does something again and again, as far as the limit lets it; how long it took, or `None`.
    pub(crate) fn prepare(
        &mut self,
        state: &str,
        range: core::ops::Range<usize>,
        mut act: impl FnMut(&mut Self, usize) -> Result<(), Failure>,
    ) -> Result<Option<Duration>, Failure> {
        let begin = Instant::now();
        let (from, to) = (range.start, range.end);
        for n in range {
            let result = act(self, n);
            if let Err(what) = &result {
                let why = format!("refused after {n}: {what}");
                self.say(state, "all", "-", why);
                return Ok(None);
            }
            if begin.elapsed() > LIMIT {
                let limit = LIMIT.as_nanos();
                let why = format!(
                    "takes longer than {limit} instructions ({} of {})",
                    n - from,
                    to - from
                );
                self.say(state, "all", "-", why);
                return Ok(None);
            }
        }
        Ok(Some(begin.elapsed()))
    }

    /// Transactions that are open, each with something read and something written.
    fn transactions(&mut self, count: usize) -> Result<(), Failure> {
        let state = format!("{count} open transactions");
        let place = self.place();
        self.write(&format!("{place}/other"), VALUE)?;
        let mut open = Vec::new();
        let ready = self.prepare(&state, 0..count, |bench, n| {
            let (tx, _) = bench.link.start()?;
            open.push(tx);
            bench.link.ask(Kind::Read, tx, format!("{place}/other\0").as_bytes())?;
            let write = format!("{place}/transaction-{n}\0{VALUE}");
            bench.link.ask(Kind::Write, tx, write.as_bytes()).map(drop)
        })?;
        if ready.is_some() {
            self.measure(&state, &self.home())?;
        }
        for tx in open {
            self.link.ask(Kind::TransactionEnd, tx, b"F\0")?;
        }
        Ok(())
    }

    /// Watches of paths where nothing happens.
    fn watches(&mut self, counts: &[usize]) -> Result<(), Failure> {
        let mut from = 0;
        for &count in counts {
            let state = format!("{count} watches");
            let ready = self.prepare(&state, from..count, |bench, n| {
                bench.link.watch(&format!("/bench-watched/{n}"), "unrelated")
            })?;
            if ready.is_none() {
                break;
            }
            self.measure(&state, &self.home())?;
            from = count;
        }
        Ok(())
    }

    /// A node with very many children.
    fn children(&mut self, counts: &[usize]) -> Result<(), Failure> {
        let mut from = 0;
        let place = self.place();
        for &count in counts {
            let state = format!("{count} children");
            let ready = self.prepare(&state, from..count, |bench, n| {
                bench.write(&format!("{place}/child-{n}"), VALUE).map(drop)
            })?;
            if ready.is_none() {
                break;
            }
            let existing = format!("{place}/child-{}", count / 2);
            self.measure(&state, &Place { existing, new: format!("{place}/new") })?;
            from = count;
        }
        Ok(())
    }

    /// The tree of `benches/handover.rs`: fill, memory, the base requests beside it, and its end.
    fn tree(&mut self, nodes: usize) -> Result<(), Failure> {
        let state = format!("{nodes} nodes");
        let before = self.memory();
        let Some(time) = self.prepare(&state, 0..nodes, Self::write_tree_node)? else {
            return Ok(());
        };
        self.say(&state, "fill, per WRITE", "instructions", time.as_nanos() / nodes as u128);
        if let (Some(before), Some(after)) = (before, self.memory()) {
            let bytes = after.saturating_sub(before) as f64 / nodes as f64;
            self.say(&state, "memory per node", "bytes", format!("{bytes:.1}"));
        }
        self.measure(&state, &self.home())?;
        let time = self.link.time(Kind::Rm, 0, b"/tree\0")?;
        self.say(&state, "RM of the tree", "instructions", time.as_nanos());
        Ok(())
    }

    pub(crate) fn write_tree_node(&mut self, node: usize) -> Result<(), Failure> {
        let path = format!("/tree/group-{}/node-{}", node / GROUP, node % GROUP);
        self.write(&path, &format!("value {node:05}")).map(drop)
    }

    /// Bytes that the server has in use: its heap as it says, or the resident pages of the daemon.
    fn memory(&mut self) -> Option<u64> {
        if self.server == "ours" {
            return self.link.figure("memreport", "heap: used");
        }
        let name = format!("{}\n", self.server);
        let mut processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        let process = processes.find(|entry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == name)
        })?;
        let status = fs::read_to_string(process.path().join("status")).ok()?;
        let (_, rest) = status.split_once("VmRSS:")?;
        let kib = rest.split_whitespace().next()?.parse::<u64>().ok()?;
        Some(kib * 1024)
    }
}
