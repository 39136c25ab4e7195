//! Plays the conversations of `tests/transcripts/*.txt` against the server through simulated rings: once as the
//! client writes them, and again cut at arbitrary bytes. `xenstore_stubdom::transcript` says how they are written.

use core::fmt::Write as _;
use std::path::Path;
use xenstore_stubdom::sim::stage::{Delivery, Stage};
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

fn play_all(delivery: Delivery) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect::<Vec<_>>();
    files.sort();
    assert!(!files.is_empty());
    let mut failures = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for conversation in transcript::conversations(&text).unwrap() {
            if let Err(what) = play(&conversation, delivery) {
                let _ = writeln!(failures, "{name}: {}: {what:?}", conversation.title);
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// A successor looks at every domain, and says what it finds.
const LOOKED_AT_AGAIN: &str = "a shutdown before the introduction is no news";

fn play(conversation: &Conversation, delivery: Delivery) -> Result<(), Stop> {
    let keeps = |line: &str| {
        !line.contains("CONTROL live-update -b") && !line.contains("CONTROL dump begin")
    };
    if matches!(delivery, Delivery::Updated | Delivery::Failed)
        && (!conversation.lines().all(keeps) || conversation.title == LOOKED_AT_AGAIN)
    {
        // An upload is not handed over, since the successor is there already, nor is a dump.
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
