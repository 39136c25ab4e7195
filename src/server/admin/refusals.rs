//! Refusals for want of a quota. Each domain's first refusal of each quota is told, since "it stopped and nothing
//! is in the log" is what people meet first.
//!
//! The store notes which quota it was ([`Store::take_refused`](crate::store::Store::take_refused)), so nothing is
//! guessed here. A domain cannot have a line repeated: a refusal counts as told as long as the connection lasts,
//! also over a live update. It is told again after the domain's limit was changed.

use super::log::Repeated;
use crate::proto::error::XsError;
use crate::proto::handover::{FieldReader, FieldWriter, Short};
use crate::proto::id::ConnId;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::{Header, Kind};
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::rings::{Sums, Suspension};
use crate::store::Level;
use crate::store::quota::Quota;

/// What an administrator has been told about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::server) struct Told {
    /// A bit for each quota, at its place in [`Quota::ALL`].
    quotas: u32,
    /// Refusals so far, told or not.
    pub(in crate::server) refused: u64,
}

/// The bit of a quota.
fn bit(quota: Quota) -> u32 {
    u32::try_from(quota as usize).map_or(0, |place| 1_u32.wrapping_shl(place))
}

impl Told {
    /// Writes it for a successor.
    pub(in crate::server) fn write<S: Sink>(
        self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.u32(self.quotas)?;
        fields.u64(self.refused)
    }

    /// Reads it.
    pub(in crate::server) fn read(fields: &mut FieldReader<'_>) -> Result<Self, Short> {
        Ok(Self { quotas: fields.u32()?, refused: fields.u64()? })
    }

    /// Notes that a refusal for this quota was told; `false` if it was already.
    fn is_first(&mut self, quota: Quota) -> bool {
        let before = self.quotas;
        self.quotas |= bit(quota);
        self.quotas != before
    }

    /// Whether a refusal for this quota was told.
    pub(in crate::server) fn knows(self, quota: Quota) -> bool {
        self.quotas & bit(quota) != 0
    }

    /// The limit has changed, so from now on a refusal is news.
    pub(in crate::server) fn forget(&mut self, quota: Quota) {
        self.quotas &= !bit(quota);
    }
}

/// What was refused for want of a quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Refused {
    /// A request.
    Request(Kind),
    /// An event, which is dropped.
    Event,
    /// The reply to a request. The request itself had its effect.
    Reply,
    /// Any further request: they stay in the ring for now.
    Reading,
}

impl<P: Platform> Server<P> {
    /// Notes a request's error.
    pub(in crate::server) fn note_refusal(&mut self, id: ConnId, header: Header, error: XsError) {
        let quota = self.store.take_refused();
        let Some(kind) = Kind::from_number(header.kind) else { return };
        match (quota, error) {
            (Some(quota), XsError::ENOSPC | XsError::ENOMEM) => {
                self.refuse(id, quota, Refused::Request(kind));
            }
            // The commit of a transaction in which something was refused, and told, before.
            (None, XsError::ENOMEM) if kind == Kind::TransactionEnd => {}
            // No quota was in the way, so it is the server that has no more.
            (None, XsError::ENOMEM) => {
                self.guest_log(
                    id,
                    Repeated::NoMemory,
                    format_args!("{kind:?} refused, no memory is left"),
                );
            }
            (Some(_) | None, _) => {}
        }
    }

    /// Notes that something is refused to a connection for want of a quota of its domain.
    pub(in crate::server) fn refuse(&mut self, id: ConnId, quota: Quota, what: Refused) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.privileged {
            return;
        }
        let (is_first, domid) = (connection.told.is_first(quota), connection.domid);
        if what != Refused::Reading {
            self.connections.count(id, Sums::REFUSAL);
        }
        if !is_first {
            return;
        }
        let limit = self.store.quota(Some(domid), quota).unwrap_or(0);
        let name = quota.name();
        match what {
            Refused::Request(kind) => {
                self.tell(
                    id,
                    format_args!("{kind:?} refused for want of its quota {name}, {limit}"),
                );
            }
            Refused::Reply => {
                self.tell(id, format_args!("reply refused for want of its quota {name}, {limit}"));
            }
            Refused::Event => {
                self.tell(id, format_args!("event dropped for want of its quota {name}, {limit}"));
            }
            Refused::Reading => {
                self.tell(id, format_args!("has to wait for want of its quota {name}, {limit}"));
            }
        }
    }

    /// Notes that a ring is not read from now on, or is read again.
    pub(in crate::server) fn tell_suspension(
        &mut self,
        id: ConnId,
        suspension: Option<Suspension>,
    ) {
        let Some(connection) = self.connections.get(id) else { return };
        match suspension {
            Some(Suspension::Outstanding) => self.refuse(id, Quota::Outstanding, Refused::Reading),
            Some(Suspension::Memory) if self.store.allows(connection.domid, Quota::Memory, 1) => {
                self.guest_log(
                    id,
                    Repeated::NoMemory,
                    format_args!("has to wait, no memory is left"),
                );
            }
            Some(Suspension::Memory) => self.refuse(id, Quota::Memory, Refused::Reading),
            // The switch `wrl` is for that.
            Some(Suspension::Rate(_)) | None => {}
        }
    }

    /// Warns about a domain that makes the server hold much. Nothing else follows.
    pub(in crate::server) fn watch_soft_memory(&mut self, id: ConnId, level: Level) {
        match level {
            Level::Fine => {}
            Level::Soft { used, limit } => self.guest_log(
                id,
                Repeated::Holds,
                format_args!("holds {used} bytes, the soft limit is {limit}"),
            ),
            Level::Over => {
                self.guest_log(id, Repeated::Holds, format_args!("holds more memory than it may"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quota_is_told_once_until_its_limit_changes() {
        let mut told = Told::default();
        for quota in Quota::ALL {
            assert!(told.is_first(quota), "{quota:?}");
            assert!(!told.is_first(quota), "{quota:?}");
        }
        told.forget(Quota::Nodes);
        assert!(told.is_first(Quota::Nodes));
        assert!(!told.is_first(Quota::Watches));
    }
}
