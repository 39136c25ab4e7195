//! The image's allocator for programs on the host: memory with an end, and a Xen that refuses more of it.
//!
//! A test, an example or a bench declares [`Bounded`] as its `#[global_allocator]`. That is the system's
//! allocator. Inside [`Arena::enter`], however, blocks come from that arena: the heap of the image over so many
//! pages and no more. So a server in there behaves as in a domain of that size. Inside [`outside`] the system's
//! allocator is back, for what the simulated world does on the server's behalf.
//!
//! Blocks are freed by their address, so any thread may free a block anywhere, even after its arena was dropped.
//!
//! ```text
//!   arena   one piece of the program's memory, whose addresses are never given away twice
//!   ├── pages   as many as the domain can have
//!   └── runs    for blocks of several pages: addresses in powers of two, as the image has them
//! ```
//!
//! The limit is the number of pages that are in use together. As in the image, any free pages make a run.

use super::heap::{AHEAD, Heap, Pages, stays};
use super::runs::Runs;
use super::surplus::{self, Surplus};
use crate::memory::HeapStats;
use crate::memory::classes::PAGE_SIZE;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most arenas at a time, including those that were dropped and still have blocks.
const ARENAS: usize = 64;

/// Addresses for runs, in multiples of the arena's pages. There are fewer if the system has not enough.
const WINDOW: usize = 16;

/// Pages that the simulated Xen is asked for at a time.
const CHUNK: usize = 64;

/// What the simulated Xen says when it is asked for more memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Growth {
    /// Yes, up to the limit.
    Granted,
    /// No, from now on.
    Refused,
    /// So many pages more, and then no.
    Until(usize),
    /// By chance: in so many of a thousand cases it gives something, from one page to all that is asked for.
    Random {
        /// Cases of a thousand.
        per_mille: u16,
        /// Makes the answers of one run the same each time; not 0.
        seed: u64,
    },
}

/// What an arena has seen, in bytes where nothing else is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Handed out now: the sum of the blocks' [`block_bytes`](crate::memory::block_bytes).
    pub used: usize,
    /// The most that was.
    pub peak: usize,
    /// Pages taken now.
    pub pages: usize,
    /// The most that were.
    pub peak_pages: usize,
    /// The largest block that was asked for, as it was asked for.
    pub largest: usize,
    /// Blocks asked for so far.
    pub asked: u64,
    /// How many of them were not to be had.
    pub refused: u64,
    /// The last of those, as it was asked for.
    pub last_refused: usize,
    /// Times that Xen was asked for memory.
    pub growths: u64,
}

/// The pages of an arena.
struct Host {
    base: *mut u8,
    /// Pages of the whole piece. Runs are behind the first `limit` ones.
    size: usize,
    runs: Runs,
    /// Single pages that were used at least once, and the first free one of them, which starts with the address of
    /// the next.
    fresh: usize,
    free_pages: *mut u8,
    /// Pages that memory stands behind, those of them in use, and what there may ever be.
    populated: usize,
    taken: usize,
    limit: usize,
    growth: Growth,
    growths: u64,
    /// Xen has refused; it is not asked again for a while.
    refused: bool,
    /// Pages at the start, and what goes back of those that came since.
    built: usize,
    surplus: Surplus,
}

// SAFETY: the pointers lead into the arena, which the value owns.
unsafe impl Send for Host {}

