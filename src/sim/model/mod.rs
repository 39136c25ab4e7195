//! The judge: a second xenstore, as simple as can be. It is told what the real one took in, and says what must
//! come out: every reply and every event, byte for byte, in order, for each connection.
//!
//! It was written from the description of the protocol's behaviour and `docs/conformance.md`, not from the server.
//! Nothing in it is fast or saves memory: it has a map of paths, copies, and walks over everything.
//!
//! The server is free to take requests of different connections in any order; the journal ([`Seen`]) says in
//! which. The journal also says what chance decided: whether the hypervisor agreed, whether there was memory, and
//! the time. Where a fault leaves the server a choice (an event that may have expired, or was refused memory), the
//! message is optional. Everything else must come.

mod domains;
mod output;
mod requests;
mod session;
mod text;
mod tree;

use super::journal::{PageId, Seen};
use crate::proto::id::{DomId, EvtchnPort};
use crate::server::platform::{DomainState, Identity};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use output::Output;
pub use output::show;
use session::{Limits, Tx};
use std::format;
use tree::{Change, Party, Tree, rights};

/// What is wrong with the server, or `Ok`.
pub type Verdict = Result<(), String>;

/// An event.
#[derive(Clone, Debug)]
struct Event {
    /// The connection that it is for.
    conn: u32,
    payload: Vec<u8>,
    /// Messages of the same group may come in any order; 0 is no group.
    group: u64,
    /// It tells what became of a domain: that takes turns, with others' in between.
    news: bool,
}

impl Event {
    fn new(conn: u32, payload: Vec<u8>) -> Self {
        Self { conn, payload, group: 0, news: false }
    }

    fn news(conn: u32, payload: Vec<u8>) -> Self {
        Self { news: true, ..Self::new(conn, payload) }
    }
}

/// What the model must know of how the server was started.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The limits that domains start with, in the order of GET_QUOTA.
    pub limits: [u32; 10],
    /// How long an event may wait for an unprivileged reader.
    pub event_timeout_ms: Option<u64>,
}

/// A tracked domain.
#[derive(Clone, Debug)]
struct Domain {
    identity: Identity,
    features: u32,
    conn: Option<u32>,
    shutdown_told: bool,
    limits: Limits,
}

/// A watch.
#[derive(Clone, Debug)]
struct Watch {
    path: Vec<u8>,
    /// Bytes of the path that the client did not spell.
    home: usize,
    token: Vec<u8>,
    depth: Option<u32>,
}

/// A connection, for as long as its domain is introduced.
#[derive(Clone, Debug)]
struct Conn {
    domid: u16,
    page: PageId,
    port: Option<EvtchnPort>,
    features: u32,
    target: Option<u16>,
    /// It is served; otherwise the server has given it up.
    live: bool,
    inbox: Vec<u8>,
    out: Output,
    watches: Vec<Watch>,
    txs: BTreeMap<u32, Tx>,
    last_tx: u32,
    /// A request that has to wait, since it names a domain that is not quite gone.
    waiting: Option<Vec<u8>>,
    /// It starts over: what it had goes, and then its ring is emptied.
    starts: bool,
}

/// A look at what became of domains takes turns, with requests in between.
#[derive(Clone, Copy, Default, Debug)]
struct Looking {
    /// The first domid that is not yet asked about, if all are.
    next: Option<u16>,
    /// A shutdown that was seen and not told of: of several only the last has the event without a domid.
    pending: Option<u16>,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Model {
    setting: Setting,
    now_ms: u64,
    tree: Tree,
    domains: BTreeMap<u16, Domain>,
    /// In the order of introduction.
    conns: BTreeMap<u32, Conn>,
    next_conn: u32,
    next_cause: u64,
    /// How far a look at domains is that goes on in a later turn.
    looking: Looking,
    /// Domains that are gone; something of them may be left, in slices.
    dying: BTreeSet<u16>,
    /// Pages whose clients keep the rules: the server has no reason to give them up.
    honest: BTreeSet<PageId>,
    /// How many requests were judged.
    requests: u64,
    /// It supposes that a request in the middle of which the server fails has done nothing; whether one has.
    doubts: bool,
    has_doubted: bool,
}

/// The privileged domain.
const PRIVILEGED: u16 = 0;

/// The feature bits that the server has.
const FEATURES: u32 = 14;

impl Model {
    /// The judge of a server that has not started yet.
    #[must_use]
    pub fn new(setting: Setting) -> Self {
        let limits = setting.limits;
        let privileged = Domain {
            identity: Identity::Unknown,
            features: FEATURES,
            conn: None,
            shutdown_told: false,
            limits,
        };
        Self {
            setting,
            now_ms: 0,
            tree: Tree::new(PRIVILEGED),
            domains: BTreeMap::from([(PRIVILEGED, privileged)]),
            conns: BTreeMap::new(),
            next_conn: 1,
            next_cause: 1,
            looking: Looking::default(),
            dying: BTreeSet::new(),
            honest: BTreeSet::new(),
            requests: 0,
            doubts: false,
            has_doubted: false,
        }
    }

