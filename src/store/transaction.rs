//! Transactions: an overlay of touched nodes over the live tree.
//!
//! # What a transaction sees
//! Nothing is copied when it starts. What is accessed is recorded: reads, probes whether something
//! exists, and the parents consulted on the way all count. Permissions are kept from the first access on,
//! a value from the moment it is read or written; nodes that were not touched show their present state. A path
//! probed as missing stays missing, and so does all below. The list of a touched node's children is not kept: if it changes,
//! the transaction cannot commit any more, and until it ends it may see the change.
//!
//! # How it is kept
//! As a tree of [`Touched`] records, found by the record above and the name, so that a request walks its path once, through
//! the live tree and the overlay side by side. A record above one that was accessed, which was not accessed itself, is
//! only a step on the way: it counts for nothing but its memory.
//!
//! What a request makes is made at once, but stands aside until the commit: so memory is refused to the request, and a
//! commit allocates nothing. What is removed together with a node is not listed: none of the live nodes below may have a
//! generation newer than the removal, and that is looked at when the transaction commits.
//!
//! # When it conflicts
//! At commit every node that it touched must still have the generation it had at the first access.
//! A path that was missing needs no look of its own, because the nearest node above was touched too, and gets
//! a new generation when a child appears. So:
//!
//! 1. A reads `/x`; B, outside or in a transaction of its own, writes `/x`; A ends with EAGAIN.
//! 2. A writes `/x/a`, B writes `/x/b`, both new: the second to commit fails, since both changed
//!    the children of `/x`.
//! 3. A writes `/x` and B writes `/y`: both commit, in any order.
//! 4. A finds `/x/a` missing, B makes and removes it: A fails, since `/x` has a new generation.
//!
//! Everybody else is free at all times: requests outside transactions never fail because of one.

mod books;
mod check;
mod commit;
mod deep;
mod fill;
mod handover;
mod hidden;
mod overlay;
mod restore;
mod save;
mod session;

#[cfg(test)]
pub(super) mod steps;

pub(super) use deep::WayAhead;
pub(super) use fill::Fill;
pub(super) use overlay::Open;
pub(super) use restore::TransactionHead;

use super::tree::{Tree, Value};
use super::watch::Class;
use crate::mem::{NIL, Record, Table};
use crate::proto::id::{ConnId, DomId, TxId};
use overlay::mix;

/// The live node as it was at the first access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    /// `NIL` if it was another one already when the transaction was handed over.
    pub(super) node: u32,
    /// Its permissions then, with a use of their own.
    pub(super) list: u32,
    pub(super) generation: u64,
}

/// A node as the transaction sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Now {
    /// With a use of its own.
    pub(super) list: u32,
    pub(super) children_bytes: u32,
    pub(super) generation: u64,
}

/// A path that a transaction has accessed, or one above such a path.
#[derive(Debug)]
pub(super) struct Touched {
    /// The record above. Of the root and of special names it is the transaction, marked as such.
    parent: u32,
    /// The name in the tree, with a use of its own; `NIL` for the root.
    name: u32,
    chain: u32,
    /// The records below: those that were made in the transaction in the order in which they were made.
    first: u32,
    last: u32,
    next: u32,
    prev: u32,
    /// The next one in the order of the first access.
    after: u32,
    /// The how-manieth it was.
    number: u32,
    /// Whether it was accessed itself.
    accessed: bool,
    /// The value or the permissions are other than the live ones.
    modified: bool,
    /// Nodes below it were made in the transaction, perhaps removed since.
    has_made: bool,
    /// A place for another owner is kept.
    promised: bool,
    /// The event to send at commit.
    event: Option<Class>,
    /// The live node at the path, as the last request that came by has found it.
    seen: u32,
    /// The node made in the transaction, in no tree before the commit, or `NIL`. It has no live children.
    made: u32,
    /// Live nodes that went with it when it was removed, as far as they were counted.
    below: u32,
    /// The newest generation there was when it was removed together with what was below; `None` if it was not.
    removed_at: Option<u64>,
    /// `None` if there was nothing at the first access.
    base: Option<Base>,
    /// `None` if there is nothing as the transaction sees it.
    pub(super) now: Option<Now>,
    /// The value that was read or written. `None` as long as nobody asked for it: it is the live one. That of a
    /// node made here is in the node.
    value: Option<Value>,
}

