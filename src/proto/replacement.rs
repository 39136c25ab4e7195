//! What passes from a xenstore domain to the domain that takes its place: [`Offer`] and [`Module`].
//!
//! A domain that is to be replaced stops serving, writes its whole state into a region as for a live update, publishes an
//! offer at [`OFFSET`] of its console's page, and shuts itself down with the reason "suspend". The program in dom0 copies
//! the region, and either has the domain go on, or destroys it and builds another one of the same domid, with the state as
//! its module.
//!
//! Before it asks for that, the program puts [`WANTED`] there, so that no domain stops of which nobody knows.
//!
//! The offer:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 8 | `XSoffers` |
//! | 8 | 8 | layout: 1 |
//! | 16 | 8 | frame of the first page of the region's list (`docs/live-update.md`, "The region") |
//! | 24 | 24 | bytes of the record stream, of the private part, of the command line, which follow each other in the region |
//! | 48 | 8 | digest of stream and private part |
//! | 56 | 8 | digest of the 56 bytes before |
//!
//! The module is a head of words, two words for each port, stream and private part:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 8 | `XSreplac` |
//! | 8 | 8 | layout: 1 |
//! | 16 | 8 | 1 for a rehearsal: the state is taken over, nothing of the host is touched, and the domain shuts itself down |
//! | 24 | 24 | bytes of the record stream, of the private part, number of ports |
//! | 48 | 8 | digest of stream and private part |
//! | 56 | 16 each | domid (bits 15:0) and port of the old domain (63:32); port of the other domain that was bound to it |
//! | | 8 | digest of all before |
//!
//! The other side's ports are in no other place: neither in the ring page nor in the stream.

use super::handover::Digest;
use super::id::{DomId, EvtchnPort};
use super::sentence::{Sentence, sentence};
use xen_kernel_rt::revival::record;

/// Where the offer begins in the page of the console's ring: behind the record for a revival.
pub const OFFSET: usize = record::OFFSET + record::SIZE;
/// Its bytes.
pub const SIZE: usize = 64;
const _: () = assert!(OFFSET % 8 == 0 && OFFSET + SIZE <= record::HELD);

/// The word in the place of an offer that is waited for.
pub const WANTED: u64 = u64::from_le_bytes(*b"XSwanted");

const OFFER_MAGIC: u64 = u64::from_le_bytes(*b"XSoffers");
const MODULE_MAGIC: u64 = u64::from_le_bytes(*b"XSreplac");
const LAYOUT: u64 = 1;
/// Words of the module before its ports.
const HEAD: usize = 7;
/// The most bytes of a state, and of a command line with its closing zero.
const STATE_MAX: u64 = 1 << 32;
const LINE_MAX: u64 = 4096;

/// Where a domain has put its state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offer {
    /// Frame of the first page of the region's list.
    pub region: u64,
    /// Bytes of the record stream.
    pub stream_len: u64,
    /// Bytes of the private part.
    pub private_len: u64,
    /// Bytes of the command line, without an end.
    pub line_len: u64,
    /// Digest of stream and private part.
    pub digest: u64,
}

impl Offer {
    /// As it stands in the page.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let Self { region, stream_len, private_len, line_len, digest } = *self;
        let words = [OFFER_MAGIC, LAYOUT, region, stream_len, private_len, line_len, digest];
        let mut bytes = [0; SIZE];
        let mut sum = Digest::default();
        let (places, _) = bytes.as_chunks_mut::<8>();
        for (place, word) in places.iter_mut().zip(words) {
            *place = word.to_le_bytes();
            sum.add(place);
        }
        if let Some(place) = places.last_mut() {
            *place = sum.finish().to_le_bytes();
        }
        bytes
    }

    /// Reads one. `None` if there is none; what cannot be is an error.
    ///
    /// # Errors
    /// It is damaged, or of another layout.
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Option<Result<Self, Sentence>> {
        let (places, _) = bytes.as_chunks::<8>();
        let mut words = places.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        if next() != OFFER_MAGIC {
            return None;
        }
        let layout = next();
        if layout != LAYOUT {
            return Some(Err(sentence!("its offer has layout {layout}, which is not known here")));
        }
        let [region, stream_len, private_len, line_len, digest] = core::array::from_fn(|_| next());
        let offer = Self { region, stream_len, private_len, line_len, digest };
        let is_possible = stream_len < STATE_MAX && private_len < STATE_MAX && line_len < LINE_MAX;
        Some(if offer.to_bytes() == *bytes && is_possible {
            Ok(offer)
        } else {
            Err(Sentence::from("its offer is damaged"))
        })
    }

    /// All bytes of the region.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.stream_len.saturating_add(self.private_len).saturating_add(self.line_len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A port of the old domain, and what was bound to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// The other domain.
    pub domid: DomId,
    /// The old domain's port.
    pub old: EvtchnPort,
    /// The other domain's port, which whoever has the old domain's domid may bind again.
    pub remote: u32,
}

/// The head of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Nothing of the host is to be touched.
    pub is_rehearsal: bool,
    /// Bytes of the record stream.
    pub stream_len: u64,
    /// Bytes of the private part.
    pub private_len: u64,
    /// Digest of stream and private part.
    pub digest: u64,
}

impl Head {
    /// The bytes in front of stream and private part.
    pub fn write(&self, ports: impl ExactSizeIterator<Item = Port>, mut put: impl FnMut([u8; 8])) {
        let mut sum = Digest::default();
        let mut word = |word: u64| {
            sum.add(&word.to_le_bytes());
            put(word.to_le_bytes());
        };
        let Self { is_rehearsal, stream_len, private_len, digest } = *self;
        let count = ports.len() as u64;
        let rehearsal = u64::from(is_rehearsal);
        for n in [MODULE_MAGIC, LAYOUT, rehearsal, stream_len, private_len, count, digest] {
            word(n);
        }
        for Port { domid, old, remote } in ports {
            word(u64::from(domid.0) | u64::from(old.0) << 32);
            word(u64::from(remote));
        }
        put(sum.finish().to_le_bytes());
    }
}

