//! A client of the xenstore that can also misbehave.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use xen_kernel_rt::console;
use xen_kernel_rt::shared_page::SharedPage;
use xen_kernel_rt::start::Machine;
use xenstore_stubdom::proto::id::EvtchnPort;
use xenstore_stubdom::proto::ring::{RingPage, Word};

/// `XENSTORE_RING_SIZE` of `xs_wire.h`; here the client's view of the ring, with its own arithmetic.
pub(crate) const RING: u32 = 1024;
/// Offset of the response ring.
const RESPONSES: usize = 1024;
/// Bytes of a header: type, request id, transaction id, length of the payload.
const HEADER: usize = 16;

/// Types of `xs_wire.h` that are used here.
pub(crate) const XS_READ: u32 = 2;
pub(crate) const XS_WRITE: u32 = 11;
pub(crate) const XS_WATCH_EVENT: u32 = 15;
const XS_ERROR: u32 = 16;

/// Ids from here on, apart from those of transcripts.
const FIRST_REQUEST: u32 = 1 << 31;

/// How long an answer may take, unless a role is more patient.
const PATIENCE_MS: u64 = 10_000;

/// Time between two looks at the page when no event comes.
const LOOK_EVERY_MS: u64 = 100;

/// The guest's end of its ring.
pub(crate) struct Client {
    pub(crate) machine: Machine,
    pub(crate) page: SharedPage,
    pub(crate) port: EvtchnPort,
    /// How long an answer may take.
    pub(crate) patience_ms: u64,
    request: u32,
}

impl Client {
    /// On the ring and port that the machine has.
    pub(crate) fn new(machine: Machine, page: SharedPage, port: EvtchnPort) -> Self {
        Self { machine, page, port, patience_ms: PATIENCE_MS, request: FIRST_REQUEST }
    }

