//! Tests of the store as a whole.

mod chaos;
mod deep;
mod row;
mod transactions;

use super::perms::Access;
use super::*;
use crate::proto::handover::{FieldReader, FieldWriter};
use crate::proto::stream;
use alloc::string::{String, ToString};
use alloc::{format, vec};
use core::panic::AssertUnwindSafe;

const DOM0: ConnId = ConnId(1);
const A: ConnId = ConnId(2);
const B: ConnId = ConnId(3);

/// A store with domain 0 and two guests, 1 and 2, each with a home that it owns.
struct World {
    store: Store,
    post: Letters,
    /// Units of work in one turn.
    slice: u64,
}

/// Events in the order in which they came, as "connection:path:token".
#[derive(Debug, Default)]
struct Letters(Vec<String>);

impl Post for Letters {
    fn event(&mut self, _: &mut Accounts, conn: ConnId, path: &[u8], token: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.0.push(format!("{}:{}:{}", conn.0 - 1, text(path), text(token)));
    }
}

fn entries(text: &str) -> Vec<Entry> {
    let entry = |entry: &str| Entry {
        access: Access::from_letter(entry.as_bytes()[0]).unwrap(),
        domid: DomId(entry[1..].parse().unwrap()),
        stale: false,
    };
    text.split(',').map(entry).collect()
}

impl World {
    fn new() -> Self {
        let store = Store::new(42, DomId(0), Quotas::default()).unwrap();
        let mut world = Self { store, post: Letters::default(), slice: u64::MAX };
        let dom0 = Party { domid: DomId(0), target: None, privileged: true };
        world.store.connect(DOM0, dom0).unwrap();
        world.guest(A, 1);
        world.guest(B, 2);
        world
    }

    fn guest(&mut self, conn: ConnId, domid: u16) {
        self.store.learn(DomId(domid)).unwrap();
        let party = Party { domid: DomId(domid), target: None, privileged: false };
        self.store.connect(conn, party).unwrap();
        let home = format!("/local/domain/{domid}");
        self.write(DOM0, 0, &home, "").unwrap();
        self.perms(DOM0, 0, &home, &format!("n{domid}")).unwrap();
    }

    fn write(&mut self, conn: ConnId, tx: u32, path: &str, value: &str) -> Result<(), XsError> {
        self.run(|s, budget, post| {
            s.write(Caller { conn, tx: TxId(tx) }, path.as_bytes(), value.as_bytes(), budget, post)
        })
    }

    fn rm(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), XsError> {
        self.run(|s, budget, post| {
            s.rm(Caller { conn, tx: TxId(tx) }, path.as_bytes(), budget, post)
        })
    }

    fn mkdir(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), XsError> {
        self.run(|s, budget, post| {
            s.mkdir(Caller { conn, tx: TxId(tx) }, path.as_bytes(), budget, post)
        })
    }

    fn perms(&mut self, conn: ConnId, tx: u32, path: &str, list: &str) -> Result<(), XsError> {
        self.run(|s, budget, post| {
            s.set_perms(
                Caller { conn, tx: TxId(tx) },
                path.as_bytes(),
                &entries(list),
                budget,
                post,
            )
        })
    }

    fn look(
        &mut self,
        conn: ConnId,
        tx: u32,
        what: Look,
        path: &str,
        reply: &mut Vec<u8>,
    ) -> Result<(), XsError> {
        let caller = Caller { conn, tx: TxId(tx) };
        loop {
            let budget = &mut Budget::new(self.slice);
            if self.store.look(caller, what, path.as_bytes(), reply, budget)?.is_done() {
                return Ok(());
            }
        }
    }

    fn read(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, XsError> {
        let mut reply = Vec::new();
        self.look(conn, tx, Look::Read, path, &mut reply)?;
        Ok(String::from_utf8(reply).unwrap())
    }

    fn list(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, XsError> {
        let mut reply = Vec::new();
        self.look(conn, tx, Look::Directory, path, &mut reply)?;
        Ok(String::from_utf8(reply).unwrap().replace('\0', " ").trim_end().to_string())
    }

    fn watch(&mut self, conn: ConnId, path: &str, token: &str) {
        self.store.watch(conn, path.as_bytes(), token.as_bytes(), None).unwrap();
    }

    fn start(&mut self, conn: ConnId) -> u32 {
        self.store.start_transaction(conn).unwrap().0
    }

    fn end(&mut self, conn: ConnId, tx: u32) -> Result<(), XsError> {
        self.run(|s, budget, post| s.end_transaction(conn, TxId(tx), true, budget, post))
    }

    /// The events since the last call, as "connection:path:token".
    fn events(&mut self) -> Vec<String> {
        core::mem::take(&mut self.post.0)
    }

    /// Carries a request out to its end.
    fn run(
        &mut self,
        mut act: impl FnMut(&mut Store, &mut Budget, &mut Letters) -> Result<Progress, XsError>,
    ) -> Result<(), XsError> {
        let mut result;
        loop {
            result = act(&mut self.store, &mut Budget::new(self.slice), &mut self.post);
            let is_again = self.store.conns.iter().any(|(conn, _)| self.store.is_asked_again(conn));
            if result != Ok(Progress::More) || !is_again {
                break;
            }
        }
        self.settle();
        let conns = self.store.conns.iter().map(|(conn, _)| conn).collect::<Vec<_>>();
        let failed = conns.into_iter().find_map(|conn| self.store.take_failure(conn));
        result.and(failed.map_or(Ok(()), Err))
    }

    /// Turns until everything that was begun is done.
    fn settle(&mut self) {
        let mut turns = 0;
        while !self.store.is_idle() {
            let budget = || Budget::new(self.slice);
            let _more = self.store.go_on_deaths(&mut budget(), &mut self.post);
            let mut at = 0;
            while let Some((handle, conn)) = self.store.conns.next_from(at) {
                let _more = self.store.go_on(conn, &mut budget(), &mut self.post);
                at = handle + 1;
            }
            turns += 1;
            assert!(turns < 1_000_000, "it never ends");
        }
    }

    /// A domain and what it had go.
    fn forget(&mut self, domid: u16) {
        self.store.forget(DomId(domid));
        self.settle();
    }

    fn reset(&mut self, conn: ConnId) {
        let _more = self.store.reset(conn, &mut Budget::new(self.slice), &mut self.post);
        self.settle();
    }

    fn announce(&mut self, special: Special, domid: u16, plain: bool) {
        let (budget, post) = (&mut Budget::new(self.slice), &mut self.post);
        let _more = self.store.announce(special, DomId(domid), plain, budget, post);
        self.settle();
    }

    fn nodes_of(&self, domid: u16) -> u32 {
        self.store.usage(DomId(domid), Quota::Nodes).unwrap().0
    }
}

impl Drop for World {
    /// Every test ends with a full recount.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.settle();
            assert_eq!(inspected(&self.store), [""; 0]);
            self.store.check().unwrap();
        }
    }
}

