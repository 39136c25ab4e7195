//! Messages that wait: written for a successor, and taken over from a predecessor or another server.

use super::{CauseId, Content, Message, Messages, Queue, RAW_MAX, Sort};
use crate::mem::{NoMemory, TryVec, try_bytes};
use crate::proto::handover::{FieldReader, FieldWriter};
use crate::proto::id::DomId;
use crate::proto::sentence::Sentence;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};
use crate::server::handover::NO_MEMORY;

// What a live update hands over.
impl Queue {
    fn waiting<'a>(&self, messages: &'a Messages) -> impl Iterator<Item = &'a Message> + Clone {
        let first = messages.get(self.first);
        core::iter::successors(first, |message| messages.get(message.next))
    }

    /// Every waiting byte, in pieces: what is left of a message that has been started, then whole messages.
    pub(in crate::server) fn unsent<'a>(
        &self,
        messages: &'a Messages,
    ) -> impl Iterator<Item = &'a [u8]> + Clone {
        let mut skip = self.sent;
        let parts =
            self.waiting(messages).flat_map(|message| [&message.header[..], message.content.get()]);
        parts.map(move |part| {
            let skipped = skip.min(part.len());
            skip = skip.saturating_sub(skipped);
            part.get(skipped..).unwrap_or(&[])
        })
    }

    /// How many of those bytes are the rest of a message that has been started.
    pub(in crate::server) fn partial(&self, messages: &Messages) -> usize {
        let whole = messages.get(self.first).map_or(0, Message::total);
        if self.sent > 0 { whole.saturating_sub(self.sent) } else { 0 }
    }

    /// What the waiting bytes do not show: the bytes of the first message that were sent already, and for each
    /// message what it is and why it waits.
    pub(in crate::server) fn write_fields<S: Sink>(
        &self,
        messages: &Messages,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.count(self.sent)?;
        if let Some(first) = messages.get(self.first).filter(|_| self.sent > 0) {
            let (header, payload) = (&first.header[..], first.content.get());
            fields.0.append(header.get(..self.sent).unwrap_or(header))?;
            let more = self.sent.saturating_sub(HEADER_SIZE);
            fields.0.append(payload.get(..more).unwrap_or(payload))?;
        }
        fields.count(self.len)?;
        for message in self.waiting(messages) {
            fields.flag(message.sort == Sort::Event)?;
            fields.maybe_u64(message.cause.map(|cause| cause.0))?;
            fields.maybe_u64(message.deadline_ms)?;
        }
        Ok(())
    }

    /// What all of it costs its receiver's memory quota.
    pub(in crate::server) fn held(&self, messages: &Messages) -> usize {
        let charged = self.waiting(messages).filter(|message| message.payer.is_some());
        charged.fold(0, |sum, message| sum.saturating_add(message.cost()))
    }
}

// The same, taken over.
impl Messages {
    /// Fills a new queue with these unsent bytes, which `payer` pays for. `each` gets the cause of every message.
    ///
    /// # Errors
    /// What does not fit together, as a sentence.
    pub(in crate::server) fn restore(
        &mut self,
        queue: &mut Queue,
        unsent: &[u8],
        payer: Option<DomId>,
        fields: &mut FieldReader<'_>,
        mut each: impl FnMut(Option<CauseId>) -> Result<(), Sentence>,
    ) -> Result<(), Sentence> {
        let damaged = || Sentence::from("messages that wait do not have the length that they say");
        let mut sent = fields.bytes()?;
        let sent_len = sent.len();
        let mut rest = unsent;
        let mut take = |into: &mut [u8]| {
            let early = sent.len().min(into.len());
            let (first, second) = into.split_at_mut_checked(early)?;
            let from;
            (from, sent) = sent.split_at_checked(early)?;
            first.copy_from_slice(from);
            let from;
            (from, rest) = rest.split_at_checked(second.len())?;
            second.copy_from_slice(from);
            Some(())
        };
        let mut payload = core::mem::take(&mut self.room);
        let mut fill = || -> Result<(), Sentence> {
            for _ in 0..fields.count(3)? {
                let is_event = fields.flag()?;
                let cause = fields.maybe_u64()?.map(CauseId);
                let deadline_ms = fields.maybe_u64()?;
                let mut header = [0; HEADER_SIZE];
                take(&mut header).ok_or_else(damaged)?;
                let header = Header::from_bytes(&header);
                let len = usize::try_from(header.len).ok().filter(|len| *len <= RAW_MAX);
                payload.clear();
                // There is room for so many.
                payload
                    .try_resize(len.ok_or_else(damaged)?, 0)
                    .map_err(|NoMemory| Sentence::from(NO_MEMORY))?;
                take(&mut payload).ok_or_else(damaged)?;
                if is_event != (header.kind == Kind::WatchEvent.number()) {
                    return Err(Sentence::from(
                        "a message that waits is not of the kind that it is said to be",
                    ));
                }
                each(cause)?;
                let pushed = if is_event {
                    self.push_event(queue, &payload, cause, deadline_ms, payer)
                } else {
                    self.push_bytes(queue, header, &payload, cause, payer)
                };
                pushed.map_err(|NoMemory| Sentence::from(NO_MEMORY))?;
            }
            Ok(())
        };
        let filled = fill();
        self.room = payload;
        filled?;
        queue.sent = sent_len;
        let first = self.get(queue.first).map_or(0, Message::total);
        if !rest.is_empty() || queue.sent > 0 && queue.sent >= first {
            return Err(damaged());
        }
        Ok(())
    }

    /// A reply with a copy of these bytes.
    fn push_bytes(
        &mut self,
        queue: &mut Queue,
        header: Header,
        payload: &[u8],
        cause: Option<CauseId>,
        payer: Option<DomId>,
    ) -> Result<(), NoMemory> {
        let content = Content::Own(try_bytes(payload)?);
        self.push_content(queue, header, content, cause, payer).map(drop)
    }

    /// Takes over another server's unsent bytes: `partial` bytes of a message that it has started, then whole
    /// messages. Returns how many bytes at the end are left out, because they make no message or there was no
    /// memory for them.
    pub(in crate::server) fn revive(
        &mut self,
        queue: &mut Queue,
        partial: usize,
        unsent: &[u8],
        payer: Option<DomId>,
        deadline_ms: Option<u64>,
    ) -> usize {
        let (first, mut rest) =
            unsent.split_at_checked(partial.min(RAW_MAX)).unwrap_or((unsent, &[]));
        if let (false, Ok(len)) = (first.is_empty(), u32::try_from(first.len())) {
            // As if nothing but a header had been sent.
            let header = Header { kind: Kind::Error.number(), req_id: 0, tx_id: 0, len };
            if self.push_bytes(queue, header, first, None, payer).is_err() {
                return unsent.len();
            }
            queue.sent = HEADER_SIZE;
        }
        while let Some((header, behind)) = rest.split_first_chunk() {
            let header = Header::from_bytes(header);
            let len = usize::try_from(header.len).ok().filter(|len| *len <= PAYLOAD_MAX);
            let Some((payload, more)) = len.and_then(|len| behind.split_at_checked(len)) else {
                break;
            };
            let pushed = if header.kind == Kind::WatchEvent.number() {
                self.push_event(queue, payload, None, deadline_ms, payer)
            } else {
                self.push_bytes(queue, header, payload, None, payer)
            };
            if pushed.is_err() {
                break;
            }
            rest = more;
        }
        rest.len()
    }
}
