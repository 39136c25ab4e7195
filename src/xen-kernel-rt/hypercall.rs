//! Calls of Xen, with their types. [`arch`](crate::arch) has the instruction.

use super::abi::xen::call;
use super::abi::{
    domctl, event_channel, grant_table, hvm, memory, sched, vcpu,
    version::{self, XENVER_VERSION},
};
use crate::arch;
use crate::error::Refusal;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many hypercalls this image has made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// How many hypercalls this image has made.
#[must_use]
pub fn made() -> u64 {
    MADE.load(Ordering::Relaxed)
}

/// Issues a hypercall and returns its raw answer.
///
/// # Safety
/// 1. If the call takes an address, it points at what the call reads and writes, and nothing else
///    uses that meanwhile.
/// 2. What else the call does to this domain's memory is argued by the caller.
unsafe fn raw(number: u64, args: [u64; 3]) -> i64 {
    // What runs in between, once a second (`watch`), may cost a count: no reason for a locked instruction.
    MADE.store(made().wrapping_add(1), Ordering::Relaxed);
    // SAFETY: (1, 2) by contract.
    unsafe { arch::hypercall::raw(number, args) }
}

/// Turns a raw answer into a result.
fn check(name: &'static str, answer: i64) -> Result<u64, Refusal> {
    u64::try_from(answer).map_err(|_| Refusal {
        call: name,
        code: i32::try_from(answer.saturating_neg()).unwrap_or(i32::MAX),
    })
}

/// A structure that some operation of some hypercall takes.
///
/// # Safety
/// The operation named by the constants reads and writes exactly this structure, and memory that the
/// structure points at.
pub(crate) unsafe trait Argument {
    /// `__HYPERVISOR_*`.
    const CALL: u64;
    /// The operation, the first argument.
    const OP: u64;
    /// Its name in the public headers.
    const NAME: &'static str;
}

/// An [`Argument`] without effect on this domain's memory beyond itself.
///
/// # Safety
/// The structure holds no address, and the operation maps, unmaps and frees no memory of this domain.
pub(crate) unsafe trait Contained: Argument {}

/// Performs the operation that takes `argument`.
pub(crate) fn perform<T: Contained>(argument: &mut T) -> Result<u64, Refusal> {
    // SAFETY: (1, 2) `Contained` says that the operation touches `argument` only, which is ours alone.
    unsafe { perform_on_memory(argument) }
}

/// Performs an operation that reaches beyond its argument.
///
/// # Safety
/// 1. Every address in `argument` points at what the operation reads and writes, and nothing
///    else uses that meanwhile.
/// 2. No memory in use is replaced, unmapped or freed by it.
pub(crate) unsafe fn perform_on_memory<T: Argument>(argument: &mut T) -> Result<u64, Refusal> {
    let address = core::ptr::from_mut(argument).addr() as u64;
    // The asm block counts as writing all memory whose address has escaped; `expose` makes it so.
    let _exposed = core::ptr::from_mut(argument).expose_provenance();
    let args = match T::CALL {
        call::VCPU_OP => [T::OP, 0, address],
        call::DOMCTL => [address, 0, 0],
        _ => [T::OP, address, 0],
    };
    // The grant table's operations take an array; this is an array of one.
    let args = if T::CALL == call::GRANT_TABLE_OP { [args[0], args[1], 1] } else { args };
    // SAFETY: (1) `argument` is an exclusive reference of the right type (`Argument`), what it points
    // at is the caller's promise 1; (2) the caller's promise 2.
    check(T::NAME, unsafe { raw(T::CALL, args) })
}

/// Xen's version, as major and minor number.
pub(crate) fn xen_version() -> (u32, u32) {
    // SAFETY: XENVER_version takes no argument and changes nothing.
    let version = unsafe { raw(call::XEN_VERSION, [XENVER_VERSION, 0, 0]) };
    let version = u32::try_from(version).unwrap_or(0);
    (version >> 16, version & 0xffff)
}

