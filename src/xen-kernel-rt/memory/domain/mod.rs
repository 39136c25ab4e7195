//! The memory of this domain, and the global allocator on top of it.
//!
//! Only the image has executable pages. Those are not writable, nor mapped a second time. A page is mapped only if
//! there is memory behind it: with `--maxmem`, most of what the memory map calls RAM does not exist until it is
//! populated.
//!
//! A page of the heap is a frame, in the direct map. A block of several pages has addresses of its own. So the
//! heap can use any free frames, and a second image can have a slot and a heap beside the first one's.

mod allocator;
mod update;

pub(crate) use allocator::mend;
pub use allocator::{fail_in_doubt, fail_in_growth, forget_refusal, heap, reserve};
pub(crate) use update::{
    Inherited, Predecessor, begin, bridge_page, commit, fill, give_frame, inherit, inheritance,
    map_bridge, map_bridge_early, map_region, take_frame, take_slot, unmap_bridge, want_free,
    write_frame,
};
pub use update::{fail_holding_frames, prepare};

use super::frames::Frames;
use super::heap::AHEAD;
use super::layout::{self, PAGE_SIZE, SPECIAL_PAGES};
use super::runs::Runs;
use super::surplus::{self, Surplus};
use crate::DOMID_SELF;
use crate::abi::memory::{
    CurrentReservation, DecreaseReservation, E820Entry, GetMemoryMap, MaximumReservation,
    PopulatePhysmap,
};
use crate::abi::start_info::{HvmModlistEntry, HvmStartInfo};
use crate::abi::xen::errno;
use crate::arch::cpu;
use crate::arch::paging::{
    AREA, DIRECT, ENTRIES, FOREIGN, HEAP, PageTables, Rights, at, direct, image,
};
use crate::error::Refusal;
use crate::hypercall;
use crate::slot::SLOT_SIZE;
use core::ptr::NonNull;
use spin::Mutex;

/// Pages of [`FOREIGN`] that may be used: more than a grant table's maptrack of 128 frames has room for.
pub(crate) const FOREIGN_PAGES: usize = 0x1_0000;

/// Frames that only page tables may take: what mapping one more chunk of memory can need.
const TABLE_RESERVE: usize = 8;

/// Pages asked of Xen at a time.
const CHUNK: usize = 64;

/// Frames of the place for the image of a successor. It is kept free, in one piece.
const SLOT: usize = SLOT_SIZE / PAGE_SIZE;

/// If the domain may have so many pages, nothing else ever gets that place. In a smaller domain it is used last.
const SLOT_IS_FIRM: usize = 4096;

/// Chunks that are populated with each piece of an image that comes: about 100 MiB by its end, in steps that keep
/// nobody waiting for long.
const CHUNKS_PREPARED: usize = 4;

/// Entries of a memory map that are looked at.
const MAP_MAX: u32 = 32;

/// From so many pages on, flushing all translations is cheaper than flushing each.
const FLUSH_ALL: usize = 32;

/// Figures of the domain's memory, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Populated from the start or since.
    pub populated: usize,
    /// What that may become.
    pub maximum: usize,
    /// Neither the image's, nor the heap's, nor a page table.
    pub free: usize,
}

/// What is known of memory. There is one, behind [`MEMORY`].
struct Memory {
    /// Free frames.
    frames: Frames,
    /// Frames before `populated` that went back to Xen.
    absent: Frames,
    /// First frame of the place for a successor's image, which is not in `frames`.
    slot: Option<usize>,
    /// Physical address of the image.
    image_base: usize,
    /// First frame that never had memory behind it; until [`begin`] or [`inherit`] has settled that, the last it can be.
    populated: usize,
    /// Frames that the domain was built with. They do not go back to Xen.
    built: usize,
    /// First frame that will never have any.
    limit: usize,
    /// First frame of [`FOREIGN`].
    foreign: usize,
    /// Addresses in [`HEAP`].
    runs: Runs,
    /// On trial: nothing is asked of Xen.
    frozen: bool,
    /// Xen has refused memory; it is not asked again for a while.
    refused: bool,
    /// What goes back to Xen.
    surplus: Surplus,
    /// Frames that are on their way from Xen or to it, as many as `moving_count` says, for [`Memory::mend`].
    moving: [usize; CHUNK],
    moving_count: usize,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    frames: Frames::none(),
    absent: Frames::none(),
    slot: None,
    image_base: 0,
    populated: 0,
    built: 0,
    limit: 0,
    foreign: 0,
    runs: Runs::new((FOREIGN - HEAP) / PAGE_SIZE),
    frozen: false,
    refused: false,
    surplus: Surplus::new(),
    moving: [0; CHUNK],
    moving_count: 0,
});

