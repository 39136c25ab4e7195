//! A test guest in the role `remote`: its ring, driven through its console.

use crate::link::{Link, NOCTTY, NONBLOCK, PAUSE, write_all};
use alloc::collections::VecDeque;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Instant;
use xenstore_stubdom::dom0;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::transcript::{Message, Stop};

/// How long a guest may take to come up, and to answer on its console.
const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(10);

/// A running test guest that dom0 can drive.
pub(crate) struct Guest {
    pub(crate) domid: u16,
    /// What INTRODUCE needs.
    pub(crate) frame: u64,
    pub(crate) port: u32,
    tty: File,
    typed: Vec<u8>,
    ring: Vec<u8>,
    /// Whole messages off its ring.
    pub(crate) messages: VecDeque<Message>,
    answers: VecDeque<String>,
}

impl Guest {
    /// Has the toolstack make one and takes it from there: nothing about it is in the store afterwards, and
    /// the server has released it.
    pub(crate) fn start(link: &mut Link, number: usize) -> Result<Self, Stop> {
        let name = format!("player{number}");
        let config = format!("/run/{name}.cfg");
        let text = format!(
            "name='{name}'\nmemory=16\nvcpus=1\ntype='pvh'\nkernel='/guest/test-guest'\n\
             cmdline='role=remote'\n"
        );
        std::fs::write(&config, text).map_err(|error| format!("{config}: {error}"))?;
        let result =
            Command::new("timeout").args(["60", "xl", "create", "-q", "-e", &config]).output();
        let result = result.map_err(|error| format!("xl: {error}"))?;
        if !result.status.success() {
            let why = String::from_utf8_lossy(&result.stderr).into_owned();
            return Err(Stop::Lost(format!("xl create: {}", why.trim().replace('\n', "; "))));
        }
        let homes = link.call(Kind::Directory, &["/local/domain"])??;
        let newest = homes.split('\0').filter_map(|id| id.parse::<u16>().ok()).max();
        let domid = newest.ok_or("no domain")?;
        let home = format!("/local/domain/{domid}");
        let tty = link.call(Kind::Read, &[&format!("{home}/console/tty")])??;
        let vm = link.call(Kind::Read, &[&format!("{home}/vm")])??;
        let mut options = File::options();
        let tty = options.read(true).write(true).custom_flags(NONBLOCK | NOCTTY).open(tty);
        let mut guest = Self {
            domid,
            frame: 0,
            port: 0,
            tty: tty.map_err(|error| format!("console: {error}"))?,
            typed: Vec::new(),
            ring: Vec::new(),
            messages: VecDeque::new(),
            answers: VecDeque::new(),
        };
        let ready = guest.answer(START)?;
        let frame = ready.split(' ').nth(1).and_then(|word| word.parse().ok());
        guest.frame = frame.ok_or("no frame")?;
        for path in [&vm, &home, &format!("/libxl/{domid}")] {
            drop(link.call(Kind::Rm, &[path])?);
        }
        link.call(Kind::Release, &[&domid.to_string()])??;
        Ok(guest)
    }

    /// Has it offer a new port to the server's domain.
    ///
    /// Not every server closes its end of the old one when it releases a domain (oxenstored does not).
    pub(crate) fn offer_port(&mut self, server: u16) -> Result<u32, Stop> {
        let answer = self.ask(&format!("port {server}"))?;
        let port = answer.strip_prefix("@port ").and_then(|port| port.parse().ok());
        self.port = port.ok_or_else(|| format!("console: {answer}"))?;
        Ok(self.port)
    }

    /// Looks at what its console says.
    pub(crate) fn poll(&mut self) -> bool {
        let mut piece = [0; 4096];
        match self.tty.read(&mut piece) {
            Ok(len) if len > 0 => self.typed.extend_from_slice(&piece[..len]),
            // A console that is gone has nothing to say.
            _ => return false,
        }
        while let Some(end) = self.typed.iter().position(|&byte| byte == b'\n') {
            let line = self.typed.drain(..=end).collect::<Vec<_>>();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if let Some(hex) = line.strip_prefix("@got ") {
                self.ring.extend(from_hex(hex));
                self.messages.extend(core::iter::from_fn(|| Message::take(&mut self.ring)));
            } else if line.starts_with('@') {
                self.answers.push_back(line);
            }
        }
        true
    }

    /// The next line that is an answer.
    fn answer(&mut self, patience: Duration) -> Result<String, Stop> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            self.poll();
            if let Some(line) = self.answers.pop_front() {
                return Ok(line);
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("the test guest {} does not answer on its console", self.domid).into())
    }

    pub(crate) fn tell(&mut self, line: &str) -> Result<(), Stop> {
        write_all(&mut self.tty, format!("{line}\n").as_bytes())
    }

    /// Tells it something and waits until it is done.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String, Stop> {
        self.tell(line)?;
        self.answer(ANSWER)
    }

    /// Puts bytes into its ring.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let mut hex = String::from("send ");
        for byte in bytes {
            hex += &format!("{byte:02x}");
        }
        self.tell(&hex)
    }

    pub(crate) fn word(&mut self, word: Word) -> Result<u32, Stop> {
        let answer = self.ask(&format!("get {}", word as usize))?;
        let value = answer.strip_prefix("@word ").and_then(|value| value.parse().ok());
        value.ok_or_else(|| format!("console: {answer}").into())
    }

    /// As if it had just been made.
    pub(crate) fn reset(&mut self) -> Result<(), Stop> {
        self.ask("reset")?;
        self.ring.clear();
        self.messages.clear();
        Ok(())
    }

    /// Whether bytes of an unfinished message have come.
    pub(crate) fn is_amid_message(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Destroys it without a word to the server.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        dom0::destroy(self.domid)
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).filter_map(|pair| core::str::from_utf8(pair).ok());
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
