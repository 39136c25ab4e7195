//! CONTROL `check`: in turns, with others in between, and with no memory but that of its reply.

use super::Server;
use super::connection::Busy;
use super::control::{Text, text};
use super::dispatch::{Answer, Asker, Reply};
use super::platform::Platform;
use super::update::Requester;
use crate::mem::Budget;
use crate::store::Inspection;
use core::fmt::Arguments;

/// More findings than this are not told one by one: they have one cause.
const FINDINGS_MAX: usize = 50;

/// A check that goes on.
#[derive(Debug)]
pub(super) struct Checking {
    requester: Requester,
    at: Inspection,
    /// The reply: what is wrong, as far as it fits.
    text: Text,
    found: usize,
}

impl<P: Platform> Server<P> {
    /// `check`: the answer comes when everything was looked at.
    pub(super) fn control_check(&mut self, asker: Asker) -> Answer {
        if self.checking.is_some() {
            return text(format_args!("a check goes on already; try again when it has ended"));
        }
        let requester = Requester { conn: asker.id, req_id: asker.req_id, tx: asker.tx };
        let (at, found) = (Inspection::START, 0);
        self.checking = Some(Checking { requester, at, text: Text::new()?, found });
        // Replies keep the order of their requests, so the next one is not read before.
        if let Some(connection) = self.connections.get_mut(asker.id) {
            connection.busy = Some(Busy::Check);
        }
        Ok(Reply::Later)
    }

    /// One turn of the check.
    pub(super) fn check_on(&mut self) {
        let Some(mut checking) = self.checking.take() else { return };
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
        let more = findings.found.saturating_sub(FINDINGS_MAX);
        if more > 0 {
            findings.text.line(format_args!("and {more} more"));
        }
        let answer = if findings.found == 0 { Ok(Reply::Done) } else { findings.text.reply() };
        let asker = self.connections.get_mut(checking.requester.conn);
        // Whoever has started over since does not wait for it any more.
        if asker
            .is_some_and(|asker| asker.busy.take_if(|busy| matches!(busy, Busy::Check)).is_some())
        {
            self.answer_requester(checking.requester, answer);
        }
    }

    /// Ends a check at once, since nothing that goes on is handed over.
    pub(super) fn finish_check(&mut self) {
        while self.checking.is_some() {
            self.budget = Budget::endless();
            self.check_on();
        }
    }
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
