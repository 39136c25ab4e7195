//! Taking a stream apart.

use super::record::{
    Connection, Domain, Endpoint, Global, GlobalQuota, Node, Pending, Perms, Quotas, Record,
    RecordKind, Touch, Transaction, Unknown, Watch,
};
use super::{
    ByteOrder, HAS_UNIQUE_ID, IDENT, PREAMBLE_SIZE, RECORD_HEADER_SIZE, UNLIMITED, Version, padded,
};
use crate::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use core::fmt;

/// Why a stream cannot be read on, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamError {
    /// The byte at which the record starts that is meant.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.problem)
    }
}

/// What is wrong with a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// No preamble.
    NoStream,
    /// A version that nobody has defined.
    Version(u32),
    /// Flags that nobody has defined.
    Flags(u32),
    /// The stream stops without END.
    NoEnd,
    /// A record reaches beyond the end.
    BeyondEnd {
        /// The record's type.
        kind: u32,
        /// Its length.
        len: u32,
    },
    /// END has a body.
    LongEnd(u32),
    /// So many bytes follow END.
    AfterEnd(usize),
    /// A record's body is shorter than what it says it holds.
    Short(RecordKind),
    /// A record's body is longer than what it says it holds, by more than padding.
    Long(RecordKind),
    /// A text does not end in NUL, or has another one inside.
    Text(RecordKind),
    /// A connection is neither ring nor socket.
    Endpoint(u16),
    /// A connection's unfinished message is longer than all its output.
    Partial,
    /// A permission's letter does not exist.
    Letter,
    /// A transaction has done something with a node that does not exist.
    Touch(u16),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStream => write!(f, "this is no xenstore stream"),
            Self::Version(version) => write!(f, "version {version} is unknown"),
            Self::Flags(flags) => write!(f, "flags {flags:#x} are unknown"),
            Self::NoEnd => write!(f, "the stream stops without END"),
            Self::BeyondEnd { kind, len } => match RecordKind::from_number(*kind) {
                Some(kind) => write!(f, "{kind} of {len} bytes reaches beyond the end"),
                None => write!(f, "a record of type {kind} and {len} bytes reaches beyond the end"),
            },
            Self::LongEnd(len) => write!(f, "END has a body of {len} bytes"),
            Self::AfterEnd(bytes) => write!(f, "{bytes} bytes follow END"),
            Self::Short(kind) => write!(f, "{kind} is shorter than what it says it holds"),
            Self::Long(kind) => write!(f, "{kind} is longer than what it says it holds"),
            Self::Text(kind) => write!(f, "{kind} has a text that does not end with its only NUL"),
            Self::Endpoint(number) => write!(f, "a connection of type {number} is unknown"),
            Self::Partial => write!(f, "an unfinished message is longer than all output"),
            Self::Letter => write!(f, "a permission has none of the letters n, r, w, b"),
            Self::Touch(bits) => write!(f, "access {bits:#x} in a transaction is unknown"),
        }
    }
}

/// The records of a stream, in order, each borrowed from it. It stops after END, and after the first error. A
/// stream that ends without an error was read whole.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    /// From the next record on; `None` when there is nothing more to read.
    rest: Option<&'a [u8]>,
    offset: usize,
    version: Version,
    order: ByteOrder,
}

/// The stream that a domain builder has loaded. The builder may have filled the last page with zeros.
///
/// # Errors
/// Why this is none that could be read to its end.
pub fn in_module(module: &[u8]) -> Result<&[u8], StreamError> {
    let error = Reader::new(module)?.find_map(Result::err);
    let Some(error) = error else { return Ok(module) };
    if let Problem::AfterEnd(padding) = error.problem
        && let Some((stream, padding)) =
            module.split_at_checked(module.len().saturating_sub(padding))
        && padding.iter().all(|byte| *byte == 0)
    {
        return Ok(stream);
    }
    Err(error)
}

impl<'a> Reader<'a> {
    /// Looks at the preamble (the document, "Header").
    ///
    /// # Errors
    /// [`Problem::NoStream`], [`Problem::Version`], [`Problem::Flags`].
    pub fn new(stream: &'a [u8]) -> Result<Self, StreamError> {
        let fail = |problem| StreamError { offset: 0, problem };
        let mut body = Body { rest: stream, order: ByteOrder::Big };
        let mut preamble = || Some((body.array::<8>()?, body.u32()?, body.u32()?));
        let (ident, number, flags) = preamble().ok_or(fail(Problem::NoStream))?;
        if ident != IDENT {
            return Err(fail(Problem::NoStream));
        }
        let version = Version::from_number(number).ok_or(fail(Problem::Version(number)))?;
        let order = match flags {
            0 => ByteOrder::Little,
            1 => ByteOrder::Big,
            _ => return Err(fail(Problem::Flags(flags))),
        };
        Ok(Self { rest: Some(body.rest), offset: PREAMBLE_SIZE, version, order })
    }

