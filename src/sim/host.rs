//! A host for tests: a server, its toolstack, and guests that wait for their replies.

use super::client::{Client, Message};
use super::{Memory, Simulation, World};
use crate::proto::id::DomId;
use crate::proto::wire::Kind;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// The result of a request: the reply's payload, or the name of the error.
pub type Answer = Result<Vec<u8>, String>;

/// How often a client looks for its reply before it gives up, a second each.
const PATIENCE: usize = 2000;

/// How many times a client looks while time stands still.
const LOOKS: usize = 64;

/// A server with the first domain's client.
#[derive(Debug)]
pub struct Host {
    /// The server in its world.
    pub simulation: Simulation,
    /// The first domain.
    pub dom0: Client,
    /// The paths of the events that came for the first domain while it waited for replies.
    pub heard: BTreeSet<Vec<u8>>,
}

impl Host {
    /// A started server.
    #[must_use]
    pub fn start(options: &str) -> Self {
        let (simulation, dom0) = Simulation::start(options);
        Self { simulation, dom0, heard: BTreeSet::new() }
    }

    /// A started server in a domain whose memory has an end.
    #[must_use]
    pub fn start_bounded(options: &str, memory: Memory) -> Self {
        let (simulation, dom0) = Simulation::start_bounded(options, memory);
        Self { simulation, dom0, heard: BTreeSet::new() }
    }

    /// The memory of the server's domain.
    ///
    /// # Panics
    /// If it has no end.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.simulation.world.memory().expect("started with it")
    }

    /// The host is switched off.
    ///
    /// # Errors
    /// As [`Simulation::end`].
    pub fn end(self) -> Result<(), String> {
        self.simulation.end()
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> World {
        self.simulation.world.clone()
    }

    /// The first domain asks.
    ///
    /// # Errors
    /// The name of the error, or that no reply came.
    pub fn ask(&mut self, kind: Kind, payload: &str) -> Answer {
        self.ask_in(0, kind, payload)
    }

    /// The first domain asks in a transaction.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_in(&mut self, tx: u32, kind: Kind, payload: &str) -> Answer {
        let Self { simulation, dom0, heard } = self;
        ask_and_listen(simulation, dom0, tx, kind, payload.as_bytes(), &mut |path| {
            heard.insert(Vec::from(path));
        })
    }

    /// A guest asks.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_as(&mut self, guest: &mut Client, tx: u32, kind: Kind, payload: &str) -> Answer {
        ask(&mut self.simulation, guest, tx, kind, payload.as_bytes())
    }

    /// A guest starts a transaction.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn begin_as(&mut self, guest: &mut Client) -> Result<u32, String> {
        let id = self.ask_as(guest, 0, Kind::TransactionStart, "\0")?;
        number(&id)
    }

    /// The first domain starts a transaction.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn begin(&mut self) -> Result<u32, String> {
        let id = self.ask(Kind::TransactionStart, "\0")?;
        number(&id)
    }

    /// A domain as the toolstack makes it: a home that everybody may read, in it `data` that belongs to the
    /// domain, and its connection. The home has `nodes` more nodes.
    ///
    /// # Errors
    /// The request that was refused, and how.
    pub fn guest(&mut self, domid: u16, nodes: usize) -> Result<Client, String> {
        let port = self.simulation.world.create(DomId(domid));
        let home = format!("/local/domain/{domid}");
        let mut orders = Vec::from([
            (Kind::Mkdir, format!("{home}\0")),
            (Kind::SetPerms, format!("{home}\0r0\0")),
            (Kind::Mkdir, format!("{home}/data\0")),
            (Kind::SetPerms, format!("{home}/data\0b{domid}\0")),
            (Kind::Write, format!("{home}/name\0guest {domid}")),
        ]);
        orders.extend((0..nodes).map(|n| (Kind::Write, format!("{home}/device/{n}\0value"))));
        orders.push((Kind::Introduce, format!("{domid}\x001\0{port}\0")));
        for (kind, payload) in orders {
            self.ask(kind, &payload).map_err(|error| format!("{kind:?} {payload:?}: {error}"))?;
        }
        Ok(self.simulation.client(DomId(domid)))
    }

    /// A domain is destroyed, and the toolstack removes its home.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn destroy(&mut self, domid: u16) -> Answer {
        self.simulation.world.destroy(DomId(domid));
        let _ = self.simulation.settle();
        self.ask(Kind::Rm, &format!("/local/domain/{domid}\0"))
    }

    /// The figure for a name in `CONTROL memreport`.
    ///
    /// # Errors
    /// That it is not there.
    pub fn figure(&mut self, name: &str) -> Result<u64, String> {
        let report = self.ask(Kind::Control, "memreport\0")?;
        let report = String::from_utf8_lossy(&report).into_owned();
        let line = report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let word = line.and_then(|line| line.split(' ').find_map(|word| word.parse().ok()));
        word.ok_or_else(|| format!("no {name} in\n{report}"))
    }

    /// The server's own check, asked for as an administrator does.
    ///
    /// # Errors
    /// What it finds.
    pub fn check(&mut self) -> Result<(), String> {
        match self.ask(Kind::Control, "check\0")?.as_slice() {
            b"OK\0" => self.simulation.check(),
            findings => Err(String::from_utf8_lossy(findings).into_owned()),
        }
    }
}

/// The number that a reply is.
fn number(payload: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(payload);
    text.trim_end_matches('\0').parse().map_err(|_| format!("{text:?} is no number"))
}

/// Sends a request and waits for its reply, as long as the write-rate limit makes it; events are passed over.
///
/// # Errors
/// The name of the error, or that no reply came.
pub fn ask(
    simulation: &mut Simulation,
    client: &mut Client,
    tx: u32,
    kind: Kind,
    payload: &[u8],
) -> Answer {
    ask_and_listen(simulation, client, tx, kind, payload, &mut |_| ())
}

/// As [`ask`]; the paths of the events are not passed over.
fn ask_and_listen(
    simulation: &mut Simulation,
    client: &mut Client,
    tx: u32,
    kind: Kind,
    payload: &[u8],
    hear: &mut dyn FnMut(&[u8]),
) -> Answer {
    let (bytes, req_id) = client.request(kind.number(), tx, payload);
    let mut rest = &bytes[..];
    let mut looks = 0;
    while looks < LOOKS + PATIENCE {
        let written = client.write(rest);
        rest = &rest[written..];
        let _ = simulation.settle();
        let read = client.read(usize::MAX);
        let _ = simulation.settle();
        while let Some(Message { header, payload }) = client.next_message() {
            if header.kind == Kind::WatchEvent.number() {
                hear(payload.split(|byte| *byte == 0).next().unwrap_or_default());
            } else if header.req_id == req_id {
                let is_error = header.kind == Kind::Error.number();
                let name = || String::from_utf8_lossy(&payload).trim_end_matches('\0').into();
                return if is_error { Err(name()) } else { Ok(payload) };
            }
        }
        if read + written == 0 {
            looks += 1;
            if looks > LOOKS {
                simulation.sleep(1000);
            }
        }
    }
    Err(format!("no reply to {kind:?}"))
}
