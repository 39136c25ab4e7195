//! Faults and panics: a report on both consoles, then a restart or the end of the domain.
//!
//! Every failure is reported first. Then the program goes on if it can ([`restart`](super::restart)). Otherwise
//! the domain ends, but never in silence. Page faults and double faults have a stack of their own, so an overflow
//! of the normal one is reported like anything else.

use super::abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_NAMES};
use super::hang;
use super::time::NS_PER_MS;
use crate::arch::cpu;
use crate::events::two_level as evtchn;
use crate::revival::record::Table;
use crate::{console, handover, hypercall, restart, watch};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

/// The vector of the event upcall; any above the exceptions would do.
pub(crate) const UPCALL_VECTOR: u8 = 0x20;

/// Selector of the code segment, here and in `boot/head.S`.
pub(crate) const CODE_SELECTOR: u16 = 0x08;
/// Selector of the data segment.
pub(crate) const DATA_SELECTOR: u16 = 0x10;
/// Selector of the task state segment.
pub(crate) const TSS_SELECTOR: u16 = 0x18;

const EXCEPTIONS: usize = 32;
const EXCEPTION_NAMES: [&str; 22] = [
    "division error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no FPU",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization exception",
    "control protection",
];
const NMI: usize = 2;
const DOUBLE_FAULT: usize = 8;
const PAGE_FAULT: usize = 14;
const MACHINE_CHECK: usize = 18;

/// Bytes of a task state segment.
const TSS_SIZE: u8 = 104;

const IST_STACK_SIZE: usize = 0x2000;

global_asm!(
    include_str!("../../boot/traps.S"),
    report = sym report_fault,
    trial = sym handover::TRIAL,
    tick = sym handover::tick,
    shared = sym watch::SHARED,
    timer = sym watch::TIMER,
    taken = sym evtchn::TAKEN,
    watch = sym watch::tick,
    hang = const UPCALL_VECTOR,
);

// `boot/traps.S` defines these symbols; only their addresses are used.
unsafe extern "C" {
    safe static event_upcall: [u8; 0];
    safe static exception_stubs: [u8; 0];
}

// `boot/traps.S` defines it too; it changes nothing but the flags.
unsafe extern "C" {
    /// Sleeps until there is an event. Returns at once if one is pending, with interrupts off as before.
    pub(crate) safe fn sleep_until_event();
}

// `linker.ld` defines these; only their addresses are used.
unsafe extern "C" {
    safe static stack_guard: [u8; 0];
    safe static stack_bottom: [u8; 0];
    safe static stack_top: [u8; 0];
    safe static text_end: [u8; 0];
}

/// What `boot/traps.S` leaves on the stack.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A stack for faults that may come from the lack of one.
#[repr(C, align(16))]
struct IstStack(UnsafeCell<[u8; IST_STACK_SIZE]>);
// SAFETY: only the processor uses it, of which there is one.
unsafe impl Sync for IstStack {}
static PAGE_FAULT_STACK: IstStack = IstStack(UnsafeCell::new([0; IST_STACK_SIZE]));
static DOUBLE_FAULT_STACK: IstStack = IstStack(UnsafeCell::new([0; IST_STACK_SIZE]));

/// The processor's tables, filled in by [`load`].
#[repr(C, align(16))]
struct Tables {
    /// Two words per gate.
    idt: [[u64; 2]; EXCEPTIONS + 1],
    /// Null, code, data, and two words for the TSS.
    gdt: [u64; 5],
    /// The TSS as 32-bit words: the IST pointers start at byte 36.
    tss: [u32; TSS_SIZE as usize / 4],
}
const _: () = assert!(UPCALL_VECTOR as usize == EXCEPTIONS);

struct TablesCell(UnsafeCell<Tables>);
// SAFETY: written by `load` alone, while nothing else runs; otherwise only the processor looks.
unsafe impl Sync for TablesCell {}
static TABLES: TablesCell = TablesCell(UnsafeCell::new(Tables {
    idt: [[0; 2]; EXCEPTIONS + 1],
    // As in boot/head.S: flat, 64-bit code and data, accessed bits set.
    gdt: [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0],
    tss: [0; TSS_SIZE as usize / 4],
}));

