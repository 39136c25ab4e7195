//! The role *reader*: clients that list a large directory in parts, in transactions and outside of them, while others
//! change it.
//!
//! The model judges each reply by itself. This judges what a client makes of several of them:
//!
//! * Two replies with the same generation are parts of the same list. So a list that a reader puts together from
//!   parts with one generation must have existed at some moment since the reader began, or since its transaction
//!   did, with what that transaction itself has added and removed.
//! * Every part makes progress or ends the list. So a reader comes to the end in bounded time, whatever there is
//!   to list, and names longer than the protocol allows are refused to everybody.

use super::Report;
use crate::proto::id::DomId;
use crate::proto::wire::{Kind, PAYLOAD_MAX};
use crate::sim::Simulation;
use crate::sim::client::{Client, Message};
use crate::sim::random::Random;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// What is wrong, or nothing.
type Outcome = Result<(), String>;

/// The directory.
const LIST: &str = "/list";

/// The longest path, in bytes (`XENSTORE_ABS_PATH_MAX` in Xen's `xs_wire.h`).
const PATH_MAX: usize = 3072;

/// Parts that one list can have at most: each has more than a byte.
const PARTS_MAX: usize = 4000;

/// How often a reply may be looked for again, for a guest that the write-rate limit holds up.
const TRIES: usize = 200;

/// Without limits: another role tests those.
const OPTIONS: &str = "-Q nodes=0 -Q memory=0 -q memory=0 -Q node-size=0 -Q path-max=0 -Q transaction-nodes=0 \
                       -Q transactions=0 -w watch-event=0";

/// The names of children at a moment, by their numbers: there are many moments, and names are long.
type Names = BTreeSet<u32>;

/// A listing under way.
#[derive(Debug)]
struct Listing {
    generation: Vec<u8>,
    /// Names with a NUL behind each, as far as they have come.
    bytes: Vec<u8>,
    parts: usize,
    /// The moment from which on the list may be one that existed.
    since: usize,
}

/// A client that reads, writes, or both.
#[derive(Debug)]
struct Actor {
    client: Client,
    /// The transaction that it has open, and the moment at which that began; what it has done in it.
    tx: Option<(u32, usize)>,
    changes: Vec<(u32, bool)>,
    /// Names that were there when the transaction wrote to them. That adds nothing to the list. So if somebody
    /// outside removes one of them, it is missing in the transaction, too. (The transaction cannot succeed any
    /// more.)
    written: BTreeSet<u32>,
    listing: Option<Listing>,
}

/// A run.
struct Run {
    simulation: Simulation,
    random: Random,
    actors: Vec<Actor>,
    /// The names at each moment, the present last; a new moment begins with each change.
    moments: Vec<Names>,
    /// All names that were ever used, and their numbers.
    names: BTreeMap<Vec<u8>, u32>,
    /// What the names of this run are like.
    lengths: &'static [usize],
    requests: u64,
    trace: u64,
}

/// Plays one seed.
///
/// # Errors
/// What was wrong.
pub(super) fn play(seed: u64) -> Result<Report, String> {
    let mut run = Run::new(seed)?;
    for _ in 0..run.random.below(300) + 100 {
        run.step()?;
    }
    run.simulation.check()?;
    Ok(Report { trace: run.trace, requests: run.requests })
}

impl Run {
    fn new(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let (simulation, dom0) = Simulation::start(OPTIONS);
        let lengths = random.pick(&[
            &[6_usize, 6, 6, 6, 6, 7, 200][..],
            &[1, 5, 30, 255, 900],
            &[2000, 3000, 3060, 3065, 3066],
            &[6, 6, 6, 6, 3066, 3067, 4000, 4085],
        ]);
        let actor = |client| {
            let (changes, written) = (Vec::new(), BTreeSet::new());
            Actor { client, tx: None, changes, written, listing: None }
        };
        let moments = Vec::from([Names::new()]);
        let actors = Vec::from([actor(dom0)]);
        let names = BTreeMap::new();
        let mut run = Self {
            simulation,
            random,
            actors,
            moments,
            names,
            lengths,
            requests: 0,
            trace: 0xcbf2_9ce4_8422_2325,
        };
        for domid in 1..=2 + run.random.below(3) {
            let domid = u16::try_from(domid).unwrap_or(1);
            let port = run.simulation.world.create(DomId(domid));
            run.must(0, 0, Kind::Introduce, format!("{domid}\x001\0{port}\0").as_bytes())?;
            run.actors.push(actor(run.simulation.client(DomId(domid))));
        }
        run.must(0, 0, Kind::Mkdir, format!("{LIST}\0").as_bytes())?;
        run.must(0, 0, Kind::SetPerms, format!("{LIST}\0b0\0").as_bytes())?;
        for _ in 0..100 + run.random.below(500) {
            run.change(0)?;
        }
        Ok(run)
    }

