//! Every allocation refused in turn: each conversation of `tests/transcripts` is played once to count the blocks
//! that the server asks its allocator for. Then it is played again and again, each time with another block
//! refused.
//!
//! A refusal may do one of two things. A request is answered with ENOMEM, and everything is as before it; if it
//! was one of several that came at once, everything is as if it alone had not been sent. Or everything is as if
//! nothing had been refused, except that an event was dropped. In both cases the server's accounts balance, it
//! answers, and in the end it gives everything back.
//!
//! `REFUSALS=all cargo test --release --test refusals` refuses every block. Otherwise some of each conversation
//! are refused.

use core::fmt::Write as _;
use core::hash::{Hash, Hasher};
use std::hash::DefaultHasher;
use std::path::Path;
use xen_kernel_rt::memory::bounded::Bounded;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::stream::{DepthLayout, Endpoint, Reader, Record, Version};
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::sim::host::Host;
use xenstore_stubdom::sim::stage::Stage;
use xenstore_stubdom::sim::{Memory, swarm};
use xenstore_stubdom::transcript::{self, Conversation, Message, Patience, Stop};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// How many blocks of each conversation are refused, unless all are.
const SOME: u64 = 12;

/// Pages of the server's domain: enough for every conversation.
const PAGES: (usize, usize) = (4096, 15_800);

/// The words with which the watcher below ends a conversation.
const SEEN_ENOUGH: &str = "a block was refused, and what came of it is right";

/// What others see of the server at a moment.
struct Picture {
    /// A hash of the store, the connections, and their watches and transactions, but not of the bytes under way.
    hash: u64,
    /// A refusal waits to be read.
    refuses: bool,
}

fn picture(stage: &mut Stage) -> Picture {
    let mut stream = Vec::new();
    stage.simulation().server.dump(Version::Two, DepthLayout::Document, &mut stream).unwrap();
    let (mut hasher, mut refuses) = (DefaultHasher::new(), false);
    for record in Reader::new(&stream).unwrap() {
        let mut record = record.unwrap();
        if let Record::Connection(connection) = &mut record {
            let output = core::mem::take(&mut connection.output);
            refuses |= has_refusal(output);
            (connection.input, connection.partial) = (&[], 0);
            // A request that was refused may have had a port for a while, so the next one has another number.
            if let Endpoint::Ring { port, .. } = &mut connection.endpoint {
                port.0 = port.0.min(1);
            }
        }
        format!("{record:?}").hash(&mut hasher);
    }
    Picture { hash: hasher.finish(), refuses }
}

fn has_refusal(bytes: &[u8]) -> bool {
    bytes.windows(REFUSAL.len()).any(|part| part == REFUSAL)
}

/// The payload of a reply that refuses a request for want of memory.
const REFUSAL: &[u8] = b"ENOMEM\0";

/// A stage that looks at the store after each step.
struct Watched<'a> {
    stage: Stage,
    memory: Memory,
    /// What the store was after each step when nothing was refused; the first is before all of them.
    pictures: &'a mut Vec<u64>,
    /// The steps so far, if something is to be refused; otherwise they are noted down.
    step: Option<usize>,
    /// What is played, for what is compared with a part of it.
    conversation: &'a Conversation,
    /// This request is not sent, and what comes after this step does not matter.
    omitted: Option<(Asked, usize)>,
}

/// A request: who has sent it, and its number.
type Asked = (u16, u32);

impl Watched<'_> {
    /// After a step. `asker` has sent a request in it.
    fn look(&mut self, asker: Option<u16>, result: Result<(), Stop>) -> Result<(), Stop> {
        let Some(step) = &mut self.step else {
            let picture = picture(&mut self.stage);
            self.pictures.push(picture.hash);
            if self.omitted.is_some_and(|(_, last)| self.pictures.len() > last) {
                return Err(Stop::Skip(SEEN_ENOUGH.into()));
            }
            return result;
        };
        *step += 1;
        let step = *step;
        if self.memory.figures().refused == 0 {
            return result;
        }
        self.memory.fail_nth(0);
        self.stage.simulation().check().map_err(|what| format!("the books: {what}"))?;
        let is_refusal = |message: &Message| {
            message.header.kind == Kind::Error.number() && message.payload == REFUSAL
        };
        let now = picture(&mut self.stage);
        let refused = self.stage.all_waiting().find(|(_, message)| is_refusal(message));
        let refused = refused.map(|(domid, message)| (domid, message.header.req_id));
        let was_refused = match &result {
            Err(Stop::Wrong(what)) if what.contains("memory") => true,
            Err(_) => return result,
            Ok(()) => refused.is_some() || now.refuses,
        };
        let place = if was_refused { step - 1 } else { step };
        let is_right = self.pictures.get(place) == Some(&now.hash)
            // A client that does not read has the refusal, perhaps an earlier one, still in its ring.
            || self.stage.unread().any(|bytes| has_refusal(&bytes))
                && self.pictures.get(step - 1) == Some(&now.hash)
            // Others may have been served in the same step.
            || refused.is_some_and(|request| {
                Some(request.0) != asker
                    && without(self.conversation, request, step) == Some(now.hash)
            });
        if is_right {
            return Err(Stop::Skip(SEEN_ENOUGH.into()));
        }
        let how =
            if was_refused { "was refused and has changed something" } else { "is not whole" };
        Err(format!("a step {how}").into())
    }
}

