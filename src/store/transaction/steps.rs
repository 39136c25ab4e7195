//! Steps taken in the overlay, counted for tests of what requests cost.

use core::cell::Cell;

std::thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// One step.
pub(super) fn add() {
    STEPS.with(|steps| steps.set(steps.get() + 1));
}

/// How many there were since the last call.
pub(in crate::store) fn take() -> u64 {
    STEPS.with(|steps| steps.replace(0))
}
