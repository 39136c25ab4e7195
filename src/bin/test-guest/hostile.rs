//! Roles that try to do harm. The verdict has what the guest itself can judge. dom0 judges that others go on and
//! that nothing of it is left afterwards (`tests/nested/hostile.sh`).

use crate::client::{Client, RING, XS_READ, header};
use crate::greed;
use crate::roles::{idle, read_name};
use alloc::format;
use alloc::string::String;
use xen_kernel_rt::console;
use xen_kernel_rt::traps::{Fault, provoke};
use xenstore_stubdom::proto::ring::{RingPage, Word};

const XS_MKDIR: u32 = 12;
pub(crate) const XS_TRANSACTION_START: u32 = 6;
pub(crate) const XS_WATCH: u32 = 4;

/// How long a request ring has to stay full before the server counts as having stopped reading.
const STUCK_MS: u64 = 3000;

/// More refusals than these must not be needed.
const GREED: usize = 100_000;

/// Plays one of the roles of this file.
pub(crate) fn play(client: &mut Client, role: &str) -> Result<(), String> {
    if let Some(len) = role.strip_prefix("half=") {
        return half(client, len.parse().map_err(|_| format!("unknown role \"{role}\""))?);
    }
    match role {
        "crash" => {
            half(client, 40)?;
            client.sleep(500);
            provoke(Fault::Panic)
        }
        "racing" => racing(client),
        "scribble" => scribble(client),
        "storm" => storm(client),
        "endless" => endless(client),
        "greedy" => greedy(client),
        _ if role.starts_with("greed=") => greed::play(client, &role["greed=".len()..]),
        "mute" => mute(client),
        _ => Err(format!("unknown role \"{role}\"")),
    }
}

/// A generator of numbers without a pattern (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }
}

/// Repeats something until dom0 types on the console. The store cannot end it, since such a guest cannot read it.
/// A fixed time would be too short on a slow machine.
fn busy(client: &mut Client, mut act: impl FnMut(&mut Client)) -> Result<(), String> {
    if client.machine.hear_console().is_none() {
        return Err(String::from("no PV console"));
    }
    while console::read(&mut [0; 16]) == 0 {
        for _ in 0..20 {
            act(client);
        }
        while client.machine.next_port().is_some() {}
        // It is the server that is attacked, not Xen's scheduler: an emulated processor may not get away
        // from a guest that never lets go of it.
        let soon = client.machine.now_ms() + 1;
        client.machine.wait(Some(soon));
    }
    Ok(())
}

/// The first bytes of an honest request.
fn half(client: &mut Client, len: usize) -> Result<(), String> {
    let request = [&header(XS_READ, 1, 4096)[..], &[b'a'; 4096]].concat();
    client.send(&request[..len.min(request.len())])
}

fn racing(client: &mut Client) -> Result<(), String> {
    read_name(client)?;
    let mut noise = Noise(1);
    let words = [Word::ReqProd, Word::ReqCons, Word::RspCons, Word::RspProd];
    busy(client, |client| {
        let word = words[noise.next() as usize % words.len()];
        // Mostly indices that are possible, so that the ring is not given up at the first look.
        let base = client.word(Word::ReqCons);
        let value =
            base.wrapping_add(noise.next() % if noise.next() % 50 == 0 { 5000 } else { 900 });
        client.page.store(word, value);
        if noise.next() % 20 == 0 {
            client.signal();
        }
    })
}

fn scribble(client: &mut Client) -> Result<(), String> {
    read_name(client)?;
    let mut noise = Noise(7);
    busy(client, |client| {
        let offset = noise.next() as usize % 4096;
        let bytes = noise.next().to_le_bytes();
        let len = (noise.next() % 5) as usize;
        client.page.write(offset, &bytes[..len.min(4)]);
        if noise.next() % 20 == 0 {
            client.signal();
        }
    })
}

fn storm(client: &mut Client) -> Result<(), String> {
    busy(client, |client| client.signal())?;
    read_name(client)
}

/// Requests of full length, as fast as they are taken; replies are thrown away.
fn endless(client: &mut Client) -> Result<(), String> {
    let request = [&header(XS_READ, 1, 4096)[..], &[b'a'; 4096]].concat();
    let mut at = 0;
    busy(client, |client| {
        let sent = client.push(&request[at..]);
        at = (at + sent) % request.len();
        let prod = client.word(Word::RspProd);
        client.page.store(Word::RspCons, prod);
        if sent == 0 {
            client.signal();
        }
    })?;
    client.send(&request[at..])?;
    // The replies to what is still under way have to pass first.
    client.sleep(STUCK_MS);
    let prod = client.word(Word::RspProd);
    client.page.store(Word::RspCons, prod);
    read_name(client)
}

/// Repeats a request with a number in it until it is refused.
fn until_refused(client: &mut Client, kind: u32, path: &str, tail: &str) -> Result<usize, String> {
    for count in 0..GREED {
        let payload = format!("{path}{count}{tail}");
        // The first event of a watch would be taken for a reply.
        if client.call_skipping_events(kind, payload.as_bytes()).is_err() {
            return Ok(count);
        }
    }
    Err(format!("request {kind} is never refused"))
}

fn greedy(client: &mut Client) -> Result<(), String> {
    let watches = until_refused(client, XS_WATCH, "data/w", "\0t\0")?;
    let nodes = until_refused(client, XS_MKDIR, "data/n", "\0")?;
    let transactions = until_refused(client, XS_TRANSACTION_START, "", "\0")?;
    client.say(format_args!("took {watches} watches, {nodes} nodes, {transactions} transactions"));
    let name = client.call_skipping_events(XS_READ, b"name\0")?;
    client.say(format_args!("and still reads {} bytes", name.len()));
    Ok(())
}

/// Whether the server has not taken a byte for a while.
fn is_stuck(client: &mut Client) -> bool {
    let cons = client.word(Word::ReqCons);
    client.sleep(STUCK_MS);
    client.word(Word::ReqCons) == cons && client.word(Word::ReqProd).wrapping_sub(cons) == RING
}

fn mute(client: &mut Client) -> Result<(), String> {
    let request = [&header(XS_READ, 1, 5)[..], b"name\0"].concat();
    let mut at = 0;
    for round in 0..20_000 {
        let sent = client.push(&request[at..]);
        at = (at + sent) % request.len();
        let now = client.machine.now_ms();
        if sent == 0 {
            while client.machine.next_port().is_some() {}
            client.machine.wait(Some(now + 50));
            if round % 100 == 0 && is_stuck(client) {
                client.say(format_args!(
                    "verdict: pass: {round} rounds, then the server stopped reading"
                ));
                idle(client);
            }
        }
    }
    Err(String::from("the server goes on reading"))
}
