//! What a running image publishes so that the guard can revive it: a processor state in which the server goes on.
//!
//! A domain that Xen has shut down (a triple fault, its watchdog, a shutdown by the image itself) keeps its
//! memory, ports and grants. So the guard, a program in dom0, needs only a processor state in which the image's
//! own way back (`restart`) begins.
//!
//! The image writes that state down when it begins to serve: the [`Record`], at [`OFFSET`] of the page with the
//! ring of its PV console. Every such domain has that page, Xen tells where it is, and the image never gives it
//! back or hands it over. The ring itself ends at byte 3,088 of the page, and a few bytes later in newer releases
//! (`xen/include/public/io/console.h`).
//!
//! The record belongs to the instance that serves. While a new image is on trial, it is still the old one's, whose
//! memory is whole until then. The new image writes its own when it commits.
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 8 | `XSrevive` |
//! | 8 | 8 | layout: 1 |
//! | 16 | 8 | domid of the domain, all ones where Xen does not tell it |
//! | 24 | 8 | where the processor goes on (rip), with the reason of the shutdown in rdi |
//! | 32 | 8 | its stack (rsp) |
//! | 40 | 24 | cr0, cr3, cr4 |
//! | 64 | 8 | EFER |
//! | 72 | 16 | the GDT: base, limit |
//! | 88 | 16 | the IDT: base, limit |
//! | 104 | 16 | the task state segment: base, limit |
//! | 120 | 8 | selectors of the code segment (bits 15:0), data segments (31:16) and task state segment (47:32) |
//! | 128 | 8 | digest of the 128 bytes before |
//! | 136 | 8 | how often the guard has tried to revive this instance; the image writes 0 |
//!
//! At [`HELD`] there is one more word: the digest of this record with its lowest bit cleared; or set, if the program leaves
//! unread on purpose what a watcher sees waiting for it. With it the guard can tell a program that is silent from one that
//! waits. A word that belongs to no record says nothing.

use crate::digest::Digest;
use core::fmt;

/// Where the record begins in the page of the console's ring.
pub const OFFSET: usize = 3584;
/// Its bytes.
pub const SIZE: usize = 144;
/// Where the count of tries stands in it, 8 bytes.
pub const TRIES: usize = 136;

/// Where the word stands in the console's page that says whether something is left unread on purpose: the last one.
pub const HELD: usize = 4088;

/// The word at [`HELD`] of an instance that has published these bytes.
#[must_use]
pub fn held_word(record: &[u8; SIZE], is_held: bool) -> u64 {
    digest_in(record) & !1 | u64::from(is_held)
}

/// What the word at [`HELD`] says of the instance that has published these bytes; `None` if it is another one's.
#[must_use]
pub fn is_held(record: &[u8; SIZE], word: u64) -> Option<bool> {
    (word & !1 == digest_in(record) & !1).then_some(word & 1 != 0)
}

/// The digest as it stands in a record.
fn digest_in(record: &[u8; SIZE]) -> u64 {
    let (words, _) = record.as_chunks::<8>();
    words.get(WORDS).map_or(0, |word| u64::from_le_bytes(*word))
}

const MAGIC: u64 = u64::from_le_bytes(*b"XSrevive");
const LAYOUT: u64 = 1;
/// No domid.
pub const NO_DOMID: u64 = u64::MAX;

/// Words under the digest.
const WORDS: usize = 16;

/// The lowest address of the upper half of virtual memory, where an image is linked.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
const PAGE_MASK: u64 = 4095;
/// PE and PG of cr0; PAE of cr4; LME and LMA of EFER: 64-bit code with paging (Intel SDM volume 3, chapter 4.1).
const CR0_NEEDED: u64 = 0x8000_0001;
const CR4_NEEDED: u64 = 0x20;
const EFER_NEEDED: u64 = 0x500;

/// A table of the processor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Table {
    /// Its virtual address.
    pub base: u64,
    /// Its last byte.
    pub limit: u64,
}

/// The state in which the processor goes on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "registers have their names")]
pub struct Record {
    /// The domain, or [`NO_DOMID`].
    pub domid: u64,
    pub rip: u64,
    pub rsp: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt: Table,
    pub idt: Table,
    pub tss: Table,
    /// Code, data, task state segment.
    pub selectors: [u16; 3],
}

/// Why a record is not to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// There is none.
    Nothing,
    /// One of another layout.
    Layout(u64),
    /// Its digest differs.
    Damaged,
    /// It speaks of another domain.
    OtherDomain(u64),
    /// A field that cannot be.
    Field(&'static str),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(
                "its image has not said how to go on: another kind of image, or it was not yet serving",
            ),
            Self::Layout(layout) => {
                write!(f, "its image says how to go on in layout {layout}, which is not known here")
            }
            Self::Damaged => f.write_str("what its image has said of how to go on is damaged"),
            Self::OtherDomain(domid) => write!(f, "its image calls itself domain {domid}"),
            Self::Field(field) => write!(f, "its image names a {field} that cannot be"),
        }
    }
}

