//! The one instruction that asks Xen.
//!
//! Registers of a 64-bit guest (`xen/include/public/arch-x86/xen-x86_64.h`): the number in rax, arguments
//! in rdi, rsi, rdx, r10, r8; the answer in rax. Addresses are virtual ones of the caller.
//!
//! Intel's and AMD's processors have different instructions. The vendor in CPUID decides, as advisory XSA-466
//! recommends. The older way, the hypercall page, would need a page of code that Xen writes, at a physical address
//! that changes when the image moves.

use super::cpu;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// Whether the processor's instruction is `vmmcall` (AMD and compatible) and not `vmcall`.
static AMD: AtomicBool = AtomicBool::new(false);

/// Chooses the instruction; before that, hypercalls fault on AMD.
pub(crate) fn choose_instruction() {
    let leaf = cpu::cpuid(0, 0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    let amd = [b"AuthenticAMD", b"HygonGenuine"].iter().any(|name| vendor.as_flattened() == *name);
    AMD.store(amd, Ordering::Relaxed);
}

/// Issues a hypercall and returns its raw answer.
///
/// # Safety
/// 1. If the call takes an address, it points at what the call reads and writes, and nothing else
///    uses that meanwhile.
/// 2. What else the call does to this domain's memory is argued by the caller.
#[inline]
pub(crate) unsafe fn raw(number: u64, args: [u64; 3]) -> i64 {
    let [a, b, c] = args;
    let result: i64;
    if AMD.load(Ordering::Relaxed) {
        // SAFETY: (1, 2) by contract; Xen may change the argument registers and nothing else.
        unsafe {
            asm!("vmmcall", inlateout("rax") number => result, inlateout("rdi") a => _,
                 inlateout("rsi") b => _, inlateout("rdx") c => _, out("r10") _, out("r8") _,
                 options(nostack));
        }
    } else {
        // SAFETY: as above.
        unsafe {
            asm!("vmcall", inlateout("rax") number => result, inlateout("rdi") a => _,
                 inlateout("rsi") b => _, inlateout("rdx") c => _, out("r10") _, out("r8") _,
                 options(nostack));
        }
    }
    result
}
