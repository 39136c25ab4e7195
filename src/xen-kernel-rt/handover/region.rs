//! Memory for a state that is handed over.

use crate::abi::xen::errno;
use crate::digest::Digest;
use crate::memory::{self, PAGE_SIZE};
use crate::{Refusal, watch};
use core::ptr::NonNull;

/// Frames that one page of the region's list names; two words lead on to the next page and count them.
const LISTED: usize = PAGE_SIZE / size_of::<u64>() - 2;

const NO_FRAME: Refusal = Refusal { call: "a frame for a hand-over", code: errno::ENOMEM };

/// A frame that is given back when dropped.
#[derive(Debug)]
pub(super) struct Frame(pub(super) usize);

impl Frame {
    pub(super) fn take() -> Result<Self, Refusal> {
        memory::take_frame().map(Self).ok_or(NO_FRAME)
    }

    pub(super) fn address(&self) -> u64 {
        (self.0 * PAGE_SIZE) as u64
    }

    /// Writes bytes that fit into the page from `offset` on.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= PAGE_SIZE && bytes.len() <= PAGE_SIZE - offset, "outside the page");
        memory::write_frame(self.0, offset, bytes);
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        memory::give_frame(self.0);
    }
}

/// Where the state is written: pages from anywhere, named by a list of pages.
///
/// A page of the list has the frame of the next one (0 for none), the number of frames it names, and the frames.
#[derive(Debug)]
pub struct Region {
    first_list: usize,
    list: usize,
    listed: usize,
    page: usize,
    /// Bytes used of `page`.
    used: usize,
    /// Bytes of the pages before.
    full: usize,
    /// Of the pages before.
    digest: Digest,
}

impl Region {
    /// An empty region.
    ///
    /// # Errors
    /// That no memory is left.
    pub fn new() -> Result<Self, Refusal> {
        let first = Frame::take()?;
        memory::write_frame(first.0, 0, &[0; 16]);
        let list = first.0;
        let mut region = Self {
            first_list: list,
            list,
            listed: 0,
            page: 0,
            used: 0,
            full: 0,
            digest: Digest::default(),
        };
        // The region frees it, with all others.
        core::mem::forget(first);
        region.next_page().ok_or(NO_FRAME)?;
        Ok(region)
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full + self.used
    }

    /// Whether there is none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame of the first page of its list, by which a successor or dom0 finds it.
    #[must_use]
    pub fn first_frame(&self) -> u64 {
        self.first_list as u64
    }

    /// Pages that it takes.
    pub(super) fn pages(&self) -> usize {
        let data = self.full / PAGE_SIZE + 1;
        data + data.div_ceil(LISTED)
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = self.digest.clone();
        digest.add(self.current());
        digest.finish()
    }

    /// What is written of the current page.
    fn current(&self) -> &[u8] {
        // SAFETY: a frame that this region has taken, mapped, initialised up to `used`, and written by `append`
        // alone, which needs `self` exclusively.
        unsafe { core::slice::from_raw_parts(memory::frame_address(self.page).as_ptr(), self.used) }
    }

    /// Goes on with a fresh page.
    fn next_page(&mut self) -> Option<()> {
        if self.listed == LISTED {
            let list = memory::take_frame()?;
            memory::write_frame(list, 0, &[0; 16]);
            memory::write_frame(self.list, 0, &(list as u64).to_le_bytes());
            (self.list, self.listed) = (list, 0);
        }
        let page = memory::take_frame()?;
        let place = (2 + self.listed) * size_of::<u64>();
        memory::write_frame(self.list, place, &(page as u64).to_le_bytes());
        self.listed += 1;
        memory::write_frame(self.list, size_of::<u64>(), &(self.listed as u64).to_le_bytes());
        (self.page, self.used) = (page, 0);
        // A large state takes its time.
        watch::turn();
        Some(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// There is no memory for all of them. What is there then is of no use.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut done = self.fill(bytes);
        while done < bytes.len() {
            let mut digest = core::mem::take(&mut self.digest);
            digest.add(self.current());
            self.digest = digest;
            self.full += PAGE_SIZE;
            self.next_page().ok_or(NO_FRAME)?;
            done += self.fill(&bytes[done..]);
        }
        Ok(())
    }

    /// Writes to the current page what fits; says how much that was.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(PAGE_SIZE - self.used);
        // SAFETY: inside the page, whose frame this region has taken.
        let to = unsafe { memory::frame_address(self.page).add(self.used) };
        // SAFETY: as above, so nobody else uses it, and `bytes` is no part of it.
        unsafe { NonNull::from(bytes).cast().copy_to_nonoverlapping(to, len) };
        self.used += len;
        len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut list = self.first_list;
        while list != 0 {
            let mut next = 0;
            for frame in ListPage::read(list).into_iter().flat_map(|page| {
                next = page.next;
                page.frames()
            }) {
                memory::give_frame(frame);
            }
            memory::give_frame(list);
            list = next;
        }
    }
}

/// A page of a region's list, copied.
pub(super) struct ListPage {
    pub(super) next: usize,
    count: usize,
    words: [u64; LISTED],
}

impl ListPage {
    pub(super) fn read(frame: usize) -> Option<Self> {
        let mut bytes = [0; PAGE_SIZE];
        if !memory::copy_physical((frame * PAGE_SIZE) as u64, &mut bytes) {
            return None;
        }
        let word = |at: usize| {
            let bytes = bytes.get(at * 8..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |word| u64::from_le_bytes(*word))
        };
        let small = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
        let mut listed = [0; LISTED];
        for (index, slot) in listed.iter_mut().enumerate() {
            *slot = word(2 + index);
        }
        Some(Self { next: small(word(0)), count: small(word(1)).min(LISTED), words: listed })
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = usize> + use<> {
        let (count, words) = (self.count, self.words);
        words.into_iter().take(count).map(|word| usize::try_from(word).unwrap_or(usize::MAX))
    }
}
