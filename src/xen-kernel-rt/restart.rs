//! Going on after a failure: the program gets the processor again, on an empty stack.
//!
//! [`guard`] runs a program, and remembers where its state is and how deep the stack was. When something fails,
//! the trap or panic handler reports it and calls [`resume`]. That throws away everything on the stack above that
//! mark, and has the program's own function go on with its state. Nothing is unwound. So whatever the failed code
//! had borrowed, locked or half changed stays as it was at that instruction. The function must expect that, and
//! fail at most once.
//!
//! [`own_image`] is this image as it was loaded: its code and constants are never written, and there is a copy of
//! its data.

use crate::arch::stack;
use crate::memory::PAGE_SIZE;
use crate::slot::Segment;
use crate::{console, gnttab, memory, revival, traps, watch};
use core::fmt;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

// `linker.ld` defines these; only their addresses are used.
unsafe extern "C" {
    safe static image_start: [u8; 0];
    safe static data_start: [u8; 0];
    safe static data_end: [u8; 0];
    safe static data_copy: [u8; 0];
    safe static image_end: [u8; 0];
}

/// Copies the data of this image before it changes, for [`own_image`].
///
/// # Safety
/// Runs once, before anything in the image has changed.
pub(crate) unsafe fn keep_data() {
    let from = NonNull::from(&data_start).cast::<u8>();
    let to = NonNull::from(&data_copy).cast::<u8>();
    let len = (&raw const data_end).addr() - (&raw const data_start).addr();
    // SAFETY: `linker.ld` keeps that much room for the copy, and nobody else uses it.
    unsafe { from.copy_to_nonoverlapping(to, len) };
}

/// This image as it was loaded: its parts, and its size in memory.
pub(crate) fn own_image() -> ([Segment<'static>; 2], usize) {
    let [start, data, end] =
        [&raw const image_start, &raw const data_start, &raw const image_end].map(<*const _>::addr);
    let len = (&raw const data_end).addr() - data;
    // SAFETY: the constant part of the image, from its first byte on; the guard page comes behind what is written.
    let constant =
        unsafe { core::slice::from_raw_parts((&raw const image_start).cast(), data - start) };
    // SAFETY: `keep_data` has filled it, and nobody writes to it.
    let changing = unsafe { core::slice::from_raw_parts((&raw const data_copy).cast(), len) };
    let parts =
        [Segment { offset: 0, bytes: constant }, Segment { offset: data - start, bytes: changing }];
    (parts, (end - start).next_multiple_of(PAGE_SIZE))
}

/// A program with its state.
struct Guarded<'a, T, E> {
    state: &'a mut T,
    begin: fn(&mut T),
    run: fn(&mut T) -> !,
    revive: fn(&mut T) -> E,
}

/// What [`resume`] needs: the program, the function that goes on with it, and how deep the stack was.
static PROGRAM: AtomicPtr<()> = AtomicPtr::new(null_mut());
static REVIVE: AtomicPtr<()> = AtomicPtr::new(null_mut());
static STACK: AtomicUsize = AtomicUsize::new(0);

/// Whether the program is going on after a failure. Another failure meanwhile is the end.
static RESUMED: AtomicBool = AtomicBool::new(false);

/// Runs a program: `begin`, which ends the trial of an image that takes over, and then `run`. When it fails, `revive` is called with its state, whatever that looks like. It returns only if it
/// cannot go on, with the reason; then the domain ends.
pub fn guard<T, E: fmt::Display>(
    state: &mut T,
    begin_with: fn(&mut T),
    run: fn(&mut T) -> !,
    revive: fn(&mut T) -> E,
) -> ! {
    let mut program = Guarded { state, begin: begin_with, run, revive };
    let program = &raw mut program;
    REVIVE.store(go_on::<T, E> as *mut (), Ordering::Relaxed);
    PROGRAM.store(program.cast(), Ordering::Relaxed);
    revival::publish();
    // SAFETY: `program` is alive for good, since this never returns, and `go_on` takes it over only when nothing of what
    // `begin` has called is used any more.
    unsafe { stack::run(STACK.as_ptr(), begin::<T, E> as *const (), program.cast()) }
}

extern "C" fn begin<T, E>(program: *mut Guarded<'_, T, E>) -> ! {
    // SAFETY: `guard` passes its own, which nobody else has.
    let program = unsafe { &mut *program };
    // The end of a trial switches interrupts off.
    (program.begin)(program.state);
    watch::begin();
    (program.run)(program.state)
}

extern "C" fn go_on<T, E: fmt::Display>(program: *mut Guarded<'_, T, E>) -> ! {
    // SAFETY: the program of `guard`, which never returns. The code that had borrowed it has failed and never goes on.
    let program = unsafe { &mut *program };
    watch::hang_if_asked();
    let why = (program.revive)(program.state);
    traps::give_up(format_args!("fatal: it cannot go on: {why}"))
}

/// dom0 has given the processor back: a failure on the way back from an earlier one does not count any more.
pub(crate) fn allow() {
    RESUMED.store(false, Ordering::Relaxed);
}

/// Goes on after a failure, if there is a program that can, and it has not failed while it did.
pub(crate) fn resume() -> Result<core::convert::Infallible, &'static str> {
    let (program, revive) = (PROGRAM.load(Ordering::Relaxed), REVIVE.load(Ordering::Relaxed));
    if program.is_null() {
        return Err("nothing had begun");
    }
    if RESUMED.swap(true, Ordering::Relaxed) {
        return Err("it failed again while it went on");
    }
    // SAFETY: what has failed is thrown away with its stack.
    let in_memory = unsafe { memory::mend() }?;
    // SAFETY: as above.
    let in_window = unsafe { gnttab::mend() };
    if in_memory || in_window {
        console::emergency(format_args!("  in the middle of a change of the books of its memory"));
    }
    // SAFETY: `guard` has set all three. What is on the stack above the mark belongs to the code that has failed.
    unsafe { stack::resume(STACK.load(Ordering::Relaxed), revive, program) }
}
