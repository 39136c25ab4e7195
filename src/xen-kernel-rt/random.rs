//! Numbers that nobody else knows.

use crate::arch::cpu;

/// A number that another domain cannot know: the processor's random source where there is one, and the
/// low bits of a fast counter around a slow instruction in any case.
#[must_use]
pub fn seed() -> u64 {
    let mut seed = cpu::random().unwrap_or(0);
    for _ in 0..16 {
        // CPUID always goes through the hypervisor, which takes a different time each time.
        let _ = cpu::cpuid(0, 0);
        seed = mix(seed ^ cpu::tsc());
    }
    seed
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit changes half the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
