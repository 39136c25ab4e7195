//! Requests to a xenstore and their answers, one after the other.

use anyhow::{Context as _, Result, anyhow, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};

/// The ring of dom0, through its kernel.
const DEVICE: &str = "/dev/xen/xenbus";

/// Where a daemon listens.
const SOCKET: &str = "/run/xenstored/socket";

/// How long an answer may take. A store that takes longer is in trouble, and the user wants to know.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom requests go to.
pub trait Ask {
    /// Sends a request and returns its answer, which is `Err(name)` for an error of the store such as `ENOENT`.
    ///
    /// # Errors
    /// The store cannot be reached, or does not answer.
    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer>;

    /// A CONTROL command with its arguments.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    fn control(&mut self, words: &[&str]) -> Result<Answer> {
        let payload = words.iter().flat_map(|word| word.bytes().chain([0])).collect::<Vec<_>>();
        self.ask(Kind::Control, &payload)
    }
}

/// What a store answers: bytes, or the name of an error.
pub type Answer = core::result::Result<Vec<u8>, String>;

/// A connection on which a thread waits, so that a store that does not answer blocks nobody.
#[derive(Debug)]
pub struct Link {
    requests: Sender<(Kind, Vec<u8>)>,
    answers: Receiver<Result<Answer>>,
    name: String,
}

impl Link {
    /// A connection to the socket that `XENSTORED_PATH` names; otherwise to the daemon's socket if there is one,
    /// or to dom0's ring.
    ///
    /// # Errors
    /// There is no xenstore, or no right to use it.
    pub fn open() -> Result<Self> {
        match std::env::var_os("XENSTORED_PATH") {
            Some(path) => Self::to(Path::new(&path)),
            None if Path::new(SOCKET).exists() => Self::to(Path::new(SOCKET)),
            None => Self::to(Path::new(DEVICE)),
        }
    }

    /// A connection to a socket or a device.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn to(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let (requests, to_do) = channel::<(Kind, Vec<u8>)>();
        let (done, answers) = channel();
        let mut stream = Stream::open(path).with_context(|| name.clone())?;
        std::thread::spawn(move || {
            for (kind, payload) in to_do {
                let answer = stream.exchange(kind, &payload);
                let is_over = answer.is_err();
                if done.send(answer).is_err() || is_over {
                    break;
                }
            }
        });
        Ok(Self { requests, answers, name })
    }
}

impl Ask for Link {
    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer> {
        let name = &self.name;
        self.requests
            .send((kind, payload.to_vec()))
            .map_err(|_| anyhow!("{name}: the connection is lost"))?;
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => answer.with_context(|| name.clone()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{name}: no answer within {} s", PATIENCE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("{name}: the connection is lost"),
        }
    }
}

/// What bytes go through.
enum Stream {
    Socket(UnixStream),
    Device(File),
}

impl Stream {
    fn open(path: &Path) -> std::io::Result<Self> {
        let path = PathBuf::from(path);
        match UnixStream::connect(&path) {
            Ok(socket) => Ok(Self::Socket(socket)),
            // A device is no socket.
            Err(error) if error.raw_os_error() == Some(111) && path == Path::new(DEVICE) => {
                Ok(Self::Device(File::options().read(true).write(true).open(path)?))
            }
            Err(error) if path == Path::new(SOCKET) => Err(error),
            Err(error) => {
                let file = File::options().read(true).write(true).open(&path);
                file.map(Self::Device).map_err(|_| error)
            }
        }
    }

    fn exchange(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer> {
        match self {
            Self::Socket(stream) => exchange(stream, kind, payload),
            Self::Device(stream) => exchange(stream, kind, payload),
        }
    }
}

fn exchange(stream: &mut (impl Read + Write), kind: Kind, payload: &[u8]) -> Result<Answer> {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = Header { kind: kind.number(), req_id: 0, tx_id: 0, len };
    // At once: the kernel passes on what is written together.
    stream.write_all(&[&header.to_bytes()[..], payload].concat()).context("asking")?;
    let mut header = [0; HEADER_SIZE];
    stream.read_exact(&mut header).context("waiting for an answer")?;
    let header = Header::from_bytes(&header);
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    if len > PAYLOAD_MAX {
        bail!("the answer is too long: {len} bytes");
    }
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).context("waiting for an answer")?;
    if header.kind == kind.number() {
        return Ok(Ok(payload));
    }
    let error = crate::text::printable(payload.strip_suffix(&[0]).unwrap_or(&payload));
    Ok(Err(error))
}
