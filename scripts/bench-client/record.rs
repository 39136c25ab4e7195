//! The requests of a command, recorded and sent again.
//!
//! The recorder is a socket that clients take for a daemon's. It passes requests on to the kernel's device, and
//! answers back. It writes a line for each request: connection, type, transaction, payload in hex. Transactions
//! are numbered in the order in which they were started.

use crate::cases::Bench;
use crate::link::{Failure, Link};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Header, Kind};

const SOCKET: &str = "/run/bench-recorder";
const DEVICE: &str = "/dev/xen/xenbus";

/// What was said so far.
#[derive(Default)]
struct Record {
    lines: Vec<String>,
    /// The numbers of transactions by their ids, and of those whose id is still to come by connection.
    transactions: BTreeMap<u32, usize>,
    started: usize,
}

/// One whole message.
fn take(from: &mut impl Read) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_SIZE];
    from.read_exact(&mut header)?;
    let mut payload = vec![0; Header::from_bytes(&header).len as usize];
    from.read_exact(&mut payload)?;
    Ok((Header::from_bytes(&header), payload))
}

impl Record {
    fn request(&mut self, connection: usize, header: Header, payload: &[u8]) {
        let mut line = format!("{connection} {} ", header.kind);
        line += &self.transactions.get(&header.tx_id).map_or(0, |n| *n).to_string();
        line += " x";
        for byte in payload {
            line += &format!("{byte:02x}");
        }
        self.lines.push(line);
    }

    fn reply(&mut self, header: Header, payload: &[u8]) {
        if header.kind != Kind::TransactionStart.number() {
            return;
        }
        self.started += 1;
        let id = String::from_utf8_lossy(payload).trim_end_matches('\0').parse();
        if let Ok(id) = id {
            self.transactions.insert(id, self.started);
        }
    }
}

/// Passes one client's messages on until it or the device ends.
fn pass_on(stream: UnixStream, connection: usize, record: &Arc<Mutex<Record>>) -> io::Result<()> {
    let mut device = File::options().read(true).write(true).open(DEVICE)?;
    let (mut back, mut from_device) = (stream.try_clone()?, device.try_clone()?);
    let replies = record.clone();
    // Ends with the program: nothing wakes a reader of the device.
    thread::spawn(move || -> io::Result<()> {
        // The device gives no more than was read so far, in any pieces.
        let mut bytes = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let len = from_device.read(&mut piece)?;
            bytes.extend_from_slice(&piece[..len]);
            while let Ok((header, payload)) = take(&mut &bytes[..]) {
                if let Ok(mut record) = replies.lock() {
                    record.reply(header, &payload);
                }
                let end = HEADER_SIZE + payload.len();
                back.write_all(&bytes[..end])?;
                bytes.drain(..end);
            }
        }
    });
    let mut stream = stream;
    loop {
        let (header, payload) = take(&mut stream)?;
        if let Ok(mut record) = record.lock() {
            record.request(connection, header, &payload);
        }
        device.write_all(&[&header.to_bytes()[..], &payload].concat())?;
    }
}

/// Runs a command and writes down what it and its children ask.
pub(crate) fn record(file: &str, command: &str, arguments: &[String]) -> Result<(), Failure> {
    let text = |error: io::Error| error.to_string();
    let listener = UnixListener::bind(SOCKET).map_err(text)?;
    let record = Arc::new(Mutex::new(Record::default()));
    let shared = record.clone();
    thread::spawn(move || {
        for (connection, stream) in listener.incoming().filter_map(Result::ok).enumerate() {
            let record = shared.clone();
            // It ends with an error when the client closes its end.
            thread::spawn(move || pass_on(stream, connection, &record));
        }
    });
    let mut command = Command::new(command);
    let status = command.args(arguments).env("XENSTORED_PATH", SOCKET).status().map_err(text)?;
    if !status.success() {
        return Err(format!("the command ended with {status}"));
    }
    let record = record.lock().map_err(|error| error.to_string())?;
    std::fs::write(file, record.lines.join("\n") + "\n").map_err(text)
}

/// A request as it was written down: connection, type, transaction, payload.
fn parse(line: &str) -> Option<(usize, Kind, usize, Vec<u8>)> {
    let mut words = line.split(' ');
    let mut number = || words.next()?.parse::<usize>().ok();
    let (connection, kind, transaction) = (number()?, number()?, number()?);
    let kind = Kind::from_number(u32::try_from(kind).ok()?)?;
    let hex = words.next()?.strip_prefix('x')?.as_bytes();
    let bytes = hex.chunks(2).map(|pair| {
        let text = core::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    });
    Some((connection, kind, transaction, bytes.collect::<Option<_>>()?))
}

impl Bench {
    /// Asks again what was written down, one request after the other.
    pub(crate) fn replay(&mut self, words: &[String]) -> Result<(), Failure> {
        let [file] = words else { return Err("which file?".to_owned()) };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        let mut links = BTreeMap::<usize, Link>::new();
        let (mut ids, mut started) = (BTreeMap::from([(0, 0)]), 0_usize);
        let (mut asked, mut refused, mut left_out) = (0_u64, 0_u64, 0_u64);
        let mut all = Duration::ZERO;
        let before = self.hypercalls();
        for line in text.lines() {
            let request = parse(line).ok_or_else(|| format!("what is {line}?"))?;
            let (connection, kind, transaction, payload) = request;
            let link = match links.entry(connection) {
                alloc::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                alloc::collections::btree_map::Entry::Vacant(entry) => entry.insert(Link::open()?),
            };
            // There is no such domain now.
            if matches!(kind, Kind::Introduce | Kind::Release) {
                left_out += 1;
                continue;
            }
            asked += 1;
            if kind == Kind::TransactionStart {
                let (id, time) = link.start()?;
                started += 1;
                ids.insert(started, id);
                all += time;
                continue;
            }
            let tx = ids.get(&transaction).copied().unwrap_or(0);
            match link.time_refused_or_not(kind, tx, &payload)? {
                (time, true) => all += time,
                (time, false) => {
                    all += time;
                    refused += 1;
                }
            }
        }
        drop(links);
        let requests = usize::try_from(asked).unwrap_or(1).max(1);
        let state = "creation of a guest";
        self.say_hypercalls(state, "per request", before, requests);
        self.say(state, "all requests", "instructions", all.as_nanos());
        self.say(state, "requests", "count", asked);
        self.say(state, "requests that were refused", "count", refused);
        self.say(state, "requests left out", "count", left_out);
        Ok(())
    }
}
