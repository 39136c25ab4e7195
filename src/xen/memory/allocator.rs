//! The global allocator: the heap over the frames of the domain.

use super::{DIRECT, HEAP, MEMORY, frame_address};
use crate::server::platform::HeapStats;
use crate::xen::heap::{Heap, Pages, stays};
use crate::xen::layout::PAGE_SIZE;
use crate::xen::traps::Fault;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{null_mut, with_exposed_provenance_mut};
use spin::Mutex;

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

/// Whether the heap or the frames are being changed.
pub(in crate::xen) fn is_locked() -> bool {
    THE_HEAP.is_locked() || MEMORY.is_locked()
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: `Heap` hands out blocks that fit the layout and do not overlap; it never unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        THE_HEAP.lock().allocate(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { THE_HEAP.lock().free(block, layout) };
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
pub(in crate::xen) fn reserve(bytes: usize) -> bool {
    let idle = THE_HEAP.lock().idle();
    MEMORY.lock().supply(bytes.div_ceil(PAGE_SIZE).saturating_sub(idle))
}

/// Time has passed since Xen has refused memory, if it has: it is asked again when more is needed. `false` if it
/// had not refused.
pub(in crate::xen) fn forget_refusal() -> bool {
    core::mem::take(&mut MEMORY.lock().refused)
}

/// Fails while the heap and the frames are locked, as when the heap grows, for a test of the way back.
pub fn fail_in_growth(fault: Fault) -> ! {
    let _held = THE_HEAP.lock();
    super::fail_holding_frames(fault)
}

/// The heap's figures.
#[must_use]
pub fn heap() -> HeapStats {
    let heap = THE_HEAP.lock();
    let obtainable = MEMORY.lock().obtainable();
    HeapStats {
        used: heap.used(),
        size: heap.taken() * PAGE_SIZE,
        limit: (heap.taken() + obtainable) * PAGE_SIZE,
        free: (obtainable + heap.idle()) * PAGE_SIZE,
    }
}
