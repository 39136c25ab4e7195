//! From `boot/head.S` to the program: the order in which everything is set up.

use crate::abi::hvm::{
    CALLBACK_VECTOR, PARAM_CALLBACK_IRQ, PARAM_CONSOLE_EVTCHN, PARAM_CONSOLE_PFN, PARAM_STORE_PFN,
    SetParam,
};
use crate::abi::sched::{SHUTDOWN_POWEROFF, SHUTDOWN_SUSPEND};
use crate::abi::start_info::{HvmModlistEntry, HvmStartInfo, MAGIC};
use crate::abi::version::ExtraVersion;
use crate::abi::xen::{SharedInfo, VIRQ_TIMER};
use crate::arch::{self, cpu};
use crate::error::Refusal;
use crate::events::two_level::{self as evtchn, Scan};
use crate::handover::{self, BridgeFields, Failure, Handover, Request};
use crate::id::{DomId, EvtchnPort};
use crate::memory::{self, Occupied, PAGE_SIZE};
use crate::shared_page::SharedPage;
use crate::time::{self, NS_PER_MS, NS_PER_US};
use crate::{DOMID_SELF, console, events, gnttab, hypercall, restart, watch};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::Ordering;

// The binary defines it with the macro `xen_entry`, which checks the type.
unsafe extern "Rust" {
    safe fn xen_program(machine: Machine, command_line: &'static str) -> !;
}

/// Names the function that runs once everything is up: `fn(Machine, &'static str) -> !`.
#[macro_export]
macro_rules! xen_entry {
    ($program:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn xen_program(
            machine: $crate::start::Machine,
            command_line: &'static str,
        ) -> ! {
            $program(machine, command_line)
        }
    };
}

/// Puts a value into a section of the image's file that the program itself does not look at, such as a note.
#[macro_export]
macro_rules! image_note {
    ($section:literal, $kind:ty, $value:expr) => {
        #[used]
        #[unsafe(link_section = $section)]
        static IMAGE_NOTE: $kind = $value;
    };
}

/// Modules that are kept: a replacement image gets one, the others are ignored.
const MODULES_MAX: usize = 4;

/// Longest command line that is looked at; the toolstack passes at most 511 characters.
const COMMAND_LINE_MAX: usize = 4096;

/// The first Rust function.
pub(crate) extern "C" fn rust_entry(start_info: u64, image_base: usize) -> ! {
    // SAFETY: called once, by `boot/head.S`, before all else.
    unsafe { restart::keep_data() };
    arch::traps::load();
    arch::hypercall::choose_instruction();
    if xen_leaf().is_none() {
        no_xen();
    }
    // SAFETY: first and only call, with the address that `boot/head.S` found.
    expect(unsafe { memory::find(image_base) });
    let info = expect(StartInfo::read(start_info));
    // SAFETY: right behind `find`.
    let machine = match unsafe { handover::find(&info.modules[0]) } {
        Some(facts) => succeed(facts, &info),
        None => begin(&info),
    };
    xen_program(machine, info.command_line)
}

/// Ends the domain in good order: what it was built for is done.
pub fn power_off() -> ! {
    hypercall::shutdown(SHUTDOWN_POWEROFF);
    cpu::halt()
}

/// The machine of an image that the domain builder has started.
fn begin(info: &StartInfo) -> Machine {
    memory::begin();
    // A domain that was revived may have one set.
    watch::release();
    let occupied = |frame| info.modules.iter().any(|module| module.holds(frame));
    // SAFETY: follows `find`; what the start info points at is either copied by now or listed.
    expect(unsafe { memory::refine(occupied, |_| false) });
    memory::settle();
    let shared = expect(gnttab::map_shared_info());
    open_console(shared);
    let timer = expect(start_events(shared));
    Machine::new(shared, timer, info.modules, None)
}

/// The machine of an image that takes over from another one, on trial. Nothing here may have an effect
/// beyond memory that the old image does not use.
fn succeed(facts: BridgeFields, info: &StartInfo) -> Machine {
    let old = facts.predecessor();
    expect(memory::inherit(&old));
    // SAFETY: follows `find`; all memory of the old image counts as occupied.
    expect(unsafe { memory::refine(|frame| old.holds(frame), |frame| old.is_absent(frame)) });
    expect(memory::map_bridge(info.modules[0].start / PAGE_SIZE));
    let shared = expect(gnttab::adopt_shared_info());
    open_console(shared);
    let handover = Handover::open(facts);
    handover::watch_deadline(shared, &handover);
    expect(gnttab::adopt_window(handover.window()));
    let Some(ports) = handover.ports() else {
        handover::abandon(format_args!("the bridge names ports that cannot be"));
    };
    Machine::new(shared, ports.timer, [Occupied::default(); MODULES_MAX], Some(handover))
}

/// The value, or the end of the domain: without what these steps set up nothing can go on.
fn expect<T>(result: Result<T, Refusal>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("cannot start: {error}"),
    }
}

