//! What clients say: mostly sensible requests, all about the same few names, so that clients get in each other's
//! way.

use super::options::{KINDS, Options};
use crate::proto::wire::Kind;
use crate::sim::random::Random;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// A request to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Speech {
    pub(super) kind: u32,
    pub(super) tx: u32,
    pub(super) payload: Vec<u8>,
}

/// Strings, each with a NUL.
pub(super) fn strings(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| word.bytes().chain([0])).collect()
}

impl Speech {
    /// A request outside transactions.
    pub(super) fn new(kind: Kind, words: &[&str]) -> Self {
        Self { kind: kind.number(), tx: 0, payload: strings(words) }
    }
}

/// Domids that may exist, and some that never do.
fn domid(random: &mut Random, options: &Options) -> u32 {
    match random.below(12) {
        0 => 0,
        1 => random.pick(&[32757, 32752, 99, 65535]),
        _ => 1 + random.below(u32::from(options.guests)),
    }
}

fn tail(random: &mut Random, options: &Options) -> String {
    let mut path = String::new();
    for level in 0..=random.index(options.names.min(3)) {
        if level > 0 {
            path.push('/');
        }
        path.push_str(random.pick(&["a", "b", "c", "d", "e1"][..options.names]));
    }
    path
}

/// A path.
fn path(random: &mut Random, options: &Options) -> String {
    match random.below(24) {
        0..=8 => tail(random, options),
        9..=12 => format!("/local/domain/{}/{}", domid(random, options), tail(random, options)),
        13..=16 => format!("/shared/{}", tail(random, options)),
        17 => String::from(random.pick(&["/", "/tool", "/local", "/local/domain", "/shared"])),
        18 => format!("/local/domain/{}", domid(random, options)),
        19 => String::from(random.pick(&["@releaseDomain", "@introduceDomain", "@other"])),
        20 => format!("@releaseDomain/{}", domid(random, options)),
        21 => String::from(random.pick(&["", "a/", "a//b", "/a b", "/a.b", "//", "\u{e9}"])),
        22 => random.pick(&["n", "long-name_@"]).repeat(1 + random.index(30)),
        _ => format!("{}/{}", tail(random, options), tail(random, options)),
    }
}

