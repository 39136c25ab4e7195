//! The cost of a live update for each node, on the host: `cargo bench --bench handover [-- NODES]`.
//!
//! Nodes are made in groups of 200, with values of some 10 bytes. Each step of a hand-over is timed by itself, and
//! the best of some rounds counts. To count instructions instead of time, have callgrind count one step, and
//! divide:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*::restore_all' target/release/deps/handover-* 20400 once
//! ```
//!
//! `once` leaves out the rounds. The steps are `save_all`, `restore_all`, `digest_again`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use core::hint::black_box;
use core::time::Duration;
use std::time::Instant;
use xenstore_stubdom::proto::handover::Digest;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::{Offer, Server};
use xenstore_stubdom::sim::{Client, Region, SimPlatform, Simulation, World};

/// Nodes below one parent.
const GROUP: usize = 200;

const ROUNDS: usize = 7;

/// The names of the steps, in their order.
const STEPS: [&str; 3] = ["save", "restore", "digest again"];

fn write(simulation: &mut Simulation, client: &mut Client, path: &str, value: &str) {
    let payload = format!("{path}\0{value}");
    let (bytes, _) = client.request(Kind::Write.number(), 0, payload.as_bytes());
    assert_eq!(client.write(&bytes), bytes.len(), "the ring has room for one request");
    let _ = simulation.settle();
    client.read(usize::MAX);
    let reply = client.next_message().expect("a reply");
    assert_eq!(reply.payload, b"OK\0", "{path}");
}

/// A server with so many nodes besides those that it starts with.
fn filled(nodes: usize) -> Simulation {
    let (mut simulation, mut client) = Simulation::start("");
    for node in 0..nodes {
        let path = format!("/tree/group-{}/node-{}", node / GROUP, node % GROUP);
        write(&mut simulation, &mut client, &path, &format!("value {node:05}"));
    }
    simulation
}

#[inline(never)]
fn save_all(server: &mut Server<SimPlatform>) -> Offer<Region> {
    server.leave().expect("it can be saved")
}

#[inline(never)]
fn restore_all(world: &World, offer: &Offer<Region>) -> Server<SimPlatform> {
    let (stream, private) = offer.region.bytes.split_at(offer.stream_len);
    Server::restore(world.successor(), "", stream, private).expect("it can be restored")
}

#[inline(never)]
fn digest_again(server: &Server<SimPlatform>) -> u64 {
    server.digest().expect("it can be written again")
}

/// The times of the three steps.
fn hand_over(simulation: &mut Simulation) -> [Duration; 3] {
    let mut last = Instant::now();
    let mut step = || {
        let now = Instant::now();
        now.duration_since(core::mem::replace(&mut last, now))
    };
    let offer = save_all(&mut simulation.server);
    let save = step();
    let digest = Digest::of(&offer.region.bytes);
    step();
    let new = restore_all(&simulation.world, &offer);
    let restore = step();
    assert_eq!(black_box(digest_again(&new)), digest);
    let again = step();
    new.abandon();
    simulation.server.stay("only a measurement");
    [save, restore, again]
}

fn main() {
    // Cargo passes options of the test harness, too.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let nodes = arguments.iter().find_map(|word| word.parse().ok()).unwrap_or(20_400_usize);
    let rounds = if arguments.iter().any(|word| word == "once") { 1 } else { ROUNDS };
    let mut simulation = filled(nodes);
    let mut best = [Duration::MAX; 3];
    for _ in 0..rounds {
        for (best, now) in best.iter_mut().zip(hand_over(&mut simulation)) {
            *best = now.min(*best);
        }
    }
    println!("{nodes} nodes, nanoseconds per node:");
    let each = |time: Duration| time.as_nanos() / nodes.max(1) as u128;
    for (name, time) in STEPS.iter().zip(best) {
        println!("{name:>16} {:>6}", each(time));
    }
    println!("{:>16} {:>6}", "all of it", each(best.iter().sum()));
}
