//! What survives a live update, item by item. `docs/live-update.md` names each test. `tests/transcripts.rs` shows
//! that conversations go on as if nothing had happened, and the simulator that no order of events breaks it.

use xenstore_stubdom::proto::handover::{Digest, HANDOVER};
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::sentence::Sentence;
use xenstore_stubdom::proto::stream::Version;
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::server::Server;
use xenstore_stubdom::sim::{Client, Message, Simulation};

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

fn guest(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let port = simulation.world.create(DomId(domid));
    let payload = format!("{domid}\x001\0{port}\0");
    assert_eq!(ask(simulation, dom0, Kind::Introduce, 0, &payload), "OK ");
    let home = format!("/local/domain/{domid}\0");
    assert_eq!(ask(simulation, dom0, Kind::Mkdir, 0, &home), "OK ");
    let perms = format!("{home}n{domid}\0");
    assert_eq!(ask(simulation, dom0, Kind::SetPerms, 0, &perms), "OK ");
    simulation.client(DomId(domid))
}

fn start() -> (Simulation, Client, Client) {
    let (mut simulation, mut dom0) = Simulation::start("-w watch-event=10");
    let seven = guest(&mut simulation, &mut dom0, 7);
    (simulation, dom0, seven)
}

#[test]
fn a_request_that_is_half_read_is_read_on() {
    let (mut simulation, _, mut seven) = start();
    let (bytes, _) = seven.request(Kind::Write.number(), 0, b"a-name\0a value");
    // Cut in the header, and again in the payload.
    for (from, to) in [(0, 7), (7, 20), (20, bytes.len())] {
        seven.write(&bytes[from..to]);
        simulation.settle();
        simulation.hand_over().unwrap();
    }
    assert_eq!(texts(simulation.drain(&mut seven)), ["OK "]);
    assert_eq!(ask(&mut simulation, &mut seven, Kind::Read, 0, "a-name\0"), "a value");
}

/// Ports are a domain's own, so they are others there; nobody is forgotten, and nobody confused with another one.
#[test]
fn another_domain_goes_on_with_other_ports() {
    for tells_changes in [true, false] {
        go_on_in_another_domain(tells_changes);
    }
}

fn go_on_in_another_domain(tells_changes: bool) {
    let (mut simulation, mut dom0, mut seven) = start();
    simulation.world.set_tells_changes(tells_changes);
    // A device of the server's own domain, as the toolstack makes one.
    let own = simulation.world.own_domid();
    let (device, rights) = ("/device\0", format!("n{own} r0 "));
    ask(&mut simulation, &mut dom0, Kind::Mkdir, 0, device);
    let payload = format!("{device}n{own}\0r0\0");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::SetPerms, 0, &payload), "OK ");
    let mut eight = guest(&mut simulation, &mut dom0, 8);
    let dead = guest(&mut simulation, &mut dom0, 9);
    drop(dead);
    let watched = simulation.ask(&mut dom0, Kind::Watch, 0, b"/local/domain/7\0token\0");
    assert_eq!(texts(watched), ["OK ", "/local/domain/7 token "]);
    let tx: u32 = ask(&mut simulation, &mut seven, Kind::TransactionStart, 0, "\0")
        .trim_end()
        .parse()
        .unwrap();
    assert_eq!(ask(&mut simulation, &mut seven, Kind::Write, tx, "a\0before"), "OK ");
    for round in 0..3 {
        let (bytes, _) = eight.request(Kind::Write.number(), 0, b"b\0value");
        eight.write(&bytes[..20]);
        simulation.settle();
        // Signalled, and nobody has looked yet.
        let (whole, _) = seven.request(Kind::Read.number(), tx, b"a\0");
        seven.write(&whole);
        if round == 1 {
            simulation.world.destroy(DomId(9));
        }
        simulation.replace().unwrap();
        simulation.settle();
        assert_eq!(texts(simulation.drain(&mut seven)), ["before"], "round {round}");
        eight.write(&bytes[20..]);
        simulation.settle();
        assert_eq!(texts(simulation.drain(&mut eight)), ["OK "], "round {round}");
        simulation.server.check().unwrap();
        let now = ask(&mut simulation, &mut dom0, Kind::GetPerms, 0, device);
        assert_eq!(now, rights, "round {round}: what is the domain's own stays");
    }
    simulation.hand_over().unwrap();
    assert_eq!(ask(&mut simulation, &mut seven, Kind::TransactionEnd, tx, "T\0"), "OK ");
    let event = "/local/domain/7/a token ";
    assert!(texts(simulation.drain(&mut dom0)).contains(&event.to_owned()));
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, 0, "/local/domain/8/b\0"), "value");
}

