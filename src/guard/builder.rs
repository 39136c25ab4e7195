//! A new xenstore domain, as far as it can be told without Xen: what lies where in its memory.
//!
//! | from | to | |
//! |---|---|---|
//! | 2 MiB | | the image, and behind it the start info with the command line, and the module |
//! | 0 | `--memory` | all of this, and memory that is free |
//! | `--memory` | `--maxmem` | what the domain may ask for later |
//! | below 4 GiB | | 8 special pages: those of its console, of its own store's ring, a page table; the rest is empty |
//!
//! It is what the toolstack makes of a PVH domain (`tools/libs/guest/xg_dom_x86.c`). The
//! structures are those of the public headers.

use xen_kernel_rt::abi::memory::{E820_RAM, E820_RESERVED, E820Entry};
use xen_kernel_rt::abi::start_info::{HvmModlistEntry, HvmStartInfo, MAGIC};
use xenstore_stubdom::dom0::privcmd::PAGE_SIZE;
use xenstore_stubdom::proto::image::{Image, SLOT_SIZE};

/// Pages of a MiB.
pub const MIB: u64 = (1 << 20) / PAGE_SIZE as u64;
/// The special pages (`X86_HVM_NR_SPECIAL_PAGES`, `X86_HVM_END_SPECIAL_REGION`), and which of them is which.
pub const SPECIAL: std::ops::Range<u64> = 0xf_eff8..0xf_f000;
/// The page of the ring of its own store.
pub const STORE: u64 = 0xf_effc;
/// That of its page table for the time without paging.
pub const IDENT_PT: u64 = 0xf_effe;
/// That of its console.
pub const CONSOLE: u64 = 0xf_efff;

/// Where the image is put.
const IMAGE: usize = SLOT_SIZE;
/// Where the command line stands, from the start info on.
const LINE: usize = 128;
const _: () = assert!(size_of::<HvmStartInfo>() + size_of::<HvmModlistEntry>() <= LINE);
/// Memory that an image needs for page tables and books before it can say that there is too little, in MiB.
const LEAST: u64 = 1;

/// How much memory a domain gets, in MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// At once.
    pub memory: u64,
    /// In the end.
    pub maxmem: u64,
}

impl Sizes {
    /// All KiB that Xen is to let it have.
    #[must_use]
    pub fn limit_kib(self) -> u64 {
        let special = SPECIAL.end.saturating_sub(SPECIAL.start);
        self.maxmem.saturating_mul(1024).saturating_add(special.saturating_mul(4))
    }

    /// MiB for its page tables in Xen: as `xl` reckons, one for the vCPU, and two pages for each MiB of memory.
    #[must_use]
    pub fn paging_mib(self) -> u32 {
        let pages = MIB.saturating_add(self.maxmem.saturating_mul(2));
        u32::try_from(pages.div_ceil(MIB)).unwrap_or(u32::MAX)
    }

    /// What its memory map says.
    #[must_use]
    pub fn map(self) -> [E820Entry; 2] {
        let page = PAGE_SIZE as u64;
        let special = SPECIAL.end.saturating_sub(SPECIAL.start);
        [
            E820Entry { addr: 0, size: self.maxmem.saturating_mul(1 << 20), kind: E820_RAM },
            E820Entry {
                addr: SPECIAL.start.saturating_mul(page),
                size: special.saturating_mul(page),
                kind: E820_RESERVED,
            },
        ]
    }
}

/// What a domain begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// First frame of what is loaded.
    pub first: u64,
    /// What is loaded, from there on, in whole pages.
    pub bytes: Vec<u8>,
    /// Where its processor begins.
    pub entry: u64,
    /// The address of the start info.
    pub start_info: u64,
}

/// Puts it together.
///
/// # Errors
/// It does not fit into the memory that the domain gets at once, which the sentence names.
pub fn contents(
    image: &Image<'_>,
    line: &[u8],
    module: &[u8],
    sizes: Sizes,
) -> Result<Contents, String> {
    let start = image.size().next_multiple_of(PAGE_SIZE);
    let line_end = start.saturating_add(LINE).saturating_add(line.len()).saturating_add(1);
    let module_at = line_end.next_multiple_of(PAGE_SIZE);
    let end = module_at.saturating_add(module.len()).next_multiple_of(PAGE_SIZE);
    // The image copies the module before it gives its pages back.
    let needed = IMAGE.saturating_add(end).saturating_add(module.len());
    let needed = (needed as u64).div_ceil(1 << 20).saturating_add(LEAST);
    let most = SPECIAL.start / MIB;
    if sizes.maxmem > most {
        return Err(format!(
            "{} MiB of memory cannot be: it may have {most} at most",
            sizes.maxmem
        ));
    }
    if sizes.memory < needed || sizes.maxmem < sizes.memory {
        return Err(format!(
            "{} MiB of memory, and at most {}, cannot be: image and state alone need {needed} MiB at once",
            sizes.memory, sizes.maxmem
        ));
    }
    let mut bytes = vec![0; end];
    let mut put = |at: usize, part: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at.saturating_add(part.len())) {
            place.copy_from_slice(part);
        }
    };
    for segment in image.segments() {
        put(segment.offset, segment.bytes);
    }
    let address = |offset: usize| (IMAGE.saturating_add(offset)) as u64;
    let modules = start.saturating_add(size_of::<HvmStartInfo>());
    let has_module = u32::from(!module.is_empty());
    let words = [
        u64::from(MAGIC),
        // No flags.
        u64::from(has_module) << 32,
        address(modules),
        address(start.saturating_add(LINE)),
        0,
        // The entry of the module.
        address(module_at),
        module.len() as u64,
        0,
        0,
    ];
    for (word, at) in words.into_iter().zip((start..).step_by(8)) {
        put(at, &word.to_le_bytes());
    }
    put(start.saturating_add(LINE), line);
    put(module_at, module);
    Ok(Contents {
        first: (IMAGE / PAGE_SIZE) as u64,
        bytes,
        entry: address(image.entry()),
        start_info: address(start),
    })
}

