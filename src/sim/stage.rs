//! The simulated world as a stage for conversations (`transcript`).

use super::Simulation;
use super::client::Client;
use super::memory::Memory;
use crate::proto::id::DomId;
use crate::proto::ring::{RING_SIZE, Word};
use crate::proto::stream::{DepthLayout, Version};
use crate::proto::wire::Kind;
use crate::transcript::{self, Message, Patience, Stop};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::panic::AssertUnwindSafe;
use std::format;
use std::panic::catch_unwind;

/// Bytes in front of the first record of a stream.
const STREAM_HEADER: usize = 16;

/// How bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// As much as fits at once.
    Whole,
    /// In pieces that depend on this number.
    Cut(u64),
    /// As much as fits at once, with a live update after every line.
    Updated,
    /// As much as fits at once. The server fails after every line, while it does nothing.
    Failed,
    /// As much as fits at once, until the server fails while it works on a line; then the conversation ends.
    /// Without a failure each line is [recorded](Stage::records).
    FailedIn(Option<Place>),
}

/// Where the server fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// In the requests of this line; only those that are sent count, from 0.
    pub line: usize,
    /// At this call of the world, from 0.
    pub call: u32,
}

/// What a line that was sent has led to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Record {
    /// What the store had before it, and after it: watches and nodes as in a record stream.
    pub before: Vec<Vec<u8>>,
    /// See there.
    pub after: Vec<Vec<u8>>,
    /// The replies, without events.
    pub replies: Vec<(u32, Vec<u8>)>,
}

type Outcome = Result<(), Stop>;

/// One client with what it has been told.
#[derive(Debug)]
struct Actor {
    client: Client,
    messages: VecDeque<Message>,
    reads: bool,
    /// Signals from the server that it has acted upon: without a new one it does not look at its ring.
    signals: u64,
    /// It has not seen its ring empty since.
    is_awake: bool,
}

/// A server, and the clients of a conversation.
#[derive(Debug)]
pub struct Stage {
    simulation: Simulation,
    actors: BTreeMap<u16, Actor>,
    delivery: Delivery,
    random: u64,
    console: Vec<String>,
    records: Vec<Record>,
    has_failed: bool,
}

impl Stage {
    /// A started server with these options.
    #[must_use]
    pub fn new(options: &str, delivery: Delivery) -> Self {
        Self::on(Simulation::start(options), delivery)
    }

    /// As [`new`](Self::new), in a domain whose memory has an end.
    #[must_use]
    pub fn bounded(options: &str, memory: Memory) -> Self {
        Self::on(Simulation::start_bounded(options, memory), Delivery::Whole)
    }

