//! The allocator: size classes for small blocks, a list of holes for large ones.
//!
//! A small block comes from a *slab*, a page of blocks of one size; taking and freeing one is O(1).
//! The slabs themselves and everything larger come from `linked_list_allocator`, whose cost grows
//! with the number of holes, which stays small because the small blocks are kept away from it.
//! A slab without blocks goes back there, except for the last one of its size.
//!
//! Large blocks are whole pages, as slabs are: so every hole can hold a slab, and the bytes that are
//! free are bytes that can be used. A block of 2033 bytes pays for that with half a page.
//!
//! Here is only the arithmetic on memory that the heap has been given; where more comes from is
//! in `memory`.

use crate::mem::classes::{PAGE_SIZE, SIZES, SLAB_HEADER, SMALL_ALIGN, blocks_per_slab, class_of};
use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap as Holes;

/// The start of a slab.
#[repr(C)]
struct Slab {
    /// Neighbours in the list of slabs of this class that have room.
    prev: *mut Slab,
    next: *mut Slab,
    /// The first of the blocks that were freed; each starts with the address of the next.
    free: *mut u8,
    /// Blocks handed out.
    used: u16,
    /// Blocks that have been handed out at least once; those behind are not in `free`.
    fresh: u16,
}
const _: () = assert!(size_of::<Slab>() <= SLAB_HEADER && SLAB_HEADER % SMALL_ALIGN == 0);

const SLAB: Layout = match Layout::from_size_align(PAGE_SIZE, PAGE_SIZE) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a valid layout"),
};

/// The allocator's state.
pub struct Heap {
    holes: Holes,
    /// For each class the list of slabs that have room.
    open: [*mut Slab; SIZES.len()],
    /// Bytes handed out, rounded up to what the blocks really take.
    used: usize,
}

// SAFETY: the pointers lead to memory that belongs to the heap alone.
unsafe impl Send for Heap {}

impl core::fmt::Debug for Heap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Heap").field("used", &self.used).field("size", &self.size()).finish()
    }
}

/// The class of a layout, if it is small.
fn small_class(layout: Layout) -> Option<usize> {
    if layout.align() > SMALL_ALIGN { None } else { class_of(layout.size()) }
}

/// What a large block really takes: whole pages.
fn whole_pages(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_next_multiple_of(PAGE_SIZE)?;
    Layout::from_size_align(size, layout.align().max(PAGE_SIZE)).ok()
}

