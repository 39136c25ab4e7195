//! `xen/include/public/arch-x86/cpuid.h`: finding Xen by CPUID, and what it tells there.

/// The first leaf where a hypervisor may sit; others follow in steps of [`STEP`].
pub const FIRST_LEAF: u32 = 0x4000_0000;
/// Distance between two leaves where a hypervisor may sit.
pub const STEP: u32 = 0x100;
/// The last one worth looking at.
pub const LAST_LEAF: u32 = 0x4001_0000;
/// `XenVMMXenVMM` in EBX, ECX, EDX of such a leaf.
pub const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
/// Distance of the leaf with facts about an HVM (or PVH) domain from Xen's first leaf.
pub const HVM_LEAF: u32 = 4;
/// `XEN_HVM_CPUID_DOMID_PRESENT` in EAX of that leaf: ECX is the domain's own domid (Xen 4.6 on).
pub const DOMID_PRESENT: u32 = 1 << 4;
