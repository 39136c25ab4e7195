//! What [`handover`](crate::handover) needs of memory: frames, the place of an image, the bridge, and what a
//! new image takes over.

use super::{CHUNKS_PREPARED, MEMORY, OUT_OF_FRAMES, SLOT, TABLE_RESERVE, direct, frame_address};
use crate::abi::xen::errno;
use crate::arch::cpu;
use crate::arch::paging::{AREA, DIRECT, REGION, Rights, at};
use crate::error::Refusal;
use crate::memory::frames::PER_WORD;
use crate::memory::layout::PAGE_SIZE;
use crate::traps::{self, Fault};
use core::ptr::NonNull;

/// What a replacement image takes over of the domain's memory, in frames, in the layout of the bridge.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Inherited {
    /// As the fields of [`Memory`].
    pub(crate) populated: u64,
    pub(crate) limit: u64,
    pub(crate) foreign: u64,
    /// Physical address of the bitmap of free frames, and its words. It stays as it is during the trial.
    pub(crate) bitmap: u64,
    pub(crate) bitmap_words: u64,
}

impl Inherited {
    /// The physical address of a word of a bitmap at `bitmap`, and the bit in it, for a frame.
    fn place(&self, bitmap: u64, frame: usize) -> Option<(usize, usize)> {
        let index = frame / PER_WORD;
        let inside = (index as u64) < self.bitmap_words;
        let bitmap = usize::try_from(bitmap).ok().filter(|&bitmap| inside && bitmap != 0)?;
        Some((bitmap + index * size_of::<u64>(), frame % PER_WORD))
    }
}

/// A predecessor's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Predecessor {
    pub(crate) memory: Inherited,
    /// Physical address of a bitmap like that of `memory`, of the frames that went back to Xen; 0 for none.
    pub(crate) absent: u64,
    /// Frames that the domain was built with; 0 if it does not say.
    pub(crate) built: u64,
}

impl Predecessor {
    /// Whether the bitmaps lie in memory that is there.
    fn is_sound(&self) -> bool {
        let is_inside = |bitmap: u64| {
            let bytes = self.memory.bitmap_words.checked_mul(size_of::<u64>() as u64);
            let end = bytes.and_then(|bytes| bitmap.checked_add(bytes));
            let populated = self.memory.populated.saturating_mul(PAGE_SIZE as u64);
            bitmap % size_of::<u64>() as u64 == 0 && end.is_some_and(|end| end <= populated)
        };
        is_inside(self.memory.bitmap) && is_inside(self.absent)
    }

    /// Whether a frame is in a bitmap. Only for one that [`inherit`] took.
    fn is_set(&self, bitmap: u64, frame: usize) -> bool {
        let Some((word, bit)) = self.memory.place(bitmap, frame) else { return false };
        // SAFETY: inside a bitmap, which `is_sound`, and which nobody writes to before `commit` is done.
        let word = unsafe { direct(word).cast::<u64>().read() };
        word >> bit & 1 == 1
    }

    /// Whether a frame was free when the old image was left.
    fn was_free(&self, frame: usize) -> bool {
        self.is_set(self.memory.bitmap, frame)
    }

    /// Whether there is no memory behind a frame any more.
    pub(crate) fn is_absent(&self, frame: usize) -> bool {
        self.is_set(self.absent, frame)
    }

    /// Whether a frame holds something of the old image.
    pub(crate) fn holds(&self, frame: usize) -> bool {
        !self.was_free(frame)
    }
}

/// A free frame, populated if need be, or `None`.
pub(crate) fn take_frame() -> Option<usize> {
    let mut memory = MEMORY.lock();
    if memory.frames.count() <= TABLE_RESERVE && memory.populate() == 0 {
        return None;
    }
    memory.frames.take()
}

/// Makes a frame free that nobody uses any more.
pub(crate) fn give_frame(frame: usize) {
    let mut memory = MEMORY.lock();
    if frame != 0 && frame < memory.populated && !memory.own().holds(frame) {
        memory.frames.give(frame);
    }
}

