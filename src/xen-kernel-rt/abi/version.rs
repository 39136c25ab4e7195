//! `xen/include/public/version.h`.

/// `XENVER_version`: no argument; the answer is major << 16 | minor.
pub const XENVER_VERSION: u64 = 0;

/// `xen_extraversion_t`, for `XENVER_extraversion`: what follows the minor version, NUL-terminated.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ExtraVersion {
    /// The text.
    pub text: [u8; 16],
}
const _: () = assert!(size_of::<ExtraVersion>() == 16);
