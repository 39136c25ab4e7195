//! A mark in the stack, and the way back to it.

use super::traps;
use core::arch::asm;

/// Notes how deep the stack is and calls a function, which never returns.
///
/// # Safety
/// 1. `mark` can be written to.
/// 2. `begin` is an `extern "C" fn` of one argument that never returns, and takes `program`.
/// 3. `program` stays what it is although the caller is gone.
pub(crate) unsafe fn run(mark: *mut usize, begin: *const (), program: *mut ()) -> ! {
    // SAFETY: by contract. The mark is below everything that is alive here: what is called gets the stack from there on.
    unsafe {
        asm!(
            "and rsp, -16",
            "mov [{mark}], rsp",
            "call {begin}",
            "ud2",
            mark = in(reg) mark,
            begin = in(reg) begin,
            in("rdi") program,
            options(noreturn),
        );
    }
}

/// Throws away what is on the stack above a mark, and calls a function there.
///
/// # Safety
/// 1. [`run`] has written the mark, and nothing that it has called is used any more.
/// 2. `go_on` is an `extern "C" fn` of one argument that never returns, and takes `program`.
pub(crate) unsafe fn resume(mark: usize, go_on: *mut (), program: *mut ()) -> ! {
    // As after a call at the mark.
    let stack = mark - size_of::<usize>();
    // SAFETY: by contract. The return from an exception lets another NMI come.
    unsafe {
        asm!(
            "lea rsp, [{stack} - 64]",
            "push {ss}",
            "push {stack}",
            "push 2",
            "push {cs}",
            "push {go_on}",
            "iretq",
            stack = in(reg) stack,
            ss = in(reg) u64::from(traps::DATA_SELECTOR),
            cs = in(reg) u64::from(traps::CODE_SELECTOR),
            go_on = in(reg) go_on,
            in("rdi") program,
            options(noreturn),
        );
    }
}
