//! One client of the socket: bytes to its ring and from it, never more than there is room for.

use crate::page::Page;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use xenstore_stubdom::proto::id::ConnId;
use xenstore_stubdom::proto::ring::RING_SIZE;

/// When so many bytes wait for a client, its requests are no longer read.
const ENOUGH: usize = 64 << 10;

/// The most bytes that may wait for a client. A client that reads nothing while events pile up is closed: others
/// need the memory.
const OUT_MAX: usize = 4 << 20;

/// What became of the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    Moved,
    /// Nothing to be had, or no room.
    Nothing,
    /// The connection has ended: the client has closed it, or something is wrong.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) id: ConnId,
    page: Page,
    /// What the server has sent and the client has not read; the first `sent` bytes are gone.
    out: Vec<u8>,
    sent: usize,
    /// It is closed when the server is idle and what waits has been offered once.
    pub(crate) is_closed: bool,
}

impl Client {
    /// `page` is the client's side of the ring of connection `id`.
    pub(crate) fn new(stream: UnixStream, id: ConnId, page: Page) -> Self {
        Self { stream, id, page, out: Vec::new(), sent: 0, is_closed: false }
    }

    fn waiting(&self) -> usize {
        self.out.len().saturating_sub(self.sent)
    }

    /// Whether its requests are wanted now.
    pub(crate) fn wants_input(&self) -> bool {
        !self.is_closed && self.waiting() <= ENOUGH && self.page.room() > 0
    }

    pub(crate) fn has_output(&self) -> bool {
        self.waiting() > 0
    }

    /// From the socket to the ring.
    pub(crate) fn receive(&mut self) -> Progress {
        if !self.wants_input() {
            return Progress::Nothing;
        }
        let mut bytes = [0; RING_SIZE as usize];
        let room = self.page.room().min(bytes.len());
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => Progress::Closed,
            Ok(len) => {
                self.page.put_requests(&bytes[..len]);
                Progress::Moved
            }
            Err(error) => judge(error.kind()),
        }
    }

    /// Moves bytes from the ring to what waits; `false` if there were none.
    pub(crate) fn collect(&mut self) -> bool {
        let moved = self.page.take_responses(&mut self.out);
        self.is_closed |= self.page.is_given_up() || self.waiting() > OUT_MAX;
        moved
    }

    /// From what waits to the socket.
    pub(crate) fn send(&mut self) {
        while self.has_output() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(len) if len > 0 => self.sent += len,
                Ok(_) => self.is_closed = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_closed |= judge(error.kind()) == Progress::Closed;
                    break;
                }
            }
            if self.is_closed {
                break;
            }
        }
        if !self.has_output() {
            self.out.clear();
            self.out.shrink_to(ENOUGH);
            self.sent = 0;
        } else if self.sent > ENOUGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// What an error of a socket that does not block means.
fn judge(kind: ErrorKind) -> Progress {
    match kind {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Progress::Nothing,
        _ => Progress::Closed,
    }
}
