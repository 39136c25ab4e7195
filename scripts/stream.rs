//! Looks at record streams: `scripts/stream` calls this.
//!
//! ```text
//! stream show FILE    a line for each record; values as xenstore-ls shows them
//! stream check FILE   what is wrong with it, and what it holds
//! ```
//!
//! The status is 1 if the stream cannot be read to its end or, with `check`, if no server could be made of it. A
//! file whose name ends in `.hex` is text like those in `tests/streams`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::{env, fs};
use xenstore_stubdom::proto::stream::{Listing, check};

/// Output that nobody reads any more is no reason to fail.
fn say(text: impl core::fmt::Display) {
    let _nobody_reads = write!(io::stdout().lock(), "{text}");
}

/// The bytes of a file.
fn bytes(name: &str) -> Result<Vec<u8>, String> {
    let read = fs::read(name).map_err(|error| format!("{name}: {error}"))?;
    let Some(stem) = name.strip_suffix(".hex") else { return Ok(read) };
    let text = String::from_utf8_lossy(&read);
    let words =
        text.lines().flat_map(|line| line.split('#').take(1)).flat_map(str::split_whitespace);
    let bytes = words.map(|word| u8::from_str_radix(word, 16)).collect::<Result<_, _>>();
    bytes.map_err(|error| format!("{stem}.hex: {error}"))
}

fn main() -> ExitCode {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    let [command, name] = arguments.as_slice() else {
        say("stream show FILE\nstream check FILE\n");
        return ExitCode::from(2);
    };
    let stream = match bytes(name) {
        Ok(stream) => stream,
        Err(error) => {
            say(format_args!("{error}\n"));
            return ExitCode::from(2);
        }
    };
    let report = check::check(&stream);
    let good = match command.as_str() {
        "show" => {
            say(Listing(&stream));
            report.error.is_none()
        }
        "check" => {
            say(format_args!("{report}\n"));
            report.is_sound()
        }
        _ => {
            say("stream show FILE\nstream check FILE\n");
            return ExitCode::from(2);
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
