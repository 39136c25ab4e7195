//! A ring page in memory, shared by a server and a client.

use super::journal::{Journal, PageId, Seen};
use crate::proto::ring::{RING_SIZE, RSP_OFFSET, RingPage, Word};
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::RefCell;
use xen_kernel_rt::memory::bounded::outside;

/// Bytes of a page.
const PAGE_SIZE: usize = 4096;

/// One holder's view of a page. Clones are views of the same page.
#[derive(Clone, Debug)]
pub struct SimPage {
    bytes: Rc<RefCell<Vec<u8>>>,
    late: Rc<RefCell<Late>>,
    watcher: Rc<RefCell<Watcher>>,
}

/// A handle that finds a page again as long as somebody has it.
#[derive(Clone, Debug)]
pub(super) struct WeakPage {
    bytes: Weak<RefCell<Vec<u8>>>,
    late: Weak<RefCell<Late>>,
    watcher: Weak<RefCell<Watcher>>,
}

impl WeakPage {
    /// The page, if somebody has it.
    pub(super) fn get(&self) -> Option<SimPage> {
        Some(SimPage {
            bytes: self.bytes.upgrade()?,
            late: self.late.upgrade()?,
            watcher: self.watcher.upgrade()?,
        })
    }
}

/// Follows what the server does with the page.
#[derive(Debug, Default)]
struct Watcher {
    journal: Journal,
    page: PageId,
    /// The consumer index that the server loaded, and what it copied since then.
    request: (u32, Vec<u8>),
    /// The producer index that the server loaded, and what it wrote since then.
    response: (u32, Vec<u8>),
    /// What a hostile client changes while the server looks: after so many loads, this word.
    ambush: VecDeque<(usize, Word, u32)>,
}

/// What a client writes at the worst moment.
#[derive(Debug, Default)]
struct Late {
    bytes: Vec<u8>,
    skipped: usize,
    /// The server has stored an index, and no barrier made sure that the client can see it.
    is_unseen: bool,
}

impl Default for SimPage {
    fn default() -> Self {
        Self {
            bytes: Rc::new(RefCell::new(alloc::vec![0; PAGE_SIZE])),
            late: Rc::default(),
            watcher: Rc::default(),
        }
    }
}

impl SimPage {
    /// A page whose traffic is noted down.
    #[must_use]
    pub(super) fn watched(journal: Journal, page: PageId) -> Self {
        let new = Self::default();
        *new.watcher.borrow_mut() = Watcher { journal, page, ..Watcher::default() };
        new
    }

    /// A way back to the page that does not keep it.
    pub(super) fn weak(&self) -> WeakPage {
        WeakPage {
            bytes: Rc::downgrade(&self.bytes),
            late: Rc::downgrade(&self.late),
            watcher: Rc::downgrade(&self.watcher),
        }
    }

    /// The page's number.
    #[must_use]
    pub fn id(&self) -> PageId {
        self.watcher.borrow().page
    }

    /// Lets a word change after the server has loaded words `loads` more times.
    pub fn ambush(&self, loads: usize, word: Word, value: u32) {
        self.watcher.borrow_mut().ambush.push_back((loads, word, value));
    }

    /// Loads a word.
    #[must_use]
    pub fn word(&self, word: Word) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes.borrow()[word as usize..][..4]);
        u32::from_le_bytes(bytes)
    }

    /// Stores a word; any word, as a client can.
    pub fn set_word(&self, word: Word, value: u32) {
        self.bytes.borrow_mut()[word as usize..][..4].copy_from_slice(&value.to_le_bytes());
    }

    /// As the client: puts a byte into the request ring at a free-running index.
    pub fn put_request(&self, index: u32, byte: u8) {
        self.bytes.borrow_mut()[(index % RING_SIZE) as usize] = byte;
    }

    /// As the client: reads a byte of the response ring at a free-running index.
    #[must_use]
    pub fn response(&self, index: u32) -> u8 {
        self.bytes.borrow()[RSP_OFFSET + (index % RING_SIZE) as usize]
    }

    /// Bytes that the client writes right after the server has found the ring empty, but before the client can see
    /// that the server has taken everything. So it sends no signal: it believes that the server is busy. The first
    /// `skipped` such moments pass unused.
    pub fn write_unnoticed(&self, bytes: &[u8], skipped: usize) {
        let mut late = self.late.borrow_mut();
        late.bytes.extend_from_slice(bytes);
        late.skipped = skipped;
    }

    /// Those bytes, if there was no such moment.
    #[must_use]
    pub fn take_unwritten(&self) -> Vec<u8> {
        core::mem::take(&mut self.late.borrow_mut().bytes)
    }

    /// Writes those bytes if this is the moment.
    fn write_late(&self) {
        let prod = self.word(Word::ReqProd);
        let mut late = self.late.borrow_mut();
        if late.is_unseen && prod == self.word(Word::ReqCons) {
            if late.skipped > 0 {
                late.skipped -= 1;
                return;
            }
            let mut index = prod;
            for byte in core::mem::take(&mut late.bytes) {
                self.put_request(index, byte);
                index = index.wrapping_add(1);
            }
            self.set_word(Word::ReqProd, index);
        }
    }

    /// Fills both rings with ones.
    pub fn fill_rings(&self) {
        self.bytes.borrow_mut()[..2 * RSP_OFFSET].fill(0xff);
    }

    /// As the firmware of an HVM guest when it is done: both rings filled, all indices zero.
    pub fn firmware_reset(&self) {
        self.fill_rings();
        for word in [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd] {
            self.set_word(word, 0);
        }
    }
}

