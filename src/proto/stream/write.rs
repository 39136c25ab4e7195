//! Writing a stream.

use super::record::{
    Connection, Domain, Endpoint, Global, GlobalQuota, Node, Quotas, Record, RecordKind,
    Transaction, Unknown, Watch,
};
use super::{
    HAS_UNIQUE_ID, IDENT, PREAMBLE_SIZE, RECORD_HEADER_SIZE, STALE, UNLIMITED, Version, padded,
};
use crate::mem::{NoMemory, TryVec};
use crate::proto::id::DomId;
use crate::proto::text::has_nul;
use alloc::vec::Vec;
use core::fmt;
use core::iter;

/// Padding.
const ZEROS: [u8; 8] = [0; 8];

/// The sink cannot take more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRoom;

/// What takes a stream: a region of memory, a vector.
pub trait Sink {
    /// Appends all of these bytes.
    ///
    /// # Errors
    /// [`OutOfRoom`] if they do not fit; what was appended so far is then of no use.
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom>;

    /// The place of the next `len` bytes, which count as appended: the caller has to write all of them. `None`
    /// if the sink has no such place in one piece.
    fn place(&mut self, len: usize) -> Option<&mut [u8]> {
        let _ = len;
        None
    }
}

/// A place, while it is being filled from its beginning.
impl Sink for &mut [u8] {
    #[inline(always)]
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        let (to, rest) =
            core::mem::take(self).split_at_mut_checked(bytes.len()).ok_or(OutOfRoom)?;
        to.copy_from_slice(bytes);
        *self = rest;
        Ok(())
    }
}

impl Sink for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        self.try_extend(bytes).map_err(|NoMemory| OutOfRoom)
    }
}

impl<S: Sink> Sink for &mut S {
    #[inline(always)]
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        (**self).append(bytes)
    }

    #[inline(always)]
    fn place(&mut self, len: usize) -> Option<&mut [u8]> {
        (**self).place(len)
    }
}

/// Bytes that [`Buffered`] gathers.
const GATHERED: usize = 1024;

/// Gathers what is appended in small pieces, and passes it on by the kilobyte.
#[derive(Debug)]
pub struct Buffered<S> {
    sink: S,
    bytes: [u8; GATHERED],
    used: usize,
}

impl<S: Sink> Buffered<S> {
    /// Nothing is gathered yet.
    pub fn new(sink: S) -> Self {
        Self { sink, bytes: [0; GATHERED], used: 0 }
    }

    /// Passes on what is left.
    ///
    /// # Errors
    /// As the sink.
    pub fn flush(&mut self) -> Result<(), OutOfRoom> {
        let used = core::mem::take(&mut self.used);
        self.bytes.get(..used).map_or(Ok(()), |bytes| self.sink.append(bytes))
    }

    /// Appends what does not fit any more.
    #[cold]
    fn overflow(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        self.flush()?;
        let Some(place) = self.bytes.get_mut(..bytes.len()) else {
            return self.sink.append(bytes);
        };
        place.copy_from_slice(bytes);
        self.used = bytes.len();
        Ok(())
    }
}

impl<S: Sink> Sink for Buffered<S> {
    // So that pieces of a constant length are not copied by a call.
    #[inline(always)]
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        let room = self.bytes.get_mut(self.used..);
        let Some(place) = room.and_then(|room| room.get_mut(..bytes.len())) else {
            return self.overflow(bytes);
        };
        place.copy_from_slice(bytes);
        self.used = self.used.wrapping_add(bytes.len());
        Ok(())
    }

    #[inline(always)]
    fn place(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > GATHERED.wrapping_sub(self.used) {
            self.flush().ok()?;
        }
        let start = self.used;
        let place = self.bytes.get_mut(start..)?.get_mut(..len)?;
        self.used = start.wrapping_add(len);
        Some(place)
    }
}