    /// Judges a pass in which the server has failed. The request that was being handled may have been carried out,
    /// with EIO as its reply and some of its events lost, or not at all. Every possibility is added to `models`.
    ///
    /// # Errors
    /// As [`judge`](Self::judge): neither can have been.
    pub fn judge_failure(&self, seen: &[Seen], models: &mut Vec<Self>) -> Verdict {
        let (mut done, mut undone) = (self.clone(), self.clone());
        let verdict = done.judge(seen);
        (undone.doubts, undone.has_doubted) = (true, false);
        let other = undone.judge(seen);
        let before = models.len();
        if verdict.is_ok() {
            models.push(done);
        }
        if undone.has_doubted && other.is_ok() {
            undone.doubts = false;
            models.push(undone);
        }
        if models.len() > before { Ok(()) } else { verdict }
    }

    /// From now on the client behind this page keeps the rules, or it does not.
    pub fn set_honest(&mut self, page: PageId, honest: bool) {
        if honest {
            self.honest.insert(page);
        } else {
            self.honest.remove(&page);
        }
    }

    /// How many requests it has judged.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Every path.
    pub fn nodes(&self) -> impl Iterator<Item = &[u8]> {
        self.tree.nodes.keys().map(Vec::as_slice)
    }

    /// Whether the server must know a domain.
    #[must_use]
    pub fn knows(&self, domid: u16) -> bool {
        self.domains.contains_key(&domid)
    }

    /// Whether a page is served.
    #[must_use]
    pub fn serves(&self, page: PageId) -> bool {
        self.conns.values().any(|conn| conn.page == page && conn.live)
    }

    /// Whether a page is served and its client is reached by signals: the port given in a second
    /// INTRODUCE may have been a wrong one.
    #[must_use]
    pub fn reaches(&self, page: PageId) -> bool {
        self.conns.values().any(|conn| conn.page == page && conn.live && conn.port.is_some())
    }

    /// Whether nothing can come for a page unless its client asks.
    #[must_use]
    pub fn is_quiet(&self, page: PageId) -> bool {
        let mut conns = self.conns.values().filter(|conn| conn.page == page && conn.live);
        conns.all(|conn| conn.watches.is_empty() && conn.inbox.is_empty() && conn.out.is_empty())
    }

    /// What the server still owes to the client behind a page: a description, or nothing.
    #[must_use]
    pub fn owed(&self, page: PageId) -> Option<String> {
        let conn = self.conns.values().find(|conn| conn.page == page && conn.live)?;
        if conn.waiting.is_some() {
            return Some(format!("domain {}: a request is not carried out", conn.domid));
        }
        if conn.starts {
            return Some(format!("domain {}: its ring is not emptied", conn.domid));
        }
        conn.out
            .owed(self.now_ms)
            .map(|message| format!("domain {}: {message} never came, or only in part", conn.domid))
    }

