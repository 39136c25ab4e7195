//! What each request must do and answer.

use super::output::{Body, Pace};
use super::session::{
    Error, OUTSTANDING, PATH_MAX, PERMISSIONS, Session, TRANSACTIONS, Tx, WATCHES,
};
use super::tree::{Perm, Perms};
use super::{Event, FEATURES, Model, PRIVILEGED, Verdict, Watch, text};
use crate::proto::id::DomId;
use crate::proto::wire::{HEADER_SIZE, Header, Kind};
use crate::sim::journal::Seen;
use alloc::string::String;
use alloc::vec::Vec;
use std::format;

/// The names of GET_QUOTA, in order.
const QUOTAS: &str = "nodes watches outstanding memory soft-memory transactions transaction-nodes \
                      node-permissions path-max node-size";

/// Types that only the privileged domain may send.
const PRIVILEGED_ONLY: [u32; 9] = [0, 8, 9, 17, 18, 19, 24, 25, 26];

/// Types after which a domain that they name is known.
const LEARNING: [u32; 5] = [14, 23, 24, 25, 26];

/// Whether a request may name a domain that the server has to ask about: then it waits as long as something is left of a
/// former domain with that domid.
pub(super) fn may_wait(domid: u16, message: &[u8]) -> bool {
    let kind = message.first_chunk().map(|head| Header::from_bytes(head).kind);
    domid == PRIVILEGED && kind.is_some_and(|kind| kind == 8 || LEARNING.contains(&kind))
}

/// What a request leads to.
struct Outcome {
    answer: Result<Body, Error>,
    events: Vec<Event>,
    /// The first event of a new watch, behind the reply.
    first: Option<Vec<u8>>,
    /// The reply comes behind the events that tell what became of a domain.
    news: bool,
    /// The reply comes when nothing is left of a domain that was named.
    late: bool,
}

impl Outcome {
    fn new(answer: Result<Body, Error>) -> Self {
        Self { answer, events: Vec::new(), first: None, news: false, late: false }
    }

    fn ok() -> Self {
        Self::text("OK")
    }

    fn text(text: &str) -> Self {
        Self::new(Ok(Body::Exact(text::join([text]))))
    }

    fn done(result: Result<(), Error>) -> Self {
        result.map_or_else(Self::error, |()| Self::ok())
    }

    fn error(error: Error) -> Self {
        Self::new(Err(error))
    }
}

/// A request as it arrived.
#[derive(Clone, Copy)]
struct Request<'a> {
    id: u32,
    kind: u32,
    tx: u32,
    payload: &'a [u8],
    answers: &'a [Seen],
    /// The server fails in the middle of it.
    fails: bool,
}

/// What a request leads to, or what the server did wrong meanwhile.
type Judged = Result<Outcome, String>;

impl Model {
    /// The server has failed in the middle of a request that has done nothing.
    pub(super) fn fail(&mut self, id: u32, message: &[u8], answers: &[Seen]) -> Verdict {
        self.requests += 1;
        let (head, _) = message.split_at(HEADER_SIZE);
        let header = Header::from_bytes(head.try_into().map_err(|_| "no header")?);
        let number = self.next_cause;
        self.next_cause += 1;
        // But that it was asked about a domain is remembered.
        for seen in answers.iter().filter(|_| LEARNING.contains(&header.kind)) {
            if let Seen::State(DomId(domid), _) = seen {
                let privileged = self.party(id).privileged;
                let _knows = self.learn(*domid, answers, privileged)?;
            }
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            let cause = (conn.domid != PRIVILEGED).then_some((id, number & 0xffff_ffff));
            let kind = Kind::Error.number();
            let body = Body::Exact(text::join(["EIO"]));
            conn.out.reply(Header { kind, ..header }, body, cause, Pace::Now, number);
        }
        Ok(())
    }

