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
//! Only the image has executable pages, and those are not writable, nor mapped a second time. A page
//! is mapped only when memory stands behind it: with `--maxmem` most of what the memory map
//! calls RAM does not exist until it is populated.
//!
//! A page of the heap is a frame, in the direct map. A block of several pages has addresses of its own, so that the
//! heap can use whatever frames are free, and a second image can have a slot and a heap beside the first one's.

use super::abi::memory::{
    CurrentReservation, E820Entry, GetMemoryMap, MaximumReservation, PopulatePhysmap,
};
use super::abi::start_info::{HvmModlistEntry, HvmStartInfo};
use super::abi::xen::errno;
use super::frames::{Frames, PER_WORD};
use super::heap::{AHEAD, Heap, Pages, stays};
use super::layout::{self, PAGE_SIZE, SPECIAL_PAGES};
use super::runs::Runs;
use super::{DOMID_SELF, cpu, hypercall};
use crate::server::platform::{HeapStats, PlatformError};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};
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
pub(super) const FOREIGN_PAGES: usize = 0x1_0000;

/// Frames that only page tables may take: what mapping one more chunk of memory can need.
const TABLE_RESERVE: usize = 8;

/// Pages asked of Xen at a time.
const CHUNK: usize = 64;

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

/// Of an entry that maps nothing, what is left of a link when the bits are shifted out that would map something.
const LINK: usize = PAGE_SIZE;

/// Pages from which on forgetting all translations is cheaper than forgetting each.
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
pub(super) fn image() -> Range<usize> {
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
    frames: Frames,
    /// Physical address of the image.
    image_base: usize,
    /// First frame without memory behind it; until [`begin`] or [`inherit`] has settled that, the last it can be.
    populated: usize,
    /// The same when the domain was built.
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
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    frames: Frames::none(),
    image_base: 0,
    populated: 0,
    built: 0,
    limit: 0,
    foreign: 0,
    runs: Runs::new((FOREIGN - HEAP) / PAGE_SIZE),
    frozen: false,
    refused: false,
});

/// Physical memory that holds something at the time of boot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Occupied {
    pub(super) start: usize,
    pub(super) size: usize,
}

/// What a replacement image takes over of the domain's memory, in frames.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Inherited {
    /// As the fields of [`Memory`].
    pub(super) populated: u64,
    pub(super) limit: u64,
    pub(super) foreign: u64,
    /// Physical address of the bitmap of free frames, and its words. It stays as it is during the trial.
    pub(super) bitmap: u64,
    pub(super) bitmap_words: u64,
}

impl Inherited {
    /// Whether the bitmap lies in memory that is there.
    fn is_sound(&self) -> bool {
        let bytes = self.bitmap_words.checked_mul(size_of::<u64>() as u64);
        let end = bytes.and_then(|bytes| self.bitmap.checked_add(bytes));
        self.bitmap % PAGE_SIZE as u64 == 0
            && end.is_some_and(|end| end <= self.populated.saturating_mul(PAGE_SIZE as u64))
    }

    /// Whether a frame was free when the old image was left. Only for one that [`inherit`] took.
    fn was_free(&self, frame: usize) -> bool {
        let index = frame / PER_WORD;
        let Ok(bitmap) = usize::try_from(self.bitmap) else { return false };
        if index as u64 >= self.bitmap_words {
            return false;
        }
        let word = direct(bitmap + index * size_of::<u64>()).cast::<u64>();
        // SAFETY: inside the bitmap, which `is_sound`, and which nobody writes to before `commit` is done.
        let word = unsafe { word.read() };
        word >> (frame % PER_WORD) & 1 == 1
    }
}

impl Occupied {
    pub(super) fn holds(&self, frame: usize) -> bool {
        let start = self.start / PAGE_SIZE;
        let end = self.start.saturating_add(self.size).div_ceil(PAGE_SIZE);
        (start..end).contains(&frame)
    }
}