/// Why a record was not written. After [`OutOfRoom`](Self::OutOfRoom) the stream is of no use; otherwise nothing of the record
/// was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteError {
    /// The sink is full.
    OutOfRoom,
    /// Something is longer than the record's fields can say.
    TooLong(RecordKind),
    /// A record that no reader would accept: a text with a NUL inside, a partial response longer than all output,
    /// an unknown record with a known type.
    Unreadable(RecordKind),
}

impl From<OutOfRoom> for WriteError {
    fn from(_: OutOfRoom) -> Self {
        Self::OutOfRoom
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRoom => write!(f, "no memory for the rest of the stream"),
            Self::TooLong(kind) => write!(f, "something is too long for {kind}"),
            Self::Unreadable(kind) => write!(f, "{kind} would not be readable"),
        }
    }
}

/// Where a watch's depth stands in `WATCH_DATA_EXTENDED`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DepthLayout {
    /// As the document has it, two bytes of padding between depth and path.
    Document,
    /// Without the padding, the only layout that C xenstored reads (seen in 4.22).
    Xen,
}

/// Bytes that a NODE record takes in a stream, its header and padding included.
#[must_use]
pub fn node_len(path: usize, value: usize, perms: usize) -> Option<usize> {
    let texts = path.checked_add(value)?.checked_add(perms.checked_mul(4)?)?;
    // The fixed fields, and the NUL behind the path.
    padded(texts.checked_add(17)?)?.checked_add(RECORD_HEADER_SIZE)
}

/// Writes a stream, little endian, record by record; the caller sees to their order: what a record
/// depends on comes before it.
#[derive(Debug)]
pub struct Writer<S> {
    sink: S,
    version: Version,
    depths: DepthLayout,
    written: usize,
}

impl<S: Sink> Writer<S> {
    /// Starts a stream (the document, "Header").
    ///
    /// # Errors
    /// [`WriteError::OutOfRoom`].
    pub fn new(sink: S, version: Version) -> Result<Self, WriteError> {
        let mut writer = Self { sink, version, depths: DepthLayout::Document, written: 0 };
        let [number, ..] = version.number().to_le_bytes();
        let preamble = Fields::<PREAMBLE_SIZE>::new().bytes(IDENT).bytes([0, 0, 0, number]);
        writer.append(&preamble.bytes(0_u32.to_le_bytes()).bytes)?;
        Ok(writer)
    }

