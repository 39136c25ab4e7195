//! `tree`: the same picture of a store that can be asked and of one that was saved.

mod common;

use common::{Store, hostile, is_plain};
use xenstore_stubdom::proto::wire::Kind;
use xenstore_tools::link::{Answer, Ask};
use xenstore_tools::tree::{self, Live, Options, Saved, draw, draw_other_watches};

fn options(path: &str) -> Options {
    Options { path: path.to_owned(), depth: None, width: 20, limit: 1000 }
}

fn live(store: &mut Store, options: &Options) -> String {
    let mut out = Vec::new();
    draw(&mut Live(store), options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn saved(store: &mut Store, options: &Options) -> String {
    let stream = tree::fetch(store).unwrap();
    let mut saved = Saved::read(&stream).unwrap();
    let mut out = Vec::new();
    draw(&mut saved, options, &mut out).unwrap();
    draw_other_watches(&saved, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_picture_has_owners_rights_values_and_sizes() {
    let mut store = Store::start("", 2);
    store.must(Kind::Write, b"/local/domain/1/data\0a rather long value that is cut");
    store.must(Kind::SetPerms, b"/local/domain/1/data\0r1\0b2\0n0\0");
    let got = live(&mut store, &options("/local/domain"));
    let expected = "\
/local/domain  (owner 0)
|-- 1  (owner 1)
|   |-- name = \"guest-1\"  (owner 0)
|   `-- data = \"a rather long value~\" [31]  (owner 1, others read, 2 may read and write, 0 may nothing)
`-- 2  (owner 2)
    `-- name = \"guest-2\"  (owner 0)
6 nodes, 45 bytes of values
";
    assert_eq!(got, expected);
    let shallow = Options { depth: Some(1), ..options("/local/domain") };
    assert!(live(&mut store, &shallow).contains("|-- 1  (owner 1)\n|   `-- ... 2 below\n"));
    let few = Options { limit: 2, ..options("/local/domain") };
    assert!(live(&mut store, &few).ends_with("... and more than 2 nodes; --limit shows more\n"));
    let missing = draw(&mut Live(&mut store), &options("/no/such"), &mut Vec::new()).unwrap_err();
    assert_eq!(missing.to_string(), "/no/such: there is no such node");
}

#[test]
fn a_saved_store_looks_the_same_and_says_who_watches() {
    let mut store = Store::start("", 3);
    store.must(Kind::Write, b"/local/domain/1/data/deep/down\0x");
    let whole = options("/");
    let first = live(&mut store, &whole);
    let special = "@introduceDomain  (owner 0)\n@releaseDomain  (owner 0, 32757 may read)\n";
    assert_eq!(saved(&mut store, &whole), first + special);
    store.say(0, Kind::Watch, b"data\0tok\x1ben\0");
    store.must(Kind::Watch, b"/local/domain/1/data\0backend\x002\0");
    store.must(Kind::Watch, b"@releaseDomain\0gone\0");
    store.must(Kind::Watch, b"/no/such\0x\0");
    let got = saved(&mut store, &whole);
    assert!(
        got.contains("data  (owner 1; watched by 0 (backend, depth 2), 1 (tok\\x1ben))")
            || got.contains("data  (owner 0; watched by 0 (backend, depth 2), 1 (tok\\x1ben))"),
        "{got}"
    );
    let end = "@introduceDomain  (owner 0)\n@releaseDomain  (owner 0, 32757 may read; watched by 0 (gone))\n/no/such is not there; watched by 0 (x)\n";
    assert!(got.ends_with(end), "{got}");
}

#[test]
fn a_directory_that_needs_parts_is_whole_and_names_are_harmless() {
    let mut store = Store::start("", 1);
    for child in 0..1500 {
        store.must(Kind::Write, format!("/big/name-{child:05}\0").as_bytes());
    }
    store.must(Kind::Write, b"/big/last\0\x1b[31m\0\n");
    let got = live(&mut store, &Options { limit: 10_000, ..options("/big") });
    assert_eq!(got.lines().count(), 1 + 1500 + 1 + 1);
    assert!(
        got.contains("`-- last = \"\\x1b[31m\\x00\\x0a\"")
            || got.contains("last = \"\\x1b[31m\\x00\\x0a\""),
        "{got}"
    );
    assert!(got.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
    let again = saved(&mut store, &Options { limit: 10_000, ..options("/big") });
    assert!(again.starts_with(&got), "{again}");
}

#[test]
fn nothing_that_guests_write_breaks_a_picture() {
    let mut store = Store::start("", 20);
    for (n, value) in hostile().into_iter().enumerate() {
        let path = format!("/local/domain/1/data/v{n}\0");
        store.must(Kind::Write, &[path.as_bytes(), &value].concat());
        // A token has no NUL in it.
        let token = value.iter().copied().filter(|byte| *byte != 0).collect::<Vec<_>>();
        store.say(n, Kind::Watch, &[b"/local/domain/1/data\0", &token[..], b"\0"].concat());
    }
    let got = live(&mut store, &options("/"));
    assert!(is_plain(&got), "{got}");
    assert!(got.lines().all(|line| line.len() < 200), "{got}");
    let got = saved(&mut store, &options("/"));
    assert!(is_plain(&got), "{got}");
    assert!(got.contains("; watched by 1 ("), "{got}");
    assert!(got.lines().all(|line| line.len() < 2000), "{got}");
}

#[test]
fn a_saved_stream_may_be_anybodys() {
    let mut store = Store::start("", 2);
    store.must(Kind::Write, b"/local/domain/1/evilname/below\0evilname");
    store.say(0, Kind::Watch, b"evilname\0evilname\0");
    let stream = tree::fetch(&mut store).unwrap();
    let places = |bytes: &[u8]| {
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"evilname")).collect::<Vec<_>>()
    };
    let found = places(&stream);
    assert!(found.len() >= 4, "{found:?}");
    // Names that no store would take, which a file may have.
    let evil: [&[u8; 8]; 4] = [
        b"\x1b[2J\x07\r\n\"",
        b"\"\\\"\\\"\\\"\\",
        b"\xff\xfe\xc3\x28\xe2\x80\xae\x9b",
        b"`-- root",
    ];
    for evil in evil {
        let mut other = stream.clone();
        for at in &found {
            other[*at..*at + 8].copy_from_slice(evil);
        }
        let mut saved = Saved::read(&other).unwrap();
        let mut out = Vec::new();
        draw(&mut saved, &options("/"), &mut out).unwrap();
        draw_other_watches(&saved, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(is_plain(&text), "{text}");
        assert!(text.contains("below = "), "{text}");
    }
    // What is damaged is an error or another store, and never the end of the program.
    for at in 0..stream.len() {
        let mut other = stream.clone();
        other[at] ^= 0x55;
        let Ok(mut saved) = Saved::read(&other) else { continue };
        let mut out = Vec::new();
        let _ = draw(&mut saved, &options("/"), &mut out);
        draw_other_watches(&saved, &mut out).unwrap();
        assert!(out.is_empty() || is_plain(&String::from_utf8(out).unwrap()));
        assert!(Saved::read(&stream[..at]).is_err() || at == stream.len(), "{at}");
    }
}

#[test]
fn four_thousand_domains_are_one_picture() {
    let mut store = Store::start("", 4000);
    for guest in 0..4000 {
        store.say(guest, Kind::Watch, b"/local/domain\0token\0");
    }
    let whole = Options { limit: 100_000, ..options("/local/domain") };
    let got = live(&mut store, &whole);
    assert_eq!(got.lines().count(), 1 + 2 * 4000 + 1);
    let again = saved(&mut store, &whole);
    assert!(
        again.contains("1 (token), ") && again.contains(" and 3980 more)"),
        "{}",
        &again[..2000]
    );
    assert!(again.lines().all(|line| line.len() < 2000));
}

#[test]
fn the_state_takes_as_many_requests_as_it_has_pieces() {
    let mut store = Store::start("", 100);
    let before = store.controls;
    let stream = tree::fetch(&mut store).unwrap();
    // 52 lines of 57 bytes each; the beginning, and the end.
    assert_eq!(store.controls - before, stream.len().div_ceil(52 * 57) + 2);
    assert!(stream.len() > 10_000);
}

/// A store that answers what it likes.
struct Liar(Vec<&'static [u8]>, usize);

impl Ask for Liar {
    fn ask(&mut self, _: Kind, _: &[u8]) -> anyhow::Result<Answer> {
        self.1 += 1;
        assert!(self.1 < 10, "no end of it");
        let answer = if self.0.len() > 1 { self.0.remove(0) } else { self.0[0] };
        Ok(Ok(answer.to_vec()))
    }
}

#[test]
fn a_store_that_says_nonsense_is_not_asked_without_end() {
    for answers in [
        vec![&b"dump 1 has 18446744073709551615 bytes\n\0"[..], b"AAAA\n\0"],
        vec![b"dump 1 has 1073741824 bytes\n\0", b"AAAA\n\0"],
        vec![b"dump 1 has 5000 bytes\n\0", b"\0"],
        vec![b"dump 1 has 2 bytes\n\0", b"AAAA\n\0"],
        vec![b"dump 1 has 5000 bytes\n\0", b"gone\x1b\0"],
        vec![b"there is not enough memory\n\0"],
    ] {
        assert!(tree::fetch(&mut Liar(answers, 0)).is_err());
    }
}

#[test]
fn a_deep_path_is_no_matter() {
    let mut store = Store::start("", 1);
    let path = "/x".repeat(1000);
    store.must(Kind::Write, format!("{path}\0value").as_bytes());
    let got = live(&mut store, &Options { limit: 10_000, ..options("/x") });
    assert_eq!(got.lines().count(), 1001);
}
