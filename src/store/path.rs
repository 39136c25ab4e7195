//! Paths: how a client may spell one, and the one canonical form in which the store uses it.

use crate::mem::TryVec;
use crate::proto::error::XsError;
use crate::proto::id::DomId;
use crate::proto::text::{Decimal, count, first_zero};
use crate::proto::wire::{ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX};
use alloc::vec::Vec;
use core::fmt::Write;

/// The directory of a domain; relative paths of its connections start here.
const DOMAINS: &[u8] = b"/local/domain/";

/// Levels that are walked, and for which something is made, in one go.
const DEEP: usize = 32;

/// Bytes of a path for which room is kept.
const ROOM_KEPT: usize = 256;

/// Whether `@introduceDomain` and its like are welcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Names {
    /// Nodes of the tree only.
    Ordinary,
    /// Also names that start with `@`.
    OrSpecial,
}

/// A canonical path: absolute and without a slash at the end, or a special name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Path {
    bytes: Vec<u8>,
    /// Bytes of the home directory and its slash that the client did not spell.
    home: usize,
}

impl Path {
    /// Brings a client's spelling into canonical form, in `room`, whose bytes do not matter. `domid` says where
    /// relative paths start and `max` is the longest path allowed, 0 for any that the protocol has: the directory of a
    /// domain in front does not count for it, so that a guest may use the same names whatever its domid is.
    ///
    /// Source: `docs/misc/xenstore.txt`, "Communication with xenstore is via..." on valid
    /// characters and relative paths.
    ///
    /// # Errors
    /// `EINVAL` for everything that is not a path; `ENOMEM`.
    pub(super) fn new(
        room: Vec<u8>,
        raw: &[u8],
        names: Names,
        domid: DomId,
        max: u32,
    ) -> Result<Self, XsError> {
        let path = Self::of_any_length(room, raw, names, domid)?;
        let longest = if path.home > 0 { RELATIVE_PATH_MAX } else { ABSOLUTE_PATH_MAX };
        let counted = below_domain(&path.bytes).len();
        if raw.len() > longest || max != 0 && counted > max as usize {
            return Err(XsError::EINVAL);
        }
        Ok(path)
    }

    /// As [`new`](Self::new), for a path that a version took that had other limits.
    pub(super) fn of_any_length(
        room: Vec<u8>,
        raw: &[u8],
        names: Names,
        domid: DomId,
    ) -> Result<Self, XsError> {
        let mut bytes = room;
        bytes.clear();
        bytes.try_room(raw.len().saturating_add(24))?;
        let special = raw.first() == Some(&b'@');
        if special && names == Names::Ordinary || !is_spelled_well(raw) {
            return Err(XsError::EINVAL);
        }
        if raw.first() != Some(&b'/') && !special {
            bytes.try_extend(DOMAINS)?;
            bytes.try_extend(Decimal::new(u64::from(domid.0)).as_bytes())?;
            bytes.try_push(b'/')?;
        }
        let home = bytes.len();
        bytes.try_extend(raw)?;
        Ok(Self { bytes, home })
    }

    /// The room for another one, unless it is too large to be kept.
    pub(super) fn into_room(self) -> Vec<u8> {
        if self.bytes.capacity() <= ROOM_KEPT { self.bytes } else { Vec::new() }
    }

    /// The canonical path.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it has so many levels that walking it, or making something for each, takes a turn of its own.
    pub(super) fn is_deep(&self) -> bool {
        self.bytes.len() > DEEP.saturating_mul(2)
            && self.bytes.first() == Some(&b'/')
            && count(&self.bytes, b'/') > DEEP
    }

    /// How many bytes of it the client left out; 0 for an absolute path.
    pub(super) fn home(&self) -> usize {
        self.home
    }
}

/// Whether a path has legal bytes only, is not empty, has no slash at its end (but for `/`) and no two in a row.
fn is_spelled_well(raw: &[u8]) -> bool {
    // Without a branch for each byte: whether there was an illegal one, or two slashes in a row.
    let (mut before, mut faults) = (0, 0);
    for byte in raw {
        let class = class(*byte);
        faults |= class & ILLEGAL | class & before;
        before = class;
    }
    faults == 0 && !raw.is_empty() && (before != SLASH || raw.len() == 1)
}

/// Whether a byte may stand in a path.
pub(super) fn is_legal(byte: u8) -> bool {
    class(byte) != ILLEGAL
}

/// What a byte is in a path: [`SLASH`], [`ILLEGAL`], or 0 for what names are made of.
fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(ILLEGAL)
}

const SLASH: u8 = 1;
const ILLEGAL: u8 = 2;

/// The class of each byte.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which would not panic but complain"
)]
static CLASSES: [u8; 256] = {
    let mut classes = [ILLEGAL; 256];
    let mut byte = u8::MAX;
    while byte > 0 {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@') {
            classes[byte as usize] = 0;
        }
        byte = byte.wrapping_sub(1);
    }
    classes[b'/' as usize] = SLASH;
    classes
};

/// Whether this is one component of a path.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| *byte != b'/' && is_legal(*byte))
}

/// A path taken apart: what is in front of its last slash, and the name behind. `None` if that is no name.
pub(super) fn split_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_of_name = |byte: u8| byte != b'/' && is_legal(byte);
    let slash = path.iter().rposition(|byte| !is_of_name(*byte))?;
    match path.split_at_checked(slash)? {
        (above, [b'/', name @ ..]) if !name.is_empty() => Some((above, name)),
        _ => None,
    }
}

