//! Linux' device for hypercalls from dom0 (`include/uapi/xen/privcmd.h`), and only as much of Xen as it takes to
//! make them.

use alloc::vec::Vec;
use core::ffi::{c_int, c_ulong, c_void};
use core::ptr::NonNull;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use xen_kernel_rt::abi::domctl::{
    CREATE_DOMAIN, DESTROY_DOMAIN, Domctl, GET_HVM_CONTEXT, GETDOMAININFO, MAX_MEM, MAX_VCPUS,
    NewDomain, RESUME_DOMAIN, SEND_TRIGGER, SET_HVM_CONTEXT, SET_VIRQ_HANDLER, SHADOW_OP,
    SHADOW_SET_ALLOCATION, UNPAUSE_DOMAIN,
};
use xen_kernel_rt::abi::event_channel::{AllocUnbound, Status};
use xen_kernel_rt::abi::hvm::{GetParam, SetParam};
use xen_kernel_rt::abi::memory::{E820Entry, PopulatePhysmap, SetMemoryMap};
use xen_kernel_rt::abi::sched::RemoteShutdown;
use xen_kernel_rt::abi::xen::errno;

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
/// `__HYPERVISOR_memory_op`, `__HYPERVISOR_sched_op`, `__HYPERVISOR_event_channel_op`, `__HYPERVISOR_hvm_op`,
/// `__HYPERVISOR_domctl`.
const HYPERVISOR_MEMORY_OP: u64 = 12;
const HYPERVISOR_SCHED_OP: u64 = 29;
const HYPERVISOR_EVENT_CHANNEL_OP: u64 = 32;
const HYPERVISOR_HVM_OP: u64 = 34;
const HYPERVISOR_DOMCTL: u64 = 36;
/// `XENMEM_populate_physmap`, `XENMEM_set_memory_map`.
const POPULATE: u64 = 6;
const SET_MEMORY_MAP: u64 = 13;
/// `EVTCHNOP_status`, `EVTCHNOP_alloc_unbound`.
const STATUS: u64 = 5;
const ALLOC_UNBOUND: u64 = 6;
/// `SCHEDOP_remote_shutdown`.
const REMOTE_SHUTDOWN: u64 = 4;
/// `HVMOP_set_param`, `HVMOP_get_param`.
const SET_PARAM: u64 = 0;
const GET_PARAM: u64 = 1;
/// `PROT_READ | PROT_WRITE` and `MAP_SHARED`.
pub(super) const READ_WRITE: c_int = 3;
pub(super) const MAP_SHARED: c_int = 1;
/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
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
    safe fn kill(process: c_int, signal: c_int) -> c_int;
    safe fn flock(file: c_int, operation: c_int) -> c_int;
    /// `handler` is an address, or a small number that is none.
    fn signal(signal: c_int, handler: usize) -> usize;
}

/// Opens a device for reading and writing; an error names it.
pub(super) fn open(device: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(device);
    file.map_err(|error| io::Error::new(error.kind(), std::format!("{device}: {error}")))
}

/// Maps the first page of a device.
pub(super) fn map_page(device: &File) -> io::Result<NonNull<c_void>> {
    map_bytes(device, PAGE_SIZE)
}

