//! The loop around the server: sockets in, rings, sockets out.
//!
//! Each client has a connection of the privileged domain for itself, with a ring in memory. So nothing is new for
//! the server, and what belongs to a client (ids, tokens, transactions, order) is kept apart where it always is.
//! One thread does it all. It sleeps in poll(2) until a client or the server's clock wants something.

use crate::client::{Client, Progress};
use crate::host::{Host, World};
use crate::page::Page;
use alloc::collections::BTreeMap;
use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixListener;
use std::time::Instant;
use xenstore_stubdom::proto::id::EvtchnPort;
use xenstore_stubdom::server::{Pass, Server};

/// The most clients at a time; more wait in the queue of the listening socket.
const CLIENTS_MAX: usize = 256;

/// How long no client is accepted after that has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A server and those whom it serves.
pub(crate) struct Service {
    listener: UnixListener,
    world: World,
    server: Server<Host>,
    start: Instant,
    clients: BTreeMap<EvtchnPort, Client>,
    /// Until then nobody is accepted.
    paused_until: Option<Instant>,
    /// It was said that no more are accepted.
    is_full: bool,
}

impl Service {
    /// A started server behind a socket that does not block.
    pub(crate) fn new(listener: UnixListener, options: &str) -> Self {
        let world = World::new();
        let start = Instant::now();
        // The control domain is introduced from the start, as with a daemon; its ring is not used.
        let command_line = format!("--event {} {options}", world.new_port().0);
        let mut server = Server::new(Host::new(world.clone()), &command_line);
        server.start();
        Self {
            listener,
            world,
            server,
            start,
            clients: BTreeMap::new(),
            paused_until: None,
            is_full: false,
        }
    }

    /// Serves until the operating system refuses to go on.
    pub(crate) fn run(&mut self) -> io::Error {
        loop {
            let deadline_ms = self.work();
            for client in self.clients.values_mut() {
                client.send();
            }
            // Whoever takes part of what waits for it may be read again.
            self.close_the_closed();
            self.tell_if_full();
            if let Err(error) = self.wait(deadline_ms) {
                return error;
            }
        }
    }

    /// Lets the server work until it would sleep; returns until when.
    fn work(&mut self) -> Option<u64> {
        loop {
            let pass = self.server.pass();
            let mut moved = false;
            while let Some(port) = self.world.next_touched() {
                let Some(client) = self.clients.get_mut(&port) else { continue };
                if client.collect() {
                    // There is room in its ring now.
                    self.world.signal(port);
                    moved = true;
                }
            }
            match pass {
                Pass::Idle(deadline_ms) if !moved => return deadline_ms,
                // Nothing is ever handed over here: no image is accepted.
                Pass::Idle(_) | Pass::More | Pass::HandOver => {}
            }
        }
    }

    fn close_the_closed(&mut self) {
        let Self { clients, server, .. } = self;
        clients.retain(|_, client| {
            if client.is_closed {
                server.close_local(client.id);
            }
            !client.is_closed
        });
    }

    /// Reports once that new clients have to wait, until there is room again.
    fn tell_if_full(&mut self) {
        let is_full = self.clients.len() >= CLIENTS_MAX;
        if is_full && !self.is_full {
            // Nobody may be there to read it.
            drop(writeln!(
                io::stderr(),
                "{CLIENTS_MAX} clients are connected: others wait until one of them leaves"
            ));
        }
        self.is_full = is_full;
    }

    /// Sleeps until something happens, and takes what has come.
    fn wait(&mut self, deadline_ms: Option<u64>) -> io::Result<()> {
        let now = Instant::now();
        self.paused_until = self.paused_until.filter(|until| *until > now);
        let accepts = self.clients.len() < CLIENTS_MAX && self.paused_until.is_none();
        let deadline = deadline_ms.map(|ms| self.start + Duration::from_millis(ms + 1));
        let until = deadline.into_iter().chain(self.paused_until).min();
        let timeout = until.map(|until| timespec(until.saturating_duration_since(now)));
        let (ports, ready) = {
            let mut ports = Vec::new();
            let wanted = if accepts { PollFlags::IN } else { PollFlags::empty() };
            let mut files = vec![PollFd::new(&self.listener, wanted)];
            for (port, client) in &self.clients {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::IN, client.wants_input());
                wanted.set(PollFlags::OUT, client.has_output());
                ports.push(*port);
                files.push(PollFd::new(&client.stream, wanted));
            }
            match poll(&mut files, timeout.as_ref()) {
                Ok(_) => {}
                Err(error) if error == rustix::io::Errno::INTR => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            (ports, files.iter().map(PollFd::revents).collect::<Vec<_>>())
        };
        let mut ready = ready.into_iter();
        // The listening socket was the first of them.
        if ready.next().is_some_and(|news| news.contains(PollFlags::IN)) {
            self.accept();
        }
        for (port, news) in ports.into_iter().zip(ready) {
            self.hear(port, news);
        }
        Ok(())
    }

    /// Takes what a client has written.
    fn hear(&mut self, port: EvtchnPort, news: PollFlags) {
        let Some(client) = self.clients.get_mut(&port) else { return };
        let is_over = news.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        if news.contains(PollFlags::IN) || (is_over && client.wants_input()) {
            match client.receive() {
                Progress::Moved => self.world.signal(port),
                Progress::Nothing => {}
                Progress::Closed => client.is_closed = true,
            }
        } else if is_over {
            // It reads no more, either.
            client.is_closed = true;
        }
    }

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    self.paused_until = Some(Instant::now() + PAUSE);
                }
                return;
            }
        };
        if stream.set_nonblocking(true).is_ok() {
            let (port, page) = (self.world.new_port(), Page::new());
            let Ok(id) = self.server.open_local(page.clone(), port) else { return };
            self.clients.insert(port, Client::new(stream, id, page));
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
