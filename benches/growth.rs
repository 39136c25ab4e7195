//! The cost of a request for the server as the store grows, in instructions: `scripts/bench --host`.
//!
//! ```text
//! growth nodes|watches|connections|children COUNT     fills a store, and has each kind of request served
//! growth counts FILE STATE                            what callgrind counted meanwhile, a line each
//! ```
//!
//! Callgrind counts only inside the functions `measured_*`: from the client's signal to the server's sleep, in the
//! simulated world of the tests. Each store also has a thousand nodes.

#![expect(clippy::print_stdout, reason = "a program for people")]

extern crate alloc;

use alloc::collections::BTreeMap;
use core::hint::black_box;

use std::fs;
use std::process::ExitCode;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::{Client, Simulation};

/// Nodes below one parent.
const GROUP: usize = 200;

/// How many nodes there are if it is not they that grow.
const FEW: usize = 1000;

/// Requests of each kind that are counted.
const ROUNDS: usize = 100;

const VALUE: &str = "0123456789";

/// A function of its own for each kind of request, so that callgrind tells them apart.
macro_rules! measured {
    ($($function:ident $name:literal,)*) => {
        /// The functions and what they serve.
        const MEASURED: &[(&str, &str)] = &[$((stringify!($function), $name),)*];
        $(
            #[inline(never)]
            fn $function(simulation: &mut Simulation) {
                // The name keeps them from being folded into one.
                black_box($name);
                black_box(simulation.settle());
            }
        )*
    };
}

measured! {
    measured_read "READ",
    measured_write "WRITE existing",
    measured_new "WRITE new",
    measured_directory "DIRECTORY, empty",
    measured_rm "RM",
    measured_transaction "start, read, write, commit",
    measured_event "WRITE until its event is read",
}

/// A server and its first client.
struct Bench {
    simulation: Simulation,
    client: Client,
}

type Serve = fn(&mut Simulation);

fn unmeasured(simulation: &mut Simulation) {
    let _ = simulation.settle();
}

impl Bench {
    /// A request, served by that function; its reply, which must be no error.
    fn ask(&mut self, serve: Serve, kind: Kind, tx: u32, payload: &[u8]) -> Vec<u8> {
        let (bytes, req_id) = self.client.request(kind.number(), tx, payload);
        assert_eq!(self.client.write(&bytes), bytes.len(), "the ring has room for one request");
        serve(&mut self.simulation);
        self.client.read(usize::MAX);
        let mut messages = core::iter::from_fn(|| self.client.next_message());
        let reply = messages.find(|message| message.header.req_id == req_id).expect("a reply");
        let text = payload.escape_ascii();
        assert_eq!(reply.header.kind, kind.number(), "{text}: {}", reply.payload.escape_ascii());
        reply.payload
    }

    fn write(&mut self, serve: Serve, path: &str) {
        self.ask(serve, Kind::Write, 0, format!("{path}\0{VALUE}").as_bytes());
    }

    fn watch(&mut self, path: &str, token: &str) {
        self.ask(unmeasured, Kind::Watch, 0, format!("{path}\0{token}\0").as_bytes());
    }

    fn tree(&mut self, nodes: usize) {
        for node in 0..nodes {
            self.write(unmeasured, &format!("/tree/group-{}/node-{}", node / GROUP, node % GROUP));
        }
    }

    /// Domains with connections of their own, each with a watch.
    fn connect(&mut self, count: usize) {
        for domid in 1..=u16::try_from(count).expect("domids have 15 bits") {
            let port = self.simulation.world.create(DomId(domid));
            let payload = format!("{domid}\x001\0{port}\0");
            self.ask(unmeasured, Kind::Introduce, 0, payload.as_bytes());
            let mut guest = self.simulation.client(DomId(domid));
            let (bytes, _) = guest.request(Kind::Watch.number(), 0, b"data\0token\0");
            guest.write(&bytes);
            unmeasured(&mut self.simulation);
            guest.read(usize::MAX);
        }
    }

