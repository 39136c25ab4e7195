//! The shared ring page and its index arithmetic.
//!
//! ```text
//! offset  size  field            written by
//!      0  1024  req ring         client
//!   1024  1024  rsp ring         server
//!   2048     4  req_cons         server      indices run freely modulo 2^32 and are masked
//!   2052     4  req_prod         client      by 1023 for access
//!   2056     4  rsp_cons         client
//!   2060     4  rsp_prod         server
//!   2064     4  server_features  server
//!   2068     4  connection       both: 0 connected, 1 the client wants to reconnect
//!   2072     4  error            server
//!   2076     4  evtchn_port      domain builder
//! ```
//!
//! Source: `struct xenstore_domain_interface` of `xen/include/public/io/xs_wire.h` and
//! `docs/misc/xenstore-ring.txt`.
//!
//! All four indices are in the page only. The firmware of an HVM guest zeroes them when it hands over to the
//! kernel and does not tell the server, so a private copy would be wrong from then on. Instead each pass loads
//! every word once, checks the distances, and uses only that snapshot.

/// Bytes of each of the two rings (`XENSTORE_RING_SIZE`).
pub const RING_SIZE: u32 = 1024;

/// Offset of the response ring in the page.
pub const RSP_OFFSET: usize = 1024;

/// A 32-bit word of the page; the value is its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[expect(missing_docs, reason = "the field names of the table above")]
pub enum Word {
    ReqCons = 2048,
    ReqProd = 2052,
    RspCons = 2056,
    RspProd = 2060,
    ServerFeatures = 2064,
    Connection = 2068,
    Error = 2072,
    EvtchnPort = 2076,
}

impl Word {
    /// Every word, in the order of the page.
    pub const ALL: [Self; 8] = [
        Self::ReqCons,
        Self::ReqProd,
        Self::RspCons,
        Self::RspProd,
        Self::ServerFeatures,
        Self::Connection,
        Self::Error,
        Self::EvtchnPort,
    ];
}

/// Values of [`Word::Error`]: why the server gave a ring up (`XENSTORE_ERROR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RingError {
    /// The event channel or the page cannot be used.
    Comm = 1,
    /// The indices of a ring are more than a ring apart.
    RingIndex = 2,
    /// A message that violates the protocol.
    Protocol = 3,
}

/// A page shared with one client, who may change any byte of it at any moment.
///
/// Only copies go in and out; no reference into the page exists.
pub trait RingPage {
    /// Loads a word; what the client wrote before it stored the word is visible afterwards (acquire).
    fn load(&self, word: Word) -> u32;
    /// Stores a word; everything written before becomes visible first (release).
    fn store(&mut self, word: Word, value: u32);
    /// Copies bytes out of the request ring, from `offset` (below 1024) on, without wrapping.
    /// An implementation copies only what lies inside the ring.
    fn copy_request(&self, offset: usize, into: &mut [u8]);
    /// Copies bytes into the response ring, from `offset` (below 1024) on, without wrapping.
    /// An implementation copies only what lies inside the ring.
    fn copy_response(&mut self, offset: usize, from: &[u8]);
    /// A full barrier: no load after it is done before the stores ahead of it are visible.
    fn barrier(&self);
}

/// The two indices of a ring are more than [`RING_SIZE`] apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadIndices {
    /// The producer index of the snapshot.
    pub prod: u32,
    /// The consumer index of the snapshot.
    pub cons: u32,
}

/// Bytes in flight between two indices.
fn distance(prod: u32, cons: u32) -> Result<u32, BadIndices> {
    let used = prod.wrapping_sub(cons);
    if used > RING_SIZE { Err(BadIndices { prod, cons }) } else { Ok(used) }
}

/// Splits `len` bytes from free-running `index` on into the part before and the part after the end of
/// the ring: the offset of the first part, its length, and the length of the second, at offset 0.
fn split(index: u32, len: usize) -> (usize, usize, usize) {
    let offset = (index % RING_SIZE) as usize;
    let first = len.min((RING_SIZE as usize).saturating_sub(offset));
    (offset, first, len.saturating_sub(first))
}