impl Host {
    /// The whole piece.
    fn layout(size: usize) -> Option<Layout> {
        Layout::from_size_align(size.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
    }

    fn new(start: usize, limit: usize) -> Option<Self> {
        let limit = limit.max(1);
        (1..=WINDOW).rev().find_map(|factor| {
            let size = limit.checked_mul(1 + factor)?;
            // SAFETY: the layout is not empty.
            let base = unsafe { System.alloc(Self::layout(size)?) };
            (!base.is_null()).then_some(Self {
                base,
                size,
                runs: Runs::new(size - limit),
                fresh: 0,
                free_pages: null_mut(),
                populated: start.min(limit),
                taken: 0,
                limit,
                growth: Growth::Granted,
                growths: 0,
                refused: false,
                built: start.min(limit),
                surplus: Surplus::new(),
            })
        })
    }

    fn page(&self, index: usize) -> *mut u8 {
        debug_assert!(index < self.size, "a page outside the arena");
        // SAFETY: inside the arena.
        unsafe { self.base.add(index * PAGE_SIZE) }
    }

    fn free(&self) -> usize {
        self.populated - self.taken
    }

    /// Pages that Xen may still give.
    fn growth_left(&self) -> usize {
        if self.refused { 0 } else { self.limit - self.populated }
    }

    /// Whether `count` pages are free. Asks Xen for more as soon as fewer than [`AHEAD`] would be left.
    fn supply(&mut self, count: usize) -> bool {
        // What cannot be had is not begun.
        let possible = count <= self.free() + self.growth_left();
        let wanted = AHEAD + if possible { count } else { 0 };
        while self.free() < wanted && self.growth_left() > 0 {
            let missing = wanted - self.free();
            let got = self.ask(missing.max(CHUNK).min(self.growth_left()));
            self.populated += got;
            self.refused = got == 0;
        }
        self.free() >= count
    }

    /// Asks the simulated Xen for pages; returns how many it gives.
    fn ask(&mut self, wanted: usize) -> usize {
        self.growths += 1;
        self.surplus.disturb();
        match &mut self.growth {
            Growth::Granted => wanted,
            Growth::Refused => 0,
            Growth::Until(left) => {
                let got = wanted.min(*left);
                *left -= got;
                got
            }
            Growth::Random { per_mille, seed } => {
                // xorshift64 (Marsaglia 2003).
                let mut next = || {
                    *seed ^= *seed << 13;
                    *seed ^= *seed >> 7;
                    *seed ^= *seed << 17;
                    *seed >> 11
                };
                let granted = next() % 1000 < u64::from(*per_mille);
                let part = usize::try_from(next()).unwrap_or(0) % wanted + 1;
                if granted { part } else { 0 }
            }
        }
    }
}

// SAFETY: pages are parts of the arena; one is either handed out, or in a list, or was never used.
unsafe impl Pages for Host {
    fn take(&mut self) -> *mut u8 {
        if !self.supply(1) {
            return null_mut();
        }
        self.taken += 1;
        let page = self.free_pages;
        if page.is_null() {
            // No more than `limit` are in use together, so there is one.
            self.fresh += 1;
            return self.page(self.fresh - 1);
        }
        // SAFETY: a free page of the arena, which starts with the address of the next.
        self.free_pages = unsafe { page.cast::<*mut u8>().read() };
        page
    }

    fn take_run(&mut self, count: usize) -> *mut u8 {
        if count > self.limit || !self.supply(count) {
            return null_mut();
        }
        let (base, limit) = (self.base, self.limit);
        let run = self.runs.take(count, |first| {
            // SAFETY: inside the arena.
            let page = unsafe { base.add((limit + first) * PAGE_SIZE) };
            // SAFETY: a free run of the arena, which starts with what `give_run` has left there.
            unsafe { page.cast::<usize>().read() }
        });
        let Some(first) = run else { return null_mut() };
        self.taken += count;
        self.page(limit + first)
    }

    unsafe fn give(&mut self, page: usize) {
        let page = self.at(page);
        self.taken -= 1;
        // SAFETY: a page of the arena, and by contract nobody uses it.
        unsafe { page.cast::<*mut u8>().write(self.free_pages) };
        self.free_pages = page;
    }

    unsafe fn give_run(&mut self, first: usize, count: usize) {
        let page = (first - self.base.addr()) / PAGE_SIZE - self.limit;
        self.taken -= count;
        let link = self.runs.give(page, count);
        // SAFETY: pages of the arena, and by contract nobody uses them.
        unsafe { self.at(first).cast::<usize>().write(link) };
    }