    /// A request is complete.
    pub(super) fn request(
        &mut self,
        id: u32,
        message: &[u8],
        answers: &[Seen],
        fails: bool,
    ) -> Verdict {
        self.requests += 1;
        let (head, payload) = message.split_at(HEADER_SIZE);
        let header = Header::from_bytes(head.try_into().map_err(|_| "no header")?);
        let domid = self.conns[&id].domid;
        let privileged = domid == PRIVILEGED;
        let (waiting, certain) = self.outstanding(id);
        let limit = self.domains[&domid].limits[OUTSTANDING] as usize;
        if !privileged && certain && limit > 0 && waiting >= limit {
            return Err(format!("domain {domid} is read with {waiting} requests outstanding"));
        }
        let number = self.next_cause;
        self.next_cause += 1;
        let cause = (!privileged).then_some(u64::from(id) << 32 | number & 0xffff_ffff);
        let request = Request { id, kind: header.kind, tx: header.tx_id, payload, answers, fails };
        let outcome = self.judge_request(request)?;
        // Who fails in the middle of a request may not have told everybody.
        let unsure =
            fails || answers.iter().skip(1).any(|seen| matches!(seen, Seen::Memory(_, false)));
        self.queue_events(outcome.events, cause, unsure, number);
        let (kind, body) = match outcome.answer {
            Ok(Body::Exact(bytes)) if bytes.len() > 4096 => {
                (16, Body::Exact(text::join(["E2BIG"])))
            }
            Ok(body) => (header.kind, body),
            Err(error) => (16, Body::Exact(text::join([error]))),
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            let cause = cause.map(|_| (id, number & 0xffff_ffff));
            // What administrators ask may look at everything.
            let pace = if outcome.news {
                Pace::News
            } else if outcome.late || kind == Kind::Control.number() {
                Pace::Look
            } else {
                Pace::Now
            };
            conn.out.reply(Header { kind, ..header }, body, cause, pace, number);
        }
        self.queue_events(
            outcome.first.map(|event| Event::new(id, event)).into_iter().collect(),
            cause,
            unsure,
            number,
        );
        Ok(())
    }

    /// The checks common to all, then the request itself.
    fn judge_request(&mut self, request: Request<'_>) -> Judged {
        let Request { id, kind, tx, payload, answers, .. } = request;
        let privileged = self.party(id).privileged;
        if kind > 26 || [15, 16, 20].contains(&kind) {
            return Ok(Outcome::error("ENOSYS"));
        }
        if PRIVILEGED_ONLY.contains(&kind) && !privileged {
            return Ok(Outcome::error("EACCES"));
        }
        if ![4, 5].contains(&kind) && tx != 0 && !self.conns[&id].txs.contains_key(&tx) {
            return Ok(Outcome::error("ENOENT"));
        }
        if let Some(error) = self.grammar(request, payload) {
            return Ok(Outcome::error(error));
        }
        let admitted = answers.iter().find_map(|seen| match seen {
            Seen::Memory(_, granted) => Some(*granted),
            _ => None,
        });
        if !admitted.ok_or("a request was carried out without a look at memory")? {
            return Ok(Outcome::error("ENOMEM"));
        }
        match kind {
            1..=3 | 11..=14 | 22 => self.about_nodes(request),
            4 | 5 | 21 => Ok(self.about_watches(request)),
            6 | 7 => Ok(self.about_transactions(request)),
            0 => Ok(self.control(payload)),
            23 | 24 => self.about_features(request),
            25 | 26 => self.about_quotas(request),
            _ => self.about_domains(request),
        }
    }

