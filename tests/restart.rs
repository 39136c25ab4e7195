//! The server fails at every place where it calls the world, in the middle of every kind of request. It goes on,
//! the request is answered, and the state is the one before the request or the one after it.

extern crate alloc;

use alloc::collections::BTreeMap;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::Pass;
use xenstore_stubdom::sim::{Client, Simulation};

/// More calls than any of the requests below makes.
const CALLS_MAX: u32 = 400;

struct Scene {
    simulation: Simulation,
    dom0: Client,
    guest: Client,
}

impl Scene {
    /// A host with a guest, nodes, watches and an open transaction, number 1 of the guest.
    fn new() -> Self {
        Self::with("--test-failures")
    }

    fn with(options: &str) -> Self {
        let (mut simulation, mut dom0) = Simulation::start(options);
        for domid in [7, 8] {
            let port = simulation.world.create(DomId(domid));
            let introduced = simulation.ask(
                &mut dom0,
                Kind::Introduce,
                0,
                format!("{domid}\x001\0{port}\0").as_bytes(),
            );
            assert_eq!(introduced.last().unwrap().payload, b"OK\0");
        }
        // One that is not introduced yet, and a second port of one that is.
        simulation.world.create(DomId(9));
        simulation.world.offer(DomId(8));
        let guest = simulation.client(DomId(7));
        let mut scene = Self { simulation, dom0, guest };
        for (kind, tx, payload) in [
            (Kind::Mkdir, 0, "/guest\0"),
            (Kind::SetPerms, 0, "/guest\0n7\0r8\0"),
            (Kind::Write, 0, "/tree/a/b\0value"),
            (Kind::Write, 0, "/tree/a/c\0value"),
            (Kind::Watch, 0, "/tree\0of-dom0\0"),
            (Kind::Watch, 0, "@releaseDomain\0gone\0"),
        ] {
            scene.must(false, kind, tx, payload);
        }
        for (kind, tx, payload) in [
            (Kind::Write, 0, "/guest/x/y\0mine"),
            (Kind::Watch, 0, "/guest\0of-guest\0"),
            (Kind::Watch, 0, "/guest/x\0of-guest\0"),
            (Kind::TransactionStart, 0, "\0"),
            (Kind::Write, 1, "/guest/in/tx\0new"),
            (Kind::Rm, 1, "/guest/x\0"),
        ] {
            scene.must(true, kind, tx, payload);
        }
        scene
    }

    fn ask(&mut self, by_guest: bool, kind: Kind, tx: u32, payload: &str) -> Vec<u8> {
        let client = if by_guest { &mut self.guest } else { &mut self.dom0 };
        let messages = self.simulation.ask(client, kind, tx, payload.as_bytes());
        reply(messages).expect("a reply")
    }

    fn must(&mut self, by_guest: bool, kind: Kind, tx: u32, payload: &str) {
        let reply = self.ask(by_guest, kind, tx, payload);
        assert!(!reply.starts_with(b"E"), "{kind:?}: {}", reply.escape_ascii());
    }

    /// All nodes, with their values and permissions.
    fn tree(&mut self) -> BTreeMap<String, (Vec<u8>, Vec<u8>)> {
        let mut tree = BTreeMap::new();
        let mut open = vec!["/".to_owned()];
        while let Some(path) = open.pop() {
            let names = self.ask(false, Kind::Directory, 0, &format!("{path}\0"));
            let value = self.ask(false, Kind::Read, 0, &format!("{path}\0"));
            let perms = self.ask(false, Kind::GetPerms, 0, &format!("{path}\0"));
            for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let name = String::from_utf8_lossy(name);
                open.push(format!("{}/{name}", path.trim_end_matches('/')));
            }
            tree.insert(path, (value, perms));
        }
        tree
    }
}