/// Writes to the hypervisor's own console; `false` where Xen reserves it for others.
pub(crate) fn console_write(text: &[u8]) -> bool {
    let args = [super::abi::xen::CONSOLEIO_WRITE, text.len() as u64, text.as_ptr().addr() as u64];
    // SAFETY: CONSOLEIO_write reads `text.len()` bytes at the address and writes nothing.
    (unsafe { raw(call::CONSOLE_IO, args) }) == 0
}

macro_rules! arguments {
    ($($kind:ty: $call:ident $op:literal $name:literal;)*) => { $(
        // SAFETY: the structure that the public header names for this operation.
        unsafe impl Argument for $kind {
            const CALL: u64 = call::$call;
            const OP: u64 = $op;
            const NAME: &'static str = $name;
        }
    )* };
}

arguments! {
    event_channel::BindInterdomain: EVENT_CHANNEL_OP 0 "EVTCHNOP_bind_interdomain";
    event_channel::BindVirq: EVENT_CHANNEL_OP 1 "EVTCHNOP_bind_virq";
    event_channel::Close: EVENT_CHANNEL_OP 3 "EVTCHNOP_close";
    event_channel::Send: EVENT_CHANNEL_OP 4 "EVTCHNOP_send";
    event_channel::Status: EVENT_CHANNEL_OP 5 "EVTCHNOP_status";
    event_channel::AllocUnbound: EVENT_CHANNEL_OP 6 "EVTCHNOP_alloc_unbound";
    grant_table::MapGrantRef: GRANT_TABLE_OP 0 "GNTTABOP_map_grant_ref";
    grant_table::UnmapGrantRef: GRANT_TABLE_OP 1 "GNTTABOP_unmap_grant_ref";
    hvm::SetParam: HVM_OP 0 "HVMOP_set_param";
    hvm::GetParam: HVM_OP 1 "HVMOP_get_param";
    memory::DecreaseReservation: MEMORY_OP 1 "XENMEM_decrease_reservation";
    memory::CurrentReservation: MEMORY_OP 3 "XENMEM_current_reservation";
    memory::MaximumReservation: MEMORY_OP 4 "XENMEM_maximum_reservation";
    memory::PopulatePhysmap: MEMORY_OP 6 "XENMEM_populate_physmap";
    memory::AddToPhysmap: MEMORY_OP 7 "XENMEM_add_to_physmap";
    memory::GetMemoryMap: MEMORY_OP 9 "XENMEM_memory_map";
    vcpu::RunstateInfo: VCPU_OP 4 "VCPUOP_get_runstate_info";
    vcpu::SetSingleshotTimer: VCPU_OP 8 "VCPUOP_set_singleshot_timer";
    sched::Shutdown: SCHED_OP 2 "SCHEDOP_shutdown";
    sched::Watchdog: SCHED_OP 6 "SCHEDOP_watchdog";
    domctl::Domctl: DOMCTL 0 "domctl";
    version::ExtraVersion: XEN_VERSION 1 "XENVER_extraversion";
}

macro_rules! contained {
    ($($kind:ty),* $(,)?) => { $(
        // SAFETY: no address in the structure, and nothing of our memory changes.
        unsafe impl Contained for $kind {}
    )* };
}

contained!(
    event_channel::BindInterdomain,
    event_channel::BindVirq,
    event_channel::Close,
    event_channel::Send,
    event_channel::AllocUnbound,
    event_channel::Status,
    hvm::GetParam,
    memory::CurrentReservation,
    memory::MaximumReservation,
    vcpu::RunstateInfo,
    vcpu::SetSingleshotTimer,
    sched::Shutdown,
    sched::Watchdog,
    version::ExtraVersion,
);

/// A parameter of our own domain.
pub(crate) fn hvm_param(index: u32) -> Result<u64, Refusal> {
    let mut argument = hvm::GetParam { domid: crate::DOMID_SELF, index, ..Default::default() };
    perform(&mut argument).map(|_| argument.value)
}

/// Ends the domain. It would return only if Xen refused, which it does not.
pub(crate) fn shutdown(reason: u32) {
    // A failure has nobody left to be told.
    let _ = perform(&mut sched::Shutdown { reason });
}
