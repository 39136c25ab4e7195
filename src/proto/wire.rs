//! Messages: a 16-byte header and up to 4096 bytes of payload.
//!
//! Source: `struct xsd_sockmsg` and the constants of `xen/include/public/io/xs_wire.h`. Everything is
//! little endian on x86.

/// Bytes of a message header.
pub const HEADER_SIZE: usize = 16;

/// The most bytes a payload may have, in both directions (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;

/// The longest absolute path, for everybody (`xs_wire.h`, `XENSTORE_ABS_PATH_MAX`).
pub const ABSOLUTE_PATH_MAX: usize = 3072;

/// The longest relative path, for everybody (`xs_wire.h`, `XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_PATH_MAX: usize = 2048;

/// Feature bits, as in the ring page's `server_features` word and in GET_FEATURE.
pub mod features {
    /// The server writes the reason into the `error` word when it gives a ring up
    /// (`XENSTORE_SERVER_FEATURE_ERROR`).
    pub const ERROR: u32 = 2;
    /// WATCH takes a depth as its third argument.
    pub const WATCH_DEPTH: u32 = 4;
    /// Permissions may name all domains as 32757 (`DOMID_ANY`).
    pub const DOMID_ANY: u32 = 8;
    /// Everything this server offers. RECONNECTION (bit 0) is missing on purpose: firmware relies
    /// on it as soon as it is there.
    pub const OFFERED: u32 = ERROR | WATCH_DEPTH | DOMID_ANY;
}

/// A message type (`enum xsd_sockmsg_type`) that has a meaning in this server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the protocol's own; request.rs says what they take")]
pub enum Kind {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
    GetFeature = 23,
    SetFeature = 24,
    GetQuota = 25,
    SetQuota = 26,
}

impl Kind {
    /// Every message type, in numeric order.
    pub const ALL: [Self; 26] = [
        Self::Control,
        Self::Directory,
        Self::Read,
        Self::GetPerms,
        Self::Watch,
        Self::Unwatch,
        Self::TransactionStart,
        Self::TransactionEnd,
        Self::Introduce,
        Self::Release,
        Self::GetDomainPath,
        Self::Write,
        Self::Mkdir,
        Self::Rm,
        Self::SetPerms,
        Self::WatchEvent,
        Self::Error,
        Self::IsDomainIntroduced,
        Self::Resume,
        Self::SetTarget,
        Self::ResetWatches,
        Self::DirectoryPart,
        Self::GetFeature,
        Self::SetFeature,
        Self::GetQuota,
        Self::SetQuota,
    ];

    /// The type with this number, or `None` for 20 (RESTRICT, removed) and everything from 27 on.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let index = match number {
            ..20 => number,
            20 => return None,
            21.. => number.wrapping_sub(1),
        };
        Self::ALL.get(index as usize).copied()
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// A message header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The message type's number; see [`Kind::from_number`].
    pub kind: u32,
    /// Chosen by the client, copied into the reply.
    pub req_id: u32,
    /// The transaction, 0 for none; copied into the reply.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// Reads a header from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            req_id: u32::from_le_bytes([e, f, g, h]),
            tx_id: u32::from_le_bytes([i, j, k, l]),
            len: u32::from_le_bytes([m, n, o, p]),
        }
    }

    /// Writes the header as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let [a, b, c, d] = self.kind.to_le_bytes();
        let [e, f, g, h] = self.req_id.to_le_bytes();
        let [i, j, k, l] = self.tx_id.to_le_bytes();
        let [m, n, o, p] = self.len.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_is_little_endian() {
        let header = Header { kind: 2, req_id: 0x0102_0304, tx_id: 5, len: 4096 };
        let bytes = header.to_bytes();
        assert_eq!(bytes[4..8], [4, 3, 2, 1]);
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn kinds_are_found_by_number_and_the_gaps_stay_gaps() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        for number in [20, 27, 28, 65535, u32::MAX] {
            assert_eq!(Kind::from_number(number), None);
        }
    }
}
