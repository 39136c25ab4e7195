//! The sum in `docs/administration.md`, "Memory": how much guests at their default quotas take of the image's own
//! allocator.

use xen_kernel_rt::memory::bounded::Bounded;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::host::Host;
use xenstore_stubdom::sim::{Client, Memory};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

const MIB: usize = 1 << 20;

/// Takes all that the quotas let it have: watches, nodes with values.
fn fill(host: &mut Host, guest: &mut Client) {
    for n in 0..200 {
        let _refused = host.ask_as(guest, 0, Kind::Watch, &format!("data/{n}\0token\0"));
    }
    let value = "v".repeat(1500);
    for n in 0..1200 {
        let write = format!("data/{}/{n}\0{value}", n / 100);
        let _refused = host.ask_as(guest, 0, Kind::Write, &write);
    }
}

/// What the server has charged to a domain.
fn held(host: &mut Host, domid: u16) -> usize {
    let usage = host.ask(Kind::Control, &format!("quota\0{domid}\0")).unwrap();
    let usage = String::from_utf8(usage).unwrap();
    let line = usage.lines().find(|line| line.starts_with("memory ")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// What a guest may take that takes all it can: its quota.
const EACH: usize = 5 * MIB / 2;

/// What the allocator keeps of pages of small blocks, and what tables have in places that nobody uses: one part of so many
/// of what is charged.
const BESIDES: usize = 50;

#[test]
fn guests_at_their_quotas_take_what_the_administrator_is_told() {
    const GUESTS: u16 = 6;
    let mut host = Host::start_bounded("", Memory::of_domain(64, 64));
    let pages = |host: &Host| host.memory().figures().pages * 4096;
    let empty = pages(&host);
    let mut all = Vec::new();
    for domid in 1..=GUESTS {
        all.push(host.guest(domid, 200).unwrap());
    }
    let built = pages(&host);
    for guest in &mut all {
        fill(&mut host, guest);
    }
    let each = (pages(&host) - built) / usize::from(GUESTS);
    let charged = held(&mut host, 1);
    let of_toolstack = (built - empty) / usize::from(GUESTS);
    println!(
        "empty {empty}, of the toolstack for each {of_toolstack}, charged {charged}, taken {each}"
    );
    assert!(charged > 2 * MIB && charged <= EACH, "{charged}");
    // What several are charged for is taken once.
    assert!(each <= charged + charged / BESIDES, "{each} bytes taken, {charged} charged");
    assert!(each >= charged - charged / 10, "{each} bytes taken, {charged} charged");
    assert!(of_toolstack < 64 * 1024, "{of_toolstack}");
    assert!(empty < MIB, "{empty}");
    host.check().unwrap();
}