    fn on((simulation, client): (Simulation, Client), delivery: Delivery) -> Self {
        let random = match delivery {
            Delivery::Whole | Delivery::Updated | Delivery::Failed | Delivery::FailedIn(_) => 1,
            Delivery::Cut(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        let actors = BTreeMap::new();
        let mut stage = Self {
            simulation,
            actors,
            delivery,
            random,
            console: Vec::new(),
            records: Vec::new(),
            has_failed: false,
        };
        stage.enter(0, client);
        stage
    }

    /// The server in its world.
    pub fn simulation(&mut self) -> &mut Simulation {
        &mut self.simulation
    }

    /// The results of each line that was sent, for [`Delivery::FailedIn`].
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether the server has failed where it was meant to.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Watches and nodes, each as its record.
    fn state(&self) -> Result<Vec<Vec<u8>>, Stop> {
        let mut bytes = Vec::new();
        self.simulation.server.dump(Version::Two, DepthLayout::Document, &mut bytes)?;
        let mut state = Vec::new();
        let mut rest = bytes.get(STREAM_HEADER..).unwrap_or_default();
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let [kind, len] = [0, 4].map(|at| {
                let word = [head[at], head[at + 1], head[at + 2], head[at + 3]];
                u32::from_le_bytes(word)
            });
            let len = (len as usize).next_multiple_of(8).min(tail.len());
            if !matches!(kind, 0..=2) {
                state.push(rest[..len + 8].to_vec());
            }
            rest = &tail[len..];
        }
        state.sort();
        Ok(state)
    }

    /// Sends a line, and records what that leads to.
    fn send_and_record(&mut self, domid: u16, bytes: &[u8], fails_in: Option<Place>) -> Outcome {
        let line = self.records.len();
        if fails_in.is_some_and(|place| place.line != line) {
            self.records.push(Record::default());
            return self.write(domid, bytes, true);
        }
        let before = self.state()?;
        let waiting = self.actor(domid)?.messages.len();
        // What does not fit at once is not in the ring when the server fails.
        let call = fails_in.filter(|_| bytes.len() <= RING_SIZE as usize);
        self.simulation.world.set_failure(call.map(|place| place.call));
        let sent = catch_unwind(AssertUnwindSafe(|| self.write(domid, bytes, true)));
        match sent {
            Ok(sent) => {
                self.simulation.world.set_failure(None);
                sent?;
            }
            Err(_) => {
                self.has_failed = true;
                self.simulation.go_on()?;
                self.run();
            }
        }
        let is_reply = |message: &&Message| message.header.kind != Kind::WatchEvent.number();
        let replies = self.actor(domid)?.messages.iter().skip(waiting).filter(is_reply);
        let replies = replies.map(|m| (m.header.kind, m.payload.clone())).collect();
        let after = self.state()?;
        self.records.push(Record { before, after, replies });
        if self.has_failed {
            self.simulation.check()?;
            self.simulation.hand_over()?;
            return Err("it has failed, and the rest of the conversation is of no interest".into());
        }
        Ok(())
    }

    /// What has come for a domain and was not looked at yet.
    pub fn waiting(&self, domid: u16) -> impl Iterator<Item = &Message> {
        self.actors.get(&domid).into_iter().flat_map(|actor| &actor.messages)
    }

    /// The same of all domains, with who they are.
    pub fn all_waiting(&self) -> impl Iterator<Item = (u16, &Message)> {
        self.actors.keys().flat_map(|domid| self.waiting(*domid).map(|message| (*domid, message)))
    }

    /// What is in the rings of all domains and was not read.
    pub fn unread(&self) -> impl Iterator<Item = Vec<u8>> {
        self.actors.values().map(|actor| actor.client.unread())
    }

    /// Everything ends.
    ///
    /// # Errors
    /// As [`Simulation::end`].
    pub fn leave(self) -> Result<(), String> {
        self.simulation.end()
    }

    fn enter(&mut self, domid: u16, client: Client) {
        let messages = VecDeque::new();
        let actor = Actor { client, messages, reads: true, signals: 0, is_awake: true };
        self.actors.insert(domid, actor);
    }

    fn actor(&mut self, domid: u16) -> Result<&mut Actor, Stop> {
        self.actors.get_mut(&domid).ok_or_else(|| "no such client".into())
    }

    /// A piece's length, from 1 on.
    fn piece(&mut self) -> usize {
        match self.delivery {
            Delivery::Whole | Delivery::Updated | Delivery::Failed | Delivery::FailedIn(_) => {
                usize::MAX
            }
            Delivery::Cut(_) => {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                1 + usize::try_from(self.random % 37).unwrap_or(0)
            }
        }
    }

    /// Gets bytes into a ring, in pieces.
    fn write(&mut self, domid: u16, bytes: &[u8], runs: bool) -> Outcome {
        let mut rest = bytes;
        let mut stuck = 0;
        while !rest.is_empty() {
            let piece = self.piece().min(rest.len());
            let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
            let before = actor.client.page().word(Word::ReqCons);
            let signals = self.simulation.world.signals(DomId(domid));
            let written = actor.client.write(&rest[..piece]);
            rest = &rest[written..];
            if runs {
                let _ = self.simulation.settle();
            }
            let was_taken = actor.client.page().word(Word::ReqCons) != before;
            if was_taken && signals == self.simulation.world.signals(DomId(domid)) {
                return Err("a client that waits for room was not signalled".into());
            }
            if written == 0 {
                if !runs {
                    return Err("the ring is full".into());
                }
                self.read_all();
                stuck += 1;
                if stuck > 3 {
                    let left = rest.len();
                    return Err(format!("the server does not read: {left} bytes left").into());
                }
            }
        }
        if runs {
            self.run();
        }
        Ok(())
    }

    fn run(&mut self) {
        let _ = self.simulation.settle();
        self.read_all();
    }

    /// A line is over.
    fn update(&mut self) -> Outcome {
        match self.delivery {
            Delivery::Whole | Delivery::Cut(_) | Delivery::FailedIn(_) => Ok(()),
            // Where a conversation takes the memory away, it fails, and nobody must notice that either.
            Delivery::Updated => match self.simulation.hand_over() {
                Err(why) if !why.contains("memory") => Err(why.into()),
                Ok(()) | Err(_) => Ok(()),
            },
            Delivery::Failed => self.simulation.go_on().map_err(Into::into),
        }
    }

    /// Lets every client that reads do so until nothing comes any more.
    fn read_all(&mut self) {
        let domids = self.actors.keys().copied().collect::<Vec<_>>();
        loop {
            let mut any = 0;
            for domid in &domids {
                let piece = self.piece();
                let Some(actor) = self.actors.get_mut(domid).filter(|actor| actor.reads) else {
                    continue;
                };
                let signals = self.simulation.world.signals(DomId(*domid));
                actor.is_awake |= core::mem::replace(&mut actor.signals, signals) != signals;
                if !actor.is_awake {
                    continue;
                }
                let read = actor.client.read(piece);
                actor.is_awake = read > 0;
                any += read;
                let got = core::iter::from_fn(|| actor.client.next_message());
                let got = got.map(|m| Message { header: m.header, payload: m.payload });
                actor.messages.extend(got);
            }
            let _ = self.simulation.settle();
            if any == 0 {
                break;
            }
        }
    }
}

impl transcript::Stage for Stage {
    fn send(&mut self, domid: u16, bytes: &[u8], runs: bool) -> Outcome {
        if let Delivery::FailedIn(place) = self.delivery
            && runs
        {
            return self.send_and_record(domid, bytes, place);
        }
        self.write(domid, bytes, runs)?;
        self.update()
    }

