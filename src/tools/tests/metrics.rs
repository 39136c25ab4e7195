//! `metrics`: every line is what Prometheus' text format (0.0.4) and its conventions want, whatever guests are called.

mod common;

use common::{Store, hostile, is_plain};
use std::collections::{BTreeMap, BTreeSet};
use xenstore_stubdom::proto::wire::Kind;
use xenstore_tools::collect::Collector;
use xenstore_tools::metrics;
use xenstore_tools::text::{cut, printable};

/// A sample, taken apart.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn is_name(text: &str, colon: bool) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || colon && c == ':';
    !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(good)
}

/// `name="value",...` with the format's three escapes.
fn labels(mut text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, false) || name.starts_with("__") {
            return Err(format!("label {name:?}"));
        }
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => value.push(match chars.next() {
                    Some((_, '\\')) => '\\',
                    Some((_, '"')) => '"',
                    Some((_, 'n')) => '\n',
                    other => return Err(format!("escape {other:?}")),
                }),
                Some((at, '"')) => break at,
                Some((_, c)) => value.push(c),
                None => return Err("no end of a label".to_owned()),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("label {name} twice"));
        }
        text = &rest[end + 1..];
        text = match text.strip_prefix(',') {
            Some(rest) if !rest.is_empty() => rest,
            None if text.is_empty() => text,
            _ => return Err(format!("behind a label: {text:?}")),
        };
    }
    Ok(labels)
}

fn sample(line: &str) -> Result<Sample, String> {
    let (head, value) = line.rsplit_once(' ').ok_or("no value")?;
    let value = value.parse::<f64>().map_err(|error| format!("{value}: {error}"))?;
    let (name, inner) = match head.split_once('{') {
        None => (head, ""),
        Some((name, rest)) => (name, rest.strip_suffix('}').ok_or("no end of the labels")?),
    };
    if !is_name(name, true) {
        return Err(format!("name {name:?}"));
    }
    Ok(Sample { name: name.to_owned(), labels: labels(inner)?, value })
}

/// What `promtool check metrics` complains of, and whatever makes a scrape fail.
fn validate(text: &str) -> Result<Vec<Sample>, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let (mut helped, mut types) = (BTreeSet::new(), BTreeMap::new());
    let mut current = String::new();
    let (mut done, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut samples = Vec::new();
    for line in text.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else { return wrong("HELP") };
            if help.is_empty() || !helped.insert(name.to_owned()) {
                return wrong("no help, or twice");
            }
            if !current.is_empty() {
                done.insert(std::mem::take(&mut current));
            }
            if done.contains(name) {
                return wrong("a family in two places");
            }
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return wrong("TYPE") };
            let is_total = name.ends_with("_total");
            match kind {
                "counter" if is_total => {}
                "gauge" | "histogram" if !is_total => {}
                _ => return wrong("the type does not go with the name"),
            }
            if name != current || types.insert(name.to_owned(), kind.to_owned()).is_some() {
                return wrong("TYPE without HELP, or twice");
            }
            let units = ["ms", "us", "milliseconds", "kilobytes", "megabytes"];
            if name.split('_').any(|word| units.contains(&word)) {
                return wrong("no base unit");
            }
        } else if line.starts_with('#') || line.is_empty() {
            return wrong("a line that nobody needs");
        } else {
            let sample = sample(line).map_err(|what| format!("{what}: {line}"))?;
            let family = match types.get(&current).map(String::as_str) {
                Some("histogram") => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| sample.name.strip_suffix(suffix))
                    .unwrap_or(""),
                Some(_) => sample.name.as_str(),
                None => return wrong("a sample without a type"),
            };
            if family != current {
                return wrong("a sample of another family");
            }
            if types[&current] == "counter" && sample.value < 0.0 {
                return wrong("a counter below 0");
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return wrong("a sample twice");
            }
            samples.push(sample);
        }
    }
    check_families(&types, &samples).map(|()| samples)
}

fn check_families(types: &BTreeMap<String, String>, samples: &[Sample]) -> Result<(), String> {
    for (name, kind) in types {
        if kind == "histogram" {
            histogram(name, samples)?;
        }
        if !samples.iter().any(|sample| sample.name.starts_with(name.as_str())) {
            return Err(format!("{name} has no sample"));
        }
    }
    Ok(())
}

fn histogram(name: &str, samples: &[Sample]) -> Result<(), String> {
    let only = |suffix: &str| {
        samples.iter().filter(|s| s.name == format!("{name}{suffix}")).cloned().collect::<Vec<_>>()
    };
    let (mut below, mut bound) = (0.0, f64::NEG_INFINITY);
    for bucket in only("_bucket") {
        let le = bucket.labels.get("le").ok_or("no le")?;
        let le = if le == "+Inf" {
            f64::INFINITY
        } else {
            le.parse().map_err(|_| format!("le {le}"))?
        };
        if le <= bound || bucket.value < below {
            return Err(format!("{name}: buckets do not grow: {bucket:?}"));
        }
        (below, bound) = (bucket.value, le);
    }
    let (sum, count) = (only("_sum"), only("_count"));
    match (sum.as_slice(), count.as_slice()) {
        ([_], [count]) if bound == f64::INFINITY && count.value == below => Ok(()),
        _ => Err(format!("{name}: no +Inf, sum or count")),
    }
}

