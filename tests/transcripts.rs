//! Plays the conversations of `tests/transcripts/*.txt` against the server through simulated rings: once as the
//! client writes them, and again cut at arbitrary bytes.
//!
//! # The files
//! A file holds conversations, each against a fresh server. `#` starts a comment line. Domain 0 is privileged
//! and connected; it and every other client reads its ring whenever the server signals, unless told otherwise.
//!
//! ```text
//! == title                   a conversation begins
//! options -E 20              (first line, if at all) what else the command line says
//! guest 7                    domain 7 is created by Xen and introduced by domain 0
//! domain 8                   domain 8 is created by Xen, no more
//!
//! 7 > READ name              domain 7 sends a request
//! 7 < "guest"                and the next message that it gets is this reply
//! 7 > READ name => "guest"   both in one line
//! 7.t > WRITE a x            the same in transaction t; a number is that very id
//! 7 < nothing                no message has come
//! 7 >> READ a                the request is in the ring, but the server has not run yet
//! go                         now it runs
//! ```
//!
//! Arguments are words, each sent with a NUL behind it, except the last of WRITE. In a word, `\s` is a blank,
//! `\0` a NUL, `\xHH` a byte, `\\` a backslash and `{ab*3}` is `ababab`; `''` is the empty word; `raw:x` is x
//! without a NUL. The type is a name of `docs/misc/xenstore.txt` or a number. `%port` in INTRODUCE stands for a
//! port that the domain offers, `%own` for the domid of the server's own domain.
//!
//! Messages: `OK`; an error's name; `"raw bytes"`; `[strings each with a NUL]`; `id t` (a number, from now on
//! called t); `any`; `part a b ''` (an answer to DIRECTORY_PART: a number, then these strings); `has text` (a reply that contains it); `event path token`; `nothing`. When a conversation
//! ends, no message may be left over, and the server's own check must be clean.
//!
//! The world: `shutdown 7`, `unshutdown 7`, `destroy 7`, `replace 7` (destroyed and created in one notification),
//! `revoke 7` and `grant 7` (grant entry 1), `sleep MS`, `word 7 NAME = N` (must be), `word 7 NAME := N` (the
//! domain writes it), `signal 7`, `rename 7` (another handle), `ran 7 NS` (it has run so long), `send 7 BYTES` (into its ring, whatever they are), `firmware 7` (the rings
//! filled, the indices zeroed), `unread 7` and `read 7` (stops and starts reading), `memory BYTES` (left in the
//! server's heap), `mute-xen` (Xen tells nothing about domains), `discard 7 TEXT` (leaves out the next messages as long as they contain it), `old-xen` (Xen tells no changes and no unique ids), `console TEXT` (some line since the last such line
//! says so), `loop N` ... `end` (the lines between, N times, `%i` being the round).

extern crate alloc;

use alloc::collections::{BTreeMap, VecDeque};
use core::fmt::Write as _;
use std::path::Path;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::{Client, Message, Simulation};

/// How bytes travel.
#[derive(Clone, Copy)]
enum Delivery {
    /// As much as fits at once.
    Whole,
    /// In pieces that depend on this number.
    Cut(u64),
}

#[test]
fn transcripts_hold() {
    play_all(Delivery::Whole);
}

#[test]
fn transcripts_hold_when_cut_at_arbitrary_bytes() {
    for seed in 1..=5 {
        play_all(Delivery::Cut(seed));
    }
}