/// What goes on in turns is brought to its end before a hand-over. A client sleeps until it is told of the reply.
#[test]
fn who_waits_for_what_goes_on_in_turns_is_told_of_its_end() {
    let (mut simulation, mut dom0, _) = start();
    for n in 0..400 {
        ask(&mut simulation, &mut dom0, Kind::Mkdir, 0, &format!("/tree/{n}\0"));
    }
    for (kind, payload) in [(Kind::Control, "check\0"), (Kind::Rm, "/tree\0")] {
        let (bytes, _) = dom0.request(kind.number(), 0, payload.as_bytes());
        assert_eq!(dom0.write(&bytes), bytes.len());
        let _pass = simulation.pass();
        assert_eq!(dom0.read(usize::MAX), 0, "{kind:?}: it does not go on in turns");
        let before = simulation.world.signals(DomId(0));
        simulation.hand_over().unwrap();
        simulation.settle();
        assert!(simulation.world.signals(DomId(0)) > before, "{kind:?}: nobody was told");
        assert_eq!(texts(simulation.drain(&mut dom0)), ["OK "]);
    }
}

/// The guard takes a server for silent that leaves a request of dom0's unread and does not say that it means to.
#[test]
fn whatever_keeps_dom0s_ring_unread_is_said() {
    let (mut simulation, mut dom0, mut seven) = start();
    for n in 0..400 {
        ask(&mut simulation, &mut dom0, Kind::Mkdir, 0, &format!("/tree/{n}\0"));
        assert!(!simulation.world.is_held_back());
    }
    // It works on an earlier one.
    let next = || Header { kind: Kind::Read.number(), req_id: 7, tx_id: 0, len: 2 }.to_bytes();
    for (kind, payload) in [(Kind::Control, "check\0"), (Kind::Rm, "/tree\0")] {
        let (bytes, _) = dom0.request(kind.number(), 0, payload.as_bytes());
        assert_eq!(dom0.write(&bytes), bytes.len());
        dom0.write(&[&next()[..], b"/\0"].concat());
        let _pass = simulation.pass();
        assert!(simulation.world.is_held_back(), "{kind:?}");
        simulation.settle();
        assert!(!simulation.world.is_held_back(), "{kind:?}");
        assert_eq!(texts(simulation.drain(&mut dom0)), ["OK ", ""]);
    }
    // What others do is no reason.
    let (bytes, _) = seven.request(Kind::Read.number(), 0, b"a\0");
    seven.write(&bytes);
    let _pass = simulation.pass();
    assert!(!simulation.world.is_held_back());
}

#[test]
fn a_reply_that_is_half_written_is_written_on() {
    let (mut simulation, _, mut seven) = start();
    let value = "x".repeat(1500);
    ask(&mut simulation, &mut seven, Kind::Write, 0, &format!("a\0{value}"));
    // More than the ring holds.
    for req_id in 0..4 {
        let header = Header { kind: Kind::Read.number(), req_id, tx_id: 0, len: 2 };
        seven.write(&[&header.to_bytes()[..], b"a\0"].concat());
    }
    simulation.settle();
    let mut messages = Vec::new();
    for _ in 0..2000 {
        simulation.hand_over().unwrap();
        simulation.settle();
        seven.read(5);
        messages.extend(core::iter::from_fn(|| seven.next_message()));
    }
    let ids: Vec<u32> = messages.iter().map(|message| message.header.req_id).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert!(messages.iter().all(|message| message.payload == value.as_bytes()));
}

