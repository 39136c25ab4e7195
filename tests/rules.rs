//! Rules that a conversation cannot show, since they are about ids, counters, signals or what the server does in
//! one look. `docs/conformance.md` names each.

use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::sim::{Client, Message, Simulation};

/// Sends raw bytes and returns all messages that come.
fn exchange(simulation: &mut Simulation, client: &mut Client, bytes: &[u8]) -> Vec<Message> {
    client.write(bytes);
    simulation.drain(client)
}

fn ask(simulation: &mut Simulation, client: &mut Client, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let (bytes, _) = client.request(kind.number(), 0, payload);
    exchange(simulation, client, &bytes).pop().expect("a reply").payload
}

fn introduce(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let port = simulation.world.create(DomId(domid));
    let payload = format!("{domid}\0{}\0{port}\0", 1);
    assert_eq!(ask(simulation, dom0, Kind::Introduce, payload.as_bytes()), b"OK\0");
    simulation.client(DomId(domid))
}

#[test]
fn replies_carry_whatever_ids_the_request_had() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let domid = b"7\0";
    for req_id in [0, 0, 1, 31, 0xffff, 0x8000_0000, u32::MAX] {
        // The type ignores the transaction, yet the reply names it.
        for (kind, tx_id) in
            [(Kind::GetDomainPath, 0), (Kind::GetDomainPath, 9), (Kind::Unwatch, 9)]
        {
            let header = Header { kind: kind.number(), req_id, tx_id, len: 2 };
            let bytes = [&header.to_bytes()[..], domid].concat();
            let messages = exchange(&mut simulation, &mut dom0, &bytes);
            assert_eq!(messages.len(), 1);
            let got = messages[0].header;
            assert_eq!((got.req_id, got.tx_id), (req_id, tx_id), "{kind:?}");
        }
    }
}

#[test]
fn every_type_number_is_answered_exactly_once() {
    let (mut simulation, mut dom0) = Simulation::start("");
    for kind in (0..40).chain([255, 256, 65535, u32::MAX]) {
        let header = Header { kind, req_id: kind, tx_id: 0, len: 0 };
        let messages = exchange(&mut simulation, &mut dom0, &header.to_bytes());
        assert_eq!(messages.len(), 1, "{kind}");
        let got = &messages[0];
        assert!(got.header.kind == kind || got.header.kind == Kind::Error.number(), "{kind}");
        assert_eq!(got.header.req_id, kind);
        let is_unknown = Kind::from_number(kind).is_none() || kind == 15 || kind == 16;
        assert_eq!(got.payload == b"ENOSYS\0", is_unknown, "{kind}");
    }
}

/// The number in front of a DIRECTORY_PART.
fn generation(simulation: &mut Simulation, client: &mut Client, path: &str) -> u64 {
    let payload = format!("{path}\0{}\0", 0);
    let reply = ask(simulation, client, Kind::DirectoryPart, payload.as_bytes());
    let text = reply.split(|byte| *byte == 0).next().unwrap();
    core::str::from_utf8(text).unwrap().parse().unwrap()
}

#[test]
fn a_generation_changes_with_every_change_and_never_comes_back() {
    let (mut simulation, mut dom0) = Simulation::start("");
    ask(&mut simulation, &mut dom0, Kind::Mkdir, b"/d/a\0");
    let last = generation(&mut simulation, &mut dom0, "/d");
    let mut seen = Vec::from([last]);
    // Looking, and changes of a child's inside, leave it alone.
    let quiet: [(Kind, &[u8]); 5] = [
        (Kind::Read, b"/d\0"),
        (Kind::Write, b"/d/a\0x"),
        (Kind::SetPerms, b"/d/a\0r0\0"),
        (Kind::Mkdir, b"/d/a/b\0"),
        (Kind::Mkdir, b"/d\0"),
    ];
    for (kind, payload) in quiet {
        ask(&mut simulation, &mut dom0, kind, payload);
        assert_eq!(generation(&mut simulation, &mut dom0, "/d"), last, "{kind:?}");
    }
    let changes: [(Kind, &[u8]); 6] = [
        (Kind::Write, b"/d\0x"),
        (Kind::Write, b"/d\0x"),
        (Kind::SetPerms, b"/d\0r0\0"),
        (Kind::SetPerms, b"/d\0r0\0"),
        (Kind::Write, b"/d/new\0x"),
        (Kind::Rm, b"/d/new\0"),
    ];
    for (kind, payload) in changes {
        ask(&mut simulation, &mut dom0, kind, payload);
        let now = generation(&mut simulation, &mut dom0, "/d");
        assert!(!seen.contains(&now), "{kind:?}");
        seen.push(now);
    }
}

/// Otherwise a guest that changes a node of its own again and again sees how busy everybody else is.
#[test]
fn a_generation_does_not_count_what_happens_elsewhere() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let mut last = generation(&mut simulation, &mut dom0, "/tool");
    for _ in 0..100 {
        ask(&mut simulation, &mut dom0, Kind::Write, b"/tool\0x");
        let now = generation(&mut simulation, &mut dom0, "/tool");
        assert!(now.abs_diff(last) > 1 << 32, "{last}, then {now}");
        last = now;
    }
}

