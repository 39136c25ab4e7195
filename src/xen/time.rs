//! The clock: Xen's system time, from the time stamp counter and the scale that Xen keeps in the
//! shared page (`struct vcpu_time_info` of `xen/include/public/xen.h`).

use super::abi::vcpu::SetSingleshotTimer;
use super::abi::xen::VcpuTimeInfo;
use super::{console, cpu, hypercall};
use core::sync::atomic::{Ordering, fence};

/// Nanoseconds of a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// Xen's system time in nanoseconds.
pub(super) fn now_ns(info: &VcpuTimeInfo) -> u64 {
    loop {
        // Xen makes the version odd, writes, and makes it even: try until nothing changed around us.
        let before = info.version.load(Ordering::Acquire);
        let timestamp = info.tsc_timestamp.load(Ordering::Relaxed);
        let system_time = info.system_time.load(Ordering::Relaxed);
        let multiplier = info.tsc_to_system_mul.load(Ordering::Relaxed);
        let shift = info.tsc_shift.load(Ordering::Relaxed);
        let delta = cpu::tsc().saturating_sub(timestamp);
        fence(Ordering::Acquire);
        if before & 1 == 0 && info.version.load(Ordering::Relaxed) == before {
            return system_time.saturating_add(scale(delta, multiplier, shift));
        }
        core::hint::spin_loop();
    }
}

/// The header's formula: `((delta << shift) * multiplier) >> 32`.
fn scale(delta: u64, multiplier: u32, shift: i8) -> u64 {
    let shifted = if shift < 0 {
        delta.checked_shr(u32::from(shift.unsigned_abs()))
    } else {
        delta.checked_shl(u32::from(shift.unsigned_abs()))
    };
    let product = u128::from(shifted.unwrap_or(0)) * u128::from(multiplier);
    u64::try_from(product >> 32).unwrap_or(u64::MAX)
}

/// Milliseconds of nanoseconds.
pub(super) fn to_ms(ns: u64) -> u64 {
    ns / NS_PER_MS
}

/// Asks for `VIRQ_TIMER` at a moment, at once if that has passed. Only one moment is remembered.
pub(super) fn set_timer(deadline_ms: u64) -> bool {
    let timeout_abs_ns = deadline_ms.saturating_mul(NS_PER_MS);
    match hypercall::perform(&mut SetSingleshotTimer { timeout_abs_ns, flags: 0 }) {
        Ok(_) => true,
        Err(error) => {
            console::line(format_args!("xen: {error}"));
            false
        }
    }
}
