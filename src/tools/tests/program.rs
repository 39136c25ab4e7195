//! The program itself, against the server behind a socket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server in a folder of its own.
struct Server {
    child: Child,
    folder: PathBuf,
}

/// Where cargo has put, or puts, the server.
fn server_program() -> PathBuf {
    let build = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "xenstore-stubdom", "--features", "socket"])
        .args(["--bin", "xenstore-socket"])
        .status()
        .unwrap();
    assert!(build.success());
    // Beside the program under test.
    PathBuf::from(env!("CARGO_BIN_EXE_xenstore-tools")).with_file_name("xenstore-socket")
}

impl Server {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("xt-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(server_program());
        command.arg("--socket").arg(folder.join("socket")).stderr(Stdio::null());
        let server = Self { child: command.spawn().unwrap(), folder };
        let end = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(server.folder.join("socket")).is_err() {
            assert!(Instant::now() < end, "no socket");
            sleep(Duration::from_millis(5));
        }
        server
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenstore-tools"));
        command.args(arguments).env("XENSTORED_PATH", self.folder.join("socket"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn every_command_works_against_a_server_behind_a_socket() {
    let server = Server::start();
    let top = server.run(&["top", "--batch", "-n", "1"]);
    assert!(top.status.success(), "{}", text(&top));
    assert!(text(&top).contains("\nDOMID NAME"), "{}", text(&top));
    assert!(text(&top).contains("memory of the host"), "{}", text(&top));
    let tree = server.run(&["tree", "/tool"]);
    assert!(text(&tree).starts_with("/tool  (owner 0"), "{}", text(&tree));
    assert!(text(&server.run(&["tree", "--watches"])).contains("xenstored"));
    let printed = server.run(&["metrics"]);
    assert!(text(&printed).contains("\nxenstore_up 1\n"), "{}", text(&printed));

    let file = server.folder.join("x.prom");
    let written = server.run(&["metrics", "--output", file.to_str().unwrap()]);
    assert!(written.status.success(), "{}", text(&written));
    assert!(std::fs::read_to_string(&file).unwrap().contains("\nxenstore_up 1\n"));
    assert_eq!(std::fs::read_dir(&server.folder).unwrap().count(), 2, "nothing is left beside it");

    // A port that is free now, as far as anybody knows.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut listener = server.command(&["metrics", "--listen", &free]).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = get(&free, "/metrics").unwrap_or_default();
        if answer.contains("\nxenstore_up 1\n") || Instant::now() > end {
            break answer;
        }
        sleep(Duration::from_millis(50));
    };
    let other = get(&free, "/secret").unwrap_or_default();
    drop(listener.kill());
    drop(listener.wait());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nxenstore_up 1\n"), "{answer}");
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}

#[test]
fn what_is_wrong_is_said() {
    let nowhere = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenstore-tools"));
        command.args(arguments).env("XENSTORED_PATH", "/nonexistent/socket").output().unwrap()
    };
    for arguments in [&["top", "--batch"][..], &["metrics"], &["tree"]] {
        let output = nowhere(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("/nonexistent/socket: "), "{}", text(&output));
    }
    for arguments in [&[][..], &["tup"], &["top", "--sort", "x"], &["top", "-n"], &["metrics", "x"]]
    {
        let output = nowhere(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
    let file = std::env::temp_dir().join(format!("xt-down-{}.prom", std::process::id()));
    let output = nowhere(&["metrics", "--output", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let written = std::fs::read_to_string(&file).unwrap();
    drop(std::fs::remove_file(&file));
    assert!(written.ends_with("xenstore_up 0\n"), "{written}");
    assert!(nowhere(&["--help"]).status.success());
    let damaged = nowhere(&["tree", "--from", "/proc/self/stat"]);
    assert_eq!(damaged.status.code(), Some(1));
}