    /// Writes depths of watches in another layout than the document's.
    #[must_use]
    pub fn with_depths(mut self, depths: DepthLayout) -> Self {
        self.depths = depths;
        self
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Ends the stream (the document, "END").
    ///
    /// # Errors
    /// [`WriteError::OutOfRoom`].
    pub fn finish(mut self) -> Result<S, WriteError> {
        let end = Fields::<RECORD_HEADER_SIZE>::new().number(RecordKind::End.number()).number(0);
        self.append(&end.bytes)?;
        Ok(self.sink)
    }

    /// Any record.
    ///
    /// # Errors
    /// As the record's own function.
    pub fn record(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        match record {
            Record::Global(global) => self.global(*global),
            Record::Connection(connection) => self.connection(connection),
            Record::Watch(watch) => self.watch(watch),
            Record::Transaction(transaction) => self.transaction(*transaction),
            Record::Node(node) => self.node(node),
            Record::GlobalQuota(quota) => self.global_quota(quota),
            Record::Domain(domain) => self.domain(domain),
            Record::Unknown(unknown) => self.unknown(unknown),
        }
    }

    /// The document, "`GLOBAL_DATA`".
    ///
    /// # Errors
    /// [`WriteError::OutOfRoom`].
    pub fn global(&mut self, global: Global) -> Result<(), WriteError> {
        let head = Fields::<16>::new().number(RecordKind::Global.number()).number(8);
        let head = head.bytes(global.socket.to_le_bytes()).bytes(global.evtchn.to_le_bytes());
        self.append(&head.bytes)
    }

    /// The document, "`TRANSACTION_DATA`".
    ///
    /// # Errors
    /// [`WriteError::OutOfRoom`].
    pub fn transaction(&mut self, transaction: Transaction) -> Result<(), WriteError> {
        let head = Fields::<16>::new().number(RecordKind::Transaction.number()).number(8);
        self.append(&head.number(transaction.conn.0).number(transaction.tx.0).bytes)
    }

    /// The document, "`CONNECTION_DATA`".
    ///
    /// # Errors
    /// [`WriteError::TooLong`] from 64 KiB of input on, [`WriteError::Unreadable`] for a partial response longer than
    /// the output, [`WriteError::OutOfRoom`].
    pub fn connection(&mut self, connection: &Connection<'_>) -> Result<(), WriteError> {
        let (input, output) = (connection.input, connection.output);
        self.connection_of_parts(connection, iter::once(input), iter::once(output))
    }

    /// As [`connection`](Self::connection), with input and output in parts: the fields of those names are ignored.
    ///
    /// # Errors
    /// As there.
    pub fn connection_of_parts<'p>(
        &mut self,
        connection: &Connection<'_>,
        input: impl Iterator<Item = &'p [u8]> + Clone,
        output: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Result<(), WriteError> {
        let kind = RecordKind::Connection;
        let too_long = WriteError::TooLong(kind);
        let sum = |len: usize, part: &[u8]| len.saturating_add(part.len());
        let in_len = u16::try_from(input.clone().fold(0, sum)).map_err(|_| too_long)?;
        let out_len = u32::try_from(output.clone().fold(0, sum)).map_err(|_| too_long)?;
        if u32::from(connection.partial) > out_len {
            return Err(WriteError::Unreadable(kind));
        }
        let used = usize::from(in_len).saturating_add(out_len as usize).saturating_add(24);
        let data_end = padded(used).ok_or(too_long)?;
        let id_len = if connection.unique_id.is_some() { 8 } else { 0 };
        let len = body_len(kind, data_end.saturating_add(id_len))?;
        let (number, spec) = match connection.endpoint {
            Endpoint::Ring { domid, target, port } => {
                let target = target.unwrap_or(DomId::INVALID);
                (0_u16, Fields::<8>::new().short(domid.0).short(target.0).number(port.0))
            }
            Endpoint::Socket { fd } => (1, Fields::<8>::new().bytes(fd.to_le_bytes()).number(0)),
        };
        let fields = if connection.unique_id.is_some() { HAS_UNIQUE_ID } else { 0 };
        let head = Fields::<32>::new().number(kind.number()).number(len).number(connection.id.0);
        let head = head.short(number).short(fields).bytes(spec.bytes);
        self.append(&head.short(in_len).short(connection.partial).number(out_len).bytes)?;
        for part in input.chain(output) {
            self.append(part)?;
        }
        self.pad(used)?;
        connection.unique_id.map_or(Ok(()), |id| self.append(&id.to_le_bytes()))
    }

    /// The document, "`WATCH_DATA`"; "`WATCH_DATA_EXTENDED`" if it has a depth and the version is 2.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Unreadable`], [`WriteError::OutOfRoom`].
    pub fn watch(&mut self, watch: &Watch<'_>) -> Result<(), WriteError> {
        let depth = watch.depth.filter(|_| self.version >= Version::Two);
        let (kind, fixed) = match (depth, self.depths) {
            (None, _) => (RecordKind::Watch, 8_usize),
            (Some(_), DepthLayout::Document) => (RecordKind::WatchExtended, 12),
            (Some(_), DepthLayout::Xen) => (RecordKind::WatchExtended, 10),
        };
        let (path_len, token_len) = (text_len(kind, watch.path)?, text_len(kind, watch.token)?);
        let texts = usize::from(path_len).saturating_add(usize::from(token_len));
        let used = fixed.saturating_add(texts);
        let len = body_len(kind, used)?;
        let head = Fields::<20>::new().number(kind.number()).number(len).number(watch.conn.0);
        let head = head.short(path_len).short(token_len).short(depth.unwrap_or(UNLIMITED));
        let fixed = fixed.saturating_add(RECORD_HEADER_SIZE);
        self.append(head.bytes.get(..fixed).unwrap_or(&head.bytes))?;
        self.append(watch.path)?;
        self.append(&[0])?;
        self.append(watch.token)?;
        self.append(&[0])?;
        self.pad(used)
    }

    /// The document, "`NODE_DATA`". [`node_len`] tells beforehand how long it will be.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Unreadable`], [`WriteError::OutOfRoom`].
    pub fn node(&mut self, node: &Node<'_>) -> Result<(), WriteError> {
        if has_nul(node.path) {
            return Err(WriteError::Unreadable(RecordKind::Node));
        }
        self.named_node(node)
    }

    /// As [`node`](Self::node), for a path that is known to hold no NUL: there are many of them.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::OutOfRoom`].
    pub fn named_node(&mut self, node: &Node<'_>) -> Result<(), WriteError> {
        let kind = RecordKind::Node;
        let too_long = WriteError::TooLong(kind);
        let path_len = node.path.len().saturating_add(1);
        let path_len = u16::try_from(path_len).map_err(|_| too_long)?;
        let value_len = u16::try_from(node.value.len()).map_err(|_| too_long)?;
        let perms = u16::try_from(node.perms.len()).map_err(|_| too_long)?;
        let used = usize::from(path_len)
            .saturating_add(usize::from(value_len))
            .saturating_add(usize::from(perms).saturating_mul(4))
            .saturating_add(16);
        let (conn, tx, touch) = node
            .pending
            .map_or((0, 0, 0), |pending| (pending.conn.0, pending.tx.0, pending.touch.bits()));
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let shorts = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let head = [
            pair(kind.number(), body_len(kind, used)?),
            pair(conn, tx),
            pair(shorts(path_len, value_len), shorts(touch, perms)),
        ];
        // There are many of them, so all of it is put into one place, where the sink has it.
        let whole = used.saturating_add(RECORD_HEADER_SIZE).next_multiple_of(8);
        if let Some(mut place) = self.sink.place(whole) {
            self.written = self.written.saturating_add(whole);
            if let Some(end) = place.last_chunk_mut() {
                *end = ZEROS;
            }
            return Ok(put_node(&mut place, &head, node)?);
        }
        self.written = self.written.saturating_add(used).saturating_add(RECORD_HEADER_SIZE);
        put_node(&mut self.sink, &head, node)?;
        self.pad(used)
    }

    /// The document, "`GLOBAL_QUOTA_DATA`".
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Unreadable`], [`WriteError::OutOfRoom`].
    pub fn global_quota(&mut self, quota: &GlobalQuota<'_>) -> Result<(), WriteError> {
        let kind = RecordKind::GlobalQuota;
        let first = quotas_len(kind, quota.per_domain)?;
        let second = quotas_len(kind, quota.global_only)?;
        let used = first.1.saturating_add(second.1).saturating_add(4);
        let head = Fields::<12>::new().number(kind.number()).number(body_len(kind, used)?);
        self.append(&head.short(first.0).short(second.0).bytes)?;
        self.quotas(&[quota.per_domain, quota.global_only])?;
        self.pad(used)
    }

    /// The document, "`DOMAIN_DATA`"; in version 1 without features.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Unreadable`], [`WriteError::OutOfRoom`].
    pub fn domain(&mut self, domain: &Domain<'_>) -> Result<(), WriteError> {
        let kind = RecordKind::Domain;
        let (count, len) = quotas_len(kind, domain.quotas)?;
        let used = len.saturating_add(8);
        let features = domain.features.filter(|_| self.version >= Version::Two).unwrap_or(0);
        let head = Fields::<16>::new().number(kind.number()).number(body_len(kind, used)?);
        self.append(&head.short(domain.domid.0).short(count).number(features).bytes)?;
        self.quotas(&[domain.quotas])?;
        self.pad(used)
    }

