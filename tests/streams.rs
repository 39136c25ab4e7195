//! The record stream: bytes that were written by hand, random records, and damage of every kind.

use std::path::Path;
use xenstore_stubdom::proto::id::{ConnId, DomId, EvtchnPort, TxId};
use xenstore_stubdom::proto::perms::{Access, Entry};
use xenstore_stubdom::proto::stream::{
    Connection, DepthLayout, Domain, Endpoint, Global, GlobalQuota, Listing, Node, OutOfRoom,
    Pending, Perms, Problem, Quotas, Reader, Record, RecordKind, Sink, Touch, Transaction, Unknown,
    Version, Watch, WriteError, Writer, check, node_len,
};
use xenstore_stubdom::sim::Random;

const STREAMS: [&str; 5] = ["v1", "v2", "c-4.17", "c-4.22", "big-endian"];

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/streams").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// A stream as it was written down.
fn golden(name: &str) -> Vec<u8> {
    let text = file(&format!("{name}.hex"));
    let words =
        text.lines().flat_map(|line| line.split('#').take(1)).flat_map(str::split_whitespace);
    words.map(|word| u8::from_str_radix(word, 16).unwrap()).collect()
}

/// All records of a stream that has no error.
fn records(stream: &[u8]) -> Vec<Record<'_>> {
    Reader::new(stream).unwrap().collect::<Result<_, _>>().unwrap()
}

fn written(records: &[Record<'_>], version: Version) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), version).unwrap();
    for record in records {
        let before = writer.written();
        writer.record(record).unwrap();
        let len = writer.written() - before;
        assert_eq!(len % 8, 0, "{record}");
        if let Record::Node(node) = record {
            assert_eq!(node_len(node.path.len(), node.value.len(), node.perms.len()), Some(len));
        }
    }
    let len = writer.written() + 8;
    let stream = writer.finish().unwrap();
    assert_eq!(stream.len(), len);
    stream
}

fn entry(letter: u8, domid: u16) -> Entry {
    Entry { domid: DomId(domid), access: Access::from_letter(letter).unwrap(), stale: false }
}

fn ring(id: u32, domid: u16, port: u32) -> Connection<'static> {
    let endpoint = Endpoint::Ring { domid: DomId(domid), target: None, port: EvtchnPort(port) };
    Connection { id: ConnId(id), endpoint, input: b"", output: b"", partial: 0, unique_id: None }
}

fn node<'a>(path: &'a [u8], value: &'a [u8], perms: &'a [Entry]) -> Node<'a> {
    Node { path, value, perms: Perms::from(perms), pending: None }
}

#[test]
fn version_1_is_written_as_it_stands_in_the_document() {
    let input = b"\x06\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0";
    let (root, other) = ([entry(b'n', 0)], [entry(b'w', 0), entry(b'r', 7)]);
    let list = [
        Record::Global(Global { socket: Global::NO_SOCKET, evtchn: 3 }),
        Record::Connection(Connection { input, ..ring(1, 0, 2) }),
        Record::Watch(Watch { conn: ConnId(1), path: b"/a", token: b"t", depth: Some(1) }),
        Record::Node(node(b"/", b"", &root)),
        Record::Node(node(b"/a", b"hi", &other)),
    ];
    assert_eq!(written(&list, Version::One), golden("v1"));
}