fn play_all(delivery: Delivery) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect::<Vec<_>>();
    files.sort();
    assert!(!files.is_empty());
    let mut failures = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for conversation in conversations(&text) {
            if let Err(what) = play(&conversation, delivery) {
                let _ = writeln!(failures, "{name}: {}: {what}", conversation.title);
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

struct Conversation {
    title: String,
    /// Line numbers and lines.
    lines: Vec<(usize, String)>,
}

fn conversations(text: &str) -> Vec<Conversation> {
    let mut all: Vec<Conversation> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(title) = line.strip_prefix("== ") {
            all.push(Conversation { title: title.to_owned(), lines: Vec::new() });
        } else if !line.is_empty() && !line.starts_with('#') {
            let current = all.last_mut().expect("a conversation starts with ==");
            current.lines.push((index + 1, line.to_owned()));
        }
    }
    all
}

type Outcome = Result<(), String>;

fn play(conversation: &Conversation, delivery: Delivery) -> Outcome {
    let lines = unroll(&conversation.lines);
    let options =
        lines.first().and_then(|(_, line)| line.strip_prefix("options ")).unwrap_or("").to_owned();
    let mut stage = Stage::new(&options, delivery);
    for (number, line) in &lines {
        stage.line(line).map_err(|what| format!("line {number}: {line}\n    {what}"))?;
    }
    stage.end()
}

/// Replaces loops by their rounds.
fn unroll(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut rest = lines;
    while let Some(((number, line), tail)) = rest.split_first() {
        rest = tail;
        let Some(rounds) = line.strip_prefix("loop ") else {
            out.push((*number, line.clone()));
            continue;
        };
        let length = rest.iter().position(|(_, line)| line == "end").expect("a loop ends");
        for round in 0..rounds.parse().expect("a number of rounds") {
            let round: usize = round;
            let body = rest[..length].iter();
            out.extend(body.map(|(n, line)| (*n, line.replace("%i", &round.to_string()))));
        }
        rest = &rest[length + 1..];
    }
    out
}

/// One client with what it has been told.
struct Actor {
    client: Client,
    messages: VecDeque<Message>,
    reads: bool,
    /// Signals from the server that it has acted upon: without a new one it does not look at its ring.
    signals: u64,
    /// It has not seen its ring empty since.
    is_awake: bool,
    /// Type and id of requests without a reply yet.
    asked: VecDeque<(u32, u32, u32)>,
}

struct Stage {
    simulation: Simulation,
    actors: BTreeMap<u16, Actor>,
    transactions: BTreeMap<String, u32>,
    delivery: Delivery,
    random: u64,
    console: Vec<String>,
}

impl Stage {
    fn new(options: &str, delivery: Delivery) -> Self {
        let (simulation, client) = Simulation::start(options);
        let random = match delivery {
            Delivery::Whole => 1,
            Delivery::Cut(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        let mut stage = Self {
            simulation,
            actors: BTreeMap::new(),
            transactions: BTreeMap::new(),
            delivery,
            random,
            console: Vec::new(),
        };
        stage.enter(0, client);
        stage
    }

    fn enter(&mut self, domid: u16, client: Client) {
        let actor = Actor {
            client,
            messages: VecDeque::new(),
            reads: true,
            signals: 0,
            is_awake: true,
            asked: VecDeque::new(),
        };
        self.actors.insert(domid, actor);
    }

    /// A piece's length, from 1 on.
    fn piece(&mut self) -> usize {
        match self.delivery {
            Delivery::Whole => usize::MAX,
            Delivery::Cut(_) => {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                1 + usize::try_from(self.random % 37).unwrap()
            }
        }
    }

    fn line(&mut self, line: &str) -> Outcome {
        let words = line.split_whitespace().collect::<Vec<_>>();
        if let [who, ">" | ">>" | "<", ..] = words[..] {
            let rest = line[who.len()..].trim_start();
            return self.talk(who, rest);
        }
        self.world(line, &words)
    }

    fn talk(&mut self, who: &str, rest: &str) -> Outcome {
        let (domid, tx) = who.split_once('.').unwrap_or((who, "0"));
        let domid = domid.parse::<u16>().map_err(|error| error.to_string())?;
        let tx = match self.transactions.get(tx) {
            Some(id) => *id,
            None => tx.parse().map_err(|_| format!("no transaction {tx}"))?,
        };
        if let Some(expected) = rest.strip_prefix("< ") {
            return self.expect(domid, expected.trim());
        }
        let runs = !rest.starts_with(">>");
        let rest = rest.trim_start_matches('>').trim();
        let (request, expected) = match rest.split_once(" => ") {
            Some((request, expected)) => (request, Some(expected)),
            None => (rest, None),
        };
        self.request(domid, tx, request, runs)?;
        expected.map_or(Ok(()), |expected| self.expect(domid, expected.trim()))
    }

    fn request(&mut self, domid: u16, tx: u32, request: &str, runs: bool) -> Outcome {
        let mut words = request.split_whitespace();
        let name = words.next().ok_or("no type")?;
        let kind = kind(name)?;
        let mut arguments = words.map(str::to_owned).collect::<Vec<_>>();
        if let (Some(target), Some(port)) = (
            arguments.first().and_then(|argument| argument.parse().ok()),
            arguments.iter().position(|argument| argument == "%port"),
        ) {
            arguments[port] = self.simulation.world.offer(DomId(target)).to_string();
        }
        let own_domid = self.simulation.world.own_domid().to_string();
        for argument in &mut arguments {
            *argument = argument.replace("%own", &own_domid);
        }
        let mut payload = Vec::new();
        for (index, argument) in arguments.iter().enumerate() {
            let is_value = kind == Kind::Write.number() && index == 1;
            match argument.strip_prefix("raw:") {
                Some(raw) => payload.extend(unescape(raw)?),
                None => {
                    payload.extend(unescape(argument)?);
                    if !is_value {
                        payload.push(0);
                    }
                }
            }
        }
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        let (bytes, req_id) = actor.client.request(kind, tx, &payload);
        actor.asked.push_back((kind, req_id, tx));
        self.write(domid, &bytes, runs)
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
                self.simulation.settle();
            }
            let was_taken = actor.client.page().word(Word::ReqCons) != before;
            if was_taken && signals == self.simulation.world.signals(DomId(domid)) {
                return Err("a client that waits for room was not signalled".to_owned());
            }
            if written == 0 {
                if !runs {
                    return Err("the ring is full".to_owned());
                }
                self.read_all();
                stuck += 1;
                if stuck > 3 {
                    return Err(format!("the server does not read: {} bytes left", rest.len()));
                }
            }
        }
        if runs {
            self.run();
        }
        Ok(())
    }

    fn run(&mut self) {
        self.simulation.settle();
        self.read_all();
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
                actor.messages.extend(core::iter::from_fn(|| actor.client.next_message()));
            }
            self.simulation.settle();
            if any == 0 {
                break;
            }
        }
    }

    fn expect(&mut self, domid: u16, expected: &str) -> Outcome {
        let actor = self.actors.get_mut(&domid).ok_or("no such client")?;
        let message = actor.messages.pop_front();
        if expected == "nothing" {
            return match message {
                None => Ok(()),
                Some(message) => Err(format!("got {}", show(&message))),
            };
        }
        let message = message.ok_or("got nothing")?;
        let got = show(&message);
        if message.header.kind == Kind::WatchEvent.number() {
            let wanted = expected.strip_prefix("event ").ok_or(format!("got {got}"))?;
            let wanted = strings(wanted)?;
            let ids = (message.header.req_id, message.header.tx_id);
            return same(message.payload == wanted && ids == (0, 0), &got);
        }
        let (kind, req_id, tx) = actor.asked.pop_front().ok_or(format!("unasked: {got}"))?;
        if (message.header.req_id, message.header.tx_id) != (req_id, tx) {
            return Err(format!("ids not those of the request: {got}"));
        }
        let is_error = message.header.kind == Kind::Error.number();
        if is_error {
            let name = [expected.as_bytes(), &[0]].concat();
            return same(message.payload == name, &got);
        }
        if message.header.kind != kind {
            return Err(format!("type not that of the request: {got}"));
        }
        if let Some(name) = expected.strip_prefix("id ") {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            let id = text.strip_suffix('\0').and_then(|id| id.parse().ok());
            let id = id.ok_or(format!("no number: {got}"))?;
            self.transactions.insert(name.to_owned(), id);
            return Ok(());
        }
        same(matches(expected, &message.payload)?, &got)
    }

    fn world(&mut self, line: &str, words: &[&str]) -> Outcome {
        let world = self.simulation.world.clone();
        let number = |index: usize| -> Result<u64, String> {
            let word = words.get(index).ok_or("an argument is missing")?;
            word.parse().map_err(|_| format!("{word} is no number"))
        };
        let domid = |index| number(index).map(|n| u16::try_from(n).unwrap_or(u16::MAX));
        match words[0] {
            "options" => {}
            "domain" => {
                world.create(DomId(domid(1)?));
                let client = self.simulation.client(DomId(domid(1)?));
                self.enter(domid(1)?, client);
            }
            "guest" => {
                self.world("", &["domain", words[1]])?;
                self.talk("0", &format!("> INTRODUCE {} 1 10 => OK", words[1]))?;
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
                self.world("", &["domain", words[1]])?;
            }
            "revoke" => world.set_granted(DomId(domid(1)?), false),
            "grant" => world.set_granted(DomId(domid(1)?), true),
            "sleep" => self.simulation.sleep(number(1)?),
            "memory" => world.set_heap_free(usize::try_from(number(1)?).unwrap()),
            "old-xen" => world.set_tells_changes(false),
            "mute-xen" => world.set_tells_states(false),
            "rename" => world.set_handle(DomId(domid(1)?), [0xaa; 16]),
            "ran" => world.set_cpu_time(DomId(domid(1)?), number(2)?),
            "signal" => world.signal(DomId(domid(1)?)),
            "firmware" => {
                world.page(DomId(domid(1)?)).firmware_reset();
                return Ok(());
            }
            "send" => return self.write(domid(1)?, &unescape(words[2])?, true),
            "read" | "unread" => {
                let actor = self.actors.get_mut(&domid(1)?).ok_or("no such client")?;
                actor.reads = words[0] == "read";
                actor.is_awake |= actor.reads;
            }
            "word" => return self.word(words),
            "discard" => {
                let actor = self.actors.get_mut(&domid(1)?).ok_or("no such client")?;
                while actor.messages.front().is_some_and(|m| show(m).contains(words[2])) {
                    actor.messages.pop_front();
                }
            }
            "console" => {
                self.console.extend(world.take_console());
                let wanted = line["console".len()..].trim();
                let found = self.console.iter().any(|line| line.contains(wanted));
                let got = core::mem::take(&mut self.console).join("\n    ");
                return same(found, &got);
            }
            "go" => {}
            _ => return Err("what?".to_owned()),
        }
        self.run();
        Ok(())
    }

    /// Looks at a word of a page, or stores one as the domain does.
    fn word(&mut self, words: &[&str]) -> Outcome {
        let [_, domid, name, what, value] = words else { return Err("five words".to_owned()) };
        let (Ok(domid), Ok(value)) = (domid.parse(), value.parse::<u32>()) else {
            return Err("domid and value are numbers".to_owned());
        };
        let page = self.simulation.world.page(DomId(domid));
        let word = word(name)?;
        if *what == "=" {
            let got = page.word(word);
            return same(got == value, &got.to_string());
        }
        page.set_word(word, value);
        Ok(())
    }

    fn end(&mut self) -> Outcome {
        self.run();
        for (domid, actor) in &self.actors {
            if let Some(message) = actor.messages.front() {
                return Err(format!("at the end domain {domid} has got {}", show(message)));
            }
            if actor.reads && actor.client.is_amid_message() {
                return Err(format!("at the end domain {domid} has got a part of a message"));
            }
        }
        self.simulation.check()
    }
}

