//! Other domains' pages, mapped by their grant entries.
//!
//! A page is mapped at a frame of ours that has no memory, page `n` of the foreign window. The frame is used again
//! after the page is unmapped. Its page table entry stays: without a mapping behind it, nobody has the address.

use super::shared_page::SharedPage;
use super::traps::{self, Fault};
use super::{DOMID_SELF, console, hypercall, memory};
use crate::abi::grant_table::{GNTMAP_HOST_MAP, GNTST_OKAY, MapGrantRef, UnmapGrantRef};
use crate::abi::memory::{AddToPhysmap, MAPSPACE_SHARED_INFO};
use crate::abi::xen::SharedInfo;
use crate::error::Refusal;
use crate::id::DomId;
use crate::memory::PAGE_SIZE;
use alloc::vec::Vec;
use spin::Mutex;

/// The page of the window that shows `struct shared_info`.
const SHARED_INFO_PAGE: usize = 0;

/// Pages of the window. Those below `next` were used at some time; the free ones of them are in `free`.
struct Window {
    free: Vec<usize>,
    next: usize,
}

/// Makes the window usable after a failure has interrupted a change of it, at any instruction, until the state is
/// handed over. Returns whether it was being changed.
///
/// Its list of free pages is given up. A successor makes its own: of all pages but those that it adopts.
///
/// # Safety
/// What was broken off never goes on.
pub(crate) unsafe fn mend() -> bool {
    let is_locked = WINDOW.is_locked();
    if is_locked {
        // SAFETY: by contract, whoever has the lock will never use what it guards.
        unsafe { WINDOW.force_unlock() };
        // Not dropped: that would free a block that may be gone already.
        core::mem::forget(core::mem::take(&mut WINDOW.lock().free));
    }
    is_locked
}

/// Fails while the window is locked, for a test of what comes after it.
pub fn fail_holding_window(fault: Fault) -> ! {
    let _held = WINDOW.lock();
    traps::provoke(fault)
}

static WINDOW: Mutex<Window> = Mutex::new(Window { free: Vec::new(), next: SHARED_INFO_PAGE + 1 });

/// Maps `struct shared_info`.
pub(crate) fn map_shared_info() -> Result<&'static SharedInfo, Refusal> {
    let (address, frame) = memory::map_foreign(SHARED_INFO_PAGE)?;
    let mut argument = AddToPhysmap {
        domid: DOMID_SELF,
        space: MAPSPACE_SHARED_INFO,
        gpfn: frame,
        ..Default::default()
    };
    // SAFETY: (1) no addresses; (2) the frame had no memory behind it.
    unsafe { hypercall::perform_on_memory(&mut argument) }?;
    // SAFETY: mapped for good, large enough, and all that Xen writes to is atomic.
    Ok(unsafe { address.cast::<SharedInfo>().as_ref() })
}

/// Maps `struct shared_info` where the old image has put it.
pub(crate) fn adopt_shared_info() -> Result<&'static SharedInfo, Refusal> {
    let (address, _) = memory::map_foreign(SHARED_INFO_PAGE)?;
    // SAFETY: as above; Xen shows the page at that frame since the old image asked for it.
    Ok(unsafe { address.cast::<SharedInfo>().as_ref() })
}

/// The first page of the window that was never used.
pub(crate) fn window_end() -> usize {
    WINDOW.lock().next
}

/// Bytes that the list of free pages takes of the heap.
#[must_use]
pub fn held() -> usize {
    memory::block_bytes(WINDOW.lock().free.capacity() * size_of::<usize>())
}

/// Takes over the old image's window, before any of its pages is adopted.
pub(crate) fn adopt_window(end: usize) -> Result<(), Refusal> {
    let mut window = WINDOW.lock();
    let no_memory = Refusal { call: "list of mapped pages", code: crate::abi::xen::errno::ENOMEM };
    if end > memory::FOREIGN_PAGES {
        return Err(no_memory);
    }
    window.free.try_reserve(end).map_err(|_| no_memory)?;
    window.free.extend(SHARED_INFO_PAGE + 1..end);
    window.next = end;
    Ok(())
}

/// The handle of a page that is our own. Xen counts its handles up from 0, and has far fewer.
const OWN: u32 = u32::MAX;

const NO_PAGE: Refusal =
    Refusal { call: "a page for a ring", code: crate::abi::xen::errno::ENOMEM };

/// A page of another domain; unmapped when dropped.
#[derive(Debug)]
pub struct GrantedPage {
    page: SharedPage,
    /// Its place in the window.
    slot: usize,
    /// Its guest-physical address.
    address: u64,
    /// What Xen knows the mapping by.
    handle: u32,
}

impl GrantedPage {
    /// Maps the page of an entry in a domain's grant table.
    ///
    /// # Errors
    /// Xen's refusal, as a `GNTST_*` number, or the lack of memory for page tables.
    pub fn map(domid: DomId, grant_ref: u32) -> Result<Self, Refusal> {
        let mut window = WINDOW.lock();
        let slot = window.free.pop().unwrap_or(window.next);
        // Room for giving it back is made now, because a drop cannot fail.
        let known = window.next.max(slot + 1);
        let missing = known - window.free.len();
        let room = window.free.try_reserve(missing);
        window.next = known;
        drop(window);
        let result = match room {
            Ok(()) => Self::map_at(slot, domid, grant_ref),
            Err(_) => {
                Err(Refusal { call: "list of mapped pages", code: crate::abi::xen::errno::ENOMEM })
            }
        };
        if result.is_err() {
            give_back(slot);
        }
        result
    }