/// The reply among messages; events are watched for elsewhere.
fn reply(messages: Vec<xenstore_stubdom::sim::Message>) -> Option<Vec<u8>> {
    let is_event = |kind| kind == Kind::WatchEvent.number();
    messages.into_iter().rev().find(|m| !is_event(m.header.kind)).map(|m| m.payload)
}

/// Who asks for what: whether it is the guest, the type, the transaction, the payload.
const REQUESTS: [(bool, Kind, u32, &str); 30] = [
    (true, Kind::Write, 0, "/guest/one\0value"),
    (true, Kind::Write, 0, "/guest/a/b/c/d/e\0value"),
    (true, Kind::Write, 0, "/guest/x/y\0another"),
    (true, Kind::Mkdir, 0, "/guest/new/dir\0"),
    (true, Kind::Rm, 0, "/guest/x\0"),
    (true, Kind::SetPerms, 0, "/guest/x\0n7\0b8\0"),
    (true, Kind::Read, 0, "/guest/x/y\0"),
    (true, Kind::Directory, 0, "/guest\0"),
    (true, Kind::GetPerms, 0, "/guest\0"),
    (true, Kind::Watch, 0, "/guest/x/y\0more\0"),
    (true, Kind::Unwatch, 0, "/guest\0of-guest\0"),
    (true, Kind::TransactionStart, 0, "\0"),
    (true, Kind::Write, 1, "/guest/in/more\0value"),
    (true, Kind::Rm, 1, "/guest/in\0"),
    (true, Kind::TransactionEnd, 1, "T\0"),
    (true, Kind::TransactionEnd, 1, "F\0"),
    (true, Kind::Write, 0, "/tree/not/mine\0value"),
    (false, Kind::Rm, 0, "/tree\0"),
    (false, Kind::Write, 0, "/tree/a/b\0another"),
    (false, Kind::Release, 0, "7\0"),
    (false, Kind::Release, 0, "8\0"),
    (false, Kind::Introduce, 0, "9\x001\x0010\0"),
    (false, Kind::Introduce, 0, "8\x001\x0011\0"),
    (false, Kind::SetPerms, 0, "/tree\0n9\0r8\0"),
    (true, Kind::ResetWatches, 0, "\0"),
    (false, Kind::Control, 0, "quota\0max\0"),
    (false, Kind::SetTarget, 0, "8\x007\0"),
    (false, Kind::Control, 0, "check\0"),
    (false, Kind::Control, 0, "stats\0"),
    (false, Kind::Control, 0, "quota\0max\0"),
];

/// Fails at each call of one request; says at how many.
fn fail_everywhere(request: (bool, Kind, u32, &str)) -> u32 {
    let (by_guest, kind, tx, payload) = request;
    let mut scene = Scene::new();
    let before = scene.tree();
    let good = scene.ask(by_guest, kind, tx, payload);
    let after = scene.tree();
    for calls in 0..CALLS_MAX {
        let mut scene = Scene::new();
        scene.simulation.world.set_failure(Some(calls));
        let Scene { simulation, dom0, guest } = &mut scene;
        let client = if by_guest { guest } else { dom0 };
        let domid = DomId(if by_guest { 7 } else { 0 });
        let signals = simulation.world.signals(domid);
        let asked = catch_unwind(AssertUnwindSafe(|| {
            reply(simulation.ask(client, kind, tx, payload.as_bytes()))
        }));
        let place = format!("{kind:?} {payload:?}, failure at call {calls}");
        let answer = match asked {
            Ok(answer) => {
                assert!(simulation.world.has_failure(), "{place}: it was lost");
                simulation.world.set_failure(None);
                assert!(payload == "stats\0" || answer.as_ref() == Some(&good), "{place}");
                assert!(calls > 0, "{place}: nothing was tried");
                return calls;
            }
            Err(_) => {
                simulation.go_on().unwrap_or_else(|why| panic!("{place}: {why}"));
                let messages = simulation.drain(client);
                let is_event = |kind| kind == Kind::WatchEvent.number();
                let replies = messages.iter().filter(|m| !is_event(m.header.kind)).count();
                assert!(replies <= 1, "{place}: {replies} replies");
                // A client that waits for its reply sleeps.
                assert!(simulation.world.signals(domid) > signals, "{place}: nobody was signalled");
                reply(messages)
            }
        };
        if kind != Kind::Release || payload != "7\0" {
            let answer = answer.unwrap_or_else(|| panic!("{place}: no reply"));
            let shown = answer.escape_ascii();
            let is_good = answer == good || payload == "stats\0" && answer.starts_with(b"image");
            assert!(is_good || answer == b"EIO\0", "{place}: the reply {shown}");
        }
        let now = scene.tree();
        assert!(now == before || now == after, "{place}: neither before nor after: {now:#?}");
        scene.simulation.server.check().unwrap_or_else(|findings| panic!("{place}: {findings}"));
        // It goes on for everybody.
        scene.must(false, Kind::Write, 0, "/afterwards\0works");
        let answer = scene.ask(by_guest, kind, tx, payload);
        assert_ne!(answer, b"EIO\0", "{place}");
        scene.simulation.hand_over().unwrap_or_else(|why| panic!("{place}: {why}"));
    }
    panic!("{kind:?} {payload:?} makes more than {CALLS_MAX} calls");
}