/// An interrupt gate: present, type 14 (interrupts go off), our code segment.
const fn gate(handler: u64, ist: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00 << 32;
    [
        (handler & 0xffff)
            | ((CODE_SELECTOR as u64) << 16)
            | (ist << 32)
            | PRESENT_INTERRUPT_GATE
            | ((handler & 0xffff_0000) << 32),
        handler >> 32,
    ]
}

/// The two words of a descriptor of an available 64-bit TSS.
const fn tss_descriptor(base: u64, limit: u64) -> [u64; 2] {
    const PRESENT_TSS: u64 = 0x89 << 40;
    [limit | ((base & 0x00ff_ffff) << 16) | PRESENT_TSS | ((base & 0xff00_0000) << 32), base >> 32]
}

/// The operand of `lgdt` and `lidt`.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

impl TablePointer {
    fn of<T>(table: &T) -> Self {
        let limit = u16::try_from(size_of::<T>() - 1).unwrap_or(u16::MAX);
        Self { limit, base: core::ptr::from_ref(table).addr() as u64 }
    }
}

/// The low and high 32 bits of the address just above a stack.
fn top_of(stack: &'static IstStack) -> [u32; 2] {
    cpu::halves((stack.0.get().addr() + IST_STACK_SIZE) as u64)
}

/// Fills in the tables and loads them: at first, and again after another image has used its own, or whoever failed has
/// left them in an unknown state.
pub(crate) fn load() {
    // SAFETY: nobody else has a reference: only this function makes one, and nothing interrupts it.
    let tables = unsafe { &mut *TABLES.0.get() };
    let [first, second] = [top_of(&PAGE_FAULT_STACK), top_of(&DOUBLE_FAULT_STACK)];
    tables.tss[9..13].copy_from_slice(&[first[0], first[1], second[0], second[1]]);
    // No I/O permission map: its offset lies behind the segment's limit.
    tables.tss[25] = u32::from(TSS_SIZE) << 16;
    // The processor marks the segment as busy, and loads none that is.
    let tss = tables.tss.as_ptr().addr() as u64;
    tables.gdt[3..5].copy_from_slice(&tss_descriptor(tss, u64::from(TSS_SIZE) - 1));

    let stubs = (&raw const exception_stubs).addr() as u64;
    for (vector, slot) in tables.idt[..EXCEPTIONS].iter_mut().enumerate() {
        let ist = match vector {
            PAGE_FAULT => 1,
            // These come at any moment, the stack may be what is broken, and none of them is returned from.
            NMI | DOUBLE_FAULT | MACHINE_CHECK => 2,
            _ => 0,
        };
        *slot = gate(stubs + 16 * vector as u64, ist);
    }
    tables.idt[usize::from(UPCALL_VECTOR)] = gate((&raw const event_upcall).addr() as u64, 0);

    set(tables);
}

fn set(tables: &Tables) {
    let gdt = TablePointer::of(&tables.gdt);
    let idt = TablePointer::of(&tables.idt);
    // SAFETY: the tables are static and complete; the selectors in use mean the same in the new GDT.
    unsafe {
        asm!("lgdt [{gdt}]", "lidt [{idt}]", "ltr {tss:x}",
             gdt = in(reg) &raw const gdt, idt = in(reg) &raw const idt, tss = in(reg) TSS_SELECTOR,
             options(nostack));
    }
}

/// The GDT, the IDT and the task state segment.
pub(crate) fn tables() -> [Table; 3] {
    let base = TABLES.0.get().addr();
    let gdt = (offset_of!(Tables, gdt), size_of::<[u64; 5]>());
    let idt = (offset_of!(Tables, idt), size_of::<[[u64; 2]; EXCEPTIONS + 1]>());
    let tss = (offset_of!(Tables, tss), usize::from(TSS_SIZE));
    [gdt, idt, tss].map(|(at, size)| Table { base: (base + at) as u64, limit: size as u64 - 1 })
}

/// The end of a stack that nothing uses unless something has failed.
pub(crate) fn spare_stack() -> u64 {
    let [low, high] = top_of(&PAGE_FAULT_STACK).map(u64::from);
    high << 32 | low
}

