//! The tables of `docs/conformance.md`: everything that they name must exist, and nothing may be missing from
//! them.

extern crate alloc;

use alloc::collections::BTreeSet;
use std::path::Path;

/// The sections of `docs/protocol.md` that are rules.
const SECTIONS: [&str; 58] = [
    "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "2.0", "2.1",
    "2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "2.10", "2.11", "2.12", "2.13", "2.14",
    "2.15", "2.16", "2.17", "3", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6", "4.7", "5.1", "5.2",
    "5.3", "5.4", "5.5", "5.6", "6.1", "6.2", "6.3", "6.4", "7.1", "7.2", "7.3", "7.4", "7.5",
    "7.6", "7.7", "8", "8.1", "9", "9.1",
];

/// The advisories about xenstore servers, up to the newest of April 2026.
const ADVISORIES: [u32; 27] = [
    38, 72, 115, 206, 233, 272, 322, 323, 324, 325, 326, 330, 352, 353, 414, 415, 416, 417, 418,
    419, 420, 421, 425, 440, 481, 483, 484,
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_default()
}

/// The rows of the tables behind "What shows it": first cell and the places that the second names.
fn rows() -> Vec<(String, Vec<String>)> {
    let text = read("docs/conformance.md");
    let (_, tables) = text.split_once("## What shows it").expect("the tables");
    let (tables, _) = tables.split_once("## The peers").expect("what comes behind them");
    let cells = tables.lines().filter_map(|line| {
        let (first, second) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        let places = second.split("; ").map(str::to_owned).collect::<Vec<_>>();
        (second != "shown by").then(|| (first.to_owned(), places))
    });
    cells.collect()
}

/// Whether a conversation or test of that name exists.
fn exists(place: &str) -> bool {
    let Some((file, name)) = place.split_once(": ") else { return false };
    if Path::new(file).extension().is_some_and(|extension| extension == "rs") {
        let declared = format!("fn {name}()");
        return read(file).lines().any(|line| line.trim_start().starts_with(&declared));
    }
    let title = format!("== {name}");
    read(&format!("tests/transcripts/{file}.txt")).lines().any(|line| line == title)
}

#[test]
fn whatever_the_tables_name_exists() {
    let rows = rows();
    assert!(rows.len() > 80, "only {} rows", rows.len());
    let missing = rows.iter().flat_map(|(rule, places)| {
        places.iter().filter(|place| !exists(place)).map(move |place| format!("{rule}: {place}"))
    });
    let missing = missing.collect::<Vec<_>>();
    assert!(missing.is_empty(), "named but not there:\n{}", missing.join("\n"));
}

#[test]
fn whatever_survives_a_live_update_has_a_test() {
    let text = read("docs/live-update.md");
    let (_, table) = text.split_once("## What survives").expect("the table");
    let table = table.split("\n## ").next().unwrap_or(table);
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let tests = rows.filter_map(|row| row.rsplit_once(" | ")).map(|(_, test)| test);
    let tests = tests.filter(|test| *test != "test").collect::<Vec<_>>();
    assert!(tests.len() > 20, "only {} rows", tests.len());
    let missing = tests.iter().filter(|test| !exists(test)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "named but not there: {missing:?}");
}

#[test]
fn no_section_and_no_advisory_is_missing() {
    let rows = rows();
    let listed = rows.iter().map(|(rule, _)| rule.split(' ').next().unwrap().to_owned());
    let listed = listed.collect::<BTreeSet<_>>();
    let sections = SECTIONS.iter().map(ToString::to_string);
    let wanted = sections.chain(ADVISORIES.iter().map(|number| format!("XSA-{number}")));
    let missing = wanted.filter(|wanted| !listed.contains(wanted)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "without a row: {missing:?}");
}

#[test]
fn the_sections_are_those_of_the_protocol_page() {
    let page = read("docs/protocol.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("##"));
    let numbers = headings.filter_map(|line| line.trim_start_matches('#').split(' ').nth(1));
    let numbers = numbers.map(|number| number.trim_end_matches('.')).collect::<BTreeSet<_>>();
    let missing = SECTIONS.iter().filter(|section| !numbers.contains(*section)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "no such section: {missing:?}");
}

#[test]
fn every_advisory_has_a_conversation_or_test_of_its_own_name() {
    for (rule, places) in rows() {
        let Some(number) = rule.split(' ').next().and_then(|word| word.strip_prefix("XSA-")) else {
            continue;
        };
        let names = [format!("XSA-{number}:"), format!("XSA-{number},")];
        let named = places.iter().any(|place| names.iter().any(|name| place.contains(name)));
        assert!(named, "XSA-{number}");
    }
}

/// Conversations about advisories and failure classes that no table names would be invisible.
#[test]
fn every_conversation_is_named_somewhere() {
    let named = rows().into_iter().flat_map(|(_, places)| places).collect::<BTreeSet<_>>();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut unnamed = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Some(stem) = file.strip_suffix(".txt") else { continue };
        for line in read(&format!("tests/transcripts/{file}")).lines() {
            let Some(title) = line.strip_prefix("== ") else { continue };
            let place = format!("{stem}: {title}");
            if !named.contains(&place) {
                unnamed.push(place);
            }
        }
    }
    // The first files have some that show again what others show.
    let strays = unnamed.iter().filter(|place| place.starts_with('1')).collect::<Vec<_>>();
    assert!(strays.is_empty(), "{strays:#?}");
}

/// The reasons why other servers differ: `scripts/peers` joins them with what it sees on real Xen.
#[test]
fn reasons_for_differences_name_conversations_that_exist() {
    let list = read("tests/transcripts/differences.list");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let fields = lines.map(|line| line.split(" | ").collect::<Vec<_>>()).collect::<Vec<_>>();
    assert!(!fields.is_empty());
    for fields in fields {
        let [title, server, _, verdict, _] = fields[..] else { panic!("not five: {fields:?}") };
        assert!(exists(title), "no such conversation: {title}");
        assert!(matches!(server, "C" | "OX"), "{title}: {server}");
        assert!(matches!(verdict, "theirs" | "undefined"), "{title}: {verdict}");
    }
}

#[test]
fn every_advisory_was_played_against_the_peers() {
    let text = read("docs/conformance.md");
    let (_, written) = text.split_once("<!-- scripts/peers: begin -->").expect("the mark");
    let listed = written.lines().filter_map(|line| line.strip_prefix("| XSA-")?.split(' ').next());
    let listed = listed.map(|number| number.parse().unwrap()).collect::<Vec<u32>>();
    assert_eq!(listed, ADVISORIES);
}
