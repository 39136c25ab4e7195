//! What an administrator is told: everything that happens once, a ration of what guests can repeat, and figures
//! that no guest can spoil or make costly.

use core::fmt::Write as _;
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::{Header, Kind};
use xenstore_stubdom::sim::{Client, Simulation};

/// Longer than lines wait.
const PAUSE_MS: u64 = 11_000;

fn ask(simulation: &mut Simulation, client: &mut Client, kind: Kind, payload: &str) -> String {
    let replies = simulation.ask(client, kind, 0, payload.as_bytes());
    String::from_utf8(replies.last().expect("a reply").payload.clone()).unwrap()
}

/// Guests 1 to `count`, each the owner of its home.
fn start(options: &str, count: u16) -> (Simulation, Client, Vec<Client>) {
    let (mut simulation, mut dom0) = Simulation::start(options);
    let guests = (1..=count).map(|domid| {
        let port = simulation.world.create(DomId(domid));
        let payload = format!("{domid}\x001\0{port}\0");
        assert_eq!(ask(&mut simulation, &mut dom0, Kind::Introduce, &payload), "OK\0");
        let home = format!("/local/domain/{domid}\0");
        ask(&mut simulation, &mut dom0, Kind::Mkdir, &home);
        ask(&mut simulation, &mut dom0, Kind::SetPerms, &format!("{home}n{domid}\0"));
        simulation.client(DomId(domid))
    });
    let guests = guests.collect();
    drop(simulation.world.take_console());
    (simulation, dom0, guests)
}

/// A header that announces more than a message may have.
fn announce_too_much(client: &mut Client) {
    let header = Header { kind: Kind::Read.number(), req_id: 1, tx_id: 0, len: 5000 };
    assert_eq!(client.write(&header.to_bytes()), 16);
}

fn count(console: &[String], what: &str) -> usize {
    console.iter().filter(|line| line.contains(what)).count()
}

#[test]
fn every_lost_connection_is_told_however_many_there_are_at_once() {
    let (mut simulation, _dom0, mut guests) = start("", 100);
    guests.iter_mut().for_each(announce_too_much);
    simulation.settle();
    let console = simulation.world.take_console();
    assert_eq!(count(&console, "a request announced 5000 bytes"), 100, "{console:#?}");
    assert_eq!(count(&console, "connection given up: it violated the protocol"), 100);
}

#[test]
fn a_guest_cannot_hide_the_loss_of_its_connection_behind_other_lines() {
    let (mut simulation, _dom0, mut guests) = start("-q memory=1000", 1);
    for _ in 0..5 {
        ask(&mut simulation, &mut guests[0], Kind::Write, &format!("a\0{}", "x".repeat(1500)));
    }
    announce_too_much(&mut guests[0]);
    simulation.settle();
    let console = simulation.world.take_console();
    assert_eq!(count(&console, "holds"), 1, "{console:#?}");
    assert_eq!(count(&console, "connection given up"), 1, "{console:#?}");
}

#[test]
fn what_was_left_out_is_told_by_itself() {
    let (mut simulation, _dom0, mut guests) = start("-q memory=1000", 40);
    for guest in &mut guests {
        ask(&mut simulation, guest, Kind::Write, &format!("a\0{}", "x".repeat(1500)));
    }
    let console = simulation.world.take_console();
    assert_eq!(count(&console, "holds"), 30, "{console:#?}");
    assert_eq!(count(&console, "left out"), 0, "{console:#?}");
    // Nobody says a word any more.
    simulation.sleep(PAUSE_MS);
    let console = simulation.world.take_console();
    assert_eq!(
        count(&console, "10 lines were left out about domains that hold much"),
        1,
        "{console:#?}"
    );
    simulation.sleep(PAUSE_MS);
    assert_eq!(simulation.world.take_console(), Vec::<String>::new());
}

#[test]
fn lines_of_one_kind_leave_room_for_those_of_another() {
    let (mut simulation, mut dom0, mut guests) = start("-q memory=1000 -E 3", 40);
    for guest in &mut guests {
        ask(&mut simulation, guest, Kind::Write, &format!("a\0{}", "x".repeat(1500)));
    }
    assert_eq!(count(&simulation.world.take_console(), "holds"), 30);
    for guest in &mut guests {
        ask(&mut simulation, guest, Kind::Write, "b\0");
        assert_eq!(ask(&mut simulation, guest, Kind::Write, "c\0"), "ENOSPC\0");
    }
    let console = simulation.world.take_console();
    assert_eq!(count(&console, "refused for want of its quota nodes, 3"), 40, "{console:#?}");
    assert_eq!(ask(&mut simulation, &mut dom0, Kind::Control, "check\0"), "OK\0");
}