/// Reports that the domain had been shut down, for a reason that Xen has a number for, and goes on.
pub(crate) fn report_revival(reason: u64) -> ! {
    // Whoever was reporting then does not go on.
    REPORTING.store(false, Ordering::Relaxed);
    let mut report = Report::begin();
    match usize::try_from(reason).ok().and_then(|reason| SHUTDOWN_NAMES.get(reason)) {
        Some(name) => report.line(format_args!("failure: shut down ({name}), revived by dom0")),
        None => report.line(format_args!("failure: shut down (reason {reason}), revived by dom0")),
    }
    report.end()
}

/// The end of every exception.
extern "C" fn report_fault(frame: &Frame) -> ! {
    let name = usize::try_from(frame.vector)
        .ok()
        .and_then(|v| EXCEPTION_NAMES.get(v))
        .copied()
        .unwrap_or("exception");
    let place = Place(frame.rip);
    handover::abandon_if_on_trial(format_args!(
        "the new image faulted while it took over: {name} at {place}, address {:#x}",
        cpu::fault_address()
    ));
    let mut report = Report::begin();
    if frame.vector == u64::from(UPCALL_VECTOR) {
        let seconds = hang::LIMIT_NS / NS_PER_MS / 1000;
        report.line(format_args!(
            "failure: a hang: no turn has ended for {seconds} s of its time; now at {place}"
        ));
    } else {
        report.line(format_args!(
            "failure: {name} (vector {}, error {:#x}) at {place}, address {:#x}",
            frame.vector,
            frame.error,
            cpu::fault_address()
        ));
    }
    let guard = (&raw const stack_guard).addr() as u64..(&raw const stack_bottom).addr() as u64;
    if guard.contains(&cpu::fault_address()) {
        report.line(format_args!("  that is the page below the stack: too deep a recursion"));
    }
    let f = frame;
    report.line(format_args!(
        "  rip {:016x} rsp {:016x} rflags {:08x} cs {:x} ss {:x}",
        f.rip, f.rsp, f.rflags, f.cs, f.ss
    ));
    for row in [
        [("rax", f.rax), ("rbx", f.rbx), ("rcx", f.rcx), ("rdx", f.rdx)],
        [("rsi", f.rsi), ("rdi", f.rdi), ("rbp", f.rbp), ("r8 ", f.r8)],
        [("r9 ", f.r9), ("r10", f.r10), ("r11", f.r11), ("r12", f.r12)],
        [("r13", f.r13), ("r14", f.r14), ("r15", f.r15), ("cr2", cpu::fault_address())],
    ] {
        let [a, b, c, d] = row;
        report.line(format_args!(
            "  {} {:016x} {} {:016x} {} {:016x} {} {:016x}",
            a.0, a.1, b.0, b.1, c.0, c.1, d.0, d.1
        ));
    }
    report_stack(&mut report, frame.rsp);
    report.end()
}

/// Rows of four words of the stack that are shown.
const STACK_ROWS: usize = 4;

/// Prints the words around the stack pointer, and those above it that look like return addresses.
fn report_stack(report: &mut Report, rsp: u64) {
    let bottom = (&raw const stack_bottom).addr() as u64;
    let top = (&raw const stack_top).addr() as u64;
    if rsp < bottom || rsp >= top {
        return;
    }
    let word = |address: u64| {
        let address = usize::try_from(address).unwrap_or(0);
        // SAFETY: both callers stay inside the stack, at multiples of 8.
        unsafe { core::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
    };
    let first = rsp.saturating_sub(4 * 8).max(bottom) & !7;
    for row in (first..top).step_by(4 * 8).take(STACK_ROWS) {
        let last = (row + 4 * 8).min(top);
        report.line(format_args!("  {row:016x}:{:?}", Words(row..last, word)));
    }
    let text = (&raw const text_end).addr() as u64;
    let code = super::memory::image().start as u64..text;
    let calls = (rsp & !7..top).step_by(8).map(word).filter(|w| code.contains(w)).take(20);
    for address in calls {
        report.line(format_args!("  perhaps called from {}", Place(address)));
    }
}

/// Words of memory, to be printed.
struct Words<F>(core::ops::Range<u64>, F);

impl<F: Fn(u64) -> u64> fmt::Debug for Words<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for address in self.0.clone().step_by(8) {
            write!(f, " {:016x}", (self.1)(address))?;
        }
        Ok(())
    }
}

