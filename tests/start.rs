//! How the server starts: who has control, and which domains it finds waiting for it.

use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::Server;
use xenstore_stubdom::sim::{Client, Simulation, World};

fn start(world: &World, command_line: &str) -> Simulation {
    let server = Server::new(world.platform(), command_line);
    let mut simulation = Simulation { world: world.clone(), server };
    simulation.server.start();
    simulation.settle();
    simulation
}

/// Sends a request and returns the payload of its reply.
fn ask(simulation: &mut Simulation, client: &mut Client, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let (bytes, _) = client.request(kind.number(), 0, payload);
    client.write(&bytes);
    simulation.settle();
    client.read(usize::MAX);
    client.next_message().expect("a reply").payload
}

#[test]
fn the_domain_with_control_is_privileged() {
    let world = World::new();
    let port = world.create(DomId(0));
    world.create(DomId(3));
    world.set_control(DomId(0), false);
    world.set_control(DomId(3), true);
    let mut simulation = start(&world, &format!("--event {port}"));
    let mut hardware = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut hardware, Kind::Control, b"help\0"), b"EACCES\0");
    assert_eq!(ask(&mut simulation, &mut hardware, Kind::Directory, b"/\0"), b"EACCES\0");
}

#[test]
fn the_command_line_knows_better_who_has_control() {
    let world = World::new();
    let port = world.create(DomId(0));
    world.create(DomId(3));
    world.set_control(DomId(3), true);
    let command_line = format!("--event {port} --master-domid 3 --priv-domid 3");
    let mut simulation = start(&world, &command_line);
    let mut control = simulation.client(DomId(3));
    assert_eq!(ask(&mut simulation, &mut control, Kind::GetPerms, b"/\0"), b"n3\0");
    assert_eq!(ask(&mut simulation, &mut control, Kind::Release, b"3\0"), b"EINVAL\0");
    // Domain 0 is a guest like any other now.
    let introduce = format!("0\x001\0{}\0", world.offer(DomId(0)));
    assert_eq!(ask(&mut simulation, &mut control, Kind::Introduce, introduce.as_bytes()), b"OK\0");
    let mut other = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut other, Kind::Control, b"help\0"), b"EACCES\0");
    assert_eq!(ask(&mut simulation, &mut control, Kind::Release, b"0\0"), b"OK\0");
}

#[test]
fn the_first_domains_page_may_name_the_port() {
    let world = World::new();
    let port = world.create(DomId(0));
    world.set_tells_states(false);
    world.page(DomId(0)).set_word(Word::EvtchnPort, port);
    let mut simulation = start(&world, "");
    assert_eq!(world.signals(DomId(0)), 1);
    let mut dom0 = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Control, b"check\0"), b"OK\0");
    // Without that, and without an option, nobody is served.
    let world = World::new();
    world.create(DomId(0));
    start(&world, "");
    assert_eq!(world.bound_ports(), 0);
    assert!(world.take_console().iter().any(|line| line.contains("no option --event")));
}

#[test]
fn where_xen_does_not_tell_domain_0_has_control() {
    let world = World::new();
    let port = world.create(DomId(0));
    world.set_tells_changes(false);
    let mut simulation = start(&world, &format!("--event {port}"));
    let mut dom0 = simulation.client(DomId(0));
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Control, b"check\0"), b"OK\0");
}

#[test]
fn domains_that_wait_with_a_port_in_their_page_are_served_from_the_start() {
    // However much Xen tells: which domains there are, whether one exists, or nothing.
    for (tells_changes, tells_states) in [(true, true), (false, true), (false, false)] {
        let world = World::new();
        world.set_tells_changes(tells_changes);
        world.set_tells_states(tells_states);
        domains_wait(&world);
    }
}

fn domains_wait(world: &World) {
    let port = world.create(DomId(0));
    for domid in [4, 5, 6, 7] {
        world.create(DomId(domid));
        world.page(DomId(domid)).set_word(Word::Connection, 1);
    }
    // 4 waits, with a request in its ring; 5 names no port, 6 a wrong one, 7 grants nothing.
    let page = world.page(DomId(4));
    page.set_word(Word::EvtchnPort, 10);
    world.page(DomId(6)).set_word(Word::EvtchnPort, 99);
    world.page(DomId(7)).set_word(Word::EvtchnPort, 10);
    world.set_granted(DomId(7), false);
    for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
        page.set_word(word, 100);
    }
    let server = Server::new(world.platform(), &format!("--event {port}"));
    let mut simulation = Simulation { world: world.clone(), server };
    let mut waiting = simulation.client(DomId(4));
    let (bytes, _) = waiting.request(Kind::GetDomainPath.number(), 0, b"4\0");
    waiting.write(&bytes);
    simulation.server.start();
    assert_eq!(world.signals(DomId(4)), 1);
    simulation.settle();
    waiting.read(usize::MAX);
    assert_eq!(waiting.next_message().unwrap().payload, b"/local/domain/4\0");
    assert_eq!(page.word(Word::Connection), 0);
    assert_eq!(page.word(Word::ServerFeatures), 14);
    let mut dom0 = simulation.client(DomId(0));
    for (domid, introduced) in [(4, b"T\0"), (5, b"F\0"), (6, b"F\0"), (7, b"F\0")] {
        let payload = format!("{domid}\0");
        let answer = ask(&mut simulation, &mut dom0, Kind::IsDomainIntroduced, payload.as_bytes());
        assert_eq!(answer, introduced, "{domid}");
        assert_eq!(world.page(DomId(domid)).word(Word::Connection), u32::from(domid != 4));
    }
    simulation.check().unwrap();
}
