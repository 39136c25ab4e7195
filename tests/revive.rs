//! A start from nothing but a stream: a dump of this server, or one as C xenstored writes it.

use xenstore_stubdom::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use xenstore_stubdom::proto::perms::{Access, Entry};
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::stream::{
    self, Connection, DepthLayout, Endpoint, Global, Node, Perms, Version, Watch, Writer, check,
};
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::server::Server;
use xenstore_stubdom::sim::{Client, Message, Simulation, World};

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).replace('\0', " ")
}

fn ask(
    simulation: &mut Simulation,
    client: &mut Client,
    kind: Kind,
    tx: u32,
    payload: &str,
) -> String {
    simulation.ask(client, kind, tx, payload.as_bytes()).last().map(text).expect("a reply")
}

/// A server whose domain is lost and built again, and that is given a stream.
fn revive(world: &World, options: &str, stream: &[u8]) -> Simulation {
    world.lose_server();
    let mut server = Server::restore(world.platform(), options, stream, &[]).unwrap();
    server.take_over();
    let mut simulation = Simulation { world: world.clone(), server };
    simulation.settle();
    simulation.check().unwrap();
    simulation
}

fn guest(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let port = simulation.world.create(DomId(domid));
    let page = simulation.world.page(DomId(domid));
    page.set_word(Word::EvtchnPort, port);
    let payload = format!("{domid}\x001\0{port}\0");
    assert_eq!(ask(simulation, dom0, Kind::Introduce, 0, &payload), "OK ");
    let home = format!("/local/domain/{domid}\0");
    assert_eq!(ask(simulation, dom0, Kind::Mkdir, 0, &home), "OK ");
    let perms = format!("{home}n{domid}\0");
    assert_eq!(ask(simulation, dom0, Kind::SetPerms, 0, &perms), "OK ");
    simulation.client(DomId(domid))
}

#[test]
fn a_dump_starts_another_server() {
    for (version, depths) in [
        (Version::One, DepthLayout::Document),
        (Version::Two, DepthLayout::Document),
        (Version::Two, DepthLayout::Xen),
    ] {
        let (mut simulation, mut dom0) = Simulation::start("");
        let mut seven = guest(&mut simulation, &mut dom0, 7);
        let mut eight = guest(&mut simulation, &mut dom0, 8);
        ask(&mut simulation, &mut seven, Kind::Write, 0, &format!("a\0{}", "x".repeat(1500)));
        ask(&mut simulation, &mut eight, Kind::Write, 0, "b\x001");
        ask(&mut simulation, &mut seven, Kind::Watch, 0, "a\0tok\0");
        ask(&mut simulation, &mut dom0, Kind::SetQuota, 0, "7\0watches\x005\0");
        let t = ask(&mut simulation, &mut seven, Kind::TransactionStart, 0, "\0");
        let t = t.trim().parse().unwrap();
        ask(&mut simulation, &mut seven, Kind::Write, t, "in-a-transaction\0");
        // A reply that is half written, and a request that is half read.
        let (read, _) = seven.request(Kind::Read.number(), 0, b"a\0");
        seven.write(&read);
        simulation.settle();
        seven.read(100);
        let (second, _) = seven.request(Kind::Read.number(), 0, b"none\0");
        seven.write(&second[..18]);
        simulation.settle();
        let mut dump = Vec::new();
        let len = simulation.server.dump(version, depths, &mut dump).unwrap();
        assert_eq!(len, dump.len());
        let report = check::check(&dump);
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.counts.transactions, report.counts.pending), (0, 0));

        simulation.world.destroy(DomId(8));
        let mut simulation = revive(&simulation.world.clone(), "--event 10", &dump);
        seven.write(&second[18..]);
        simulation.world.signal(DomId(7));
        let got = simulation.drain(&mut seven);
        assert_eq!(got[0].payload, "x".repeat(1500).as_bytes(), "{version:?}");
        assert_eq!(text(&got[1]), "ENOENT ");
        ask(&mut simulation, &mut dom0, Kind::Write, 0, "/local/domain/7/a/b\0");
        assert_eq!(text(&simulation.drain(&mut seven)[0]), "a/b tok ");
        let watches = ask(&mut simulation, &mut dom0, Kind::GetQuota, 0, "7\0watches\0");
        assert_eq!(watches, "5 ");
        // Nothing of the domain that died is left.
        let gone = ask(&mut simulation, &mut dom0, Kind::Read, 0, "/local/domain/8/b\0");
        assert_eq!(gone, "ENOENT ");
        assert_eq!(simulation.world.bound_ports(), 2);
        // And so it goes on, also through a live update.
        simulation.hand_over().unwrap();
        assert_eq!(
            ask(&mut simulation, &mut seven, Kind::Read, 0, "in-a-transaction\0"),
            "ENOENT "
        );
    }
}

