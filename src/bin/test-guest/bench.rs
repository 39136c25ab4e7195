//! The role `bench`: a client on a raw ring, for `scripts/bench`. It does what the node `/bench/order` says, each
//! time that it changes, and prints the result.
//!
//! | order | what happens | printed |
//! |---|---|---|
//! | `base N STATE` | the base requests, N of each, one after the other | `=` lines as of `scripts/bench-client` |
//! | `flood N` | N READs, the request ring always as full as it gets | as above |
//! | `crowd N` | N times WRITE and READ, as other guests do now | `crowd: BEGIN END`, in Xen's nanoseconds |
//!
//! STATE names the state that dom0 has brought the store into, for those lines. Orders may also follow the role:
//! `role=bench=base-200-empty,flood-10000`. Times are means: reading the clock is so slow here that it is read
//! once before and once after all the requests of a kind.

use crate::client::{Client, XS_READ, XS_WATCH_EVENT, XS_WRITE};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const ORDER: &[u8] = b"/bench/order\0";
const NODE: &[u8] = b"data/bench/node\0";
const WRITE_NODE: &[u8] = b"data/bench/node\x000123456789";

const XS_DIRECTORY: u32 = 1;
const XS_WATCH: u32 = 4;
const XS_UNWATCH: u32 = 5;
const XS_TRANSACTION_START: u32 = 6;
const XS_TRANSACTION_END: u32 = 7;
const XS_RM: u32 = 13;
const XS_ERROR: u32 = 16;

const HEADER: usize = 16;

/// Nodes that are new at a time.
const BATCH: usize = 10;

/// Serves until it is destroyed.
pub(crate) fn serve(client: &mut Client, orders: &str) -> Result<(), String> {
    let (bytes, state) = (Vec::new(), String::from("empty"));
    let mut bench = Bench { client, bytes, events: 0, state };
    bench.ask(0, XS_WRITE, WRITE_NODE)?;
    bench.ask(0, XS_WATCH, b"/bench/order\0order\0")?;
    let mut last = bench.ask(0, XS_READ, ORDER)?;
    for order in orders.split(',').filter(|order| !order.is_empty()) {
        bench.obey(&order.replace('-', " "))?;
    }
    bench.client.say(format_args!("bench: ready"));
    loop {
        bench.events = 0;
        let order = bench.ask(0, XS_READ, ORDER)?;
        if order == last {
            bench.wait_for_event()?;
            continue;
        }
        bench.obey(&String::from_utf8_lossy(&order))?;
        last = order;
    }
}

struct Bench<'a> {
    client: &'a mut Client,
    /// Bytes of messages that are not whole yet.
    bytes: Vec<u8>,
    /// Events since they were last counted.
    events: usize,
    /// The state of the store.
    state: String,
}