impl Heap {
    /// A heap without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { holes: Holes::empty(), open: [null_mut(); SIZES.len()], used: 0 }
    }

    /// Bytes handed out.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes of the memory that the heap has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.holes.size()
    }

    /// Bytes that a block of any kind could come from, in one piece or several.
    #[must_use]
    pub fn available(&self) -> usize {
        self.holes.free()
    }

    /// Whether a block of `size` bytes could be had. Looks by taking it and giving it back.
    pub fn has_block(&mut self, size: usize) -> bool {
        let Ok(layout) = Layout::from_size_align(size, PAGE_SIZE) else { return false };
        let block = self.allocate(layout);
        if !block.is_null() {
            // SAFETY: allocated just now with this layout.
            unsafe { self.free(block, layout) };
        }
        !block.is_null()
    }

    /// Gives the heap `size` more bytes, right behind those it has.
    ///
    /// # Safety
    /// 1. The first time, `start` is page-aligned; each time it is where the last call's memory ended.
    /// 2. The memory is valid for reads and writes for as long as the heap is used, and used by nobody
    ///    else.
    /// 3. `size` is a multiple of the page size, and not zero.
    pub unsafe fn extend(&mut self, start: *mut u8, size: usize) {
        if self.holes.size() == 0 {
            // SAFETY: (1, 2, 3) valid, aligned, large enough, ours.
            unsafe { self.holes.init(start, size) };
        } else {
            // SAFETY: (1, 2) the memory continues what is there.
            unsafe { self.holes.extend(size) };
        }
    }

    /// A block for `layout`, or null if there is none.
    pub fn allocate(&mut self, layout: Layout) -> *mut u8 {
        let block = match small_class(layout) {
            Some(class) => self.allocate_small(class).inspect(|_| self.used += SIZES[class]),
            None => whole_pages(layout).and_then(|pages| {
                let block = self.holes.allocate_first_fit(pages).ok();
                block.inspect(|_| self.used += pages.size())
            }),
        };
        block.map_or(null_mut(), NonNull::as_ptr)
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// `block` came from [`Self::allocate`] of this heap with the same layout, and is not used any more.
    pub unsafe fn free(&mut self, block: *mut u8, layout: Layout) {
        if let Some(class) = small_class(layout) {
            self.used -= SIZES[class];
            // SAFETY: a block of this class, by contract.
            unsafe { self.free_small(block, class) };
        } else if let (Some(block), Some(pages)) = (NonNull::new(block), whole_pages(layout)) {
            self.used -= pages.size();
            // SAFETY: by contract, and `allocate` took the same pages for this layout.
            unsafe { self.holes.deallocate(block, pages) };
        }
    }

    /// A block of a class.
    fn allocate_small(&mut self, class: usize) -> Option<NonNull<u8>> {
        if self.open[class].is_null() {
            self.open_slab(class)?;
        }
        let slab = self.open[class];
        // SAFETY: slabs in `open` are pages of ours that start with a header; this is the only
        // reference, and it covers the header only.
        let header = unsafe { &mut *slab };
        let block = header.free;
        let block = if block.is_null() {
            let offset = SLAB_HEADER + usize::from(header.fresh) * SIZES[class];
            header.fresh += 1;
            // SAFETY: a slab in `open` has room, so the block lies inside the page.
            unsafe { slab.cast::<u8>().add(offset) }
        } else {
            // SAFETY: freed blocks hold the address of the next, aligned as every block is.
            header.free = unsafe { block.cast::<*mut u8>().read() };
            block
        };
        header.used += 1;
        if usize::from(header.used) == blocks_per_slab(class) {
            self.unlink(slab, class);
        }
        NonNull::new(block)
    }

    /// Makes a new slab the first with room.
    fn open_slab(&mut self, class: usize) -> Option<()> {
        let slab = self.holes.allocate_first_fit(SLAB).ok()?.as_ptr().cast::<Slab>();
        let empty =
            Slab { prev: null_mut(), next: null_mut(), free: null_mut(), used: 0, fresh: 0 };
        // SAFETY: a page of ours, aligned to its size.
        unsafe { slab.write(empty) };
        self.link(slab, class);
        Some(())
    }

    /// Takes a block of a class back.
    ///
    /// # Safety
    /// `block` came from [`Self::allocate_small`] with this class, and is not used any more.
    unsafe fn free_small(&mut self, block: *mut u8, class: usize) {
        // The block's page is its slab.
        let slab = block.map_addr(|a| a & !(PAGE_SIZE - 1)).cast::<Slab>();
        // SAFETY: the page starts with a header; this is the only reference, to the header only.
        let header = unsafe { &mut *slab };
        // SAFETY: the block is free now, large enough for an address and aligned.
        unsafe { block.cast::<*mut u8>().write(header.free) };
        header.free = block;
        let was_full = usize::from(header.used) == blocks_per_slab(class);
        header.used -= 1;
        let is_empty = header.used == 0;
        if was_full {
            self.link(slab, class);
        }
        if is_empty && !self.is_alone(slab, class) {
            self.unlink(slab, class);
            if let Some(page) = NonNull::new(slab.cast()) {
                // SAFETY: came from `open_slab` with this layout, and nothing is left in it.
                unsafe { self.holes.deallocate(page, SLAB) };
            }
        }
    }

    /// Whether a slab with room is the only one of its class.
    fn is_alone(&self, slab: *mut Slab, class: usize) -> bool {
        // SAFETY: a slab of ours; read only.
        self.open[class] == slab && unsafe { (*slab).next }.is_null()
    }

    /// Puts a slab first in the list of those with room.
    fn link(&mut self, slab: *mut Slab, class: usize) {
        let next = core::mem::replace(&mut self.open[class], slab);
        // SAFETY: a slab of ours, without another reference in use.
        let header = unsafe { &mut *slab };
        header.prev = null_mut();
        header.next = next;
        if !next.is_null() {
            // SAFETY: slabs in a list are pages of ours.
            unsafe { (*next).prev = slab };
        }
    }

    /// Takes a slab out of the list of those with room.
    fn unlink(&mut self, slab: *mut Slab, class: usize) {
        // SAFETY: a slab of ours; read only.
        let Slab { prev, next, .. } = *unsafe { &*slab };
        if prev.is_null() {
            self.open[class] = next;
        } else {
            // SAFETY: slabs in a list are pages of ours.
            unsafe { (*prev).next = next };
        }
        if !next.is_null() {
            // SAFETY: slabs in a list are pages of ours.
            unsafe { (*next).prev = prev };
        }
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::alloc::{alloc, dealloc};
    use alloc::vec::Vec;

    /// Runs `test` on a heap of `pages` pages, given to it in two halves.
    fn with_heap(pages: usize, test: impl FnOnce(&mut Heap)) {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(layout) };
        assert!(!memory.is_null());
        let mut heap = Heap::new();
        let half = pages / 2 * PAGE_SIZE;
        // SAFETY: (1, 2, 3) aligned, ours until freed below, whole pages.
        unsafe { heap.extend(memory, half) };
        // SAFETY: inside the allocation.
        let second = unsafe { memory.add(half) };
        // SAFETY: as above, and it continues the first half.
        unsafe { heap.extend(second, layout.size() - half) };
        assert_eq!(heap.size(), layout.size());
        test(&mut heap);
        // SAFETY: allocated above; the heap is not used any more.
        unsafe { dealloc(memory, layout) };
    }

    #[test]
    fn blocks_with_a_rare_alignment_are_not_small() {
        assert_eq!(small_class(Layout::from_size_align(16, 16).unwrap()), Some(0));
        assert_eq!(small_class(Layout::from_size_align(16, 32).unwrap()), None);
    }

    #[test]
    fn blocks_never_overlap_and_everything_comes_back() {
        with_heap(256, |heap| {
            let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
            let mut seed = 1_u64;
            let mut random = |below: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % below
            };
            let rounds = if cfg!(miri) { 500 } else { 40_000 };
            for round in 0..rounds {
                if random(100) < 55 && live.len() < 1000 {
                    let large = random(20) == 0;
                    let size = random(if large { 9000 } else { 600 }) + 1;
                    let align = 1 << random(7);
                    let layout =
                        Layout::from_size_align(usize::try_from(size).unwrap(), align).unwrap();
                    let block = heap.allocate(layout);
                    if block.is_null() {
                        continue;
                    }
                    assert!(block.addr() % align == 0);
                    let mark = u8::try_from(round % 251).unwrap();
                    // SAFETY: a fresh block of that size.
                    unsafe { block.write_bytes(mark, layout.size()) };
                    live.push((block, layout, mark));
                } else if !live.is_empty() {
                    let index = usize::try_from(random(live.len() as u64)).unwrap();
                    let (block, layout, mark) = live.swap_remove(index);
                    // SAFETY: live, initialised above, and of that size.
                    let bytes = unsafe { core::slice::from_raw_parts(block, layout.size()) };
                    assert!(bytes.iter().all(|&b| b == mark));
                    // SAFETY: allocated above with that layout.
                    unsafe { heap.free(block, layout) };
                }
            }
            for (block, layout, _) in live {
                // SAFETY: allocated above with that layout.
                unsafe { heap.free(block, layout) };
            }
            assert_eq!(heap.used(), 0);
            assert!(heap.available() >= heap.size() - SIZES.len() * PAGE_SIZE);
        });
    }

    #[test]
    fn what_is_free_can_be_used_page_by_page() {
        with_heap(64, |heap| {
            let odd = |size| Layout::from_size_align(size, 8).unwrap();
            let layouts = (0..40).map(|i| odd(2100 + i * 50));
            let blocks: Vec<_> = layouts.map(|l| (heap.allocate(l), l)).collect();
            for (block, layout) in blocks.iter().step_by(2) {
                // SAFETY: allocated above with that layout.
                unsafe { heap.free(*block, *layout) };
            }
            let mut pages = 0;
            while !heap.allocate(odd(PAGE_SIZE)).is_null() {
                pages += 1;
            }
            assert_eq!((pages, heap.available()), (64 - 20, 0));
        });
    }

    #[test]
    fn exhaustion_is_null_and_passes() {
        with_heap(8, |heap| {
            let layout = Layout::from_size_align(1000, 8).unwrap();
            let mut blocks = Vec::new();
            loop {
                let block = heap.allocate(layout);
                if block.is_null() {
                    break;
                }
                blocks.push(block);
            }
            assert!(blocks.len() >= 28);
            assert!(heap.allocate(Layout::from_size_align(5000, 8).unwrap()).is_null());
            assert!(!heap.has_block(1));
            for block in blocks {
                // SAFETY: allocated above with that layout.
                unsafe { heap.free(block, layout) };
            }
            assert!(!heap.allocate(Layout::from_size_align(5000, 8).unwrap()).is_null());
        });
    }
}
