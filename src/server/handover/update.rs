//! Live update: how an administrator's tool sends a new image, and the two moments at which one instance lets go
//! and the next one takes over.
//!
//! `xenstore-control` (4.17 to 4.22) sends `-b SIZE`, the image in pieces `-d N BYTES`, perhaps `-c COMMAND-LINE`,
//! then `-s` with options. It prints any answer but `OK` as the reason of a failure, so reasons are successful
//! replies. The answer to `-s` comes from the successor when the update has happened, or from here when it has
//! failed.
//!
//! There is one update at a time, and it belongs to the connection that began it. All programs of one domain share
//! its connection, so the server cannot tell them apart. A program that dies leaves an upload behind. It is given
//! up after [`UPLOAD_PAUSE_MS`] without progress, or after [`CLAIM_PAUSE_MS`] if somebody begins another.
//!
//! `xenstore-control` sends `-a` after every failure, even if it was refused because another one is at work. Such
//! an `-a` is not meant for the other's upload and is ignored.
//!
//! Open transactions are handed over, so there is nothing to wait for. `-F` is accepted and does nothing. `-t`
//! limits the trial of the successor, to at most [`TRIAL_MAX_S`], since nobody is served meanwhile.

use crate::mem::{NoMemory, TryVec, room_bytes, try_with_capacity};
use crate::proto::error::XsError;
use crate::proto::handover::HANDOVER;
use crate::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::Version;
use crate::proto::text::{atoi, split_first_string, strings};
use crate::proto::wire::{Header, Kind};
use crate::server::Server;
use crate::server::admin::text;
use crate::server::domains::Look;
use crate::server::platform::Platform;
use crate::server::requests::{Answer, Asker, Reply};
use crate::server::rings::List;
use crate::server::turns::memory;
use alloc::vec::Vec;
use core::fmt;

/// The largest image: some four times the size of one of today.
pub(in crate::server) const IMAGE_MAX: usize = 2 * 1024 * 1024;

/// The longest command line of a successor.
const COMMAND_LINE_MAX: usize = 1024;

/// How many refused connections are remembered: there is dom0's, and few of other programs.
const REFUSED_MAX: usize = 8;

type CommandLine = heapless::String<COMMAND_LINE_MAX>;

/// How long an upload may make no progress.
pub(in crate::server) const UPLOAD_PAUSE_MS: u64 = 60_000;

/// After so long without progress somebody who begins another upload may take this one for abandoned.
const CLAIM_PAUSE_MS: u64 = 10_000;

/// The most seconds that a trial may take, and the default. It takes milliseconds.
const TRIAL_MAX_S: u64 = 10;

/// The image of a successor that is being sent.
#[derive(Debug)]
pub(in crate::server) struct Upload {
    /// Who began, and for which domain.
    owner: ConnId,
    domid: DomId,
    began_ms: u64,
    /// When something came last.
    progress_ms: u64,
    size: usize,
    image: Vec<u8>,
    command_line: Option<CommandLine>,
    /// Connections that were refused because of this one, the last few. The next `-a` of each is only its
    /// clean-up.
    refused: heapless::Vec<ConnId, REFUSED_MAX>,
}

impl Upload {
    /// Bytes that it takes of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        room_bytes(&self.image)
    }
}

/// Who waits for the answer to `-s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) struct Requester {
    pub(in crate::server) conn: ConnId,
    pub(in crate::server) req_id: u32,
    pub(in crate::server) tx: TxId,
}

impl From<Asker> for Requester {
    fn from(Asker { id, req_id, tx, .. }: Asker) -> Self {
        Self { conn: id, req_id, tx }
    }
}

impl Requester {
    /// The header of the request, and of its answer.
    pub(in crate::server) fn header(self) -> Header {
        let Self { req_id, tx: TxId(tx_id), .. } = self;
        Header { kind: Kind::Control.number(), req_id, tx_id, len: 0 }
    }
}

