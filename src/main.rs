//! The stub domain's binary.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image {
    use alloc::borrow::Cow;
    use alloc::vec::Vec;
    use core::hint;
    use xen_kernel_rt::handover::{Handover, abandon};
    use xen_kernel_rt::start::{Machine, power_off};
    use xen_kernel_rt::traps::{Fault, provoke};
    use xen_kernel_rt::{console, memory, restart};
    use xenstore_stubdom::platform::XenPlatform;
    use xenstore_stubdom::proto::handover::Digest;
    use xenstore_stubdom::proto::image::HandoverNote;
    use xenstore_stubdom::proto::replacement::Module;
    use xenstore_stubdom::proto::sentence::Sentence;
    use xenstore_stubdom::server::Server;

    xen_kernel_rt::xen_entry!(main);
    // Only an image with this note is accepted as the replacement of a running one.
    xen_kernel_rt::image_note!(".note.xenstore-stubdom", HandoverNote, HandoverNote::OURS);

    /// Serves the host, for good.
    fn main(mut machine: Machine, command_line: &'static str) -> ! {
        if let Some(handover) = machine.handover() {
            succeed(Origin::Image(handover), XenPlatform::new(machine), command_line)
        }
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
        match module {
            Some(module) if Module::is_one(&module) => {
                // There is a copy.
                machine.free_module(0);
                let is_rehearsal = found(&module).head.is_rehearsal;
                let platform = XenPlatform::of_another_domain(machine, is_rehearsal);
                succeed(Origin::Domain(module), platform, command_line)
            }
            module => begin(module, XenPlatform::new(machine), command_line),
        }
    }

    /// The first server of this domain. A module, if there is one, is the stream that it begins with.
    fn begin(module: Option<Vec<u8>>, platform: XenPlatform, command_line: &'static str) -> ! {
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

    /// Where a state comes from.
    enum Origin {
        /// From the image that ran in this domain before.
        Image(Handover),
        /// From another domain, in whose place this one is.
        Domain(Vec<u8>),
    }

    /// The module, which has to be a sound one.
    fn found(module: &[u8]) -> Module<'_> {
        Module::find(module).unwrap_or_else(|why| panic!("it cannot take over: {why}"))
    }

    /// The server that takes over from another one, if it understands everything. If it does not, the image before it goes
    /// on; or this domain ends, and dom0 sees to the rest.
    fn succeed(origin: Origin, platform: XenPlatform, command_line: &'static str) -> ! {
        let fault = command_line.split_once("--trial-fault ").map(|(_, rest)| rest);
        let fault = fault.and_then(|rest| rest.split(' ').next()).unwrap_or("");
        let (stream, private, said) = match &origin {
            Origin::Image(from) => (from.stream(), from.private(), from.digest()),
            Origin::Domain(module) => {
                let Module { stream, private, head, .. } = found(module);
                (stream, private, head.digest)
            }
        };
        let mut stream = Cow::Borrowed(stream);
        if matches!(fault, "checksum" | "record")
            && let Some(byte) = stream.to_mut().get_mut(20)
        {
            *byte = !*byte;
        }
        let server = Server::restore(platform, command_line, &stream, private);
        let server = server
            .map_err(|why| Sentence::from(format_args!("the new image cannot take over: {why}")));
        let server = server.and_then(|server| {
            fail_on_purpose(fault);
            let why = match server.digest() {
                Ok(digest) if digest == said && fault != "digest" => {
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
            if digest.finish() != said && fault != "record" {
                abandon(format_args!("the state is damaged on its way: its checksum differs"));
            }
            abandon(format_args!("{why}"))
        });
        if let Origin::Domain(module) = &origin {
            let from = found(module);
            if from.head.is_rehearsal {
                console::both(format_args!("rehearsed: this image understands the whole state"));
                power_off();
            }
            if let Err(why) = server.bind_anew(|domid, port| from.remote(domid, port)) {
                abandon(format_args!("the new domain cannot take over: {why}"));
            }
        }
        // Neither is needed any more, and this never returns.
        drop(stream);
        drop(origin);
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
            "panic-in-reason" => panic!("{}", PanickingDisplay),
            "memory" => {
                hint::black_box(alloc::vec![0_u8; usize::MAX / 4]);
            }
            _ => {}
        }
    }

    /// What cannot be told without failing.
    struct PanickingDisplay;

    impl core::fmt::Display for PanickingDisplay {
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
