//! `xenstore-stubdom guard`, `replace` and `unpause`: see the library.

mod replacement;

use std::path::PathBuf;
use std::process::ExitCode;
use xenstore_guard::guard::{Guard, Step};
use xenstore_guard::host::{Dom0, PID_FILE, unpause};

const USAGE: &str = "\
usage: xenstore-stubdom guard [--pid-file FILE]

Watches over the xenstore domain, from dom0, and has it go on when Xen has shut it down: after a triple fault, by the
watchdog, or because it could not help itself any more. Runs until it is killed. It does not use the xenstore itself.

  --pid-file FILE      where the toolstack has written down which domain that is (/run/xen/xenstored.pid)
  --end-behind STEP    for tests: ends behind a step of a revival: counted, set or resumed
";

const UNPAUSE_USAGE: &str = "\
usage: xenstore-stubdom unpause [--pid-file FILE]

Has the xenstore domain go on that somebody has paused: xl unpause needs the store for that, and xl destroy pauses the
domain before it waits for the store. End that xl first, or it destroys the domain as soon as the store answers.
";

/// `unpause`: its command line.
fn go_on(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let pid_file = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => PID_FILE,
        ["--pid-file", file] => file,
        _ => {
            eprint!("{UNPAUSE_USAGE}");
            return ExitCode::from(2);
        }
    };
    match unpause(pid_file.as_ref()) {
        Ok(line) => {
            println!("xenstore-stubdom unpause: {line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("xenstore-stubdom unpause: {why}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("replace") => return replacement::main(std::env::args().skip(2)),
        Some("unpause") => return go_on(std::env::args().skip(2)),
        _ => {}
    }
    let mut pid_file = PathBuf::from(PID_FILE);
    let mut ends_behind = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let is_right = match (argument.as_str(), arguments.next()) {
            ("--help" | "-h", None) => {
                print!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            ("--pid-file", Some(file)) => {
                pid_file = file.into();
                true
            }
            ("--end-behind", Some(step)) => {
                ends_behind = match step.as_str() {
                    "counted" => Some(Step::Counted),
                    "set" => Some(Step::Set),
                    "resumed" => Some(Step::Resumed),
                    _ => None,
                };
                ends_behind.is_some()
            }
            _ => false,
        };
        if !is_right {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    let mut host = match Dom0::open(&pid_file, ends_behind) {
        Ok(host) => host,
        Err(why) => {
            eprintln!("xenstore-stubdom guard: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut guard = Guard::default();
    loop {
        let pause = guard.look(&mut host);
        std::thread::sleep(pause);
    }
}
