//! The store against the naive model: three connections, any requests, every reply and event judged.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::model::{Model, Setting};
use xenstore_stubdom::sim::{Client, Simulation};

/// A path out of few, so that requests meet.
#[derive(Arbitrary, Debug)]
struct Path {
    home: u8,
    names: [u8; 3],
}

#[derive(Arbitrary, Debug)]
enum What {
    Read,
    Directory,
    Part(i8),
    GetPerms,
    Write(u8),
    Mkdir,
    Rm,
    SetPerms(Vec<(u8, u8)>),
    Watch(u8, Option<u8>),
    Unwatch(u8),
    Start,
    End(bool),
    Reset,
    /// Anything at all.
    Raw(u8, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Step {
    who: u8,
    tx: u8,
    path: Path,
    what: What,
}

const LIMITS: [u32; 10] = [12, 4, 0, 0, 0, 2, 12, 3, 40, 120];

impl Path {
    fn text(&self) -> String {
        let mut path = String::from(match self.home % 8 {
            0 => "/local/domain/1",
            1 => "/local/domain/2",
            2 => "/s",
            3 => "",
            4 => {
                return String::from(
                    ["@releaseDomain", "@introduceDomain", "/", "@x"]
                        [usize::from(self.names[0]) % 4],
                );
            }
            _ => "r",
        });
        for name in self.names {
            match name % 5 {
                0..=2 => {
                    path.push('/');
                    path.push(char::from(b'a' + name % 5));
                }
                _ => {}
            }
        }
        path
    }
}

fn strings(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| word.bytes().chain([0])).collect()
}

impl Step {
    fn request(&self) -> (u32, Vec<u8>) {
        let path = self.path.text();
        let path = path.as_str();
        let token = |token: u8| String::from(["t", "u", "v"][usize::from(token) % 3]);
        let (kind, payload) = match &self.what {
            What::Read => (Kind::Read, strings(&[path])),
            What::Directory => (Kind::Directory, strings(&[path])),
            What::Part(offset) => (Kind::DirectoryPart, strings(&[path, &offset.to_string()])),
            What::GetPerms => (Kind::GetPerms, strings(&[path])),
            What::Write(len) => {
                (Kind::Write, [strings(&[path]), vec![b'v'; usize::from(*len)]].concat())
            }
            What::Mkdir => (Kind::Mkdir, strings(&[path])),
            What::Rm => (Kind::Rm, strings(&[path])),
            What::SetPerms(perms) => {
                let mut payload = strings(&[path]);
                for (letter, domid) in perms.iter().take(5) {
                    let letter = ["n", "r", "w", "b"][usize::from(*letter) % 4];
                    let domid = [0, 1, 2, 9, 32757][usize::from(*domid) % 5];
                    payload.extend(strings(&[&format!("{letter}{domid}")]));
                }
                (Kind::SetPerms, payload)
            }
            What::Watch(which, depth) => {
                let depth = depth.map(|depth| (depth % 4).to_string());
                let token = token(*which);
                let mut words = vec![path, &token];
                words.extend(depth.as_deref());
                (Kind::Watch, strings(&words))
            }
            What::Unwatch(which) => (Kind::Unwatch, strings(&[path, &token(*which)])),
            What::Start => (Kind::TransactionStart, strings(&[""])),
            What::End(commit) => {
                (Kind::TransactionEnd, strings(&[if *commit { "T" } else { "F" }]))
            }
            What::Reset => (Kind::ResetWatches, strings(&[""])),
            What::Raw(kind, payload) => {
                let kind =
                    [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 21, 22, 23][usize::from(*kind) % 15];
                return (kind, payload.clone());
            }
        };
        (kind.number(), payload)
    }
}

/// A simulation that is judged.
struct Court {
    simulation: Simulation,
    model: Model,
    clients: Vec<Client>,
}

impl Court {
    fn send(&mut self, who: usize, kind: u32, tx: u32, payload: &[u8]) {
        let payload = &payload[..payload.len().min(4096)];
        let (bytes, _) = self.clients[who].request(kind, tx, payload);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = self.clients[who].write(rest);
            rest = &rest[written..];
            self.work();
            if written == 0 {
                self.pause();
            }
        }
    }

    /// Whoever writes faster than others can commit is not read for a while.
    fn pause(&mut self) {
        let world = &self.simulation.world;
        world.set_clock(world.now_ms() + 1000);
        self.work();
    }

    fn work(&mut self) {
        loop {
            self.simulation.settle();
            let seen = self.simulation.world.journal().take();
            if let Err(what) = self.model.judge(&seen) {
                panic!("{what}");
            }
            let read: usize = self.clients.iter_mut().map(|client| client.read(usize::MAX)).sum();
            for client in &mut self.clients {
                while client.next_message().is_some() {}
            }
            if read == 0 {
                return;
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut model = Model::new(Setting { limits: LIMITS, event_timeout_ms: None });
    let line = "-w watch-event=0 -q memory=0 -E 12 -W 4 -t 2 -A 3 -M 40 -S 120 -Q outstanding=0 \
                -Q memory=0 -Q transaction-nodes=12";
    let (simulation, client) = Simulation::start_watched(line, |world, page| {
        world.journal().open();
        model.set_honest(page, true);
    });
    let mut court = Court { simulation, model, clients: vec![client] };
    court.work();
    for domid in 1..=2_u16 {
        let port = court.simulation.world.create(DomId(domid));
        let introduction = format!("{domid}\x001\0{port}\0");
        court.send(0, Kind::Introduce.number(), 0, introduction.as_bytes());
        let client = court.simulation.client(DomId(domid));
        court.model.set_honest(client.page().id(), true);
        court.clients.push(client);
        let home = format!("/local/domain/{domid}");
        court.send(0, Kind::Mkdir.number(), 0, &strings(&[&home]));
        court.send(0, Kind::SetPerms.number(), 0, &strings(&[&home, &format!("r{domid}")]));
    }
    for step in steps.iter().take(100) {
        let (kind, payload) = step.request();
        let tx = u32::from(step.tx % 8).saturating_sub(4);
        court.send(usize::from(step.who) % 3, kind, tx, &payload);
    }
    // What waits in the rings is at most some dozens of writes.
    for _ in 0..100 {
        court.pause();
    }
    for client in &court.clients {
        assert_eq!(court.model.owed(client.page().id()), None);
    }
    court.simulation.check().expect("the books balance");
});
