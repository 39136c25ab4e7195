//! Swarms: a seed chooses how many clients there are, what they are like and what goes wrong. Then they all live
//! for a while, and the model judges everything.
//!
//! A run has three parts (the first two as in TigerBeetle's simulator: safety, then liveness):
//! 1. chaos: everything that the options allow, each reply and event judged as it appears;
//! 2. calm: no more faults, the hostile die, and everybody honest must get all that is due;
//! 3. the end: the whole store is read back, all guests die, and nothing of them may be left.
//!
//! In some seeds ([`is_failing`]) the server fails at random calls of its world, and has to go on.
//!
//! Some seeds ([`is_hungry`]) are runs of another kind, `hungry`: guests that take all that they can get, on a
//! server whose memory has an end. Others ([`is_reading`]) are of the kind `reader`: clients read lists in parts
//! while the lists change.

mod agent;
mod hungry;
mod options;
mod reader;
mod run;
mod toolstack;
mod words;

pub use options::Options;

use alloc::string::String;
use core::fmt;
use run::Run;

/// What a run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// A hash of everything that passed between the server and its world.
    pub trace: u64,
    /// How many requests were judged.
    pub requests: u64,
}

/// A run that showed something wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What the seed chose.
    pub options: String,
    /// What was wrong.
    pub what: String,
    /// The last things that passed.
    pub last: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.last)?;
        writeln!(f, "options: {}", self.options)?;
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "once more: scripts/sim --seed {}", self.seed)
    }
}

/// One seed in so many is a run of hungry guests.
const HUNGRY_OF: u64 = 4;

/// Whether a seed is a run of hungry guests.
#[must_use]
pub fn is_hungry(seed: u64) -> bool {
    seed % HUNGRY_OF == HUNGRY_OF - 1
}

/// One seed in so many is a run of readers.
const READERS_OF: u64 = 16;

/// Whether a seed is a run of readers.
#[must_use]
pub fn is_reading(seed: u64) -> bool {
    seed % READERS_OF == 6
}

/// One seed in so many is a run in which the server fails.
const FAILING_OF: u64 = 4;

/// Whether a seed is a run in which the server fails in the middle of its work, and goes on.
#[must_use]
pub fn is_failing(seed: u64) -> bool {
    seed % FAILING_OF == 1
}

/// Plays one seed.
///
/// # Errors
/// What was wrong with the server.
pub fn play(seed: u64) -> Result<Report, Failure> {
    if is_reading(seed) {
        return reader::play(seed).map_err(|what| {
            let options = String::from("readers");
            Failure { seed, options, what, last: String::new() }
        });
    }
    if is_hungry(seed) {
        return hungry::play(seed).map_err(|what| {
            let options = hungry::describe(seed);
            Failure { seed, options, what, last: String::new() }
        });
    }
    judge(seed, is_failing(seed))
}

/// Plays a judged seed with failures of the server, whatever kind it is.
///
/// # Errors
/// As [`play`].
pub fn play_failing(seed: u64) -> Result<Report, Failure> {
    judge(seed, true)
}

fn judge(seed: u64, failures: bool) -> Result<Report, Failure> {
    match attempt(seed, failures, false) {
        (_, Ok(report)) => Ok(report),
        // Once more, this time with a record.
        (_, Err(_)) => match attempt(seed, failures, true) {
            (last, Err(what)) => {
                let options = Options::draw(&mut super::Random::new(seed));
                let options = std::format!("{options}{}", if failures { " failing" } else { "" });
                Err(Failure { seed, options, what, last })
            }
            (last, Ok(_)) => Err(Failure {
                seed,
                options: String::new(),
                what: String::from("it went wrong once and well the second time"),
                last,
            }),
        },
    }
}

/// Plays a judged seed without any refusal; returns how many blocks the server asks for.
///
/// # Errors
/// As [`play`].
pub fn count_blocks(seed: u64) -> Result<u64, Failure> {
    refuse_one(seed, 0).map(|(blocks, _)| blocks)
}

/// Plays a judged seed with the `n`-th block refused. The server goes on, its accounts balance, every honest
/// client gets one reply to each request, and nothing is left of what guests had. Returns whether the refusal
/// came.
///
/// # Errors
/// What was wrong.
pub fn refuse(seed: u64, n: u64) -> Result<bool, Failure> {
    refuse_one(seed, n).map(|(_, came)| came)
}

fn refuse_one(seed: u64, n: u64) -> Result<(u64, bool), Failure> {
    let result = Run::new(seed, false, false).and_then(|mut run| {
        let before = run.memory().figures().asked;
        let came = run.play_refused(n)?;
        let asked = run.memory().figures().asked;
        run.leave()?;
        Ok((asked.saturating_sub(before), came))
    });
    result.map_err(|what| {
        let options = Options::draw(&mut super::Random::new(seed));
        let options = std::format!("{options} block {n}");
        Failure { seed, options, what, last: String::new() }
    })
}

fn attempt(seed: u64, failures: bool, tell: bool) -> (String, Result<Report, String>) {
    let mut run = match Run::new(seed, failures, tell) {
        Ok(run) => run,
        Err(what) => return (String::new(), Err(what)),
    };
    let result = run.play();
    let report = Report { trace: run.trace, requests: run.model.requests() };
    let story = run.story();
    (story, result.and_then(|()| run.leave()).map(|()| report))
}
