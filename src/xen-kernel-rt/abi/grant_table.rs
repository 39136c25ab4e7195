//! `xen/include/public/grant_table.h`: mapping what others grant.

/// `GNTTAB_RESERVED_XENSTORE`: the entry that holds a domain's xenstore ring.
pub const RESERVED_XENSTORE: u32 = 1;
/// `GNTMAP_host_map`: map for the processor.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// `GNTST_okay`.
pub const GNTST_OKAY: i16 = 0;

/// `struct gnttab_map_grant_ref`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct MapGrantRef {
    /// Guest-physical address to map at.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The granter's entry.
    pub grant_ref: u32,
    /// The granter.
    pub dom: u16,
    /// Out: `GNTST_*`.
    pub status: i16,
    /// Out: what to unmap by.
    pub handle: u32,
    /// Out, for devices only.
    pub dev_bus_addr: u64,
}
const _: () = assert!(size_of::<MapGrantRef>() == 32);
const _: () = assert!(core::mem::offset_of!(MapGrantRef, handle) == 20);

/// `struct gnttab_unmap_grant_ref`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// Where it is mapped.
    pub host_addr: u64,
    /// 0 for a processor's mapping.
    pub dev_bus_addr: u64,
    /// From the map call.
    pub handle: u32,
    /// Out: `GNTST_*`.
    pub status: i16,
}
const _: () = assert!(size_of::<UnmapGrantRef>() == 24);
const _: () = assert!(core::mem::offset_of!(UnmapGrantRef, status) == 20);