fn same(is_same: bool, got: &str) -> Outcome {
    if is_same { Ok(()) } else { Err(format!("got {got}")) }
}

fn show(message: &Message) -> String {
    let payload = message.payload.iter().take(200).copied().collect::<Vec<_>>();
    let kind = Kind::from_number(message.header.kind);
    format!("{kind:?} {} bytes: {}", message.payload.len(), payload.escape_ascii())
}

/// Whether a reply's payload is the expected one.
fn matches(expected: &str, payload: &[u8]) -> Result<bool, String> {
    if expected == "any" {
        return Ok(true);
    }
    if expected == "OK" {
        return Ok(payload == b"OK\0");
    }
    if let Some(text) = expected.strip_prefix("part ") {
        let generation = payload.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let rest = payload[generation..].strip_prefix(&[0]);
        return Ok(generation > 0 && rest == Some(&strings(text)?[..]));
    }
    if let Some(text) = expected.strip_prefix("has ") {
        return Ok(String::from_utf8_lossy(payload).contains(text));
    }
    if let Some(text) = expected.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Ok(payload == unescape(text)?);
    }
    if let Some(text) = expected.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok(payload == strings(text)?);
    }
    Ok(false)
}

/// Words, each with a NUL behind it.
fn strings(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        bytes.extend(unescape(word)?);
        bytes.push(0);
    }
    Ok(bytes)
}