impl Record for Touched {
    fn hash(&self, seed: u64) -> u64 {
        mix(seed, self.parent, self.name)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// How far a transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Requests may name it.
    Open,
    /// It was committed: what it did is told.
    Telling {
        /// This record next.
        at: u32,
        /// The node below it that was told last, of those removed with it; `NIL` if it has not begun.
        below: u32,
    },
    /// Its records are freed.
    Leaving,
}

/// A transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) conn: ConnId,
    pub(super) id: TxId,
    /// The connection's domain, which pays.
    domid: DomId,
    state: State,
    /// A request in it failed for want of quota or memory: it cannot commit.
    pub(super) poisoned: bool,
    /// Bytes charged to the domain.
    pub(super) bytes: usize,
    /// How many paths it has accessed.
    accessed: u32,
    /// Live nodes that were removed with others.
    below: usize,
    /// How many nodes more its domain would own.
    delta: i64,
    /// The record of the root, which is there as soon as any is.
    root: u32,
    /// Records of special names, which have none above.
    special: u32,
    /// The ends of the records in the order of first access.
    first: u32,
    last: u32,
    /// Neighbours among the open transactions of its connection.
    prev: u32,
    next: u32,
    chain: u32,
}

impl Transaction {
    /// Forgets what it has done, but not that it cannot commit.
    fn empty(&mut self) {
        self.bytes = TRANSACTION_BYTES;
        (self.accessed, self.below, self.delta) = (0, 0, 0);
        [self.root, self.special, self.first, self.last] = [NIL; 4];
    }
}

impl Record for Transaction {
    fn hash(&self, seed: u64) -> u64 {
        mix(seed, self.conn.0, self.id.0)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// The open transactions of a connection, in the order of their start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpenOf {
    first: u32,
    last: u32,
}

impl OpenOf {
    /// None.
    pub(super) const NONE: Self = Self { first: NIL, last: NIL };
}

/// The records of all transactions.
#[derive(Debug)]
pub(super) struct Places(Table<Touched>);

/// All transactions with all that they have touched.
#[derive(Debug)]
pub(super) struct Transactions {
    heads: Table<Transaction>,
    places: Places,
    /// How many are open.
    open: usize,
}

/// What a transaction itself counts for in its domain's memory.
pub(super) const TRANSACTION_BYTES: usize = Table::<Transaction>::RECORD_BYTES;

/// Upper bound of what one record takes when a transaction is restored, with a name of a few bytes.
pub(super) const TOUCH_COST: usize = TOUCHED_BYTES + Tree::NAME_BYTES;

/// What a record counts for, besides its name and value.
const TOUCHED_BYTES: usize = Table::<Touched>::RECORD_BYTES;

impl Transactions {
    pub(super) const fn new(seed: u64) -> Self {
        Self { heads: Table::new(seed), places: Places(Table::new(seed)), open: 0 }
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Bytes that they take of the allocator, without values and names.
    pub(super) fn taken(&self) -> usize {
        self.heads.taken().saturating_add(self.places.taken())
    }

    /// What is charged for transactions and their records, without values, the blocks of names and nodes that were made; and
    /// what the records take of that, without the names.
    pub(super) fn charged(&self) -> (usize, usize) {
        let heads = self.heads.len().saturating_mul(TRANSACTION_BYTES);
        let records = self.places.len();
        let alone = heads.saturating_add(records.saturating_mul(TOUCHED_BYTES));
        (alone.saturating_add(records.saturating_mul(Tree::NAME_BYTES)), alone)
    }
}
