//! A tiny guest that talks to the xenstore over its raw ring, for tests on real Xen.
//!
//! It is started by `xl` as an ordinary PVH guest. The command line's `role=...` says what it does:
//!
//! | role | what happens | passes if |
//! |---|---|---|
//! | `hello` | READ of `name`; WRITE and READ of `data/hello` | every answer is right |
//! | `bad-index` | an honest READ; then `req_prod` 2000 ahead of `req_cons` | `error` becomes 2, no reply comes |
//! | `oversize` | an honest READ; then a header with a length of 4097 | `error` becomes 3, no reply comes |
//! | `idle` | nothing | never: it stays until it is destroyed |
//! | `heap` | takes memory until there is none, checks and returns it, twice | the second round gets as much |
//! | `fault=KIND` | `panic`, `read-only`, `execute`, `stack` or `null` | never: it crashes with a report |
//!
//! The last line on the console is the verdict: `verdict: pass` or `verdict: fail: reason`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod client {
    //! A client of the xenstore that can also misbehave.

    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;
    use xenstore_stubdom::proto::id::EvtchnPort;
    use xenstore_stubdom::proto::ring::{RingPage, Word};
    use xenstore_stubdom::xen::shared_page::SharedPage;
    use xenstore_stubdom::xen::start::Machine;

    /// `XENSTORE_RING_SIZE` of `xs_wire.h`; here the client's view of the ring, with its own arithmetic.
    const RING: u32 = 1024;
    /// Offset of the response ring.
    const RESPONSES: usize = 1024;
    /// Bytes of a header: type, request id, transaction id, length of the payload.
    const HEADER: usize = 16;

    /// Types of `xs_wire.h` that are used here.
    pub(super) const XS_READ: u32 = 2;
    pub(super) const XS_WRITE: u32 = 11;
    const XS_ERROR: u32 = 16;

    /// How long an answer may take.
    const PATIENCE_MS: u64 = 10_000;

    /// Time between two looks at the page when no event comes.
    const LOOK_EVERY_MS: u64 = 100;

    /// The guest's end of its ring.
    pub(super) struct Client {
        pub(super) machine: Machine,
        page: SharedPage,
        port: EvtchnPort,
        request: u32,
    }

    impl Client {
        /// Finds the ring.
        pub(super) fn open(machine: Machine) -> Result<Self, (Machine, String)> {
            match machine.own_store() {
                Ok((page, port)) => Ok(Self { machine, page, port, request: 0 }),
                Err(error) => Err((machine, format!("{error}"))),
            }
        }

        /// Looks again and again until there is something, or patience ends.
        pub(super) fn until<T>(
            &mut self,
            what: &str,
            mut look: impl FnMut(&mut SharedPage) -> Option<T>,
        ) -> Result<T, String> {
            let deadline = self.machine.now_ms() + PATIENCE_MS;
            loop {
                // Events are taken before the look, so one that comes after it ends the sleep.
                while self.machine.next_port().is_some() {}
                if let Some(found) = look(&mut self.page) {
                    return Ok(found);
                }
                let now = self.machine.now_ms();
                if now >= deadline {
                    return Err(format!("no {what} within {PATIENCE_MS} ms"));
                }
                // A server that gives a ring up need not signal that.
                self.machine.wait(Some(now + LOOK_EVERY_MS));
            }
        }

        /// A word of the page.
        pub(super) fn word(&self, word: Word) -> u32 {
            self.page.load(word)
        }

        /// Sets a word of the page and signals.
        pub(super) fn poke(&mut self, word: Word, value: u32) {
            self.page.store(word, value);
            self.machine.notify(self.port);
        }

        /// Sends bytes, waiting for room as needed.
        pub(super) fn send(&mut self, mut bytes: &[u8]) -> Result<(), String> {
            while !bytes.is_empty() {
                let sent = self.until("room for a request", |page| {
                    let (prod, cons) = (page.load(Word::ReqProd), page.load(Word::ReqCons));
                    let room = RING.saturating_sub(prod.wrapping_sub(cons));
                    let offset = prod % RING;
                    let len =
                        room.min(RING - offset).min(u32::try_from(bytes.len()).unwrap_or(RING));
                    if len == 0 {
                        return None;
                    }
                    page.write(offset as usize, &bytes[..len as usize]);
                    page.store(Word::ReqProd, prod.wrapping_add(len));
                    Some(len as usize)
                })?;
                self.machine.notify(self.port);
                bytes = &bytes[sent..];
            }
            Ok(())
        }

        /// Receives exactly as many bytes as fit.
        fn receive(&mut self, mut into: &mut [u8]) -> Result<(), String> {
            while !into.is_empty() {
                let got = self.until("reply", |page| {
                    let (prod, cons) = (page.load(Word::RspProd), page.load(Word::RspCons));
                    let offset = cons % RING;
                    let len = prod.wrapping_sub(cons).min(RING - offset);
                    let len = len.min(u32::try_from(into.len()).unwrap_or(RING));
                    if len == 0 {
                        return None;
                    }
                    page.read(RESPONSES + offset as usize, &mut into[..len as usize]);
                    page.store(Word::RspCons, cons.wrapping_add(len));
                    Some(len as usize)
                })?;
                self.machine.notify(self.port);
                into = &mut into[got..];
            }
            Ok(())
        }

        /// One request and its reply.
        pub(super) fn call(&mut self, kind: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
            self.request += 1;
            let len = u32::try_from(payload.len()).map_err(|_| "payload too long")?;
            let mut message = header(kind, self.request, len).to_vec();
            message.extend_from_slice(payload);
            self.send(&message)?;
            let mut head = [0; HEADER];
            self.receive(&mut head)?;
            let word =
                |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let [got_kind, got_request, got_len] = [0, 4, 12].map(word);
            let mut reply = alloc::vec![0; got_len.min(4096) as usize];
            self.receive(&mut reply)?;
            if got_request != self.request {
                return Err(format!("reply to request {got_request} instead of {}", self.request));
            }
            match got_kind {
                XS_ERROR => Err(format!("error {}", String::from_utf8_lossy(&reply))),
                _ if got_kind == kind => Ok(reply),
                _ => Err(format!("reply of type {got_kind} to a request of type {kind}")),
            }
        }
    }

    /// The bytes of a header outside any transaction.
    pub(super) fn header(kind: u32, request: u32, len: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip([kind, request, 0, len]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(target_os = "none")]
mod image {
    use super::client::{Client, XS_READ, XS_WRITE, header};
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;
    use xenstore_stubdom::proto::ring::{RingError, RingPage, Word};
    use xenstore_stubdom::xen::start::Machine;
    use xenstore_stubdom::xen::traps::{Fault, provoke};
    use xenstore_stubdom::xen::{console, memory};

    xenstore_stubdom::xen_entry!(main);

    /// How long a broken ring is watched for a reply that must not come.
    const SILENCE_MS: u64 = 1000;

    fn main(machine: Machine, command_line: &'static str) -> ! {
        let role = command_line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("role="))
            .unwrap_or("");
        let (mut machine, result) = match Client::open(machine) {
            Ok(mut client) => {
                let result = play(&mut client, role);
                (client.machine, result)
            }
            Err((machine, reason)) => (machine, Err(reason)),
        };
        match result {
            Ok(()) => machine.log(format_args!("verdict: pass")),
            Err(reason) => machine.log(format_args!("verdict: fail: {reason}")),
        }
        machine.power_off()
    }

    fn play(client: &mut Client, role: &str) -> Result<(), String> {
        match role {
            "hello" => hello(client),
            "bad-index" => bad_index(client),
            "oversize" => oversize(client),
            "idle" => idle(client),
            "heap" => heap(client),
            _ if role.starts_with("fault=") => fault(role),
            _ => Err(format!("unknown role \"{role}\"")),
        }
    }

    /// Reads the guest's own name by a relative path and prints it.
    fn read_name(client: &mut Client) -> Result<(), String> {
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
        let end = client.machine.now_ms() + SILENCE_MS;
        while client.machine.now_ms() < end {
            while client.machine.next_port().is_some() {}
            client.machine.wait(Some(end));
        }
        if client.word(Word::RspProd) == before {
            Ok(())
        } else {
            Err(String::from("a reply came all the same"))
        }
    }

    /// Blocks of these sizes are taken in turn: small ones, a page's neighbourhood, large ones.
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
        let spoiled =
            blocks.iter().enumerate().find(|(i, block)| block.iter().any(|&b| b != mark(*i)));
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
        if totals[1] >= totals[0] / 10 * 9 {
            Ok(())
        } else {
            Err(format!("then only {}", totals[1]))
        }
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

    fn idle(client: &mut Client) -> Result<(), String> {
        client.machine.log(format_args!("idle"));
        loop {
            while client.machine.next_port().is_some() {}
            client.machine.wait(None);
        }
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
