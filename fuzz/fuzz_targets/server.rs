//! The whole server on the image's own allocator, in a domain whose memory has an end. The input is bytes of
//! several connections, index words, kills, steps of the clock, bursts that fill the memory, a Xen that refuses
//! more memory, and refused blocks. The server must not panic, its accounts must balance, the first domain must be
//! served, and in the end everything is given back.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::{Client, Memory, Simulation};
use xen_kernel_rt::memory::bounded::{Bounded, Growth};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Pages of the server's domain at the start, and the most.
const PAGES: (usize, usize) = (900, 1800);

#[derive(Arbitrary, Debug)]
enum Step {
    /// Bytes as they are.
    Bytes(u8, Vec<u8>),
    /// A request with a proper header.
    Request(u8, u8, u8, Vec<u8>),
    Word(u8, u8, u32),
    Ambush(u8, u8, u8, u32),
    Read(u8, u16),
    Signal(u8),
    Kill(u8),
    Shutdown(u8, bool),
    Introduce(u8),
    Clock(u16),
    /// Xen has no more, or so many pages more, or all there is.
    Growth(u16),
    /// A block is refused soon.
    Refuse(u16),
    /// Many requests of one kind, each with another number in it: kind, transaction, how many, bytes of a value or token.
    Burst(u8, u8, u8, u16, u16),
    Pass,
}

/// Guests; the first domain is honest unless it is told to send something.
const GUESTS: u16 = 3;

fn introduce(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let world = &simulation.world;
    if !world.exists(DomId(domid)) {
        world.create(DomId(domid));
    }
    let port = world.offer(DomId(domid));
    ask(simulation, dom0, Kind::Introduce, format!("{domid}\x001\0{port}\0").as_bytes());
    simulation.client(DomId(domid))
}

/// A request of the first domain, and its reply.
fn ask(simulation: &mut Simulation, dom0: &mut Client, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let (bytes, req_id) = dom0.request(kind.number(), 0, payload);
    let mut rest = &bytes[..];
    for _ in 0..10_000 {
        rest = &rest[dom0.write(rest)..];
        simulation.settle();
        while dom0.read(usize::MAX) > 0 {
            simulation.settle();
        }
        while let Some(message) = dom0.next_message() {
            if message.header.req_id == req_id && message.header.kind != 15 {
                return message.payload;
            }
        }
    }
    panic!("the first domain got no reply");
}

fn memory(simulation: &Simulation) -> Memory {
    simulation.world.memory().expect("started with it")
}

/// The guest reads nothing meanwhile; what finds no room in its ring is not sent.
fn burst(sim: &mut Simulation, client: &mut Client, kind: u8, tx: u32, count: u16, size: usize) {
    let long = "l".repeat(size);
    for n in 0..count {
        let place = format!("{}/{}", n / 100, n % 100);
        let (kind, payload) = match kind % 7 {
            0 => (Kind::Write, format!("{place}\0{long}")),
            1 => (Kind::Watch, format!("0\0{long}{n}\0")),
            2 => (Kind::Watch, format!("@releaseDomain\0{long}{n}\0")),
            3 => (Kind::Mkdir, format!("{long}/{place}\0")),
            4 => (Kind::Mkdir, format!("{}\0", "c/".repeat(size / 2 + 1).trim_end_matches('/'))),
            5 => (Kind::Rm, format!("{}\0", n % 5)),
            _ => (Kind::TransactionStart, String::from("\0")),
        };
        let tx = if kind == Kind::TransactionStart { 0 } else { tx };
        let (bytes, _) = client.request(kind.number(), tx, payload.as_bytes());
        let mut rest = &bytes[..];
        for _ in 0..4 {
            rest = &rest[client.write(rest)..];
            let _ = sim.pass();
        }
        if !rest.is_empty() {
            // A request that was cut is finished some time, or not.
            return;
        }
        client.read(usize::MAX);
        while client.next_message().is_some() {}
    }
}

