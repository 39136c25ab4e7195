#![cfg_attr(target_os = "none", no_std, no_main)]
//! stub
#[cfg(target_os = "none")]
mod image {
    use xenstore_stubdom::xen::start::Machine;
    xenstore_stubdom::xen_entry!(main);
    fn main(machine: Machine, _command_line: &'static str) -> ! {
        machine.power_off()
    }
}
#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