/// What a check in slices finds.
fn inspected(store: &Store) -> Vec<String> {
    let (mut at, mut found) = (Inspection::START, Vec::new());
    let mut report = |finding: core::fmt::Arguments<'_>| found.push(finding.to_string());
    while !store.inspect(&mut at, &mut Budget::new(1000), &mut report).is_done() {}
    found
}

#[test]
fn a_check_in_slices_finds_what_is_wrong() {
    let mut w = World::new();
    w.write(A, 0, "x/y", "z").unwrap();
    w.watch(A, "x", "token");
    let t = w.start(A);
    w.write(A, t, "x/t", "in a transaction").unwrap();
    assert_eq!(inspected(&w.store), [""; 0]);
    let domain = |w: &mut World, quota, more: u32| {
        let domain = w.store.tree.domains.get_mut(DomId(1)).unwrap();
        domain.used.set(quota, domain.used.get(quota).wrapping_add(more));
    };
    for quota in [Quota::Nodes, Quota::Watches, Quota::Transactions, Quota::Memory] {
        domain(&mut w, quota, 1);
        let found = inspected(&w.store);
        assert!(found.len() == 1 && found[0].contains(quota.name()), "{found:?}");
        domain(&mut w, quota, u32::MAX);
    }
    let tree::Found::Node(node) = w.store.tree.find(b"/local/domain/1/x/y") else { panic!() };
    let parent = w.store.tree.node(node).unwrap().parent;
    w.store.tree.damage(node, |node| node.parent = 1);
    assert!(!inspected(&w.store).is_empty());
    w.store.tree.damage(node, |node| node.parent = parent);
    assert_eq!(inspected(&w.store), [""; 0]);
}

#[test]
fn a_check_in_slices_knows_of_transactions_that_end() {
    let mut w = World::new();
    let t = w.start(A);
    for n in 0..20 {
        w.write(A, t, &format!("x/{n}"), "in a transaction").unwrap();
    }
    let end = w.store.end_transaction(A, TxId(t), false, &mut Budget::new(1), &mut Nobody);
    assert_eq!(end, Ok(Progress::More));
    assert_eq!(inspected(&w.store), [""; 0]);
}

#[test]
fn a_check_in_slices_knows_of_domains_that_die() {
    let mut w = World::new();
    for n in 0..20 {
        w.write(A, 0, &format!("x/{n}"), "").unwrap();
        w.write(DOM0, 0, &format!("/local/domain/1/x/{n}/below"), "").unwrap();
    }
    w.store.forget(DomId(1));
    for n in 0.. {
        let deaths = w.store.go_on_deaths(&mut Budget::new(1), &mut Nobody);
        assert_eq!(inspected(&w.store), [""; 0], "after {n} steps");
        if deaths == Progress::Done {
            assert!(n > 20, "all at once");
            break;
        }
    }
}

#[test]
fn values_and_directories() {
    let mut w = World::new();
    w.write(DOM0, 0, "/a/b/c", "1").unwrap();
    w.write(DOM0, 0, "/a/b/a-value-longer-than-fits-in-place", "a value longer than fits in place")
        .unwrap();
    w.mkdir(DOM0, 0, "/a/b/d").unwrap();
    assert_eq!(w.read(DOM0, 0, "/a/b/c").unwrap(), "1");
    assert_eq!(w.read(DOM0, 0, "/a").unwrap(), "");
    assert_eq!(w.list(DOM0, 0, "/a/b").unwrap(), "c a-value-longer-than-fits-in-place d");
    assert_eq!(w.list(DOM0, 0, "/").unwrap(), "tool local a");
    w.rm(DOM0, 0, "/a/b/a-value-longer-than-fits-in-place").unwrap();
    assert_eq!(w.list(DOM0, 0, "/a/b").unwrap(), "c d");
    w.rm(DOM0, 0, "/a").unwrap();
    assert_eq!(w.read(DOM0, 0, "/a/b/c"), Err(XsError::ENOENT));
    assert_eq!(w.rm(DOM0, 0, "/a"), Ok(()));
    assert_eq!(w.rm(DOM0, 0, "/a/b"), Err(XsError::ENOENT));
    assert_eq!(w.rm(DOM0, 0, "/"), Err(XsError::EINVAL));
}

#[test]
fn where_a_client_looked_last_may_be_gone() {
    let mut w = World::new();
    w.write(DOM0, 0, "/a/b/c", "old").unwrap();
    assert_eq!(w.read(DOM0, 0, "/a/b/c").unwrap(), "old");
    // Nodes take the places of those that are gone.
    w.rm(DOM0, 0, "/a").unwrap();
    w.write(DOM0, 0, "/x/y/c", "another").unwrap();
    assert_eq!(w.read(DOM0, 0, "/a/b/c"), Err(XsError::ENOENT));
    w.write(DOM0, 0, "/a/b/c", "new").unwrap();
    assert_eq!(w.read(DOM0, 0, "/a/b/c").unwrap(), "new");
    w.rm(DOM0, 0, "/x/y/c").unwrap();
    w.rm(DOM0, 0, "/x/y").unwrap();
    assert_eq!(w.read(DOM0, 0, "/x/y/c"), Err(XsError::ENOENT));
}

