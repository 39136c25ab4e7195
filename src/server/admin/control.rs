//! CONTROL: what an administrator asks with `xenstore-control`.
//!
//! Texts have the form that people and scripts know from the C server ("C xenstored 4.22 behaviour",
//! `docs/misc/xenstore.txt`, CONTROL). An unknown command must be EINVAL: the client then asks for `help`.

use super::figures::{self, Limit};
use super::log;
use crate::mem::{NoMemory, TryVec, room_bytes, try_with_capacity};
use crate::proto::error::XsError;
use crate::proto::id::DomId;
use crate::proto::text;
use crate::proto::wire::PAYLOAD_MAX;
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::{Answer, Asker, MemoryUse, Reply};
use crate::store::quota::Quota;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Arguments that a command looks at.
const ARGUMENTS_MAX: usize = 8;

/// The longest line that is not formatted: two dozen numbers.
const LINE_MAX: usize = 512;

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Command {
    Check,
    Dump,
    Fail,
    Help,
    LiveUpdate,
    Log,
    Memreport,
    Print,
    Quota,
    QuotaSoft,
    Replace,
    Stats,
}

/// What there is to say of a command, one row each.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    /// As `help` shows them; `None` for a command that no administrator uses.
    parameters: Option<&'static str>,
    /// Only a server under test knows it.
    is_test: bool,
    /// What it does to memory. An update and what `dump begin` writes down are no part of that: they ask
    /// for their memory themselves, and are refused if there is none.
    memory: MemoryUse,
}

impl Command {
    /// All of them, in the order of `help`.
    const ALL: [Self; 12] = [
        Self::Check,
        Self::Dump,
        Self::Fail,
        Self::Help,
        Self::LiveUpdate,
        Self::Log,
        Self::Memreport,
        Self::Print,
        Self::Quota,
        Self::QuotaSoft,
        Self::Replace,
        Self::Stats,
    ];

    #[rustfmt::skip]
    const fn row(self) -> Row {
        use MemoryUse::Looks;
        let (name, memory, is_test, parameters) = match self {
            Self::Check      => ("check",       Looks, false, Some("")),
            Self::Dump       => ("dump",        Looks, false, Some("[begin [<version>]|<number> <offset>|end [<number>]]")),
            Self::Fail       => ("fail",        Looks, true,  None),
            Self::Help       => ("help",        Looks, false, Some("")),
            Self::LiveUpdate => ("live-update", Looks, false, Some("[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>")),
            Self::Log        => ("log",         Looks, false, Some("[on|off|+<switch>|-<switch>]")),
            Self::Memreport  => ("memreport",   Looks, false, Some("[--values]")),
            Self::Print      => ("print",       Looks, false, Some("<string>")),
            Self::Quota      => ("quota",       Looks, false, Some("[set <name> <val>|<domid>|max [-r]]")),
            Self::QuotaSoft  => ("quota-soft",  Looks, false, Some("[set memory <val>]")),
            // A program asks for it (src/guard/replace.rs), since the server stops until dom0 has it go on.
            Self::Replace    => ("replace",     Looks, false, None),
            Self::Stats      => ("stats",       Looks, false, Some("[--values] [<first domid>]")),
        };
        Row { name, parameters, is_test, memory }
    }

    /// The command of this name; `None` if there is none, or only for servers under test.
    fn named(name: &[u8], is_test: bool) -> Option<Self> {
        Self::ALL.into_iter().find(|command| {
            let row = command.row();
            row.name.as_bytes() == name && (is_test || !row.is_test)
        })
    }

    /// What a command does to memory. One that there is not is refused, so it only looks.
    pub(in crate::server) fn memory_use(name: &[u8]) -> MemoryUse {
        Self::named(name, true).map_or(MemoryUse::Looks, |command| command.row().memory)
    }
}

/// The text of a reply: lines, as many as fit into a message.
#[derive(Debug)]
pub(in crate::server) struct Text {
    /// With room for a whole payload.
    lines: Vec<u8>,
    is_full: bool,
}

impl Text {
    /// No line yet.
    ///
    /// # Errors
    /// ENOMEM.
    pub(in crate::server) fn new() -> Result<Self, XsError> {
        Ok(Self { lines: try_with_capacity(PAYLOAD_MAX)?, is_full: false })
    }

    /// Appends a line, unless it or one before did not fit.
    pub(in crate::server) fn line(&mut self, line: fmt::Arguments<'_>) {
        let before = self.lines.len();
        if self.is_full || writeln!(self, "{line}").is_err() {
            self.lines.truncate(before);
            self.is_full = true;
        }
    }