fn unescape(word: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    if word == "''" {
        return Ok(out);
    }
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        if let Some((inner, tail)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            let (unit, count) = inner.rsplit_once('*').ok_or("{text*count}")?;
            let count = count.parse().map_err(|_| "{text*count}")?;
            out.extend(unescape(unit)?.repeat(count));
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("\\x") {
            let digits = tail.get(..2).ok_or("\\xHH")?;
            out.push(u8::from_str_radix(digits, 16).map_err(|_| "\\xHH")?);
            rest = &tail[2..];
        } else if first == '\\' {
            out.push(match rest.as_bytes().get(1) {
                Some(b's') => b' ',
                Some(b'0') => 0,
                Some(b'\\') => b'\\',
                _ => return Err(format!("what is {rest}?")),
            });
            rest = &rest[2..];
        } else {
            out.extend_from_slice(first.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(out)
}

fn kind(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    // `GET_DOMAIN_PATH` is the variant GetDomainPath.
    let found = Kind::ALL.into_iter().find(|kind| {
        let variant = format!("{kind:?}").to_uppercase();
        variant == name.replace('_', "")
    });
    found.map(Kind::number).ok_or(format!("{name} is no type"))
}

fn word(name: &str) -> Result<Word, String> {
    Ok(match name {
        "req_cons" => Word::ReqCons,
        "req_prod" => Word::ReqProd,
        "rsp_cons" => Word::RspCons,
        "rsp_prod" => Word::RspProd,
        "server_features" => Word::ServerFeatures,
        "connection" => Word::Connection,
        "error" => Word::Error,
        "evtchn_port" => Word::EvtchnPort,
        _ => return Err(format!("{name} is no word")),
    })
}
