//! Copying, filling and comparing memory: the four functions that compiled code calls for it.
//!
//! The toolchain has such functions for the bare target, made for large blocks. But a server of small requests moves
//! a few bytes at a time. With those, most of the time went into setting up the string instructions. So here up to 32 bytes go through registers, as the first and the last words of a block, which may overlap. Everything
//! is read before anything is written, so the same code serves for blocks that overlap. Longer blocks go by `rep`,
//! word by word.
//!
//! No loop here may look like a copy or a fill: the compiler would replace it by a call of the very
//! function it stands in.

use core::arch::asm;

/// Reads a `T` from any address.
///
/// # Safety
/// `size_of::<T>()` bytes can be read at `from + at`, and any bytes are a `T`.
#[inline(always)]
unsafe fn get<T>(from: *const u8, at: usize) -> T {
    // SAFETY: by contract.
    let from = unsafe { from.add(at) };
    // SAFETY: by contract.
    unsafe { from.cast::<T>().read_unaligned() }
}

/// Writes a `T` to any address.
///
/// # Safety
/// `size_of::<T>()` bytes can be written at `to + at`.
#[inline(always)]
unsafe fn put<T>(to: *mut u8, at: usize, value: T) {
    // SAFETY: by contract.
    let to = unsafe { to.add(at) };
    // SAFETY: by contract.
    unsafe { to.cast::<T>().write_unaligned(value) };
}

/// Copies the first and the last `T` of a block.
///
/// # Safety
/// As [`copy`], and `n` is at least `size_of::<T>()`.
#[inline(always)]
unsafe fn copy_ends<T>(to: *mut u8, from: *const u8, n: usize) {
    let last = n - size_of::<T>();
    // SAFETY: inside the block, by contract.
    let head = unsafe { get::<T>(from, 0) };
    // SAFETY: as above.
    let tail = unsafe { get::<T>(from, last) };
    // SAFETY: inside the block, by contract.
    unsafe { put(to, 0, head) };
    // SAFETY: as above.
    unsafe { put(to, last, tail) };
}

/// Copies `n` bytes; the blocks may overlap.
///
/// # Safety
/// `n` bytes can be read at `from` and written at `to`.
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, n: usize) {
    if n > 32 {
        // SAFETY: by contract.
        unsafe { copy_words(to, from, n) };
    } else if n >= 16 {
        // SAFETY: by contract; at least so many bytes.
        unsafe { copy_ends::<u128>(to, from, n) };
    } else if n >= 8 {
        // SAFETY: as above.
        unsafe { copy_ends::<u64>(to, from, n) };
    } else if n >= 4 {
        // SAFETY: as above.
        unsafe { copy_ends::<u32>(to, from, n) };
    } else if n >= 2 {
        // SAFETY: as above.
        unsafe { copy_ends::<u16>(to, from, n) };
    } else if n == 1 {
        // SAFETY: one byte.
        let byte = unsafe { get::<u8>(from, 0) };
        // SAFETY: as above.
        unsafe { put(to, 0, byte) };
    }
}

/// Copies more than 32 bytes.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
unsafe fn copy_words(to: *mut u8, from: *const u8, n: usize) {
    // Where the copy would overwrite what it has still to read, it goes backwards.
    if to.addr().wrapping_sub(from.addr()) < n {
        // SAFETY: `n` bytes of each, by contract; the direction flag is cleared again.
        unsafe {
            asm!(
                "std",
                "rep movsb",
                "cld",
                inout("rcx") n => _,
                inout("rdi") to.wrapping_add(n - 1) => _,
                inout("rsi") from.wrapping_add(n - 1) => _,
                options(nostack)
            );
        }
        return;
    }
    // SAFETY: the last bytes of the block.
    let tail = unsafe { get::<u64>(from, n - 8) };
    // SAFETY: as many whole words as there are in `n` bytes.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") n / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    // SAFETY: the last bytes of the block.
    unsafe { put(to, n - 8, tail) };
}

