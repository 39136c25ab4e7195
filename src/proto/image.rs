//! Images that can take over: what an ELF file must be before a single byte of it is loaded.
//!
//! The file comes from the administrator, but by way of a tool, a network and a package. So everything is checked
//! against the file's own length and the size of a slot. An error is a sentence that says what is wrong and what
//! to do. Sources: "Tool Interface Standard, ELF 1.2" and the AMD64 supplement for the layout; Xen's
//! `xen/include/public/elfnote.h` for the note with the entry address.

use core::fmt;
use core::ops::{Range, RangeInclusive};
use xen_kernel_rt::slot::BRIDGE_LAYOUT;
pub use xen_kernel_rt::slot::{SLOT_SIZE, Segment};

const SLOT_MASK: u64 = SLOT_SIZE as u64 - 1;

/// The owner of our own note, and its one type: two words, the lowest and the highest handover version that the
/// image understands.
pub const NOTE_NAME: &[u8; 17] = b"xenstore-stubdom\0";
/// The type of that note.
pub const NOTE_HANDOVER: u32 = 1;

/// The note as it stands in an image.
#[derive(Debug)]
#[repr(C)]
pub struct HandoverNote {
    name_len: u32,
    len: u32,
    kind: u32,
    /// Padded to a multiple of 4.
    name: [u8; 20],
    versions: [u32; 2],
    /// The highest layout of the bridge. Images from the time of layout 1 do not have the word.
    bridge_layout: u32,
}

impl HandoverNote {
    /// What this version understands.
    pub const OURS: Self = Self {
        name_len: 17,
        len: 12,
        kind: NOTE_HANDOVER,
        name: *b"xenstore-stubdom\0\0\0\0",
        versions: [*super::handover::HANDOVER.start(), *super::handover::HANDOVER.end()],
        bridge_layout: BRIDGE_LAYOUT,
    };
}
const _: () = assert!(NOTE_NAME.len() == 17 && size_of::<HandoverNote>() == 44);

/// Xen's note with the physical address of the 32-bit entry (`XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN_PHYS32_ENTRY: u32 = 18;

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;

/// The most program headers that are read; our own images have four.
const HEADERS_MAX: u16 = 16;

/// Notes that are looked at in each segment of notes.
const NOTES_MAX: usize = 64;

/// Why a file cannot take over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// It does not start as an ELF file does.
    NotElf,
    /// An ELF file for another processor, word size or byte order.
    WrongMachine,
    /// A part that the headers promise lies behind its end.
    Truncated,
    /// Its segments overlap, are out of order, or do not fit one slot.
    BadSegments,
    /// No note with an entry address: it does not boot as a PVH domain.
    NoPvhNote,
    /// The entry address lies outside its code.
    BadEntry,
    /// It has none of our own notes: it may be a fine kernel, but it does not know what to do with a hand-over.
    NoHandoverNote,
    /// It understands other handover versions only.
    OtherVersions {
        /// Those that it understands, from the first to the last.
        theirs: (u32, u32),
        /// Those that this server writes.
        ours: (u32, u32),
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("the file is not an ELF image"),
            Self::WrongMachine => f.write_str("the image is not for x86-64"),
            Self::Truncated => {
                f.write_str("the image is cut off: what its headers promise lies behind its end")
            }
            Self::BadSegments => write!(
                f,
                "the image does not fit: its segments must lie in order within {} KiB from a multiple of that",
                SLOT_SIZE / 1024
            ),
            Self::NoPvhNote => f.write_str("the image has no PVH entry note"),
            Self::BadEntry => f.write_str("the image's entry address lies outside its code"),
            Self::NoHandoverNote => f.write_str(
                "the image is no xenstore-stubdom: it has no note that says which hand-overs it understands",
            ),
            Self::OtherVersions { theirs, ours } => write!(
                f,
                "the image understands handover versions {} to {}, this server writes {} to {}: update by \
                 way of a version in between",
                theirs.0, theirs.1, ours.0, ours.1
            ),
        }
    }
}