    /// Appends a finished line.
    pub(in crate::server) fn made(&mut self, line: &Line) {
        let (before, line) = (self.lines.len(), line.bytes());
        let end = before.saturating_add(line.len()).saturating_add(1);
        // One byte is left for a NUL.
        let fits = !self.is_full && end < PAYLOAD_MAX;
        if !fits || self.lines.try_extend(line).and_then(|()| self.lines.try_push(b'\n')).is_err() {
            self.lines.truncate(before);
            self.is_full = true;
        }
    }

    /// Appends a line of a name and a number.
    pub(in crate::server) fn number(&mut self, name: &str, number: u64) {
        let mut line = Line::default();
        line.word(name);
        line.push(b'=');
        line.number(number);
        self.made(&line);
    }

    /// Bytes that it takes of the allocator.
    pub(in crate::server) fn taken(&self) -> usize {
        room_bytes(&self.lines)
    }

    /// Bytes so far.
    pub(in crate::server) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(in crate::server) fn reply(mut self) -> Answer {
        // A line leaves room for it.
        self.lines.try_push(0)?;
        Ok(Reply::Data(self.lines))
    }
}

/// Accepts text as long as there is room for a NUL.
impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.lines.len().saturating_add(text.len()) >= PAYLOAD_MAX {
            return Err(fmt::Error);
        }
        self.lines.try_extend(text.as_bytes()).map_err(|NoMemory| fmt::Error)
    }
}

/// A line of words and numbers. It does not use the formatter, which costs several times as much: there are many
/// such lines.
#[derive(Default)]
pub(in crate::server) struct Line(heapless::Vec<u8, LINE_MAX>);

impl Line {
    pub(in crate::server) fn clear(&mut self) {
        self.0.clear();
    }

    pub(in crate::server) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a byte; what does not fit is left out.
    #[inline]
    pub(in crate::server) fn push(&mut self, byte: u8) {
        let _fits = self.0.push(byte);
    }

    /// Appends a word; likewise.
    #[inline]
    pub(in crate::server) fn word(&mut self, word: &str) {
        let _fits = self.0.extend_from_slice(word.as_bytes());
    }

    /// Appends a number; likewise.
    #[inline]
    pub(in crate::server) fn number(&mut self, number: u64) {
        if number < 10 {
            let [digit, ..] = number.to_le_bytes();
            return self.push(digit.wrapping_add(b'0'));
        }
        let mut digits = [0; 20];
        let (mut rest, mut used) = (number, 0_usize);
        for slot in digits.iter_mut().rev() {
            let [digit, ..] = rest.wrapping_rem(10).to_le_bytes();
            *slot = digit.wrapping_add(b'0');
            rest = rest.wrapping_div(10);
            used = used.wrapping_add(1);
            if rest == 0 {
                break;
            }
        }
        let first = digits.len().saturating_sub(used);
        let _fits = self.0.extend_from_slice(digits.get(first..).unwrap_or_default());
    }
}

/// Puts one text into a reply.
pub(in crate::server) fn text(line: fmt::Arguments<'_>) -> Answer {
    let mut text = Text::new()?;
    text.line(line);
    text.reply()
}

/// A quota value that the administrator gives: a positive number.
fn positive(argument: &[u8]) -> Result<u32, XsError> {
    match text::atoi(argument) {
        value if value > 0 => Ok(value.unsigned_abs()),
        _ => Err(XsError::EINVAL),
    }
}

