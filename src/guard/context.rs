//! The state of a domain's processor as Xen saves and loads it (`xen/include/public/hvm/save.h` and
//! `arch-x86/hvm/save.h`; the same from Xen 4.7 to 4.22).
//!
//! It is a row of records, each behind a descriptor of 8 bytes: type, instance, length. Xen loads what it is given, as long as the
//! header comes first and the end last: this is how every PVH domain gets its first state.

use xen_kernel_rt::revival::record::{Record, Table};

const DESCRIPTOR: usize = 8;
/// Types of records.
const END: u16 = 0;
const HEADER: u16 = 1;
const CPU: u16 = 2;
const MTRR: u16 = 14;
const HEADER_SIZE: usize = 24;
const CPU_SIZE: usize = 1032;
/// `struct hvm_hw_mtrr`, whose last word is `msr_mtrr_def_type`.
const MTRR_SIZE: usize = 240;
const MTRR_TYPE: usize = 232;
/// Memory is cached, and the registers count (Intel SDM volume 3, "MTRR default type").
const WRITE_BACK: u64 = 6 | 1 << 11;

// Offsets in `struct hvm_hw_cpu`.
/// General registers from rax on; rdi is the seventh, rsp the eighth.
const REGISTERS: usize = 512;
const REGISTERS_COUNT: usize = 16;
const RBX: usize = 520;
const RDI: usize = 560;
const RSP: usize = 568;
const RIP: usize = 640;
const RFLAGS: usize = 648;
const CR0: usize = 656;
const CR3: usize = 672;
const CR4: usize = 680;
const DR6: usize = 720;
const DR7: usize = 728;
/// Segments in the order cs, ds, es, fs, gs, ss, tr, ldtr; of limits and bases those of IDT and GDT follow.
const SELECTORS: usize = 736;
const LIMITS: usize = 768;
const BASES: usize = 808;
const RIGHTS: usize = 888;
const EFER: usize = 992;
const PENDING_EVENT: usize = 1016;
const FLAGS: usize = 1024;

/// The bit of rflags that is always set; no interrupts.
const RFLAGS_PLAIN: u64 = 2;
/// Rights of segments: present, accessed; 64-bit code; data that grows up; a task state segment in use.
const CODE: u32 = 0xa9b;
const DATA: u32 = 0xc93;
const TSS: u32 = 0x8b;
/// 32-bit code.
const CODE_32: u32 = 0xc9b;
/// cr0 with PE and ET; the debug registers after a reset.
const CR0_PLAIN: u64 = 0x11;
const DR6_PLAIN: u64 = 0xffff_0ff0;
const DR7_PLAIN: u64 = 0x400;

/// Why there is no new state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoProcessor;

impl std::fmt::Display for NoProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Xen tells of no processor in a form that is known here")
    }
}

/// The state in which the first processor goes on as a record says, made of what it is now.
///
/// # Errors
/// What Xen has told of it is not understood.
pub fn going_on(now: &[u8], record: &Record, reason: u64) -> Result<Vec<u8>, NoProcessor> {
    let header = find(now, HEADER, HEADER_SIZE)?;
    let mut cpu = find(now, CPU, CPU_SIZE)?.to_vec();
    set(&mut cpu, record, reason);
    row(&[(HEADER, header), (CPU, &cpu), (END, &[])])
}

/// The state in which a new domain begins at its 32-bit entry (`docs/misc/pvh.pandoc` of Xen, "Boot": flat segments, no
/// paging, ebx has the address of the start info).
///
/// # Errors
/// What Xen has told of it is not understood.
pub fn beginning(now: &[u8], entry: u64, start_info: u64) -> Result<Vec<u8>, NoProcessor> {
    let header = find(now, HEADER, HEADER_SIZE)?;
    let mut mtrr = find(now, MTRR, MTRR_SIZE)?.to_vec();
    put(&mut mtrr, MTRR_TYPE, &WRITE_BACK.to_le_bytes());
    let mut cpu = vec![0; CPU_SIZE];
    let words = [
        (RBX, start_info),
        (RIP, entry),
        (RFLAGS, RFLAGS_PLAIN),
        (CR0, CR0_PLAIN),
        (DR6, DR6_PLAIN),
        (DR7, DR7_PLAIN),
    ];
    for (offset, word) in words {
        put(&mut cpu, offset, &word.to_le_bytes());
    }
    // cs, ds, es, fs, gs, ss, tr.
    let flat = u32::MAX;
    let segments =
        [(flat, CODE_32), (flat, DATA), (flat, DATA), (0, 0), (0, 0), (flat, DATA), (0x67, TSS)];
    for (n, (limit, rights)) in segments.into_iter().enumerate() {
        put(&mut cpu, LIMITS.saturating_add(n.saturating_mul(4)), &limit.to_le_bytes());
        put(&mut cpu, RIGHTS.saturating_add(n.saturating_mul(4)), &rights.to_le_bytes());
    }
    row(&[(HEADER, header), (MTRR, &mtrr), (CPU, &cpu), (END, &[])])
}

