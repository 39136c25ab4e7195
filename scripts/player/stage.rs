//! Real Xen as a stage: dom0 by its own connection, the others as test guests.

use crate::Server;
use crate::guest::Guest;
use crate::limits;
use crate::link::{Link, PATIENCE, PAUSE};
use crate::world::{ROUNDS_WITH_DOMAINS, World};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use core::time::Duration;
use std::fs;
use std::time::Instant;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::transcript::{Conversation, Message, Patience, Request, Stage, Stop};

/// The stub domain's console, as xenconsoled keeps it.
const CONSOLE: &str = "/var/log/xen/console/guest-Xenstore.log";
/// After so long without any message no more will come.
const QUIET: Duration = Duration::from_millis(120);
/// The longest that a conversation may sleep at a time.
const SLEEP_MAX_MS: u64 = 25_000;
/// The same where little time is wanted.
const QUICK_SLEEP_MAX_MS: u64 = 6_000;
/// Longest message, its header included, that dom0's kernel takes from a program.
const KERNEL_MAX: usize = 4096;
/// What the host lives on.
const PROTECTED: [&str; 6] = ["/", "/local", "/local/domain", "/tool", "/vm", "/libxl"];
/// What only a simulated world can do.
const SIMULATED: [&str; 12] = [
    "replace",
    "unshutdown",
    "revoke",
    "grant",
    "memory",
    "mute-xen",
    "old-xen",
    "rename",
    "ran",
    "update",
    "failing-update",
    "region",
];
/// Ids that the text uses for domains that are not there become these, which are certainly not.
const ABSENT: u16 = 20_000;
/// What the special nodes' permissions are at first.
const SPECIAL: [(&str, &str, &str); 2] =
    [("@introduceDomain", "n0", ""), ("@releaseDomain", "n0", "r32757")];

/// One conversation on it.
pub(crate) struct Live<'a> {
    world: &'a mut World,
    dom0: Link,
    dom0_messages: VecDeque<Message>,
    /// Requests of dom0 without a reply yet.
    dom0_asked: usize,
    cast: BTreeMap<u16, Guest>,
    /// Domains of the text that exist no more, or cannot be driven any more.
    ended: Vec<Guest>,
    names: BTreeMap<u16, u16>,
    /// Nodes to remove afterwards.
    touched: BTreeSet<String>,
    has_changed_limits: bool,
    has_changed_special: bool,
    has_changed_root: bool,
    /// Guests whose latest requests may not have reached the server yet.
    unsettled: BTreeSet<u16>,
    last_news: Instant,
    console_from: usize,
}

impl<'a> Live<'a> {
    /// Prepares the server for a conversation.
    pub(crate) fn open(world: &'a mut World, conversation: &Conversation) -> Result<Self, Stop> {
        let options = limits::from_options(conversation.options(), world.server)?;
        if let Some(word) = conversation.lines().find_map(simulated) {
            return Err(Stop::Skip(format!("\"{word}\" takes a simulated world")));
        }
        for (word, why) in [
            ("still", "depends on how much time passes"),
            ("fresh", "takes a store with nothing in it"),
        ] {
            if conversation.lines().any(|line| line == word) {
                return Err(Stop::Skip(why.to_owned()));
            }
        }
        let sleeps = conversation.lines().filter_map(|line| line.strip_prefix("sleep "));
        let slept: u64 = sleeps.filter_map(|ms| ms.parse::<u64>().ok()).sum();
        if world.is_quick && slept > QUICK_SLEEP_MAX_MS {
            return Err(Stop::Skip(format!("sleeps for {slept} ms")));
        }
        world.prepare(conversation)?;
        let names = world.future_names(conversation);
        let dom0 = Link::open().map_err(|error| Stop::Lost(error.to_string()))?;
        let live = Self {
            world,
            dom0,
            dom0_messages: VecDeque::new(),
            dom0_asked: 0,
            cast: BTreeMap::new(),
            ended: Vec::new(),
            names,
            touched: BTreeSet::new(),
            has_changed_limits: !options.is_empty(),
            has_changed_special: false,
            has_changed_root: false,
            unsettled: BTreeSet::new(),
            last_news: Instant::now(),
            console_from: console().len(),
        };
        if let Err(stop) = limits::set(&mut live.world.link, live.world.server, &options) {
            live.close()?;
            return Err(stop);
        }
        Ok(live)
    }

