//! Linux' device for hypercalls from dom0 (`include/uapi/xen/privcmd.h`), and only as much of Xen as it takes to
//! make them.

use crate::xen::abi::domctl::{
    DESTROY_DOMAIN, Domctl, GET_HVM_CONTEXT, GETDOMAININFO, RESUME_DOMAIN, SEND_TRIGGER,
    SET_HVM_CONTEXT, SET_VIRQ_HANDLER,
};
use crate::xen::abi::hvm::GetParam;
use alloc::vec::Vec;
use core::ffi::{c_int, c_ulong, c_void};
use core::ptr::NonNull;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    num: u32,
    domain: u16,
    pad: u16,
    address: u64,
    frames: *const u64,
    errors: *mut c_int,
}

/// `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_HYPERCALL: c_ulong = 0x0030_5000;
/// `_IOC(_IOC_NONE, 'P', 4, sizeof(struct privcmd_mmapbatch_v2))`.
const IOCTL_MAP_BATCH: c_ulong = 0x0020_5004;
const _: () = assert!(size_of::<Hypercall>() == 0x30 && size_of::<MapBatch>() == 0x20);
/// `__HYPERVISOR_hvm_op`, `__HYPERVISOR_domctl`.
const HYPERVISOR_HVM_OP: u64 = 34;
const HYPERVISOR_DOMCTL: u64 = 36;
/// `HVMOP_get_param`.
const GET_PARAM: u64 = 1;
/// `PROT_READ | PROT_WRITE` and `MAP_SHARED`.
pub(super) const READ_WRITE: c_int = 3;
pub(super) const MAP_SHARED: c_int = 1;
pub(super) const PAGE_SIZE: usize = 4096;
/// `MCL_CURRENT | MCL_FUTURE`.
const ALL_MEMORY: c_int = 3;

unsafe extern "C" {
    pub(super) fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
    pub(super) fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    pub(super) fn munmap(address: *mut c_void, length: usize) -> c_int;
    safe fn mlockall(flags: c_int) -> c_int;
}

/// Opens a device for reading and writing; an error names it.
pub(super) fn open(device: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(device);
    file.map_err(|error| io::Error::new(error.kind(), std::format!("{device}: {error}")))
}

/// Maps the first page of a device.
pub(super) fn map_page(device: &File) -> io::Result<NonNull<c_void>> {
    // SAFETY: a mapping at an address of the kernel's choice, which replaces none.
    let page = unsafe {
        mmap(core::ptr::null_mut(), PAGE_SIZE, READ_WRITE, MAP_SHARED, device.as_raw_fd(), 0)
    };
    // MAP_FAILED is the address with all bits set.
    let page = NonNull::new(page).filter(|page| page.addr().get() != usize::MAX);
    page.ok_or_else(io::Error::last_os_error)
}

/// Keeps all memory of this process in place, now and from now on, so that it never waits for a disk.
///
/// # Errors
/// The kernel's refusal.
pub fn lock_memory() -> io::Result<()> {
    if mlockall(ALL_MEMORY) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Domctls that are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// What Xen says of a domain; up to Xen 4.17 of the next higher one, if there is none of that number.
    Info,
    /// A domain that has shut down goes on.
    Resume,
    /// An NMI for its first vCPU.
    TriggerNmi,
    /// Its end.
    Destroy,
    /// It hears of a virtual interrupt that only one domain can have.
    SetVirqHandler(u32),
}

/// The device.
#[derive(Debug)]
pub struct Privcmd(File);

impl Privcmd {
    /// Opens it.
    ///
    /// # Errors
    /// There is none, or no right to use it.
    pub fn open() -> io::Result<Self> {
        open("/dev/xen/privcmd").map(Self)
    }