/// Records one behind the other.
fn row(records: &[(u16, &[u8])]) -> Result<Vec<u8>, NoProcessor> {
    let mut new = Vec::new();
    for (kind, bytes) in records {
        let length = u32::try_from(bytes.len()).map_err(|_| NoProcessor)?;
        new.extend(kind.to_le_bytes());
        new.extend(0_u16.to_le_bytes());
        new.extend(length.to_le_bytes());
        new.extend(*bytes);
    }
    Ok(new)
}

/// The first record of a type for instance 0, which has to be of that size.
fn find(context: &[u8], wanted: u16, size: usize) -> Result<&[u8], NoProcessor> {
    let mut rest = context;
    loop {
        let (head, after) = rest.split_first_chunk::<DESCRIPTOR>().ok_or(NoProcessor)?;
        let [a, b, c, d, e, f, g, h] = *head;
        let kind = u16::from_le_bytes([a, b]);
        let instance = u16::from_le_bytes([c, d]);
        let length = usize::try_from(u32::from_le_bytes([e, f, g, h])).map_err(|_| NoProcessor)?;
        let (record, next) = after.split_at_checked(length).ok_or(NoProcessor)?;
        match kind {
            END => return Err(NoProcessor),
            _ if kind == wanted && instance == 0 => {
                return if length == size { Ok(record) } else { Err(NoProcessor) };
            }
            _ => rest = next,
        }
    }
}