    /// Judges what the server did in one pass. The world must not have changed meanwhile.
    ///
    /// # Errors
    /// What was wrong.
    pub fn judge(&mut self, seen: &[Seen]) -> Verdict {
        let mut rest = seen;
        while let Some((first, tail)) = rest.split_first() {
            let before = (seen.len() - rest.len()).checked_sub(1).and_then(|place| seen.get(place));
            rest = tail;
            match first {
                Seen::Took(page, bytes) => self.took(*page, bytes, rest)?,
                Seen::Put(page, bytes) => self.put(*page, bytes)?,
                Seen::GaveUp(page, value) if *value != 0 => self.gave_up(*page)?,
                Seen::Moved => self.moved(rest)?,
                Seen::Unbound(port) => {
                    let page =
                        self.conns.values().find(|conn| conn.port == Some(*port)).map(|c| c.page);
                    if let Some(page) = page {
                        self.gave_up(page)?;
                    }
                }
                Seen::Mapped(domid, page) if self.conns.is_empty() => {
                    self.first_domain(*domid, *page, rest);
                }
                Seen::Changed(..) => rest = self.scan(&seen[seen.len() - rest.len() - 1..])?,
                Seen::Scan => {
                    self.looking.next = Some(0);
                    rest = self.scan_all(rest, true)?;
                }
                Seen::State(DomId(domid), _) if self.goes_on_with(*domid) => {
                    let from = seen.len() - rest.len() - 1;
                    if !asks_about(&seen[..from], *domid) {
                        rest = self.scan_all(&seen[from..], true)?;
                    }
                }
                Seen::Look => rest = self.successor_looks(rest)?,
                // It looks at memory before any request.
                Seen::Memory(..) if !matches!(before, Some(Seen::Took(..))) => {
                    self.carry_out_waiting(&seen[seen.len() - rest.len() - 1..])?;
                }
                Seen::Clock(now_ms) => self.now_ms = *now_ms,
                Seen::Failed => self.conns.values_mut().for_each(|conn| conn.out.may_fail = true),
                Seen::Settled => {
                    self.dying.clear();
                    self.conns.values_mut().for_each(|conn| conn.out.settled());
                }
                Seen::Emptied(page) => self.emptied(*page),
                Seen::GaveUp(..)
                | Seen::Mapped(..)
                | Seen::Bound(..)
                | Seen::State(..)
                | Seen::ScanEnd
                | Seen::Memory(..) => {}
            }
        }
        Ok(())
    }

    /// The server is in another domain, whose ports are bound next.
    fn moved(&mut self, rest: &[Seen]) -> Verdict {
        self.conns.values_mut().for_each(|conn| conn.port = None);
        let end = rest.iter().position(|seen| *seen == Seen::Look);
        for seen in &rest[..end.unwrap_or(rest.len())] {
            let Seen::Bound(DomId(domid), port) = seen else { continue };
            let conn = self.conns.values_mut().find(|conn| conn.domid == *domid);
            conn.ok_or("a port for nobody")?.port = *port;
        }
        Ok(())
    }

