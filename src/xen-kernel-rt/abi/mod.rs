//! Transcriptions of Xen's public headers, one file each; nothing but data.
//!
//! Names are the headers' names in Rust case. Sizes and offsets that Xen relies on are asserted.

pub mod console;
pub mod cpuid;
pub mod domctl;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod sched;
pub mod start_info;
pub mod vcpu;
pub mod version;
pub mod xen;
