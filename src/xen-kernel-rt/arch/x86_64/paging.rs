//! Page tables, and the addresses that they give to things.
//!
//! ```text
//! 0xffff8000_00000000   DIRECT    all populated memory except the image; the special pages
//! 0xffff9000_00000000   HEAP      blocks of several pages: contiguous here, from any frames
//! 0xffffa000_00000000   FOREIGN   page n shows frame `foreign + n`, where other domains' pages go
//! 0xffffb000_00000000   REGION    what a predecessor has written, until it has been read
//! 0xffffffff_80000000   the image, as `linker.ld` lays it out
//! ```
//!
//! Tables are in the image or in frames of the direct map. Which frames may be mapped where is not decided here.

use super::cpu;
use crate::memory::PAGE_SIZE;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, with_exposed_provenance_mut};

/// Where populated memory is mapped, by its physical address.
pub(crate) const DIRECT: usize = 0xffff_8000_0000_0000;
/// Where the heap is mapped.
pub(crate) const HEAP: usize = 0xffff_9000_0000_0000;
/// Where frames for other domains' pages are mapped.
pub(crate) const FOREIGN: usize = 0xffff_a000_0000_0000;
/// Where the region of a live update is mapped.
pub(crate) const REGION: usize = 0xffff_b000_0000_0000;

/// Bits of a page table entry (Intel SDM volume 3, 4.5).
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The part of a link in an entry that maps nothing, after the bits are shifted out that would map something.
const LINK: usize = PAGE_SIZE;

/// Entries of a table, and bytes that a table of the lowest level maps.
pub(crate) const ENTRIES: usize = 512;
pub(crate) const AREA: usize = ENTRIES * PAGE_SIZE;

/// What may be done with a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rights {
    Read,
    ReadWrite,
    ReadExecute,
}

impl Rights {
    fn bits(self) -> u64 {
        match self {
            Self::Read => NO_EXECUTE,
            Self::ReadWrite => WRITE | NO_EXECUTE,
            Self::ReadExecute => 0,
        }
    }
}

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

/// The index of an address in a table whose entries map `1 << shift` bytes each.
const fn index(address: usize, shift: u32) -> usize {
    (address >> shift) & (ENTRIES - 1)
}

/// The address in the direct map of a physical one.
pub(crate) fn direct(physical: usize) -> NonNull<u8> {
    at(DIRECT + physical)
}

/// A pointer to an address that is mapped.
pub(crate) fn at(address: usize) -> NonNull<u8> {
    NonNull::new(with_exposed_provenance_mut(address)).unwrap_or(NonNull::dangling())
}

/// The tables of an image that lies at a physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageTables {
    image_base: usize,
}

impl PageTables {
    /// Those of this image.
    ///
    /// # Safety
    /// `image_base` is where `boot/head.S` found it.
    pub(crate) const unsafe fn new(image_base: usize) -> Self {
        Self { image_base }
    }

    /// The physical address of a table in the image.
    fn image_table(self, table: &StaticTable) -> usize {
        table.0.get().expose_provenance() - image().start + self.image_base
    }

    /// The physical address of the top level.
    fn root(self) -> usize {
        (&raw const early_pml4).addr() - image().start + self.image_base
    }

    /// Where an entry of the table at a physical address can be accessed.
    fn entry(self, table: usize, slot: usize) -> *mut u64 {
        debug_assert!(slot < ENTRIES, "an entry outside the table");
        let base = match table.checked_sub(self.image_base) {
            Some(offset) if offset < image().len() => image().start + offset,
            _ => DIRECT + table,
        };
        with_exposed_provenance_mut(base + slot * size_of::<u64>())
    }

    fn get_entry(self, table: usize, slot: usize) -> u64 {
        // SAFETY: tables are in the image or in the direct map, and only this file touches them.
        unsafe { self.entry(table, slot).read_volatile() }
    }

    fn set_entry(self, table: usize, slot: usize, value: u64) {
        // SAFETY: as above; that the new entry maps what it should is this file's business.
        unsafe { self.entry(table, slot).write_volatile(value) }
    }

    /// An empty table in a frame of its own.
    fn new_table(self, new_frame: &mut dyn FnMut() -> Option<usize>) -> Option<usize> {
        let table = new_frame()? * PAGE_SIZE;
        for slot in 0..ENTRIES {
            self.set_entry(table, slot, 0);
        }
        Some(table)
    }