    /// What is wrong with the form of a payload.
    fn grammar(&self, request: Request<'_>, payload: &[u8]) -> Option<Error> {
        let strings = text::strings(payload);
        let count = strings.len();
        let domid = |place: usize| text::domid(&strings[place]).is_some();
        let depths = self.conns[&request.id].features & 4 != 0;
        let fine = match request.kind {
            1..=3 | 12 | 13 => text::single(payload).is_some(),
            9 | 10 | 17 | 18 => {
                text::single(payload).is_some_and(|one| text::domid(&one).is_some())
            }
            7 => payload == b"T\0" || payload == b"F\0",
            11 | 0 => count >= 1,
            14 => count >= 2,
            4 if depths && count == 3 => text::atoi(&strings[2]) >= 0,
            4 | 5 | 22 => count == 2,
            8 => count >= 3 && domid(0),
            19 => count >= 2 && domid(0) && domid(1),
            23 if count > 0 && !self.party(request.id).privileged => return Some("EACCES"),
            23 => count == 0 || count == 1 && domid(0),
            24 => count == 2 && domid(0),
            25 => count < 2 || count == 2 && domid(0),
            26 => {
                let last = strings.last().map_or(0, |value| text::atoi_unsigned(value));
                (count == 2 || count == 3 && domid(0)) && last != u32::MAX
            }
            _ => true,
        };
        (!fine).then_some("EINVAL")
    }

    fn path(&self, id: u32, raw: &[u8], special: bool) -> Result<(Vec<u8>, usize), Error> {
        let party = self.party(id);
        let max = if party.privileged { 0 } else { self.domains[&party.domid].limits[PATH_MAX] };
        text::canonical(raw, special, party.domid, max).ok_or("EINVAL")
    }

    fn about_nodes(&mut self, request: Request<'_>) -> Judged {
        let Request { id, kind, tx, payload, .. } = request;
        let raw = payload.split(|byte| *byte == 0).next().unwrap_or(b"").to_vec();
        let value = &payload[raw.len() + 1..];
        let party = self.party(id);
        let limits = self.domains[&party.domid].limits;
        let perms = match kind {
            14 => match self.judge_perms(request)? {
                Ok(perms) => perms,
                Err(error) => return Ok(Outcome::error(error)),
            },
            _ => Vec::new(),
        };
        let (path, _) = match self.path(id, &raw, [3, 14].contains(&kind)) {
            Ok(path) => path,
            Err(error) => return Ok(Outcome::error(error)),
        };
        let mut open = self.conns.get_mut(&id).and_then(|conn| conn.txs.remove(&tx));
        let tree = &mut self.tree;
        let mut session = Session { tree, tx: open.as_mut(), party, limits, changes: Vec::new() };
        let ok = |()| Body::Exact(b"OK\0".to_vec());
        let answer = match kind {
            1 => session.directory(&path).map(Body::Exact),
            2 => session.read(&path).map(Body::Exact),
            3 => session.get_perms(&path).map(Body::Exact),
            11 => session.write(&path, Some(value)).map(ok),
            12 => session.write(&path, None).map(ok),
            13 => session.rm(&path).map(ok),
            14 => session.set_perms(&path, &perms).map(ok),
            _ => {
                let offset = text::atoi(&text::strings(payload)[1]).into();
                let part = session.directory_part(&path);
                part.map(|(own, live, list)| {
                    let generation = (own, live.map(|live| (live, id, tx)));
                    Body::Part { path, generation, list, offset }
                })
            }
        };
        let changes = session.changes;
        if let (Some(open), Some(conn)) = (open, self.conns.get_mut(&id)) {
            conn.txs.insert(tx, open);
        }
        Ok(Outcome { events: self.told(&changes), ..Outcome::new(answer) })
    }

    /// The entries of SET_PERMS: number, syntax, who they are, whether there is an owner.
    fn judge_perms(&mut self, request: Request<'_>) -> Result<Result<Perms, Error>, String> {
        let strings = text::strings(request.payload);
        let party = self.party(request.id);
        let limit = self.domains[&party.domid].limits[PERMISSIONS] as usize;
        let texts = &strings[1..];
        if !party.privileged && limit > 0 && texts.len() > limit {
            return Ok(Err("ENOSPC"));
        }
        let wildcard = self.conns[&request.id].features & 8 != 0;
        let mut perms = Vec::new();
        for text in texts {
            let letter = text.first().copied().filter(|letter| b"nrwb".contains(letter));
            let domid = text.get(1..).and_then(text::permission_domid);
            let (Some(letter), Some(domid)) = (letter, domid) else { return Ok(Err("EINVAL")) };
            perms.push(Perm { letter, domid, stale: domid == text::ANY && !wildcard });
        }
        for perm in &mut perms {
            let known = self.learn(perm.domid, request.answers, party.privileged)?;
            perm.stale |= perm.domid != text::ANY && !known;
        }
        if perms[0].domid == text::ANY {
            return Ok(Err("EINVAL"));
        }
        if perms[0].stale {
            return Ok(Err("ENOENT"));
        }
        Ok(Ok(perms))
    }

