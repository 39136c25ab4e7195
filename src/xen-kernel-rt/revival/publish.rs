//! Going on after the domain was shut down: what the guard in dom0 needs for it, and where the image goes on.
//!
//! [`publish`] writes a [`Record`] of how to set the processor so that [`revived`] runs: with this image's page
//! tables, on a stack of the faults. From there on it is a failure like any other ([`restart`](crate::restart)):
//! nothing of what the processor was doing is used.
//!
//! The guard could as well start a fresh copy of the image at its 32-bit entry. But that copy would have to
//! understand a dead heap, or do what this does, and it would need memory that the dead image does not use. The
//! image's own code is mapped read-only, and every other failure relies on its data, too. So every failure tests
//! everything that this relies on.

use super::record::{HELD, NO_DOMID, OFFSET, Record, SIZE, held_word};
use crate::arch::traps as tables;
use crate::{arch, console, handover, restart, start, traps};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Makes this instance the one that is revived, instead of its predecessor. On trial it does nothing, since the
/// predecessor is whole.
pub(crate) fn publish() {
    if handover::TRIAL.load(Ordering::Relaxed) == 0 {
        let bytes = record().to_bytes();
        write(&bytes);
        let words = [false, true].map(|is_held| held_word(&bytes, is_held));
        for (place, word) in WORDS.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        hold_back(true);
        hold_back(false);
    }
}

/// What the page may say: that nothing is left unread on purpose; that something is.
static WORDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Whether it says the latter.
static IS_HELD: AtomicBool = AtomicBool::new(false);

/// Tells the guard whether something that it sees waiting is left unread on purpose.
pub fn hold_back(is_held: bool) {
    if IS_HELD.load(Ordering::Relaxed) == is_held {
        return;
    }
    let word = WORDS[usize::from(is_held)].load(Ordering::Relaxed);
    if console::keep(HELD, &word.to_le_bytes()) {
        IS_HELD.store(is_held, Ordering::Relaxed);
    }
}

/// Withdraws the record: the image that takes over next would not write one.
pub(crate) fn withdraw() {
    write(&[0; SIZE]);
}

fn write(bytes: &[u8; SIZE]) {
    if !console::keep(OFFSET, bytes) {
        console::hypervisor(b"xen: no console page, so dom0 cannot revive this domain\n");
    }
}

fn record() -> Record {
    let [cr0, cr3, cr4, efer] = arch::cpu::control_registers();
    let [gdt, idt, tss] = tables::tables();
    Record {
        domid: start::own_domid().map_or(NO_DOMID, |domid| u64::from(domid.0)),
        rip: (revived as *const ()).addr() as u64,
        // As behind a call.
        rsp: tables::spare_stack() - 8,
        cr0,
        cr3,
        cr4,
        efer,
        gdt,
        idt,
        tss,
        selectors: [tables::CODE_SELECTOR, tables::DATA_SELECTOR, tables::TSS_SELECTOR],
    }
}

/// Where the guard has the processor go on. The reason is Xen's number for the shutdown.
extern "C" fn revived(reason: u64) -> ! {
    tables::load();
    restart::allow();
    traps::report_revival(reason)
}
