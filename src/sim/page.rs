//! A ring page in memory, shared by a server and a client.

use crate::proto::ring::{RING_SIZE, RSP_OFFSET, RingPage, Word};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Bytes of a page.
const PAGE_SIZE: usize = 4096;

/// One holder's view of a page. Clones are views of the same page.
#[derive(Clone, Debug)]
pub struct SimPage(Rc<RefCell<Vec<u8>>>, Rc<RefCell<Vec<u8>>>);

impl Default for SimPage {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(alloc::vec![0; PAGE_SIZE])), Rc::default())
    }
}

impl SimPage {
    /// Loads a word.
    #[must_use]
    pub fn word(&self, word: Word) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0.borrow()[word as usize..][..4]);
        u32::from_le_bytes(bytes)
    }

    /// Stores a word; any word, as a client can.
    pub fn set_word(&self, word: Word, value: u32) {
        self.0.borrow_mut()[word as usize..][..4].copy_from_slice(&value.to_le_bytes());
    }

    /// As the client: puts a byte into the request ring at a free-running index.
    pub fn put_request(&self, index: u32, byte: u8) {
        self.0.borrow_mut()[(index % RING_SIZE) as usize] = byte;
    }

    /// As the client: reads a byte of the response ring at a free-running index.
    #[must_use]
    pub fn response(&self, index: u32) -> u8 {
        self.0.borrow()[RSP_OFFSET + (index % RING_SIZE) as usize]
    }

    /// Bytes that the client will write, without a signal, just before the server says for the next time that
    /// it has taken something: the client sees a server that is still busy.
    pub fn write_before_next_take(&self, bytes: &[u8]) {
        self.1.borrow_mut().extend_from_slice(bytes);
    }

    /// As the firmware of an HVM guest when it is done: both rings filled, all indices zero.
    pub fn firmware_reset(&self) {
        self.0.borrow_mut()[..2 * RSP_OFFSET].fill(0xff);
        for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
            self.set_word(word, 0);
        }
    }
}

impl RingPage for SimPage {
    fn load(&self, word: Word) -> u32 {
        self.word(word)
    }

    fn store(&mut self, word: Word, value: u32) {
        if word == Word::ReqCons {
            let mut prod = self.word(Word::ReqProd);
            for byte in core::mem::take(&mut *self.1.borrow_mut()) {
                self.put_request(prod, byte);
                prod = prod.wrapping_add(1);
            }
            self.set_word(Word::ReqProd, prod);
        }
        self.set_word(word, value);
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
