//! What the memory map means: arithmetic on page frames, without touching any.

use crate::abi::memory::{E820_RAM, E820Entry};
pub(crate) use crate::memory::classes::PAGE_SIZE;
use core::ops::Range;

/// Pages that the domain builder puts below 4 GiB beside the RAM of every HVM and PVH domain: rings
/// of console and store among them (`X86_HVM_NR_SPECIAL_PAGES`, `tools/include/xenguest.h`). They count in
/// the domain's reservation.
pub(crate) const SPECIAL_PAGES: usize = 8;

/// Frames of 1 MiB; no such map has so much by mistake.
const MIB: usize = (1 << 20) / PAGE_SIZE;

/// Frames of 1 GiB.
const GIB: usize = (1 << 30) / PAGE_SIZE;

/// The gibibyte below 4 GiB: special pages, local APIC, ACPI tables.
const TOP_GIB: usize = 3;

/// An entry's frames: whole pages only.
fn frames(entry: &E820Entry) -> Range<usize> {
    let (addr, size) = (entry.addr, entry.size);
    let page = PAGE_SIZE as u64;
    let start = usize::try_from(addr.div_ceil(page)).unwrap_or(usize::MAX);
    let end = usize::try_from(addr.saturating_add(size) / page).unwrap_or(usize::MAX);
    start..end.max(start)
}

/// The frames that are or may become RAM around the image, which is at frame `image`; `maximum` is the
/// domain's greatest reservation.
///
/// As a rule that is what the memory map says. With `--maxmem`, though, `init-xenstore-domain` of Xen 4.17
/// and 4.18 writes a number of megabytes where bytes belong (its macro `MB(maxmem ? : memory)` lacks
/// parentheses), and the map ends below the image. Then the frames from 0 on are meant,
/// as far as the reservation goes and nothing else is in the way.
#[must_use]
pub(crate) fn ram(map: &[E820Entry], image: usize, maximum: usize) -> Range<usize> {
    let told = || map.iter().filter(|e| e.kind == E820_RAM).map(frames);
    // An image that a predecessor has put into memory behind the map is not in it either.
    let below = || told().rfind(|r| r.len() >= MIB && r.end <= image);
    told().find(|r| r.contains(&image)).or_else(below).unwrap_or_else(|| {
        let others = map.iter().filter(|e| e.kind != E820_RAM).map(|e| frames(e).start);
        let free = others.min().unwrap_or(usize::MAX).min(TOP_GIB * GIB);
        0..maximum.saturating_sub(SPECIAL_PAGES).min(free)
    })
}

/// The end of the part of `ram` that has memory behind it.
///
/// A map may promise more than that: with `--maxmem` it describes what the domain can grow to. The
/// builder populates the lowest region from the bottom and adds the special pages, so what
/// the domain owns minus these tells how far that went.
#[must_use]
pub(crate) fn populated_end(ram: &Range<usize>, owned: usize) -> usize {
    let pages = owned.saturating_sub(SPECIAL_PAGES);
    ram.start.saturating_add(pages).min(ram.end)
}

/// The end of what may ever have memory behind it, for a domain that owns so many pages and may own `maximum`.
///
/// That may be more than the map promises: `scripts/start-with-xl` has a domain built with all the memory that its
/// map shows, since `xl` would have it populated on demand otherwise, and then allows it more. That goes
/// behind the RAM, as far as nothing else is in the way.
#[must_use]
pub(crate) fn limit(map: &[E820Entry], ram: &Range<usize>, owned: usize, maximum: usize) -> usize {
    populated_end(ram, owned).saturating_add(maximum.saturating_sub(owned)).min(room(map, ram))
}

/// The most that can have memory behind it, if a predecessor in the same domain has let it grow behind its map.
#[must_use]
pub(crate) fn grown_end(map: &[E820Entry], ram: &Range<usize>, owned: usize) -> usize {
    let pages = owned.saturating_sub(SPECIAL_PAGES);
    ram.start.saturating_add(pages).min(room(map, ram)).max(populated_end(ram, owned))
}

/// The most that can ever have memory behind it, whatever the domain owns now: a predecessor may have given some back.
#[must_use]
pub(crate) fn most(map: &[E820Entry], ram: &Range<usize>, maximum: usize) -> usize {
    ram.start.saturating_add(maximum.saturating_sub(SPECIAL_PAGES)).min(room(map, ram))
}

/// Where something other than RAM begins behind it.
fn room(map: &[E820Entry], ram: &Range<usize>) -> usize {
    let behind = map.iter().map(|entry| frames(entry).start).filter(|&start| start >= ram.end);
    behind.min().unwrap_or(usize::MAX).min(ram.end.max(TOP_GIB * GIB))
}

