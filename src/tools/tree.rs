//! `tree`: a picture of a store, live or from a saved stream.

use crate::link::{Answer, Ask};
use crate::text::{cut, printable};
use anyhow::{Context as _, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::io::Write;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::perms::{Access, Entry};
use xenstore_stubdom::proto::stream::{Endpoint, Reader, Record};
use xenstore_stubdom::proto::wire::Kind;

/// How often a directory is read from its beginning, if it changes while it is read in parts.
const TRIES: u32 = 20;

/// How many watches are shown at one node.
const WATCHERS_MAX: usize = 20;

/// The fewest bytes of a state in a piece, but for the last one.
const PIECE_MIN: usize = 1024;

/// The longest state that is fetched. No store has that much.
const STATE_MAX: usize = 1 << 30;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to begin.
    pub path: String,
    /// Levels below that.
    pub depth: Option<usize>,
    /// Characters of a value.
    pub width: usize,
    /// Nodes that are shown.
    pub limit: usize,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// What it holds.
    pub value: Vec<u8>,
    /// The owner with the rights of everybody else, then the rights of some.
    pub perms: Vec<(char, String)>,
    /// The names of its children, in their order.
    pub children: Vec<Vec<u8>>,
    /// Who watches it.
    pub watchers: Vec<Watcher>,
}

/// Somebody who watches a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Who.
    pub domain: String,
    /// What it is reminded of.
    pub token: Vec<u8>,
    /// Levels below the node that count; all, if nothing is said.
    pub depth: Option<u16>,
}

/// Where nodes come from.
pub trait Source {
    /// A node; `Ok(None)` if it is not there.
    ///
    /// # Errors
    /// The store cannot be reached, or refuses.
    fn node(&mut self, path: &[u8]) -> Result<Option<Node>>;
}

/// A store that can be asked.
#[derive(Debug)]
pub struct Live<'a, A>(pub &'a mut A);

/// The error's name is no reason to give up where a node was removed meanwhile.
fn found(what: &str, path: &[u8], answer: Answer) -> Result<Option<Vec<u8>>> {
    match answer {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error == "ENOENT" => Ok(None),
        Err(error) => Err(anyhow!("{what} {}: {error}", printable(path))),
    }
}

impl<A: Ask> Live<'_, A> {
    fn children(&mut self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        let asked = [path, &[0]].concat();
        let names = match self.0.ask(Kind::Directory, &asked)? {
            Err(error) if error == "E2BIG" => return self.parts(path),
            answer => found("DIRECTORY", path, answer)?,
        };
        Ok(names.map(|names| split(&names)))
    }

    /// A directory that does not fit into one answer.
    fn parts(&mut self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        'again: for _ in 0..TRIES {
            let (mut names, mut generation) = (Vec::new(), None);
            loop {
                let asked = [path, &[0], names.len().to_string().as_bytes(), &[0]].concat();
                let answer = self.0.ask(Kind::DirectoryPart, &asked)?;
                let Some(part) = found("DIRECTORY_PART", path, answer)? else { return Ok(None) };
                let end = part.iter().position(|byte| *byte == 0).context("no generation")?;
                let (now, rest) = part.split_at(end + 1);
                if generation.get_or_insert_with(|| now.to_vec()) != now {
                    continue 'again;
                }
                // An empty name is the end; a part without any would come again for ever.
                match rest {
                    [] => bail!("DIRECTORY_PART {}: an empty part", printable(path)),
                    [0] => return Ok(Some(split(&names))),
                    [names_only @ .., 0, 0] => {
                        names.extend_from_slice(names_only);
                        return Ok(Some(split(&names)));
                    }
                    _ => names.extend_from_slice(rest),
                }
            }
        }
        bail!("{}: changes all the time", printable(path))
    }
}

fn split(names: &[u8]) -> Vec<Vec<u8>> {
    let each = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    each.map(<[u8]>::to_vec).collect()
}

impl<A: Ask> Source for Live<'_, A> {
    fn node(&mut self, path: &[u8]) -> Result<Option<Node>> {
        let Some(children) = self.children(path)? else { return Ok(None) };
        let asked = [path, &[0]].concat();
        let Some(value) = found("READ", path, self.0.ask(Kind::Read, &asked)?)? else {
            return Ok(None);
        };
        let Some(perms) = found("GET_PERMS", path, self.0.ask(Kind::GetPerms, &asked)?)? else {
            return Ok(None);
        };
        let entries = split(&perms);
        let perms = entries.iter().filter_map(|entry| {
            let (letter, domid) = entry.split_first()?;
            Some((char::from(*letter), printable(domid)))
        });
        Ok(Some(Node { value, perms: perms.collect(), children, watchers: Vec::new() }))
    }
}

