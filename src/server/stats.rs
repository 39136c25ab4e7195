//! `CONTROL stats`: how busy the server and each connection are.

use super::Server;
use super::control::Text;
use super::dispatch::Answer;
use super::figures::{Limit, Listed, state};
use super::platform::Platform;
use super::schedule::MEASURED_OF;
use crate::proto::id::DomId;
use crate::proto::wire::PAYLOAD_MAX;
use core::fmt::Write;

/// The upper bounds of the histogram's buckets are 1, 2, 4, ... microseconds; the last one has no bound.
pub(super) const BUCKETS: usize = 18;

/// Room that a list of connections leaves for its last line.
const LAST_LINE: usize = 32;

/// A line of figures.
type Line = heapless::String<512>;

/// How long requests took, from the complete message to the queued reply.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Latency(pub(super) [u64; BUCKETS]);

impl Latency {
    /// Counts one request.
    pub(super) fn add(&mut self, us: u64) {
        let bits = u64::BITS.saturating_sub(us.leading_zeros());
        let bucket = usize::try_from(bits).unwrap_or(0).min(BUCKETS.saturating_sub(1));
        if let Some(count) = self.0.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    /// Every bucket that is not empty, as `<BOUND us: COUNT`.
    fn text(self) -> Line {
        let mut text = Line::new();
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

impl<P: Platform> Server<P> {
    /// `stats`: figures of the server, then one line for each connection, from a domid on; if they do
    /// not fit into one message, the last line says how to go on.
    pub(super) fn control_stats(&self, from: DomId) -> Answer {
        let mut text = Text::new()?;
        if from == DomId(0) {
            self.list_figures(&mut text);
        }
        text.line(format_args!("domid requests events dropped bytes-in bytes-out waiting state"));
        let mut next = Some(from);
        while let Some(Listed { domid, connection }) = next.and_then(|from| self.next_listed(from))
        {
            next = domid.0.checked_add(1).map(DomId);
            let Some(connection) = connection else { continue };
            let figures = connection.figures;
            let mut line = Line::new();
            // What does not fit is left out.
            let _ = write!(
                line,
                "{domid} {} {} {} {} {} {} {}",
                figures.requests,
                figures.events,
                figures.dropped_events,
                figures.bytes_in,
                figures.bytes_out,
                connection.queue.len(),
                state(connection)
            );
            if text.len().saturating_add(line.len()).saturating_add(LAST_LINE) > PAYLOAD_MAX {
                text.line(format_args!("more: stats {domid}"));
                break;
            }
            text.line(format_args!("{line}"));
        }
        text.reply()
    }

    fn list_figures(&self, text: &mut Text) {
        let uptime_ms = self.now_ms.saturating_sub(self.started_ms);
        let heap = self.platform.heap();
        let (mut requests, mut events, mut dropped) = self.past.sums();
        for (_, connection) in self.connections.iter() {
            requests = requests.saturating_add(connection.figures.requests);
            events = events.saturating_add(connection.figures.events);
            dropped = dropped.saturating_add(connection.figures.dropped_events);
        }
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