/// The first frame of a gibibyte of physical addresses that nothing occupies, neither `ram` nor what the
/// map has, for pages of others. `address_bits` is the width of physical addresses.
#[must_use]
pub(crate) fn unused_gib(
    map: &[E820Entry],
    ram: &Range<usize>,
    address_bits: u32,
) -> Option<usize> {
    let limit = 1_usize.checked_shl(address_bits)? / PAGE_SIZE / GIB;
    (1..limit).filter(|&gib| gib != TOP_GIB).map(|gib| gib * GIB).find(|&start| {
        let mut used = map.iter().map(frames).chain([ram.clone()]);
        used.all(|used| used.end <= start || used.start >= start + GIB)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(addr: u64, size: u64, kind: u32) -> E820Entry {
        E820Entry { addr, size, kind }
    }

    #[test]
    fn a_map_that_promises_more_than_is_there() {
        // init-xenstore-domain --memory 8 --maxmem 64, from Xen 4.19 on
        let map = [entry(0, 64 << 20, E820_RAM), entry(0xfeff_8000, 0x8000, 2)];
        let ram = ram(&map, 0x200, 0x4000 + SPECIAL_PAGES);
        assert_eq!(ram, 0..0x4000);
        assert_eq!(populated_end(&ram, 2048 + SPECIAL_PAGES), 2048);
        assert_eq!(populated_end(&ram, 100_000), 0x4000);
        let maximum = 0x4000 + SPECIAL_PAGES;
        assert_eq!(limit(&map, &ram, 2048 + SPECIAL_PAGES, maximum), 0x4000);
        assert_eq!(grown_end(&map, &ram, 2048 + SPECIAL_PAGES), 2048);
        assert_eq!(most(&map, &ram, maximum), 0x4000);
        assert_eq!(unused_gib(&map, &ram, 40), Some(GIB));
    }

    #[test]
    fn a_domain_that_may_own_more_than_its_map_promises() {
        // start-with-xl: memory = 8, then xl mem-max 64; ACPI tables are pages of the domain, too.
        let acpi = entry(0xfc00_0000, 0x9000, 3);
        let map = [entry(0, 8 << 20, E820_RAM), acpi, entry(0xfeff_8000, 0x8000, 2)];
        let owned = 2048 + SPECIAL_PAGES + 9;
        let ram = ram(&map, 0x200, owned + 14336);
        assert_eq!(populated_end(&ram, owned), 2048);
        assert_eq!(limit(&map, &ram, owned, owned + 14336), 0x4000);
        assert_eq!(limit(&map, &ram, owned, owned), 2048);
        // Later on, after 100 pages more.
        assert_eq!(super::ram(&map, 0xa00, owned + 14336), ram);
        assert_eq!(populated_end(&ram, owned + 100), 2048);
        assert_eq!(grown_end(&map, &ram, owned + 100), 2157);
        assert_eq!(limit(&map, &ram, owned, 0), 2048);
        assert_eq!(limit(&map, &ram, owned, usize::MAX), TOP_GIB * GIB);
        let near = [entry(0, 8 << 20, E820_RAM), entry(10 << 20, 0x1000, 2)];
        assert_eq!(limit(&near, &(0..2048), owned, usize::MAX), 2560);
        // More RAM than that has its end there.
        assert_eq!(limit(&[], &(0..5 * GIB), 5 * GIB, usize::MAX), 5 * GIB);
    }

    #[test]
    fn a_map_with_megabytes_for_bytes() {
        // The same on Xen 4.17.7, as seen.
        let map = [entry(0, 64, E820_RAM), entry(0xfeff_8000, 0x8000, 2)];
        let ram = ram(&map, 0x200, 0x4000 + SPECIAL_PAGES);
        assert_eq!(ram, 0..0x4000);
        assert_eq!(populated_end(&ram, 2048 + SPECIAL_PAGES), 2048);
    }

    #[test]
    fn without_a_word_about_ram_the_rest_of_the_map_counts() {
        assert_eq!(ram(&[], 0x200, usize::MAX), 0..TOP_GIB * GIB);
        let map = [entry(0x1000_0000, 0x1000, 2)];
        assert_eq!(ram(&map, 0x200, usize::MAX), 0..0x1_0000);
        assert_eq!(ram(&map, 0x200, 3), 0..0);
    }

    #[test]
    fn partial_pages_do_not_count() {
        let map = [entry(0x1800, 0x3000, E820_RAM), entry(0x10_0000, 0x1000, 2)];
        assert_eq!(ram(&map, 3, 100), 2..4);
        assert_eq!(ram(&map, 4, 100), 0..92);
    }

    #[test]
    fn the_window_avoids_ram_and_the_top_of_4_gib() {
        let low = entry(0, 0xc000_0000, E820_RAM);
        let high = entry(4 << 30, 3 << 30, E820_RAM);
        assert_eq!(unused_gib(&[low], &(0..1), 40), Some(4 * GIB));
        assert_eq!(unused_gib(&[low, high], &(0..1), 40), Some(7 * GIB));
        assert_eq!(unused_gib(&[low, high], &(0..1), 32), None);
        assert_eq!(unused_gib(&[], &(0..GIB + 1), 40), Some(2 * GIB));
    }

    #[test]
    fn absurd_entries_are_survived() {
        let map = [entry(u64::MAX - 5, u64::MAX, E820_RAM), entry(5, 1, E820_RAM)];
        assert_eq!(ram(&map, 0x200, 1008), 0..1000);
        assert!(unused_gib(&map, &(0..1), 36).is_some());
        assert_eq!(unused_gib(&map, &(0..1), 64), None);
    }
}
