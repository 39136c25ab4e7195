//! The player: goes through a conversation line by line, on any stage.

use super::words::{kind, matches, named_part, show, strings, unescape, word};
use super::{Conversation, names, unroll};
use crate::proto::ring::Word;
use crate::proto::sentence::Sentence;
use crate::proto::wire::{HEADER_SIZE, Header, Kind};
use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A message from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// Takes the first whole message off bytes that have come.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let header = Header::from_bytes(bytes.first_chunk()?);
        let end = HEADER_SIZE.checked_add(usize::try_from(header.len).ok()?)?;
        let payload = bytes.get(HEADER_SIZE..end)?.to_vec();
        bytes.drain(..end);
        Some(Self { header, payload })
    }

    fn is_event(&self) -> bool {
        self.header.kind == Kind::WatchEvent.number()
    }
}

/// Why a conversation ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The server did not do what is written.
    Wrong(String),
    /// This stage cannot play it.
    Skip(String),
    /// The server does not answer anybody any more.
    Lost(String),
}

impl From<Sentence> for Stop {
    fn from(why: Sentence) -> Self {
        Self::from(String::from(&*why))
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl From<&str> for Stop {
    fn from(what: &str) -> Self {
        Self::Wrong(what.to_owned())
    }
}

/// How long a message may take to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// As long as a working server needs.
    Long,
    /// No message is expected: until everything that was asked for so far has certainly happened.
    Short,
}

/// A request that is about to be sent.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who sends it, as the text has it.
    pub domid: u16,
    /// Its type, if it is one of the protocol's.
    pub kind: Option<Kind>,
    /// The transaction as written.
    pub tx: &'a str,
    /// Its arguments, real ids in them.
    pub arguments: &'a [String],
    /// What is expected, if that is in the same line.
    pub expected: Option<&'a str>,
}

/// The world of a conversation's domains. Domain ids are those of the text.
pub trait Stage {
    /// Looks at a request before it is sent. An error ends the conversation.
    ///
    /// # Errors
    /// Why this stage cannot send it.
    fn before(&mut self, request: &Request<'_>) -> Result<(), Stop> {
        let _ = request;
        Ok(())
    }

    /// Gets bytes into a domain's ring; with `runs`, lets the server work.
    ///
    /// # Errors
    /// Why they did not get there.
    fn send(&mut self, domid: u16, bytes: &[u8], runs: bool) -> Result<(), Stop>;

    /// The next message that a domain has got.
    ///
    /// # Errors
    /// What else happened.
    fn receive(&mut self, domid: u16, patience: Patience) -> Result<Option<Message>, Stop>;

    /// Whether replies and events reach this domain in the order in which the server sent them.
    fn keeps_order(&self, domid: u16) -> bool {
        let _ = domid;
        true
    }

    /// A word of a domain's ring page.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn word(&mut self, domid: u16, word: Word) -> Result<u32, Stop>;

    /// Stores a word as the domain does.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn set_word(&mut self, domid: u16, word: Word, value: u32) -> Result<(), Stop>;

    /// The real port that the text calls 10, with the frame; `None` if it is 10.
    fn first_introduction(&mut self, domid: u16) -> Option<(u64, u32)> {
        let _ = domid;
        None
    }

    /// The frame and a port to introduce a domain with.
    ///
    /// # Errors
    /// That there is none.
    fn introduction(&mut self, domid: u16) -> Result<(u64, u32), Stop>;

    /// The id of the server's own domain.
    ///
    /// # Errors
    /// That nobody knows.
    fn own_domid(&mut self) -> Result<u16, Stop>;

    /// Creates an introduced domain; `false` if it takes `domain` and INTRODUCE.
    ///
    /// # Errors
    /// Why not.
    fn guest(&mut self, domid: u16) -> Result<bool, Stop> {
        let _ = domid;
        Ok(false)
    }

    /// Everything else that happens to the world, in the words of the text.
    ///
    /// # Errors
    /// Why it cannot happen here.
    fn change(&mut self, words: &[&str]) -> Result<(), Stop>;

