//! What goes to the console, and what guests can make appear there.
//!
//! * What happens once in the life of a connection is always told ([`Server::tell`]): the loss of the connection,
//!   and the first refusal for want of each quota (`refusals.rs`).
//! * What a guest can repeat is rationed, each kind by itself ([`Server::guest_log`]). When the pause is over, a
//!   line says how many lines of that kind were left out, even if nothing else happens then.

use crate::proto::error::XsError;
use crate::proto::id::{ConnId, TxId};
use crate::proto::wire::{Header, Kind};
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::{Answer, Asker, Reply};
use core::fmt;

/// A connection causes at most one line of a kind in this time. What was left out is told after it.
pub(in crate::server) const PAUSE_MS: u64 = 10_000;

/// All guests together cause at most so many lines of one kind in that time.
const LINES_PER_PAUSE: u32 = 30;

/// What a guest can make happen as often as it likes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Repeated {
    /// It holds more memory than the soft limit, or than it may.
    Holds,
    /// An event was lost, or a request refused, because the server itself has no memory.
    NoMemory,
}

impl Repeated {
    /// How many there are.
    pub(in crate::server) const COUNT: usize = 2;

    const ALL: [Self; Self::COUNT] = [Self::Holds, Self::NoMemory];

    /// What its lines are about.
    fn subject(self) -> &'static str {
        match self {
            Self::Holds => "domains that hold much memory",
            Self::NoMemory => "what was refused or dropped for want of memory",
        }
    }
}

/// The ration of one kind.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct LineBudget {
    pub(in crate::server) since_ms: u64,
    pub(in crate::server) used: u32,
    pub(in crate::server) left_out: u32,
}

impl LineBudget {
    /// When its pause is over, if something was left out in it that has to be told.
    fn due_ms(&self) -> Option<u64> {
        (self.left_out > 0).then(|| self.since_ms.saturating_add(PAUSE_MS))
    }
}

/// The rations of the kinds that a version of the hand-over knows: before version 3 there was one kind.
pub(in crate::server) fn kept<T>(
    all: &[T; Repeated::COUNT],
    handover: u32,
) -> impl Iterator<Item = &T> {
    all.iter().take(if handover >= 3 { Repeated::COUNT } else { 1 })
}

/// The same, for reading.
pub(in crate::server) fn kept_mut<T>(
    all: &mut [T; Repeated::COUNT],
    handover: u32,
) -> impl Iterator<Item = &mut T> {
    all.iter_mut().take(if handover >= 3 { Repeated::COUNT } else { 1 })
}

