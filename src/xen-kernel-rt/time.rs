//! The clock: Xen's system time, from the time stamp counter and the scale that Xen keeps in the
//! shared page (`struct vcpu_time_info` of `xen/include/public/xen.h`).

use super::abi::xen::VcpuTimeInfo;
use core::sync::atomic::{Ordering, fence};

/// Nanoseconds of a millisecond.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// Nanoseconds of a microsecond.
pub(crate) const NS_PER_US: u64 = 1000;

/// Xen's system time in nanoseconds when it last wrote down what it is.
pub(crate) fn told_ns(info: &VcpuTimeInfo) -> u64 {
    // One word, which is written at once. (Up to Xen 4.17 and at least to 4.22 it is updated when a vCPU is
    // switched to, `update_vcpu_system_time` in `context_switch`, and with each calibration of the clock.)
    info.system_time.load(Ordering::Relaxed)
}

/// Xen's system time in nanoseconds; `tsc` reads the time stamp counter.
pub(crate) fn now_ns(info: &VcpuTimeInfo, tsc: impl Fn() -> u64) -> u64 {
    loop {
        // Xen makes the version odd, writes, and makes it even: try until nothing changed around us.
        let before = info.version.load(Ordering::Acquire);
        let timestamp = info.tsc_timestamp.load(Ordering::Relaxed);
        let system_time = info.system_time.load(Ordering::Relaxed);
        let multiplier = info.tsc_to_system_mul.load(Ordering::Relaxed);
        let shift = info.tsc_shift.load(Ordering::Relaxed);
        let now = tsc();
        fence(Ordering::Acquire);
        if before & 1 == 0 && info.version.load(Ordering::Relaxed) == before {
            let passed = scale(elapsed(now, timestamp), multiplier, shift);
            return system_time.saturating_add(passed);
        }
        core::hint::spin_loop();
    }
}

/// Counts since `timestamp`. A domain's counter starts near 0, and Xen's first timestamp may lie
/// before that, so it wraps around; a counter slightly behind the timestamp counts as equal.
fn elapsed(now: u64, timestamp: u64) -> u64 {
    let delta = now.wrapping_sub(timestamp);
    if delta > u64::MAX / 2 { 0 } else { delta }
}

/// The header's formula: `((delta << shift) * multiplier) >> 32`, a negative shift going right.
fn scale(delta: u64, multiplier: u32, shift: i8) -> u64 {
    let distance = u32::from(shift.unsigned_abs());
    let shifted = if shift < 0 { delta.checked_shr(distance) } else { delta.checked_shl(distance) };
    let product = u128::from(shifted.unwrap_or(0)) * u128::from(multiplier);
    u64::try_from(product >> 32).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::MaybeUninit;

    fn time_info(timestamp: u64, system_time: u64) -> VcpuTimeInfo {
        // SAFETY: all fields are integers, for which zero bytes are a value.
        let info = unsafe { MaybeUninit::<VcpuTimeInfo>::zeroed().assume_init() };
        info.tsc_timestamp.store(timestamp, Ordering::Relaxed);
        info.system_time.store(system_time, Ordering::Relaxed);
        // A counter of 1.3 GHz, as Xen describes it.
        info.tsc_to_system_mul.store(3_303_822_267, Ordering::Relaxed);
        info.tsc_shift.store(-1, Ordering::Relaxed);
        info
    }

    #[test]
    fn a_timestamp_from_before_the_counter_started() {
        // Seen on Xen 4.17: the first figures that a fresh domain gets.
        let info = time_info(18_446_744_073_405_982_214, 9_620_978_364);
        assert_eq!(now_ns(&info, || 768_718_276), 10_033_396_860);
        assert_eq!(now_ns(&info, || 893_759_331), 10_081_489_591);
    }

    #[test]
    fn what_was_told_is_not_later_than_now() {
        let info = time_info(1000, 5000);
        assert_eq!(told_ns(&info), 5000);
        assert!(now_ns(&info, || 1_000_000) > 5000);
    }

    #[test]
    fn a_counter_behind_its_timestamp_is_no_jump() {
        let info = time_info(1000, 5000);
        assert_eq!(now_ns(&info, || 990), 5000);
        assert_eq!(now_ns(&info, || 1000), 5000);
    }

    #[test]
    fn scale_shifts_both_ways() {
        assert_eq!(scale(1000, 1 << 31, 0), 500);
        assert_eq!(scale(1000, 1 << 31, 1), 1000);
        assert_eq!(scale(1000, 1 << 31, -1), 250);
        assert_eq!(scale(1000, 1 << 31, i8::MIN), 0);
        assert_eq!(scale(u64::MAX, u32::MAX, 0), u64::MAX - (1 << 32));
    }

    #[test]
    fn figures_that_change_are_read_again() {
        let info = time_info(0, 0);
        info.version.store(1, Ordering::Relaxed);
        let tries = core::cell::Cell::new(0);
        let now = now_ns(&info, || {
            tries.set(tries.get() + 1);
            if tries.get() == 2 {
                info.system_time.store(700, Ordering::Relaxed);
                info.version.store(2, Ordering::Relaxed);
            }
            0
        });
        assert_eq!((now, tries.get()), (700, 3));
    }
}