#[test]
fn existence_is_hidden_where_the_caller_may_not_look() {
    let mut w = World::new();
    w.write(B, 0, "secret", "x").unwrap();
    assert_eq!(w.read(A, 0, "/local/domain/2/secret"), Err(XsError::EACCES));
    assert_eq!(w.read(A, 0, "/local/domain/2/nothing"), Err(XsError::EACCES));
    assert_eq!(w.read(A, 0, "nothing"), Err(XsError::ENOENT));
    assert_eq!(w.read(DOM0, 0, "/local/domain/2/nothing"), Err(XsError::ENOENT));
    // No right on the nodes above is needed for a node that exists.
    w.perms(B, 0, "secret", "n2,r1").unwrap();
    assert_eq!(w.read(A, 0, "/local/domain/2/secret").unwrap(), "x");
    assert_eq!(w.write(A, 0, "/local/domain/2/secret", "y"), Err(XsError::EACCES));
}

#[test]
fn xsa_353_the_root_is_not_a_guests() {
    let mut w = World::new();
    for tx in [0, w.start(A)] {
        assert_eq!(w.read(A, tx, "/"), Err(XsError::EACCES));
        assert_eq!(w.list(A, tx, "/"), Err(XsError::EACCES));
        assert_eq!(w.rm(A, tx, "/"), Err(XsError::EACCES));
        assert_eq!(w.write(A, tx, "/", ""), Err(XsError::EACCES));
        assert_eq!(w.mkdir(A, tx, "/foo"), Err(XsError::EACCES));
        assert_eq!(w.perms(A, tx, "/", "n1"), Err(XsError::EACCES));
    }
}

#[test]
fn new_nodes_inherit_the_parents_list_and_belong_to_their_maker() {
    let mut w = World::new();
    w.write(DOM0, 0, "/shared", "").unwrap();
    w.perms(DOM0, 0, "/shared", "b0,r2").unwrap();
    w.write(A, 0, "/shared/x/y", "").unwrap();
    assert_eq!(w.store.perms_text(b"/shared/x"), "b1,r2");
    assert_eq!(w.store.perms_text(b"/shared/x/y"), "b1,r2");
    w.write(DOM0, 0, "/local/domain/1/made-by-dom0", "").unwrap();
    assert_eq!(w.store.perms_text(b"/local/domain/1/made-by-dom0"), "n1");
    assert_eq!(w.nodes_of(1), 4);
}

#[test]
fn permissions_are_given_by_owners_and_kept_by_them() {
    let mut w = World::new();
    w.write(A, 0, "x", "").unwrap();
    assert_eq!(w.perms(B, 0, "/local/domain/1/x", "n2"), Err(XsError::EACCES));
    // XSA-352: not even the owner gives a node away.
    assert_eq!(w.perms(A, 0, "x", "n2"), Err(XsError::EPERM));
    assert_eq!(w.perms(A, 0, "x", "n0"), Err(XsError::EPERM));
    w.perms(A, 0, "x", "w1").unwrap();
    assert_eq!(w.write(B, 0, "/local/domain/1/x/y", ""), Ok(()));
    assert_eq!(w.read(B, 0, "/local/domain/1/x"), Err(XsError::EACCES));
    w.perms(DOM0, 0, "/local/domain/1/x", "n2").unwrap();
    assert_eq!((w.nodes_of(1), w.nodes_of(2)), (1, 3));
    assert_eq!(w.perms(DOM0, 0, "/local/domain/1/x", "n9"), Err(XsError::ENOENT));
    w.perms(DOM0, 0, "/local/domain/1/x", "n2,r9").unwrap();
    assert_eq!(w.store.perms_text(b"/local/domain/1/x"), "n2,r9!");
}

#[test]
fn events_reach_those_who_may_read_in_order() {
    let mut w = World::new();
    w.watch(B, "/local/domain/1", "b");
    w.watch(DOM0, "/", "root");
    w.watch(DOM0, "/local/domain/1/x", "x");
    w.watch(A, "x", "own");
    w.write(A, 0, "x/y", "1").unwrap();
    let expected =
        ["0:/local/domain/1/x/y:root", "0:/local/domain/1/x/y:x", "1:x/y:own"].map(String::from);
    assert_eq!(w.events(), expected);
    // XSA-115: B is told once it may read, and once more when it no longer may.
    w.perms(A, 0, "x/y", "n1,r2").unwrap();
    assert!(w.events().contains(&"2:/local/domain/1/x/y:b".into()));
    w.perms(A, 0, "x/y", "n1").unwrap();
    assert!(w.events().contains(&"2:/local/domain/1/x/y:b".into()));
    w.write(A, 0, "x/y", "2").unwrap();
    assert!(!w.events().iter().any(|event| event.starts_with("2:")));
}

#[test]
fn removal_tells_each_watch_of_its_own_node_deepest_first() {
    let mut w = World::new();
    for path in ["/t/a/1", "/t/a/2", "/t/b"] {
        w.write(DOM0, 0, path, "").unwrap();
    }
    for path in ["/", "/t", "/t/a", "/t/a/2", "/t/a/1", "/t/c"] {
        w.watch(DOM0, path, path);
    }
    w.events();
    w.rm(DOM0, 0, "/t").unwrap();
    let expected = ["0:/t/a/1:/t/a/1", "0:/t/a/2:/t/a/2", "0:/t/a:/t/a", "0:/t:/", "0:/t:/t"];
    assert_eq!(w.events(), expected.map(String::from));
}

#[test]
fn watches_are_told_apart_by_path_and_token_and_limited_by_depth() {
    let mut w = World::new();
    w.watch(A, "x", "t");
    assert_eq!(w.store.watch(A, b"/local/domain/1/x", b"t", None), Err(XsError::EEXIST));
    assert_eq!(w.store.unwatch(A, b"x", b"u"), Err(XsError::ENOENT));
    assert_eq!(w.store.unwatch(A, b"x/", b"t"), Err(XsError::EINVAL));
    w.store.unwatch(A, b"/local/domain/1/x", b"t").unwrap();
    for depth in 0..3 {
        w.store.watch(DOM0, b"/", format!("{depth}").as_bytes(), Some(depth)).unwrap();
    }
    w.write(DOM0, 0, "/a/b", "").unwrap();
    assert_eq!(w.events(), ["0:/a/b:2"]);
    w.write(DOM0, 0, "/a", "").unwrap();
    assert_eq!(w.events(), ["0:/a:1", "0:/a:2"]);
}