    /// The entry of the lowest level for an address, if there is a table for it.
    fn lowest(self, address: usize) -> Option<(usize, usize)> {
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

    /// Maps a page. One that is mapped already stays as it is. `None` if there is no frame for a table.
    ///
    /// # Safety
    /// 1. Nobody relies on it that the page is not mapped, and the frame may be accessed like that.
    /// 2. `new_frame` gives frames of the direct map that nobody else uses.
    pub(crate) unsafe fn map(
        self,
        address: usize,
        frame: usize,
        rights: Rights,
        new_frame: &mut dyn FnMut() -> Option<usize>,
    ) -> Option<()> {
        let mut table = self.root();
        for shift in [39, 30, 21] {
            let entry = self.get_entry(table, index(address, shift));
            table = if entry & PRESENT == 0 {
                let new = self.new_table(new_frame)?;
                self.set_entry(table, index(address, shift), new as u64 | PRESENT | WRITE);
                new
            } else {
                usize::try_from(entry & ADDRESS).ok()?
            };
        }
        let entry = (frame * PAGE_SIZE) as u64 | PRESENT | rights.bits();
        if self.get_entry(table, index(address, 12)) & PRESENT == 0 {
            self.set_entry(table, index(address, 12), entry);
        }
        Some(())
    }

    /// Removes the mapping of a page; the caller flushes. Returns the frame that was mapped, or `None` if there is no
    /// table for the address.
    ///
    /// # Safety
    /// Nobody uses the page any more.
    pub(crate) unsafe fn unmap(self, address: usize) -> Option<usize> {
        let (table, slot) = self.lowest(address)?;
        let entry = self.get_entry(table, slot);
        self.set_entry(table, slot, 0);
        usize::try_from(entry & ADDRESS).ok().map(|physical| physical / PAGE_SIZE)
    }

    /// What [`set_link`](Self::set_link) has left for a page that is not mapped; 0 for nothing.
    pub(crate) fn link(self, address: usize) -> usize {
        let Some((table, slot)) = self.lowest(address) else { return 0 };
        usize::try_from(self.get_entry(table, slot)).unwrap_or(0) / LINK
    }

    /// Leaves a number in the entry of a page that is not mapped and has a table.
    ///
    /// # Safety
    /// Nobody uses the page.
    pub(crate) unsafe fn set_link(self, address: usize, link: usize) {
        if let Some((table, slot)) = self.lowest(address) {
            self.set_entry(table, slot, (link * LINK) as u64);
        }
    }

    /// Maps the first frames by their physical address, coarsely: up to so many times 2 MiB, and 1 GiB at most.
    ///
    /// Pages of 2 MiB need no table that would have to be put somewhere first. They may reach beyond what is populated;
    /// nothing may touch that before [`map_directly`](Self::map_directly) makes them exact.
    ///
    /// # Safety
    /// Runs once, before the other functions of this type.
    pub(crate) unsafe fn map_coarsely(self, areas: usize) {
        let pd = self.image_table(&DIRECT_PD);
        for area in 0..areas.min(ENTRIES) {
            self.set_entry(pd, area, (area * AREA) as u64 | PRESENT | WRITE | LARGE | NO_EXECUTE);
        }
        let pdpt = self.image_table(&DIRECT_PDPT);
        self.set_entry(pdpt, 0, pd as u64 | PRESENT | WRITE);
        self.set_entry(self.root(), index(DIRECT, 39), pdpt as u64 | PRESENT | WRITE);
    }

    /// Maps the frames before `end` by their physical address, exactly: those that are there. Removes the identity mapping
    /// of the first instructions. `None` if there is no frame for a table.
    ///
    /// # Safety
    /// 1. Runs once, after [`map_coarsely`](Self::map_coarsely).
    /// 2. `new_frame` gives frames that are mapped coarsely, are there, and are used by nobody.
    pub(crate) unsafe fn map_directly(
        self,
        end: usize,
        is_there: &dyn Fn(usize) -> bool,
        new_frame: &mut dyn FnMut() -> Option<usize>,
    ) -> Option<()> {
        let pd = self.image_table(&DIRECT_PD);
        for area in 0..end.div_ceil(ENTRIES).min(ENTRIES) {
            let table = self.new_table(new_frame)?;
            for slot in 0..ENTRIES {
                let frame = area * ENTRIES + slot;
                if frame < end && is_there(frame) {
                    let entry = (frame * PAGE_SIZE) as u64 | PRESENT | WRITE | NO_EXECUTE;
                    self.set_entry(table, slot, entry);
                }
            }
            self.set_entry(pd, area, table as u64 | PRESENT | WRITE);
        }
        // All that there might be was mapped. What is left of that is no table: whoever took it for one would write the
        // entries of later memory into the first frame of its area.
        for area in end.div_ceil(ENTRIES)..ENTRIES {
            self.set_entry(pd, area, 0);
        }
        for frame in (ENTRIES * ENTRIES..end).filter(|frame| is_there(*frame)) {
            let address = DIRECT + frame * PAGE_SIZE;
            // SAFETY: (1) nobody has used the direct map there yet; (2) by contract.
            unsafe { self.map(address, frame, Rights::ReadWrite, new_frame)? };
        }
        self.set_entry(self.root(), 0, 0);
        cpu::flush_translations();
        Some(())
    }

    /// Maps the bridge at its physical address in an image that is only just booting: beside the identity page of
    /// `boot/head.S`, with one large page. [`map_directly`](Self::map_directly) removes it.
    ///
    /// # Safety
    /// Runs once, before [`map_directly`](Self::map_directly).
    pub(crate) unsafe fn map_early(self, address: usize) {
        let pdpt = (&raw const early_identity_pdpt).addr() - image().start + self.image_base;
        let entry = self.get_entry(pdpt, index(address, 30));
        let pd = if entry & PRESENT == 0 {
            let pd = self.image_table(&BRIDGE_PD);
            self.set_entry(pdpt, index(address, 30), pd as u64 | PRESENT | WRITE);
            pd
        } else {
            usize::try_from(entry & ADDRESS).unwrap_or(0)
        };
        if self.get_entry(pd, index(address, 21)) & PRESENT == 0 {
            let area = (address & !(AREA - 1)) as u64;
            self.set_entry(pd, index(address, 21), area | PRESENT | LARGE);
        }
    }
}
