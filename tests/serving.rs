//! How the server shares its time: fairness, signals, sleep, and what hostile rings may cost others.

use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::Pass;
use xenstore_stubdom::sim::{Client, Message, Simulation};

const GET_DOMAIN_PATH: u32 = Kind::GetDomainPath.number();

/// Domain 0 introduces a domain with a page of its own.
fn introduce(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let port = simulation.world.create(DomId(domid));
    let payload = format!("{domid}\0{}\0{port}\0", 1);
    assert_eq!(ask(simulation, dom0, Kind::Introduce, payload.as_bytes()), b"OK\0");
    simulation.client(DomId(domid))
}

/// Sends a request outside transactions and waits for its reply.
fn ask(simulation: &mut Simulation, client: &mut Client, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let (bytes, req_id) = client.request(kind.number(), 0, payload);
    assert_eq!(client.write(&bytes), bytes.len());
    simulation.settle();
    loop {
        let read = client.read(usize::MAX);
        simulation.settle();
        while let Some(message) = client.next_message() {
            if message.header.req_id == req_id {
                return message.payload;
            }
        }
        assert!(read > 0, "no reply");
    }
}

fn count_replies(client: &mut Client) -> usize {
    client.read(usize::MAX);
    core::iter::from_fn(|| client.next_message()).count()
}

#[test]
fn the_first_domain_gets_exactly_one_event_and_an_idle_server_sleeps_for_good() {
    let (mut simulation, mut dom0) = Simulation::start("");
    assert_eq!(simulation.world.signals(DomId(0)), 1);
    assert_eq!(simulation.settle(), None);
    let mut guest = introduce(&mut simulation, &mut dom0, 7);
    ask(&mut simulation, &mut guest, Kind::Watch, b"@releaseDomain\0tok\0");
    ask(&mut simulation, &mut guest, Kind::Read, b"name\0");
    assert_eq!(simulation.settle(), None);
}

#[test]
fn requests_that_wait_in_the_first_ring_at_the_start_are_served() {
    let world = xenstore_stubdom::sim::World::new();
    let port = world.create(DomId(0));
    let page = world.page(DomId(0));
    // Written while nobody served the ring, whose indices stand somewhere.
    for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
        page.set_word(word, u32::MAX - 5);
    }
    page.set_word(Word::Connection, 1);
    let server =
        xenstore_stubdom::server::Server::new(world.platform(), &format!("--event {port}"));
    let mut simulation = Simulation { world, server };
    let mut dom0 = simulation.client(DomId(0));
    let (bytes, _) = dom0.request(GET_DOMAIN_PATH, 0, b"0\0");
    dom0.write(&bytes);
    simulation.server.start();
    simulation.settle();
    assert_eq!(page.word(Word::Connection), 0);
    assert_eq!(count_replies(&mut dom0), 1);
}

#[test]
fn a_wrong_port_is_named_and_the_server_goes_on() {
    let world = xenstore_stubdom::sim::World::new();
    world.create(DomId(0));
    let server = xenstore_stubdom::server::Server::new(world.platform(), "--event 99 --bad");
    let mut simulation = Simulation { world: world.clone(), server };
    simulation.server.start();
    assert_eq!(simulation.settle(), None);
    let console = world.take_console().join("\n");
    assert!(console.contains("EVTCHNOP_bind_interdomain failed with error 22"), "{console}");
    assert!(console.contains("--bad is unknown"), "{console}");
}

#[test]
fn a_missing_port_is_named_and_the_server_goes_on() {
    let world = xenstore_stubdom::sim::World::new();
    let server = xenstore_stubdom::server::Server::new(world.platform(), "");
    let mut simulation = Simulation { world: world.clone(), server };
    simulation.server.start();
    assert_eq!(simulation.settle(), None);
    assert!(world.take_console().iter().any(|line| line.contains("--event")));
}

#[test]
fn a_peer_is_told_once_a_pass_whatever_was_taken_and_put() {
    let (mut simulation, mut dom0) = Simulation::start("");
    for _ in 0..5 {
        let (bytes, _) = dom0.request(GET_DOMAIN_PATH, 0, b"1\0");
        dom0.write(&bytes);
    }
    let before = simulation.world.signals(DomId(0));
    simulation.settle();
    assert_eq!(simulation.world.signals(DomId(0)), before + 1);
    assert_eq!(count_replies(&mut dom0), 5);
}

