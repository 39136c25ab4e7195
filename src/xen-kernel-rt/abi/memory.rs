//! `xen/include/public/memory.h`.

/// `XENMAPSPACE_shared_info`.
pub const MAPSPACE_SHARED_INFO: u32 = 0;

/// `struct xen_memory_reservation`, as an argument of `XENMEM_populate_physmap`.
#[derive(Debug)]
#[repr(C)]
pub struct PopulatePhysmap {
    /// Address of the list of guest frames to populate.
    pub extent_start: *mut u64,
    /// Its length.
    pub nr_extents: u64,
    /// Log2 of the pages per extent.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose memory.
    pub domid: u16,
}
const _: () = assert!(size_of::<PopulatePhysmap>() == 32);

/// The same as an argument of `XENMEM_decrease_reservation`, with the list of guest frames to give up.
#[derive(Debug)]
#[repr(transparent)]
pub struct DecreaseReservation(pub PopulatePhysmap);

/// `struct xen_memory_domain`, as an argument of `XENMEM_current_reservation`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct CurrentReservation {
    /// Whose memory.
    pub domid: u16,
}

/// `struct xen_memory_domain`, as an argument of `XENMEM_maximum_reservation`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct MaximumReservation {
    /// Whose memory.
    pub domid: u16,
}

/// `struct xen_add_to_physmap`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AddToPhysmap {
    /// Whose physical address space.
    pub domid: u16,
    /// For ranges only.
    pub size: u16,
    /// `XENMAPSPACE_*`.
    pub space: u32,
    /// Index into that space.
    pub idx: u64,
    /// Where it shall appear.
    pub gpfn: u64,
}
const _: () = assert!(size_of::<AddToPhysmap>() == 24);

/// `struct xen_memory_map`, for `XENMEM_memory_map`.
#[derive(Debug)]
#[repr(C)]
pub struct GetMemoryMap {
    /// In: what fits; out: what was stored.
    pub nr_entries: u32,
    /// Address of the entries.
    pub buffer: *mut E820Entry,
}
const _: () = assert!(size_of::<GetMemoryMap>() == 16);

/// `struct xen_foreign_memory_map`, for `XENMEM_set_memory_map`.
#[derive(Debug)]
#[repr(C)]
pub struct SetMemoryMap {
    /// Whose.
    pub domid: u16,
    /// Padding.
    pub pad: [u16; 3],
    /// Entries.
    pub nr_entries: u32,
    /// Their address.
    pub buffer: *const E820Entry,
}
const _: () = assert!(size_of::<SetMemoryMap>() == 24);

/// Not for the domain, in [`E820Entry::kind`].
pub const E820_RESERVED: u32 = 2;

/// RAM, in [`E820Entry::kind`].
pub const E820_RAM: u32 = 1;

/// An entry of a memory map, "in the same format as returned by the BIOS INT 0x15 EAX=0xE820 call".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Number of bytes.
    pub size: u64,
    /// What it is.
    pub kind: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);
