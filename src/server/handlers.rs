//! What each request type does; domains and CONTROL have files of their own.

use super::Server;
use super::dispatch::{Answer, Asker, Reply};
use super::platform::Platform;
use super::queue::MESSAGE_OVERHEAD;
use crate::mem::{Budget, Progress};
use crate::proto::error::XsError;
use crate::proto::id::{DomId, TxId};
use crate::proto::request::{PermTexts, Request};
use crate::proto::text::push_decimal;
use crate::proto::wire::features;
use crate::store::perms::{Access, Entry};
use crate::store::quota::Quota;
use crate::store::{Caller, Store};
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// A number as the text of a reply.
fn number(value: u32) -> Reply {
    let mut text = Vec::new();
    push_decimal(&mut text, u64::from(value));
    text.push(0);
    Reply::Data(text)
}

impl<P: Platform> Server<P> {
    /// A reply's payload as the store writes it.
    fn data(
        &mut self,
        read: impl FnOnce(&mut Store, &mut Vec<u8>) -> Result<(), XsError>,
    ) -> Answer {
        let mut reply = self.reply_room();
        match read(&mut self.store, &mut reply) {
            Ok(()) => Ok(Reply::Data(reply)),
            Err(error) => {
                self.keep_reply_room(Cow::Owned(reply));
                Err(error)
            }
        }
    }

    /// Carries out a request that passed the checks common to all.
    pub(super) fn handle(&mut self, asker: Asker, request: &Request<'_>) -> Answer {
        let caller = asker.caller();
        let mut budget = Budget::endless();
        let (store, budget, post) = (&mut self.store, &mut budget, &mut self.gathered);
        match *request {
            Request::Directory { path } => self.data(|s, out| s.directory(caller, path, out)),
            Request::DirectoryPart { path, offset } => {
                self.data(|s, out| s.directory_part(caller, path, offset, out))
            }
            Request::Read { path } => self.data(|s, out| s.read(caller, path, out)),
            Request::GetPerms { path } => self.data(|s, out| s.get_perms(caller, path, out)),
            Request::Write { path, value } => done(store.write(caller, path, value, budget, post)),
            Request::Mkdir { path } => done(store.mkdir(caller, path, budget, post)),
            Request::Rm { path } => done(store.rm(caller, path, budget, post)),
            Request::SetPerms { path, perms } => self.set_perms(asker, path, perms),
            Request::Watch { path, token, depth } => {
                store.watch(asker.id, path, token, depth)?;
                let event = [path, &[0], token, &[0]].concat();
                let cost = event.len().saturating_add(MESSAGE_OVERHEAD);
                if !asker.privileged && !store.allows(asker.domid, Quota::Memory, cost) {
                    // Clients wait for the first event of every watch that they were granted.
                    store.unwatch(asker.id, path, token)?;
                    return Err(XsError::ENOMEM);
                }
                Ok(Reply::Watching(event))
            }
            Request::Unwatch { path, token } => {
                store.unwatch(asker.id, path, token)?;
                Ok(Reply::Done)
            }
            Request::ResetWatches => {
                let _done = store.reset(asker.id, budget, post);
                Ok(Reply::Done)
            }
            Request::TransactionStart => start_transaction(store, caller),
            Request::TransactionEnd { commit } => {
                if caller.tx == TxId::NONE {
                    return Err(XsError::ENOENT);
                }
                done(store.end_transaction(caller.conn, caller.tx, commit, budget, post))
            }
            Request::GetDomainPath { domid } => Ok(domain_path(domid)),
            Request::Introduce { domid, port } => self.introduce(domid, port),
            Request::Release { domid } => self.release(domid),
            Request::Resume { domid } => self.resume_domain(domid),
            Request::IsDomainIntroduced { domid } => Ok(self.is_introduced(domid)),
            Request::SetTarget { domid, target } => self.set_target(domid, target),
            Request::GetFeature { domid } => self.get_feature(asker, domid),
            Request::SetFeature { domid, mask } => self.set_feature(domid, mask),
            Request::GetQuotaNames => Ok(quota_names()),
            Request::GetQuota { domid, name } => self.get_quota(domid, name),
            Request::SetQuota { domid, name, value } => self.set_quota(domid, name, value),
            Request::Control { command, arguments } => self.control(asker, command, arguments),
        }
    }

