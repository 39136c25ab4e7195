//! Events: which ports have news.
//!
//! The two-level form (`xen/include/public/event_channel.h` and `struct shared_info`): a selector word,
//! one bit per word of the pending bitmap, one bit per port in that, 4096 ports in all. Finding
//! the next port costs the same however many there are.
//!
//! Xen sets a port's bit, then the selector's, then `evtchn_upcall_pending`; taking the three in
//! the opposite order loses nothing, and at worst finds a port early or a selector bit without news.

use crate::abi::xen::SharedInfo;
use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of the selector word that an interrupt has taken away (`boot/traps.S`), for the next [`Scan`].
pub(crate) static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Ports that the two-level form can have.
pub const PORTS: u32 = 4096;

/// A walk over the pending ports.
///
/// What it has taken off the shared page waits here, so a port that signals again and again comes
/// around only after all others of that round.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Words of the bitmap still to be looked at in this round.
    selector: u64,
    /// The word being worked on,
    word: u32,
    /// and its bits that have not been reported.
    bits: u64,
}

impl Scan {
    /// The next port with news; its pending bit is clear from here on.
    pub(crate) fn next(&mut self, info: &SharedInfo) -> Option<u32> {
        loop {
            if let Some(bit) = take_lowest(&mut self.bits) {
                return Some(self.word * u64::BITS + bit);
            }
            if let Some(word) = take_lowest(&mut self.selector) {
                self.open_word(info, word);
                continue;
            }
            let vcpu = &info.vcpu_info[0];
            vcpu.evtchn_upcall_pending.store(0, Ordering::SeqCst);
            self.selector = vcpu.evtchn_pending_sel.swap(0, Ordering::SeqCst);
            if TAKEN.load(Ordering::Relaxed) != 0 {
                self.selector |= TAKEN.swap(0, Ordering::Relaxed);
            }
            if self.selector == 0 {
                return None;
            }
        }
    }

    /// Whether anything is left to report of what was taken off the shared page.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.bits == 0 && self.selector == 0
    }

    /// Takes the unmasked news of one word.
    fn open_word(&mut self, info: &SharedInfo, word: u32) {
        let index = word as usize;
        let mask = info.evtchn_mask[index].load(Ordering::SeqCst);
        self.bits = info.evtchn_pending[index].fetch_and(mask, Ordering::SeqCst) & !mask;
        self.word = word;
    }
}

/// Sets or clears the mask bit of a port. A masked port reports no news.
pub(crate) fn mask(info: &SharedInfo, port: u32) {
    if let Some(word) = info.evtchn_mask.get((port / u64::BITS) as usize) {
        word.fetch_or(1 << (port % u64::BITS), Ordering::SeqCst);
    }
}

