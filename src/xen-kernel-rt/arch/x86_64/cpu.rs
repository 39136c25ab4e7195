//! Instructions of the processor that have no name in `core`.

use core::arch::asm;
use core::arch::x86_64::{_rdtsc, CpuidResult};

/// The low and the high half of a word.
pub(crate) fn halves(word: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "cut in halves on purpose")]
    [word as u32, (word >> 32) as u32]
}

/// CPUID.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: every 64-bit processor has the instruction, and it changes these four registers only. The
    // compiler keeps rbx for itself, so it is put back.
    unsafe {
        asm!("mov {rbx}, rbx", "cpuid", "xchg {rbx}, rbx", rbx = out(reg) ebx,
             inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx,
             options(nomem, nostack, preserves_flags));
    }
    let [ebx, _] = halves(ebx);
    CpuidResult { eax, ebx, ecx, edx }
}

/// The time stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every 64-bit processor has the instruction, and it only reads.
    unsafe { _rdtsc() }
}

/// A number from the processor's random source, if it has one that works.
pub(crate) fn random() -> Option<u64> {
    /// CPUID leaf 1, ECX: RDRAND exists.
    const RDRAND: u32 = 1 << 30;
    if cpuid(1, 0).ecx & RDRAND == 0 {
        return None;
    }
    // The manual's advice: ten tries, then it is broken.
    (0..10).find_map(|_| {
        let (value, ok): (u64, u8);
        // SAFETY: CPUID says that the instruction exists; it changes the named registers and flags.
        unsafe {
            asm!("rdrand {0}", "setc {1}", out(reg) value, out(reg_byte) ok,
                 options(nomem, nostack));
        }
        (ok != 0).then_some(value)
    })
}

/// Stops for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off, Xen takes the vCPU for halted.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Writes a byte to an I/O port.
///
/// # Safety
/// Nothing behind the port touches this domain's memory.
pub(crate) unsafe fn out_byte(port: u16, value: u8) {
    // SAFETY: by contract.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// The address that the last page fault was about.
pub(crate) fn fault_address() -> u64 {
    let address: u64;
    // SAFETY: reading cr2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) }
    address
}

/// Forgets all cached translations.
pub(crate) fn flush_translations() {
    // SAFETY: loads cr3 with the value it has; the tables stay the same.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) }
}

/// Forgets the cached translation of one address.
pub(crate) fn flush_translation(address: usize) {
    // SAFETY: forgets what the tables say, which stay the same.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

/// Whether events may interrupt.
pub(crate) fn interrupts_are_on() -> bool {
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let flags: u64;
    // SAFETY: reads the flags by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem)) }
    flags & INTERRUPT_FLAG != 0
}

/// Lets events interrupt.
pub(crate) fn enable_interrupts() {
    // SAFETY: every vector in use has a handler by then (`traps::load`).
    unsafe { asm!("sti", options(nostack)) }
}

/// From now on nothing interrupts.
pub(crate) fn disable_interrupts() {
    // SAFETY: changes a flag.
    unsafe { asm!("cli", options(nostack)) }
}

/// The registers cr0, cr3, cr4 and EFER.
pub(crate) fn control_registers() -> [u64; 4] {
    const EFER: u32 = 0xc000_0080;
    let (cr0, cr3, cr4, low, high): (u64, u64, u64, u32, u32);
    // SAFETY: reads three registers, and one that every 64-bit processor has; changes nothing.
    unsafe {
        asm!("mov {cr0}, cr0", "mov {cr3}, cr3", "mov {cr4}, cr4", "rdmsr",
             cr0 = out(reg) cr0, cr3 = out(reg) cr3, cr4 = out(reg) cr4,
             in("ecx") EFER, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    [cr0, cr3, cr4, u64::from(high) << 32 | u64::from(low)]
}