/// Physical memory that holds something at the time of boot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Occupied {
    pub(crate) start: usize,
    pub(crate) size: usize,
}

impl Occupied {
    pub(crate) fn holds(&self, frame: usize) -> bool {
        let start = self.start / PAGE_SIZE;
        let end = self.start.saturating_add(self.size).div_ceil(PAGE_SIZE);
        (start..end).contains(&frame)
    }
}

/// First step: finds out what memory there is and maps it by its physical address, coarsely.
///
/// # Safety
/// Runs once, first of this file; `image_base` is where `boot/head.S` found the image.
pub(crate) unsafe fn find(image_base: usize) -> Result<(), Refusal> {
    let mut entries = [E820Entry::default(); MAP_MAX as usize];
    let map = memory_map(&mut entries)?;
    let owned = pages(&mut CurrentReservation { domid: DOMID_SELF })?;
    let maximum = pages(&mut MaximumReservation { domid: DOMID_SELF })?;
    let ram = layout::ram(map, image_base / PAGE_SIZE, maximum);
    let populated = layout::populated_end(&ram, owned);
    let grown = layout::grown_end(map, &ram, owned);
    let limit = layout::limit(map, &ram, owned, maximum).max(populated);
    let most = layout::most(map, &ram, maximum).max(limit).max(grown);
    let all = ram.start..ram.end.max(most);
    let foreign = layout::unused_gib(map, &all, cpu::cpuid(0x8000_0008, 0).eax & 0xff)
        .ok_or(Refusal { call: "XENMEM_memory_map (no unused GiB)", code: errno::EINVAL })?;

    let mut memory = MEMORY.lock();
    memory.image_base = image_base;
    memory.built = populated;
    memory.populated = most;
    memory.limit = limit;
    memory.foreign = foreign;

    // SAFETY: by contract.
    unsafe { memory.tables().map_coarsely(memory.populated.div_ceil(ENTRIES)) };
    Ok(())
}

/// Second step: sorts out which frames are free, makes the direct map exact, and removes the
/// identity mapping of the first instructions.
///
/// # Safety
/// Runs once, after [`find`]; `occupied` tells of all memory that is still needed, `absent` of frames without memory.
pub(crate) unsafe fn refine(
    occupied: impl Fn(usize) -> bool,
    absent: impl Fn(usize) -> bool,
) -> Result<(), Refusal> {
    let mut guard = MEMORY.lock();
    let memory = &mut *guard;
    let own = memory.own();
    // Frame 0 stays out: a physical address of 0 means "none" in the start info.
    let free = |frame: usize| frame != 0 && !own.holds(frame) && !absent(frame) && !occupied(frame);
    let words = Frames::words_for(memory.limit);
    let bitmap_pages = (2 * words * size_of::<u64>()).div_ceil(PAGE_SIZE);
    let bitmap = (0..memory.populated.saturating_sub(bitmap_pages))
        .find(|&start| (start..start + bitmap_pages).all(free))
        .ok_or(OUT_OF_FRAMES)?;
    let bitmap_words = direct(bitmap * PAGE_SIZE).cast::<u64>();
    // SAFETY: free frames in the direct map, large enough, and never given to anybody else.
    let slice = unsafe { core::slice::from_raw_parts_mut(bitmap_words.as_ptr(), 2 * words) };
    let (free_words, absent_words) = slice.split_at_mut(words);
    memory.frames = Frames::new(free_words, memory.limit);
    memory.absent = Frames::new(absent_words, memory.limit);
    for frame in 0..memory.populated {
        if absent(frame) {
            memory.absent.give(frame);
        } else if free(frame) && !(bitmap..bitmap + bitmap_pages).contains(&frame) {
            memory.frames.give(frame);
        }
    }

    let (tables, end) = (memory.tables(), memory.populated);
    let Memory { frames, absent, .. } = memory;
    let is_there = |frame: usize| !own.holds(frame) && !absent.contains(frame);
    // SAFETY: (1) by contract; (2) free frames of the first memory there is.
    unsafe { tables.map_directly(end, &is_there, &mut || frames.take()) }.ok_or(OUT_OF_FRAMES)
}

