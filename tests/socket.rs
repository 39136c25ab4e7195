//! The program `xenstore-socket` as its clients see it. It plays the conversations that need only the first
//! domain. It has many clients at once, clients that die, do not read or talk nonsense, and stock ones.

extern crate alloc;

use alloc::collections::VecDeque;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::Instant;
use xenstore_stubdom::proto::ring::Word;
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::transcript::{self, Conversation, Message, Patience, Request, Stop};

/// How long anything may take; only a test that fails ever waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server in a folder of its own.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(options: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("xs-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_xenstore-socket"))
            .arg("--socket")
            .arg(folder.join("socket"))
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .args(options.split_whitespace())
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let server = Self { child, folder };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(server.socket()).is_err() {
            assert!(Instant::now() < deadline, "no socket: {}", server.log());
            sleep(Duration::from_millis(2));
        }
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, bytes: Vec::new(), events: VecDeque::new() }
    }

    /// The server's own check of everything against everything.
    fn check(&self) {
        assert_eq!(self.client().ask(Kind::Control, "check\0"), "OK\0", "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// One connection.
struct Client {
    stream: UnixStream,
    bytes: Vec<u8>,
    events: VecDeque<String>,
}

/// The request's bytes.
fn request(kind: Kind, req_id: u32, tx_id: u32, payload: &str) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = Header { kind: kind.number(), req_id, tx_id, len };
    [&header.to_bytes()[..], payload.as_bytes()].concat()
}

impl Client {
    /// The next message; `None` if the server has closed the connection.
    fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = Message::take(&mut self.bytes) {
                return Some(message);
            }
            let mut piece = [0; 8192];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(len) => self.bytes.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The reply's text; events before it are kept.
    fn ask_in(&mut self, tx_id: u32, kind: Kind, payload: &str) -> String {
        self.stream.write_all(&request(kind, 5, tx_id, payload)).unwrap();
        loop {
            let message = self.message().expect("the server has closed the connection");
            let text = String::from_utf8(message.payload).unwrap();
            if message.header.kind != Kind::WatchEvent.number() {
                assert_eq!((message.header.req_id, message.header.tx_id), (5, tx_id));
                return text;
            }
            self.events.push_back(text);
        }
    }

    fn ask(&mut self, kind: Kind, payload: &str) -> String {
        self.ask_in(0, kind, payload)
    }

    fn event(&mut self) -> String {
        self.events.pop_front().unwrap_or_else(|| {
            let message = self.message().expect("the server has closed the connection");
            assert_eq!(message.header.kind, Kind::WatchEvent.number());
            String::from_utf8(message.payload).unwrap()
        })
    }

    fn transaction(&mut self) -> u32 {
        self.ask(Kind::TransactionStart, "\0").trim_end_matches('\0').parse().unwrap()
    }
}

// ---- conversations ----

/// What only a hypervisor or another domain can do.
const NOT_HERE: [&str; 18] = [
    "guest",
    "domain",
    "replace",
    "destroy",
    "shutdown",
    "unshutdown",
    "revoke",
    "grant",
    "word",
    "rename",
    "ran",
    "firmware",
    "memory",
    "still",
    "old-xen",
    "signal",
    "read",
    "unread",
];

struct Stage {
    server: Server,
    client: Client,
    /// Not to be sent before the server may run.
    held: Vec<u8>,
    log_from: usize,
}

/// Ends the answer to all that was asked before it.
const MARK: u32 = 0xffff_fff0;

impl transcript::Stage for Stage {
    fn before(&mut self, request: &Request<'_>) -> Result<(), Stop> {
        let about_domains = matches!(
            request.kind,
            Some(Kind::Introduce | Kind::Release | Kind::Resume | Kind::SetTarget)
        );
        let fails = request.expected.is_some_and(|expected| expected != "OK");
        if about_domains && fails {
            return Err(Stop::Skip("here every domain may exist".to_owned()));
        }
        let first = request.arguments.first().map(String::as_str);
        if request.kind == Some(Kind::Control) && matches!(first, Some("memreport" | "stats")) {
            return Err(Stop::Skip("the clients of the socket count, too".to_owned()));
        }
        if request.kind == Some(Kind::Control) && first == Some("live-update") {
            return Err(Stop::Skip("a program takes no images".to_owned()));
        }
        Ok(())
    }

    fn send(&mut self, domid: u16, bytes: &[u8], runs: bool) -> Result<(), Stop> {
        if domid != 0 {
            return Err(Stop::Skip("another domain".to_owned()));
        }
        self.held.extend_from_slice(bytes);
        if runs {
            let held = core::mem::take(&mut self.held);
            // One that the server has closed says so when it is read.
            drop(self.client.stream.write_all(&held));
        }
        Ok(())
    }

    fn receive(&mut self, _: u16, patience: Patience) -> Result<Option<Message>, Stop> {
        if patience == Patience::Long {
            return Ok(self.client.message());
        }
        let mark = request(Kind::GetDomainPath, MARK, 0, "0\0");
        drop(self.client.stream.write_all(&mark));
        Ok(self.client.message().filter(|message| message.header.req_id != MARK))
    }

    fn word(&mut self, _: u16, _: Word) -> Result<u32, Stop> {
        Err(Stop::Skip("no ring".to_owned()))
    }

    fn set_word(&mut self, _: u16, _: Word, _: u32) -> Result<(), Stop> {
        Err(Stop::Skip("no ring".to_owned()))
    }

    fn introduction(&mut self, _: u16) -> Result<(u64, u32), Stop> {
        Err(Stop::Skip("no ring".to_owned()))
    }

    fn own_domid(&mut self) -> Result<u16, Stop> {
        Err(Stop::Skip("the server has no domain of its own".to_owned()))
    }

    fn change(&mut self, words: &[&str]) -> Result<(), Stop> {
        match words[0] {
            "sleep" => {
                let ms = words.get(1).and_then(|ms| ms.parse().ok()).ok_or("how long?")?;
                sleep(Duration::from_millis(ms));
            }
            "go" => self.send(0, &[], true)?,
            "fresh" | "mute-xen" => {}
            _ => return Err("what?".into()),
        }
        Ok(())
    }

    fn printed(&mut self, text: &str) -> Result<Option<bool>, Stop> {
        // What it says while it starts may come later than its socket.
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.server.log();
            let found = log.get(self.log_from..).is_some_and(|new| new.contains(text));
            if found || Instant::now() > end {
                self.log_from = log.len();
                return Ok(Some(found));
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.server.check();
        Ok(())
    }
}

/// Why a conversation cannot be held here, if its text says so.
fn obstacle(conversation: &Conversation) -> Option<&str> {
    let word = |line: &str| line.split(' ').next().map(str::to_owned);
    conversation.lines().find(|line| {
        let sleeps = line.strip_prefix("sleep ").and_then(|ms| ms.parse::<u32>().ok());
        word(line).is_some_and(|word| NOT_HERE.contains(&word.as_str()))
            || sleeps.is_some_and(|ms| ms > 2000)
    })
}

#[test]
fn transcripts_of_the_first_domain_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut failures = String::new();
    let (mut played, mut skipped) = (0, 0);
    for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for conversation in transcript::conversations(&text).unwrap() {
            if obstacle(&conversation).is_some() {
                skipped += 1;
                continue;
            }
            let server = Server::start(conversation.options());
            let client = server.client();
            let mut stage = Stage { server, client, held: Vec::new(), log_from: 0 };
            match transcript::play(&conversation, &mut stage) {
                Ok(_) => played += 1,
                Err(Stop::Skip(_)) => skipped += 1,
                Err(what) => {
                    let name = file.file_name().unwrap().display();
                    let _ = writeln!(failures, "{name}: {}: {what:?}", conversation.title);
                }
            }
        }
    }
    println!("{played} conversations played, {skipped} need more than a socket");
    assert!(failures.is_empty(), "\n{failures}");
    assert!(played > 35, "{played} played");
}

