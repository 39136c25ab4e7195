//! A ring page in this program's own memory: the server on one side, a client of the socket on the other.

use alloc::rc::Rc;
use core::cell::RefCell;
use xenstore_stubdom::proto::ring::{RING_SIZE, RSP_OFFSET, RingPage, Word};

const PAGE_SIZE: usize = 4096;

/// One side's handle; clones are handles of the same page. Both sides live in one thread, so that nothing changes
/// while the server looks.
#[derive(Clone, Debug)]
pub(crate) struct Page(Rc<RefCell<[u8; PAGE_SIZE]>>);

impl Page {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new([0; PAGE_SIZE])))
    }

    /// How many bytes of requests fit.
    pub(crate) fn room(&self) -> usize {
        let used = self.load(Word::ReqProd).wrapping_sub(self.load(Word::ReqCons));
        RING_SIZE.saturating_sub(used) as usize
    }

    /// As the client: puts bytes into the request ring, at most as many as there is room for.
    pub(crate) fn put_requests(&mut self, bytes: &[u8]) {
        let mut index = self.load(Word::ReqProd);
        for byte in bytes.iter().take(self.room()) {
            self.0.borrow_mut()[(index % RING_SIZE) as usize] = *byte;
            index = index.wrapping_add(1);
        }
        self.store(Word::ReqProd, index);
    }

    /// As the client: takes all that is in the response ring; `false` if that is nothing.
    pub(crate) fn take_responses(&mut self, into: &mut Vec<u8>) -> bool {
        let mut index = self.load(Word::RspCons);
        let end = self.load(Word::RspProd);
        if index == end {
            return false;
        }
        while index != end {
            into.push(self.0.borrow()[RSP_OFFSET + (index % RING_SIZE) as usize]);
            index = index.wrapping_add(1);
        }
        self.store(Word::RspCons, index);
        true
    }

    /// The server does not serve it any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.load(Word::Error) != 0
    }
}

impl RingPage for Page {
    fn load(&self, word: Word) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0.borrow()[word as usize..][..4]);
        u32::from_le_bytes(bytes)
    }

    fn store(&mut self, word: Word, value: u32) {
        self.0.borrow_mut()[word as usize..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn copy_request(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[..RSP_OFFSET][offset..][..into.len()]);
    }

    fn copy_response(&mut self, offset: usize, from: &[u8]) {
        let mut page = self.0.borrow_mut();
        page[RSP_OFFSET..2 * RSP_OFFSET][offset..][..from.len()].copy_from_slice(from);
    }

    fn barrier(&self) {}
}
