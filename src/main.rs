//! The stub domain's binary.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use xenstore_stubdom::server::Server;
    use xenstore_stubdom::xen::platform::XenPlatform;
    use xenstore_stubdom::xen::start::Machine;
    use xenstore_stubdom::xen::{console, memory};

    xenstore_stubdom::xen_entry!(main);
    xenstore_stubdom::handover_note!();

    /// Serves the host, for good.
    fn main(machine: Machine, command_line: &'static str) -> ! {
        let memory = memory::figures();
        console::both(format_args!(
            "xenstore-stubdom {} on Xen {}, memory {} of {} KiB, command line \"{command_line}\"",
            env!("CARGO_PKG_VERSION"),
            machine.xen_version(),
            memory.populated * 4,
            memory.maximum * 4,
        ));
        let platform = XenPlatform::new(machine);
        Server::new(platform, command_line).run()
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