    /// The version that the stream says it is of.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The order of bytes in it.
    #[must_use]
    pub fn byte_order(&self) -> ByteOrder {
        self.order
    }

    /// Where the next record starts, in bytes from the beginning. After the last record: where END starts.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The next record if it is a node's, as nearly all are; otherwise nothing is read. It is faster than
    /// [`next`](Self::next), which has to expect any record. The path may hold NULs: the caller checks the names
    /// in it.
    #[inline(always)]
    pub fn next_node(&mut self) -> Option<Result<Node<'a>, StreamError>> {
        let mut body = Body { rest: self.rest?, order: self.order };
        let (number, len) = body.u32().zip(body.u32())?;
        if number != RecordKind::Node.number() {
            return None;
        }
        let whole = padded(len as usize)?;
        let (taken, rest) = body.rest.split_at_checked(whole)?;
        body.rest = taken.get(..len as usize)?;
        let read = node(body, last_stripped)
            .map_err(|problem| StreamError { offset: self.offset, problem });
        self.rest = read.is_ok().then_some(rest);
        self.offset = self.offset.saturating_add(whole).saturating_add(RECORD_HEADER_SIZE);
        Some(read)
    }

    /// The next record and how many bytes it takes; `None` if it is END.
    fn record(&self, rest: &'a [u8]) -> Result<Option<(Record<'a>, usize)>, Problem> {
        let mut body = Body { rest, order: self.order };
        let (number, len) = body.u32().zip(body.u32()).ok_or(Problem::NoEnd)?;
        let kind = RecordKind::from_number(number)
            .filter(|kind| *kind != RecordKind::WatchExtended || self.version >= Version::Two);
        if kind == Some(RecordKind::End) {
            return match (len, body.rest.len()) {
                (0, 0) => Ok(None),
                (0, more) => Err(Problem::AfterEnd(more)),
                _ => Err(Problem::LongEnd(len)),
            };
        }
        let whole = padded(len as usize).filter(|whole| *whole <= body.rest.len());
        let taken = whole.zip(body.take(len as usize));
        let (whole, bytes) = taken.ok_or(Problem::BeyondEnd { kind: number, len })?;
        body.rest = bytes;
        let mut used = whole;
        let record = match kind {
            None | Some(RecordKind::End) => Record::Unknown(Unknown { kind: number, body: bytes }),
            Some(RecordKind::Global) => Record::Global(global(body)?),
            Some(RecordKind::Connection) => Record::Connection(connection(body)?),
            Some(RecordKind::Watch) => Record::Watch(watch(body)?),
            Some(RecordKind::Transaction) => Record::Transaction(transaction(body)?),
            Some(RecordKind::Node) => Record::Node(node(body, text)?),
            Some(RecordKind::GlobalQuota) => Record::GlobalQuota(global_quota(body)?),
            Some(RecordKind::Domain) => Record::Domain(domain(body, self.version)?),
            Some(RecordKind::WatchExtended) => {
                let (watch, len) = watch_extended(body)?;
                used = padded(len).unwrap_or(whole);
                Record::Watch(watch)
            }
        };
        Ok(Some((record, used.saturating_add(RECORD_HEADER_SIZE))))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, StreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        match self.record(rest) {
            Ok(None) => None,
            Ok(Some((record, used))) => {
                // A record is never taken for longer than it was found to be.
                self.rest = Some(rest.get(used..).unwrap_or(&[]));
                self.offset = self.offset.saturating_add(used);
                Some(Ok(record))
            }
            Err(problem) => Some(Err(StreamError { offset: self.offset, problem })),
        }
    }
}

impl core::iter::FusedIterator for Reader<'_> {}

/// The unread part of a body. `None` means that there is less than was asked for.
#[derive(Clone, Copy)]
struct Body<'a> {
    rest: &'a [u8],
    order: ByteOrder,
}

impl<'a> Body<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(|bytes| self.order.u16(bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(|bytes| self.order.u32(bytes))
    }

    fn i32(&mut self) -> Option<i32> {
        self.u32().map(signed)
    }

    /// Nothing but padding is left.
    fn end(self, kind: RecordKind) -> Result<(), Problem> {
        if self.rest.len() < 8 { Ok(()) } else { Err(Problem::Long(kind)) }
    }
}

/// The same bits with a sign.
fn signed(number: u32) -> i32 {
    i32::from_le_bytes(number.to_le_bytes())
}

/// The text in bytes that end with their only NUL.
fn text(bytes: &[u8]) -> Option<&[u8]> {
    crate::proto::text::only_string(bytes)
}

