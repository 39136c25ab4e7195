//! Writes the figures that `scripts/bench` has gathered into `docs/performance.md`, between marks, with plots beside it.
//!
//! ```text
//! bench-page FOLDER-OF-FIGURES FOLDER-OF-DOCS
//! ```
#![expect(clippy::print_stdout, reason = "a program for people")]

extern crate alloc;

mod figures;
mod goals;
mod host;
mod plot;

use core::fmt::Write as _;
use figures::{Figures, REQUESTS, SERVERS, commas, ratio};
use plot::Series;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The states of the store that base requests are measured in, beside an empty one.
const STATES: [&str; 7] = [
    "20400 nodes",
    "200000 nodes",
    "2000 watches",
    "20000 watches",
    "100 open transactions",
    "2000 children",
    "20000 children",
];

/// What is measured as a whole: state, what, unit.
const WHOLES: [(&str, &str, &str); 19] = [
    ("20400 nodes", "fill, per WRITE", "instructions"),
    ("200000 nodes", "fill, per WRITE", "instructions"),
    ("20400 nodes", "RM of the tree", "instructions"),
    ("200000 nodes", "RM of the tree", "instructions"),
    ("20400 nodes", "memory per node", "bytes"),
    ("200000 nodes", "memory per node", "bytes"),
    ("32 guests at once", "WRITE and READ, per request", "instructions"),
    ("32 guests at once", "slowest over fastest", "ratio"),
    ("32 guests at once", "WRITE and READ", "hypercalls"),
    ("creation of a guest", "all requests", "instructions"),
    ("creation of a guest", "requests", "count"),
    ("creation of a guest", "requests that were refused", "count"),
    ("creation of a guest", "per request", "hypercalls"),
    ("empty", "live update, longest wait of a reader", "instructions"),
    ("20400 nodes", "live update, longest wait of a reader", "instructions"),
    ("200000 nodes", "live update, longest wait of a reader", "instructions"),
    ("empty", "live update, as the server reports", "instructions"),
    ("20400 nodes", "live update, as the server reports", "instructions"),
    ("200000 nodes", "live update, as the server reports", "instructions"),
];

/// A figure as it reads best in its unit.
fn shown(value: Option<f64>, unit: &str) -> String {
    match (value, unit) {
        (None, _) => "-".to_owned(),
        (Some(value), "instructions" | "count") => commas(value),
        (Some(value), "bytes") => format!("{value:.1}"),
        (Some(value), _) => format!("{value:.2}"),
    }
}

/// The base requests of one client in one state of the store.
fn base(figures: &Figures, client: &str, state: &str, more: &[&str]) -> String {
    let has_floor = figures.instructions("null", client, state, "READ").is_some();
    let servers = SERVERS.iter().filter(|(name, _)| has_floor || *name != "null");
    let servers = servers.copied().collect::<Vec<_>>();
    let mut text = "| request |".to_owned();
    for (_, name) in &servers {
        let _ = write!(text, " {name} |");
    }
    if has_floor {
        text += " here / null |";
    }
    text += " here / C | here / oxenstored | hypercalls here |\n|---|";
    text += &"---|".repeat(servers.len() + 3 + usize::from(has_floor));
    text.push('\n');
    for what in REQUESTS.iter().chain(more) {
        let get = |server: &str| figures.instructions(server, client, state, what);
        let _ = write!(text, "| {what} |");
        for (name, _) in &servers {
            let _ = write!(text, " {} |", shown(get(name), "instructions"));
        }
        if has_floor {
            let _ = write!(text, " {} |", ratio(get("ours"), get("null")));
        }
        let pair = if matches!(*what, "WRITE new" | "RM") { "WRITE new and RM" } else { what };
        let hypercalls = figures.get(["ours", "dom0", state, pair, "hypercalls"]);
        let is_measured = client == "dom0" || !REQUESTS.contains(what);
        let _ = writeln!(
            text,
            " {} | {} | {} |",
            ratio(get("ours"), get("xenstored")),
            ratio(get("ours"), get("oxenstored")),
            shown(hypercalls.filter(|_| is_measured), "ratio")
        );
    }
    text
}

/// A cell for a state that a server could not be brought into.
fn cell(figures: &Figures, server: &str, state: &str, what: &str, unit: &str) -> String {
    let value = figures.get([server, "dom0", state, what, unit]);
    if value.is_none() && figures.reason(server, "dom0", state).is_some() {
        return "not measured".to_owned();
    }
    shown(value, unit)
}

/// The base requests from dom0 in other states of the store.
fn states(figures: &Figures) -> String {
    let mut text =
        "| store | request | here | C xenstored | oxenstored | here / empty | here / C |\n\
                    |---|---|---|---|---|---|---|\n"
            .to_owned();
    for state in STATES {
        for what in REQUESTS {
            let get = |server, state| figures.instructions(server, "dom0", state, what);
            let cell = |server| cell(figures, server, state, what, "instructions");
            let _ = writeln!(
                text,
                "| {state} | {what} | {} | {} | {} | {} | {} |",
                cell("ours"),
                cell("xenstored"),
                cell("oxenstored"),
                ratio(get("ours", state), get("ours", "empty")),
                ratio(get("ours", state), get("xenstored", state))
            );
        }
    }
    text
}

