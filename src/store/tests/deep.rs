//! Requests about paths of many levels, in transactions and about watches: in slices, with others in between.

use super::*;

/// Enough levels for many slices.
const LEVELS: usize = 60;

const SLICES: [u64; 5] = [1, 500, 3_000, 20_000, u64::MAX];

fn deep(below: &str) -> String {
    format!("{below}{}", "/l".repeat(LEVELS))
}

fn caller(conn: ConnId, tx: u32) -> Caller {
    Caller { conn, tx: TxId(tx) }
}

/// One turn of a request of domain 1 in a transaction that writes at a deep path; whether it was begun.
fn ask(w: &mut World, tx: u32, path: &str) -> bool {
    let (budget, post) = (&mut Budget::new(1), &mut w.post);
    let more = w.store.write(caller(A, tx), path.as_bytes(), b"value", budget, post);
    assert_eq!(more, Ok(Progress::More));
    !w.store.is_asked_again(A)
}

#[test]
fn a_transaction_sees_and_makes_levels_in_slices() {
    for units in SLICES {
        let mut w = World::new();
        w.slice = units;
        w.watch(A, "x", "t");
        w.write(A, 0, &deep("old"), "before").unwrap();
        let t = w.start(A);
        assert_eq!(w.read(A, t, &deep("old")).unwrap(), "before");
        assert_eq!(w.list(A, t, &deep("old")).unwrap(), "");
        assert_eq!(w.read(A, t, &deep("none")), Err(XsError::ENOENT));
        w.write(A, t, &deep("x"), "value").unwrap();
        w.write(A, t, &deep("old"), "after").unwrap();
        assert_eq!(w.read(A, t, &deep("x")).unwrap(), "value");
        assert_eq!(w.read(A, t, "x/l/l").unwrap(), "");
        assert_eq!(w.list(A, t, "x/l/l").unwrap(), "l");
        assert_eq!(w.read(A, 0, "x"), Err(XsError::ENOENT));
        assert_eq!(w.end(A, t), Ok(()));
        assert_eq!(w.events(), [format!("1:{}:t", deep("x"))]);
        assert_eq!(w.read(A, 0, &deep("x")).unwrap(), "value");
        assert_eq!(w.read(A, 0, &deep("old")).unwrap(), "after");
        // With its home, `x` and `old`.
        assert_eq!(w.nodes_of(1) as usize, 2 * LEVELS + 3);
    }
}

#[test]
fn what_others_do_on_the_way_is_seen_or_is_a_conflict() {
    // After so many turns the node right below `x` is made anew.
    for turns in (0..4 * LEVELS).step_by(11) {
        let mut w = World::new();
        w.write(A, 0, "x/l", "").unwrap();
        let t = w.start(A);
        let path = deep("x");
        let mut is_begun = (0..turns).any(|_| ask(&mut w, t, &path));
        w.rm(DOM0, 0, "/local/domain/1/x/l").unwrap();
        w.write(DOM0, 0, "/local/domain/1/x/l", "another").unwrap();
        w.perms(DOM0, 0, "/local/domain/1/x/l", "n1").unwrap();
        assert_eq!(inspected(&w.store), [""; 0]);
        // As soon as that was told by an access, it is a conflict; before, it is what the transaction sees.
        let mut asked = 0;
        while !is_begun {
            is_begun = ask(&mut w, t, &path);
            asked += 1;
            assert!(asked < 10 * LEVELS, "it never gets on");
        }
        w.settle();
        assert_eq!(w.store.take_failure(A), None);
        match w.end(A, t) {
            Ok(()) => {
                assert_eq!(w.read(A, 0, &path).unwrap(), "value", "{turns}");
                assert_eq!(w.read(A, 0, "x/l").unwrap(), "another", "{turns}");
            }
            Err(error) => {
                assert_eq!((error, turns > LEVELS), (XsError::EAGAIN, true), "{turns}");
                assert_eq!(w.read(A, 0, "x/l/l"), Err(XsError::ENOENT), "{turns}");
            }
        }
    }
}

