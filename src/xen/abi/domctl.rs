//! `xen/include/public/domctl.h`: the few questions about other domains that a xenstore may ask.

/// `XEN_DOMCTL_getdomaininfo`; its interface version changes between releases of Xen.
pub const GETDOMAININFO: u32 = 5;
/// `XEN_DOMCTL_get_domain_state` (Xen 4.21 on); stable, its interface version is 0.
pub const GET_DOMAIN_STATE: u32 = 90;

/// `struct xen_domctl`, the union as words.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Domctl {
    /// One of the commands above.
    pub cmd: u32,
    /// The version of the interface that the command's data has.
    pub interface_version: u32,
    /// The domain in question; in and out.
    pub domain: u16,
    /// Padding.
    pub pad: [u16; 3],
    /// The command's data.
    pub u: [u64; 16],
}
const _: () = assert!(size_of::<Domctl>() == 144);
const _: () = assert!(core::mem::offset_of!(Domctl, u) == 16);

impl Domctl {
    /// The first word of the data.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.u[0]
    }

    /// The second word of the data.
    #[must_use]
    pub fn second(&self) -> u64 {
        self.u[1]
    }
}

/// Bits of `struct xen_domctl_get_domain_state`'s `state`, the low 16 bits of the first word.
pub mod state {
    /// The domain exists.
    pub const EXIST: u64 = 1;
    /// Its shutdown is complete.
    pub const SHUTDOWN: u64 = 2;
    /// Only the structure is left.
    pub const DEAD: u64 = 8;
}

/// Bits of `struct xen_domctl_getdomaininfo`'s `flags`, the high half of the first word.
pub mod info {
    /// All resources of the domain are gone.
    pub const DYING: u64 = 1;
    /// The guest has shut down.
    pub const SHUTDOWN: u64 = 4;
}
