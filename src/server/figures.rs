//! `CONTROL stats --values` and `memreport --values`: what the server does, for programs.
//!
//! Every line is `KEY=VALUE`. Keys may be added and columns may be appended, but none changes its meaning or goes
//! away (`docs/administration.md` has all of them); a reader finds columns by their names, and ignores what it does not
//! know.
//!
//! One answer is one message. What does not fit is left to the next: the last line then is `next=DOMID`, and
//! `stats --values DOMID` goes on there. So an answer takes the same bounded work whatever there is, and nothing that
//! a guest chooses stands in it but numbers.

use super::Server;
use super::connection::{Connection, Suspension};
use super::control::Text;
use super::dispatch::Answer;
use super::domains::Domain;
use super::platform::Platform;
use super::schedule::MEASURED_OF;
use super::stats::{BUCKETS, Latency};
use crate::proto::handover::{FieldReader, FieldWriter, Short};
use crate::proto::id::DomId;
use crate::proto::ring::RingPage;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::PAYLOAD_MAX;
use crate::store::Store;
use crate::store::quota::{Quota, Quotas};
use core::fmt::{self, Display, Formatter, Write};

/// The word that asks for this form.
pub(super) const VALUES: &[u8] = b"--values";

/// The version of this form. It changes if a reader of before would misunderstand what it reads.
const FORMAT: u32 = 1;

/// Rows in an answer, so that it takes no more than a turn: some 1,500 instructions each (docs/administration.md).
const ROWS_MAX: usize = 50;

/// Room that the rows leave for the last line.
const LAST_LINE: usize = 16;

/// The columns of a row. A number that is 0 is left out, and a limit that is the initial one.
const COLUMNS: &str = "domid,state,requests,events,dropped,refused,waiting,nodes,watches,transactions,outstanding,\
                       memory,bytes_in,bytes_out,nodes_limit,watches_limit,transactions_limit,outstanding_limit,\
                       memory_limit";

/// What became of the server itself, over all its instances.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct History {
    /// How often an image has taken another one's place.
    pub(super) live_updates: u32,
    /// How often the store went on from a saved state after its server had ended.
    pub(super) restarts: u32,
    /// The sum of the request times that were measured.
    pub(super) measured_us: u64,
    /// What was refused to connections that are no more.
    pub(super) refused: u64,
}

impl History {
    /// An instance begins to serve what another one left: `by_update`, or after its end.
    pub(super) fn begin(&mut self, by_update: bool) {
        let count = if by_update { &mut self.live_updates } else { &mut self.restarts };
        *count = count.saturating_add(1);
    }

    /// Writes it for a successor.
    pub(super) fn write<S: Sink>(self, fields: &mut FieldWriter<'_, S>) -> Result<(), OutOfRoom> {
        fields.u32(self.live_updates)?;
        fields.u32(self.restarts)?;
        fields.u64(self.measured_us)?;
        fields.u64(self.refused)
    }

    /// Reads it.
    pub(super) fn read(fields: &mut FieldReader<'_>) -> Result<Self, Short> {
        let (live_updates, restarts) = (fields.u32()?, fields.u32()?);
        Ok(Self { live_updates, restarts, measured_us: fields.u64()?, refused: fields.u64()? })
    }
}

/// What keeps a connection from being served, in one word.
pub(super) fn state<R: RingPage>(connection: &Connection<R>) -> &'static str {
    match connection.suspension {
        _ if !connection.is_connected() => "ignored",
        None => "connected",
        Some(Suspension::Outstanding) => "outstanding",
        Some(Suspension::Memory) => "memory",
        Some(Suspension::Rate(_)) => "rate",
    }
}

/// A limit of bytes for people: what has none says so.
pub(super) struct Limit(pub(super) usize);

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == usize::MAX { f.write_str("none") } else { self.0.fmt(f) }
    }
}

/// The domain that comes next in a list, from a domid on.
pub(super) struct Listed<'a, P: Platform> {
    pub(super) domid: DomId,
    pub(super) connection: Option<&'a Connection<P::Ring>>,
}

/// The most that a row takes: a dozen and a half numbers.
type Line = heapless::String<400>;

