//! From one image to the next within one domain: slots, the region, the bridge.
//!
//! The new image is loaded into a free slot of memory and entered as Xen enters an image: 32-bit, no paging, `ebx`
//! pointing at a start info, whose one module is the *bridge*. The bridge is a page with facts about the domain's
//! memory, the place of the region with the whole state, and the code for the way there and back.
//!
//! ```text
//!   old image                                   new image, on trial
//!   ─────────                                   ───────────────────
//!   loads it into a slot, writes the region
//!   masks all ports but the timer's, sets that
//!   crosses the bridge ──────────────────────►  boots, finds the bridge, restores in memory that was free
//!   goes on with the reason  ◄── abandon ─────  damaged, no memory, panic, fault, deadline
//!                                commit ──────  frees the old image's memory, unmasks the ports, serves
//! ```
//!
//! Nothing that the trial does has an effect outside memory that was free, so going back needs only the old page
//! tables and stack pointer. The old image's memory is whole until the commit. `docs/live-update.md` has the
//! layouts with offsets.

mod region;

use self::region::{Frame, ListPage};
use crate::abi::start_info::{HvmModlistEntry, HvmStartInfo, MAGIC as START_INFO_MAGIC};
use crate::abi::vcpu::SetSingleshotTimer;
use crate::abi::xen::{SharedInfo, errno};
use crate::arch::{self, cpu};
use crate::digest::Digest;
use crate::error::Refusal;
use crate::id::EvtchnPort;
use crate::memory::{self, Inherited, Occupied, PAGE_SIZE, Plain, Predecessor};
use crate::slot::{BRIDGE_LAYOUT, NewImage, SLOT_SIZE, Segment};
use crate::time::{self, NS_PER_MS};
use crate::{gnttab, hypercall, restart, revival, watch};
use core::fmt;
use core::mem::offset_of;
use core::ops::RangeInclusive;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

pub use self::region::Region;

/// First word of the bridge.
const MAGIC: u64 = u64::from_le_bytes(*b"XSbridge");

/// The layouts of the bridge page and of the region's list of frames that this image knows. It refuses any other.
///
/// 1: the first. 2: also which frames went back to Xen. 3: the same, from and to images that say how to revive them.
const LAYOUTS: RangeInclusive<u64> = 1..=BRIDGE_LAYOUT as u64;

/// The first layout of images that say how to revive them once they have taken over (`revival`).
const PUBLISHING: u32 = 3;

/// The largest command line that is handed over, its closing zero included.
pub const COMMAND_LINE_MAX: usize = PAGE_SIZE - COMMAND_LINE;
/// Where it stands in the page with the start info.
const COMMAND_LINE: usize = 128;

/// Where the bridge has the reason for going back: its length, then the text.
const REASON_LEN: usize = 1024;
const REASON: usize = REASON_LEN + size_of::<u64>();
const REASON_MAX: usize = CODE - REASON;
/// Where the bridge has its code.
const CODE: usize = 2048;

/// Pages of memory beyond image and region that must be free before a trial: page tables, heap, bitmap.
const TRIAL_PAGES: usize = 128;

/// The start of the bridge page.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Bridge {
    pub(crate) magic: u64,
    pub(crate) layout: u64,
    /// Physical address of the code that leads back.
    pub(crate) back: u64,
    /// What `back` restores.
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) rsp: u64,
    /// Physical addresses of the new image's start info and entry.
    pub(crate) start_info: u64,
    pub(crate) entry: u64,
    /// The operand of `lgdt`: its 2 bytes of limit are the last of this word, the address follows.
    pub(crate) gdt_limit: u64,
    pub(crate) gdt_base: u64,
    pub(crate) gdt: [u64; 3],
    pub(crate) facts: BridgeFields,
    /// Digest of `facts`. In layout 1 it is where `absent` is now.
    pub(crate) checksum: u64,
}
// As in docs/live-update.md.
const _: () = assert!(offset_of!(Bridge, facts) == 112 && offset_of!(Bridge, checksum) == 232);
const _: () = assert!(size_of::<Bridge>() <= REASON_LEN);
// SAFETY: only words, without padding.
unsafe impl Plain for Bridge {}

