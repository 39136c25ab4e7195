//! The state of the store for the administrator: `dump` writes the record stream and hands it out in pieces of
//! text.
//!
//! ```text
//! dump begin [VERSION]    -> "dump NUMBER has BYTES bytes": from here on nothing changes in it
//! dump NUMBER OFFSET      -> the bytes from OFFSET on in base64, [`PIECE`] at most
//! dump end [NUMBER]       -> OK; its memory is free
//! ```
//!
//! All programs of a domain share its connection, so a dump has a number. A program that asks for pieces of a dump
//! that is gone is told so, and does not get pieces of another. There is one dump at a time. A dump that nobody
//! fetches is given up after [`DUMP_PAUSE_MS`], or after [`CLAIM_PAUSE_MS`] if somebody begins another.
//!
//! The stream has what C xenstored understands (see [`Server::dump`]), by default in the version that 4.17 reads.
//! A refusal is a successful reply, since `xenstore-control` shows the text of no other.

use super::control::{Text, text};
use crate::mem::{room_bytes, try_with_capacity};
use crate::proto::error::XsError;
use crate::proto::handover::Digest;
use crate::proto::sentence::{Sentence, sentence};
use crate::proto::stream::{DepthLayout, Version};
use crate::proto::text::write_base64;
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::{Answer, Reply};
use crate::server::turns::memory;
use alloc::vec::Vec;
use core::fmt;

/// Bytes of the stream in a line of text, and in a reply: 52 lines of 76 characters fit into one.
const LINE: usize = 57;
const PIECE: usize = 52 * LINE;

/// How long a dump may wait to be fetched.
const DUMP_PAUSE_MS: u64 = 60_000;

/// After so long somebody who begins another dump may take this one for abandoned.
const CLAIM_PAUSE_MS: u64 = 10_000;

/// A stream that is being fetched.
#[derive(Debug)]
pub(in crate::server) struct Dump {
    number: u64,
    /// When something was fetched last.
    progress_ms: u64,
    stream: Vec<u8>,
}

impl Dump {
    /// Bytes that it takes of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        room_bytes(&self.stream)
    }
}

/// Bytes that are shown in base64.
struct Base64<'a>(&'a [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(f, self.0)
    }
}

/// A number that the administrator gives.
fn number<N: core::str::FromStr>(argument: &[u8]) -> Result<N, XsError> {
    let text = core::str::from_utf8(argument).map_err(|_| XsError::EINVAL)?;
    text.parse().map_err(|_| XsError::EINVAL)
}

impl<P: Platform> Server<P> {
    /// `dump` in all its forms.
    pub(in crate::server) fn control_dump(&mut self, arguments: &[&[u8]]) -> Answer {
        match arguments {
            [b"begin"] => self.begin_dump(1),
            [b"begin", version] => self.begin_dump(number(version)?),
            [b"end"] => self.end_dump(None),
            [b"end", dump] => self.end_dump(Some(number(dump)?)),
            [dump, offset] => self.fetch_dump(number(dump)?, number(offset)?),
            _ => Err(XsError::EINVAL),
        }
    }

    fn begin_dump(&mut self, version: u32) -> Answer {
        let Some(version) = Version::from_number(version) else {
            return text(format_args!(
                "version {version} of the stream is unknown: 1 and 2 are possible"
            ));
        };
        let now_ms = self.now_ms;
        if let Some(Dump { number, progress_ms, .. }) = self.dump {
            let claimed_ms = progress_ms.saturating_add(CLAIM_PAUSE_MS);
            if now_ms < claimed_ms {
                let left = claimed_ms.saturating_sub(now_ms).wrapping_div(1000).saturating_add(1);
                return text(format_args!(
                    "dump {number} is being fetched; try again when it has ended, or in {left} s if \
                     nobody fetches it"
                ));
            }
            self.dump = None;
        }
        match self.take_dump(version) {
            Ok(stream) => {
                let len = stream.len();
                // No two dumps have the same number, not even before and after a live update.
                let number = now_ms.max(self.last_dump.saturating_add(1));
                self.last_dump = number;
                self.dump = Some(Dump { number, progress_ms: now_ms, stream });
                text(format_args!("dump {number} has {len} bytes"))
            }
            Err(why) => text(format_args!("{why}")),
        }
    }

    fn take_dump(&mut self, version: Version) -> Result<Vec<u8>, Sentence> {
        // The layout that others read.
        let depths = DepthLayout::Xen;
        if !memory::can_save(&mut self.platform, self.connections.len()) {
            return Err(Sentence::from("there is not enough memory to write the state down"));
        }
        let len = self.dump(version, depths, &mut Digest::default())?;
        let has_room = memory::can_upload(&mut self.platform, len);
        let Some(mut stream) = has_room.then(|| try_with_capacity(len).ok()).flatten() else {
            let free = self.platform.heap().free;
            return Err(sentence!(
                "there is not enough memory for a dump of {len} bytes: {free} are free; give the domain \
                 a larger maxmem"
            ));
        };
        self.dump(version, depths, &mut stream)?;
        Ok(stream)
    }

    fn fetch_dump(&mut self, number: u64, offset: usize) -> Answer {
        let now_ms = self.now_ms;
        let Some(dump) = self.dump.as_mut().filter(|dump| dump.number == number) else {
            return text(format_args!(
                "there is no dump {number}: it has ended or expired, or the server was replaced; start \
                 over"
            ));
        };
        let len = dump.stream.len();
        let Some(rest) = dump.stream.get(offset..).filter(|rest| !rest.is_empty()) else {
            return text(format_args!("dump {number} has no byte {offset}: it has {len}"));
        };
        dump.progress_ms = now_ms;
        let mut lines = Text::new()?;
        for line in rest.chunks(LINE).take(PIECE / LINE) {
            lines.line(format_args!("{}", Base64(line)));
        }
        lines.reply()
    }

    fn end_dump(&mut self, number: Option<u64>) -> Answer {
        match (&self.dump, number) {
            (Some(dump), Some(number)) if dump.number != number => Err(XsError::ENOENT),
            (None, Some(_)) => Err(XsError::ENOENT),
            _ => {
                self.dump = None;
                Ok(Reply::Done)
            }
        }
    }

    /// When a dump that nobody fetches is given up.
    pub(in crate::server) fn dump_expires_ms(&self) -> Option<u64> {
        self.dump.as_ref().map(|dump| dump.progress_ms.saturating_add(DUMP_PAUSE_MS))
    }

    /// Gives up a dump that nobody fetches.
    pub(in crate::server) fn expire_dump(&mut self) {
        if self.dump_expires_ms().is_some_and(|at_ms| at_ms <= self.now_ms) {
            self.dump = None;
            self.platform.log(format_args!("the dump is given up: nobody fetches it"));
        }
    }
}