#[test]
fn a_failure_costs_the_request_that_was_handled_and_nothing_else() {
    std::panic::set_hook(Box::new(|_| {}));
    let places: Vec<_> =
        REQUESTS.iter().map(|request| catch_unwind(|| fail_everywhere(*request))).collect();
    drop(std::panic::take_hook());
    let mut count = 0;
    let mut findings = Vec::new();
    for place in places {
        match place {
            Ok(places) => count += places,
            Err(why) => findings.push(why.downcast_ref::<String>().cloned().unwrap_or_default()),
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    assert!(count > 60, "only {count} places");
}

/// A live update is asked for, and the server fails when that is noted already but the request is still being handled: two
/// parts of it know of the request, and it gets one reply.
#[test]
fn a_request_that_is_known_twice_gets_one_reply() {
    std::panic::set_hook(Box::new(|_| {}));
    let all = catch_unwind(|| {
        let mut errors = 0;
        for calls in 0..CALLS_MAX {
            let mut scene = Scene::new();
            for request in ["log\0on\0", "log\0+io\0", "live-update\0-b\x004\0"] {
                scene.must(false, Kind::Control, 0, request);
            }
            scene.must(false, Kind::Control, 0, "live-update\0-d\x004\0\x7fELF\0");
            scene.simulation.world.set_failure(Some(calls));
            let Scene { simulation, dom0, .. } = &mut scene;
            let asked = catch_unwind(AssertUnwindSafe(|| {
                simulation.ask(dom0, Kind::Control, 0, b"live-update\0-s\0")
            }));
            let failed = asked.is_err();
            let messages = asked.unwrap_or_else(|_| {
                simulation.go_on().unwrap_or_else(|why| panic!("call {calls}: {why}"));
                simulation.drain(dom0)
            });
            let replies: Vec<_> =
                messages.iter().filter(|m| m.header.kind != Kind::WatchEvent.number()).collect();
            assert_eq!(replies.len(), 1, "call {calls}: {replies:?}");
            errors += u32::from(failed && replies[0].payload == b"EIO\0");
            scene.simulation.world.set_failure(None);
            scene.must(false, Kind::Write, 0, "/afterwards\0works");
            scene.simulation.server.check().unwrap();
            if !failed {
                return errors;
            }
        }
        panic!("more than {CALLS_MAX} calls");
    });
    drop(std::panic::take_hook());
    match all {
        Ok(errors) => assert!(errors > 3, "only {errors} failures"),
        Err(why) => panic!("{}", why.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

/// Whether the server goes on after it has failed in the middle of a request of the guest.
fn goes_on_after_a_request(scene: &mut Scene) -> bool {
    scene.simulation.world.set_failure(Some(3));
    let Scene { simulation, guest, .. } = scene;
    let asked = catch_unwind(AssertUnwindSafe(|| {
        reply(simulation.ask(guest, Kind::Write, 0, b"/guest/one\0value"))
    }));
    assert!(asked.is_err(), "it has not failed");
    simulation.go_on().is_ok()
}

/// A guest that makes the server fail gains nothing: the second time it loses its connection, and others keep theirs.
#[test]
fn who_makes_the_server_fail_again_and_again_is_given_up() {
    let mut scene = Scene::with("");
    assert!(goes_on_after_a_request(&mut scene));
    scene.must(true, Kind::Read, 0, "/guest\0");
    scene.simulation.sleep(61_000);
    assert!(goes_on_after_a_request(&mut scene), "that was long ago");
    scene.must(true, Kind::Read, 0, "/guest\0");
    assert!(goes_on_after_a_request(&mut scene));
    let asked = scene.simulation.ask(&mut scene.guest, Kind::Read, 0, b"/guest\0");
    assert!(asked.is_empty() || asked[0].payload == b"EIO\0", "it is still served: {asked:?}");
    scene.must(false, Kind::Write, 0, "/afterwards\0works");
    scene.simulation.server.check().unwrap();
}

/// The server fails while the privileged domain is served, `times` times.
fn fails_for_dom0(scene: &mut Scene, times: usize) {
    for _ in 0..times {
        scene.simulation.world.set_failure(Some(1));
        let Scene { simulation, dom0, .. } = scene;
        let asked = catch_unwind(AssertUnwindSafe(|| {
            reply(simulation.ask(dom0, Kind::Write, 0, b"/one\0value"))
        }));
        assert!(asked.is_err(), "it has not failed");
        simulation.go_on().unwrap();
        let answer = reply(simulation.drain(dom0));
        assert_eq!(answer.as_deref(), Some(&b"EIO\0"[..]));
    }
}

/// What may be the cause is not kept for ever: at the third failure for which no guest is to blame, transactions and the
/// events that wait are given up, and nobody is left without a sign of that.
#[test]
fn the_third_failure_with_nobody_to_blame_costs_transactions_and_events() {
    for failures in [2, 3] {
        let mut scene = Scene::with("");
        scene.must(false, Kind::Mkdir, 0, "/one\0");
        // More events than the guest's ring has room for.
        scene.must(false, Kind::SetPerms, 0, "/one\0n0\0r7\0");
        scene.must(true, Kind::Watch, 0, "/one\0of-guest\0");
        for n in 0..60 {
            scene.must(false, Kind::Write, 0, &format!("/one/{n}\0"));
        }
        fails_for_dom0(&mut scene, failures);
        scene.simulation.server.check().unwrap();
        let Scene { simulation, guest, .. } = &mut scene;
        let told: Vec<_> = simulation.drain(guest).into_iter().map(|m| m.payload).collect();
        let news = told.iter().filter(|event| event.starts_with(b"/one/")).count();
        let [of_guest, of_x] = [&b"/guest\0of-guest\0"[..], &b"/guest/x\0of-guest\0"[..]]
            .map(|event| told.iter().filter(|told| *told == event).count());
        if failures == 2 {
            assert_eq!((of_guest, of_x), (0, 0));
            assert_eq!(news, 60);
        } else {
            assert_eq!((of_guest, of_x), (1, 1), "each watch is told");
            assert!(news < 60, "{news} events were kept");
        }
        scene.must(true, Kind::Write, 1, "/guest/in/more\0");
        let end = scene.ask(true, Kind::TransactionEnd, 1, "T\0");
        assert_eq!(end, if failures == 2 { &b"OK\0"[..] } else { b"EAGAIN\0" });
        assert_eq!(scene.tree().contains_key("/guest/in/more"), failures == 2);
        scene.must(false, Kind::Read, 0, "/one/59\0");
        scene.must(true, Kind::TransactionStart, 0, "\0");
        scene.must(true, Kind::TransactionEnd, 2, "T\0");
        scene.simulation.server.check().unwrap();
        scene.simulation.hand_over().unwrap();
    }
}

/// What is handed over does not grow with the number of failures.
#[test]
fn nothing_piles_up() {
    let mut scene = Scene::new();
    let mut sizes = Vec::new();
    for n in 0..60 {
        scene.simulation.world.set_failure(Some(n % 6));
        let Scene { simulation, guest, .. } = &mut scene;
        let asked = catch_unwind(AssertUnwindSafe(|| {
            simulation.ask(guest, Kind::Write, 0, b"/guest/one\0value")
        }));
        if asked.is_err() {
            simulation.go_on().unwrap();
        }
        simulation.world.set_failure(None);
        drop(simulation.drain(guest));
        let mut region = Vec::new();
        let version = xenstore_stubdom::proto::stream::Version::Two;
        simulation.server.save(version, 4, &mut region).unwrap();
        sizes.push(region.len());
    }
    assert_eq!(sizes[20], sizes[56], "{sizes:?}");
}

/// Nobody goes on for ever: the fifth failure within a minute is the end.
#[test]
fn too_many_failures_are_the_end() {
    let mut scene = Scene::with("");
    for n in 0..5 {
        scene.simulation.world.set_failure(Some(1));
        let Scene { simulation, dom0, .. } = &mut scene;
        let asked = catch_unwind(AssertUnwindSafe(|| {
            reply(simulation.ask(dom0, Kind::Write, 0, b"/one\0value"))
        }));
        assert!(asked.is_err());
        assert_eq!(simulation.go_on().is_ok(), n < 4, "failure {n}");
    }
}

/// A guest dies, and the server fails at each place where that makes it call the world.
#[test]
fn a_death_that_a_failure_meets_is_brought_to_its_end() {
    std::panic::set_hook(Box::new(|_| {}));
    let all = catch_unwind(|| {
        for calls in 0..CALLS_MAX {
            let mut scene = Scene::new();
            scene.simulation.world.destroy(DomId(7));
            scene.simulation.world.set_failure(Some(calls));
            let Scene { simulation, dom0, .. } = &mut scene;
            let died = catch_unwind(AssertUnwindSafe(|| simulation.drain(dom0)));
            let mut messages = match died {
                Ok(messages) => {
                    assert!(simulation.world.has_failure(), "it was lost");
                    simulation.world.set_failure(None);
                    if calls == 0 {
                        panic!("nothing was tried");
                    }
                    messages
                }
                Err(_) => {
                    simulation.go_on().unwrap_or_else(|why| panic!("call {calls}: {why}"));
                    Vec::new()
                }
            };
            let is_over = !messages.is_empty();
            messages.extend(simulation.drain(dom0));
            let news = messages.iter().filter(|m| m.payload.starts_with(b"@releaseDomain\0"));
            assert_eq!(news.count(), 1, "call {calls}: how often it was told");
            scene.simulation.server.check().unwrap_or_else(|why| panic!("call {calls}: {why}"));
            let read = scene.ask(false, Kind::Read, 0, "/guest/x/y\0");
            assert_eq!(read, b"ENOENT\0", "call {calls}");
            scene.must(false, Kind::Write, 0, "/afterwards\0works");
            if is_over {
                return calls;
            }
        }
        panic!("more than {CALLS_MAX} calls");
    });
    drop(std::panic::take_hook());
    match all {
        Ok(places) => assert!(places > 2, "only {places} places"),
        Err(why) => panic!("{}", why.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

/// Does something in a scene, with a failure at each call that the server makes of the world because of it; looks at the
/// scene afterwards. Says at how many calls.
fn at_each_call(act: impl Fn(&mut Scene), look: impl Fn(&mut Scene, u32)) -> u32 {
    at_each_call_while(act, |simulation| _ = simulation.settle(), look)
}

/// The same, with another way to let the server work.
fn at_each_call_while(
    act: impl Fn(&mut Scene),
    work: impl Fn(&mut Simulation),
    look: impl Fn(&mut Scene, u32),
) -> u32 {
    for calls in 0..CALLS_MAX {
        let mut scene = Scene::new();
        act(&mut scene);
        let simulation = &mut scene.simulation;
        simulation.world.set_failure(Some(calls));
        while simulation
            .survive(&work)
            .unwrap_or_else(|why| panic!("call {calls}: {why}"))
            .is_none()
        {}
        let is_over = simulation.world.has_failure();
        simulation.world.set_failure(None);
        look(&mut scene, calls);
        scene.simulation.server.check().unwrap_or_else(|why| panic!("call {calls}: {why}"));
        scene.must(false, Kind::Write, 0, "/afterwards\0works");
        scene.simulation.hand_over().unwrap_or_else(|why| panic!("call {calls}: {why}"));
        if is_over {
            return calls;
        }
    }
    panic!("more than {CALLS_MAX} calls");
}

fn count(messages: &[xenstore_stubdom::sim::Message], payload: &[u8]) -> usize {
    messages.iter().filter(|message| message.payload == payload).count()
}

/// Two guests shut down, and the server fails while it finds that out: it is told once.
#[test]
fn a_shutdown_that_a_failure_meets_is_told_once() {
    let shut_down = |scene: &mut Scene| {
        for domid in [7, 8] {
            scene.simulation.world.set_shutdown(DomId(domid), true);
        }
    };
    let places = at_each_call(shut_down, |scene, calls| {
        let messages = scene.simulation.drain(&mut scene.dom0);
        assert_eq!(count(&messages, b"@releaseDomain\0gone\0"), 1, "call {calls}");
    });
    assert!(places > 3, "only {places} places");
}

/// A failure while the server tells why a live update has failed: whoever asked for it has an answer.
#[test]
fn who_asks_for_a_live_update_that_fails_has_an_answer() {
    let start = |scene: &mut Scene| {
        scene.must(false, Kind::Control, 0, "live-update\0-b\x004\0");
        scene.must(false, Kind::Control, 0, "live-update\0-d\x004\0\x7fELF\0");
        let payload = b"live-update\0-s\0-t\x0060\0";
        let (bytes, _) = scene.dom0.request(Kind::Control.number(), 0, payload);
        assert_eq!(scene.dom0.write(&bytes), bytes.len());
    };
    let look = |scene: &mut Scene, calls| {
        let messages = scene.simulation.drain(&mut scene.dom0);
        assert_eq!(messages.len(), 1, "call {calls}: {messages:?}");
    };
    let work = |simulation: &mut Simulation| {
        loop {
            match simulation.server.pass() {
                Pass::More => {}
                Pass::Idle(_) => return,
                Pass::HandOver => drop(simulation.fail_to_hand_over()),
            }
        }
    };
    let places = at_each_call_while(start, work, look);
    assert!(places > 1, "only {places} places");
}

/// A guest is given up, and the server fails on the way: it goes on, and keeps no port of it.
#[test]
fn a_guest_that_is_given_up_while_the_server_fails_is_given_up() {
    let endless = |scene: &mut Scene| {
        let header = [2_u32, 1, 0, 1 << 20].map(u32::to_le_bytes).concat();
        assert_eq!(scene.guest.write(&header), header.len());
    };
    let places = at_each_call(endless, |scene, calls| {
        assert_eq!(scene.simulation.world.bound_ports(), 2, "call {calls}");
        let asked = scene.simulation.ask(&mut scene.dom0, Kind::Release, 0, b"7\0");
        assert_eq!(count(&asked, b"OK\0"), 1, "call {calls}");
    });
    assert!(places > 1, "only {places} places");
}