/// What to say when there is no frame for a page table.
const OUT_OF_FRAMES: Refusal =
    Refusal { call: "page table without a free frame", code: errno::ENOMEM };

/// Reads the memory map of the domain.
fn memory_map(entries: &mut [E820Entry; MAP_MAX as usize]) -> Result<&[E820Entry], Refusal> {
    let mut argument = GetMemoryMap { nr_entries: MAP_MAX, buffer: entries.as_mut_ptr() };
    // SAFETY: (1) the buffer has the number of entries that it says; (2) nothing is unmapped.
    unsafe { hypercall::perform_on_memory(&mut argument) }?;
    Ok(entries.get(..argument.nr_entries as usize).unwrap_or_default())
}

/// The number of pages that a question about the domain's reservation yields.
fn pages(argument: &mut impl hypercall::Contained) -> Result<usize, Refusal> {
    hypercall::perform(argument).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
}

impl Memory {
    /// The memory of this image.
    fn own(&self) -> Occupied {
        Occupied { start: self.image_base, size: image().len() }
    }

    /// This image's page tables.
    fn tables(&self) -> PageTables {
        // SAFETY: `find` has been told.
        unsafe { PageTables::new(self.image_base) }
    }

    /// Maps a page for reading and writing. One that is mapped already stays as it is.
    fn map(&mut self, address: usize, frame: usize) -> Option<()> {
        self.map_as(address, frame, Rights::ReadWrite)
    }

    /// Maps a page with these rights.
    fn map_as(&mut self, address: usize, frame: usize, rights: Rights) -> Option<()> {
        let tables = self.tables();
        // SAFETY: (1) this module decides what is mapped where: a frame of the direct map that has memory behind it from now
        // on, one that was free in a run, one outside the RAM, or what a predecessor has left for this; (2) free frames.
        unsafe { tables.map(address, frame, rights, &mut || self.frames.take()) }
    }

    /// Removes the mapping of a page; the caller flushes. Returns the frame.
    fn unmap(&mut self, address: usize) -> Option<usize> {
        // SAFETY: this module unmaps only what is free, or what its user has given back.
        unsafe { self.tables().unmap(address) }
    }

    /// Frames that there is memory behind.
    fn present(&self) -> usize {
        self.populated - self.absent.count()
    }

    /// Asks Xen for the next chunk of memory; the number of pages that came of it.
    fn populate(&mut self) -> usize {
        if self.frozen {
            return 0;
        }
        self.surplus.disturb();
        // Fewer may be left than a chunk, for the domain or on the host.
        let mut count = CHUNK.min(self.limit - self.present());
        while count > 0 {
            let done = self.populate_pages(count);
            if done > 0 {
                return done;
            }
            count /= 4;
        }
        0
    }