#[test]
fn a_refusal_is_told_once_for_each_domain_and_quota() {
    let (mut simulation, mut dom0, mut guests) = start("-E 2 -W 1", 2);
    for round in 0..3 {
        for guest in &mut guests {
            for name in 0..50 {
                ask(&mut simulation, guest, Kind::Write, &format!("a{name}\0"));
                ask(&mut simulation, guest, Kind::Watch, &format!("a{name}\0t{round}\0"));
                simulation.drain(guest);
            }
        }
        // A successor knows what was told.
        simulation.hand_over().unwrap();
    }
    let console = simulation.world.take_console();
    for domid in 1..=2 {
        let nodes = format!("domain {domid}: Write refused for want of its quota nodes, 2");
        let watches = format!("domain {domid}: Watch refused for want of its quota watches, 1");
        assert_eq!((count(&console, &nodes), count(&console, &watches)), (1, 1), "{console:#?}");
    }
    let values = ask(&mut simulation, &mut dom0, Kind::Control, "stats\0--values\0");
    // 50 names of which one is there, and 150 watches of which one is.
    assert!(values.contains("\nrefused=592\n"), "{values}");
    assert!(values.contains("\nlive_updates=3\n"), "{values}");
}

#[test]
fn a_guest_that_is_not_read_for_want_of_a_quota_is_told_of() {
    let (mut simulation, _dom0, mut guests) = start("-Q outstanding=1", 1);
    // Replies that do not fit wait, and with them their requests.
    let mut bytes = Vec::new();
    for _ in 0..40 {
        bytes.extend(guests[0].request(Kind::GetPerms.number(), 0, b"/local/domain/1\0").0);
    }
    let mut rest = &bytes[..];
    for _ in 0..40 {
        let written = guests[0].write(rest);
        rest = &rest[written..];
        simulation.settle();
    }
    for _ in 0..100 {
        let more = guests[0].request(Kind::GetPerms.number(), 0, b"/local/domain/1\0").0;
        if guests[0].write(&more) < more.len() {
            break;
        }
        simulation.settle();
    }
    let console = simulation.world.take_console();
    assert_eq!(
        count(&console, "has to wait for want of its quota outstanding, 1"),
        1,
        "{console:#?}"
    );
}

/// All pages of `stats --values`.
fn pages(simulation: &mut Simulation, dom0: &mut Client) -> Vec<String> {
    let mut pages = vec![ask(simulation, dom0, Kind::Control, "stats\0--values\0")];
    while let Some((_, next)) = pages.last().and_then(|page| page.rsplit_once("\nnext=")) {
        let next = next.trim_end_matches(['\n', '\0']).to_owned();
        pages.push(ask(simulation, dom0, Kind::Control, &format!("stats\0--values\0{next}\0")));
    }
    pages
}

#[test]
fn figures_of_four_thousand_domains_come_in_pages_that_fit() {
    let (mut simulation, mut dom0, mut guests) = start("", 4000);
    // One whose names would break any output.
    for name in ["a\x01", "\x1b[2J", "x\ny", "\"quoted\"", "\u{e9}"] {
        ask(&mut simulation, &mut guests[6], Kind::Write, &format!("{name}\0{name}"));
        ask(&mut simulation, &mut guests[6], Kind::Watch, &format!("{name}\0{name}\0"));
    }
    simulation.drain(&mut guests[6]);
    let pages = pages(&mut simulation, &mut dom0);
    let mut domids = Vec::new();
    for page in &pages {
        assert!(page.len() <= 4096, "{}", page.len());
        let body = page.strip_suffix("\n\0").expect("whole lines");
        assert!(body.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{page}");
        for line in body.lines() {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
            assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b"_.-".contains(&b)), "{line}");
            if key == "row" {
                domids.push(value.split(',').next().unwrap().parse::<u16>().unwrap());
            }
        }
    }
    assert_eq!(domids, (0..=4000).collect::<Vec<_>>());
    assert!(pages.len() < 90, "{}", pages.len());
}

#[test]
fn sums_are_of_everybody_also_of_those_that_are_gone() {
    let (mut simulation, mut dom0, mut guests) = start("-E 2 -q memory=0", 30);
    let sums = |simulation: &mut Simulation, dom0: &mut Client| {
        let values = ask(simulation, dom0, Kind::Control, "stats\0--values\0");
        let of = |key: &str| {
            let line = values.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{key}: {values}")).parse::<u64>().unwrap()
        };
        ["requests", "events", "dropped", "refused"].map(of)
    };
    let before = sums(&mut simulation, &mut dom0);
    for guest in &mut guests {
        ask(&mut simulation, guest, Kind::Watch, "a\0token\0");
        simulation.drain(guest);
        ask(&mut simulation, guest, Kind::Write, "a\0");
        simulation.drain(guest);
        assert_eq!(ask(&mut simulation, guest, Kind::Write, "b\0"), "ENOSPC\0");
    }
    let after = sums(&mut simulation, &mut dom0);
    // Each: a watch and two writes; the watch's first event and the one of the node; one refusal. And the first look.
    let more = core::array::from_fn(|at| after[at] - before[at]);
    assert_eq!(more, [3 * 30 + 1, 2 * 30, 0, 30]);
    simulation.hand_over().unwrap();
    for domid in 1..=20 {
        simulation.world.destroy(DomId(domid));
    }
    simulation.settle();
    let [requests, events, dropped, refused] = sums(&mut simulation, &mut dom0);
    assert_eq!([requests, events, dropped, refused], [after[0] + 1, after[1], after[2], after[3]]);
    simulation.check().unwrap();
}

