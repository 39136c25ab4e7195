//! Lines for people: the PV console's ring, and Xen's own console before that and in an emergency.
//!
//! Nothing here ever waits. A line that finds no room in the ring is dropped and counted, and the next one that
//! fits says how many are missing. The hypervisor's console is slow and shared by the whole host, so it gets only
//! the boot messages and the last words.

use super::abi::{console as abi, event_channel};
use super::shared_page::SharedPage;
use super::traps::{self, Fault};
use crate::arch::cpu;
use crate::hypercall;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use spin::Mutex;

/// Longest line, its end included; what is longer is cut.
const LINE_MAX: usize = 1024;

/// One line being put together.
struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; LINE_MAX], len: 0 }
    }

    /// Formats a line with a carriage return and a newline at its end.
    fn format(&mut self, line: fmt::Arguments<'_>) -> &[u8] {
        self.len = 0;
        // Never fails: what does not fit is dropped.
        let _ = self.write_fmt(line);
        self.bytes[self.len..][..2].copy_from_slice(b"\r\n");
        &self.bytes[..self.len + 2]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_MAX - 2 - self.len;
        let taken = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..][..taken.len()].copy_from_slice(taken);
        self.len += taken.len();
        Ok(())
    }
}

/// The PV console's ring.
struct Ring {
    page: SharedPage,
    port: u32,
}

impl Ring {
    /// Writes all of `text` or nothing; `false` if there is no room.
    fn write(&mut self, text: &[u8]) -> bool {
        let prod = self.page.load_u32(abi::OUT_PROD);
        let used = prod.wrapping_sub(self.page.load_u32(abi::OUT_CONS));
        let room = abi::OUT_SIZE.saturating_sub(used) as usize;
        if text.len() > room {
            return false;
        }
        let offset = (prod % abi::OUT_SIZE) as usize;
        let first = text.len().min(abi::OUT_SIZE as usize - offset);
        self.page.write(abi::OUT + offset, &text[..first]);
        self.page.write(abi::OUT, &text[first..]);
        #[expect(clippy::cast_possible_truncation, reason = "not longer than the ring")]
        self.page.store_u32(abi::OUT_PROD, prod.wrapping_add(text.len() as u32));
        // Without a reader there is nobody to tell, and the line stays in the ring.
        let _ = hypercall::perform(&mut event_channel::Send { port: self.port });
        true
    }

    /// Takes what there is and fits; says how many bytes.
    fn read(&mut self, into: &mut [u8]) -> usize {
        let cons = self.page.load_u32(abi::IN_CONS);
        let available = self.page.load_u32(abi::IN_PROD).wrapping_sub(cons).min(abi::IN_SIZE);
        let len = into.len().min(available as usize);
        let offset = (cons % abi::IN_SIZE) as usize;
        let (first, second) = into[..len].split_at_mut(len.min(abi::IN_SIZE as usize - offset));
        self.page.read(abi::IN + offset, first);
        self.page.read(abi::IN, second);
        #[expect(clippy::cast_possible_truncation, reason = "not longer than the ring")]
        self.page.store_u32(abi::IN_CONS, cons.wrapping_add(len as u32));
        if len > 0 {
            // Whoever types may be waiting for room.
            let _ = hypercall::perform(&mut event_channel::Send { port: self.port });
        }
        len
    }
}

/// The console of the domain.
struct Console {
    ring: Option<Ring>,
    line: Line,
    lost: u32,
}

impl Console {
    /// Prints a line on the ring.
    fn print(&mut self, line: fmt::Arguments<'_>) {
        let Some(ring) = &mut self.ring else { return };
        if self.lost > 0 && ring.write(self.line.format(format_args!("[{} lines lost]", self.lost)))
        {
            self.lost = 0;
        }
        if !ring.write(self.line.format(line)) {
            self.lost = self.lost.saturating_add(1);
        }
    }
}