    /// The page.
    #[must_use]
    #[inline]
    pub fn page(&self) -> &SharedPage {
        &self.page
    }

    /// The page, to be written to.
    #[inline]
    pub fn page_mut(&mut self) -> &mut SharedPage {
        &mut self.page
    }

    /// What a successor needs to go on with the page.
    #[must_use]
    pub fn token(&self) -> u64 {
        (self.slot as u64) << 32 | u64::from(self.handle)
    }

    /// Goes on with a page that the old image has mapped.
    ///
    /// # Errors
    /// That there is no such page, or no memory for page tables.
    pub fn adopt(token: u64) -> Result<Self, Refusal> {
        let unknown = Refusal { call: "no such mapped page", code: crate::abi::xen::errno::ENOENT };
        let slot = usize::try_from(token >> 32).unwrap_or(usize::MAX);
        let mut window = WINDOW.lock();
        // Each only once.
        let place = window.free.binary_search(&slot).map_err(|_| unknown)?;
        window.free.remove(place);
        drop(window);
        let [handle, _] = crate::arch::cpu::halves(token);
        if handle == OWN {
            // Nobody else knows that page, so nothing of it is missed.
            return Self::of_own_memory(slot);
        }
        let (base, frame) = memory::map_foreign(slot)?;
        // SAFETY: (1) page-aligned and mapped until `drop`; (2) the slot is this page's alone.
        let page = unsafe { SharedPage::new(base) };
        Ok(Self { page, slot, address: frame * PAGE_SIZE as u64, handle })
    }

    /// A page of our own in the place of another domain's that is not to be had.
    ///
    /// # Errors
    /// The lack of memory.
    pub fn blank() -> Result<Self, Refusal> {
        let mut window = WINDOW.lock();
        // Only for its number.
        let slot = window.free.pop().unwrap_or(window.next);
        window.next = window.next.max(slot + 1);
        let missing = window.next - window.free.len();
        let room = window.free.try_reserve(missing);
        drop(window);
        let made = if room.is_ok() { Self::of_own_memory(slot) } else { Err(NO_PAGE) };
        if made.is_err() {
            give_back(slot);
        }
        made
    }

    fn of_own_memory(slot: usize) -> Result<Self, Refusal> {
        let frame = memory::take_frame().ok_or(NO_PAGE)?;
        memory::write_frame(frame, 0, &[0; PAGE_SIZE]);
        // SAFETY: (1) a populated frame, which is this page's until `drop`; (2) it was free, so nobody else has it.
        let page = unsafe { SharedPage::new(memory::frame_address(frame)) };
        Ok(Self { page, slot, address: (frame * PAGE_SIZE) as u64, handle: OWN })
    }

    fn map_at(slot: usize, domid: DomId, grant_ref: u32) -> Result<Self, Refusal> {
        let (base, frame) = memory::map_foreign(slot)?;
        let address = frame * PAGE_SIZE as u64;
        let mut argument = MapGrantRef {
            host_addr: address,
            flags: GNTMAP_HOST_MAP,
            grant_ref,
            dom: domid.0,
            ..Default::default()
        };
        // SAFETY: (1) no addresses of ours; (2) the frame is free and has no memory behind it.
        unsafe { hypercall::perform_on_memory(&mut argument) }?;
        if argument.status != GNTST_OKAY {
            return Err(Refusal {
                call: "GNTTABOP_map_grant_ref",
                code: i32::from(argument.status.unsigned_abs()),
            });
        }
        // SAFETY: (1) page-aligned and mapped until `drop`; (2) the slot is this page's alone.
        let page = unsafe { SharedPage::new(base) };
        Ok(Self { page, slot, address, handle: argument.handle })
    }
}

/// Makes a page free again. If the list had no room, which `map` rules out, the page would not be used again.
fn give_back(slot: usize) {
    let mut window = WINDOW.lock();
    if window.free.len() < window.free.capacity() {
        window.free.push(slot);
    }
}

impl Drop for GrantedPage {
    fn drop(&mut self) {
        if self.handle == OWN {
            memory::give_frame(usize::try_from(self.address).unwrap_or(0) / PAGE_SIZE);
            give_back(self.slot);
            return;
        }
        let mut argument =
            UnmapGrantRef { host_addr: self.address, handle: self.handle, ..Default::default() };
        // SAFETY: (1) no addresses of ours; (2) the only pointer to the page goes away with `self`.
        let result = unsafe { hypercall::perform_on_memory(&mut argument) };
        match result {
            Ok(_) if argument.status == GNTST_OKAY => give_back(self.slot),
            Ok(_) => console::line(format_args!(
                "xen: GNTTABOP_unmap_grant_ref failed with error {}, a frame is lost",
                argument.status.unsigned_abs()
            )),
            Err(error) => console::line(format_args!("xen: {error}, a frame is lost")),
        }
    }
}
