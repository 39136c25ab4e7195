//! The global allocator: the heap over the frames of the domain.

use super::{MEMORY, frame_address};
use crate::arch::paging::{DIRECT, FOREIGN, HEAP};
use crate::memory::HeapStats;
use crate::memory::heap::{Heap, Pages, stays};
use crate::memory::layout::PAGE_SIZE;
use crate::memory::runs::Runs;
use crate::traps::{Fault, provoke};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{null_mut, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering};
use spin::{Mutex, MutexGuard};

/// The pages of the domain, for the heap.
#[derive(Debug)]
struct DomainPages;

// SAFETY: a page is a free frame in the direct map. A run is a run of addresses that nobody else has, mapped to free
// frames, which nobody has in the direct map. Both stay as they are until they come back.
unsafe impl Pages for DomainPages {
    fn take(&mut self) -> *mut u8 {
        MEMORY.lock().take_page().map_or(null_mut(), |frame| frame_address(frame).as_ptr())
    }

    fn take_run(&mut self, count: usize) -> *mut u8 {
        let first = MEMORY.lock().take_run(count);
        first.map_or(null_mut(), |page| with_exposed_provenance_mut(HEAP + page * PAGE_SIZE))
    }

    unsafe fn give(&mut self, page: usize) {
        MEMORY.lock().frames.give((page - DIRECT) / PAGE_SIZE);
    }

    unsafe fn give_run(&mut self, first: usize, count: usize) {
        MEMORY.lock().give_run((first - HEAP) / PAGE_SIZE, count);
    }

    fn at(&self, address: usize) -> *mut u8 {
        with_exposed_provenance_mut(address)
    }
}

/// The allocator of the image.
#[derive(Debug)]
struct Allocator;

static THE_HEAP: Mutex<Heap<DomainPages>> = Mutex::new(Heap::new(DomainPages));

/// Whether the books were found to contradict each other, and whether the heap was given up. Both stay set,
/// however often dom0 revives the domain.
static IN_DOUBT: AtomicBool = AtomicBool::new(false);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// The heap that takes its place after it has failed in the middle of a change. Then `THE_HEAP` stays locked for
/// good.
static SECOND: Mutex<Heap<DomainPages>> = Mutex::new(Heap::new(DomainPages));

/// The heap that serves.
fn serving() -> MutexGuard<'static, Heap<DomainPages>> {
    THE_HEAP.try_lock().unwrap_or_else(|| SECOND.lock())
}

/// Makes frames and heap usable after a failure has interrupted a change of them, at any instruction, until the
/// state is handed over. Returns whether anything was being changed, or why it is not possible.
///
/// The frames' books are mended. The heap's are given up: what it has handed out stays where it is and is never
/// freed, and new blocks come from pages of a second one.
///
/// # Safety
/// What was broken off never goes on.
pub(crate) unsafe fn mend() -> Result<bool, &'static str> {
    let [in_frames, in_heap] = [MEMORY.is_locked(), THE_HEAP.is_locked()];
    if in_frames {
        // SAFETY: by contract, whoever has the lock will never use what it guards.
        unsafe { MEMORY.force_unlock() };
        IN_DOUBT.fetch_or(!MEMORY.lock().mend(), Ordering::Relaxed);
    }
    if IN_DOUBT.load(Ordering::Relaxed) {
        return Err("the books of its memory contradict each other");
    }
    if in_heap {
        // SAFETY: as above.
        unsafe { THE_HEAP.force_unlock() };
        // Locked for good.
        let heap = MutexGuard::leak(THE_HEAP.lock());
        let mut memory = MEMORY.lock();
        // SAFETY: a page of the direct map stays mapped as long as it is populated, and free ones are.
        let leaving = unsafe { heap.undo(|address| (DIRECT..HEAP).contains(&address)) };
        if let Some(block) = leaving {
            memory.frames.withhold((block - DIRECT) / PAGE_SIZE);
        }
        // A second time what the first one has begun is in the second half.
        if !GIVEN_UP.swap(true, Ordering::Relaxed) {
            memory.runs = Runs::second_half((FOREIGN - HEAP) / PAGE_SIZE);
        }
        if SECOND.is_locked() {
            // SAFETY: as above.
            unsafe { SECOND.force_unlock() };
        }
        *SECOND.lock() = Heap::in_place_of(heap, DomainPages);
    }
    Ok(in_frames || in_heap)
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: `Heap` hands out blocks that fit the layout and do not overlap; it never unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        serving().allocate(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Nothing is freed after `mend`: the block may be one of either heap.
        if let Some(mut heap) = THE_HEAP.try_lock() {
            // SAFETY: the caller's promise is the same.
            unsafe { heap.free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if stays(layout, size) {
            return block;
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

/// Makes sure that `bytes` of memory are free for blocks of any size, asking Xen for more where that may help;
/// `false` if they are not.
#[must_use]
pub fn reserve(bytes: usize) -> bool {
    let idle = serving().idle();
    MEMORY.lock().supply(bytes.div_ceil(PAGE_SIZE).saturating_sub(idle))
}

/// Time has passed since Xen has refused memory, if it has: it is asked again when more is needed. `false` if it
/// had not refused.
#[must_use]
pub fn forget_refusal() -> bool {
    core::mem::take(&mut MEMORY.lock().refused)
}

/// Fails while the heap and the frames are locked, as when the heap grows, for a test of the way back.
pub fn fail_in_growth(fault: Fault) -> ! {
    let _held = THE_HEAP.lock();
    super::fail_holding_frames(fault)
}

/// Fails as if the books contradicted each other, for a test of the end.
pub fn fail_in_doubt(fault: Fault) -> ! {
    IN_DOUBT.store(true, Ordering::Relaxed);
    provoke(fault)
}

/// The heap's figures.
#[must_use]
pub fn heap() -> HeapStats {
    let heap = serving();
    let obtainable = MEMORY.lock().obtainable();
    HeapStats {
        used: heap.used(),
        size: heap.taken() * PAGE_SIZE,
        limit: (heap.taken() + obtainable) * PAGE_SIZE,
        free: (obtainable + heap.idle()) * PAGE_SIZE,
    }
}
