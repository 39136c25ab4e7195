//! `CONTROL stats`: how busy the server and each connection are.

use super::control::{Line, Text};
use super::figures::{Limit, Listed, state};
use crate::proto::id::DomId;
use crate::proto::ring::RingPage;
use crate::proto::wire::PAYLOAD_MAX;
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::requests::Answer;
use crate::server::rings::{Connection, Figures, Sums};
use crate::server::turns::MEASURED_OF;
use core::fmt::Write;

/// The upper bounds of the histogram's buckets are 1, 2, 4, ... microseconds; the last one has no bound.
pub(in crate::server) const BUCKETS: usize = 18;

/// Room that a list of connections leaves for its last line.
const LAST_LINE: usize = 32;

/// The most domains that one answer looks at, so that it takes no longer than a turn or two however many there
/// are.
const LOOKS_MAX: usize = 50;

/// A line of the histogram.
type Histogram = heapless::String<512>;

/// How long requests took, from the complete message to the queued reply.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct Latency(pub(in crate::server) [u64; BUCKETS]);

impl Latency {
    /// Counts one request.
    pub(in crate::server) fn add(&mut self, us: u64) {
        let bits = u64::BITS.saturating_sub(us.leading_zeros());
        let bucket = usize::try_from(bits).unwrap_or(0).min(BUCKETS.saturating_sub(1));
        if let Some(count) = self.0.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    /// Every bucket that is not empty, as `<BOUND us: COUNT`.
    fn text(self) -> Histogram {
        let mut text = Histogram::new();
        for (power, count) in (0_u32..).zip(self.0).filter(|(_, count)| *count > 0) {
            let bound = 1_u64.wrapping_shl(power);
            let is_last = usize::try_from(power).unwrap_or(0) == BUCKETS.saturating_sub(1);
            // What does not fit is left out.
            let _ = if is_last {
                write!(text, " >={}: {count}", bound.wrapping_shr(1))
            } else {
                write!(text, " <{bound}: {count}")
            };
        }
        text
    }
}

/// The line of one connection.
fn write_line<R: RingPage>(line: &mut Line, domid: DomId, connection: &Connection<R>) {
    let Figures { requests, events, dropped_events, bytes_in, bytes_out } = connection.figures;
    let waiting = connection.queue.len() as u64;
    line.number(u64::from(domid.0));
    for number in [requests, events, dropped_events, bytes_in, bytes_out, waiting] {
        line.push(b' ');
        line.number(number);
    }
    line.push(b' ');
    line.word(state(connection));
}

impl<P: Platform> Server<P> {
    /// `stats`: figures of the server, then one line for each connection, from a domid on; if they do
    /// not fit into one message, the last line says how to go on.
    pub(in crate::server) fn control_stats(&self, from: DomId) -> Answer {
        let mut text = Text::new()?;
        if from == DomId(0) {
            self.list_figures(&mut text);
        }
        text.line(format_args!("domid requests events dropped bytes-in bytes-out waiting state"));
        let (mut next, mut looks, mut line) = (Some(from), 0_usize, Line::default());
        while let Some(Listed { domid, connection }) = next.and_then(|from| self.next_listed(from))
        {
            line.clear();
            if let Some(connection) = connection {
                write_line(&mut line, domid, connection);
            }
            let end = text.len().saturating_add(line.bytes().len()).saturating_add(LAST_LINE);
            if looks == LOOKS_MAX || end > PAYLOAD_MAX {
                text.line(format_args!("more: stats {domid}"));
                break;
            }
            if connection.is_some() {
                text.made(&line);
            }
            looks = looks.saturating_add(1);
            next = domid.0.checked_add(1).map(DomId);
        }
        text.reply()
    }

    fn list_figures(&self, text: &mut Text) {
        let uptime_ms = self.now_ms.saturating_sub(self.started_ms);
        let heap = self.platform.heap();
        let Sums { requests, events, dropped_events: dropped, .. } = self.sums();
        text.line(format_args!("image: {}", crate::VERSION));
        text.line(format_args!("uptime: {} s", uptime_ms.wrapping_div(1000)));
        text.line(format_args!(
            "heap: used {} bytes, size {}, limit {}",
            heap.used,
            heap.size,
            Limit(heap.limit)
        ));
        text.line(format_args!("hypercalls: {}", self.platform.hypercalls()));
        text.line(format_args!("requests: {requests}"));
        text.line(format_args!("events: {events}"));
        text.line(format_args!("dropped events: {dropped}"));
        text.line(format_args!("write reserve: {}", self.reserve.writes()));
        let latency = self.latency.text();
        text.line(format_args!("request time in us, one of {MEASURED_OF}:{latency}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double() {
        let mut latency = Latency::default();
        for us in [0, 1, 2, 3, 4, 1000, u64::MAX] {
            latency.add(us);
        }
        assert_eq!(latency.text(), " <1: 1 <2: 1 <4: 2 <8: 1 <1024: 1 >=65536: 1");
    }
}