static CONSOLE: Mutex<Console> = Mutex::new(Console { ring: None, line: Line::new(), lost: 0 });

/// Opens the PV console.
pub(crate) fn attach(page: SharedPage, port: u32) {
    CONSOLE.lock().ring = Some(Ring { page, port });
}

/// Prints a line on the PV console. A line that is printed while another one is being printed is dropped: with one
/// vCPU, waiting for the lock would never end.
pub fn line(line: fmt::Arguments<'_>) {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.print(line);
    }
}

/// Prints a line on the PV console, or returns `false` if there is no room for it now.
pub fn try_line(line: fmt::Arguments<'_>) -> bool {
    CONSOLE.try_lock().is_some_and(|mut console| {
        let Console { ring, line: place, .. } = &mut *console;
        ring.as_mut().is_none_or(|ring| ring.write(place.format(line)))
    })
}

/// Takes as much of what somebody has typed as fits; returns how many bytes.
pub fn read(into: &mut [u8]) -> usize {
    CONSOLE.try_lock().map_or(0, |mut console| console.ring.as_mut().map_or(0, |r| r.read(into)))
}

/// Writes bytes for dom0 into the ring's page, outside the ring. `false` if there is no page, or somebody is
/// writing a line.
#[must_use]
pub fn keep(offset: usize, bytes: &[u8]) -> bool {
    if offset < abi::RING_END {
        return false;
    }
    let Some(mut console) = CONSOLE.try_lock() else { return false };
    let Some(ring) = &mut console.ring else { return false };
    ring.page.write(offset, bytes);
    true
}

/// A word that stands in the ring's page, outside the ring; `None` as for [`keep`].
#[must_use]
pub fn kept(offset: usize) -> Option<u64> {
    let console = CONSOLE.try_lock()?;
    let mut word = [0; 8];
    console.ring.as_ref()?.page.read(offset, &mut word);
    Some(u64::from_le_bytes(word))
}

/// Fails in the middle of a line, for a test of the way back.
pub fn fail_in_line(fault: Fault) -> ! {
    let _held = CONSOLE.lock();
    traps::provoke(fault)
}

/// The port of the PV console.
pub(crate) fn port() -> Option<u32> {
    CONSOLE.try_lock()?.ring.as_ref().map(|ring| ring.port)
}

/// Prints a line on the PV console and on the hypervisor's.
pub fn both(line: fmt::Arguments<'_>) {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.print(line);
        hypervisor(console.line.format(line));
    }
}

/// Prints a line on both consoles, whatever was going on.
pub(crate) fn emergency(line: fmt::Arguments<'_>) {
    hypervisor(Line::new().format(line));
    // A fault in the middle of a line leaves the lock taken; then the ring is no place to write to.
    if let Some(mut console) = CONSOLE.try_lock() {
        console.print(line);
    }
}

/// Xen's debug port (`XEN_HVM_DEBUGCONS_IOPORT`): every HVM and PVH domain may print there, a byte
/// at a time; Xen shows the lines with `guest_loglvl=all`.
const DEBUG_PORT: u16 = 0xe9;

/// Which way to the hypervisor's console works: 0 not tried, 1 the hypercall, 2 the port.
static WAY: AtomicU8 = AtomicU8::new(0);

/// Writes to the hypervisor's console. A release build of Xen reserves the hypercall for the
/// domain that owns the console; the port is open to all.
pub(crate) fn hypervisor(text: &[u8]) {
    if WAY.load(Ordering::Relaxed) != 2 {
        if hypercall::console_write(text) {
            WAY.store(1, Ordering::Relaxed);
            return;
        }
        WAY.store(2, Ordering::Relaxed);
    }
    for &byte in text {
        if byte != b'\r' {
            // SAFETY: Xen's handler of this port collects a line and touches no memory of ours.
            unsafe { cpu::out_byte(DEBUG_PORT, byte) };
        }
    }
}