#[test]
fn events_keep_their_order_and_their_time() {
    let (mut simulation, mut dom0, mut seven) = start();
    for token in ["one", "two"] {
        ask(&mut simulation, &mut seven, Kind::Watch, 0, &format!("a\0{token}\0"));
    }
    // A reply that fills the ring, so that all else waits.
    ask(&mut simulation, &mut seven, Kind::Write, 0, &format!("big\0{}", "x".repeat(2000)));
    let (read, _) = seven.request(Kind::Read.number(), 0, b"big\0");
    seven.write(&read);
    seven.write(&read);
    simulation.settle();
    let path = "/local/domain/7/a/";
    ask(&mut simulation, &mut dom0, Kind::Write, 0, &format!("{path}x\0"));
    simulation.hand_over().unwrap();
    simulation.sleep(6000);
    ask(&mut simulation, &mut dom0, Kind::Write, 0, &format!("{path}y\0"));
    // What waits swallows its repetition, before and after.
    simulation.hand_over().unwrap();
    ask(&mut simulation, &mut dom0, Kind::Write, 0, &format!("{path}y\0"));
    // The first two expire at their own time.
    simulation.sleep(5000);
    simulation.hand_over().unwrap();
    let got = texts(simulation.drain(&mut seven));
    let events: Vec<&str> = got.iter().map(String::as_str).filter(|text| text.len() < 20).collect();
    assert_eq!(events, ["a/y one ", "a/y two "]);
}

#[test]
fn what_is_outstanding_stays_outstanding() {
    let (mut simulation, mut dom0, mut seven) = start();
    ask(&mut simulation, &mut dom0, Kind::SetQuota, 0, "7\0outstanding\x002\0");
    let mut eight = guest(&mut simulation, &mut dom0, 8);
    ask(&mut simulation, &mut dom0, Kind::Mkdir, 0, "/shared\0");
    ask(&mut simulation, &mut dom0, Kind::SetPerms, 0, "/shared\0b0\0");
    let watch = format!("/shared\0{}\0", "t".repeat(900));
    ask(&mut simulation, &mut eight, Kind::Watch, 0, &watch);
    // Events for domain 8, which does not read: domain 7 is held up by the third.
    for name in 0..9 {
        let (write, _) =
            seven.request(Kind::Write.number(), 0, format!("/shared/{name}\0").as_bytes());
        seven.write(&write);
        simulation.settle();
        seven.read(usize::MAX);
        simulation.hand_over().unwrap();
    }
    let usage = ask(&mut simulation, &mut dom0, Kind::Control, 0, "quota\x007\0");
    assert!(usage.contains("outstanding      :        2"), "{usage}");
    for _ in 0..10 {
        simulation.drain(&mut eight);
        simulation.drain(&mut seven);
    }
    let usage = ask(&mut simulation, &mut dom0, Kind::Control, 0, "quota\x007\0");
    assert!(usage.contains("outstanding      :        0"), "{usage}");
}

#[test]
fn quotas_peaks_features_and_targets_stay() {
    let (mut simulation, mut dom0, mut seven) = start();
    let _eight = guest(&mut simulation, &mut dom0, 8);
    simulation.world.create(DomId(9));
    for (kind, payload) in [
        (Kind::SetQuota, "nodes\x005\0"),
        (Kind::SetQuota, "7\0watches\x003\0"),
        (Kind::SetFeature, "9\x004\0"),
        (Kind::SetTarget, "8\x007\0"),
    ] {
        assert_eq!(ask(&mut simulation, &mut dom0, kind, 0, payload), "OK ", "{payload}");
    }
    ask(&mut simulation, &mut seven, Kind::Watch, 0, "a\0t\0");
    ask(&mut simulation, &mut seven, Kind::Unwatch, 0, "a\0t\0");
    let questions = [
        (Kind::GetQuota, "nodes\0", "5 "),
        (Kind::GetQuota, "7\0watches\0", "3 "),
        (Kind::GetQuota, "7\0nodes\0", "1000 "),
        (Kind::GetFeature, "9\0", "4 "),
        (Kind::GetFeature, "7\0", "14 "),
    ];
    for _ in 0..2 {
        for (kind, payload, answer) in questions {
            assert_eq!(ask(&mut simulation, &mut dom0, kind, 0, payload), answer, "{payload}");
        }
        let usage = ask(&mut simulation, &mut dom0, Kind::Control, 0, "quota\x007\0");
        assert!(usage.contains("watches          :        0 (max:        1)"), "{usage}");
        let mut eight = simulation.client(DomId(8));
        assert_eq!(ask(&mut simulation, &mut eight, Kind::Read, 0, "/local/domain/7\0"), "");
        simulation.hand_over().unwrap();
    }
}

