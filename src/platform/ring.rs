//! A page shared with another domain as a ring page.

use crate::proto::ring::{RSP_OFFSET, RingPage, Word};
use core::sync::atomic::{Ordering, fence};
#[cfg(target_os = "none")]
use xen_kernel_rt::gnttab::GrantedPage;
use xen_kernel_rt::shared_page::SharedPage;

/// Bytes of a ring that a copy may touch from an offset on.
fn in_ring(offset: usize, len: usize) -> usize {
    len.min(RSP_OFFSET.saturating_sub(offset))
}

impl RingPage for SharedPage {
    fn load(&self, word: Word) -> u32 {
        self.load_u32(word as usize)
    }

    fn store(&mut self, word: Word, value: u32) {
        self.store_u32(word as usize, value);
    }

    fn copy_request(&self, offset: usize, into: &mut [u8]) {
        let len = in_ring(offset, into.len());
        self.read(offset, &mut into[..len]);
    }

    fn copy_response(&mut self, offset: usize, from: &[u8]) {
        let len = in_ring(offset, from.len());
        self.write(RSP_OFFSET + offset, &from[..len]);
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(target_os = "none")]
impl RingPage for GrantedPage {
    fn load(&self, word: Word) -> u32 {
        self.page().load(word)
    }

    fn store(&mut self, word: Word, value: u32) {
        self.page_mut().store(word, value);
    }

    fn copy_request(&self, offset: usize, into: &mut [u8]) {
        self.page().copy_request(offset, into);
    }

    fn copy_response(&mut self, offset: usize, from: &[u8]) {
        self.page_mut().copy_response(offset, from);
    }

    fn barrier(&self) {
        self.page().barrier();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_stop_at_the_end_of_their_ring() {
        let mut page = SharedPage::of_own_memory();
        page.copy_response(1020, &[9; 10]);
        assert_eq!(page.load(Word::ReqCons), 0);
        let mut end = [1; 6];
        page.copy_request(1020, &mut end);
        assert_eq!(end, [0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn words_are_where_the_protocol_has_them() {
        let mut page = SharedPage::of_own_memory();
        page.store(Word::Error, 3);
        let mut bytes = [0; 4];
        page.read(2072, &mut bytes);
        assert_eq!(bytes, [3, 0, 0, 0]);
        assert_eq!(page.load(Word::Error), 3);
    }
}
