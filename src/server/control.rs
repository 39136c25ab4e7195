//! CONTROL: what an administrator asks with `xenstore-control`.
//!
//! Texts have the form that people and scripts know from the C server ("C xenstored 4.22 behaviour",
//! `docs/misc/xenstore.txt`, CONTROL). An unknown command must be EINVAL: the client then asks for `help`.

use super::Server;
use super::dispatch::{Answer, Asker, Reply};
use super::platform::Platform;
use crate::proto::error::XsError;
use crate::proto::id::DomId;
use crate::proto::text;
use crate::proto::wire::PAYLOAD_MAX;
use crate::store::quota::Quota;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Arguments that a command looks at.
const ARGUMENTS_MAX: usize = 8;

/// Name and parameters of each command.
const COMMANDS: [(&str, &str); 10] = [
    ("check", ""),
    ("dump", "[begin [<version>]|<number> <offset>|end [<number>]]"),
    ("help", ""),
    ("live-update", "[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>"),
    ("log", "[on|off|+<switch>|-<switch>]"),
    ("memreport", ""),
    ("print", "<string>"),
    ("quota", "[set <name> <val>|<domid>|max [-r]]"),
    ("quota-soft", "[set memory <val>]"),
    ("stats", "[<first domid>]"),
];

/// The text of a reply: lines, as many as fit into a message.
#[derive(Debug, Default)]
pub(super) struct Text {
    lines: String,
    is_full: bool,
}