fn global(mut body: Body<'_>) -> Result<Global, Problem> {
    let kind = RecordKind::Global;
    let (socket, evtchn) = body.i32().zip(body.i32()).ok_or(Problem::Short(kind))?;
    body.end(kind)?;
    Ok(Global { socket, evtchn })
}

fn transaction(mut body: Body<'_>) -> Result<Transaction, Problem> {
    let kind = RecordKind::Transaction;
    let (conn, tx) = body.u32().zip(body.u32()).ok_or(Problem::Short(kind))?;
    body.end(kind)?;
    Ok(Transaction { conn: ConnId(conn), tx: TxId(tx) })
}

/// What stands in front of a connection's data.
struct ConnectionHead {
    id: u32,
    kind: u16,
    fields: u16,
    spec: [u8; 8],
    input: u16,
    partial: u16,
    output: u32,
}

fn connection_head(body: &mut Body<'_>) -> Option<ConnectionHead> {
    Some(ConnectionHead {
        id: body.u32()?,
        kind: body.u16()?,
        fields: body.u16()?,
        spec: body.array()?,
        input: body.u16()?,
        partial: body.u16()?,
        output: body.u32()?,
    })
}

fn connection(mut body: Body<'_>) -> Result<Connection<'_>, Problem> {
    let (kind, order, len) = (RecordKind::Connection, body.order, body.rest.len());
    let head = connection_head(&mut body).ok_or(Problem::Short(kind))?;
    let input = body.take(usize::from(head.input)).ok_or(Problem::Short(kind))?;
    let output = body.take(head.output as usize).ok_or(Problem::Short(kind))?;
    if usize::from(head.partial) > output.len() {
        return Err(Problem::Partial);
    }
    // Before there were flags, the field was padding, so a missing id is none. Flags to come may bring more.
    let mut tail = body;
    let used = len.saturating_sub(body.rest.len());
    let gap = padded(used).map_or(0, |aligned| aligned.saturating_sub(used));
    let unique_id = match head.fields & HAS_UNIQUE_ID {
        0 => None,
        _ => tail.take(gap).and_then(|_| tail.array()).map(|bytes| order.u64(bytes)),
    };
    if head.fields & !HAS_UNIQUE_ID == 0 {
        if unique_id.is_some() { tail } else { body }.end(kind)?;
    }
    let [a, b, c, d, e, f, g, h] = head.spec;
    let endpoint = match head.kind {
        0 => {
            let target = DomId(order.u16([c, d]));
            Endpoint::Ring {
                domid: DomId(order.u16([a, b])),
                target: (target != DomId::INVALID).then_some(target),
                port: EvtchnPort(order.u32([e, f, g, h])),
            }
        }
        1 => Endpoint::Socket { fd: signed(order.u32([a, b, c, d])) },
        other => return Err(Problem::Endpoint(other)),
    };
    let (id, partial) = (ConnId(head.id), head.partial);
    Ok(Connection { id, endpoint, input, output, partial, unique_id })
}

/// What a watch's record begins with: the connection, and the lengths of path and token.
fn watch_head(body: &mut Body<'_>) -> Option<(ConnId, usize, usize)> {
    let conn = ConnId(body.u32()?);
    Some((conn, usize::from(body.u16()?), usize::from(body.u16()?)))
}

fn watch(mut body: Body<'_>) -> Result<Watch<'_>, Problem> {
    let kind = RecordKind::Watch;
    let (conn, path, token) = watch_head(&mut body).ok_or(Problem::Short(kind))?;
    let (path, token) = body.take(path).zip(body.take(token)).ok_or(Problem::Short(kind))?;
    let (path, token) = text(path).zip(text(token)).ok_or(Problem::Text(kind))?;
    body.end(kind)?;
    Ok(Watch { conn, path, token, depth: None })
}

/// A watch with depth, and how long its body is.
///
/// There are three layouts. The document has depth, two bytes of padding, path. What C xenstored reads (seen
/// up to 4.22) lacks the padding. What it writes lacks the depth, too, and is 4 bytes shorter
/// than its length says, which counts the document's layout. A path has at least one byte, none of
/// them is NUL, and padding is zero, so a record never fits two of them; if padding is not zero, the document's
/// is preferred.
fn watch_extended(body: Body<'_>) -> Result<(Watch<'_>, usize), Problem> {
    let kind = RecordKind::WatchExtended;
    let mut head = body;
    let (conn, path, token) = watch_head(&mut head).ok_or(Problem::Short(kind))?;
    let texts = path.saturating_add(token);
    let mut after = head;
    let depth = after.u16().ok_or(Problem::Short(kind))?;
    let depth = (depth != UNLIMITED).then_some(depth);
    let len = body.rest.len();
    // Behind the texts there is room for padding only.
    let fits = |at: usize| len.checked_sub(at.saturating_add(texts)).is_some_and(|gap| gap < 8);
    for (at, depth) in [(12_usize, depth), (10, depth), (8, None)] {
        let mut rest = body;
        let room = if at == 8 { padded(texts.saturating_add(12)) == Some(len) } else { fits(at) };
        let parts = rest.take(at).and_then(|_| rest.take(path).zip(rest.take(token)));
        let found = parts.and_then(|(path, token)| text(path).zip(text(token)));
        let Some((path, token)) = found.filter(|(path, _)| room && (at == 12 || !path.is_empty()))
        else {
            continue;
        };
        let used = if at == 8 { texts.saturating_add(8) } else { len };
        return Ok((Watch { conn, path, token, depth }, used));
    }
    Err(match texts.saturating_add(10) > len {
        true => Problem::Short(kind),
        false if texts.saturating_add(20) <= len => Problem::Long(kind),
        false => Problem::Text(kind),
    })
}

/// The bytes in front of the last, which is a NUL.
fn last_stripped(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_suffix(&[0])
}

/// What stands in front of a node's permissions.
struct NodeHead {
    conn: u32,
    tx: u32,
    path: u16,
    value: u16,
    access: u16,
    perms: u16,
}

fn node_head(body: &mut Body<'_>) -> Option<NodeHead> {
    // At once, since there are many of them.
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = body.array()?;
    let order = body.order;
    Some(NodeHead {
        conn: order.u32([a, b, c, d]),
        tx: order.u32([e, f, g, h]),
        path: order.u16([i, j]),
        value: order.u16([k, l]),
        access: order.u16([m, n]),
        perms: order.u16([o, p]),
    })
}

#[inline(always)]
fn node<'a>(
    mut body: Body<'a>,
    text: impl Fn(&'a [u8]) -> Option<&'a [u8]>,
) -> Result<Node<'a>, Problem> {
    let kind = RecordKind::Node;
    let head = node_head(&mut body).ok_or(Problem::Short(kind))?;
    let mut parts = || {
        let perms = body.take(usize::from(head.perms).checked_mul(4)?)?;
        Some((perms, body.take(usize::from(head.path))?, body.take(usize::from(head.value))?))
    };
    let (perms, path, value) = parts().ok_or(Problem::Short(kind))?;
    let path = text(path).ok_or(Problem::Text(kind))?;
    let perms = Perms::from_stream(perms, body.order).ok_or(Problem::Letter)?;
    body.end(kind)?;
    let pending = match head.conn {
        0 => None,
        conn => {
            let touch = Touch::from_bits(head.access).ok_or(Problem::Touch(head.access))?;
            Some(Pending { conn: ConnId(conn), tx: TxId(head.tx), touch })
        }
    };
    Ok(Node { path, value, perms, pending })
}

/// The first `count` strings with their NULs.
fn names<'a>(body: &mut Body<'a>, count: usize) -> Option<&'a [u8]> {
    let mut len = 0_usize;
    for name in body.rest.split_inclusive(|byte| *byte == 0).take(count) {
        len = len.saturating_add(name.len());
    }
    let mut rest = *body;
    let taken = rest.take(len)?;
    *body = rest;
    (crate::proto::text::count_strings(taken) == count).then_some(taken)
}

