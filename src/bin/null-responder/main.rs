//! The lower bound for `scripts/bench`: it answers every request at once, without a store.
//!
//! It uses the same Xen layer and the same rings as the server. So it shows the cost of waking up, taking a
//! request from the ring, putting a reply into it, signalling and sleeping again. Whatever a server does beyond
//! that comes on top. `init-xenstore-domain` starts it like the server; guests are introduced.
//!
//! It looks like an empty store, except below `/bench` and `data/bench`, where everything exists and a READ always
//! gives the same value. It remembers the last watch of a client there, so that a WRITE of its path has an event.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image {
    use alloc::vec::Vec;
    use core::fmt::Write as _;
    use xen_kernel_rt::gnttab::GrantedPage;
    use xen_kernel_rt::start::Machine;
    use xenstore_stubdom::platform::XenPlatform;
    use xenstore_stubdom::proto::assemble::Assembler;
    use xenstore_stubdom::proto::id::{DomId, EvtchnPort};
    use xenstore_stubdom::proto::ring::{Requests, Responses, RingPage, Word};
    use xenstore_stubdom::proto::wire::{Header, Kind};
    use xenstore_stubdom::server::platform::{Event, Platform};

    xen_kernel_rt::xen_entry!(main);

    /// The value of every node below [`HOME`]: as long as the values that the bench writes.
    const VALUE: &[u8] = b"0123456789";
    const HOMES: [&[u8]; 2] = [b"/bench", b"data/bench"];

    fn main(machine: Machine, command_line: &'static str) -> ! {
        let mut platform = XenPlatform::new(machine);
        let mut words = command_line.split([' ', ',', '=']).skip_while(|word| *word != "--event");
        let port = words.nth(1).and_then(|word| word.parse().ok()).expect("--event PORT");
        let mut clients = alloc::vec![Client::open(&mut platform, DomId(0), port)];
        loop {
            while let Some(event) = platform.next_event() {
                let Event::Port(port) = event else { continue };
                let Some(client) = clients.iter_mut().find(|client| client.port == port) else {
                    continue;
                };
                client.is_signalled = true;
            }
            let mut new = Vec::new();
            for client in &mut clients {
                if core::mem::take(&mut client.is_signalled) {
                    client.serve(&mut platform);
                    new.append(&mut client.introduced);
                }
            }
            for (domid, port) in new {
                clients.push(Client::open(&mut platform, domid, port));
            }
            platform.wait(None);
        }
    }

    struct Client {
        page: GrantedPage,
        port: EvtchnPort,
        is_signalled: bool,
        assembler: Assembler,
        /// Replies that are not in the ring yet.
        out: Vec<u8>,
        /// Path and token of the last watch, as the event's payload has them.
        watch: Vec<u8>,
        /// Domains that it has introduced just now, with their ports.
        introduced: Vec<(DomId, u32)>,
    }

    impl Client {
        fn open(platform: &mut XenPlatform, domid: DomId, port: u32) -> Self {
            let mut page = platform.map_ring(domid).expect("the ring of a domain");
            let port = platform.bind(domid, port).expect("the port of a domain");
            page.store(Word::Connection, 0);
            platform.notify(port);
            let (assembler, out, watch, introduced) = Default::default();
            // It may have asked already.
            Self { page, port, is_signalled: true, assembler, out, watch, introduced }
        }

        /// Until the request ring is empty, or the response ring full.
        fn serve(&mut self, platform: &mut XenPlatform) {
            while self.pass(platform) {
                platform.notify(self.port);
                self.page.barrier();
            }
        }

        /// Takes what is in the ring and answers it; returns whether there was anything to do.
        fn pass(&mut self, platform: &XenPlatform) -> bool {
            let mut pass = Requests::open(&self.page).expect("the indices");
            let mut assembler = core::mem::take(&mut self.assembler);
            while assembler
                .fill(pass.available(), |room| _ = pass.take(&self.page, room))
                .expect("the lengths")
            {
                if let Some((header, payload)) = assembler.complete() {
                    self.answer(platform, header, payload);
                }
                assembler.clear();
            }
            self.assembler = assembler;
            let has_taken = pass.close(&mut self.page);
            let mut pass = Responses::open(&self.page).expect("the indices");
            let put = pass.put(&mut self.page, &self.out);
            self.out.drain(..put);
            pass.close(&mut self.page) | has_taken
        }

        fn answer(&mut self, platform: &XenPlatform, header: Header, payload: &[u8]) {
            let path = payload.split(|byte| *byte == 0).next().unwrap_or(&[]);
            let is_home = HOMES.iter().any(|home| path.starts_with(home));
            let missing = (Kind::Error, &b"ENOENT\0"[..]);
            let (kind, reply) = match Kind::from_number(header.kind) {
                Some(Kind::Read | Kind::Directory | Kind::GetPerms) if !is_home => missing,
                Some(kind @ Kind::Read) => (kind, VALUE),
                Some(kind @ Kind::Directory) => (kind, &[][..]),
                Some(kind @ Kind::TransactionStart) => (kind, &b"1\0"[..]),
                Some(kind @ Kind::Introduce) => {
                    self.introduced.extend(introduction(payload));
                    (kind, &b"OK\0"[..])
                }
                Some(Kind::Control) => return self.report(platform, header),
                Some(kind @ Kind::Write) => {
                    if self.watch.starts_with(path) && self.watch.get(path.len()) == Some(&0) {
                        self.event();
                    }
                    (kind, &b"OK\0"[..])
                }
                Some(kind @ Kind::Unwatch) => {
                    self.watch.clear();
                    (kind, &b"OK\0"[..])
                }
                Some(kind) => (kind, &b"OK\0"[..]),
                None => missing,
            };
            self.reply(Header { kind: kind.number(), ..header }, reply);
            if is_home && header.kind == Kind::Watch.number() {
                self.watch = payload.to_vec();
                self.event();
            }
        }

        fn reply(&mut self, header: Header, payload: &[u8]) {
            let len = u32::try_from(payload.len()).unwrap_or(0);
            self.out.extend_from_slice(&Header { len, ..header }.to_bytes());
            self.out.extend_from_slice(payload);
        }

        fn event(&mut self) {
            let watch = core::mem::take(&mut self.watch);
            let kind = Kind::WatchEvent.number();
            self.reply(Header { kind, req_id: 0, tx_id: 0, len: 0 }, &watch);
            self.watch = watch;
        }

        /// As `CONTROL stats` of the server says it.
        fn report(&mut self, platform: &XenPlatform, header: Header) {
            let mut text = alloc::string::String::new();
            // Writing to a string does not fail.
            let _ = write!(text, "hypercalls: {}\n\0", platform.hypercalls());
            self.reply(header, text.as_bytes());
        }
    }

    /// Domain and port of an INTRODUCE; the frame does not matter, since the page is granted.
    fn introduction(payload: &[u8]) -> Option<(DomId, u32)> {
        let mut words = payload.split(|byte| *byte == 0).map(core::str::from_utf8);
        let domid = words.next()?.ok()?.parse().ok()?;
        let port = words.nth(1)?.ok()?.parse().ok()?;
        Some((DomId(domid), port))
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
