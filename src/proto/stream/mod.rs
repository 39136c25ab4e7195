//! The record stream: everything that a xenstore knows, written for its successor.
//!
//! Source: `docs/designs/xenstore-migration.md` of Xen ("the document" below), versions 1 and 2. A stream is a
//! preamble of 16 bytes and then records. A record is a type, a length and a body, aligned to 8 bytes. END is the
//! last one. Both byte orders are read; little endian is written.
//!
//! * [`Reader`] takes a stream apart without copying: its records borrow from the bytes. Streams are not trusted.
//!   Any bytes give records or an error, in time and memory bounded by their length.
//! * [`Writer`] appends records to a [`Sink`] in small pieces and has no memory of its own; [`Buffered`] gathers
//!   them.
//! * [`check`] checks what the records say together; a restore can ask it record by record.
//! * A record prints as one line, and [`Listing`] prints a whole stream.
//!
//! # What C xenstored makes of it
//! * Its length fields count the padding, and its reader skips exactly the length. So this writer counts it, too,
//!   and the reader accepts both. C wants the connection of the privileged domain before all nodes.
//! * It has no transactions. It skips their records, but takes a pending node for a committed one. Leave both out
//!   of a stream for it.
//! * 4.17 reads version 1 only and skips quotas and domains. Newer ones read both versions. They give up at the
//!   record of a domain that has no connection and no node before it.
//! * The depth of a watch: see [`DepthLayout`].

pub mod check;
mod read;
mod record;
mod show;
mod write;

pub use read::{Problem, Reader, StreamError, in_module};
pub use record::{
    Connection, Domain, Endpoint, Global, GlobalQuota, Node, Pending, Perms, Quotas, Record,
    RecordKind, Touch, Transaction, Unknown, Watch,
};
pub use show::Listing;
pub use write::{Buffered, DepthLayout, OutOfRoom, Sink, WriteError, Writer, node_len};

/// The first bytes of every stream (the document, "Header").
pub const IDENT: [u8; 8] = *b"xenstore";

/// Bytes of the preamble.
pub const PREAMBLE_SIZE: usize = 16;

/// Bytes in front of a record's body.
pub const RECORD_HEADER_SIZE: usize = 8;

/// The depth of a watch without one (the document, "`WATCH_DATA_EXTENDED`").
const UNLIMITED: u16 = 0xffff;

/// A connection's `unique-id` is there (the document, "`CONNECTION_DATA`").
const HAS_UNIQUE_ID: u16 = 1;

/// A permission that never matches (the document, "`NODE_DATA`").
const STALE: u8 = 1;

/// A version of the document.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Version {
    /// Everything but what came later; the only one that C xenstored 4.17 reads.
    One,
    /// With features of domains and depths of watches.
    Two,
}

impl Version {
    /// The number in the preamble.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// The version with this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            _ => None,
        }
    }
}

/// The order of the bytes of numbers in records; those of the preamble are always big endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteOrder {
    /// Flag 0 clear; what is written here.
    Little,
    /// Flag 0 set.
    Big,
}

#[expect(clippy::big_endian_bytes, reason = "a stream may be written in either order")]
impl ByteOrder {
    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// The next multiple of 8, where the next record starts; `None` beyond the largest number.
fn padded(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(8)
}