    /// A record that is passed on as it came, but for zeros that make its length a multiple of 8.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], [`WriteError::Unreadable`], [`WriteError::OutOfRoom`].
    pub fn unknown(&mut self, unknown: &Unknown<'_>) -> Result<(), WriteError> {
        // Version 1 does not know the last of the types.
        match RecordKind::from_number(unknown.kind) {
            Some(RecordKind::WatchExtended) if self.version < Version::Two => {}
            Some(kind) => return Err(WriteError::Unreadable(kind)),
            None => {}
        }
        // END stands for a type without a name; its own length cannot be wrong.
        let len = body_len(RecordKind::End, unknown.body.len())?;
        self.append(&Fields::<8>::new().number(unknown.kind).number(len).bytes)?;
        self.append(unknown.body)?;
        self.pad(unknown.body.len())
    }

    /// All values of these lists, then all names.
    fn quotas(&mut self, lists: &[Quotas<'_>]) -> Result<(), WriteError> {
        for (_, value) in lists.iter().flat_map(Quotas::iter) {
            self.append(&value.to_le_bytes())?;
        }
        for (name, _) in lists.iter().flat_map(Quotas::iter) {
            self.append(name)?;
            self.append(&[0])?;
        }
        Ok(())
    }

    #[inline(always)]
    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.sink.append(bytes)?;
        self.written = self.written.saturating_add(bytes.len());
        Ok(())
    }

