//! The command line: first what the toolstack adds, then the administrator's text.
//!
//! `init-xenstore-domain` passes `--event PORT`, then the text of its `--param`. The options are those of C
//! xenstored 4.22 that make sense in a stub domain; the others are named on the console. Nothing on the command
//! line can keep the server from starting: an unknown or damaged option is reported and ignored.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        clippy::disallowed_macros,
        reason = "read once, before any guest is served"
    )
)]

use crate::proto::id::DomId;
use crate::store::quota::{Quota, Quotas};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How long an event may wait for an unprivileged reader, unless the command line says otherwise.
const WATCH_EVENT_TIMEOUT_MS: u64 = 20_000;

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::server) struct Options {
    /// The port that the first domain offers for its ring.
    pub event_port: Option<u32>,
    /// The domain whose ring is served from the start.
    pub first_domain: DomId,
    /// The domain that may do everything; `None` for the one that Xen calls the control domain.
    pub privileged: Option<DomId>,
    /// Limits of domains that the server learns about.
    pub quotas: Quotas,
    /// How long an event may wait for an unprivileged reader; `None` for ever.
    pub watch_event_timeout_ms: Option<u64>,
    /// Whether failures may be provoked, as many as one likes: for tests of going on after them.
    pub is_test: bool,
    /// What was wrong with the command line, one clear line each.
    pub complaints: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            event_port: None,
            first_domain: DomId(0),
            privileged: None,
            quotas: Quotas::default(),
            watch_event_timeout_ms: Some(WATCH_EVENT_TIMEOUT_MS),
            is_test: false,
            complaints: Vec::new(),
        }
    }
}

/// What an option is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Event,
    FirstDomain,
    Privileged,
    /// One quota's value.
    Limit(Quota),
    /// `name=value` of a quota.
    Quota,
    /// `name=value` of a quota above which there is only a warning.
    SoftQuota,
    Timeout,
    /// For tests of live update: the image looks at it (`src/main.rs`).
    TrialFault,
    /// For tests of what comes after a failure.
    TestFailures,
    /// An option of the C server that makes no sense here: whether a value follows, and why it makes none.
    Pointless(Takes, &'static str),
}

/// Whether an option has a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Takes {
    Nothing,
    Value,
}

const NO_FILES: &str = "a stub domain has no files";
const NO_DAEMON: &str = "a stub domain is no daemon";

/// Short name or NUL, long name, meaning.
const TABLE: [(char, &str, Meaning); 31] = [
    ('\0', "event", Meaning::Event),
    ('\0', "master-domid", Meaning::FirstDomain),
    ('\0', "priv-domid", Meaning::Privileged),
    ('E', "entry-nb", Meaning::Limit(Quota::Nodes)),
    ('S', "entry-size", Meaning::Limit(Quota::NodeSize)),
    ('W', "watch-nb", Meaning::Limit(Quota::Watches)),
    ('t', "transaction", Meaning::Limit(Quota::Transactions)),
    ('A', "perm-nb", Meaning::Limit(Quota::NodePermissions)),
    ('M', "path-max", Meaning::Limit(Quota::PathMax)),
    ('Q', "quota", Meaning::Quota),
    ('q', "quota-soft", Meaning::SoftQuota),
    ('w', "timeout", Meaning::Timeout),
    ('K', "keep-orphans", Meaning::Pointless(Takes::Nothing, "orphans are always removed")),
    ('T', "trace-file", Meaning::Pointless(Takes::Value, NO_FILES)),
    ('F', "pid-file", Meaning::Pointless(Takes::Value, NO_FILES)),
    ('N', "no-fork", Meaning::Pointless(Takes::Nothing, NO_DAEMON)),
    ('D', "no-domain-init", Meaning::Pointless(Takes::Nothing, NO_DAEMON)),
    ('P', "output-pid", Meaning::Pointless(Takes::Nothing, NO_DAEMON)),
    ('V', "verbose", Meaning::Pointless(Takes::Nothing, "use CONTROL log")),
    ('I', "internal-db", Meaning::Pointless(Takes::Nothing, "the store is always in memory")),
    ('R', "no-recovery", Meaning::Pointless(Takes::Nothing, "the store is always consistent")),
    ('U', "live-update", Meaning::Pointless(Takes::Nothing, "it is not for the command line")),
    ('L', "preserve-local", Meaning::Pointless(Takes::Nothing, "nothing is kept over a start")),
    ('H', "help", Meaning::Pointless(Takes::Nothing, "see the README")),
    ('\0', "trace-control", Meaning::Pointless(Takes::Value, "use CONTROL log")),
    ('\0', "quota-memory", Meaning::Limit(Quota::Memory)),
    ('\0', "quota-outstanding", Meaning::Limit(Quota::Outstanding)),
    ('\0', "quota-transaction-nodes", Meaning::Limit(Quota::TransactionNodes)),
    ('\0', "path-size", Meaning::Limit(Quota::PathMax)),
    ('\0', "trial-fault", Meaning::TrialFault),
    ('\0', "test-failures", Meaning::TestFailures),
];

