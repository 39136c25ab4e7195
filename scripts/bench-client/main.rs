//! The client of `scripts/bench`, in dom0 or in a Linux guest: it sends requests through the kernel's device and
//! times them. On the deterministic machine a nanosecond is an instruction.
//!
//! ```text
//! bench-client SERVER CLIENT ROUNDS CASE [WORD...]
//! bench-client record FILE COMMAND...
//! ```
//!
//! SERVER: `ours`, `null`, `xenstored` or `oxenstored`. CLIENT: `dom0` or `linux`. It prints one line for each
//! figure, with tabs in between: `=`, client, state of the store, what was measured, unit, value. The value is the
//! median of so many rounds. The last line is `done` and the number of figures, since a line may be damaged on its
//! way out of the machine. The unit `-` means that it could not be measured; the value says why. The second form
//! records the requests of a command.
#![expect(clippy::print_stdout, reason = "a program whose results are lines")]

extern crate alloc;

mod cases;
mod guests;
mod link;
mod record;
mod update;

use cases::Bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args().skip(1).collect::<Vec<_>>();
    let result = match &words[..] {
        [record, file, command, arguments @ ..] if record == "record" => {
            record::record(file, command, arguments).map(|()| 0)
        }
        [server, client, rounds, case, more @ ..] => match rounds.parse::<usize>() {
            Ok(rounds) => Bench::new(server, client, rounds.max(1))
                .and_then(|mut bench| bench.run(case, more)),
            Err(error) => Err(format!("rounds: {error}")),
        },
        _ => Err("the head of scripts/bench-client/main.rs says how to call this".to_owned()),
    };
    match result {
        Ok(count) => {
            println!("done {count}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("failed: {what}");
            ExitCode::FAILURE
        }
    }
}
