//! Requests cut at any bytes: the assembler gives the same messages as a look at the whole stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::assemble::Assembler;
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (stream, cuts) = input;
    let mut assembler = Assembler::new();
    let mut cuts = cuts.iter().cycle().map(|cut| usize::from(*cut));
    let (mut at, mut start) = (0, 0);
    while at < stream.len() {
        let wanted = match assembler.wanted() {
            Ok(wanted) => wanted,
            Err(_) => unreachable!("push had to say so"),
        };
        assert!(wanted > 0 && wanted <= PAYLOAD_MAX.max(HEADER_SIZE));
        let piece = wanted.min(stream.len() - at).min(cuts.next().unwrap_or(wanted).max(1));
        let pushed = assembler.push(&stream[at..at + piece]);
        at += piece;
        let head = stream.get(start..start + HEADER_SIZE).filter(|_| at >= start + HEADER_SIZE);
        let Some(head) = head.and_then(|head| head.try_into().ok()) else {
            assert!(pushed.is_ok() && assembler.complete().is_none());
            continue;
        };
        let header = Header::from_bytes(head);
        let len = header.len as usize;
        assert_eq!(pushed.is_err(), len > PAYLOAD_MAX);
        if pushed.is_err() {
            return;
        }
        let end = start + HEADER_SIZE + len;
        let complete = (at == end).then(|| (header, &stream[start + HEADER_SIZE..end]));
        assert_eq!(assembler.complete(), complete);
        if complete.is_some() {
            assembler.clear();
            assert!(assembler.is_empty());
            start = end;
        }
    }
});
