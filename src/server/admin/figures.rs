//! `CONTROL stats --values` and `memreport --values`: what the server does, for programs.
//!
//! Every line is `KEY=VALUE`. Keys may be added and columns may be appended, but none changes its meaning or goes
//! away (`docs/administration.md` has all of them). A reader finds columns by their names, and ignores those that
//! it does not know.
//!
//! One answer is one message. If not everything fits, the last line is `next=DOMID`, and `stats --values DOMID`
//! goes on there. So the work for an answer has a bound. Guests choose nothing in an answer but numbers.

use super::control::{Line, Text};
use super::stats::{BUCKETS, Latency};
use crate::proto::handover::{FieldReader, FieldWriter, Short};
use crate::proto::id::DomId;
use crate::proto::ring::RingPage;
use crate::proto::stream::{OutOfRoom, Sink};
use crate::proto::wire::PAYLOAD_MAX;
use crate::server::Server;
use crate::server::domains::Domain;
use crate::server::platform::Platform;
use crate::server::requests::Answer;
use crate::server::rings::{Connection, Figures, Sums, Suspension};
use crate::server::turns::MEASURED_OF;
use crate::store::Store;
use crate::store::quota::{Quota, Quotas};
use core::fmt::{self, Display, Formatter};

/// The word that asks for this form.
pub(in crate::server) const VALUES: &[u8] = b"--values";

/// The version of this form. It changes if an older reader would misunderstand what it reads.
const FORMAT: u32 = 1;

/// The most rows in an answer, and the most bytes of them: the cost of a row depends on its length, some 45
/// instructions a byte. So no answer takes more than 100,000 instructions, its request and its reply included,
/// whatever there is and whatever guests do (`benches/slices.rs` counts).
const ROWS_MAX: usize = 50;
const ROWS_BYTES_MAX: usize = 1800;

/// The same for an answer that begins with the server's figures.
const FIRST_BYTES_MAX: usize = 1400;

/// Room that the rows leave for the last line.
const LAST_LINE: usize = 16;

/// The columns of a row. A number is left out if it is 0, and a limit if it is the initial one.
const COLUMNS: &str = "domid,state,requests,events,dropped,refused,waiting,nodes,watches,transactions,outstanding,\
                       memory,bytes_in,bytes_out,nodes_limit,watches_limit,transactions_limit,outstanding_limit,\
                       memory_limit";

/// What became of the server itself, over all its instances.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::server) struct History {
    /// How often an image has replaced another one.
    pub(in crate::server) live_updates: u32,
    /// How often the store went on from a saved state after its server had ended.
    pub(in crate::server) restarts: u32,
    /// The sum of the request times that were measured.
    pub(in crate::server) measured_us: u64,
    /// What was refused to connections that are no more.
    pub(in crate::server) refused: u64,
}

impl History {
    /// An instance begins to serve the state of another one: `by_update`, or after its end.
    pub(in crate::server) fn begin(&mut self, by_update: bool) {
        let count = if by_update { &mut self.live_updates } else { &mut self.restarts };
        *count = count.saturating_add(1);
    }

    /// Writes it for a successor.
    pub(in crate::server) fn write<S: Sink>(
        self,
        fields: &mut FieldWriter<'_, S>,
    ) -> Result<(), OutOfRoom> {
        fields.u32(self.live_updates)?;
        fields.u32(self.restarts)?;
        fields.u64(self.measured_us)?;
        fields.u64(self.refused)
    }

    /// Reads it.
    pub(in crate::server) fn read(fields: &mut FieldReader<'_>) -> Result<Self, Short> {
        let (live_updates, restarts) = (fields.u32()?, fields.u32()?);
        Ok(Self { live_updates, restarts, measured_us: fields.u64()?, refused: fields.u64()? })
    }
}

/// Why a connection is not served, in one word.
pub(in crate::server) fn state<R: RingPage>(connection: &Connection<R>) -> &'static str {
    match connection.suspension {
        _ if !connection.is_connected() => "ignored",
        None => "connected",
        Some(Suspension::Outstanding) => "outstanding",
        Some(Suspension::Memory) => "memory",
        Some(Suspension::Rate(_)) => "rate",
    }
}

/// A limit of bytes for people; a word if there is none.
pub(in crate::server) struct Limit(pub(in crate::server) usize);

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == usize::MAX { f.write_str("none") } else { self.0.fmt(f) }
    }
}

/// The domain that comes next in a list, from a domid on.
pub(in crate::server) struct Listed<'a, P: Platform> {
    pub(in crate::server) domid: DomId,
    pub(in crate::server) connection: Option<&'a Connection<P::Ring>>,
}

/// Writes a row: the cells of the columns, without empty ones at its end.
fn write_row<R: RingPage>(
    line: &mut Line,
    domid: DomId,
    connection: Option<&Connection<R>>,
    store: &Store,
    initial: &Quotas,
) {
    line.word("row=");
    line.number(u64::from(domid.0));
    line.push(b',');
    line.word(match connection.map(state) {
        Some("connected") => "",
        Some(other) => other,
        None => "absent",
    });
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
        (0..core::mem::take(&mut commas)).for_each(|_| line.push(b','));
        line.number(number);
    }
}

/// The quotas of which a row says how much is used.
const STOCK: [Quota; 5] =
    [Quota::Nodes, Quota::Watches, Quota::Transactions, Quota::Outstanding, Quota::Memory];

/// How many requests took how long: `BELOW:COUNT`, with a bound in microseconds, or `-` for no bound.
struct Buckets(Latency);