fn step(simulation: &mut Simulation, dom0: &mut Client, guests: &mut [Client], step: Step) {
    let of = |guest: u8| u16::from(guest) % GUESTS;
    let world = simulation.world.clone();
    match step {
        Step::Bytes(guest, bytes) => {
            guests[usize::from(of(guest))].write(&bytes);
        }
        Step::Request(guest, kind, tx, payload) => {
            let client = &mut guests[usize::from(of(guest))];
            let (bytes, _) = client.request(u32::from(kind) % 30, u32::from(tx) % 4, &payload);
            client.write(&bytes);
        }
        Step::Word(guest, word, value) => {
            let page = guests[usize::from(of(guest))].page();
            page.set_word(Word::ALL[usize::from(word) % 8], value);
        }
        Step::Ambush(guest, loads, word, value) => {
            let page = guests[usize::from(of(guest))].page();
            page.ambush(usize::from(loads), Word::ALL[usize::from(word) % 8], value);
        }
        Step::Read(guest, limit) => {
            guests[usize::from(of(guest))].read(usize::from(limit));
        }
        Step::Signal(guest) => world.signal(DomId(1 + of(guest))),
        Step::Kill(guest) => world.destroy(DomId(1 + of(guest))),
        Step::Shutdown(guest, shutdown) => world.set_shutdown(DomId(1 + of(guest)), shutdown),
        Step::Introduce(guest) => {
            let guest = of(guest);
            guests[usize::from(guest)] = introduce(simulation, dom0, 1 + guest);
        }
        Step::Clock(ms) => world.set_clock(world.now_ms() + u64::from(ms)),
        Step::Growth(pages) => memory(simulation).set_growth(match pages {
            0 => Growth::Refused,
            u16::MAX => Growth::Granted,
            pages => Growth::Until(usize::from(pages)),
        }),
        Step::Refuse(n) => memory(simulation).fail_nth(u64::from(n)),
        Step::Burst(guest, kind, tx, count, size) => {
            let client = &mut guests[usize::from(of(guest))];
            burst(simulation, client, kind, u32::from(tx) % 4, count % 400, usize::from(size) % 2000);
        }
        Step::Pass => {
            let _ = simulation.pass();
        }
    }
    // Only what its guests see of memory may run short here; the first domain's turn comes below.
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = Memory::new(PAGES.0, PAGES.1);
    let options = "-E 3000 -t 4 -Q outstanding=4";
    let (mut simulation, mut dom0) = Simulation::start_bounded(options, memory.clone());
    let mut guests: Vec<Client> =
        (1..=GUESTS).map(|domid| introduce(&mut simulation, &mut dom0, domid)).collect();
    for guest in 1..=GUESTS {
        let home = format!("/local/domain/{guest}\0");
        ask(&mut simulation, &mut dom0, Kind::Mkdir, home.as_bytes());
        let perms = format!("/local/domain/{guest}\0b{guest}\0");
        ask(&mut simulation, &mut dom0, Kind::SetPerms, perms.as_bytes());
    }
    for one in steps.into_iter().take(200) {
        step(&mut simulation, &mut dom0, &mut guests, one);
    }
    memory.fail_nth(0);
    // Between two turns of work the books have what is under way neither here nor there.
    simulation.settle();
    simulation.check().expect("the books balance while memory is short");
    memory.set_growth(Growth::Granted);
    simulation.world.signal(DomId(0));
    simulation.sleep(100);
    simulation.check().expect("the books balance");
    for guest in 1..=GUESTS {
        simulation.world.destroy(DomId(guest));
    }
    simulation.settle();
    for path in ["/local\0", "/tool\0"] {
        ask(&mut simulation, &mut dom0, Kind::Rm, path.as_bytes());
    }
    let report = ask(&mut simulation, &mut dom0, Kind::Control, b"memreport\0");
    let report = String::from_utf8_lossy(&report);
    for line in ["nodes: 3", "watches: 0", "transactions: 0", "connections: 1", "ports: 1"] {
        assert!(report.contains(line), "{line} expected in\n{report}");
    }
    simulation.check().expect("the books balance");
    simulation.end().expect("everything is given back");
});
