//! `xen/include/public/sched.h`.

/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_suspend`.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;
/// `SHUTDOWN_watchdog`.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// What the numbers from 0 on mean (`SHUTDOWN_*`).
pub const SHUTDOWN_NAMES: [&str; 6] =
    ["poweroff", "reboot", "suspend", "crash", "watchdog", "soft reset"];

/// `struct sched_watchdog`, for `SCHEDOP_watchdog`, which answers with the number of the timer.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Watchdog {
    /// One that is set already, from 1 on; 0 for one that is free, and then `timeout` must not be 0.
    pub id: u32,
    /// Seconds until the domain is shut down as `SHUTDOWN_watchdog`; 0 to stop it.
    pub timeout: u32,
}

/// `struct sched_shutdown`, for `SCHEDOP_shutdown`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Shutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// `struct sched_remote_shutdown`, for `SCHEDOP_remote_shutdown`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct RemoteShutdown {
    /// The domain.
    pub domid: u16,
    /// Padding.
    pub pad: u16,
    /// `SHUTDOWN_*`.
    pub reason: u32,
}
const _: () = assert!(size_of::<RemoteShutdown>() == 8);