#[test]
fn version_2_is_written_as_it_stands_in_the_document() {
    let (conn, tx) = (ConnId(2), TxId(4));
    let limits: [(&[u8], u32); 3] = [(b"nodes", 1000), (b"watches", 128), (b"x-all", 0)];
    let own: [(&[u8], u32); 1] = [(b"nodes", 50)];
    let (per_domain, global_only) = (Quotas::from(&limits[..2]), Quotas::from(&limits[2..]));
    let root = [entry(b'n', 0)];
    let tool = [entry(b'n', 0), entry(b'r', 5), Entry { stale: true, ..entry(b'b', 6) }];
    let special = [entry(b'n', 0), entry(b'w', 5)];
    let new = [entry(b'b', 5)];
    let pending = |touch| Some(Pending { conn, tx, touch });
    let (target, port) = (Some(DomId(0)), EvtchnPort(7));
    let list = [
        Record::Global(Global { socket: Global::NO_SOCKET, evtchn: 5 }),
        Record::GlobalQuota(GlobalQuota { per_domain, global_only }),
        Record::Connection(Connection {
            output: b"OK\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x03\0\0\0OK\0",
            partial: 3,
            unique_id: Some(0x1122_3344_5566_7788),
            ..ring(1, 0, 3)
        }),
        Record::Connection(Connection {
            endpoint: Endpoint::Ring { domid: DomId(5), target, port },
            input: b"\x02\0\0\0\x09\0\0\0\0\0\0\0\x0c\0\0\0/too",
            ..ring(2, 5, 7)
        }),
        Record::Connection(Connection { endpoint: Endpoint::Socket { fd: 6 }, ..ring(3, 0, 0) }),
        Record::Watch(Watch { conn, path: b"device", token: b"t1", depth: None }),
        Record::Watch(Watch { conn, path: b"@releaseDomain", token: b"", depth: Some(2) }),
        Record::Node(node(b"/", b"", &root)),
        Record::Node(node(b"/tool", b"a\0b", &tool)),
        Record::Node(node(b"@releaseDomain", b"", &special)),
        Record::Transaction(Transaction { conn, tx }),
        Record::Node(Node {
            pending: pending(Touch::ReadAndWritten),
            ..node(b"/tool/x", b"1", &new)
        }),
        Record::Node(Node { pending: pending(Touch::Deleted), ..node(b"/tool", b"", &[]) }),
        Record::Domain(Domain {
            domid: DomId(5),
            features: Some(14),
            quotas: Quotas::from(&own[..]),
        }),
        Record::Domain(Domain { domid: DomId(0), features: Some(0), quotas: Quotas::NONE }),
    ];
    let stream = golden("v2");
    assert_eq!(written(&list, Version::Two), stream);
    assert_eq!(records(&stream), list);
}

#[test]
fn every_stream_is_read_as_what_it_says() {
    for name in STREAMS {
        let stream = golden(name);
        assert_eq!(Listing(&stream).to_string(), file(&format!("{name}.txt")), "{name}");
        let report = check::check(&stream);
        assert!(report.is_sound(), "{name}: {report}");
        let version = Reader::new(&stream).unwrap().version();
        let list = records(&stream);
        let again = written(&list, version);
        // What was padding once is counted then.
        let same = |(old, new): (&Record<'_>, Record<'_>)| match (old, &new) {
            (Record::Unknown(old), Record::Unknown(new)) => new.body.starts_with(old.body),
            _ => *old == new,
        };
        assert!(list.iter().zip(records(&again)).all(same), "{name}");
    }
}

#[test]
fn depths_are_written_for_xen_as_it_reads_them() {
    let watch = Watch { conn: ConnId(1), path: b"/a", token: b"t", depth: Some(4) };
    let mut writer = Writer::new(Vec::new(), Version::Two).unwrap().with_depths(DepthLayout::Xen);
    writer.watch(&watch).unwrap();
    let stream = writer.finish().unwrap();
    let xen = golden("c-4.22");
    assert_eq!(stream[16..40], xen[56..80]);
    assert_eq!(records(&stream), [Record::Watch(watch)]);
}

/// All three layouts of a watch with depth are told apart, whatever the lengths; and whatever follows.
#[test]
fn layouts_of_depths_are_told_apart() {
    for (path_len, token_len) in (1..20).flat_map(|path| (0..20).map(move |token| (path, token))) {
        let (path, token) = (vec![b'p'; path_len], vec![b't'; token_len]);
        let depth = Some(0x0203);
        let watch = Watch { conn: ConnId(1), path: &path, token: &token, depth };
        let transaction = Transaction { conn: ConnId(1), tx: TxId(u32::MAX) };
        let list = [Record::Watch(watch), Record::Transaction(transaction)];
        assert_eq!(records(&written(&list, Version::Two)), list);
        let mut writer =
            Writer::new(Vec::new(), Version::Two).unwrap().with_depths(DepthLayout::Xen);
        writer.watch(&watch).unwrap();
        writer.transaction(transaction).unwrap();
        assert_eq!(records(&writer.finish().unwrap()), list);
        // As C writes it: a plain record with another type, and the length of the document's layout.
        let plain = [Record::Watch(Watch { depth: None, ..watch }), list[1]];
        let mut stream = written(&plain, Version::Two);
        let said = u32::try_from((12 + path_len + token_len + 2).next_multiple_of(8)).unwrap();
        stream[16] = 8;
        stream[20..24].copy_from_slice(&said.to_le_bytes());
        assert_eq!(records(&stream), plain, "{path_len} {token_len}");
    }
}