impl Record {
    /// The record as it stands in the page, with no try counted.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let [code, data, tss] = self.selectors.map(u64::from);
        let words: [u64; WORDS] = [
            MAGIC,
            LAYOUT,
            self.domid,
            self.rip,
            self.rsp,
            self.cr0,
            self.cr3,
            self.cr4,
            self.efer,
            self.gdt.base,
            self.gdt.limit,
            self.idt.base,
            self.idt.limit,
            self.tss.base,
            self.tss.limit,
            code | data << 16 | tss << 32,
        ];
        let mut bytes = [0; SIZE];
        let (places, _) = bytes.as_chunks_mut::<8>();
        let mut digest = Digest::default();
        for (place, word) in places.iter_mut().zip(words) {
            *place = word.to_le_bytes();
            digest.add(place);
        }
        if let Some(place) = places.get_mut(WORDS) {
            *place = digest.finish().to_le_bytes();
        }
        bytes
    }

    /// Reads a record, and checks every field of it.
    ///
    /// # Errors
    /// Why it is of no use for this domain.
    pub fn from_bytes(bytes: &[u8; SIZE], domid: u16) -> Result<Self, Unusable> {
        let (places, _) = bytes.as_chunks::<8>();
        let mut words = places.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        if next() != MAGIC {
            return Err(Unusable::Nothing);
        }
        match next() {
            LAYOUT => {}
            other => return Err(Unusable::Layout(other)),
        }
        let [own, rip, rsp, cr0, cr3, cr4, efer] = core::array::from_fn(|_| next());
        let [gdt, idt, tss] = core::array::from_fn(|_| Table { base: next(), limit: next() });
        let [c, d, e, f, g, h, _, _] = next().to_le_bytes();
        let selectors = [[c, d], [e, f], [g, h]].map(u16::from_le_bytes);
        let record = Self { domid: own, rip, rsp, cr0, cr3, cr4, efer, gdt, idt, tss, selectors };
        // With it goes whatever the fields do not keep.
        if record.to_bytes().get(..TRIES) != bytes.get(..TRIES) {
            return Err(Unusable::Damaged);
        }
        record.check(domid).map(|()| record)
    }

    fn check(&self, domid: u16) -> Result<(), Unusable> {
        if self.domid != NO_DOMID && self.domid != u64::from(domid) {
            return Err(Unusable::OtherDomain(self.domid));
        }
        let needed = [
            ("place to go on at", self.rip >= UPPER_HALF),
            ("stack", self.rsp > UPPER_HALF),
            ("cr0", self.cr0 & CR0_NEEDED == CR0_NEEDED && self.cr0 >> 32 == 0),
            ("page table", self.cr3 != 0 && self.cr3 & PAGE_MASK == 0),
            ("cr4", self.cr4 & CR4_NEEDED == CR4_NEEDED && self.cr4 >> 32 == 0),
            ("EFER", self.efer & EFER_NEEDED == EFER_NEEDED && self.efer >> 32 == 0),
            ("GDT", self.gdt.is_possible()),
            ("IDT", self.idt.is_possible()),
            ("task state segment", self.tss.is_possible()),
            ("selector", self.selectors.iter().all(|s| *s != 0 && s & 7 == 0)),
        ];
        match needed.iter().find(|(_, is_right)| !is_right) {
            Some((field, _)) => Err(Unusable::Field(field)),
            None => Ok(()),
        }
    }
}

impl Table {
    fn is_possible(self) -> bool {
        self.base >= UPPER_HALF && self.limit > 0 && self.limit <= 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let table = |n: u64| Table { base: 0xffff_ffff_8001_0000 + n, limit: 0x27 };
        Record {
            domid: 1,
            rip: 0xffff_ffff_8000_1234,
            rsp: 0xffff_ffff_8002_0ff8,
            cr0: 0x8001_0011,
            cr3: 0x3000,
            cr4: 0x20,
            efer: 0xd00,
            gdt: table(0),
            idt: table(0x100),
            tss: table(0x400),
            selectors: [8, 16, 24],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_tries_are_not_part_of_it() {
        let mut bytes = record().to_bytes();
        assert_eq!(Record::from_bytes(&bytes, 1), Ok(record()));
        bytes[TRIES] = 3;
        assert_eq!(Record::from_bytes(&bytes, 1), Ok(record()));
        assert_eq!(Record::from_bytes(&bytes, 2), Err(Unusable::OtherDomain(1)));
        let nameless = Record { domid: NO_DOMID, ..record() };
        assert_eq!(Record::from_bytes(&nameless.to_bytes(), 2), Ok(nameless));
    }

    #[test]
    fn what_is_held_back_is_told_by_the_instance_that_serves() {
        let bytes = record().to_bytes();
        for held in [false, true] {
            assert_eq!(is_held(&bytes, held_word(&bytes, held)), Some(held));
        }
        let other = Record { cr3: 0x5000, ..record() }.to_bytes();
        assert_eq!(is_held(&other, held_word(&bytes, false)), None);
        assert_eq!(is_held(&bytes, 0), None);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = record().to_bytes();
        for bit in 0..TRIES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::from_bytes(&damaged, 1).is_err(), "bit {bit}");
        }
        assert_eq!(Record::from_bytes(&[0; SIZE], 1), Err(Unusable::Nothing));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_right_digest_too() {
        type Change = fn(&mut Record);
        let bad: [(&str, Change); 11] = [
            ("place to go on at", |r| r.rip = 0x1000),
            ("stack", |r| r.rsp = 0),
            ("cr0", |r| r.cr0 = 0x11),
            ("page table", |r| r.cr3 = 0x3001),
            ("page table", |r| r.cr3 = 0),
            ("cr4", |r| r.cr4 = 0),
            ("EFER", |r| r.efer = 0x100),
            ("GDT", |r| r.gdt.limit = 0),
            ("IDT", |r| r.idt.base = 0x1000),
            ("task state segment", |r| r.tss.limit = 0x1_0000),
            ("selector", |r| r.selectors[1] = 0),
        ];
        for (field, change) in bad {
            let mut record = record();
            change(&mut record);
            assert_eq!(Record::from_bytes(&record.to_bytes(), 1), Err(Unusable::Field(field)));
        }
        let mut other = record().to_bytes();
        other[8] = 9;
        assert_eq!(Record::from_bytes(&other, 1), Err(Unusable::Layout(9)));
    }
}
