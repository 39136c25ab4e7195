//! Swarms of simulated clients under the eyes of the model; see `src/sim/swarm`.
//!
//! More of them: `scripts/sim --seeds N`. One of them: `scripts/sim --seed N`.

use xenstore_stubdom::sim::swarm;

/// How many seeds each of the tests below plays, so that they run side by side.
const SEEDS: u64 = 150;

fn play(from: u64) {
    for seed in from..from + SEEDS {
        if let Err(failure) = swarm::play(seed) {
            panic!("\n{failure}");
        }
    }
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
