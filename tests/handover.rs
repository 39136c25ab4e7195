//! Hand-overs as earlier versions wrote them. Every later image that claims to understand such a version has to.
//!
//! `tests/streams/handover-N.bin` is a region: the record stream, and right after it the private part, both of the
//! state that `scenario` leaves. It was written once, when version N was defined, and must never be written again.
//! A new version gets a file of its own: `WRITE_HANDOVER=1 cargo test --test handover`. A file may be removed and
//! written again only while no image with that version was given away; version 4 is not given away yet.

use std::path::PathBuf;
use xenstore_stubdom::proto::handover::{Digest, HANDOVER};
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::stream::{Problem, Reader, Version, check};
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::server::platform::Platform;
use xenstore_stubdom::server::{Pass, Server};
use xenstore_stubdom::sim::{Client, Message, Simulation, World};

/// The guests; those that live are in the world in this order, too.
const LIVING: [u16; 3] = [7, 8, 9];

fn file(version: u32) -> PathBuf {
    let name = format!("tests/streams/handover-{version}.bin");
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A region and how many bytes of it are the stream.
fn golden(version: u32) -> (Vec<u8>, usize) {
    let region = std::fs::read(file(version)).unwrap();
    let private = match Reader::new(&region).unwrap().find_map(Result::err).map(|e| e.problem) {
        Some(Problem::AfterEnd(bytes)) => bytes,
        other => panic!("{other:?}"),
    };
    let stream = region.len() - private;
    (region, stream)
}

fn texts(messages: Vec<Message>) -> Vec<String> {
    let text = |message: Message| String::from_utf8(message.payload).unwrap().replace('\0', " ");
    messages.into_iter().map(text).collect()
}

fn ask(
    simulation: &mut Simulation,
    client: &mut Client,
    kind: Kind,
    tx: u32,
    payload: &str,
) -> String {
    texts(simulation.ask(client, kind, tx, payload.as_bytes())).pop().expect("a reply")
}

/// Everything that a hand-over can hold, one of each. The server is about to leave.
fn scenario() -> Simulation {
    let (mut simulation, mut dom0) = Simulation::start("-w watch-event=10 -E 500");
    let s = &mut simulation;
    let mut guests = LIVING.map(|domid| {
        let port = s.world.create(DomId(domid));
        let payload = format!("{domid}\x001\0{port}\0");
        assert_eq!(ask(s, &mut dom0, Kind::Introduce, 0, &payload), "OK ");
        let home = format!("/local/domain/{domid}\0");
        ask(s, &mut dom0, Kind::Mkdir, 0, &home);
        ask(s, &mut dom0, Kind::SetPerms, 0, &format!("{home}n{domid}\0r0\0"));
        s.client(DomId(domid))
    });
    let [seven, eight, nine] = &mut guests;
    // Limits, features, targets, switches, a watch with a depth.
    ask(s, &mut dom0, Kind::SetQuota, 0, "7\0watches\x0050\0");
    s.world.create(DomId(10));
    assert_eq!(ask(s, &mut dom0, Kind::SetFeature, 0, "10\x004\0"), "OK ");
    assert_eq!(ask(s, &mut dom0, Kind::SetTarget, 0, "8\x007\0"), "OK ");
    ask(s, &mut dom0, Kind::Control, 0, "log\0+wrl\0");
    ask(s, &mut dom0, Kind::Control, 0, "log\0-io\0");
    ask(s, &mut dom0, Kind::Watch, 0, "@releaseDomain\0gone\0");
    ask(s, &mut dom0, Kind::Watch, 0, "/local/domain/7\0deep\x001\0");
    // Nodes: values of all kinds, rights, rights of a domain that is gone, more than one generation.
    s.world.create(DomId(12));
    ask(s, &mut dom0, Kind::Mkdir, 0, "/of-twelve\0");
    ask(s, &mut dom0, Kind::Write, 0, "/shared\0x");
    ask(s, &mut dom0, Kind::SetPerms, 0, "/shared\0n0\0b12\0r7\0w13\0");
    s.world.destroy(DomId(12));
    s.settle();
    ask(s, seven, Kind::Write, 0, "data/text\0a value");
    ask(s, seven, Kind::Write, 0, "data/empty\0");
    ask(s, seven, Kind::Write, 0, "data/binary\0\u{1}\u{2}\u{7f}\u{e9}");
    ask(s, seven, Kind::Write, 0, &format!("data/long\0{}", "0123456789".repeat(180)));
    ask(s, seven, Kind::Write, 0, "data/text\0another value");
    ask(s, seven, Kind::Watch, 0, "data\0tok\0");
    s.drain(seven);
    // A transaction that will succeed, one that conflicts already, one that has failed.
    assert_eq!(ask(s, seven, Kind::TransactionStart, 0, "\0"), "1 ");
    assert_eq!(ask(s, eight, Kind::TransactionStart, 0, "\0"), "1 ");
    assert_eq!(ask(s, eight, Kind::TransactionStart, 0, "\0"), "2 ");
    ask(s, seven, Kind::Write, 1, "made/below\0in a transaction");
    ask(s, seven, Kind::Rm, 1, "data/empty\0");
    ask(s, eight, Kind::Write, 1, "a\0b");
    ask(s, &mut dom0, Kind::Write, 0, "/local/domain/8/a\0c");
    ask(s, &mut dom0, Kind::SetQuota, 0, "8\0transaction-nodes\x001\0");
    assert_eq!(ask(s, eight, Kind::Write, 2, "a/b/c/d\0e"), "ENOSPC ");
    ask(s, nine, Kind::Watch, 0, "a\0lost with the ring\0");
    // A reply of which half is sent, with events behind it; half a request.
    for _ in 0..2 {
        let header = Header { kind: Kind::Read.number(), req_id: 5, tx_id: 0, len: 10 };
        seven.write(&[&header.to_bytes()[..], b"data/long\0"].concat());
    }
    s.settle();
    ask(s, &mut dom0, Kind::Write, 0, "/local/domain/7/data/text\0from dom0");
    let binary = "/local/domain/7/data/binary\0from its emulator";
    assert_eq!(ask(s, eight, Kind::Write, 0, binary), "OK ");
    s.drain(&mut dom0);
    let (request, _) = seven.request(Kind::Read.number(), 0, b"data/text\0");
    seven.write(&request[..20]);
    s.settle();
    // A ring that was given up, a shutdown that was announced, time.
    s.world.page(DomId(9)).set_word(Word::ReqProd, 5000);
    s.world.signal(DomId(9));
    s.sleep(3000);
    s.world.set_shutdown(DomId(8), true);
    s.world.announce_change();
    s.settle();
    s.drain(&mut dom0);
    // The update itself, whose answer the successor gives.
    ask(s, &mut dom0, Kind::Control, 0, "live-update\0-b\x004\0");
    ask(s, &mut dom0, Kind::Control, 0, "live-update\0-d\x004\0\u{7f}ELF\0");
    let (bytes, _) = dom0.request(Kind::Control.number(), 0, b"live-update\0-s\0");
    dom0.write(&bytes);
    while !matches!(s.server.pass(), Pass::HandOver) {}
    simulation
}

/// The world in which that scenario ended, without any server: what it had mapped and bound is there.
fn world() -> World {
    let world = World::new();
    let mut platform = world.platform();
    for domid in [0].into_iter().chain(LIVING) {
        let port = world.create(DomId(domid));
        let _port = platform.bind(DomId(domid), port).unwrap();
        let page = platform.map_ring(DomId(domid)).unwrap();
        platform.leave_ring(page);
    }
    world.create(DomId(10));
    world.set_shutdown(DomId(8), true);
    while platform.next_event().is_some() {}
    world.set_clock(10_000);
    world
}

#[test]
fn a_region_of_every_version_is_read_and_written_again() {
    assert_eq!(*HANDOVER.start(), 1, "nobody can update from version 1 any more");
    HANDOVER.for_each(is_read_and_written_again);
}

fn is_read_and_written_again(version: u32) {
    let (region, stream_len) = golden(version);
    let (stream, private) = region.split_at(stream_len);
    let report = check::check(stream);
    assert!(report.is_sound(), "{report}");
    let expected = "version 2: 4 connections, 3 watches, 3 transactions, ";
    assert!(report.to_string().starts_with(expected), "{report}");
    let world = world();
    let mut server = Server::restore(world.successor(), "", stream, private).unwrap();
    let mut again = Vec::new();
    assert_eq!(server.save(Version::Two, version, &mut again), Ok(stream_len));
    assert!(again == region, "what was read is written in another way");
    assert_eq!(server.digest(), Ok(Digest::of(&region)));
    server.take_over();

    let mut simulation = Simulation { world, server };
    let s = &mut simulation;
    s.settle();
    s.check().unwrap();
    let [mut dom0, mut seven, mut eight] = [0, 7, 8].map(|domid| s.client(DomId(domid)));
    assert_eq!(texts(s.drain(&mut dom0)), ["OK "]);
    // What was under way to domain 7: the rest of a reply, a reply, an event; then the rest of its request.
    let mut rest = 0;
    while !simulation_is_quiet(s, &mut seven, &mut rest) {}
    assert!(rest > 1000, "{rest} bytes");
    seven.forget();
    let header = Header { kind: Kind::Read.number(), req_id: 0, tx_id: 0, len: 10 };
    let request = [&header.to_bytes()[..], b"data/text\0"].concat();
    seven.write(&request[20..]);
    s.world.signal(DomId(7));
    assert_eq!(texts(s.drain(&mut seven)), ["from dom0"]);
    assert_eq!(ask(s, &mut seven, Kind::Read, 1, "made/below\0"), "in a transaction");
    assert_eq!(ask(s, &mut seven, Kind::TransactionEnd, 1, "T\0"), "OK ");
    assert_eq!(ask(s, &mut seven, Kind::Read, 0, "data/empty\0"), "ENOENT ");
    assert_eq!(ask(s, &mut eight, Kind::TransactionEnd, 1, "T\0"), "EAGAIN ");
    assert_eq!(ask(s, &mut dom0, Kind::GetPerms, 0, "/shared\0"), "n0 r7 w13 ");
    s.hand_over().unwrap();
}

/// Reads what there is; whether that was nothing.
fn simulation_is_quiet(simulation: &mut Simulation, client: &mut Client, read: &mut usize) -> bool {
    simulation.settle();
    let now = client.read(usize::MAX);
    *read += now;
    now == 0
}

/// The scenario still leaves what a successor in that world takes over, so that it can be used again for the next version.
#[test]
fn the_scenario_leaves_what_can_be_taken_over() {
    let offer = scenario().server.leave().unwrap();
    let region = offer.region.bytes;
    let (stream, private) = region.split_at(offer.stream_len);
    let server = Server::restore(world().successor(), "", stream, private).unwrap();
    assert_eq!(server.digest(), Ok(Digest::of(&region)));
    let path = file(*HANDOVER.end());
    if std::env::var_os("WRITE_HANDOVER").is_some() && !path.exists() {
        std::fs::write(&path, &region).unwrap();
    }
    assert!(path.exists(), "a new version: WRITE_HANDOVER=1 cargo test --test handover");
}