    fn at(&self, address: usize) -> *mut u8 {
        let offset = address - self.base.addr();
        debug_assert!(offset < self.size * PAGE_SIZE, "an address outside the arena");
        // SAFETY: inside the arena.
        unsafe { self.base.add(offset) }
    }
}

/// An arena as the allocator sees it.
struct State {
    heap: Heap<Host>,
    figures: Figures,
    /// After so many more blocks one is refused; 0 for never.
    fail_in: u64,
    /// Nobody can enter it any more; what is left of it waits for its blocks.
    dropped: bool,
}

impl State {
    fn allocate(&mut self, layout: Layout) -> *mut u8 {
        self.figures.asked += 1;
        self.figures.largest = self.figures.largest.max(layout.size());
        let fails = self.fail_in == 1;
        self.fail_in = self.fail_in.saturating_sub(1);
        let block = if fails { null_mut() } else { self.heap.allocate(layout) };
        if block.is_null() {
            self.figures.refused += 1;
            self.figures.last_refused = layout.size();
        } else {
            self.figures.peak = self.figures.peak.max(self.heap.used());
            self.figures.peak_pages = self.figures.peak_pages.max(self.heap.taken());
        }
        block
    }
}

/// Bits of a packed range that count its pages: enough for 1 TiB. The others are the number of its first page.
const RANGE_BITS: u32 = 28;
const RANGE_MASK: u64 = (1 << RANGE_BITS) - 1;

/// The addresses of an arena in one word.
fn range_of(start: usize, pages: usize) -> u64 {
    let (first, pages) = ((start / PAGE_SIZE) as u64, pages as u64);
    assert!(first >> (u64::BITS - RANGE_BITS) == 0 && pages <= RANGE_MASK, "an arena out of range");
    first << RANGE_BITS | pages
}

/// A place for an arena.
struct Place {
    /// Its addresses, as [`range_of`] packs them; 0 while there is none. They are one word, so that a thread never
    /// sees the start of one arena with the end of another while arenas come and go.
    range: AtomicU64,
    state: Mutex<Option<State>>,
}

static PLACES: [Place; ARENAS] =
    [const { Place { range: AtomicU64::new(0), state: Mutex::new(None) } }; ARENAS];

/// Places that were used at least once: those before this one.
static PLACES_USED: AtomicUsize = AtomicUsize::new(0);

impl Place {
    /// The arena that an address belongs to.
    fn of(address: usize) -> Option<&'static Self> {
        PLACES.iter().take(PLACES_USED.load(Ordering::Acquire)).find(|place| {
            // A block that lives keeps its place as it is.
            let range = place.range.load(Ordering::Relaxed);
            let page = (address / PAGE_SIZE) as u64;
            let (first, count) = (range >> RANGE_BITS, range & RANGE_MASK);
            page >= first && page - first < count
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an arena's memory back if nobody can enter it any more and no block is left.
    fn release_if_done(&self, guard: &mut Option<State>) {
        if !guard.as_ref().is_some_and(|state| state.dropped && state.heap.used() == 0) {
            return;
        }
        self.range.store(0, Ordering::Relaxed);
        if let Some(state) = guard.take() {
            let host = state.heap.pages();
            if let Some(layout) = Host::layout(host.size) {
                // SAFETY: allocated in `new` with this layout; no block is left in it.
                unsafe { System.dealloc(host.base, layout) };
            }
        }
    }
}

std::thread_local! {
    /// The place, plus one, of the arena that this thread's blocks come from; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Runs `f` with blocks from another place, and comes back to the one before, whatever happens.
fn switch<R>(place: usize, f: impl FnOnce() -> R) -> R {
    struct Back(usize);
    impl Drop for Back {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _back = Back(CURRENT.replace(place));
    f()
}

/// Runs `f` with the system's allocator, also inside of [`Arena::enter`].
pub fn outside<R>(f: impl FnOnce() -> R) -> R {
    switch(0, f)
}

/// Memory for a simulated domain. Dropping it leaves blocks that are still in use where they are.
#[derive(Debug)]
pub struct Arena {
    place: usize,
}

impl Arena {
    /// Memory of `start` pages that may become `limit` pages.
    ///
    /// # Panics
    /// If [`Bounded`] is not the program's allocator, there are too many arenas, or the system has no memory for one
    /// more.
    #[must_use]
    pub fn new(start: usize, limit: usize) -> Self {
        outside(|| {
            let arena = Self { place: Self::find_place(start, limit) };
            let probe = arena.enter(|| core::hint::black_box(alloc::boxed::Box::new(0_u8)));
            let asked = arena.figures().asked;
            drop(probe);
            assert!(asked == 1, "declare Bounded as the #[global_allocator]: nothing is bounded");
            arena.with(|state| {
                state.heap.trim();
                state.figures = Figures::default();
            });
            arena
        })
    }

    fn find_place(start: usize, limit: usize) -> usize {
        for (index, place) in PLACES.iter().enumerate() {
            let mut guard = place.lock();
            if guard.is_some() {
                continue;
            }
            let host = Host::new(start, limit);
            let host = host.unwrap_or_else(|| panic!("no memory for an arena of {limit} pages"));
            place.range.store(range_of(host.base.addr(), host.size), Ordering::Relaxed);
            let (heap, figures) = (Heap::new(host), Figures::default());
            *guard = Some(State { heap, figures, fail_in: 0, dropped: false });
            PLACES_USED.fetch_max(index + 1, Ordering::Release);
            return index;
        }
        panic!("more than {ARENAS} arenas at a time");
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut guard = PLACES[self.place].lock();
        match guard.as_mut() {
            Some(state) => f(state),
            None => unreachable!("an arena without its state"),
        }
    }

    /// Runs `f` with blocks from this arena, on this thread.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        switch(self.place + 1, f)
    }

    /// What the arena has seen.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.with(|state| Figures {
            used: state.heap.used(),
            pages: state.heap.taken(),
            growths: state.heap.pages().growths,
            ..state.figures
        })
    }