/// A hand-over from one instance to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) struct Passage {
    pub(in crate::server) requester: Option<Requester>,
    /// When the old instance stopped serving, in microseconds of the platform.
    pub(in crate::server) stopped_us: u64,
    /// The versions in which the state is written.
    pub(in crate::server) stream: Version,
    pub(in crate::server) handover: u32,
    /// When the trial has failed; of no interest to the successor.
    deadline_ms: u64,
    /// The next instance is to be in another domain; of no interest to it either.
    to_domain: bool,
}

impl Passage {
    /// As the successor finds it.
    pub(in crate::server) fn new(
        requester: Option<Requester>,
        stopped_us: u64,
        stream: Version,
        handover: u32,
    ) -> Self {
        Self { requester, stopped_us, stream, handover, deadline_ms: 0, to_domain: false }
    }
}

/// What a successor gets.
#[derive(Debug)]
pub struct Offer<R> {
    /// The stream, followed by the private part.
    pub region: R,
    /// Bytes of the stream.
    pub stream_len: usize,
    /// When the trial has failed, on the platform's clock.
    pub deadline_ms: u64,
}

/// The command as an administrator's program sends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command<'a> {
    Begin(&'a [u8]),
    Data { len: &'a [u8], bytes: &'a [u8] },
    Line(&'a [u8]),
    Start { seconds: u64, stream: i32 },
    File,
    Abort,
}

impl<'a> Command<'a> {
    /// Reads what follows `live-update`.
    fn parse(arguments: &'a [u8]) -> Option<Self> {
        let (first, rest) = split_first_string(arguments)?;
        let mut words = strings(rest);
        let command = match first {
            b"-b" => Self::Begin(words.next()?),
            b"-d" => {
                let (len, bytes) = split_first_string(rest)?;
                return Some(Self::Data { len, bytes });
            }
            b"-c" => Self::Line(words.next()?),
            b"-s" => {
                let (mut seconds, mut stream) = (TRIAL_MAX_S, 2);
                while let Some(word) = words.next() {
                    match word {
                        b"-F" => {}
                        b"-t" => seconds = u64::try_from(atoi(words.next()?)).ok()?,
                        b"-v" => stream = atoi(words.next()?),
                        _ => return None,
                    }
                }
                Self::Start { seconds, stream }
            }
            // Options of the update as a whole may be in front of the file's name.
            b"-f" => return Some(Self::File),
            b"-a" => Self::Abort,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

impl<P: Platform> Server<P> {
    /// `live-update` with raw arguments.
    pub(in crate::server) fn control_update(&mut self, asker: Asker, arguments: &[u8]) -> Answer {
        let command = Command::parse(arguments).ok_or(XsError::EINVAL)?;
        match command {
            Command::File => {
                return text(format_args!(
                    "a stub domain has no files; xenstore-control uploads the image where it can \
                     read the node /tool/xenstored/domid"
                ));
            }
            Command::Abort => return self.abort_upload(asker),
            Command::Begin(size) => return self.begin_upload(asker, size),
            Command::Data { .. } | Command::Line(_) | Command::Start { .. } => {}
        }
        let Some(upload) = &mut self.upload else {
            return text(format_args!(
                "no live update is in progress: none was begun, or it was aborted or has expired; \
                 start over"
            ));
        };
        if upload.owner != asker.id {
            return self.tell_in_progress();
        }
        upload.progress_ms = self.now_ms;
        self.platform.prepare();
        match command {
            Command::Data { len, bytes } => upload.add(len, bytes),
            Command::Line(line) => match core::str::from_utf8(line).map(CommandLine::try_from) {
                Ok(Ok(line)) => {
                    upload.command_line = Some(line);
                    Ok(Reply::Done)
                }
                Ok(Err(_)) | Err(_) => text(format_args!(
                    "the command line is no text, or has more than {COMMAND_LINE_MAX} bytes"
                )),
            },
            Command::Start { seconds, stream } => self.start_update(asker, seconds, stream),
            Command::Begin(_) | Command::File | Command::Abort => Err(XsError::EINVAL),
        }
    }

    /// `-b`: reserves the memory.
    fn begin_upload(&mut self, asker: Asker, size: &[u8]) -> Answer {
        if let Some(upload) = &mut self.upload {
            if self.now_ms.saturating_sub(upload.progress_ms) < CLAIM_PAUSE_MS {
                upload.remember(asker.id);
                return self.tell_in_progress();
            }
            self.drop_upload("somebody else begins, and it made no progress");
        }
        let size = match usize::try_from(atoi(size)) {
            Ok(size) if (1..=IMAGE_MAX).contains(&size) => size,
            _ => {
                return text(format_args!(
                    "an image of {} bytes cannot be taken: from 1 to {IMAGE_MAX} are possible",
                    size.escape_ascii()
                ));
            }
        };
        let has_room = memory::can_upload(&mut self.platform, size);
        let Some(image) = has_room.then(|| try_with_capacity(size).ok()).flatten() else {
            let free = self.platform.heap().free;
            return text(format_args!(
                "there is not enough memory for an image of {size} bytes: {free} are free; give \
                 the domain a larger maxmem"
            ));
        };
        let now_ms = self.now_ms;
        self.upload = Some(Upload {
            owner: asker.id,
            domid: asker.domid,
            began_ms: now_ms,
            progress_ms: now_ms,
            size,
            image,
            command_line: None,
            refused: heapless::Vec::new(),
        });
        let domid = asker.domid;
        self.platform.log(format_args!("live update: begun by domain {domid}, {size} bytes"));
        Ok(Reply::Done)
    }

    /// `-s`: the last checks. The answer comes later.
    fn start_update(&mut self, asker: Asker, seconds: u64, stream: i32) -> Answer {
        let Some(upload) = &self.upload else { return Err(XsError::EINVAL) };
        let Some(stream) = u32::try_from(stream).ok().and_then(Version::from_number) else {
            return text(format_args!(
                "version {stream} of the stream is unknown: 1 and 2 are possible"
            ));
        };
        let (came, size) = (upload.image.len(), upload.size);
        if came < size {
            return text(format_args!(
                "the image is not complete: {came} of {size} bytes are here"
            ));
        }
        let handover = match self.platform.check_image(&upload.image) {
            Ok(handover) => handover,
            Err(what) => return text(format_args!("this cannot take over: {what}")),
        };
        let trial_ms = seconds.clamp(1, TRIAL_MAX_S).saturating_mul(1000);
        self.passage = Some(Passage {
            requester: Some(asker.into()),
            stopped_us: 0,
            stream,
            handover,
            deadline_ms: self.platform.now_ms().saturating_add(trial_ms),
            to_domain: false,
        });
        Ok(Reply::Later)
    }

    /// `replace`: a program in dom0 puts another domain in the place of this one, whose image understands this version of
    /// the private part. The answer comes from there; if that program has this domain go on, it comes from here.
    pub(in crate::server) fn control_replace(&mut self, asker: Asker, handover: &[u8]) -> Answer {
        if self.upload.is_some() {
            return self.tell_in_progress();
        }
        let handover = u32::try_from(atoi(handover)).ok().filter(|n| HANDOVER.contains(n));
        let handover = handover.ok_or(XsError::EINVAL)?;
        self.passage = Some(Passage {
            requester: Some(asker.into()),
            stopped_us: 0,
            stream: Version::Two,
            handover,
            deadline_ms: 0,
            to_domain: true,
        });
        Ok(Reply::Later)
    }

    /// `-a`, from anybody who may send it.
    fn abort_upload(&mut self, asker: Asker) -> Answer {
        if self.upload.as_mut().is_some_and(|upload| upload.forget(asker.id)) {
            return self.tell_in_progress();
        }
        let Some(upload) = self.upload.take() else {
            return text(format_args!("no live update is in progress"));
        };
        let (domid, by) = (upload.domid, asker.domid);
        self.platform
            .log(format_args!("live update: that of domain {domid} aborted by domain {by}"));
        Ok(Reply::Done)
    }

    /// The answer to somebody who comes second.
    fn tell_in_progress(&self) -> Answer {
        let Some(upload) = &self.upload else { return Err(XsError::EINVAL) };
        let seconds = |ms: u64| ms.wrapping_div(1000);
        let (domid, came, size) = (upload.domid, upload.image.len(), upload.size);
        let since = seconds(self.now_ms.saturating_sub(upload.began_ms));
        let claimed_ms = upload.progress_ms.saturating_add(CLAIM_PAUSE_MS);
        let left = seconds(claimed_ms.saturating_sub(self.now_ms)).saturating_add(1);
        text(format_args!(
            "a live update is in progress: domain {domid} began it {since} s ago, {came} of {size} bytes \
             are here; try again when it has ended, or in {left} s if it makes no progress"
        ))
    }

    /// When an upload that makes no progress is given up.
    pub(in crate::server) fn upload_expires_ms(&self) -> Option<u64> {
        self.upload.as_ref().map(Upload::expires_ms)
    }

    /// Gives up an upload that makes no progress.
    pub(in crate::server) fn expire_upload(&mut self) {
        if self.upload_expires_ms().is_some_and(|at_ms| at_ms <= self.now_ms) {
            self.drop_upload("no progress for too long");
        }
    }

    /// Gives up an upload whose connection lost its state.
    pub(in crate::server) fn drop_upload_of(&mut self, id: ConnId, why: &str) {
        if self.upload.as_ref().is_some_and(|upload| upload.owner == id) {
            self.drop_upload(why);
        }
    }

    fn drop_upload(&mut self, why: &str) {
        if let Some(Upload { domid, .. }) = self.upload.take() {
            self.platform.log(format_args!("live update: that of domain {domid} given up: {why}"));
        }
    }

    // ---- the hand-over ----

    /// Whether a hand-over is due.
    pub(in crate::server) fn is_leaving(&self) -> bool {
        self.passage.is_some()
    }

    /// Hands over to the image that was uploaded. Returns only if that failed. Then everything is as if nothing
    /// had happened, except for the reply with the reason.
    pub fn hand_over(&mut self) {
        let to_domain = self.passage.is_some_and(|passage| passage.to_domain);
        let why = match self.leave() {
            Ok(Offer { region, stream_len, .. }) if to_domain => {
                self.platform.offer(&self.command_line, region, stream_len)
            }
            Ok(Offer { region, stream_len, deadline_ms }) => {
                let image = self.upload.as_ref().map_or(&[][..], |upload| &upload.image);
                let line = successor_line(self.upload.as_ref(), &self.command_line);
                self.platform.replace(image, line, region, stream_len, deadline_ms)
            }
            Err(why) => why,
        };
        self.stay(&why);
    }

    /// Writes everything into a region. From here on this instance must not serve, until it [stays](Self::stay) or
    /// is gone.
    ///
    /// # Errors
    /// Why that is not possible, as a sentence; then it has to stay.
    pub fn leave(&mut self) -> Result<Offer<P::Region>, Sentence> {
        let stopped_us = self.platform.now_us();
        let now_ms = self.platform.now_ms();
        let mut passage = self.passage.unwrap_or(Passage {
            requester: None,
            stopped_us,
            stream: Version::Two,
            handover: *HANDOVER.end(),
            deadline_ms: now_ms.saturating_add(TRIAL_MAX_S.saturating_mul(1000)),
            to_domain: false,
        });
        passage.stopped_us = stopped_us;
        self.passage = Some(passage);
        // Nothing that goes on in later turns is handed over.
        self.finish_work();
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            self.date_events(id, usize::MAX);
            // What was finished may have put its reply into the ring.
            if let Some(connection) = self.connections.get_mut(id) {
                Self::signal(&mut self.platform, connection);
            }
        }
        let ids = self.connections.len().saturating_add(self.causes.len());
        if !memory::can_save(&mut self.platform, ids) {
            return Err(Sentence::from("there is not enough memory to write the state down"));
        }
        let mut region = self.platform.new_region().map_err(|error| {
            sentence!("there is no memory for what has to be handed over: {error}")
        })?;
        let stream_len = self.save(passage.stream, passage.handover, &mut region)?;
        Ok(Offer { region, stream_len, deadline_ms: passage.deadline_ms })
    }

    /// The command line of the successor: the one that was uploaded, else that of this instance.
    #[must_use]
    pub fn successor_line(&self) -> &str {
        successor_line(self.upload.as_ref(), &self.command_line)
    }

    /// The successor was not able to take over: goes on, and tells the client that asked.
    pub fn stay(&mut self, why: &str) {
        self.upload = None;
        // Whoever asked is known until the answer is given: a failure in between is told, too.
        let passage = self.passage;
        let what = match passage {
            Some(Passage { to_domain: true, .. }) => "not replaced",
            _ => "live update failed",
        };
        self.platform.log(format_args!("{what}: {why}"));
        self.passage = None;
        if let Some(requester) = passage.and_then(|passage| passage.requester) {
            self.answer_requester(requester, text(format_args!("{why}")));
        }
    }

    pub(in crate::server) fn answer_requester(&mut self, requester: Requester, answer: Answer) {
        self.queue_answer(requester.conn, requester.header(), answer, None);
        self.mark_ready(requester.conn);
    }

    /// Begins to serve, after [`restore`](Self::restore) and the decision that there is no way back. It answers
    /// the client that asked for the update, and looks at every ring and every domain, since signals may have been
    /// lost.
    pub fn take_over(&mut self) {
        self.platform.commit();
        self.said = Vec::new();
        self.now_ms = self.platform.now_ms();
        let passage = self.passage.take();
        let is_repair = core::mem::take(&mut self.failures.is_repair);
        self.history.begin(passage.is_some() && !is_repair);
        if let Some(requester) = passage.and_then(|passage| passage.requester) {
            self.answer_requester(requester, Ok(Reply::Done));
        }
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            self.mark_ready(id);
        }
        let pause_us =
            passage.map(|passage| self.platform.now_us().saturating_sub(passage.stopped_us));
        self.report_takeover(pause_us);
        if is_repair {
            self.conclude_failure();
        }
        self.look_at_domains(Look::Check);
    }

    /// Binds the ports of a restored state anew, to those that `remote` names: the server is in another domain now, and
    /// ports are a domain's own. A guest that cannot be reached is told when its toolstack introduces it again.
    ///
    /// # Errors
    /// The domain that has control, or the first one, cannot be reached: a server without them is of no use.
    pub fn bind_anew(
        &mut self,
        remote: impl Fn(DomId, EvtchnPort) -> Option<u32>,
    ) -> Result<(), Sentence> {
        // All before any: a new port may have the number of an old one.
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            let port = self.connections.get(id).and_then(|connection| connection.port);
            let _id = port.and_then(|port| self.ports.remove(port));
        }
        let mut next = self.connections.first(List::All);
        while let Some(id) = next {
            next = self.connections.next(List::All, id);
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let (domid, Some(old)) = (connection.domid, connection.port.take()) else { continue };
            let bound = match remote(domid, old) {
                Some(remote) => {
                    self.platform.bind(domid, remote).map_err(|error| sentence!("{error}"))
                }
                None => Err(Sentence::from("nobody knows what was bound to it")),
            };
            let bound = bound.and_then(|port| match self.ports.insert(port, id) {
                Ok(_) => Ok(port),
                Err(NoMemory) => {
                    self.platform.unbind(port);
                    Err(Sentence::from("no memory"))
                }
            });
            match bound {
                Ok(port) => connection.port = Some(port),
                Err(why) if [self.privileged, self.options.first_domain].contains(&domid) => {
                    return Err(sentence!("domain {domid} has no event channel: {why}"));
                }
                Err(why) => self.platform.log(format_args!(
                    "domain {domid}: no event channel until it is introduced again: {why}"
                )),
            }
        }
        // This is another domain for Xen, but not for those who have given rights to its domid.
        if let Some(own) = self.own_domid {
            let identity = self.identity(own);
            if let Some(domain) = self.domains.get_mut(own) {
                domain.identity = identity;
            }
        }
        Ok(())
    }

    fn report_takeover(&mut self, pause_us: Option<u64>) {
        let (nodes, watches) = (self.store.node_count(), self.store.watch_count());
        let transactions = self.store.open_transactions();
        let (domains, connections) = (self.domains.len(), self.connections.len());
        self.platform.log(format_args!(
            "took over {nodes} nodes, {domains} domains, {connections} connections, {watches} watches, \
             {transactions} transactions{}",
            Pause(pause_us)
        ));
    }
}

/// The end of that line.
struct Pause(Option<u64>);

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(us) = self.0 else { return Ok(()) };
        let (ms, rest) = (us.wrapping_div(1000), us.wrapping_rem(1000));
        write!(f, "; nobody was served for {ms}.{rest:03} ms")
    }
}

