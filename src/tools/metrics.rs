//! `metrics`: the same figures in the text form of Prometheus (exposition format 0.0.4).
//!
//! Names follow its conventions: a prefix, base units, `_total` for what only grows. A label has the domain's
//! name, made harmless. The domid is a label of its own, since names may be equal.

use crate::collect::{Collector, Domain, QUOTAS, Snapshot};
use crate::link::Link;
use crate::text::{cut, printable};
use crate::top::PAUSE;
use anyhow::{Context as _, Result, anyhow};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A scrape reports the store as down if its last answer is older than this.
const STALE: Duration = Duration::from_secs(15);

/// The names of a domain's label values.
struct Labels {
    domid: u16,
    name: String,
}

/// The longest name of a domain in a label. Every sample of the domain has it, so long names would make up most of
/// a scrape.
const NAME_MAX: usize = 64;

/// A label's value.
fn label(bytes: &[u8]) -> String {
    cut(&printable(bytes), NAME_MAX).replace('\\', "\\\\").replace('"', "\\\"")
}

/// Text in the making.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}

/// Microseconds as seconds.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What is said of a store that does not answer.
#[must_use]
pub fn down() -> String {
    let mut text = Text::default();
    text.single("xenstore_up", "gauge", UP, 0);
    text.0
}

const UP: &str = "Whether the store answers.";

/// All of it.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    text.single("xenstore_up", "gauge", UP, 1);
    server(&mut text, snapshot);
    let labels = snapshot
        .domains
        .values()
        .map(|domain| (Labels { domid: domain.row.domid, name: label(&domain.name) }, domain))
        .collect::<Vec<_>>();
    each(&mut text, snapshot, &labels);
    text.0
}

fn server(text: &mut Text, snapshot: &Snapshot) {
    let page = &snapshot.server;
    text.head("xenstore_build_info", "gauge", "The image that serves, always 1.");
    let _ = writeln!(text.0, "xenstore_build_info{{image=\"{}\"}} 1", label(page.image.as_bytes()));
    let uptime = seconds(page.number("uptime_ms").saturating_mul(1000));
    text.single("xenstore_uptime_seconds", "gauge", "Time since the store began.", uptime);
    let counters = [
        (
            "xenstore_live_updates_total",
            "live_updates",
            "Images that have taken another one's place.",
        ),
        ("xenstore_restarts_total", "restarts", "Times that the store went on from a saved state."),
        ("xenstore_requests_total", "requests", "Requests handled."),
        ("xenstore_events_total", "events", "Watch events sent."),
        (
            "xenstore_dropped_events_total",
            "dropped",
            "Watch events that were not sent or not read in time.",
        ),
        ("xenstore_refusals_total", "refused", "What was refused for want of a quota."),
        ("xenstore_hypercalls_total", "hypercalls", "Hypercalls of the image that serves."),
    ];
    for (name, key, help) in counters {
        text.single(name, "counter", help, page.number(key));
    }
    let gauges = [
        ("xenstore_memory_used_bytes", "heap_used", "Memory in use."),
        ("xenstore_memory_size_bytes", "heap_size", "Memory taken so far."),
        ("xenstore_memory_limit_bytes", "heap_limit", "Memory that can be had at most."),
        ("xenstore_memory_free_bytes", "heap_free", "Memory that can still be had."),
        ("xenstore_nodes", "nodes", "Nodes."),
        ("xenstore_watches", "watches", "Watches."),
        ("xenstore_transactions", "transactions", "Open transactions."),
        ("xenstore_connections", "connections", "Connections."),
        ("xenstore_domains", "domains", "Domains that the store knows."),
    ];
    for (name, key, help) in gauges {
        if let Some(value) = page.numbers.get(key) {
            text.single(name, "gauge", help, value);
        }
    }
    histogram(text, snapshot);
}

fn histogram(text: &mut Text, snapshot: &Snapshot) {
    let page = &snapshot.server;
    let name = "xenstore_request_duration_seconds";
    let one_of = page.number("request_us_one_of");
    text.head(name, "histogram", &format!("Time that one of {one_of} requests took."));
    let mut sum = 0_u64;
    for (bound, count) in &page.buckets {
        sum = sum.saturating_add(*count);
        let bound = bound.map_or("+Inf".to_owned(), seconds);
        let _ = writeln!(text.0, "{name}_bucket{{le=\"{bound}\"}} {sum}");
    }
    let _ = writeln!(text.0, "{name}_sum {}", seconds(page.number("request_us_sum")));
    let _ = writeln!(text.0, "{name}_count {sum}");
}

fn each(text: &mut Text, snapshot: &Snapshot, labels: &[(Labels, &Domain)]) {
    let counters = [
        ("xenstore_domain_requests_total", "requests", "Requests of a domain."),
        ("xenstore_domain_events_total", "events", "Watch events sent to a domain."),
        (
            "xenstore_domain_dropped_events_total",
            "dropped",
            "Watch events that a domain did not get.",
        ),
        (
            "xenstore_domain_refusals_total",
            "refused",
            "What was refused to a domain for want of a quota.",
        ),
        ("xenstore_domain_received_bytes_total", "bytes_in", "Bytes of a domain's requests."),
        (
            "xenstore_domain_sent_bytes_total",
            "bytes_out",
            "Bytes of replies and events to a domain.",
        ),
    ];
    for (name, column, help) in counters {
        text.head(name, "counter", help);
        for (Labels { domid, name: label }, domain) in labels {
            let value = domain.row.number(column);
            let _ = writeln!(text.0, "{name}{{domid=\"{domid}\",name=\"{label}\"}} {value}");
        }
    }
    let name = "xenstore_domain_waiting_messages";
    text.head(name, "gauge", "Messages that a domain has not read.");
    for (Labels { domid, name: label }, domain) in labels {
        let value = domain.row.number("waiting");
        let _ = writeln!(text.0, "{name}{{domid=\"{domid}\",name=\"{label}\"}} {value}");
    }
    let name = "xenstore_domain_suspended";
    text.head(name, "gauge", "Whether a domain's requests are not read, and why.");
    for (Labels { domid, name: label }, domain) in labels {
        for reason in ["outstanding", "memory", "rate", "ignored"] {
            let value = u8::from(domain.row.state == reason);
            let _ = writeln!(
                text.0,
                "{name}{{domid=\"{domid}\",name=\"{label}\",reason=\"{reason}\"}} {value}"
            );
        }
    }
    quotas(text, snapshot, labels);
}

