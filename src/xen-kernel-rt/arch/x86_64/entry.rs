//! From Xen's 32-bit entry to the first Rust function, in assembly.

use super::traps::{CODE_SELECTOR, DATA_SELECTOR};
use crate::start::rust_entry;
use core::arch::global_asm;

global_asm!(
    ".set IMAGE_VMA, {image_vma}",
    ".set CODE_SELECTOR, {code}",
    ".set DATA_SELECTOR, {data}",
    include_str!("../../../../boot/head.S"),
    image_vma = const 0xffff_ffff_8000_0000_u64,
    code = const CODE_SELECTOR,
    data = const DATA_SELECTOR,
    rust_entry = sym rust_entry,
);