impl transcript::Stage for Watched<'_> {
    fn send(&mut self, domid: u16, bytes: &[u8], runs: bool) -> Result<(), Stop> {
        let request = bytes.first_chunk().map(|header| (domid, Header::from_bytes(header).req_id));
        let is_omitted = self.omitted.is_some_and(|(omitted, _)| request == Some(omitted));
        let result = if is_omitted { Ok(()) } else { self.stage.send(domid, bytes, runs) };
        self.look(Some(domid).filter(|_| runs), result)
    }

    fn receive(&mut self, domid: u16, patience: Patience) -> Result<Option<Message>, Stop> {
        self.stage.receive(domid, patience)
    }

    fn word(&mut self, domid: u16, word: Word) -> Result<u32, Stop> {
        self.stage.word(domid, word)
    }

    fn set_word(&mut self, domid: u16, word: Word, value: u32) -> Result<(), Stop> {
        self.stage.set_word(domid, word, value)
    }

    fn introduction(&mut self, domid: u16) -> Result<(u64, u32), Stop> {
        self.stage.introduction(domid)
    }

    fn own_domid(&mut self) -> Result<u16, Stop> {
        self.stage.own_domid()
    }

    fn change(&mut self, words: &[&str]) -> Result<(), Stop> {
        let result = self.stage.change(words);
        self.look(None, result)
    }

    fn printed(&mut self, text: &str) -> Result<Option<bool>, Stop> {
        self.stage.printed(text)
    }

    fn end(&mut self) -> Result<(), Stop> {
        Ok(self.stage.simulation().check()?)
    }
}

/// Plays a conversation with the `n`-th block refused, or none. Says how many blocks were asked for, and whether the
/// refusal came.
fn play(
    conversation: &Conversation,
    pictures: &mut Vec<u64>,
    n: u64,
) -> Result<(u64, bool), String> {
    let memory = Memory::new(PAGES.0, PAGES.1);
    let mut stage = Stage::bounded(conversation.options(), memory.clone());
    let before = memory.figures().asked;
    let step = (n > 0).then_some(0);
    if n == 0 {
        pictures.push(picture(&mut stage).hash);
    }
    memory.fail_nth(n);
    let memory_of = memory.clone();
    let mut watched =
        Watched { stage, memory: memory_of, pictures, step, conversation, omitted: None };
    let result = transcript::play(conversation, &mut watched);
    memory.fail_nth(0);
    let asked = memory.figures().asked - before;
    let came = memory.figures().refused > 0;
    match result {
        Ok(_) => {}
        Err(Stop::Skip(why)) if why == SEEN_ENOUGH => {}
        Err(stop) => return Err(format!("{stop:?}")),
    }
    watched.stage.simulation().check().map_err(|what| format!("at the end: {what}"))?;
    drop(watched.stage.simulation().world.take_console());
    watched.stage.leave()?;
    Ok((asked, came))
}

/// What everything is after a step when one request was not sent, and nothing is refused; `None` if it does not come to
/// that step.
fn without(conversation: &Conversation, request: Asked, step: usize) -> Option<u64> {
    let memory = Memory::new(PAGES.0, PAGES.1);
    let mut stage = Stage::bounded(conversation.options(), memory.clone());
    let mut pictures = vec![picture(&mut stage).hash];
    let omitted = Some((request, step));
    let pictures_of = &mut pictures;
    let mut watched =
        Watched { stage, memory, pictures: pictures_of, step: None, conversation, omitted };
    let _ended_early = transcript::play(conversation, &mut watched);
    pictures.get(step).copied()
}