/// One pass over the request ring: a snapshot of its indices.
#[derive(Debug)]
pub struct Requests {
    cons: u32,
    available: u32,
    taken: u32,
}

impl Requests {
    /// Takes the snapshot.
    ///
    /// # Errors
    /// [`BadIndices`] if no honest client could have written them.
    pub fn open(page: &impl RingPage) -> Result<Self, BadIndices> {
        let cons = page.load(Word::ReqCons);
        let available = distance(page.load(Word::ReqProd), cons)?;
        Ok(Self { cons, available, taken: 0 })
    }

    /// Bytes of the snapshot that have not been taken.
    #[must_use]
    pub fn available(&self) -> usize {
        self.available.saturating_sub(self.taken) as usize
    }

    /// Copies the next bytes out, as many as are there and fit, and says how many.
    pub fn take(&mut self, page: &impl RingPage, into: &mut [u8]) -> usize {
        let len = self.available().min(into.len());
        let (offset, first, second) = split(self.cons.wrapping_add(self.taken), len);
        if let Some((head, tail)) = into.get_mut(..len).and_then(|b| b.split_at_mut_checked(first))
        {
            page.copy_request(offset, head);
            if second > 0 {
                page.copy_request(0, tail);
            }
        }
        // `len` is at most what was available, so it fits and the sum stays below RING_SIZE.
        self.taken = self.taken.saturating_add(u32::try_from(len).unwrap_or(RING_SIZE));
        len
    }

    /// Publishes what was taken; `true` if that was anything, so that the client must be told.
    pub fn close(self, page: &mut impl RingPage) -> bool {
        if self.taken > 0 {
            page.store(Word::ReqCons, self.cons.wrapping_add(self.taken));
        }
        self.taken > 0
    }
}

/// One pass over the response ring: a snapshot of its indices.
#[derive(Debug)]
pub struct Responses {
    prod: u32,
    space: u32,
    put: u32,
}

