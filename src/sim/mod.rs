//! The simulated world: hypervisor, domains and clients in memory, on the host only.
//!
//! Everything is deterministic: the clock moves when it is told to, and things happen in the order in which they
//! were asked for.
//!
//! * `world`: the hypervisor's side, with what a test may do to it; it implements `server::platform::Platform`.
//! * `page`: a ring page that the server and a client share.
//! * [`host`]: a server with a toolstack, and guests that wait for their replies.
//! * `memory`: the memory of the server's domain, on the image's own allocator.
//! * `client`: an honest client, which saves on signals as Linux does.
//! * `journal`: what passed between the server and the world, for a judge.
//! * `random`: chance from a seed.
//! * [`stage`]: where conversations are played.
//! * [`model`]: the judge, a naive second xenstore.
//! * [`swarm`]: whole runs drawn from a seed.
#![forbid(unsafe_code)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the journal has many entries, and each place here looks for one or two of them"
)]

mod client;
pub mod host;
mod journal;
mod memory;
pub mod model;
mod page;
mod random;
pub mod stage;
pub mod swarm;
mod world;

pub use client::{Client, Message};
pub use journal::{Journal, PageId, Seen};
pub use memory::Memory;
pub use page::SimPage;
pub use random::Random;
pub use world::{Region, SimPlatform, World};

use crate::proto::handover::Digest;
use crate::proto::id::DomId;
use crate::proto::sentence::Sentence;
use crate::proto::wire::Kind;
use crate::server::{Offer, Pass, Server};
use alloc::string::String;
use alloc::vec::Vec;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use xen_kernel_rt::memory::bounded::outside;

/// How many passes a server may need for what it has to do. More means that it runs in circles.
const PASSES_MAX: usize = 100_000;

/// How long a client waits before it looks for room in its ring again, in milliseconds, and how often it does.
const WAIT_MS: u64 = 500;
const WAITS_MAX: usize = 120;

/// A server in its world.
#[derive(Debug)]
pub struct Simulation {
    /// The world, for the test to act on.
    pub world: World,
    /// The server.
    pub server: Server<SimPlatform>,
}

impl Simulation {
    /// A started server whose first domain is 0, and that domain's client.
    #[must_use]
    pub fn start(options: &str) -> (Self, Client) {
        Self::start_watched(options, |_, _| {})
    }

    /// As [`start`](Self::start), after `prepare` was called with the world and the first page.
    #[must_use]
    pub fn start_watched(options: &str, prepare: impl FnOnce(&World, PageId)) -> (Self, Client) {
        let world = World::new();
        let port = world.create(DomId(0));
        prepare(&world, world.page(DomId(0)).id());
        let command_line = alloc::format!("--event {port} {options}");
        let platform = world.platform();
        let server = world.serve(|| {
            let mut server = Server::new(platform, &command_line);
            server.start();
            server
        });
        let mut simulation = Self { world, server };
        let _ = simulation.settle();
        let client = simulation.client(DomId(0));
        (simulation, client)
    }

    /// As [`start`](Self::start), in a domain whose memory has an end.
    #[must_use]
    pub fn start_bounded(options: &str, memory: Memory) -> (Self, Client) {
        Self::start_watched(options, |world, _| world.set_memory(memory))
    }

    /// A client in a domain that exists.
    #[must_use]
    pub fn client(&self, domid: DomId) -> Client {
        Client::new(self.world.clone(), domid)
    }

    /// Lets the server work until it would sleep; says until when, `None` for without end.
    ///
    /// # Panics
    /// If the server never gets to that point.
    pub fn settle(&mut self) -> Option<u64> {
        for _ in 0..PASSES_MAX {
            if let Pass::Idle(deadline_ms) = self.pass() {
                return deadline_ms;
            }
        }
        panic!("the server runs in circles");
    }