/// A checked image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    file: &'a [u8],
    headers: &'a [u8],
    /// The physical address that it is linked at.
    base: u64,
    /// Bytes from there to its end in memory.
    size: usize,
    /// Offset of the 32-bit entry from `base`.
    entry: usize,
    versions: (u32, u32),
    bridge_layout: u32,
}

/// A program header.
#[derive(Clone, Copy, Debug)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_le_bytes(*word))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

impl ProgramHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32_at(bytes, 0)?,
            flags: u32_at(bytes, 4)?,
            offset: u64_at(bytes, 8)?,
            paddr: u64_at(bytes, 24)?,
            file_size: u64_at(bytes, 32)?,
            memory_size: u64_at(bytes, 40)?,
        })
    }

    fn bytes(self, file: &[u8]) -> Option<&[u8]> {
        let start = usize::try_from(self.offset).ok()?;
        let end = start.checked_add(usize::try_from(self.file_size).ok()?)?;
        file.get(start..end)
    }

    /// Its place in the slot of an image that is linked at `base`.
    fn place(self, base: u64) -> Option<Range<usize>> {
        let start = usize::try_from(self.paddr.checked_sub(base)?).ok()?;
        let end = start.checked_add(usize::try_from(self.memory_size).ok()?)?;
        (end <= SLOT_SIZE && self.file_size <= self.memory_size).then_some(start..end)
    }
}

fn program_headers(headers: &[u8]) -> impl Iterator<Item = ProgramHeader> {
    headers.chunks_exact(PROGRAM_HEADER).filter_map(ProgramHeader::read)
}

fn segments(headers: &[u8]) -> impl Iterator<Item = ProgramHeader> {
    program_headers(headers).filter(|header| header.kind == PT_LOAD && header.memory_size > 0)
}

impl<'a> Image<'a> {
    /// Checks a file.
    ///
    /// # Errors
    /// What is wrong with it. That it understands the versions written here is checked by
    /// [`check_versions`](Self::check_versions).
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let headers = program_header_table(file)?;
        let first = segments(headers).next().ok_or(ImageError::BadSegments)?;
        let base = first.paddr;
        if base & SLOT_MASK != 0 {
            return Err(ImageError::BadSegments);
        }
        let mut size = 0;
        for header in segments(headers) {
            header.bytes(file).ok_or(ImageError::Truncated)?;
            let place = header.place(base).ok_or(ImageError::BadSegments)?;
            if place.start < size {
                return Err(ImageError::BadSegments);
            }
            size = place.end;
        }
        let entry = xen_entry(file, headers)?.ok_or(ImageError::NoPvhNote)?;
        let is_code = |header: ProgramHeader| {
            let end = header.paddr.saturating_add(header.file_size);
            header.flags & PF_X != 0 && (header.paddr..end).contains(&entry)
        };
        if !segments(headers).any(is_code) {
            return Err(ImageError::BadEntry);
        }
        let entry = usize::try_from(entry.wrapping_sub(base)).map_err(|_| ImageError::BadEntry)?;
        let (versions, bridge_layout) =
            handover_versions(file, headers)?.ok_or(ImageError::NoHandoverNote)?;
        Ok(Self { file, headers, base, size, entry, versions, bridge_layout })
    }

    /// The highest handover version of `ours` that the image understands.
    ///
    /// # Errors
    /// That there is none.
    pub fn check_versions(&self, ours: RangeInclusive<u32>) -> Result<u32, ImageError> {
        let (lowest, highest) = self.versions;
        let best = highest.min(*ours.end());
        if best < lowest || best < *ours.start() {
            let ours = (*ours.start(), *ours.end());
            return Err(ImageError::OtherVersions { theirs: self.versions, ours });
        }
        Ok(best)
    }

    /// The highest layout of the bridge that the image knows.
    #[must_use]
    pub fn bridge_layout(&self) -> u32 {
        self.bridge_layout
    }

    /// Bytes that it takes in memory, from the start of its slot.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Offset of the 32-bit entry from the start of its slot.
    #[must_use]
    pub fn entry(&self) -> usize {
        self.entry
    }

    /// What has to be loaded; all else in the slot is zero.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> {
        segments(self.headers).filter_map(|header| {
            let offset = header.place(self.base)?.start;
            Some(Segment { offset, bytes: header.bytes(self.file)? })
        })
    }
}

