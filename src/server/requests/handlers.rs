//! What each request type does; domains and CONTROL have files of their own.

use super::dispatch::{Answer, Asker, Reply};
use crate::mem::{Progress, TryVec, try_with_capacity};
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::request::{PermTexts, Request};
use crate::proto::text::Decimal;
use crate::proto::wire::features;
use crate::server::Server;
use crate::server::domains::Known;
use crate::server::platform::Platform;
use crate::store::Look;
use crate::store::perms::{Access, Entry};
use crate::store::quota::Quota;
use alloc::borrow::Cow;
use alloc::vec::Vec;

impl<P: Platform> Server<P> {
    /// A reply's payload, written by a function. [`More`](Progress::More) means that it has to be called again.
    fn data(
        &mut self,
        read: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<Progress, XsError>,
    ) -> Answer {
        let mut reply = self.reply_room()?;
        match read(self, &mut reply) {
            Ok(Progress::Done) => Ok(Reply::Data(reply)),
            other => {
                self.keep_reply_room(Cow::Owned(reply));
                other.map(|_more| Reply::Wait)
            }
        }
    }

    /// The answer to a request that looks at a node.
    fn look(&mut self, asker: Asker, what: Look, path: &[u8]) -> Answer {
        self.data(|s, reply| s.store.look(asker.caller(), what, path, reply, &mut s.budget))
    }

