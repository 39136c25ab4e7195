//! How much the server does before it looks at another connection, whatever a guest does within the default quotas, and how
//! much before the privileged domain has its reply. Counted by callgrind:
//!
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured_slice*' slices CASE
//! ```
//!
//! What callgrind has collected, divided by the passes that are printed, is what one takes. With
//! `--dump-before='*measured_slice*' --dump-before='*slice_done*'` instead of the other two options there are two files for each
//! pass; the greatest total of those that `slice_done` triggered is the most that one takes.
//! One call of `measured_slice` is one pass: one turn's work, and the look at what happened.
//! Cases: `commit` (128 watches, a commit of 245 nodes below them), `rm` (of 990 nodes with 128 watches on each),
//! `chain` (RM in a transaction of a path of 900 levels), `deep` and `deep-tx` (a WRITE that makes 900 levels, the latter in a
//! transaction, and its commit), `look`, `look-watched` and `look-tx` (requests about such a path, the second with a watch there,
//! the third in transactions), `deep-watch` (a watch on such a path, and RESET_WATCHES with 100 of them), `wide-tx` and `rm-tx`
//! (560 nodes made, changed, and removed in transactions; RM of 980 that were not touched), `directory`, `part`
//! (DIRECTORY_PART of 20,000 names),
//! `tree` (RM by the privileged domain of its 20,400 nodes, nobody watching),
//! `deaths` (50 in one look, 100 guests with all their watches on `@releaseDomain`), `dom0 N` (a request of the
//! privileged domain, while N guests remove what they have), `control N COMMAND [ARGUMENT]...` (an administrator's
//! request with N guests, each of which has used the store; the passes have the request and the reply in them),
//! `control-wide N COMMAND [ARGUMENT]...` (the same, and each guest has limits of its own, as long as there are numbers).

#![expect(clippy::print_stdout, reason = "a program for people")]

extern crate alloc;

use core::hint::black_box;
use std::process::ExitCode;
use xen_kernel_rt::memory::bounded::Bounded;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::Pass;
use xenstore_stubdom::sim::{Client, Memory, Simulation};

/// The server runs on the image's own allocator: what the system's does at times is no matter here.
#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// One pass; `false` if nothing is left.
fn slice(simulation: &mut Simulation) -> bool {
    let goes_on = measured_slice(simulation);
    slice_done();
    goes_on
}

#[inline(never)]
fn measured_slice(simulation: &mut Simulation) -> bool {
    let Simulation { world, server } = simulation;
    !matches!(black_box(world.serve(|| server.pass())), Pass::Idle(_))
}

/// For callgrind, to tell a pass from what the client does before the next.
#[inline(never)]
fn slice_done() {
    black_box(());
}

/// As many names as a node may have: 16 bytes of header and 8 of permissions are of its size, too.
const WIDE: usize = 560;

struct Bench {
    simulation: Simulation,
    dom0: Client,
}

impl Bench {
    fn new() -> Self {
        let (simulation, dom0) = Simulation::start_bounded("", Memory::of_domain(64, 256));
        Self { simulation, dom0 }
    }

    /// A request of the privileged domain, unmeasured.
    fn ask(&mut self, kind: Kind, payload: &str) {
        let messages = self.simulation.ask(&mut self.dom0, kind, 0, payload.as_bytes());
        let answer = messages.iter().find(|message| message.header.kind == kind.number());
        assert!(answer.is_some(), "{kind:?} {payload:?}: {messages:?}");
    }

    /// A guest with a directory of its own.
    fn guest(&mut self, domid: u16) -> Client {
        let port = self.simulation.world.create(DomId(domid));
        self.ask(Kind::Introduce, &format!("{domid}\x001\0{port}\0"));
        self.ask(Kind::Mkdir, &format!("/local/domain/{domid}\0"));
        self.ask(Kind::SetPerms, &format!("/local/domain/{domid}\0n{domid}\0"));
        self.simulation.client(DomId(domid))
    }