impl Responses {
    /// Takes the snapshot.
    ///
    /// # Errors
    /// [`BadIndices`] if no honest client could have written them.
    pub fn open(page: &impl RingPage) -> Result<Self, BadIndices> {
        let prod = page.load(Word::RspProd);
        let used = distance(prod, page.load(Word::RspCons))?;
        Ok(Self { prod, space: RING_SIZE.saturating_sub(used), put: 0 })
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn space(&self) -> usize {
        self.space.saturating_sub(self.put) as usize
    }

    /// Copies as many bytes in as fit, and returns how many. A message may be cut anywhere. The ring must be
    /// filled to its last byte, or a client that saves on events never signals the space that it made.
    pub fn put(&mut self, page: &mut impl RingPage, from: &[u8]) -> usize {
        let len = self.space().min(from.len());
        let (offset, first, second) = split(self.prod.wrapping_add(self.put), len);
        if let Some((head, tail)) = from.get(..len).and_then(|b| b.split_at_checked(first)) {
            page.copy_response(offset, head);
            if second > 0 {
                page.copy_response(0, tail);
            }
        }
        self.put = self.put.saturating_add(u32::try_from(len).unwrap_or(RING_SIZE));
        len
    }

    /// Publishes what was put; `true` if that was anything, so that the client must be told.
    pub fn close(self, page: &mut impl RingPage) -> bool {
        if self.put > 0 {
            page.store(Word::RspProd, self.prod.wrapping_add(self.put));
        }
        self.put > 0
    }
}

/// Whether the request ring holds bytes now. This is for the look before the server sleeps. A
/// [`RingPage::barrier`] must come between the last published index and this.
#[must_use]
pub fn has_requests(page: &impl RingPage) -> bool {
    page.load(Word::ReqProd) != page.load(Word::ReqCons)
}

/// Whether the response ring has room now.
#[must_use]
pub fn has_space(page: &impl RingPage) -> bool {
    page.load(Word::RspProd).wrapping_sub(page.load(Word::RspCons)) != RING_SIZE
}

/// Empties both rings: all four indices 0. The client must not be using them.
pub fn reset(page: &mut impl RingPage) {
    for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
        page.store(word, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;

    struct Page(RefCell<[u8; 4096]>);

    impl Page {
        fn new() -> Self {
            Self(RefCell::new([0; 4096]))
        }
        fn set(&self, word: Word, value: u32) {
            self.0.borrow_mut()[word as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }

    impl RingPage for Page {
        fn load(&self, word: Word) -> u32 {
            u32::from_le_bytes(self.0.borrow()[word as usize..][..4].try_into().unwrap())
        }
        fn store(&mut self, word: Word, value: u32) {
            self.set(word, value);
        }
        fn copy_request(&self, offset: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.0.borrow()[offset..][..into.len()]);
        }
        fn copy_response(&mut self, offset: usize, from: &[u8]) {
            self.0.borrow_mut()[RSP_OFFSET + offset..][..from.len()].copy_from_slice(from);
        }
        fn barrier(&self) {}
    }

    #[test]
    fn xsa_38_only_distances_up_to_the_ring_size_are_legal() {
        for (distance, legal) in
            [(0, true), (1, true), (1024, true), (1025, false), (2048, false), (1 << 31, false)]
        {
            for start in [0, 5, u32::MAX - 3] {
                let page = Page::new();
                page.set(Word::ReqCons, start);
                page.set(Word::ReqProd, start.wrapping_add(distance));
                page.set(Word::RspCons, start);
                page.set(Word::RspProd, start.wrapping_add(distance));
                assert_eq!(Requests::open(&page).is_ok(), legal, "{distance} from {start}");
                assert_eq!(Responses::open(&page).is_ok(), legal, "{distance} from {start}");
            }
        }
    }

    #[test]
    fn a_full_request_ring_is_taken_whole_across_the_end_and_the_wrap() {
        let mut page = Page::new();
        let start = u32::MAX - 99;
        for i in 0..1024_u32 {
            let at = (start.wrapping_add(i) % RING_SIZE) as usize;
            page.0.borrow_mut()[at] = u8::try_from(i % 253).unwrap();
        }
        page.set(Word::ReqCons, start);
        page.set(Word::ReqProd, start.wrapping_add(1024));
        let mut pass = Requests::open(&page).unwrap();
        // The client changes its mind; the snapshot does not care.
        page.set(Word::ReqProd, start);
        let mut got = [0; 1500];
        assert_eq!(pass.take(&page, &mut got[..1000]), 1000);
        assert_eq!(pass.take(&page, &mut got[1000..]), 24);
        assert_eq!(pass.take(&page, &mut got[1024..]), 0);
        assert!((0..1024).all(|i| got[i] == u8::try_from(i % 253).unwrap()));
        assert!(pass.close(&mut page));
        assert_eq!(page.load(Word::ReqCons), start.wrapping_add(1024));
    }

    #[test]
    fn responses_fill_the_ring_to_the_last_byte() {
        let mut page = Page::new();
        page.set(Word::RspCons, 1000);
        page.set(Word::RspProd, 1010);
        let mut pass = Responses::open(&page).unwrap();
        assert_eq!(pass.put(&mut page, &[7; 2000]), 1014);
        assert_eq!(pass.space(), 0);
        assert!(pass.close(&mut page));
        assert!(!has_space(&page));
        let bytes = page.0.borrow();
        let untouched =
            (0..1024).filter(|i| bytes[RSP_OFFSET + i] == 0).collect::<alloc::vec::Vec<_>>();
        assert_eq!(untouched, (1000..1010).collect::<alloc::vec::Vec<_>>());
    }
}