#[test]
fn a_ring_that_was_given_up_stays_given_up_and_doubts_go_on() {
    let (mut simulation, mut dom0, seven) = start();
    let eight = guest(&mut simulation, &mut dom0, 8);
    let too_long = Header { kind: 2, req_id: 0, tx_id: 0, len: 5000 };
    let mut seven = seven;
    seven.write(&too_long.to_bytes());
    simulation.settle();
    assert_ne!(seven.page().word(Word::Error), 0);
    // The other one's indices are impossible, which is looked at five times before it counts.
    eight.page().set_word(Word::ReqProd, 5000);
    simulation.world.signal(DomId(8));
    let mut looks = 0;
    while eight.page().word(Word::Error) == 0 {
        looks += 1;
        assert!(looks < 20);
        simulation.settle();
        simulation.hand_over().unwrap();
        simulation.sleep(10);
    }
    assert!((4..8).contains(&looks), "{looks}");
    simulation.hand_over().unwrap();
    let stats = ask(&mut simulation, &mut dom0, Kind::Control, 0, "stats\x007\0");
    assert_eq!(stats.matches("ignored").count(), 2, "{stats}");
    simulation.check().unwrap();
}

#[test]
fn a_shutdown_is_announced_once_and_a_death_during_the_update_is_seen() {
    let (mut simulation, mut dom0, _seven) = start();
    let _eight = guest(&mut simulation, &mut dom0, 8);
    ask(&mut simulation, &mut dom0, Kind::Watch, 0, "@releaseDomain\0tok\x001\0");
    simulation.world.set_shutdown(DomId(7), true);
    assert_eq!(texts(simulation.drain(&mut dom0)), ["@releaseDomain/7 tok "]);
    simulation.hand_over().unwrap();
    assert_eq!(texts(simulation.drain(&mut dom0)), [""; 0]);
    simulation.world.destroy(DomId(8));
    simulation.hand_over().unwrap();
    assert_eq!(texts(simulation.drain(&mut dom0)), ["@releaseDomain/8 tok "]);
    assert_eq!(simulation.world.bound_ports(), 2);
}

#[test]
fn without_unique_ids_a_domain_is_still_known_by_its_traits() {
    let (mut simulation, mut dom0) = Simulation::start("");
    simulation.world.set_tells_changes(false);
    simulation.world.create(DomId(9));
    simulation.world.set_cpu_time(DomId(9), 500);
    ask(&mut simulation, &mut dom0, Kind::Mkdir, 0, "/x\0");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::SetPerms, 0, "/x\0n0\0b9\0"), "OK ");
    // Another one under the same domid, unseen.
    simulation.world.set_handle(DomId(9), [9; 16]);
    simulation.hand_over().unwrap();
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::GetPerms, 0, "/x\0"), "n0 ");
}