/// A permission.
fn perm(random: &mut Random, options: &Options) -> String {
    let letter = random.pick(&["n", "r", "w", "b", "b", "r"]);
    match random.below(30) {
        0 => format!("{letter}0x1"),
        1 => String::from(random.pick(&["", "n", "x1", "nn", "n1 "])),
        _ => format!("{letter}{}", domid(random, options)),
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    let length = match random.below(12) {
        0 => random.index(2500),
        1 => random.index(120),
        // About as much as the tightest limit of a node lets through.
        2..=4 => 70 + random.index(26),
        _ => random.index(6),
    };
    let byte = random.pick(b"xy\0z");
    alloc::vec![byte; length]
}

fn token(random: &mut Random) -> String {
    String::from(random.pick(&["t", "u", "", "token", "v"]))
}

/// The transaction to name: mostly none or one that is open.
fn transaction(random: &mut Random, open: &[u32]) -> u32 {
    match random.below(10) {
        0 => random.below(5),
        1..=6 if !open.is_empty() => random.pick(open),
        _ => 0,
    }
}

/// The next request of a client of domain `own` with these transactions open.
pub(super) fn speak(random: &mut Random, options: &Options, own: u16, open: &[u32]) -> Speech {
    let total = options.mix.iter().sum::<u32>();
    let mut left = random.below(total);
    let mut kind = 0;
    while kind + 1 < KINDS && left >= options.mix[kind] {
        left -= options.mix[kind];
        kind += 1;
    }
    let tx = transaction(random, open);
    let path = path(random, options);
    let (kind, payload) = match kind {
        0 => (Kind::Directory, strings(&[&path])),
        1 => (Kind::Read, strings(&[&path])),
        2 => (Kind::GetPerms, strings(&[&path])),
        3 => (Kind::Watch, watch(random, &path)),
        4 => (Kind::Unwatch, strings(&[&path, &token(random)])),
        5 => (Kind::TransactionStart, strings(&[""])),
        6 => (Kind::TransactionEnd, strings(&[random.pick(&["T", "T", "T", "F", "X"])])),
        7 => (Kind::GetDomainPath, strings(&[&format!("{}", domid(random, options))])),
        8 | 9 => (Kind::Write, [strings(&[&path]), value(random)].concat()),
        10 => (Kind::Mkdir, strings(&[&path])),
        11 => (Kind::Rm, strings(&[&path])),
        12 => (Kind::SetPerms, set_perms(random, options, own, &path)),
        13 if random.one_in(4) => (Kind::ResetWatches, strings(&[""])),
        13 | 14 => {
            let offset = format!("{}", i64::from(random.below(40)) - 3);
            (Kind::DirectoryPart, strings(&[&path, &offset]))
        }
        15 => (Kind::GetFeature, Vec::new()),
        16 => return any(random, options, tx),
        _ => return privileged(random, options, tx),
    };
    // Starting in a transaction is an error, ending outside of one too.
    let tx = match kind {
        Kind::TransactionStart if !random.one_in(8) => 0,
        Kind::TransactionEnd if !random.one_in(8) => open.first().copied().unwrap_or(0),
        _ => tx,
    };
    Speech { kind: kind.number(), tx, payload }
}

fn watch(random: &mut Random, path: &str) -> Vec<u8> {
    let token = token(random);
    match random.below(3) {
        0 => strings(&[path, &token, random.pick(&["0", "1", "2", "-1", "x"])]),
        _ => strings(&[path, &token]),
    }
}

fn set_perms(random: &mut Random, options: &Options, own: u16, path: &str) -> Vec<u8> {
    let mut payload = strings(&[path]);
    for place in 0..=random.below(4) {
        let perm = if place == 0 && random.one_in(2) {
            format!("{}{own}", random.pick(&["n", "r", "b"]))
        } else {
            perm(random, options)
        };
        payload.extend(strings(&[&perm]));
    }
    payload
}

/// Anything at all.
fn any(random: &mut Random, options: &Options, tx: u32) -> Speech {
    let mut payload = Vec::new();
    for _ in 0..random.below(4) {
        match random.below(4) {
            0 => payload.extend(strings(&[&path(random, options)])),
            1 => payload.extend(strings(&[&perm(random, options)])),
            2 => payload.extend(value(random)),
            _ => payload.push(0),
        }
    }
    payload.truncate(4096);
    // Neither INTRODUCE nor RELEASE by chance: the privileged domain would saw off its own branch.
    let kind = match random.below(29) {
        8 | 9 | 18 | 26 | 24 | 19 | 0 => 20,
        kind => kind,
    };
    Speech { kind, tx, payload }
}

/// What only the privileged domain may ask.
fn privileged(random: &mut Random, options: &Options, tx: u32) -> Speech {
    let domid = format!("{}", domid(random, options));
    let name = random.pick(&["nodes", "watches", "transactions", "node-size", "path-max", "odd"]);
    let (kind, payload) = match random.below(12) {
        0 => (Kind::Control, strings(&["check"])),
        1..=3 => (Kind::Control, strings(&["quota", &domid])),
        4 => (Kind::Control, strings(&[random.pick(&["memreport", "stats", "help", "odd"])])),
        5 => (Kind::IsDomainIntroduced, strings(&[&domid])),
        6 => (Kind::Resume, strings(&[&domid])),
        7 => (Kind::GetFeature, strings(&[&domid])),
        8 => (Kind::GetQuota, strings(&[&domid, name])),
        9 => (Kind::GetQuota, Vec::new()),
        10 => {
            let value = random.pick(&["0", "3", "20", "120", "-1"]);
            (Kind::SetQuota, strings(&[&domid, name, value]))
        }
        _ => (Kind::SetFeature, strings(&[&domid, random.pick(&["14", "2", "10", "6", "1"])])),
    };
    Speech { kind: kind.number(), tx, payload }
}
