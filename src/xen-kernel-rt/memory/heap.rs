//! The allocator: slabs for small blocks, pages for everything larger.
//!
//! A small block comes from a *slab*, a page of blocks of one size ([`classes`](crate::memory::classes)). A block of
//! up to a page is a page. A larger one is a *run* of pages at consecutive addresses. Pages and runs come from
//! [`Pages`], and go back there as soon as nothing is left in them. One empty slab of each class may stay until
//! somebody needs its page.
//!
//! So every operation is O(1), or O(pages of the block) for a run, whatever has happened before. A run is made of
//! any free pages, so no pattern of use makes free memory useless.
//!
//! This file has only the arithmetic on memory. Pages come from `memory`, or, for programs on the host, from
//! `bounded`.

use crate::memory::classes::{
    PAGE_SIZE, SIZES, SLAB_HEADER, SMALL_ALIGN, block_bytes, blocks_per_slab, class_of,
};
use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{Ordering, compiler_fence};

/// When only so many free pages are left, Xen is asked for more, if it may have more to give. So many are there
/// for what must not fail when Xen refuses. The server's reserves are smaller than that.
pub const AHEAD: usize = 256;

/// A source of pages for a heap.
///
/// # Safety
/// Pages that were taken are valid for reads and writes until they are given back, start at multiples of
/// [`PAGE_SIZE`], and are used by nobody else.
pub unsafe trait Pages {
    /// One page, or null if there is none.
    fn take(&mut self) -> *mut u8;

    /// `count` pages, at least 2, at consecutive addresses, or null if there are none.
    fn take_run(&mut self, count: usize) -> *mut u8;

    /// Takes a page back, by its address.
    ///
    /// # Safety
    /// It came from [`take`](Self::take), and nothing in it is used any more.
    unsafe fn give(&mut self, page: usize);

    /// Takes a run back, by the address of its first page.
    ///
    /// # Safety
    /// It came from [`take_run`](Self::take_run) with this count, and nothing in it is used any more.
    unsafe fn give_run(&mut self, first: usize, count: usize);

    /// A pointer to an address inside a page that was taken. It may be used for the whole page; the caller's
    /// pointer to a block may not.
    fn at(&self, address: usize) -> *mut u8;
}

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
    /// Blocks that have been handed out at least once; those after them are not in `free`.
    fresh: u16,
}
const _: () = assert!(size_of::<Slab>() <= SLAB_HEADER && SLAB_HEADER % SMALL_ALIGN == 0);

/// The allocator's state.
pub struct Heap<P> {
    pages: P,
    /// For each class the list of slabs that have room. An empty one is alone in its list.
    open: [*mut Slab; SIZES.len()],
    /// Slabs in these lists that are empty.
    idle: usize,
    /// Bytes handed out, rounded up to what the blocks really take.
    used: usize,
    /// Pages taken.
    taken: usize,
    /// The block that is being taken back, or null, and its first bytes, for [`Heap::undo`].
    leaving: *mut u8,
    first: MaybeUninit<u64>,
}

// SAFETY: the pointers lead to memory that belongs to the heap alone.
unsafe impl<P: Send> Send for Heap<P> {}

impl<P> core::fmt::Debug for Heap<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Heap").field("used", &self.used).field("taken", &self.taken).finish()
    }
}

/// The class of a layout, if it is small.
fn small_class(layout: Layout) -> Option<usize> {
    if layout.align() > SMALL_ALIGN { None } else { class_of(layout.size()) }
}

/// The pages for a layout that is not small; `None` for an alignment above that of a page.
fn page_count(layout: Layout) -> Option<usize> {
    (layout.align() <= PAGE_SIZE).then(|| layout.size().div_ceil(PAGE_SIZE).max(1))
}

/// Whether a block of one layout can stay where it is and be one of `size` bytes from now on.
#[must_use]
pub fn stays(layout: Layout, size: usize) -> bool {
    match (small_class(layout), Layout::from_size_align(size, layout.align()).map(small_class)) {
        (Some(old), Ok(Some(new))) => old == new,
        (None, Ok(None)) => block_bytes(layout.size()) == block_bytes(size),
        _ => false,
    }
}

impl<P> Heap<P> {
    /// A heap without memory yet.
    #[must_use]
    pub const fn new(pages: P) -> Self {
        Self {
            pages,
            open: [null_mut(); SIZES.len()],
            idle: 0,
            used: 0,
            taken: 0,
            leaving: null_mut(),
            first: MaybeUninit::uninit(),
        }
    }