/// What the new image has to know before it can read the region.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct BridgeFields {
    /// What the old image knows of the domain's memory.
    pub(crate) memory: Inherited,
    /// Frame of the first page of the region's list.
    region: u64,
    stream_len: u64,
    private_len: u64,
    /// Digest of the region's bytes, and of the state that they describe.
    digest: u64,
    /// When the trial is over, in nanoseconds of Xen's clock.
    deadline_ns: u64,
    /// Ports of `VIRQ_TIMER` and, or all ones, of `VIRQ_DOM_EXC`.
    timer_port: u64,
    changes_port: u64,
    /// The first page of the grant window that was never used.
    window: u64,
    /// From layout 2 on: as [`Predecessor::absent`].
    absent: u64,
    /// Likewise: frames that the domain was built with.
    built: u64,
}

impl BridgeFields {
    /// All of it as words.
    fn words(self) -> [u64; size_of::<BridgeFields>() / 8] {
        let m = self.memory;
        [
            m.populated,
            m.limit,
            m.foreign,
            m.bitmap,
            m.bitmap_words,
            self.region,
            self.stream_len,
            self.private_len,
            self.digest,
            self.deadline_ns,
            self.timer_port,
            self.changes_port,
            self.window,
            self.absent,
            self.built,
        ]
    }

    /// The digest of the words that a layout has.
    fn checksum(self, layout: u64) -> u64 {
        let words = self.words();
        let count = if layout == 1 { words.len() - 2 } else { words.len() };
        let mut digest = Digest::default();
        for word in &words[..count] {
            digest.add(&word.to_le_bytes());
        }
        digest.finish()
    }

    /// The memory of the image that hands over.
    pub(crate) fn predecessor(&self) -> Predecessor {
        Predecessor { memory: self.memory, absent: self.absent, built: self.built }
    }
}

/// No port.
const NO_PORT: u64 = u64::MAX;

fn error(call: &'static str, code: i32) -> Refusal {
    Refusal { call, code }
}

/// The place of a replacement image: frames that are given back when dropped.
struct Slot {
    first: usize,
    pages: usize,
}

impl Slot {
    /// Loads an image.
    fn load<'a>(size: usize, segments: impl Iterator<Item = Segment<'a>>) -> Result<Self, Refusal> {
        let pages = size.div_ceil(PAGE_SIZE);
        let first = memory::take_slot(pages)
            .ok_or(error("a free slot of memory for the new image", errno::ENOMEM))?;
        let slot = Self { first, pages };
        for frame in first..first + pages {
            memory::write_frame(frame, 0, &[0; PAGE_SIZE]);
        }
        for segment in segments {
            let mut at = segment.offset;
            let mut rest = segment.bytes;
            while !rest.is_empty() {
                let room = PAGE_SIZE - at % PAGE_SIZE;
                let (now, later) = rest.split_at(rest.len().min(room));
                memory::write_frame(first + at / PAGE_SIZE, at % PAGE_SIZE, now);
                at += now.len();
                rest = later;
            }
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.first..self.first + self.pages).for_each(memory::give_frame);
        // For the next one.
        memory::settle();
    }
}

/// Pages that a hand-over is going to need, as far as can be known before it: the image's slot, the new heap, and
/// a region, which has the whole path of each node and is seldom more than twice as large as the heap that it
/// describes.
#[must_use]
pub fn pages_wanted() -> usize {
    SLOT_SIZE / PAGE_SIZE + TRIAL_PAGES + 3 * memory::heap().used.div_ceil(PAGE_SIZE)
}

/// What the machine knows and the region does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) timer: u32,
    pub(crate) changes: Option<u32>,
}