    fn about_watches(&mut self, request: Request<'_>) -> Outcome {
        let id = request.id;
        if request.kind == 21 {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.watches.clear();
                conn.txs.clear();
                conn.out.unwatched(|_| true);
            }
            return Outcome::ok();
        }
        let strings = text::strings(request.payload);
        let (path, home) = match self.path(id, &strings[0], true) {
            Ok(path) => path,
            Err(error) => return Outcome::error(error),
        };
        let party = self.party(id);
        let limit = self.domains[&party.domid].limits[WATCHES] as usize;
        let watches = &mut self.conns.get_mut(&id).expect("it asks").watches;
        let same = |watch: &Watch| watch.path == path && watch.token == strings[1];
        let known = watches.iter().position(same);
        if request.kind == 5 {
            let Some(place) = known else { return Outcome::error("ENOENT") };
            let watch = watches.remove(place);
            let is_its = |payload: &[u8]| payload.ends_with(&text::join([b"", &watch.token[..]]));
            self.conns.get_mut(&id).expect("it asks").out.unwatched(is_its);
            return Outcome::ok();
        }
        if known.is_some() {
            return Outcome::error("EEXIST");
        }
        if !party.privileged && limit > 0 && watches.len() >= limit {
            return Outcome::error("ENOSPC");
        }
        let depth = strings.get(2).map(|depth| text::atoi(depth).unsigned_abs());
        watches.push(Watch { path, home, token: strings[1].clone(), depth });
        Outcome { first: Some(text::join([&strings[0], &strings[1]])), ..Outcome::ok() }
    }

    fn about_transactions(&mut self, request: Request<'_>) -> Outcome {
        let party = self.party(request.id);
        let limits = self.domains[&party.domid].limits;
        let conn = self.conns.get_mut(&request.id).expect("it asks");
        if request.kind == 6 {
            let limit = limits[TRANSACTIONS] as usize;
            if request.tx != 0 {
                return Outcome::error("EBUSY");
            }
            if !party.privileged && limit > 0 && conn.txs.len() >= limit {
                return Outcome::error("ENOSPC");
            }
            conn.last_tx += 1;
            conn.txs.insert(conn.last_tx, Tx::default());
            return Outcome::text(&format!("{}", conn.last_tx));
        }
        let Some(tx) = conn.txs.remove(&request.tx) else { return Outcome::error("ENOENT") };
        if request.payload == b"F\0" {
            return Outcome::ok();
        }
        match tx.commit(&mut self.tree, party, &limits) {
            Ok(changes) => Outcome { events: self.told(&changes), ..Outcome::ok() },
            Err(error) => Outcome::error(error),
        }
    }

    fn about_domains(&mut self, request: Request<'_>) -> Judged {
        let strings = text::strings(request.payload);
        let domid = text::domid(&strings[0]).ok_or("judged before")?;
        let conn = self.domains.get(&domid).and_then(|domain| domain.conn);
        let unknown = || Outcome { late: true, ..Outcome::error("ENOENT") };
        Ok(match request.kind {
            8 => {
                let port = text::atoi_unsigned(&strings[2]);
                let (events, result) =
                    self.introduce(domid, port, request.answers, request.fails)?;
                Outcome { events, news: result.is_ok(), ..Outcome::done(result) }
            }
            9 | 18 if domid == PRIVILEGED => Outcome::error("EINVAL"),
            9 | 18 if conn.is_none() => unknown(),
            9 => Outcome { events: self.destroy(domid), news: true, ..Outcome::ok() },
            18 => {
                if let Some(domain) = self.domains.get_mut(&domid) {
                    domain.shutdown_told = false;
                }
                Outcome::ok()
            }
            10 => Outcome::text(&format!("/local/domain/{domid}")),
            17 if domid == 0x7ff0 || conn.is_some() => Outcome::text("T"),
            17 => Outcome::text("F"),
            _ => {
                let target = text::domid(&strings[1]).ok_or("judged before")?;
                let other = self.domains.get(&target).and_then(|domain| domain.conn);
                let (Some(conn), Some(_)) = (conn, other) else { return Ok(unknown()) };
                if !self.conns[&conn].live {
                    return Ok(Outcome::error("EINVAL"));
                }
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.target = Some(target);
                }
                Outcome::ok()
            }
        })
    }

    fn about_features(&mut self, request: Request<'_>) -> Judged {
        let strings = text::strings(request.payload);
        if strings.is_empty() {
            return Ok(Outcome::text(&format!("{}", self.conns[&request.id].features)));
        }
        let domid = text::domid(&strings[0]).ok_or("judged before")?;
        if !self.learn(domid, request.answers, true)? {
            return Ok(Outcome::error("ENOENT"));
        }
        let domain = self.domains.get_mut(&domid).ok_or("just learned")?;
        if request.kind == 23 {
            return Ok(Outcome::text(&format!("{}", domain.features)));
        }
        let mask = text::atoi_unsigned(&strings[1]);
        if domain.conn.is_some() {
            return Ok(Outcome::error("EBUSY"));
        }
        if mask & !FEATURES != 0 {
            return Ok(Outcome::error("EINVAL"));
        }
        domain.features = mask;
        Ok(Outcome::ok())
    }

    fn about_quotas(&mut self, request: Request<'_>) -> Judged {
        let mut strings = text::strings(request.payload);
        if strings.is_empty() {
            return Ok(Outcome::text(QUOTAS));
        }
        let value = (request.kind == 26).then(|| strings.pop()).flatten();
        let name = strings.pop().ok_or("judged before")?;
        let names = QUOTAS.split(' ').map(str::as_bytes);
        let Some((place, _)) = names.enumerate().find(|(_, other)| *other == name) else {
            return Ok(Outcome::error("EINVAL"));
        };
        let limits = match strings.pop() {
            None => &mut self.setting.limits,
            Some(domid) => {
                let domid = text::domid(&domid).ok_or("judged before")?;
                if !self.learn(domid, request.answers, true)? {
                    return Ok(Outcome::error("ENOENT"));
                }
                &mut self.domains.get_mut(&domid).ok_or("just learned")?.limits
            }
        };
        let Some(value) = value else { return Ok(Outcome::text(&format!("{}", limits[place]))) };
        limits[place] = text::atoi_unsigned(&value);
        Ok(Outcome::ok())
    }

    /// CONTROL, as far as it is a matter of right and wrong.
    fn control(&self, payload: &[u8]) -> Outcome {
        let strings = text::strings(payload);
        let words: Vec<&[u8]> = strings.iter().map(Vec::as_slice).collect();
        match words.as_slice() {
            [b"check"] | [b"print", _] => Outcome::ok(),
            // What is said is for people; that it is said once, and in its turn, is what counts.
            [b"memreport" | b"stats" | b"help"] | [b"live-update", _, ..] => {
                Outcome::new(Ok(Body::Anything))
            }
            [b"quota", domid] => {
                let domid = text::domid(domid).filter(|domid| self.domains.contains_key(domid));
                let Some(domid) = domid else { return Outcome::error("ENOENT") };
                let conn = self.domains[&domid].conn.map(|conn| &self.conns[&conn]);
                let nodes = self.tree.owned(domid);
                let watches = conn.map_or(0, |conn| conn.watches.len());
                let transactions = conn.map_or(0, |conn| conn.txs.len());
                Outcome::new(Ok(Body::Usage { nodes, watches, transactions }))
            }
            _ => Outcome::error("EINVAL"),
        }
    }
}
