//! The role `transcript`: conversations of the module that one guest can play alone.

use crate::client::Client;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::transcript::{self, Message, Patience, Stage, Stop};

/// How long a server may take for an answer.
const LONG_MS: u64 = 5000;

/// How long after the last message it is certain that no more comes.
const SHORT_MS: u64 = 150;

/// The guest as all there is.
struct Alone<'a> {
    client: &'a mut Client,
    /// The real id.
    domid: u16,
    /// What the text calls this domain.
    name: Option<u16>,
    bytes: Vec<u8>,
    messages: VecDeque<Message>,
    reads: bool,
}

/// Plays what is in the module; the counts for the verdict.
pub(crate) fn play_module(client: &mut Client) -> Result<String, String> {
    let text = client.machine.module(0).ok_or("no module (ramdisk=)")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let domid = client.machine.own_domid().ok_or("Xen does not tell the domid")?.0;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for conversation in transcript::conversations(&text)? {
        let mut alone = Alone {
            client: &mut *client,
            domid,
            name: None,
            bytes: Vec::new(),
            messages: VecDeque::new(),
            reads: true,
        };
        let result = match conversation.options() {
            // What costs the connection would cost it for all conversations after it.
            "" if conversation.lines().any(|line| line.starts_with("send ")) => {
                Err(Stop::Skip(String::from("it costs the connection")))
            }
            "" => transcript::play(&conversation, &mut alone),
            _ => Err(Stop::Skip(String::from("its limits are not the usual ones"))),
        };
        let title = &conversation.title;
        match result {
            Ok(_) => {
                passed += 1;
                client.say(format_args!("ok: {title}"));
            }
            Err(Stop::Skip(why)) => {
                skipped += 1;
                client.say(format_args!("skip: {title}: {why}"));
            }
            Err(Stop::Wrong(what) | Stop::Lost(what)) => {
                failed += 1;
                client.say(format_args!("FAIL: {title}: {what}"));
            }
        }
        tidy(client)?;
    }
    let counts = format!(" ({passed} passed, {skipped} skipped)");
    if failed == 0 { Ok(counts) } else { Err(format!("{failed} failed{counts}")) }
}

/// No watch, transaction or message of a conversation is left for the next.
fn tidy(client: &mut Client) -> Result<(), String> {
    client.call_skipping_events(Kind::ResetWatches.number(), b"\0").map(drop)
}

impl Alone<'_> {
    /// That this is the guest itself.
    fn own(&self, domid: u16) -> Result<(), Stop> {
        if self.name == Some(domid) {
            Ok(())
        } else {
            Err(Stop::Skip(format!("domain {domid} takes part")))
        }
    }

    /// Takes off the ring what is there.
    fn pull(&mut self) -> usize {
        if !self.reads {
            return 0;
        }
        let got = self.client.pull(&mut self.bytes);
        self.messages.extend(core::iter::from_fn(|| Message::take(&mut self.bytes)));
        got
    }
}

impl Stage for Alone<'_> {
    fn send(&mut self, domid: u16, bytes: &[u8], _runs: bool) -> Result<(), Stop> {
        self.own(domid)?;
        let mut rest = bytes;
        let deadline = self.client.machine.now_ms() + LONG_MS;
        loop {
            while self.client.machine.next_port().is_some() {}
            let sent = self.client.push(rest);
            rest = rest.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            if self.client.machine.now_ms() >= deadline {
                return Err(format!("the server does not read: {} bytes left", rest.len()).into());
            }
            if self.pull() == 0 {
                self.client.machine.wait(Some(deadline));
            }
        }
    }

    fn receive(&mut self, domid: u16, patience: Patience) -> Result<Option<Message>, Stop> {
        if self.name != Some(domid) {
            return Ok(None);
        }
        let ms = if patience == Patience::Long { LONG_MS } else { SHORT_MS };
        let deadline = self.client.machine.now_ms() + ms;
        loop {
            while self.client.machine.next_port().is_some() {}
            self.pull();
            if let Some(message) = self.messages.pop_front() {
                return Ok(Some(message));
            }
            if self.client.machine.now_ms() >= deadline {
                return Ok(None);
            }
            self.client.machine.wait(Some(deadline));
        }
    }

    fn word(&mut self, domid: u16, word: Word) -> Result<u32, Stop> {
        self.own(domid)?;
        if matches!(word, Word::ReqCons | Word::ReqProd | Word::RspCons | Word::RspProd) {
            return Err(Stop::Skip(String::from("the ring has been used before")));
        }
        Ok(self.client.word(word))
    }

    fn set_word(&mut self, _: u16, _: Word, _: u32) -> Result<(), Stop> {
        Err(Stop::Skip(String::from("the ring would be lost for the rest")))
    }

    fn introduction(&mut self, _: u16) -> Result<(u64, u32), Stop> {
        Err(Stop::Skip(String::from("it takes domain 0")))
    }

    fn own_domid(&mut self) -> Result<u16, Stop> {
        Err(Stop::Skip(String::from("a guest does not know the server's domain")))
    }

    fn guest(&mut self, domid: u16) -> Result<bool, Stop> {
        if self.name.is_some_and(|name| name != domid) {
            return Err(Stop::Skip(String::from("more than one guest takes part")));
        }
        self.name = Some(domid);
        Ok(true)
    }

    fn change(&mut self, words: &[&str]) -> Result<(), Stop> {
        match words {
            ["unread", _] => self.reads = false,
            ["read", _] => self.reads = true,
            ["go"] => {}
            ["signal", _] => self.client.signal(),
            ["sleep", ms] => self.client.sleep(ms.parse().unwrap_or_default()),
            _ => {
                return Err(Stop::Skip(format!("a guest cannot do \"{}\"", words.join(" "))));
            }
        }
        Ok(())
    }

    fn printed(&mut self, _: &str) -> Result<Option<bool>, Stop> {
        Ok(None)
    }

    fn real(&self, domid: u16) -> u16 {
        if self.name == Some(domid) { self.domid } else { domid }
    }

    fn is_fresh(&self) -> bool {
        false
    }

    fn end(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}
