//! The records as types, the same for reading and writing.

use super::{ByteOrder, STALE};
use crate::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use crate::proto::perms::{Access, Entry};
use core::fmt;

/// A record's type (the document, "Records").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the document's own")]
pub enum RecordKind {
    End = 0,
    Global = 1,
    Connection = 2,
    Watch = 3,
    Transaction = 4,
    Node = 5,
    GlobalQuota = 6,
    Domain = 7,
    WatchExtended = 8,
}

impl RecordKind {
    /// Every type, in numeric order.
    pub const ALL: [Self; 9] = [
        Self::End,
        Self::Global,
        Self::Connection,
        Self::Watch,
        Self::Transaction,
        Self::Node,
        Self::GlobalQuota,
        Self::Domain,
        Self::WatchExtended,
    ];

    /// The type with this number; `None` for the reserved ones, which a reader skips.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The number in the stream.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::End => "END",
            Self::Global => "GLOBAL_DATA",
            Self::Connection => "CONNECTION_DATA",
            Self::Watch => "WATCH_DATA",
            Self::Transaction => "TRANSACTION_DATA",
            Self::Node => "NODE_DATA",
            Self::GlobalQuota => "GLOBAL_QUOTA_DATA",
            Self::Domain => "DOMAIN_DATA",
            Self::WatchExtended => "WATCH_DATA_EXTENDED",
        })
    }
}

/// A record of a stream, END excepted: that is where a [`Reader`](super::Reader) stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is its type, which says what it is")]
pub enum Record<'a> {
    Global(Global),
    Connection(Connection<'a>),
    Watch(Watch<'a>),
    Transaction(Transaction),
    Node(Node<'a>),
    GlobalQuota(GlobalQuota<'a>),
    Domain(Domain<'a>),
    Unknown(Unknown<'a>),
}

/// What only a daemon can use (the document, "`GLOBAL_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Global {
    /// The descriptor of the socket that connections are accepted on, [`NO_SOCKET`](Self::NO_SOCKET) for none.
    pub socket: i32,
    /// The descriptor of the event channel device.
    pub evtchn: i32,
}

impl Global {
    /// "Sockets are not used".
    pub const NO_SOCKET: i32 = -1;
}

/// A connection, and what is under way on it (the document, "`CONNECTION_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection<'a> {
    /// Names it in other records; not 0.
    pub id: ConnId,
    /// How it is connected.
    pub endpoint: Endpoint,
    /// Bytes that were read and not yet processed: whole requests, then the beginning of one.
    pub input: &'a [u8],
    /// Bytes that were not yet written: the rest of a message, then whole messages.
    pub output: &'a [u8],
    /// Bytes of `output` that are the rest of a message whose first bytes were written.
    pub partial: u16,
    /// What distinguishes the domain from earlier and later ones with its domid.
    pub unique_id: Option<u64>,
}

/// The other side of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A shared page, which is grant entry 1 of the domain.
    Ring {
        /// Whose page it is.
        domid: DomId,
        /// The domain whose rights it has besides its own (SET_TARGET).
        target: Option<DomId>,
        /// The server's own port of the channel between the two.
        port: EvtchnPort,
    },
    /// A socket of the daemon.
    Socket {
        /// Its descriptor.
        fd: i32,
    },
}

/// A watch (the document, "`WATCH_DATA`" and "`WATCH_DATA_EXTENDED`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch<'a> {
    /// Who watches.
    pub conn: ConnId,
    /// The path as the client spelled it, relative ones included.
    pub path: &'a [u8],
    /// What the client calls the watch.
    pub token: &'a [u8],
    /// How many levels below the path count; `None` for all. 0xffff, which no path is deep enough for, is read
    /// as `None`. Version 1 has no depths: written there, the watch sees all levels.
    pub depth: Option<u16>,
}

/// A transaction that is open (the document, "`TRANSACTION_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Whose it is.
    pub conn: ConnId,
    /// Its id, as the client knows it.
    pub tx: TxId,
}

/// A node (the document, "`NODE_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node<'a> {
    /// The absolute path, or one of the special names.
    pub path: &'a [u8],
    /// The value, any bytes.
    pub value: &'a [u8],
    /// The permissions, the owner's first; none if the node was deleted in a transaction.
    pub perms: Perms<'a>,
    /// `None` if everybody sees the node so.
    pub pending: Option<Pending>,
}

/// What makes a node one of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Whose transaction; not 0.
    pub conn: ConnId,
    /// Which.
    pub tx: TxId,
    /// What was done with the node in it.
    pub touch: Touch,
}

/// What a transaction has done with a node: the field `access` of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Touch {
    Deleted = 0,
    Read = 1,
    Written = 2,
    ReadAndWritten = 3,
}

impl Touch {
    /// The touch with these bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Option<Self> {
        match bits {
            0 => Some(Self::Deleted),
            1 => Some(Self::Read),
            2 => Some(Self::Written),
            3 => Some(Self::ReadAndWritten),
            _ => None,
        }
    }

    /// The bits in the stream.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self as u16
    }
}

/// Limits for all domains (the document, "`GLOBAL_QUOTA_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GlobalQuota<'a> {
    /// What a domain starts with.
    pub per_domain: Quotas<'a>,
    /// Limits that no domain has of its own.
    pub global_only: Quotas<'a>,
}