/// The switches of `CONTROL log`, by the names of the C server:
///
/// * `io`: every request and its answer.
/// * `obj`: domains that become known, connections that come and go.
/// * `acc`: every request refused for want of quota or memory; the first of each domain and quota is told anyway.
/// * `wrl`: domains that the write-rate limit holds up.
/// * `tdb`: nothing, since there is no such database here; scripts may turn it.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Switches {
    pub(in crate::server) on: bool,
    pub(in crate::server) each: [(&'static str, bool); 5],
}

/// What is told whatever the switches are, for the text of `CONTROL log`.
pub(in crate::server) const ALWAYS: [&str; 2] = [
    "Always told: connections given up; the first refusal for want of each quota of a domain.",
    "Told once in 10 s, then how many lines were left out: much memory held, no memory left.",
];

impl Default for Switches {
    fn default() -> Self {
        // The names and defaults of the C server; tracing as such is off.
        let each = [("obj", true), ("io", true), ("wrl", false), ("acc", false), ("tdb", false)];
        Self { on: false, each }
    }
}

impl Switches {
    /// Whether this kind of line is wanted.
    pub(in crate::server) fn wants(&self, name: &str) -> bool {
        self.on && self.each.iter().any(|(each, wanted)| *each == name && *wanted)
    }

    /// Turns a switch; `false` if there is none of that name.
    pub(in crate::server) fn set(&mut self, name: &[u8], wanted: bool) -> bool {
        match self.each.iter_mut().find(|(each, _)| each.as_bytes() == name) {
            Some((_, state)) => {
                *state = wanted;
                true
            }
            None => false,
        }
    }
}

impl<P: Platform> Server<P> {
    /// Prints a line about a connection that can come only once in its life.
    pub(in crate::server) fn tell(&mut self, id: ConnId, line: fmt::Arguments<'_>) {
        let Some(connection) = self.connections.get(id) else { return };
        let domid = connection.domid;
        self.platform.log(format_args!("domain {domid}: {line}"));
    }

    /// Prints a line about a connection that its domain can cause at will, within the ration of its kind.
    pub(in crate::server) fn guest_log(
        &mut self,
        id: ConnId,
        kind: Repeated,
        line: fmt::Arguments<'_>,
    ) {
        // What was left out is told before what comes later.
        self.tell_left_out();
        let now_ms = self.now_ms;
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(budget) = self.line_budgets.get_mut(kind as usize) else { return };
        let Some(quiet_until_ms) = connection.quiet_until_ms.get_mut(kind as usize) else { return };
        if now_ms.saturating_sub(budget.since_ms) >= PAUSE_MS {
            *budget = LineBudget { since_ms: now_ms, used: 0, left_out: 0 };
        }
        if now_ms < *quiet_until_ms || budget.used >= LINES_PER_PAUSE {
            budget.left_out = budget.left_out.saturating_add(1);
            return;
        }
        budget.used = budget.used.saturating_add(1);
        *quiet_until_ms = now_ms.saturating_add(PAUSE_MS);
        let domid = connection.domid;
        self.platform.log(format_args!("domain {domid}: {line}"));
    }

    /// Says how many lines were left out, of the kinds whose pause is over.
    pub(in crate::server) fn tell_left_out(&mut self) {
        for kind in Repeated::ALL {
            let Some(budget) = self.line_budgets.get_mut(kind as usize) else { continue };
            if budget.due_ms().is_none_or(|due_ms| self.now_ms < due_ms) {
                continue;
            }
            let (lines, subject) = (budget.left_out, kind.subject());
            *budget = LineBudget { since_ms: self.now_ms, used: 0, left_out: 0 };
            self.platform.log(format_args!("{lines} lines were left out about {subject}"));
        }
    }

    /// When [`tell_left_out`](Self::tell_left_out) has something to tell.
    pub(in crate::server) fn left_out_due_ms(&self) -> Option<u64> {
        self.line_budgets.iter().filter_map(LineBudget::due_ms).min()
    }

    /// Tells that the store had no memory for events, at most once in a pause. What is lost in the pause is told
    /// at its end.
    pub(in crate::server) fn tell_drops(&mut self) {
        if self.drops_due_ms().is_none_or(|due_ms| self.now_ms < due_ms) {
            return;
        }
        let dropped = self.store.dropped_events();
        let more = dropped.saturating_sub(self.dropped_before);
        self.platform.log(format_args!("{more} watch events dropped, no memory is left"));
        self.dropped_before = dropped;
        self.next_drop_line_ms = self.now_ms.saturating_add(PAUSE_MS);
    }

    /// When [`tell_drops`](Self::tell_drops) has something to tell.
    pub(in crate::server) fn drops_due_ms(&self) -> Option<u64> {
        (self.store.dropped_events() != self.dropped_before).then_some(self.next_drop_line_ms)
    }

    /// Prints a line if the administrator has turned its switch.
    pub(in crate::server) fn trace(&mut self, switch: &str, line: fmt::Arguments<'_>) {
        if self.switches.wants(switch) {
            self.platform.log(line);
        }
    }

    /// Notes the answer to a request, and prints it if the administrator wants to see it.
    pub(in crate::server) fn trace_answer(&mut self, id: ConnId, header: Header, answer: &Answer) {
        if let Err(error) = *answer {
            self.note_refusal(id, header, error);
        }
        if !self.switches.on {
            return;
        }
        let Some(domid) = self.connections.get(id).map(|connection| connection.domid) else {
            return;
        };
        let request = header.req_id;
        if let (Err(error @ (XsError::ENOSPC | XsError::ENOMEM)), Some(kind)) =
            (answer, Kind::from_number(header.kind))
        {
            self.trace("acc", format_args!("domain {domid}: {kind:?} refused: {error:?}"));
        }
        match answer {
            Ok(Reply::Done | Reply::Watching(_)) => {
                self.trace("io", format_args!("domain {domid} request {request}: OK"));
            }
            Ok(Reply::Later | Reply::Working(_) | Reply::Telling(_) | Reply::Wait) => {
                self.trace("io", format_args!("domain {domid} request {request}: answered later"));
            }
            Ok(Reply::Data(data)) => {
                let bytes = data.len();
                self.trace("io", format_args!("domain {domid} request {request}: {bytes} bytes"));
            }
            Ok(Reply::Text(text)) => {
                let bytes = text.len();
                self.trace("io", format_args!("domain {domid} request {request}: {bytes} bytes"));
            }
            Err(error) => {
                self.trace("io", format_args!("domain {domid} request {request}: {error:?}"));
            }
        }
    }

    /// Prints a request if the administrator wants to see them.
    pub(in crate::server) fn trace_request(&mut self, asker: Asker, kind: Kind, payload: &[u8]) {
        if !self.switches.wants("io") {
            return;
        }
        let (domid, TxId(tx)) = (asker.domid, asker.tx);
        // Its path, as far as it is printable.
        let path = payload.split(|byte| *byte == 0).next().unwrap_or(&[]).escape_ascii();
        self.platform.log(format_args!("domain {domid} tx {tx} {kind:?} {path}"));
    }
}
