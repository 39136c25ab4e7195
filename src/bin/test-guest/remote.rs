//! The role `remote`: the guest's ring, driven by lines on its console.
//!
//! | line | what happens | answer |
//! |---|---|---|
//! | `send HEX` | these bytes go into the request ring, as soon as there is room | |
//! | `read 0`, `read 1` | from now on the response ring is left alone, or emptied at every signal | |
//! | `get OFFSET` | | `@word VALUE` |
//! | `set OFFSET VALUE` | stores a word, without a signal | `@done` |
//! | `settle` | waits until the server has taken everything, but not for long | `@done` |
//! | `signal` | signals the server | |
//! | `firmware` | fills both rings with 0xff and zeroes their indices, as firmware does at its end | `@done` |
//! | `reset` | zeroes all words and forgets what is still to be sent; reads again | `@done` |
//! | `port DOMID` | gives its port up and offers that domain a new one | `@port PORT` |
//! | `off` | powers off | |
//!
//! What comes from the response ring is printed as `@got HEX`. The first line is `@ready FRAME`, the frame of the ring. Each answer is a line of its own; other lines are for people.
//!
//! The guest looks at the response ring only after a signal, until it has seen it empty. So a server that forgets
//! a signal is found out.

use crate::client::Client;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use xen_kernel_rt::abi::hvm::PARAM_STORE_PFN;
use xen_kernel_rt::console;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::ring::{RingPage, Word};

/// Bytes of the ring that one line shows.
const SHOWN: usize = 400;

/// How long `settle` may take, and how often it looks: a server need not signal what it has taken.
const SETTLE_MS: u64 = 300;
const LOOK_EVERY_MS: u64 = 3;

const INDICES: [Word; 4] = [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd];
const OTHERS: [Word; 4] = [Word::ServerFeatures, Word::Connection, Word::Error, Word::EvtchnPort];

struct Remote<'a> {
    client: &'a mut Client,
    outbox: Vec<u8>,
    reads: bool,
    /// There was a signal, and the response ring has not been seen empty since.
    is_awake: bool,
    is_over: bool,
    /// Until when to wait for the server to take everything.
    settling: Option<u64>,
}

/// Serves until it is told to end.
pub(crate) fn serve(client: &mut Client) -> Result<(), String> {
    if client.machine.hear_console().is_none() {
        return Err(String::from("no PV console"));
    }
    let frame =
        client.machine.builder_frame(PARAM_STORE_PFN).map_err(|error| format!("{error}"))?;
    client.say(format_args!("@ready {frame}"));
    let mut remote = Remote {
        client,
        outbox: Vec::new(),
        reads: true,
        is_awake: true,
        is_over: false,
        settling: None,
    };
    let mut typed = Vec::new();
    while !remote.is_over {
        while let Some(news) = remote.client.machine.next_port() {
            remote.is_awake |= news == remote.client.port;
        }
        let mut piece = [0; 512];
        let len = console::read(&mut piece);
        typed.extend_from_slice(&piece[..len]);
        while let Some(end) = typed.iter().position(|&byte| byte == b'\n') {
            let line = typed.drain(..=end).collect::<Vec<_>>();
            remote.obey(&String::from_utf8_lossy(&line));
        }
        if remote.exchange() + len == 0 {
            let look_again = remote.settle();
            remote.client.machine.wait(look_again);
        }
    }
    Ok(())
}

impl Remote<'_> {
    /// Does what a line says.
    fn obey(&mut self, line: &str) {
        let words = line.split_ascii_whitespace().collect::<Vec<_>>();
        match words[..] {
            ["send", hex] => self.outbox.extend(bytes(hex)),
            // Whoever starts to read looks at once.
            ["read", what] => {
                self.reads = what == "1";
                self.is_awake |= self.reads;
            }
            ["get", offset] => {
                let value = self.client.page.load_u32(number(offset) as usize & !3);
                self.client.say(format_args!("@word {value}"));
            }
            ["set", offset, value] => {
                self.client.page.store_u32(number(offset) as usize & !3, number(value));
                self.client.say(format_args!("@done"));
            }
            ["settle"] => self.settling = Some(self.client.machine.now_ms() + SETTLE_MS),
            ["signal"] => self.client.signal(),
            ["firmware"] => {
                self.client.page.write(0, &[0xff; 2048]);
                self.zero(&INDICES);
            }
            ["reset"] => {
                (self.reads, self.is_awake) = (true, false);
                self.outbox.clear();
                self.zero(&[&INDICES[..], &OTHERS].concat());
            }
            ["port", peer] => self.new_port(u16::try_from(number(peer)).unwrap_or_default()),
            ["off"] => self.is_over = true,
            [] => {}
            _ => self.client.say(format_args!("what is {line:?}?")),
        }
    }

    /// Answers `settle` if it is time; otherwise returns when to look again.
    fn settle(&mut self) -> Option<u64> {
        let (deadline, now) = (self.settling?, self.client.machine.now_ms());
        let word = |word| self.client.page.load(word);
        let is_taken = self.outbox.is_empty() && word(Word::ReqCons) == word(Word::ReqProd);
        if !is_taken && now < deadline {
            return Some(now + LOOK_EVERY_MS);
        }
        self.settling = None;
        self.client.say(format_args!("@done"));
        None
    }

    /// A new port, as after the server has given up the old one.
    fn new_port(&mut self, peer: u16) {
        let machine = &self.client.machine;
        match machine.offer_port(DomId(peer)) {
            Ok(port) => {
                machine.close_port(self.client.port);
                self.client.port = port;
                self.client.say(format_args!("@port {}", port.0));
            }
            Err(error) => self.client.say(format_args!("@port none: {error}")),
        }
    }

    /// Zeroes words of the page.
    fn zero(&mut self, words: &[Word]) {
        for word in words {
            self.client.page.store(*word, 0);
        }
        self.client.say(format_args!("@done"));
    }

    /// Moves as many bytes both ways as it can; returns how many.
    fn exchange(&mut self) -> usize {
        let sent = self.client.push(&self.outbox);
        self.outbox.drain(..sent);
        let mut got = Vec::new();
        if self.reads && self.is_awake {
            self.is_awake = self.client.pull(&mut got) > 0;
        }
        for part in got.chunks(SHOWN) {
            let mut hex = String::new();
            for byte in part {
                // Never fails.
                let _ = write!(hex, "{byte:02x}");
            }
            self.client.say(format_args!("@got {hex}"));
        }
        sent + got.len()
    }
}

/// A number; 0 if it is none.
fn number(text: &str) -> u32 {
    text.parse().unwrap_or_default()
}

/// The bytes of a word in hex.
fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).filter_map(|pair| core::str::from_utf8(pair).ok());
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
