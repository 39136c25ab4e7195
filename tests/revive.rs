//! A start from a stream alone: a dump of this server, or one as C xenstored writes it.

use xenstore_stubdom::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use xenstore_stubdom::proto::perms::{Access, Entry};
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::stream::{
    self, Connection, DepthLayout, Endpoint, Global, Node, Perms, Version, Watch, Writer, check,
};
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::server::Server;
use xenstore_stubdom::sim::{Client, Message, Simulation, World};

fn drain(simulation: &mut Simulation, client: &mut Client) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        simulation.settle();
        let read = client.read(usize::MAX);
        messages.extend(core::iter::from_fn(|| client.next_message()));
        if read == 0 {
            return messages;
        }
    }
}

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
    let (bytes, _) = client.request(kind.number(), tx, payload.as_bytes());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        rest = &rest[client.write(rest)..];
        simulation.settle();
    }
    drain(simulation, client).last().map(text).expect("a reply")
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
        let got = drain(&mut simulation, &mut seven);
        assert_eq!(got[0].payload, "x".repeat(1500).as_bytes(), "{version:?}");
        assert_eq!(text(&got[1]), "ENOENT ");
        ask(&mut simulation, &mut dom0, Kind::Write, 0, "/local/domain/7/a/b\0");
        assert_eq!(text(&drain(&mut simulation, &mut seven)[0]), "a/b tok ");
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
    let all = simulation.server.leave().unwrap();
    let stream = &all.region.bytes[..all.stream_len];
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
    let got = drain(&mut simulation, &mut seven);
    let got: Vec<String> = got.iter().map(text).collect();
    // What the dead domain owned below /a is gone, and seven was told.
    assert_eq!(got, ["/a tok ", "/a/of-nine tok ", "1"]);
    let (rest, _) = seven.request(Kind::Read.number(), 0, b"/b\0");
    seven.write(&rest[5..]);
    simulation.world.signal(DomId(7));
    assert_eq!(text(&drain(&mut simulation, &mut seven)[0]), "3");
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