#[test]
fn special_events_follow_the_special_nodes_permissions() {
    let mut w = World::new();
    for conn in [DOM0, A] {
        w.watch(conn, "@introduceDomain", "i");
        w.watch(conn, "@releaseDomain", "r");
        w.store.watch(conn, b"@releaseDomain", b"deep", Some(1)).unwrap();
        w.store.watch(conn, b"@releaseDomain", b"flat", Some(0)).unwrap();
        w.watch(conn, "@releaseDomain/2", "two");
        w.watch(conn, "/", "root");
    }
    w.announce(Special::IntroduceDomain, 2, true);
    assert_eq!(w.events(), ["0:@introduceDomain:i"]);
    w.announce(Special::ReleaseDomain, 2, true);
    let expected = [
        "0:@releaseDomain/2:deep",
        "0:@releaseDomain/2:two",
        "1:@releaseDomain/2:deep",
        "1:@releaseDomain/2:two",
        "0:@releaseDomain:r",
        "1:@releaseDomain:r",
    ];
    assert_eq!(w.events(), expected.map(String::from));
    assert_eq!(w.perms(A, 0, "@introduceDomain", "n1"), Err(XsError::EACCES));
    w.perms(DOM0, 0, "@introduceDomain", "n0,r1").unwrap();
    assert_eq!(w.events(), ["0:@introduceDomain:i", "1:@introduceDomain:i"]);
    assert_eq!(w.read(DOM0, 0, "@introduceDomain"), Err(XsError::EINVAL));
    assert_eq!(w.perms(DOM0, 0, "@nonsense", "n0"), Err(XsError::ENOENT));
}

#[test]
fn xsa_324_an_event_that_fits_no_message_is_not_sent() {
    let mut w = World::new();
    w.watch(A, "w", &"t".repeat(4093));
    w.write(A, 0, "w/child", "").unwrap();
    assert!(w.events().is_empty());
    w.write(A, 0, "w", "").unwrap();
    assert_eq!(w.events().len(), 1);
}

#[test]
fn transactions_see_their_own_view_and_conflict_on_what_they_touched() {
    let mut w = World::new();
    w.write(DOM0, 0, "/x/a", "1").unwrap();
    w.write(DOM0, 0, "/y", "1").unwrap();
    let (t, u) = (w.start(DOM0), w.start(DOM0));
    assert_eq!(w.read(DOM0, t, "/x/a").unwrap(), "1");
    w.write(DOM0, t, "/x/a", "2").unwrap();
    assert_eq!(w.read(DOM0, 0, "/x/a").unwrap(), "1");
    assert_eq!(w.read(DOM0, t, "/x/a").unwrap(), "2");
    w.write(DOM0, u, "/y", "2").unwrap();
    w.events();
    assert_eq!((w.end(DOM0, u), w.end(DOM0, t)), (Ok(()), Ok(())));
    assert_eq!(w.read(DOM0, 0, "/x/a").unwrap(), "2");
    // Touched and then changed by somebody else: no commit, and no trace.
    let t = w.start(DOM0);
    assert_eq!(w.read(DOM0, t, "/y").unwrap(), "2");
    w.write(DOM0, t, "/z", "").unwrap();
    w.write(DOM0, 0, "/y", "2").unwrap();
    assert_eq!(w.end(DOM0, t), Err(XsError::EAGAIN));
    assert_eq!(w.read(DOM0, 0, "/z"), Err(XsError::ENOENT));
    assert_eq!(w.end(DOM0, t), Err(XsError::ENOENT));
}

#[test]
fn two_new_children_of_one_node_conflict() {
    let mut w = World::new();
    w.write(DOM0, 0, "/x", "").unwrap();
    let (t, u) = (w.start(DOM0), w.start(DOM0));
    w.write(DOM0, t, "/x/a", "").unwrap();
    w.write(DOM0, u, "/x/b", "").unwrap();
    assert_eq!((w.end(DOM0, t), w.end(DOM0, u)), (Ok(()), Err(XsError::EAGAIN)));
    // Found missing, made and removed by somebody else.
    let t = w.start(DOM0);
    assert_eq!(w.read(DOM0, t, "/x/c/d"), Err(XsError::ENOENT));
    w.write(DOM0, 0, "/x/c", "").unwrap();
    w.rm(DOM0, 0, "/x/c").unwrap();
    assert_eq!(w.end(DOM0, t), Err(XsError::EAGAIN));
}

#[test]
fn a_transaction_lists_what_it_made_and_removed() {
    let mut w = World::new();
    for name in ["a", "b", "c"] {
        w.write(DOM0, 0, &format!("/x/{name}"), name).unwrap();
    }
    w.watch(DOM0, "/x", "t");
    w.events();
    let t = w.start(DOM0);
    w.rm(DOM0, t, "/x/a").unwrap();
    w.write(DOM0, t, "/x/d", "").unwrap();
    w.write(DOM0, t, "/x/e/f", "").unwrap();
    w.rm(DOM0, t, "/x/d").unwrap();
    w.write(DOM0, t, "/x/a", "again").unwrap();
    w.write(DOM0, t, "/x/b", "new").unwrap();
    assert_eq!(w.list(DOM0, t, "/x").unwrap(), "b c e a");
    assert_eq!(w.list(DOM0, 0, "/x").unwrap(), "a b c");
    assert!(w.events().is_empty());
    w.end(DOM0, t).unwrap();
    assert_eq!(w.list(DOM0, 0, "/x").unwrap(), "b c e a");
    assert_eq!(w.read(DOM0, 0, "/x/a").unwrap(), "again");
    // In the order of first access; what was made and removed is not mentioned.
    assert_eq!(w.events(), ["0:/x/a:t", "0:/x/e/f:t", "0:/x/b:t"]);
}

