//! What a successor is given: a stream and a private part, damaged at will. It must be refused, or give a server
//! that holds together; never a panic.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::server::Server;
use xenstore_stubdom::sim::{Client, Simulation};

#[derive(Arbitrary, Debug)]
enum Change {
    /// A byte becomes another one.
    Byte(u16, u8),
    /// A number of four bytes becomes another one.
    Number(u16, u32),
    /// Bytes go.
    Cut(u16, u8),
    /// Bytes come.
    Insert(u16, Vec<u8>),
    /// Bytes are there once more, elsewhere.
    Copy(u16, u8, u16),
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// Whole parts, or changes of real ones.
    raw: Option<(Vec<u8>, Vec<u8>)>,
    stream: Vec<Change>,
    private: Vec<Change>,
}

fn apply(bytes: &mut Vec<u8>, changes: Vec<Change>) {
    for change in changes.into_iter().take(20) {
        let len = bytes.len().max(1);
        let place = |at: u16| usize::from(at) % len;
        match change {
            Change::Byte(at, value) => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte = value;
                }
            }
            Change::Number(at, value) => {
                for (to, from) in bytes.iter_mut().skip(place(at)).zip(value.to_le_bytes()) {
                    *to = from;
                }
            }
            Change::Cut(at, count) => {
                let from = place(at).min(bytes.len());
                let to = (from + usize::from(count)).min(bytes.len());
                bytes.drain(from..to);
            }
            Change::Insert(at, new) => {
                let at = place(at).min(bytes.len());
                bytes.splice(at..at, new.into_iter().take(64));
            }
            Change::Copy(from, count, to) => {
                let from = place(from).min(bytes.len());
                let end = (from + usize::from(count)).min(bytes.len());
                let piece = bytes[from..end].to_vec();
                let to = place(to).min(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}

fn ask(simulation: &mut Simulation, client: &mut Client, kind: Kind, tx: u32, payload: &[u8]) {
    let (bytes, _) = client.request(kind.number(), tx, payload);
    client.write(&bytes);
    simulation.settle();
    client.read(usize::MAX);
    simulation.settle();
}

/// A world whose server has something of everything.
fn world() -> Simulation {
    let (mut simulation, mut dom0) = Simulation::start("");
    let s = &mut simulation;
    let port = s.world.create(DomId(7));
    ask(s, &mut dom0, Kind::Introduce, 0, format!("7\x001\0{port}\0").as_bytes());
    ask(s, &mut dom0, Kind::Mkdir, 0, b"/local/domain/7\0");
    ask(s, &mut dom0, Kind::SetPerms, 0, b"/local/domain/7\0n7\0r9\0");
    let mut seven = s.client(DomId(7));
    ask(s, &mut seven, Kind::Watch, 0, b"a\0tok\x002\0");
    ask(s, &mut seven, Kind::Write, 0, b"a/b\0value");
    ask(s, &mut seven, Kind::TransactionStart, 0, b"\0");
    ask(s, &mut seven, Kind::Write, 1, b"a/c\0value");
    ask(s, &mut seven, Kind::Rm, 1, b"a/b\0");
    ask(s, &mut dom0, Kind::Write, 0, b"/local/domain/7/a/x\0");
    let (read, _) = seven.request(Kind::Read.number(), 0, b"a\0");
    seven.write(&read[..9]);
    s.settle();
    simulation
}

fuzz_target!(|input: Input| {
    let mut simulation = world();
    let offer = simulation.server.leave().expect("it can be written down");
    let (stream, private) = offer.region.bytes.split_at(offer.stream_len);
    let (mut stream, mut private) = (stream.to_vec(), private.to_vec());
    if let Some((raw_stream, raw_private)) = input.raw {
        stream.truncate(16);
        stream.extend(raw_stream);
        private = raw_private;
    }
    apply(&mut stream, input.stream);
    apply(&mut private, input.private);
    let platform = simulation.world.successor();
    let alone = private.is_empty();
    if let Ok(mut new) = Server::restore(platform, "", &stream, &private) {
        new.check().expect("the books balance");
        new.digest().expect("it can be written again");
        new.take_over();
        let mut simulation = Simulation { world: simulation.world.clone(), server: new };
        simulation.settle();
        simulation.sleep(100);
        simulation.check().expect("the books balance");
        if !alone {
            simulation.world.destroy(DomId(7));
            simulation.settle();
            simulation.check().expect("the books balance after a death");
        }
    }
});
