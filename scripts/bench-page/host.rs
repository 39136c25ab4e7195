//! How the cost of the server's core grows, on the host.

use crate::figures::{Figures, REQUESTS, commas, ratio, short};
use crate::plot::{self, Series};
use core::fmt::Write as _;

const NODES: [&str; 4] = ["1000 nodes", "10000 nodes", "100000 nodes", "1000000 nodes"];

/// What else there may be much of, beside a thousand nodes.
const OTHERS: [&str; 3] = ["100000 watches", "4000 connections", "20000 children"];

impl Figures {
    fn host(&self, state: &str, what: &str) -> Option<f64> {
        self.instructions("host", "host", state, what)
    }

    /// The request that grows most from the smallest to the largest store.
    pub(crate) fn growth(&self) -> Option<(f64, String)> {
        let mut worst: Option<(f64, String)> = None;
        for what in REQUESTS {
            let grown = self.host(NODES[3], what)? / self.host(NODES[0], what)?;
            if worst.as_ref().is_none_or(|worst| worst.0 < grown) {
                worst = Some((grown, what.to_owned()));
            }
        }
        worst
    }

    pub(crate) fn growth_table(&self) -> String {
        let states = NODES.iter().chain(&OTHERS).copied().collect::<Vec<_>>();
        let mut text = "| request |".to_owned();
        for state in &states {
            let _ = write!(text, " {state} |");
        }
        text += " 1,000,000 / 1,000 nodes |\n|---|";
        text += &"---|".repeat(states.len() + 1);
        text.push('\n');
        for what in REQUESTS {
            let _ = write!(text, "| {what} |");
            for state in &states {
                let value = self.host(state, what).map_or("-".to_owned(), commas);
                let _ = write!(text, " {value} |");
            }
            let _ = writeln!(
                text,
                " {} |",
                ratio(self.host(NODES[3], what), self.host(NODES[0], what))
            );
        }
        text
    }

    pub(crate) fn growth_plot(&self) -> String {
        let mut colour = 0..;
        let series = REQUESTS.map(|what| {
            let values = NODES.iter().map(|state| self.host(state, what)).collect();
            Series { name: short(what), colour: colour.next().unwrap_or(0), values }
        });
        let names = NODES.map(str::to_owned);
        plot::lines(
            "Instructions of the server for a request, by the size of the store",
            &names,
            &series,
        )
    }
}
