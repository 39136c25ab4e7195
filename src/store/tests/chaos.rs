//! Random requests: what holds whatever comes, in slices of any size and with hand-overs in between.

use super::*;

/// Random requests of all connections, inside and outside of transactions, with domains dying.
struct Chaos {
    w: World,
    state: usize,
    /// Open transactions.
    open: Vec<(ConnId, u32)>,
    /// The connection of domain 1, which dies now and then.
    guest: ConnId,
    commits: usize,
}

impl Chaos {
    fn random(&mut self, n: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random(from.len())]
    }

    /// One request; says all that could be seen of it.
    fn step(&mut self) -> String {
        let conn = self.pick(&[DOM0, self.guest, B]);
        let mine = self.open.iter().find(|(owner, _)| *owner == conn).map(|(_, tx)| *tx);
        let tx = mine.filter(|_| self.random(2) == 0).unwrap_or(0);
        let home = self.pick(&["/local/domain/1", "/local/domain/2", "/s"]);
        let path = format!("{home}/{}", self.pick(&["a", "b", "c/d", "c/d/e", "c"]));
        // So many levels that they are made in slices.
        let path = if self.random(40) == 0 { path + &"/l".repeat(30) } else { path };
        let value = "v".repeat(self.random(60));
        let list = self.pick(&["n0", "b1", "b2", "b0,n1,r2", "n1,b2,r9"]);
        // What the answers ought to be is not judged here.
        let mut seen = String::new();
        let result: Result<(), XsError> = match self.random(40) {
            0..12 => self.w.write(conn, tx, &path, &value),
            12..16 => self.w.mkdir(conn, tx, &path),
            16..22 => self.w.rm(conn, tx, &path),
            22..26 => self.w.read(conn, tx, &path).map(|value| seen = value),
            26..28 => self.w.list(conn, tx, home).map(|list| seen = list),
            28..32 => self.w.perms(conn, tx, &path, list),
            32 => self.w.store.watch(conn, path.as_bytes(), value.as_bytes(), None),
            33 => self.w.store.unwatch(conn, path.as_bytes(), value.as_bytes()),
            34..36 => self.w.store.start_transaction(conn).map(|tx| self.open.push((conn, tx.0))),
            36..39 => self.end(conn),
            _ => {
                self.lose(conn);
                Ok(())
            }
        };
        // The order between connections is nobody's business.
        let mut events = self.w.events();
        events.sort_by_key(|event| event.split(':').next().map(ToString::to_string));
        format!("{result:?} {seen} {events:?}")
    }

    fn end(&mut self, conn: ConnId) -> Result<(), XsError> {
        let Some(at) = self.open.iter().position(|(owner, _)| *owner == conn) else {
            return Ok(());
        };
        let (conn, tx) = self.open.remove(at);
        let commit = self.random(4) > 0;
        self.w.run(|s, budget, post| s.end_transaction(conn, TxId(tx), commit, budget, post))?;
        self.commits += usize::from(commit);
        Ok(())
    }

    fn lose(&mut self, conn: ConnId) {
        if self.random(20) == 0 {
            let dead = self.guest;
            self.w.store.disconnect(dead);
            self.w.forget(1);
            // Which of its nodes goes first depends on which it owned first, and that does not outlive a hand-over.
            self.w.post.0.sort_unstable();
            self.open.retain(|(owner, _)| *owner != dead);
            self.guest = ConnId(dead.0 + 100);
            self.w.guest(self.guest, 1);
        } else if self.random(10) == 0 {
            self.w.reset(conn);
            self.open.retain(|(owner, _)| *owner != conn);
        }
    }
}

/// The full recount must hold at any time.
#[test]
fn accounts_hold_under_random_requests() {
    let mut w = World::new();
    w.store.set_quota(Some(DomId(1)), Quota::Nodes, 12);
    w.store.set_quota(Some(DomId(2)), Quota::Memory, 3000);
    let mut chaos = Chaos { w, state: 1, open: vec![], guest: A, commits: 0 };
    for step in 0..60_000 {
        chaos.step();
        if step % 50 == 0 {
            let result = chaos.w.store.check();
            result.unwrap_or_else(|findings| panic!("after step {step}: {findings}"));
        }
    }
    assert!(chaos.commits > 100, "only {} commits: the mix proves nothing", chaos.commits);
}

/// Nobody can tell a store that does everything in the smallest slices from one that does it at once.
#[test]
fn the_size_of_a_slice_changes_nothing() {
    for (state, slice) in [(1, 1), (2, 500), (3, 3000)] {
        let [mut one, mut two] = [u64::MAX, slice].map(|slice| {
            let mut w = World::new();
            w.slice = slice;
            w.store.set_quota(Some(DomId(1)), Quota::Nodes, 12);
            w.store.set_quota(Some(DomId(2)), Quota::Memory, 3000);
            Chaos { w, state: state * 104_729, open: vec![], guest: A, commits: 0 }
        });
        for step in 0..8000 {
            assert_eq!(one.step(), two.step(), "slice {slice} step {step}");
            if step % 100 == 0 {
                two.w.store.check().unwrap();
            }
        }
        assert!(save(&one.w.store) == save(&two.w.store));
        assert!(one.commits > 10, "only {} commits: the mix proves nothing", one.commits);
    }
}

/// Nobody can tell a store that is handed over again and again from one that never is.
#[test]
fn a_hand_over_at_any_time_changes_nothing() {
    for state in 1..5 {
        let [mut one, mut two] = [(), ()].map(|()| {
            let mut w = World::new();
            w.store.set_quota(Some(DomId(1)), Quota::Nodes, 12);
            w.store.set_quota(Some(DomId(2)), Quota::Memory, 3000);
            Chaos { w, state: state * 7919, open: vec![], guest: A, commits: 0 }
        });
        for step in 0..4000 {
            if step % 7 == 0 {
                two.w.store = hand_over(&two.w.store);
            }
            assert_eq!(one.step(), two.step(), "seed {state} step {step}");
        }
        assert!(save(&one.w.store) == save(&two.w.store));
        assert!(one.commits > 10, "only {} commits: the mix proves nothing", one.commits);
    }
}
