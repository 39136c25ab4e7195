//! The smallest domain: it says who it is, waits for a moment, and ends.

#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use xen_kernel_rt::start::Machine;

xen_kernel_rt::xen_entry!(main);

fn main(mut machine: Machine, command_line: &'static str) -> ! {
    let version = machine.xen_version();
    machine.log(format_args!("a domain of Xen {version} was told: {command_line}"));
    let end = machine.now_ms() + 1000;
    while machine.now_ms() < end {
        while machine.next_port().is_some() {}
        machine.wait(Some(end));
    }
    machine.log(format_args!("a second is over"));
    machine.power_off()
}
