//! `xen/include/public/domctl.h`: the few questions about other domains that a xenstore may ask, and what programs in dom0
//! have done. The numbers are the same from Xen 4.14 to 4.22.

/// `XEN_DOMCTL_createdomain`.
pub const CREATE_DOMAIN: u32 = 1;
/// `XEN_DOMCTL_destroydomain`.
pub const DESTROY_DOMAIN: u32 = 2;
/// `XEN_DOMCTL_unpausedomain`.
pub const UNPAUSE_DOMAIN: u32 = 4;
/// `XEN_DOMCTL_shadow_op`: an operation, a mode, and a number of MiB, 32 bits each.
pub const SHADOW_OP: u32 = 10;
/// `XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION`.
pub const SHADOW_SET_ALLOCATION: u32 = 31;
/// `XEN_DOMCTL_max_mem`: KiB.
pub const MAX_MEM: u32 = 11;
/// `XEN_DOMCTL_max_vcpus`.
pub const MAX_VCPUS: u32 = 15;
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

    /// `tot_pages` of `struct xen_domctl_getdomaininfo`.
    #[must_use]
    pub fn info_pages(&self) -> u64 {
        self.u[1]
    }

    /// Its `max_pages`.
    #[must_use]
    pub fn info_max_pages(&self) -> u64 {
        self.u[2]
    }

    /// Its `ssidref`, the label for XSM, from byte 72 on.
    #[must_use]
    pub fn info_label(&self) -> u32 {
        u32::try_from(self.u[9] & u64::from(u32::MAX)).unwrap_or(0)
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

/// A domain to be made: PVH by hardware assisted paging, one vCPU, Xen's flag for a xenstore domain, and the limits that
/// `init-xenstore-domain` gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewDomain {
    /// Label for XSM.
    pub label: u32,
    /// Its UUID.
    pub handle: [u8; 16],
}

impl NewDomain {
    /// `XEN_DOMCTL_CDF_hvm`, `_hap` and `_xs_domain`.
    const FLAGS: u32 = 1 | 2 | 16;
    /// 32,768 mapped grants, which is what `init-xenstore-domain` gives; and some of its own, for its console.
    const MAPTRACK_FRAMES: u32 = 128;
    const GRANT_FRAMES: u32 = 4;
    /// `XEN_X86_EMU_LAPIC`.
    const EMULATED: u32 = 1;

    /// `struct xen_domctl_createdomain` in a version of the interface, as words. `None` for one that is not known.
    ///
    /// 0x12 is Xen 4.14, 0x13 4.15, 0x14 4.16, 0x15 4.17, 0x16 4.18, 0x17 4.19 to 4.21, 0x18 4.22.
    #[must_use]
    pub fn words(&self, version: u32) -> Option<[u64; 16]> {
        let mut halves = [0_u32; 32];
        let mut rest = halves.iter_mut();
        let mut put = |half: u32| {
            if let Some(place) = rest.next() {
                *place = half;
            }
        };
        put(self.label);
        for part in self.handle.as_chunks::<4>().0 {
            put(u32::from_le_bytes(*part));
        }
        put(Self::FLAGS);
        // No IOMMU; one vCPU; ports without a limit of its own.
        [0, 1, u32::MAX, Self::GRANT_FRAMES, Self::MAPTRACK_FRAMES].into_iter().for_each(&mut put);
        match version {
            0x12 => {}
            // vmtrace_size.
            0x13 => put(0),
            // Version 1 of grants, before that.
            0x14 => [1, 0].into_iter().for_each(&mut put),
            // CPU pool 0, behind that.
            0x15 | 0x16 => [1, 0, 0].into_iter().for_each(&mut put),
            // Between the first two: altp2m.
            0x17 | 0x18 => [1, 0, 0, 0].into_iter().for_each(&mut put),
            _ => return None,
        }
        put(Self::EMULATED);
        let mut words = [0; 16];
        for (word, pair) in words.iter_mut().zip(halves.as_chunks::<2>().0) {
            *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        }
        Some(words)
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
    fn a_new_domain_is_described_as_each_release_wants_it() {
        let new = NewDomain { label: 7, handle: *b"0123456789abcdef" };
        let half = |version, at: usize| {
            let word = new.words(version).unwrap()[at / 8];
            word >> (at % 8 * 8) & 0xffff_ffff
        };
        for version in 0x12..=0x18 {
            assert_eq!(half(version, 0), 7);
            assert_eq!(half(version, 4), u64::from(u32::from_le_bytes(*b"0123")));
            assert_eq!([20, 28, 40].map(|at| half(version, at)), [19, 1, 128]);
        }
        // Where emulation_flags stand in each.
        for (version, at) in
            [(0x12, 44), (0x13, 48), (0x14, 52), (0x15, 56), (0x16, 56), (0x17, 60), (0x18, 60)]
        {
            assert_eq!(half(version, at), 1, "{version:#x}");
            assert_eq!(half(version, at + 4), 0, "{version:#x}");
        }
        assert_eq!(half(0x15, 44), 1);
        assert!(new.words(0x11).is_none() && new.words(0x19).is_none());
    }

    #[test]
    fn the_handle_is_cut_out_of_three_words() {
        let mut answer = Domctl::default();
        answer.u[9] = 0x0302_0100_ffff_ffff;
        answer.u[10] = 0x0b0a_0908_0706_0504;
        answer.u[11] = 0xffff_ffff_0f0e_0d0c;
        assert_eq!(answer.info_handle(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    }
}