/// The first of `pages` free frames in a row where an image may lie.
pub(crate) fn take_slot(pages: usize) -> Option<usize> {
    let mut memory = MEMORY.lock();
    if let Some(first) = memory.open_slot(pages.min(SLOT)) {
        return Some(first);
    }
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
pub(crate) fn want_free(pages: usize) -> bool {
    let mut memory = MEMORY.lock();
    while memory.frames.count() < pages.saturating_add(TABLE_RESERVE) {
        if memory.populate() == 0 {
            return false;
        }
    }
    true
}

/// Populates some chunks more, as long as fewer than `pages` frames are free.
pub fn prepare(pages: usize) {
    let mut memory = MEMORY.lock();
    memory.surplus.disturb();
    for _ in 0..CHUNKS_PREPARED {
        // Where there is no more, the hand-over will say so.
        if memory.frames.count() >= pages || memory.populate() == 0 {
            return;
        }
    }
}

/// Has memory behind every frame before the last, for a successor that does not know of others; `false` if Xen has none.
pub(crate) fn fill() -> bool {
    let mut memory = MEMORY.lock();
    while memory.absent.count() > 0 {
        if memory.populate() == 0 {
            return false;
        }
    }
    true
}

/// Writes bytes into a frame that the caller has taken.
pub(crate) fn write_frame(frame: usize, offset: usize, bytes: &[u8]) {
    let memory = MEMORY.lock();
    let fits = offset <= PAGE_SIZE && bytes.len() <= PAGE_SIZE - offset;
    assert!(fits && frame < memory.populated && !memory.own().holds(frame), "no such frame");
    let to = frame_address(frame);
    // SAFETY: populated, hence in the direct map; inside the page.
    let to = unsafe { to.add(offset) };
    // SAFETY: as above; it is nobody else's, and `bytes` is no part of it.
    unsafe { NonNull::from(bytes).cast().copy_to_nonoverlapping(to, bytes.len()) };
}

/// Maps the bridge at its physical address, to be read and executed.
pub(crate) fn map_bridge(frame: usize) -> Result<(), Refusal> {
    MEMORY.lock().map_as(frame * PAGE_SIZE, frame, Rights::ReadExecute).ok_or(OUT_OF_FRAMES)
}

/// The bridge's page in the direct map, by its physical address. It takes no lock: the way back needs it, and the code
/// that has failed may hold that.
pub(crate) fn bridge_page(address: u64) -> NonNull<u8> {
    frame_address(usize::try_from(address).unwrap_or(0) / PAGE_SIZE)
}

/// Fails while the frames are locked, for a test of the way back.
pub fn fail_holding_frames(fault: Fault) -> ! {
    let _held = MEMORY.lock();
    traps::provoke(fault)
}

/// Undoes [`map_bridge`].
pub(crate) fn unmap_bridge(frame: usize) {
    MEMORY.lock().unmap(frame * PAGE_SIZE);
    cpu::flush_translations();
}

/// Maps the bridge at its physical address in an image that is only just booting: beside the identity page of
/// `boot/head.S`, with one large page. [`refine`] removes it; then [`map_bridge`] is called.
///
/// # Safety
/// Runs once, between [`find`] and [`refine`].
pub(crate) unsafe fn map_bridge_early(address: u64) {
    let Ok(address) = usize::try_from(address) else { return };
    // SAFETY: by contract.
    unsafe { MEMORY.lock().tables().map_early(address) };
}

/// What a replacement has to know of memory.
pub(crate) fn inheritance() -> Predecessor {
    let memory = MEMORY.lock();
    let bitmap = memory.frames.words();
    let address = |words: &[u64]| (words.as_ptr().addr() - DIRECT) as u64;
    let absent = if memory.absent.count() > 0 { address(memory.absent.words()) } else { 0 };
    let inherited = Inherited {
        populated: memory.populated as u64,
        limit: memory.limit as u64,
        foreign: memory.foreign as u64,
        bitmap: address(bitmap),
        bitmap_words: bitmap.len() as u64,
    };
    Predecessor { memory: inherited, absent, built: memory.built as u64 }
}

/// Nobody has run in this domain before: all memory there is, is what the builder has put there.
pub(crate) fn begin() {
    let mut memory = MEMORY.lock();
    memory.populated = memory.built;
}

/// Takes over what the old image knows of memory, in place of what [`find`] found out; until
/// [`commit`] nothing is asked of Xen.
///
/// # Errors
/// That it does not fit what there is.
pub(crate) fn inherit(predecessor: &Predecessor) -> Result<(), Refusal> {
    let inherited = &predecessor.memory;
    let mut memory = MEMORY.lock();
    let small = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let (populated, limit) = (small(inherited.populated), small(inherited.limit));
    let possible = memory.built..=memory.populated;
    if !possible.contains(&populated) || limit < populated || !predecessor.is_sound() {
        return Err(Refusal { call: "size of inherited memory", code: errno::EINVAL });
    }
    // What a predecessor of an older kind has taken counts as built with: it does not say.
    if predecessor.built != 0 {
        memory.built = small(predecessor.built).min(populated);
    }
    memory.populated = populated;
    memory.limit = limit;
    memory.foreign = small(inherited.foreign);
    memory.frozen = true;
    Ok(())
}

/// Maps a region of `len` bytes in one piece: its frames come from a list of lists.
pub(crate) fn map_region<I: Iterator<Item = usize>>(
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
            memory.map_as(REGION + done * PAGE_SIZE, frame, Rights::Read)?;
            done += 1;
        }
        list = next;
    }
    if done < pages {
        return None;
    }
    // SAFETY: mapped just now, for reading; the frames are the old image's, which does not run, and are not
    // given to anybody before `commit`, whose caller has no use for the bytes any more.
    Some(unsafe { core::slice::from_raw_parts(at(REGION).as_ptr(), len) })
}

/// The old image is gone: all that was its, the region of `region_len` bytes included, is free.
pub(crate) fn commit(predecessor: &Predecessor, region_len: usize) {
    let mut guard = MEMORY.lock();
    let memory = &mut *guard;
    for page in 0..region_len.div_ceil(PAGE_SIZE) {
        memory.unmap(REGION + page * PAGE_SIZE);
    }
    let own = memory.own();
    for frame in (1..memory.populated).filter(|frame| !own.holds(*frame)) {
        // What this image has taken was free then.
        if predecessor.holds(frame) && !memory.absent.contains(frame) {
            memory.frames.give(frame);
        }
    }
    memory.frozen = false;
    memory.surplus.disturb();
    memory.keep_slot();
    cpu::flush_translations();
}
