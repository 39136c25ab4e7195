//! A client with a life: it asks, waits, reads, and sleeps until it is signalled. A hostile one also breaks every
//! rule.

use super::options::Options;
use super::words::{Speech, speak};
use crate::proto::id::DomId;
use crate::proto::ring::{RING_SIZE, Word};
use crate::proto::wire::Kind;
use crate::sim::client::{Client, Message};
use crate::sim::journal::PageId;
use crate::sim::random::Random;
use crate::sim::world::World;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// What happens when a request of the toolstack is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// Nothing more.
    Nothing,
    /// A domain may use its ring again, from the start, if it is introduced and nothing else is under way.
    Settled(u16),
}

/// A request without an answer yet.
#[derive(Clone, Copy, Debug)]
struct Asked {
    kind: u32,
    req_id: u32,
    tx: u32,
    then: Then,
}

/// A client.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) domid: u16,
    pub(super) client: Client,
    pub(super) hostile: bool,
    /// It must not touch its ring: it is not introduced yet, or it is being introduced again.
    pub(super) frozen: bool,
    /// The server has emptied its ring since it was frozen.
    emptied: bool,
    /// Bytes of requests that are not in the ring yet.
    outgoing: VecDeque<u8>,
    asked: VecDeque<Asked>,
    /// Transactions that it knows to be open.
    open: Vec<u32>,
    /// It has not seen its rings in a state to sleep since the last signal.
    awake: bool,
    signals: u64,
    /// Steps for which it does not read.
    lazy: u32,
    /// What the server has put into its ring and it has not read.
    mirror: VecDeque<u8>,
    /// The payload of the last reply.
    pub(super) last_reply: Vec<u8>,
}

impl Agent {
    pub(super) fn new(domid: u16, client: Client, hostile: bool) -> Self {
        Self {
            domid,
            client,
            hostile,
            frozen: true,
            emptied: true,
            outgoing: VecDeque::new(),
            asked: VecDeque::new(),
            open: Vec::new(),
            awake: true,
            signals: 0,
            lazy: 0,
            mirror: VecDeque::new(),
            last_reply: Vec::new(),
        }
    }

    pub(super) fn page(&self) -> PageId {
        self.client.page().id()
    }

    /// It keeps its hands off its ring from now on.
    pub(super) fn freeze(&mut self) {
        // If it is frozen already, it must still hear of what happened since then.
        self.emptied &= self.frozen;
        self.frozen = true;
        self.take_back();
    }

    /// It may use its ring again: from the start if that was emptied, else as if nothing had been.
    pub(super) fn thaw(&mut self) {
        if self.emptied {
            self.start_over();
        }
        (self.frozen, self.awake) = (false, true);
    }

    /// What it wanted to write at the worst moment, which did not come, it writes as usual.
    fn take_back(&mut self) {
        for byte in self.client.page().take_unwritten().into_iter().rev() {
            self.outgoing.push_front(byte);
        }
    }

    /// Starts over with an empty ring.
    pub(super) fn start_over(&mut self) {
        self.client.forget();
        self.outgoing.clear();
        self.asked.clear();
        self.open.clear();
        self.mirror.clear();
        (self.awake, self.lazy, self.frozen) = (true, 0, false);
    }

    /// Looks at its ring although nobody signalled.
    pub(super) fn wake(&mut self) {
        (self.awake, self.lazy) = (true, 0);
    }

    /// Whether all that it asked is answered.
    pub(super) fn is_content(&self) -> bool {
        self.outgoing.is_empty() && self.asked.is_empty() && !self.client.is_amid_message()
    }

    /// Steps for which it will not read.
    pub(super) fn lazy_steps(&self) -> u32 {
        self.lazy
    }

    /// Whether the server signalled and it has not looked yet.
    pub(super) fn is_signalled(&self, world: &World) -> bool {
        !self.frozen && world.signals(DomId(self.domid)) != self.signals
    }