/// A module, checked as far as its head goes.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The head.
    pub head: Head,
    ports: &'a [[u8; 16]],
    /// The record stream.
    pub stream: &'a [u8],
    /// The private part.
    pub private: &'a [u8],
}

impl<'a> Module<'a> {
    /// Whether the bytes are such a module, and not a plain record stream.
    #[must_use]
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.first_chunk().is_some_and(|magic| u64::from_le_bytes(*magic) == MODULE_MAGIC)
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is damaged, or of another layout.
    pub fn find(bytes: &'a [u8]) -> Result<Self, Sentence> {
        let module = Self::is_one(bytes).then(|| Self::read(bytes)).flatten();
        module.unwrap_or_else(|| Err(Sentence::from("the module is damaged")))
    }

    fn read(bytes: &'a [u8]) -> Option<Result<Self, Sentence>> {
        let word = |at: usize| {
            let place = bytes.get(at.checked_mul(8)?..)?;
            place.first_chunk().map(|word| u64::from_le_bytes(*word))
        };
        let layout = word(1)?;
        if layout != LAYOUT {
            return Some(Err(sentence!("the module has layout {layout}, which is not known here")));
        }
        let size = |at: usize| usize::try_from(word(at)?).ok();
        let (stream_len, private_len, count) = (size(3)?, size(4)?, size(5)?);
        let ports_end = count.checked_mul(16)?.checked_add(HEAD * 8)?;
        let (head, rest) = bytes.split_at_checked(ports_end)?;
        let (sum, rest) = rest.split_first_chunk::<8>()?;
        if Digest::of(head) != u64::from_le_bytes(*sum) {
            return None;
        }
        let (stream, rest) = rest.split_at_checked(stream_len)?;
        let private = rest.get(..private_len)?;
        let (ports, _) = head.get(HEAD * 8..)?.as_chunks();
        let head = Head {
            is_rehearsal: word(2)? != 0,
            stream_len: word(3)?,
            private_len: word(4)?,
            digest: word(6)?,
        };
        Some(Ok(Self { head, ports, stream, private }))
    }

    /// The port that is to be bound in place of the old domain's.
    #[must_use]
    pub fn remote(&self, domid: DomId, old: EvtchnPort) -> Option<u32> {
        let key = (u64::from(domid.0) | u64::from(old.0) << 32).to_le_bytes();
        let entry = self.ports.iter().find(|entry| entry.starts_with(&key))?;
        entry.last_chunk::<8>().and_then(|word| u32::try_from(u64::from_le_bytes(*word)).ok())
    }

    /// Whether the state is what was offered.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let mut digest = Digest::default();
        digest.add(self.stream);
        digest.add(self.private);
        digest.finish() == self.head.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn offer() -> Offer {
        Offer { region: 5, stream_len: 100, private_len: 7, line_len: 3, digest: 99 }
    }

    #[test]
    fn an_offer_comes_back_and_every_flipped_bit_is_found() {
        let bytes = offer().to_bytes();
        assert_eq!(Offer::from_bytes(&bytes).unwrap().unwrap(), offer());
        assert_eq!(offer().len(), 110);
        for bit in 0..SIZE * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(Offer::from_bytes(&damaged), Some(Ok(_))), "bit {bit}");
        }
        assert!(Offer::from_bytes(&[0; SIZE]).is_none());
        let long = Offer { line_len: LINE_MAX, ..offer() };
        assert!(Offer::from_bytes(&long.to_bytes()).unwrap().is_err());
    }

    fn module(is_rehearsal: bool) -> Vec<u8> {
        let (stream, private) = (&b"stream"[..], &b"private"[..]);
        let digest = Digest::of(b"streamprivate");
        let head = Head { is_rehearsal, stream_len: 6, private_len: 7, digest };
        let port = |n: u16| Port {
            domid: DomId(n),
            old: EvtchnPort(u32::from(n) + 10),
            remote: u32::from(n) + 20,
        };
        let mut bytes = Vec::new();
        head.write([port(0), port(3)].into_iter(), |word| bytes.extend(word));
        bytes.extend(stream);
        bytes.extend(private);
        bytes
    }

    #[test]
    fn a_module_comes_back() {
        for is_rehearsal in [false, true] {
            let mut bytes = module(is_rehearsal);
            // A builder may give it in whole pages.
            bytes.resize(4096, 0);
            let module = Module::find(&bytes).unwrap();
            assert_eq!(module.head.is_rehearsal, is_rehearsal);
            assert_eq!((module.stream, module.private), (&b"stream"[..], &b"private"[..]));
            assert!(module.is_whole());
            assert_eq!(module.remote(DomId(3), EvtchnPort(13)), Some(23));
            assert_eq!(module.remote(DomId(0), EvtchnPort(10)), Some(20));
            assert_eq!(module.remote(DomId(3), EvtchnPort(10)), None);
        }
    }

    #[test]
    fn a_module_that_is_damaged_or_cut_off_is_refused() {
        let bytes = module(false);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = Module::find(&damaged);
            assert!(!matches!(found, Ok(module) if module.is_whole()), "bit {bit}");
        }
        for len in 8..bytes.len() {
            assert!(Module::find(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Module::is_one(&bytes) && !Module::is_one(b"xenstore") && !Module::is_one(b""));
    }
}