impl Buckets {
    fn write(&self, line: &mut Line) {
        for (power, count) in (0_u32..).zip(self.0.0) {
            if power > 0 {
                line.push(b',');
            }
            if usize::try_from(power).unwrap_or(0).saturating_add(1) == BUCKETS {
                line.push(b'-');
            } else {
                line.number(1_u64.wrapping_shl(power));
            }
            line.push(b':');
            line.number(count);
        }
    }
}

impl<P: Platform> Server<P> {
    /// The first known domain from a domid on.
    pub(in crate::server) fn next_listed(&self, from: DomId) -> Option<Listed<'_, P>> {
        let (domid, domain) = self.domains.next_from(from)?;
        let &Domain { connection, .. } = domain;
        let connection = connection.and_then(|id| self.connections.get(id));
        Some(Listed { domid, connection })
    }

    /// What all connections have done, those that are gone, too.
    pub(in crate::server) fn sums(&self) -> Sums {
        let Figures { requests, events, dropped_events, .. } = self.past;
        let past = Sums { requests, events, dropped_events, refused: self.history.refused };
        past.with(self.connections.sums(), u64::saturating_add)
    }

    /// `stats --values`: with a domid, the rows from there on; else figures of the server before them.
    pub(in crate::server) fn control_values(&self, from: Option<DomId>) -> Answer {
        let mut text = Text::new()?;
        self.list_head(&mut text);
        if from.is_none() {
            self.list_counters(&mut text);
            self.list_memory(&mut text);
            self.list_stock(&mut text);
        }
        let mut line = Line::default();
        line.word("columns=");
        line.word(COLUMNS);
        text.made(&line);
        let (mut next, mut rows) = (Some(from.unwrap_or(DomId(0))), 0_usize);
        let initial = self.store.initial_quotas();
        let most = if from.is_none() { FIRST_BYTES_MAX } else { ROWS_BYTES_MAX };
        let most = text.len().saturating_add(most).min(PAYLOAD_MAX.saturating_sub(LAST_LINE));
        while let Some(Listed { domid, connection }) = next.and_then(|from| self.next_listed(from))
        {
            line.clear();
            write_row(&mut line, domid, connection, &self.store, &initial);
            if rows == ROWS_MAX || text.len().saturating_add(line.bytes().len()) > most {
                text.number("next", u64::from(domid.0));
                break;
            }
            text.made(&line);
            rows = rows.saturating_add(1);
            next = domid.0.checked_add(1).map(DomId);
        }
        text.reply()
    }

    /// `memreport --values`.
    pub(in crate::server) fn control_memory_values(&self) -> Answer {
        let mut text = Text::new()?;
        self.list_head(&mut text);
        self.list_memory(&mut text);
        self.list_stock(&mut text);
        text.number("ports", self.ports.len() as u64);
        text.number("unfinished_requests", self.causes.len() as u64);
        text.reply()
    }

    fn list_head(&self, text: &mut Text) {
        let History { live_updates, restarts, .. } = self.history;
        text.number("format", u64::from(FORMAT));
        let mut line = Line::default();
        line.word("image=");
        line.word(crate::VERSION);
        text.made(&line);
        text.number("now_ms", self.now_ms);
        text.number("uptime_ms", self.now_ms.saturating_sub(self.started_ms));
        text.number("live_updates", u64::from(live_updates));
        text.number("restarts", u64::from(restarts));
    }

    fn list_counters(&self, text: &mut Text) {
        let Sums { requests, events, dropped_events, refused } = self.sums();
        text.number("privileged", u64::from(self.privileged.0));
        text.number("hypercalls", self.platform.hypercalls());
        text.number("requests", requests);
        text.number("events", events);
        text.number("dropped", dropped_events);
        text.number("refused", refused);
        text.line(format_args!("write_reserve={}", self.reserve.writes()));
        let mut line = Line::default();
        line.word("request_us=");
        Buckets(self.latency).write(&mut line);
        text.made(&line);
        text.number("request_us_sum", self.history.measured_us);
        text.number("request_us_one_of", u64::from(MEASURED_OF));
        for quota in Quota::ALL {
            let limit = self.store.quota(None, quota).unwrap_or(0);
            line.clear();
            line.word("limit.");
            line.word(quota.name());
            line.push(b'=');
            line.number(u64::from(limit));
            text.made(&line);
        }
    }

    fn list_memory(&self, text: &mut Text) {
        let heap = self.platform.heap();
        text.number("heap_used", heap.used as u64);
        text.number("heap_size", heap.size as u64);
        // What has no limit has no line.
        if heap.limit != usize::MAX {
            text.number("heap_limit", heap.limit as u64);
            text.number("heap_free", heap.free as u64);
        }
    }

    fn list_stock(&self, text: &mut Text) {
        text.number("nodes", self.store.node_count() as u64);
        text.number("watches", self.store.watch_count() as u64);
        text.number("transactions", self.store.open_transactions() as u64);
        text.number("connections", self.connections.len() as u64);
        text.number("domains", self.domains.len() as u64);
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
        let mut line = Line::default();
        Buckets(latency).write(&mut line);
        let text = core::str::from_utf8(line.bytes()).unwrap();
        assert!(text.starts_with("1:1,2:0,4:1,8:0,"), "{text}");
        assert!(text.ends_with(",65536:0,-:1"), "{text}");
        for number in [0, 7, 9, 10, 65_535, u64::MAX] {
            line.clear();
            line.number(number);
            assert_eq!(line.bytes(), format!("{number}").as_bytes());
        }
    }

    #[test]
    fn no_limit_is_a_word() {
        assert_eq!(format!("{} {}", Limit(usize::MAX), Limit(5)), "none 5");
    }
}