/// An address, and where in the image that is.
struct Place(u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = super::memory::image().start as u64;
        match self.0.checked_sub(start) {
            Some(offset) => write!(f, "image+{offset:#x}"),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// Whether a report has begun. A failure while reporting must not begin another one.
static REPORTING: AtomicBool = AtomicBool::new(false);

/// The right to print a report.
struct Report;

impl Report {
    fn begin() -> Self {
        if REPORTING.swap(true, Ordering::Relaxed) {
            // The report itself failed: say the least there is to say, in the simplest way.
            console::hypervisor(b"fatal: again while reporting\n");
            crash();
        }
        watch::limit();
        Self
    }

    /// The program goes on, or the domain ends.
    fn end(mut self) -> ! {
        REPORTING.store(false, Ordering::Relaxed);
        let Err(why) = restart::resume();
        self.line(format_args!("fatal: it cannot go on: {why}"));
        crash()
    }

    #[expect(clippy::unused_self, reason = "only a holder may print")]
    fn line(&mut self, line: fmt::Arguments<'_>) {
        console::emergency(line);
    }
}

/// The last word of a program that cannot go on.
pub(crate) fn give_up(why: fmt::Arguments<'_>) -> ! {
    console::emergency(why);
    crash()
}

/// Tells the toolstack that this domain has crashed.
fn crash() -> ! {
    // Whoever revives the domain does not find it about to end.
    watch::release();
    hypercall::shutdown(SHUTDOWN_CRASH);
    cpu::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    handover::abandon_if_on_trial(format_args!(
        "the new image panicked while it took over: {}",
        info.message()
    ));
    let mut report = Report::begin();
    let message = info.message();
    match info.location() {
        Some(place) => report.line(format_args!("failure: panic at {place}: {message}")),
        None => report.line(format_args!("failure: panic: {message}")),
    }
    report.end()
}

/// Mistakes that [`provoke`] makes.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A panic.
    Panic,
    /// A write to read-only data.
    WriteReadOnly,
    /// A jump into data.
    ExecuteData,
    /// Recursion without end.
    StackOverflow,
    /// A read at address 0.
    Null,
    /// A loop without end.
    Hang,
    /// One in which nothing interrupts.
    HangMasked,
    /// Raises an exception for which the processor finds no handler: Xen ends the domain.
    TripleFault,
    /// The domain ends itself.
    Shutdown,
}

/// Fails on purpose, so that a test can see the report and the end of the domain.
pub fn provoke(fault: Fault) -> ! {
    static READ_ONLY: u64 = 0x1122_3344_5566_7788;
    match fault {
        Fault::Panic => panic!("on purpose"),
        Fault::WriteReadOnly => {
            // SAFETY: none of these returns: the page tables do not let it happen.
            unsafe { asm!("mov qword ptr [{}], 0", in(reg) &raw const READ_ONLY) }
        }
        // SAFETY: as above.
        Fault::ExecuteData => unsafe { asm!("jmp {}", in(reg) TABLES.0.get()) },
        // SAFETY: as above; the guard page ends it.
        Fault::StackOverflow => unsafe { asm!("2: push 0", "jmp 2b") },
        // SAFETY: as above.
        Fault::Null => unsafe { asm!("mov al, [0]", out("al") _) },
        Fault::Hang | Fault::HangMasked => {
            if matches!(fault, Fault::HangMasked) {
                cpu::disable_interrupts();
            }
            loop {
                core::hint::spin_loop();
            }
        }
        Fault::TripleFault => {
            let none = TablePointer { limit: 0, base: 0 };
            // SAFETY: as above, for there is no handler any more.
            unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const none) }
        }
        Fault::Shutdown => crash(),
    }
    panic!("{fault:?} went unnoticed")
}
