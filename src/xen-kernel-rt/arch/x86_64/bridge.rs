//! The code on the bridge between two images.

use crate::handover::Bridge;
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::ptr::NonNull;

global_asm!(
    ".set BRIDGE_CR0, {cr0}",
    ".set BRIDGE_CR3, {cr3}",
    ".set BRIDGE_CR4, {cr4}",
    ".set BRIDGE_RSP, {rsp}",
    ".set BRIDGE_START_INFO, {start_info}",
    ".set BRIDGE_ENTRY, {entry}",
    ".set BRIDGE_GDT_POINTER, {gdt_limit} + 6",
    include_str!("../../../../boot/bridge.S"),
    cr0 = const offset_of!(Bridge, cr0),
    cr3 = const offset_of!(Bridge, cr3),
    cr4 = const offset_of!(Bridge, cr4),
    rsp = const offset_of!(Bridge, rsp),
    start_info = const offset_of!(Bridge, start_info),
    entry = const offset_of!(Bridge, entry),
    gdt_limit = const offset_of!(Bridge, gdt_limit),
);

// `boot/bridge.S` defines these; only their addresses are used.
unsafe extern "C" {
    safe static bridge_code: [u8; 0];
    safe static bridge_back: [u8; 0];
    safe static bridge_code_end: [u8; 0];
}

/// The code, to be copied to the bridge, and the offset in it of the way back.
pub(crate) fn code() -> (&'static [u8], usize) {
    let [start, back, end] =
        [&raw const bridge_code, &raw const bridge_back, &raw const bridge_code_end];
    // SAFETY: these bytes are constants of the image, between its two symbols.
    let code = unsafe { core::slice::from_raw_parts(start.cast(), end.addr() - start.addr()) };
    (code, back.addr() - start.addr())
}

/// Calls the code at `enter`, which comes back with all registers in doubt but the stack pointer.
///
/// # Safety
/// 1. `enter` is the start of `bridge_code` in a bridge that is mapped at its physical address and filled in.
/// 2. Whatever runs until it comes back leaves this image's memory alone.
pub(crate) unsafe fn call(enter: u64, bridge: NonNull<u8>) {
    // SAFETY: by contract. The registers that the compiler does not let go of are kept on the stack.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "pushfq",
            "call rax",
            "popfq",
            "pop rbp",
            "pop rbx",
            inlateout("rax") enter => _,
            inlateout("rdi") bridge.as_ptr() => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// Goes to the way back of the image that has called [`call`].
///
/// # Safety
/// `back` is the address of `bridge_back` on a bridge that is mapped at its physical address, `bridge`. The image that has
/// put it there is whole.
pub(crate) unsafe fn go_back(back: u64, bridge: u64) -> ! {
    // SAFETY: by contract.
    unsafe {
        asm!("cli", "jmp rax", in("rax") back, in("rdi") bridge, options(noreturn));
    }
}