/// All conversations, each with its file.
fn conversations() -> Vec<(String, Conversation)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect::<Vec<_>>();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let of_file = transcript::conversations(&text).unwrap();
        all.extend(of_file.into_iter().map(|conversation| (name.clone(), conversation)));
    }
    all
}

#[test]
fn every_allocation_may_be_refused() {
    let wanted = std::env::var("REFUSALS").unwrap_or_default();
    let mut failures = String::new();
    let (mut played, mut refused) = (0_u64, 0_u64);
    for (file, conversation) in conversations() {
        let title = &conversation.title;
        if !wanted.is_empty() && wanted != "all" && !title.contains(&wanted) {
            continue;
        }
        let mut pictures = Vec::new();
        let (blocks, _) = match play(&conversation, &mut pictures, 0) {
            Ok(counts) => counts,
            Err(what) => {
                let _ = writeln!(failures, "{file}: {title}: with all its memory: {what}");
                continue;
            }
        };
        let stride = if wanted.is_empty() { blocks.div_ceil(SOME).max(1) } else { 1 };
        // Each conversation begins at another one.
        let first = 1 + title.len() as u64 % stride;
        for n in (first..=blocks).step_by(usize::try_from(stride).unwrap()) {
            if !wanted.is_empty() {
                println!("{file}: {title}: block {n} of {blocks}");
            }
            played += 1;
            match play(&conversation, &mut pictures, n) {
                Ok((_, came)) => refused += u64::from(came),
                Err(what) => {
                    let _ = writeln!(failures, "{file}: {title}: block {n} of {blocks}: {what}");
                }
            }
        }
    }
    println!("{played} runs, in {refused} of them a block was refused");
    assert!(refused * 10 > played * 9, "only {refused} refusals in {played} runs");
    assert!(failures.is_empty(), "\n{failures}");
}

/// Judged seeds, with some blocks of each refused; more of them: `scripts/sim --refuse 0 --seeds 10000`.
#[test]
fn swarms_hold_when_a_block_is_refused() {
    let mut refused = 0;
    for seed in (0..60).filter(|seed| !swarm::is_hungry(*seed)) {
        let blocks = swarm::count_blocks(seed).unwrap_or_else(|failure| panic!("\n{failure}"));
        for n in [1 + seed % 7, blocks / 3, blocks * 2 / 3].into_iter().filter(|n| *n > 0) {
            match swarm::refuse(seed, n) {
                Ok(came) => refused += u32::from(came),
                Err(failure) => panic!("\n{failure}"),
            }
        }
    }
    assert!(refused > 100, "only {refused} refusals came");
}

/// A live update either succeeds or says that memory is what lacks, whichever block is refused: the successor's first as
/// well as the last of what it restores. Then the old server goes on.
#[test]
fn every_block_of_a_live_update_may_be_refused() {
    let memory = Memory::new(PAGES.0, PAGES.1);
    let mut host = Host::start_bounded("", memory.clone());
    let mut guest = host.guest(7, 3).unwrap();
    for (kind, payload) in [
        (Kind::Write, "data/long\0a value that is too long for its node, so it has a block"),
        (Kind::SetPerms, "data/long\0n7\0r0\0b9\0"),
        (Kind::Watch, "data/watched/below\0token\0"),
    ] {
        host.ask_as(&mut guest, 0, kind, payload).unwrap();
    }
    let tx = host.begin_as(&mut guest).unwrap();
    for (kind, payload) in [
        (Kind::Write, "data/made/below\0another value that is too long for its node"),
        (Kind::SetPerms, "data/long\0n7\0w0\0"),
        (Kind::Rm, "data/long\0"),
    ] {
        host.ask_as(&mut guest, tx, kind, payload).unwrap();
    }
    let (mut failed, mut n) = (0_u64, 1);
    loop {
        memory.fail_nth(n);
        let result = host.simulation.hand_over();
        let is_over = memory.is_failure_pending();
        memory.fail_nth(0);
        if let Err(why) = &result {
            assert!(why.contains("memory"), "block {n}: {why}");
            failed += 1;
        }
        host.simulation.check().unwrap_or_else(|what| panic!("block {n}: {what}"));
        if is_over {
            assert_eq!(result, Ok(()));
            break;
        }
        n += 1;
    }
    assert!(failed > 20, "{failed} of {n}");
    assert_eq!(host.ask_as(&mut guest, tx, Kind::TransactionEnd, "T\0"), Ok(b"OK\0".to_vec()));
    drop(guest);
    host.end().unwrap();
}
