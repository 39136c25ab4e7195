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
use crate::store::quota::Quota;
use core::fmt::{self, Display, Formatter, Write};

/// The word that asks for this form.
pub(super) const VALUES: &[u8] = b"--values";

/// The version of this form. It changes if a reader of before would misunderstand what it reads.
const FORMAT: u32 = 1;

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

/// A row: the cells that the columns name, without those that are empty at its end.
struct Row<'a, R> {
    domid: DomId,
    connection: Option<&'a Connection<R>>,
    store: &'a Store,
}

impl<R: RingPage> Row<'_, R> {
    /// How much a domain uses of something, and its limit if that is not the initial one.
    fn usage(&self, quota: Quota) -> (u64, Option<u64>) {
        let used = self.store.usage(self.domid, quota).map_or(0, |(used, _)| used);
        let limit = self.store.quota(Some(self.domid), quota);
        let own = limit.filter(|limit| Some(*limit) != self.store.quota(None, quota));
        (u64::from(used), own.map(u64::from))
    }
}

impl<R: RingPage> Display for Row<'_, R> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = match self.connection.map(state) {
            Some("connected") => "",
            Some(other) => other,
            None => "absent",
        };
        write!(f, "row={},{state}", self.domid)?;
        let (figures, refused, waiting) = self
            .connection
            .map_or_else(Default::default, |c| (c.figures, c.told.refused, c.queue.len() as u64));
        let [nodes, watches, transactions, outstanding, memory] =
            [Quota::Nodes, Quota::Watches, Quota::Transactions, Quota::Outstanding, Quota::Memory]
                .map(|quota| self.usage(quota));
        let stock = [nodes, watches, transactions, outstanding, memory];
        let cells = [figures.requests, figures.events, figures.dropped_events, refused, waiting]
            .into_iter()
            .chain(stock.map(|(used, _)| used))
            .chain([figures.bytes_in, figures.bytes_out])
            .map(|number| Some(number).filter(|number| *number != 0));
        let limits = stock.map(|(_, limit)| limit);
        let mut commas = 0_usize;
        for cell in cells.chain(limits) {
            commas = commas.saturating_add(1);
            let Some(number) = cell else { continue };
            for _ in 0..core::mem::take(&mut commas) {
                f.write_char(',')?;
            }
            write!(f, "{number}")?;
        }
        Ok(())
    }
}

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

/// The length of a text.
fn len(text: &impl Display) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.saturating_add(text.len());
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting does not fail.
    let _ = write!(count, "{text}");
    count.0
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
        let mut next = Some(from.unwrap_or(DomId(0)));
        while let Some(Listed { domid, connection }) = next.and_then(|from| self.next_listed(from))
        {
            let row = Row { domid, connection, store: &self.store };
            if text.len().saturating_add(len(&row)).saturating_add(LAST_LINE) > PAYLOAD_MAX {
                text.line(format_args!("next={domid}"));
                break;
            }
            text.line(format_args!("{row}"));
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
        assert_eq!(len(&text), text.len());
    }

    #[test]
    fn no_limit_is_a_word() {
        assert_eq!(format!("{} {}", Limit(usize::MAX), Limit(5)), "none 5");
    }
}