/// The image that takes over.
#[derive(Debug)]
pub enum Successor<'a> {
    /// Another one.
    New(&'a NewImage<'a>),
    /// A fresh copy of this one.
    Own,
}

impl Successor<'_> {
    /// The highest layout of the bridge that it knows.
    fn bridge_layout(&self) -> u32 {
        match self {
            Self::New(image) => image.bridge_layout(),
            Self::Own => BRIDGE_LAYOUT,
        }
    }

    /// Offset of its entry from its start.
    fn entry(&self) -> usize {
        match self {
            Self::New(image) => image.entry(),
            // `linker.ld` sees to it.
            Self::Own => 0,
        }
    }

    /// Puts it into a free slot.
    fn load(&self) -> Result<Slot, Refusal> {
        match self {
            Self::New(image) => Slot::load(image.size(), image.segments().iter().copied()),
            Self::Own => {
                let (segments, size) = restart::own_image();
                Slot::load(size, segments.into_iter())
            }
        }
    }
}

/// A hand-over that is to be made.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who takes over.
    pub image: Successor<'a>,
    /// Its command line.
    pub command_line: &'a str,
    /// The state.
    pub region: &'a Region,
    /// How much of the region is the first of its two parts.
    pub stream_len: usize,
    /// A port with news about other domains, for the successor to go on with.
    pub changes: Option<EvtchnPort>,
    /// When the trial is over.
    pub deadline_ms: u64,
}

/// Why a hand-over came to nothing.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it may be made because there is no memory, so it takes none"
)]
pub enum Failure {
    /// The new image is of a kind that needs all memory that this one has ever had, and Xen has not got that any more.
    NoMemoryOfOld,
    /// The new image needs so many bytes beside this one.
    NoMemory(usize),
    /// There is no timer for the end of the trial.
    NoTimer(Refusal),
    /// The new image could not be started.
    NotStarted(Refusal),
    /// The new image came back, with this reason.
    CameBack(Reason),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::NotStarted(refusal)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemoryOfOld => f.write_str(
                "not enough memory: the new image is of an older kind, which needs all that this one has ever had, and \
                 Xen has not got that any more",
            ),
            Self::NoMemory(bytes) => write!(
                f,
                "not enough memory: the new image needs {} KiB beside this one; raise the memory of the domain, or its \
                 maximum",
                bytes / 1024
            ),
            Self::NoTimer(refusal) => write!(f, "no timer for the trial: {refusal}"),
            Self::NotStarted(refusal) => write!(f, "the new image cannot be started: {refusal}"),
            Self::CameBack(reason) => reason.fmt(f),
        }
    }
}

/// What a new image has said before it went back.
#[derive(Debug)]
pub struct Reason(heapless::Vec<u8, REASON_MAX>);

/// Bytes that are no text become U+FFFD.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the new image gave up without a reason");
        }
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            f.write_str(if chunk.invalid().is_empty() { "" } else { "\u{fffd}" })?;
        }
        Ok(())
    }
}

/// Crosses the bridge. Returns only if the new image came back, with its reason, or could not be started.
///
/// The caller has masked all ports but the timer's and set that to the deadline.
pub(crate) fn cross(request: &Request<'_>, timer: u32) -> Failure {
    if request.image.bridge_layout() < PUBLISHING {
        revival::withdraw();
    }
    let failure = try_cross(request, timer).unwrap_or_else(Failure::NotStarted);
    revival::publish();
    failure
}

