//! Roles that ask only for what the default quotas allow, but choose the size of the server's work: rows of
//! `docs/attacks.md`. dom0 judges whether the host holds (`tests/nested/greed.sh`). The verdict says that the
//! server answered every request, or refused it where there is no room.
//!
//! | `role=greed=` | row | what happens |
//! |---|---|---|
//! | `commit` | 1 | 128 watches with tokens of 1,040 bytes; a transaction that writes 245 nodes below them; commit |
//! | `watch` | 2 | 128 watches on `/greed`, and nothing is read |
//! | `crowd` | 2 | a transaction that writes 900 nodes below `/greed`; commit |
//! | `names` | 5 | 990 nodes below a name of 1,900 bytes |
//! | `chain` | 9 | a chain of 900 names is made, touched at its end and removed in a transaction, 20 times |
//! | `fill` | 10 | watches, nodes and transactions until all quotas are reached |
//! | `release` | 12 | 128 watches on `@releaseDomain`, and nothing is read |
//!
//! All of them stay when they have their verdict.

use crate::client::{Client, XS_READ, XS_WRITE};
use crate::hostile::{XS_TRANSACTION_START, XS_WATCH};
use crate::roles::idle;
use alloc::format;
use alloc::string::String;

const XS_TRANSACTION_END: u32 = 7;
const XS_MKDIR: u32 = 12;
const XS_RM: u32 = 13;

/// Watches that a guest may have.
const WATCHES: usize = 128;

/// More refusals than these must not be needed.
const PLENTY: usize = 100_000;

/// How long an answer may take beside others like this one, on a slow machine.
const PATIENCE_MS: u64 = 120_000;

/// The `n`-th of many names below a node: a node has only so many children.
fn nth(n: usize) -> String {
    format!("{}/{}", n / 100, n % 100)
}

/// Plays one of the roles of this file.
pub(crate) fn play(client: &mut Client, role: &str) -> Result<(), String> {
    client.patience_ms = PATIENCE_MS;
    match role {
        "commit" => {
            watch(client, "data", 1040)?;
            write_in_transaction(client, "data", 245)?;
        }
        "watch" => watch(client, "/greed", 200)?,
        "crowd" => write_in_transaction(client, "/greed", 900)?,
        "names" => {
            let top = format!("data/{}", "n".repeat(1900));
            let made = until_refused(client, XS_MKDIR, |n| format!("{top}/{}\0", nth(n)))?;
            client.say(format_args!("made {made} nodes"));
        }
        "chain" => {
            for _ in 0..20 {
                chain(client)?;
            }
        }
        "fill" => fill(client)?,
        "release" => watch(client, "@releaseDomain", 10)?,
        _ => return Err(format!("unknown greed \"{role}\"")),
    }
    client.say(format_args!("verdict: pass"));
    idle(client)
}

/// A refusal for want of memory or by a quota is an answer, too.
fn answered(answer: Result<alloc::vec::Vec<u8>, String>) -> Result<bool, String> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.contains("ENOMEM") || error.contains("ENOSPC") => Ok(false),
        Err(error) => Err(error),
    }
}

fn until_refused(
    client: &mut Client,
    kind: u32,
    payload: impl Fn(usize) -> String,
) -> Result<usize, String> {
    for count in 0..PLENTY {
        let answer = client.call_skipping_events(kind, payload(count).as_bytes());
        if !answered(answer)? {
            return Ok(count);
        }
    }
    Err(format!("request {kind} is never refused"))
}

fn watch(client: &mut Client, path: &str, token: usize) -> Result<(), String> {
    let token = "T".repeat(token);
    let mut set = 0;
    for n in 0..WATCHES {
        let payload = format!("{path}\0{token}{n}\0");
        let answer = client.call_skipping_events(XS_WATCH, payload.as_bytes());
        set += usize::from(answered(answer)?);
    }
    client.say(format_args!("set {set} watches"));
    Ok(())
}

/// Starts a transaction, if there is memory for one.
fn begin(client: &mut Client) -> Result<Option<u32>, String> {
    match client.call_skipping_events(XS_TRANSACTION_START, b"\0") {
        Ok(id) => {
            let text = String::from_utf8_lossy(&id).into_owned();
            let id = text.trim_end_matches('\0').parse();
            id.map(Some).map_err(|_| format!("\"{text}\" is no transaction id"))
        }
        Err(error) => answered(Err(error)).map(|_| None),
    }
}

fn write_in_transaction(client: &mut Client, top: &str, nodes: usize) -> Result<(), String> {
    let Some(tx) = begin(client)? else { return Ok(()) };
    for n in 0..nodes {
        let payload = format!("{top}/{}\0x", nth(n));
        answered(client.call_in(tx, XS_WRITE, payload.as_bytes()))?;
    }
    let done = answered(client.call_in(tx, XS_TRANSACTION_END, b"T\0"))?;
    client.say(format_args!("the commit was {}", if done { "done" } else { "refused" }));
    Ok(())
}

fn chain(client: &mut Client) -> Result<(), String> {
    let path = format!("data{}\0", "/c".repeat(900));
    if !answered(client.call_skipping_events(XS_MKDIR, path.as_bytes()))? {
        return Ok(());
    }
    let Some(tx) = begin(client)? else { return Ok(()) };
    answered(client.call_in(tx, XS_READ, path.as_bytes()))?;
    answered(client.call_in(tx, XS_RM, b"data/c\0"))?;
    match client.call_in(tx, XS_TRANSACTION_END, b"T\0") {
        Err(error) if error.contains("EAGAIN") => Ok(()),
        answer => answered(answer).map(drop),
    }
}

fn fill(client: &mut Client) -> Result<(), String> {
    let value = "v".repeat(1800);
    // Where nothing happens: what events cost is another role, and here each node would bring 128 KiB of them through
    // a ring of 1 KiB.
    watch(client, "device", 1000)?;
    let nodes = until_refused(client, XS_WRITE, |n| format!("data/{}\0{value}", nth(n)))?;
    let mut transactions = 0;
    while let Some(tx) = begin(client)? {
        transactions += 1;
        for n in 0..20 {
            let payload = format!("data/{}\0{value}", nth(n));
            if !answered(client.call_in(tx, XS_WRITE, payload.as_bytes()))? {
                break;
            }
        }
    }
    client.say(format_args!("took {nodes} nodes, {transactions} transactions"));
    Ok(())
}
