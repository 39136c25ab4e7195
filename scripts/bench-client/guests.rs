//! Test guests in the role `bench`: they get orders through a node, and print figures on their consoles.

use crate::cases::{Bench, LIMIT};
use crate::link::Failure;
use core::time::Duration;
use std::fs;
use std::time::Instant;
use xenstore_stubdom::proto::wire::Kind;

/// Time between two looks at what they have printed: so much that looking costs nothing beside their work.
const PAUSE: Duration = Duration::from_millis(50);

/// READs with a ring that is always full, for each round.
const FLOOD: usize = 50;

/// Requests of each guest in a crowd, for each round: a WRITE and a READ, twice.
const CROWD: usize = 2;

/// What a guest has printed so far, a line each.
fn printed(name: &str) -> Vec<String> {
    let path = format!("/var/log/xen/console/guest-{name}.log");
    let text = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(|line| line.trim().to_owned()).collect()
}

impl Bench {
    /// Gives all guests an order at once, and waits for the last one.
    fn order(&mut self, names: &[String], order: &str) -> Result<(), Failure> {
        if names.is_empty() {
            return Err("which guests?".to_owned());
        }
        self.write("/bench/order", order)?;
        let done = format!("bench: {order} is done");
        let begin = Instant::now();
        for name in names {
            while !printed(name).contains(&done) {
                if let Some(verdict) = printed(name).iter().find(|l| l.starts_with("verdict: ")) {
                    return Err(format!("{name}: {verdict}"));
                }
                if begin.elapsed() > LIMIT {
                    return Err(format!("{name} is not through with {order}"));
                }
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// The base requests of a guest on a raw ring, in a state of the store; in an empty one, a ring that is always full,
    /// too.
    pub(crate) fn test_guest(&mut self, words: &[String]) -> Result<(), Failure> {
        let (name, state) = words.split_at(1.min(words.len()));
        let state = if state.is_empty() { "empty".to_owned() } else { state.join(" ") };
        self.order(name, &format!("base {} {state}", self.rounds))?;
        if state == "empty" {
            self.flood(name)?;
        }
        self.repeat(name, &state)
    }

    fn flood(&mut self, names: &[String]) -> Result<(), Failure> {
        let count = self.rounds * FLOOD;
        let before = self.hypercalls();
        self.order(names, &format!("flood {count}"))?;
        let what = "READ, ring always full";
        self.say_hypercalls("empty", what, before, count);
        Ok(())
    }

    /// The figures of a state that guests have printed.
    pub(crate) fn repeat(&mut self, names: &[String], state: &str) -> Result<(), Failure> {
        for line in names.iter().flat_map(|name| printed(name)) {
            if line.starts_with("=\t") && line.split('\t').nth(2) == Some(state) {
                self.lines.push(line);
            }
        }
        Ok(())
    }

    /// Introduces a domain to a server that the toolstack does not know.
    pub(crate) fn introduce(&mut self, words: &[String]) -> Result<(), Failure> {
        let [domid, port] = words else { return Err("which domain and port?".to_owned()) };
        let payload = format!("{domid}\x001\0{port}\0");
        self.link.ask(Kind::Introduce, 0, payload.as_bytes()).map(drop)
    }

    /// Many guests at once.
    pub(crate) fn crowd(&mut self, names: &[String]) -> Result<(), Failure> {
        let count = self.rounds * CROWD;
        let state = format!("{} guests at once", names.len());
        let before = self.hypercalls();
        self.order(names, &format!("crowd {count}"))?;
        let requests = names.len() * count * 2;
        self.say_hypercalls(&state, "WRITE and READ", before, requests);
        let mut spans = Vec::new();
        for name in names {
            let lines = printed(name);
            let span = lines.iter().find_map(|line| {
                let (begin, end) = line.strip_prefix("crowd: ")?.split_once(' ')?;
                Some((begin.parse::<u64>().ok()?, end.parse::<u64>().ok()?))
            });
            spans.push(span.ok_or_else(|| format!("{name} did not say how long it took"))?);
        }
        let first = spans.iter().map(|span| span.0).min().unwrap_or(0);
        let last = spans.iter().map(|span| span.1).max().unwrap_or(0);
        let lengths = spans.iter().map(|(begin, end)| end.saturating_sub(*begin));
        let fastest = lengths.clone().min().unwrap_or(0).max(1);
        let slowest = lengths.max().unwrap_or(0);
        let each = last.saturating_sub(first) / requests.max(1) as u64;
        self.say(&state, "WRITE and READ, per request", "instructions", each);
        let ratio = format!("{:.3}", slowest as f64 / fastest as f64);
        self.say(&state, "slowest over fastest", "ratio", ratio);
        Ok(())
    }
}