    /// A guest's request, unmeasured; its reply.
    fn ask_as(&mut self, guest: &mut Client, kind: Kind, tx: u32, payload: &str) -> String {
        let messages = self.simulation.ask(guest, kind, tx, payload.as_bytes());
        let answer = messages.into_iter().find(|message| message.header.kind == kind.number());
        let answer = answer.unwrap_or_else(|| panic!("{kind:?} {payload:?} is refused"));
        String::from_utf8_lossy(&answer.payload).trim_end_matches('\0').to_owned()
    }

    /// Puts a request into the ring, as far as it fits, and measures every pass until nothing is left to do.
    fn measure(&mut self, client: &mut Client, kind: Kind, tx: u32, payload: &str) {
        let (bytes, _) = client.request(kind.number(), tx, payload.as_bytes());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            rest = &rest[client.write(rest)..];
            self.slices();
        }
        while client.read(usize::MAX) > 0 {
            self.slices();
        }
    }

    fn slices(&mut self) {
        let mut slices = 1;
        while slice(&mut self.simulation) {
            slices += 1;
        }
        println!("{slices} passes");
    }

    fn watches(&mut self, guest: &mut Client, path: &str, count: usize) {
        for n in 0..count {
            self.ask_as(guest, Kind::Watch, 0, &format!("{path}\0token-{n}\0"));
        }
    }

    fn tree(&mut self, guest: &mut Client, tx: u32, nodes: usize) {
        for n in 0..nodes {
            let path = format!("data/{}/{}\0x", n / 100, n % 100);
            self.ask_as(guest, Kind::Write, tx, &path);
        }
    }
}

fn begin(bench: &mut Bench, guest: &mut Client) -> u32 {
    let id = bench.ask_as(guest, Kind::TransactionStart, 0, "\0");
    id.parse().expect("a transaction id")
}

/// A request of an administrator.
fn control(bench: &mut Bench, count: usize, words: &[&str], wide: bool) -> Result<(), String> {
    for domid in 1..=u16::try_from(count).map_err(|_| "that many domids there are not")? {
        let mut guest = bench.guest(domid);
        bench.watches(&mut guest, "data", 3);
        bench.tree(&mut guest, 0, 20);
        for quota in ["nodes", "watches", "transactions", "outstanding", "memory"] {
            if wide {
                bench.ask(Kind::SetQuota, &format!("{domid}\0{quota}\02147483647\0"));
            }
        }
        // Of these events it reads none.
        bench.ask(Kind::Write, &format!("/local/domain/{domid}/data\0x"));
    }
    let payload = words.iter().flat_map(|word| word.bytes().chain([0])).collect::<Vec<_>>();
    let (bytes, _) = bench.dom0.request(Kind::Control.number(), 0, &payload);
    assert_eq!(bench.dom0.write(&bytes), bytes.len(), "the ring has room for one request");
    let mut passes = 0;
    let reply = loop {
        let _ = slice(&mut bench.simulation);
        passes += 1;
        bench.dom0.read(usize::MAX);
        if let Some(message) = bench.dom0.next_message() {
            break message;
        }
        assert!(passes < 1_000_000, "no reply");
    };
    assert_eq!(reply.header.kind, Kind::Control.number(), "{:?}", reply.payload);
    println!("{passes} passes until the reply of {} bytes", reply.payload.len());
    Ok(())
}

fn deaths(bench: &mut Bench) {
    for domid in 1..=100 {
        let mut guest = bench.guest(domid);
        bench.watches(&mut guest, "@releaseDomain", 128);
    }
    (101..=150).for_each(|domid| drop(bench.guest(domid)));
    (101..=150).for_each(|domid| bench.simulation.world.destroy(DomId(domid)));
    bench.slices();
}

fn tree_of_dom0(bench: &mut Bench) {
    for n in 0..20_400 {
        bench.ask(Kind::Write, &format!("/bench/{}/{n}\x000123456789", n / 200));
    }
    let (bytes, _) = bench.dom0.request(Kind::Rm.number(), 0, b"/bench\0");
    bench.dom0.write(&bytes);
    bench.slices();
}

