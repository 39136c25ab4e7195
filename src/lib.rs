//! The xenstore of a Xen host as a stub domain.
#![no_std]
extern crate alloc;