impl Text {
    /// Appends a line, unless it or one before did not fit.
    pub(super) fn line(&mut self, line: fmt::Arguments<'_>) {
        let before = self.lines.len();
        // Writing to a string does not fail.
        let _ = writeln!(self.lines, "{line}");
        if self.is_full || self.lines.len() >= PAYLOAD_MAX {
            self.lines.truncate(before);
            self.is_full = true;
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn reply(self) -> Reply {
        let mut bytes = self.lines.into_bytes();
        bytes.push(0);
        Reply::Data(bytes)
    }
}

/// Puts one text into a reply.
pub(super) fn text(line: fmt::Arguments<'_>) -> Answer {
    let mut text = Text::default();
    text.line(line);
    Ok(text.reply())
}

/// A quota value of the administrator: a positive number.
fn positive(argument: &[u8]) -> Result<u32, XsError> {
    match text::atoi(argument) {
        value if value > 0 => Ok(value.unsigned_abs()),
        _ => Err(XsError::EINVAL),
    }
}

impl<P: Platform> Server<P> {
    /// Carries a command out.
    pub(super) fn control(&mut self, asker: Asker, command: &[u8], arguments: &[u8]) -> Answer {
        // Whatever it is, people compare it with their own clock.
        self.read_clock();
        if command == b"live-update" {
            // Part of it is raw data.
            return self.control_update(asker, arguments);
        }
        let arguments = text::strings(arguments).take(ARGUMENTS_MAX).collect::<Vec<_>>();
        match (command, arguments.as_slice()) {
            (b"check", []) => Ok(self.control_check()),
            (b"dump", arguments) => self.control_dump(arguments),
            (b"help", []) => Ok(help()),
            (b"log", arguments) => self.control_log(arguments),
            (b"memreport", []) => Ok(self.control_memreport()),
            (b"print", [line]) => {
                self.platform.log(format_args!("{}", line.escape_ascii()));
                Ok(Reply::Done)
            }
            (b"quota", arguments) => self.control_quota(arguments),
            (b"quota-soft", []) => Ok(self.list_limits(&[Quota::SoftMemory])),
            (b"quota-soft", [b"set", b"memory", value]) => {
                self.store.set_quota(None, Quota::SoftMemory, positive(value)?);
                Ok(Reply::Done)
            }
            (b"stats", []) => Ok(self.control_stats(DomId(0))),
            (b"stats", [domid]) => {
                Ok(self.control_stats(text::domid(domid).ok_or(XsError::EINVAL)?))
            }
            _ => Err(XsError::EINVAL),
        }
    }

    /// `check`: everything that can be checked, is.
    fn control_check(&mut self) -> Reply {
        match self.check() {
            Ok(()) => Reply::Done,
            Err(findings) => {
                let mut text = Text::default();
                for finding in findings.lines() {
                    self.platform.log(format_args!("check: {finding}"));
                    text.line(format_args!("{finding}"));
                }
                text.reply()
            }
        }
    }

    /// `log`: the switches, or one of them turned.
    fn control_log(&mut self, arguments: &[&[u8]]) -> Answer {
        match arguments {
            [] => {
                let mut text = Text::default();
                let state = if self.switches.on { "on" } else { "off" };
                text.line(format_args!("Log is {state}, switches:"));
                for (name, wanted) in self.switches.each {
                    let state = if wanted { "on" } else { "off" };
                    text.line(format_args!("{name:<8}: {state}"));
                }
                return Ok(text.reply());
            }
            [b"on"] => self.switches.on = true,
            [b"off"] => self.switches.on = false,
            [[b'+', name @ ..]] if self.switches.set(name, true) => {}
            [[b'-', name @ ..]] if self.switches.set(name, false) => {}
            _ => return Err(XsError::EINVAL),
        }
        Ok(Reply::Done)
    }

    /// `memreport`: where the memory is, one figure a line.
    fn control_memreport(&mut self) -> Reply {
        let heap = self.platform.heap();
        let waiting: usize = self.connections.values().map(|c| c.queue.len()).sum();
        let mut text = Text::default();
        text.line(format_args!(
            "heap: used {} bytes, size {}, limit {}",
            heap.used, heap.size, heap.limit
        ));
        text.line(format_args!("nodes: {}", self.store.node_count()));
        text.line(format_args!("watches: {}", self.store.watch_count()));
        text.line(format_args!("transactions: {}", self.store.open_transactions()));
        text.line(format_args!("connections: {}", self.connections.len()));
        text.line(format_args!("domains: {}", self.domains.len()));
        text.line(format_args!("ports: {}", self.ports.len()));
        text.line(format_args!("queued messages: {waiting}"));
        text.line(format_args!("unfinished requests: {}", self.causes.len()));
        text.reply()
    }

    /// `quota` in all its forms.
    fn control_quota(&mut self, arguments: &[&[u8]]) -> Answer {
        match arguments {
            [] => {
                let hard = Quota::ALL.into_iter().filter(|quota| *quota != Quota::SoftMemory);
                Ok(self.list_limits(&hard.collect::<Vec<_>>()))
            }
            [b"set", name, value] => {
                let quota = Quota::from_name(name)
                    .filter(|quota| *quota != Quota::SoftMemory)
                    .ok_or(XsError::EINVAL)?;
                self.store.set_quota(None, quota, positive(value)?);
                Ok(Reply::Done)
            }
            [b"max"] => Ok(self.list_maxima()),
            [b"max", b"-r"] => {
                self.store.reset_peaks();
                Ok(self.list_maxima())
            }
            [domid] => self.list_usage(text::domid(domid).ok_or(XsError::EINVAL)?),
            _ => Err(XsError::EINVAL),
        }
    }

    /// The initial limits.
    fn list_limits(&self, quotas: &[Quota]) -> Reply {
        let mut text = Text::default();
        text.line(format_args!("Quota settings:"));
        for quota in quotas {
            let value = self.store.quota(None, *quota).unwrap_or(0);
            let (name, what) = (quota.name(), quota.description());
            text.line(format_args!("{name:<17}: {value:>8} {what}"));
        }
        text.reply()
    }

    /// What one domain uses, and the most it ever used.
    fn list_usage(&self, domid: DomId) -> Answer {
        if !self.store.knows(domid) {
            return Err(XsError::ENOENT);
        }
        let mut text = Text::default();
        text.line(format_args!("Domain {domid}:"));
        for quota in Quota::ALL.into_iter().filter(|quota| quota.counts_stock()) {
            if let Some((used, most)) = self.store.usage(domid, quota) {
                let name = quota.name();
                text.line(format_args!("{name:<17}: {used:>8} (max: {most:>8})"));
            }
        }
        Ok(text.reply())
    }

    /// The most that any unprivileged domain ever used.
    fn list_maxima(&self) -> Reply {
        let mut text = Text::default();
        text.line(format_args!("Max. quotas used by unprivileged domains:"));
        let privileged = self.store.privileged();
        let domids = self.store.domids();
        for quota in Quota::ALL.into_iter().filter(|quota| quota.counts_stock()) {
            let most = domids
                .iter()
                .filter(|domid| **domid != privileged)
                .filter_map(|domid| self.store.usage(*domid, quota))
                .map(|(_, most)| most)
                .max()
                .unwrap_or(0);
            let name = quota.name();
            text.line(format_args!("{name:<17}: {most:>8}"));
        }
        text.reply()
    }
}

/// `help`: every command with its parameters.
fn help() -> Reply {
    let mut text = Text::default();
    for (name, parameters) in COMMANDS {
        text.line(format_args!("{name:<15} {parameters}"));
    }
    text.reply()
}
