//! The program watches itself: an endless loop is a failure like any other.
//!
//! There are two timers.
//!
//! * **The tick.** While the program works, interrupts are on, and the one-shot timer fires about once a second.
//!   Its handler looks whether a turn has ended ([`turn`]) since the last tick. If none has for
//!   [`LIMIT_NS`](super::hang::LIMIT_NS) of the time that this processor has really run, the program counts as
//!   hung, and the handler treats this as a fault. The time that counts is Xen's for the vCPU
//!   (`VCPUOP_get_runstate_info`). A domain that is paused, waits for a processor or sleeps with its host does not
//!   run, so none of that is a hang.
//! * **Xen's watchdog** (`SCHEDOP_watchdog`) ends the domain as `SHUTDOWN_watchdog`. It is set only where the tick
//!   cannot come, because interrupts are off: from the report of a failure until a fresh image has committed, and
//!   while an image is loaded. Xen's timer goes on while a domain is paused. So the watchdog must not be set at
//!   any other time: it would end the domain if a debugger or an administrator paused it.
//!
//! A request does not order a tick of its own: the first event after a tick orders the next one. The cost of
//! interrupts for each wake-up was not measured separately. A program that sleeps gets one tick at most, which
//! finds it asleep and orders no other.
//!
//! Nothing in the domain notices a hang with interrupts off anywhere else. They are off only for the few
//! instructions before a sleep.

use super::abi::sched::Watchdog;
use super::abi::vcpu::{RunstateInfo, SetSingleshotTimer};
use super::abi::xen::SharedInfo;
use super::hang::Hang;
use super::time::{self, NS_PER_MS};
use crate::arch::cpu;
use crate::events::two_level as evtchn;
use crate::hypercall;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use spin::Mutex;

/// From one tick to the next.
const TICK_NS: u64 = 1_000 * NS_PER_MS;

/// The time that Xen's watchdog allows for a restart or the loading of an image, in seconds: more than a trial may
/// take.
const WATCHDOG_S: u32 = 20;

/// Watchdogs that a domain has (`NR_DOMAIN_WATCHDOG_TIMERS`, `xen/include/xen/sched.h`).
const WATCHDOGS: u32 = 2;

/// The page that Xen shares, once the watch has begun; `boot/traps.S` looks at it.
pub(crate) static SHARED: AtomicPtr<SharedInfo> = AtomicPtr::new(null_mut());
/// The port of the timer; likewise.
pub(crate) static TIMER: AtomicU64 = AtomicU64::new(0);
/// What `SHARED` will be.
static PREPARED: AtomicPtr<SharedInfo> = AtomicPtr::new(null_mut());

/// Turns that have ended.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// What the handler has seen of the turns; only the handler uses it.
static HANG: Mutex<Hang> = Mutex::new(Hang::new());
/// Ticks, in case Xen does not tell how long the processor has run.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The moment that the one-shot timer is set to; 0 for none.
static ARMED_NS: AtomicU64 = AtomicU64::new(0);

/// Which of Xen's watchdogs is set; 0 for none.
static WATCHDOG: AtomicU32 = AtomicU32::new(0);

/// Tells where the watch will find time and timer.
pub(crate) fn prepare(shared: &'static SharedInfo, timer: u32) {
    PREPARED.store(core::ptr::from_ref(shared).cast_mut(), Ordering::Relaxed);
    TIMER.store(u64::from(timer), Ordering::Relaxed);
}

/// Begins: from now on events interrupt.
pub(crate) fn begin() {
    SHARED.store(PREPARED.load(Ordering::Relaxed), Ordering::Relaxed);
    cpu::enable_interrupts();
}

/// Whether it has begun.
pub(crate) fn is_on() -> bool {
    !SHARED.load(Ordering::Relaxed).is_null()
}

/// Switches interrupts off for what needs it; returns whether they were on.
pub(crate) fn pause() -> bool {
    let was_on = cpu::interrupts_are_on();
    cpu::disable_interrupts();
    was_on
}

/// Undoes that.
pub(crate) fn resume(was_on: bool) {
    if was_on {
        cpu::enable_interrupts();
    }
}