/// As many limits as `counts` say, in two lists: all values, then all names.
fn quotas<'a>(body: &mut Body<'a>, counts: [u16; 2]) -> Option<[Quotas<'a>; 2]> {
    let [first, second] = counts.map(usize::from);
    let values = (body.take(first.checked_mul(4)?)?, body.take(second.checked_mul(4)?)?);
    let names = (names(body, first)?, names(body, second)?);
    let order = body.order;
    Some([
        Quotas::from_stream(values.0, names.0, order),
        Quotas::from_stream(values.1, names.1, order),
    ])
}

fn global_quota(mut body: Body<'_>) -> Result<GlobalQuota<'_>, Problem> {
    let kind = RecordKind::GlobalQuota;
    let counts = body.u16().zip(body.u16()).ok_or(Problem::Short(kind))?;
    let lists = quotas(&mut body, [counts.0, counts.1]).ok_or(Problem::Short(kind))?;
    body.end(kind)?;
    let [per_domain, global_only] = lists;
    Ok(GlobalQuota { per_domain, global_only })
}

fn domain(mut body: Body<'_>, version: Version) -> Result<Domain<'_>, Problem> {
    let kind = RecordKind::Domain;
    let mut head = || Some((body.u16()?, body.u16()?, body.u32()?));
    let (domid, count, features) = head().ok_or(Problem::Short(kind))?;
    let [quotas, _] = quotas(&mut body, [count, 0]).ok_or(Problem::Short(kind))?;
    body.end(kind)?;
    let features = (version >= Version::Two).then_some(features);
    Ok(Domain { domid: DomId(domid), features, quotas })
}
