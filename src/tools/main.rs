//! The programs behind `xenstore-stubdom top`, `metrics` and `tree`.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xenstore_tools::link::Link;
use xenstore_tools::{metrics, top, tree};

const USAGE: &str = "\
usage: xenstore-stubdom top [--batch] [-n COUNT] [-d SECONDS] [--sort KEY] [--reverse]
       xenstore-stubdom metrics [--output FILE | --listen ADDRESS:PORT]
       xenstore-stubdom tree [--depth N] [--width N] [--limit N] [--watches | --from FILE] [PATH]

  top      what the store does: for each domain its requests and events in a second, nodes, watches, memory, the
           quota that it uses most, the messages that it has not read, and, if it is not served, why
    --batch     writes text instead of using the screen
    -n COUNT    ends after COUNT updates
    -d SECONDS  the time between two updates (default 1, which is the least)
    --sort KEY  domid, name, requests, events, nodes, watches, memory, quota, waiting or state
  metrics  the same figures for Prometheus, once
    --output    into a file, which is there as a whole or not at all, for node_exporter's textfile collector
    --listen    for scrapes of /metrics, until it is killed
  tree     the nodes from PATH (default /) on, with owners and rights
    --watches   also who watches them; for this the store writes down its state, as for save-store
    --from      shows a file of save-store, with its watches; this needs no store
    --depth     at most so many levels; --width: so much of a value (40); --limit: so many nodes (10000)

The store is dom0's, or the one behind the socket that XENSTORED_PATH names. top and metrics send it at most one
CONTROL request a second.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xenstore-stubdom: {error:#}");
            ExitCode::from(if error.is::<lexopt::Error>() { 2 } else { 1 })
        }
    }
}

fn run() -> Result<()> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(word)) => match word.to_str() {
            Some("top") => run_top(parser),
            Some("metrics") => run_metrics(parser),
            Some("tree") => run_tree(parser),
            _ => Err(lexopt::Error::UnexpectedArgument(word).into()),
        },
        Some(Short('h') | Long("help")) => help(),
        Some(other) => Err(other.unexpected().into()),
        None => Err(lexopt::Error::from("say what: top, metrics or tree; --help says more").into()),
    }
}

fn help() -> Result<()> {
    print!("{USAGE}");
    Ok(())
}

fn run_top(mut parser: lexopt::Parser) -> Result<()> {
    let sort = top::Sort::Requests;
    let mut options =
        top::Options { batch: false, count: None, delay: top::PAUSE, sort, reverse: false };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('b') | Long("batch") => options.batch = true,
            Short('n') | Long("count") => options.count = Some(parser.value()?.parse()?),
            Short('d') | Long("delay") => {
                let seconds = parser.value()?.parse::<f64>()?;
                options.delay = Duration::try_from_secs_f64(seconds)
                    .map_err(|error| lexopt::Error::from(format!("-d {seconds}: {error}")))?;
            }
            Long("sort") => {
                let word = parser.value()?.string()?;
                options.sort = top::Sort::from_word(&word)
                    .ok_or_else(|| lexopt::Error::from(format!("nothing is sorted by {word:?}")))?;
            }
            Long("reverse") => options.reverse = true,
            Short('h') | Long("help") => return help(),
            other => return Err(other.unexpected().into()),
        }
    }
    top::run(&options)
}

fn run_metrics(mut parser: lexopt::Parser) -> Result<()> {
    let (mut output, mut address) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('o') | Long("output") => output = Some(PathBuf::from(parser.value()?)),
            Long("listen") => address = Some(parser.value()?.string()?),
            Short('h') | Long("help") => return help(),
            other => return Err(other.unexpected().into()),
        }
    }
    match (output, address) {
        (Some(_), Some(_)) => Err(lexopt::Error::from("either --output or --listen").into()),
        (Some(path), None) => metrics::write_to(&path),
        (None, Some(address)) => metrics::listen(&address),
        (None, None) => metrics::print(),
    }
}

fn run_tree(mut parser: lexopt::Parser) -> Result<()> {
    let mut options = tree::Options { path: "/".to_owned(), depth: None, width: 40, limit: 10_000 };
    let (mut from, mut watches) = (None, false);
    let mut has_path = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("depth") => options.depth = Some(parser.value()?.parse()?),
            Long("width") => options.width = parser.value()?.parse()?,
            Long("limit") => options.limit = parser.value()?.parse()?,
            Long("watches") => watches = true,
            Long("from") => from = Some(PathBuf::from(parser.value()?)),
            Value(path) if !has_path => {
                let path = path.string()?;
                // The store knows no slash at the end.
                let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
                (options.path, has_path) = (path.to_owned(), true);
            }
            Short('h') | Long("help") => return help(),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut out = std::io::stdout().lock();
    let stream = match (from, watches) {
        (Some(_), true) => bail!(lexopt::Error::from("a saved stream has its watches")),
        (Some(file), false) => std::fs::read(&file).with_context(|| file.display().to_string())?,
        (None, true) => tree::fetch(&mut Link::open()?)?,
        (None, false) => {
            return tree::draw(&mut tree::Live(&mut Link::open()?), &options, &mut out);
        }
    };
    let mut saved = tree::Saved::read(&stream)?;
    tree::draw(&mut saved, &options, &mut out)?;
    if has_path { Ok(()) } else { tree::draw_other_watches(&saved, &mut out) }
}
