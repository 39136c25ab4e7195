//! One client of the xenstore through the kernel's device, which times its requests.

use alloc::collections::VecDeque;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Instant;
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Header, Kind};

const DEVICE: &str = "/dev/xen/xenbus";

/// A request that was refused, or a server that is gone: in words.
pub(crate) type Failure = String;

/// A connection; nothing else is to be done with it while a request is under way.
pub(crate) struct Link {
    device: File,
    requests: u32,
    /// Bytes of messages that are not whole yet.
    bytes: Vec<u8>,
    events: VecDeque<Vec<u8>>,
    replies: VecDeque<(Header, Vec<u8>)>,
}

impl Link {
    pub(crate) fn open() -> Result<Self, Failure> {
        let device = File::options().read(true).write(true).open(DEVICE);
        let device = device.map_err(|error| format!("{DEVICE}: {error}"))?;
        Ok(Self {
            device,
            requests: 0,
            bytes: Vec::new(),
            events: VecDeque::new(),
            replies: VecDeque::new(),
        })
    }

    /// Reads what is there, at least something.
    fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        let len = self.device.read(&mut piece)?;
        self.bytes.extend_from_slice(&piece[..len]);
        while let Some(header) = self.bytes.first_chunk::<HEADER_SIZE>() {
            let header = Header::from_bytes(header);
            let end = HEADER_SIZE + header.len as usize;
            let Some(message) = self.bytes.get(HEADER_SIZE..end) else { break };
            if header.kind == Kind::WatchEvent.number() {
                self.events.push_back(message.to_vec());
            } else {
                self.replies.push_back((header, message.to_vec()));
            }
            self.bytes.drain(..end);
        }
        Ok(())
    }

    /// Sends a request and waits for its reply and for so many events; how long all that took, and the payload, or
    /// the error's name.
    fn exchange_any(
        &mut self,
        kind: Kind,
        tx_id: u32,
        payload: &[u8],
        events: usize,
    ) -> Result<(Duration, Result<Vec<u8>, String>), Failure> {
        let failed = |what: &str| format!("{kind:?} {}: {what}", payload.escape_ascii());
        self.requests = self.requests.wrapping_add(1);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: kind.number(), req_id: self.requests, tx_id, len };
        let message = [&header.to_bytes()[..], payload].concat();
        self.events.clear();
        let begin = Instant::now();
        self.device.write_all(&message).map_err(|error| failed(&error.to_string()))?;
        while self.replies.is_empty()
            || self.events.len() < events && self.replies[0].0.kind == header.kind
        {
            self.read().map_err(|error| failed(&error.to_string()))?;
        }
        let time = begin.elapsed();
        let Some((reply, text)) = self.replies.pop_front() else { return Err(failed("no reply")) };
        if reply.kind == Kind::Error.number() {
            let error = String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned();
            return Ok((time, Err(error)));
        }
        if (reply.kind, reply.req_id) != (kind.number(), header.req_id) {
            return Err(failed(&format!("a reply of type {} came", reply.kind)));
        }
        Ok((time, Ok(text)))
    }

    /// As above, for what has to succeed.
    fn exchange(
        &mut self,
        kind: Kind,
        tx: u32,
        payload: &[u8],
        events: usize,
    ) -> Result<(Duration, Vec<u8>), Failure> {
        match self.exchange_any(kind, tx, payload, events)? {
            (time, Ok(reply)) => Ok((time, reply)),
            (_, Err(error)) => Err(format!("{kind:?} {}: {error}", payload.escape_ascii())),
        }
    }

    /// How long a request takes, and whether it succeeded.
    pub(crate) fn time_refused_or_not(
        &mut self,
        kind: Kind,
        tx: u32,
        payload: &[u8],
    ) -> Result<(Duration, bool), Failure> {
        let (time, reply) = self.exchange_any(kind, tx, payload, 0)?;
        Ok((time, reply.is_ok()))
    }

    /// A request and its reply's payload.
    pub(crate) fn ask(&mut self, kind: Kind, tx: u32, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(self.exchange(kind, tx, payload, 0)?.1)
    }

    /// How long a request takes until its reply is read.
    pub(crate) fn time(
        &mut self,
        kind: Kind,
        tx: u32,
        payload: &[u8],
    ) -> Result<Duration, Failure> {
        Ok(self.exchange(kind, tx, payload, 0)?.0)
    }

    /// How long a request takes until its reply and the event that it causes are read.
    pub(crate) fn time_with_event(
        &mut self,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Duration, Failure> {
        Ok(self.exchange(kind, 0, payload, 1)?.0)
    }

    /// Starts a transaction; its id and how long that took.
    pub(crate) fn start(&mut self) -> Result<(u32, Duration), Failure> {
        let (time, id) = self.exchange(Kind::TransactionStart, 0, b"\0", 0)?;
        let id = String::from_utf8_lossy(&id).trim_end_matches('\0').parse();
        Ok((id.map_err(|error| format!("transaction: {error}"))?, time))
    }

    /// A watch, and its first event.
    pub(crate) fn watch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        let payload = format!("{path}\0{token}\0");
        self.exchange(Kind::Watch, 0, payload.as_bytes(), 1).map(drop)
    }

    /// The number behind a word in the answer to CONTROL; none from a server that does not know it.
    pub(crate) fn figure(&mut self, command: &str, word: &str) -> Option<u64> {
        let text = self.ask(Kind::Control, 0, format!("{command}\0").as_bytes()).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (_, rest) = text.split_once(word)?;
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}