/// Sets `n` bytes to `byte`.
///
/// # Safety
/// `n` bytes can be written at `to`.
#[inline(always)]
unsafe fn fill(to: *mut u8, byte: u8, n: usize) {
    let word = u64::from(byte) * 0x0101_0101_0101_0101;
    #[expect(clippy::cast_possible_truncation, reason = "all bytes of it are the same")]
    let (half, quarter) = (word as u32, word as u16);
    if n > 32 {
        // SAFETY: as many whole words as there are in `n` bytes, by contract.
        unsafe {
            asm!(
                "rep stosq",
                inout("rcx") n / 8 => _,
                inout("rdi") to => _,
                in("rax") word,
                options(nostack, preserves_flags)
            );
        }
        // SAFETY: the last bytes of the block.
        unsafe { put(to, n - 8, word) };
    } else if n >= 16 {
        // SAFETY: by contract; at least so many bytes.
        unsafe { put_ends(to, [word; 2], n) };
    } else if n >= 8 {
        // SAFETY: as above.
        unsafe { put_ends(to, word, n) };
    } else if n >= 4 {
        // SAFETY: as above.
        unsafe { put_ends(to, half, n) };
    } else if n >= 2 {
        // SAFETY: as above.
        unsafe { put_ends(to, quarter, n) };
    } else if n == 1 {
        // SAFETY: one byte.
        unsafe { put(to, 0, byte) };
    }
}

/// Writes the first and the last `T` of a block.
///
/// # Safety
/// As [`fill`], and `n` is at least `size_of::<T>()`.
#[inline(always)]
unsafe fn put_ends<T: Copy>(to: *mut u8, value: T, n: usize) {
    // SAFETY: inside the block, by contract.
    unsafe { put(to, 0, value) };
    // SAFETY: as above.
    unsafe { put(to, n - size_of::<T>(), value) };
}

/// The first words that differ, as numbers whose order is that of their bytes; `None` if none do.
///
/// # Safety
/// `n` bytes can be read at `a` and at `b`.
#[inline(always)]
unsafe fn difference(a: *const u8, b: *const u8, n: usize) -> Option<(u64, u64)> {
    let mut at = 0;
    if n >= 8 {
        loop {
            // SAFETY: at most 8 bytes before the end.
            let left = unsafe { get::<u64>(a, at) };
            // SAFETY: as above.
            let right = unsafe { get::<u64>(b, at) };
            if left != right {
                return Some((left.swap_bytes(), right.swap_bytes()));
            }
            if at == n - 8 {
                return None;
            }
            // The last word may overlap the one before, which was equal.
            at = (at + 8).min(n - 8);
        }
    }
    while at < n {
        // SAFETY: before the end.
        let left = unsafe { get::<u8>(a, at) };
        // SAFETY: as above.
        let right = unsafe { get::<u8>(b, at) };
        if left != right {
            return Some((u64::from(left), u64::from(right)));
        }
        at += 1;
    }
    None
}

/// Whether the first and the last `T` of two blocks are the same.
///
/// # Safety
/// As [`is_equal`], and `n` is at least `size_of::<T>()`.
#[inline(always)]
unsafe fn has_equal_ends<T: PartialEq>(a: *const u8, b: *const u8, n: usize) -> bool {
    let last = n - size_of::<T>();
    // SAFETY: inside the blocks, by contract.
    let heads = unsafe { get::<T>(a, 0) } == unsafe { get::<T>(b, 0) };
    // SAFETY: as above.
    heads && unsafe { get::<T>(a, last) } == unsafe { get::<T>(b, last) }
}

/// Whether two blocks are the same.
///
/// # Safety
/// `n` bytes can be read at `a` and at `b`.
#[inline(always)]
unsafe fn is_equal(a: *const u8, b: *const u8, n: usize) -> bool {
    if (8..=16).contains(&n) {
        // SAFETY: by contract; at least so many bytes.
        unsafe { has_equal_ends::<u64>(a, b, n) }
    } else if (4..8).contains(&n) {
        // SAFETY: as above.
        unsafe { has_equal_ends::<u32>(a, b, n) }
    } else {
        // SAFETY: by contract.
        unsafe { difference(a, b, n) }.is_none()
    }
}

