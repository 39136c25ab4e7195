//! Plays seeds of the simulator: `scripts/sim` calls this.
//!
//! ```text
//! sim [--seeds N] [--from N] [--jobs N]   N seeds from a first one on, on so many processors
//! sim --seed N                            one seed
//! sim --fail yes ...                      the judged seeds only, and each of them with failures of the server
//! sim --refuse N ...                      each judged seed N times, each time with another block refused; 0 for every one
//! sim --only hungry|judged ...            only the seeds of this kind: hungry guests, or those that the model judges
//! ```

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;
use xen_kernel_rt::memory::bounded::Bounded;
use xenstore_stubdom::sim::swarm;

/// The servers run on the image's own allocator.
#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// A line of progress after so many seeds.
const PROGRESS: u64 = 5000;

struct Wanted {
    from: u64,
    seeds: u64,
    jobs: u64,
    /// How many blocks of each judged seed are refused, one at a time.
    refuse: Option<u64>,
    /// The server fails in each judged seed.
    fail: bool,
    /// Only seeds of hungry guests, or only the others.
    hungry: Option<bool>,
}

fn arguments() -> Option<Wanted> {
    let mut wanted =
        Wanted { from: 0, seeds: 1000, jobs: 1, refuse: None, fail: false, hungry: None };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        if word == "--only" {
            wanted.hungry = Some(match value.as_str() {
                "hungry" => true,
                "judged" => false,
                _ => return None,
            });
            continue;
        }
        if word == "--fail" {
            (wanted.fail, wanted.hungry) = (value == "yes", Some(false));
            continue;
        }
        let value = value.parse().ok()?;
        match word.as_str() {
            "--seeds" => wanted.seeds = value,
            "--from" => wanted.from = value,
            "--refuse" => (wanted.refuse, wanted.hungry) = (Some(value), Some(false)),
            "--jobs" => wanted.jobs = value.max(1),
            "--seed" => (wanted.from, wanted.seeds) = (value, 1),
            _ => return None,
        }
    }
    Some(wanted)
}

/// Output that nobody reads any more is no reason to fail.
fn say(line: &str) {
    let _nobody_reads = writeln!(io::stdout(), "{line}");
}

fn main() -> ExitCode {
    if cfg!(panic = "abort") {
        say(
            "built so that a panic is the end, this cannot have servers fail: cargo run --profile sim --example sim",
        );
        return ExitCode::from(2);
    }
    let Some(wanted) = arguments() else {
        say(
            "sim [--seeds N] [--from N] [--jobs N] [--seed N] [--only hungry|judged] [--fail yes] [--refuse N]",
        );
        return ExitCode::from(2);
    };
    let (next, requests) = (AtomicU64::new(wanted.from), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let end = wanted.from.saturating_add(wanted.seeds);
    let start = Instant::now();
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            if wanted.hungry.is_some_and(|hungry| hungry != swarm::is_hungry(seed)) {
                continue;
            }
            name_seed_of_panics(seed);
            if let Some(blocks) = wanted.refuse {
                match refuse(seed, blocks) {
                    Ok(refused) => {
                        requests.fetch_add(refused, Ordering::Relaxed);
                    }
                    Err(failure) => {
                        say(&format!("{failure}"));
                        failed.store(true, Ordering::Relaxed);
                    }
                }
                continue;
            }
            match play(seed, &wanted) {
                Some(judged) => {
                    requests.fetch_add(judged, Ordering::Relaxed);
                }
                None => failed.store(true, Ordering::Relaxed),
            }
            let done = seed - wanted.from + 1;
            if done % PROGRESS == 0 {
                say(&format!("{done} seeds, {:.0?}", start.elapsed()));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..wanted.jobs {
            scope.spawn(work);
        }
        work();
    });
    let failed = failed.into_inner();
    let played = next.into_inner().min(end) - wanted.from;
    say(&format!(
        "{}: {played} seeds, {} {}, {:.1?}",
        if failed { "FAILED" } else { "ok" },
        requests.into_inner(),
        if wanted.refuse.is_some() { "blocks refused" } else { "requests" },
        start.elapsed()
    ));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Plays a seed; how many requests were judged, or `None` if something was wrong.
fn play(seed: u64, wanted: &Wanted) -> Option<u64> {
    match if wanted.fail { swarm::play_failing(seed) } else { swarm::play(seed) } {
        Ok(report) => {
            if wanted.seeds == 1 {
                say(&format!("trace {:016x}", report.trace));
            }
            Some(report.requests)
        }
        Err(failure) => {
            say(&format!("{failure}"));
            None
        }
    }
}

/// Refuses some blocks of a seed, one at a time, or every one; says how many.
fn refuse(seed: u64, wanted: u64) -> Result<u64, swarm::Failure> {
    let blocks = swarm::count_blocks(seed)?;
    let stride = if wanted == 0 { 1 } else { blocks.div_ceil(wanted).max(1) };
    let mut refused = 0;
    // Each seed begins at another one.
    for n in (1 + seed % stride..=blocks).step_by(usize::try_from(stride).unwrap_or(usize::MAX)) {
        refused += u64::from(swarm::refuse(seed, n)?);
    }
    Ok(refused)
}

/// A panic, too, says how to see it again.
fn name_seed_of_panics(seed: u64) {
    thread_local!(static SEED: core::cell::Cell<u64> = const { core::cell::Cell::new(0) });
    static HOOK: std::sync::Once = std::sync::Once::new();
    SEED.set(seed);
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            before(what);
            let seed = SEED.get();
            say(&format!("seed {seed} panicked; once more: scripts/sim --seed {seed}"));
        }));
    });
}
