//! A store in the simulated world, as the tools see it.

use anyhow::Result;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::{Client, Simulation};
use xenstore_tools::link::{Answer, Ask};

/// What a guest could call itself, or write, to spoil what people see: control bytes, the ends of lines, quotes, escapes,
/// what is no UTF-8, letters that turn the direction of writing, the syntax of the outputs, and nothing but length.
pub(crate) fn hostile() -> Vec<Vec<u8>> {
    let all = (0..=u8::MAX).collect::<Vec<_>>();
    let some: [&[u8]; 12] = [
        b"\"",
        b"\\",
        b"\\\"",
        b"a\nb 1",
        b"\r\n# TYPE x gauge\nx 1",
        b"\x1b[2J\x07\0\x7f",
        b"\xff\xfe\xc3",
        "\u{202e}evil\u{200b}\u{0301}".as_bytes(),
        b"\",domid=\"0",
        b"} 1",
        b"a b\tc",
        b"",
    ];
    let mut names = some.map(<[u8]>::to_vec).to_vec();
    names.extend([all, vec![b'x'; 3000], vec![0xff; 3000]]);
    names
}

/// Whether a text is printable ASCII in whole lines.
pub(crate) fn is_plain(text: &str) -> bool {
    text.ends_with('\n') && text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte))
}

/// Dom0 asks, in the simulated world.
pub(crate) struct Store {
    pub(crate) simulation: Simulation,
    pub dom0: Client,
    pub(crate) guests: Vec<Client>,
    /// CONTROL requests so far, and all.
    pub(crate) controls: usize,
    pub(crate) requests: usize,
}

impl Store {
    /// With guests 1 to `count`, each with a home and a name.
    pub(crate) fn start(options: &str, count: u16) -> Self {
        let (simulation, dom0) = Simulation::start(options);
        let mut store = Self { simulation, dom0, guests: Vec::new(), controls: 0, requests: 0 };
        for domid in 1..=count {
            let port = store.simulation.world.create(DomId(domid));
            store.must(Kind::Introduce, format!("{domid}\x001\0{port}\0").as_bytes());
            let home = format!("/local/domain/{domid}");
            store.must(Kind::Write, format!("{home}/name\0guest-{domid}").as_bytes());
            store.must(Kind::SetPerms, format!("{home}\0n{domid}\0").as_bytes());
            store.guests.push(store.simulation.client(DomId(domid)));
        }
        (store.controls, store.requests) = (0, 0);
        store
    }

    pub(crate) fn must(&mut self, kind: Kind, payload: &[u8]) -> Vec<u8> {
        self.ask(kind, payload).unwrap().unwrap()
    }

    /// A guest's request, whatever becomes of it; `guest` counts from 0.
    pub(crate) fn say(&mut self, guest: usize, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let Self { simulation, guests, .. } = self;
        simulation.ask(&mut guests[guest], kind, 0, payload).pop().unwrap().payload
    }
}

impl Ask for Store {
    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer> {
        self.requests += 1;
        self.controls += usize::from(kind == Kind::Control);
        let messages = self.simulation.ask(&mut self.dom0, kind, 0, payload);
        let is_reply = |kind: u32| kind != Kind::WatchEvent.number();
        let message = messages.into_iter().find(|message| is_reply(message.header.kind)).unwrap();
        if message.header.kind == kind.number() {
            return Ok(Ok(message.payload));
        }
        Ok(Err(String::from_utf8_lossy(&message.payload).trim_end_matches('\0').to_owned()))
    }
}