    /// Whether the server has printed a line with this text since the last question; `None` if nobody can tell.
    ///
    /// # Errors
    /// What else happened.
    fn printed(&mut self, text: &str) -> Result<Option<bool>, Stop>;

    /// The real id of a domain.
    fn real(&self, domid: u16) -> u16 {
        domid
    }

    /// Whether nobody has used the server before this conversation.
    fn is_fresh(&self) -> bool {
        true
    }

    /// Whether it is this project's server: CONTROL's figures (`memreport`, `stats`) are its own.
    fn is_ours(&self) -> bool {
        true
    }

    /// Whether this server says in the word `error` why it gave a ring up.
    fn has_error_word(&self) -> bool {
        true
    }

    /// How many rounds of a loop are enough.
    fn rounds(&self, written: usize, makes_domains: bool) -> usize {
        let _ = makes_domains;
        written
    }

    /// The conversation is over and all messages have been looked at.
    ///
    /// # Errors
    /// What is wrong with the server now.
    fn end(&mut self) -> Result<(), Stop>;
}

/// What the player knows of one client.
#[derive(Default)]
struct Actor {
    messages: VecDeque<Message>,
    asked: VecDeque<Asked>,
    next_req_id: u32,
}

/// A request without a reply yet.
struct Asked {
    kind: u32,
    req_id: u32,
    tx: u32,
    /// Its reply is only right for a fresh server.
    is_loose: bool,
    /// Any reply is accepted, an error, too: the answer is not the same everywhere.
    is_private: bool,
}

/// Plays a conversation; returns how many replies were not compared.
///
/// # Errors
/// Why it ended early, with the line.
pub fn play(conversation: &Conversation, stage: &mut impl Stage) -> Result<usize, Stop> {
    let lines = unroll(&conversation.lines, |n, makes| stage.rounds(n, makes))?;
    let mut player = Player {
        stage,
        actors: BTreeMap::new(),
        transactions: BTreeMap::new(),
        generations: BTreeMap::new(),
        loose: 0,
        firm: 0,
    };
    player.actors.insert(0, Actor::default());
    for (number, line) in &lines {
        player.line(line).map_err(|stop| match stop {
            Stop::Wrong(what) => Stop::Wrong(format!("line {number}: {line}: {what}")),
            Stop::Lost(what) => Stop::Lost(format!("line {number}: {line}: {what}")),
            skip @ Stop::Skip(_) => skip,
        })?;
    }
    player.end()?;
    if player.firm == 0 && player.loose > 0 {
        return Err(Stop::Skip("nothing in it can be compared here".to_owned()));
    }
    Ok(player.loose)
}

struct Player<'a, S> {
    stage: &'a mut S,
    actors: BTreeMap<u16, Actor>,
    transactions: BTreeMap<String, u32>,
    /// Generations that lines have named.
    generations: BTreeMap<String, Vec<u8>>,
    /// What was not compared, and the messages that were.
    loose: usize,
    firm: usize,
}

