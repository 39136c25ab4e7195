//! The goals, and how far we have met them.

use crate::figures::{Figures, REQUESTS, TRANSACTION};
use core::fmt::Write as _;

/// A ratio or figure with what it is about.
type Found = Option<(f64, String)>;

struct Goal {
    what: &'static str,
    at_most: f64,
    /// It has to be below, not only at most.
    is_strict: bool,
    found: Found,
}

/// The largest of several; none if one is missing, since it might be the largest.
fn worst(all: impl IntoIterator<Item = Found>) -> Found {
    let mut worst: Found = None;
    for found in all {
        let found = found?;
        if worst.as_ref().is_none_or(|worst| worst.0 < found.0) {
            worst = Some(found);
        }
    }
    worst
}

impl Figures {
    fn against(&self, other: &str, client: &str, state: &str, what: &str) -> Found {
        let ours = self.instructions("ours", client, state, what)?;
        let theirs = self.instructions(other, client, state, what)?;
        // The null responder is no server: what it cannot reach, nobody can.
        let floor = self.instructions("null", client, state, what).filter(|_| other != "null");
        let floor = floor.map(|floor| format!("; floor: {:.2}", floor / theirs));
        let about = format!("{what}, {client}, {state}{}", floor.unwrap_or_default());
        Some((ours / theirs, about))
    }

    fn against_empty(&self, state: &str, what: &str) -> Found {
        let here = self.instructions("ours", "dom0", state, what)?;
        let empty = self.instructions("ours", "dom0", "empty", what)?;
        Some((here / empty, format!("{what}, {state}")))
    }

    fn ours(&self, state: &str, what: &str, unit: &str) -> Found {
        let value = self.get(["ours", "dom0", state, what, unit])?;
        Some((value, format!("{what}, {state}")))
    }

    fn base(&self, other: &str, client: &str) -> Found {
        worst(REQUESTS.map(|what| self.against(other, client, "empty", what)))
    }

    /// At these sizes; a size that the other cannot be brought to is compared with its empty store, where it is
    /// fastest.
    fn transactions(&self, client: &str, states: &[&str]) -> Found {
        worst(states.iter().map(|state| {
            self.against("xenstored", client, state, TRANSACTION).or_else(|| {
                let ours = self.instructions("ours", client, state, TRANSACTION)?;
                let theirs = self.instructions("xenstored", client, "empty", TRANSACTION)?;
                Some((ours / theirs, format!("{client}, {state}, against its empty store")))
            })
        }))
    }
}

fn goal(what: &'static str, at_most: f64, found: Found) -> Goal {
    Goal { what, at_most, is_strict: false, found }
}

/// Ratios to other servers.
fn beside_others(figures: &Figures) -> Vec<Goal> {
    let c = "xenstored";
    let fill = figures.against(c, "dom0", "20400 nodes", "fill, per WRITE");
    vec![
        goal(
            "every base request from dom0, against the null responder",
            1.10,
            figures.base("null", "dom0"),
        ),
        goal("every base request from dom0, against C xenstored", 1.00, figures.base(c, "dom0")),
        goal(
            "every base request from a Linux guest, against C xenstored",
            0.75,
            figures.base(c, "linux"),
        ),
        goal(
            "every base request from the test guest, against C xenstored",
            0.75,
            figures.base(c, "test guest"),
        ),
        goal(
            "transaction from dom0 at any size, against C xenstored",
            1.00,
            figures.transactions("dom0", &["empty", "20400 nodes", "200000 nodes"]),
        ),
        goal(
            "transaction from a Linux guest at both sizes, against C xenstored",
            0.75,
            figures.transactions("linux", &["empty", "20400 nodes"]),
        ),
        goal(
            "transaction from the test guest at both sizes, against C xenstored",
            0.75,
            figures.transactions("test guest", &["empty", "20400 nodes"]),
        ),
        goal("fill of the 20,400-node tree from dom0, against C xenstored", 0.30, fill),
    ]
}

/// Figures of this server alone.
fn alone(figures: &Figures) -> Vec<Goal> {
    let writes = ["WRITE existing", "WRITE new"];
    let states = ["20000 watches", "200000 nodes", "100 open transactions"];
    let unrelated =
        states.iter().flat_map(|state| writes.map(|what| figures.against_empty(state, what)));
    let one_at_a_time =
        ["READ", "WRITE existing", "DIRECTORY, empty", "WRITE new and RM", TRANSACTION];
    let tree = |what, unit| figures.ours("20400 nodes", what, unit);
    vec![
        goal(
            "WRITE with 20,000 unrelated watches, 200,000 nodes or 100 open transactions, against an empty store",
            1.05,
            worst(unrelated),
        ),
        goal(
            "WRITE new below a node with 20,000 children, against an empty store",
            1.10,
            figures.against_empty("20000 children", "WRITE new"),
        ),
        goal(
            "RM of the 20,400-node tree, instructions",
            4_000_000.0,
            tree("RM of the tree", "instructions"),
        ),
        goal("heap per node in that tree, bytes", 60.0, tree("memory per node", "bytes")),
        goal(
            "hypercalls per request, one client waiting for each reply",
            2.0,
            worst(one_at_a_time.map(|what| figures.ours("empty", what, "hypercalls"))),
        ),
        Goal {
            what: "hypercalls per request, with a ring that is always full",
            at_most: 1.0,
            is_strict: true,
            found: figures.ours("empty", "READ, ring always full", "hypercalls"),
        },
        goal(
            "growth from 1,000 to 1,000,000 nodes, any single request on the host",
            1.3,
            figures.growth(),
        ),
        goal(
            "32 guests at once, slowest over fastest",
            1.2,
            figures.ours("32 guests at once", "slowest over fastest", "ratio"),
        ),
    ]
}

/// A figure as it reads best.
fn number(value: f64) -> String {
    if value < 1000.0 { format!("{value:.2}") } else { crate::figures::commas(value) }
}

/// The table.
pub(crate) fn table(figures: &Figures) -> String {
    let mut text = "| case | goal | here | worst case | met |\n|---|---|---|---|---|\n".to_owned();
    for Goal { what, at_most, is_strict, found } in
        beside_others(figures).into_iter().chain(alone(figures))
    {
        let bound = if is_strict { "below" } else { "at most" };
        let row = match found {
            // Compared as it is, not as it is printed.
            Some((value, about)) => {
                let is_met = if is_strict { value < at_most } else { value <= at_most };
                let met = if is_met { "yes" } else { "**no**" };
                format!("{} | {about} | {met}", number(value))
            }
            None => "not measured | - | **no**".to_owned(),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {what} | {bound} {} | {row} |", number(at_most));
    }
    text
}