impl<P: Platform> Server<P> {
    /// Carries a command out.
    pub(in crate::server) fn control(
        &mut self,
        asker: Asker,
        command: &[u8],
        arguments: &[u8],
    ) -> Answer {
        // Whatever it is, people compare it with their own clock.
        self.read_clock();
        let command = Command::named(command, self.options.is_test).ok_or(XsError::EINVAL)?;
        let mut words = [&[][..]; ARGUMENTS_MAX];
        let mut count = 0_usize;
        for (word, argument) in words.iter_mut().zip(text::strings(arguments)) {
            *word = argument;
            count = count.saturating_add(1);
        }
        let words = words.get(..count).unwrap_or(&words);
        match command {
            Command::Check if words.is_empty() => self.control_check(asker),
            Command::Dump => self.control_dump(words),
            Command::Fail => match words {
                [what] if self.platform.fail(what) => Ok(Reply::Done),
                _ => Err(XsError::EINVAL),
            },
            Command::Help if words.is_empty() => help(),
            // Part of it is raw data.
            Command::LiveUpdate => self.control_update(asker, arguments),
            Command::Log => self.control_log(words),
            Command::Memreport => match words {
                [] => self.control_memreport(),
                [figures::VALUES] => self.control_memory_values(),
                _ => Err(XsError::EINVAL),
            },
            Command::Print => match words {
                [line] => {
                    self.platform.log(format_args!("{}", line.escape_ascii()));
                    Ok(Reply::Done)
                }
                _ => Err(XsError::EINVAL),
            },
            Command::Quota => self.control_quota(asker, words),
            Command::QuotaSoft => match words {
                [] => self.list_limits(|quota| quota == Quota::SoftMemory),
                [b"set", b"memory", value] => {
                    self.store.set_quota(None, Quota::SoftMemory, positive(value)?);
                    Ok(Reply::Done)
                }
                _ => Err(XsError::EINVAL),
            },
            Command::Replace => match words {
                [handover] => self.control_replace(asker, handover),
                _ => Err(XsError::EINVAL),
            },
            Command::Stats => match words {
                [] => self.control_stats(DomId(0)),
                [figures::VALUES] => self.control_values(None),
                [figures::VALUES, domid] => {
                    self.control_values(Some(text::domid(domid).ok_or(XsError::EINVAL)?))
                }
                [domid] => self.control_stats(text::domid(domid).ok_or(XsError::EINVAL)?),
                _ => Err(XsError::EINVAL),
            },
            Command::Check | Command::Help => Err(XsError::EINVAL),
        }
    }

    /// `log`: the switches, or one of them turned.
    fn control_log(&mut self, arguments: &[&[u8]]) -> Answer {
        match arguments {
            [] => {
                let mut text = Text::new()?;
                let state = if self.switches.on { "on" } else { "off" };
                text.line(format_args!("Log is {state}, switches:"));
                for (name, wanted) in self.switches.each {
                    let state = if wanted { "on" } else { "off" };
                    text.line(format_args!("{name:<8}: {state}"));
                }
                for line in log::ALWAYS {
                    text.line(format_args!("{line}"));
                }
                return text.reply();
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
    fn control_memreport(&mut self) -> Answer {
        let heap = self.platform.heap();
        let waiting = self.messages.len().saturating_sub(self.connections.len());
        let mut text = Text::new()?;
        text.line(format_args!(
            "heap: used {} bytes, size {}, limit {}",
            heap.used,
            heap.size,
            Limit(heap.limit)
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
    fn control_quota(&mut self, asker: Asker, arguments: &[&[u8]]) -> Answer {
        match arguments {
            [] => self.list_limits(|quota| quota != Quota::SoftMemory),
            [b"set", name, value] => {
                let quota = Quota::from_name(name)
                    .filter(|quota| *quota != Quota::SoftMemory)
                    .ok_or(XsError::EINVAL)?;
                self.store.set_quota(None, quota, positive(value)?);
                Ok(Reply::Done)
            }
            [b"max"] => self.control_maxima(asker, false),
            [b"max", b"-r"] => self.control_maxima(asker, true),
            [domid] => self.list_usage(text::domid(domid).ok_or(XsError::EINVAL)?),
            _ => Err(XsError::EINVAL),
        }
    }

    /// The initial limits.
    fn list_limits(&self, wanted: fn(Quota) -> bool) -> Answer {
        let mut text = Text::new()?;
        text.line(format_args!("Quota settings:"));
        for quota in Quota::ALL.into_iter().filter(|quota| wanted(*quota)) {
            let value = self.store.quota(None, quota).unwrap_or(0);
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
        let mut text = Text::new()?;
        text.line(format_args!("Domain {domid}:"));
        for quota in Quota::ALL.into_iter().filter(|quota| quota.counts_stock()) {
            if let Some((used, most)) = self.store.usage(domid, quota) {
                let name = quota.name();
                text.line(format_args!("{name:<17}: {used:>8} (max: {most:>8})"));
            }
        }
        text.reply()
    }
}

/// `help`: every command with its parameters.
fn help() -> Answer {
    let mut text = Text::new()?;
    for Row { name, parameters, .. } in Command::ALL.map(Command::row) {
        if let Some(parameters) = parameters {
            text.line(format_args!("{name:<15} {parameters}"));
        }
    }
    text.reply()
}