/// Maps the first bytes of a device.
fn map_bytes(device: &File, len: usize) -> io::Result<NonNull<c_void>> {
    // SAFETY: a mapping at an address of the kernel's choice, which replaces none.
    let page =
        unsafe { mmap(core::ptr::null_mut(), len, READ_WRITE, MAP_SHARED, device.as_raw_fd(), 0) };
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

/// Asks a process to end.
///
/// # Errors
/// The kernel's refusal.
pub fn terminate(process: u32) -> io::Result<()> {
    const SIGTERM: c_int = 15;
    // 0 and less would mean others, too.
    let process = c_int::try_from(process).ok().filter(|process| *process > 0);
    let process = process.ok_or(io::ErrorKind::InvalidInput)?;
    if kill(process, SIGTERM) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Locks a file for this process alone, until it is closed or the process dies.
///
/// # Errors
/// The kernel's refusal; [`io::ErrorKind::WouldBlock`] if somebody else has locked it.
pub fn lock_file(file: &File) -> io::Result<()> {
    // LOCK_EX, and LOCK_NB: without waiting.
    if flock(file.as_raw_fd(), 2 | 4) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has this process, and what it starts, ignore the signals by which a terminal or a session ends or stops it, or heed them
/// again.
pub fn ignore_signals(ignore: bool) {
    const SIG_DFL: usize = 0;
    const SIG_IGN: usize = 1;
    // SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTOU.
    for number in [1, 2, 3, 15, 20, 22] {
        // SAFETY: no handler is set, so none has to be fit for a signal.
        let _before = unsafe { signal(number, if ignore { SIG_IGN } else { SIG_DFL }) };
    }
}

/// Domctls that are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// What Xen says of a domain; up to Xen 4.17 of the next higher one, if there is none of that number.
    Info,
    /// A domain that has shut down goes on.
    Resume,
    /// A domain that was paused, as a new one is, goes on.
    Unpause,
    /// It may have so many vCPUs.
    MaxVcpus(u32),
    /// It may have so many KiB.
    MaxMemory(u64),
    /// So many MiB are for its page tables.
    PagingPool(u32),
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

    fn call(&self, op: u64, arg: [u64; 5]) -> io::Result<c_int> {
        let mut call = Hypercall { op, arg };
        // SAFETY: the request takes a `Hypercall`. All its callers are in this file: what it names is theirs alone, and of
        // the size that Xen copies.
        let result = unsafe { ioctl(self.0.as_raw_fd(), IOCTL_HYPERCALL, &raw mut call) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// A domctl in one version of its interface; says what Xen has answered.
    ///
    /// # Errors
    /// Xen's refusal; EACCES if its interface has another version.
    pub fn domctl(&self, version: u32, domain: u16, command: Command) -> io::Result<Domctl> {
        let (cmd, data) = match command {
            Command::Info => (GETDOMAININFO, 0),
            Command::Resume => (RESUME_DOMAIN, 0),
            Command::Unpause => (UNPAUSE_DOMAIN, 0),
            Command::MaxVcpus(count) => (MAX_VCPUS, u64::from(count)),
            Command::MaxMemory(kib) => (MAX_MEM, kib),
            Command::PagingPool(_) => (SHADOW_OP, u64::from(SHADOW_SET_ALLOCATION)),
            // Number 0, and the first vCPU.
            Command::TriggerNmi => (SEND_TRIGGER, 0),
            Command::Destroy => (DESTROY_DOMAIN, 0),
            Command::SetVirqHandler(virq) => (SET_VIRQ_HANDLER, u64::from(virq)),
        };
        let mut argument = Domctl { cmd, interface_version: version, domain, ..Default::default() };
        argument.u[0] = data;
        if let Command::PagingPool(mib) = command {
            argument.u[1] = u64::from(mib);
        }
        // None of these takes an address.
        self.call(HYPERVISOR_DOMCTL, [address(&mut argument), 0, 0, 0, 0])?;
        Ok(argument)
    }

    /// A new domain, paused, without memory and without a vCPU: of that domid, or of any. Says its domid.
    ///
    /// # Errors
    /// Xen's refusal; EEXIST if there is one of that domid; EACCES if the version is another one.
    pub fn create(&self, version: u32, wanted: Option<u16>, new: &NewDomain) -> io::Result<u16> {
        let unknown = || io::Error::from_raw_os_error(errno::EACCES);
        let u = new.words(version).ok_or_else(unknown)?;
        let domain = wanted.unwrap_or(0);
        let mut argument = Domctl {
            cmd: CREATE_DOMAIN,
            interface_version: version,
            domain,
            u,
            ..Default::default()
        };
        // It takes no address.
        self.call(HYPERVISOR_DOMCTL, [address(&mut argument), 0, 0, 0, 0])?;
        Ok(argument.domain)
    }

    /// Gives a domain memory: extents of 2 to the power of `order` pages that begin at these frames. Says how many of them
    /// Xen had memory for.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn populate(&self, domain: u16, order: u32, frames: &mut [u64]) -> io::Result<usize> {
        let mut argument = PopulatePhysmap {
            extent_start: frames.as_mut_ptr(),
            nr_extents: frames.len() as u64,
            extent_order: order,
            mem_flags: 0,
            domid: domain,
        };
        let args = [POPULATE, address(&mut argument), 0, 0, 0];
        let done = self.call(HYPERVISOR_MEMORY_OP, args)?;
        Ok(usize::try_from(done).unwrap_or(0))
    }

    /// The memory map that a domain is told.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn set_memory_map(&self, domain: u16, entries: &mut [E820Entry]) -> io::Result<()> {
        let mut argument = SetMemoryMap {
            domid: domain,
            pad: [0; 3],
            nr_entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            buffer: entries.as_mut_ptr(),
        };
        let args = [SET_MEMORY_MAP, address(&mut argument), 0, 0, 0];
        self.call(HYPERVISOR_MEMORY_OP, args).map(|_| ())
    }

    /// A new port of a domain that another one may bind to.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn alloc_unbound(&self, domain: u16, remote: u16) -> io::Result<u32> {
        let mut argument = AllocUnbound { dom: domain, remote_dom: remote, port: 0 };
        let args = [ALLOC_UNBOUND, address(&mut argument), 0, 0, 0];
        self.call(HYPERVISOR_EVENT_CHANNEL_OP, args).map(|_| argument.port)
    }

    /// What Xen says of a domain's port.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn port_status(&self, domain: u16, port: u32) -> io::Result<Status> {
        let mut argument = Status { dom: domain, port, ..Default::default() };
        let args = [STATUS, address(&mut argument), 0, 0, 0];
        self.call(HYPERVISOR_EVENT_CHANNEL_OP, args).map(|_| argument)
    }

    /// Shuts a domain down as if it had done so itself, with that reason: it keeps its memory, ports and grants.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn shut_down(&self, domain: u16, reason: u32) -> io::Result<()> {
        let mut argument = RemoteShutdown { domid: domain, pad: 0, reason };
        let args = [REMOTE_SHUTDOWN, address(&mut argument), 0, 0, 0];
        self.call(HYPERVISOR_SCHED_OP, args).map(|_| ())
    }

    /// Sets a parameter of an HVM or PVH domain.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn set_hvm_param(&self, domain: u16, index: u32, value: u64) -> io::Result<()> {
        let mut argument = SetParam { domid: domain, index, value, ..Default::default() };
        self.call(HYPERVISOR_HVM_OP, [SET_PARAM, address(&mut argument), 0, 0, 0]).map(|_| ())
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
        self.fill(domain, page.0, &[frame]).map(|()| page)
    }

    /// Maps pages of another domain, one behind the other.
    ///
    /// # Errors
    /// As [`map`](Self::map); and if there is none to be mapped.
    pub fn map_all(&self, domain: u16, frames: &[u64]) -> io::Result<ForeignPages> {
        let pages = frames.len();
        let len = pages.checked_mul(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        let mapped = ForeignPages { first: map_bytes(&self.0, len)?, pages };
        self.fill(domain, mapped.first, frames).map(|()| mapped)
    }

    /// Shows frames of a domain in a fresh mapping of this device that is as long.
    fn fill(&self, domain: u16, place: NonNull<c_void>, frames: &[u64]) -> io::Result<()> {
        let mut errors: Vec<c_int> = std::vec![0; frames.len()];
        let mut batch = MapBatch {
            num: u32::try_from(frames.len()).map_err(io::Error::other)?,
            domain,
            pad: 0,
            address: place.addr().get() as u64,
            frames: frames.as_ptr(),
            errors: errors.as_mut_ptr(),
        };
        // SAFETY: the request takes a `MapBatch`, whose two lists have as many entries as it says. What it changes are the
        // pages at `address`, which nobody uses yet.
        let result = unsafe { ioctl(self.0.as_raw_fd(), IOCTL_MAP_BATCH, &raw mut batch) };
        match errors.into_iter().find(|error| *error != 0) {
            _ if result < 0 => Err(io::Error::last_os_error()),
            None => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
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

/// Pages of another domain, one behind the other; unmapped when dropped, as [`ForeignPage`].
#[derive(Debug)]
pub struct ForeignPages {
    first: NonNull<c_void>,
    pages: usize,
}

impl ForeignPages {
    /// Their bytes.
    fn len(&self) -> usize {
        self.pages.saturating_mul(PAGE_SIZE)
    }

    /// Copies all bytes out. The domain must not run meanwhile.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = std::vec![0_u8; self.len()];
        let from = self.first.as_ptr().cast::<u8>();
        // SAFETY: as many bytes are mapped as long as `self` is; the buffer is another place. Who might change them
        // meanwhile does so from outside this program, and then the bytes are as wrong as he wanted.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Copies bytes in, from the start on, and zeroes the rest. The domain must not run meanwhile.
    pub fn write(&mut self, bytes: &[u8]) {
        let to = self.first.as_ptr().cast::<u8>();
        let len = bytes.len().min(self.len());
        // SAFETY: so many bytes are mapped as long as `self` is, and nothing in this program has a reference into them.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), len) };
        // SAFETY: inside what is mapped, since `len` is not larger.
        let rest = unsafe { to.add(len) };
        // SAFETY: as above.
        unsafe { rest.write_bytes(0, self.len().saturating_sub(len)) };
    }
}

impl Drop for ForeignPages {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody has an address in it any more. It cannot fail, then.
        unsafe { munmap(self.first.as_ptr(), self.len()) };
    }
}