fn wholes(figures: &Figures) -> String {
    let mut text = "| store | what | unit | here | C xenstored | oxenstored | here / C |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    for (state, what, unit) in WHOLES {
        let get = |server| figures.get([server, "dom0", state, what, unit]);
        let cell = |server| cell(figures, server, state, what, unit);
        let quotient =
            if unit == "count" { "-".to_owned() } else { ratio(get("ours"), get("xenstored")) };
        let _ = writeln!(
            text,
            "| {state} | {what} | {unit} | {} | {} | {} | {quotient} |",
            cell("ours"),
            cell("xenstored"),
            cell("oxenstored")
        );
    }
    text
}

/// Why figures are missing, and what was measured.
fn notes(figures: &Figures) -> String {
    let mut text = String::new();
    for (server, name) in SERVERS {
        for state in figures.states("dom0").iter().map(String::as_str).chain(STATES) {
            if let Some(why) = figures.reason(server, "dom0", state) {
                let line = format!("* {name}, {state}: {why}\n");
                if !text.contains(&line) {
                    text += &line;
                }
            }
        }
    }
    for (server, name) in SERVERS.iter().copied().chain([("host", "the core on the host")]) {
        let mut versions = Vec::new();
        for [_, case, version] in figures.runs.iter().filter(|run| run[0] == server) {
            match versions.iter_mut().find(|(known, _)| known == version) {
                Some((_, cases)) => *cases = format!("{cases}, {case}"),
                None => versions.push((version.clone(), case.clone())),
            }
        }
        for (version, cases) in versions {
            let _ = writeln!(text, "* {name}, {version}: {cases}");
        }
    }
    text
}

/// Puts a text between two marks of a page.
fn replace(page: &str, mark: &str, text: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- scripts/bench: {mark} -->\n"), "<!-- end -->");
    let (before, rest) = page.split_once(&begin).ok_or_else(|| format!("no mark {mark}"))?;
    let (_, after) = rest.split_once(end).ok_or_else(|| format!("no end of {mark}"))?;
    Ok(format!("{before}{begin}{text}{end}{after}"))
}

fn plots(figures: &Figures, docs: &Path) -> std::io::Result<()> {
    let series = |server: &str, values: Vec<Option<f64>>| {
        let colour = SERVERS.iter().position(|(name, _)| *name == server).unwrap_or(0);
        let name = SERVERS[colour].1;
        Series { name: name.to_owned(), colour, values }
    };
    let base = SERVERS.map(|(server, _)| {
        let get = |what: &&str| figures.instructions(server, "dom0", "empty", what);
        // Four requests in one would dwarf the others.
        let values = REQUESTS.iter().map(|what| {
            get(what).map(|value| if *what == figures::TRANSACTION { value / 4.0 } else { value })
        });
        series(server, values.collect())
    });
    let names = REQUESTS.map(|what| match what {
        figures::TRANSACTION => "a quarter of a transaction".to_owned(),
        what => figures::short(what),
    });
    let title = "Instructions per request, one client in dom0, empty store";
    fs::write(docs.join("performance-base.svg"), plot::bars(title, &names, &base, None))?;
    let states = ["empty"].into_iter().chain(STATES).collect::<Vec<_>>();
    let of_states = ["ours", "xenstored", "oxenstored"].map(|server| {
        let get = |state: &&str| figures.instructions(server, "dom0", state, "WRITE new");
        series(server, states.iter().map(get).collect())
    });
    let names = states.iter().map(|&state| state.to_owned()).collect::<Vec<_>>();
    let title =
        "Instructions of a WRITE of a new node from dom0, by what is in the store (logarithmic)";
    let picture = plot::bars(title, &names, &of_states, Some(10_000.0));
    fs::write(docs.join("performance-states.svg"), picture)?;
    fs::write(docs.join("performance-growth.svg"), figures.growth_plot())
}

fn write(from: &Path, docs: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let figures = Figures::read(from).map_err(text)?;
    let path = docs.join("performance.md");
    let mut page =
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let blocks = [
        ("goals", goals::table(&figures)),
        ("dom0", base(&figures, "dom0", "empty", &[])),
        ("linux", base(&figures, "linux", "empty", &[])),
        ("linux, tree", base(&figures, "linux", "20400 nodes", &[])),
        ("test guest", base(&figures, "test guest", "empty", &["READ, ring always full"])),
        ("test guest, tree", base(&figures, "test guest", "20400 nodes", &[])),
        ("states", states(&figures)),
        ("wholes", wholes(&figures)),
        ("host", figures.growth_table()),
        ("notes", notes(&figures)),
    ];
    for (mark, text) in blocks {
        page = replace(&page, mark, &text)?;
    }
    fs::write(&path, page).map_err(text)?;
    plots(&figures, docs).map_err(text)
}

fn main() -> ExitCode {
    let words = std::env::args().skip(1).collect::<Vec<_>>();
    let [from, docs] = &words[..] else {
        println!("usage: bench-page FOLDER-OF-FIGURES FOLDER-OF-DOCS");
        return ExitCode::from(2);
    };
    match write(Path::new(from), Path::new(docs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("error: {what}");
            ExitCode::FAILURE
        }
    }
}
