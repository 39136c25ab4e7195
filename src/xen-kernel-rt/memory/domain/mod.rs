//! Physical memory, page tables, and the global allocator on top of them.
//!
//! ```text
//! 0xffff8000_00000000   DIRECT    all populated memory except the image; the special pages
//! 0xffff9000_00000000   HEAP      blocks of several pages: contiguous here, from any frames
//! 0xffffa000_00000000   FOREIGN   page n shows frame `foreign + n`, where other domains' pages go
//! 0xffffb000_00000000   REGION    what a predecessor has written, until it has been read
//! 0xffffffff_80000000   the image, as `linker.ld` lays it out
//! ```
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
use crate::error::Refusal;
use crate::hypercall;
use crate::slot::SLOT_SIZE;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use spin::Mutex;

/// Where populated memory is mapped, by its physical address.
const DIRECT: usize = 0xffff_8000_0000_0000;
/// Where the heap is mapped.
const HEAP: usize = 0xffff_9000_0000_0000;
/// Where frames for other domains' pages are mapped.
const FOREIGN: usize = 0xffff_a000_0000_0000;
/// Where the region of a live update is mapped.
const REGION: usize = 0xffff_b000_0000_0000;

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

/// Bits of a page table entry (Intel SDM volume 3, 4.5).
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The part of a link in an entry that maps nothing, after the bits are shifted out that would map something.
const LINK: usize = PAGE_SIZE;

/// From so many pages on, flushing all translations is cheaper than flushing each.
const FLUSH_ALL: usize = 32;

/// Entries of a table, and bytes that a table of the lowest level maps.
const ENTRIES: usize = 512;
const AREA: usize = ENTRIES * PAGE_SIZE;

/// A page table that is part of the image.
#[repr(C, align(4096))]
struct StaticTable(UnsafeCell<[u64; ENTRIES]>);
// SAFETY: only written through `set_entry`, by the one vCPU there is.
unsafe impl Sync for StaticTable {}
/// The direct map's upper levels for its first GiB, needed before there is a frame to put them in.
static DIRECT_PDPT: StaticTable = StaticTable(UnsafeCell::new([0; ENTRIES]));
static DIRECT_PD: StaticTable = StaticTable(UnsafeCell::new([0; ENTRIES]));
/// Likewise for the bridge of a live update, at its physical address.
static BRIDGE_PD: StaticTable = StaticTable(UnsafeCell::new([0; ENTRIES]));

// `linker.ld` and `boot/head.S` define these symbols; only their addresses are used.
unsafe extern "C" {
    safe static image_start: [u8; 0];
    safe static image_end: [u8; 0];
    safe static early_pml4: [u8; 0];
    safe static early_identity_pdpt: [u8; 0];
}

/// The addresses that the image is linked at.
pub(crate) fn image() -> Range<usize> {
    (&raw const image_start).addr()..(&raw const image_end).addr()
}

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

    // Pages of 2 MiB need no table that would have to be put somewhere first. They may reach
    // beyond what is populated; nothing touches that before `refine` makes them exact.
    let areas = memory.populated.div_ceil(ENTRIES).min(ENTRIES);
    let pd = memory.image_table(&DIRECT_PD);
    for area in 0..areas {
        memory.set_entry(pd, area, (area * AREA) as u64 | PRESENT | WRITE | LARGE | NO_EXECUTE);
    }
    let pdpt = memory.image_table(&DIRECT_PDPT);
    memory.set_entry(pdpt, 0, pd as u64 | PRESENT | WRITE);
    let root = memory.root();
    memory.set_entry(root, index(DIRECT, 39), pdpt as u64 | PRESENT | WRITE);
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

    let pd = memory.image_table(&DIRECT_PD);
    for area in 0..memory.populated.div_ceil(ENTRIES).min(ENTRIES) {
        let table = memory.new_table().ok_or(OUT_OF_FRAMES)?;
        for slot in 0..ENTRIES {
            let frame = area * ENTRIES + slot;
            if frame < memory.populated && !own.holds(frame) && !memory.absent.contains(frame) {
                let entry = (frame * PAGE_SIZE) as u64 | PRESENT | WRITE | NO_EXECUTE;
                memory.set_entry(table, slot, entry);
            }
        }
        memory.set_entry(pd, area, table as u64 | PRESENT | WRITE);
    }
    // `find` has mapped all that there might be. What is left of that is no table: whoever took it for one would write the
    // entries of later memory into the first frame of its area.
    for area in memory.populated.div_ceil(ENTRIES)..ENTRIES {
        memory.set_entry(pd, area, 0);
    }
    for frame in ENTRIES * ENTRIES..memory.populated {
        if !own.holds(frame) && !memory.absent.contains(frame) {
            memory.map(DIRECT + frame * PAGE_SIZE, frame).ok_or(OUT_OF_FRAMES)?;
        }
    }
    let root = memory.root();
    memory.set_entry(root, 0, 0);
    cpu::flush_translations();
    Ok(())
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

