//! A host that is made up, of which each part may fail.

use super::*;
use std::collections::BTreeMap;
use xenstore_stubdom::proto::replacement::Module;
use xenstore_stubdom::proto::stream;

/// What C xenstored 4.17 knew with one guest: a stream with rings in it.
const STREAM: &[u8] = include_bytes!("../../../tests/streams/real-c-4.17-with-guest.bin");
const RUNS: u64 = info::HVM_GUEST | info::XS_DOMAIN;

fn shut(reason: u32) -> u64 {
    RUNS | info::SHUTDOWN | u64::from(reason) << info::SHUTDOWN_REASON
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Domain {
    flags: u64,
    serves: bool,
    /// Which of all that were ever built.
    serial: u32,
    is_rehearsal: bool,
}

#[derive(Default)]
struct Fake {
    domains: BTreeMap<u16, Domain>,
    answer: Option<Result<String, String>>,
    kept: Option<Saved>,
    lines: Vec<String>,
    now: Duration,
    built: u32,
    /// The console daemon runs.
    console: bool,
    /// The wish was taken back so often.
    taken_back: u32,
    /// Nodes were written.
    noted: Option<Sizes>,
    /// What fails, and how often.
    fails: Option<(&'static str, u32)>,
    /// The state has so many bytes more each time that it is taken, from the second time on.
    grows: usize,
    taken: usize,
    /// A rehearsal was left behind, and cleared away.
    cleared: u32,
    /// Something maps memory of domain 1 until then.
    mapped_until: Duration,
}

fn fake() -> Fake {
    let old = Domain { flags: RUNS, serves: true, serial: 0, is_rehearsal: false };
    Fake { domains: BTreeMap::from([(1, old)]), console: true, ..Fake::default() }
}

impl Fake {
    /// Whether this call is to fail.
    fn try_to(&mut self, what: &str) -> Result<(), String> {
        match &mut self.fails {
            Some((part, left)) if *part == what && *left > 0 => {
                *left -= 1;
                Err(format!("no {what}"))
            }
            _ => Ok(()),
        }
    }

    fn domain(&mut self, domid: u16) -> &mut Domain {
        self.domains.get_mut(&domid).expect("no such domain")
    }

    fn told(&self, part: &str) -> bool {
        self.lines.iter().any(|line| line.contains(part))
    }

    /// The old domain goes on, and nothing else has changed.
    fn nothing_happened(&self) {
        assert_eq!(self.domains.keys().collect::<Vec<_>>(), [&1]);
        let old = self.domains[&1];
        assert_eq!((old.serial, old.flags, old.serves), (0, RUNS, true), "{:#?}", self.lines);
        assert!(self.console && self.kept.is_none() && self.noted.is_none());
    }
}

impl Host for Fake {
    fn info(&mut self, domid: u16) -> Result<Option<Details>, String> {
        if self.now >= self.mapped_until {
            self.domains.retain(|_, domain| domain.flags & info::DYING == 0);
        }
        let new = NewDomain { label: 7, handle: [9; 16] };
        Ok(self.domains.get(&domid).map(|domain| Details {
            flags: domain.flags,
            new,
            pages: 8 * MIB + 8,
            max_pages: 64 * MIB + 8,
        }))
    }
    fn ask(&mut self, domid: u16, handover: u32) -> Result<(), String> {
        assert_eq!((domid, handover), (1, *HANDOVER.end()));
        match self.try_to("ask") {
            Ok(()) => self.domain(1).flags = shut(SHUTDOWN_SUSPEND),
            Err(why) => self.answer = Some(Ok(why)),
        }
        Ok(())
    }
    fn take_back(&mut self, domid: u16) {
        assert_eq!(domid, 1);
        self.taken_back += 1;
    }
    fn ignore_signals(&mut self) {}
    fn answer(&mut self) -> Option<Result<String, String>> {
        self.answer.take()
    }
    fn offer(&mut self, domid: u16) -> Result<(Offer, Vec<u8>), String> {
        self.try_to("offer")?;
        assert_eq!((domid, self.domain(1).flags), (1, shut(SHUTDOWN_SUSPEND)));
        let mut bytes = STREAM.to_vec();
        let private_len = 7 + self.taken * self.grows;
        self.taken += 1;
        bytes.extend(b"private");
        bytes.resize(STREAM.len() + private_len, 0);
        let mut digest = Digest::of(&bytes);
        if self.try_to("digest").is_err() {
            digest ^= 1;
        }
        bytes.extend(b"--event 3");
        let stream_len = STREAM.len() as u64;
        let private_len = private_len as u64;
        Ok((Offer { region: 5, stream_len, private_len, line_len: 9, digest }, bytes))
    }
    fn peer(&mut self, domid: u16, port: u32) -> Result<Option<(u16, u32)>, String> {
        self.try_to("peer")?;
        assert_eq!(domid, 1);
        let other = Reader::new(STREAM).unwrap().find_map(|record| match record {
            Ok(Record::Connection(stream::Connection {
                endpoint: Endpoint::Ring { domid, port: own, .. },
                ..
            })) if own.0 == port => Some(domid.0),
            _ => None,
        });
        let other = other.unwrap();
        if other == 0 && self.try_to("port of dom0").is_err() {
            return Ok(None);
        }
        Ok(Some((other, port + 100)))
    }
    fn resume(&mut self, domid: u16) -> Result<(), String> {
        self.domain(domid).flags = RUNS;
        self.answer = Some(Ok("it goes on".to_owned()));
        Ok(())
    }
    fn destroy(&mut self, domid: u16) -> Result<(), String> {
        if domid == 1 {
            self.try_to("destroy")?;
            self.domain(1).flags |= info::DYING;
        } else {
            self.domains.remove(&domid);
        }
        Ok(())
    }
    fn build(
        &mut self,
        wanted: Option<u16>,
        new: &NewDomain,
        _: Sizes,
        contents: &Contents,
    ) -> Result<u16, String> {
        self.try_to(if wanted.is_none() { "rehearsal's domain" } else { "domain" })?;
        let handle = if wanted.is_none() { REHEARSAL_HANDLE } else { [9; 16] };
        assert_eq!(*new, NewDomain { label: 7, handle });
        let module = contents.bytes.chunks(4096).position(Module::is_one).unwrap() * 4096;
        let module = Module::find(&contents.bytes[module..]).unwrap();
        assert!(module.is_whole() && module.private.starts_with(b"private"));
        self.built += 1;
        let domid = wanted.unwrap_or(9);
        let is_rehearsal = module.head.is_rehearsal;
        assert_eq!(is_rehearsal, wanted.is_none());
        let flags = RUNS | info::PAUSED;
        let built = Domain { flags, serves: false, serial: self.built, is_rehearsal };
        assert!(self.domains.insert(domid, built).is_none(), "domid {domid} is taken");
        Ok(domid)
    }
    fn unpause(&mut self, domid: u16) -> Result<(), String> {
        let is_rehearsal = self.domain(domid).is_rehearsal;
        let (flags, serves) = match is_rehearsal {
            true if self.try_to("rehearsal").is_ok() => (shut(SHUTDOWN_POWEROFF), false),
            false if self.try_to("start").is_ok() => (RUNS, true),
            _ => (shut(3), false),
        };
        if serves && self.try_to("answer").is_ok() {
            self.answer = Some(Ok("OK".to_owned()));
        }
        let domain = self.domain(domid);
        (domain.flags, domain.serves) = (flags, serves);
        Ok(())
    }
    fn clear(&mut self) -> Result<(), String> {
        self.cleared += 1;
        self.try_to("clear")
    }
    fn hear(&mut self, domid: u16) -> Result<(), String> {
        assert_eq!(domid, 1);
        Ok(())
    }
    fn serves(&mut self, domid: u16) -> Result<bool, String> {
        self.try_to("look")?;
        Ok(self.domain(domid).serves)
    }
    fn last_words(&mut self, _: u16) -> String {
        "panic: it cannot take over".to_owned()
    }
    fn stop_console(&mut self) -> Result<(), String> {
        self.try_to("console")?;
        self.console = false;
        Ok(())
    }
    fn start_console(&mut self) {
        self.console = true;
    }
    fn keep(&mut self, saved: Option<&Saved>) -> Result<(), String> {
        self.try_to("keep")?;
        self.kept = saved.cloned();
        Ok(())
    }
    fn note(&mut self, domid: u16, sizes: Sizes) -> Result<(), String> {
        assert!(self.domain(domid).serves);
        self.try_to("note")?;
        self.noted = Some(sizes);
        Ok(())
    }
    fn now(&self) -> Duration {
        self.now
    }
    fn sleep(&mut self, time: Duration) {
        self.now += time;
    }
    fn say(&mut self, line: String) {
        self.lines.push(line);
    }
}

fn plan() -> Plan {
    let image = crate::builder::tests::file();
    Plan { image, memory: None, maxmem: None, only_rehearse: false }
}

#[test]
fn another_domain_serves_under_the_same_domid() {
    let mut host = fake();
    replace(&mut host, 1, &plan()).unwrap();
    let new = host.domains[&1];
    assert_eq!((new.serial, new.flags, new.serves), (2, RUNS, true));
    assert_eq!((host.domains.len(), host.console, host.kept.is_none()), (1, true, true));
    assert_eq!(host.noted, Some(Sizes { memory: 8, maxmem: 64 }));
    assert!(host.told("rehearsed in") && host.told("is another one and serves"));
}

#[test]
fn a_rehearsal_alone_changes_nothing() {
    let mut host = fake();
    replace(&mut host, 1, &Plan { only_rehearse: true, ..plan() }).unwrap();
    host.nothing_happened();
    assert_eq!(host.built, 1);
}

#[test]
fn whatever_fails_before_the_old_one_is_destroyed_leaves_it() {
    let parts = [
        "clear",
        "ask",
        "offer",
        "digest",
        "peer",
        "port of dom0",
        "rehearsal's domain",
        "rehearsal",
        "console",
        "keep",
        "destroy",
    ];
    for part in parts {
        let mut host = fake();
        host.fails = Some((part, 1));
        let why = replace(&mut host, 1, &plan()).unwrap_err();
        assert_eq!(host.fails, Some((part, 0)), "{why}");
        host.nothing_happened();
    }
    for plan in [
        Plan { memory: Some(2), ..plan() },
        Plan { memory: Some(8), maxmem: Some(4), ..plan() },
        Plan { image: b"nothing".to_vec(), ..plan() },
    ] {
        let mut host = fake();
        replace(&mut host, 1, &plan).unwrap_err();
        host.nothing_happened();
    }
}

#[test]
fn a_domain_that_is_not_well_is_not_replaced() {
    let hopeless = [RUNS | info::DYING, RUNS | info::PAUSED, shut(3), info::XS_DOMAIN];
    for flags in hopeless {
        let mut host = fake();
        host.mapped_until = Duration::MAX;
        host.domain(1).flags = flags;
        replace(&mut host, 1, &plan()).unwrap_err();
        assert_eq!((host.domain(1).flags, host.built), (flags, 0));
    }
    assert!(replace(&mut fake(), 2, &plan()).unwrap_err().contains("no domain 2"));
}

#[test]
fn a_new_one_that_fails_is_built_again() {
    for part in ["domain", "start"] {
        let mut host = fake();
        host.fails = Some((part, 2));
        replace(&mut host, 1, &plan()).unwrap();
        assert!(host.domains[&1].serves && host.told("try 2 of 5"));
        // What is in the way for a while is waited for.
        assert!(host.now >= Duration::from_millis(500));
        // For good, and then by hand.
        let mut host = fake();
        host.fails = Some((part, 5));
        assert!(replace(&mut host, 1, &plan()).unwrap_err().contains("--again"));
        assert!(!host.domains.get(&1).is_some_and(|domain| domain.serves));
        let saved = host.kept.clone().unwrap();
        again(&mut host, &saved).unwrap();
        assert!(host.domains[&1].serves && host.kept.is_none() && host.console);
    }
}

#[test]
fn a_domid_that_is_not_free_yet_is_waited_for() {
    let mut host = fake();
    host.mapped_until = Duration::from_secs(2);
    replace(&mut host, 1, &plan()).unwrap();
    assert!(host.domains[&1].serves && host.now >= Duration::from_secs(2));
    let mut host = fake();
    host.mapped_until = Duration::from_secs(60);
    assert!(replace(&mut host, 1, &plan()).unwrap_err().contains("still maps its memory"));
    let saved = host.kept.clone().unwrap();
    host.now = Duration::from_secs(60);
    again(&mut host, &saved).unwrap();
    assert!(host.domains[&1].serves);
}

#[test]
fn again_knows_what_it_finds() {
    let mut host = fake();
    host.fails = Some(("domain", 5));
    replace(&mut host, 1, &plan()).unwrap_err();
    let saved = host.kept.clone().unwrap();
    let with = |flags, serves| {
        let mut host = fake();
        host.kept = Some(saved.clone());
        (host.domain(1).flags, host.domain(1).serves) = (flags, serves);
        host
    };
    // The old one, which was not destroyed yet.
    let mut host = with(shut(SHUTDOWN_SUSPEND), true);
    again(&mut host, &saved).unwrap();
    host.nothing_happened();
    // The new one, which serves already.
    let mut host = with(RUNS, true);
    again(&mut host, &saved).unwrap();
    assert_eq!((host.built, host.kept.is_none(), host.noted), (0, true, Some(saved.sizes)));
    // The new one before it could serve, or before it could run.
    for flags in [RUNS | info::PAUSED, shut(3)] {
        let mut host = with(flags, false);
        again(&mut host, &saved).unwrap();
        assert_eq!((host.built, host.domains[&1].serves), (1, true));
    }
    // One of which nothing can be found out: it may serve.
    let mut host = with(RUNS, true);
    host.fails = Some(("look", 1));
    again(&mut host, &saved).unwrap_err();
    assert_eq!((host.built, host.domains[&1].serial, host.kept.is_some()), (0, 0, true));
    // Somebody else, who has got the domid meanwhile.
    let mut host = with(RUNS, false);
    let other = Saved { new: NewDomain { label: 7, handle: [8; 16] }, ..saved.clone() };
    assert!(again(&mut host, &other).unwrap_err().contains("another one"));
    assert_eq!((host.built, host.domains[&1].flags), (0, RUNS));
    // A console daemon that does not end is not in the way.
    let mut host = with(RUNS | info::PAUSED, false);
    host.fails = Some(("console", 1));
    again(&mut host, &saved).unwrap();
    assert!(host.domains[&1].serves);
}

#[test]
fn a_store_that_did_not_stop_is_not_left_with_the_wish() {
    let mut host = fake();
    host.fails = Some(("ask", 1));
    replace(&mut host, 1, &plan()).unwrap_err();
    assert_eq!(host.taken_back, 1);
}

#[test]
fn a_new_domain_that_serves_is_not_forgotten_for_what_the_store_says_of_it() {
    let mut host = fake();
    host.fails = Some(("note", 1));
    replace(&mut host, 1, &plan()).unwrap();
    assert!(host.domains[&1].serves && host.kept.is_none() && host.told("could not be written"));
}

#[test]
fn a_state_that_grows_is_rehearsed_again() {
    // By less than there was room for.
    let mut host = Fake { grows: 30_000, ..fake() };
    replace(&mut host, 1, &plan()).unwrap();
    assert_eq!((host.built, host.taken), (2, 2));
    // By more, and then not any more.
    let mut host = Fake { grows: 40_000, ..fake() };
    let why = replace(&mut host, 1, &plan()).unwrap_err();
    assert!(why.contains("3 times"), "{why}");
    // Each larger state was rehearsed but the last, and the old domain goes on.
    assert_eq!((host.built, host.taken), (3, 4));
    host.nothing_happened();
}

#[test]
fn a_rehearsal_has_room_for_what_may_come() {
    let state = State {
        ports: Vec::new(),
        stream_len: 100_000,
        private_len: 0,
        digest: 0,
        bytes: vec![1; 100_000],
        line: Vec::new(),
    };
    let (real, rehearsed) = (state.module(false).len(), state.module(true).len());
    assert_eq!(rehearsed - real, 8 * growth(100_000));
}

#[test]
fn it_is_not_said_to_serve_before_dom0_is_answered() {
    let mut host = fake();
    host.fails = Some(("answer", 1));
    let why = replace(&mut host, 1, &plan()).unwrap_err();
    assert!(why.contains("has not answered dom0") && !host.told("and serves"), "{why}");
    // The guard finds it serving, or it is called again.
    let saved = host.kept.clone().unwrap();
    again(&mut host, &saved).unwrap();
    assert_eq!((host.domains[&1].serial, host.kept.is_none()), (2, true));
}
