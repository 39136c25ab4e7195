//! `xen/include/public/io/console.h`: the PV console's ring page.
//!
//! ```text
//! offset  size  field
//!      0  1024  in        bytes typed by a user
//!   1024  2048  out       bytes printed by us
//!   3072     4  in_cons   indices run freely and are masked for access
//!   3076     4  in_prod
//!   3080     4  out_cons
//!   3084     4  out_prod
//! ```

/// Offset of the ring that we read.
pub const IN: usize = 0;
/// Bytes of that ring; a power of two.
pub const IN_SIZE: u32 = 1024;
/// Offset of the index up to which we have taken bytes.
pub const IN_CONS: usize = 3072;
/// Offset of the index up to which there are bytes.
pub const IN_PROD: usize = 3076;
/// Offset of the ring that we write.
pub const OUT: usize = 1024;
/// Bytes of that ring; a power of two.
pub const OUT_SIZE: u32 = 2048;
/// Offset of the index up to which the reader has taken bytes.
pub const OUT_CONS: usize = 3080;
/// Offset of the index up to which we have written.
pub const OUT_PROD: usize = 3084;

/// Where the ring ends in its page.
pub const RING_END: usize = OUT_PROD + 4;
