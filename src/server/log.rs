//! What goes to the console, and what guests can make appear there.

use super::Server;
use super::dispatch::{Answer, Asker, Reply};
use super::platform::Platform;
use crate::proto::error::XsError;
use crate::proto::id::{ConnId, TxId};
use crate::proto::wire::{Header, Kind};
use core::fmt;

/// A guest's doings give at most one line in this time.
const GUEST_PAUSE_MS: u64 = 10_000;

/// All guests together give at most so many lines in that time.
const LINES_PER_PAUSE: u32 = 30;

/// The budget for lines that guests cause.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LineBudget {
    pub(super) since_ms: u64,
    pub(super) used: u32,
    pub(super) left_out: u32,
}

/// The switches of `CONTROL log`, by the names of the C server:
///
/// * `io`: every request and its answer.
/// * `obj`: domains that become known, connections that come and go.
/// * `acc`: requests refused for want of quota or memory.
/// * `wrl`: domains that the write-rate limit holds up.
/// * `tdb`: nothing, since there is no such database here; scripts may turn it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switches {
    pub(super) on: bool,
    pub(super) each: [(&'static str, bool); 5],
}

impl Default for Switches {
    fn default() -> Self {
        // The names and defaults of the C server; tracing as such is off.
        let each = [("obj", true), ("io", true), ("wrl", false), ("acc", false), ("tdb", false)];
        Self { on: false, each }
    }
}

impl Switches {
    /// Whether this kind of line is wanted.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.on && self.each.iter().any(|(each, wanted)| *each == name && *wanted)
    }

    /// Turns a switch; `false` if there is none of that name.
    pub(super) fn set(&mut self, name: &[u8], wanted: bool) -> bool {
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
    /// Prints a line about a connection that its domain can cause at will, within limits.
    pub(super) fn guest_log(&mut self, id: ConnId, line: fmt::Arguments<'_>) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let budget = &mut self.line_budget;
        if now_ms.saturating_sub(budget.since_ms) >= GUEST_PAUSE_MS {
            if budget.left_out > 0 {
                let lines = budget.left_out;
                self.platform.log(format_args!("{lines} lines about guests were left out"));
            }
            *budget = LineBudget { since_ms: now_ms, used: 0, left_out: 0 };
        }
        if now_ms < connection.quiet_until_ms || budget.used >= LINES_PER_PAUSE {
            budget.left_out = budget.left_out.saturating_add(1);
            return;
        }
        budget.used = budget.used.saturating_add(1);
        connection.quiet_until_ms = now_ms.saturating_add(GUEST_PAUSE_MS);
        let domid = connection.domid;
        self.platform.log(format_args!("domain {domid}: {line}"));
    }

    /// Prints a line if the administrator has turned its switch.
    pub(super) fn trace(&mut self, switch: &str, line: fmt::Arguments<'_>) {
        if self.switches.wants(switch) {
            self.platform.log(line);
        }
    }

    /// Prints the answer to a request if the administrator wants to see it.
    pub(super) fn trace_answer(&mut self, id: ConnId, header: Header, answer: &Answer) {
        if !self.switches.on {
            return;
        }
        let Some(domid) = self.connections.get(&id).map(|connection| connection.domid) else {
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
            Ok(Reply::Later) => {
                self.trace("io", format_args!("domain {domid} request {request}: answered later"));
            }
            Ok(Reply::Data(data)) => {
                let bytes = data.len();
                self.trace("io", format_args!("domain {domid} request {request}: {bytes} bytes"));
            }
            Err(error) => {
                self.trace("io", format_args!("domain {domid} request {request}: {error:?}"));
            }
        }
    }

    /// Prints a request if the administrator wants to see them.
    pub(super) fn trace_request(&mut self, asker: Asker, kind: Kind, payload: &[u8]) {
        if !self.switches.wants("io") {
            return;
        }
        let (domid, TxId(tx)) = (asker.domid, asker.tx);
        // Its path, as far as it is printable.
        let path = payload.split(|byte| *byte == 0).next().unwrap_or(&[]).escape_ascii();
        self.platform.log(format_args!("domain {domid} tx {tx} {kind:?} {path}"));
    }
}