/// A domain (the document, "`DOMAIN_DATA`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Domain<'a> {
    /// Which.
    pub domid: DomId,
    /// The features that it was offered; `None` in version 1, where the field means nothing.
    pub features: Option<u32>,
    /// Its own limits.
    pub quotas: Quotas<'a>,
}

/// A record of a type that the version does not have; to be skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown<'a> {
    /// The type's number.
    pub kind: u32,
    /// Its body.
    pub body: &'a [u8],
}

/// A permission list: one of a stream, or one of ours that is being written.
#[derive(Clone, Copy, Debug)]
pub struct Perms<'a>(PermsFrom<'a>);

#[derive(Clone, Copy, Debug)]
enum PermsFrom<'a> {
    List(&'a [Entry]),
    /// 4 bytes an entry, each looked at before.
    Stream(&'a [u8], ByteOrder),
}

impl<'a> Perms<'a> {
    /// No entry at all.
    pub const NONE: Self = Self(PermsFrom::List(&[]));

    /// The list of a stream, `None` if an entry has a letter that does not exist.
    pub(super) fn from_stream(bytes: &'a [u8], order: ByteOrder) -> Option<Self> {
        let fine = bytes.chunks_exact(4).all(|raw| entry(raw, order).is_some());
        fine.then_some(Self(PermsFrom::Stream(bytes, order)))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            PermsFrom::List(list) => list.len(),
            PermsFrom::Stream(bytes, _) => bytes.len() / 4,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is written like that one, so that it need not be read again. `false` says nothing.
    #[must_use]
    pub fn is_written_as(&self, other: &Self) -> bool {
        match (self.0, other.0) {
            (PermsFrom::Stream(own, order), PermsFrom::Stream(theirs, same)) => {
                own == theirs && order == same
            }
            _ => false,
        }
    }

    /// Whether it is this list.
    #[must_use]
    pub fn is(&self, list: &[Entry]) -> bool {
        match self.0 {
            PermsFrom::List(own) => own == list,
            PermsFrom::Stream(bytes, order) => {
                let mut pairs = bytes.chunks_exact(4).zip(list);
                self.len() == list.len() && pairs.all(|(raw, one)| entry(raw, order) == Some(*one))
            }
        }
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + Clone + 'a {
        let (list, bytes, order) = match self.0 {
            PermsFrom::List(list) => (list, &[][..], ByteOrder::Little),
            PermsFrom::Stream(bytes, order) => (&[][..], bytes, order),
        };
        let read = bytes.chunks_exact(4).filter_map(move |raw| entry(raw, order));
        list.iter().copied().chain(read)
    }
}

impl Perms<'_> {
    /// Gives every entry to `each`, in their order, until it fails. It is faster than [`iter`](Self::iter), which
    /// has to find out for each entry where it comes from.
    #[inline(always)]
    pub(super) fn try_each<E>(
        &self,
        mut each: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.0 {
            PermsFrom::List(list) => list.iter().copied().try_for_each(each),
            PermsFrom::Stream(..) => self.iter().try_for_each(&mut each),
        }
    }
}

impl<'a> From<&'a [Entry]> for Perms<'a> {
    fn from(list: &'a [Entry]) -> Self {
        Self(PermsFrom::List(list))
    }
}

impl PartialEq for Perms<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Perms<'_> {}

/// An entry of a permission list in a stream; flags without a meaning are ignored.
fn entry(raw: &[u8], order: ByteOrder) -> Option<Entry> {
    let [letter, flags, a, b] = *raw else { return None };
    let access = Access::from_letter(letter)?;
    Some(Entry { domid: DomId(order.u16([a, b])), access, stale: flags & STALE != 0 })
}

/// Named limits: those of a stream, or ours that are being written. 0 means no limit.
#[derive(Clone, Copy, Debug)]
pub struct Quotas<'a>(QuotasFrom<'a>);

#[derive(Clone, Copy, Debug)]
enum QuotasFrom<'a> {
    List(&'a [(&'a [u8], u32)]),
    /// As many values of 4 bytes as names, each of which ends in NUL.
    Stream(&'a [u8], &'a [u8], ByteOrder),
}

impl<'a> Quotas<'a> {
    /// No limit at all.
    pub const NONE: Self = Self(QuotasFrom::List(&[]));

    /// The limits of a stream: 4 bytes for each value, and as many names, which the caller has counted.
    pub(super) fn from_stream(values: &'a [u8], names: &'a [u8], order: ByteOrder) -> Self {
        Self(QuotasFrom::Stream(values, names, order))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            QuotasFrom::List(list) => list.len(),
            QuotasFrom::Stream(values, ..) => values.len() / 4,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], u32)> + Clone + 'a {
        let (list, values, names, order) = match self.0 {
            QuotasFrom::List(list) => (list, &[][..], &[][..], ByteOrder::Little),
            QuotasFrom::Stream(values, names, order) => (&[][..], values, names, order),
        };
        let numbers = values.chunks_exact(4).filter_map(move |raw| {
            let [a, b, c, d] = *raw else { return None };
            Some(order.u32([a, b, c, d]))
        });
        list.iter().copied().chain(crate::proto::text::strings(names).zip(numbers))
    }
}

impl<'a> From<&'a [(&'a [u8], u32)]> for Quotas<'a> {
    fn from(list: &'a [(&'a [u8], u32)]) -> Self {
        Self(QuotasFrom::List(list))
    }
}

impl PartialEq for Quotas<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Quotas<'_> {}
