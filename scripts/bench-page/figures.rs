//! The figures that the runs left behind.

use alloc::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// The servers in the order of the page: name in the files and on the page.
pub(crate) const SERVERS: [(&str, &str); 4] = [
    ("null", "null responder"),
    ("ours", "this server"),
    ("xenstored", "C xenstored"),
    ("oxenstored", "oxenstored"),
];

/// The base requests, in the order of the page.
pub(crate) const REQUESTS: [&str; 7] = [
    "READ",
    "WRITE existing",
    "WRITE new",
    "DIRECTORY, empty",
    "RM",
    TRANSACTION,
    "WRITE until its event is read",
];

/// A request in fewer words, for plots.
pub(crate) fn short(request: &str) -> String {
    match request {
        TRANSACTION => "transaction".to_owned(),
        "WRITE until its event is read" => "WRITE with event".to_owned(),
        _ => request.split(',').next().unwrap_or(request).to_owned(),
    }
}

pub(crate) const TRANSACTION: &str = "start, read, write, commit";

/// What one figure is about: server, client, state of the store, request, unit.
type Key = [String; 5];

/// All figures.
#[derive(Default)]
pub(crate) struct Figures {
    values: BTreeMap<Key, String>,
    /// Why there is none: by server, client and state.
    reasons: BTreeMap<[String; 3], String>,
    /// Server, case and version of each run.
    pub(crate) runs: Vec<[String; 3]>,
}

impl Figures {
    /// Reads every file of a folder that has the form.
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        let mut figures = Self::default();
        let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        let mut paths = entries.iter().map(fs::DirEntry::path).collect::<Vec<_>>();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "tsv")) {
            figures.add(&fs::read_to_string(path)?);
        }
        Ok(figures)
    }

    fn add(&mut self, text: &str) {
        let mut server = String::new();
        for line in text.lines() {
            let fields = line.split('\t').map(str::to_owned).collect::<Vec<_>>();
            match &fields[..] {
                [mark, name, case, version] if mark == "#" => {
                    server.clone_from(name);
                    self.runs.push([name.clone(), case.clone(), version.clone()]);
                }
                [mark, client, state, what, unit, value] if mark == "=" => {
                    if unit == "-" {
                        let key = [server.clone(), client.clone(), state.clone()];
                        self.reasons.insert(key, value.clone());
                        continue;
                    }
                    let key = [&server, client, state, what, unit].map(Clone::clone);
                    self.values.insert(key, value.clone());
                }
                _ => {}
            }
        }
    }

    /// A figure in a unit.
    pub(crate) fn get(&self, key: [&str; 5]) -> Option<f64> {
        self.values.get(&key.map(str::to_owned))?.parse().ok()
    }

    /// Instructions.
    pub(crate) fn instructions(
        &self,
        server: &str,
        client: &str,
        state: &str,
        what: &str,
    ) -> Option<f64> {
        self.get([server, client, state, what, "instructions"])
    }

    /// Why there is no figure.
    pub(crate) fn reason(&self, server: &str, client: &str, state: &str) -> Option<&str> {
        let key = [server, client, state].map(str::to_owned);
        self.reasons.get(&key).map(String::as_str)
    }

    /// States and requests that some server has figures of, from a client, without order.
    pub(crate) fn states(&self, client: &str) -> Vec<String> {
        let mut states = Vec::new();
        for [_, whose, state, _, _] in self.values.keys() {
            if whose == client && !states.contains(state) {
                states.push(state.clone());
            }
        }
        states
    }
}

/// A number with commas.
pub(crate) fn commas(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A ratio, if there are both.
pub(crate) fn ratio(a: Option<f64>, b: Option<f64>) -> String {
    match (a, b) {
        (Some(a), Some(b)) if b > 0.0 => format!("{:.2}", a / b),
        _ => "-".to_owned(),
    }
}