/// Checks the header and returns the table of program headers.
fn program_header_table(file: &[u8]) -> Result<&[u8], ImageError> {
    const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
    if !file.starts_with(b"\x7fELF") {
        return Err(ImageError::NotElf);
    }
    let header = file.get(..ELF_HEADER).ok_or(ImageError::Truncated)?;
    if header.get(4..6) != Some(&CLASS_64_LITTLE_ENDIAN)
        || u16_at(header, 18) != Some(MACHINE_X86_64)
    {
        return Err(ImageError::WrongMachine);
    }
    let (Some(offset), Some(entry_size), Some(count)) =
        (u64_at(header, 32), u16_at(header, 54), u16_at(header, 56))
    else {
        return Err(ImageError::Truncated);
    };
    if usize::from(entry_size) != PROGRAM_HEADER || count > HEADERS_MAX {
        return Err(ImageError::BadSegments);
    }
    let start = usize::try_from(offset).map_err(|_| ImageError::Truncated)?;
    let len = usize::from(count).saturating_mul(PROGRAM_HEADER);
    let end = start.checked_add(len).ok_or(ImageError::Truncated)?;
    file.get(start..end).ok_or(ImageError::Truncated)
}

/// The descriptor of the first note with this owner and type.
fn note<'a>(
    file: &'a [u8],
    headers: &[u8],
    owner: &[u8],
    kind: u32,
) -> Result<Option<&'a [u8]>, ImageError> {
    for header in program_headers(headers).filter(|header| header.kind == PT_NOTE) {
        let mut rest = header.bytes(file).ok_or(ImageError::Truncated)?;
        for _ in 0..NOTES_MAX {
            let Some(note) = first_note(rest) else { break };
            if note.owner == owner && note.kind == kind {
                return Ok(Some(note.descriptor));
            }
            rest = note.rest;
        }
    }
    Ok(None)
}

/// A note of a segment.
struct Note<'a> {
    /// With the closing zero.
    owner: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
    /// What follows.
    rest: &'a [u8],
}

/// The first of some notes.
fn first_note(notes: &[u8]) -> Option<Note<'_>> {
    const HEADER: usize = 12;
    let [name_len, len] = [u32_at(notes, 0)?, u32_at(notes, 4)?];
    let [name_len, len] = [usize::try_from(name_len).ok()?, usize::try_from(len).ok()?];
    let owner = notes.get(HEADER..)?.get(..name_len)?;
    let start = HEADER.checked_add(name_len.checked_next_multiple_of(4)?)?;
    let descriptor = notes.get(start..)?.get(..len)?;
    let end = start.checked_add(len.checked_next_multiple_of(4)?)?;
    let rest = notes.get(end..).unwrap_or(&[]);
    Some(Note { owner, kind: u32_at(notes, 8)?, descriptor, rest })
}

/// The physical entry address, which the note has in 4 or 8 bytes.
fn xen_entry(file: &[u8], headers: &[u8]) -> Result<Option<u64>, ImageError> {
    let note = note(file, headers, b"Xen\0", XEN_PHYS32_ENTRY)?;
    Ok(note.and_then(|note| u64_at(note, 0).or_else(|| u32_at(note, 0).map(u64::from))))
}

/// The versions of the private part, and the layout of the bridge.
type Versions = ((u32, u32), u32);