    /// A heap for going on after a change of another heap was interrupted. Nothing that the other one has handed
    /// out may come back to it. It counts that, too.
    #[must_use]
    pub fn in_place_of<Q>(other: &Heap<Q>, pages: P) -> Self {
        Self { used: other.used, taken: other.taken, ..Self::new(pages) }
    }

    /// Undoes an interrupted change of this heap, which is not used any more. The owner of a block that was being
    /// taken back may not know that yet, so its overwritten bytes are put back. Returns the block's address: its
    /// page may have been given away, and must not be used.
    ///
    /// # Safety
    /// `is_there` says whether the page of an address can be written, as it could when the block was in use.
    pub unsafe fn undo(&mut self, is_there: impl FnOnce(usize) -> bool) -> Option<usize> {
        let block = core::mem::replace(&mut self.leaving, null_mut());
        if block.is_null() || !is_there(block.addr()) {
            return None;
        }
        // SAFETY: a block has room for that, and is aligned; by contract it can be written.
        unsafe { block.cast::<MaybeUninit<u64>>().write(self.first) };
        Some(block.addr())
    }

    /// Bytes handed out, rounded up to what the blocks take: the sum of their
    /// [`block_bytes`](crate::memory::block_bytes).
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Pages that the heap has taken, used or not.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The pages of these that are empty. Any need for a page can have them.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Whoever has the pages.
    #[must_use]
    pub fn pages(&self) -> &P {
        &self.pages
    }

    /// Whoever has the pages.
    pub fn pages_mut(&mut self) -> &mut P {
        &mut self.pages
    }
}