#[test]
fn write_credits_and_figures_go_on() {
    let (mut simulation, mut dom0, mut seven) = start();
    ask(&mut simulation, &mut dom0, Kind::TransactionStart, 0, "\0");
    let mut written = 0;
    for n in 0..30 {
        let (write, _) = seven.request(Kind::Write.number(), 0, format!("a{n}\0").as_bytes());
        seven.write(&write);
        written += simulation.drain(&mut seven).len();
        simulation.hand_over().unwrap();
    }
    assert_eq!(written, 11, "the burst is not given anew");
    let stats = ask(&mut simulation, &mut dom0, Kind::Control, 0, "stats\x007\0");
    assert!(stats.contains("\n7 11 0 0 "), "{stats}");
    let stats = ask(&mut simulation, &mut dom0, Kind::Control, 0, "stats\0");
    // The first one only: which one is measured next is handed over, too.
    assert!(stats.contains("request time in us, one of 64: <1: 1\n"), "{stats}");
}

#[test]
fn log_switches_stay() {
    let (mut simulation, mut dom0, _seven) = start();
    ask(&mut simulation, &mut dom0, Kind::Control, 0, "log\0-io\0");
    ask(&mut simulation, &mut dom0, Kind::Control, 0, "log\0on\0");
    simulation.hand_over().unwrap();
    let log = ask(&mut simulation, &mut dom0, Kind::Control, 0, "log\0");
    assert!(log.contains("Log is on") && log.contains("io      : off"), "{log}");
}

#[test]
fn a_successor_tells_what_it_took_over() {
    let (mut simulation, _, _) = start();
    drop(simulation.world.take_console());
    simulation.hand_over().unwrap();
    let console = simulation.world.take_console().join("\n");
    let what = "took over 8 nodes, 2 domains, 2 connections, 0 watches, 0 transactions; nobody was";
    assert!(console.contains(what), "{console}");
}

#[test]
fn an_update_signals_nobody_who_has_nothing_to_read() {
    let (mut simulation, _, _) = start();
    let before = simulation.world.signals(DomId(7));
    simulation.hand_over().unwrap();
    simulation.settle();
    assert_eq!(simulation.world.signals(DomId(7)), before);
}

/// A region with something of everything.
fn region(simulation: &mut Simulation) -> (Vec<u8>, usize) {
    let offer = simulation.server.leave().unwrap();
    simulation.server.stay("it was only to be looked at");
    (offer.region.bytes, offer.stream_len)
}

fn restore(simulation: &Simulation, all: &[u8], stream_len: usize) -> Result<u64, Sentence> {
    let (stream, private) = all.split_at(stream_len);
    let new = Server::restore(simulation.world.successor(), "", stream, private)?;
    let digest = new.digest();
    new.check().map_err(|findings| Sentence::from(findings.as_str()))?;
    new.abandon();
    digest
}

