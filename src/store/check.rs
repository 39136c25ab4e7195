//! The consistency check: everything that is counted is recounted from the data, and everything that is
//! linked twice is followed both ways.
//!
//! It looks at the whole store and is meant for CONTROL `check` and for tests.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "for tests: no server calls it for anybody"
    )
)]

use super::Store;
use super::quota::Quota;
use super::tree::{Found, ROOT, entry_bytes};
use super::watch::watch_bytes;
use crate::mem::NIL;
use crate::proto::id::DomId;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{Arguments, Write};

/// More findings than this are not listed: they have one cause.
const FINDINGS_MAX: usize = 50;

/// What was found wrong, one finding a line.
#[derive(Debug, Default)]
struct Findings {
    text: String,
    count: usize,
}

impl Findings {
    fn expect(&mut self, holds: bool, what: Arguments<'_>) {
        if !holds {
            self.count = self.count.saturating_add(1);
            if self.count <= FINDINGS_MAX {
                let _infallible = writeln!(self.text, "{what}");
            }
        }
    }
}

/// What one domain uses, recounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Recount {
    nodes: usize,
    watches: usize,
    transactions: usize,
    bytes: usize,
}

type Recounts = BTreeMap<DomId, Recount>;

fn add(to: &mut usize, amount: usize) {
    *to = to.saturating_add(amount);
}

impl Store {
    /// Checks everything.
    ///
    /// # Errors
    /// What is wrong, one finding a line.
    pub fn check(&self) -> Result<(), String> {
        let mut findings = Findings::default();
        let mut recounts = Recounts::new();
        self.check_nodes(&mut findings, &mut recounts);
        self.check_shared(&mut findings);
        self.check_watches(&mut findings, &mut recounts);
        self.check_transactions(&mut findings, &mut recounts);
        self.check_domains(&mut findings, &recounts);
        if findings.count == 0 { Ok(()) } else { Err(findings.text) }
    }

    fn check_nodes(&self, findings: &mut Findings, recounts: &mut Recounts) {
        let tree = &self.tree;
        let mut seen = 0_usize;
        let mut waiting = Vec::from([ROOT, tree.special[0], tree.special[1]]);
        while let Some(at) = waiting.pop() {
            let Some(node) = tree.node(at) else {
                findings.expect(false, format_args!("node {at} is linked but does not exist"));
                continue;
            };
            add(&mut seen, 1);
            if seen > tree.len() {
                break;
            }
            let owner = tree.entries(node.list).first();
            let fine = owner.is_some_and(|owner| !owner.stale && self.knows(owner.domid));
            findings.expect(fine, format_args!("node {at} has no owner that is tracked"));
            let count = recounts.entry(tree.owner(node.list)).or_default();
            add(&mut count.nodes, 1);
            add(&mut count.bytes, tree.bytes(node));
            let (mut prev, mut bytes) = (NIL, 0_u32);
            for (handle, child) in tree.children(at).take(tree.len()) {
                let name = tree.name(child);
                let linked = child.parent == at && child.prev == prev;
                findings.expect(linked, format_args!("node {handle} is linked wrongly"));
                let found = tree.child(at, name) == Some(handle);
                findings.expect(found, format_args!("node {handle} is not found by its name"));
                bytes = bytes.saturating_add(entry_bytes(name));
                prev = handle;
                waiting.push(handle);
            }
            let family = tree.family(node);
            let ends = family.last == prev && family.bytes == bytes;
            findings.expect(ends, format_args!("node {at} counts its children wrongly"));
        }
        let total = tree.len();
        findings.expect(seen == total, format_args!("{seen} nodes are linked, {total} exist"));
    }

    /// The users of names and permission lists.
    fn check_shared(&self, findings: &mut Findings) {
        let mut names: BTreeMap<u32, u32> = BTreeMap::new();
        let mut lists: BTreeMap<u32, u32> = BTreeMap::new();
        let count = |map: &mut BTreeMap<u32, u32>, key| {
            let users = map.entry(key).or_default();
            *users = users.saturating_add(1);
        };
        for (_, node) in self.tree.nodes.iter() {
            if node.name != NIL {
                count(&mut names, node.name);
            }
            count(&mut lists, node.list);
        }
        count(&mut lists, self.tree.private);
        for list in self.transactions.list_uses() {
            count(&mut lists, list);
        }
        for name in self.transactions.name_uses().chain(self.watches.name_uses()) {
            count(&mut names, name);
        }
        for (name, users) in self.tree.names() {
            let real = names.remove(&name).unwrap_or(0);
            findings
                .expect(users == real, format_args!("name {name} has {real} users, not {users}"));
        }
        for (handle, list) in self.tree.lists() {
            let (users, real) = (list.users, lists.remove(&handle).unwrap_or(0));
            findings
                .expect(users == real, format_args!("list {handle} has {real} users, not {users}"));
        }
        for domid in self.domids() {
            let real = self.tree.rights_expected(domid);
            let linked = self.tree.rights_of(domid, real.saturating_add(1));
            findings.expect(
                linked == real,
                format_args!("domain {domid} has {real} rights, {linked} are linked"),
            );
        }
        let (said, real) = (self.tree.blocks(), self.tree.recount_blocks());
        findings.expect(said == real, format_args!("blocks take {real:?}, not {said:?}"));
        let lost = names.len().saturating_add(lists.len());
        findings.expect(lost == 0, format_args!("{lost} names or lists are used but not there"));
    }

