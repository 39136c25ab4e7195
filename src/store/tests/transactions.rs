//! Transactions: what they cost, and what their end leaves for later turns.

use super::*;
use crate::store::transaction::steps;

/// Steps that something takes in the overlay.
fn cost(act: impl FnOnce()) -> u64 {
    steps::take();
    act();
    steps::take()
}

/// Steps of a read deep down a chain of so many one-letter names, of the removal of all of it, and of the commit.
fn chain(depth: usize) -> [u64; 3] {
    let mut w = World::new();
    let path = format!("/c{}", "/c".repeat(depth));
    w.mkdir(DOM0, 0, &path).unwrap();
    w.watch(DOM0, "/c/c", "t");
    let t = w.start(DOM0);
    let read = cost(|| assert_eq!(w.read(DOM0, t, &path).unwrap(), ""));
    let removed = cost(|| w.rm(DOM0, t, "/c/c").unwrap());
    let ended = cost(|| w.end(DOM0, t).unwrap());
    assert_eq!(w.list(DOM0, 0, "/c").unwrap(), "");
    // The node that was read has an event of its own, and so has the top.
    assert_eq!(w.events(), ["0:/c/c:t"]);
    [read, removed, ended]
}

#[test]
fn a_chain_that_is_removed_costs_its_length() {
    let (short, long) = (chain(250), chain(1000));
    for (short, long) in short.into_iter().zip(long) {
        assert!(short > 200 && long < 5 * short, "{short} steps, then {long}");
    }
}

/// A transaction that writes, makes and removes, of `name` and so many nodes, before its end.
fn busy(w: &mut World, nodes: usize) -> u32 {
    for n in 0..nodes {
        w.write(DOM0, 0, &format!("/x/old/{n}/below"), "1").unwrap();
        w.write(DOM0, 0, &format!("/x/kept/{n}"), "1").unwrap();
    }
    w.watch(DOM0, "/x", "all");
    w.watch(DOM0, "/x/old/1/below", "one");
    let t = w.start(DOM0);
    assert_eq!(w.read(DOM0, t, "/x/old/1/below").unwrap(), "1");
    w.rm(DOM0, t, "/x/old").unwrap();
    for n in 0..nodes {
        w.write(DOM0, t, &format!("/x/kept/{n}"), "2").unwrap();
        w.write(DOM0, t, &format!("/x/new/{n}"), "a value that is too long for its node").unwrap();
    }
    t
}

#[test]
fn a_commit_in_slices_is_as_one_at_once() {
    let at_once = {
        let mut w = World::new();
        let t = busy(&mut w, 20);
        w.end(DOM0, t).unwrap();
        w.events()
    };
    assert_eq!(at_once.len(), 42);
    for units in [1, 700, 5000, 60_000] {
        let mut w = World::new();
        let t = busy(&mut w, 20);
        let (store, post) = (&mut w.store, &mut w.post);
        let budget = &mut Budget::new(units);
        let mut progress = store.end_transaction(DOM0, TxId(t), true, budget, post).unwrap();
        // Everybody sees all of it at once, whatever is left to be done.
        assert_eq!(w.list(DOM0, 0, "/x").unwrap(), "kept new");
        assert_eq!(w.read(DOM0, 0, "/x/kept/19").unwrap(), "2");
        let mut turns = 0_u64;
        while progress == Progress::More {
            assert!(w.store.is_busy(DOM0));
            progress = w.store.go_on(DOM0, &mut Budget::new(units), &mut w.post);
            turns += 1;
        }
        assert!(!w.store.is_busy(DOM0) && (units > 1 || turns > 100), "{turns} turns");
        assert_eq!(w.events(), at_once, "{units}");
    }
}

