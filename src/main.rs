//! The stub domain's binary.
fn main() {}