    /// Leaves nothing of the conversation for the next one.
    pub(crate) fn close(self) -> Result<(), Stop> {
        let Self { world, dom0, cast, ended, touched, .. } = self;
        drop(dom0);
        let mut homes = Vec::new();
        for guest in &ended {
            homes.push(guest.domid);
            drop(guest.destroy());
        }
        for mut guest in cast.into_values() {
            homes.push(guest.domid);
            release(&mut world.link, &guest)?;
            // One that does not obey any more is not used again.
            if guest.reset().is_ok() {
                world.idle.push(guest);
            } else {
                drop(guest.destroy());
            }
        }
        for path in homes.iter().map(|domid| format!("/local/domain/{domid}")).chain(touched) {
            drop(world.link.call(Kind::Rm, &[&path])?);
        }
        if self.has_changed_root {
            drop(world.link.call(Kind::SetPerms, &["/", "n0"])?);
            drop(world.link.call(Kind::Write, &["/", ""])?);
        }
        if self.has_changed_special {
            for (name, owner, other) in SPECIAL {
                let entries = [name, owner, other];
                let count = entries.iter().filter(|entry| !entry.is_empty()).count();
                drop(world.link.call(Kind::SetPerms, &entries[..count])?);
            }
        }
        if self.has_changed_limits {
            // What was possible at the start is possible now.
            let limits = world.limits.clone();
            drop(limits::set(&mut world.link, world.server, &limits));
        }
        Ok(())
    }

    /// Looks once at everything from which something may come.
    fn poll(&mut self) -> Result<(), Stop> {
        while let Some(message) = self.dom0.poll()? {
            if message.header.kind != Kind::WatchEvent.number() {
                self.dom0_asked = self.dom0_asked.saturating_sub(1);
            }
            self.dom0_messages.push_back(message);
            self.last_news = Instant::now();
        }
        for guest in self.cast.values_mut() {
            if guest.poll() {
                self.last_news = Instant::now();
            }
        }
        Ok(())
    }

    fn wait(&mut self, time: Duration) -> Result<(), Stop> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.poll()?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn guest(&mut self, domid: u16) -> Result<&mut Guest, Stop> {
        self.cast.get_mut(&domid).ok_or_else(|| format!("domain {domid} cannot be told").into())
    }

    /// Waits until the server has had what others than `domid` have sent, so that the lines of a conversation
    /// happen one after the other.
    fn settle(&mut self, domid: Option<u16>) -> Result<(), Stop> {
        for other in core::mem::take(&mut self.unsettled) {
            if Some(other) == domid {
                self.unsettled.insert(other);
            } else if let Some(guest) = self.cast.get_mut(&other) {
                guest.ask("settle")?;
            }
        }
        Ok(())
    }

    /// On a busy machine a guest may be slow: its answer comes behind everything that it has got.
    fn last_look(&mut self, domid: u16) -> Result<Option<Message>, Stop> {
        if let Some(guest) = self.cast.get_mut(&domid) {
            guest.ask("settle")?;
        }
        self.poll()?;
        Ok(self.pop(domid))
    }

    fn pop(&mut self, domid: u16) -> Option<Message> {
        self.unsettled.remove(&domid);
        match self.cast.get_mut(&domid) {
            Some(guest) => guest.messages.pop_front(),
            None if domid == 0 => self.dom0_messages.pop_front(),
            None => None,
        }
    }

    /// An error if the server answers nobody any more.
    fn must_be_alive(&mut self) -> Result<(), Stop> {
        self.world.link.call(Kind::GetDomainPath, &["0"]).map(drop)
    }