/// What is left of a path without `/local/domain/<1 to 5 digits>/`.
fn below_domain(path: &[u8]) -> &[u8] {
    let Some(rest) = path.strip_prefix(DOMAINS) else { return path };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits..) {
        Some([b'/', below @ ..]) if (1..=5).contains(&digits) => below,
        _ => path,
    }
}

/// The path of the node above, `None` for `/` and for special names, above which there is nothing.
pub(super) fn parent(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    match (path.first(), path.len()) {
        (Some(b'/'), 2..) if slash == 0 => Some(b"/"),
        (Some(b'/'), 2..) => path.get(..slash),
        _ => None,
    }
}

/// The last component.
pub(super) fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// The components of an absolute path, from the root down.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = path;
    core::iter::from_fn(move || {
        // More than one in a row only where others spelled the path.
        while let [b'/', behind @ ..] = rest {
            rest = behind;
        }
        let name;
        (name, rest) = rest.split_at_checked(name_len(rest)).unwrap_or((rest, &[]));
        (!name.is_empty()).then_some(name)
    })
}

/// Bytes in front of the first slash. It looks at 8 at a time: most names are no longer.
fn name_len(path: &[u8]) -> usize {
    let Some(word) = path.first_chunk() else {
        return path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    };
    let slashes = u64::from_le_bytes(*word) ^ u64::from_le_bytes([b'/'; 8]);
    if let Some(slash) = first_zero(slashes.to_le_bytes()) {
        return slash;
    }
    let rest = path.get(8..).unwrap_or(&[]);
    rest.iter().position(|byte| *byte == b'/').map_or(path.len(), |at| at.saturating_add(8))
}

/// Lets `write!` append to bytes, as far as there is memory.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.try_extend(text.as_bytes()).map_err(|_| core::fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn canonical(raw: &[u8], names: Names) -> Result<Vec<u8>, XsError> {
        Path::new(Vec::new(), raw, names, DomId(7), 2048).map(|path| path.bytes().to_vec())
    }

    #[test]
    fn spelling() {
        assert_eq!(canonical(b"/", Names::Ordinary).unwrap(), b"/");
        assert_eq!(canonical(b"/a/b@c", Names::Ordinary).unwrap(), b"/a/b@c");
        assert_eq!(canonical(b"data/x", Names::Ordinary).unwrap(), b"/local/domain/7/data/x");
        assert_eq!(canonical(b"@any", Names::OrSpecial).unwrap(), b"@any");
        for bad in [&b""[..], b"//", b"/a/", b"a/", b"/a//b", b"/a b", b"/a\xff", b"/a.b", b"@any"]
        {
            assert_eq!(canonical(bad, Names::Ordinary), Err(XsError::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn xsa_323_the_limit_counts_below_the_domain_in_every_spelling() {
        let longest = vec![b'a'; 2048];
        let too_long = vec![b'a'; 2049];
        for prefix in [&b""[..], b"/local/domain/7/", b"/local/domain/32751/"] {
            assert!(canonical(&[prefix, &longest].concat(), Names::Ordinary).is_ok());
            assert!(canonical(&[prefix, &too_long].concat(), Names::Ordinary).is_err());
        }
        assert!(canonical(&[b"/", &longest[1..]].concat(), Names::Ordinary).is_ok());
        assert!(canonical(&[b"/", &longest[..]].concat(), Names::Ordinary).is_err());
        assert!(
            canonical(&[b"/local/domain/123456/", &longest[..]].concat(), Names::Ordinary).is_err()
        );
    }

    #[test]
    fn the_limits_of_the_protocol_bind_whoever_has_none() {
        let any = |raw: &[u8]| Path::new(Vec::new(), raw, Names::Ordinary, DomId(0), 0).is_ok();
        let absolute = |len: usize| [&b"/"[..], &vec![b'a'; len - 1]].concat();
        assert_eq!((any(&absolute(3072)), any(&absolute(3073))), (true, false));
        assert_eq!((any(&[b'a'; 2048]), any(&[b'a'; 2049])), (true, false));
    }

    #[test]
    fn names() {
        for path in [&b"/a/bc"[..], b"/a", b"/", b"", b"a", b"/a/", b"/a/b.c", b"/a/b\xff", b"x/@1"]
        {
            let name = name(path);
            let is_name = !name.is_empty() && name.iter().copied().all(is_legal);
            let above = path.len().checked_sub(name.len() + 1).map(|len| &path[..len]);
            let expected = above.filter(|_| is_name).map(|above| (above, name));
            assert_eq!(split_name(path), expected, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn climbing() {
        let path = b"/a/bc/d";
        let climb = core::iter::successors(Some(&path[..]), |path| parent(path));
        assert_eq!(climb.collect::<Vec<_>>(), [&b"/a/bc/d"[..], b"/a/bc", b"/a", b"/"]);
        assert_eq!(parent(b"@x/1"), None);
        assert_eq!((name(path), name(b"/a")), (&b"d"[..], &b"a"[..]));
        assert_eq!((components(path).count(), components(b"/").count()), (3, 0));
        let odd = components(b"//a//longer-than-eight/b/");
        assert_eq!(odd.collect::<Vec<_>>(), [&b"a"[..], b"longer-than-eight", b"b"]);
    }
}