// ---- many clients ----

#[test]
fn twenty_clients_keep_their_own_tokens_transactions_and_order() {
    const CLIENTS: u32 = 20;
    const ROUNDS: u32 = 30;
    let server = Server::start("");
    server.client().ask(Kind::Write, "/sum\x000");
    let threads = (0..CLIENTS).map(|number| {
        let mut client = server.client();
        spawn(move || {
            // All have the same token and the same ids in their requests.
            assert_eq!(client.ask(Kind::Watch, &format!("/own/{number}\0token\0")), "OK\0");
            assert_eq!(client.event(), format!("/own/{number}\0token\0"));
            for round in 0..ROUNDS {
                // Ten requests in a row, then their ten answers.
                let own = |n| request(Kind::Write, n, 0, &format!("/own/{number}/{n}\0{round}"));
                let requests = (0..10).flat_map(own).collect::<Vec<_>>();
                client.stream.write_all(&requests).unwrap();
                let mut replies = 0;
                let mut events = 0;
                while replies < 10 || events < 10 {
                    let message = client.message().unwrap();
                    if message.header.kind == Kind::WatchEvent.number() {
                        let event = String::from_utf8(message.payload).unwrap();
                        assert_eq!(event, format!("/own/{number}/{events}\0token\0"));
                        events += 1;
                    } else {
                        assert_eq!(message.header.req_id, replies);
                        replies += 1;
                    }
                }
                // All add to one number; what is lost shows in the sum.
                loop {
                    let tx = client.transaction();
                    let sum = client.ask_in(tx, Kind::Read, "/sum\0").parse::<u32>().unwrap();
                    client.ask_in(tx, Kind::Write, &format!("/sum\0{}", sum + 1));
                    match client.ask_in(tx, Kind::TransactionEnd, "T\0").as_str() {
                        "OK\0" => break,
                        other => assert_eq!(other, "EAGAIN\0"),
                    }
                }
            }
            assert!(client.events.is_empty());
        })
    });
    let threads = threads.collect::<Vec<_>>();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(server.client().ask(Kind::Read, "/sum\0"), (CLIENTS * ROUNDS).to_string());
    server.check();
}

