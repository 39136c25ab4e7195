//! `top`: one request a second, 80x24, whatever guests are called.

mod common;

use common::{Store, hostile, is_plain};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use xenstore_stubdom::proto::wire::Kind;
use xenstore_tools::collect::Collector;
use xenstore_tools::top::{Sort, View};

/// The screen, a line each.
fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A store in which some things happen, looked at twice with a second between.
fn busy() -> (Store, View) {
    let mut store = Store::start("-w watch-event=0 -E 20", 5);
    let mut collector = Collector::default();
    collector.step(&mut store).unwrap();
    for name in 0..15 {
        store.say(0, Kind::Write, format!("n{name}\0value").as_bytes());
    }
    store.say(1, Kind::Watch, b"w\0token\0");
    for _ in 0..30 {
        store.say(1, Kind::Read, b"name\0");
    }
    // The third loses its connection.
    store.guests[2].write(b"\x02\0\0\0\0\0\0\0\0\0\0\0\xff\xff\0\0");
    // The fourth has a name that would break a terminal.
    store.must(Kind::Write, b"/local/domain/4/name\0\x1b[2J\x07\xe2\x80\xae x\n");
    store.simulation.sleep(1000);
    collector = {
        // As if a minute had passed: names are read again.
        let mut fresh = Collector::default();
        fresh.step(&mut store).unwrap();
        for (domid, domain) in &mut collector.snapshot.domains {
            domain.name = fresh.snapshot.domains[domid].name.clone();
        }
        collector
    };
    collector.step(&mut store).unwrap();
    let mut view = View::new(Sort::Domid, false);
    view.snapshot = collector.snapshot.clone();
    (store, view)
}

#[test]
fn a_screen_of_80_by_24_has_everything() {
    let (_store, view) = busy();
    let lines = screen(&view, 80, 24);
    let text = lines.join("\n");
    println!("{text}");
    assert!(lines[0].starts_with("[xenstore-stubdom "), "{text}");
    assert!(lines[0].contains("live updates 0  restarts 0"), "{text}");
    assert!(lines[1].starts_with("requests "), "{text}");
    assert!(lines[2].starts_with("memory "), "{text}");
    assert!(lines[3].contains("domains 6, seen every second"), "{text}");
    assert!(lines[5].starts_with("DOMID NAME"), "{text}");
    let row = |domid: &str| {
        let found = lines[6..23].iter().find(|line| line.split_whitespace().next() == Some(domid));
        found.unwrap_or_else(|| panic!("{domid}: {text}")).split_whitespace().collect::<Vec<_>>()
    };
    // Home, name and what it has written: 16 of 20 nodes; 15 requests in a second.
    assert_eq!(row("1"), ["1", "guest-1", "15", "0", "16", "0", row("1")[6], "80n", "0", "ok"]);
    assert_eq!(row("2")[..4], ["2", "guest-2", "31", "1.0"]);
    assert_eq!(row("3").last(), Some(&"ignored"));
    assert!(row("4")[1].starts_with("\\x1b[2J\\x07"), "{text}");
    assert!(lines[23].contains("q quit"), "{text}");
    assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
}

#[test]
fn text_is_as_wide_as_a_terminal_and_has_no_blank_in_a_cell() {
    let (_store, view) = busy();
    let text = view.text();
    for line in text.lines() {
        assert!(line.len() <= 80, "{}: {line}", line.len());
    }
    let table = text.lines().skip_while(|line| !line.starts_with("DOMID"));
    for line in table {
        assert_eq!(line.split_whitespace().count(), 10, "{line}");
    }
}