fn put(cpu: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = cpu.get_mut(offset..offset.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

fn set(cpu: &mut [u8], record: &Record, reason: u64) {
    for n in 0..REGISTERS_COUNT {
        put(cpu, REGISTERS.saturating_add(n.saturating_mul(8)), &[0; 8]);
    }
    let words = [
        (RDI, reason),
        (RSP, record.rsp),
        (RIP, record.rip),
        (RFLAGS, RFLAGS_PLAIN),
        (CR0, record.cr0),
        (CR3, record.cr3),
        (CR4, record.cr4),
        (EFER, record.efer),
    ];
    for (offset, word) in words {
        put(cpu, offset, &word.to_le_bytes());
    }
    let [code, data, tss] = record.selectors.map(u32::from);
    let flat = Table { base: 0, limit: u64::from(u32::MAX) };
    let segments = [
        (code, flat, CODE),
        (data, flat, DATA),
        (data, flat, DATA),
        (data, flat, DATA),
        (data, flat, DATA),
        (data, flat, DATA),
        (tss, record.tss, TSS),
        (0, Table::default(), 0),
    ];
    let tables = segments.map(|(_, table, _)| table).into_iter().chain([record.idt, record.gdt]);
    for (n, Table { base, limit }) in tables.enumerate() {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        put(cpu, LIMITS.saturating_add(n.saturating_mul(4)), &limit.to_le_bytes());
        put(cpu, BASES.saturating_add(n.saturating_mul(8)), &base.to_le_bytes());
    }
    for (n, (selector, _, rights)) in segments.into_iter().enumerate() {
        put(cpu, SELECTORS.saturating_add(n.saturating_mul(4)), &selector.to_le_bytes());
        put(cpu, RIGHTS.saturating_add(n.saturating_mul(4)), &rights.to_le_bytes());
    }
    // What was about to happen to the processor does not; its FPU begins anew.
    put(cpu, PENDING_EVENT, &[0; 8]);
    put(cpu, FLAGS, &[0; 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let table = |n: u64| Table { base: 0xffff_ffff_8000_0000 + n, limit: 0x27 + n };
        Record {
            domid: 1,
            rip: 11,
            rsp: 12,
            cr0: 13,
            cr3: 14,
            cr4: 15,
            efer: 16,
            gdt: table(1),
            idt: table(2),
            tss: table(3),
            selectors: [8, 16, 24],
        }
    }

    fn told(records: &[(u16, u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, instance, record) in records {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(instance.to_le_bytes());
            bytes.extend(u32::try_from(record.len()).unwrap().to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn half(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn header_processor_and_end_are_what_is_left() {
        let now = told(&[
            (HEADER, 0, vec![7; HEADER_SIZE]),
            (3, 0, vec![1; 40]),
            (CPU, 1, vec![2; 5]),
            (CPU, 0, vec![0xaa; CPU_SIZE]),
            (4, 0, vec![3; 9]),
            (END, 0, vec![]),
        ]);
        let new = going_on(&now, &record(), 4).unwrap();
        let kept =
            [(HEADER, 0, vec![7; HEADER_SIZE]), (CPU, 0, vec![0; CPU_SIZE]), (END, 0, vec![])];
        assert_eq!(new.len(), told(&kept).len());
        let cpu = &new[DESCRIPTOR + HEADER_SIZE + DESCRIPTOR..][..CPU_SIZE];
        // As libxc has it for a new PVH domain: rdi, rsp, rip, rflags.
        assert_eq!([560, 568, 640, 648].map(|at| word(cpu, at)), [4, 12, 11, 2]);
        assert_eq!([512, 520, 632].map(|at| word(cpu, at)), [0; 3]);
        assert_eq!([656, 672, 680, 992].map(|at| word(cpu, at)), [13, 14, 15, 16]);
        // cs, ss, tr, ldtr
        assert_eq!([736, 756, 760, 764].map(|at| half(cpu, at)), [8, 16, 24, 0]);
        assert_eq!([888, 908, 912, 916].map(|at| half(cpu, at)), [0xa9b, 0xc93, 0x8b, 0]);
        // Limits and bases of cs, tr, ldtr, IDT, GDT.
        assert_eq!(
            [768, 792, 796, 800, 804].map(|at| half(cpu, at)),
            [u32::MAX, 0x2a, 0, 0x29, 0x28]
        );
        let base = 0xffff_ffff_8000_0000;
        assert_eq!(
            [808, 856, 864, 872, 880].map(|at| word(cpu, at)),
            [0, base + 3, 0, base + 2, base + 1]
        );
        assert_eq!((word(cpu, 1016), half(cpu, 1024)), (0, 0));
        // What is not named stays: the FPU's, debug registers, system calls, clock, padding.
        assert!(
            [0, 511, 664, 688, 735, 920, 991, 1000, 1015, 1028, 1031]
                .iter()
                .all(|&at| cpu[at] == 0xaa)
        );
    }

    #[test]
    fn a_new_processor_begins_as_libxc_has_it() {
        // Xen tells nothing of a processor that is down.
        let now = told(&[
            (HEADER, 0, vec![7; HEADER_SIZE]),
            (MTRR, 0, vec![9; MTRR_SIZE]),
            (END, 0, vec![]),
        ]);
        let new = beginning(&now, 0x20_0000, 0x30_0000).unwrap();
        let mtrr = &new[DESCRIPTOR + HEADER_SIZE + DESCRIPTOR..][..MTRR_SIZE];
        assert_eq!((word(mtrr, 224), word(mtrr, 232)), (0x0909_0909_0909_0909, 0x806));
        let cpu = &new[2 * DESCRIPTOR + HEADER_SIZE + MTRR_SIZE + DESCRIPTOR..][..CPU_SIZE];
        assert_eq!([520, 640, 648, 656].map(|at| word(cpu, at)), [0x30_0000, 0x20_0000, 2, 0x11]);
        assert_eq!([768, 788, 792].map(|at| half(cpu, at)), [u32::MAX, u32::MAX, 0x67]);
        assert_eq!([888, 892, 908, 912].map(|at| half(cpu, at)), [0xc9b, 0xc93, 0xc93, 0x8b]);
        let without = told(&[(HEADER, 0, vec![7; HEADER_SIZE]), (END, 0, vec![])]);
        assert_eq!(beginning(&without, 0, 0), Err(NoProcessor));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let header = (HEADER, 0, vec![7; HEADER_SIZE]);
        let whole = told(&[header.clone(), (CPU, 0, vec![0; CPU_SIZE]), (END, 0, vec![])]);
        assert!(going_on(&whole, &record(), 0).is_ok());
        let shorter = told(&[header.clone(), (CPU, 0, vec![0; CPU_SIZE - 1]), (END, 0, vec![])]);
        let without = told(&[header, (END, 0, vec![]), (CPU, 0, vec![0; CPU_SIZE])]);
        for bad in [&shorter[..], &without, &whole[..40], &[], &whole[32..]] {
            assert_eq!(going_on(bad, &record(), 0), Err(NoProcessor));
        }
    }
}
