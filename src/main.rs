//! The stub domain's binary.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use xenstore_stubdom::proto::id::DomId;
    use xenstore_stubdom::server::platform::Platform;
    use xenstore_stubdom::xen::platform::XenPlatform;
    use xenstore_stubdom::xen::start::Machine;
    use xenstore_stubdom::xen::{console, memory};

    xenstore_stubdom::xen_entry!(main);

    /// Until there is a server: says that it is up, and idles.
    fn main(machine: Machine, command_line: &'static str) -> ! {
        let memory = memory::figures();
        console::both(format_args!(
            "xenstore-stubdom {} on Xen {}, memory {} of {} KiB, command line \"{command_line}\"",
            env!("CARGO_PKG_VERSION"),
            machine.xen_version(),
            memory.populated * 4,
            memory.maximum * 4,
        ));
        let mut platform = XenPlatform::new(machine);
        let mut words = command_line.split_ascii_whitespace();
        let port = words.find(|&w| w == "--event").and_then(|_| words.next()?.parse().ok());
        match port.map(|port| platform.bind(DomId(0), port)) {
            Some(Ok(port)) => platform.log(format_args!("dom0 is on port {}", port.0)),
            Some(Err(error)) => platform.log(format_args!("dom0's port: {error}")),
            None => platform.log(format_args!("no --event on the command line")),
        }
        loop {
            while let Some(event) = platform.next_event() {
                platform.log(format_args!("{event:?}"));
            }
            platform.wait(None);
        }
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