/// What the new image has to know, in the words of a layout, and the digest of it.
fn facts(request: &Request<'_>, timer: u32, layout: u64) -> (BridgeFields, u64) {
    let Request { region, stream_len, .. } = request;
    let old = memory::inheritance();
    let mut facts = BridgeFields {
        memory: old.memory,
        region: region.first_frame(),
        stream_len: *stream_len as u64,
        private_len: region.len().saturating_sub(*stream_len) as u64,
        digest: region.digest(),
        deadline_ns: request.deadline_ms.saturating_mul(NS_PER_MS),
        timer_port: u64::from(timer),
        changes_port: request.changes.map_or(NO_PORT, |port| u64::from(port.0)),
        window: gnttab::window_end() as u64,
        absent: old.absent,
        built: old.built,
    };
    let checksum = facts.checksum(layout);
    if layout == 1 {
        facts.absent = checksum;
    }
    (facts, checksum)
}

fn try_cross(request: &Request<'_>, timer: u32) -> Result<Failure, Refusal> {
    let Request { image, command_line, region, .. } = request;
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(error("a command line of that length", errno::ENOSPC));
    }
    let layout = u64::from(image.bridge_layout().clamp(1, BRIDGE_LAYOUT));
    if layout == 1 && !memory::fill() {
        return Ok(Failure::NoMemoryOfOld);
    }
    let slot = image.load()?;
    let (mut bridge, mut start) = (Frame::take()?, Frame::take()?);
    let needed = TRIAL_PAGES + region.pages() + memory::heap().used.div_ceil(PAGE_SIZE);
    if !memory::want_free(needed) {
        return Ok(Failure::NoMemory(needed * PAGE_SIZE));
    }
    let info = HvmStartInfo {
        magic: START_INFO_MAGIC,
        version: 0,
        flags: 0,
        nr_modules: 1,
        modlist_paddr: start.address() + size_of::<HvmStartInfo>() as u64,
        cmdline_paddr: start.address() + COMMAND_LINE as u64,
        rsdp_paddr: 0,
    };
    let module =
        HvmModlistEntry { paddr: bridge.address(), size: PAGE_SIZE as u64, ..Default::default() };
    start.write(0, memory::bytes_of(&info));
    start.write(size_of::<HvmStartInfo>(), memory::bytes_of(&module));
    start.write(COMMAND_LINE, command_line.as_bytes());
    start.write(COMMAND_LINE + command_line.len(), &[0]);

    let (code, back) = arch::bridge::code();
    let enter = bridge.address() + CODE as u64;
    let (facts, checksum) = facts(request, timer, layout);
    let head = Bridge {
        magic: MAGIC,
        layout,
        back: enter + back as u64,
        start_info: start.address(),
        entry: (slot.first * PAGE_SIZE + image.entry()) as u64,
        gdt_limit: (size_of::<[u64; 3]>() as u64 - 1) << 48,
        gdt_base: bridge.address() + offset_of!(Bridge, gdt) as u64,
        // Null, flat 32-bit code, flat data; the accessed bits are set.
        gdt: [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff],
        facts,
        checksum,
        ..Default::default()
    };
    bridge.write(0, memory::bytes_of(&head));
    bridge.write(REASON_LEN, &[0; 8]);
    bridge.write(CODE, code);
    let is_low = |address: u64| address < u64::from(u32::MAX);
    if !is_low(start.address()) || !is_low(head.entry) || !is_low(bridge.address()) {
        return Err(error("memory below 4 GiB", errno::ENOMEM));
    }
    memory::map_bridge(bridge.0)?;
    // Another version need not know of it. The trial has its own end.
    if matches!(image, Successor::New(_)) {
        watch::release();
    }
    // SAFETY: (1) mapped just now, with the code in it; (2) the slot holds a checked image, and what that does
    // until it comes back is limited to memory that is free here: its part of the agreement.
    unsafe { arch::bridge::call(enter, memory::frame_address(bridge.0)) };
    arch::traps::load();
    memory::unmap_bridge(bridge.0);
    Ok(Failure::CameBack(reason(&bridge)))
}