    fn must(&mut self, actor: usize, tx: u32, kind: Kind, payload: &[u8]) -> Outcome {
        let message = self.ask(actor, tx, kind, payload)?;
        let payload = String::from_utf8_lossy(&message.payload);
        (message.header.kind == kind.number())
            .then_some(())
            .ok_or_else(|| format!("{kind:?} of client {actor}: {payload}"))
    }

    /// The reply to a request.
    fn ask(
        &mut self,
        actor: usize,
        tx: u32,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Message, String> {
        self.requests += 1;
        let client = &mut self.actors[actor].client;
        let mut messages = self.simulation.ask(client, kind, tx, payload);
        for _ in 0..TRIES {
            if let Some(message) = messages.pop() {
                for byte in &message.payload {
                    self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
                return Ok(message);
            }
            self.simulation.sleep(500);
            messages = self.simulation.drain(&mut self.actors[actor].client);
        }
        Err(format!("client {actor} got no reply to {kind:?}"))
    }

    fn step(&mut self) -> Outcome {
        let actor = self.random.index(self.actors.len());
        match self.random.below(40) {
            0 => self.simulation.hand_over().map_err(|why| format!("a live update failed: {why}")),
            1..=22 => self.read(actor),
            23 | 24 => self.begin(actor),
            25 | 26 => self.end(actor),
            _ => self.change(actor),
        }
    }

    fn begin(&mut self, actor: usize) -> Outcome {
        if self.actors[actor].tx.is_some() {
            return Ok(());
        }
        let reply = self.ask(actor, 0, Kind::TransactionStart, b"\0")?;
        let text = String::from_utf8_lossy(&reply.payload);
        let tx =
            text.trim_end_matches('\0').parse().map_err(|_| format!("a transaction: {text}"))?;
        let now = self.moments.len() - 1;
        let actor = &mut self.actors[actor];
        (actor.tx, actor.listing) = (Some((tx, now)), None);
        Ok(())
    }

    fn end(&mut self, actor: usize) -> Outcome {
        let Some((tx, _)) = self.actors[actor].tx.take() else { return Ok(()) };
        self.actors[actor].listing = None;
        let changes = core::mem::take(&mut self.actors[actor].changes);
        self.actors[actor].written.clear();
        let commit = self.random.one_in(2);
        let reply =
            self.ask(actor, tx, Kind::TransactionEnd, if commit { b"T\0" } else { b"F\0" })?;
        match (commit, reply.payload.as_slice()) {
            (true, b"OK\0") if !changes.is_empty() => {
                let mut now = self.now().clone();
                apply(&mut now, &changes);
                self.moments.push(now);
                Ok(())
            }
            (_, b"OK\0") | (true, b"EAGAIN\0") => Ok(()),
            (_, other) => Err(format!("the end of a transaction: {}", other.escape_ascii())),
        }
    }

    fn now(&self) -> &Names {
        self.moments.last().expect("there is a first one")
    }

    /// A name is made or removed.
    fn change(&mut self, actor: usize) -> Outcome {
        let length = self.random.pick(self.lengths);
        let number = format!("{}", self.random.below(3000));
        let name = format!("{number:n>length$}");
        let tx = self.actors[actor].tx.map_or(0, |(tx, _)| tx);
        let makes = self.random.below(10) < 6;
        // What is removed is mostly there: only that moves the others in the list.
        let there = self.random.index(self.now().len().max(1));
        let there = self.now().iter().nth(there).filter(|_| !makes).copied();
        let there = there.and_then(|there| self.names.iter().find(|(_, each)| **each == there));
        let there = there.map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        let name = if self.random.one_in(5) { name } else { there.unwrap_or(name) };
        let path = format!("{LIST}/{name}");
        let fits = path.len() <= PATH_MAX;
        let kind = if makes { Kind::Write } else { Kind::Rm };
        let reply = self.ask(actor, tx, kind, format!("{path}\0").as_bytes())?;
        let expected = match reply.payload.as_slice() {
            b"OK\0" => fits,
            b"EINVAL\0" => !fits,
            // It is not there, or belongs to another one.
            b"ENOENT\0" | b"EACCES\0" => return Ok(()),
            _ => false,
        };
        if !expected {
            let reply = reply.payload.escape_ascii();
            return Err(format!(
                "{kind:?} of a path of {} bytes by client {actor}: {reply}",
                path.len()
            ));
        }
        if !fits {
            return Ok(());
        }
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let number = *self.names.entry(name.into_bytes()).or_insert(next);
        let change = (number, makes);
        if tx == 0 {
            let mut now = self.now().clone();
            apply(&mut now, &[change]);
            self.moments.push(now);
        } else {
            let mut seen = self.now().clone();
            let actor = &mut self.actors[actor];
            apply(&mut seen, &actor.changes);
            actor.listing = None;
            if !makes {
                actor.written.remove(&number);
                actor.changes.push(change);
            } else if seen.contains(&number) {
                actor.written.insert(number);
            } else if !actor.written.contains(&number) {
                actor.changes.push(change);
            }
        }
        Ok(())
    }

    /// The next part of a listing, or the first one of a new one.
    fn read(&mut self, actor: usize) -> Outcome {
        let tx = self.actors[actor].tx;
        let now = self.moments.len() - 1;
        let offset = self.actors[actor].listing.as_ref().map_or(0, |listing| listing.bytes.len());
        let payload = format!("{LIST}\0{offset}\0");
        let reply =
            self.ask(actor, tx.map_or(0, |(tx, _)| tx), Kind::DirectoryPart, payload.as_bytes())?;
        let bytes = reply.payload.as_slice();
        if reply.header.kind != Kind::DirectoryPart.number() || bytes.len() > PAYLOAD_MAX {
            return Err(format!("DIRECTORY_PART: {}", bytes.escape_ascii()));
        }
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (generation, part) = match bytes.get(digits) {
            Some(0) if digits > 0 => (&bytes[..digits], &bytes[digits + 1..]),
            _ => return Err(format!("no generation: {}", bytes.escape_ascii())),
        };
        let since = tx.map_or(now, |(_, began)| began);
        let fresh =
            || Listing { generation: generation.to_vec(), bytes: Vec::new(), parts: 0, since };
        let mut listing = match self.actors[actor].listing.take() {
            Some(listing) if listing.generation == generation => listing,
            // Something has changed, so it starts over, as xenstore-ls does.
            Some(_) => return Ok(()),
            None => fresh(),
        };
        let (names, ends) = match part {
            [0] => (&part[..0], true),
            [names @ .., 0, 0] => (&part[..=names.len()], true),
            other => (other, false),
        };
        listing.bytes.extend_from_slice(names);
        listing.parts += 1;
        if names.is_empty() && !ends || listing.parts > PARTS_MAX {
            return Err(format!("a part at {offset} makes no progress and does not end"));
        }
        if ends {
            return self.judge(actor, &listing);
        }
        self.actors[actor].listing = Some(listing);
        Ok(())
    }

    /// A list that is complete must be one that existed.
    fn judge(&self, actor: usize, listing: &Listing) -> Outcome {
        let mut got = Names::new();
        for name in listing.bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Some(number) = self.names.get(name) else {
                let (len, end) =
                    (name.len(), name.get(name.len().saturating_sub(12)..).unwrap_or(name));
                return Err(format!(
                    "a list has a name of {len} bytes that never was: ...{}",
                    end.escape_ascii()
                ));
            };
            if !got.insert(*number) {
                return Err(format!("a list has a name of {} bytes twice", name.len()));
            }
        }
        let changes = &self.actors[actor].changes;
        let existed = self.moments[listing.since..].iter().rev().any(|names| {
            if changes.is_empty() {
                return *names == got;
            }
            let mut seen = names.clone();
            apply(&mut seen, changes);
            seen == got
        });
        if existed {
            return Ok(());
        }
        let mut now = self.now().clone();
        apply(&mut now, changes);
        let show = |number: Option<&u32>| {
            let name =
                number.and_then(|number| self.names.iter().find(|(_, each)| *each == number));
            name.map_or_else(
                || String::from("nothing"),
                |(name, _)| format!("{}", name.escape_ascii()),
            )
        };
        Err(format!(
            "client {actor} has put together {} names in {} parts of one generation, a list that never existed; unlike now, \
             it has {} and lacks {}",
            got.len(),
            listing.parts,
            show(got.difference(&now).next()),
            show(now.difference(&got).next())
        ))
    }
}

/// Names made and removed, in this order.
fn apply(names: &mut Names, changes: &[(u32, bool)]) {
    for (name, is_made) in changes {
        if *is_made {
            names.insert(*name);
        } else {
            names.remove(name);
        }
    }
}