    /// Why the kernel of dom0 does not pass a request on as it is.
    fn is_for_the_kernel(request: &Request<'_>) -> Option<&'static str> {
        let simple = request.expected.is_none_or(|expected| expected == "OK");
        match request.kind {
            Some(Kind::ResetWatches) => Some("the watches of dom0's kernel would be lost"),
            Some(Kind::Watch | Kind::Unwatch) if request.arguments.len() != 2 || !simple => {
                Some("dom0's kernel manages the watches of its programs itself")
            }
            Some(Kind::TransactionEnd)
                if request.tx == "0"
                    || !matches!(request.arguments, [a] if a == "T" || a == "F") =>
            {
                Some("dom0's kernel looks at the end of transactions itself")
            }
            Some(Kind::TransactionStart)
                if request.expected.is_some_and(|e| e.starts_with('"')) =>
            {
                Some("all programs in dom0 share one row of transaction ids")
            }
            _ if request.tx != "0" && request.tx.parse::<u32>().is_ok() => {
                Some("dom0's kernel refuses transactions that it does not know")
            }
            _ => None,
        }
    }

    /// Remembers what has to be undone.
    fn note(&mut self, request: &Request<'_>) {
        let first = request.arguments.first().map_or("", String::as_str);
        match (request.kind, first) {
            (Some(Kind::SetPerms | Kind::Write), "/") => self.has_changed_root = true,
            (Some(Kind::SetPerms), path) if path.starts_with('@') => {
                self.has_changed_special = true;
            }
            (Some(Kind::SetQuota), _) => self.has_changed_limits = true,
            (Some(Kind::Control), "quota" | "quota-soft") => self.has_changed_limits = true,
            (Some(Kind::Write | Kind::Mkdir), path) => {
                if path.starts_with("/local/") || PROTECTED.contains(&path) {
                    return;
                }
                if let Some(top) = path.strip_prefix('/').and_then(|path| path.split('/').next()) {
                    let top = format!("/{top}");
                    if !top.contains('{') && !PROTECTED.contains(&top.as_str()) {
                        self.touched.insert(top);
                    }
                } else if request.domid == 0 {
                    self.touched.insert(format!("/local/domain/0/{path}"));
                }
            }
            _ => {}
        }
    }

    /// Destroys a domain and gives Xen time to tell.
    fn destroy(&mut self, domid: u16) -> Result<(), Stop> {
        // One that has shut down is no part of the cast any more.
        self.ended.extend(self.cast.remove(&domid));
        let real = self.real(domid);
        let guest = self.ended.iter().find(|guest| guest.domid == real).ok_or("no such domain")?;
        guest.destroy().map_err(|error| format!("destroying domain {real}: {error}"))?;
        self.wait(QUIET)
    }
}

/// What happens to the world in a line, if it cannot happen in the real one.
fn simulated(line: &str) -> Option<&str> {
    let word = line.split(' ').next()?;
    SIMULATED.contains(&word).then_some(word)
}

/// Has the server forget a guest. One that it only knows has to be introduced for that.
fn release(link: &mut Link, guest: &Guest) -> Result<(), Stop> {
    let [domid, frame, port] =
        [guest.domid.into(), guest.frame, guest.port.into()].map(|number: u64| number.to_string());
    if link.call(Kind::Release, &[&domid])?.is_err() {
        drop(link.call(Kind::Introduce, &[&domid, &frame, &port])?);
        drop(link.call(Kind::Release, &[&domid])?);
    }
    Ok(())
}

/// What the stub domain has printed.
fn console() -> String {
    fs::read(CONSOLE).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

impl Stage for Live<'_> {
    fn before(&mut self, request: &Request<'_>) -> Result<(), Stop> {
        if request.domid == 0 {
            let path = request.arguments.first().map_or("", String::as_str);
            let is_root = path == "/" && self.world.server != Server::Oxenstored;
            if request.kind == Some(Kind::Rm) && PROTECTED.contains(&path) && !is_root {
                return Err(Stop::Skip(format!("removes {path}, which the host lives on")));
            }
            let reason = Self::is_for_the_kernel(request).filter(|_| self.dom0.is_device);
            if let Some(reason) = reason {
                return Err(Stop::Skip(reason.to_owned()));
            }
        }
        self.note(request);
        Ok(())
    }

    fn send(&mut self, domid: u16, bytes: &[u8], _runs: bool) -> Result<(), Stop> {
        self.settle(Some(domid))?;
        if domid != 0 {
            self.unsettled.insert(domid);
        }
        self.last_news = Instant::now();
        if domid == 0 && self.dom0.is_device && bytes.len() > KERNEL_MAX {
            return Err(Stop::Skip("dom0's kernel passes on no more than 4096 bytes".to_owned()));
        }
        if domid != 0 {
            return self.guest(domid)?.send(bytes);
        }
        // The kernel sends out of one buffer for each file, and does not wait for it to be free.
        let deadline = Instant::now() + PATIENCE;
        while self.dom0.is_device && self.dom0_asked > 0 && Instant::now() < deadline {
            self.poll()?;
            std::thread::sleep(PAUSE);
        }
        self.dom0_asked += 1;
        self.dom0.send(bytes)
    }

    fn receive(&mut self, domid: u16, patience: Patience) -> Result<Option<Message>, Stop> {
        let deadline = Instant::now() + PATIENCE;
        if patience == Patience::Short {
            self.settle(None)?;
        }
        loop {
            self.poll()?;
            if let Some(message) = self.pop(domid) {
                return Ok(Some(message));
            }
            if patience == Patience::Short && self.last_news.elapsed() > QUIET {
                return self.last_look(domid);
            }
            if Instant::now() > deadline {
                self.must_be_alive()?;
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn keeps_order(&self, domid: u16) -> bool {
        // The kernel hands events on in a thread of its own.
        domid != 0 || !self.dom0.is_device
    }

    fn word(&mut self, domid: u16, word: Word) -> Result<u32, Stop> {
        self.settle(None)?;
        self.guest(domid)?.word(word)
    }

    fn set_word(&mut self, domid: u16, word: Word, value: u32) -> Result<(), Stop> {
        self.guest(domid)?.ask(&format!("set {} {value}", word as usize)).map(drop)
    }

    fn first_introduction(&mut self, domid: u16) -> Option<(u64, u32)> {
        self.cast.get(&domid).map(|guest| (guest.frame, guest.port))
    }

    fn introduction(&mut self, domid: u16) -> Result<(u64, u32), Stop> {
        let server = self.own_domid()?;
        let Some(guest) = self.cast.get_mut(&domid) else {
            return Err(Stop::Skip(format!("domain {domid} has no ring to offer here")));
        };
        Ok((guest.frame, guest.offer_port(server)?))
    }

    fn own_domid(&mut self) -> Result<u16, Stop> {
        let domid = self.world.link.call(Kind::Read, &["/tool/xenstored/domid"])?;
        // A daemon lives in dom0.
        Ok(domid.ok().and_then(|domid| domid.parse().ok()).unwrap_or(0))
    }

    fn change(&mut self, words: &[&str]) -> Result<(), Stop> {
        let domid = || words.get(1).and_then(|word| word.parse().ok()).ok_or("which domain?");
        self.settle(None)?;
        match words[0] {
            "domain" => {
                let server = self.own_domid()?;
                let mut guest = self.world.guest()?;
                guest.offer_port(server)?;
                self.names.insert(domid()?, guest.domid);
                self.cast.insert(domid()?, guest);
            }
            "destroy" => self.destroy(domid()?)?,
            "shutdown" => {
                self.guest(domid()?)?.tell("off")?;
                self.wait(QUIET)?;
                let ended = self.cast.remove(&domid()?);
                self.ended.extend(ended);
            }
            "sleep" => {
                let ms = words.get(1).and_then(|ms| ms.parse().ok()).ok_or("how long?")?;
                if ms > SLEEP_MAX_MS {
                    return Err(Stop::Skip(format!("sleeps for {ms} ms")));
                }
                self.wait(Duration::from_millis(ms))?;
            }
            "signal" => self.guest(domid()?)?.tell("signal")?,
            "firmware" => drop(self.guest(domid()?)?.ask("firmware")?),
            "read" | "unread" if words.get(1) == Some(&"0") => {
                return Err(Stop::Skip("dom0 always reads".to_owned()));
            }
            "read" => self.guest(domid()?)?.tell("read 1")?,
            "unread" => self.guest(domid()?)?.tell("read 0")?,
            "go" => {}
            _ => return Err("what?".into()),
        }
        self.last_news = Instant::now();
        Ok(())
    }

    fn printed(&mut self, text: &str) -> Result<Option<bool>, Stop> {
        if self.world.server != Server::Ours {
            return Ok(None);
        }
        let end = Instant::now() + Duration::from_secs(3);
        loop {
            let all = console();
            let found = all.get(self.console_from..).is_some_and(|new| new.contains(text));
            if found || Instant::now() > end {
                self.console_from = all.len();
                return Ok(Some(found));
            }
            self.wait(Duration::from_millis(20))?;
        }
    }

    fn real(&self, domid: u16) -> u16 {
        match self.names.get(&domid) {
            Some(real) => *real,
            // Without any domain nothing can be confused.
            None if (1..1000).contains(&domid) && !self.names.is_empty() => ABSENT + domid,
            None => domid,
        }
    }

    fn is_fresh(&self) -> bool {
        false
    }

    fn has_error_word(&self) -> bool {
        // It neither offers nor uses it.
        self.world.server != Server::Oxenstored
    }

    fn is_ours(&self) -> bool {
        self.world.server == Server::Ours
    }

    fn rounds(&self, written: usize, makes_domains: bool) -> usize {
        if makes_domains { written.min(ROUNDS_WITH_DOMAINS) } else { written }
    }

    fn end(&mut self) -> Result<(), Stop> {
        if let Some((domid, _)) = self.cast.iter().find(|(_, guest)| guest.is_amid_message()) {
            return Err(format!("at the end domain {domid} has got a part of a message").into());
        }
        match self.world.link.call(Kind::Control, &["check"])? {
            Ok(text) if text == "OK" => Ok(()),
            Ok(text) | Err(text) => Err(format!("check: {text}").into()),
        }
    }
}