#[test]
fn version_1_has_no_features_and_no_depths() {
    let domain = Domain { domid: DomId(1), features: Some(6), quotas: Quotas::NONE };
    let mut stream = written(&[Record::Domain(domain)], Version::One);
    assert_eq!(stream[28..32], [0; 4]);
    stream[28] = 6;
    let read = Record::Domain(Domain { features: None, ..domain });
    assert_eq!(records(&stream), [read]);
    let watch = Watch { conn: ConnId(1), path: b"/a", token: b"t", depth: Some(4) };
    let mut stream = written(&[Record::Watch(watch)], Version::Two);
    stream[11] = 1;
    assert_eq!(records(&stream), [Record::Unknown(Unknown { kind: 8, body: &stream[24..48] })]);
}

/// What records drawn by lot are made of.
struct Pool {
    text: Vec<u8>,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    limits: Vec<(Vec<u8>, u32)>,
}

impl Pool {
    fn new(random: &mut Random) -> Self {
        let mut byte = |least: u8| loop {
            let byte = random.next_u64().to_le_bytes()[0];
            if byte >= least {
                return byte;
            }
        };
        let text = (0..70_000).map(|_| byte(1)).collect();
        let bytes = (0..70_000).map(|_| byte(0)).collect::<Vec<_>>();
        let letters = *b"nrwb";
        let entries = (0..70_000).map(|_| Entry {
            stale: random.one_in(3),
            ..entry(random.pick(&letters), u16::try_from(random.below(65_536)).unwrap())
        });
        let entries = entries.collect();
        let limits = (0..30).map(|n| (format!("limit-{n}").into_bytes(), random.below(u32::MAX)));
        Self { text, bytes, entries, limits: limits.collect() }
    }
}

/// Mostly short, now and then as long as it can be.
fn len(random: &mut Random, limit: usize) -> usize {
    match random.below(20) {
        0 => limit,
        1 => random.index(limit + 1),
        2..=5 => 0,
        _ => random.index(40),
    }
}

fn part<'a, T>(random: &mut Random, all: &'a [T], limit: usize) -> &'a [T] {
    let len = len(random, limit);
    let start = random.index(all.len() - len + 1);
    &all[start..start + len]
}

fn id(random: &mut Random) -> u32 {
    random.below(u32::MAX - 1) + 1
}

fn domid(random: &mut Random) -> DomId {
    DomId(u16::try_from(random.below(0x7ff0)).unwrap())
}

fn some<T>(random: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    if random.one_in(2) { None } else { Some(make(random)) }
}

fn connection<'a>(random: &mut Random, pool: &'a Pool) -> Connection<'a> {
    let endpoint = if random.one_in(3) {
        Endpoint::Socket { fd: i32::from_le_bytes(id(random).to_le_bytes()) }
    } else {
        let (domid, target) = (domid(random), some(random, domid));
        Endpoint::Ring { domid, target, port: EvtchnPort(id(random)) }
    };
    let (input, output) = (part(random, &pool.bytes, 65_535), part(random, &pool.bytes, 70_000));
    let partial = u16::try_from(random.index(output.len().min(65_535) + 1)).unwrap();
    let unique_id = some(random, Random::next_u64);
    Connection { id: ConnId(id(random)), endpoint, input, output, partial, unique_id }
}

