//! Plays the conversations of `tests/transcripts/*.txt` against the server through simulated rings: once as the
//! client writes them, and again cut at arbitrary bytes. `xenstore_stubdom::transcript` says how they are written.

use core::fmt::Write as _;
use std::path::{Path, PathBuf};
use xenstore_stubdom::sim::stage::{Delivery, Place, Record, Stage};
use xenstore_stubdom::transcript::{self, Conversation, Stop};

#[test]
fn transcripts_hold() {
    play_all(Delivery::Whole);
}

#[test]
fn transcripts_hold_when_cut_at_arbitrary_bytes() {
    for seed in 1..=5 {
        play_all(Delivery::Cut(seed));
    }
}

#[test]
fn transcripts_hold_with_a_live_update_after_every_line() {
    play_all(Delivery::Updated);
}

/// What a failure does to requests is in `tests/restart.rs`; here it must do nothing to anything else.
#[test]
fn transcripts_hold_with_a_failure_after_every_line() {
    play_all(Delivery::Failed);
}

/// The server fails at each call of the world that a request makes, in every conversation: the state is that of before the
/// request or after it, one reply at most is EIO instead of what it should be, and a live update works afterwards. One in
/// [`SHARE`] places is tried, or with `FAILURES=all` in the environment each.
#[test]
fn transcripts_hold_with_a_failure_inside_each_request() {
    let share = if std::env::var("FAILURES").is_ok_and(|which| which == "all") { 1 } else { SHARE };
    let (mut places, mut tried, mut failures) = (0_u32, 0, String::new());
    for (name, conversation) in conversations() {
        let without_memory = conversation.lines().any(|line| line.starts_with("memory "));
        // Without memory nobody goes on, and an upload or a dump is not handed over.
        if without_memory || !is_handed_over(&conversation) {
            continue;
        }
        let options = conversation.options().to_owned() + " --test-failures";
        let mut whole = Stage::new(&options, Delivery::FailedIn(None));
        transcript::play(&conversation, &mut whole).map(drop).unwrap();
        for (line, wanted) in whole.records().iter().take(LINES_MAX).enumerate() {
            // Each line begins at another place.
            for call in (places % share..).step_by(usize::try_from(share).unwrap()) {
                let place = Place { line, call };
                let mut stage = Stage::new(&options, Delivery::FailedIn(Some(place)));
                let played = transcript::play(&conversation, &mut stage).map(drop);
                if !stage.has_failed() {
                    played.unwrap();
                    break;
                }
                tried += 1;
                if let Err(what) = is_possible(stage.records().get(line), wanted, &played) {
                    let title = &conversation.title;
                    let _ = writeln!(failures, "{name}: {title}: {place:?}: {what}");
                }
            }
            places += 1;
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert!(tried > 300, "only {tried} places");
}

/// See there.
const SHARE: u32 = 16;

/// Longer conversations repeat themselves.
const LINES_MAX: usize = 60;

/// Whether a line may have led to this after a failure.
fn is_possible(
    record: Option<&Record>,
    wanted: &Record,
    played: &Result<(), Stop>,
) -> Result<(), String> {
    let Some(record) = record else { return Err(format!("it did not go on: {played:?}")) };
    if record.after != wanted.before && record.after != wanted.after {
        return Err("the state is neither that of before nor that of after".to_owned());
    }
    let eio = |reply: &(u32, Vec<u8>)| reply.1 == b"EIO\0";
    let lost = record.replies.iter().filter(|reply| eio(reply)).count();
    if lost > 1 || record.replies.len() != wanted.replies.len() {
        return Err(format!("replies {:?} instead of {:?}", record.replies, wanted.replies));
    }
    Ok(())
}

fn conversations() -> Vec<(String, Conversation)> {
    let mut all = Vec::new();
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for conversation in transcript::conversations(&text).unwrap() {
            all.push((name.clone(), conversation));
        }
    }
    all
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect::<Vec<_>>();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn play_all(delivery: Delivery) {
    let mut failures = String::new();
    for (name, conversation) in conversations() {
        if let Err(what) = play(&conversation, delivery) {
            let _ = writeln!(failures, "{name}: {}: {what:?}", conversation.title);
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// A successor looks at every domain, and says what it finds.
const LOOKED_AT_AGAIN: &str = "a shutdown before the introduction is no news";

/// An upload is not handed over, since the successor is there already, nor is a dump.
fn is_handed_over(conversation: &Conversation) -> bool {
    let keeps = |line: &str| {
        !line.contains("CONTROL live-update -b") && !line.contains("CONTROL dump begin")
    };
    conversation.lines().all(keeps) && conversation.title != LOOKED_AT_AGAIN
}

fn play(conversation: &Conversation, delivery: Delivery) -> Result<(), Stop> {
    if matches!(delivery, Delivery::Updated | Delivery::Failed) && !is_handed_over(conversation) {
        return Ok(());
    }
    if matches!(delivery, Delivery::Failed)
        && conversation.lines().any(|l| l.starts_with("memory "))
    {
        // Without memory nobody goes on.
        return Ok(());
    }
    let mut options = conversation.options().to_owned();
    if matches!(delivery, Delivery::Failed) {
        options += " --test-failures";
    }
    let mut stage = Stage::new(&options, delivery);
    transcript::play(conversation, &mut stage).map(drop)
}
