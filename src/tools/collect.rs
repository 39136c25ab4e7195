//! What is known about a store, kept up to date with one CONTROL request at a time.
//!
//! The store answers in pages. If everything fits into one page, each answer has it all. With more domains, pages
//! are asked for in turns, and every few of them the first page, which has the server's figures. So the work for
//! the store is the same however many domains there are.

use crate::link::Ask;
use crate::values::{Page, Row};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use xenstore_stubdom::proto::wire::Kind;

/// How many pages of domains come between two looks at the server's own figures.
const PAGES_BETWEEN: u32 = 3;

/// The most bytes of a name that are kept: more than anybody shows.
const NAME_MAX: usize = 256;

/// The name of a domain is read again after this time.
const NAME_AGE: Duration = Duration::from_secs(60);

/// Something that only grows, seen twice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    seen: Option<(u64, u64)>,
    /// How often in a second, between the last two looks.
    pub per_second: Option<f64>,
}

impl Rate {
    /// It is `total` at `now_ms` on the server's clock.
    fn see(&mut self, total: u64, now_ms: u64) {
        match self.seen {
            Some((before, then_ms)) if total >= before && now_ms > then_ms => {
                #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
                let rate = (total - before) as f64 * 1000.0 / (now_ms - then_ms) as f64;
                self.per_second = Some(rate);
            }
            Some((before, then_ms)) if total >= before && now_ms == then_ms => return,
            // The first time, or another server.
            _ => self.per_second = None,
        }
        self.seen = Some((total, now_ms));
    }
}

/// One domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domain {
    /// What the server says of it.
    pub row: Row,
    /// Its name, as it stands in `/local/domain/DOMID/name`, or nothing.
    pub name: Vec<u8>,
    /// Requests and events in a second.
    pub requests: Rate,
    /// Likewise.
    pub events: Rate,
    name_read: Option<Instant>,
}

/// A quota that is used most, for a short word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In percent of the limit.
    pub percent: u64,
    /// The quota's name.
    pub quota: &'static str,
}

/// The quotas of which a domain has a stock.
pub const QUOTAS: [&str; 5] = ["nodes", "watches", "transactions", "outstanding", "memory"];

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The page with the figures of the server.
    pub server: Page,
    /// The domains, ascending.
    pub domains: BTreeMap<u16, Domain>,
    /// Requests, events and hypercalls of the server in a second.
    pub requests: Rate,
    /// Likewise.
    pub events: Rate,
    /// Likewise.
    pub hypercalls: Rate,
    /// How many pages it took to see all domains once; 0 while that is not done.
    pub pages: u32,
}

impl Snapshot {
    /// The limit of a domain; 0 is none.
    #[must_use]
    pub fn limit(&self, row: &Row, quota: &str) -> u64 {
        let own = row.numbers.get(&format!("{quota}_limit")).copied();
        own.unwrap_or_else(|| self.server.number(&format!("limit.{quota}")))
    }

    /// The quota that a domain uses most. The privileged domain has none.
    #[must_use]
    pub fn usage(&self, row: &Row) -> Option<Usage> {
        if u64::from(row.domid) == self.server.number("privileged") {
            return None;
        }
        let each = QUOTAS.into_iter().filter_map(|quota| {
            let percent =
                row.number(quota).saturating_mul(100).checked_div(self.limit(row, quota))?;
            Some(Usage { percent, quota })
        });
        // The first of equals.
        each.rev().max_by_key(|usage| usage.percent)
    }
}

/// Keeps a [`Snapshot`] up to date.
#[derive(Debug, Default)]
pub struct Collector {
    /// What is known so far.
    pub snapshot: Snapshot,
    next: Option<u16>,
    /// Pages of domains since the last look at the server's figures.
    since: u32,
    /// Pages of the round that is under way.
    pages: u32,
}

impl Collector {
    /// Asks for one page, with one CONTROL request, and for the names of the domains on it.
    ///
    /// # Errors
    /// The store cannot be reached, or does not know what is asked.
    pub fn step(&mut self, store: &mut impl Ask) -> Result<()> {
        let from = self.next.filter(|_| self.since < PAGES_BETWEEN);
        let answer = match from {
            Some(domid) => store.control(&["stats", "--values", &domid.to_string()])?,
            None => store.control(&["stats", "--values"])?,
        };
        let page = match answer {
            Ok(answer) => Page::parse(&answer)?,
            Err(error) if error == "EINVAL" => {
                bail!(
                    "this xenstore knows no `stats --values`: it is no xenstore-stubdom, or an old one"
                )
            }
            Err(error) => bail!("CONTROL stats: {error}"),
        };
        let resumes = self.next;
        self.take(&page, from.unwrap_or(0));
        match from {
            Some(_) => {
                self.since += 1;
                self.next = page.next;
            }
            None => {
                self.since = 0;
                // In the middle of a round its own place is kept.
                self.next = resumes.or(page.next);
            }
        }
        self.pages += 1;
        if self.next.is_none() {
            self.snapshot.pages = std::mem::take(&mut self.pages);
            self.since = 0;
        }
        let domids = page.rows.iter().map(|row| row.domid).collect::<Vec<_>>();
        if from.is_none() {
            self.snapshot.server = page;
        }
        self.read_names(store, &domids)
    }

    /// Steps until every domain has been seen once; waits that long between two requests.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn round(&mut self, store: &mut impl Ask, pause: Duration) -> Result<()> {
        loop {
            self.step(store)?;
            if self.next.is_none() {
                return Ok(());
            }
            std::thread::sleep(pause);
        }
    }

    /// Takes over a page that begins with a domid.
    fn take(&mut self, page: &Page, from: u16) {
        let now_ms = page.number("now_ms");
        let Snapshot { domains, requests, events, hypercalls, .. } = &mut self.snapshot;
        // Whoever is not on it any more is gone.
        let is_on_page = |domid: &u16| page.rows.iter().any(|row| row.domid == *domid);
        let end = page.next.map_or(u32::from(u16::MAX) + 1, u32::from);
        domains.retain(|domid, _| *domid < from || u32::from(*domid) >= end || is_on_page(domid));
        for row in &page.rows {
            let domain = domains.entry(row.domid).or_default();
            if row.number("requests") < domain.row.number("requests") {
                // Another domain with the same domid.
                *domain = Domain::default();
            }
            domain.requests.see(row.number("requests"), now_ms);
            domain.events.see(row.number("events"), now_ms);
            domain.row = row.clone();
        }
        if page.numbers.contains_key("requests") {
            requests.see(page.number("requests"), now_ms);
            events.see(page.number("events"), now_ms);
            hypercalls.see(page.number("hypercalls"), now_ms);
        }
    }

    fn read_names(&mut self, store: &mut impl Ask, domids: &[u16]) -> Result<()> {
        for domid in domids {
            let Some(domain) = self.snapshot.domains.get_mut(domid) else { continue };
            if domain.name_read.is_some_and(|read| read.elapsed() < NAME_AGE) {
                continue;
            }
            domain.name_read = Some(Instant::now());
            let path = format!("/local/domain/{domid}/name\0");
            let name = store.ask(Kind::Read, path.as_bytes()).context("reading a domain's name")?;
            // One without a name has none.
            domain.name = name.unwrap_or_default();
            domain.name.truncate(NAME_MAX);
        }
        Ok(())
    }
}