fn any_record<'a>(
    random: &mut Random,
    pool: &'a Pool,
    limits: &'a [(&'a [u8], u32)],
    version: Version,
) -> Record<'a> {
    let (conn, tx) = (ConnId(id(random)), TxId(id(random)));
    let is_new = version == Version::Two;
    match random.below(8) {
        0 => {
            Record::Global(Global { socket: -1, evtchn: i32::try_from(random.below(99)).unwrap() })
        }
        1 => Record::Connection(connection(random, pool)),
        2 => {
            let (path, token) =
                (part(random, &pool.text, 65_534), part(random, &pool.text, 65_534));
            let depth = some(random, |random| u16::try_from(random.below(0xffff)).unwrap());
            Record::Watch(Watch { conn, path, token, depth: depth.filter(|_| is_new) })
        }
        3 => Record::Transaction(Transaction { conn, tx }),
        4 => {
            let (path, value) =
                (part(random, &pool.text, 65_534), part(random, &pool.bytes, 65_535));
            let perms = Perms::from(part(random, &pool.entries, 65_535));
            let touch = Touch::from_bits(u16::try_from(random.below(4)).unwrap()).unwrap();
            let pending = some(random, |_| Pending { conn, tx, touch });
            Record::Node(Node { path, value, perms, pending })
        }
        5 => {
            let (start, middle) = (random.index(30), random.index(30));
            let global_only = Quotas::from(&limits[start..]);
            Record::GlobalQuota(GlobalQuota {
                per_domain: Quotas::from(&limits[middle..]),
                global_only,
            })
        }
        6 => {
            let (features, quotas) = (id(random), Quotas::from(&limits[random.index(30)..]));
            let features = is_new.then_some(features);
            Record::Domain(Domain { domid: domid(random), features, quotas })
        }
        _ => {
            let kind = 9 + random.below(u32::MAX - 9);
            let body = part(random, &pool.bytes, 70_000);
            Record::Unknown(Unknown { kind, body: &body[..body.len() & !7] })
        }
    }
}

#[test]
fn what_is_written_is_read() {
    let mut random = Random::new(1);
    let pool = Pool::new(&mut random);
    let limits = pool.limits.iter().map(|(name, value)| (&name[..], *value)).collect::<Vec<_>>();
    for round in 0..400 {
        let version = if round % 2 == 0 { Version::One } else { Version::Two };
        let list = (0..random.index(12))
            .map(|_| any_record(&mut random, &pool, &limits, version))
            .collect::<Vec<_>>();
        let stream = written(&list, version);
        assert_eq!(records(&stream), list, "round {round}");
        // Each is small beside what it was made of, and judging them must not fall over.
        let report = check::check(&stream);
        assert_eq!(report.error, None);
        // A number of bytes less, and there is an error.
        let cut = random.index(stream.len());
        let last = Reader::new(&stream[..cut]).map(|reader| reader.last().unwrap());
        assert!(last.is_err() || last.is_ok_and(|last| last.is_err()), "round {round}, {cut}");
    }
}

/// Everything that can be done with a stream; says whether it was read to the end.
fn handle(stream: &[u8]) -> bool {
    let shown = Listing(stream).to_string();
    let report = check::check(stream);
    assert_eq!(report.error.is_none(), !shown.lines().any(|line| line.starts_with("byte ")));
    assert!(!report.to_string().is_empty());
    report.error.is_none()
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_an_error() {
    for name in STREAMS {
        let stream = golden(name);
        for len in 0..stream.len() {
            assert!(!handle(&stream[..len]), "{name}: {len}");
        }
        let longer = [&stream[..], b"\0"].concat();
        assert!(!handle(&longer), "{name}");
    }
}

#[test]
fn any_byte_may_be_anything() {
    for name in STREAMS {
        let stream = golden(name);
        let mut readable = 0;
        for (at, value) in (0..stream.len()).flat_map(|at| (0..=255).map(move |value| (at, value)))
        {
            let mut damaged = stream.clone();
            damaged[at] = value;
            // A bit more or less is looked at from all sides.
            let good = match (value ^ stream[at]).count_ones() {
                0..=1 => handle(&damaged),
                _ => check::check(&damaged).error.is_none(),
            };
            readable += usize::from(good);
        }
        assert!(readable > stream.len(), "{name}");
    }
}

#[test]
fn errors_say_what_and_where() {
    let stream = golden("v2");
    let damage: [(usize, u8, &str); 16] = [
        (0, b'X', "byte 0: this is no xenstore stream"),
        (11, 3, "byte 0: version 3 is unknown"),
        (11, 0, "byte 0: version 0 is unknown"),
        (15, 3, "byte 0: flags 0x3 are unknown"),
        (20, 0, "byte 16: GLOBAL_DATA is shorter than what it says it holds"),
        (20, 16, "byte 16: GLOBAL_DATA is longer than what it says it holds"),
        (40, 9, "byte 32: GLOBAL_QUOTA_DATA is shorter than what it says it holds"),
        (92, 2, "byte 80: a connection of type 2 is unknown"),
        (106, 23, "byte 80: an unfinished message is longer than all output"),
        (254, b'x', "byte 232: WATCH_DATA has a text that does not end with its only NUL"),
        (250, 0, "byte 232: WATCH_DATA has a text that does not end with its only NUL"),
        (340, 255, "byte 336: NODE_DATA of 255 bytes reaches beyond the end"),
        (360, b'x', "byte 336: a permission has none of the letters n, r, w, b"),
        (468, 4, "byte 448: access 0x4 in a transaction is unknown"),
        (572, 8, "byte 568: END has a body of 8 bytes"),
        (448, 0, "byte 448: END has a body of 32 bytes"),
    ];
    for (at, value, text) in damage {
        let mut damaged = stream.clone();
        damaged[at] = value;
        let error = check::check(&damaged).error.map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some(text), "byte {at}");
    }
    let cut = Reader::new(&stream[..568]).unwrap().last().unwrap().unwrap_err();
    assert_eq!((cut.offset, cut.problem), (568, Problem::NoEnd));
    let after = Reader::new(&[&stream[..], b"xyz"].concat()).unwrap().last().unwrap().unwrap_err();
    assert_eq!((after.offset, after.problem), (568, Problem::AfterEnd(3)));
    let mut reader = Reader::new(&stream[..568]).unwrap();
    assert!(reader.by_ref().any(|record| record.is_err()));
    assert!(reader.next().is_none());
}

