//! A tiny guest that talks to the xenstore over its raw ring, for tests on real Xen.
//!
//! It is started by `xl` as an ordinary PVH guest. The command line's `role=...` says what it does:
//!
//! | role | what happens | passes if |
//! |---|---|---|
//! | `hello` | READ of `name`; WRITE and READ of `data/hello` | every answer is right |
//! | `early` | writes its port and that it waits into its page, as the builder of a guest that is there before the xenstore; when it is connected, as `hello` | as `hello` |
//! | `bad-index` | an honest READ; then `req_prod` 2000 ahead of `req_cons` | `error` becomes 2, no reply comes |
//! | `oversize` | an honest READ; then a header with a length of 4097 | `error` becomes 3, no reply comes |
//! | `transcript` | plays the conversations of its module, as far as one guest can | none fails |
//! | `remote` | does what comes on its console ([`remote`]) | never |
//! | `steady` | transactions, a watch, cut requests, until dom0 writes `data/stop` | every answer and event is right |
//! | `wait` | asks without a pause until dom0 writes `data/stop` | always; the verdict has the longest wait |
//! | `half=N` | sends the first N bytes of a request and powers off | always |
//! | `crash` | crashes in the middle of a request | never |
//! | `racing` | changes its indices all the time | always, if it gets that far |
//! | `scribble` | writes all over the page, all the time | as above |
//! | `storm` | signals all the time | the server answers afterwards |
//! | `endless` | sends requests of full length without a pause, and reads what comes | as above |
//! | `greedy` | takes watches, transactions and nodes until they are refused | they are refused, reading works |
//! | `greed=WHAT` | takes what quotas allow in ways that cost the server most ([`greed`]) | every request is answered; then it stays |
//! | `mute` | never reads and goes on sending | the server stops reading; then it stays |
//! | `bench` | requests as dom0 orders them, with their times ([`bench`]) | never |
//! | `idle` | nothing | never: it stays until it is destroyed |
//! | `heap` | takes memory until there is none, checks and returns it, twice | the second round gets as much |
//! | `fault=KIND` | `panic`, `read-only`, `execute`, `stack` or `null` | never: it crashes with a report |
//!
//! `racing`, `scribble`, `storm` and `endless` go on until dom0 types on their console.
//!
//! The last line on the console is the verdict: `verdict: pass` or `verdict: fail: reason`.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod client;
#[cfg(target_os = "none")]
mod greed;
#[cfg(target_os = "none")]
mod hostile;
#[cfg(target_os = "none")]
mod remote;
#[cfg(target_os = "none")]
mod roles;
#[cfg(target_os = "none")]
mod steady;
#[cfg(target_os = "none")]
mod transcript;

#[cfg(target_os = "none")]
mod image {
    use crate::client::Client;
    use crate::roles;
    use alloc::format;
    use xen_kernel_rt::Refusal;
    use xen_kernel_rt::abi::hvm::{PARAM_STORE_EVTCHN, PARAM_STORE_PFN};
    use xen_kernel_rt::id::EvtchnPort;
    use xen_kernel_rt::shared_page::SharedPage;
    use xen_kernel_rt::start::Machine;

    xen_kernel_rt::xen_entry!(main);

    /// The guest's ring and port.
    fn own_store(machine: &Machine) -> Result<(SharedPage, EvtchnPort), Refusal> {
        Ok((machine.builder_page(PARAM_STORE_PFN)?, machine.builder_port(PARAM_STORE_EVTCHN)?))
    }

    fn main(mut machine: Machine, command_line: &'static str) -> ! {
        let role = command_line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("role="))
            .unwrap_or("");
        let verdict = match own_store(&machine) {
            Ok((page, port)) => {
                let mut client = Client::new(machine, page, port);
                let verdict = roles::play(&mut client, role);
                machine = client.machine;
                verdict
            }
            Err(error) => Err(format!("{error}")),
        };
        match verdict {
            Ok(counts) => machine.log(format_args!("verdict: pass{counts}")),
            Err(reason) => machine.log(format_args!("verdict: fail: {reason}")),
        }
        machine.power_off()
    }
}

#[cfg(not(target_os = "none"))]
#[expect(clippy::print_stdout, reason = "the host's binary has nothing else to do")]
fn main() {
    println!("This is an image for Xen. Build it with: cargo stubdom");
}
