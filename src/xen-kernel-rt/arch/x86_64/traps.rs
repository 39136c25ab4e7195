//! Exceptions and interrupts: the processor's tables, and what `boot/traps.S` does with them.
//!
//! Page faults and double faults have a stack of their own, so an overflow of the normal one is reported like anything
//! else.

use super::cpu;
use crate::events::two_level as evtchn;
use crate::revival::record::Table;
use crate::traps::report_fault;
use crate::{handover, watch};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::offset_of;

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
    include_str!("../../../../boot/traps.S"),
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

/// What `boot/traps.S` leaves on the stack.
#[repr(C)]
pub(crate) struct Frame {
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
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    cs: u64,
    rflags: u64,
    pub(crate) rsp: u64,
    ss: u64,
}

impl Frame {
    /// What has happened.
    pub(crate) fn name(&self) -> &'static str {
        let vector = usize::try_from(self.vector).ok();
        vector.and_then(|v| EXCEPTION_NAMES.get(v)).copied().unwrap_or("exception")
    }

    /// Whether it was no exception but an event.
    pub(crate) fn is_upcall(&self) -> bool {
        self.vector == u64::from(UPCALL_VECTOR)
    }

    /// The registers with their names, in rows.
    pub(crate) fn registers(&self) -> [[(&'static str, u64); 4]; 4] {
        [
            [("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx), ("rdx", self.rdx)],
            [("rsi", self.rsi), ("rdi", self.rdi), ("rbp", self.rbp), ("r8 ", self.r8)],
            [("r9 ", self.r9), ("r10", self.r10), ("r11", self.r11), ("r12", self.r12)],
            [
                ("r13", self.r13),
                ("r14", self.r14),
                ("r15", self.r15),
                ("cr2", cpu::fault_address()),
            ],
        ]
    }
}

/// Where it was.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rip {:016x} rsp {:016x} rflags {:08x} cs {:x} ss {:x}",
            self.rip, self.rsp, self.rflags, self.cs, self.ss
        )
    }
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

// Mistakes on purpose. None of them does any harm to memory: the page tables do not let it happen.

/// Writes to a constant.
pub(crate) fn write_read_only() {
    static READ_ONLY: u64 = 0x1122_3344_5566_7788;
    // SAFETY: it does not happen.
    unsafe { asm!("mov qword ptr [{}], 0", in(reg) &raw const READ_ONLY) }
}

/// Jumps into data.
pub(crate) fn execute_data() {
    // SAFETY: it does not happen.
    unsafe { asm!("jmp {}", in(reg) TABLES.0.get()) }
}

/// Fills the stack.
pub(crate) fn overflow_stack() {
    // SAFETY: the guard page ends it.
    unsafe { asm!("2: push 0", "jmp 2b") }
}

/// Reads at address 0.
pub(crate) fn read_null() {
    // SAFETY: it does not happen.
    unsafe { asm!("mov al, [0]", out("al") _) }
}

/// Raises an exception for which the processor finds no handler.
pub(crate) fn fail_without_handlers() {
    let none = TablePointer { limit: 0, base: 0 };
    // SAFETY: it never returns, for there is no handler any more.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const none) }
}