/// Undoes [`mask`]. Earlier news is dropped, so check once afterwards what the port stands for.
pub(crate) fn unmask(info: &SharedInfo, port: u32) {
    let (word, bit) = ((port / u64::BITS) as usize, 1 << (port % u64::BITS));
    if let (Some(mask), Some(pending)) = (info.evtchn_mask.get(word), info.evtchn_pending.get(word))
    {
        mask.fetch_and(!bit, Ordering::SeqCst);
        // Xen signals a port only if it is not pending, so a bit that nobody was told of would stay for ever.
        pending.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// Takes the news of one port away.
pub(crate) fn forget(info: &SharedInfo, port: u32) {
    if let Some(word) = info.evtchn_pending.get((port / u64::BITS) as usize) {
        word.fetch_and(!(1 << (port % u64::BITS)), Ordering::SeqCst);
    }
}

/// Whether some port may have news that no [`Scan`] has taken.
#[must_use]
pub(crate) fn has_news(info: &SharedInfo) -> bool {
    let here = info.vcpu_info[0].evtchn_pending_sel.load(Ordering::SeqCst);
    here | TAKEN.load(Ordering::Relaxed) != 0
}

/// The mask bits of all ports.
pub(crate) type Masks = [u64; (PORTS / u64::BITS) as usize];

/// Masks all ports but one, and drops what that one has pending; returns the masks from before. What
/// comes meanwhile stays pending.
pub(crate) fn mask_all_but(info: &SharedInfo, port: u32) -> Masks {
    let mut masks = [0; (PORTS / u64::BITS) as usize];
    for (saved, word) in masks.iter_mut().zip(&info.evtchn_mask) {
        *saved = word.swap(u64::MAX, Ordering::SeqCst);
    }
    unmask(info, port);
    info.vcpu_info[0].evtchn_pending_sel.store(0, Ordering::SeqCst);
    info.vcpu_info[0].evtchn_upcall_pending.store(0, Ordering::SeqCst);
    masks
}

/// Restores masks and has the next scan look at everything. Until then nothing sleeps: Xen signals no port whose
/// selector bit is set already.
pub(crate) fn set_masks(info: &SharedInfo, masks: &Masks) {
    for (saved, word) in masks.iter().zip(&info.evtchn_mask) {
        word.store(*saved, Ordering::SeqCst);
    }
    info.vcpu_info[0].evtchn_pending_sel.store(u64::MAX, Ordering::SeqCst);
    info.vcpu_info[0].evtchn_upcall_pending.store(1, Ordering::SeqCst);
}

/// Removes the lowest set bit of a word and returns its number.
fn take_lowest(word: &mut u64) -> Option<u32> {
    let bit = word.trailing_zeros();
    *word &= word.checked_sub(1)?;
    Some(bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::mem::MaybeUninit;

    fn shared_info() -> SharedInfo {
        // SAFETY: all fields are integers, for which zero bytes are a value.
        unsafe { MaybeUninit::<SharedInfo>::zeroed().assume_init() }
    }

    /// What Xen does.
    fn signal(info: &SharedInfo, port: u32) {
        let (word, bit) = ((port / 64) as usize, 1 << (port % 64));
        info.evtchn_pending[word].fetch_or(bit, Ordering::SeqCst);
        if info.evtchn_mask[word].load(Ordering::SeqCst) & bit == 0 {
            info.vcpu_info[0].evtchn_pending_sel.fetch_or(1 << word, Ordering::SeqCst);
            info.vcpu_info[0].evtchn_upcall_pending.store(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn every_port_is_reported_once() {
        let info = shared_info();
        let mut scan = Scan::default();
        assert_eq!(scan.next(&info), None);
        let ports: Vec<u32> = (0..PORTS).step_by(7).collect();
        ports.iter().for_each(|&p| signal(&info, p));
        let got: Vec<u32> = core::iter::from_fn(|| scan.next(&info)).collect();
        assert!(got == ports && got.ends_with(&[PORTS - 1]));
        assert!(info.evtchn_pending.iter().all(|w| w.load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn a_port_that_keeps_signalling_does_not_keep_others_waiting() {
        let info = shared_info();
        let mut scan = Scan::default();
        [1, 2, 900].iter().for_each(|&p| signal(&info, p));
        let mut got = Vec::new();
        for _ in 0..4 {
            got.extend(scan.next(&info));
            signal(&info, 1);
        }
        assert_eq!(got, [1, 2, 900, 1]);
        assert!(scan.next(&info) == Some(1) && scan.is_empty());
    }

    #[test]
    fn a_masked_port_keeps_quiet() {
        let info = shared_info();
        let mut scan = Scan::default();
        mask(&info, 65);
        mask(&info, PORTS + 1);
        signal(&info, 65);
        signal(&info, 66);
        assert_eq!((scan.next(&info), scan.next(&info)), (Some(66), None));
        assert_eq!(info.evtchn_pending[1].load(Ordering::SeqCst), 2);
        unmask(&info, 65);
        signal(&info, 65);
        assert_eq!((scan.next(&info), scan.next(&info)), (Some(65), None));
    }
}