    /// Populates up to `count` pages, no more than a chunk: those that went back, and then at the end of what there is.
    fn populate_pages(&mut self, count: usize) -> usize {
        let mut list = [0_u64; CHUNK];
        let mut end = self.populated;
        for slot in &mut list[..count] {
            let frame = self.absent.first().unwrap_or_else(|| {
                end += 1;
                end - 1
            });
            self.announce(frame);
            self.absent.withhold(frame);
            *slot = frame as u64;
        }
        let mut argument = PopulatePhysmap {
            extent_start: list.as_mut_ptr(),
            nr_extents: count as u64,
            extent_order: 0,
            mem_flags: 0,
            domid: DOMID_SELF,
        };
        // SAFETY: (1) the list has `count` entries; (2) there is no memory behind these frames.
        let done = unsafe { hypercall::perform_on_memory(&mut argument) };
        let done = done.ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0).min(count);
        for (index, frame) in list[..count].iter().enumerate() {
            let Ok(frame) = usize::try_from(*frame) else { continue };
            if index < done {
                self.populated = self.populated.max(frame + 1);
                self.receive(frame);
            } else if frame < self.populated {
                self.absent.give(frame);
            }
        }
        self.moving_count = 0;
        done
    }

    /// Notes a frame that is on its way.
    fn announce(&mut self, frame: usize) {
        if let Some(slot) = self.moving.get_mut(self.moving_count) {
            *slot = frame;
            self.moving_count += 1;
        }
    }

    /// Mends the books after a change of them was interrupted at any instruction. `false` if they contradict each
    /// other more than that explains.
    fn mend(&mut self) -> bool {
        let is_sound = self.frames.mend() & self.absent.mend();
        // Whether there is memory behind these nobody knows. If there is, it is replaced when they are populated.
        for index in 0..self.moving_count.min(CHUNK) {
            let frame = self.moving[index];
            if frame < self.populated && !self.frames.contains(frame) {
                self.absent.give(frame);
            }
        }
        self.moving_count = 0;
        is_sound
    }

    /// Makes a frame free that there is memory behind from now on.
    fn receive(&mut self, frame: usize) {
        // Cannot fail: TABLE_RESERVE is there for this. If it did, the page would just be lost.
        if self.map(DIRECT + frame * PAGE_SIZE, frame).is_some() {
            self.frames.give(frame);
        }
    }

    /// Gives up to `count` free pages back to Xen, no more than a step; returns how many Xen took.
    fn release(&mut self, count: usize) -> usize {
        let mut list = [0_u64; surplus::STEP];
        let wanted = count.min(surplus::STEP).min(self.free());
        let mut count = 0;
        for slot in &mut list[..wanted] {
            let Some(frame) = self.frames.take_last() else { break };
            self.announce(frame);
            self.unmap(DIRECT + frame * PAGE_SIZE);
            *slot = frame as u64;
            count += 1;
        }
        cpu::flush_translations();
        let mut argument = DecreaseReservation(PopulatePhysmap {
            extent_start: list.as_mut_ptr(),
            nr_extents: count as u64,
            extent_order: 0,
            mem_flags: 0,
            domid: DOMID_SELF,
        });
        // SAFETY: (1) the list has `count` entries; (2) these frames were free, and are not mapped any more.
        let done = unsafe { hypercall::perform_on_memory(&mut argument) };
        let done = done.ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0).min(count);
        for (index, frame) in list[..count].iter().enumerate() {
            let Ok(frame) = usize::try_from(*frame) else { continue };
            if index < done { self.absent.give(frame) } else { self.receive(frame) }
        }
        self.moving_count = 0;
        done
    }

    /// Keeps a place for a successor's image, if there is one in one piece.
    fn keep_slot(&mut self) {
        // Not the last memory there is, where the heap may take it anyway.
        if self.slot.is_none() && !self.frozen && self.free() > SLOT + AHEAD {
            self.slot = self.frames.take_run(SLOT, AREA / PAGE_SIZE);
        }
    }

    /// Frees the place for a successor's image but for its first `kept` frames; returns the first.
    fn open_slot(&mut self, kept: usize) -> Option<usize> {
        let first = self.slot.take()?;
        (first + kept..first + SLOT).for_each(|frame| self.frames.give(frame));
        Some(first)
    }

    /// Frames of the place for a successor's image that the heap may have when nothing else is left.
    fn in_slot(&self) -> usize {
        if self.slot.is_some() && self.limit < SLOT_IS_FIRM { SLOT } else { 0 }
    }

    /// Free frames that the heap can have.
    fn free(&self) -> usize {
        self.frames.count().saturating_sub(TABLE_RESERVE)
    }

    /// Frames that Xen may still give.
    fn growth_left(&self) -> usize {
        if self.frozen || self.refused { 0 } else { self.limit - self.present() }
    }

    /// Whether `count` frames are free for the heap. Asks Xen for more as soon as fewer than [`AHEAD`] would be left.
    fn supply(&mut self, count: usize) -> bool {
        // What cannot be had is not begun.
        let possible = count <= self.free() + self.in_slot() + self.growth_left();
        let wanted = AHEAD + if possible { count } else { 0 };
        while self.free() < wanted && self.growth_left() > 0 {
            self.refused = self.populate() == 0;
        }
        if self.free() < count && possible && self.in_slot() > 0 {
            self.open_slot(0);
        }
        self.free() >= count
    }

    /// A free frame for the heap.
    fn take_page(&mut self) -> Option<usize> {
        if self.supply(1) { self.frames.take() } else { None }
    }

    /// A run of `count` pages in [`HEAP`], mapped to free frames; the number of its first page.
    fn take_run(&mut self, count: usize) -> Option<usize> {
        // New addresses need tables, too: for each area that they touch one, and one of each level above.
        let tables = count.checked_next_power_of_two()?.div_ceil(ENTRIES) + 3;
        if !self.supply(count.checked_add(tables)?) {
            return None;
        }
        let mut runs = core::mem::replace(&mut self.runs, Runs::new(0));
        let first = runs.take(count, |first| self.link(first));
        self.runs = runs;
        let first = first?;
        for page in first..first + count {
            // Neither can fail: so many are free.
            let frame = self.frames.take()?;
            self.map(HEAP + page * PAGE_SIZE, frame)?;
        }
        Some(first)
    }

    /// What [`give_run`](Self::give_run) has left at the first page of a free run.
    fn link(&self, first: usize) -> usize {
        self.tables().link(HEAP + first * PAGE_SIZE)
    }

    /// Takes back a run that [`take_run`](Self::take_run) gave for so many pages.
    fn give_run(&mut self, first: usize, count: usize) {
        for page in first..first + count {
            let address = HEAP + page * PAGE_SIZE;
            let Some(frame) = self.unmap(address) else { continue };
            if count < FLUSH_ALL {
                cpu::flush_translation(address);
            }
            self.frames.give(frame);
        }
        if count >= FLUSH_ALL {
            cpu::flush_translations();
        }
        let link = self.runs.give(first, count);
        // SAFETY: the run's pages are free, and were unmapped just now.
        unsafe { self.tables().set_link(HEAP + first * PAGE_SIZE, link) };
    }

    /// What decides whether pages go back.
    fn pages(&self) -> surplus::Pages {
        surplus::Pages { free: self.free(), populated: self.present(), built: self.built }
    }

    /// Pages that the heap could still get, as far as is known, tables for them deducted.
    fn obtainable(&self) -> usize {
        let growth = self.growth_left();
        // One table of the direct map for each area.
        self.free() + self.in_slot() + growth - growth.div_ceil(ENTRIES)
    }
}