/// The index of an address in a table whose entries map `1 << shift` bytes each.
const fn index(address: usize, shift: u32) -> usize {
    (address >> shift) & (ENTRIES - 1)
}

/// The address in the direct map of a physical one.
fn direct(physical: usize) -> NonNull<u8> {
    let pointer = with_exposed_provenance_mut(DIRECT + physical);
    NonNull::new(pointer).unwrap_or(NonNull::dangling())
}

impl Memory {
    /// The memory of this image.
    fn own(&self) -> Occupied {
        Occupied { start: self.image_base, size: image().len() }
    }

    /// The physical address of a table in the image.
    fn image_table(&self, table: &StaticTable) -> usize {
        table.0.get().expose_provenance() - image().start + self.image_base
    }

    /// The physical address of the top level.
    fn root(&self) -> usize {
        (&raw const early_pml4).addr() - image().start + self.image_base
    }

    /// Where an entry of the table at a physical address can be accessed.
    fn entry(&self, table: usize, slot: usize) -> *mut u64 {
        debug_assert!(slot < ENTRIES, "an entry outside the table");
        let base = match table.checked_sub(self.image_base) {
            Some(offset) if offset < image().len() => image().start + offset,
            _ => DIRECT + table,
        };
        with_exposed_provenance_mut(base + slot * size_of::<u64>())
    }

    fn get_entry(&self, table: usize, slot: usize) -> u64 {
        // SAFETY: tables are in the image or in the direct map, and only this file touches them.
        unsafe { self.entry(table, slot).read_volatile() }
    }

    fn set_entry(&mut self, table: usize, slot: usize, value: u64) {
        // SAFETY: as above; that the new entry maps what it should is this file's business.
        unsafe { self.entry(table, slot).write_volatile(value) }
    }

    /// An empty table in a frame of its own.
    fn new_table(&mut self) -> Option<usize> {
        let table = self.frames.take()? * PAGE_SIZE;
        for slot in 0..ENTRIES {
            self.set_entry(table, slot, 0);
        }
        Some(table)
    }

    /// Maps a page for reading and writing. One that is mapped already stays as it is.
    fn map(&mut self, address: usize, frame: usize) -> Option<()> {
        self.map_as(address, frame, WRITE | NO_EXECUTE)
    }

    /// The entry of the lowest level for an address, if there is a table for it.
    fn lowest(&self, address: usize) -> Option<(usize, usize)> {
        let mut table = self.root();
        for shift in [39, 30, 21] {
            let entry = self.get_entry(table, index(address, shift));
            if entry & PRESENT == 0 {
                return None;
            }
            table = usize::try_from(entry & ADDRESS).ok()?;
        }
        Some((table, index(address, 12)))
    }

    /// Maps a page with these rights.
    fn map_as(&mut self, address: usize, frame: usize, rights: u64) -> Option<()> {
        let mut table = self.root();
        for shift in [39, 30, 21] {
            let entry = self.get_entry(table, index(address, shift));
            table = if entry & PRESENT == 0 {
                let new = self.new_table()?;
                self.set_entry(table, index(address, shift), new as u64 | PRESENT | WRITE);
                new
            } else {
                usize::try_from(entry & ADDRESS).ok()?
            };
        }
        let entry = (frame * PAGE_SIZE) as u64 | PRESENT | rights;
        if self.get_entry(table, index(address, 12)) & PRESENT == 0 {
            self.set_entry(table, index(address, 12), entry);
        }
        Some(())
    }

    /// Removes the mapping of a page; the caller flushes.
    fn unmap(&mut self, address: usize) {
        if let Some((table, slot)) = self.lowest(address) {
            self.set_entry(table, slot, 0);
        }
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
        let Some((table, slot)) = self.lowest(HEAP + first * PAGE_SIZE) else { return 0 };
        usize::try_from(self.get_entry(table, slot)).unwrap_or(0) / LINK
    }

    /// Takes back a run that [`take_run`](Self::take_run) gave for so many pages.
    fn give_run(&mut self, first: usize, count: usize) {
        for page in first..first + count {
            let address = HEAP + page * PAGE_SIZE;
            let Some((table, slot)) = self.lowest(address) else { continue };
            let entry = self.get_entry(table, slot);
            self.set_entry(table, slot, 0);
            if count < FLUSH_ALL {
                cpu::flush_translation(address);
            }
            self.frames.give(usize::try_from(entry & ADDRESS).unwrap_or(0) / PAGE_SIZE);
        }
        if count >= FLUSH_ALL {
            cpu::flush_translations();
        }
        let link = self.runs.give(first, count);
        if let Some((table, slot)) = self.lowest(HEAP + first * PAGE_SIZE) {
            self.set_entry(table, slot, (link * LINK) as u64);
        }
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
    let pointer = NonNull::new(with_exposed_provenance_mut(address));
    Ok((pointer.unwrap_or(NonNull::dangling()), frame as u64))
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