#[test]
fn open_transactions_of_a_stream_end_in_eagain() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut seven = guest(&mut simulation, &mut dom0, 7);
    let t = ask(&mut simulation, &mut seven, Kind::TransactionStart, 0, "\0");
    let t = t.trim().parse().unwrap();
    ask(&mut simulation, &mut seven, Kind::Write, t, "a\0b");
    // As an earlier version wrote it: with transactions, and the nodes in the stream.
    let mut all = Vec::new();
    let stream_len = simulation.server.save(Version::Two, 2, &mut all).unwrap();
    let stream = &all[..stream_len];
    let mut simulation = revive(&simulation.world.clone(), "--event 10", stream);
    simulation.hand_over().unwrap();
    assert_eq!(ask(&mut simulation, &mut seven, Kind::Read, t, "a\0"), "ENOENT ");
    assert_eq!(ask(&mut simulation, &mut seven, Kind::TransactionEnd, t, "T\0"), "EAGAIN ");
    let next = ask(&mut simulation, &mut seven, Kind::TransactionStart, 0, "\0");
    assert_eq!(next, format!("{} ", t + 1));
}

/// A stream in the order of C xenstored 4.17, with what only a daemon has.
fn foreign() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Version::One).unwrap();
    writer.global(Global { socket: 5, evtchn: 6 }).unwrap();
    let ring = |id, domid| Connection {
        id: ConnId(id),
        endpoint: Endpoint::Ring { domid: DomId(domid), target: None, port: EvtchnPort(77) },
        input: &[],
        output: &[],
        partial: 0,
        unique_id: None,
    };
    writer.connection(&ring(1, 0)).unwrap();
    let socket = Connection { endpoint: Endpoint::Socket { fd: 9 }, ..ring(2, 0) };
    writer.connection(&socket).unwrap();
    // A parked request and the beginning of another one, a message that has been started, and an event.
    let request = |kind: Kind, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        [&Header { kind: kind.number(), req_id: 3, tx_id: 0, len }.to_bytes()[..], payload].concat()
    };
    let input = [request(Kind::Read, b"/a\0"), request(Kind::Read, b"/b\0")[..5].to_vec()].concat();
    let output = [&b"lue"[..], &request(Kind::WatchEvent, b"/a\0tok\0")].concat();
    writer
        .connection(&Connection { input: &input, output: &output, partial: 3, ..ring(3, 7) })
        .unwrap();
    writer.connection(&ring(4, 9)).unwrap();
    for (conn, path) in [(2, "/a"), (3, "/a"), (4, "/a")] {
        let (path, token) = (path.as_bytes(), &b"tok"[..]);
        writer.watch(&Watch { conn: ConnId(conn), path, token, depth: None }).unwrap();
    }
    let transaction = stream::Transaction { conn: ConnId(3), tx: TxId(41) };
    writer.transaction(transaction).unwrap();
    let all = [
        ("@introduceDomain", "", &[0][..]),
        ("@releaseDomain", "", &[0]),
        ("/", "", &[0]),
        ("/a", "1", &[7, 9]),
        ("/a/of-nine", "2", &[9]),
        ("/b", "3", &[0, 7]),
    ];
    for (path, value, owners) in all {
        let entry =
            |domid: &u16| Entry { domid: DomId(*domid), access: Access::Read, stale: false };
        let entries: Vec<Entry> = owners.iter().map(entry).collect();
        let perms = Perms::from(&entries[..]);
        let (path, value) = (path.as_bytes(), value.as_bytes());
        writer.node(&Node { path, value, perms, pending: None }).unwrap();
    }
    let unknown = stream::Unknown { kind: 99, body: b"12345678" };
    writer.unknown(&unknown).unwrap();
    writer.finish().unwrap()
}

