//! The rules that the records of a stream must keep together, so that a server can be made of them.
//!
//! [`Reader`] checks the layout of each record. This checks what the records say about each other. The rules are
//! those of the document ("Records": a record comes after those that it depends on; and each record's own
//! section), and those that any server relies on.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "for programs of the host: no server calls it"
    )
)]

use super::Version;
use super::read::{Reader, StreamError};
use super::record::{Connection, Domain, Endpoint, Node, Record, Touch, Transaction, Watch};
use crate::proto::id::{ConnId, DomId, TxId};
use crate::proto::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;

/// More faults than this are not listed: they have one cause.
const FAULTS_MAX: usize = 50;

/// What is wrong with a record in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A second record of a type that there may be one of.
    Twice(&'static str),
    /// A connection with the number 0, which stands for none.
    NoNumber,
    /// A second connection of this number.
    SameConnection(ConnId),
    /// A second ring of this domain.
    SameRing(DomId),
    /// A ring of a domain that cannot exist.
    Reserved(DomId),
    /// A domain is its own target.
    OwnTarget(DomId),
    /// A message that no client could have sent or been sent.
    LongMessage {
        /// Whose.
        conn: ConnId,
        /// Bytes of payload.
        len: u32,
    },
    /// Output that stops in the middle of a message.
    CutMessage(ConnId),
    /// A connection is named that no record has described before.
    NoConnection(ConnId),
    /// A watch for nothing.
    NoWatchPath,
    /// A transaction with the number 0, which stands for none.
    NoTransactionNumber,
    /// A second transaction of these numbers.
    SameTransaction(ConnId, TxId),
    /// A transaction is named that no record has described before.
    NoTransaction(ConnId, TxId),
    /// A path that no node can have.
    BadPath,
    /// A second record of the same node.
    SameNode,
    /// A node before the one above it.
    NoParent,
    /// A node without permissions, and so without owner.
    NoPermissions,
    /// A deleted node with a value or permissions.
    Remains,
    /// A second record of this domain.
    SameDomain(DomId),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice(kind) => write!(f, "there is a second {kind}"),
            Self::NoNumber => write!(f, "a connection has the number 0"),
            Self::SameConnection(conn) => write!(f, "there is a second connection {}", conn.0),
            Self::SameRing(domid) => write!(f, "there is a second ring of domain {domid}"),
            Self::Reserved(domid) => write!(f, "no domain can have the id {domid}"),
            Self::OwnTarget(domid) => write!(f, "domain {domid} is its own target"),
            Self::LongMessage { conn, len } => {
                write!(f, "connection {} has a message with {len} bytes of payload", conn.0)
            }
            Self::CutMessage(conn) => {
                write!(f, "the output of connection {} stops inside a message", conn.0)
            }
            Self::NoConnection(conn) => write!(f, "there is no connection {} before", conn.0),
            Self::NoWatchPath => write!(f, "the path of a watch is empty"),
            Self::NoTransactionNumber => write!(f, "a transaction has the number 0"),
            Self::SameTransaction(conn, tx) => {
                write!(f, "connection {} has a second transaction {}", conn.0, tx.0)
            }
            Self::NoTransaction(conn, tx) => {
                write!(f, "connection {} has no transaction {} before", conn.0, tx.0)
            }
            Self::BadPath => write!(f, "no node can have this path"),
            Self::SameNode => write!(f, "there is a second record of the node"),
            Self::NoParent => write!(f, "the node above is missing before"),
            Self::NoPermissions => write!(f, "the node has no permissions"),
            Self::Remains => write!(f, "a deleted node has a value or permissions"),
            Self::SameDomain(domid) => write!(f, "there is a second record of domain {domid}"),
        }
    }
}

/// Checks records one by one, and remembers what later ones may refer to.
#[derive(Clone, Debug, Default)]
pub struct Checker<'a> {
    global: bool,
    global_quota: bool,
    conns: BTreeSet<ConnId>,
    rings: BTreeSet<DomId>,
    transactions: BTreeSet<(ConnId, TxId)>,
    domains: BTreeSet<DomId>,
    /// Committed nodes have connection and transaction 0. `None` if the caller knows the nodes.
    nodes: Option<BTreeSet<(ConnId, TxId, &'a [u8])>>,
}

