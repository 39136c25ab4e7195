//! Requests: from a message's payload to typed arguments.
//!
//! This checks only the grammar, exactly as the C server does ("C xenstored 4.22 behaviour"; the documented forms
//! are in `docs/misc/xenstore.txt`). Other layers check whether a path is well formed, a domain exists or the
//! caller has the right.

use super::error::XsError;
use super::id::DomId;
use super::text;
use super::wire::{Kind, features};

/// What the meaning of a payload depends on, besides the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grammar {
    /// The feature bits of the caller's domain: a WATCH may have a depth only if they allow it.
    pub features: u32,
    /// Whether the caller is privileged: only then may GET_FEATURE have arguments at all.
    pub privileged: bool,
}

/// The permissions of SET_PERMS, not checked yet: their number is checked before their text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PermTexts<'a>(&'a [u8]);

impl<'a> PermTexts<'a> {
    /// How many there are.
    #[must_use]
    pub fn count(self) -> usize {
        text::count_strings(self.0)
    }

    /// Each permission as letter and domid.
    pub fn iter(self) -> impl Iterator<Item = Result<(u8, DomId), XsError>> + 'a {
        text::strings(self.0).map(|entry| {
            let (letter, domid) = entry.split_first().ok_or(XsError::EINVAL)?;
            let domid = text::permission_domid(domid).ok_or(XsError::EINVAL)?;
            Ok((*letter, domid))
        })
    }
}

/// A request with its arguments. Paths, tokens and names are as the client spelled them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the names are the protocol's own, docs/misc/xenstore.txt explains them"
)]
pub enum Request<'a> {
    /// `arguments` is everything after the command's NUL: one command carries raw bytes.
    Control {
        command: &'a [u8],
        arguments: &'a [u8],
    },
    Directory {
        path: &'a [u8],
    },
    Read {
        path: &'a [u8],
    },
    GetPerms {
        path: &'a [u8],
    },
    Watch {
        path: &'a [u8],
        token: &'a [u8],
        depth: Option<u32>,
    },
    Unwatch {
        path: &'a [u8],
        token: &'a [u8],
    },
    TransactionStart,
    TransactionEnd {
        commit: bool,
    },
    Introduce {
        domid: DomId,
        port: u32,
    },
    Release {
        domid: DomId,
    },
    GetDomainPath {
        domid: DomId,
    },
    Write {
        path: &'a [u8],
        value: &'a [u8],
    },
    Mkdir {
        path: &'a [u8],
    },
    Rm {
        path: &'a [u8],
    },
    SetPerms {
        path: &'a [u8],
        perms: PermTexts<'a>,
    },
    IsDomainIntroduced {
        domid: DomId,
    },
    Resume {
        domid: DomId,
    },
    SetTarget {
        domid: DomId,
        target: DomId,
    },
    ResetWatches,
    DirectoryPart {
        path: &'a [u8],
        offset: i64,
    },
    GetFeature {
        domid: Option<DomId>,
    },
    SetFeature {
        domid: DomId,
        mask: u32,
    },
    GetQuotaNames,
    GetQuota {
        domid: Option<DomId>,
        name: &'a [u8],
    },
    SetQuota {
        domid: Option<DomId>,
        name: &'a [u8],
        value: u32,
    },
}

/// The path of a request that has nothing else.
fn path(payload: &[u8]) -> Result<&[u8], XsError> {
    text::only_string(payload).ok_or(XsError::EINVAL)
}

/// The domid of a request that has nothing else.
fn only_domid(payload: &[u8]) -> Result<DomId, XsError> {
    domid(text::only_string(payload).ok_or(XsError::EINVAL)?)
}

fn domid(argument: &[u8]) -> Result<DomId, XsError> {
    text::domid(argument).ok_or(XsError::EINVAL)
}

/// Exactly `N` strings.
fn exact<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], XsError> {
    text::exact_strings(payload).ok_or(XsError::EINVAL)
}

