//! The roles that need no file of their own.

use crate::client::{Client, XS_READ, XS_WRITE, header};
use crate::{bench, hostile, remote, steady, transcript};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use xen_kernel_rt::traps::{Fault, provoke};
use xen_kernel_rt::{console, memory};
use xenstore_stubdom::proto::ring::{RingError, RingPage, Word};

/// How long a broken ring is watched for a reply that must not come.
const SILENCE_MS: u64 = 1000;

/// Seconds that a guest may have no nodes after its connection.
const EARLY_TRIES: u32 = 60;

/// Plays a role; returns the text of the verdict after its first word.
pub(crate) fn play(client: &mut Client, role: &str) -> Result<String, String> {
    match role {
        "hello" => hello(client)?,
        "early" => early(client)?,
        "bad-index" => bad_index(client)?,
        "oversize" => oversize(client)?,
        "idle" => idle(client),
        "remote" => remote::serve(client)?,
        "bench" => bench::serve(client, "")?,
        "steady" => return steady::play(client),
        "transcript" => return transcript::play_module(client),
        "heap" => heap(client)?,
        "wait" => return longest_wait(client),
        _ if role.starts_with("bench=") => bench::serve(client, &role["bench=".len()..])?,
        _ if role.starts_with("fault=") => fault(role)?,
        _ => hostile::play(client, role)?,
    }
    Ok(String::new())
}

/// Reads the guest's own name by a relative path and prints it.
pub(crate) fn read_name(client: &mut Client) -> Result<(), String> {
    let name = client.call(XS_READ, b"name\0")?;
    client.machine.log(format_args!("name: {}", String::from_utf8_lossy(&name)));
    Ok(())
}

fn hello(client: &mut Client) -> Result<(), String> {
    read_name(client)?;
    client.call(XS_WRITE, b"data/hello\0from the test guest")?;
    let value = client.call(XS_READ, b"data/hello\0")?;
    if value == b"from the test guest" {
        Ok(())
    } else {
        Err(format!("data/hello is \"{}\"", String::from_utf8_lossy(&value)))
    }
}

/// Waits for a xenstore that starts after this guest, and then for the nodes that the toolstack gives it.
fn early(client: &mut Client) -> Result<(), String> {
    let port = client.port.0;
    client.poke(Word::EvtchnPort, port);
    client.poke(Word::Connection, 1);
    client.machine.log(format_args!("waits for a xenstore"));
    while client.word(Word::Connection) != 0 {
        client.sleep(100);
    }
    client.machine.log(format_args!("is connected"));
    for _ in 0..EARLY_TRIES {
        if client.call(XS_READ, b"name\0").is_ok() {
            break;
        }
        client.sleep(1000);
    }
    hello(client)
}

fn bad_index(client: &mut Client) -> Result<(), String> {
    read_name(client)?;
    let before = client.word(Word::RspProd);
    let impossible = client.word(Word::ReqCons).wrapping_add(2000);
    client.poke(Word::ReqProd, impossible);
    expect_loss(client, RingError::RingIndex, before)
}

fn oversize(client: &mut Client) -> Result<(), String> {
    read_name(client)?;
    let before = client.word(Word::RspProd);
    client.send(&header(XS_READ, 77, 4097))?;
    expect_loss(client, RingError::Protocol, before)
}

/// Waits for the server to give the ring up, and then makes sure that it stays silent.
fn expect_loss(client: &mut Client, error: RingError, before: u32) -> Result<(), String> {
    let found = client.until("word `error` other than 0", |page| {
        Some(page.load(Word::Error)).filter(|&value| value != 0)
    })?;
    if found != error as u32 {
        return Err(format!("word `error` is {found} instead of {}", error as u32));
    }
    client.sleep(SILENCE_MS);
    if client.word(Word::RspProd) == before {
        Ok(())
    } else {
        Err(String::from("a reply came all the same"))
    }
}

/// Asks again and again until dom0 writes `data/stop`, and returns how long the longest answer took: the pause of
/// a live update, as a guest sees it.
fn longest_wait(client: &mut Client) -> Result<String, String> {
    let (mut longest_us, mut requests) = (0, 0_u32);
    loop {
        let before_us = client.machine.now_us();
        let answer = client.call(XS_READ, b"data/stop\0");
        longest_us = longest_us.max(client.machine.now_us().saturating_sub(before_us));
        requests += 1;
        match answer {
            Ok(_) => return Ok(format!(" (longest wait {longest_us} us, {requests} requests)")),
            Err(error) if error.contains("ENOENT") => {}
            Err(error) => return Err(error),
        }
    }
}

/// Blocks of these sizes are taken in turn: small ones, some near a page, large ones.
const BLOCKS: [usize; 6] = [24, 100, 1000, 4096, 5000, 100_000];

/// Takes memory until there is none and returns how many bytes that was.
fn fill() -> Result<usize, String> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut total = 0;
    loop {
        let mut block = Vec::new();
        let size = BLOCKS[blocks.len() % BLOCKS.len()];
        if blocks.try_reserve(1).is_err() || block.try_reserve_exact(size).is_err() {
            break;
        }
        block.resize(size, mark(blocks.len()));
        total += size;
        blocks.push(block);
    }
    let spoiled = blocks.iter().enumerate().find(|(i, block)| block.iter().any(|&b| b != mark(*i)));
    match spoiled {
        Some((index, _)) => Err(format!("block {index} was overwritten")),
        None => Ok(total),
    }
}

/// What a block is filled with.
fn mark(index: usize) -> u8 {
    u8::try_from(index % 251).unwrap_or_default()
}

fn heap(client: &mut Client) -> Result<(), String> {
    let mut totals = [0; 2];
    for total in &mut totals {
        let start = client.machine.now_ms();
        *total = fill()?;
        console::both(format_args!(
            "heap: {total} bytes in {} ms, then {:?}, {:?}",
            client.machine.now_ms() - start,
            memory::heap(),
            memory::figures()
        ));
    }
    if totals[1] >= totals[0] / 10 * 9 { Ok(()) } else { Err(format!("then only {}", totals[1])) }
}

fn fault(role: &str) -> Result<(), String> {
    match role {
        "fault=panic" => provoke(Fault::Panic),
        "fault=read-only" => provoke(Fault::WriteReadOnly),
        "fault=execute" => provoke(Fault::ExecuteData),
        "fault=stack" => provoke(Fault::StackOverflow),
        "fault=null" => provoke(Fault::Null),
        _ => Err(format!("unknown {role}")),
    }
}

/// Does nothing, for good.
pub(crate) fn idle(client: &mut Client) -> ! {
    client.machine.log(format_args!("idle"));
    loop {
        while client.machine.next_port().is_some() {}
        client.machine.wait(None);
    }
}