/// A request of the privileged domain while so many guests remove what they have.
fn look_of_dom0(bench: &mut Bench, count: usize) {
    let mut guests = (1..=count).map(|n| u16::try_from(n).expect("few")).collect::<Vec<_>>();
    for domid in guests.drain(..) {
        let mut guest = bench.guest(domid);
        bench.watches(&mut guest, "data", 128);
        bench.tree(&mut guest, 0, 200);
        let (bytes, _) = guest.request(Kind::Rm.number(), 0, b"data\0");
        guest.write(&bytes);
    }
    // They are in the middle of it.
    for _ in 0..count {
        let _ = slice(&mut bench.simulation);
    }
    let (bytes, _) = bench.dom0.request(Kind::Read.number(), 0, b"/tool\0");
    bench.dom0.write(&bytes);
    let mut passes = 0;
    while bench.dom0.read(usize::MAX) == 0 {
        let _ = slice(&mut bench.simulation);
        passes += 1;
    }
    println!("{passes} passes until the reply");
}

/// Cases about paths of many levels, or many names; `false` if it is none of them.
fn about_paths(bench: &mut Bench, guest: &mut Client, case: &str, deep: &str) -> bool {
    match case {
        "look" | "look-watched" => {
            bench.ask_as(guest, Kind::Write, 0, &format!("{deep}\0x"));
            if case == "look-watched" {
                bench.ask_as(guest, Kind::Watch, 0, &format!("{deep}\0t\0"));
            }
            for kind in [Kind::Read, Kind::Directory, Kind::GetPerms] {
                bench.measure(guest, kind, 0, &format!("{deep}\0"));
            }
            bench.measure(guest, Kind::Write, 0, &format!("{deep}\0y"));
            bench.measure(guest, Kind::SetPerms, 0, &format!("{deep}\0n1\0"));
            bench.measure(guest, Kind::Write, 0, &format!("{deep}/b\0y"));
            bench.measure(guest, Kind::Rm, 0, &format!("{deep}\0"));
        }
        "deep-watch" => {
            bench.measure(guest, Kind::Watch, 0, &format!("{deep}\0t\0"));
            bench.measure(guest, Kind::Watch, 0, &format!("{deep}\0t\0"));
            bench.measure(guest, Kind::Unwatch, 0, &format!("{deep}\0t\0"));
            for n in 0..100 {
                bench.ask_as(guest, Kind::Watch, 0, &format!("{n}/{deep}\0t\0"));
            }
            bench.measure(guest, Kind::ResetWatches, 0, "\0");
        }
        "part" => {
            bench.ask(Kind::Mkdir, "/wide\0");
            bench.ask(Kind::SetPerms, "/wide\0r0\0");
            for n in 0..20_000 {
                bench.ask(Kind::Mkdir, &format!("/wide/{n:x}\0"));
            }
            for offset in [0, 4000, 50_000, 50_000, 500_000] {
                bench.measure(guest, Kind::DirectoryPart, 0, &format!("/wide\0{offset}\0"));
            }
            let tx = begin(bench, guest);
            bench.measure(guest, Kind::DirectoryPart, tx, "/wide\x0050000\0");
        }
        _ => return false,
    }
    true
}