/// Whoever asks once a second may not make the server look at everybody: there are thousands.
#[test]
fn what_administrators_ask_looks_at_so_many_domains_and_no_more() {
    let mut found = String::new();
    for file in ["figures", "stats", "control"] {
        let path = format!("{}/src/server/admin/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let everybody = [".connections.iter", ".domains.iter", ".domains.range", ".domids("];
            if everybody.iter().any(|call| line.contains(call)) {
                let _ = writeln!(found, "{path}:{number}: {line}");
            }
        }
    }
    assert!(
        found.is_empty(),
        "this goes on in turns (src/server/admin/checking.rs) or is kept:\n{found}"
    );
}

#[test]
fn four_thousand_maxima_hold_up_nobody() {
    let (mut simulation, mut dom0, mut guests) = start("", 4000);
    for name in 0..30 {
        ask(&mut simulation, &mut guests[2], Kind::Write, &format!("a{name}\0"));
    }
    let (bytes, _) = dom0.request(Kind::Control.number(), 0, b"quota\0max\0");
    dom0.write(&bytes);
    // It has begun.
    for _ in 0..3 {
        let _ = simulation.server.pass();
    }
    let (bytes, _) = guests[100].request(Kind::Read.number(), 0, b"/local/domain/101\0");
    guests[100].write(&bytes);
    while guests[100].read(usize::MAX) == 0 {
        let _ = simulation.server.pass();
        assert_eq!(dom0.read(usize::MAX), 0, "the whole list came first");
    }
    simulation.settle();
    dom0.read(usize::MAX);
    let answer = dom0.next_message().expect("the list").payload;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("\nnodes            :       31\n"), "{answer}");
    let remove = |simulation: &mut Simulation, guest: &mut Client| {
        for name in 0..30 {
            ask(simulation, guest, Kind::Rm, &format!("a{name}\0"));
        }
    };
    remove(&mut simulation, &mut guests[2]);
    let again = ask(&mut simulation, &mut dom0, Kind::Control, "quota\0max\0");
    assert!(again.contains("\nnodes            :       31\n"), "{again}");
    let reset = ask(&mut simulation, &mut dom0, Kind::Control, "quota\0max\0-r\0");
    assert!(reset.contains("\nnodes            :        1\n"), "{reset}");
    // Also when an update comes in between.
    let (bytes, _) = dom0.request(Kind::Control.number(), 0, b"quota\0max\0");
    dom0.write(&bytes);
    for _ in 0..3 {
        let _ = simulation.server.pass();
    }
    simulation.hand_over().unwrap();
    simulation.settle();
    dom0.read(usize::MAX);
    let answer = String::from_utf8(dom0.next_message().expect("the list").payload).unwrap();
    assert!(answer.contains("\nnodes            :        1\n"), "{answer}");
}

/// What a row takes goes by its length (`benches/slices.rs`).
#[test]
fn a_page_has_so_many_bytes_of_rows_and_no_more() {
    let (mut simulation, mut dom0, _guests) = start("", 300);
    for domid in 1..=300 {
        for quota in ["nodes", "watches", "transactions", "outstanding", "memory"] {
            let payload = format!("{domid}\0{quota}\02147483647\0");
            assert_eq!(ask(&mut simulation, &mut dom0, Kind::SetQuota, &payload), "OK\0");
        }
    }
    let pages = pages(&mut simulation, &mut dom0);
    let mut rows = 0;
    for (page, most) in pages.iter().zip(core::iter::once(1400).chain(core::iter::repeat(1800))) {
        let of_rows = page.lines().filter(|line| line.starts_with("row=")).collect::<Vec<_>>();
        rows += of_rows.len();
        assert!(of_rows.len() <= 50, "{page}");
        let bytes = of_rows.iter().map(|line| line.len() + 1).sum::<usize>();
        assert!(bytes <= most + 1, "{bytes}: {page}");
    }
    assert_eq!(rows, 301);
    assert!(pages.len() > 301 / 50 + 2, "{}", pages.len());
}

#[test]
fn the_columns_are_what_the_manual_says() {
    let (mut simulation, mut dom0, _guests) = start("", 1);
    let manual =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/administration.md"));
    let manual = manual.unwrap();
    let mut missing = String::new();
    let values = ask(&mut simulation, &mut dom0, Kind::Control, "stats\0--values\0")
        + &ask(&mut simulation, &mut dom0, Kind::Control, "memreport\0--values\0");
    assert!(values.contains("format=1\n") && values.contains("\nunfinished_requests="), "{values}");
    for line in values.split(['\n', '\0']) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let columns = if key == "columns" { value } else { "" };
        for name in core::iter::once(key).chain(columns.split(',')).filter(|name| !name.is_empty())
        {
            let name = if name.starts_with("limit.") { "limit.QUOTA" } else { name };
            if !manual.contains(&format!("`{name}`")) {
                let _ = writeln!(missing, "{name}");
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/administration.md:\n{missing}");
}