/// The page table for the time without paging: 1,024 pages of 4 MiB, each at its own address, present, writable, for
/// everybody, accessed, dirty (Intel SDM volume 3, 4.3).
#[must_use]
pub fn ident_pt() -> Vec<u8> {
    (0..1024_u32).flat_map(|n| (n << 22 | 0xe7).to_le_bytes()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An image of one segment of code, with both notes.
    pub(crate) fn file() -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64;
        (file[54], file[56]) = (56, 2);
        let mut header = |at: usize, kind: u32, flags: u32, offset: u64, paddr: u64, size: u64| {
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
            for (n, word) in [offset, 0, paddr, size, size + 0x100].into_iter().enumerate() {
                let at = at + 8 + 8 * n;
                file[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        };
        header(64, 1, 5, 0x200, 0x20_0000, 0x800);
        header(120, 4, 4, 0x300, 0x20_0100, 0x100);
        let note = [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x20_0010];
        let ours = [17_u32, 12, 1];
        let mut at = 0x300;
        let words = note.into_iter().chain(ours);
        for word in words {
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
            at += 4;
        }
        file[at..at + 17].copy_from_slice(b"xenstore-stubdom\0");
        at += 20;
        for word in [1_u32, 4, 3] {
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
            at += 4;
        }
        file[0x200] = 0xaa;
        file
    }

    #[test]
    fn everything_lies_where_the_start_info_says() {
        let file = file();
        let image = Image::parse(&file).unwrap();
        let sizes = Sizes { memory: 8, maxmem: 64 };
        let made = contents(&image, b"--event 3", &[7; 5000], sizes).unwrap();
        assert_eq!((made.first, made.entry, made.start_info), (0x200, 0x20_0010, 0x20_1000));
        assert_eq!((made.bytes.len(), made.bytes[0], made.bytes[0x900]), (0x4000, 0xaa, 0));
        let word = |at: usize| u64::from_le_bytes(made.bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0x1000) & 0xffff_ffff, u64::from(MAGIC));
        assert_eq!(word(0x1008), 1 << 32);
        assert_eq!((word(0x1010), word(0x1018)), (0x20_1028, 0x20_1080));
        assert_eq!((word(0x1028), word(0x1030)), (0x20_2000, 5000));
        assert_eq!(&made.bytes[0x1080..0x108a], b"--event 3\0");
        assert_eq!(
            (made.bytes[0x2000], made.bytes[0x2000 + 4999], made.bytes[0x2000 + 5000]),
            (7, 7, 0)
        );
        // Without a module there is none.
        let made = contents(&image, b"", &[], sizes).unwrap();
        assert_eq!(made.bytes[0x100c..0x1010], [0; 4]);
    }

    #[test]
    fn too_little_memory_is_refused_with_how_much_it_takes() {
        let file = file();
        let image = Image::parse(&file).unwrap();
        let refused = |memory, maxmem, len| {
            contents(&image, b"", &vec![0; len], Sizes { memory, maxmem }).unwrap_err()
        };
        assert!(refused(3, 64, 100).contains("need 4 MiB"));
        assert!(refused(8, 7, 100).contains("cannot be"));
        // Up to the special pages, and not over them.
        assert!(refused(8, 4080, 100).contains("4079 at most"));
        assert!(contents(&image, b"", b"", Sizes { memory: 8, maxmem: 4079 }).is_ok());
        assert!(refused(8, 64, 3 << 20).contains("need 10 MiB"));
    }

    #[test]
    fn sizes() {
        let sizes = Sizes { memory: 8, maxmem: 64 };
        assert_eq!((sizes.limit_kib(), sizes.paging_mib()), (64 * 1024 + 32, 2));
        let [ram, special] = sizes.map();
        assert_eq!((ram.addr, ram.size, ram.kind), (0, 64 << 20, 1));
        assert_eq!((special.addr, special.size, special.kind), (0xfeff_8000, 0x8000, 2));
        assert_eq!(ident_pt().len(), PAGE_SIZE);
        assert_eq!(ident_pt()[4092..], 0xffc0_00e7_u32.to_le_bytes());
    }
}