impl Watcher {
    /// The next change of the ambush, if this is its moment.
    fn due(&mut self) -> Option<(Word, u32)> {
        let (loads, word, value) = self.ambush.front_mut()?;
        if let Some(left) = loads.checked_sub(1) {
            *loads = left;
            return None;
        }
        let change = (*word, *value);
        self.ambush.pop_front();
        Some(change)
    }

    fn loaded(&mut self, word: Word, value: u32) {
        match word {
            Word::ReqCons => self.request = (value, Vec::new()),
            Word::RspProd => self.response = (value, Vec::new()),
            Word::ReqProd
            | Word::RspCons
            | Word::ServerFeatures
            | Word::Connection
            | Word::Error
            | Word::EvtchnPort => {}
        }
    }

    /// A pass over a ring ends when the server stores its index; any other value is a reset.
    fn stored(&mut self, word: Word, value: u32) {
        let page = self.page;
        let moved = |(from, bytes): &(u32, Vec<u8>)| {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            len > 0 && from.wrapping_add(len) == value
        };
        match word {
            Word::ReqCons if moved(&self.request) => {
                let (_, bytes) = core::mem::replace(&mut self.request, (value, Vec::new()));
                self.journal.note(|| Seen::Took(page, bytes));
            }
            Word::ReqCons => self.journal.note(|| Seen::Emptied(page)),
            Word::RspProd if moved(&self.response) => {
                let (_, bytes) = core::mem::replace(&mut self.response, (value, Vec::new()));
                self.journal.note(|| Seen::Put(page, bytes));
            }
            // Only a reset stores this word, right after the other. What was read of a ring before it was given
            // up was never published, and may end at index 0 by chance.
            Word::ReqProd => {
                let is_wrong = |last: &Seen| matches!(last, Seen::Took(took, _) if *took == page);
                self.journal.correct(is_wrong, Seen::Emptied(page));
            }
            Word::Error => self.journal.note(|| Seen::GaveUp(page, value)),
            Word::RspProd
            | Word::RspCons
            | Word::ServerFeatures
            | Word::Connection
            | Word::EvtchnPort => {}
        }
    }
}

impl RingPage for SimPage {
    fn load(&self, word: Word) -> u32 {
        outside(|| {
            let due = self.watcher.borrow_mut().due();
            if let Some((word, value)) = due {
                self.set_word(word, value);
            }
            let value = self.word(word);
            self.watcher.borrow_mut().loaded(word, value);
            if word == Word::ReqProd {
                self.write_late();
            }
            value
        })
    }

    fn store(&mut self, word: Word, value: u32) {
        outside(|| {
            self.late.borrow_mut().is_unseen |= word == Word::ReqCons;
            self.watcher.borrow_mut().stored(word, value);
            self.set_word(word, value);
        });
    }

    fn copy_request(&self, offset: usize, into: &mut [u8]) {
        outside(|| {
            into.copy_from_slice(&self.bytes.borrow()[..RSP_OFFSET][offset..][..into.len()]);
            self.watcher.borrow_mut().request.1.extend_from_slice(into);
        });
    }

    fn copy_response(&mut self, offset: usize, from: &[u8]) {
        outside(|| {
            let mut page = self.bytes.borrow_mut();
            page[RSP_OFFSET..2 * RSP_OFFSET][offset..][..from.len()].copy_from_slice(from);
            self.watcher.borrow_mut().response.1.extend_from_slice(from);
        });
    }

    fn barrier(&self) {
        outside(|| {
            self.late.borrow_mut().is_unseen = false;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ring;

    #[test]
    fn a_reset_is_no_read_even_where_an_unpublished_one_would_have_ended() {
        for read in 0..3 {
            let journal = Journal::default();
            journal.open();
            let mut page = SimPage::watched(journal.clone(), 6);
            page.set_word(Word::ReqCons, u32::MAX - 15);
            page.set_word(Word::ReqProd, 16);
            // What is closed counts.
            for is_published in [true, false].into_iter().take(read) {
                page.set_word(Word::ReqCons, u32::MAX - 15);
                let mut pass = ring::Requests::open(&page).unwrap();
                assert_eq!(pass.take(&page, &mut [0; 16]), 16);
                if is_published {
                    assert!(pass.close(&mut page));
                    assert_eq!(journal.take(), [Seen::Took(6, alloc::vec![0; 16])]);
                }
            }
            ring::reset(&mut page);
            assert_eq!(journal.take(), [Seen::Emptied(6)], "after {read} reads");
        }
    }
}