/// The first CPUID leaf of a hypervisor that calls itself Xen.
fn xen_leaf() -> Option<u32> {
    use crate::abi::cpuid::{FIRST_LEAF, LAST_LEAF, SIGNATURE, STEP};
    (FIRST_LEAF..LAST_LEAF).step_by(STEP as usize).find(|leaf| {
        let answer = cpu::cpuid(*leaf, 0);
        [answer.ebx, answer.ecx, answer.edx] == SIGNATURE
    })
}

/// The domid of this domain, as Xen tells it by CPUID.
#[must_use]
pub fn own_domid() -> Option<DomId> {
    use crate::abi::cpuid::{DOMID_PRESENT, HVM_LEAF};
    let first = xen_leaf()?;
    let leaf = first.checked_add(HVM_LEAF)?;
    // EAX of the first leaf is the last one that there is.
    if cpu::cpuid(first, 0).eax < leaf {
        return None;
    }
    let answer = cpu::cpuid(leaf, 0);
    let domid = u16::try_from(answer.ecx).ok().map(DomId);
    domid.filter(|domid| answer.eax & DOMID_PRESENT != 0 && domid.is_ordinary())
}

/// Says on the first serial port that this is not Xen, and stops.
fn no_xen() -> ! {
    const COM1: u16 = 0x3f8;
    for &byte in b"This image runs as a PVH domain of Xen, and there is no Xen here.\r\n" {
        // SAFETY: a serial port writes to no memory; without one the byte goes nowhere.
        unsafe { cpu::out_byte(COM1, byte) };
    }
    cpu::halt()
}

/// What the domain builder passed.
struct StartInfo {
    command_line: &'static str,
    modules: [Occupied; MODULES_MAX],
}

impl StartInfo {
    /// Copies it out of memory that is about to be used for other things.
    fn read(address: u64) -> Result<Self, Refusal> {
        let bad = |call| Refusal { call, code: crate::abi::xen::errno::EINVAL };
        let info: HvmStartInfo =
            memory::read_physical(address).ok_or(bad("start info outside memory"))?;
        if info.magic != MAGIC {
            return Err(bad("start info without its magic number"));
        }
        let mut modules = [Occupied::default(); MODULES_MAX];
        for (slot, index) in modules.iter_mut().zip(0..u64::from(info.nr_modules)) {
            let at = info.modlist_paddr + index * size_of::<HvmModlistEntry>() as u64;
            if let Some(HvmModlistEntry { paddr, size, .. }) = memory::read_physical(at) {
                let [start, size] = [paddr, size].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
                *slot = Occupied { start, size };
            }
        }
        Ok(Self { command_line: command_line(info.cmdline_paddr), modules })
    }
}

/// Copies the command line to a place of its own; empty if there is none or it is not text.
fn command_line(address: u64) -> &'static str {
    static COPY: spin::Mutex<[u8; COMMAND_LINE_MAX]> = spin::Mutex::new([0; COMMAND_LINE_MAX]);
    let bytes = spin::MutexGuard::leak(COPY.lock());
    let mut len = 0;
    while len < bytes.len()
        && memory::copy_physical(address.saturating_add(len as u64), &mut bytes[len..=len])
        && bytes[len] != 0
    {
        len += 1;
    }
    core::str::from_utf8(&bytes[..len]).unwrap_or_else(|error| {
        core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
    })
}