#[test]
fn a_transaction_shows_no_children_that_the_caller_may_not_list() {
    let mut w = World::new();
    let mine = "/local/domain/1/d";
    w.write(A, 0, &format!("{mine}/old"), "").unwrap();
    let t = w.start(A);
    assert_eq!(w.list(A, t, mine).unwrap(), "old");
    // The place in the table where the node was goes to a private one.
    w.rm(A, 0, mine).unwrap();
    for name in ["a", "b", "c"] {
        w.write(DOM0, 0, &format!("/private/{name}/secret"), "").unwrap();
    }
    assert_eq!(w.list(A, t, mine).unwrap(), "");
    // Somebody else makes the same path anew, for himself.
    w.write(DOM0, 0, mine, "").unwrap();
    w.perms(DOM0, 0, mine, "n0").unwrap();
    w.write(DOM0, 0, &format!("{mine}/secret"), "").unwrap();
    assert_eq!(w.list(A, t, mine).unwrap(), "");
    w.perms(DOM0, 0, mine, "r0").unwrap();
    assert_eq!(w.list(A, t, mine).unwrap(), "secret");
    assert_eq!(w.end(A, t), Err(XsError::EAGAIN));
}

#[test]
fn a_negative_offset_is_the_end_of_the_list_also_where_it_grew_meanwhile() {
    let mut w = World::new();
    w.write(DOM0, 0, "/x/a", "").unwrap();
    let t = w.start(DOM0);
    assert_eq!(w.list(DOM0, t, "/x").unwrap(), "a");
    w.write(DOM0, 0, "/x/b", "").unwrap();
    let mut reply = vec![];
    let caller = Caller { conn: DOM0, tx: TxId(t) };
    w.store.directory_part(caller, b"/x", -1, &mut reply).unwrap();
    assert!(reply.ends_with(b"\0\0") && !reply.contains(&b'b'));
}

#[test]
fn a_subtree_removed_in_a_transaction_goes_at_commit() {
    let mut w = World::new();
    for path in ["/x/a/1", "/x/a/2", "/x/b"] {
        w.write(DOM0, 0, path, "").unwrap();
    }
    w.watch(DOM0, "/x/a/2", "deep");
    w.watch(DOM0, "/x", "top");
    let t = w.start(DOM0);
    w.read(DOM0, t, "/x/a/1").unwrap();
    w.rm(DOM0, t, "/x").unwrap();
    assert_eq!(w.list(DOM0, t, "/x"), Err(XsError::ENOENT));
    w.write(DOM0, t, "/x/new", "").unwrap();
    assert_eq!(w.list(DOM0, t, "/x").unwrap(), "new");
    w.end(DOM0, t).unwrap();
    assert_eq!(w.list(DOM0, 0, "/x").unwrap(), "new");
    assert_eq!(w.events(), ["0:/x:top", "0:/x/a/2:deep", "0:/x/new:top"]);
}

#[test]
fn a_large_subtree_is_removed_in_a_transaction_by_its_handles() {
    let mut w = World::new();
    for i in 0..2000 {
        w.write(DOM0, 0, &format!("/x/{}/{i}", i % 7), "").unwrap();
    }
    let nodes = w.store.node_count();
    // Somebody changes a node below, that the transaction has never named.
    let t = w.start(DOM0);
    w.rm(DOM0, t, "/x").unwrap();
    assert_eq!(w.read(DOM0, t, "/x/3/3"), Err(XsError::ENOENT));
    w.write(DOM0, 0, "/x/3/3", "changed").unwrap();
    assert_eq!((w.end(DOM0, t), w.store.node_count()), (Err(XsError::EAGAIN), nodes));
    // What is made anew there starts empty, and may be removed again.
    let t = w.start(DOM0);
    w.rm(DOM0, t, "/x").unwrap();
    w.write(DOM0, t, "/x/3/new", "1").unwrap();
    assert_eq!(w.list(DOM0, t, "/x/3").unwrap(), "new");
    w.rm(DOM0, t, "/x/3").unwrap();
    assert_eq!(w.list(DOM0, t, "/x").unwrap(), "");
    w.end(DOM0, t).unwrap();
    assert_eq!((w.list(DOM0, 0, "/x").unwrap(), w.store.node_count()), ("".into(), nodes - 2007));
    // Children that went one by one are not counted again with their parent.
    w.write(DOM0, 0, "/x/a/b", "").unwrap();
    let t = w.start(DOM0);
    w.rm(DOM0, t, "/x/a/b").unwrap();
    w.rm(DOM0, t, "/x/a").unwrap();
    w.rm(DOM0, t, "/x").unwrap();
    w.end(DOM0, t).unwrap();
    assert_eq!(w.store.node_count(), nodes - 2008);
    // The nodes below count for the limit of a transaction.
    w.store.set_quota(Some(DomId(1)), Quota::TransactionNodes, 20);
    for i in 0..20 {
        w.write(A, 0, &format!("d/{i}"), "").unwrap();
    }
    let t = w.start(A);
    assert_eq!(w.rm(A, t, "d"), Err(XsError::ENOSPC));
    assert_eq!(w.list(A, t, "d").unwrap().split(' ').count(), 20);
    assert_eq!(w.end(A, t), Err(XsError::ENOMEM));
}

#[test]
fn a_transaction_shows_no_value_that_the_caller_may_not_read() {
    let mut w = World::new();
    w.write(A, 0, "mine", "1").unwrap();
    let t = w.start(A);
    assert_eq!(w.mkdir(A, t, "mine"), Ok(()));
    // The place of the removed node goes to another one, of somebody else.
    w.rm(A, 0, "mine").unwrap();
    w.write(B, 0, "secret", "s").unwrap();
    assert_eq!(w.read(A, t, "mine").unwrap(), "");
    // The same with a node that was made private under its path.
    w.write(B, 0, "shown", "old").unwrap();
    w.perms(B, 0, "shown", "n2,r1").unwrap();
    let t = w.start(A);
    let mut reply = vec![];
    let caller = Caller { conn: A, tx: TxId(t) };
    w.store.get_perms(caller, b"/local/domain/2/shown", &mut reply).unwrap();
    w.perms(B, 0, "shown", "n2").unwrap();
    w.write(B, 0, "shown", "new").unwrap();
    assert_eq!(w.read(A, t, "/local/domain/2/shown").unwrap(), "");
    assert_eq!(w.end(A, t), Err(XsError::EAGAIN));
}

#[test]
fn xsa_421_made_and_removed_in_one_transaction() {
    let mut w = World::new();
    let before = w.nodes_of(1);
    for round in 0..2000 {
        let t = w.start(A);
        w.write(A, t, &format!("one{round}"), "").unwrap();
        w.rm(A, t, &format!("one{round}")).unwrap();
        w.write(A, t, "two", "").unwrap();
        w.end(A, t).unwrap();
    }
    assert_eq!(w.nodes_of(1), before + 1);
}