    /// A new server has begun.
    fn successor_looks<'a>(&mut self, mut rest: &'a [Seen]) -> Result<&'a [Seen], String> {
        // It answers whoever asked for it before it looks.
        while let Some((
            first @ (Seen::Put(..) | Seen::Clock(_) | Seen::Settled | Seen::Failed),
            tail,
        )) = rest.split_first()
        {
            self.judge(core::slice::from_ref(first))?;
            rest = tail;
        }
        self.looking = Looking { next: Some(0), pending: None };
        let rest = self.scan_all(rest, false)?;
        match self.looking.next {
            Some(domid) => Err(format!("a new server has not looked at domain {domid}")),
            None => Ok(rest),
        }
    }

    fn conn_of_page(&self, page: PageId) -> Option<u32> {
        self.conns.iter().find(|(_, conn)| conn.page == page).map(|(id, _)| *id)
    }

    fn party(&self, id: u32) -> Party {
        let conn = &self.conns[&id];
        Party { domid: conn.domid, target: conn.target, privileged: conn.domid == PRIVILEGED }
    }

    /// The server took bytes of a request.
    fn took(&mut self, page: PageId, bytes: &[u8], rest: &[Seen]) -> Verdict {
        let Some(id) = self.conn_of_page(page).filter(|id| self.conns[id].live) else {
            return Err(format!("page {page} is read although it is not served"));
        };
        let conn = self.conns.get_mut(&id).expect("just found");
        if conn.starts {
            return Err(format!("domain {}: its ring is read before it is emptied", conn.domid));
        }
        conn.inbox.extend_from_slice(bytes);
        let Some(length) = output::message_length(&conn.inbox) else { return Ok(()) };
        if conn.inbox.len() > length {
            return Err(format!("domain {}: more than a request was taken", conn.domid));
        }
        let message = core::mem::take(&mut conn.inbox);
        self.carry_out(id, message, rest)
    }

    /// The server carries out a request, or has it wait.
    fn carry_out(&mut self, id: u32, message: Vec<u8>, rest: &[Seen]) -> Verdict {
        let is_next = |seen: &Seen| {
            matches!(
                seen,
                Seen::Took(..)
                    | Seen::Put(..)
                    | Seen::Clock(_)
                    | Seen::ScanEnd
                    | Seen::Settled
                    | Seen::Failed
            )
        };
        let end = rest.iter().position(is_next).unwrap_or(rest.len());
        let is_other = |seen: &&Seen| matches!(seen, Seen::Took(..) | Seen::Put(..) | Seen::Failed);
        let fails = rest.iter().find(is_other) == Some(&Seen::Failed);
        if self.doubts && fails {
            self.has_doubted = true;
            return self.fail(id, &message, &rest[..end]);
        }
        let judged = self.request(id, &message, &rest[..end], fails);
        if let Some(conn) = self.conns.get_mut(&id)
            && judged.is_err()
            && requests::may_wait(conn.domid, &message)
        {
            conn.waiting = Some(message);
            return Ok(());
        }
        judged
    }

    /// Perhaps the server carries out a request now that had to wait.
    fn carry_out_waiting(&mut self, rest: &[Seen]) -> Verdict {
        let mut waiting = self
            .conns
            .iter_mut()
            .filter_map(|(id, conn)| conn.waiting.take().map(|message| (*id, message)));
        match waiting.next() {
            Some((id, message)) => self.carry_out(id, message, rest),
            None => Ok(()),
        }
    }

    /// The server put bytes of messages.
    fn put(&mut self, page: PageId, bytes: &[u8]) -> Verdict {
        let Some(id) = self.conn_of_page(page).filter(|id| self.conns[id].live) else {
            return Err(format!("page {page} is written although it is not served"));
        };
        let now_ms = self.now_ms;
        let conn = self.conns.get_mut(&id).expect("just found");
        if conn.starts {
            return Ok(());
        }
        let put = conn.out.put(bytes, now_ms);
        let failed = put.map_err(|what| format!("domain {}: {what}", conn.domid))?;
        if let Some(origin) = failed {
            // Only one request can have been handled then, and nobody knows how far it got.
            self.conns.values_mut().for_each(|conn| conn.out.forget(origin));
        }
        Ok(())
    }

    /// The rings of a page are empty. Its connection may have waited for that.
    fn emptied(&mut self, page: PageId) {
        let conn = self.conns.iter_mut().find(|(_, conn)| conn.page == page);
        if let Some((id, conn)) = conn
            && core::mem::take(&mut conn.starts)
        {
            let id = *id;
            self.reset(id);
        }
    }

    /// The server serves a ring no longer.
    fn gave_up(&mut self, page: PageId) -> Verdict {
        let Some(id) = self.conn_of_page(page) else { return Ok(()) };
        if self.honest.contains(&page) {
            let domid = self.conns[&id].domid;
            return Err(format!("domain {domid} was given up without a reason"));
        }
        self.reset(id);
        let conn = self.conns.get_mut(&id).expect("just found");
        conn.live = false;
        conn.port = None;
        Ok(())
    }

    /// Drops all that a connection has set up, and all that waits for it.
    fn reset(&mut self, id: u32) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.watches.clear();
            conn.txs.clear();
            conn.inbox.clear();
            conn.out = Output::default();
        }
    }

    /// Who gets the events of changes of nodes: connections in the order of introduction, watches in that of
    /// registration.
    fn told(&self, changes: &[Change]) -> Vec<Event> {
        let mut events = Vec::new();
        for change in changes {
            for (id, conn) in &self.conns {
                let party = self.party(*id);
                if !change.lists.iter().any(|list| rights(list, party).read) && !party.privileged {
                    continue;
                }
                for watch in &conn.watches {
                    if watch.wants(&change.path, change.subtree) {
                        let path = &change.path[watch.home..];
                        events.push(Event::new(*id, text::join([path, &watch.token])));
                    }
                }
            }
        }
        events
    }

    /// Who is told of a special name.
    fn told_special(&self, name: &str, domid: u16, plain: bool) -> Vec<Event> {
        let long = format!("{name}/{domid}").into_bytes();
        let name = name.as_bytes();
        let lists = [&self.tree.nodes[name].perms, &self.tree.nodes[&b"/"[..]].perms];
        let mut events = Vec::new();
        for with_domid in [true, false] {
            if !with_domid && !plain {
                break;
            }
            let sent = if with_domid { &long[..] } else { name };
            for (id, conn) in &self.conns {
                let party = self.party(*id);
                if !lists.iter().any(|list| rights(list, party).read) {
                    continue;
                }
                for watch in &conn.watches {
                    let here = watch.path == name;
                    let wants = if with_domid {
                        watch.path == long || here && watch.depth.is_some_and(|depth| depth > 0)
                    } else {
                        here && watch.depth.is_none()
                    };
                    if wants {
                        events.push(Event::news(*id, text::join([sent, &watch.token])));
                    }
                }
            }
        }
        events
    }

    /// Queues events. `unsure` if memory for some may have been refused.
    fn queue_events(&mut self, events: Vec<Event>, cause: Option<u64>, unsure: bool, origin: u64) {
        let (now_ms, timeout) = (self.now_ms, self.setting.event_timeout_ms);
        for event in events {
            let conn = self.conns.get_mut(&event.conn).filter(|conn| conn.live);
            let Some(conn) = conn else { continue };
            let timeout = timeout.filter(|_| conn.domid != PRIVILEGED);
            let deadline = timeout.map(|ms| now_ms.saturating_add(ms));
            conn.out.event(event, cause, deadline, unsure, now_ms, origin);
        }
    }

    /// How many requests of a connection are not answered in full, and whether that is certain.
    fn outstanding(&self, asker: u32) -> (usize, bool) {
        let mut causes = BTreeSet::new();
        let mut certain = true;
        for conn in self.conns.values() {
            certain &= conn.out.is_certain();
            causes.extend(conn.out.causes().filter(|(id, _)| *id == asker));
        }
        (causes.len(), certain)
    }
}