/// Opens the PV console, if the domain has one. Its port is masked: we only write, and never wait.
fn open_console(shared: &SharedInfo) {
    let open = || -> Result<u32, Refusal> {
        let frame = hypercall::hvm_param(PARAM_CONSOLE_PFN)?;
        let port = port_param(PARAM_CONSOLE_EVTCHN)?;
        let base = memory::map_special(frame)?;
        // SAFETY: (1) mapped just now, for good; (2) nobody else asks for this page.
        let page = unsafe { SharedPage::new(base) };
        evtchn::mask(shared, port);
        console::attach(page, port);
        Ok(port)
    };
    if let Err(error) = open() {
        console::both(format_args!("xen: no PV console: {error}"));
    }
}

/// A parameter that is a port.
fn port_param(index: u32) -> Result<u32, Refusal> {
    let port = hypercall::hvm_param(index)?;
    u32::try_from(port).map_err(|_| Refusal { call: "HVMOP_get_param (port)", code: 0 })
}

/// Lets events end our sleep, and binds the timer; returns its port.
fn start_events(shared: &SharedInfo) -> Result<u32, Refusal> {
    let timer = events::bind_virq(VIRQ_TIMER)?;
    set_callback()?;
    // Whatever came before anybody looked is found by the first look.
    shared.vcpu_info[0].evtchn_pending_sel.store(u64::MAX, Ordering::SeqCst);
    Ok(timer.0)
}

/// Has events interrupt the vCPU. All versions that hand over to each other use the same vector, because the
/// timer of a trial comes by it.
fn set_callback() -> Result<(), Refusal> {
    let mut callback = SetParam {
        domid: DOMID_SELF,
        index: PARAM_CALLBACK_IRQ,
        value: CALLBACK_VECTOR | u64::from(arch::traps::UPCALL_VECTOR),
        ..Default::default()
    };
    // SAFETY: (1) no addresses; (2) the parameter names a vector that `traps` has a handler for. Set from
    // 64-bit code it also fixes the layout of `shared`, to the one it has from the start.
    unsafe { hypercall::perform_on_memory(&mut callback) }.map(|_| ())
}

/// The running domain: events, clock, sleep.
#[derive(Debug)]
pub struct Machine {
    shared: &'static SharedInfo,
    scan: Scan,
    /// The port of `VIRQ_TIMER`, which is reported to nobody.
    timer: u32,
    /// The moment that the last sleep was to end at.
    due_ms: Option<u64>,
    /// Something has happened since then.
    is_awake: bool,
    /// The latest moment that was told.
    latest_ms: Cell<u64>,
    /// What the domain builder loaded beside the image.
    modules: [Occupied; MODULES_MAX],
    /// What the old image has handed over, until the trial is over.
    handover: Option<Handover>,
}

impl Machine {
    fn new(
        shared: &'static SharedInfo,
        timer: u32,
        modules: [Occupied; MODULES_MAX],
        handover: Option<Handover>,
    ) -> Self {
        watch::prepare(shared, timer);
        let (scan, latest_ms) = (Scan::default(), Cell::new(0));
        Self { shared, scan, timer, due_ms: None, is_awake: true, latest_ms, modules, handover }
    }

    /// What an image on trial has been handed over.
    #[must_use]
    pub fn handover(&self) -> Option<Handover> {
        self.handover
    }

    /// The port of `VIRQ_DOM_EXC`, if any, that an image on trial takes over.
    #[must_use]
    pub fn inherited_changes(&self) -> Option<Option<EvtchnPort>> {
        let ports = self.handover.as_ref()?.ports()?;
        Some(ports.changes.map(EvtchnPort))
    }

    /// Hands over to a checked image. Returns only if that failed, with the reason.
    pub fn hand_over(&mut self, request: &Request<'_>) -> Failure {
        let interrupts = watch::pause();
        watch::limit();
        let masks = evtchn::mask_all_but(self.shared, self.timer);
        // A moment that Xen takes for the end of the trial; a failure leaves the trial without one.
        let reason = match watch::arm(request.deadline_ms.saturating_mul(NS_PER_MS)) {
            Ok(()) => handover::cross(request, self.timer),
            Err(refusal) => Failure::NoTimer(refusal),
        };
        evtchn::set_masks(self.shared, &masks);
        watch::disarm();
        watch::release();
        watch::resume(interrupts);
        reason
    }

    /// Stops as for a migration. Returns when dom0 has this domain go on in the same memory (`XEN_DOMCTL_resumedomain`).
    pub fn suspend(&mut self) {
        let interrupts = watch::pause();
        hypercall::shutdown(SHUTDOWN_SUSPEND);
        // What the timer was set to may be long over.
        watch::disarm();
        watch::turn();
        watch::resume(interrupts);
    }