/// An option as found on the command line.
struct Found<'a> {
    /// As typed, for complaints.
    word: &'a str,
    meaning: Meaning,
    /// A value in the same word.
    attached: Option<&'a str>,
}

impl Options {
    /// Reads a command line. Words are separated by blanks or, where a toolstack cannot pass blanks, by commas;
    /// `--name value`, `--name=value`, `-x value` and
    /// `-xvalue` are the same.
    #[must_use]
    pub(in crate::server) fn parse(command_line: &str) -> Self {
        let mut options = Self::default();
        let mut words = command_line
            .split(|c: char| c.is_ascii_whitespace() || c == ',')
            .filter(|word| !word.is_empty())
            .peekable();
        while let Some(word) = words.next() {
            let Some(found) = lookup(word) else {
                options.complain(format!("option {word} is unknown, ignored"));
                continue;
            };
            let takes = if let Meaning::Pointless(takes, _) = found.meaning {
                takes
            } else if found.meaning == Meaning::TestFailures {
                Takes::Nothing
            } else {
                Takes::Value
            };
            let value = match (takes, found.attached) {
                (Takes::Nothing, _) => None,
                (Takes::Value, Some(value)) => Some(value),
                // A negative number is a value; another option is not.
                (Takes::Value, None) => words.next_if(|next| !is_option(next)),
            };
            options.apply(&found, value);
        }
        options
    }

    fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// Carries one option out.
    fn apply(&mut self, found: &Found<'_>, value: Option<&str>) {
        let word = found.word;
        if let Meaning::Pointless(_, why) = found.meaning {
            self.complain(format!("option {word} has no effect here: {why}"));
            return;
        }
        if found.meaning == Meaning::TestFailures {
            self.is_test = true;
            return;
        }
        let Some(value) = value else {
            self.complain(format!("option {word} lacks its value, ignored"));
            return;
        };
        let done = match found.meaning {
            Meaning::Event => set(&mut self.event_port, parse_port(value).map(Some)),
            Meaning::FirstDomain => set(&mut self.first_domain, parse_domid(value)),
            Meaning::Privileged => set(&mut self.privileged, parse_domid(value).map(Some)),
            Meaning::Limit(quota) => self.limit(quota, value),
            Meaning::Quota => value
                .split_once('=')
                .and_then(|(name, value)| Some((quota_named(name)?, value)))
                .is_some_and(|(quota, value)| self.limit(quota, value)),
            Meaning::SoftQuota => value
                .strip_prefix("memory=")
                .is_some_and(|value| self.limit(Quota::SoftMemory, value)),
            Meaning::Timeout => value
                .strip_prefix("watch-event=")
                .and_then(|seconds| seconds.parse::<u32>().ok())
                .map(|seconds| {
                    let ms = u64::from(seconds).saturating_mul(1000);
                    self.watch_event_timeout_ms = if ms == 0 { None } else { Some(ms) };
                })
                .is_some(),
            Meaning::Pointless(..) | Meaning::TrialFault | Meaning::TestFailures => true,
        };
        if !done {
            self.complain(format!("option {word}: value {value} is not valid, ignored"));
        }
    }