#[test]
fn xsa_72_parts_give_every_child_once() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let names = (0..700).map(|n| format!("child-{n:-<12}")).collect::<Vec<_>>();
    for name in &names {
        ask(&mut simulation, &mut dom0, Kind::Mkdir, format!("/d/{name}\0").as_bytes());
    }
    let (mut list, mut offset) = (Vec::new(), 0);
    loop {
        let payload = format!("/d\0{offset}\0");
        let reply = ask(&mut simulation, &mut dom0, Kind::DirectoryPart, payload.as_bytes());
        assert!(reply.len() <= 4096);
        let start = reply.iter().position(|byte| *byte == 0).unwrap() + 1;
        list.extend_from_slice(&reply[start..]);
        // As libxenstore does it: the end is where the last two bytes are NULs.
        if reply[start..] == [0] || list.ends_with(&[0, 0]) {
            list.pop();
            break;
        }
        offset = list.len();
    }
    let got = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    assert!(got.eq(names.iter().map(String::as_bytes)));
}

#[test]
fn transaction_ids_are_never_0_and_skip_those_still_open() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let first = ask(&mut simulation, &mut dom0, Kind::TransactionStart, b"\0");
    assert_eq!(first, b"1\0");
    for n in 2..2000 {
        let id = ask(&mut simulation, &mut dom0, Kind::TransactionStart, b"\0");
        assert_eq!(id, format!("{n}\0").as_bytes());
        let (bytes, _) = dom0.request(Kind::TransactionEnd.number(), n, b"F\0");
        assert_eq!(exchange(&mut simulation, &mut dom0, &bytes)[0].payload, b"OK\0");
    }
}

/// The payloads of all events that a client has.
fn events(simulation: &mut Simulation, client: &mut Client) -> Vec<String> {
    let text = |message: Message| String::from_utf8(message.payload).unwrap().replace('\0', " ");
    exchange(simulation, client, &[]).into_iter().map(text).collect()
}

#[test]
fn shutdowns_and_deaths_found_in_one_look() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let _guests = [1, 2, 3, 4].map(|domid| introduce(&mut simulation, &mut dom0, domid));
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@releaseDomain\0deep\x001\0");
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@releaseDomain\0plain\0");
    // One plain event for both shutdowns.
    simulation.world.set_shutdown(DomId(1), true);
    simulation.world.set_shutdown(DomId(2), true);
    let got = events(&mut simulation, &mut dom0);
    assert_eq!(got, ["@releaseDomain/1 deep ", "@releaseDomain/2 deep ", "@releaseDomain plain "]);
    simulation.world.destroy(DomId(1));
    simulation.world.destroy(DomId(2));
    simulation.world.destroy(DomId(3));
    // Whoever reads one plain event looks at all domains, so one that waits stands for those after it.
    let got = events(&mut simulation, &mut dom0);
    let deep = [1, 2, 3].map(|domid| format!("@releaseDomain/{domid} deep "));
    assert_eq!(got, [&deep[0], "@releaseDomain plain ", &deep[1], &deep[2]]);
    // A shutdown and a death: the death's plain event stands for the other.
    simulation.world.set_shutdown(DomId(4), true);
    simulation.world.destroy(DomId(4));
    let got = events(&mut simulation, &mut dom0);
    assert_eq!(got, ["@releaseDomain/4 deep ", "@releaseDomain plain "]);
}

#[test]
fn xsa_233_both_found_dead_in_one_look() {
    let (mut simulation, mut dom0) = Simulation::start("");
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@releaseDomain\0tok\x001\0");
    for round in 0..1000 {
        let _guests = [7, 8].map(|domid| introduce(&mut simulation, &mut dom0, domid));
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::SetTarget, b"8\x007\0"), b"OK\0");
        let order = if round % 2 == 0 { [7, 8] } else { [8, 7] };
        for domid in order {
            simulation.world.destroy(DomId(domid));
        }
        let got = events(&mut simulation, &mut dom0);
        assert_eq!(got, ["@releaseDomain/7 tok ", "@releaseDomain/8 tok "], "round {round}");
    }
    simulation.check().unwrap();
    assert_eq!(simulation.world.bound_ports(), 1);
}

#[test]
fn the_guest_is_told_connected_only_after_its_ring_is_empty() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let port = simulation.world.create(DomId(7));
    let page = simulation.world.page(DomId(7));
    for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
        page.set_word(word, 500);
    }
    page.set_word(Word::Connection, 1);
    let before = simulation.world.signals(DomId(7));
    let payload = format!("7\x001\0{port}\0");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Introduce, payload.as_bytes()), b"OK\0");
    assert_eq!(page.word(Word::Connection), 0);
    assert_eq!(page.word(Word::ReqProd), 0);
    assert_eq!(simulation.world.signals(DomId(7)), before + 1);
    // One that does not wait for it is not signalled.
    let port = simulation.world.offer(DomId(7));
    let before = simulation.world.signals(DomId(7));
    let payload = format!("7\x001\0{port}\0");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Introduce, payload.as_bytes()), b"OK\0");
    assert_eq!(simulation.world.signals(DomId(7)), before);
}

#[test]
fn a_flood_of_replies_and_events_to_the_privileged_domain_has_no_limit() {
    let (mut simulation, mut dom0) = Simulation::start("-Q outstanding=1 -Q memory=1000");
    ask(&mut simulation, &mut dom0, Kind::Watch, b"@introduceDomain\0tok\x001\0");
    for domid in 1..300 {
        let port = simulation.world.create(DomId(domid));
        let payload = format!("{domid}\x001\0{port}\0");
        let (bytes, _) = dom0.request(Kind::Introduce.number(), 0, payload.as_bytes());
        assert_eq!(dom0.write(&bytes), bytes.len(), "the server stopped reading");
        simulation.settle();
    }
    simulation.sleep(100_000);
    assert_eq!(exchange(&mut simulation, &mut dom0, &[]).len(), 2 * 299);
}
