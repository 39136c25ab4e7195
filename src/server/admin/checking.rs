//! CONTROL `check` and `quota max`. Both look at everything. They do so in turns, with other requests in between,
//! and take no memory but that of their replies.

use super::control::{Text, text};
use crate::mem::Budget;
use crate::proto::id::DomId;
use crate::server::Server;
use crate::server::handover::{InProgress, Requester};
use crate::server::platform::Platform;
use crate::server::requests::{Answer, Asker, Reply};
use crate::server::rings::Busy;
use crate::store::Inspection;
use crate::store::quota::{Quota, Quotas};
use core::fmt::Arguments;

/// At most so many findings are told one by one: more have one cause.
const FINDINGS_MAX: usize = 50;

/// A check that is under way.
#[derive(Debug)]
pub(in crate::server) struct Checking {
    requester: Requester,
    at: Inspection,
    /// The reply: what is wrong, as far as it fits.
    text: Text,
    found: usize,
}

impl Checking {
    /// Bytes that it takes of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        self.text.taken()
    }
}

impl<P: Platform> Server<P> {
    /// `check`: the answer comes when everything was looked at.
    pub(in crate::server) fn control_check(&mut self, asker: Asker) -> Answer {
        if self.checking.is_some() {
            return text(format_args!("a check goes on already; try again when it has ended"));
        }
        let (requester, at, found) = (asker.into(), Inspection::START, 0);
        self.checking = Some(Checking { requester, at, text: Text::new()?, found });
        Ok(self.put_off(asker))
    }

    /// The answer comes in a later turn. Replies keep the order of their requests, so the next one is not read before.
    fn put_off(&mut self, asker: Asker) -> Reply {
        if let Some(connection) = self.connections.get_mut(asker.id) {
            connection.busy = Some(Busy::Check);
        }
        Reply::Later
    }

    /// One turn of the check.
    pub(in crate::server) fn check_on(&mut self) {
        let Some(checking) = self.checking.take() else { return };
        let requester = checking.requester;
        self.in_progress =
            InProgress { conn: Some(requester.conn), header: Some(requester.header()) };
        self.check_part(checking);
        self.in_progress = InProgress::default();
    }

    /// A turn of it, and if that was the last one, the answer.
    fn check_part(&mut self, mut checking: Checking) {
        let (store, platform) = (&self.store, &mut self.platform);
        let mut report = |finding: Arguments<'_>| {
            checking.found = checking.found.saturating_add(1);
            if checking.found <= FINDINGS_MAX {
                platform.log(format_args!("check: {finding}"));
                checking.text.line(finding);
            }
        };
        if !store.inspect(&mut checking.at, &mut self.budget, &mut report).is_done() {
            self.checking = Some(checking);
            return;
        }
        let mut findings = Findings { text: checking.text, found: checking.found };
        self.check_connections(&mut |finding| findings.add(finding));
        self.check_sums(findings.text.taken(), &mut |finding| findings.add(finding));
        let more = findings.found.saturating_sub(FINDINGS_MAX);
        if more > 0 {
            findings.text.line(format_args!("and {more} more"));
        }
        let answer = if findings.found == 0 { Ok(Reply::Done) } else { findings.text.reply() };
        self.answer_later(checking.requester, answer);
    }

    /// Ends both at once, since neither is handed over half done.
    pub(in crate::server) fn finish_check(&mut self) {
        while self.is_checking() {
            self.budget = Budget::endless();
            self.check_on();
            self.maxima_on();
        }
    }

    /// Whether one of the two is under way.
    pub(in crate::server) fn is_checking(&self) -> bool {
        self.checking.is_some() || self.maxima.is_some()
    }
}

/// Work for a look at what a domain has used.
const LOOK_WORK: u64 = 200;

/// The most that any guest has ever used, as far as it is known.
#[derive(Debug)]
pub(in crate::server) struct Maxima {
    requester: Requester,
    next: Option<DomId>,
    most: Quotas,
    resets: bool,
}

impl<P: Platform> Server<P> {
    /// `quota max`: the answer comes when every domain was looked at. `resets` sets each domain's maximum to what
    /// it uses now.
    pub(in crate::server) fn control_maxima(&mut self, asker: Asker, resets: bool) -> Answer {
        if self.maxima.is_some() {
            return text(format_args!("somebody else asks that; try again when that has ended"));
        }
        let (requester, next, most) = (asker.into(), Some(DomId(0)), Quotas::ZERO);
        self.maxima = Some(Maxima { requester, next, most, resets });
        Ok(self.put_off(asker))
    }

    /// One turn of that.
    pub(in crate::server) fn maxima_on(&mut self) {
        let Some(maxima) = self.maxima.take() else { return };
        let requester = maxima.requester;
        self.in_progress =
            InProgress { conn: Some(requester.conn), header: Some(requester.header()) };
        self.maxima_part(maxima);
        self.in_progress = InProgress::default();
    }

    /// A turn of it, and if that was the last one, the answer.
    fn maxima_part(&mut self, mut maxima: Maxima) {
        let privileged = self.store.privileged();
        while let Some(from) = maxima.next
            && let Some((domid, _)) = self.domains.next_from(from)
        {
            if self.budget.is_over() {
                self.maxima = Some(maxima);
                return;
            }
            if maxima.resets {
                self.store.reset_peak(domid);
            }
            let peak = self.store.accounts(domid).map_or(Quotas::ZERO, |(_, peak, _)| peak);
            for quota in Quota::ALL.into_iter().filter(|_| domid != privileged) {
                maxima.most.set(quota, maxima.most.get(quota).max(peak.get(quota)));
            }
            maxima.next = domid.0.checked_add(1).map(DomId);
            self.budget.spend(LOOK_WORK);
        }
        self.answer_later(maxima.requester, list_maxima(&maxima.most));
    }

    /// Answers the connection that has waited for it, unless that has started over since.
    fn answer_later(&mut self, requester: Requester, answer: Answer) {
        let asker = self.connections.get_mut(requester.conn);
        if asker
            .is_some_and(|asker| asker.busy.take_if(|busy| matches!(busy, Busy::Check)).is_some())
        {
            self.answer_requester(requester, answer);
        }
    }
}

fn list_maxima(most: &Quotas) -> Answer {
    let mut text = Text::new()?;
    text.line(format_args!("Max. quotas used by unprivileged domains:"));
    for quota in Quota::ALL.into_iter().filter(|quota| quota.counts_stock()) {
        text.line(format_args!("{:<17}: {:>8}", quota.name(), most.get(quota)));
    }
    text.reply()
}

struct Findings {
    text: Text,
    found: usize,
}

impl Findings {
    fn add(&mut self, finding: Arguments<'_>) {
        self.found = self.found.saturating_add(1);
        if self.found <= FINDINGS_MAX {
            self.text.line(finding);
        }
    }
}
