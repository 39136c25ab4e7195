//! The error names of the protocol.

/// An error as it is sent to a client: the payload of an `ERROR` message is the name and a NUL.
///
/// The variants stand in the order of the public header's table (`xsd_errors` in
/// `xen/include/public/io/xs_wire.h`); a client maps a name that it does not find there to the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "each name is its own meaning, that of errno(3)")]
pub enum XsError {
    EINVAL,
    EACCES,
    EEXIST,
    EISDIR,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EIO,
    ENOTEMPTY,
    ENOSYS,
    EROFS,
    EBUSY,
    EAGAIN,
    EISCONN,
    E2BIG,
    EPERM,
}

impl From<crate::mem::NoMemory> for XsError {
    fn from(_: crate::mem::NoMemory) -> Self {
        Self::ENOMEM
    }
}

impl XsError {
    /// Every error, in the order of the public header's table.
    pub const ALL: [Self; 16] = [
        Self::EINVAL,
        Self::EACCES,
        Self::EEXIST,
        Self::EISDIR,
        Self::ENOENT,
        Self::ENOMEM,
        Self::ENOSPC,
        Self::EIO,
        Self::ENOTEMPTY,
        Self::ENOSYS,
        Self::EROFS,
        Self::EBUSY,
        Self::EAGAIN,
        Self::EISCONN,
        Self::E2BIG,
        Self::EPERM,
    ];

    /// The name on the wire, without the terminating NUL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EINVAL => "EINVAL",
            Self::EACCES => "EACCES",
            Self::EEXIST => "EEXIST",
            Self::EISDIR => "EISDIR",
            Self::ENOENT => "ENOENT",
            Self::ENOMEM => "ENOMEM",
            Self::ENOSPC => "ENOSPC",
            Self::EIO => "EIO",
            Self::ENOTEMPTY => "ENOTEMPTY",
            Self::ENOSYS => "ENOSYS",
            Self::EROFS => "EROFS",
            Self::EBUSY => "EBUSY",
            Self::EAGAIN => "EAGAIN",
            Self::EISCONN => "EISCONN",
            Self::E2BIG => "E2BIG",
            Self::EPERM => "EPERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn names_are_the_variants_names() {
        for error in XsError::ALL {
            assert_eq!(error.name(), format!("{error:?}"));
        }
    }
}