fn successor_line<'a>(upload: Option<&'a Upload>, own: &'a str) -> &'a str {
    upload.and_then(|upload| upload.command_line.as_ref()).map_or(own, CommandLine::as_str)
}

impl Upload {
    /// Remembers who was refused because of this upload.
    fn remember(&mut self, id: ConnId) {
        if self.refused.contains(&id) {
            return;
        }
        if self.refused.is_full() {
            let _oldest = self.refused.remove(0);
        }
        let _is_in = self.refused.push(id);
    }

    /// Forgets that this connection was refused; `true` if it was.
    fn forget(&mut self, id: ConnId) -> bool {
        let place = self.refused.iter().position(|refused| *refused == id);
        place.map(|place| self.refused.remove(place)).is_some()
    }

    fn expires_ms(&self) -> u64 {
        self.progress_ms.saturating_add(UPLOAD_PAUSE_MS)
    }

    /// `-d`: a piece, and perhaps a NUL behind it.
    fn add(&mut self, len: &[u8], bytes: &[u8]) -> Answer {
        let said = usize::try_from(atoi(len)).unwrap_or(usize::MAX);
        let Some(piece) = bytes.get(..said).filter(|_| bytes.len().saturating_sub(said) <= 1)
        else {
            return text(format_args!(
                "a piece of the image says that it has {} bytes, and has {}",
                len.escape_ascii(),
                bytes.len()
            ));
        };
        let after = self.image.len().saturating_add(said);
        if after > self.size {
            let size = self.size;
            return text(format_args!("too much data: {after} bytes of an image of {size}"));
        }
        // There is room for the whole image.
        self.image.try_extend(piece)?;
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xenstore_control_sends_is_understood() {
        let parse = Command::parse;
        assert_eq!(parse(b"-b\x00123\0"), Some(Command::Begin(b"123")));
        let data = Command::Data { len: b"3", bytes: b"\0a\0\0" };
        assert_eq!(parse(b"-d\x003\0\0a\0\0"), Some(data));
        assert_eq!(parse(b"-c\0--event 3\0"), Some(Command::Line(b"--event 3")));
        let start = |seconds, stream| Some(Command::Start { seconds, stream });
        assert_eq!(parse(b"-s\0-t\x0060\0"), start(60, 2));
        assert_eq!(parse(b"-s\0-t\x005\0-F\0-v\x001\0"), start(5, 1));
        assert_eq!(parse(b"-s\0"), start(10, 2));
        assert_eq!(parse(b"-a\0"), Some(Command::Abort));
        assert_eq!(parse(b"-f\0/boot/image\0-c\0x\0"), Some(Command::File));
        for bad in [
            &b""[..],
            b"-b\0",
            b"-b\x001\x002\0",
            b"-d\0",
            b"-s\0-t\0",
            b"-s\0-t\0-1\0",
            b"-s\0-x\0",
            b"-x\0",
            b"-b",
        ] {
            assert_eq!(parse(bad), None, "{}", bad.escape_ascii());
        }
    }
}