#[test]
fn a_stream_of_another_server_is_taken_over_as_far_as_it_can_be() {
    let world = World::new();
    world.create(DomId(0));
    let port = world.create(DomId(7));
    world.page(DomId(7)).set_word(Word::EvtchnPort, port);
    let mut simulation = revive(&world, "--event 10", &foreign());
    let console = world.take_console().join("\n");
    for line in [
        "left out: connection 2, which is a socket's",
        "1 records of unknown types, 1 that do not fit",
        "domain 9 is gone",
        "took over 5 nodes, 2 domains, 2 connections, 1 watches, 1 transactions",
    ] {
        assert!(console.contains(line), "{line} expected in\n{console}");
    }
    let (mut dom0, mut seven) = (simulation.client(DomId(0)), simulation.client(DomId(7)));
    // The rest of the message that had been started comes first, as it is.
    simulation.settle();
    assert!(seven.read(3) == 3 && !seven.is_amid_message() || seven.page().response(0) == b'l');
    seven.forget();
    let got = simulation.drain(&mut seven);
    let got: Vec<String> = got.iter().map(text).collect();
    // What the dead domain owned below /a is gone, and seven was told.
    assert_eq!(got, ["/a tok ", "/a/of-nine tok ", "1"]);
    let (rest, _) = seven.request(Kind::Read.number(), 0, b"/b\0");
    seven.write(&rest[5..]);
    simulation.world.signal(DomId(7));
    assert_eq!(text(&simulation.drain(&mut seven)[0]), "3");
    assert_eq!(ask(&mut simulation, &mut seven, Kind::TransactionEnd, 41, "T\0"), "EAGAIN ");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::GetPerms, 0, "/a\0"), "r7 ");
    simulation.check().unwrap();
}

#[test]
fn a_ring_without_a_port_waits_for_its_introduction() {
    let world = World::new();
    world.create(DomId(0));
    world.create(DomId(7));
    let mut simulation = revive(&world, "--event 10", &foreign());
    let console = world.take_console().join("\n");
    let line = "domain 7: no event channel until it is introduced again: its page names none";
    assert!(console.contains(line), "{console}");
    let mut dom0 = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::IsDomainIntroduced, 0, "7\0"), "T ");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Introduce, 0, "7\x001\x0010\0"), "OK ");
    let mut seven = simulation.client(DomId(7));
    assert_eq!(ask(&mut simulation, &mut seven, Kind::Read, 0, "/b\0"), "3");
}

#[test]
fn a_stream_that_cannot_be_read_starts_nothing() {
    let stream = foreign();
    for cut in 0..stream.len() {
        let world = World::new();
        world.create(DomId(0));
        assert!(Server::restore(world.platform(), "", &stream[..cut], &[]).is_err(), "{cut}");
    }
}

/// What the builder of a domain gives it as its module: the first domain's ring was never used.
fn start_from(module: &[u8]) -> (Simulation, String) {
    let world = World::new();
    let port = world.create(DomId(0));
    let server = Server::start_from(world.platform(), &format!("--event {port}"), module);
    let mut simulation = Simulation { world: world.clone(), server };
    simulation.settle();
    simulation.check().unwrap();
    (simulation, world.take_console().join("\n"))
}

#[test]
fn a_module_is_the_stream_that_the_server_begins_with() {
    for padding in [0, 1, 4095] {
        let module = [foreign(), vec![0; padding]].concat();
        let (mut simulation, console) = start_from(&module);
        assert!(console.contains("took over 4 nodes, 1 domains, 1 connections"), "{console}");
        let mut dom0 = simulation.client(DomId(0));
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, 0, "/b\0"), "3");
        simulation.hand_over().unwrap();
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, 0, "/b\0"), "3");
    }
}

#[test]
fn a_module_that_is_none_or_damaged_leaves_an_empty_store() {
    let mut padded = [foreign(), vec![0; 9]].concat();
    padded.push(1);
    let len = foreign().len();
    for (module, why) in [
        (b"#!ipxe".to_vec(), "this is no xenstore stream"),
        (foreign()[..len - 9].to_vec(), "reaches beyond the end"),
        (foreign()[..len - 8].to_vec(), "the stream stops without END"),
        (padded, "10 bytes follow END"),
    ] {
        let (mut simulation, console) = start_from(&module);
        let line = format!("the module of {} bytes is not taken over: ", module.len());
        assert!(console.contains(&line) && console.contains(why), "{console}");
        assert!(console.contains("the store starts empty"), "{console}");
        let mut dom0 = simulation.client(DomId(0));
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, 0, "/b\0"), "ENOENT ");
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Directory, 0, "/\0"), "tool ");
        simulation.hand_over().unwrap();
    }
}

