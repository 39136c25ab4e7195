//! Passes the linker script to the images of the bare target; nothing else.
//!
//! The arguments stand here and not in `.cargo/config.toml`, because a caller's `RUSTFLAGS` would
//! silently replace them there.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=linker.ld");
    println!("cargo::rerun-if-changed=boot/build.rs");
    if var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = var("CARGO_MANIFEST_DIR").expect("cargo sets it for every build script");
    println!("cargo::rustc-link-arg-bins=--script={root}/linker.ld");
    // The target links position-independent by default. The image moves by page tables instead, and
    // its 32-bit entry needs absolute addresses.
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
}