fn handover_versions(file: &[u8], headers: &[u8]) -> Result<Option<Versions>, ImageError> {
    let note = note(file, headers, NOTE_NAME, NOTE_HANDOVER)?;
    Ok(note.and_then(|note| {
        let versions = (u32_at(note, 0)?, u32_at(note, 4)?);
        Some((versions, u32_at(note, 8).unwrap_or(1)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// The smallest file that passes: one segment of code with the notes in it.
    fn image() -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..][..bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(18, &62_u16.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        let mut header = |at: usize, kind: u32, offset: u64, paddr: u64, sizes: [u64; 2]| {
            put(at, &kind.to_le_bytes());
            put(at + 4, &5_u32.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 24, &paddr.to_le_bytes());
            put(at + 32, &sizes[0].to_le_bytes());
            put(at + 40, &sizes[1].to_le_bytes());
        };
        header(64, PT_LOAD, 0x200, 0x20_0000, [0x100, 0x2000]);
        header(120, PT_NOTE, 0x240, 0x20_0040, [20 + 40, 20 + 40]);
        let mut put = |at: usize, bytes: &[u8]| file[at..][..bytes.len()].copy_from_slice(bytes);
        for (at, word) in [(0, 4_u32), (4, 4), (8, 18)] {
            put(0x240 + at, &word.to_le_bytes());
        }
        put(0x24c, b"Xen\0");
        put(0x250, &0x20_0010_u32.to_le_bytes());
        for (at, word) in [(0, 17_u32), (4, 8), (8, 1)] {
            put(0x254 + at, &word.to_le_bytes());
        }
        put(0x260, NOTE_NAME);
        put(0x274, &2_u32.to_le_bytes());
        put(0x278, &4_u32.to_le_bytes());
        file
    }

    fn error(change: impl FnOnce(&mut Vec<u8>)) -> ImageError {
        let mut file = image();
        change(&mut file);
        Image::parse(&file).unwrap_err()
    }

    #[test]
    fn a_good_image() {
        let file = image();
        let image = Image::parse(&file).unwrap();
        assert_eq!((image.size(), image.entry()), (0x2000, 0x10));
        let segments: Vec<_> = image.segments().collect();
        assert_eq!(segments, [Segment { offset: 0, bytes: &file[0x200..0x300] }]);
        assert_eq!(image.check_versions(1..=3), Ok(3));
        assert_eq!(image.check_versions(4..=9), Ok(4));
        for ours in [1..=1, 5..=9] {
            let pair = (*ours.start(), *ours.end());
            let other = ImageError::OtherVersions { theirs: (2, 4), ours: pair };
            assert_eq!(image.check_versions(ours), Err(other));
        }
    }

    #[test]
    fn what_is_something_else_is_told_apart() {
        assert_eq!(error(|file| file[0] = b'#'), ImageError::NotElf);
        assert_eq!(error(|file| file.truncate(3)), ImageError::NotElf);
        assert_eq!(error(|file| file.truncate(30)), ImageError::Truncated);
        assert_eq!(error(|file| file.truncate(0x220)), ImageError::Truncated);
        assert_eq!(error(|file| file[4] = 1), ImageError::WrongMachine);
        assert_eq!(error(|file| file[18] = 183), ImageError::WrongMachine);
        assert_eq!(error(|file| file[56] = 0), ImageError::BadSegments);
        assert_eq!(error(|file| file[64 + 26] = 0x40), ImageError::BadEntry);
        assert_eq!(error(|file| file[64 + 25] = 0x10), ImageError::BadSegments);
        assert_eq!(error(|file| file[64 + 42] = 0x20), ImageError::BadSegments);
        assert_eq!(error(|file| file[0x24c] = b'Y'), ImageError::NoPvhNote);
        assert_eq!(error(|file| file[0x251] = 0x10), ImageError::BadEntry);
        assert_eq!(error(|file| file[0x260] = b'X'), ImageError::NoHandoverNote);
    }

    #[test]
    fn no_cut_and_no_flipped_bit_panics() {
        let file = image();
        for len in 0..file.len() {
            let _ = Image::parse(&file[..len]);
        }
        for at in 0..0x300 {
            for bit in 0..8 {
                let mut file = file.clone();
                file[at] ^= 1 << bit;
                if let Ok(image) = Image::parse(&file) {
                    assert!(image.size() <= SLOT_SIZE && image.entry() < image.size());
                    assert!(image.segments().all(|s| s.offset + s.bytes.len() <= image.size()));
                }
            }
        }
    }
}
