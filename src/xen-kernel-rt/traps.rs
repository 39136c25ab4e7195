//! Faults and panics: a report on both consoles, then a restart or the end of the domain.
//!
//! Every failure is reported first. Then the program goes on if it can ([`restart`](super::restart)). Otherwise
//! the domain ends, but never in silence.

use super::abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_NAMES};
use super::hang;
use super::time::NS_PER_MS;
use crate::arch::cpu;
use crate::arch::traps::{self, Frame};
use crate::{console, handover, hypercall, restart, watch};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

// `linker.ld` defines these; only their addresses are used.
unsafe extern "C" {
    safe static stack_guard: [u8; 0];
    safe static stack_bottom: [u8; 0];
    safe static stack_top: [u8; 0];
    safe static text_end: [u8; 0];
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
pub(crate) extern "C" fn report_fault(frame: &Frame) -> ! {
    let name = frame.name();
    let place = Place(frame.rip);
    handover::abandon_if_on_trial(format_args!(
        "the new image faulted while it took over: {name} at {place}, address {:#x}",
        cpu::fault_address()
    ));
    let mut report = Report::begin();
    if frame.is_upcall() {
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
    report.line(format_args!("  {frame}"));
    for [a, b, c, d] in frame.registers() {
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
    let code = crate::arch::paging::image().start as u64..text;
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
        let start = crate::arch::paging::image().start as u64;
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
    match fault {
        Fault::Panic => panic!("on purpose"),
        Fault::WriteReadOnly => traps::write_read_only(),
        Fault::ExecuteData => traps::execute_data(),
        Fault::StackOverflow => traps::overflow_stack(),
        Fault::Null => traps::read_null(),
        Fault::Hang | Fault::HangMasked => {
            if matches!(fault, Fault::HangMasked) {
                cpu::disable_interrupts();
            }
            loop {
                core::hint::spin_loop();
            }
        }
        Fault::TripleFault => traps::fail_without_handlers(),
        Fault::Shutdown => crash(),
    }
    panic!("{fault:?} went unnoticed")
}
