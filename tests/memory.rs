//! When a crowd of greedy guests is gone, all that they took is given back. The allocator itself counts it.
//!
//! There is only one test: another one at the same time would be counted, too.

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::{Client, Simulation};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are handed out.
fn used() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

const GUESTS: u16 = 20;

/// Bytes that may stay after the first crowd, whatever its size: tables of a few entries, and records
/// that share a chunk with those of others.
const SMALL_CHANGE: usize = 10_000;

/// Bytes that stay of what only a crowd needs: each table of records keeps a chunk, the page that lists its chunks, and a
/// block of its index, however many there were. Seen: 82,000 bytes after a crowd of 2, 94,000 after one of 20.
const KEPT: usize = 8 * 3 * 4096;

/// Sends a request and waits for its reply, as long as the write-rate limit makes it.
fn ask(
    simulation: &mut Simulation,
    client: &mut Client,
    tx: u32,
    kind: Kind,
    text: &str,
) -> String {
    let (bytes, req_id) = client.request(kind.number(), tx, text.as_bytes());
    assert_eq!(client.write(&bytes), bytes.len());
    simulation.settle();
    for _ in 0..1000 {
        let read = client.read(usize::MAX);
        simulation.settle();
        while let Some(message) = client.next_message() {
            if message.header.req_id == req_id && message.header.kind != Kind::WatchEvent.number() {
                return String::from_utf8(message.payload)
                    .unwrap()
                    .trim_end_matches('\0')
                    .to_owned();
            }
        }
        if read == 0 {
            simulation.sleep(1000);
        }
    }
    panic!("no reply");
}

/// A domain with nodes as a toolstack makes them.
fn build(simulation: &mut Simulation, dom0: &mut Client, domid: u16) -> Client {
    let port = simulation.world.create(DomId(domid));
    for n in 0..40 {
        let node = format!("/local/domain/{domid}/n{n}\0value");
        assert_eq!(ask(simulation, dom0, 0, Kind::Write, &node), "OK");
    }
    let data = format!("/local/domain/{domid}/data\0");
    assert_eq!(ask(simulation, dom0, 0, Kind::Mkdir, &data), "OK");
    assert_eq!(ask(simulation, dom0, 0, Kind::SetPerms, &format!("{data}n{domid}\0")), "OK");
    assert_eq!(ask(simulation, dom0, 0, Kind::Introduce, &format!("{domid}\x001\0{port}\0")), "OK");
    simulation.client(DomId(domid))
}

/// Takes watches, nodes and transactions until they are refused, and then asks without reading the answers.
fn be_greedy(simulation: &mut Simulation, guest: &mut Client) {
    let mut taken = [0; 3];
    while ask(simulation, guest, 0, Kind::Watch, &format!("data/w{}\0t\0", taken[0])) == "OK" {
        taken[0] += 1;
    }
    while ask(simulation, guest, 0, Kind::Mkdir, &format!("data/n{}\0", taken[1])) == "OK" {
        taken[1] += 1;
    }
    while let Ok(tx) = ask(simulation, guest, 0, Kind::TransactionStart, "\0").parse() {
        taken[2] += 1;
        for n in 0..20 {
            ask(simulation, guest, tx, Kind::Write, &format!("data/n{n}\0new"));
        }
    }
    assert!(taken[0] == 128 && taken[1] > 100 && taken[2] == 10, "{taken:?}");
    for _ in 0..100 {
        let (bytes, _) = guest.request(Kind::Directory.number(), 0, b"data\0");
        guest.write(&bytes);
        simulation.settle();
    }
}

/// A crowd comes, is greedy and dies. Returns the most bytes that were in use.
fn crowd(simulation: &mut Simulation, dom0: &mut Client, first: u16) -> usize {
    let domids = first..first + GUESTS;
    let mut guests = domids.clone().map(|domid| build(simulation, dom0, domid)).collect::<Vec<_>>();
    for guest in &mut guests {
        be_greedy(simulation, guest);
    }
    let most = used();
    drop(guests);
    for domid in domids {
        simulation.world.destroy(DomId(domid));
        simulation.settle();
        let home = format!("/local/domain/{domid}\0");
        assert_eq!(ask(simulation, dom0, 0, Kind::Rm, &home), "OK");
    }
    simulation.sleep(60_000);
    drop(simulation.world.take_console());
    most
}

#[test]
fn nothing_stays_of_a_crowd_of_greedy_guests() {
    let (mut simulation, mut dom0) = Simulation::start("");
    let _honest = build(&mut simulation, &mut dom0, 1);
    drop(simulation.world.take_console());
    let at_first = used();
    let most = crowd(&mut simulation, &mut dom0, 2);
    let after_one = used();
    assert!(most > at_first + 1_000_000, "they took only {most} - {at_first} bytes");
    assert!(
        after_one < at_first + KEPT + SMALL_CHANGE,
        "{at_first} bytes before, {after_one} after"
    );
    for round in 1..4 {
        crowd(&mut simulation, &mut dom0, 2 + round * GUESTS);
    }
    let after_four = used();
    assert!(after_four < after_one + SMALL_CHANGE / 4, "{after_one} bytes, then {after_four}");
    simulation.check().unwrap();
}