/// Appends a number.
fn decimal(line: &mut Line, number: u64) -> fmt::Result {
    let mut digits = [0; 20];
    let mut first = digits.len();
    let mut rest = number;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0'.wrapping_add(u8::try_from(rest.wrapping_rem(10)).unwrap_or(0));
        first = at;
        rest = rest.wrapping_div(10);
        if rest == 0 {
            break;
        }
    }
    let text = digits.get(first..).and_then(|digits| core::str::from_utf8(digits).ok());
    line.write_str(text.unwrap_or("0"))
}

/// Writes a row: the cells that the columns name, without those that are empty at its end.
fn write_row<R: RingPage>(
    line: &mut Line,
    domid: DomId,
    connection: Option<&Connection<R>>,
    store: &Store,
    initial: &Quotas,
) -> fmt::Result {
    line.write_str("row=")?;
    decimal(line, u64::from(domid.0))?;
    line.write_char(',')?;
    line.write_str(match connection.map(state) {
        Some("connected") => "",
        Some(other) => other,
        None => "absent",
    })?;
    let (figures, refused, waiting) = connection.map_or_else(Default::default, |connection| {
        (connection.figures, connection.told.refused, connection.queue.len() as u64)
    });
    let accounts = store.accounts(domid);
    let (limits, _, used) = accounts.unwrap_or((*initial, Quotas::ZERO, Quotas::ZERO));
    let own = |quota| {
        let limit = limits.get(quota);
        // One without a limit where others have one: an empty cell would say that it has theirs.
        (limit != initial.get(quota)).then_some(u64::from(limit))
    };
    let [nodes, watches, transactions, outstanding, memory] = STOCK;
    let used = |quota| u64::from(used.get(quota));
    let cells = [
        Some(figures.requests).filter(|number| *number != 0),
        Some(figures.events).filter(|number| *number != 0),
        Some(figures.dropped_events).filter(|number| *number != 0),
        Some(refused).filter(|number| *number != 0),
        Some(waiting).filter(|number| *number != 0),
        Some(used(nodes)).filter(|number| *number != 0),
        Some(used(watches)).filter(|number| *number != 0),
        Some(used(transactions)).filter(|number| *number != 0),
        Some(used(outstanding)).filter(|number| *number != 0),
        Some(used(memory)).filter(|number| *number != 0),
        Some(figures.bytes_in).filter(|number| *number != 0),
        Some(figures.bytes_out).filter(|number| *number != 0),
        own(nodes),
        own(watches),
        own(transactions),
        own(outstanding),
        own(memory),
    ];
    let mut commas = 0_usize;
    for cell in cells {
        commas = commas.saturating_add(1);
        let Some(number) = cell else { continue };
        line.write_str(COMMAS.get(..core::mem::take(&mut commas)).unwrap_or(COMMAS))?;
        decimal(line, number)?;
    }
    Ok(())
}

/// As many commas as there can be side by side.
const COMMAS: &str = ",,,,,,,,,,,,,,,,,";

/// The quotas of which a row says how much is used.
const STOCK: [Quota; 5] =
    [Quota::Nodes, Quota::Watches, Quota::Transactions, Quota::Outstanding, Quota::Memory];

/// How many requests took how long: `BELOW:COUNT`, a bound in microseconds each, `-` for what has none.
struct Buckets(Latency);

impl Display for Buckets {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (power, count) in (0_u32..).zip(self.0.0) {
            f.write_str(separator)?;
            separator = ",";
            if usize::try_from(power).unwrap_or(0).saturating_add(1) == BUCKETS {
                write!(f, "-:{count}")?;
            } else {
                write!(f, "{}:{count}", 1_u64.wrapping_shl(power))?;
            }
        }
        Ok(())
    }
}

