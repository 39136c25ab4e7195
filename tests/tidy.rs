//! Rules for the whole repository: which layer may use which, where `unsafe` may be, that everything named in the
//! documents exists, and that no file grows without end.

extern crate alloc;

use alloc::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each layer, and the layers that it may use besides itself.
const LAYERS: [(&str, &[&str]); 8] = [
    ("mem", &[]),
    ("proto", &["mem"]),
    ("store", &["mem", "proto"]),
    ("server", &["mem", "proto", "store"]),
    ("platform", &["mem", "proto", "server"]),
    ("sim", &["mem", "proto", "store", "server", "transcript"]),
    ("transcript", &["proto"]),
    ("dom0", &["proto"]),
];

/// The runtime, a package of its own.
const RUNTIME: &str = "src/xen-kernel-rt/";

/// What each layer may use of the runtime; `platform` may use all of it.
const OF_THE_RUNTIME: [(&str, &[&str]); 7] = [
    ("mem", &["memory::block_bytes"]),
    ("proto", &["digest", "id", "revival", "slot"]),
    ("store", &[]),
    ("server", &[]),
    ("sim", &["memory"]),
    ("transcript", &[]),
    ("dom0", &["abi"]),
];

/// Where `unsafe` may stand: in the runtime, and where programs in dom0 have their system calls.
const UNSAFE: [&str; 2] = [RUNTIME, "src/dom0/"];

/// That word; not in one piece, since this file is looked at, too.
const WORD: &str = concat!("un", "safe");

/// No file is longer.
const LINES_MAX: usize = 900;

/// Files that are longer, and how long they are now: they may become shorter only.
const LONG: [(&str, usize); 2] = [("src/store/tests.rs", 1060), ("src/store/tree.rs", 960)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder, as a path from the repository's root.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut waiting = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display())) {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            } else if !path.ends_with("target") {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path.to_string_lossy().into_owned(), text)
    };
    files(folder).into_iter().filter(is_rust).map(read).collect()
}

/// The code of a line, without a comment behind it.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Words of code, cut where no name can go on.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(code)
        .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')))
}