/// What a saved stream holds.
#[derive(Debug, Default)]
pub struct Saved {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Watches of names that are no nodes.
    watched: BTreeMap<Vec<u8>, Vec<Watcher>>,
}

fn entry(entry: Entry) -> (char, String) {
    // Who is gone has a mark.
    (
        char::from(entry.access.letter()),
        format!("{}{}", entry.domid, if entry.stale { "!" } else { "" }),
    )
}

impl Saved {
    /// Reads a stream.
    ///
    /// # Errors
    /// It is damaged.
    pub fn read(stream: &[u8]) -> Result<Self> {
        let mut saved = Self::default();
        let mut domains = BTreeMap::new();
        let mut order = Vec::new();
        for record in Reader::new(stream).map_err(|error| anyhow!("{error}"))? {
            match record.map_err(|error| anyhow!("{error}"))? {
                Record::Connection(connection) => {
                    let who = match connection.endpoint {
                        Endpoint::Ring { domid, .. } => (Some(domid), domid.to_string()),
                        Endpoint::Socket { fd } => (None, format!("socket {fd}")),
                    };
                    domains.insert(connection.id, who);
                }
                Record::Watch(watch) => {
                    let who = domains.get(&watch.conn).cloned();
                    let (domid, domain) = who.unwrap_or((None, "somebody".to_owned()));
                    let path = absolute(watch.path, domid);
                    let (token, depth) = (watch.token.to_vec(), watch.depth);
                    let watchers = saved.watched.entry(path).or_default();
                    watchers.push(Watcher { domain, token, depth });
                }
                // What a transaction has not committed is not there.
                Record::Node(node) if node.pending.is_none() => {
                    let perms = node.perms.iter().map(entry).collect();
                    let (value, children, watchers) = (node.value.to_vec(), vec![], vec![]);
                    let made = Node { value, perms, children, watchers };
                    saved.nodes.insert(node.path.to_vec(), made);
                    order.push(node.path.to_vec());
                }
                _ => {}
            }
        }
        for path in order {
            let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { continue };
            let (above, name) = path.split_at(slash);
            let above = if above.is_empty() { &b"/"[..] } else { above };
            let Some(name) = name.get(1..).filter(|name| !name.is_empty()) else { continue };
            if let Some(above) = saved.nodes.get_mut(above) {
                above.children.push(name.to_vec());
            }
        }
        saved.watched.retain(|path, watchers| {
            let node = saved.nodes.get_mut(path);
            if let Some(node) = node {
                node.watchers.append(watchers);
            }
            !watchers.is_empty()
        });
        Ok(saved)
    }
}

/// The path of a watch, which a domain may have given from its own home.
fn absolute(path: &[u8], domid: Option<DomId>) -> Vec<u8> {
    match (path.first(), domid) {
        (Some(b'/' | b'@'), _) | (_, None) => path.to_vec(),
        (_, Some(domid)) => [format!("/local/domain/{domid}/").as_bytes(), path].concat(),
    }
}

impl Source for Saved {
    fn node(&mut self, path: &[u8]) -> Result<Option<Node>> {
        Ok(self.nodes.get(path).cloned())
    }
}

/// Rights as words: `owner 7, others none, 0 reads`.
fn rights(perms: &[(char, String)]) -> String {
    let verb = |letter: char| match Access::from_letter(u8::try_from(letter).unwrap_or(0)) {
        Some(Access::Read) => "read",
        Some(Access::Write) => "write",
        Some(Access::Both) => "read and write",
        Some(Access::None) => "nothing",
        None => "?",
    };
    let mut words = Vec::new();
    for (place, (letter, domid)) in perms.iter().enumerate() {
        if place == 0 {
            words.push(format!("owner {domid}"));
            if *letter != 'n' {
                words.push(format!("others {}", verb(*letter)));
            }
        } else {
            words.push(format!("{domid} may {}", verb(*letter)));
        }
    }
    words.join(", ")
}

fn watchers(watchers: &[Watcher]) -> String {
    let each = watchers.iter().map(|watcher| {
        let depth = watcher.depth.map_or(String::new(), |depth| format!(", depth {depth}"));
        format!("{} ({}{depth})", watcher.domain, cut(&printable(&watcher.token), 24))
    });
    let text = each.take(WATCHERS_MAX).collect::<Vec<_>>().join(", ");
    match watchers.len().saturating_sub(WATCHERS_MAX) {
        _ if text.is_empty() => text,
        0 => format!("; watched by {text}"),
        more => format!("; watched by {text} and {more} more"),
    }
}

/// A node that is still to be shown.
struct Pending {
    path: Vec<u8>,
    /// The text before its name, and before the names below it.
    before: String,
    below: String,
    depth: usize,
}