/// At least `N` strings, of which the first `N` count.
fn at_least<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], XsError> {
    text::first_strings(payload).ok_or(XsError::EINVAL)
}

impl<'a> Request<'a> {
    /// Reads the payload of a request.
    ///
    /// # Errors
    /// `EINVAL` where the payload is not what the type asks for, `EACCES` for GET_FEATURE with arguments by
    /// an unprivileged caller, `ENOSYS` for the two types that only a server sends.
    pub fn parse(kind: Kind, payload: &'a [u8], grammar: Grammar) -> Result<Self, XsError> {
        Ok(match kind {
            Kind::Control => {
                let (command, arguments) =
                    text::split_first_string(payload).ok_or(XsError::EINVAL)?;
                Self::Control { command, arguments }
            }
            Kind::Directory => Self::Directory { path: path(payload)? },
            Kind::Read => Self::Read { path: path(payload)? },
            Kind::GetPerms => Self::GetPerms { path: path(payload)? },
            Kind::Watch => watch(payload, grammar)?,
            Kind::Unwatch => {
                let [path, token] = exact(payload)?;
                Self::Unwatch { path, token }
            }
            Kind::TransactionStart => Self::TransactionStart,
            Kind::TransactionEnd => match payload {
                b"T\0" => Self::TransactionEnd { commit: true },
                b"F\0" => Self::TransactionEnd { commit: false },
                _ => return Err(XsError::EINVAL),
            },
            Kind::Introduce => {
                // The second argument is the ring's frame, which nobody needs: it is grant entry 1.
                let [domain, _, port] = at_least(payload)?;
                Self::Introduce { domid: domid(domain)?, port: text::atoi_unsigned(port) }
            }
            Kind::Release => Self::Release { domid: only_domid(payload)? },
            Kind::GetDomainPath => Self::GetDomainPath { domid: only_domid(payload)? },
            Kind::Write => {
                let (path, value) = text::split_first_string(payload).ok_or(XsError::EINVAL)?;
                Self::Write { path, value }
            }
            Kind::Mkdir => Self::Mkdir { path: path(payload)? },
            Kind::Rm => Self::Rm { path: path(payload)? },
            Kind::SetPerms => {
                let [_, _] = at_least(payload)?;
                let (path, perms) = text::split_first_string(payload).ok_or(XsError::EINVAL)?;
                Self::SetPerms { path, perms: PermTexts(perms) }
            }
            Kind::WatchEvent | Kind::Error => return Err(XsError::ENOSYS),
            Kind::IsDomainIntroduced => Self::IsDomainIntroduced { domid: only_domid(payload)? },
            Kind::Resume => Self::Resume { domid: only_domid(payload)? },
            Kind::SetTarget => {
                let [domain, target] = at_least(payload)?;
                Self::SetTarget { domid: domid(domain)?, target: domid(target)? }
            }
            Kind::ResetWatches => Self::ResetWatches,
            Kind::DirectoryPart => {
                let [path, offset] = exact(payload)?;
                Self::DirectoryPart { path, offset: i64::from(text::atoi(offset)) }
            }
            Kind::GetFeature => get_feature(payload, grammar)?,
            Kind::SetFeature => {
                let [domain, mask] = exact(payload)?;
                Self::SetFeature { domid: domid(domain)?, mask: text::atoi_unsigned(mask) }
            }
            Kind::GetQuota => get_quota(payload)?,
            Kind::SetQuota => set_quota(payload)?,
        })
    }

    /// The path whose nodes it looks at, makes or watches.
    #[must_use]
    pub fn path(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Directory { path }
            | Self::Read { path }
            | Self::GetPerms { path }
            | Self::Watch { path, .. }
            | Self::Write { path, .. }
            | Self::Mkdir { path }
            | Self::Rm { path }
            | Self::SetPerms { path, .. }
            | Self::DirectoryPart { path, .. } => Some(path),
            // The nodes of the watch that goes are not looked at.
            Self::Unwatch { .. }
            | Self::Control { .. }
            | Self::TransactionStart
            | Self::TransactionEnd { .. }
            | Self::Introduce { .. }
            | Self::Release { .. }
            | Self::GetDomainPath { .. }
            | Self::IsDomainIntroduced { .. }
            | Self::Resume { .. }
            | Self::SetTarget { .. }
            | Self::ResetWatches
            | Self::GetFeature { .. }
            | Self::SetFeature { .. }
            | Self::GetQuotaNames
            | Self::GetQuota { .. }
            | Self::SetQuota { .. } => None,
        }
    }
}