/// Figures for people.
#[must_use]
pub fn figures() -> Figures {
    let memory = MEMORY.lock();
    Figures { populated: memory.present(), maximum: memory.limit, free: memory.frames.count() }
}

/// Maps a page that Xen or the domain builder put somewhere outside the RAM.
pub(crate) fn map_special(frame: u64) -> Result<NonNull<u8>, Refusal> {
    let frame = usize::try_from(frame).unwrap_or(usize::MAX);
    let mut memory = MEMORY.lock();
    let foreign = memory.foreign..memory.foreign + FOREIGN_PAGES;
    if frame < memory.limit || foreign.contains(&frame) || frame >= (HEAP - DIRECT) / PAGE_SIZE {
        return Err(Refusal { call: "no such special page", code: errno::EINVAL });
    }
    memory.map(DIRECT + frame * PAGE_SIZE, frame).ok_or(OUT_OF_FRAMES)?;
    Ok(direct(frame * PAGE_SIZE))
}

/// Maps a page of [`FOREIGN`]; returns its address and its frame.
pub(crate) fn map_foreign(page: usize) -> Result<(NonNull<u8>, u64), Refusal> {
    if page >= FOREIGN_PAGES {
        return Err(Refusal { call: "grant mapping window", code: errno::ENOSPC });
    }
    let mut memory = MEMORY.lock();
    let frame = memory.foreign + page;
    let address = FOREIGN + page * PAGE_SIZE;
    memory.map(address, frame).ok_or(OUT_OF_FRAMES)?;
    Ok((at(address), frame as u64))
}

