//! `xen/include/public/sched.h`.

/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;
/// What the numbers from 0 on mean (`SHUTDOWN_*`).
pub const SHUTDOWN_NAMES: [&str; 6] =
    ["poweroff", "reboot", "suspend", "crash", "watchdog", "soft reset"];

/// `struct sched_shutdown`, for `SCHEDOP_shutdown`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Shutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}
