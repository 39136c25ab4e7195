//! `xen/include/public/vcpu.h`.

/// `struct vcpu_set_singleshot_timer`, for `VCPUOP_set_singleshot_timer`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// Xen's system time at which `VIRQ_TIMER` comes.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<SetSingleshotTimer>() == 16);

/// `struct vcpu_runstate_info`, for `VCPUOP_get_runstate_info`; all of it is filled in by Xen.
#[derive(Debug, Default)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`.
    pub state: u32,
    pad: u32,
    /// Xen's system time at which it came to that.
    pub state_entry_time: u64,
    /// Nanoseconds that the vCPU has run (`time[RUNSTATE_running]`).
    pub running_ns: u64,
    /// Likewise runnable, blocked, offline.
    pub others_ns: [u64; 3],
}
const _: () = assert!(size_of::<RunstateInfo>() == 48);