/// Cases in transactions; `false` if it is none of them.
fn in_transaction(bench: &mut Bench, guest: &mut Client, case: &str, deep: &str) -> bool {
    match case {
        "chain" => {
            bench.ask_as(guest, Kind::Write, 0, &format!("{deep}\0x"));
            let tx = begin(bench, guest);
            bench.ask_as(guest, Kind::Write, tx, &format!("{deep}\0y"));
            bench.measure(guest, Kind::Rm, tx, "data\0");
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
        }
        "look-tx" => {
            bench.ask_as(guest, Kind::Write, 0, &format!("{deep}\0x"));
            for kind in [Kind::Read, Kind::Directory, Kind::GetPerms, Kind::Rm] {
                let tx = begin(bench, guest);
                bench.measure(guest, kind, tx, &format!("{deep}\0"));
                bench.measure(guest, kind, tx, &format!("{deep}\0"));
                bench.measure(guest, Kind::TransactionEnd, tx, "F\0");
            }
        }
        "deep-tx" => {
            let tx = begin(bench, guest);
            bench.measure(guest, Kind::Write, tx, &format!("{deep}\0x"));
            bench.measure(guest, Kind::Write, tx, &format!("{deep}\0y"));
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
        }
        "wide-tx" => {
            let tx = begin(bench, guest);
            bench.ask_as(guest, Kind::Write, tx, "data\0x");
            for n in 0..WIDE {
                bench.ask_as(guest, Kind::Write, tx, &format!("data/{n:x}\0x"));
            }
            bench.measure(guest, Kind::Directory, tx, "data\0");
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
            let tx = begin(bench, guest);
            for n in 0..WIDE {
                bench.ask_as(guest, Kind::Write, tx, &format!("data/{n:x}\0y"));
            }
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
            let tx = begin(bench, guest);
            for n in 0..WIDE {
                bench.ask_as(guest, Kind::Read, tx, &format!("data/{n:x}\0"));
            }
            bench.measure(guest, Kind::Rm, tx, "data\0");
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
        }
        "rm-tx" => {
            bench.tree(guest, 0, 980);
            let tx = begin(bench, guest);
            bench.measure(guest, Kind::Rm, tx, "data\0");
            bench.measure(guest, Kind::TransactionEnd, tx, "T\0");
        }
        _ => return false,
    }
    true
}

fn run(case: &str, count: usize, words: &[&str]) -> Result<(), String> {
    let mut bench = Bench::new();
    if case == "deaths" {
        deaths(&mut bench);
        return Ok(());
    }
    if case == "tree" {
        tree_of_dom0(&mut bench);
        return Ok(());
    }
    if case == "dom0" {
        look_of_dom0(&mut bench, count);
        return Ok(());
    }
    if matches!(case, "control" | "control-wide") {
        return control(&mut bench, count, words, case == "control-wide");
    }
    let mut guest = bench.guest(1);
    let deep = format!("data{}", "/a".repeat(900));
    match case {
        "commit" => {
            bench.watches(&mut guest, "data", 128);
            let tx = begin(&mut bench, &mut guest);
            bench.tree(&mut guest, tx, 240);
            bench.measure(&mut guest, Kind::TransactionEnd, tx, "T\0");
        }
        "rm" => {
            bench.watches(&mut guest, "data", 128);
            bench.tree(&mut guest, 0, 980);
            bench.measure(&mut guest, Kind::Rm, 0, "data\0");
        }
        "deep" => bench.measure(&mut guest, Kind::Write, 0, &format!("{deep}\0x")),
        "directory" => {
            for n in 0..WIDE {
                bench.ask_as(&mut guest, Kind::Write, 0, &format!("data/{n:x}\0x"));
            }
            bench.measure(&mut guest, Kind::Directory, 0, "data\0");
        }
        _ if about_paths(&mut bench, &mut guest, case, &deep) => {}
        _ if in_transaction(&mut bench, &mut guest, case, &deep) => {}
        _ => return Err(format!("what is {case}?")),
    }
    Ok(())
}

fn main() -> ExitCode {
    // Cargo passes an option of the test harness, too.
    let words = std::env::args().skip(1).filter(|word| word != "--bench").collect::<Vec<_>>();
    let words = words.iter().map(String::as_str).collect::<Vec<_>>();
    let result = match words[..] {
        [case] => run(case, 0, &[]),
        [case, count, ref rest @ ..] => {
            count.parse().map_err(|_| "how many?".to_owned()).and_then(|n| run(case, n, rest))
        }
        _ => Err("the head of benches/slices.rs says how to call this".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("failed: {what}");
            ExitCode::FAILURE
        }
    }
}