#[test]
fn layers_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for (layer, below) in LAYERS {
        for (path, text) in sources(&format!("src/{layer}")) {
            for used in words(&text).filter_map(|word| word.strip_prefix("crate::")) {
                let allowed = |name: &str| used == name || used.starts_with(&format!("{name}::"));
                let is_layer = LAYERS.iter().any(|(name, _)| allowed(name));
                if is_layer && !allowed(layer) && !below.iter().any(|name| allowed(name)) {
                    wrong.push(format!("{path} uses {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn layers_use_little_of_the_runtime() {
    let mut wrong = Vec::new();
    for (layer, parts) in OF_THE_RUNTIME {
        for (path, text) in sources(&format!("src/{layer}")) {
            for used in words(&text).filter_map(|word| word.strip_prefix("xen_kernel_rt::")) {
                let allowed = |name: &&str| used == *name || used.starts_with(&format!("{name}::"));
                if !parts.iter().any(allowed) {
                    wrong.push(format!("{path} uses {used} of the runtime"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// It is for any program. Xen's headers have names with that word, and so has a builder with a fault to live with.
#[test]
fn the_runtime_knows_nothing_of_a_xenstore() {
    let all = sources(RUNTIME).into_iter();
    let checked = all.filter(|(path, _)| !path.starts_with(&format!("{RUNTIME}abi/")));
    let knowing = checked.filter(|(_, text)| {
        text.to_lowercase().replace("init-xenstore-domain", "").contains("xenstore")
    });
    let names = knowing.map(|(path, _)| path).collect::<Vec<_>>();
    assert!(names.is_empty(), "{names:#?}");
}

/// Every file of the server is in a room, and goes to others' through what their `mod.rs` offers.
#[test]
fn the_server_has_rooms() {
    let all = sources("src/server");
    let is_room = |path: &str| path.matches('/').count() > 2;
    let outside: Vec<_> = all.iter().map(|(path, _)| path).filter(|path| !is_room(path)).collect();
    assert_eq!(outside, ["src/server/mod.rs", "src/server/platform.rs"]);
    let names_a_file = |word: &str| {
        let parts: Vec<_> = word.strip_prefix("crate::server::")?.split("::").collect();
        let (room, file) = (parts.first()?, parts.get(1)?);
        let head = fs::read_to_string(root().join(format!("src/server/{room}/mod.rs"))).ok()?;
        head.contains(&format!("\nmod {file};")).then(|| word.to_owned())
    };
    let wrong: Vec<_> =
        all.iter().flat_map(|(_, text)| words(text).filter_map(names_a_file)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the README of the runtime shows is what is built and booted.
#[test]
fn the_smallest_domain_is_the_one_of_the_readme() {
    let read = |name: &str| fs::read_to_string(root().join(RUNTIME).join(name)).unwrap();
    let (readme, example) = (read("README.md"), read("examples/smallest.rs"));
    let shown = readme.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```"));
    assert_eq!(shown.map(|(code, _)| code), Some(&*example));
}

#[test]
fn every_layer_is_listed() {
    let listed = LAYERS.iter().map(|(layer, _)| (*layer).to_owned()).collect::<BTreeSet<_>>();
    let folders = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().join("mod.rs").exists());
    let folders = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert_eq!(folders.collect::<BTreeSet<_>>(), listed);
}

#[test]
fn unsafe_code_is_in_the_runtime_only() {
    let everywhere = ["src", "tests", "scripts", "benches", "fuzz"];
    let all = everywhere.into_iter().flat_map(sources);
    let outside = all.filter(|(path, _)| !UNSAFE.iter().any(|folder| path.starts_with(folder)));
    let has_some = outside.filter(|(_, text)| words(text).any(|word| word == WORD));
    let names = has_some.map(|(path, _)| path).collect::<Vec<_>>();
    assert!(names.is_empty(), "{names:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let all = ["src", "tests", "scripts", "benches"].into_iter().flat_map(sources);
    let silent = all.filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path);
    let silent = silent.collect::<Vec<_>>();
    assert!(silent.is_empty(), "without a head: {silent:#?}");
}

#[test]
fn no_file_grows_without_end() {
    let all = ["src", "tests", "scripts", "benches"].into_iter().flat_map(sources);
    let too_long = all.filter_map(|(path, text)| {
        let allowed =
            LONG.iter().find(|(name, _)| *name == path).map_or(LINES_MAX, |(_, lines)| *lines);
        let lines = text.lines().count();
        (lines > allowed).then(|| format!("{path}: {lines} lines, allowed are {allowed}"))
    });
    let too_long = too_long.collect::<Vec<_>>();
    assert!(too_long.is_empty(), "{too_long:#?}");
}

/// Paths of the repository that the documents and the heads of files name in backquotes.
#[test]
fn whatever_the_documents_name_is_there() {
    let mut documents = files("docs");
    documents.extend(
        ["README.md", "CONTRIBUTING.md", "boot/README.md", "src/xen-kernel-rt/README.md"]
            .map(PathBuf::from),
    );
    let top = ["src/", "docs/", "scripts/", "tests/", "benches/", "fuzz/", "boot/"];
    let mut missing = Vec::new();
    for document in documents {
        let Ok(text) = fs::read_to_string(root().join(&document)) else { continue };
        for name in text.split('`').skip(1).step_by(2) {
            let name = name.split([' ', ':', '#']).next().unwrap_or(name).trim_end_matches('/');
            let is_path = top.iter().any(|folder| name.starts_with(folder));
            let is_plain = name.chars().all(|c| c.is_alphanumeric() || "/-_.".contains(c));
            if is_path && is_plain && !root().join(name).exists() && !is_of_others(name) {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or(link);
            let folder = root().join(document.parent().unwrap_or(Path::new("")));
            if !file.is_empty() && !file.contains("://") && !folder.join(file).exists() {
                missing.push(format!("{}: link to {link}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "named but not there: {missing:#?}");
}

/// Documents of Xen that ours cite.
fn is_of_others(name: &str) -> bool {
    ["docs/misc/", "docs/designs/", "docs/man/"].iter().any(|folder| name.starts_with(folder))
}

/// The lines of a patch that must be in the file as they are, hunk by hunk, with the file's name.
fn hunks(patch: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut file = String::new();
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("--- a/") {
            name.clone_into(&mut file);
        } else if line.starts_with("@@") {
            found.push((file.clone(), String::new()));
        } else if let (Some((_, before)), Some(line)) =
            (found.last_mut(), line.strip_prefix([' ', '-']).filter(|_| !line.starts_with("--- ")))
        {
            before.push_str(line);
            before.push('\n');
        }
    }
    found
}

#[test]
fn every_mutant_fits_the_code() {
    let mut wrong = Vec::new();
    for path in files("tests/mutants") {
        let patch = fs::read_to_string(root().join(&path)).unwrap();
        let hunks = hunks(&patch);
        let fits = hunks.iter().all(|(file, before)| {
            fs::read_to_string(root().join(file)).is_ok_and(|text| text.contains(before))
        });
        if hunks.is_empty() || !fits {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Those of hosts run only by hand, so nothing else would tell that one cannot even be read.
#[test]
fn every_shell_script_can_be_read() {
    let mut read = 0;
    let mut wrong = Vec::new();
    for path in [".ci", "scripts", "tests"].into_iter().flat_map(files) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let first = text.lines().next().unwrap_or_default();
        let is_shell = first.starts_with("#!/bin/sh") || first.starts_with("#!/bin/bash");
        if !is_shell && path.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        read += 1;
        // What is sourced does not say which of the two reads it.
        let accepted = |shell: &str| {
            let output = Command::new(shell).arg("-n").arg(root().join(&path)).output();
            output.unwrap_or_else(|error| panic!("{shell}: {error}")).status.success()
        };
        if !accepted("sh") && !accepted("bash") {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "no shell can read {wrong:?}");
    assert!(read > 50, "only {read} scripts were found");
}