    fn receive(&mut self, domid: u16, _: Patience) -> Result<Option<Message>, Stop> {
        Ok(self.actor(domid)?.messages.pop_front())
    }

    fn word(&mut self, domid: u16, word: Word) -> Result<u32, Stop> {
        Ok(self.simulation.world.page(DomId(domid)).word(word))
    }

    fn set_word(&mut self, domid: u16, word: Word, value: u32) -> Outcome {
        self.simulation.world.page(DomId(domid)).set_word(word, value);
        Ok(())
    }

    fn introduction(&mut self, domid: u16) -> Result<(u64, u32), Stop> {
        Ok((1, self.simulation.world.offer(DomId(domid))))
    }

    fn own_domid(&mut self) -> Result<u16, Stop> {
        Ok(self.simulation.world.own_domid().0)
    }

    fn change(&mut self, words: &[&str]) -> Outcome {
        let world = self.simulation.world.clone();
        let number = |index: usize| -> Result<u64, Stop> {
            let word = words.get(index).ok_or("an argument is missing")?;
            word.parse().map_err(|_| format!("{word} is no number").into())
        };
        let domid = |index| number(index).map(|n| u16::try_from(n).unwrap_or(u16::MAX));
        match words[0] {
            "domain" => {
                world.create(DomId(domid(1)?));
                let client = self.simulation.client(DomId(domid(1)?));
                self.enter(domid(1)?, client);
            }
            "shutdown" => world.set_shutdown(DomId(domid(1)?), true),
            "unshutdown" => world.set_shutdown(DomId(domid(1)?), false),
            "destroy" => {
                world.destroy(DomId(domid(1)?));
                self.actors.remove(&domid(1)?);
            }
            "replace" => {
                world.destroy(DomId(domid(1)?));
                self.actors.remove(&domid(1)?);
                return self.change(&["domain", words[1]]);
            }
            "revoke" => world.set_granted(DomId(domid(1)?), false),
            "grant" => world.set_granted(DomId(domid(1)?), true),
            "sleep" => self.simulation.sleep(number(1)?),
            "memory" => world.set_heap_free(usize::try_from(number(1)?).unwrap_or(usize::MAX)),
            "old-xen" => world.set_tells_changes(false),
            "mute-xen" => {
                world.set_tells_states(false);
                world.set_shows_ends(words.get(1) == Some(&"ends"));
            }
            "rename" => world.set_handle(DomId(domid(1)?), [0xaa; 16]),
            "ran" => world.set_cpu_time(DomId(domid(1)?), number(2)?),
            "signal" => world.signal(DomId(domid(1)?)),
            "firmware" => {
                world.page(DomId(domid(1)?)).firmware_reset();
                return Ok(());
            }
            "read" | "unread" => {
                let actor = self.actor(domid(1)?)?;
                actor.reads = words[0] == "read";
                actor.is_awake |= actor.reads;
            }
            "region" => world.set_region_max(usize::try_from(number(1)?).unwrap_or(usize::MAX)),
            "update" => self.simulation.hand_over()?,
            "failing-update" => self.simulation.fail_to_hand_over()?,
            // In this world it is always so.
            "go" | "still" | "fresh" => {}
            _ => return Err("what?".into()),
        }
        self.run();
        self.update()
    }

    fn printed(&mut self, text: &str) -> Result<Option<bool>, Stop> {
        self.console.extend(self.simulation.world.take_console());
        let found = self.console.iter().any(|line| line.contains(text));
        let got = core::mem::take(&mut self.console).join("\n    ");
        if found { Ok(Some(true)) } else { Err(format!("got {got}").into()) }
    }

    fn end(&mut self) -> Outcome {
        self.run();
        for (domid, actor) in &self.actors {
            if !actor.messages.is_empty() {
                return Err(format!("at the end domain {domid} has got a message").into());
            }
            if actor.reads && actor.client.is_amid_message() {
                return Err(format!("at the end domain {domid} has got a part of one").into());
            }
        }
        Ok(self.simulation.check()?)
    }
}
