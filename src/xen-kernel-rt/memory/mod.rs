//! Memory: what there is, which of it is free, and the allocator on top.
//!
//! | file | has |
//! |---|---|
//! | `layout` | what the memory map means |
//! | `frames` | which frames are free |
//! | `surplus` | when pages go back to Xen |
//! | `classes`, `heap`, `runs` | the allocator: sizes of blocks, blocks, addresses for large ones |
//! | `domain` | all of it over the memory of this domain, with its page tables; the global allocator |
//! | `bounded` | for programs on the host: the same allocator over memory with an end |

#[cfg(not(target_os = "none"))]
pub mod bounded;
pub mod classes;
#[cfg(target_os = "none")]
mod domain;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(test, expect(dead_code, reason = "the domain uses more of it than the tests"))]
mod frames;
pub mod heap;
#[cfg(any(test, target_os = "none"))]
mod layout;
mod runs;
mod surplus;

pub use classes::{PAGE_SIZE, block_bytes};
#[cfg(target_os = "none")]
pub(crate) use domain::{
    FOREIGN_PAGES, Inherited, Occupied, Plain, Predecessor, begin, bridge_page, bytes_of, commit,
    copy_physical, fill, find, frame_address, give_frame, inherit, inheritance, map_bridge,
    map_bridge_early, map_foreign, map_region, map_special, mend, read_physical, refine, settle,
    take_frame, take_slot, unmap_bridge, want_free, write_frame,
};
#[cfg(target_os = "none")]
pub use domain::{
    Figures, fail_holding_frames, fail_in_doubt, fail_in_growth, figures, forget_refusal, heap,
    needs_tending, prepare, reserve, tend,
};

/// Figures of the heap, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeapStats {
    /// Handed out.
    pub used: usize,
    /// Taken from the domain's memory so far, used or not.
    pub size: usize,
    /// What `size` can still grow to.
    pub limit: usize,
    /// What is left for blocks of any size, growth included: less than `limit` without `used`, since
    /// small blocks are cut from pages of their own.
    pub free: usize,
}