    /// Each kind of request, again and again.
    fn measure(&mut self, existing: &str, new: &str) {
        self.write(unmeasured, existing);
        let name = format!("{existing}\0");
        let value = format!("{existing}\0{VALUE}");
        for round in 0..=ROUNDS {
            // The first round finds things that are not there yet.
            let pick = |serve: Serve| if round == 0 { unmeasured } else { serve };
            let value_read = self.ask(pick(measured_read), Kind::Read, 0, name.as_bytes());
            assert_eq!(value_read, VALUE.as_bytes());
            self.write(pick(measured_write), existing);
            self.ask(pick(measured_directory), Kind::Directory, 0, name.as_bytes());
            self.write(pick(measured_new), new);
            self.ask(pick(measured_rm), Kind::Rm, 0, format!("{new}\0").as_bytes());
            let serve = pick(measured_transaction);
            let id = self.ask(serve, Kind::TransactionStart, 0, b"\0");
            let id = String::from_utf8_lossy(&id).trim_end_matches('\0').parse();
            let tx = id.expect("a transaction id");
            self.ask(serve, Kind::Read, tx, name.as_bytes());
            self.ask(serve, Kind::Write, tx, value.as_bytes());
            self.ask(serve, Kind::TransactionEnd, tx, b"T\0");
            self.watch(existing, "token");
            self.write(pick(measured_event), existing);
            self.ask(unmeasured, Kind::Unwatch, 0, format!("{existing}\0token\0").as_bytes());
        }
    }
}

fn fill_and_measure(what: &str, count: usize) -> Result<(), String> {
    let (simulation, client) = Simulation::start("");
    let mut bench = Bench { simulation, client };
    bench.tree(if what == "nodes" { count } else { FEW });
    // In the middle of the tree.
    let group = if what == "nodes" { count } else { FEW } / GROUP / 2;
    let mut existing = format!("/tree/group-{group}/node-{}", GROUP / 2);
    let mut new = format!("/tree/group-{group}/new");
    match what {
        "nodes" => {}
        "watches" => (0..count).for_each(|n| bench.watch(&format!("/watched/{n}"), "unrelated")),
        "connections" => bench.connect(count),
        "children" => {
            (0..count).for_each(|n| bench.write(unmeasured, &format!("/crowded/child-{n}")));
            existing = format!("/crowded/child-{}", count / 2);
            new = "/crowded/new".to_owned();
        }
        _ => return Err(format!("what is {what}?")),
    }
    bench.measure(&existing, &new);
    Ok(())
}

/// The name behind a key of callgrind's, which gives each name once, with a number.
fn name<'a>(names: &mut BTreeMap<&'a str, &'a str>, text: &'a str) -> &'a str {
    match text.split_once(' ') {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(text).copied().unwrap_or(text),
    }
}

/// Instructions by function, what it calls included.
fn inclusive(text: &str) -> BTreeMap<&str, u64> {
    let (mut names, mut costs) = (BTreeMap::new(), BTreeMap::new());
    let mut current = "";
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            current = name(&mut names, function);
        } else if let Some(function) = line.strip_prefix("cfn=") {
            name(&mut names, function);
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // A line of code, or of a call with all that it costs: where, and how much.
            let cost = line.rsplit(' ').next().and_then(|cost| cost.parse::<u64>().ok());
            *costs.entry(current).or_default() += cost.unwrap_or(0);
        }
    }
    costs
}

fn counts(file: &str, state: &str) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let costs = inclusive(&text);
    for (function, what) in MEASURED {
        let found = costs.iter().find(|(name, _)| name.ends_with(function));
        let (_, cost) = found.ok_or_else(|| format!("{function} was not counted"))?;
        println!("=\thost\t{state}\t{what}\tinstructions\t{}", cost / ROUNDS as u64);
    }
    Ok(())
}

fn main() -> ExitCode {
    // Cargo passes an option of the test harness, too.
    let words = std::env::args().skip(1).filter(|word| word != "--bench").collect::<Vec<_>>();
    let words = words.iter().map(String::as_str).collect::<Vec<_>>();
    let result = match words[..] {
        ["counts", file, state] => counts(file, state),
        [what, count] => match count.parse() {
            Ok(count) => fill_and_measure(what, count),
            Err(_) => Err(format!("how many are {count}?")),
        },
        _ => Err("the head of benches/growth.rs says how to call this".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("failed: {what}");
            ExitCode::FAILURE
        }
    }
}