    /// A reply's payload made of parts, with a NUL behind it.
    fn text<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) -> Answer {
        self.data(|_, reply| {
            for part in parts {
                reply.try_extend(part)?;
            }
            reply.try_push(0)?;
            Ok(Progress::Done)
        })
    }

    /// A number as the text of a reply.
    fn number(&mut self, value: u32) -> Answer {
        self.text([Decimal::new(u64::from(value)).as_bytes()])
    }

    /// The answer of a store operation without a result. The work that it has begun may go on in later turns.
    fn done(&self, conn: ConnId, result: Result<Progress, XsError>) -> Answer {
        match result {
            Ok(Progress::Done) => Ok(Reply::Done),
            Ok(Progress::More) if self.store.is_asked_again(conn) => Ok(Reply::Wait),
            Ok(Progress::More) => Ok(Reply::Working(Ok(()))),
            Err(error) if self.store.is_busy(conn) => Ok(Reply::Working(Err(error))),
            Err(error) => Err(error),
        }
    }

    /// Carries out a request that passed the checks common to all.
    pub(in crate::server) fn handle(&mut self, asker: Asker, request: &Request<'_>) -> Answer {
        let caller = asker.caller();
        let (store, budget, mut mail) = self.mail(self.asked);
        let post = &mut mail;
        let result = match *request {
            Request::Directory { path } => return self.look(asker, Look::Directory, path),
            Request::DirectoryPart { path, offset } => {
                return self.look(asker, Look::DirectoryPart(offset), path);
            }
            Request::Read { path } => return self.look(asker, Look::Read, path),
            Request::GetPerms { path } => return self.look(asker, Look::GetPerms, path),
            Request::Write { path, value } => store.write(caller, path, value, budget, post),
            Request::Mkdir { path } => store.mkdir(caller, path, budget, post),
            Request::Rm { path } => store.rm(caller, path, budget, post),
            Request::SetPerms { path, perms } => return self.set_perms(asker, path, perms),
            Request::Unwatch { path, token } => store.unwatch_some(asker.id, path, token, budget),
            Request::ResetWatches => Ok(store.reset(asker.id, budget, post)),
            Request::TransactionEnd { .. } if caller.tx == TxId::NONE => Err(XsError::ENOENT),
            Request::TransactionEnd { commit } => {
                store.end_transaction(caller.conn, caller.tx, commit, budget, post)
            }
            Request::Watch { path, token, depth } => {
                return self.watch(asker, path, token, depth);
            }
            Request::TransactionStart => return self.start_transaction(asker),
            Request::GetDomainPath { domid } => return self.domain_path(domid),
            Request::Introduce { domid, port } => return self.introduce(asker.domid, domid, port),
            Request::Release { domid } => return self.release(domid),
            Request::Resume { domid } => return self.resume_domain(domid),
            Request::IsDomainIntroduced { domid } => return self.is_introduced(domid),
            Request::SetTarget { domid, target } => return self.set_target(domid, target),
            Request::GetFeature { domid } => return self.get_feature(asker, domid),
            Request::SetFeature { domid, mask } => return self.set_feature(domid, mask),
            Request::GetQuotaNames => return self.quota_names(),
            Request::GetQuota { domid, name } => return self.get_quota(domid, name),
            Request::SetQuota { domid, name, value } => return self.set_quota(domid, name, value),
            Request::Control { command, arguments } => {
                return self.control(asker, command, arguments);
            }
        };
        self.done(asker.id, result)
    }

    /// WATCH. Clients wait for the first event of every watch that they were granted.
    fn watch(&mut self, asker: Asker, path: &[u8], token: &[u8], depth: Option<u32>) -> Answer {
        let (store, budget) = (&mut self.store, &mut self.budget);
        if !store.watch_some(asker.id, path, token, depth, budget)?.is_done() {
            return Ok(Reply::Wait);
        }
        match self.make_event(asker, path, token) {
            Ok(event) => Ok(Reply::Watching(event)),
            Err(error) => {
                self.store.unwatch_last(asker.id, &mut self.budget);
                Err(error)
            }
        }
    }

    /// TRANSACTION_START: transactions do not nest.
    fn start_transaction(&mut self, asker: Asker) -> Answer {
        if asker.tx != TxId::NONE {
            return Err(XsError::EBUSY);
        }
        let TxId(id) = self.store.start_transaction(asker.id)?;
        self.number(id)
    }

    /// GET_DOMAIN_PATH: the home of any domid; the toolstack asks before there is such a domain.
    fn domain_path(&mut self, domid: DomId) -> Answer {
        self.text([&b"/local/domain/"[..], Decimal::new(u64::from(domid.0)).as_bytes()])
    }

    /// GET_QUOTA without a name: the names, with blanks between them.
    fn quota_names(&mut self) -> Answer {
        let separated = Quota::ALL.into_iter().flat_map(|quota| {
            let blank: &[u8] = if quota == Quota::Nodes { b"" } else { b" " };
            [blank, quota.name().as_bytes()]
        });
        self.text(separated)
    }

    /// Whether a request has to wait because it names a domain that is not quite gone, or an unknown one while
    /// accounts of dead ones are unsettled. The domain with that domid must not meet what belonged to the former
    /// one.
    pub(in crate::server) fn has_to_wait(&self, request: &Request<'_>) -> bool {
        if !self.store.has_deaths() && self.trash.is_empty() {
            return false;
        }
        let waits = |domid: DomId| {
            self.store.is_dying(domid)
                || !self.trash.is_empty() && domid.is_ordinary() && !self.domains.contains(domid)
        };
        match *request {
            Request::Introduce { domid, .. }
            | Request::Release { domid }
            | Request::Resume { domid }
            | Request::SetFeature { domid, .. }
            | Request::GetFeature { domid: Some(domid) }
            | Request::GetQuota { domid: Some(domid), .. }
            | Request::SetQuota { domid: Some(domid), .. } => waits(domid),
            Request::SetTarget { domid, target } => waits(domid) || waits(target),
            Request::SetPerms { perms, .. } => {
                perms.iter().any(|entry| entry.is_ok_and(|(_, domid)| waits(domid)))
            }
            // They name no domain that has to be there.
            Request::GetDomainPath { .. }
            | Request::IsDomainIntroduced { .. }
            | Request::GetFeature { domid: None }
            | Request::GetQuota { domid: None, .. }
            | Request::SetQuota { domid: None, .. }
            | Request::GetQuotaNames
            | Request::Control { .. }
            | Request::Directory { .. }
            | Request::DirectoryPart { .. }
            | Request::Read { .. }
            | Request::GetPerms { .. }
            | Request::Write { .. }
            | Request::Mkdir { .. }
            | Request::Rm { .. }
            | Request::Watch { .. }
            | Request::Unwatch { .. }
            | Request::ResetWatches
            | Request::TransactionStart
            | Request::TransactionEnd { .. } => false,
        }
    }

    /// SET_PERMS: checks the number of entries and their syntax, then who the domains are. The store does the
    /// rest.
    fn set_perms(&mut self, asker: Asker, path: &[u8], perms: PermTexts<'_>) -> Answer {
        self.store.check_perms_count(asker.id, perms.count())?;
        let mut entries = try_with_capacity(perms.count())?;
        for entry in perms.iter() {
            let (letter, domid) = entry?;
            let access = Access::from_letter(letter).ok_or(XsError::EINVAL)?;
            let wildcard = domid == DomId::ANY;
            // Who does not know the wildcard gets an entry that is kept but never matches.
            let stale = wildcard && asker.features & features::DOMID_ANY == 0;
            entries.try_push(Entry { domid, access, stale })?;
        }
        for entry in &entries {
            // Rights may be given to a domain before it is introduced; the store treats the domains that
            // nobody knows as stale.
            if !asker.privileged {
                self.learn_certain(entry.domid)?;
            } else if self.learn(entry.domid)? == Known::Dying {
                return Ok(Reply::Wait);
            }
        }
        let (store, budget, mut mail) = self.mail(self.asked);
        let result = store.set_perms(asker.caller(), path, &entries, budget, &mut mail);
        self.done(asker.id, result)
    }

    /// The answer to a request about a domain if that is not known.
    fn must_be_known(&mut self, domid: DomId) -> Option<Answer> {
        match self.learn(domid) {
            Ok(Known::Yes) => None,
            Ok(Known::No) => Some(Err(XsError::ENOENT)),
            Ok(Known::Dying) => Some(Ok(Reply::Wait)),
            Err(error) => Some(Err(error)),
        }
    }

    /// GET_FEATURE: one's own bits for everybody, others' for the privileged domain.
    fn get_feature(&mut self, asker: Asker, domid: Option<DomId>) -> Answer {
        let Some(domid) = domid else { return self.number(asker.features) };
        if let Some(answer) = self.must_be_known(domid) {
            return answer;
        }
        let domain = self.domains.get(domid).ok_or(XsError::ENOENT)?;
        let features = domain.features;
        self.number(features)
    }

    /// SET_FEATURE: what a domain will be shown, so only before it is introduced.
    fn set_feature(&mut self, domid: DomId, mask: u32) -> Answer {
        if let Some(answer) = self.must_be_known(domid) {
            return answer;
        }
        let domain = self.domains.get_mut(domid).ok_or(XsError::ENOENT)?;
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
        if let Some(answer) = domid.and_then(|domid| self.must_be_known(domid)) {
            return answer;
        }
        let value = self.store.quota(domid, quota).ok_or(XsError::ENOENT)?;
        self.number(value)
    }

    /// SET_QUOTA: changes the limits of domains to come, or of one domain.
    fn set_quota(&mut self, domid: Option<DomId>, name: &[u8], value: u32) -> Answer {
        let quota = Quota::from_name(name).ok_or(XsError::EINVAL)?;
        if let Some(answer) = domid.and_then(|domid| self.must_be_known(domid)) {
            return answer;
        }
        if !self.store.set_quota(domid, quota, value) {
            return Err(XsError::ENOENT);
        }
        // Its ring may be suspended for a limit that has just been raised.
        let id = domid.and_then(|domid| self.domains.get(domid)?.connection);
        if let Some(id) = id {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.told.forget(quota);
            }
            self.resume(id);
        }
        Ok(Reply::Done)
    }
}