impl<S: Stage> Player<'_, S> {
    fn line(&mut self, line: &str) -> Result<(), Stop> {
        let words = line.split_whitespace().collect::<Vec<_>>();
        if let [who, ">" | ">>" | "<", ..] = words[..] {
            let rest = line.get(who.len()..).unwrap_or_default().trim_start();
            return self.talk(who, rest);
        }
        self.world(line, &words)
    }

    fn talk(&mut self, who: &str, rest: &str) -> Result<(), Stop> {
        let (domid, tx) = who.split_once('.').unwrap_or((who, "0"));
        let domid = domid.parse::<u16>().map_err(|error| error.to_string())?;
        if let Some(expected) = rest.strip_prefix("< ") {
            return self.expect(domid, expected.trim());
        }
        let runs = !rest.starts_with(">>");
        let rest = rest.trim_start_matches('>').trim();
        let (request, expected) = match rest.split_once(" => ") {
            Some((request, expected)) => (request, Some(expected.trim())),
            None => (rest, None),
        };
        self.request(domid, tx, request, (expected, runs))?;
        expected.map_or(Ok(()), |expected| self.expect(domid, expected))
    }

    fn request(
        &mut self,
        domid: u16,
        tx: &str,
        request: &str,
        (expected, runs): (Option<&str>, bool),
    ) -> Result<(), Stop> {
        let mut words = request.split_whitespace();
        let number = kind(words.next().ok_or("no type")?)?;
        let known = Kind::from_number(number);
        let written = words.collect::<Vec<_>>();
        let arguments = self.arguments(known, &written)?;
        let id = match self.transactions.get(tx) {
            Some(id) => *id,
            None => tx.parse().map_err(|_| format!("no transaction {tx}"))?,
        };
        let about = Request { domid, kind: known, tx, arguments: &arguments, expected };
        self.stage.before(&about)?;
        let is_loose = !self.stage.is_fresh() && depends_on_freshness(known, &written);
        let is_private = !self.stage.is_ours() && asks_for_figures(known, &written);
        let payload = payload(known, &arguments)?;
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        actor.next_req_id = actor.next_req_id.wrapping_add(1);
        let req_id = actor.next_req_id;
        actor.asked.push_back(Asked { kind: number, req_id, tx: id, is_loose, is_private });
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: number, req_id, tx_id: id, len };
        self.stage.send(domid, &[&header.to_bytes()[..], &payload].concat(), runs)
    }

    /// The arguments with real ids, frames and ports in them.
    fn arguments(&mut self, kind: Option<Kind>, written: &[&str]) -> Result<Vec<String>, Stop> {
        let first = written.first().copied().unwrap_or_default();
        let mut arguments = Vec::new();
        for (index, argument) in written.iter().enumerate() {
            let real = |domid| self.stage.real(domid);
            let at = (index, written.len());
            arguments.push(names::in_argument(kind, at, first, argument, &real));
        }
        for argument in arguments.iter_mut().filter(|argument| argument.contains("%own")) {
            *argument = argument.replace("%own", &self.stage.own_domid()?.to_string());
        }
        if let (Some(Kind::Introduce), Ok(target)) = (kind, first.parse()) {
            self.introduce(target, &mut arguments)?;
        }
        Ok(arguments)
    }

    /// Puts a real frame and port into the arguments of INTRODUCE.
    fn introduce(&mut self, target: u16, arguments: &mut [String]) -> Result<(), Stop> {
        let [_, frame, port, ..] = arguments else { return Ok(()) };
        let place = match port.as_str() {
            "%port" => Some(self.stage.introduction(target)?),
            FIRST_PORT => self.stage.first_introduction(target),
            _ => None,
        };
        if let Some((real_frame, real_port)) = place {
            *port = real_port.to_string();
            // Only oxenstored looks at the frame; a text's 1 stands for the right one.
            if frame == "1" {
                *frame = real_frame.to_string();
            }
        }
        Ok(())
    }

    /// The next message for a domain; where the order is not kept, the next of the wanted sort.
    fn take(&mut self, domid: u16, wants_event: bool) -> Result<Option<Message>, Stop> {
        let any = self.stage.keeps_order(domid);
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        loop {
            let fits = |message: &Message| any || message.is_event() == wants_event;
            if let Some(at) = actor.messages.iter().position(fits) {
                return Ok(actor.messages.remove(at));
            }
            match self.stage.receive(domid, Patience::Long)? {
                Some(message) => actor.messages.push_back(message),
                // What came instead is worth telling.
                None => return Ok(actor.messages.pop_front()),
            }
        }
    }

    /// The next message, which should not be there.
    fn leftover(&mut self, domid: u16) -> Result<Option<Message>, Stop> {
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        match actor.messages.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.stage.receive(domid, Patience::Short),
        }
    }

    fn expect(&mut self, domid: u16, expected: &str) -> Result<(), Stop> {
        if expected == "nothing" {
            return match self.leftover(domid)? {
                None => Ok(()),
                Some(message) => Err(format!("got {}", show(&message)).into()),
            };
        }
        let wants_event = expected.starts_with("event ");
        let message = self.take(domid, wants_event)?.ok_or("got nothing")?;
        let got = show(&message);
        let real = |domid| self.stage.real(domid);
        if message.is_event() {
            let wanted = expected.strip_prefix("event ").ok_or_else(|| format!("got {got}"))?;
            let wanted = strings(&names::in_text(wanted, &real))?;
            let ids = (message.header.req_id, message.header.tx_id);
            self.firm += 1;
            return same(message.payload == wanted && ids == (0, 0), &got);
        }
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        let asked = actor.asked.pop_front().ok_or_else(|| format!("unasked: {got}"))?;
        if (message.header.req_id, message.header.tx_id) != (asked.req_id, asked.tx) {
            return Err(format!("ids not those of the request: {got}").into());
        }
        if asked.is_private {
            self.loose += 1;
            return Ok(());
        }
        self.firm += 1;
        if message.header.kind == Kind::Error.number() {
            let name = [expected.as_bytes(), &[0]].concat();
            return same(message.payload == name, &got);
        }
        if message.header.kind != asked.kind {
            return Err(format!("type not that of the request: {got}").into());
        }
        if let Some(name) = expected.strip_prefix("id ") {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            let id = text.strip_suffix('\0').and_then(|id| id.parse().ok());
            self.transactions.insert(name.to_owned(), id.ok_or_else(|| format!("got {got}"))?);
            return Ok(());
        }
        if asked.is_loose {
            self.loose += 1;
            self.firm -= 1;
            return Ok(());
        }
        let expected = if asked.kind == Kind::GetPerms.number() {
            permissions(expected, &real)
        } else {
            names::in_text(expected, &real)
        };
        if let Some((name, rest, is_same)) = named_part(&expected) {
            let generation = message.payload.split(|byte| *byte == 0).next().unwrap_or_default();
            let known = self.generations.entry(name.to_owned()).or_insert(generation.to_vec());
            let fits = (known == generation) == is_same;
            return same(fits && matches(&format!("part {rest}"), &message.payload)?, &got);
        }
        if let Some(text) = expected.strip_prefix("has ").filter(|_| !self.stage.is_fresh()) {
            // Other servers have other columns.
            let reply = squeeze(&String::from_utf8_lossy(&message.payload));
            return same(reply.contains(&squeeze(text)), &got);
        }
        same(matches(&expected, &message.payload)?, &got)
    }

    fn world(&mut self, line: &str, words: &[&str]) -> Result<(), Stop> {
        let domid = || words.get(1).and_then(|word| word.parse().ok()).ok_or("which domain?");
        match words.first().copied().unwrap_or_default() {
            // The stage has seen them.
            "options" => Ok(()),
            "guest" => {
                let domid = domid()?;
                if !self.stage.guest(domid)? {
                    self.world("", &["domain", words[1]])?;
                    return self.talk("0", &format!("> INTRODUCE {domid} 1 {FIRST_PORT} => OK"));
                }
                self.actors.insert(domid, Actor::default());
                Ok(())
            }
            "domain" | "replace" => {
                self.stage.change(words)?;
                self.actors.insert(domid()?, Actor::default());
                Ok(())
            }
            "destroy" => {
                self.stage.change(words)?;
                self.actors.remove(&domid()?);
                Ok(())
            }
            "send" => {
                let bytes = unescape(words.get(2).copied().unwrap_or_default())?;
                self.stage.send(domid()?, &bytes, true)
            }
            "word" => self.word(words),
            "discard" => self.discard(domid()?, words.get(2).copied().unwrap_or_default()),
            "console" => {
                let wanted = line.strip_prefix("console").unwrap_or_default().trim();
                let wanted = names::in_text(wanted, &|domid| self.stage.real(domid));
                match self.stage.printed(&wanted)? {
                    Some(found) => same(found, "no such line"),
                    None => {
                        self.loose += 1;
                        Ok(())
                    }
                }
            }
            _ => self.stage.change(words),
        }
    }

    /// Leaves out the next messages of a domain as long as they contain a text.
    fn discard(&mut self, domid: u16, text: &str) -> Result<(), Stop> {
        while let Some(message) = self.leftover(domid)? {
            if !show(&message).contains(text) {
                self.actors.get_mut(&domid).ok_or("no such client")?.messages.push_front(message);
                break;
            }
        }
        Ok(())
    }

    /// Looks at a word of a page, or stores one as the domain does.
    fn word(&mut self, words: &[&str]) -> Result<(), Stop> {
        let [_, domid, name, what, value] = words else { return Err("five words".into()) };
        let (Ok(domid), Ok(value)) = (domid.parse(), value.parse::<u32>()) else {
            return Err("domid and value are numbers".into());
        };
        let word = word(name)?;
        if *what == "=" && word == Word::Error && !self.stage.has_error_word() {
            self.loose += 1;
            return Ok(());
        }
        if *what == "=" {
            let got = self.stage.word(domid, word)?;
            self.firm += 1;
            return same(got == value, &got.to_string());
        }
        let is_port = word == Word::EvtchnPort && words[4] == FIRST_PORT;
        let port = self.stage.first_introduction(domid).filter(|_| is_port);
        self.stage.set_word(domid, word, port.map_or(value, |(_, port)| port))
    }

    fn end(&mut self) -> Result<(), Stop> {
        let domids = self.actors.keys().copied().collect::<Vec<_>>();
        for domid in domids {
            if let Some(message) = self.leftover(domid)? {
                return Err(format!("at the end domain {domid} has got {}", show(&message)).into());
            }
        }
        self.stage.end()
    }
}