fn scrape(store: &mut Store) -> String {
    let mut collector = Collector::default();
    while collector.snapshot.pages == 0 {
        collector.step(store).unwrap();
    }
    metrics::render(&collector.snapshot)
}

fn find<'a>(samples: &'a [Sample], name: &str, labels: &[(&str, &str)]) -> &'a Sample {
    let has = |sample: &&Sample| {
        sample.name == name
            && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
    };
    samples.iter().find(has).unwrap_or_else(|| panic!("{name} {labels:?}"))
}

#[test]
fn the_validator_finds_what_promtool_finds() {
    let good = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"y\\\\\"} 1\n";
    assert!(validate(good).is_ok());
    for (from, to) in [
        ("# HELP a_total Help.\n", ""),
        ("# TYPE a_total counter\n", ""),
        ("a_total{", "b_total{"),
        ("counter", "gauge"),
        (" 1\n", " 1\na_total{x=\"y\\\\\"} 2\n"),
        (" 1\n", " one\n"),
        (" 1\n", " -1\n"),
        (" 1\n", " 1"),
        ("y\\\\", "y\\x"),
        ("y\\\\", "y\n"),
        ("{x=", "{9=\"\",x="),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(validate(&bad).is_err(), "{bad}");
    }
    let histogram = "# HELP h_seconds H.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"1\"} 2\n\
                     h_seconds_bucket{le=\"+Inf\"} 3\nh_seconds_sum 4\nh_seconds_count 3\n";
    assert!(validate(histogram).is_ok());
    for (from, to) in
        [("} 3", "} 1"), ("count 3", "count 2"), ("+Inf", "2"), ("h_seconds_sum 4\n", "")]
    {
        assert!(validate(&histogram.replace(from, to)).is_err(), "{from}");
    }
}

#[test]
fn every_figure_is_there_and_valid() {
    let mut store = Store::start("", 3);
    for _ in 0..200 {
        store.say(0, Kind::Read, b"name\0");
    }
    store.say(1, Kind::Watch, b"w\0token\0");
    store.must(Kind::SetQuota, b"2\0watches\x001\0");
    store.say(1, Kind::Watch, b"v\0token\0");
    let text = scrape(&mut store);
    let samples = validate(&text).unwrap_or_else(|what| panic!("{what}\n{text}"));
    let value = |name: &str, labels: &[(&str, &str)]| find(&samples, name, labels).value;
    assert_eq!(value("xenstore_up", &[]), 1.0);
    assert_eq!(value("xenstore_domains", &[]), 4.0);
    assert_eq!(value("xenstore_restarts_total", &[]), 0.0);
    let one = ("domid", "1");
    assert_eq!(value("xenstore_domain_requests_total", &[one, ("name", "guest-1")]), 200.0);
    assert_eq!(value("xenstore_domain_quota_used", &[("domid", "2"), ("quota", "watches")]), 1.0);
    assert_eq!(value("xenstore_domain_quota_limit", &[("domid", "2"), ("quota", "watches")]), 1.0);
    assert_eq!(value("xenstore_domain_quota_limit", &[one, ("quota", "watches")]), 128.0);
    assert_eq!(value("xenstore_domain_refusals_total", &[("domid", "2")]), 1.0);
    assert_eq!(value("xenstore_domain_suspended", &[one, ("reason", "ignored")]), 0.0);
    assert!(value("xenstore_request_duration_seconds_count", &[]) > 2.0);
    let no_limit = |s: &&Sample| s.name.ends_with("_quota_limit") && s.labels["domid"] == "0";
    assert_eq!(samples.iter().find(no_limit), None, "the privileged domain has no limits");
    assert_eq!(validate(&metrics::down()).unwrap().len(), 1);
}

#[test]
fn no_name_breaks_a_line_and_four_thousand_domains_are_all_there() {
    let mut store = Store::start("", 4000);
    let names = hostile();
    for (domid, name) in (1..).zip(&names) {
        let path = format!("/local/domain/{domid}/name\0");
        store.must(Kind::Write, &[path.as_bytes(), name].concat());
    }
    let text = scrape(&mut store);
    let samples = validate(&text).unwrap_or_else(|what| panic!("{what}"));
    assert!(is_plain(&text));
    let of_domains = samples.iter().filter(|s| s.name == "xenstore_domain_requests_total").count();
    assert_eq!(of_domains, 4001);
    for (domid, name) in (1_u16..).zip(&names) {
        let domid = domid.to_string();
        let sample = find(&samples, "xenstore_domain_requests_total", &[("domid", &domid)]);
        assert_eq!(sample.labels["name"], cut(&printable(name), 64), "{domid}");
    }
    assert_eq!(
        samples.iter().filter(|s| s.labels.get("domid").is_some_and(|d| d == "1")).count(),
        21
    );
    // The longest name costs no more than any other could.
    assert!(text.lines().all(|line| line.len() < 300));
    println!("{} bytes", text.len());
}