fn quotas(text: &mut Text, snapshot: &Snapshot, labels: &[(Labels, &Domain)]) {
    let (used, limit) = ("xenstore_domain_quota_used", "xenstore_domain_quota_limit");
    text.head(used, "gauge", "What a domain uses of a quota, bytes or pieces.");
    for (Labels { domid, name }, domain) in labels {
        for quota in QUOTAS {
            let value = domain.row.number(quota);
            let _ = writeln!(
                text.0,
                "{used}{{domid=\"{domid}\",name=\"{name}\",quota=\"{quota}\"}} {value}"
            );
        }
    }
    text.head(limit, "gauge", "A domain's limit for a quota; there is none for who has none.");
    for (Labels { domid, name }, domain) in labels {
        if u64::from(*domid) == snapshot.server.number("privileged") {
            continue;
        }
        for quota in QUOTAS {
            let value = snapshot.limit(&domain.row, quota);
            if value > 0 {
                let _ = writeln!(
                    text.0,
                    "{limit}{{domid=\"{domid}\",name=\"{name}\",quota=\"{quota}\"}} {value}"
                );
            }
        }
    }
}

/// What one look at the store gives.
fn look() -> Result<String> {
    let mut collector = Collector::default();
    collector.round(&mut Link::open()?, PAUSE)?;
    Ok(render(&collector.snapshot))
}

/// Prints the figures once.
///
/// # Errors
/// The store cannot be reached.
pub fn print() -> Result<()> {
    let text = look()?;
    let mut out = std::io::stdout().lock();
    std::io::Write::write_all(&mut out, text.as_bytes()).context("writing")
}

/// Writes the figures into a file, which is there as a whole or not at all. It also reports a store that does not
/// answer.
///
/// # Errors
/// The store cannot be reached, or the file not written.
pub fn write_to(path: &Path) -> Result<()> {
    let result = look();
    let text = result.as_ref().map_or_else(|_| down(), Clone::clone);
    let mut part = path.as_os_str().to_owned();
    // Not one that node_exporter reads.
    part.push(format!(".{}.part", std::process::id()));
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, path))
        .inspect_err(|_| drop(std::fs::remove_file(&part)))
        .with_context(|| path.display().to_string())?;
    result.map(drop)
}

/// The listener's answer, and when the store last answered.
type Latest = Arc<Mutex<Option<(Instant, String)>>>;

/// Answers scrapes for ever. Scrapes cost the store nothing: it is asked once a second, however many there are.
///
/// # Errors
/// The address cannot be listened on.
pub fn listen(address: &str) -> Result<()> {
    let address = address
        .parse::<SocketAddr>()
        .with_context(|| format!("{address} is no address with a port, such as 127.0.0.1:9151"))?;
    let server = tiny_http::Server::http(address).map_err(|error| anyhow!("{address}: {error}"))?;
    let latest = Latest::default();
    let keeper = Arc::clone(&latest);
    std::thread::spawn(move || keep_looking(&keeper));
    for request in server.incoming_requests() {
        // Of one who does not take the answer nothing is kept.
        drop(answer(request, &latest));
    }
    Ok(())
}

fn answer(request: tiny_http::Request, latest: &Latest) -> std::io::Result<()> {
    let path = request.url().split('?').next().unwrap_or("");
    if !matches!(path, "/metrics" | "/") {
        return request
            .respond(tiny_http::Response::from_string("see /metrics\n").with_status_code(404));
    }
    let text = match &*latest.lock().unwrap_or_else(PoisonError::into_inner) {
        Some((when, text)) if when.elapsed() < STALE => text.clone(),
        _ => down(),
    };
    let kind = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
    let mut response = tiny_http::Response::from_string(text);
    if let Ok(kind) = kind.parse::<tiny_http::Header>() {
        response.add_header(kind);
    }
    request.respond(response)
}

/// Looks at the store once a second.
fn keep_looking(latest: &Latest) {
    let mut link = None;
    let mut collector = Collector::default();
    loop {
        let result = match &mut link {
            Some(link) => collector.step(link),
            None => Link::open().and_then(|new| collector.step(link.insert(new))),
        };
        match result {
            Ok(()) if collector.snapshot.pages > 0 => {
                let news = Some((Instant::now(), render(&collector.snapshot)));
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = news;
            }
            // Half of the domains would look as if the others were gone.
            Ok(()) => {}
            Err(why) => {
                eprintln!("xenstore-stubdom: {why:#}");
                (link, collector) = (None, Collector::default());
                std::thread::sleep(PAUSE * 4);
            }
        }
        std::thread::sleep(PAUSE);
    }
}
