//! Swarms of simulated clients, judged by the model; see `src/sim/swarm`.
//!
//! For more seeds: `scripts/sim --seeds N`. For one seed: `scripts/sim --seed N`.

use xen_kernel_rt::memory::bounded::Bounded;
use xenstore_stubdom::sim::swarm;

/// The servers run on the image's own allocator.
#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// How many seeds each of the tests below plays, so that they run side by side.
const SEEDS: u64 = 150;

fn play(from: u64) {
    for seed in from..from + SEEDS {
        if let Err(failure) = swarm::play(seed) {
            panic!("\n{failure}");
        }
    }
}

/// Readers list in parts while others change what they list; see `src/sim/swarm/reader.rs`.
#[test]
fn readers_put_together_what_existed() {
    let seeds = (2 * SEEDS..).filter(|seed| swarm::is_reading(*seed)).take(12);
    let requests = seeds.map(|seed| match swarm::play(seed) {
        Ok(report) => report.requests,
        Err(failure) => panic!("\n{failure}"),
    });
    assert!(requests.sum::<u64>() > 4_000);
}

#[test]
fn swarms_from_0() {
    play(0);
}

#[test]
fn swarms_from_150() {
    play(SEEDS);
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    for seed in 1000..1010 {
        let report = swarm::play(seed).unwrap_or_else(|failure| panic!("\n{failure}"));
        assert!(report.requests > 0);
        assert_eq!(swarm::play(seed), Ok(report));
        assert_ne!(swarm::play(seed + 100).map(|other| other.trace), Ok(report.trace));
    }
}
