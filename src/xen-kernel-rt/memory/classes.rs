//! The sizes of blocks: how many bytes the allocator takes for a block of a given length.
//!
//! Accounts count in these sizes, and the allocator (`heap.rs`) hands out these sizes. So what is charged
//! is what is taken.
//!
//! A small block comes from a *slab*, a page of blocks of one size. Larger blocks are whole pages.

/// Bytes of a page, of memory and of the processor.
pub const PAGE_SIZE: usize = 4096;

/// Block sizes of the classes, in bytes: multiples of [`SMALL_ALIGN`]. From 256 on they are what 13, 11, 10 ... 2
/// blocks per slab allow.
pub const SIZES: [usize; 21] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 304, 368, 400, 496, 576, 672, 800, 1008,
    2032,
];

/// The largest block that comes from a slab.
pub const SMALL_MAX: usize = SIZES[SIZES.len() - 1];

/// Alignment of every block in a slab.
pub const SMALL_ALIGN: usize = 16;

/// Bytes at the start of a slab that describe it.
pub const SLAB_HEADER: usize = 32;

/// The class for each size in units of [`SMALL_ALIGN`], rounded up.
const CLASS_OF: [u8; SMALL_MAX / SMALL_ALIGN + 1] = {
    let mut table = [0; SMALL_MAX / SMALL_ALIGN + 1];
    let (mut units, mut class) = (0, 0);
    while units < table.len() {
        if units * SMALL_ALIGN > SIZES[class as usize] {
            class += 1;
        }
        table[units] = class;
        units += 1;
    }
    table
};

/// The class of blocks of `len` bytes, an index into [`SIZES`]; `None` above [`SMALL_MAX`].
#[must_use]
pub const fn class_of(len: usize) -> Option<usize> {
    if len > SMALL_MAX { None } else { Some(CLASS_OF[len.div_ceil(SMALL_ALIGN)] as usize) }
}

/// How many blocks of each class one slab holds. A table, since dividing takes longer than the rest of an allocation.
const PER_SLAB: [u16; SIZES.len()] = {
    let mut table = [0; SIZES.len()];
    let mut class = 0;
    while class < table.len() {
        #[expect(clippy::cast_possible_truncation, reason = "fewer than the bytes of a page")]
        {
            table[class] = ((PAGE_SIZE - SLAB_HEADER) / SIZES[class]) as u16;
        }
        class += 1;
    }
    table
};

/// How many blocks of a class one slab holds.
#[must_use]
pub const fn blocks_per_slab(class: usize) -> usize {
    PER_SLAB[class] as usize
}

/// Bytes that the allocator takes for a block of `len` bytes: the size of its class, whole pages above the
/// largest class, nothing for nothing.
#[must_use]
pub const fn block_bytes(len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    match class_of(len) {
        Some(class) => SIZES[class],
        // Only a length that no block can have does not fit.
        None => len.div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_length_has_the_smallest_class_that_fits() {
        for len in 0..=SMALL_MAX {
            let class = class_of(len).unwrap();
            assert!(SIZES[class] >= len);
            assert!(class == 0 || SIZES[class - 1] < len, "{len}");
            assert!(len == 0 || block_bytes(len) == SIZES[class]);
        }
        assert_eq!(class_of(SMALL_MAX + 1), None);
        assert!((0..SIZES.len()).all(|c| blocks_per_slab(c) >= 2 && SIZES[c] % SMALL_ALIGN == 0));
    }

    #[test]
    fn larger_lengths_are_whole_pages() {
        assert_eq!(block_bytes(0), 0);
        assert_eq!(block_bytes(SMALL_MAX + 1), PAGE_SIZE);
        assert_eq!(block_bytes(PAGE_SIZE), PAGE_SIZE);
        assert_eq!(block_bytes(PAGE_SIZE + 1), 2 * PAGE_SIZE);
        assert!(block_bytes(usize::MAX) >= usize::MAX - PAGE_SIZE);
    }
}