impl<'a> Checker<'a> {
    /// A checker that remembers every node.
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: Some(BTreeSet::new()), ..Self::default() }
    }

    /// A checker that remembers no nodes, for a caller that makes them as they come. That caller has to check that
    /// the node above is there and the node itself is not.
    #[must_use]
    pub fn without_nodes() -> Self {
        Self::default()
    }

    /// Checks the next record.
    ///
    /// # Errors
    /// The first thing that is wrong with it. What it introduces counts as known even so, lest every record that
    /// refers to it be found faulty, too.
    pub fn record(&mut self, record: &Record<'a>) -> Result<(), Fault> {
        match record {
            Record::Global(_) if core::mem::replace(&mut self.global, true) => {
                Err(Fault::Twice("GLOBAL_DATA"))
            }
            Record::GlobalQuota(_) if core::mem::replace(&mut self.global_quota, true) => {
                Err(Fault::Twice("GLOBAL_QUOTA_DATA"))
            }
            Record::Global(_) | Record::GlobalQuota(_) | Record::Unknown(_) => Ok(()),
            Record::Connection(connection) => self.connection(connection),
            Record::Watch(watch) => self.watch(watch),
            Record::Transaction(transaction) => self.transaction(*transaction),
            Record::Node(node) => self.node(node),
            Record::Domain(domain) => self.domain(domain),
        }
    }

    fn connection(&mut self, connection: &Connection<'_>) -> Result<(), Fault> {
        let conn = connection.id;
        expect(self.conns.insert(conn), Fault::SameConnection(conn))?;
        expect(conn != ConnId(0), Fault::NoNumber)?;
        if let Endpoint::Ring { domid, target, .. } = connection.endpoint {
            expect(self.rings.insert(domid), Fault::SameRing(domid))?;
            for one in [Some(domid), target].into_iter().flatten() {
                expect(one.is_ordinary(), Fault::Reserved(one))?;
            }
            expect(target != Some(domid), Fault::OwnTarget(domid))?;
        }
        // Input may stop anywhere: the last request is still being read.
        unfinished(conn, connection.input)?;
        let whole = connection.output.get(usize::from(connection.partial)..).unwrap_or(&[]);
        expect(unfinished(conn, whole)?.is_empty(), Fault::CutMessage(conn))
    }

    fn known(&self, conn: ConnId) -> Result<(), Fault> {
        expect(self.conns.contains(&conn), Fault::NoConnection(conn))
    }

    fn watch(&self, watch: &Watch<'_>) -> Result<(), Fault> {
        self.known(watch.conn)?;
        expect(!watch.path.is_empty(), Fault::NoWatchPath)
    }

    fn transaction(&mut self, transaction: Transaction) -> Result<(), Fault> {
        let Transaction { conn, tx } = transaction;
        expect(self.transactions.insert((conn, tx)), Fault::SameTransaction(conn, tx))?;
        expect(tx != TxId::NONE, Fault::NoTransactionNumber)?;
        self.known(conn)
    }

    fn node(&mut self, node: &Node<'a>) -> Result<(), Fault> {
        let owner = node.pending.map_or((ConnId(0), TxId::NONE), |p| (p.conn, p.tx));
        let fresh = match &mut self.nodes {
            Some(nodes) => nodes.insert((owner.0, owner.1, node.path)),
            None => true,
        };
        expect(is_node_path(node.path), Fault::BadPath)?;
        expect(fresh, Fault::SameNode)?;
        match node.pending {
            None => {
                expect(self.has_parent(node.path), Fault::NoParent)?;
                expect(!node.perms.is_empty(), Fault::NoPermissions)
            }
            Some(pending) => {
                self.known(pending.conn)?;
                let known = self.transactions.contains(&owner);
                expect(known, Fault::NoTransaction(pending.conn, pending.tx))?;
                if pending.touch == Touch::Deleted {
                    expect(node.perms.is_empty() && node.value.is_empty(), Fault::Remains)
                } else {
                    expect(!node.perms.is_empty(), Fault::NoPermissions)
                }
            }
        }
    }

    /// Whether the node above is known; `/` and the special nodes have none.
    fn has_parent(&self, path: &[u8]) -> bool {
        let Some(nodes) = &self.nodes else { return true };
        let above = match path.iter().rposition(|byte| *byte == b'/') {
            None => return true,
            Some(0) if path.len() == 1 => return true,
            Some(0) => &b"/"[..],
            Some(end) => path.get(..end).unwrap_or(path),
        };
        nodes.contains(&(ConnId(0), TxId::NONE, above))
    }

    fn domain(&mut self, domain: &Domain<'_>) -> Result<(), Fault> {
        expect(self.domains.insert(domain.domid), Fault::SameDomain(domain.domid))
    }
}

