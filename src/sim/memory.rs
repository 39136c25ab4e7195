//! The memory of the server's domain: the image's own allocator over a given number of pages, in a program that
//! declares [`Bounded`](xen_kernel_rt::memory::bounded::Bounded) as its allocator. In other programs the server has the
//! program's memory.

use crate::server::platform::HeapStats;
use alloc::rc::Rc;
use alloc::string::String;
use std::format;
use xen_kernel_rt::memory::bounded::{Arena, Figures, Growth};

/// Pages of a domain's memory that are not the heap's: the image, its stack, page tables, the special pages.
const NOT_HEAP: usize = 512;

/// Pages in a MiB.
const PAGES_PER_MIB: usize = 256;

/// The memory of a simulated domain; clones are the same memory.
#[derive(Clone, Debug)]
pub struct Memory(Rc<Arena>);

impl Memory {
    /// A heap of `start` pages that may become `limit` pages.
    #[must_use]
    pub fn new(start: usize, limit: usize) -> Self {
        Self(Rc::new(Arena::new(start, limit)))
    }

    /// The heap of a domain started with these values of `memory=` and `maxmem=`, in MiB.
    #[must_use]
    pub fn of_domain(memory: usize, maxmem: usize) -> Self {
        let pages = |mib: usize| (mib * PAGES_PER_MIB).saturating_sub(NOT_HEAP).max(1);
        Self::new(pages(memory), pages(maxmem.max(memory)))
    }

    /// Runs the server's own code.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.enter(f)
    }

    /// What the allocator has seen.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.0.figures()
    }

    /// Resets the peaks.
    pub fn reset_peaks(&self) {
        self.0.reset_peaks();
    }

    /// How Xen answers from now on when it is asked for more.
    pub fn set_growth(&self, growth: Growth) {
        self.0.set_growth(growth);
    }

    /// Has the `n`-th block from now on refused, 1 for the next; 0 for none.
    pub fn fail_nth(&self, n: u64) {
        self.0.fail_nth(n);
    }

    /// Whether that block is still to come.
    #[must_use]
    pub fn is_failure_pending(&self) -> bool {
        self.0.is_failure_pending()
    }

    /// As `Platform::reserve`.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> bool {
        self.0.reserve(bytes)
    }

    /// As `Platform::heap`.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        let xen_kernel_rt::memory::HeapStats { used, size, limit, free } = self.0.stats();
        HeapStats { used, size, limit, free }
    }

    /// Whether everything has been given back.
    ///
    /// # Errors
    /// How much is not.
    pub fn is_empty(&self) -> Result<(), String> {
        match self.figures().used {
            0 => Ok(()),
            used => Err(format!("{used} bytes are left when the server is gone")),
        }
    }
}