/// What the compiler calls, under the names it knows (the C standard's, except for `bcmp`).
#[cfg(target_os = "none")]
mod calls {
    use core::cmp::Ordering;
    use core::ffi::{c_int, c_void};

    /// # Safety
    /// `n` bytes can be read at `from` and written at `to`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void {
        // SAFETY: by contract.
        unsafe { super::copy(to.cast(), from.cast(), n) };
        to
    }

    /// # Safety
    /// As `memcpy`; the blocks may overlap.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void {
        // SAFETY: by contract.
        unsafe { super::copy(to.cast(), from.cast(), n) };
        to
    }

    /// # Safety
    /// `n` bytes can be written at `to`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut c_void, byte: c_int, n: usize) -> *mut c_void {
        let [byte, ..] = byte.to_le_bytes();
        // SAFETY: by contract.
        unsafe { super::fill(to.cast(), byte, n) };
        to
    }

    /// # Safety
    /// `n` bytes can be read at `a` and at `b`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const c_void, b: *const c_void, n: usize) -> c_int {
        // SAFETY: by contract.
        match unsafe { super::difference(a.cast(), b.cast(), n) }.map(|(a, b)| a.cmp(&b)) {
            None | Some(Ordering::Equal) => 0,
            Some(Ordering::Less) => -1,
            Some(Ordering::Greater) => 1,
        }
    }

    /// # Safety
    /// As `memcmp`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const c_void, b: *const c_void, n: usize) -> c_int {
        // SAFETY: by contract.
        i32::from(!unsafe { super::is_equal(a.cast(), b.cast(), n) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_length_is_copied_whole_and_nothing_beside_it() {
        for n in 0..100_usize {
            for (from, to) in [(8, 120), (8, 9), (9, 8), (8, 8), (8, 15), (15, 8), (8, 40), (40, 8)]
            {
                let bytes: Vec<u8> = (0..240).collect();
                let (mut copied, mut wanted) = (bytes.clone(), bytes);
                wanted.copy_within(from..from + n, to);
                let base = copied.as_mut_ptr();
                // SAFETY: both ends lie in the vector.
                unsafe { copy(base.wrapping_add(to), base.wrapping_add(from).cast_const(), n) };
                assert_eq!(copied, wanted, "{n} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn every_length_is_filled_and_nothing_beside_it() {
        for n in 0..100_usize {
            let mut bytes = [7_u8; 120];
            // SAFETY: inside the array.
            unsafe { fill(bytes.as_mut_ptr().wrapping_add(5), 0xab, n) };
            assert!(
                (0..120).all(|at| bytes[at] == if (5..5 + n).contains(&at) { 0xab } else { 7 })
            );
        }
    }

    #[test]
    fn the_first_byte_that_differs_decides() {
        let order = |a: &[u8], b: &[u8]| {
            // SAFETY: both have as many bytes.
            let found = unsafe { difference(a.as_ptr(), b.as_ptr(), a.len()) };
            found.map_or(core::cmp::Ordering::Equal, |(a, b)| a.cmp(&b))
        };
        for n in 0..40_usize {
            let one: Vec<u8> = (100..).take(n).collect();
            assert_eq!(order(&one, &one), core::cmp::Ordering::Equal);
            // SAFETY: as many bytes.
            assert!(unsafe { is_equal(one.as_ptr(), one.as_ptr(), n) });
            for at in 0..n {
                let mut other = one.clone();
                other[at] = 1;
                other[n - 1] = other[n - 1].max(if at == n - 1 { 1 } else { 255 });
                assert_eq!(order(&one, &other), one.cmp(&other), "{n} {at}");
                assert_eq!(order(&other, &one), other.cmp(&one), "{n} {at}");
                // SAFETY: both have as many bytes.
                assert!(!unsafe { is_equal(one.as_ptr(), other.as_ptr(), n) }, "{n} {at}");
            }
        }
    }
}
