//! Record streams of any bytes, mostly with proper headers: what is read can be written, and is read the same again.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::stream::{IDENT, Listing, Reader, Record, Writer, check};

#[derive(Arbitrary, Debug)]
enum Piece {
    /// A record with the right length, padded.
    Record(u8, Vec<u8>),
    /// A watch with depth, its texts where the offset says.
    Watch(u8, Vec<u8>, Vec<u8>),
    Bytes(Vec<u8>),
}

fn push_record(stream: &mut Vec<u8>, number: impl Fn(u32) -> [u8; 4], kind: u32, body: &[u8]) {
    stream.extend(number(kind));
    stream.extend(number(u32::try_from(body.len()).unwrap()));
    stream.extend(body);
    stream.resize(stream.len().next_multiple_of(8), 0);
}

/// A stream with a proper preamble, and END unless something else is wanted.
fn assemble(version: bool, big: bool, pieces: &[Piece], end: Option<&[u8]>) -> Vec<u8> {
    let number = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let short = |n: usize| {
        let n = u16::try_from(n).unwrap_or(u16::MAX);
        if big { n.to_be_bytes() } else { n.to_le_bytes() }
    };
    let mut stream = IDENT.to_vec();
    stream.extend([0, 0, 0, 1 + u8::from(version), 0, 0, 0, u8::from(big)]);
    for piece in pieces {
        match piece {
            Piece::Record(kind, body) => {
                push_record(&mut stream, number, u32::from(*kind) % 11, body);
            }
            Piece::Watch(depth, path, token) => {
                let mut body = number(1).to_vec();
                body.extend(short(path.len() + 1));
                body.extend(short(token.len() + 1));
                body.extend(&[*depth, depth / 4, 0, 0][..usize::from(depth % 3) * 2]);
                for text in [path, token] {
                    body.extend(text.iter().map(|byte| byte.max(&1)));
                    body.push(0);
                }
                push_record(&mut stream, number, 8, &body);
            }
            Piece::Bytes(bytes) => stream.extend(bytes),
        }
    }
    stream.extend(end.unwrap_or(&[0; 8]));
    stream
}

/// Whether a record that was written again says the same; of an unknown one the padding is counted then.
fn is_same(old: &Record<'_>, new: &Record<'_>) -> bool {
    match (old, new) {
        (Record::Unknown(old), Record::Unknown(new)) => {
            old.kind == new.kind
                && new.body.starts_with(old.body)
                && new.body.len() - old.body.len() < 8
        }
        _ => old == new,
    }
}

fn judge(stream: &[u8]) {
    let shown = Listing(stream).to_string();
    let report = check::check(stream);
    assert_eq!(report.error.is_none(), !shown.lines().any(|line| line.starts_with("byte ")));
    let Ok(reader) = Reader::new(stream) else { return };
    let version = reader.version();
    let mut records = Vec::new();
    for record in reader {
        match record {
            Ok(record) => records.push(record),
            Err(error) => {
                assert_eq!(report.error, Some(error));
                assert!(error.offset <= stream.len());
            }
        }
    }
    assert!(records.len() <= stream.len() / 8);
    let mut writer = Writer::new(Vec::new(), version).unwrap();
    for record in &records {
        writer.record(record).expect("what was read can be written");
    }
    let again = writer.finish().unwrap();
    let new = Reader::new(&again).unwrap().collect::<Result<Vec<_>, _>>().expect("readable");
    assert_eq!(records.len(), new.len());
    assert!(records.iter().zip(&new).all(|(old, new)| is_same(old, new)));
    let faults = |report: &check::Report| {
        (report.faults.iter().map(|(_, fault)| *fault).collect::<Vec<_>>(), report.counts)
    };
    assert_eq!(faults(&report), faults(&check::check(&again)));
}

fuzz_target!(|input: (bool, bool, Vec<Piece>, Option<&[u8]>)| {
    let (version, big, pieces, end) = input;
    judge(&assemble(version, big, &pieces, end));
    if let Some(raw) = end {
        judge(raw);
    }
});