    /// Resets the peaks and the largest block.
    pub fn reset_peaks(&self) {
        self.with(|state| {
            state.figures.peak = state.heap.used();
            state.figures.peak_pages = state.heap.taken();
            state.figures.largest = 0;
        });
    }

    /// How Xen answers from now on when it is asked for more. It is asked again.
    pub fn set_growth(&self, growth: Growth) {
        self.with(|state| state.heap.pages_mut().growth = growth);
        self.forget_refusal();
    }

    /// Time has passed since Xen has refused memory: it is asked again when more is needed.
    pub fn forget_refusal(&self) {
        self.with(|state| state.heap.pages_mut().refused = false);
    }

    /// Has the `n`-th block from now on refused, 1 for the next one, whatever memory there is; 0 for none.
    pub fn fail_nth(&self, n: u64) {
        self.with(|state| state.fail_in = n);
    }

    /// Whether the block of [`fail_nth`](Self::fail_nth) is still to come.
    #[must_use]
    pub fn is_failure_pending(&self) -> bool {
        self.with(|state| state.fail_in > 0)
    }

    /// What the image does before it sleeps: at `now_ms` it gives pages back to Xen, if there are too many.
    /// Returns when to come again, if at all.
    pub fn tend(&self, now_ms: u64) -> Option<u64> {
        self.with(|state| {
            let host = state.heap.pages_mut();
            let pages =
                surplus::Pages { free: host.free(), populated: host.populated, built: host.built };
            let (count, again) = host.surplus.step(pages, now_ms);
            host.populated -= count;
            again
        })
    }

    /// As `memory::reserve` of a domain.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> bool {
        self.with(|state| {
            let idle = state.heap.idle();
            let pages = bytes.div_ceil(PAGE_SIZE).saturating_sub(idle);
            state.heap.pages_mut().supply(pages)
        })
    }

    /// As `memory::heap` of a domain.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.with(|state| {
            let (heap, host) = (&state.heap, state.heap.pages());
            let obtainable = host.free() + host.growth_left();
            HeapStats {
                used: heap.used(),
                size: heap.taken() * PAGE_SIZE,
                limit: (heap.taken() + obtainable) * PAGE_SIZE,
                free: (obtainable + heap.idle()) * PAGE_SIZE,
            }
        })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let place = &PLACES[self.place];
        let mut guard = place.lock();
        if let Some(state) = guard.as_mut() {
            state.dropped = true;
        }
        place.release_if_done(&mut guard);
    }
}