#[test]
fn somebody_who_changes_the_way_all_the_time_does_not_keep_it_from_being_gone() {
    let mut w = World::new();
    w.write(A, 0, &deep("x"), "old").unwrap();
    let t = w.start(A);
    for turn in 0..50 * LEVELS {
        if ask(&mut w, t, &deep("x/l")) {
            return w.settle();
        }
        if turn % 2 == 0 {
            w.rm(DOM0, 0, "/local/domain/1/x/l/l").unwrap();
        } else {
            w.write(DOM0, 0, "/local/domain/1/x/l/l/l", "").unwrap();
        }
    }
    panic!("it never gets on");
}

#[test]
fn a_request_that_nobody_waits_for_any_more_leaves_nothing() {
    for turns in [1, LEVELS / 2, LEVELS + 5, 2 * LEVELS, 2 * LEVELS + 50, 3 * LEVELS] {
        let mut w = World::new();
        let t = w.start(A);
        if (0..turns).any(|_| ask(&mut w, t, &deep("x"))) {
            for _ in 0..turns - 2 * LEVELS {
                let _more = w.store.go_on(A, &mut Budget::new(1), &mut w.post);
            }
        }
        w.store.disconnect(A);
        w.settle();
        assert_eq!(w.nodes_of(1), 1);
        assert_eq!(w.store.open_transactions(), 0);
    }
}

#[test]
fn levels_for_which_there_is_no_memory_are_taken_back() {
    for steps in [1, 10, LEVELS - 1] {
        let mut w = World::new();
        let t = w.start(A);
        w.write(A, t, "x", "own").unwrap();
        while !ask(&mut w, t, &deep("x")) {}
        for _ in 0..steps {
            let _more = w.store.go_on(A, &mut Budget::new(1), &mut w.post);
        }
        assert!(w.store.still_to_make(A) < LEVELS);
        w.store.make_no_more(A);
        w.settle();
        assert_eq!(w.store.take_failure(A), Some(XsError::ENOMEM));
        assert_eq!(w.list(A, t, "x").unwrap(), "");
        assert_eq!(w.read(A, t, "x").unwrap(), "own");
        assert_eq!(w.end(A, t), Err(XsError::ENOMEM));
        assert_eq!(w.nodes_of(1), 1);
    }
}

#[test]
fn a_watch_on_a_deep_path_is_made_and_dropped_in_slices() {
    let watch = |w: &mut World, token: &str| loop {
        let (path, budget) = (deep("x"), &mut Budget::new(1));
        if w.store.watch_some(A, path.as_bytes(), token.as_bytes(), None, budget)?.is_done() {
            return Ok::<_, XsError>(());
        }
        // Another one has the same place, and leaves it.
        w.watch(B, "/local/domain/1/x/l/l", "t");
        w.store.unwatch(B, b"/local/domain/1/x/l/l", b"t").unwrap();
        assert_eq!(w.store.watches.faults(), 1, "the place that is kept, and no other");
    };
    let mut w = World::new();
    watch(&mut w, "t").unwrap();
    assert_eq!(watch(&mut w, "t"), Err(XsError::EEXIST));
    watch(&mut w, "u").unwrap();
    w.write(A, 0, &deep("x"), "").unwrap();
    assert_eq!(w.events(), ["t", "u"].map(|token| format!("1:{}:{token}", deep("x"))));
    let unwatch = |w: &mut World, token: &str| loop {
        let (path, budget) = (deep("x"), &mut Budget::new(1));
        if w.store.unwatch_some(A, path.as_bytes(), token.as_bytes(), budget)?.is_done() {
            return Ok::<_, XsError>(());
        }
    };
    unwatch(&mut w, "t").unwrap();
    assert_eq!(unwatch(&mut w, "t"), Err(XsError::ENOENT));
    unwatch(&mut w, "u").unwrap();
    assert!(w.store.has_deaths(), "places are left");
    // Whoever comes meanwhile finds or makes them.
    w.watch(B, &format!("/local/domain/1/{}", deep("x")), "t");
    w.settle();
    w.write(DOM0, 0, &format!("/local/domain/1/{}", deep("x")), "").unwrap();
    w.reset(B);
    // One that goes before its watch is there.
    let path = deep("y");
    for _ in 0..LEVELS / 2 {
        let more = w.store.watch_some(A, path.as_bytes(), b"t", None, &mut Budget::new(1));
        assert_eq!(more, Ok(Progress::More));
    }
    w.store.disconnect(A);
    w.settle();
    assert_eq!((w.store.watch_count(), w.store.watches.name_uses().count()), (0, 0));
}