    /// SET_PERMS: number of entries, their syntax, then who the domains are; the rest is the store's.
    fn set_perms(&mut self, asker: Asker, path: &[u8], perms: PermTexts<'_>) -> Answer {
        self.store.check_perms_count(asker.id, perms.count())?;
        let mut entries = Vec::with_capacity(perms.count());
        for entry in perms.iter() {
            let (letter, domid) = entry?;
            let access = Access::from_letter(letter).ok_or(XsError::EINVAL)?;
            let wildcard = domid == DomId::ANY;
            // Who does not know the wildcard gets an entry that is kept but never matches.
            let stale = wildcard && asker.features & features::DOMID_ANY == 0;
            entries.push(Entry { domid, access, stale });
        }
        for entry in &entries {
            // Rights may be given to a domain before it is introduced; the store treats the domains that
            // nobody knows as stale.
            if asker.privileged {
                let _ = self.learn(entry.domid);
            } else {
                self.learn_certain(entry.domid);
            }
        }
        let (budget, post) = (&mut Budget::endless(), &mut self.gathered);
        done(self.store.set_perms(asker.caller(), path, &entries, budget, post))
    }

    /// GET_FEATURE: one's own bits for everybody, others' for the privileged domain.
    fn get_feature(&mut self, asker: Asker, domid: Option<DomId>) -> Answer {
        let Some(domid) = domid else { return Ok(number(asker.features)) };
        if !self.learn(domid) {
            return Err(XsError::ENOENT);
        }
        let domain = self.domains.get(&domid).ok_or(XsError::ENOENT)?;
        Ok(number(domain.features))
    }

    /// SET_FEATURE: what a domain will be shown, so only before it is introduced.
    fn set_feature(&mut self, domid: DomId, mask: u32) -> Answer {
        if !self.learn(domid) {
            return Err(XsError::ENOENT);
        }
        let domain = self.domains.get_mut(&domid).ok_or(XsError::ENOENT)?;
        if domain.connection.is_some() {
            return Err(XsError::EBUSY);
        }
        if mask & !features::OFFERED != 0 {
            return Err(XsError::EINVAL);
        }
        domain.features = mask;
        Ok(Reply::Done)
    }

    /// GET_QUOTA with a name: the initial limit, or that of a domain.
    fn get_quota(&mut self, domid: Option<DomId>, name: &[u8]) -> Answer {
        let quota = Quota::from_name(name).ok_or(XsError::EINVAL)?;
        if let Some(domid) = domid {
            if !self.learn(domid) {
                return Err(XsError::ENOENT);
            }
        }
        self.store.quota(domid, quota).map(number).ok_or(XsError::ENOENT)
    }

    /// SET_QUOTA: changes the limits of domains to come, or of one domain.
    fn set_quota(&mut self, domid: Option<DomId>, name: &[u8], value: u32) -> Answer {
        let quota = Quota::from_name(name).ok_or(XsError::EINVAL)?;
        if let Some(domid) = domid {
            if !self.learn(domid) {
                return Err(XsError::ENOENT);
            }
        }
        if !self.store.set_quota(domid, quota, value) {
            return Err(XsError::ENOENT);
        }
        // Its ring may be suspended for a limit that has just been raised.
        let id = domid.and_then(|domid| self.domains.get(&domid)?.connection);
        if let Some(id) = id {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.told.forget(quota);
            }
            self.resume(id);
        }
        Ok(Reply::Done)
    }
}

/// The answer of a store operation without a result.
fn done(result: Result<Progress, XsError>) -> Answer {
    result.map(|_| Reply::Done)
}

/// TRANSACTION_START: transactions do not nest.
fn start_transaction(store: &mut Store, caller: Caller) -> Answer {
    if caller.tx != TxId::NONE {
        return Err(XsError::EBUSY);
    }
    store.start_transaction(caller.conn).map(|TxId(id)| number(id))
}

/// GET_DOMAIN_PATH: the home of any domid; the toolstack asks before there is such a domain.
fn domain_path(domid: DomId) -> Reply {
    let mut path = b"/local/domain/".to_vec();
    push_decimal(&mut path, u64::from(domid.0));
    path.push(0);
    Reply::Data(path)
}

/// GET_QUOTA without a name: the names, with blanks between them.
fn quota_names() -> Reply {
    let mut names = Vec::new();
    for quota in Quota::ALL {
        if !names.is_empty() {
            names.push(b' ');
        }
        names.extend_from_slice(quota.name().as_bytes());
    }
    names.push(0);
    Reply::Data(names)
}
