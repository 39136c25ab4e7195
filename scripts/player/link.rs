//! A privileged connection: the kernel's device, as with a stub domain, or the socket of a daemon.

use core::time::Duration;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::transcript::{Message, Stop};

/// Where daemons listen.
const SOCKET: &str = "/run/xenstored/socket";
/// The ring of dom0's kernel.
const DEVICE: &str = "/dev/xen/xenbus";
/// `O_NONBLOCK` and `O_NOCTTY` of Linux.
pub(crate) const NONBLOCK: i32 = 0o4000;
pub(crate) const NOCTTY: i32 = 0o400;
/// How long a server may take for an answer before it counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);
/// Time between two looks.
pub(crate) const PAUSE: Duration = Duration::from_micros(500);

/// The bytes' way.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection.
pub(crate) struct Link {
    stream: Box<dyn Stream>,
    bytes: Vec<u8>,
    /// Requests go through the kernel of dom0, which has a will of its own.
    pub(crate) is_device: bool,
}

impl Link {
    /// Opens one, to the socket if there is a daemon, as libxenstore does.
    pub(crate) fn open() -> io::Result<Self> {
        let is_device = !Path::new(SOCKET).exists();
        let stream: Box<dyn Stream> = if is_device {
            let mut options = File::options();
            Box::new(options.read(true).write(true).custom_flags(NONBLOCK).open(DEVICE)?)
        } else {
            let stream = UnixStream::connect(SOCKET)?;
            stream.set_nonblocking(true)?;
            Box::new(stream)
        };
        Ok(Self { stream, bytes: Vec::new(), is_device })
    }

    /// Sends everything.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        write_all(&mut self.stream, bytes)
    }

    /// The next message, if it has come.
    pub(crate) fn poll(&mut self) -> Result<Option<Message>, Stop> {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) if !self.is_device => return Err("the server has closed the connection".into()),
            Ok(len) => self.bytes.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("reading: {error}").into()),
        }
        Ok(Message::take(&mut self.bytes))
    }

    /// A request of the player's own, and the payload of its reply, or the error's name.
    pub(crate) fn call(
        &mut self,
        kind: Kind,
        strings: &[&str],
    ) -> Result<Result<String, String>, Stop> {
        let mut payload = Vec::new();
        for string in strings {
            payload.extend_from_slice(string.as_bytes());
            payload.push(0);
        }
        // The value of a WRITE has no terminator.
        if kind == Kind::Write {
            payload.pop();
        }
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: kind.number(), req_id: 0, tx_id: 0, len };
        let lost = |what: String| Stop::Lost(format!("{kind:?} {strings:?}: {what}"));
        self.send(&[&header.to_bytes()[..], &payload].concat())
            .map_err(|stop| lost(format!("{stop:?}")))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(message) = self.poll().map_err(|stop| lost(format!("{stop:?}")))? {
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                let text = text.trim_end_matches('\0').to_owned();
                let is_error = message.header.kind == Kind::Error.number();
                return Ok(if is_error { Err(text) } else { Ok(text) });
            }
            std::thread::sleep(PAUSE);
        }
        Err(lost("no answer".to_owned()))
    }
}

/// Writes everything to something that does not block.
pub(crate) fn write_all(stream: &mut impl Write, bytes: &[u8]) -> Result<(), Stop> {
    let mut rest = bytes;
    let deadline = Instant::now() + PATIENCE;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(len) => rest = &rest[len..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(format!("{} bytes are not taken", rest.len()).into());
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(format!("writing: {error}").into()),
        }
    }
    Ok(())
}