#[test]
fn a_stream_that_takes_too_much_memory_leaves_an_empty_store() {
    let mut more = Writer::new(Vec::new(), Version::One).unwrap();
    let (perms, value) =
        ([Entry { domid: DomId(0), access: Access::None, stale: false }], [b'x'; 3000]);
    for n in 0..100 {
        let (path, perms) = (format!("/n{n}"), Perms::from(&perms[..]));
        more.node(&Node { path: path.as_bytes(), value: &value, perms, pending: None }).unwrap();
    }
    let (mut stream, more) = (foreign(), more.finish().unwrap());
    stream.truncate(stream.len() - 8);
    stream.extend_from_slice(&more[16..]);
    let (mut late, mut took) = (0, false);
    for bytes in (0..1_000_000).step_by(1000) {
        let world = World::new();
        let port = world.create(DomId(0));
        let seven = world.create(DomId(7));
        world.page(DomId(7)).set_word(Word::EvtchnPort, seven);
        world.set_heap_free(bytes);
        let options = format!("--event {port}");
        let server = Server::start_from(world.platform(), &options, &stream);
        world.set_heap_free(usize::MAX);
        let console = world.take_console().join("\n");
        let mut simulation = Simulation { world, server };
        simulation.settle();
        simulation.check().unwrap();
        if console.contains("took over 105 nodes") {
            took = true;
            break;
        }
        assert!(console.contains("not enough memory"), "{bytes}: {console}");
        // The first connections had been made.
        late += usize::from(console.contains("which is a socket's"));
        let mut dom0 = simulation.client(DomId(0));
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Directory, 0, "/\0"), "tool ");
    }
    assert!(took && late > 0, "{late}");
}

/// Streams of a host that has started anew: what dom0 waited for, and watched, was the old dom0's.
#[test]
fn a_first_domain_that_has_started_since_gets_nothing_of_the_old_ones() {
    let (mut simulation, mut dom0) = Simulation::start("");
    ask(&mut simulation, &mut dom0, Kind::Watch, 0, "/a\0tok\0");
    simulation.drain(&mut dom0);
    let (bytes, _) = dom0.request(Kind::Read.number(), 0, b"/tool\0");
    dom0.write(&bytes[..10]);
    simulation.settle();
    let mut dump = Vec::new();
    simulation.server.dump(Version::One, DepthLayout::Document, &mut dump).unwrap();
    let (mut simulation, console) = start_from(&dump);
    assert!(
        console.contains("left out: what waited for domain 0 and what it watched"),
        "{console}"
    );
    let mut dom0 = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Write, 0, "/a\0b"), "OK ");
    assert_eq!(simulation.drain(&mut dom0).len(), 0);
}

/// The nodes of a stream as text, those of domains that are not there left out.
fn nodes(stream: &[u8]) -> String {
    let listing = stream::Listing(stream).to_string();
    let nodes = listing.lines().filter_map(|line| line.split_once(" NODE_DATA /"));
    nodes.map(|(_, node)| format!("/{node}\n")).collect()
}