/// A region of memory.
struct Region {
    bytes: [u8; 100],
    used: usize,
}

impl Sink for Region {
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfRoom> {
        let end = self.used + bytes.len();
        self.bytes.get_mut(self.used..end).ok_or(OutOfRoom)?.copy_from_slice(bytes);
        self.used = end;
        Ok(())
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut region = Region { bytes: [0; 100], used: 0 };
    let mut writer = Writer::new(&mut region, Version::Two).unwrap();
    let perms = [entry(b'n', 0)];
    writer.node(&node(b"/", b"", &perms)).unwrap();
    let full = writer.node(&node(b"/a", &[7; 40], &perms));
    assert_eq!(full, Err(WriteError::OutOfRoom));

    let mut writer = Writer::new(Vec::new(), Version::Two).unwrap();
    let long = vec![b'x'; 65_536];
    let too_long = Err(WriteError::TooLong(RecordKind::Node));
    assert_eq!(writer.node(&node(&long[1..], b"", &perms)), too_long);
    assert_eq!(writer.node(&node(b"/", &long, &perms)), too_long);
    assert_eq!(writer.node(&node(b"/", b"", &vec![perms[0]; 65_536])), too_long);
    let too_much = Connection { input: &long, ..ring(1, 0, 1) };
    assert_eq!(writer.connection(&too_much), Err(WriteError::TooLong(RecordKind::Connection)));
    let half = Connection { output: b"1", partial: 2, ..ring(1, 0, 1) };
    assert_eq!(writer.connection(&half), Err(WriteError::Unreadable(RecordKind::Connection)));
    assert_eq!(
        writer.node(&node(b"/a\0", b"", &perms)),
        Err(WriteError::Unreadable(RecordKind::Node))
    );
    let watch = Watch { conn: ConnId(1), path: b"/", token: b"a\0b", depth: None };
    assert_eq!(writer.watch(&watch), Err(WriteError::Unreadable(RecordKind::Watch)));
    for kind in 0..9 {
        assert!(writer.unknown(&Unknown { kind, body: b"" }).is_err());
    }
    // Nothing of all that is in the stream.
    assert_eq!(writer.written(), 16);
    assert_eq!(records(&writer.finish().unwrap()), []);
}

#[test]
fn pending_data_may_come_in_parts() {
    let whole = Connection { input: b"abcde", output: b"fghij", partial: 1, ..ring(1, 2, 3) };
    let mut writer = Writer::new(Vec::new(), Version::Two).unwrap();
    let (input, output): ([&[u8]; 3], [&[u8]; 2]) = ([b"ab", b"", b"cde"], [b"f", b"ghij"]);
    let head = Connection { input: b"", output: b"", ..whole };
    writer.connection_of_parts(&head, input.into_iter(), output.into_iter()).unwrap();
    assert_eq!(records(&writer.finish().unwrap()), [Record::Connection(whole)]);
}

/// The faults of records that follow a connection 1 of domain 0, its transaction 1 and the node `/`.
fn faults(more: &[Record<'_>]) -> String {
    let perms = [entry(b'n', 0)];
    let mut list = vec![
        Record::Global(Global { socket: -1, evtchn: 0 }),
        Record::Connection(ring(1, 0, 1)),
        Record::Transaction(Transaction { conn: ConnId(1), tx: TxId(1) }),
        Record::Node(node(b"/", b"", &perms)),
    ];
    list.extend(more);
    let report = check::check(&written(&list, Version::Two));
    assert_eq!((report.error, report.is_sound()), (None, report.faults.is_empty()));
    let texts = report.faults.iter().map(|(_, fault)| fault.to_string()).collect::<Vec<_>>();
    texts.join("; ")
}

#[test]
fn connections_are_checked() {
    let endpoint = |domid, target| {
        let (domid, target) = (DomId(domid), Some(DomId(target)));
        Endpoint::Ring { domid, target, port: EvtchnPort(1) }
    };
    let two = ring(2, 2, 2);
    let cases = [
        (two, ""),
        (Connection { endpoint: endpoint(2, 0), ..two }, ""),
        (Connection { input: b"\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0a", ..two }, ""),
        (Connection { output: b"abc", partial: 3, ..two }, ""),
        (ring(1, 2, 2), "there is a second connection 1"),
        (ring(0, 2, 2), "a connection has the number 0"),
        (ring(2, 0, 2), "there is a second ring of domain 0"),
        (ring(2, 0x7ff0, 2), "no domain can have the id 32752"),
        (Connection { endpoint: endpoint(2, 0x7ff5), ..two }, "no domain can have the id 32757"),
        (Connection { endpoint: endpoint(2, 2), ..two }, "domain 2 is its own target"),
        (
            Connection { input: b"\0\0\0\0\0\0\0\0\0\0\0\0\x01\x10\0\0", ..two },
            "connection 2 has a message with 4097 bytes of payload",
        ),
        (
            Connection { output: b"a\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0x", partial: 1, ..two },
            "the output of connection 2 stops inside a message",
        ),
    ];
    for (connection, fault) in cases {
        assert_eq!(faults(&[Record::Connection(connection)]), fault);
    }
}

#[test]
fn references_are_checked() {
    let (conn, other) = (ConnId(1), ConnId(7));
    let watch = Watch { conn, path: b"a", token: b"", depth: None };
    let transaction = |conn, tx| Record::Transaction(Transaction { conn, tx: TxId(tx) });
    let domain = Record::Domain(Domain { domid: DomId(0), features: None, quotas: Quotas::NONE });
    let quota = GlobalQuota { per_domain: Quotas::NONE, global_only: Quotas::NONE };
    let cases: [(&[Record<'_>], &str); 12] = [
        (&[Record::Watch(watch)], ""),
        (&[Record::Watch(Watch { conn: other, ..watch })], "there is no connection 7 before"),
        (&[Record::Watch(Watch { path: b"", ..watch })], "the path of a watch is empty"),
        (&[transaction(conn, 2)], ""),
        (&[transaction(conn, 0)], "a transaction has the number 0"),
        (&[transaction(conn, 1)], "connection 1 has a second transaction 1"),
        (&[transaction(other, 1)], "there is no connection 7 before"),
        (&[domain], ""),
        (&[domain, domain], "there is a second record of domain 0"),
        (&[Record::GlobalQuota(quota)], ""),
        (
            &[Record::GlobalQuota(quota), Record::GlobalQuota(quota)],
            "there is a second GLOBAL_QUOTA_DATA",
        ),
        (&[Record::Global(Global { socket: -1, evtchn: 0 })], "there is a second GLOBAL_DATA"),
    ];
    for (list, fault) in cases {
        assert_eq!(faults(list), fault);
    }
}

#[test]
fn nodes_are_checked() {
    let perms = [entry(b'n', 0)];
    let committed = |path| Record::Node(node(path, b"", &perms));
    let pending = |path, value, perms, tx, touch| {
        let pending = Some(Pending { conn: ConnId(1), tx: TxId(tx), touch });
        Record::Node(Node { pending, ..node(path, value, perms) })
    };
    let cases: [(&[Record<'_>], &str); 17] = [
        (&[committed(b"/a"), committed(b"/a/b"), committed(b"@x")], ""),
        (&[committed(b"/a/b")], "the node above is missing before"),
        // What is missing is found once.
        (&[committed(b"/a/b"), committed(b"/a/b/c")], "the node above is missing before"),
        (&[committed(b"/a"), committed(b"/a")], "there is a second record of the node"),
        (&[committed(b"/")], "there is a second record of the node"),
        (&[committed(b"")], "no node can have this path"),
        (&[committed(b"a")], "no node can have this path"),
        (&[committed(b"/a/")], "no node can have this path"),
        (&[committed(b"//a")], "no node can have this path"),
        (&[committed(b"@")], "no node can have this path"),
        (&[Record::Node(node(b"/a", b"", &[]))], "the node has no permissions"),
        (&[pending(b"/a/b", b"1", &perms, 1, Touch::Read), committed(b"/a")], ""),
        (&[pending(b"/a", b"", &[], 1, Touch::Deleted)], ""),
        (
            &[pending(b"/a", b"1", &[], 1, Touch::Deleted)],
            "a deleted node has a value or permissions",
        ),
        (&[pending(b"/a", b"", &[], 1, Touch::Written)], "the node has no permissions"),
        (
            &[pending(b"/a", b"", &perms, 2, Touch::Written)],
            "connection 1 has no transaction 2 before",
        ),
        (
            &[
                pending(b"/a", b"", &perms, 1, Touch::Read),
                pending(b"/a", b"", &perms, 1, Touch::Read),
            ],
            "there is a second record of the node",
        ),
    ];
    for (list, fault) in cases {
        assert_eq!(faults(list), fault);
    }
    // Who keeps the nodes elsewhere is not asked about them.
    let mut checker = check::Checker::without_nodes();
    for record in [committed(b"/a/b"), committed(b"/a/b")] {
        assert_eq!(checker.record(&record), Ok(()));
    }
}

#[test]
fn a_report_does_not_grow_without_end() {
    let list = vec![Record::Transaction(Transaction { conn: ConnId(1), tx: TxId(0) }); 1000];
    let report = check::check(&written(&list, Version::Two));
    assert_eq!((report.faults.len(), report.more_faults), (50, 950));
    let text = report.to_string();
    assert!(text.starts_with("byte 16: a transaction has the number 0\nbyte 32: "), "{text}");
    assert!(text.contains("\nand 950 more\nversion 2: 0 connections, "), "{text}");
}

/// Streams that real servers wrote on real Xen (`tests/nested/exchange.sh`, `tests/nested/from-stream.sh`), each with what
/// `xenstore-ls -fp` showed at that moment.
const REAL: [(&str, &str); 3] = [
    (
        "real-c-4.17-with-guest",
        "version 1: 7 connections, 19 watches, 0 transactions, 94 nodes, 0 of transactions, 0 domains",
    ),
    (
        "real-c-4.17-without-guest",
        "version 1: 4 connections, 9 watches, 0 transactions, 28 nodes, 0 of transactions, 0 domains",
    ),
    (
        "real-ours",
        "version 1: 1 connections, 9 watches, 0 transactions, 53 nodes, 0 of transactions, 1 domains",
    ),
];

#[test]
fn streams_of_real_servers_are_read_as_those_show_their_tree() {
    for (name, holds) in REAL {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/streams/{name}.bin"));
        let stream = std::fs::read(path).unwrap();
        assert_eq!(check::check(&stream).to_string(), holds, "{name}");
        let listing = Listing(&stream).to_string();
        let nodes = listing.lines().filter_map(|line| line.split_once(" NODE_DATA /"));
        // What xenstore-ls does not show: the root, and which entries are stale.
        let shown = nodes.filter(|(_, node)| !node.starts_with(' '));
        let shown =
            shown.map(|(_, node)| format!("/{}\n", node.replace("  (", "   (").replace('!', "")));
        assert_eq!(shown.collect::<String>(), file(&format!("{name}.ls")), "{name}");
        // Nothing in them is lost in records: they are written as they were.
        let records = records(&stream);
        assert_eq!(Reader::new(&written(&records, Version::One)).unwrap().count(), records.len());
        if name == "real-ours" {
            assert_eq!(written(&records, Version::One), stream);
        }
    }
}