#[test]
fn xsa_440_two_transactions_remove_the_same_nodes() {
    let mut w = World::new();
    for i in 0..50 {
        w.write(A, 0, &format!("d/{i}"), "").unwrap();
    }
    let (t, u) = (w.start(A), w.start(A));
    for i in 0..50 {
        w.rm(A, t, &format!("d/{i}")).unwrap();
        w.rm(A, u, &format!("d/{i}")).unwrap();
    }
    assert_eq!((w.end(A, t), w.end(A, u)), (Ok(()), Err(XsError::EAGAIN)));
    assert_eq!(w.nodes_of(1), 2);
}

#[test]
fn xsa_272_every_way_of_making_nodes_meets_the_quota() {
    let mut w = World::new();
    w.store.set_quota(Some(DomId(1)), Quota::Nodes, 10);
    // The home counts.
    for i in 0..9 {
        w.write(A, 0, &format!("n{i}"), "").unwrap();
    }
    assert_eq!(w.write(A, 0, "more", ""), Err(XsError::ENOSPC));
    assert_eq!(w.mkdir(A, 0, "more"), Err(XsError::ENOSPC));
    assert_eq!((w.write(A, 0, "n1", "x"), w.mkdir(A, 0, "n1")), (Ok(()), Ok(())));
    let t = w.start(A);
    assert_eq!(w.write(A, t, "more", ""), Err(XsError::ENOSPC));
    // A refused request spoils the transaction.
    assert_eq!(w.end(A, t), Err(XsError::ENOMEM));
    w.write(DOM0, 0, "/local/domain/1/by-dom0", "").unwrap();
    assert_eq!(w.nodes_of(1), 11);
    w.rm(A, 0, "n0").unwrap();
    w.rm(A, 0, "n1").unwrap();
    // XSA-115: several at once are made all or none.
    assert_eq!(w.write(A, 0, "a/b/c", ""), Err(XsError::ENOSPC));
    assert_eq!(w.read(A, 0, "a"), Err(XsError::ENOENT));
    assert_eq!(w.write(A, 0, "a", ""), Ok(()));
    // In a transaction what was removed may be made anew.
    let t = w.start(A);
    for i in 2..9 {
        w.rm(A, t, &format!("n{i}")).unwrap();
        w.write(A, t, &format!("m{i}"), "").unwrap();
    }
    assert_eq!(w.end(A, t), Ok(()));
}

#[test]
fn sizes_transactions_watches_and_entries_are_limited() {
    let mut w = World::new();
    // The header and one entry count 24.
    assert_eq!(w.write(A, 0, "v", &"x".repeat(2024)), Ok(()));
    assert_eq!(w.write(A, 0, "v", &"x".repeat(2025)), Err(XsError::ENOSPC));
    assert_eq!(w.write(A, 0, "u", &"x".repeat(2025)), Err(XsError::ENOSPC));
    for _ in 0..10 {
        w.start(A);
    }
    assert_eq!(w.store.start_transaction(A), Err(XsError::ENOSPC));
    for i in 0..128 {
        w.watch(A, "x", &format!("{i}"));
    }
    assert_eq!(w.store.watch(A, b"x", b"more", None), Err(XsError::ENOSPC));
    assert_eq!(w.store.check_perms_count(A, 5), Ok(()));
    assert_eq!(w.store.check_perms_count(A, 6), Err(XsError::ENOSPC));
    assert_eq!(w.store.check_perms_count(DOM0, 6), Ok(()));
    // RESET_WATCHES gives all of it back (XSA-484, XSA-330).
    w.reset(A);
    w.watch(A, "x", "0");
    assert_eq!(w.start(A), 11);
}

#[test]
fn a_permission_list_too_long_for_its_node_spoils_a_transaction() {
    let mut w = World::new();
    w.write(A, 0, "x", &"v".repeat(2048 - 24)).unwrap();
    let t = w.start(A);
    assert_eq!(w.perms(A, t, "x", "n1,r2"), Err(XsError::ENOSPC));
    assert_eq!(w.end(A, t), Err(XsError::ENOMEM));
}

#[test]
fn xsa_326_a_transaction_touches_only_so_many_nodes() {
    let mut w = World::new();
    w.store.set_quota(Some(DomId(1)), Quota::Memory, 0);
    let t = w.start(A);
    let refused = (0..2000).filter(|i| w.read(A, t, &format!("p{i}")) == Err(XsError::ENOSPC));
    assert!(refused.count() > 900);
    assert_eq!(w.end(A, t), Err(XsError::ENOMEM));
}

#[test]
fn xsa_322_and_419_nothing_of_a_dead_domain_is_left() {
    let mut w = World::new();
    w.write(B, 0, "x", "1").unwrap();
    w.perms(B, 0, "x", "n2,r1").unwrap();
    w.write(DOM0, 0, "/y/below", "").unwrap();
    w.perms(DOM0, 0, "/y", "n1").unwrap();
    w.perms(B, 0, "/local/domain/2", "n2,w1").unwrap();
    w.write(A, 0, "/local/domain/2/of-a/deep", "").unwrap();
    w.watch(B, "of-a", "gone");
    w.events();
    w.store.disconnect(A);
    w.forget(1);
    assert_eq!(w.events(), ["2:of-a:gone"]);
    assert_eq!(w.store.perms_text(b"/local/domain/2/x"), "n2");
    assert_eq!(w.store.perms_text(b"/y"), "missing");
    assert_eq!(w.store.perms_text(b"/local/domain/2/of-a"), "missing");
    assert_eq!(w.store.usage(DomId(1), Quota::Nodes), None);
    w.guest(ConnId(4), 1);
    assert_eq!(w.read(ConnId(4), 0, "/local/domain/2/x"), Err(XsError::EACCES));
    assert_eq!(w.nodes_of(1), 1);
}

#[test]
fn a_special_node_of_a_dead_domain_goes_back_to_the_privileged_one() {
    let mut w = World::new();
    w.perms(DOM0, 0, "@releaseDomain", "r1").unwrap();
    w.perms(DOM0, 0, "/", "r1,n2").unwrap();
    w.store.disconnect(A);
    w.forget(1);
    assert_eq!(w.store.perms_text(b"@releaseDomain"), "r0");
    assert_eq!(w.store.perms_text(b"/"), "r0,n2");
}