/// WATCH: path and token, and with the feature perhaps a depth.
fn watch(payload: &[u8], grammar: Grammar) -> Result<Request<'_>, XsError> {
    let depths = grammar.features & features::WATCH_DEPTH != 0;
    if depths && text::count_strings(payload) == 3 {
        let [path, token, depth] = exact(payload)?;
        let depth = u32::try_from(text::atoi(depth)).map_err(|_| XsError::EINVAL)?;
        return Ok(Request::Watch { path, token, depth: Some(depth) });
    }
    let [path, token] = exact(payload)?;
    Ok(Request::Watch { path, token, depth: None })
}

/// GET_FEATURE: no string asks for the caller's own features; any string, even an empty one, is a domid.
fn get_feature(payload: &[u8], grammar: Grammar) -> Result<Request<'_>, XsError> {
    if text::count_strings(payload) == 0 {
        return Ok(Request::GetFeature { domid: None });
    }
    if !grammar.privileged {
        return Err(XsError::EACCES);
    }
    let [domain] = exact(payload)?;
    Ok(Request::GetFeature { domid: Some(domid(domain)?) })
}

/// GET_QUOTA: nothing for the names, a name, or domid and name.
fn get_quota(payload: &[u8]) -> Result<Request<'_>, XsError> {
    match text::count_strings(payload) {
        0 => Ok(Request::GetQuotaNames),
        1 => {
            let [name] = exact(payload)?;
            Ok(Request::GetQuota { domid: None, name })
        }
        _ => {
            let [domain, name] = exact(payload)?;
            Ok(Request::GetQuota { domid: Some(domid(domain)?), name })
        }
    }
}

