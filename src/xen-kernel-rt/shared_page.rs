//! A page that somebody else can write to at any moment.
//!
//! Two rules: the only references into the page are to atomic words, and none of them leaves this file; and every
//! access is volatile or atomic, bounded, and a copy. So a race can give wrong bytes, which the reader has to
//! expect from the other side anyhow, and nothing worse.

use crate::memory::PAGE_SIZE;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes that are copied at a time where alignment allows.
const CHUNK: usize = size_of::<u64>();

/// A mapped page shared with another domain.
#[derive(Debug)]
pub struct SharedPage {
    base: NonNull<u8>,
}

// SAFETY: the page is reachable from everywhere, and only volatile or atomic copies are made.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// Wraps a mapped page.
    ///
    /// # Safety
    /// 1. `base` is page-aligned and stays valid for reads and writes of a page while this exists.
    /// 2. In this program nobody else accesses the page.
    #[must_use]
    pub unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }

    /// A page of zeros of this program's own memory, which is never given back: for tests on the host.
    #[cfg(not(target_os = "none"))]
    #[must_use]
    pub fn of_own_memory() -> Self {
        #[repr(align(4096))]
        struct Aligned([u8; PAGE_SIZE]);
        let page = alloc::boxed::Box::leak(alloc::boxed::Box::new(Aligned([0; PAGE_SIZE])));
        // SAFETY: (1) aligned, and never freed; (2) nobody else has the address.
        unsafe { Self::new(NonNull::from(&mut page.0).cast()) }
    }

    /// The word at an offset, as an atomic.
    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset % 4 == 0 && offset < PAGE_SIZE, "a word outside the page");
        // SAFETY: the assertion keeps it inside the page that `new` was promised.
        let address = unsafe { self.base.add(offset) };
        // SAFETY: valid and aligned, and all accesses to words in this program are atomic.
        unsafe { AtomicU32::from_ptr(address.as_ptr().cast()) }
    }

    /// Loads a word; what was written before it was stored is visible afterwards.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Stores a word; everything written before becomes visible first.
    pub fn store_u32(&mut self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Copies bytes out, as many as fit and exist.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let len = into.len().min(PAGE_SIZE.saturating_sub(offset));
        let head = head_len(offset, len);
        let (head, rest) = into[..len].split_at_mut(head);
        let mut chunks = rest.chunks_exact_mut(CHUNK);
        let mut at = offset;
        for byte in head {
            *byte = self.read_byte(at);
            at += 1;
        }
        for chunk in &mut chunks {
            // SAFETY: `at` advances by what was copied and stays below the clipped end.
            let from = unsafe { self.base.add(at) };
            // SAFETY: inside the page, and behind the head `at` is a multiple of 8.
            let word = unsafe { from.cast::<u64>().read_volatile() };
            chunk.copy_from_slice(&word.to_le_bytes());
            at += CHUNK;
        }
        for byte in chunks.into_remainder() {
            *byte = self.read_byte(at);
            at += 1;
        }
    }

    /// Copies bytes in, as many as there is page for.
    pub fn write(&mut self, offset: usize, from: &[u8]) {
        let len = from.len().min(PAGE_SIZE.saturating_sub(offset));
        let head = head_len(offset, len);
        let (head, rest) = from[..len].split_at(head);
        let chunks = rest.chunks_exact(CHUNK);
        let tail = chunks.remainder();
        let mut at = offset;
        for &byte in head {
            self.write_byte(at, byte);
            at += 1;
        }
        for chunk in chunks {
            let mut bytes = [0; CHUNK];
            bytes.copy_from_slice(chunk);
            // SAFETY: `at` advances by what was copied and stays below the clipped end.
            let to = unsafe { self.base.add(at) };
            // SAFETY: inside the page, and behind the head `at` is a multiple of 8.
            unsafe { to.cast::<u64>().write_volatile(u64::from_le_bytes(bytes)) };
            at += CHUNK;
        }
        for &byte in tail {
            self.write_byte(at, byte);
            at += 1;
        }
    }

    /// Loads one byte.
    fn read_byte(&self, at: usize) -> u8 {
        // SAFETY: both callers stay below the end of the page.
        let from = unsafe { self.base.add(at) };
        // SAFETY: inside the page.
        unsafe { from.read_volatile() }
    }

    /// Stores one byte.
    fn write_byte(&mut self, at: usize, byte: u8) {
        // SAFETY: both callers stay below the end of the page.
        let to = unsafe { self.base.add(at) };
        // SAFETY: inside the page.
        unsafe { to.write_volatile(byte) };
    }
}

/// Bytes in front of the first multiple of [`CHUNK`].
fn head_len(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(CHUNK) - offset).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn every_offset_and_length_copies_exactly_its_bytes() {
        let mut page = SharedPage::of_own_memory();
        {
            let pattern: vec::Vec<u8> = (1..=40).collect();
            for offset in 0..20 {
                for len in 0..=40 {
                    page.write(0, &[0; 64]);
                    page.write(offset, &pattern[..len]);
                    let mut all = [0; 64];
                    page.read(0, &mut all);
                    assert_eq!(&all[offset..offset + len], &pattern[..len]);
                    assert!(all[..offset].iter().chain(&all[offset + len..]).all(|&b| b == 0));
                    let mut part = vec![0; len];
                    page.read(offset, &mut part);
                    assert_eq!(part, &pattern[..len]);
                }
            }
        }
    }

    #[test]
    fn copies_stop_at_the_end_of_the_page() {
        let mut page = SharedPage::of_own_memory();
        {
            page.write(PAGE_SIZE - 3, &[7; 100]);
            let mut tail = [1; 5];
            page.read(PAGE_SIZE - 3, &mut tail);
            assert_eq!(tail, [7, 7, 7, 1, 1]);
            page.read(PAGE_SIZE + 8, &mut tail);
            assert_eq!(tail, [7, 7, 7, 1, 1]);
        }
    }
}
