//! Requests that make many levels: in slices, with others in between.

use super::*;

/// Enough levels that they are made in slices.
const LEVELS: usize = 200;

fn deep(below: &str) -> String {
    format!("{below}{}", "/l".repeat(LEVELS))
}

/// Begins a request of domain 1 that makes them, and takes so many steps of it.
fn begin(w: &mut World, conn: ConnId, path: &str, steps: usize) {
    let caller = Caller { conn, tx: TxId::NONE };
    let (store, post) = (&mut w.store, &mut w.post);
    let begun = store.write(caller, path.as_bytes(), b"value", &mut Budget::new(1), post);
    assert_eq!(begun, Ok(Progress::More));
    for _ in 0..steps {
        assert_eq!(w.store.go_on(conn, &mut Budget::new(1), &mut w.post), Progress::More);
        assert_eq!(inspected(&w.store), [""; 0]);
    }
}

/// The rest of it; the error that it came to.
fn end(w: &mut World, conn: ConnId) -> Option<XsError> {
    while w.store.go_on(conn, &mut Budget::new(1), &mut w.post) == Progress::More {
        assert_eq!(inspected(&w.store), [""; 0]);
    }
    w.store.take_failure(conn)
}

#[test]
fn all_levels_come_at_once_and_are_told_once() {
    for units in [1, 500, 20_000, u64::MAX] {
        let mut w = World::new();
        w.slice = units;
        w.watch(A, "x", "t");
        w.write(A, 0, &deep("x"), "value").unwrap();
        assert_eq!(w.read(A, 0, &deep("x")).unwrap(), "value");
        assert_eq!(w.read(A, 0, "x/l/l").unwrap(), "");
        assert_eq!(w.events(), [format!("1:{}:t", deep("x"))]);
        // With its home and `x`.
        assert_eq!(w.nodes_of(1) as usize, LEVELS + 2);
        w.mkdir(A, 0, &deep("y")).unwrap();
        assert_eq!(w.read(A, 0, &deep("y")).unwrap(), "");
        w.rm(A, 0, "x").unwrap();
        w.rm(A, 0, "y").unwrap();
        assert_eq!(w.nodes_of(1), 1);
    }
}

/// A request of domain 0 that is done at once, while others go on.
fn meanwhile(
    w: &mut World,
    act: impl FnOnce(&mut Store, Caller, &mut Budget, &mut Letters) -> Result<Progress, XsError>,
) {
    let caller = Caller { conn: DOM0, tx: TxId::NONE };
    let done = act(&mut w.store, caller, &mut Budget::endless(), &mut w.post);
    assert_eq!(done, Ok(Progress::Done));
}

fn write(w: &mut World, path: &str, value: &str) {
    meanwhile(w, |s, caller, budget, post| {
        s.write(caller, path.as_bytes(), value.as_bytes(), budget, post)
    });
}

fn rm(w: &mut World, path: &str) {
    meanwhile(w, |s, caller, budget, post| s.rm(caller, path.as_bytes(), budget, post));
}

#[test]
fn nobody_sees_a_part() {
    let mut w = World::new();
    w.write(A, 0, "x", "").unwrap();
    begin(&mut w, A, &deep("x"), LEVELS);
    assert_eq!(w.list(DOM0, 0, "/local/domain/1/x").unwrap(), "");
    // What others make beside it, in the same directory, does not disturb it.
    write(&mut w, "/local/domain/1/x/other", "");
    assert_eq!(end(&mut w, A), None);
    assert_eq!(w.list(A, 0, "x").unwrap(), "other l");
    assert_eq!(w.read(A, 0, &deep("x")).unwrap(), "value");
}

#[test]
fn what_others_do_meanwhile_comes_first() {
    const X: &str = "/local/domain/1/x";
    let acts: [fn(&mut World); 4] = [
        // The directory is gone, and is made again by the request.
        |w| rm(w, X),
        // Another one is in its place.
        |w| {
            rm(w, X);
            write(w, X, "another");
        },
        // A part of the levels is there.
        |w| write(w, "/local/domain/1/x/l/l/other", ""),
        // The guest has no right any more.
        |w| {
            meanwhile(w, |s, caller, budget, post| {
                s.set_perms(caller, X.as_bytes(), &entries("n0"), budget, post)
            });
        },
    ];
    for steps in [0, 1, LEVELS - 1] {
        for (at, act) in acts.into_iter().enumerate() {
            let mut w = World::new();
            w.write(DOM0, 0, X, "").unwrap();
            begin(&mut w, A, &deep("x"), steps);
            act(&mut w);
            let expected = (at == 3).then_some(XsError::EACCES);
            assert_eq!(end(&mut w, A), expected, "act {at} after {steps} steps");
            let found = w.read(DOM0, 0, &format!("/local/domain/1/{}", deep("x"))).ok();
            assert_eq!(found.as_deref(), expected.is_none().then_some("value"), "act {at}");
        }
    }
}

#[test]
fn who_is_refused_or_goes_leaves_nothing() {
    for steps in [0, 1, 100, LEVELS] {
        let mut w = World::new();
        begin(&mut w, A, &deep("x"), steps);
        assert_eq!(w.store.still_to_make(A), LEVELS + 1 - steps);
        w.store.make_no_more(A);
        assert_eq!(w.store.still_to_make(A), 0);
        assert_eq!(end(&mut w, A), Some(XsError::ENOMEM));
        assert_eq!((w.nodes_of(1), w.read(A, 0, "x")), (1, Err(XsError::ENOENT)));
        begin(&mut w, A, &deep("x"), steps);
        w.store.disconnect(A);
        w.settle();
        assert_eq!(
            (w.nodes_of(1), w.read(DOM0, 0, "/local/domain/1/x")),
            (1, Err(XsError::ENOENT))
        );
    }
}

#[test]
fn an_owner_that_dies_meanwhile_owns_nothing() {
    let path = deep("/local/domain/1/x");
    for steps in [0, 1, 100, LEVELS] {
        let mut w = World::new();
        begin(&mut w, DOM0, &path, steps);
        w.store.disconnect(A);
        w.store.forget(DomId(1));
        while w.store.go_on_deaths(&mut Budget::new(1), &mut w.post) == Progress::More {
            assert_eq!(inspected(&w.store), [""; 0]);
        }
        assert!(!w.store.knows(DomId(1)));
        // The same domid again, for somebody else.
        w.store.learn(DomId(1)).unwrap();
        assert_eq!(end(&mut w, DOM0), None);
        assert_eq!(w.nodes_of(1), 0);
        assert_eq!(w.store.perms_text(path.as_bytes()), "n0");
    }
}

#[test]
fn what_is_handed_over_is_brought_to_its_end() {
    let mut w = World::new();
    begin(&mut w, A, &deep("x"), 100);
    w.store.finish(&mut w.post);
    assert!(w.store.is_idle());
    w.store = hand_over(&w.store);
    assert_eq!(w.read(A, 0, &deep("x")).unwrap(), "value");
}
