//! `xen/include/public/hvm/hvm_op.h` and `hvm/params.h`.

/// `HVM_PARAM_CALLBACK_IRQ`: how events interrupt the first vCPU.
pub const PARAM_CALLBACK_IRQ: u32 = 0;
/// `HVM_PARAM_STORE_PFN`: the frame of the domain's own xenstore ring.
pub const PARAM_STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`: its port.
pub const PARAM_STORE_EVTCHN: u32 = 2;
/// `HVM_PARAM_IDENT_PT`: address of a page table for the time without paging, which some Intel processors need.
pub const PARAM_IDENT_PT: u32 = 12;
/// `HVM_PARAM_CONSOLE_PFN`: the frame of the PV console's ring.
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`: its port.
pub const PARAM_CONSOLE_EVTCHN: u32 = 18;

/// `HVM_PARAM_CALLBACK_TYPE_VECTOR` in bits 63:56; the vector goes to bits 7:0.
pub const CALLBACK_VECTOR: u64 = 2 << 56;

/// `struct xen_hvm_param`, as an argument of `HVMOP_get_param`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct GetParam {
    /// Whose.
    pub domid: u16,
    /// Padding.
    pub pad: u16,
    /// Which.
    pub index: u32,
    /// Out.
    pub value: u64,
}
const _: () = assert!(size_of::<GetParam>() == 16);

/// `struct xen_hvm_param`, as an argument of `HVMOP_set_param`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SetParam {
    /// Whose.
    pub domid: u16,
    /// Padding.
    pub pad: u16,
    /// Which.
    pub index: u32,
    /// The new value.
    pub value: u64,
}
const _: () = assert!(size_of::<SetParam>() == 16);