#[test]
fn no_name_breaks_the_screen_or_the_text() {
    let names = hostile();
    let mut store = Store::start("", u16::try_from(names.len()).unwrap());
    for (domid, name) in (1..).zip(&names) {
        let path = format!("/local/domain/{domid}/name\0");
        store.must(Kind::Write, &[path.as_bytes(), name].concat());
    }
    let mut collector = Collector::default();
    collector.step(&mut store).unwrap();
    let mut view = View::new(Sort::Name, false);
    view.snapshot = collector.snapshot.clone();
    let text = view.text();
    assert!(is_plain(&text), "{text}");
    let table = text.lines().skip_while(|line| !line.starts_with("DOMID")).skip(1);
    let rows = table.map(|line| line.split_whitespace().count()).collect::<Vec<_>>();
    assert_eq!(rows, vec![10; names.len() + 1], "{text}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let shown = screen(&view, 80, 24).join("\n") + "\n";
    assert!(is_plain(&shown), "{shown}");
}

#[test]
fn keys_sort_and_end() {
    let (_store, mut view) = busy();
    let mut press = |letter| view.press(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE));
    assert!(press('r'));
    assert!(!press('q'));
    let first = |view: &View| screen(view, 80, 24)[6].split_whitespace().next().unwrap().to_owned();
    assert_eq!(view.sort, Sort::Requests);
    // Dom0 itself asked most.
    let by_requests = first(&view);
    assert!(["0", "2"].contains(&by_requests.as_str()), "{by_requests}");
    for (sort, letter, _) in Sort::ALL {
        view.press(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE));
        assert_eq!(view.sort, sort);
        screen(&view, 80, 24);
    }
    view.press(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::NONE));
    assert_eq!(first(&view), "1");
    view.press(KeyEvent::new(KeyCode::Char('R'), KeyModifiers::NONE));
    assert_ne!(first(&view), "1");
    // No size is too small.
    for (width, height) in [(1, 1), (80, 5), (10, 24), (300, 100)] {
        screen(&view, width, height);
    }
    assert!(!view.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn four_thousand_domains_cost_one_control_request_a_look() {
    let mut store = Store::start("", 4000);
    let mut collector = Collector::default();
    let mut looks = 0;
    while collector.snapshot.pages == 0 {
        collector.step(&mut store).unwrap();
        looks += 1;
        assert_eq!(store.controls, looks);
        assert!(looks < 120, "no end of it");
    }
    assert_eq!(collector.snapshot.domains.len(), 4001);
    // Names are read once, not with each look.
    assert!(store.requests < 4001 + looks + 100, "{}", store.requests);
    let name = &collector.snapshot.domains[&4000].name;
    assert_eq!(String::from_utf8_lossy(name), "guest-4000");
    // The figures of the server are never old, and the dead go when their page comes by.
    for domid in 1000..2000 {
        store.simulation.world.destroy(xenstore_stubdom::proto::id::DomId(domid));
    }
    store.simulation.settle();
    for _ in 0..looks / 4 + 2 {
        let before = collector.snapshot.server.number("now_ms");
        for _ in 0..4 {
            store.simulation.sleep(1000);
            collector.step(&mut store).unwrap();
        }
        assert!(collector.snapshot.server.number("now_ms") > before);
    }
    assert_eq!(collector.snapshot.domains.len(), 3001);
    let mut view = View::new(Sort::Memory, false);
    view.snapshot = collector.snapshot.clone();
    assert_eq!(screen(&view, 80, 24).len(), 24);
}

#[test]
fn a_domid_that_is_used_again_is_another_domain() {
    let mut store = Store::start("", 1);
    let mut collector = Collector::default();
    for _ in 0..50 {
        store.say(0, Kind::Read, b"name\0");
    }
    collector.step(&mut store).unwrap();
    store.simulation.sleep(1000);
    let domid = xenstore_stubdom::proto::id::DomId(1);
    store.simulation.world.destroy(domid);
    store.simulation.settle();
    let port = store.simulation.world.create(domid);
    store.must(Kind::Introduce, format!("1\x001\0{port}\0").as_bytes());
    store.must(Kind::Write, b"/local/domain/1/name\0successor");
    collector.step(&mut store).unwrap();
    let domain = &collector.snapshot.domains[&1];
    assert_eq!((domain.name.as_slice(), domain.requests.per_second), (&b"successor"[..], None));
}