#[test]
fn a_node_given_to_a_domain_that_dies_before_the_commit() {
    let mut w = World::new();
    let t = w.start(DOM0);
    w.write(DOM0, t, "/gift", "").unwrap();
    w.perms(DOM0, t, "/gift", "n1").unwrap();
    w.store.disconnect(A);
    w.forget(1);
    w.guest(ConnId(4), 1);
    assert_eq!(w.end(DOM0, t), Err(XsError::EAGAIN));
}

#[test]
fn a_target_lends_its_rights_until_it_dies() {
    let mut w = World::new();
    w.write(A, 0, "x", "1").unwrap();
    w.store.set_target(B, Some(DomId(1)));
    assert_eq!(w.read(B, 0, "/local/domain/1/x").unwrap(), "1");
    w.store.disconnect(A);
    w.store.forget(DomId(1));
    // Nothing is cleared away yet.
    assert_eq!(w.read(B, 0, "/local/domain/1/x"), Err(XsError::EACCES));
    w.forget(1);
    w.guest(ConnId(4), 1);
    w.write(ConnId(4), 0, "x", "1").unwrap();
    assert_eq!(w.read(B, 0, "/local/domain/1/x"), Err(XsError::EACCES));
}

#[test]
fn xsa_72_a_long_directory_comes_in_parts() {
    let mut w = World::new();
    let names: Vec<String> = (0..500).map(|i| format!("child-{i:010}")).collect();
    for name in &names {
        w.write(DOM0, 0, &format!("/d/{name}"), "").unwrap();
    }
    let tx = w.start(DOM0);
    for tx in [0, tx] {
        assert_eq!(w.list(DOM0, tx, "/d"), Err(XsError::E2BIG));
        let mut all: Vec<u8> = vec![];
        loop {
            let mut reply = vec![];
            let caller = Caller { conn: DOM0, tx: TxId(tx) };
            let offset = i64::try_from(all.len()).unwrap();
            w.store.directory_part(caller, b"/d", offset, &mut reply).unwrap();
            assert!(reply.len() <= 4096);
            let body = reply.iter().position(|byte| *byte == 0).unwrap() + 1;
            all.extend_from_slice(&reply[body..]);
            if reply.ends_with(b"\0\0") {
                all.pop();
                break;
            }
        }
        let text = String::from_utf8(all).unwrap();
        assert_eq!(text.split_terminator('\0').collect::<Vec<_>>(), names);
        for beyond in [17 * 500, 100_000, -1] {
            let mut reply = vec![];
            let caller = Caller { conn: DOM0, tx: TxId(tx) };
            w.store.directory_part(caller, b"/d", beyond, &mut reply).unwrap();
            assert!(reply.ends_with(b"\0\0") && reply.len() < 30);
        }
    }
}

#[test]
fn without_headroom_transactions_are_refused_and_events_dropped() {
    let mut w = World::new();
    w.watch(DOM0, "/", "t");
    let t = w.start(DOM0);
    w.store.set_headroom(100);
    assert_eq!(w.read(DOM0, t, "/tool"), Err(XsError::ENOMEM));
    w.write(DOM0, 0, "/a-name-long-enough", "").unwrap();
    assert_eq!((w.events().len(), w.store.dropped_events()), (0, 1));
    assert_eq!(w.end(DOM0, t), Err(XsError::ENOMEM));
}

/// What a live update does with a store: the stream and the fields of the private part.
fn save(store: &Store) -> (Vec<u8>, Vec<u8>) {
    let mut conns: Vec<ConnId> = store.conns.iter().map(|(conn, _)| conn).collect();
    conns.sort_unstable();
    let mut writer = stream::Writer::new(vec![], stream::Version::One).unwrap();
    let mut fields = vec![];
    let mut field_writer = FieldWriter(&mut fields);
    for conn in &conns {
        store.write_watches(*conn, &mut writer).unwrap();
        store.write_watch_fields(*conn, &mut field_writer).unwrap();
        store.write_transactions(*conn, &mut writer).unwrap();
        store.write_transaction_fields(*conn, &mut field_writer).unwrap();
    }
    store.write_nodes(&mut writer).unwrap();
    store.write_node_fields(&mut field_writer).unwrap();
    store.write_touched(conns.iter().copied(), &mut writer).unwrap();
    store.write_touched_fields(conns.iter().copied(), &mut field_writer).unwrap();
    (writer.finish().unwrap(), fields)
}

/// A store made from that. What a server says of domains and connections comes from the old one.
fn restore(
    old: &Store,
    stream: &[u8],
    fields: &[u8],
) -> Result<Store, crate::proto::sentence::Sentence> {
    let initial = old.initial_quotas();
    // Other hash tables, so that nothing depends on their order.
    let mut new = Restoring::new(43, old.privileged(), initial, true).unwrap();
    for domid in old.domids() {
        new.domain(domid, old.accounts(domid).unwrap().0).unwrap();
    }
    for (conn, state) in old.conns.iter() {
        new.connect(conn, state.party, state.last_tx)?;
    }
    let mut fields = FieldReader::new(fields);
    for record in stream::Reader::new(stream).unwrap() {
        match record.unwrap() {
            stream::Record::Watch(watch) => new.watch(&watch, fields.maybe_u32()?)?,
            stream::Record::Transaction(tx) => new.transaction(tx, Some(&mut fields))?,
            stream::Record::Node(node) if node.pending.is_some() => {
                new.touched(&node, &mut fields)?;
            }
            stream::Record::Node(node) => new.node(&node, Some(fields.u64()?))?,
            stream::Record::Global(_)
            | stream::Record::Connection(_)
            | stream::Record::GlobalQuota(_)
            | stream::Record::Domain(_)
            | stream::Record::Unknown(_) => return Err("not of a store".into()),
        }
    }
    if !fields.is_empty() {
        return Err("too many fields".into());
    }
    new.finish(Some(old.generation()), old.dropped)
}