impl Bench<'_> {
    fn obey(&mut self, order: &str) -> Result<(), String> {
        let mut words = order.splitn(3, ' ');
        let name = words.next().unwrap_or("");
        let count =
            words.next().and_then(|word| word.parse().ok()).ok_or("an order without a number")?;
        match name {
            "base" => {
                self.state = String::from(words.next().unwrap_or("empty"));
                self.base(count)?;
            }
            "flood" => self.flood(count)?,
            "crowd" => self.crowd(count)?,
            _ => return Err(format!("unknown order {order}")),
        }
        self.client.say(format_args!("bench: {order} is done"));
        Ok(())
    }

    /// The next reply; events are counted.
    fn message(&mut self) -> Option<(u32, Vec<u8>)> {
        while let Some(header) = self.bytes.get(..HEADER) {
            let word = |i: usize| {
                u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]])
            };
            let (kind, end) = (word(0), HEADER + word(12) as usize);
            let payload = self.bytes.get(HEADER..end)?.to_vec();
            self.bytes.drain(..end);
            if kind != XS_WATCH_EVENT {
                return Some((kind, payload));
            }
            self.events += 1;
        }
        None
    }

    /// Takes what has come; sleeps if nothing has.
    fn receive(&mut self) {
        while self.client.machine.next_port().is_some() {}
        if self.client.pull(&mut self.bytes) == 0 {
            self.client.machine.wait(None);
        }
    }

    fn wait_for_event(&mut self) -> Result<(), String> {
        while self.events == 0 {
            if let Some((kind, _)) = self.message() {
                return Err(format!("a reply of type {kind} to nothing"));
            }
            if self.events == 0 {
                self.receive();
            }
        }
        Ok(())
    }

    /// A request and its reply.
    fn ask(&mut self, tx: u32, kind: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        let message = self.client.request(tx, kind, payload);
        let mut rest = &message[..];
        loop {
            let sent = self.client.push(rest);
            rest = &rest[sent..];
            if let Some((got, payload)) = self.message() {
                return match got {
                    XS_ERROR => Err(format!("type {kind}: {}", String::from_utf8_lossy(&payload))),
                    _ if got == kind => Ok(payload),
                    _ => Err(format!("type {kind}: a reply of type {got}")),
                };
            }
            self.receive();
        }
    }

    /// Does something so many times; prints how long each took.
    fn each(
        &mut self,
        what: &str,
        rounds: usize,
        mut act: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        act(self)?;
        let begin = self.client.machine.now_ns();
        for _ in 0..rounds {
            act(self)?;
        }
        let time = self.client.machine.now_ns().saturating_sub(begin);
        self.report(what, time / rounds.max(1) as u64);
        Ok(())
    }

    fn report(&mut self, what: &str, instructions: u64) {
        let state = &self.state;
        self.client
            .say(format_args!("=\ttest guest\t{state}\t{what}\tinstructions\t{instructions}"));
    }

    fn base(&mut self, rounds: usize) -> Result<(), String> {
        self.each("READ", rounds, |bench| bench.ask(0, XS_READ, NODE).map(drop))?;
        self.each("WRITE existing", rounds, |bench| bench.ask(0, XS_WRITE, WRITE_NODE).map(drop))?;
        self.each("DIRECTORY, empty", rounds, |bench| bench.ask(0, XS_DIRECTORY, NODE).map(drop))?;
        self.new_nodes(rounds)?;
        self.each("start, read, write, commit", rounds, Self::transaction)?;
        self.ask(0, XS_WATCH, b"data/bench/node\0token\0")?;
        self.events = 0;
        self.wait_for_event()?;
        self.each("WRITE until its event is read", rounds, |bench| {
            bench.events = 0;
            bench.ask(0, XS_WRITE, WRITE_NODE)?;
            bench.wait_for_event()
        })?;
        self.ask(0, XS_UNWATCH, b"data/bench/node\0token\0").map(drop)
    }

    fn transaction(&mut self) -> Result<(), String> {
        let id = self.ask(0, XS_TRANSACTION_START, b"\0")?;
        let text = core::str::from_utf8(&id).unwrap_or("").trim_end_matches('\0');
        let tx = text.parse().map_err(|_| format!("\"{text}\" is no transaction id"))?;
        self.ask(tx, XS_READ, NODE)?;
        self.ask(tx, XS_WRITE, WRITE_NODE)?;
        self.ask(tx, XS_TRANSACTION_END, b"T\0").map(drop)
    }

    /// WRITE of new nodes and RM of them, some at a time.
    fn new_nodes(&mut self, rounds: usize) -> Result<(), String> {
        let batches = rounds.div_ceil(BATCH);
        let (mut made, mut removed) = (0, 0);
        for _ in 0..batches {
            let begin = self.client.machine.now_ns();
            for n in 0..BATCH {
                let write = format!("data/bench/new-{n}\x000123456789");
                self.ask(0, XS_WRITE, write.as_bytes())?;
            }
            let middle = self.client.machine.now_ns();
            for n in 0..BATCH {
                self.ask(0, XS_RM, format!("data/bench/new-{n}\0").as_bytes())?;
            }
            made += middle.saturating_sub(begin);
            removed += self.client.machine.now_ns().saturating_sub(middle);
        }
        self.report("WRITE new", made / (batches * BATCH) as u64);
        self.report("RM", removed / (batches * BATCH) as u64);
        Ok(())
    }

    fn flood(&mut self, count: usize) -> Result<(), String> {
        let request = self.client.request(0, XS_READ, NODE);
        let (mut to_send, mut at, mut to_come) = (count, 0, count);
        let begin = self.client.machine.now_ns();
        while to_come > 0 {
            while to_send > 0 {
                let sent = self.client.push(&request[at..]);
                at += sent;
                if at < request.len() {
                    break;
                }
                (at, to_send) = (0, to_send - 1);
            }
            self.receive();
            while let Some((kind, _)) = self.message() {
                if kind != XS_READ {
                    return Err(format!("a reply of type {kind} to a READ"));
                }
                to_come -= 1;
            }
        }
        let time = self.client.machine.now_ns().saturating_sub(begin);
        self.report("READ, ring always full", time / count.max(1) as u64);
        Ok(())
    }

    fn crowd(&mut self, count: usize) -> Result<(), String> {
        let begin = self.client.machine.now_ns();
        for _ in 0..count {
            self.ask(0, XS_WRITE, WRITE_NODE)?;
            self.ask(0, XS_READ, NODE)?;
        }
        let end = self.client.machine.now_ns();
        self.client.say(format_args!("crowd: {begin} {end}"));
        Ok(())
    }
}
