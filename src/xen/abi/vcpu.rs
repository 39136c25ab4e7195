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