    /// Gives back the memory in which the domain builder has put a module, which nobody needs any more. It has to be one
    /// that has its pages for itself.
    pub fn free_module(&mut self, index: usize) {
        let Some(module) = self.modules.get_mut(index).map(core::mem::take) else { return };
        let first = module.start / PAGE_SIZE;
        (first..first.saturating_add(module.size.div_ceil(PAGE_SIZE))).for_each(memory::give_frame);
    }

    /// Ends the trial: there is no way back from here.
    pub fn commit(&mut self) {
        let Some(handover) = self.handover.take() else { return };
        cpu::disable_interrupts();
        handover.commit();
        watch::release();
        let mut masks = [0; (evtchn::PORTS / u64::BITS) as usize];
        if let Some(port) = console::port()
            && let Some(word) = masks.get_mut((port / u64::BITS) as usize)
        {
            *word = 1 << (port % u64::BITS);
        }
        if let Err(error) = set_callback() {
            console::both(format_args!("xen: {error}"));
        }
        evtchn::set_masks(self.shared, &masks);
    }

    /// Milliseconds since Xen booted; never goes back.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let now = time::now_ns(&self.shared.vcpu_info[0].time, cpu::tsc) / NS_PER_MS;
        // Xen adjusts its scale now and then, which may take a hair back.
        self.latest_ms.set(self.latest_ms.get().max(now));
        self.latest_ms.get()
    }

    /// When Xen last wrote the time, in milliseconds since it booted: at most about a second ago, since Xen does
    /// so when a vCPU begins to run, and every second.
    #[must_use]
    pub fn rough_ms(&self) -> u64 {
        time::told_ns(&self.shared.vcpu_info[0].time) / NS_PER_MS
    }

    /// Microseconds since Xen booted; may step back by a hair.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        time::now_ns(&self.shared.vcpu_info[0].time, cpu::tsc) / NS_PER_US
    }

    /// Nanoseconds since Xen booted; may step back by a hair.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        time::now_ns(&self.shared.vcpu_info[0].time, cpu::tsc)
    }

    /// The next port with news, without waiting.
    pub fn next_port(&mut self) -> Option<EvtchnPort> {
        watch::turn();
        while let Some(port) = self.scan.next(self.shared) {
            if port != self.timer {
                self.is_awake = true;
                return Some(EvtchnPort(port));
            }
            let due_ns = self.due_ms.map(|due_ms| due_ms.saturating_mul(NS_PER_MS));
            self.is_awake |= due_ns.is_some_and(|due_ns| watch::armed_ns() >= due_ns);
            watch::disarm();
            self.keep_watch();
        }
        self.keep_watch();
        None
    }

    /// Orders a tick, unless this was the tick of a program that sleeps: that is the last one.
    fn keep_watch(&self) {
        if self.is_awake {
            watch::keep(self.shared);
        }
    }

    /// Sleeps until there is news or the clock reaches `deadline_ms`; may return early.
    pub fn wait(&mut self, deadline_ms: Option<u64>) {
        if !self.scan.is_empty() {
            return;
        }
        let now_ms = deadline_ms.map(|_| self.now_ms());
        let interrupts = watch::pause();
        // Nothing that comes from here on is lost: it ends the sleep at once.
        if !evtchn::has_news(self.shared) && self.prepare_to_sleep(deadline_ms, now_ms) {
            self.due_ms = deadline_ms;
            self.is_awake = false;
            arch::traps::sleep_until_event();
        }
        watch::resume(interrupts);
    }

    /// Sets the timer; `false` if there is nothing to wait for.
    fn prepare_to_sleep(&mut self, deadline_ms: Option<u64>, now_ms: Option<u64>) -> bool {
        let Some(deadline_ms) = deadline_ms else { return true };
        if now_ms.is_some_and(|now_ms| now_ms >= deadline_ms) {
            return false;
        }
        let deadline_ns = deadline_ms.saturating_mul(NS_PER_MS);
        // A timer that comes earlier only ends the sleep too early.
        if (1..=deadline_ns).contains(&watch::armed_ns()) {
            return true;
        }
        watch::arm(deadline_ns)
            .inspect_err(|error| console::line(format_args!("xen: {error}")))
            .is_ok()
    }

    /// Signals the peer of a port. A peer that is gone is not an error.
    pub fn notify(&self, port: EvtchnPort) {
        events::signal(port);
    }

    /// A page that the domain builder has put beside the memory for this domain to share with another one, by the
    /// number of its parameter (`HVM_PARAM_*_PFN`, [`crate::abi::hvm`]). Each only once.
    ///
    /// # Errors
    /// Xen's refusal, or that there is none.
    pub fn builder_page(&self, param: u32) -> Result<SharedPage, Refusal> {
        use core::sync::atomic::AtomicU64;
        // There is one more, the console's, which is the runtime's own.
        static TAKEN: AtomicU64 = AtomicU64::new(!(1 << PARAM_STORE_PFN));
        let base = memory::map_special(hypercall::hvm_param(param)?)?;
        let bit = 1_u64.checked_shl(param).unwrap_or(0);
        if bit == 0 || TAKEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Err(Refusal { call: "the builder's page, a second time", code: 0 });
        }
        // SAFETY: (1) mapped just now, for good; (2) `TAKEN` lets this happen only once.
        Ok(unsafe { SharedPage::new(base) })
    }

    /// The frame of such a page.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn builder_frame(&self, param: u32) -> Result<u64, Refusal> {
        hypercall::hvm_param(param)
    }

    /// The port that the domain builder has made for such a page (`HVM_PARAM_*_EVTCHN`).
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn builder_port(&self, param: u32) -> Result<EvtchnPort, Refusal> {
        port_param(param).map(EvtchnPort)
    }

    /// This domain's id, if Xen tells it.
    #[must_use]
    pub fn own_domid(&self) -> Option<DomId> {
        own_domid()
    }

    /// A new port for `peer` to bind to, as a guest makes when its old one is of no use any more.
    ///
    /// # Errors
    /// Xen's refusal.
    pub fn offer_port(&self, peer: DomId) -> Result<EvtchnPort, Refusal> {
        events::offer(peer)
    }

    /// Gives a port of its own up.
    pub fn close_port(&self, port: EvtchnPort) {
        events::close(port);
    }

    /// Bytes of what the domain builder loaded beside the image; 0 if there is none.
    #[must_use]
    pub fn module_size(&self, index: usize) -> usize {
        self.modules.get(index).map_or(0, |module| module.size)
    }

    /// A copy of what the domain builder loaded beside the image; `None` also if there is no memory for it.
    #[must_use]
    pub fn module(&self, index: usize) -> Option<Vec<u8>> {
        let module = self.modules.get(index).filter(|module| module.size > 0)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(module.size).ok()?;
        bytes.resize(module.size, 0);
        memory::copy_physical(module.start as u64, &mut bytes).then_some(bytes)
    }

    /// Masks all ports, the timer's, too: a sleep from here on has no end. For a test of what notices that.
    pub fn mask_all(&self) {
        // Port 0 is nobody's.
        let _before = evtchn::mask_all_but(self.shared, 0);
    }

    /// Mutes a port, or makes it report its news again.
    pub fn mute(&self, port: EvtchnPort, muted: bool) {
        if muted {
            evtchn::mask(self.shared, port.0);
        } else {
            evtchn::unmask(self.shared, port.0);
        }
    }

    /// From now on the PV console's port reports news: something typed, or room for more lines.
    #[must_use]
    pub fn hear_console(&mut self) -> Option<EvtchnPort> {
        let port = console::port()?;
        evtchn::unmask(self.shared, port);
        Some(EvtchnPort(port))
    }

    /// Ends the domain in good order.
    pub fn power_off(self) -> ! {
        power_off()
    }

    /// Prints a line on the PV console.
    pub fn log(&mut self, line: fmt::Arguments<'_>) {
        console::line(line);
    }

    /// The version of Xen, as in `4.17.6`.
    #[must_use]
    pub fn xen_version(&self) -> String {
        let (major, minor) = hypercall::xen_version();
        let mut extra = ExtraVersion::default();
        // Without an answer the text stays empty.
        let _ = hypercall::perform(&mut extra);
        let text = extra.text.split(|&b| b == 0).next().unwrap_or_default();
        alloc::format!("{major}.{minor}{}", String::from_utf8_lossy(text))
    }
}
