//! Passes the linker script to the examples that are built for the bare target; nothing else.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=../../linker.ld");
    println!("cargo::rerun-if-changed=build.rs");
    if var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = var("CARGO_MANIFEST_DIR").expect("cargo sets it for every build script");
    println!("cargo::rustc-link-arg-examples=--script={root}/../../linker.ld");
    println!("cargo::rustc-link-arg-examples=--no-pie");
    println!("cargo::rustc-link-arg-examples=-zmax-page-size=4096");
}