    /// How many of its requests have no answer yet.
    pub(super) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// The server put these bytes into the ring, or emptied it.
    pub(super) fn expect(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.mirror.extend(bytes),
            None => {
                self.mirror.clear();
                self.emptied = true;
            }
        }
    }

    /// Has a request sent, behind those that wait already.
    pub(super) fn say(&mut self, speech: &Speech, then: Then) {
        let (bytes, req_id) = self.client.request(speech.kind, speech.tx, &speech.payload);
        self.outgoing.extend(bytes);
        self.asked.push_back(Asked { kind: speech.kind, req_id, tx: speech.tx, then });
    }

    /// Thinks of something to ask.
    pub(super) fn chat(&mut self, random: &mut Random, options: &Options) {
        if !self.frozen && self.asked.len() < options.outstanding {
            let speech = speak(random, options, self.domid, &self.open);
            self.say(&speech, Then::Nothing);
        }
        if options.lazy && self.domid != 0 && random.one_in(60) {
            self.lazy = random.below(60);
        }
    }

    /// Writes and reads at most a piece each; returns whether anything moved.
    ///
    /// # Errors
    /// What the client saw that it must not see.
    pub(super) fn work(
        &mut self,
        world: &World,
        piece: usize,
        late: bool,
        answered: &mut Vec<Then>,
    ) -> Result<bool, String> {
        if self.frozen {
            return Ok(false);
        }
        let signals = world.signals(DomId(self.domid));
        if signals != self.signals {
            (self.signals, self.awake) = (signals, true);
        }
        self.lazy = self.lazy.saturating_sub(1);
        let wrote = self.write(piece, late);
        let read = self.read(piece);
        while let Some(message) = self.client.next_message() {
            self.receive(&message, answered)?;
        }
        Ok(wrote || read)
    }

    /// Writes a piece. One that finds the ring full sleeps until it is signalled.
    fn write(&mut self, piece: usize, late: bool) -> bool {
        let page = self.client.page().clone();
        self.take_back();
        let used = page.word(Word::ReqProd).wrapping_sub(page.word(Word::ReqCons));
        if self.outgoing.is_empty() || used >= RING_SIZE && !self.awake {
            return false;
        }
        let bytes: Vec<u8> = self.outgoing.iter().copied().take(piece).collect();
        let written = self.client.write(&bytes);
        self.outgoing.drain(..written);
        if late && !self.outgoing.is_empty() && written == bytes.len() {
            let space = RING_SIZE as usize - 1;
            let rest = self.outgoing.len().min(piece).min(space);
            page.write_unnoticed(&self.outgoing.drain(..rest).collect::<Vec<_>>(), 0);
        }
        written > 0
    }

    fn read(&mut self, piece: usize) -> bool {
        if !self.awake || self.lazy > 0 {
            return false;
        }
        let read = self.client.read(piece);
        let page = self.client.page();
        if page.word(Word::RspProd) == page.word(Word::RspCons) {
            self.awake = false;
        }
        read > 0
    }

    /// A message arrived: it must be what the server wrote, and if it is a reply, to the oldest request.
    fn receive(&mut self, message: &Message, answered: &mut Vec<Then>) -> Result<(), String> {
        if self.hostile {
            self.asked.pop_front();
            return Ok(());
        }
        let bytes = [&message.header.to_bytes()[..], &message.payload].concat();
        let wanted: Vec<u8> = self.mirror.drain(..bytes.len().min(self.mirror.len())).collect();
        if bytes != wanted {
            return Err(format!("domain {} read something that was never written", self.domid));
        }
        if message.header.kind == Kind::WatchEvent.number() {
            return Ok(());
        }
        let Some(asked) = self.asked.pop_front() else {
            return Err(format!("domain {} got a reply that it did not ask for", self.domid));
        };
        let succeeded = message.header.kind == asked.kind;
        if message.header.req_id != asked.req_id {
            return Err(format!("domain {} got the reply to another request", self.domid));
        }
        if succeeded && asked.kind == Kind::TransactionStart.number() {
            let text = String::from_utf8_lossy(&message.payload);
            self.open.extend(text.trim_end_matches('\0').parse::<u32>().ok());
        }
        if asked.kind == Kind::TransactionEnd.number() && message.payload != b"EINVAL\0" {
            self.open.retain(|open| *open != asked.tx);
        }
        if asked.kind == Kind::ResetWatches.number() && succeeded {
            self.open.clear();
        }
        self.last_reply.clone_from(&message.payload);
        answered.push(asked.then);
        Ok(())
    }

    /// Something that no honest client does.
    pub(super) fn misbehave(&mut self, random: &mut Random) {
        let page = self.client.page().clone();
        let word = random.pick(&Word::ALL);
        let near = page.word(word).wrapping_add(random.below(60)).wrapping_sub(20);
        let value = if random.one_in(4) { random.below(u32::MAX) } else { near };
        match random.below(12) {
            0 => page.set_word(word, value),
            1 => page.ambush(random.index(30), word, value),
            2 => page.firmware_reset(),
            3 => {
                // An endless message, or one too long.
                let length = random.pick(&[4096, 4097, u32::MAX, 1 << 31]);
                let header = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                self.outgoing.extend(header.into_iter().chain(length.to_le_bytes()));
            }
            4 => {
                for _ in 0..random.below(200) {
                    let byte = random.below(256);
                    self.outgoing.push_back(u8::try_from(byte).unwrap_or(0));
                }
            }
            5 => {
                for index in 0..random.below(1024) {
                    page.put_request(index, u8::try_from(random.below(256)).unwrap_or(0));
                }
            }
            6 => self.lazy = random.below(300),
            7 => self.client.forget(),
            8 => self.asked.clear(),
            _ => {}
        }
        self.outgoing.truncate(20_000);
    }
}
