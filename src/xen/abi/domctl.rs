//! `xen/include/public/domctl.h`: the few questions about other domains that a xenstore may ask, and what programs in dom0
//! have done. The numbers are the same from Xen 4.14 to 4.22.

/// `XEN_DOMCTL_destroydomain`.
pub const DESTROY_DOMAIN: u32 = 2;
/// `XEN_DOMCTL_resumedomain`.
pub const RESUME_DOMAIN: u32 = 27;
/// `XEN_DOMCTL_sendtrigger`: a number of `XEN_DOMCTL_SENDTRIGGER_*`, 0 for an NMI, and a vCPU.
pub const SEND_TRIGGER: u32 = 28;
/// `XEN_DOMCTL_gethvmcontext`.
pub const GET_HVM_CONTEXT: u32 = 33;
/// `XEN_DOMCTL_sethvmcontext`.
pub const SET_HVM_CONTEXT: u32 = 34;
/// `XEN_DOMCTL_set_virq_handler`.
pub const SET_VIRQ_HANDLER: u32 = 66;
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

    /// `flags` of `struct xen_domctl_getdomaininfo`: the high half of the first word.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.u[0] >> 32
    }

    /// The second word of the data.
    #[must_use]
    pub fn second(&self) -> u64 {
        self.u[1]
    }

    /// `cpu_time` of `struct xen_domctl_getdomaininfo`, which lies at the same place from 4.15 to 4.22.
    #[must_use]
    pub fn info_cpu_time(&self) -> u64 {
        self.u[7]
    }

    /// `handle` of `struct xen_domctl_getdomaininfo`, 16 bytes from byte 76 on.
    #[must_use]
    pub fn info_handle(&self) -> [u8; 16] {
        let words = [self.u[9] >> 32 | self.u[10] << 32, self.u[10] >> 32 | self.u[11] << 32];
        let [a, b, c, d, e, f, g, h] = words[0].to_le_bytes();
        let [i, j, k, l, m, n, o, p] = words[1].to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
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
    /// `XEN_DOMCTL_GETDOMSTATE_CAP_CONTROL`, in the 16 bits of `caps` that follow.
    pub const CAP_CONTROL: u64 = 1 << 16;
}

/// Bits of `struct xen_domctl_getdomaininfo`'s `flags`, the same from 4.15 to 4.22.
pub mod info {
    /// All resources of the domain are gone.
    pub const DYING: u64 = 1;
    /// It is an HVM or PVH guest.
    pub const HVM_GUEST: u64 = 1 << 1;
    /// The guest has shut down.
    pub const SHUTDOWN: u64 = 1 << 2;
    /// The toolstack has paused it.
    pub const PAUSED: u64 = 1 << 3;
    /// Each of its vCPUs waits for an event.
    pub const BLOCKED: u64 = 1 << 4;
    /// One of its vCPUs is running.
    pub const RUNNING: u64 = 1 << 5;
    /// It was built as a xenstore domain.
    pub const XS_DOMAIN: u64 = 1 << 7;
    /// Where the number of the reason for its shutdown stands, 8 bits.
    pub const SHUTDOWN_REASON: u32 = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handle_is_cut_out_of_three_words() {
        let mut answer = Domctl::default();
        answer.u[9] = 0x0302_0100_ffff_ffff;
        answer.u[10] = 0x0b0a_0908_0706_0504;
        answer.u[11] = 0xffff_ffff_0f0e_0d0c;
        assert_eq!(answer.info_handle(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    }
}