impl Watch {
    /// Whether an event at a path is for this watch.
    fn wants(&self, path: &[u8], subtree: bool) -> bool {
        if self.path == path {
            return true;
        }
        let mut levels = 0;
        let mut at = path.to_vec();
        while let Some(above) = text::parent(&at).filter(|_| path.starts_with(b"/")) {
            levels += 1;
            at = above;
            if at == self.path {
                return subtree && self.depth.is_none_or(|depth| levels <= depth);
            }
        }
        false
    }
}

/// Whether the last thing that passed is a request that names a domain, and the server has not yet asked about that one.
fn asks_about(before: &[Seen], domid: u16) -> bool {
    let answers = before.iter().rev().take_while(|seen| {
        matches!(seen, Seen::State(..) | Seen::Memory(..) | Seen::Mapped(..) | Seen::Bound(..))
    });
    let answers: Vec<_> = answers.collect();
    let is_asked = |seen: &&Seen| matches!(seen, Seen::State(DomId(other), _) if *other == domid);
    let Some(Seen::Took(_, bytes)) = before.iter().rev().nth(answers.len()) else { return false };
    let text = format!("{domid}");
    let names_it = bytes.split(|byte| !byte.is_ascii_digit()).any(|run| run == text.as_bytes());
    names_it && !answers.into_iter().any(|seen| is_asked(&seen))
}

/// What the hypervisor said of a domain during a request.
fn state_of(answers: &[Seen], domid: u16) -> Option<DomainState> {
    answers.iter().find_map(|seen| match seen {
        Seen::State(DomId(other), state) if *other == domid => Some(*state),
        _ => None,
    })
}
