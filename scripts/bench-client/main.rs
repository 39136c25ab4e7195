//! The client of `scripts/bench`, in dom0 or in a Linux guest: sends requests through the kernel's device and says
//! how long they took. On the deterministic machine a nanosecond is an instruction.
//!
//! ```text
//! bench-client SERVER CLIENT ROUNDS CASE
//! ```
//!
//! SERVER: `ours`, `null`, `xenstored` or `oxenstored`. CLIENT: `dom0` or `linux`. One line for each figure, with
//! tabs in between: `=`, client, state of the store, what, unit, value; the median of so many rounds.
//! The unit `-` is for what could not be measured; the value says why.
#![expect(clippy::print_stdout, reason = "a program whose results are lines")]

extern crate alloc;

mod cases;
mod link;

use cases::Bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args().skip(1).collect::<Vec<_>>();
    let [server, client, rounds, case] = &words[..] else {
        println!("usage: bench-client SERVER CLIENT ROUNDS CASE");
        return ExitCode::from(2);
    };
    let Ok(rounds) = rounds.parse::<usize>() else {
        println!("how many rounds?");
        return ExitCode::from(2);
    };
    let result = Bench::new(server, client, rounds.max(1)).and_then(|mut bench| bench.run(case));
    match result {
        Ok(()) => {
            println!("done");
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("failed: {what}");
            ExitCode::FAILURE
        }
    }
}