fn hand_over(old: &Store) -> Store {
    let saved = save(old);
    // Who is connected, the server says.
    for (_, fault) in stream::check::check(&saved.0).faults {
        assert!(format!("{fault}").contains("connection"), "{fault}");
    }
    let mut new = restore(old, &saved.0, &saved.1).unwrap();
    assert!(save(&new) == saved, "what was restored is not what was saved");
    for domid in old.domids() {
        let (quotas, peak, _) = old.accounts(domid).unwrap();
        assert!(new.set_peak(domid, peak));
        let (new_quotas, new_peak, _) = new.accounts(domid).unwrap();
        assert_eq!((new_quotas, new_peak), (quotas, peak), "domain {domid}");
        let used = old.used_without_lists(domid);
        assert_eq!(new.used_without_lists(domid), used, "domain {domid}");
    }
    new.check().unwrap();
    new
}

/// A store with something of everything.
fn rich() -> World {
    let mut w = World::new();
    w.write(A, 0, "data/x", "1").unwrap();
    w.write(A, 0, "data/y", "a value longer than fits in place").unwrap();
    w.perms(A, 0, "data/x", "n1,r2,b9").unwrap();
    w.perms(DOM0, 0, "@releaseDomain", "r1").unwrap();
    w.watch(B, "/local/domain/1/data", "t1");
    w.store.watch(A, b"data", b"t2", Some(70_000)).unwrap();
    let t = w.start(A);
    w.write(A, t, "data/z", "2").unwrap();
    w.rm(A, t, "data/x").unwrap();
    w.start(B);
    w
}

#[test]
fn every_damage_of_a_saved_store_is_refused_or_gives_a_sound_store() {
    let w = rich();
    let (stream, fields) = save(&w.store);
    let (mut refused, mut sound) = (0, 0);
    for at in 0..stream.len() + fields.len() {
        for bit in [1, 0x80] {
            let (mut stream, mut fields) = (stream.clone(), fields.clone());
            match at.checked_sub(stream.len()) {
                None => stream[at] ^= bit,
                Some(at) => fields[at] ^= bit,
            }
            // The stream's own damage is its reader's affair.
            let whole = stream::Reader::new(&stream).is_ok_and(|mut all| all.all(|r| r.is_ok()));
            if whole && !matches!(&stream[8..16], [.., 2, 0, 0, 0, 0]) {
                let attempt = AssertUnwindSafe(|| restore(&w.store, &stream, &fields));
                let result = std::panic::catch_unwind(attempt);
                match result {
                    Ok(Ok(mut store)) => {
                        // It may differ, but it holds together.
                        _ = store.reset(A, &mut Budget::endless(), &mut Nobody);
                        _ = store.reset(B, &mut Budget::endless(), &mut Nobody);
                        store.check().unwrap();
                        sound += 1;
                    }
                    Ok(Err(_)) => refused += 1,
                    Err(_) => panic!("byte {at} bit {bit}"),
                }
            }
        }
    }
    assert!(refused > 300 && sound > 100, "{refused} {sound}");
}

#[test]
fn a_cut_private_part_is_refused() {
    let w = rich();
    let (stream, fields) = save(&w.store);
    for len in 0..fields.len() {
        assert!(restore(&w.store, &stream, &fields[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_conflict_before_a_hand_over_is_one_after_it() {
    let mut w = World::new();
    for path in ["/x/a", "/y/a/b", "/z"] {
        w.write(DOM0, 0, path, "1").unwrap();
    }
    let (t, u, v) = (w.start(DOM0), w.start(DOM0), w.start(DOM0));
    w.read(DOM0, t, "/x/a").unwrap();
    w.rm(DOM0, u, "/y").unwrap();
    w.write(DOM0, v, "/z", "2").unwrap();
    w.write(DOM0, 0, "/x/a", "1").unwrap();
    w.write(DOM0, 0, "/y/a/b", "2").unwrap();
    w.store = hand_over(&w.store);
    assert_eq!((w.end(DOM0, t), w.end(DOM0, u)), (Err(XsError::EAGAIN), Err(XsError::EAGAIN)));
    assert_eq!(w.end(DOM0, v), Ok(()));
    assert_eq!(w.read(DOM0, 0, "/z").unwrap(), "2");
}

#[test]
fn a_conflict_after_a_hand_over_is_still_seen() {
    let mut w = World::new();
    w.write(DOM0, 0, "/x/a", "1").unwrap();
    w.write(DOM0, 0, "/y/a/b", "1").unwrap();
    let (t, u, v) = (w.start(DOM0), w.start(DOM0), w.start(DOM0));
    w.read(DOM0, t, "/x/a").unwrap();
    w.rm(DOM0, u, "/y").unwrap();
    w.rm(DOM0, v, "/x").unwrap();
    w.write(DOM0, v, "/x/new", "2").unwrap();
    w.store = hand_over(&w.store);
    w.write(DOM0, 0, "/y/a/b", "2").unwrap();
    assert_eq!((w.end(DOM0, v), w.end(DOM0, t)), (Ok(()), Err(XsError::EAGAIN)));
    assert_eq!(w.end(DOM0, u), Err(XsError::EAGAIN));
    assert_eq!(w.list(DOM0, 0, "/x").unwrap(), "new");
}

#[test]
fn transaction_ids_and_generations_go_on_after_a_hand_over() {
    let mut w = World::new();
    let (t, u) = (w.start(A), w.start(A));
    w.end(A, t).unwrap();
    w.store = hand_over(&w.store);
    assert_eq!(w.start(A), u + 1);
    let before = w.store.generation();
    w.write(A, 0, "x", "").unwrap();
    assert!(w.store.generation() > before);
}

#[test]
fn watches_keep_their_order_and_depth_over_a_hand_over() {
    let mut w = World::new();
    w.store.watch(A, b"", b"no", None).unwrap_err();
    w.watch(A, "x", "z");
    w.watch(A, "x", "a");
    w.store.watch(A, b"x", b"deep", Some(1)).unwrap();
    w.store.watch(A, b"x", b"flat", Some(0)).unwrap();
    w.store = hand_over(&w.store);
    assert_eq!(w.events(), [""; 0]);
    w.write(A, 0, "x/y", "").unwrap();
    assert_eq!(w.events(), ["1:x/y:z", "1:x/y:a", "1:x/y:deep"]);
}