    /// Reads everything that comes for a client, as long as its reading makes room for more.
    pub fn drain(&mut self, client: &mut Client) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let _ = self.settle();
            let read = client.read(usize::MAX);
            messages.extend(core::iter::from_fn(|| client.next_message()));
            if read == 0 {
                return messages;
            }
        }
    }

    /// Sends a request, even if the server has to make room for it several times, and reads everything that comes.
    ///
    /// # Panics
    /// If the server does not take the whole request, however long it has time.
    pub fn ask(
        &mut self,
        client: &mut Client,
        kind: Kind,
        tx_id: u32,
        payload: &[u8],
    ) -> Vec<Message> {
        let (bytes, _) = client.request(kind.number(), tx_id, payload);
        let mut rest = &bytes[..];
        let mut waits = 0;
        while !rest.is_empty() {
            let written = client.write(rest);
            rest = &rest[written..];
            if written == 0 {
                // A connection that has used up its share of the time is read again later.
                waits += 1;
                assert!(waits <= WAITS_MAX, "the server does not read a request to its end");
                self.sleep(WAIT_MS);
            } else {
                let _ = self.settle();
            }
        }
        self.drain(client)
    }

    /// One pass of the server. If a live update is due then, it is done, too. If that fails, the client that asked
    /// gets the reason.
    pub fn pass(&mut self) -> Pass {
        let pass = self.world.serve(|| self.server.pass());
        self.note_settled();
        match pass {
            Pass::HandOver => {
                let _reason = self.hand_over();
                Pass::More
            }
            pass => pass,
        }
    }

    /// A live update: the server writes everything down, another one restores it and takes its place.
    ///
    /// # Errors
    /// Why it failed; then the old one goes on.
    pub fn hand_over(&mut self) -> Result<(), Sentence> {
        let world = self.world.clone();
        world.serve(|| match self.server.leave().and_then(|offer| self.trial(&offer)) {
            Ok(new) => {
                core::mem::replace(&mut self.server, new).abandon();
                // A successor looks at every domain, as after news that do not say of whom.
                self.note_settled();
                outside(|| self.world.journal().note(|| Seen::Look));
                self.server.take_over();
                Ok(())
            }
            Err(why) => {
                self.note_settled();
                self.server.stay(&why);
                Err(why)
            }
        })
    }

    /// Another domain takes the place of the server's, under the same domid.
    ///
    /// # Errors
    /// Why the old one goes on.
    pub fn replace(&mut self) -> Result<(), Sentence> {
        let world = self.world.clone();
        world.serve(|| match self.server.leave().and_then(|offer| self.trial(&offer)) {
            Ok(new) => {
                core::mem::replace(&mut self.server, new).abandon();
                let ports = outside(|| self.world.lose_ports());
                outside(|| self.world.journal().note(|| Seen::Moved));
                self.server.bind_anew(|domid, old| {
                    let known = ports.iter().find(|port| (port.0, port.1) == (domid, old));
                    known.map(|port| port.2)
                })?;
                self.note_settled();
                outside(|| self.world.journal().note(|| Seen::Look));
                self.server.take_over();
                Ok(())
            }
            Err(why) => {
                self.note_settled();
                self.server.stay(&why);
                Err(why)
            }
        })
    }

    /// The server has failed somewhere in its code, and the failure was caught: it goes on in a successor.
    ///
    /// # Errors
    /// Why that cannot go on; for a domain that would be the end.
    pub fn go_on(&mut self) -> Result<(), Sentence> {
        let world = self.world.clone();
        world.serve(|| {
            let offer = self.server.leave_failed()?;
            let (stream, private) = offer.region.bytes.split_at(offer.stream_len);
            let line = self.server.successor_line();
            let new = Server::restore(self.world.successor(), line, stream, private)?;
            outside(|| self.world.look(|| new.check()))
                .map_err(|findings| Sentence::from(findings.as_str()))?;
            let failed = core::mem::replace(&mut self.server, new);
            if self.world.memory().is_some() {
                // Its memory goes back, as far as what has failed can still be dropped.
                let _dropped = catch_unwind(AssertUnwindSafe(|| failed.abandon()));
            } else {
                core::mem::forget(failed);
            }
            self.note_settled();
            outside(|| self.world.journal().note(|| Seen::Look));
            self.server.take_over();
            Ok(())
        })
    }

    /// Does something with the server that may [fail](World::set_failure); if it does, the server goes on, and the
    /// answer is `None`.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn survive<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> Result<Option<R>, Sentence> {
        let mut done = catch_unwind(AssertUnwindSafe(|| f(self))).map(Some);
        while done.is_err() {
            self.world.journal().note(|| Seen::Failed);
            // It may fail once more, when it has begun to serve.
            let going_on = catch_unwind(AssertUnwindSafe(|| self.go_on()));
            done = match going_on {
                Ok(result) => return result.map(|()| None),
                Err(again) => Err(again),
            };
        }
        done.map_err(|_| Sentence::from("it failed and nobody noticed"))
    }

    /// A live update that fails at the last moment: the old server goes on.
    ///
    /// # Errors
    /// Why it failed before.
    pub fn fail_to_hand_over(&mut self) -> Result<(), Sentence> {
        let world = self.world.clone();
        world.serve(|| {
            let result = self.server.leave().and_then(|offer| self.trial(&offer));
            let result = result.map(Server::abandon);
            self.note_settled();
            self.server.stay("it was to fail");
            result
        })
    }

    /// Tells the judge that no death is under way any more. Until then the order of its events is the server's
    /// business.
    fn note_settled(&self) {
        if !self.server.is_cleaning_up() {
            outside(|| self.world.journal().note(|| Seen::Settled));
        }
    }

    /// A successor on trial.
    fn trial(&self, offer: &Offer<Region>) -> Result<Server<SimPlatform>, Sentence> {
        let all = &offer.region.bytes;
        let (stream, private) = all.split_at(offer.stream_len);
        let new =
            Server::restore(self.world.successor(), self.server.successor_line(), stream, private)?;
        let digest = new.digest()?;
        if digest == Digest::of(all) {
            outside(|| self.world.look(|| new.check()))
                .map_err(|findings| Sentence::from(findings.as_str()))?;
            return Ok(new);
        }
        Err(Sentence::from("what was restored is not what was handed over"))
    }

    /// Moves the clock in the steps that the server asks for, as if it slept in between.
    pub fn sleep(&mut self, ms: u64) {
        let end_ms = self.world.now_ms().saturating_add(ms);
        loop {
            match self.settle() {
                Some(wake_ms) if wake_ms <= end_ms => self.world.set_clock(wake_ms),
                _ => break,
            }
        }
        self.world.set_clock(end_ms);
        self.world.forget_lost_pages();
        let _ = self.settle();
    }

    /// What is wrong with the server's own accounts.
    ///
    /// # Errors
    /// The findings, one a line.
    pub fn check(&self) -> Result<(), String> {
        // A look of the test's own, not on the server's memory.
        self.world.look(|| self.server.check().and_then(|()| self.server.check_bytes()))
    }

    /// The server ends, and with it all that it holds.
    ///
    /// # Errors
    /// That its memory has not been given back.
    pub fn end(self) -> Result<(), String> {
        let Self { world, server } = self;
        drop(server);
        world.memory().map_or(Ok(()), |memory| memory.is_empty())
    }
}
