//! The cost of a block on the image's allocator, in instructions: `cargo bench --bench heap`, counted by
//! callgrind.
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*::small' target/release/deps/heap-*
//! ```
//!
//! `small` (304 bytes), `page` (4,000) and `run` (12,000) each allocate and free [`ROUNDS`] blocks in a heap that
//! is nearly empty. `small_in_holes`, `page_in_holes` and `run_in_holes` do so in a heap that was filled and then
//! had two of three blocks freed. The figures include the lock and the search for the arena, some 50 instructions.

use core::hint::black_box;
use xen_kernel_rt::memory::bounded::{Arena, Bounded};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Blocks that are counted.
const ROUNDS: usize = 1000;

/// Pages of the heap.
const PAGES: usize = 15_000;

/// Allocates and frees.
#[inline(always)]
fn blocks(len: usize) {
    for _ in 0..ROUNDS {
        drop(black_box(Vec::<u8>::with_capacity(black_box(len))));
    }
}

macro_rules! measured {
    ($($function:ident $len:literal)*) => { $(
        #[inline(never)]
        fn $function() {
            black_box(stringify!($function));
            blocks($len);
        }
    )* };
}

measured! {
    small 304
    page 4000
    run 12_000
    small_in_holes 304
    page_in_holes 4000
    run_in_holes 12_000
}

fn main() {
    let arena = Arena::new(PAGES, PAGES);
    let mut filled: Vec<Vec<u8>> = Vec::with_capacity(PAGES * 3);
    arena.enter(|| {
        small();
        page();
        run();
        for len in [100, 2100, 700, 48, 4096, 1500, 300].into_iter().cycle() {
            let mut block = Vec::new();
            if filled.len() == filled.capacity() || block.try_reserve_exact(len).is_err() {
                break;
            }
            filled.push(block);
        }
        assert_eq!(arena.figures().pages, PAGES, "the heap is full");
        for (index, block) in filled.iter_mut().enumerate() {
            if index % 3 != 0 {
                *block = Vec::new();
            }
        }
        small_in_holes();
        page_in_holes();
        run_in_holes();
    });
}