    /// Looks again and again until there is something, or patience ends.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut SharedPage) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = self.machine.now_ms() + self.patience_ms;
        loop {
            // Events are taken before the look, so one that comes after it ends the sleep.
            while self.machine.next_port().is_some() {}
            if let Some(found) = look(&mut self.page) {
                return Ok(found);
            }
            let now = self.machine.now_ms();
            if now >= deadline {
                return Err(format!("no {what} within {} ms", self.patience_ms));
            }
            // A server that gives a ring up need not signal that.
            self.machine.wait(Some(now + LOOK_EVERY_MS));
        }
    }

    /// A word of the page.
    pub(crate) fn word(&self, word: Word) -> u32 {
        self.page.load(word)
    }

    /// Signals the server.
    pub(crate) fn signal(&self) {
        self.machine.notify(self.port);
    }

    /// Writes what fits, and signals only if the server had taken everything before, as Linux does.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let prod = self.page.load(Word::ReqProd);
        let used = prod.wrapping_sub(self.page.load(Word::ReqCons));
        let len = bytes.len().min(RING.saturating_sub(used) as usize);
        let offset = (prod % RING) as usize;
        let (first, second) = bytes[..len].split_at(len.min(RING as usize - offset));
        self.page.write(offset, first);
        self.page.write(0, second);
        let end = prod.wrapping_add(u32::try_from(len).unwrap_or_default());
        self.page.store(Word::ReqProd, end);
        self.page.barrier();
        if len > 0 && self.page.load(Word::ReqCons) == prod {
            self.signal();
        }
        len
    }

    /// Reads what there is, and signals only if the server had no room, as Linux does.
    pub(crate) fn pull(&mut self, into: &mut Vec<u8>) -> usize {
        let cons = self.page.load(Word::RspCons);
        let available = self.page.load(Word::RspProd).wrapping_sub(cons).min(RING);
        let offset = (cons % RING) as usize;
        let mut bytes = alloc::vec![0; available as usize];
        let (first, second) = {
            let len = bytes.len().min(RING as usize - offset);
            bytes.split_at_mut(len)
        };
        self.page.read(RESPONSES + offset, first);
        self.page.read(RESPONSES, second);
        self.page.store(Word::RspCons, cons.wrapping_add(available));
        self.page.barrier();
        if available == RING {
            self.signal();
        }
        into.extend_from_slice(&bytes);
        bytes.len()
    }

    /// Lets time pass.
    pub(crate) fn sleep(&mut self, ms: u64) {
        let end = self.machine.now_ms() + ms;
        while self.machine.now_ms() < end {
            while self.machine.next_port().is_some() {}
            self.machine.wait(Some(end));
        }
    }

    /// Prints a line, waiting for room.
    pub(crate) fn say(&mut self, line: core::fmt::Arguments<'_>) {
        while !console::try_line(line) {
            let soon = self.machine.now_ms() + 10;
            self.machine.wait(Some(soon));
        }
    }

    /// Sets a word of the page and signals.
    pub(crate) fn poke(&mut self, word: Word, value: u32) {
        self.page.store(word, value);
        self.machine.notify(self.port);
    }

    /// Sends bytes, waiting for room as needed.
    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let sent = self.until("room for a request", |page| {
                let (prod, cons) = (page.load(Word::ReqProd), page.load(Word::ReqCons));
                let room = RING.saturating_sub(prod.wrapping_sub(cons));
                let offset = prod % RING;
                let len = room.min(RING - offset).min(u32::try_from(bytes.len()).unwrap_or(RING));
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

    /// The next message.
    pub(crate) fn message(&mut self) -> Result<Message, String> {
        let mut head = [0; HEADER];
        self.receive(&mut head)?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let [kind, request, len] = [0, 4, 12].map(word);
        let mut payload = alloc::vec![0; len.min(4096) as usize];
        self.receive(&mut payload)?;
        Ok(Message { kind, request, payload })
    }

    /// One request and its reply, which has to be the next message.
    pub(crate) fn call(&mut self, kind: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.ask(kind, payload)?;
        let message = self.message()?;
        self.answer(kind, message)
    }

    /// One request and its reply; events and answers to earlier requests are passed over.
    pub(crate) fn call_skipping_events(
        &mut self,
        kind: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        self.call_in(0, kind, payload)
    }

    /// As [`call_skipping_events`](Self::call_skipping_events), in a transaction.
    pub(crate) fn call_in(
        &mut self,
        tx: u32,
        kind: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        let message = self.request(tx, kind, payload);
        self.send(&message)?;
        loop {
            let message = self.message()?;
            if message.request == self.request && message.kind != XS_WATCH_EVENT {
                return self.answer(kind, message);
            }
        }
    }

    fn ask(&mut self, kind: u32, payload: &[u8]) -> Result<(), String> {
        let message = self.request(0, kind, payload);
        self.send(&message)
    }

    /// The bytes of a new request.
    pub(crate) fn request(&mut self, tx: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
        self.request += 1;
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut message = header(kind, self.request, len).to_vec();
        message[8..12].copy_from_slice(&tx.to_le_bytes());
        message.extend_from_slice(payload);
        message
    }

    /// A reply has to be one to the latest request.
    pub(crate) fn check_request(&self, request: u32) -> Result<(), String> {
        if request == self.request {
            return Ok(());
        }
        Err(format!("reply to request {request} instead of {}", self.request))
    }

    fn answer(&self, kind: u32, message: Message) -> Result<Vec<u8>, String> {
        let Message { kind: got, request, payload } = message;
        self.check_request(request)?;
        match got {
            XS_ERROR => Err(format!("error {}", String::from_utf8_lossy(&payload))),
            _ if got == kind => Ok(payload),
            _ => Err(format!("reply of type {got} to a request of type {kind}")),
        }
    }
}

/// A message from the server.
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) request: u32,
    pub(crate) payload: Vec<u8>,
}

/// The bytes of a header outside any transaction.
pub(crate) fn header(kind: u32, request: u32, len: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip([kind, request, 0, len]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