impl<P: Pages> Heap<P> {
    /// A block for `layout`, or null if there is none.
    pub fn allocate(&mut self, layout: Layout) -> *mut u8 {
        if let Some(class) = small_class(layout) {
            return self.allocate_small(class);
        }
        page_count(layout).map_or(null_mut(), |count| self.allocate_pages(count))
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// `block` came from [`Self::allocate`] of this heap with the same layout, or one that [`stays`] says has the
    /// same place, and is not used any more.
    pub unsafe fn free(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: the smallest class is larger, and all are aligned for it.
        self.first = unsafe { block.cast::<MaybeUninit<u64>>().read() };
        self.leaving = block;
        // Before anything changes, for whoever breaks that off.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: by contract.
        unsafe { self.take_back(block, layout) };
        compiler_fence(Ordering::SeqCst);
        self.leaving = null_mut();
    }

    /// The work of [`free`](Self::free).
    ///
    /// # Safety
    /// As there.
    #[inline]
    unsafe fn take_back(&mut self, block: *mut u8, layout: Layout) {
        if let Some(class) = small_class(layout) {
            // SAFETY: a block of this class, by contract.
            unsafe { self.free_small(block.addr(), class) };
        } else if let Some(count) = page_count(layout) {
            // SAFETY: `allocate` took so many pages for this layout.
            unsafe { self.free_pages(block.addr(), count) };
        }
    }

    /// A block of so many pages, or null.
    #[inline(never)]
    fn allocate_pages(&mut self, count: usize) -> *mut u8 {
        let block = if count == 1 { self.take_page() } else { self.take_run(count) };
        if !block.is_null() {
            self.used += count * PAGE_SIZE;
        }
        block
    }

    /// Takes a block of pages back.
    ///
    /// # Safety
    /// `block` is the address of one that came from [`Self::allocate_pages`] with this count, and is not used any
    /// more.
    #[inline(never)]
    unsafe fn free_pages(&mut self, block: usize, count: usize) {
        self.used -= count * PAGE_SIZE;
        self.taken -= count;
        if count == 1 {
            // SAFETY: came from `take_page`.
            unsafe { self.pages.give(block) };
        } else {
            // SAFETY: came from `take_run` with this count.
            unsafe { self.pages.give_run(block, count) };
        }
    }

    /// Gives back the pages of the slabs that are empty; returns how many there were.
    pub fn trim(&mut self) -> usize {
        let found = self.idle;
        for class in 0..SIZES.len() {
            let slab = self.open[class];
            // SAFETY: slabs in `open` are pages of ours that start with a header; read only.
            if !slab.is_null() && unsafe { (*slab).used } == 0 {
                self.open[class] = null_mut();
                self.give_slab(slab);
            }
        }
        found - self.idle
    }

    /// A page; if need be, that of an empty slab.
    fn take_page(&mut self) -> *mut u8 {
        let mut page = self.pages.take();
        if page.is_null() && self.idle > 0 && self.trim() > 0 {
            page = self.pages.take();
        }
        self.taken += usize::from(!page.is_null());
        page
    }

    /// A run of pages; if need be, with those of empty slabs.
    fn take_run(&mut self, count: usize) -> *mut u8 {
        let mut run = self.pages.take_run(count);
        if run.is_null() && self.idle > 0 && self.trim() > 0 {
            run = self.pages.take_run(count);
        }
        if !run.is_null() {
            self.taken += count;
        }
        run
    }

    /// A block of a class, or null.
    fn allocate_small(&mut self, class: usize) -> *mut u8 {
        if self.open[class].is_null() && !self.open_slab(class) {
            return null_mut();
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
        self.idle -= usize::from(header.used == 0);
        header.used += 1;
        if usize::from(header.used) == blocks_per_slab(class) {
            self.unlink(slab, class);
        }
        self.used += SIZES[class];
        block
    }

    /// Makes a new slab the only one with room; `false` if there is no page for it.
    #[cold]
    #[inline(never)]
    fn open_slab(&mut self, class: usize) -> bool {
        let slab = self.take_page().cast::<Slab>();
        if slab.is_null() {
            return false;
        }
        let empty =
            Slab { prev: null_mut(), next: null_mut(), free: null_mut(), used: 0, fresh: 0 };
        // SAFETY: a page of ours, aligned to its size.
        unsafe { slab.write(empty) };
        self.open[class] = slab;
        self.idle += 1;
        true
    }

    /// Takes a block of a class back.
    ///
    /// # Safety
    /// `block` is the address of one that came from [`Self::allocate_small`] with this class, and is not used any
    /// more.
    unsafe fn free_small(&mut self, block: usize, class: usize) {
        self.used -= SIZES[class];
        // The block's page is its slab.
        let slab = self.pages.at(block & !(PAGE_SIZE - 1)).cast::<Slab>();
        let block = self.pages.at(block);
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
        if is_empty {
            self.idle += 1;
            if !self.is_alone(slab, class) {
                self.close_slab(slab, class);
            }
        }
    }

    /// Gives the page of an empty slab back.
    #[cold]
    #[inline(never)]
    fn close_slab(&mut self, slab: *mut Slab, class: usize) {
        self.unlink(slab, class);
        self.give_slab(slab);
    }

    /// Gives the page of an empty slab back that is in no list any more.
    fn give_slab(&mut self, slab: *mut Slab) {
        self.idle -= 1;
        self.taken -= 1;
        // SAFETY: came from `take_page`, one page, and nothing is left in it.
        unsafe { self.pages.give(slab.addr()) };
    }

    /// Whether a slab with room is the only one of its class.
    fn is_alone(&self, slab: *mut Slab, class: usize) -> bool {
        // SAFETY: a slab of ours; read only.
        self.open[class] == slab && unsafe { (*slab).next }.is_null()
    }

    /// Puts a slab first in the list of those with room. An empty one that was alone there goes.
    #[cold]
    #[inline(never)]
    fn link(&mut self, slab: *mut Slab, class: usize) {
        let mut next = core::mem::replace(&mut self.open[class], slab);
        // SAFETY: slabs in a list are pages of ours; read only.
        if !next.is_null() && unsafe { (*next).used } == 0 {
            self.give_slab(next);
            next = null_mut();
        }
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
    #[cold]
    #[inline(never)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::alloc::{alloc, dealloc};
    use alloc::vec;
    use alloc::vec::Vec;

    /// Pages of one piece of memory, the first free ones first: holes and all.
    struct Piece {
        base: *mut u8,
        free: Vec<bool>,
        taken: usize,
    }

    impl Piece {
        fn layout(&self) -> Layout {
            Layout::from_size_align(self.free.len() * PAGE_SIZE, PAGE_SIZE).unwrap()
        }

        fn find(&self, count: usize) -> Option<usize> {
            (0..=self.free.len().checked_sub(count)?)
                .find(|&first| self.free[first..first + count].iter().all(|&free| free))
        }

        fn set(&mut self, first: usize, count: usize, free: bool) {
            for page in &mut self.free[first..first + count] {
                assert_eq!(*page, !free, "taken or given twice");
                *page = free;
            }
        }
    }

    // SAFETY: pages of an allocation that lives as long as the value, each handed out once until it comes back.
    unsafe impl Pages for Piece {
        fn take(&mut self) -> *mut u8 {
            self.take_run(1)
        }

        fn take_run(&mut self, count: usize) -> *mut u8 {
            let Some(first) = self.find(count) else { return null_mut() };
            self.set(first, count, false);
            self.taken += count;
            self.at(self.base.addr() + first * PAGE_SIZE)
        }

        unsafe fn give(&mut self, page: usize) {
            // SAFETY: by contract.
            unsafe { self.give_run(page, 1) };
        }

        unsafe fn give_run(&mut self, first: usize, count: usize) {
            self.set((first - self.base.addr()) / PAGE_SIZE, count, true);
            self.taken -= count;
        }

        fn at(&self, address: usize) -> *mut u8 {
            // SAFETY: inside the allocation.
            unsafe { self.base.add(address - self.base.addr()) }
        }
    }

    impl Drop for Piece {
        fn drop(&mut self) {
            // SAFETY: allocated in `heap` with this layout; the heap is not used any more.
            unsafe { dealloc(self.base, self.layout()) };
        }
    }

    /// A heap of so many pages.
    fn heap(pages: usize) -> Heap<Piece> {
        let mut piece = Piece { base: null_mut(), free: vec![true; pages], taken: 0 };
        // SAFETY: the layout is not empty.
        piece.base = unsafe { alloc(piece.layout()) };
        assert!(!piece.base.is_null());
        Heap::new(piece)
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn rare_alignments_are_not_small() {
        assert_eq!(small_class(layout(16, 16)), Some(0));
        assert_eq!(small_class(layout(16, 32)), None);
        assert_eq!(page_count(layout(16, 32)), Some(1));
        assert_eq!(page_count(layout(16, 8192)), None);
        assert!(heap(4).allocate(layout(16, 8192)).is_null());
    }

    #[test]
    fn a_block_stays_where_a_block_of_the_new_size_would_be_the_same() {
        assert!(stays(layout(100, 8), 112));
        assert!(!stays(layout(100, 8), 113));
        assert!(stays(layout(3000, 8), 4096));
        assert!(!stays(layout(3000, 8), 2032));
        assert!(stays(layout(5000, 8), 8192));
        assert!(!stays(layout(5000, 8), 8193));
        assert!(!stays(layout(5000, 8), usize::MAX));
    }

    #[test]
    fn blocks_never_overlap_and_everything_comes_back() {
        let mut heap = heap(256);
        let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let rounds = if cfg!(miri) { 500 } else { 40_000 };
        for round in 0..rounds {
            // Now it grows, now it shrinks.
            if random(100) < if round / 2000 % 2 == 0 { 60 } else { 40 } {
                let large = random(20) == 0;
                let size = random(if large { 9000 } else { 600 }) + 1;
                let layout = layout(usize::try_from(size).unwrap(), 1 << random(7));
                let block = heap.allocate(layout);
                if block.is_null() {
                    continue;
                }
                assert!(block.addr() % layout.align() == 0);
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
            let taken = |(_, layout, _): &(_, Layout, _)| match small_class(*layout) {
                Some(class) => SIZES[class],
                None => page_count(*layout).unwrap() * PAGE_SIZE,
            };
            if round % 64 == 0 {
                assert_eq!(heap.used(), live.iter().map(taken).sum());
                assert_eq!(heap.taken(), heap.pages().taken);
                assert!(heap.idle() <= SIZES.len());
            }
        }
        for (block, layout, _) in live {
            // SAFETY: allocated above with that layout.
            unsafe { heap.free(block, layout) };
        }
        assert_eq!((heap.used(), heap.taken()), (0, heap.idle()));
        let idle = heap.idle();
        assert_eq!(heap.trim(), idle);
        assert_eq!((heap.taken(), heap.idle(), heap.pages().taken), (0, 0, 0));
    }

    /// Pages of whoever fails at the so-manieth call, before it does anything or after.
    struct Failing {
        piece: Piece,
        calls_left: usize,
        after: bool,
    }

    impl Failing {
        fn call<T>(&mut self, call: impl FnOnce(&mut Piece) -> T) -> T {
            let fails = self.calls_left == 0;
            self.calls_left = self.calls_left.wrapping_sub(1);
            assert!(!fails || self.after, "on purpose");
            let result = call(&mut self.piece);
            assert!(!fails, "on purpose");
            result
        }
    }

    // SAFETY: those of `Piece`.
    unsafe impl Pages for Failing {
        fn take(&mut self) -> *mut u8 {
            self.call(Pages::take)
        }

        fn take_run(&mut self, count: usize) -> *mut u8 {
            self.call(|piece| piece.take_run(count))
        }

        unsafe fn give(&mut self, page: usize) {
            // SAFETY: by contract.
            self.call(|piece| unsafe { piece.give(page) });
        }

        unsafe fn give_run(&mut self, first: usize, count: usize) {
            // SAFETY: by contract.
            self.call(|piece| unsafe { piece.give_run(first, count) });
        }

        fn at(&self, address: usize) -> *mut u8 {
            self.piece.at(address)
        }
    }

    /// Works until its pages fail in the middle of a change; says how many blocks there were.
    fn fail_and_go_on(calls: usize, after: bool) -> usize {
        use core::panic::AssertUnwindSafe;
        use std::panic::catch_unwind;
        let Heap { pages: piece, .. } = heap(64);
        let mut heap = Heap::new(Failing { piece, calls_left: calls, after });
        let mut live: Vec<(*mut u8, Layout)> = Vec::new();
        let mark = |block: *mut u8| u8::try_from(block.addr() / 16 % 251).unwrap();
        let mut seed = calls;
        let broken = catch_unwind(AssertUnwindSafe(|| {
            loop {
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let random = seed >> 33;
                if random % 3 > 0 && live.len() < 40 {
                    let layout = layout([16, 700, 2000, 4096, 9000][random / 8 % 5], 16);
                    let block = heap.allocate(layout);
                    if !block.is_null() {
                        // SAFETY: a fresh block of that size.
                        unsafe { block.write_bytes(mark(block), layout.size()) };
                        live.push((block, layout));
                    }
                } else if let Some(&(block, layout)) = live.get(random / 8 % live.len().max(1)) {
                    // SAFETY: live; if that fails, its owner still has it.
                    unsafe { heap.free(block, layout) };
                    live.retain(|&(other, _)| other != block);
                }
            }
        }));
        assert!(broken.is_err());
        // SAFETY: all of it can always be written.
        let leaving = unsafe { heap.undo(|_| true) };
        let Heap { pages: Failing { mut piece, .. }, used, .. } = heap;
        let pages = |layout: Layout| layout.size().div_ceil(PAGE_SIZE);
        if let Some(block) = leaving {
            let layout = live.iter().find(|(other, _)| other.addr() == block).unwrap().1;
            let first = (block - piece.base.addr()) / PAGE_SIZE;
            for page in &mut piece.free[first..first + pages(layout)] {
                *page = false;
            }
        }
        let old = Heap { used, ..Heap::new(()) };
        let mut second = Heap::in_place_of(&old, piece);
        assert_eq!(second.used(), used);
        for size in [16, 700, 2000, 4096].repeat(10) {
            let block = second.allocate(layout(size, 16));
            if !block.is_null() {
                // SAFETY: a fresh block of that size.
                unsafe { block.write_bytes(0xff, size) };
            }
        }
        for (block, layout) in &live {
            // SAFETY: live, initialised above, and of that size.
            let bytes = unsafe { core::slice::from_raw_parts(*block, layout.size()) };
            assert!(bytes.iter().all(|&byte| byte == mark(*block)), "after {calls} calls");
        }
        live.len()
    }

    /// Whatever a heap was doing when it failed: no block that somebody has is damaged or handed out again.
    #[test]
    fn what_was_handed_out_outlives_a_failure() {
        let calls = if cfg!(miri) { 6 } else { 300 };
        let hook = std::panic::take_hook();
        std::panic::set_hook(alloc::boxed::Box::new(|_| {}));
        let blocks: usize =
            (0..calls).map(|n| fail_and_go_on(n, false) + fail_and_go_on(n, true)).sum();
        std::panic::set_hook(hook);
        assert!(blocks > calls);
    }

    #[test]
    fn empty_slabs_are_there_for_whoever_needs_their_pages() {
        let mut heap = heap(SIZES.len());
        for pages in [1, SIZES.len()] {
            for size in SIZES {
                let block = heap.allocate(layout(size, 1));
                assert!(!block.is_null());
                // SAFETY: allocated just now with that layout.
                unsafe { heap.free(block, layout(size, 1)) };
            }
            assert_eq!((heap.idle(), heap.used()), (SIZES.len(), 0));
            let large = layout(pages * PAGE_SIZE, 1);
            let block = heap.allocate(large);
            assert!(!block.is_null());
            assert_eq!((heap.idle(), heap.taken()), (0, pages));
            // SAFETY: allocated just now with that layout.
            unsafe { heap.free(block, large) };
        }
    }

    #[test]
    fn exhaustion_is_null_and_passes() {
        let mut heap = heap(8);
        let small = layout(1000, 8);
        let mut blocks = Vec::new();
        loop {
            let block = heap.allocate(small);
            if block.is_null() {
                break;
            }
            blocks.push(block);
        }
        assert_eq!(blocks.len(), 32);
        assert!(heap.allocate(layout(5000, 8)).is_null());
        for block in blocks {
            // SAFETY: allocated above with that layout.
            unsafe { heap.free(block, small) };
        }
        assert!(!heap.allocate(layout(5000, 8)).is_null());
    }
}
