//! Plays transcripts on real Xen. It runs in dom0, is dom0's client of the xenstore, and drives test guests
//! (`src/bin/test-guest`, role `remote`) as the other clients. `tests/nested/transcripts.sh` and `scripts/peers`
//! start it.
//!
//! ```text
//! player ours|xenstored|oxenstored [--quick] [--after TITLE] FILE...
//! ```
//!
//! It prints one line for each conversation: `ok`, `FAIL`, `skip` or `LOST` (the server answers nobody any more),
//! a tab, file and title, and, after another tab, details. A conversation that fails with another server is played
//! once more. `--quick` leaves out conversations that sleep for long. `--after` leaves out everything up to a
//! conversation, to go on after a loss. The last line is the verdict. The status is 1 after a failure, 3 after a
//! loss.
#![expect(clippy::print_stdout, reason = "a program whose results are lines")]

extern crate alloc;

mod guest;
mod limits;
mod link;
mod stage;
mod world;

use stage::Live;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use world::World;
use xenstore_stubdom::transcript::{self, Conversation, Stop};

/// Whose conversations these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    /// The stub domain.
    Ours,
    /// C xenstored.
    Xenstored,
    /// oxenstored.
    Oxenstored,
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(stop) => {
            println!("verdict: fail: {stop:?}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, Stop> {
    let mut arguments = std::env::args().skip(1).peekable();
    let server = match arguments.next().as_deref() {
        Some("ours") => Server::Ours,
        Some("xenstored") => Server::Xenstored,
        Some("oxenstored") => Server::Oxenstored,
        _ => {
            return Err(
                "usage: player ours|xenstored|oxenstored [--quick] [--after TITLE] FILE...".into(),
            );
        }
    };
    let is_quick = arguments.next_if_eq("--quick").is_some();
    let after = arguments.next_if_eq("--after").and_then(|_| arguments.next());
    let mut is_late = after.is_none();
    let mut world = World::open(server, is_quick)?;
    let mut counts = Counts::default();
    for file in arguments {
        let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        let name = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for conversation in transcript::conversations(&text)? {
            let title = format!("{name}: {}", conversation.title);
            if !is_late {
                is_late = after.as_ref() == Some(&title);
                continue;
            }
            if !play(&mut world, &conversation, &title, &mut counts) {
                println!("verdict: lost");
                return Ok(ExitCode::from(3));
            }
        }
    }
    println!("it took {} guests", world.made());
    world.close();
    let Counts { passed, failed, skipped } = counts;
    if failed > 0 {
        println!("verdict: fail ({passed} passed, {failed} failed, {skipped} skipped)");
        return Ok(ExitCode::from(1));
    }
    println!("verdict: pass ({passed} passed, {skipped} skipped)");
    Ok(ExitCode::SUCCESS)
}

/// Plays one; how many replies or lines were not compared.
fn attempt(world: &mut World, conversation: &Conversation) -> Result<usize, Stop> {
    let mut live = Live::open(world, conversation)?;
    let result = transcript::play(conversation, &mut live);
    // A server that died of a conversation shows when it is to be tidied up, at the latest.
    match (result, live.close()) {
        (Ok(_), Err(Stop::Lost(then))) => Err(Stop::Lost(format!("all of it played, then {then}"))),
        (Err(Stop::Wrong(what)), Err(Stop::Lost(then))) => {
            Err(Stop::Lost(format!("{what}, then {then}")))
        }
        (Err(Stop::Skip(_)), Err(lost @ Stop::Lost(_))) => Err(lost),
        (Ok(loose), closed) => closed.map(|()| loose),
        (Err(stop), _) => Err(stop),
    }
}

/// Plays one and reports; `false` if the server is lost.
fn play(world: &mut World, conversation: &Conversation, title: &str, counts: &mut Counts) -> bool {
    let start = Instant::now();
    let mut result = attempt(world, conversation);
    let mut note = "";
    // What is said about other servers must not be an accident; this one gets no second chance.
    if world.server != Server::Ours && matches!(result, Err(Stop::Wrong(_))) {
        result = attempt(world, conversation);
        note = ", at the second attempt";
    }
    let took = start.elapsed().as_millis();
    match &result {
        Ok(0) => println!("ok\t{title}\t{took} ms{note}"),
        Ok(loose) => {
            println!("ok\t{title}\t{took} ms{note}, {loose} replies or lines not compared");
        }
        Err(Stop::Skip(why)) => println!("skip\t{title}\t{why}"),
        Err(Stop::Wrong(what)) => println!("FAIL\t{title}\t{what}"),
        Err(Stop::Lost(what)) => println!("LOST\t{title}\t{what}"),
    }
    match result {
        Ok(_) => counts.passed += 1,
        Err(Stop::Skip(_)) => counts.skipped += 1,
        Err(Stop::Wrong(_)) => counts.failed += 1,
        Err(Stop::Lost(_)) => return false,
    }
    true
}