/// Copies bytes out of populated memory that nobody writes to; `false` if some of it is not there.
pub(crate) fn copy_physical(address: u64, into: &mut [u8]) -> bool {
    let (Ok(address), memory) = (usize::try_from(address), MEMORY.lock()) else { return false };
    let inside = address
        .checked_add(into.len())
        .is_some_and(|end| address != 0 && end <= memory.populated * PAGE_SIZE);
    if inside {
        let to = NonNull::from(&mut *into).cast();
        // SAFETY: populated, hence mapped, and `into` is no part of the direct map.
        unsafe { direct(address).copy_to_nonoverlapping(to, into.len()) };
    }
    inside
}

/// A structure of the domain builder's, copied out of populated memory; `None` if it is not there.
pub(crate) fn read_physical<T: Plain>(address: u64) -> Option<T> {
    let mut value = T::default();
    let bytes = core::ptr::from_mut(&mut value).cast::<u8>();
    // SAFETY: the bytes of `value`, which nobody else uses; by `Plain` any bytes will do.
    let bytes = unsafe { core::slice::from_raw_parts_mut(bytes, size_of::<T>()) };
    copy_physical(address, bytes).then_some(value)
}

/// A structure for which any bytes are a value.
///
/// # Safety
/// Only integers, and no padding.
pub(crate) unsafe trait Plain: Default + Copy {}
// SAFETY: only integers; the assertions on its size leave no room for padding.
unsafe impl Plain for HvmStartInfo {}
// SAFETY: as above.
unsafe impl Plain for HvmModlistEntry {}
/// The bytes of a structure that is made of integers only.
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: by `Plain` every byte is initialised; the slice lives as long as the value.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The address of a frame in the direct map.
pub(crate) fn frame_address(frame: usize) -> NonNull<u8> {
    direct(frame * PAGE_SIZE)
}

/// Keeps a place for a successor, if there is none: once all that is needed at the start has its own, and when an image
/// that was on trial has left it.
pub(crate) fn settle() {
    MEMORY.lock().keep_slot();
}

/// Whether [`tend`] has something to do, now or later.
#[must_use]
pub fn needs_tending() -> bool {
    let memory = MEMORY.lock();
    !memory.frozen && memory.surplus.is_pending(memory.pages())
}

/// Gives some pages back to Xen if there are too many; when to come again, if at all. `now_ms` is the time.
pub fn tend(now_ms: u64) -> Option<u64> {
    let mut guard = MEMORY.lock();
    let memory = &mut *guard;
    if memory.frozen {
        return None;
    }
    memory.keep_slot();
    let (count, again) = memory.surplus.step(memory.pages(), now_ms);
    if count > 0 && memory.release(count) == 0 {
        // Xen does not take them. Perhaps later.
        memory.surplus.disturb();
    }
    again
}

const _: () = assert!(SPECIAL_PAGES < CHUNK);
