//! `tree`: the same picture of a store that can be asked and of one that was saved.

mod common;

use common::Store;
use xenstore_stubdom::proto::wire::Kind;
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
fn a_deep_path_is_no_matter() {
    let mut store = Store::start("", 1);
    let path = "/x".repeat(1000);
    store.must(Kind::Write, format!("{path}\0value").as_bytes());
    let got = live(&mut store, &Options { limit: 10_000, ..options("/x") });
    assert_eq!(got.lines().count(), 1001);
}