#[test]
fn more_clients_than_are_served_at_once_wait_their_turn() {
    let server = Server::start("");
    let many = (0..300).map(|_| server.client()).collect::<Vec<_>>();
    let mut last = server.client();
    last.stream.write_all(&request(Kind::Read, 5, 0, "/tool\0")).unwrap();
    drop(many);
    assert_eq!(last.message().unwrap().header.req_id, 5);
    server.check();
}

// ---- bad clients ----

#[test]
fn what_a_dead_client_had_ends_with_it() {
    let server = Server::start("");
    let mut other = server.client();
    for _ in 0..50 {
        let mut dying = server.client();
        dying.ask(Kind::Watch, "/a\0token\0");
        let tx = dying.transaction();
        dying.ask_in(tx, Kind::Write, "/a\0never");
        // It dies in the middle of a request.
        dying.stream.write_all(&request(Kind::Write, 0, 0, "/a\0cut off")[..18]).unwrap();
    }
    other.ask(Kind::Write, "/a\0value");
    assert_eq!(other.ask(Kind::Read, "/a\0"), "value");
    // A transaction is its client's own.
    let tx = other.transaction();
    assert_eq!(server.client().ask_in(tx, Kind::Read, "/a\0"), "ENOENT\0");
    // The server may hear of the last death behind this question.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = other.ask(Kind::Control, "memreport\0");
        // The first domain's ring and this client.
        if report.contains("connections: 2\n") {
            break;
        }
        assert!(Instant::now() < deadline, "{report}");
    }
    server.check();
}

#[test]
fn a_client_that_does_not_read_costs_only_itself() {
    let server = Server::start("");
    // Many requests and not one answer read: the server stops taking them.
    let mut deaf = server.client();
    deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    deaf.ask(Kind::Write, &format!("/big\0{}", "x".repeat(4000)));
    let read = request(Kind::Read, 7, 0, "/big\0");
    let mut asked = 0_u32;
    while deaf.stream.write_all(&read).is_ok() {
        asked += 1;
        assert!(asked < 100_000, "requests without end are taken");
    }
    // Events pile up for one that never looks at them; each is a different one.
    let mut blind = server.client();
    blind.ask(Kind::Watch, "/e\0token\0");
    let mut other = server.client();
    let padding = "x".repeat(1500);
    for n in 0..4000 {
        assert_eq!(other.ask(Kind::Write, &format!("/e/{padding}{n}\0")), "OK\0");
    }
    let mut events = 0;
    while blind.message().is_some() {
        events += 1;
    }
    assert!(events < 4000, "the server kept all events");
    // The other one was only waiting, and gets what it asked for.
    for _ in 0..asked {
        let reply = deaf.message().unwrap();
        assert_eq!((reply.header.req_id, reply.payload.len()), (7, 4000));
    }
    server.check();
}

#[test]
fn too_long_a_request_closes_its_client_only() {
    let server = Server::start("");
    let mut other = server.client();
    other.ask(Kind::Watch, "/a\0token\0");
    for len in [4097, u32::MAX] {
        let mut bad = server.client();
        let header = Header { kind: 2, req_id: 0, tx_id: 0, len };
        bad.stream.write_all(&header.to_bytes()).unwrap();
        assert!(bad.message().is_none());
    }
    let mut silly = server.client();
    let header = Header { kind: 99, req_id: 3, tx_id: 9, len: 0 };
    silly.stream.write_all(&header.to_bytes()).unwrap();
    assert_eq!(silly.message().unwrap().payload, b"ENOSYS\0");
    assert_eq!(other.ask(Kind::Write, "/a\0x"), "OK\0");
    server.check();
}

// ---- the program ----