/// First step: finds out what memory there is and maps it by its physical address, coarsely.
///
/// # Safety
/// Runs once, first of this file; `image_base` is where `boot/head.S` found the image.
pub(super) unsafe fn find(image_base: usize) -> Result<(), PlatformError> {
    let mut entries = [E820Entry::default(); MAP_MAX as usize];
    let map = memory_map(&mut entries)?;
    let owned = pages(&mut CurrentReservation { domid: DOMID_SELF })?;
    let maximum = pages(&mut MaximumReservation { domid: DOMID_SELF })?;
    let ram = layout::ram(map, image_base / PAGE_SIZE, maximum);
    let populated = layout::populated_end(&ram, owned);
    let grown = layout::grown_end(map, &ram, owned);
    let limit = layout::limit(map, &ram, owned, maximum).max(populated);
    let all = ram.start..ram.end.max(limit).max(grown);
    let foreign = layout::unused_gib(map, &all, cpu::cpuid(0x8000_0008, 0).eax & 0xff)
        .ok_or(PlatformError { call: "XENMEM_memory_map (no unused GiB)", code: errno::EINVAL })?;

    let mut memory = MEMORY.lock();
    memory.image_base = image_base;
    memory.built = populated;
    memory.populated = grown;
    memory.limit = limit;
    memory.foreign = foreign;

    // Pages of 2 MiB need no table that would have to be put somewhere first. The last may reach
    // beyond what is populated; nothing touches that before `refine` makes it exact.
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
/// Runs once, after [`find`]; `occupied` tells of all memory that is still needed.
pub(super) unsafe fn refine(occupied: impl Fn(usize) -> bool) -> Result<(), PlatformError> {
    let mut guard = MEMORY.lock();
    let memory = &mut *guard;
    let own = memory.own();
    // Frame 0 stays out: a physical address of 0 means "none" in the start info.
    let free = |frame: usize| frame != 0 && !own.holds(frame) && !occupied(frame);
    let words = memory.limit.div_ceil(PER_WORD);
    let bitmap_pages = (words * size_of::<u64>()).div_ceil(PAGE_SIZE);
    let bitmap = (0..memory.populated.saturating_sub(bitmap_pages))
        .find(|&start| (start..start + bitmap_pages).all(free))
        .ok_or(OUT_OF_FRAMES)?;
    let bitmap_words = direct(bitmap * PAGE_SIZE).cast::<u64>();
    // SAFETY: free frames in the direct map, large enough, and never given to anybody else.
    let slice = unsafe { core::slice::from_raw_parts_mut(bitmap_words.as_ptr(), words) };
    memory.frames = Frames::new(slice);
    for frame in (0..memory.populated).filter(|&f| free(f)) {
        if !(bitmap..bitmap + bitmap_pages).contains(&frame) {
            memory.frames.give(frame);
        }
    }

    let pd = memory.image_table(&DIRECT_PD);
    for area in 0..memory.populated.div_ceil(ENTRIES).min(ENTRIES) {
        let table = memory.new_table().ok_or(OUT_OF_FRAMES)?;
        for slot in 0..ENTRIES {
            let frame = area * ENTRIES + slot;
            if frame < memory.populated && !own.holds(frame) {
                let entry = (frame * PAGE_SIZE) as u64 | PRESENT | WRITE | NO_EXECUTE;
                memory.set_entry(table, slot, entry);
            }
        }
        memory.set_entry(pd, area, table as u64 | PRESENT | WRITE);
    }
    for frame in ENTRIES * ENTRIES..memory.populated {
        if !own.holds(frame) {
            memory.map(DIRECT + frame * PAGE_SIZE, frame).ok_or(OUT_OF_FRAMES)?;
        }
    }
    let root = memory.root();
    memory.set_entry(root, 0, 0);
    cpu::flush_translations();
    Ok(())
}

/// What to say when there is no frame for a page table.
const OUT_OF_FRAMES: PlatformError =
    PlatformError { call: "page table without a free frame", code: errno::ENOMEM };

/// Reads the memory map of the domain.
fn memory_map(entries: &mut [E820Entry; MAP_MAX as usize]) -> Result<&[E820Entry], PlatformError> {
    let mut argument = GetMemoryMap { nr_entries: MAP_MAX, buffer: entries.as_mut_ptr() };
    // SAFETY: (1) the buffer has the number of entries that it says; (2) nothing is unmapped.
    unsafe { hypercall::perform_on_memory(&mut argument) }?;
    Ok(entries.get(..argument.nr_entries as usize).unwrap_or_default())
}

/// The number of pages that a question about the domain's reservation yields.
fn pages(argument: &mut impl hypercall::Contained) -> Result<usize, PlatformError> {
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

    /// Asks Xen for the next chunk of memory; the number of pages that came of it.
    fn populate(&mut self) -> usize {
        if self.frozen {
            return 0;
        }
        let wanted = CHUNK.min(self.limit - self.populated);
        // Fewer may be left than a chunk, for the domain or on the host.
        let mut count = wanted;
        while count > 0 {
            let done = self.populate_pages(count);
            if done > 0 {
                return done;
            }
            count /= 4;
        }
        0
    }

    /// Populates up to `count` pages at the end of what there is.
    fn populate_pages(&mut self, count: usize) -> usize {
        let mut list = [0_u64; CHUNK];
        let first = self.populated;
        for (frame, slot) in (first..).zip(&mut list[..count]) {
            *slot = frame as u64;
        }
        let mut argument = PopulatePhysmap {
            extent_start: list.as_mut_ptr(),
            nr_extents: count as u64,
            extent_order: 0,
            mem_flags: 0,
            domid: DOMID_SELF,
        };
        // SAFETY: (1) the list has `count` entries; (2) there is no memory behind these frames yet.
        let done = unsafe { hypercall::perform_on_memory(&mut argument) };
        let done = done.ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0).min(count);
        for frame in first..first + done {
            // Cannot fail: TABLE_RESERVE is there for this. If it did, the page would just be lost.
            if self.map(DIRECT + frame * PAGE_SIZE, frame).is_some() {
                self.frames.give(frame);
            }
        }
        self.populated += done;
        done
    }

    /// Free frames that the heap can have.
    fn free(&self) -> usize {
        self.frames.free().saturating_sub(TABLE_RESERVE)
    }

    /// Frames that Xen may still give.
    fn growth_left(&self) -> usize {
        if self.frozen || self.refused { 0 } else { self.limit - self.populated }
    }

    /// Whether `count` frames are free for the heap. Asks Xen for more as soon as fewer than [`AHEAD`] would be left.
    fn supply(&mut self, count: usize) -> bool {
        // What cannot be had is not begun.
        let possible = count <= self.free() + self.growth_left();
        let wanted = AHEAD + if possible { count } else { 0 };
        while self.free() < wanted && self.growth_left() > 0 {
            self.refused = self.populate() == 0;
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

    /// Pages that the heap could still get, as far as is known, tables for them deducted.
    fn obtainable(&self) -> usize {
        let growth = self.growth_left();
        // One table of the direct map for each area.
        self.free() + growth - growth.div_ceil(ENTRIES)
    }
}

/// Figures for people.
#[must_use]
pub fn figures() -> Figures {
    let memory = MEMORY.lock();
    Figures { populated: memory.populated, maximum: memory.limit, free: memory.frames.free() }
}

/// Maps a page that Xen or the domain builder put somewhere outside the RAM.
pub(super) fn map_special(frame: u64) -> Result<NonNull<u8>, PlatformError> {
    let frame = usize::try_from(frame).unwrap_or(usize::MAX);
    let mut memory = MEMORY.lock();
    let foreign = memory.foreign..memory.foreign + FOREIGN_PAGES;
    if frame < memory.limit || foreign.contains(&frame) || frame >= (HEAP - DIRECT) / PAGE_SIZE {
        return Err(PlatformError { call: "no such special page", code: errno::EINVAL });
    }
    memory.map(DIRECT + frame * PAGE_SIZE, frame).ok_or(OUT_OF_FRAMES)?;
    Ok(direct(frame * PAGE_SIZE))
}

/// Maps a page of [`FOREIGN`]; returns its address and its frame.
pub(super) fn map_foreign(page: usize) -> Result<(NonNull<u8>, u64), PlatformError> {
    if page >= FOREIGN_PAGES {
        return Err(PlatformError { call: "grant mapping window", code: errno::ENOSPC });
    }
    let mut memory = MEMORY.lock();
    let frame = memory.foreign + page;
    let address = FOREIGN + page * PAGE_SIZE;
    memory.map(address, frame).ok_or(OUT_OF_FRAMES)?;
    let pointer = NonNull::new(with_exposed_provenance_mut(address));
    Ok((pointer.unwrap_or(NonNull::dangling()), frame as u64))
}

/// Copies bytes out of populated memory that nobody writes to; `false` if some of it is not there.
pub(super) fn copy_physical(address: u64, into: &mut [u8]) -> bool {
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
pub(super) fn read_physical<T: Plain>(address: u64) -> Option<T> {
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
pub(super) unsafe trait Plain: Default + Copy {}
// SAFETY: only integers; the assertions on its size leave no room for padding.
unsafe impl Plain for HvmStartInfo {}
// SAFETY: as above.
unsafe impl Plain for HvmModlistEntry {}
/// The bytes of a structure that is made of integers only.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: by `Plain` every byte is initialised; the slice lives as long as the value.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

// ---- live update: what `handover` needs of memory ----

/// A free frame, populated if need be, or `None`.
pub(super) fn take_frame() -> Option<usize> {
    let mut memory = MEMORY.lock();
    if memory.frames.free() <= TABLE_RESERVE && memory.populate() == 0 {
        return None;
    }
    memory.frames.take()
}

/// Makes a frame free that nobody uses any more.
pub(super) fn give_frame(frame: usize) {
    let mut memory = MEMORY.lock();
    if frame != 0 && frame < memory.populated && !memory.own().holds(frame) {
        memory.frames.give(frame);
    }
}

/// The first of `pages` free frames in a row where an image may lie.
pub(super) fn take_slot(pages: usize) -> Option<usize> {
    let mut memory = MEMORY.lock();
    loop {
        if let Some(first) = memory.frames.take_run(pages, AREA / PAGE_SIZE) {
            return Some(first);
        }
        if memory.populate() == 0 {
            return None;
        }
    }
}

/// Whether so many frames are free, after populating what is missing.
pub(super) fn want_free(pages: usize) -> bool {
    let mut memory = MEMORY.lock();
    while memory.frames.free() < pages.saturating_add(TABLE_RESERVE) {
        if memory.populate() == 0 {
            return false;
        }
    }
    true
}

/// Populates some chunks more, as long as fewer than `pages` frames are free.
pub(super) fn prepare(pages: usize) {
    let mut memory = MEMORY.lock();
    for _ in 0..CHUNKS_PREPARED {
        // Where there is no more, the hand-over will say so.
        if memory.frames.free() >= pages || memory.populate() == 0 {
            return;
        }
    }
}

/// Writes bytes into a frame that the caller has taken.
pub(super) fn write_frame(frame: usize, offset: usize, bytes: &[u8]) {
    let memory = MEMORY.lock();
    let fits = offset <= PAGE_SIZE && bytes.len() <= PAGE_SIZE - offset;
    assert!(fits && frame < memory.populated && !memory.own().holds(frame), "no such frame");
    let to = frame_address(frame);
    // SAFETY: populated, hence in the direct map; inside the page.
    let to = unsafe { to.add(offset) };
    // SAFETY: as above; it is nobody else's, and `bytes` is no part of it.
    unsafe { NonNull::from(bytes).cast().copy_to_nonoverlapping(to, bytes.len()) };
}

/// The address of a frame in the direct map.
pub(super) fn frame_address(frame: usize) -> NonNull<u8> {
    direct(frame * PAGE_SIZE)
}

/// Maps the bridge at its physical address, to be read and executed.
pub(super) fn map_bridge(frame: usize) -> Result<(), PlatformError> {
    MEMORY.lock().map_as(frame * PAGE_SIZE, frame, 0).ok_or(OUT_OF_FRAMES)
}

/// Undoes [`map_bridge`].
pub(super) fn unmap_bridge(frame: usize) {
    MEMORY.lock().unmap(frame * PAGE_SIZE);
    cpu::flush_translations();
}

/// Maps the bridge at its physical address in an image that is only just booting: beside the identity page of
/// `boot/head.S`, with one large page. [`refine`] removes it; then [`map_bridge`] is called.
///
/// # Safety
/// Runs once, between [`find`] and [`refine`].
pub(super) unsafe fn map_bridge_early(address: u64) {
    let mut memory = MEMORY.lock();
    let Ok(address) = usize::try_from(address) else { return };
    let pdpt = (&raw const early_identity_pdpt).addr() - image().start + memory.image_base;
    let entry = memory.get_entry(pdpt, index(address, 30));
    let pd = if entry & PRESENT == 0 {
        let pd = memory.image_table(&BRIDGE_PD);
        memory.set_entry(pdpt, index(address, 30), pd as u64 | PRESENT | WRITE);
        pd
    } else {
        usize::try_from(entry & ADDRESS).unwrap_or(0)
    };
    if memory.get_entry(pd, index(address, 21)) & PRESENT == 0 {
        let area = (address & !(AREA - 1)) as u64;
        memory.set_entry(pd, index(address, 21), area | PRESENT | LARGE);
    }
}

/// What a replacement has to know of memory.
pub(super) fn inheritance() -> Inherited {
    let memory = MEMORY.lock();
    let bitmap = memory.frames.words();
    Inherited {
        populated: memory.populated as u64,
        limit: memory.limit as u64,
        foreign: memory.foreign as u64,
        bitmap: (bitmap.as_ptr().addr() - DIRECT) as u64,
        bitmap_words: bitmap.len() as u64,
    }
}

/// Nobody has run in this domain before: all memory there is, is what the builder has put there.
pub(super) fn begin() {
    let mut memory = MEMORY.lock();
    memory.populated = memory.built;
}

/// Takes over what the old image knows of memory, in place of what [`find`] found out; until
/// [`commit`] nothing is asked of Xen.
///
/// # Errors
/// That it does not fit what there is.
pub(super) fn inherit(inherited: &Inherited) -> Result<(), PlatformError> {
    let mut memory = MEMORY.lock();
    let small = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let (populated, limit) = (small(inherited.populated), small(inherited.limit));
    let possible = memory.built..=memory.populated;
    if !possible.contains(&populated) || limit < populated || !inherited.is_sound() {
        return Err(PlatformError { call: "size of inherited memory", code: errno::EINVAL });
    }
    memory.populated = populated;
    memory.limit = limit;
    memory.foreign = small(inherited.foreign);
    memory.frozen = true;
    Ok(())
}

/// Whether a frame holds something of the old image.
pub(super) fn is_inherited(inherited: &Inherited) -> impl Fn(usize) -> bool + use<'_> {
    |frame| !inherited.was_free(frame)
}

/// Maps a region of `len` bytes in one piece: its frames come from a list of lists.
pub(super) fn map_region<I: Iterator<Item = usize>>(
    first_list: usize,
    len: usize,
    read_list: impl Fn(usize) -> Option<(usize, I)>,
) -> Option<&'static [u8]> {
    let pages = len.div_ceil(PAGE_SIZE);
    let (mut list, mut done) = (first_list, 0);
    while done < pages && list != 0 {
        let (next, frames) = read_list(list)?;
        for frame in frames {
            let mut memory = MEMORY.lock();
            if frame == 0 || frame >= memory.populated || memory.own().holds(frame) || done == pages
            {
                return None;
            }
            memory.map_as(REGION + done * PAGE_SIZE, frame, NO_EXECUTE)?;
            done += 1;
        }
        list = next;
    }
    if done < pages {
        return None;
    }
    // SAFETY: mapped just now, for reading; the frames are the old image's, which does not run, and are not
    // given to anybody before `commit`, whose caller has no use for the bytes any more.
    Some(unsafe { core::slice::from_raw_parts(with_exposed_provenance_mut(REGION), len) })
}

/// The old image is gone: all that was its, the region of `region_len` bytes included, is free.
pub(super) fn commit(inherited: &Inherited, region_len: usize) {
    let mut guard = MEMORY.lock();
    let memory = &mut *guard;
    for page in 0..region_len.div_ceil(PAGE_SIZE) {
        memory.unmap(REGION + page * PAGE_SIZE);
    }
    let own = memory.own();
    for frame in (1..memory.populated).filter(|frame| !own.holds(*frame)) {
        // What this image has taken was free then.
        if !inherited.was_free(frame) {
            memory.frames.give(frame);
        }
    }
    memory.frozen = false;
    cpu::flush_translations();
}

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
pub(super) fn reserve(bytes: usize) -> bool {
    let idle = THE_HEAP.lock().idle();
    MEMORY.lock().supply(bytes.div_ceil(PAGE_SIZE).saturating_sub(idle))
}

/// Time has passed since Xen has refused memory, if it has: it is asked again when more is needed. `false` if it
/// had not refused.
pub(super) fn forget_refusal() -> bool {
    core::mem::take(&mut MEMORY.lock().refused)
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

const _: () = assert!(SPECIAL_PAGES < CHUNK);
