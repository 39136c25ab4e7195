//! `xen/include/public/xen.h`, with `arch-x86/xen.h` and `arch-x86/xen-x86_64.h` where they matter.

use core::sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64};

/// Numbers of the hypercalls (`__HYPERVISOR_*`).
#[expect(missing_docs, reason = "the names of the header")]
pub mod call {
    pub const MEMORY_OP: u64 = 12;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const GRANT_TABLE_OP: u64 = 20;
    pub const VCPU_OP: u64 = 24;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const HVM_OP: u64 = 34;
    pub const DOMCTL: u64 = 36;
}

/// `VIRQ_TIMER`: the one-shot timer ran out.
pub const VIRQ_TIMER: u32 = 0;
/// `VIRQ_DOM_EXC`: some domain shut down, died or was freed.
pub const VIRQ_DOM_EXC: u32 = 3;

/// `CONSOLEIO_write`.
pub const CONSOLEIO_WRITE: u64 = 0;

/// The numbers of `xen/include/public/errno.h` that are looked at by name.
#[expect(missing_docs, reason = "the names of the header")]
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const ENOMEM: i32 = 12;
    pub const EAGAIN: i32 = 11;
    pub const EACCES: i32 = 13;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
}

/// `struct vcpu_time_info`; Xen writes it, so every field is atomic.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while Xen is writing.
    pub version: AtomicU32,
    pad0: u32,
    /// The time stamp counter when `system_time` was taken.
    pub tsc_timestamp: AtomicU64,
    /// Nanoseconds since Xen booted.
    pub system_time: AtomicU64,
    /// How counts become nanoseconds: shift, multiply, drop 32 bits.
    pub tsc_to_system_mul: AtomicU32,
    /// The shift; negative is to the right.
    pub tsc_shift: AtomicI8,
    pad1: [u8; 3],
}
const _: () = assert!(size_of::<VcpuTimeInfo>() == 32);

/// `struct vcpu_info` of a 64-bit guest.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuInfo {
    /// Set by Xen with the first pending event; cleared by us ahead of a look.
    pub evtchn_upcall_pending: AtomicU8,
    pad0: [u8; 7],
    /// A bit for each word of `evtchn_pending` that has news.
    pub evtchn_pending_sel: AtomicU64,
    arch: [u64; 2],
    /// The clock.
    pub time: VcpuTimeInfo,
}
const _: () = assert!(size_of::<VcpuInfo>() == 64);

/// `struct shared_info` of a 64-bit guest, as far as it is used.
#[derive(Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// `XEN_LEGACY_MAX_VCPUS` of them; the first is ours.
    pub vcpu_info: [VcpuInfo; 32],
    /// A bit per port.
    pub evtchn_pending: [AtomicU64; 64],
    /// A bit per port; a set one keeps its event from being announced.
    pub evtchn_mask: [AtomicU64; 64],
}
const _: () = assert!(core::mem::offset_of!(SharedInfo, evtchn_pending) == 2048);
const _: () = assert!(core::mem::offset_of!(SharedInfo, evtchn_mask) == 2560);
const _: () = assert!(size_of::<SharedInfo>() <= 4096);