    fn check_watches(&self, findings: &mut Findings, recounts: &mut Recounts) {
        let mut seen = 0_usize;
        let faults = self.watches.faults();
        findings.expect(faults == 0, format_args!("{faults} places of watches are wrong"));
        for (conn, state) in self.conns.iter() {
            for watch in self.watches.of(state) {
                let mut path = Vec::new();
                let _known = self.watches.path(&self.tree, watch, &mut path);
                let found = self.watches.find(&self.tree, conn, &path, &watch.token);
                let same = found.and_then(|found| self.watches.get(found));
                let fine =
                    watch.conn == conn && same.is_some_and(|same| core::ptr::eq(same, watch));
                findings.expect(fine, format_args!("a watch of {conn:?} is not found"));
                add(&mut seen, 1);
                let count = recounts.entry(state.party.domid).or_default();
                add(&mut count.watches, 1);
                add(&mut count.bytes, watch_bytes(&path, &watch.token));
            }
        }
        let total = self.watches.len();
        findings.expect(seen == total, format_args!("{seen} watches are linked, {total} exist"));
    }

    fn check_transactions(&self, findings: &mut Findings, recounts: &mut Recounts) {
        let (made, aside) = (self.transactions.made(), self.tree.aside());
        findings.expect(made == aside, format_args!("{made} nodes are made, {aside} stand aside"));
        let counted = self.transactions.recount(&self.tree);
        let mut seen = 0_usize;
        for (conn, state) in self.conns.iter() {
            let open = self.transactions.of(state.open);
            for (handle, tx) in open {
                let found = self.transactions.find(conn, tx.id) == Some(handle);
                findings.expect(found, format_args!("{:?} of {conn:?} is not found", tx.id));
                let real = counted.get(&handle).copied().unwrap_or_default();
                findings.expect(
                    tx.bytes == real,
                    format_args!("{:?} of {conn:?} holds {real} bytes, not {}", tx.id, tx.bytes),
                );
                add(&mut seen, 1);
                let count = recounts.entry(state.party.domid).or_default();
                add(&mut count.transactions, 1);
                add(&mut count.bytes, tx.bytes);
            }
        }
        let total = self.transactions.open();
        let fine = seen == total && counted.len() == total;
        findings.expect(fine, format_args!("{seen} transactions are linked, {total} are open"));
    }

    fn check_domains(&self, findings: &mut Findings, recounts: &Recounts) {
        for domid in recounts.keys() {
            findings.expect(self.knows(*domid), format_args!("domain {domid} is not tracked"));
        }
        let mut lists: BTreeMap<DomId, usize> = BTreeMap::new();
        for (handle, list) in self.tree.lists().filter(|(_, list)| list.is_paid()) {
            add(lists.entry(self.tree.owner(handle)).or_default(), list.bytes());
        }
        let owned = recounts.iter().filter(|(domid, _)| **domid != self.privileged());
        let owned = owned.fold(0_usize, |sum, (_, count)| sum.saturating_add(count.nodes));
        let records = self.tree.owned_count();
        findings.expect(owned == records, format_args!("{owned} nodes are owned, not {records}"));
        for domid in self.domids() {
            let Some(domain) = self.tree.domains.get(domid) else { continue };
            let real = recounts.get(&domid).copied().unwrap_or_default();
            let used = |quota| domain.used.get(quota) as usize;
            let counted = Recount {
                nodes: used(Quota::Nodes),
                watches: used(Quota::Watches),
                transactions: used(Quota::Transactions),
                bytes: used(Quota::Memory)
                    .saturating_sub(domain.queued)
                    .saturating_sub(domain.listed),
            };
            let listed = lists.get(&domid).copied().unwrap_or_default();
            findings.expect(
                listed == domain.listed,
                format_args!("lists of {domid} take {listed} bytes, not {}", domain.listed),
            );
            findings.expect(
                counted == real,
                format_args!("domain {domid} uses {real:?}, its account says {counted:?}"),
            );
            let listed = self.tree.owned_by(domid).take(real.nodes.saturating_add(1)).count();
            let owned = listed == if domid == self.privileged() { 0 } else { real.nodes };
            findings.expect(owned, format_args!("domain {domid} does not list what it owns"));
            for node in self.tree.owned_by(domid).take(real.nodes) {
                let mut path = Vec::new();
                let _known = self.tree.path_to(node, &mut path);
                let special = self.tree.special.contains(&node);
                let there = special || self.tree.find(&path) == Found::Node(node);
                findings
                    .expect(there, format_args!("domain {domid} owns node {node}, which is lost"));
            }
        }
    }
}