/// Draws a tree, or the part of it that the options ask for.
///
/// # Errors
/// There is no such node, or the source fails. Output that nobody reads is none.
pub fn draw(source: &mut impl Source, options: &Options, out: &mut impl Write) -> Result<()> {
    let path = options.path.as_bytes().to_vec();
    let (before, below) = (String::new(), String::new());
    let mut stack = vec![Pending { path, before, below, depth: 0 }];
    let (mut shown, mut bytes) = (0_usize, 0_usize);
    while let Some(Pending { path, before, below, depth }) = stack.pop() {
        let Some(node) = source.node(&path)? else {
            if depth == 0 {
                bail!("{}: there is no such node", printable(&path));
            }
            // It was removed meanwhile.
            continue;
        };
        if shown == options.limit {
            return end(writeln!(out, "... and more than {shown} nodes; --limit shows more"));
        }
        shown += 1;
        bytes += node.value.len();
        let name =
            path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty() && depth > 0);
        let name = printable(name.unwrap_or(&path));
        let len = node.value.len();
        let value = match len {
            0 => String::new(),
            1..8 => format!(" = \"{}\"", cut(&printable(&node.value), options.width)),
            _ => format!(" = \"{}\" [{len}]", cut(&printable(&node.value), options.width)),
        };
        let who = format!("{}{}", rights(&node.perms), watchers(&node.watchers));
        if writeln!(out, "{before}{name}{value}  ({who})").is_err() {
            return Ok(());
        }
        if options.depth.is_some_and(|max| depth >= max) {
            if !node.children.is_empty() {
                let count = node.children.len();
                end(writeln!(out, "{below}`-- ... {count} below"))?;
            }
            continue;
        }
        let last = node.children.len().saturating_sub(1);
        // The last first, since the stack turns them round.
        for (place, child) in node.children.iter().enumerate().rev() {
            let (mark, space) = if place == last { ("`-- ", "    ") } else { ("|-- ", "|   ") };
            let above = path.strip_suffix(b"/").unwrap_or(&path);
            stack.push(Pending {
                path: [above, b"/", child].concat(),
                before: format!("{below}{mark}"),
                below: format!("{below}{space}"),
                depth: depth.saturating_add(1),
            });
        }
    }
    end(writeln!(out, "{shown} nodes, {bytes} bytes of values"))
}

/// Shows the special names with their rights, and who watches what is not there.
///
/// # Errors
/// None: output that nobody reads is none.
pub fn draw_other_watches(saved: &Saved, out: &mut impl Write) -> Result<()> {
    let special = saved.nodes.iter().filter(|(path, _)| path.first() == Some(&b'@'));
    for (path, node) in special {
        let who = format!("{}{}", rights(&node.perms), watchers(&node.watchers));
        end(writeln!(out, "{}  ({who})", printable(path)))?;
    }
    for (path, who) in &saved.watched {
        let who = watchers(who);
        end(writeln!(out, "{} is not there{who}", printable(path)))?;
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "the caller's result")]
fn end(_nobody_reads: std::io::Result<()>) -> Result<()> {
    Ok(())
}

/// Fetches the state of a store as a stream, by CONTROL dump.
///
/// Unlike `top`, this asks as fast as it is answered. Somebody waits for it, it ends, and at one piece a second it
/// would take minutes, during which the store would have to keep a copy of its state. There is one request at a
/// time, so all others have their turn between two pieces. It takes one request for each piece of the state, and
/// two more.
///
/// # Errors
/// The store has none to give, for example for want of memory.
pub fn fetch(store: &mut impl Ask) -> Result<Vec<u8>> {
    let text = |answer: Answer| -> Result<String> {
        let bytes = answer.map_err(|error| anyhow!("CONTROL dump: {error}"))?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_owned())
    };
    let begun = text(store.control(&["dump", "begin", "2"])?)?;
    let words = begun.split(' ').collect::<Vec<_>>();
    let ["dump", number, "has", size, "bytes"] = words.as_slice() else { bail!("{begun}") };
    let size = size.parse::<usize>().context("CONTROL dump")?;
    if size > STATE_MAX {
        bail!("CONTROL dump: {size} bytes are too many to fetch");
    }
    let mut stream = Vec::new();
    while stream.len() < size {
        let piece = text(store.control(&["dump", number, &stream.len().to_string()])?)?;
        let coded = piece.split_whitespace().collect::<String>();
        let bytes =
            data_encoding::BASE64.decode(coded.as_bytes()).map_err(|_| anyhow!("{piece}"))?;
        let (at, left) = (stream.len(), size.saturating_sub(stream.len()));
        // What comes in crumbs would take as many requests as there are bytes.
        if bytes.len() < left.min(PIECE_MIN) || bytes.len() > left {
            bail!("CONTROL dump: {} bytes came from byte {at} of {size} on", bytes.len());
        }
        stream.extend(bytes);
    }
    // If it is refused, it ends by itself.
    let _ = store.control(&["dump", "end", number])?;
    Ok(stream)
}