#[test]
fn every_damaged_byte_is_refused_or_gives_a_sound_server() {
    let (mut simulation, mut dom0, mut seven) = start();
    ask(&mut simulation, &mut seven, Kind::Watch, 0, "a\0t\0");
    let tx = ask(&mut simulation, &mut seven, Kind::TransactionStart, 0, "\0");
    ask(&mut simulation, &mut seven, Kind::Write, tx.trim().parse().unwrap(), "a\0b");
    let (read, _) = seven.request(Kind::Read.number(), 0, b"a\0");
    seven.write(&read);
    ask(&mut simulation, &mut dom0, Kind::Write, 0, "/local/domain/7/a/x\0y");
    seven.write(&read[..9]);
    simulation.settle();
    let (all, stream_len) = region(&mut simulation);
    assert_eq!(restore(&simulation, &all, stream_len), Ok(Digest::of(&all)));
    let (mut refused, mut sound) = (0, 0);
    for at in 0..all.len() {
        for bit in [1, 4, 0x80] {
            let mut all = all.clone();
            all[at] ^= bit;
            // A value, say, may be another one: that is for the checksum of a region to tell.
            match restore(&simulation, &all, stream_len) {
                Ok(_) => sound += 1,
                Err(why) => {
                    assert!(why.len() > 10 && !why.contains("findings"), "byte {at}: {why}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 500 && sound > 500, "{refused} {sound}");
    for cut in 0..all.len() {
        let (stream, private) = all.split_at(stream_len);
        let (stream, private) = match cut.checked_sub(stream_len) {
            None => (&stream[..cut], private),
            Some(cut) => (stream, &private[..cut]),
        };
        // Without any private part a stream is another one's.
        let whole = private.is_empty() || stream.is_empty();
        let world = simulation.world.successor();
        assert!(whole || Server::restore(world, "", stream, private).is_err(), "{cut}");
    }
}

/// Attack 14: a guest whose nodes are below a long name, so that its paths are many times what its nodes take.
#[test]
fn long_names_do_not_make_a_hand_over_large() {
    let (mut simulation, _, mut seven) = start();
    let (all, stream_len) = region(&mut simulation);
    let (before, private_before) = (all.len(), all.len() - stream_len);
    let top = "x".repeat(1900);
    for child in 0..900 {
        let child = format!("{}/{child}", child / 100);
        assert_eq!(
            ask(&mut simulation, &mut seven, Kind::Write, 0, &format!("{top}/{child}\0v")),
            "OK "
        );
    }
    let (all, stream_len) = region(&mut simulation);
    assert!(all.len() < before + 2000 + 900 * 40, "{} after {before}", all.len());
    assert!(all.len() - stream_len > private_before + 900 * 16, "where are the nodes?");
    assert_eq!(restore(&simulation, &all, stream_len), Ok(Digest::of(&all)));
}

#[test]
fn an_unknown_version_is_refused_in_words() {
    let (mut simulation, _, _) = start();
    let (mut all, stream_len) = region(&mut simulation);
    all[stream_len] = 9;
    let why = restore(&simulation, &all, stream_len).unwrap_err();
    let newest = *HANDOVER.end();
    let expected = format!("the private part is of version 9, this image reads 1 to {newest}");
    assert_eq!(why.to_string(), expected);
    let mut sink = Vec::new();
    let why = simulation.server.save(Version::Two, newest + 1, &mut sink).unwrap_err();
    let expected = format!("version {} of the private part is unknown here", newest + 1);
    assert_eq!(why.to_string(), expected);
}

#[test]
fn without_memory_the_old_instance_goes_on() {
    let (mut simulation, mut dom0, mut seven) = start();
    simulation.world.set_heap_free(100_000);
    assert_eq!(
        simulation.hand_over().unwrap_err(),
        "there is not enough memory to take everything over"
    );
    simulation.world.set_heap_free(100);
    let why = simulation.hand_over().unwrap_err();
    assert_eq!(why, "there is not enough memory to write the state down");
    simulation.world.set_heap_free(usize::MAX);
    simulation.fail_to_hand_over().unwrap();
    assert_eq!(ask(&mut simulation, &mut seven, Kind::Write, 0, "a\0b"), "OK ");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Read, 0, "/local/domain/7/a\0"), "b");
    simulation.check().unwrap();
}

/// A request may still look for its place when an update comes, and have much to make there.
#[test]
fn a_request_that_has_just_begun_to_make_levels_is_answered_by_the_successor() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let replies = |messages: Vec<Message>| -> Vec<Vec<u8>> {
        messages.into_iter().map(|message| message.payload).collect()
    };
    let path = format!("/tool{}\0", "/l".repeat(400));
    let start = simulation.ask(&mut dom0, Kind::TransactionStart, 0, b"\0");
    assert_eq!(replies(start), [b"1\0"]);
    let (bytes, _) = dom0.request(Kind::Mkdir.number(), 1, path.as_bytes());
    assert_eq!(dom0.write(&bytes), bytes.len());
    simulation.pass();
    simulation.hand_over().unwrap();
    assert_eq!(replies(simulation.drain(&mut dom0)), [b"OK\0"]);
    assert_eq!(replies(simulation.ask(&mut dom0, Kind::TransactionEnd, 1, b"T\0")), [b"OK\0"]);
    assert_eq!(replies(simulation.ask(&mut dom0, Kind::Read, 0, path.as_bytes())), [b""]);
    simulation.check().unwrap();
}