/// The reason that the new image has left.
fn reason(bridge: &Frame) -> Reason {
    let mut len = [0; 8];
    let mut text = [0; REASON_MAX];
    let is_there = memory::copy_physical(bridge.address() + REASON_LEN as u64, &mut len)
        && memory::copy_physical(bridge.address() + REASON as u64, &mut text);
    let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(0).min(REASON_MAX);
    let text = text.get(..len).filter(|_| is_there).unwrap_or_default();
    Reason(text.iter().copied().collect())
}

// ---- the new image's side ----

/// Physical address of the bridge while this image is on trial, else 0.
pub(crate) static TRIAL: AtomicU64 = AtomicU64::new(0);

/// A hand-over that was found at boot.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    facts: BridgeFields,
    /// The region, mapped in one piece.
    region: &'static [u8],
}

/// Reads the bridge, if the first module is one, and prepares the way back.
///
/// # Safety
/// Runs once, after `memory::find` and before anything else takes memory.
pub(crate) unsafe fn find(module: &Occupied) -> Option<BridgeFields> {
    let (module, size) = (module.start as u64, module.size);
    if size != PAGE_SIZE || module % PAGE_SIZE as u64 != 0 {
        return None;
    }
    let mut bridge: Bridge = memory::read_physical(module)?;
    if bridge.magic != MAGIC {
        return None;
    }
    // SAFETY: nothing has been mapped by this image yet; the caller's promise.
    unsafe { memory::map_bridge_early(module) };
    TRIAL.store(module, Ordering::Relaxed);
    if !LAYOUTS.contains(&bridge.layout) {
        let (first, last) = (LAYOUTS.start(), LAYOUTS.end());
        abandon(format_args!(
            "this image knows bridge layouts {first} to {last}, not {}",
            bridge.layout
        ));
    }
    if bridge.layout == 1 {
        bridge.checksum = core::mem::take(&mut bridge.facts.absent);
        bridge.facts.built = 0;
    }
    if bridge.facts.checksum(bridge.layout) != bridge.checksum {
        abandon(format_args!("the facts on the bridge are damaged: their checksum differs"));
    }
    Some(bridge.facts)
}

/// Whether this image is on its way back. A failure on that way must not start it again.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Goes back to the old image with a reason, if this image is on trial; else returns.
///
/// It may be called from anywhere, even where a lock is held and its data are half changed. So it takes no lock and
/// allocates nothing.
pub(crate) fn abandon_if_on_trial(reason: fmt::Arguments<'_>) {
    use fmt::Write;
    let bridge = TRIAL.load(Ordering::Relaxed);
    if bridge == 0 {
        return;
    }
    let page = memory::bridge_page(bridge);
    if !LEAVING.swap(true, Ordering::Relaxed) {
        // Never fails: what does not fit is dropped.
        let _ = ReasonWriter { page, len: 0 }.write_fmt(reason);
    }
    let back = page.as_ptr().wrapping_add(offset_of!(Bridge, back));
    // SAFETY: inside the page, which is mapped for as long as `TRIAL` says so, and aligned.
    let back = unsafe { back.cast::<u64>().read_volatile() };
    // SAFETY: the old image has put the address of `bridge_back` there; the bridge is mapped at its
    // physical address for as long as `TRIAL` says so. The old image is whole.
    unsafe { arch::bridge::go_back(back, bridge) }
}

/// The reason for going back, as it is written on the bridge.
struct ReasonWriter {
    /// The bridge's page.
    page: NonNull<u8>,
    len: usize,
}

impl fmt::Write for ReasonWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == REASON_MAX {
                break;
            }
            let place = self.page.as_ptr().wrapping_add(REASON + self.len);
            // SAFETY: inside the page, which is this image's to write for as long as it is on trial.
            unsafe { place.write_volatile(byte) };
            self.len += 1;
        }
        // After each piece, so that the reason is told as far as it got.
        let place = self.page.as_ptr().wrapping_add(REASON_LEN).cast::<u64>();
        // SAFETY: as above, and aligned.
        unsafe { place.write_volatile(self.len as u64) };
        Ok(())
    }
}

