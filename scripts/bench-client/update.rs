//! The pause of a live update, as a reader sees it and as our server reports it.

use crate::cases::Bench;
use crate::link::{Failure, Link};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;
use xenstore_stubdom::proto::wire::Kind;

/// Where the stub domain's lines are.
const CONSOLE: &str = "/var/log/xen/console/guest-Xenstore.log";

/// How long the reader goes on before and after the update.
const AROUND: Duration = Duration::from_millis(200);

/// Reads until it is told to stop; the longest time that a reply took.
fn read_on(mut link: Link, stop: &AtomicBool) -> Result<Duration, Failure> {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        longest = longest.max(link.time(Kind::Read, 0, b"/bench/node\0")?);
    }
    Ok(longest)
}

/// How many updates there were, and how long nobody was served at the last one, in nanoseconds, as our server says.
fn reported() -> Option<(usize, f64)> {
    let text = String::from_utf8_lossy(&fs::read(CONSOLE).ok()?).into_owned();
    let mut pauses = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once("nobody was served for ")?;
        let (ms, _) = rest.split_once(" ms")?;
        Some(ms.parse::<f64>().ok()? * 1e6)
    });
    let first = pauses.next()?;
    let (count, last) = pauses.fold((1, first), |(count, _), pause| (count + 1, pause));
    Some((count, last))
}

impl Bench {
    /// One live update after the other, with more and more nodes.
    pub(crate) fn updates(&mut self, words: &[String], sizes: &[usize]) -> Result<(), Failure> {
        let [image] = words else { return Err("which image?".to_owned()) };
        self.write("/bench/node", "0123456789")?;
        let mut from = 0;
        for &nodes in sizes {
            let state = if nodes == 0 { "empty".to_owned() } else { format!("{nodes} nodes") };
            if self.prepare(&state, from..nodes, Self::write_tree_node)?.is_none() {
                break;
            }
            from = nodes;
            self.update(&state, image)?;
            self.flush();
        }
        Ok(())
    }

    fn update(&mut self, state: &str, image: &str) -> Result<(), Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (link, seen) = (Link::open()?, stop.clone());
        let before = reported().map_or(0, |(count, _)| count);
        let reader = thread::spawn(move || read_on(link, &seen));
        thread::sleep(AROUND);
        let begin = Instant::now();
        let output = Command::new("xenstore-control").args(["live-update", image]).output();
        let took = begin.elapsed();
        thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let longest = reader.join().map_err(|_| "the reader died".to_owned())??;
        let output = output.map_err(|error| format!("xenstore-control: {error}"))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return Err(format!("live update: {}", String::from_utf8_lossy(&said).trim()));
        }
        let what = "live update, longest wait of a reader";
        self.say(state, what, "instructions", longest.as_nanos());
        self.say(state, "live update, all of it", "instructions", took.as_nanos());
        if self.server == "ours" {
            let pause = reported().filter(|(count, _)| *count > before);
            let (_, pause) = pause.ok_or("the server did not report its pause")?;
            let what = "live update, as the server reports";
            self.say(state, what, "instructions", format!("{pause:.0}"));
        }
        Ok(())
    }
}