    fn call(&self, op: u64, arg: [u64; 5]) -> io::Result<()> {
        let mut call = Hypercall { op, arg };
        // SAFETY: the request takes a `Hypercall`. All its callers are in this file: what it names is theirs alone, and of
        // the size that Xen copies.
        let result = unsafe { ioctl(self.0.as_raw_fd(), IOCTL_HYPERCALL, &raw mut call) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A domctl in one version of its interface; says what Xen has answered.
    ///
    /// # Errors
    /// Xen's refusal; EACCES if its interface has another version.
    pub fn domctl(&self, version: u32, domain: u16, command: Command) -> io::Result<Domctl> {
        let (cmd, data) = match command {
            Command::Info => (GETDOMAININFO, 0),
            Command::Resume => (RESUME_DOMAIN, 0),
            // Number 0, and the first vCPU.
            Command::TriggerNmi => (SEND_TRIGGER, 0),
            Command::Destroy => (DESTROY_DOMAIN, 0),
            Command::SetVirqHandler(virq) => (SET_VIRQ_HANDLER, u64::from(virq)),
        };
        let mut argument = Domctl { cmd, interface_version: version, domain, ..Default::default() };
        argument.u[0] = data;
        // None of these takes an address.
        self.call(HYPERVISOR_DOMCTL, [address(&mut argument), 0, 0, 0, 0])?;
        Ok(argument)
    }

    /// The state of a domain's processors, as Xen saves it.
    ///
    /// # Errors
    /// As [`domctl`](Self::domctl).
    pub fn hvm_context(&self, version: u32, domain: u16) -> io::Result<Vec<u8>> {
        let size = self.context(GET_HVM_CONTEXT, version, domain, &mut [])?;
        let mut buffer = std::vec![0; size];
        let size = self.context(GET_HVM_CONTEXT, version, domain, &mut buffer)?;
        buffer.truncate(size);
        Ok(buffer)
    }

    /// Sets the state of a domain's processors; those that the records do not name stay off.
    ///
    /// # Errors
    /// As [`domctl`](Self::domctl).
    pub fn set_hvm_context(&self, version: u32, domain: u16, context: &mut [u8]) -> io::Result<()> {
        self.context(SET_HVM_CONTEXT, version, domain, context).map(|_| ())
    }

    /// `struct xen_domctl_hvmcontext`: a size, and the address of so many bytes. Says the size that Xen has put there.
    fn context(&self, cmd: u32, version: u32, domain: u16, buffer: &mut [u8]) -> io::Result<usize> {
        let mut argument = Domctl { cmd, interface_version: version, domain, ..Default::default() };
        argument.u[0] = buffer.len() as u64;
        // Without an address Xen says how much there is.
        argument.u[1] = if buffer.is_empty() { 0 } else { address(buffer) };
        self.call(HYPERVISOR_DOMCTL, [address(&mut argument), 0, 0, 0, 0])?;
        Ok(usize::try_from(argument.u[0] & u64::from(u32::MAX)).unwrap_or(usize::MAX))
    }

    /// A parameter of an HVM or PVH domain.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn hvm_param(&self, domain: u16, index: u32) -> io::Result<u64> {
        let mut argument = GetParam { domid: domain, index, ..Default::default() };
        self.call(HYPERVISOR_HVM_OP, [GET_PARAM, address(&mut argument), 0, 0, 0])?;
        Ok(argument.value)
    }

    /// Maps a page of another domain.
    ///
    /// # Errors
    /// There is no such page, or the domain is being taken apart.
    pub fn map(&self, domain: u16, frame: u64) -> io::Result<ForeignPage> {
        let page = ForeignPage(map_page(&self.0)?);
        let mut error: c_int = 0;
        let mut batch = MapBatch {
            num: 1,
            domain,
            pad: 0,
            address: page.0.addr().get() as u64,
            frames: &raw const frame,
            errors: &raw mut error,
        };
        // SAFETY: the request takes a `MapBatch`, whose two lists have one entry each. What it changes is the page at
        // `address`, which nobody uses yet.
        let result = unsafe { ioctl(self.0.as_raw_fd(), IOCTL_MAP_BATCH, &raw mut batch) };
        match error {
            _ if result < 0 => Err(io::Error::last_os_error()),
            0 => Ok(page),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// The address of a hypercall's argument. Whoever takes it has the only reference while the call goes on.
fn address<T: ?Sized>(argument: &mut T) -> u64 {
    core::ptr::from_mut(argument).cast::<u8>().expose_provenance() as u64
}

/// A page of another domain; unmapped when dropped. As long as it is mapped a domain that dies stays as a zombie.
#[derive(Debug)]
pub struct ForeignPage(NonNull<c_void>);

impl ForeignPage {
    fn word(&self, offset: usize) -> NonNull<u64> {
        assert!(offset % 8 == 0 && offset < PAGE_SIZE, "a word outside the page");
        // SAFETY: the assertion keeps it inside the page, which is mapped as long as `self` is.
        unsafe { self.0.byte_add(offset) }.cast()
    }

    /// Copies a word out.
    #[must_use]
    pub fn read(&self, offset: usize) -> u64 {
        // SAFETY: inside the page and aligned; others who write to it do so from outside this program.
        unsafe { self.word(offset).read_volatile() }
    }

    /// Copies a word in.
    pub fn write(&mut self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(offset).write_volatile(value) }
    }
}

impl Drop for ForeignPage {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody has an address in it any more. It cannot fail, then.
        unsafe { munmap(self.0.as_ptr(), PAGE_SIZE) };
    }
}