    /// Zeros behind a body of so many bytes.
    fn pad(&mut self, used: usize) -> Result<(), WriteError> {
        // Up to 7 are missing.
        let missing = used.wrapping_neg() & 7;
        if missing == 0 { Ok(()) } else { self.append(ZEROS.get(..missing).unwrap_or(&ZEROS)) }
    }
}

/// A NODE record but for the padding; `head` are its header and its fields of a fixed length.
#[inline(always)]
fn put_node<S: Sink>(sink: &mut S, head: &[u64; 3], node: &Node<'_>) -> Result<(), OutOfRoom> {
    sink.append(head.map(u64::to_le_bytes).as_flattened())?;
    node.perms.try_each(|entry| {
        let [a, b] = entry.domid.0.to_le_bytes();
        let flags = if entry.stale { STALE } else { 0 };
        sink.append(&[entry.access.letter(), flags, a, b])
    })?;
    sink.append(node.path)?;
    sink.append(&[0])?;
    sink.append(node.value)
}

/// A body's length, with the padding, as C xenstored counts it.
fn body_len(kind: RecordKind, used: usize) -> Result<u32, WriteError> {
    let len = padded(used).and_then(|len| u32::try_from(len).ok());
    len.ok_or(WriteError::TooLong(kind))
}

/// A text's length with its NUL.
fn text_len(kind: RecordKind, text: &[u8]) -> Result<u16, WriteError> {
    if has_nul(text) {
        return Err(WriteError::Unreadable(kind));
    }
    let len = u16::try_from(text.len().saturating_add(1));
    len.map_err(|_| WriteError::TooLong(kind))
}

/// How many limits there are, and what they take.
fn quotas_len(kind: RecordKind, quotas: Quotas<'_>) -> Result<(u16, usize), WriteError> {
    let count = u16::try_from(quotas.len()).map_err(|_| WriteError::TooLong(kind))?;
    let mut len = 0_usize;
    for (name, _) in quotas.iter() {
        len = len.saturating_add(usize::from(text_len(kind, name)?)).saturating_add(4);
    }
    Ok((count, len))
}

/// Numbers side by side, little endian. What is too much is left out.
struct Fields<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Fields<N> {
    fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    #[inline(always)]
    fn bytes<const M: usize>(mut self, bytes: [u8; M]) -> Self {
        let end = self.used.saturating_add(M);
        if let Some(place) = self.bytes.get_mut(self.used..end) {
            place.copy_from_slice(&bytes);
        }
        self.used = end;
        self
    }

    #[inline(always)]
    fn number(self, number: u32) -> Self {
        self.bytes(number.to_le_bytes())
    }

    #[inline(always)]
    fn short(self, number: u16) -> Self {
        self.bytes(number.to_le_bytes())
    }
}