/// Notes that a turn has ended, or something else that shows that there is no endless loop.
pub(crate) fn turn() {
    // Only read by the handler, so nothing is lost between the two.
    TURNS.store(TURNS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The moment that the timer is set to; 0 for none.
pub(crate) fn armed_ns() -> u64 {
    ARMED_NS.load(Ordering::Relaxed)
}

/// Notes that the timer has fired, or that its setting does not count any more.
pub(crate) fn disarm() {
    ARMED_NS.store(0, Ordering::Relaxed);
}

/// Sets the timer.
pub(crate) fn arm(moment_ns: u64) -> Result<(), crate::error::Refusal> {
    // A moment that has passed makes the event come at once.
    hypercall::perform(&mut SetSingleshotTimer { timeout_abs_ns: moment_ns, flags: 0 })?;
    ARMED_NS.store(moment_ns, Ordering::Relaxed);
    Ok(())
}

/// There is work to be done: sees to it that a tick comes.
pub(crate) fn keep(shared: &SharedInfo) {
    let (armed_ns, told_ns) = (armed_ns(), time::told_ns(&shared.vcpu_info[0].time));
    // What was told may be a second old.
    if (armed_ns == 0 || armed_ns > told_ns.saturating_add(3 * TICK_NS)) && is_on() {
        // Without a timer there is no watch, which is no reason to do nothing.
        let _ = arm(told_ns.saturating_add(2 * TICK_NS));
    }
}

/// How long the processor has run.
fn ran_ns() -> u64 {
    let mut info = RunstateInfo::default();
    let ticks = TICKS.load(Ordering::Relaxed).wrapping_add(1);
    TICKS.store(ticks, Ordering::Relaxed);
    match hypercall::perform(&mut info) {
        Ok(_) => info.running_ns,
        Err(_) => ticks.saturating_mul(TICK_NS),
    }
}

/// Handles the timer while the program works; returns whether the program is hung. It takes no lock and changes
/// nothing that the program uses but the timer.
pub(crate) extern "C" fn tick() -> bool {
    // SAFETY: null, or the page that `prepare` was given, which is mapped for good.
    let Some(shared) = (unsafe { SHARED.load(Ordering::Relaxed).as_ref() }) else { return false };
    let timer = u32::try_from(TIMER.load(Ordering::Relaxed)).unwrap_or(0);
    evtchn::forget(shared, timer);
    let turns = TURNS.load(Ordering::Relaxed);
    if HANG.try_lock().is_some_and(|mut hang| hang.look(turns, ran_ns())) {
        return true;
    }
    let now_ns = time::now_ns(&shared.vcpu_info[0].time, cpu::tsc);
    if arm(now_ns.saturating_add(TICK_NS)).is_err() {
        disarm();
    }
    false
}

/// Sets Xen's watchdog, since interrupts are off for a while: if that does not end in time, Xen ends the domain.
pub(crate) fn limit() {
    let mut watchdog = Watchdog { id: WATCHDOG.load(Ordering::Relaxed), timeout: WATCHDOG_S };
    // Without one it goes as well.
    if let Ok(id) = hypercall::perform(&mut watchdog)
        && watchdog.id == 0
    {
        WATCHDOG.store(u32::try_from(id).unwrap_or(0), Ordering::Relaxed);
    }
}

/// Clears the watchdogs: neither this image, nor one before it, which may have set another, has to end anything in
/// time any more.
pub(crate) fn release() {
    for id in 1..=WATCHDOGS {
        // One that is not set is an error that says just that.
        let _ = hypercall::perform(&mut Watchdog { id, timeout: 0 });
    }
    WATCHDOG.store(0, Ordering::Relaxed);
}

/// For a test: whether the next restart hangs.
static HANGS_AGAIN: AtomicBool = AtomicBool::new(false);

/// Has the next restart hang.
pub fn hang_in_restart() {
    HANGS_AGAIN.store(true, Ordering::Relaxed);
}

/// The place where that happens.
pub(crate) fn hang_if_asked() {
    if HANGS_AGAIN.swap(false, Ordering::Relaxed) {
        loop {
            core::hint::spin_loop();
        }
    }
}