#[test]
fn a_second_server_leaves_the_first_alone_and_a_dead_one_is_replaced() {
    let mut server = Server::start("-E 20 --no-fork");
    // The socket is there before the options are read; an answer comes after.
    server.check();
    assert!(server.log().contains("option --no-fork has no effect"));
    let pid = fs::read_to_string(server.folder.join("pid")).unwrap();
    assert_eq!(pid.trim(), server.child.id().to_string());
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenstore-socket"));
        command.arg("--socket").arg(server.folder.join("socket")).stderr(Stdio::null());
        command
    };
    assert!(!start().status().unwrap().success());
    server.check();
    let second = start();
    drop(server.child.kill());
    drop(server.child.wait());
    server.child = { second }.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(server.socket()).is_err() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(2));
    }
    server.check();
}

// ---- stock clients ----

/// The distribution's programs: installed, or those that the nested tests have unpacked.
fn stock(server: &Server, program: &str) -> Command {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nested/unpacked/usr");
    let tools = fs::read_dir(unpacked.join("lib")).into_iter().flatten().flatten();
    let tools = tools.map(|entry| entry.path().join("bin"));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&paths).collect::<Vec<_>>();
    paths.push(unpacked.join("bin"));
    paths.extend(tools);
    let found = paths.iter().map(|path| path.join(program)).find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| panic!("no {program} here")));
    command.env("LD_LIBRARY_PATH", unpacked.join("lib/x86_64-linux-gnu"));
    command.env("XENSTORED_PATH", server.socket());
    command
}

/// The output of a program that has to succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
#[ignore = "needs the programs of xenstore-utils and xen-utils"]
fn stock_programs_work() {
    let server = Server::start("");
    let run = |program: &str, arguments: &[&str]| output(stock(&server, program).args(arguments));
    run("xenstore-write", &["/a/b", "one", "/a/c", "two"]);
    assert_eq!(run("xenstore-read", &["/a/b", "/a/c"]), "one\ntwo\n");
    assert_eq!(run("xenstore-list", &["/a"]), "b\nc\n");
    run("xenstore-chmod", &["/a/b", "n0", "r7"]);
    assert!(run("xenstore-ls", &["-f", "-p", "/a"]).contains("/a/b = \"one\""));
    let mut watch = stock(&server, "xenstore-watch");
    let watch = watch.args(["-n", "2", "/a"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut client = server.client();
    let deadline = Instant::now() + PATIENCE;
    while !client.ask(Kind::Control, "memreport\0").contains("watches: 1") {
        assert!(Instant::now() < deadline, "no watch");
    }
    run("xenstore-write", &["/a/d", "x"]);
    assert_eq!(watch.wait_with_output().unwrap().stdout, b"/a\n/a/d\n");
    run("xenstore-rm", &["/a"]);
    assert!(!stock(&server, "xenstore-exists").arg("/a/b").status().unwrap().success());
    let report = run("test-xenstore", &["-i", "20"]);
    assert!(!report.contains("fail"), "{report}");
    run("test-xenstore", &["-r", "5"]);
    server.check();
}

#[test]
#[ignore = "needs python3 with pyxs"]
fn pyxs_works() {
    let server = Server::start("");
    let script = "
import pyxs, sys
with pyxs.Client(unix_socket_path=sys.argv[1]) as c:
    c.write(b'/p/a', b'1')
    assert c.read(b'/p/a') == b'1'
    assert c.list(b'/p') == [b'a']
    c.set_perms(b'/p/a', [b'n0', b'r7'])
    assert c.get_perms(b'/p/a') == [b'n0', b'r7']
    c.transaction()
    c.write(b'/p/a', b'2')
    assert c.commit()
    m = c.monitor()
    m.watch(b'/p', b'token')
    c.write(b'/p/b', b'3')
    events = m.wait()
    assert next(events).token == b'token'
    assert next(events).path == b'/p/b'
    c.delete(b'/p')
    assert not c.exists(b'/p/a')
";
    let mut python = Command::new("python3");
    output(python.arg("-c").arg(script).arg(server.socket()));
    server.check();
}

#[test]
fn who_finds_no_room_waits_and_the_log_says_so() {
    let server = Server::start("");
    let mut clients = (0..256).map(|_| server.client()).collect::<Vec<_>>();
    let deadline = Instant::now() + PATIENCE;
    while !server.log().contains("256 clients are connected") {
        assert!(Instant::now() < deadline, "{}", server.log());
        sleep(Duration::from_millis(2));
    }
    let late = spawn({
        let mut late = server.client();
        move || late.ask(Kind::GetDomainPath, "7\0")
    });
    sleep(Duration::from_millis(50));
    assert!(!late.is_finished());
    clients.pop();
    assert_eq!(late.join().unwrap(), "/local/domain/7\0");
}