#[test]
fn a_request_written_without_a_signal_while_the_server_is_busy_is_not_lost() {
    let (mut simulation, mut dom0) = Simulation::start("");
    // The same moment after moment, never with a second's rescan in between.
    for round in 0..50 {
        let (second, _) = dom0.request(GET_DOMAIN_PATH, 0, b"2\0");
        dom0.page().write_unnoticed(&second, round % 3);
        let (first, _) = dom0.request(GET_DOMAIN_PATH, 0, b"1\0");
        dom0.write(&first);
        assert_eq!(simulation.settle(), None);
        // Where there was no such moment, the client sees an idle server and signals.
        let unwritten = dom0.page().take_unwritten();
        if !unwritten.is_empty() {
            assert!(round % 3 > 0);
            dom0.write(&unwritten);
            assert_eq!(simulation.settle(), None);
        }
        assert_eq!(count_replies(&mut dom0), 2);
    }
}

#[test]
fn a_hundred_busy_guests_share_the_server_evenly() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut guests =
        (1..=100).map(|domid| introduce(&mut simulation, &mut dom0, domid)).collect::<Vec<_>>();
    let mut served = vec![0; guests.len()];
    for _ in 0..1500 {
        for (guest, served) in guests.iter_mut().zip(&mut served) {
            *served += count_replies(guest);
            loop {
                let (bytes, _) = guest.request(GET_DOMAIN_PATH, 0, b"1\0");
                let page = guest.page();
                let used = page.word(Word::ReqProd).wrapping_sub(page.word(Word::ReqCons));
                if used as usize + bytes.len() > 1024 {
                    break;
                }
                guest.write(&bytes);
            }
        }
        // The privileged domain has its turn in every pass.
        let (bytes, _) = dom0.request(GET_DOMAIN_PATH, 0, b"0\0");
        dom0.write(&bytes);
        assert_eq!(simulation.server.pass(), Pass::More);
        assert_eq!(count_replies(&mut dom0), 1);
    }
    let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    assert!(*least > 100 && most - least <= 16, "{least} to {most}");
}

#[test]
fn hostile_rings_cost_nobody_else_anything() {
    for seed in 1..=150 {
        hostile_run(seed);
    }
}

const PAYLOADS: [&[u8]; 6] = [b"a\0", b"a\0b\0", b"\0", b"", b"/local/domain/2/a\0n2\0", b"T\0"];

/// A small generator; the same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap())).unwrap()
    }

    fn word(&mut self, limit: u64) -> u32 {
        u32::try_from(self.below(limit)).unwrap()
    }
}

/// Something that no honest guest does, or something that looks honest.
fn misbehave(random: &mut Random, guest: &mut Client) {
    match random.below(10) {
        0 => {
            let word = Word::ALL[random.index(Word::ALL.len())];
            let near = guest.page().word(word).wrapping_add(random.word(40));
            guest.page().set_word(word, near);
        }
        1 if random.below(10) == 0 => {
            let word = Word::ALL[random.index(Word::ALL.len())];
            guest.page().set_word(word, random.word(1 << 32));
        }
        2 => {
            guest.read(usize::MAX);
            guest.forget();
        }
        3 => {
            let len = random.below(40);
            let bytes = (0..len).map(|_| u8::try_from(random.below(256)).unwrap());
            guest.write(&bytes.collect::<Vec<_>>());
        }
        _ => {
            let payload = PAYLOADS[random.index(PAYLOADS.len())];
            let (bytes, _) = guest.request(random.word(30), random.word(3), payload);
            guest.write(&bytes);
        }
    }
}

