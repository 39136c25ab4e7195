//! `xen/include/public/arch-x86/hvm/start_info.h`.

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`, up to what version 0 has.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HvmStartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// Version of this structure.
    pub version: u32,
    /// `SIF_*`.
    pub flags: u32,
    /// Number of modules.
    pub nr_modules: u32,
    /// Physical address of an array of [`HvmModlistEntry`].
    pub modlist_paddr: u64,
    /// Physical address of the command line, which ends with a zero byte; 0 for none.
    pub cmdline_paddr: u64,
    /// Physical address of the ACPI tables' root.
    pub rsdp_paddr: u64,
}
const _: () = assert!(size_of::<HvmStartInfo>() == 40);

/// `struct hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HvmModlistEntry {
    /// Physical address.
    pub paddr: u64,
    /// Bytes.
    pub size: u64,
    /// Physical address of the module's own command line.
    pub cmdline_paddr: u64,
    /// Zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<HvmModlistEntry>() == 32);
