//! What the hypervisor refuses.

use core::fmt;

/// A refusal of the hypervisor, or of what this package does on its behalf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The call that failed, by its public name (for example `GNTTABOP_map_grant_ref`).
    pub call: &'static str,
    /// The error, as a positive errno or GNTST number of that call.
    pub code: i32,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed with error {}", self.call, self.code)
    }
}

impl core::error::Error for Refusal {}