/// The allocator to declare: the system's outside of an [`Arena`], and the image's inside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounded;

// SAFETY: blocks of the system are the system's; those of an arena are the heap's, which hands out blocks that fit the
// layout and do not overlap. Which one a block belongs to is told by its address. Nothing here unwinds or allocates.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Where the thread ends its locals may be gone.
        let current = CURRENT.try_with(Cell::get).unwrap_or(0);
        let Some(place) = current.checked_sub(1).and_then(|index| PLACES.get(index)) else {
            // SAFETY: the caller's promise is the same.
            return unsafe { System.alloc(layout) };
        };
        place.lock().as_mut().map_or(null_mut(), |state| state.allocate(layout))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(place) = Place::of(block.addr()) else {
            // SAFETY: no arena has it, so it is the system's; the caller's promise is the same.
            return unsafe { System.dealloc(block, layout) };
        };
        let mut guard = place.lock();
        if let Some(state) = guard.as_mut() {
            // SAFETY: the caller's promise is the same.
            unsafe { state.heap.free(block, layout) };
        }
        place.release_if_done(&mut guard);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Place::of(block.addr()).is_some() {
            if stays(layout, size) {
                return block;
            }
        } else if CURRENT.try_with(Cell::get).unwrap_or(0) == 0 {
            // SAFETY: the system's block, and nobody is in an arena; the caller's promise is the same.
            return unsafe { System.realloc(block, layout, size) };
        }
        let Ok(new_layout) = Layout::from_size_align(size, layout.align()) else {
            return null_mut();
        };
        // SAFETY: the caller promises that `size` is not zero.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks have so many bytes, and the new one is nobody else's.
            unsafe { new.copy_from_nonoverlapping(block, layout.size().min(size)) };
            // SAFETY: the caller's promise; the block is not used any more.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec;
    use alloc::vec::Vec;

    /// All of this crate's unit tests run on it.
    #[global_allocator]
    static ALLOCATOR: Bounded = Bounded;

    #[test]
    fn blocks_inside_are_the_arenas_and_go_back_there_from_anywhere() {
        let arena = Arena::new(16, 16);
        let kept = arena.enter(|| {
            drop(vec![1_u8; 5000]);
            let outer = outside(|| vec![2_u8; 100_000]);
            assert_eq!(outer.len(), 100_000);
            vec![3_u8; 300]
        });
        assert_eq!(kept, [3; 300]);
        let seen = arena.figures();
        assert_eq!((seen.used, seen.pages, seen.peak, seen.peak_pages), (304, 1, 8192, 2));
        assert_eq!((seen.largest, seen.asked, seen.refused), (5000, 2, 0));
        std::thread::spawn(move || drop(kept)).join().unwrap();
        assert_eq!(arena.figures().used, 0);
    }

    #[test]
    fn an_arena_ends_with_its_last_block() {
        let arena = Arena::new(4, 4);
        let kept = arena.enter(|| Box::new(7_u64));
        let address = core::ptr::from_ref(&*kept).addr();
        drop(arena);
        assert!(Place::of(address).is_some());
        assert_eq!(*kept, 7);
        drop(kept);
        // Another arena may be there by now, but not with this address in use.
        let place = Place::of(address);
        assert!(place.is_none_or(|p| p.lock().as_ref().is_some_and(|s| !s.dropped)));
    }

    #[test]
    fn the_end_is_an_error_and_passes() {
        let arena = Arena::new(8, 8);
        arena.enter(|| {
            let mut big: Vec<u8> = Vec::new();
            assert!(big.try_reserve_exact(8 * PAGE_SIZE + 1).is_err());
            assert!(big.try_reserve_exact(8 * PAGE_SIZE).is_ok());
            let mut small: Vec<u8> = Vec::new();
            assert!(small.try_reserve_exact(1).is_err());
            drop(big);
            assert!(small.try_reserve_exact(1).is_ok());
        });
        let seen = arena.figures();
        assert_eq!((seen.refused, seen.last_refused, seen.peak_pages), (2, 1, 8));
    }

    #[test]
    fn any_free_pages_make_a_run() {
        let arena = Arena::new(64, 64);
        arena.enter(|| {
            let mut pages: Vec<Option<Box<[u8; 4096]>>> = Vec::new();
            outside(|| pages.reserve(64));
            for _ in 0..64 {
                pages.push(Some(Box::new([0; 4096])));
            }
            pages.iter_mut().step_by(2).for_each(|page| *page = None);
            let mut run: Vec<u8> = Vec::new();
            assert!(run.try_reserve_exact(32 * PAGE_SIZE).is_ok());
            run.resize(32 * PAGE_SIZE, 1);
            outside(|| drop(pages));
        });
    }

    #[test]
    fn growth_is_asked_for_ahead_and_a_refusal_is_remembered() {
        let arena = Arena::new(2 * AHEAD, 8 * AHEAD);
        let free = || arena.stats().free / PAGE_SIZE;
        assert_eq!(free(), 8 * AHEAD);
        arena.set_growth(Growth::Refused);
        assert!(arena.reserve(AHEAD * PAGE_SIZE));
        assert_eq!((free(), arena.figures().growths), (8 * AHEAD, 0));
        assert!(arena.reserve((AHEAD + 1) * PAGE_SIZE));
        // Refused, while AHEAD pages were still free: what is free now is what is there.
        assert_eq!((free(), arena.figures().growths), (2 * AHEAD, 1));
        assert!(!arena.reserve((2 * AHEAD + 1) * PAGE_SIZE));
        assert_eq!(arena.figures().growths, 1);
        arena.set_growth(Growth::Until(AHEAD));
        assert!(arena.reserve(3 * AHEAD * PAGE_SIZE));
        assert!(!arena.reserve((3 * AHEAD + 1) * PAGE_SIZE));
        assert_eq!(free(), 3 * AHEAD);
        arena.set_growth(Growth::Random { per_mille: 500, seed: 5 });
        let mut times = 0;
        while !arena.reserve(8 * AHEAD * PAGE_SIZE) {
            arena.forget_refusal();
            times += 1;
        }
        assert!(times > 1, "{times}");
        arena.set_growth(Growth::Granted);
        assert!(!arena.reserve((8 * AHEAD + 1) * PAGE_SIZE));
    }

    #[test]
    fn what_a_burst_has_left_goes_back() {
        let arena = Arena::new(2048, 8192);
        let burst = arena.enter(|| vec![0_u8; 7000 * PAGE_SIZE]);
        assert_eq!(arena.tend(5), None);
        drop(burst);
        let mut now = 5;
        let mut steps = 0;
        while let Some(next) = arena.tend(now) {
            (now, steps) = (next, steps + 1);
        }
        assert!(steps > (7000 - 2048) / surplus::STEP, "{steps}");
        // It may be had again.
        assert_eq!(arena.stats().free, 8192 * PAGE_SIZE);
        arena.set_growth(Growth::Refused);
        assert!(!arena.reserve(2049 * PAGE_SIZE) && arena.reserve(2048 * PAGE_SIZE));
    }

    /// Counts how often pages are taken and given back.
    struct Counted {
        host: Host,
        calls: usize,
    }

    // SAFETY: as the pages that it passes on.
    unsafe impl Pages for Counted {
        fn take(&mut self) -> *mut u8 {
            self.calls += 1;
            self.host.take()
        }

        fn take_run(&mut self, count: usize) -> *mut u8 {
            self.calls += 1;
            self.host.take_run(count)
        }

        unsafe fn give(&mut self, page: usize) {
            self.calls += 1;
            // SAFETY: the caller's promise is the same.
            unsafe { self.host.give(page) };
        }

        unsafe fn give_run(&mut self, first: usize, count: usize) {
            self.calls += 1;
            // SAFETY: the caller's promise is the same.
            unsafe { self.host.give_run(first, count) };
        }

        fn at(&self, address: usize) -> *mut u8 {
            self.host.at(address)
        }
    }

    /// attacks.md 13: with a list of holes, a READ took 80 times as long for good after this.
    #[test]
    fn a_heap_that_was_filled_and_then_got_holes_costs_what_it_did_before() {
        let limit = if cfg!(miri) { 200 } else { 15_000 };
        let host = Host::new(limit, limit).unwrap();
        let (base, size) = (host.base, host.size);
        let mut heap = Heap::new(Counted { host, calls: 0 });
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // An operation takes a page or gives one back, and not more than one.
        let allocate = |heap: &mut Heap<Counted>, size| {
            let before = heap.pages().calls;
            let block = heap.allocate(layout(size));
            assert!(block.is_null() || heap.pages().calls - before <= 1);
            (!block.is_null()).then_some((block, layout(size)))
        };
        let free = |heap: &mut Heap<Counted>, (block, layout)| {
            let before = heap.pages().calls;
            // SAFETY: from `allocate`, with that layout.
            unsafe { heap.free(block, layout) };
            assert!(heap.pages().calls - before <= 1);
        };
        let sizes = [100, 2100, 700, 48, 4096, 1500, 300, 6000];
        let mut blocks = Vec::new();
        for size in sizes.into_iter().cycle() {
            match allocate(&mut heap, size) {
                Some(block) => blocks.push(block),
                None => break,
            }
        }
        let mut kept = Vec::new();
        for (index, block) in blocks.into_iter().enumerate() {
            if index % 3 == 0 { kept.push(block) } else { free(&mut heap, block) }
        }
        // What is free can be had, all of it: in pages, and in runs.
        let pages = heap.pages().host.free();
        assert!(pages > limit / 3, "{pages}");
        for (size, count) in [(4096, pages), (3 * 4096, pages / 3)] {
            let all: Vec<_> = (0..count).filter_map(|_| allocate(&mut heap, size)).collect();
            assert_eq!(all.len(), count);
            all.into_iter().for_each(|block| free(&mut heap, block));
        }
        kept.into_iter().for_each(|block| free(&mut heap, block));
        heap.trim();
        assert_eq!((heap.used(), heap.taken()), (0, 0));
        // SAFETY: allocated in `new` with this layout; the heap is not used any more.
        unsafe { System.dealloc(base, Host::layout(size).unwrap()) };
    }

    #[test]
    fn the_nth_block_fails_and_only_that() {
        let arena = Arena::new(64, 64);
        arena.fail_nth(3);
        arena.enter(|| {
            let mut results = [true; 5];
            for fine in &mut results {
                *fine = Vec::<u8>::new().try_reserve_exact(10).is_ok();
            }
            assert_eq!(results, [true, true, false, true, true]);
        });
        assert!(!arena.is_failure_pending());
        assert_eq!(arena.figures().refused, 1);
    }

    #[test]
    fn a_block_that_grows_keeps_its_bytes() {
        let arena = Arena::new(64, 64);
        let mut grown: Vec<u32> = Vec::new();
        arena.enter(|| {
            for n in 0..3000 {
                grown.push(n);
            }
            grown.shrink_to_fit();
        });
        assert!(grown.iter().copied().eq(0..3000));
        assert_eq!(arena.figures().used, 3 * PAGE_SIZE);
        // Outside it moves out with the next growth.
        grown.push(3000);
        grown.reserve(10_000);
        assert_eq!(arena.figures().used, 0);
        assert!(grown.into_iter().eq(0..=3000));
    }

    /// A thread that frees looks at every arena's addresses, while others make and drop theirs.
    #[test]
    fn arenas_that_come_and_go_take_no_block_of_another() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..300_usize {
                        let arena = Arena::new(64, 64 + round % 7);
                        let blocks = arena
                            .enter(|| (0..20_u8).map(|n| Box::new([n; 40])).collect::<Vec<_>>());
                        let used = arena.figures().used;
                        assert!(used >= 20 * 40, "{used}");
                        drop(blocks);
                        assert_eq!(arena.figures().used, 0);
                    }
                });
            }
        });
    }
}