/// Guests that write anything anywhere, beside one that is honest.
fn hostile_run(seed: u64) {
    let mut random = Random::new(seed);
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut honest = introduce(&mut simulation, &mut dom0, 1);
    let mut hostile =
        (2..6).map(|domid| introduce(&mut simulation, &mut dom0, domid)).collect::<Vec<_>>();
    for _ in 0..200 {
        let index = random.index(hostile.len());
        let domid = u16::try_from(index).unwrap() + 2;
        match random.below(80) {
            0 => {
                let payload = format!("{domid}\0");
                ask(&mut simulation, &mut dom0, Kind::Release, payload.as_bytes());
                hostile[index] = introduce(&mut simulation, &mut dom0, domid);
            }
            1 => {
                simulation.world.destroy(DomId(domid));
                hostile[index] = introduce(&mut simulation, &mut dom0, domid);
            }
            _ => misbehave(&mut random, &mut hostile[index]),
        }
        if random.below(3) == 0 {
            simulation.world.signal(DomId(domid));
            simulation.sleep(random.below(40));
            let path = ask(&mut simulation, &mut honest, Kind::GetDomainPath, b"1\0");
            assert_eq!(path, b"/local/domain/1\0", "seed {seed}");
        }
    }
    simulation.check().unwrap_or_else(|findings| panic!("seed {seed}: {findings}"));
    for domid in 2..6 {
        simulation.world.destroy(DomId(domid));
    }
    simulation.sleep(60_000);
    let report = ask(&mut simulation, &mut dom0, Kind::Control, b"memreport\0");
    let report = String::from_utf8(report).unwrap();
    for line in ["nodes: 5", "watches: 0", "transactions: 0", "connections: 2", "ports: 2"] {
        assert!(report.contains(line), "seed {seed}: {line} expected in\n{report}");
    }
    simulation.check().unwrap_or_else(|findings| panic!("seed {seed}: {findings}"));
}

/// A host on which the death of domain 7 takes many turns, and the first domain watches for it.
fn host_with_much_to_bury() -> (Simulation, Client) {
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut guest = introduce(&mut simulation, &mut dom0, 7);
    ask(&mut simulation, &mut dom0, Kind::Mkdir, b"/local/domain/7\0");
    ask(&mut simulation, &mut dom0, Kind::SetPerms, b"/local/domain/7\0n7\0");
    for n in 0..128 {
        let watch = format!("d/{n}\0token\0");
        let replies = texts(simulation.ask(&mut guest, Kind::Watch, 0, watch.as_bytes()));
        assert_eq!(replies.first().map(Vec::as_slice), Some(&b"OK\0"[..]));
    }
    for n in 0..900 {
        let node = format!("e/{}/{}\0value", n / 50, n % 50);
        assert_eq!(ask(&mut simulation, &mut guest, Kind::Write, node.as_bytes()), b"OK\0");
    }
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@releaseDomain\0token\0");
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@introduceDomain\0token\0");
    simulation.drain(&mut dom0);
    (simulation, dom0)
}

fn texts(messages: Vec<Message>) -> Vec<Vec<u8>> {
    messages.into_iter().map(|message| message.payload).collect()
}

/// A death may take more than a turn. RELEASE is answered when it is over: who has the reply finds nothing of the domain
/// any more, and has had the event.
#[test]
fn a_death_that_takes_more_than_a_turn_is_told_once_and_before_the_reply() {
    let (mut simulation, mut dom0) = host_with_much_to_bury();
    let messages = simulation.ask(&mut dom0, Kind::Release, 0, b"7\0");
    assert_eq!(texts(messages), [&b"@releaseDomain\0token\0"[..], b"OK\0"]);
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, b"/local/domain/7\0"), b"ENOENT\0");
    simulation.server.check().unwrap();
}

/// That it waits is at nobody else's expense, and neither a live update nor a failure in the middle changes what comes.
#[test]
fn release_waits_without_holding_up_others_and_through_live_updates_and_failures() {
    for disturbance in 0..3 {
        let (mut simulation, mut dom0) = host_with_much_to_bury();
        let mut other = introduce(&mut simulation, &mut dom0, 8);
        simulation.drain(&mut dom0);
        let (bytes, _) = dom0.request(Kind::Release.number(), 0, b"7\0");
        assert_eq!(dom0.write(&bytes), bytes.len());
        assert_eq!(simulation.pass(), Pass::More);
        assert!(simulation.server.is_cleaning_up(), "a turn is enough for this death");
        let (bytes, _) = other.request(GET_DOMAIN_PATH, 0, b"1\0");
        assert_eq!(other.write(&bytes), bytes.len());
        let mut passes = 0;
        while count_replies(&mut other) == 0 {
            assert_eq!(simulation.pass(), Pass::More);
            passes += 1;
        }
        assert!(passes <= 2 && simulation.server.is_cleaning_up(), "{passes} passes");
        assert_eq!(dom0.read(usize::MAX), 0, "it was answered before all is over");
        match disturbance {
            0 => {}
            1 => simulation.hand_over().unwrap(),
            _ => simulation.go_on().unwrap(),
        }
        let messages = simulation.drain(&mut dom0);
        assert_eq!(texts(messages), [&b"@releaseDomain\0token\0"[..], b"OK\0"], "{disturbance}");
        simulation.server.check().unwrap();
    }
}