/// The port that a domain offers from its birth, in a text.
const FIRST_PORT: &str = "10";

/// Whether a reply counts what others have done before.
fn depends_on_freshness(kind: Option<Kind>, words: &[&str]) -> bool {
    match kind {
        Some(Kind::Directory | Kind::DirectoryPart) => {
            matches!(words.first(), Some(&"/" | &"/tool" | &"/tool/xenstored"))
        }
        Some(Kind::Control) => {
            matches!(words, ["memreport" | "stats", ..] | ["quota", "max" | "0", ..])
        }
        _ => false,
    }
}

/// Whether the reply holds figures that each server has in a form of its own.
fn asks_for_figures(kind: Option<Kind>, words: &[&str]) -> bool {
    kind == Some(Kind::Control) && matches!(words, ["memreport" | "stats", ..])
}

/// A text with single blanks only.
fn squeeze(text: &str) -> String {
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The bytes of a request behind its header.
fn payload(kind: Option<Kind>, arguments: &[String]) -> Result<Vec<u8>, Stop> {
    let mut payload = Vec::new();
    if arguments.is_empty() && matches!(kind, Some(Kind::TransactionStart | Kind::ResetWatches)) {
        payload.push(0);
    }
    for (index, argument) in arguments.iter().enumerate() {
        let is_value = kind == Some(Kind::Write) && index == 1;
        if let Some(raw) = argument.strip_prefix("raw:") {
            payload.extend(unescape(raw)?);
        } else {
            payload.extend(unescape(argument)?);
            if !is_value {
                payload.push(0);
            }
        }
    }
    Ok(payload)
}

/// An expected list of permissions with real ids.
fn permissions(expected: &str, real: names::Real<'_>) -> String {
    match expected.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
        Some(list) => {
            let entries = list.split_whitespace().map(|entry| names::in_permission(entry, real));
            format!("[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        None => expected.to_owned(),
    }
}

fn same(is_same: bool, got: &str) -> Result<(), Stop> {
    if is_same { Ok(()) } else { Err(format!("got {got}").into()) }
}
