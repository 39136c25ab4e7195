//! The floor for `scripts/bench`: answers every request of dom0 at once, without a store.
//!
//! It stands on the same Xen layer and the same rings as the server: what it costs to wake up, to take a request
//! from the ring, to put a reply into it, to signal and to sleep again. Whatever a server does
//! beyond that comes on top. `init-xenstore-domain` starts it like the server.
//!
//! To dom0 it looks like an empty store, except below `/bench`, where everything exists: a READ gives
//! always the same value. Of watches there it remembers the last one, so that a WRITE of its path has an event.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image {
    use alloc::vec::Vec;
    use core::fmt::Write as _;
    use xenstore_stubdom::proto::assemble::Assembler;
    use xenstore_stubdom::proto::id::{DomId, EvtchnPort};
    use xenstore_stubdom::proto::ring::{Requests, Responses, RingPage, Word};
    use xenstore_stubdom::proto::wire::{Header, Kind};
    use xenstore_stubdom::server::platform::Platform;
    use xenstore_stubdom::xen::gnttab::GrantedPage;
    use xenstore_stubdom::xen::platform::XenPlatform;
    use xenstore_stubdom::xen::start::Machine;

    xenstore_stubdom::xen_entry!(main);

    /// What every node below [`HOME`] holds: as long as the values that the bench writes.
    const VALUE: &[u8] = b"0123456789";
    const HOME: &[u8] = b"/bench";

    fn main(machine: Machine, command_line: &'static str) -> ! {
        let mut platform = XenPlatform::new(machine);
        let mut words = command_line.split([' ', ',', '=']).skip_while(|word| *word != "--event");
        let port = words.nth(1).and_then(|word| word.parse().ok()).expect("--event PORT");
        let mut page = platform.map_ring(DomId(0)).expect("the ring of domain 0");
        let port = platform.bind(DomId(0), port).expect("the port of domain 0");
        page.store(Word::Connection, 0);
        platform.notify(port);
        let mut responder = Responder::default();
        loop {
            while platform.next_event().is_some() {}
            responder.serve(&mut platform, &mut page, port);
            platform.wait(None);
        }
    }

    #[derive(Default)]
    struct Responder {
        assembler: Assembler,
        /// Replies that are not in the ring yet.
        out: Vec<u8>,
        /// Path and token of the last watch, as the event's payload has them.
        watch: Vec<u8>,
    }

    impl Responder {
        /// Until the request ring is empty, or the response ring full.
        fn serve(&mut self, platform: &mut XenPlatform, page: &mut GrantedPage, port: EvtchnPort) {
            while self.pass(platform, page) {
                platform.notify(port);
                page.barrier();
            }
        }

        /// Takes what is in the ring, answers it, and says whether there was anything to do.
        fn pass(&mut self, platform: &XenPlatform, page: &mut GrantedPage) -> bool {
            let mut pass = Requests::open(page).expect("dom0's indices");
            let mut piece = [0; 1024];
            loop {
                let wanted = self.assembler.wanted().expect("dom0's lengths").min(piece.len());
                let taken = pass.take(page, &mut piece[..wanted]);
                self.assembler.push(&piece[..taken]).expect("dom0's lengths");
                if self.assembler.complete().is_some() {
                    let assembler = core::mem::take(&mut self.assembler);
                    if let Some((header, payload)) = assembler.complete() {
                        self.answer(platform, header, payload);
                    }
                    self.assembler = assembler;
                    self.assembler.clear();
                } else if taken == 0 {
                    break;
                }
            }
            let has_taken = pass.close(page);
            let mut pass = Responses::open(page).expect("dom0's indices");
            let put = pass.put(page, &self.out);
            self.out.drain(..put);
            pass.close(page) | has_taken
        }

        fn answer(&mut self, platform: &XenPlatform, header: Header, payload: &[u8]) {
            let path = payload.split(|byte| *byte == 0).next().unwrap_or(&[]);
            let is_home = path.starts_with(HOME);
            let missing = (Kind::Error, &b"ENOENT\0"[..]);
            let (kind, reply) = match Kind::from_number(header.kind) {
                Some(Kind::Read | Kind::Directory | Kind::GetPerms) if !is_home => missing,
                Some(kind @ Kind::Read) => (kind, VALUE),
                Some(kind @ Kind::Directory) => (kind, &[][..]),
                Some(kind @ Kind::TransactionStart) => (kind, &b"1\0"[..]),
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
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