/// The news of a new domain wait for those of a death that goes on; then the reply to INTRODUCE does, too.
#[test]
fn introduce_is_answered_behind_its_event_while_a_death_goes_on() {
    let (mut simulation, mut dom0) = host_with_much_to_bury();
    let port = simulation.world.create(DomId(8));
    simulation.world.destroy(DomId(7));
    let (bytes, _) =
        dom0.request(Kind::Introduce.number(), 0, format!("8\x001\0{port}\0").as_bytes());
    assert_eq!(dom0.write(&bytes), bytes.len());
    let messages = simulation.drain(&mut dom0);
    let wanted = [&b"@releaseDomain\0token\0"[..], b"@introduceDomain\0token\0", b"OK\0"];
    assert_eq!(texts(messages), wanted);
    simulation.server.check().unwrap();
}

/// Writes a request into the ring, with pauses until the last part fits.
fn send(simulation: &mut Simulation, client: &mut Client, kind: Kind, tx: u32, payload: &[u8]) {
    let (bytes, _) = client.request(kind.number(), tx, payload);
    let mut written = client.write(&bytes);
    while written < bytes.len() {
        simulation.settle();
        written += client.write(&bytes[written..]);
    }
}

/// As many levels as a path of a guest can have, below a node of its home.
fn deep(top: char) -> String {
    format!("{top}{}", "/l".repeat(900))
}

/// A request that takes turns is refused on its way. The next one has nothing of it.
#[test]
fn a_request_that_is_refused_on_its_way_leaves_nothing_to_the_next() {
    let (mut simulation, mut dom0) = Simulation::start("--quota nodes=5000");
    let mut guest = introduce(&mut simulation, &mut dom0, 7);
    let home = b"/local/domain/7\0";
    ask(&mut simulation, &mut dom0, Kind::Mkdir, home);
    ask(&mut simulation, &mut dom0, Kind::SetPerms, &[&home[..], b"n7\0"].concat());
    assert_eq!(ask(&mut simulation, &mut guest, Kind::TransactionStart, b"\0"), b"1\0");
    let write = |top: char| format!("{}\0v", deep(top));
    send(&mut simulation, &mut guest, Kind::Write, 1, write('a').as_bytes());
    assert_eq!(texts(simulation.drain(&mut guest)), [b"OK\0"]);
    send(&mut simulation, &mut guest, Kind::Write, 1, write('b').as_bytes());
    // The first domain has its turn after the first one of this request.
    simulation.pass();
    send(&mut simulation, &mut dom0, Kind::SetQuota, 0, b"7\0path-max\x00100\0");
    assert_eq!(texts(simulation.drain(&mut guest)), [b"EINVAL\0"]);
    send(&mut simulation, &mut guest, Kind::TransactionEnd, 1, b"T\0");
    assert_eq!(texts(simulation.drain(&mut guest)), [b"OK\0"]);
    simulation.server.check().unwrap();
}

/// A domain is introduced again, and what it had takes turns to go. Whoever has the reply may write to the ring.
#[test]
fn the_reply_to_a_second_introduce_comes_when_the_ring_is_empty() {
    let (mut simulation, mut dom0) = Simulation::start("--quota-memory 100000000");
    let port = simulation.world.create(DomId(7));
    let again = format!("7\x001\0{port}\0");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Introduce, again.as_bytes()), b"OK\0");
    let mut guest = simulation.client(DomId(7));
    for token in 0..100 {
        let watch = format!("{}\0{token}\0", deep('w'));
        let replies = texts(simulation.ask(&mut guest, Kind::Watch, 0, watch.as_bytes()));
        assert_eq!(replies.first().map(Vec::as_slice), Some(&b"OK\0"[..]));
    }
    send(&mut simulation, &mut dom0, Kind::Introduce, 0, again.as_bytes());
    let mut passes = 0;
    while count_replies(&mut dom0) == 0 {
        assert_ne!(simulation.pass(), Pass::Idle(None));
        passes += 1;
    }
    assert!(passes > 1, "it was to take turns");
    guest.forget();
    assert_eq!(ask(&mut simulation, &mut guest, Kind::GetDomainPath, b"7\0"), b"/local/domain/7\0");
}