/// What C xenstored 4.17 wrote on real Xen, with a Linux guest and without.
#[test]
fn a_stream_of_the_real_c_xenstored_starts_this_one() {
    for name in ["real-c-4.17-with-guest", "real-c-4.17-without-guest", "real-ours"] {
        let path = format!("{}/tests/streams/{name}.bin", env!("CARGO_MANIFEST_DIR"));
        let stream = std::fs::read(path).unwrap();
        let world = World::new();
        let port = world.create(DomId(0));
        if name.ends_with("with-guest") {
            let one = world.create(DomId(1));
            world.page(DomId(1)).set_word(Word::EvtchnPort, one);
        }
        let server = Server::start_from(world.platform(), &format!("--event {port}"), &stream);
        let mut simulation = Simulation { world, server };
        simulation.settle();
        simulation.check().unwrap();
        let mut dump = Vec::new();
        simulation.server.dump(Version::One, DepthLayout::Document, &mut dump).unwrap();
        assert_eq!(nodes(&dump), nodes(&stream), "{name}");
        let mut dom0 = simulation.client(DomId(0));
        if name.ends_with("with-guest") {
            // It still watches, and may still write where it might.
            let mut one = simulation.client(DomId(1));
            assert_eq!(simulation.drain(&mut one).len(), 0);
            assert_eq!(ask(&mut simulation, &mut one, Kind::Write, 0, "data/own\0x"), "OK ");
            assert_eq!(ask(&mut simulation, &mut one, Kind::Write, 0, "name\0x"), "EACCES ");
            ask(&mut simulation, &mut dom0, Kind::Write, 0, "/local/domain/1/data/own\0y");
            let events = simulation.drain(&mut one);
            assert_eq!(text(&events[0]), "data/own FFFF888005BCEEB0 ");
            // And goes as if it had been here from the start.
            simulation.world.destroy(DomId(1));
            simulation.settle();
            let gone = ask(&mut simulation, &mut dom0, Kind::Read, 0, "/local/domain/1/data/own\0");
            assert_eq!(gone, "ENOENT ");
        }
        simulation.hand_over().unwrap();
        simulation.check().unwrap();
    }
}

/// The bytes that a text in base64 stands for.
fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = text.chars().filter_map(|letter| LETTERS.find(letter)).collect::<Vec<_>>();
    let mut bytes = Vec::new();
    for group in letters.chunks(4) {
        let bits =
            group.iter().fold(0, |bits, letter| bits << 6 | letter) << (6 * (4 - group.len()));
        bytes.extend(
            (0..group.len() - 1).map(|at| u8::try_from(bits >> (16 - 8 * at) & 255).unwrap()),
        );
    }
    bytes
}

#[test]
fn a_dump_is_fetched_as_text() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut seven = guest(&mut simulation, &mut dom0, 7);
    for n in 0..20 {
        ask(&mut simulation, &mut seven, Kind::Write, 0, &format!("n{n}\0{}", "x".repeat(n * 50)));
    }
    ask(&mut simulation, &mut seven, Kind::Watch, 0, "n1\0tok\0");
    for (begin, version) in
        [("begin", Version::One), ("begin\x001", Version::One), ("begin\x002", Version::Two)]
    {
        let mut expected = Vec::new();
        simulation.server.dump(version, DepthLayout::Xen, &mut expected).unwrap();
        let begun = ask(&mut simulation, &mut dom0, Kind::Control, 0, &format!("dump\0{begin}\0"));
        let words = begun.split_whitespace().collect::<Vec<_>>();
        let ["dump", number, "has", size, "bytes"] = words[..] else { panic!("{begun}") };
        assert_eq!(size.parse(), Ok(expected.len()));
        // What changes meanwhile is not in it.
        ask(&mut simulation, &mut seven, Kind::Write, 0, "later\0x");
        let mut fetched = Vec::new();
        while fetched.len() < expected.len() {
            let wanted = format!("dump\0{number}\0{}\0", fetched.len());
            let piece = ask(&mut simulation, &mut dom0, Kind::Control, 0, &wanted);
            assert!(piece.len() <= 4096 && !piece.trim_end().contains(' '), "{piece}");
            fetched.extend(decode(&piece));
        }
        assert!(fetched == expected);
        let end = format!("dump\0end\0{number}\0");
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Control, 0, &end), "OK ");
        ask(&mut simulation, &mut seven, Kind::Rm, 0, "later\0");
    }
}

#[test]
fn every_damage_of_a_stream_gives_a_sound_server_or_none() {
    let stream = foreign();
    for at in 0..stream.len() {
        for bit in [1, 0x80] {
            let world = World::new();
            world.create(DomId(0));
            let port = world.create(DomId(7));
            world.page(DomId(7)).set_word(Word::EvtchnPort, port);
            let mut stream = stream.clone();
            stream[at] ^= bit;
            if let Ok(mut server) = Server::restore(world.platform(), "", &stream, &[]) {
                server.take_over();
                let mut simulation = Simulation { world, server };
                simulation.settle();
                simulation.check().unwrap_or_else(|findings| panic!("byte {at}: {findings}"));
            }
        }
    }
}