#[test]
fn a_transaction_given_up_in_slices_leaves_nothing() {
    let mut w = World::new();
    let t = busy(&mut w, 20);
    let (nodes, used) = (w.store.node_count(), w.store.usage(DomId(0), Quota::Memory).unwrap().0);
    let (store, post) = (&mut w.store, &mut w.post);
    let mut progress =
        store.end_transaction(DOM0, TxId(t), false, &mut Budget::new(1), post).unwrap();
    let mut turns = 0_u64;
    while progress == Progress::More {
        progress = w.store.go_on(DOM0, &mut Budget::new(1), &mut w.post);
        turns += 1;
    }
    assert!(turns > 20, "{turns} turns");
    assert_eq!((w.store.node_count(), w.events()), (nodes, vec![]));
    assert!(w.store.usage(DomId(0), Quota::Memory).unwrap().0 < used);
    assert_eq!(w.store.open_transactions(), 0);
}

#[test]
fn what_is_taken_out_and_not_yet_freed_is_gone_for_other_transactions() {
    let mut w = World::new();
    for n in 0..100 {
        w.write(DOM0, 0, &format!("/x/y/{n}"), "1").unwrap();
    }
    w.write(DOM0, 0, "/z", "1").unwrap();
    let (a, b) = (w.start(DOM0), w.start(DOM0));
    w.write(DOM0, a, "/x/y/99", "2").unwrap();
    w.write(DOM0, b, "/z", "2").unwrap();
    let t = w.start(DOM0);
    w.rm(DOM0, t, "/x").unwrap();
    let (store, post) = (&mut w.store, &mut w.post);
    let budget = &mut Budget::new(1);
    assert_eq!(store.end_transaction(DOM0, TxId(t), true, budget, post), Ok(Progress::More));
    assert!(w.store.node_count() > 90);
    // The node that it has written is as it was, but not in the tree any more.
    assert_eq!(w.end(DOM0, a), Err(XsError::EAGAIN));
    w.store.finish(&mut w.post);
    w.end(DOM0, b).unwrap();
    assert_eq!(w.read(DOM0, 0, "/z").unwrap(), "2");
}

#[test]
fn a_change_below_what_was_removed_is_a_conflict_whatever_else_was_touched() {
    for (path, conflicts) in
        [("/x/a/b/c", true), ("/x/a/new", true), ("/x/k", true), ("/x", true), ("/other", false)]
    {
        let mut w = World::new();
        for known in ["/x/a/b/c", "/x/a/t/u", "/x/k", "/other"] {
            w.write(DOM0, 0, known, "1").unwrap();
        }
        let t = w.start(DOM0);
        w.read(DOM0, t, "/x/a/t/u").unwrap();
        w.rm(DOM0, t, "/x/a/t").unwrap();
        w.rm(DOM0, t, "/x").unwrap();
        // Made anew, it hides what was there, which may not change for all that.
        w.mkdir(DOM0, t, "/x/a/b").unwrap();
        assert_eq!(w.list(DOM0, t, "/x/a/b").unwrap(), "");
        w.write(DOM0, 0, path, "2").unwrap();
        let ended = w.end(DOM0, t);
        assert_eq!(ended, if conflicts { Err(XsError::EAGAIN) } else { Ok(()) }, "{path}");
        let left = if conflicts { "1" } else { "" };
        let value = w.read(DOM0, 0, "/x/a/t/u").unwrap_or_default();
        assert_eq!(value, left, "{path}");
    }
}

#[test]
fn a_value_that_was_read_reads_the_same_for_the_rest_of_the_transaction() {
    let mut w = World::new();
    w.write(DOM0, 0, "/x", "old").unwrap();
    w.write(DOM0, 0, "/y", "old").unwrap();
    let t = w.start(DOM0);
    assert_eq!(w.read(DOM0, t, "/x").unwrap(), "old");
    w.write(DOM0, 0, "/x", "new").unwrap();
    w.rm(DOM0, 0, "/y").unwrap();
    assert_eq!(w.read(DOM0, t, "/x").unwrap(), "old");
    assert_eq!(w.end(DOM0, t), Err(XsError::EAGAIN));
}
