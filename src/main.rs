//! The stub domain's binary.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image {
    use alloc::borrow::Cow;
    use alloc::vec::Vec;
    use core::hint;
    use xenstore_stubdom::proto::handover::Digest;
    use xenstore_stubdom::proto::replacement::Module;
    use xenstore_stubdom::proto::sentence::Sentence;
    use xenstore_stubdom::server::Server;
    use xenstore_stubdom::xen::handover::{Handover, abandon};
    use xenstore_stubdom::xen::platform::XenPlatform;
    use xenstore_stubdom::xen::start::{Machine, power_off};
    use xenstore_stubdom::xen::traps::{Fault, provoke};
    use xenstore_stubdom::xen::{console, memory, restart};

    xenstore_stubdom::xen_entry!(main);
    xenstore_stubdom::handover_note!();

    /// Serves the host, for good.
    fn main(machine: Machine, command_line: &'static str) -> ! {
        match machine.handover() {
            Some(handover) => succeed(handover, machine, command_line),
            None => begin(machine, command_line),
        }
    }

    /// The first server of this domain. If there is a module, it is the stream that the server begins with.
    fn begin(machine: Machine, command_line: &'static str) -> ! {
        let memory = memory::figures();
        console::both(format_args!(
            "xenstore-stubdom {} on Xen {}, memory {} of {} KiB, command line \"{command_line}\"",
            env!("CARGO_PKG_VERSION"),
            machine.xen_version(),
            memory.populated * 4,
            memory.maximum * 4,
        ));
        let size = machine.module_size(0);
        let module = machine.module(0);
        if size > 0 && module.is_none() {
            console::both(format_args!(
                "the module of {size} bytes is not taken over: there is no memory for a copy of it"
            ));
        }
        let module = match module {
            Some(module) if Module::is_one(&module) => replace(module, machine, command_line),
            module => module,
        };
        let platform = XenPlatform::new(machine);
        let mut server = match module {
            Some(module) => Server::start_from(platform, command_line, &module),
            None => {
                let mut server = Server::new(platform, command_line);
                server.start();
                server
            }
        };
        restart::guard(&mut server, |_| {}, Server::run, Server::restart)
    }

    /// The server of a domain that takes another one's place, if it understands everything; else the domain ends, and dom0
    /// sees to the rest. In a rehearsal it ends in any case.
    fn replace(module: Vec<u8>, mut machine: Machine, command_line: &'static str) -> ! {
        let cannot = |why: Sentence| -> ! {
            panic!("this domain cannot take another one's place: {why}");
        };
        // There is a copy.
        machine.free_module(0);
        let moved = Module::find(&module).unwrap_or_else(|why| cannot(why));
        let platform = XenPlatform::of_another_domain(machine, moved.head.is_rehearsal);
        let server = Server::restore(platform, command_line, moved.stream, moved.private);
        let mut server = server.unwrap_or_else(|why| cannot(why));
        match server.digest() {
            Ok(digest) if digest == moved.head.digest || server.is_repair() => {}
            Ok(_) if !moved.is_whole() => {
                cannot(Sentence::from("the state is damaged on its way: its checksum differs"));
            }
            Ok(_) => cannot(Sentence::from("the digest of its state differs")),
            Err(why) => cannot(why),
        }
        if moved.head.is_rehearsal {
            console::both(format_args!("rehearsed: this image understands the whole state"));
            power_off();
        }
        server.bind_anew(|domid, port| moved.remote(domid, port));
        drop(module);
        restart::guard(&mut server, Server::take_over, Server::run, Server::restart)
    }

    /// The server that takes over from another one, if it understands everything.
    fn succeed(handover: Handover, machine: Machine, command_line: &'static str) -> ! {
        let fault = command_line.split_once("--trial-fault ").map(|(_, rest)| rest);
        let fault = fault.and_then(|rest| rest.split(' ').next()).unwrap_or("");
        let (mut stream, private) = (Cow::Borrowed(handover.stream()), handover.private());
        if matches!(fault, "checksum" | "record")
            && let Some(byte) = stream.to_mut().get_mut(20)
        {
            *byte = !*byte;
        }
        let server = Server::restore(XenPlatform::new(machine), command_line, &stream, private);
        let server = server
            .map_err(|why| Sentence::from(format_args!("the new image cannot take over: {why}")));
        let server = server.and_then(|server| {
            fail_on_purpose(fault);
            let why = match server.digest() {
                Ok(digest) if digest == handover.digest() && fault != "digest" => {
                    return Ok(server);
                }
                // After a failure it is as good as it can be.
                Ok(_) if server.is_repair() => return Ok(server),
                Ok(_) => Sentence::from(
                    "the new image did not understand everything: the digest of its state differs",
                ),
                Err(why) => {
                    Sentence::from(format_args!("the new image cannot write its state: {why}"))
                }
            };
            // Not dropped: that would unmap the rings, which are the old image's.
            server.abandon();
            Err(why)
        });
        let mut server = server.unwrap_or_else(|why| {
            // The digest of the state finds damage, too, so whether that is the cause is asked only now.
            let mut digest = Digest::default();
            digest.add(&stream);
            digest.add(private);
            if digest.finish() != handover.digest() && fault != "record" {
                abandon(format_args!("the state is damaged on its way: its checksum differs"));
            }
            abandon(format_args!("{why}"))
        });
        // A failure in what ends the trial is gone on from already.
        restart::guard(&mut server, Server::take_over, Server::run, Server::restart)
    }

    /// The failure that `--trial-fault` asks for: a test of an image that is not fit, wherever it fails.
    fn fail_on_purpose(fault: &str) {
        match fault {
            "panic" => provoke(Fault::Panic),
            "page-fault" => provoke(Fault::Null),
            "overflow" => provoke(Fault::StackOverflow),
            "hang" => provoke(Fault::Hang),
            "triple-fault" => provoke(Fault::TripleFault),
            "panic-in-frames" => memory::fail_holding_frames(Fault::Panic),
            "hang-in-frames" => memory::fail_holding_frames(Fault::Hang),
            "panic-in-heap" => memory::fail_in_growth(Fault::Panic),
            "overflow-in-heap" => memory::fail_in_growth(Fault::StackOverflow),
            "panic-in-log" => console::fail_in_line(Fault::Panic),
            // Its text fails while it is written.
            "panic-in-reason" => panic!("{}", Unspeakable),
            "memory" => {
                hint::black_box(alloc::vec![0_u8; usize::MAX / 4]);
            }
            _ => {}
        }
    }

    /// What cannot be told without failing.
    struct Unspeakable;

    impl core::fmt::Display for Unspeakable {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.write_str("as far as this")?;
            panic!("while the reason is written")
        }
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