fn expect(holds: bool, fault: Fault) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(fault) }
}

/// The message that the bytes stop in; empty if they stop between two.
fn unfinished(conn: ConnId, messages: &[u8]) -> Result<&[u8], Fault> {
    let mut rest = messages;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let len = Header::from_bytes(header).len;
        expect(len as usize <= PAYLOAD_MAX, Fault::LongMessage { conn, len })?;
        let Some(next) = after.get(len as usize..) else { break };
        rest = next;
    }
    Ok(rest)
}

/// `/`, names with a `/` in front of each, or a special name. What a name may consist of is the store's business.
fn is_node_path(path: &[u8]) -> bool {
    match path {
        b"/" => true,
        [b'/', names @ ..] => names.split(|byte| *byte == b'/').all(|name| !name.is_empty()),
        [b'@', name @ ..] => !name.is_empty() && !name.contains(&b'/'),
        _ => false,
    }
}

/// How many records of which kind a stream has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub connections: usize,
    pub watches: usize,
    pub transactions: usize,
    pub nodes: usize,
    /// Nodes of transactions.
    pub pending: usize,
    pub domains: usize,
    pub unknown: usize,
}

impl Counts {
    fn add(&mut self, record: &Record<'_>) {
        let place = match record {
            Record::Global(_) | Record::GlobalQuota(_) => return,
            Record::Connection(_) => &mut self.connections,
            Record::Watch(_) => &mut self.watches,
            Record::Transaction(_) => &mut self.transactions,
            Record::Node(node) if node.pending.is_some() => &mut self.pending,
            Record::Node(_) => &mut self.nodes,
            Record::Domain(_) => &mut self.domains,
            Record::Unknown(_) => &mut self.unknown,
        };
        *place = place.saturating_add(1);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, watches, transactions, nodes, pending, domains, unknown } = self;
        write!(f, "{connections} connections, {watches} watches, {transactions} transactions, ")?;
        write!(f, "{nodes} nodes, {pending} of transactions, {domains} domains")?;
        if *unknown == 0 { Ok(()) } else { write!(f, ", {unknown} records of unknown types") }
    }
}

/// What a look at a whole stream has shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// The version; `None` if there is no preamble.
    pub version: Option<Version>,
    /// What it holds, as far as it could be read.
    pub counts: Counts,
    /// The first faults, each with the byte at which the record starts.
    pub faults: Vec<(usize, Fault)>,
    /// Faults that are not listed.
    pub more_faults: usize,
    /// Why it could not be read to the end.
    pub error: Option<StreamError>,
}

impl Report {
    /// Whether a server can be made of the stream.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.error.is_none()
    }
}

/// A sentence a line, what the stream holds last.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (offset, fault) in &self.faults {
            writeln!(f, "byte {offset}: {fault}")?;
        }
        if self.more_faults > 0 {
            writeln!(f, "and {} more", self.more_faults)?;
        }
        if let Some(error) = self.error {
            writeln!(f, "{error}")?;
        }
        match self.version {
            Some(version) => write!(f, "version {}: {}", version.number(), self.counts),
            None => write!(f, "nothing was read"),
        }
    }
}

/// Reads a whole stream and judges it. What it remembers of a record is smaller than twice the record.
#[must_use]
pub fn check(stream: &[u8]) -> Report {
    let mut report = Report {
        version: None,
        counts: Counts::default(),
        faults: Vec::new(),
        more_faults: 0,
        error: None,
    };
    let mut reader = match Reader::new(stream) {
        Ok(reader) => reader,
        Err(error) => return Report { error: Some(error), ..report },
    };
    report.version = Some(reader.version());
    let mut checker = Checker::new();
    loop {
        let offset = reader.offset();
        match reader.next() {
            None => return report,
            Some(Err(error)) => return Report { error: Some(error), ..report },
            Some(Ok(record)) => {
                report.counts.add(&record);
                if let Err(fault) = checker.record(&record) {
                    if report.faults.len() < FAULTS_MAX {
                        report.faults.push((offset, fault));
                    } else {
                        report.more_faults = report.more_faults.saturating_add(1);
                    }
                }
            }
        }
    }
}
