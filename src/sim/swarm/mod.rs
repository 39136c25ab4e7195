//! Swarms: a seed chooses how many clients there are, what they are like and what goes wrong; then they
//! all live for a while under the eyes of the model.
//!
//! A run has three parts (the first two as in TigerBeetle's simulator: safety, then liveness):
//! 1. chaos: everything that the options allow, each reply and event judged as it appears;
//! 2. calm: no more faults, the hostile die, and everybody honest must get all that is due;
//! 3. the end: the whole store is read back, all guests die, and nothing of them may be left.
//!
//! Some seeds ([`is_hungry`]) are runs of another kind, `hungry`: guests that take all that they can get, on a server whose
//! memory has an end.

mod agent;
mod hungry;
mod options;
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

/// Plays one seed.
///
/// # Errors
/// What was wrong with the server.
pub fn play(seed: u64) -> Result<Report, Failure> {
    if is_hungry(seed) {
        return hungry::play(seed).map_err(|what| {
            let options = hungry::describe(seed);
            Failure { seed, options, what, last: String::new() }
        });
    }
    match attempt(seed, false) {
        (_, Ok(report)) => Ok(report),
        // Once more, this time with a record.
        (_, Err(_)) => match attempt(seed, true) {
            (last, Err(what)) => {
                let options = Options::draw(&mut super::Random::new(seed));
                Err(Failure { seed, options: std::format!("{options}"), what, last })
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

/// Plays a judged seed without any refusal; says how many blocks the server asks for.
///
/// # Errors
/// As [`play`].
pub fn count_blocks(seed: u64) -> Result<u64, Failure> {
    refuse_one(seed, 0).map(|(blocks, _)| blocks)
}

/// Plays a judged seed with the `n`-th block refused: the server goes on, its books balance, every honest client gets one
/// reply to each request, and nothing is left of what guests had. Says whether the refusal came.
///
/// # Errors
/// What was wrong.
pub fn refuse(seed: u64, n: u64) -> Result<bool, Failure> {
    refuse_one(seed, n).map(|(_, came)| came)
}

fn refuse_one(seed: u64, n: u64) -> Result<(u64, bool), Failure> {
    let result = Run::new(seed, false).and_then(|mut run| {
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

fn attempt(seed: u64, tell: bool) -> (String, Result<Report, String>) {
    let mut run = match Run::new(seed, tell) {
        Ok(run) => run,
        Err(what) => return (String::new(), Err(what)),
    };
    let result = run.play();
    let report = Report { trace: run.trace, requests: run.model.requests() };
    let story = run.story();
    (story, result.and_then(|()| run.leave()).map(|()| report))
}