    /// Sets a limit; `false` if the value is no number.
    fn limit(&mut self, quota: Quota, value: &str) -> bool {
        let Ok(mut value) = value.parse::<u32>() else { return false };
        if quota == Quota::PathMax {
            // Longer paths could not be told from a damaged request by existing clients.
            value = value.min(Quotas::default().get(Quota::PathMax));
        }
        self.quotas.set(quota, value);
        true
    }
}

/// Whether a word is an option and so cannot be the value of the previous one.
fn is_option(word: &str) -> bool {
    let mut chars = word.chars();
    chars.next() == Some('-') && chars.next().is_some_and(|c| !c.is_ascii_digit())
}

/// Finds what a word of the command line stands for.
fn lookup(word: &str) -> Option<Found<'_>> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, attached) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let (_, _, meaning) = TABLE.iter().find(|(_, long, _)| *long == name)?;
        return Some(Found { word, meaning: *meaning, attached });
    }
    let rest = word.strip_prefix('-')?;
    let short = rest.chars().next().filter(|c| *c != '\0')?;
    let (_, _, meaning) = TABLE.iter().find(|(name, _, _)| *name == short)?;
    let attached = rest.get(short.len_utf8()..).filter(|value| !value.is_empty());
    Some(Found { word, meaning: *meaning, attached })
}

/// The quota with this name. Releases before 4.18 called one of them `permissions`.
fn quota_named(name: &str) -> Option<Quota> {
    match name {
        "permissions" => Some(Quota::NodePermissions),
        "soft-memory" => None,
        _ => Quota::from_name(name.as_bytes()),
    }
}

/// Stores a value that could be read; `false` otherwise.
fn set<T>(to: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) => {
            *to = value;
            true
        }
        None => false,
    }
}

fn parse_port(value: &str) -> Option<u32> {
    value.parse().ok().filter(|port| *port != 0)
}

fn parse_domid(value: &str) -> Option<DomId> {
    value.parse().ok().map(DomId).filter(|domid| domid.is_ordinary())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_toolstack_passes() {
        let options = Options::parse("--event 9");
        assert_eq!(options, Options { event_port: Some(9), ..Options::default() });
        assert_eq!(Options::parse("  \t "), Options::default());
    }

    #[test]
    fn every_way_to_spell_a_value() {
        for line in ["-E 5", "-E5", "--entry-nb 5", "--entry-nb=5", "-Q nodes=5", "--quota=nodes=5"]
        {
            let options = Options::parse(line);
            assert_eq!(options.quotas.get(Quota::Nodes), 5, "{line}");
            assert!(options.complaints.is_empty(), "{line}");
        }
        let options =
            Options::parse("-q memory=7 -w watch-event=3 --priv-domid 2 -Q permissions=9");
        assert_eq!(options.quotas.get(Quota::SoftMemory), 7);
        assert_eq!(options.quotas.get(Quota::NodePermissions), 9);
        assert_eq!(options.watch_event_timeout_ms, Some(3000));
        assert_eq!(options.privileged, Some(DomId(2)));
        assert_eq!(Options::parse("--timeout watch-event=0").watch_event_timeout_ms, None);
        let commas = Options::parse("--event 9 -E5,-W,6,--quota=watches=7");
        assert_eq!(commas.quotas.get(Quota::Nodes), 5);
        assert_eq!(commas.quotas.get(Quota::Watches), 7);
        assert_eq!(commas.event_port, Some(9));
        assert!(commas.complaints.is_empty());
        assert_eq!(Options::parse("-M 4000").quotas.get(Quota::PathMax), 2048);
    }

    #[test]
    fn damage_is_reported_and_the_rest_is_kept() {
        let bad = [
            "--evnt 9",
            "--event",
            "--event x",
            "--event 0",
            "-E -S",
            "-Q nodes",
            "-Q noods=3",
            "-q nodes=3",
            "-w 3",
            "--priv-domid 40000",
            "word",
            "-",
            "--",
            "-N",
            "-T /var/log/x",
            "\u{e9}",
        ];
        for line in bad {
            let options = Options::parse(&format!("{line} -t 3"));
            assert!(!options.complaints.is_empty(), "{line}");
            assert_eq!(options.quotas.get(Quota::Transactions), 3, "{line}");
            assert_eq!(options.event_port, None, "{line}");
        }
    }
}