/// Goes back to the old image with a reason.
pub fn abandon(reason: fmt::Arguments<'_>) -> ! {
    abandon_if_on_trial(reason);
    panic!("{reason}")
}

impl Handover {
    /// Maps the region.
    pub(crate) fn open(facts: BridgeFields) -> Self {
        let small = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
        let len = small(facts.stream_len).saturating_add(small(facts.private_len));
        let Some(bytes) = memory::map_region(small(facts.region), len, |frame| {
            let page = ListPage::read(frame)?;
            Some((page.next, page.frames()))
        }) else {
            abandon(format_args!(
                "not enough memory, or a damaged list, for a region of {len} bytes"
            ));
        };
        Self { facts, region: bytes }
    }

    /// The first part of the state.
    #[must_use]
    pub fn stream(&self) -> &'static [u8] {
        self.region.get(..self.split()).unwrap_or(&[])
    }

    /// The rest.
    #[must_use]
    pub fn private(&self) -> &'static [u8] {
        self.region.get(self.split()..).unwrap_or(&[])
    }

    fn split(&self) -> usize {
        usize::try_from(self.facts.stream_len).unwrap_or(usize::MAX)
    }

    /// The digest of the state.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.facts.digest
    }

    pub(crate) fn ports(&self) -> Option<Ports> {
        let timer = u32::try_from(self.facts.timer_port).ok()?;
        let changes = match self.facts.changes_port {
            NO_PORT => None,
            port => Some(u32::try_from(port).ok()?),
        };
        Some(Ports { timer, changes })
    }

    pub(crate) fn window(&self) -> usize {
        usize::try_from(self.facts.window).unwrap_or(usize::MAX)
    }

    /// Ends the trial: there is no way back, and all memory of the old image is free.
    pub(crate) fn commit(self) {
        let bridge = TRIAL.swap(0, Ordering::Relaxed);
        // Up to here a lost processor is given to the old image, which is whole.
        revival::publish();
        memory::unmap_bridge(usize::try_from(bridge).unwrap_or(0) / PAGE_SIZE);
        memory::commit(&self.facts.predecessor(), self.region.len());
    }
}

/// When the trial is over, and the page that tells the time.
static DEADLINE_NS: AtomicU64 = AtomicU64::new(0);
static SHARED: AtomicPtr<SharedInfo> = AtomicPtr::new(null_mut());

/// From now on the timer ends the trial, whatever this image is doing then.
pub(crate) fn watch_deadline(shared: &'static SharedInfo, handover: &Handover) {
    SHARED.store(core::ptr::from_ref(shared).cast_mut(), Ordering::Relaxed);
    DEADLINE_NS.store(handover.facts.deadline_ns, Ordering::Relaxed);
    cpu::enable_interrupts();
}

/// An event interrupts the trial. All ports but the timer's are masked.
pub(crate) extern "C" fn tick() {
    // SAFETY: null, or the page that `watch_deadline` was given, which is mapped for good.
    let Some(shared) = (unsafe { SHARED.load(Ordering::Relaxed).as_ref() }) else { return };
    let vcpu = &shared.vcpu_info[0];
    let deadline_ns = DEADLINE_NS.load(Ordering::Relaxed);
    if time::now_ns(&vcpu.time, cpu::tsc) >= deadline_ns {
        abandon_if_on_trial(format_args!(
            "the new image was not done in time; this one goes on. A longer time may be given with -t"
        ));
    }
    // Something else, from before: Xen must not repeat it, and the timer goes on.
    vcpu.evtchn_pending_sel.store(0, Ordering::SeqCst);
    vcpu.evtchn_upcall_pending.store(0, Ordering::SeqCst);
    let mut timer = SetSingleshotTimer { timeout_abs_ns: deadline_ns, flags: 0 };
    // Without a timer the trial has no deadline, which is no reason to end it.
    let _ = hypercall::perform(&mut timer);
}
