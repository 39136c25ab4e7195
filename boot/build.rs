//! Passes the linker script to the images of the bare target; nothing else.
//!
//! The arguments stand here and not in `.cargo/config.toml`, because a caller's `RUSTFLAGS` would
//! silently replace them there.

fn main() {
    println!("cargo::rerun-if-changed=linker.ld");
    println!("cargo::rerun-if-changed=boot/head.S");
    println!("cargo::rerun-if-changed=boot/build.rs");
}