/// SET_QUOTA: name and value, perhaps with a domid in front.
fn set_quota(payload: &[u8]) -> Result<Request<'_>, XsError> {
    let (domid, name, value) = if text::count_strings(payload) == 3 {
        let [domain, name, value] = exact(payload)?;
        (Some(domid(domain)?), name, value)
    } else {
        let [name, value] = exact(payload)?;
        (None, name, value)
    };
    match text::atoi_unsigned(value) {
        // The C server's mark for "not set".
        u32::MAX => Err(XsError::EINVAL),
        value => Ok(Request::SetQuota { domid, name, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const PLAIN: Grammar = Grammar { features: 0, privileged: false };
    const FULL: Grammar = Grammar { features: features::OFFERED, privileged: true };

    fn parse(kind: Kind, payload: &[u8]) -> Result<Request<'_>, XsError> {
        Request::parse(kind, payload, FULL)
    }

    fn refused(kind: Kind, payloads: &[&[u8]]) {
        for payload in payloads {
            assert_eq!(parse(kind, payload), Err(XsError::EINVAL), "{kind:?} {payload:?}");
        }
    }

    #[test]
    fn single_paths() {
        for kind in [Kind::Directory, Kind::Read, Kind::GetPerms, Kind::Mkdir, Kind::Rm] {
            refused(kind, &[b"", b"a", b"a\0b\0", b"a\0b"]);
        }
        assert_eq!(parse(Kind::Read, b"/a\0"), Ok(Request::Read { path: b"/a" }));
        assert_eq!(parse(Kind::Read, b"\0"), Ok(Request::Read { path: b"" }));
    }

    #[test]
    fn single_domids() {
        use Kind::{GetDomainPath, IsDomainIntroduced, Release, Resume};
        for kind in [GetDomainPath, IsDomainIntroduced, Release, Resume] {
            refused(kind, &[b"", b"1", b"x\0", b"1x\0", b"65536\0", b"-1\0", b"1\x002\0"]);
        }
        assert_eq!(parse(Release, b"7\0"), Ok(Request::Release { domid: DomId(7) }));
        assert_eq!(parse(Release, b"\0"), Ok(Request::Release { domid: DomId(0) }));
    }

    #[test]
    fn the_value_of_write_is_raw() {
        refused(Kind::Write, &[b"", b"/a"]);
        let request = parse(Kind::Write, b"/a\0x\0y\0");
        assert_eq!(request, Ok(Request::Write { path: b"/a", value: b"x\0y\0" }));
        assert_eq!(parse(Kind::Write, b"/a\0"), Ok(Request::Write { path: b"/a", value: b"" }));
    }

    #[test]
    fn watches_take_a_depth_only_with_the_feature() {
        let depth = |depth| Ok(Request::Watch { path: b"p", token: b"t", depth });
        assert_eq!(parse(Kind::Watch, b"p\0t\0"), depth(None));
        assert_eq!(parse(Kind::Watch, b"p\0t\x002\0"), depth(Some(2)));
        assert_eq!(parse(Kind::Watch, b"p\0t\0x\0"), depth(Some(0)));
        refused(Kind::Watch, &[b"", b"p\0", b"p\0t", b"p\0t\0-1\0", b"p\0t\x001\x001\0"]);
        assert_eq!(Request::parse(Kind::Watch, b"p\0t\x002\0", PLAIN), Err(XsError::EINVAL));
        assert_eq!(Request::parse(Kind::Watch, b"p\0t\0", PLAIN), depth(None));
        refused(Kind::Unwatch, &[b"", b"p\0", b"p\0t\x001\0"]);
        let request = parse(Kind::Unwatch, b"p\0t\0");
        assert_eq!(request, Ok(Request::Unwatch { path: b"p", token: b"t" }));
    }

    #[test]
    fn transactions() {
        for payload in [&b""[..], b"\0", b"anything", b"a\0b\0"] {
            assert_eq!(parse(Kind::TransactionStart, payload), Ok(Request::TransactionStart));
            assert_eq!(parse(Kind::ResetWatches, payload), Ok(Request::ResetWatches));
        }
        refused(Kind::TransactionEnd, &[b"", b"T", b"\0", b"t\0", b"TT\0", b"T\0\0", b"X\0"]);
        let end = |commit| Ok(Request::TransactionEnd { commit });
        assert_eq!(parse(Kind::TransactionEnd, b"T\0"), end(true));
        assert_eq!(parse(Kind::TransactionEnd, b"F\0"), end(false));
    }

    #[test]
    fn domain_requests() {
        refused(Kind::Introduce, &[b"", b"1\x002\0", b"1\x002\x003", b"x\x002\x003\0"]);
        let introduce = |port| Ok(Request::Introduce { domid: DomId(1), port });
        assert_eq!(parse(Kind::Introduce, b"1\0gfn\x003\0more\0"), introduce(3));
        assert_eq!(parse(Kind::Introduce, b"1\0gfn\0-1\0"), introduce(u32::MAX));
        assert_eq!(parse(Kind::Introduce, b"1\0gfn\0x\0"), introduce(0));
        refused(Kind::SetTarget, &[b"", b"1\0", b"1\0x\0", b"x\x001\0"]);
        let request = parse(Kind::SetTarget, b"1\x002\0more");
        assert_eq!(request, Ok(Request::SetTarget { domid: DomId(1), target: DomId(2) }));
    }

    #[test]
    fn permissions_are_counted_before_they_are_judged() {
        refused(Kind::SetPerms, &[b"", b"/a\0", b"/a\0n0"]);
        let Ok(Request::SetPerms { path, perms }) = parse(Kind::SetPerms, b"/a\0n0\0r0x5\0tail")
        else {
            panic!("must parse");
        };
        assert_eq!((path, perms.count()), (&b"/a"[..], 2));
        let entries = perms.iter().collect::<Vec<_>>();
        assert_eq!(entries, [Ok((b'n', DomId(0))), Ok((b'r', DomId(5)))]);
        for bad in [&b"/a\0\0"[..], b"/a\0n\0", b"/a\0nx\0", b"/a\0n0 \0", b"/a\0n-1\0"] {
            let Ok(Request::SetPerms { perms, .. }) = parse(Kind::SetPerms, bad) else {
                panic!("must parse");
            };
            assert_eq!(perms.iter().collect::<Vec<_>>(), [Err(XsError::EINVAL)]);
        }
    }

    #[test]
    fn directory_part() {
        refused(Kind::DirectoryPart, &[b"", b"/a\0", b"/a\x000\x000\0"]);
        let part = |offset| Ok(Request::DirectoryPart { path: b"/a", offset });
        assert_eq!(parse(Kind::DirectoryPart, b"/a\x0017\0"), part(17));
        assert_eq!(parse(Kind::DirectoryPart, b"/a\0-2\0"), part(-2));
    }

    #[test]
    fn features_without_and_with_arguments() {
        let get = |domid| Ok(Request::GetFeature { domid });
        assert_eq!(parse(Kind::GetFeature, b""), get(None));
        assert_eq!(Request::parse(Kind::GetFeature, b"", PLAIN), get(None));
        // One NUL is one empty argument, not the form without arguments.
        assert_eq!(parse(Kind::GetFeature, b"\0"), get(Some(DomId(0))));
        assert_eq!(Request::parse(Kind::GetFeature, b"\0", PLAIN), Err(XsError::EACCES));
        assert_eq!(Request::parse(Kind::GetFeature, b"1\x002\0", PLAIN), Err(XsError::EACCES));
        refused(Kind::GetFeature, &[b"1\x002\0", b"x\0"]);
        refused(Kind::SetFeature, &[b"", b"1\0", b"1\x002\x003\0", b"x\x002\0"]);
        let request = parse(Kind::SetFeature, b"1\x006\0");
        assert_eq!(request, Ok(Request::SetFeature { domid: DomId(1), mask: 6 }));
    }

    #[test]
    fn quotas() {
        assert_eq!(parse(Kind::GetQuota, b""), Ok(Request::GetQuotaNames));
        let get = |domid, name| Ok(Request::GetQuota { domid, name });
        assert_eq!(parse(Kind::GetQuota, b"nodes\0"), get(None, b"nodes"));
        assert_eq!(parse(Kind::GetQuota, b"3\0nodes\0"), get(Some(DomId(3)), b"nodes"));
        refused(Kind::GetQuota, &[b"3\0nodes\x001\0", b"x\0nodes\0"]);
        let set = |domid, value| Ok(Request::SetQuota { domid, name: b"nodes", value });
        assert_eq!(parse(Kind::SetQuota, b"nodes\x005\0"), set(None, 5));
        assert_eq!(parse(Kind::SetQuota, b"3\0nodes\x000\0"), set(Some(DomId(3)), 0));
        let bad: [&[u8]; 6] = [
            b"",
            b"nodes\0",
            b"nodes\x004294967295\0",
            b"nodes\0-1\0",
            b"x\0nodes\x001\0",
            b"1\0nodes\x001\x001\0",
        ];
        refused(Kind::SetQuota, &bad);
    }

    #[test]
    fn control_needs_a_command() {
        refused(Kind::Control, &[b"", b"help"]);
        let request = parse(Kind::Control, b"live-update\0-d\x002\0\0\x01\0");
        let arguments = &b"-d\x002\0\0\x01\0"[..];
        assert_eq!(request, Ok(Request::Control { command: b"live-update", arguments }));
    }

    #[test]
    fn types_that_only_a_server_sends() {
        for kind in [Kind::WatchEvent, Kind::Error] {
            assert_eq!(parse(kind, b"x\0"), Err(XsError::ENOSYS));
        }
    }
}