impl<P: Platform> Server<P> {
    /// The first known domain from a domid on.
    pub(super) fn next_listed(&self, from: DomId) -> Option<Listed<'_, P>> {
        let (domid, domain) = self.domains.next_from(from)?;
        let &Domain { connection, .. } = domain;
        let connection = connection.and_then(|id| self.connections.get(id));
        Some(Listed { domid, connection })
    }

    /// `stats --values`: with a domid, the rows from there on; else figures of the server before them.
    pub(super) fn control_values(&self, from: Option<DomId>) -> Answer {
        let mut text = Text::new()?;
        self.list_head(&mut text);
        if from.is_none() {
            self.list_counters(&mut text);
            self.list_memory(&mut text);
            self.list_stock(&mut text);
        }
        text.line(format_args!("columns={COLUMNS}"));
        let (mut next, mut rows) = (Some(from.unwrap_or(DomId(0))), 0_usize);
        let (initial, mut line) = (self.store.initial_quotas(), Line::new());
        while let Some(Listed { domid, connection }) = next.and_then(|from| self.next_listed(from))
        {
            line.clear();
            // It has room for all that a row can be.
            let _ = write_row(&mut line, domid, connection, &self.store, &initial);
            let end = text.len().saturating_add(line.len()).saturating_add(LAST_LINE);
            if rows == ROWS_MAX || end > PAYLOAD_MAX {
                text.line(format_args!("next={domid}"));
                break;
            }
            text.line(format_args!("{line}"));
            rows = rows.saturating_add(1);
            next = domid.0.checked_add(1).map(DomId);
        }
        text.reply()
    }

    /// `memreport --values`.
    pub(super) fn control_memory_values(&self) -> Answer {
        let mut text = Text::new()?;
        self.list_head(&mut text);
        self.list_memory(&mut text);
        self.list_stock(&mut text);
        text.line(format_args!("ports={}", self.ports.len()));
        text.line(format_args!("unfinished_requests={}", self.causes.len()));
        text.reply()
    }

    fn list_head(&self, text: &mut Text) {
        let uptime_ms = self.now_ms.saturating_sub(self.started_ms);
        text.line(format_args!("format={FORMAT}"));
        text.line(format_args!("image={}", crate::VERSION));
        text.line(format_args!("now_ms={}", self.now_ms));
        text.line(format_args!("uptime_ms={uptime_ms}"));
        text.line(format_args!("live_updates={}", self.history.live_updates));
        text.line(format_args!("restarts={}", self.history.restarts));
    }

    fn list_counters(&self, text: &mut Text) {
        let (mut requests, mut events, mut dropped) = self.past.sums();
        let mut refused = self.history.refused;
        for (_, connection) in self.connections.iter() {
            requests = requests.saturating_add(connection.figures.requests);
            events = events.saturating_add(connection.figures.events);
            dropped = dropped.saturating_add(connection.figures.dropped_events);
            refused = refused.saturating_add(connection.told.refused);
        }
        text.line(format_args!("privileged={}", self.privileged));
        text.line(format_args!("hypercalls={}", self.platform.hypercalls()));
        text.line(format_args!("requests={requests}"));
        text.line(format_args!("events={events}"));
        text.line(format_args!("dropped={dropped}"));
        text.line(format_args!("refused={refused}"));
        text.line(format_args!("write_reserve={}", self.reserve.writes()));
        text.line(format_args!("request_us={}", Buckets(self.latency)));
        text.line(format_args!("request_us_sum={}", self.history.measured_us));
        text.line(format_args!("request_us_one_of={MEASURED_OF}"));
        for quota in Quota::ALL {
            let name = quota.name();
            let limit = self.store.quota(None, quota).unwrap_or(0);
            text.line(format_args!("limit.{name}={limit}"));
        }
    }

    fn list_memory(&self, text: &mut Text) {
        let heap = self.platform.heap();
        text.line(format_args!("heap_used={}", heap.used));
        text.line(format_args!("heap_size={}", heap.size));
        // What has no limit has no line.
        if heap.limit != usize::MAX {
            text.line(format_args!("heap_limit={}", heap.limit));
            text.line(format_args!("heap_free={}", heap.free));
        }
    }

    fn list_stock(&self, text: &mut Text) {
        text.line(format_args!("nodes={}", self.store.node_count()));
        text.line(format_args!("watches={}", self.store.watch_count()));
        text.line(format_args!("transactions={}", self.store.open_transactions()));
        text.line(format_args!("connections={}", self.connections.len()));
        text.line(format_args!("domains={}", self.domains.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn buckets_have_bounds_but_the_last() {
        let mut latency = Latency::default();
        for us in [0, 3, u64::MAX] {
            latency.add(us);
        }
        let text = format!("{}", Buckets(latency));
        assert!(text.starts_with("1:1,2:0,4:1,8:0,"), "{text}");
        assert!(text.ends_with(",65536:0,-:1"), "{text}");
        let mut line = Line::new();
        for number in [0, 7, 10, 65_535, u64::MAX] {
            line.clear();
            decimal(&mut line, number).unwrap();
            assert_eq!(line.as_str(), format!("{number}"));
        }
    }

    #[test]
    fn no_limit_is_a_word() {
        assert_eq!(format!("{} {}", Limit(usize::MAX), Limit(5)), "none 5");
    }
}
