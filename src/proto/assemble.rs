//! Puts a request together from fragments.
//!
//! A ring or socket delivers bytes in pieces of any size, so a request may be cut anywhere, its header included.
//! The assembler never reads anything by itself. It says how many bytes it wants next and takes what it is given.
//! It holds at most one request.

use super::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};
use crate::mem::{NoMemory, TryVec, room_bytes};
use alloc::vec::Vec;

/// The header announced a payload of more than [`PAYLOAD_MAX`] bytes. There is no way to find the next
/// message after that, so it costs the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oversize(pub u32);

/// Why no more was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AssembleError {
    /// See [`Oversize`].
    Oversize(u32),
    /// There is no memory for the payload. What came before is kept, and nothing is lost: the same call may
    /// succeed later.
    NoMemory,
}

impl From<Oversize> for AssembleError {
    fn from(Oversize(len): Oversize) -> Self {
        Self::Oversize(len)
    }
}

/// Payloads up to this size keep their buffer for the next request; a larger buffer is given back, so
/// that thousands of quiet connections hold no more than this each.
const KEEP_BYTES: usize = 256;

/// One request in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Header bytes received so far; only the first `header_len` count.
    header: [u8; HEADER_SIZE],
    header_len: usize,
    payload: Vec<u8>,
}

impl Assembler {
    /// An assembler at the start of a message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes are missing until the header, or after that the payload, is complete.
    /// 0 exactly if a whole request is there.
    ///
    /// # Errors
    /// [`Oversize`] if the complete header announces too long a payload.
    pub fn wanted(&self) -> Result<usize, Oversize> {
        let missing = HEADER_SIZE.saturating_sub(self.header_len);
        if missing > 0 {
            return Ok(missing);
        }
        let announced = Header::from_bytes(&self.header).len;
        match usize::try_from(announced) {
            Ok(len) if len <= PAYLOAD_MAX => Ok(len.saturating_sub(self.payload.len())),
            _ => Err(Oversize(announced)),
        }
    }

    /// Takes as many of the `available` bytes as are wanted: `copy` puts them into their place, in their order.
    /// Returns whether the request is complete.
    ///
    /// # Errors
    /// [`AssembleError::Oversize`] as for [`wanted`](Self::wanted), also after a header has been completed by these bytes;
    /// [`AssembleError::NoMemory`].
    pub fn fill(
        &mut self,
        available: usize,
        mut copy: impl FnMut(&mut [u8]),
    ) -> Result<bool, AssembleError> {
        let mut left = available;
        loop {
            let wanted = self.wanted()?;
            let len = wanted.min(left);
            if len == 0 {
                return Ok(wanted == 0);
            }
            left = left.saturating_sub(len);
            if self.header_len < HEADER_SIZE {
                let end = self.header_len.saturating_add(len);
                copy(self.header.get_mut(self.header_len..end).unwrap_or(&mut []));
                self.header_len = end;
            } else {
                let start = self.payload.len();
                // For all of it at once, so that it is moved at most once.
                self.payload.try_reserve_exact(wanted).map_err(|_| AssembleError::NoMemory)?;
                let resized = self.payload.try_resize(start.saturating_add(len), 0);
                resized.map_err(|NoMemory| AssembleError::NoMemory)?;
                copy(self.payload.get_mut(start..).unwrap_or(&mut []));
            }
        }
    }

    /// Takes the next bytes; never more than [`wanted`](Self::wanted) said, the rest is ignored.
    ///
    /// # Errors
    /// As for [`fill`](Self::fill).
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), AssembleError> {
        let wanted = self.wanted()?;
        let bytes = bytes.get(..wanted).unwrap_or(bytes);
        self.fill(bytes.len(), |room| room.copy_from_slice(bytes)).map(drop)
    }

    /// The complete request, if it is.
    #[must_use]
    pub fn complete(&self) -> Option<(Header, &[u8])> {
        match self.wanted() {
            Ok(0) => Some((Header::from_bytes(&self.header), &self.payload)),
            _ => None,
        }
    }

    /// Bytes that it takes of the allocator.
    #[must_use]
    pub fn taken(&self) -> usize {
        room_bytes(&self.payload)
    }

    /// Whether nothing of a next request has arrived yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header_len == 0
    }

    /// The received bytes of the request that is being read, header first.
    #[must_use]
    pub fn partial(&self) -> (&[u8], &[u8]) {
        (self.header.get(..self.header_len).unwrap_or(&[]), &self.payload)
    }

    /// An assembler that has received these bytes; `None` if they are more than one request.
    ///
    /// # Errors
    /// As for [`fill`](Self::fill).
    pub fn restore(received: &[u8]) -> Result<Option<Self>, AssembleError> {
        let mut new = Self::new();
        let (header, payload) = received.split_at_checked(HEADER_SIZE).unwrap_or((received, &[]));
        new.push(header)?;
        if payload.len() > new.wanted()? {
            return Ok(None);
        }
        new.push(payload)?;
        Ok(Some(new))
    }

    /// Forgets the current request and starts over.
    pub fn clear(&mut self) {
        self.header_len = 0;
        if self.payload.capacity() > KEEP_BYTES {
            self.payload = Vec::new();
        } else {
            self.payload.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Vec<u8> {
        let header = Header { kind: 2, req_id: 7, tx_id: 0, len: u32::try_from(len).unwrap() };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend((0..len).map(|i| u8::try_from(i % 251).unwrap()));
        bytes
    }

    #[test]
    fn any_cut_gives_the_same_request() {
        let bytes = message(40);
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let mut assembler = Assembler::new();
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    let mut part = part;
                    while !part.is_empty() {
                        let n = assembler.wanted().unwrap().min(part.len());
                        assembler.push(&part[..n]).unwrap();
                        part = &part[n..];
                    }
                }
                let (header, payload) = assembler.complete().unwrap();
                assert_eq!((header.req_id, payload), (7, &bytes[HEADER_SIZE..]));
            }
        }
    }

    #[test]
    fn an_empty_payload_is_complete_at_once() {
        let mut assembler = Assembler::new();
        assembler.push(&message(0)).unwrap();
        assert!(assembler.complete().is_some());
        assembler.clear();
        assert!(assembler.is_empty());
        assert_eq!(assembler.complete(), None);
    }

    #[test]
    fn the_largest_payload_is_legal_and_one_more_is_not() {
        for (len, legal) in [(4096, true), (4097, false), (0x8000_0000, false), (u32::MAX, false)] {
            let header = Header { kind: 2, req_id: 0, tx_id: 0, len };
            let result = Assembler::new().push(&header.to_bytes());
            assert_eq!(result, if legal { Ok(()) } else { Err(AssembleError::Oversize(len)) });
        }
    }
}
