//! The same server as a program: behind a Unix socket, without Xen.
//!
//! Any program that uses libxenstore, or speaks the protocol by itself, can use it on any Linux machine. While
//! `scripts/start-with-xl` builds the stub domain, this stands in for it.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program that is used from a shell")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors of the operating system have no end"
)]

#[macro_use]
extern crate alloc;

mod client;
mod copy;
mod host;
mod page;
mod serve;

use serve::Service;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use xenstore_stubdom::dom0;

const USAGE: &str = "\
usage: xenstore-socket [--socket PATH] [--pid-file FILE] [OPTIONS OF THE SERVER]

Serves a xenstore on a Unix socket (default: /run/xenstored/socket), without Xen: domains can be introduced
but have no rings here. Runs until it is killed; messages go to stderr. All clients are privileged, so
the socket is for its owner only. Clients find it there, or through XENSTORED_PATH. The server's options are
those of the stub domain (README), such as -E 20 or -Q memory=100000.

usage: xenstore-socket ring-is-free
Has status 0 if dom0's kernel has talked to no xenstore since it booted. The kernel never changes to another one.

usage: xenstore-socket offer-ring DOMID
Makes a domain that has not run yet the xenstore of dom0's kernel, and has Xen tell it about other domains. This
works once after a boot of dom0. Prints dom0's port.

usage: xenstore-socket copy SOCKET DOMID
Copies the store of the server behind SOCKET to the server behind dom0's kernel, which runs in domain DOMID. Writes
DOMID to /tool/xenstored/domid.

scripts/start-with-xl shows the use of these.
";

/// What the command line asks for.
struct Arguments {
    socket: String,
    pid_file: Option<String>,
    /// The rest is for the server.
    options: Vec<String>,
}

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments =
            Self { socket: "/run/xenstored/socket".to_owned(), pid_file: None, options: vec![] };
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if !matches!(name, "--socket" | "--pid-file") {
                arguments.options.push(word);
                continue;
            }
            let value = attached.or_else(|| words.next()).filter(|value| !value.is_empty());
            let value = value.ok_or_else(|| format!("{name} needs a value"))?;
            match name {
                "--socket" => arguments.socket = value,
                _ => arguments.pid_file = Some(value),
            }
        }
        Ok(arguments)
    }
}

/// A socket that only its owner can reach; what a dead server has left there is removed.
fn listen(path: &str) -> io::Result<UnixListener> {
    if let Some(folder) = Path::new(path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(ErrorKind::AddrInUse, "somebody serves there")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let before = rustix::process::umask(rustix::fs::Mode::from(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn main() -> ExitCode {
    let words = std::env::args().skip(1).collect::<Vec<_>>();
    if words.iter().any(|word| matches!(word.as_str(), "--help" | "-h" | "-H")) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            // Without stderr the status has to do.
            drop(writeln!(io::stderr(), "xenstore-socket: {what}"));
            ExitCode::FAILURE
        }
    }
}

fn run(words: Vec<String>) -> Result<(), String> {
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["offer-ring", domid] => {
            let domid = parse_domid(domid)?;
            // Only who has the ring may take the news away from whoever gets them now.
            let port = dom0::offer_ring(domid).map_err(|error| format!("dom0's ring: {error}"))?;
            dom0::hear_of_domains(domid).map_err(|error| format!("VIRQ_DOM_EXC: {error}"))?;
            println!("{port}");
            Ok(())
        }
        ["copy", socket, domid] => copy::copy(socket, parse_domid(domid)?),
        ["ring-is-free"] => match dom0::ring_is_used() {
            Ok(false) => Ok(()),
            Ok(true) => Err("dom0's kernel has talked to a xenstore already".to_owned()),
            Err(error) => Err(format!("dom0's ring: {error}")),
        },
        ["offer-ring" | "ring-is-free" | "copy", ..] => {
            Err("wrong arguments; --help shows the right ones".to_owned())
        }
        _ => serve(words),
    }
}

fn parse_domid(word: &str) -> Result<u16, String> {
    word.parse().map_err(|_| format!("{word} is no domid"))
}

fn serve(words: Vec<String>) -> Result<(), String> {
    let arguments = Arguments::parse(words.into_iter())?;
    let path = &arguments.socket;
    let listener = listen(path).map_err(|error| format!("{path}: {error}"))?;
    if let Some(file) = &arguments.pid_file {
        let pid = format!("{}\n", std::process::id());
        std::fs::write(file, pid).map_err(|error| format!("{file}: {error}"))?;
    }
    let error = Service::new(listener, &arguments.options.join(" ")).run();
    Err(format!("waiting for clients: {error}"))
}
