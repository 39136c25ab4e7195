//! Attacks by one guest, or many, that choose the size of the server's memory or time. Each test is a row of the
//! list in `docs/attacks.md`; the number in its name is the row.
//!
//! The server runs on the image's own allocator, in a domain of the size that the row names. The host holds if the
//! request is answered or refused, the first domain goes on, and the server's accounts balance.

use xen_kernel_rt::memory::bounded::{Bounded, Growth};
use xenstore_stubdom::proto::id::DomId;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::sim::host::{Answer, Host};
use xenstore_stubdom::sim::{Client, Memory};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// A domain with `memory=` and `maxmem=`, in MiB.
fn host(memory: usize, maxmem: usize) -> Host {
    Host::start_bounded("", Memory::of_domain(memory, maxmem))
}

/// Done, or refused for want of memory or by a quota, as the case may be.
fn is_answered(answer: &Answer) {
    match answer {
        Ok(reply) => assert_eq!(reply, b"OK\0"),
        Err(error) => assert!(error == "ENOMEM" || error == "ENOSPC", "{error}"),
    }
}

/// Puts a request into a ring that must have room for it, and lets nobody run.
fn put(client: &mut Client, tx: u32, kind: Kind, payload: &str) {
    let (bytes, _) = client.request(kind.number(), tx, payload.as_bytes());
    assert_eq!(client.write(&bytes), bytes.len(), "no room in the ring");
}

/// What an administrator must always be able to do: look, change, watch, start a domain, end one.
fn goes_on(host: &mut Host) {
    const OK: &[u8] = b"OK\0";
    let mut done = |kind, payload: &str| {
        let answer = host.ask(kind, payload);
        assert!(answer.is_ok(), "{kind:?} {payload:?}: {answer:?}");
    };
    done(Kind::Directory, "/\0");
    done(Kind::Write, "/tool/attack\0still here");
    done(Kind::Watch, "/tool/attack\0token\0");
    done(Kind::Unwatch, "/tool/attack\0token\0");
    done(Kind::Rm, "/tool/attack\0");
    done(Kind::Control, "memreport\0");
    let tx = host.begin().expect("a transaction of the first domain");
    assert_eq!(host.ask_in(tx, Kind::Write, "/tool/attack\0").as_deref(), Ok(OK));
    assert_eq!(host.ask_in(tx, Kind::TransactionEnd, "T\0").as_deref(), Ok(OK));
    assert_eq!(host.ask(Kind::Rm, "/tool/attack\0").as_deref(), Ok(OK));
    let mut guest = host.guest(999, 200).expect("a new domain is created");
    assert_eq!(host.ask_as(&mut guest, 0, Kind::Write, "data/x\0y").as_deref(), Ok(OK));
    assert_eq!(host.ask_as(&mut guest, 0, Kind::Read, "data/x\0").as_deref(), Ok(&b"y"[..]));
    assert_eq!(host.destroy(999).as_deref(), Ok(OK));
    assert_eq!(host.check(), Ok(()));
}

/// The store is as empty as at the start when all guests are gone, and nothing of them is left in memory.
fn ends_clean(mut host: Host, guests: impl Iterator<Item = u16>) {
    for domid in guests {
        host.world().destroy(DomId(domid));
    }
    host.simulation.sleep(60_000);
    let answer = host.ask(Kind::Rm, "/local\0");
    assert!(answer.is_ok(), "the guests' homes: {answer:?}");
    assert_eq!(host.check(), Ok(()));
    assert_eq!(host.end(), Ok(()));
}

/// Takes something until it is refused; says how often it was not.
fn until_refused(mut one: impl FnMut(usize) -> Answer) -> usize {
    (0..1_000_000).find(|n| one(*n).is_err()).expect("it is refused some time")
}

/// The `n`-th of many names below a node: a node has only so many children.
fn nth(n: usize) -> String {
    format!("{}/{}", n / 100, n % 100)
}

/// Everything that the default quotas let a guest have and keep.
fn fill_up(host: &mut Host, guest: &mut Client) -> [usize; 3] {
    let value = "v".repeat(1800);
    let watches = until_refused(|n| {
        host.ask_as(
            guest,
            0,
            Kind::Watch,
            &format!("data/{}{n}\0{}\0", "w".repeat(900), "t".repeat(900)),
        )
    });
    let nodes =
        until_refused(|n| host.ask_as(guest, 0, Kind::Write, &format!("data/{}\0{value}", nth(n))));
    let mut transactions = 0;
    while let Ok(tx) = host.begin_as(guest) {
        transactions += 1;
        for n in 0..20 {
            if host.ask_as(guest, tx, Kind::Write, &format!("data/{}\0{value}", nth(n))).is_err() {
                break;
            }
        }
    }
    [watches, nodes, transactions]
}

/// 1: the commit of one guest, on an empty store.
fn one_commit(mut host: Host, nodes: usize, token: usize) {
    let mut guest = host.guest(5, 0).unwrap();
    let token = "T".repeat(token);
    for n in 0..128 {
        host.ask_as(&mut guest, 0, Kind::Watch, &format!("data\0{token}{n}\0")).unwrap();
    }
    let tx = host.begin_as(&mut guest).unwrap();
    for n in 0..nodes {
        host.ask_as(&mut guest, tx, Kind::Write, &format!("data/{}\0x", nth(n))).unwrap();
    }
    let answer = host.ask_as(&mut guest, tx, Kind::TransactionEnd, "T\0");
    is_answered(&answer);
    goes_on(&mut host);
    ends_clean(host, 5..6);
}

#[test]
fn row_1_one_commit_in_8_of_64() {
    one_commit(host(8, 64), 245, 1040);
}

#[test]
fn row_1_one_commit_in_8() {
    one_commit(host(8, 8), 245, 1040);
}

#[test]
fn row_1_900_nodes_and_long_tokens() {
    one_commit(host(8, 64), 900, 2000);
}

#[test]
fn row_2_watches_of_thirty_on_one_commit() {
    let mut host = host(8, 64);
    let mut guests = (1..=30).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    let token = "T".repeat(200);
    for guest in &mut guests {
        for n in 0..128 {
            let watch = format!("/local/domain/1/data\0{token}{n}\0");
            host.ask_as(guest, 0, Kind::Watch, &watch).unwrap();
        }
    }
    let tx = host.begin_as(&mut guests[0]).unwrap();
    for n in 0..900 {
        host.ask_as(&mut guests[0], tx, Kind::Write, &format!("data/{}\0x", nth(n))).unwrap();
    }
    // The others do not read meanwhile.
    let answer = host.ask_as(&mut guests[0], tx, Kind::TransactionEnd, "T\0");
    is_answered(&answer);
    goes_on(&mut host);
    ends_clean(host, 1..31);
}

#[test]
fn row_3_a_queue_grows_when_the_store_is_full() {
    let mut host = host(8, 8);
    let mut watchers = (1..=6).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    let mut fillers = (11..=18).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    let token = "T".repeat(100);
    for watcher in &mut watchers {
        for n in 0..128 {
            let watch = format!("/local/domain/1/data\0{token}{n}\0");
            host.ask_as(watcher, 0, Kind::Watch, &watch).unwrap();
        }
    }
    for n in 0..100 {
        host.ask_as(&mut watchers[0], 0, Kind::Write, &format!("data/{n}\0")).unwrap();
    }
    let value = "v".repeat(1900);
    for filler in &mut fillers {
        until_refused(|n| {
            host.ask_as(filler, 0, Kind::Write, &format!("data/{}\0{value}", nth(n)))
        });
    }
    // Nobody but the first of them reads.
    for n in 0..1000 {
        is_answered(&host.ask_as(&mut watchers[0], 0, Kind::Write, &format!("data/{}\0", n % 100)));
    }
    goes_on(&mut host);
    ends_clean(host, (1..7).chain(11..19));
}

/// Domains with all their watches on the death of others, of which `deaths` die in one look.
fn deaths_in_one_look(guests: u16, deaths: u16) {
    let mut host = host(8, 64);
    let release = host.ask(Kind::SetPerms, "@releaseDomain\0r0\0");
    assert_eq!(release.as_deref(), Ok(&b"OK\0"[..]));
    let mut watchers = (1..=guests).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    for watcher in &mut watchers {
        for n in 0..128 {
            host.ask_as(watcher, 0, Kind::Watch, &format!("@releaseDomain\0token{n}\0")).unwrap();
        }
    }
    let mortals = 500..500 + deaths;
    for domid in mortals.clone() {
        host.guest(domid, 10).unwrap();
    }
    host.ask(Kind::Watch, "@releaseDomain\0dom0\0").unwrap();
    let before = host.memory().figures();
    host.memory().reset_peaks();
    for domid in mortals.clone() {
        host.world().destroy(DomId(domid));
    }
    let answer = host.ask(Kind::Read, "/local/domain/1/name\0");
    assert_eq!(answer.as_deref(), Ok(&b"guest 1"[..]));
    let _ = host.simulation.settle();
    let peak = host.memory().figures().peak_pages;
    assert!(peak <= before.pages + 256, "{} pages before, up to {peak}", before.pages);
    for domid in mortals {
        let home = format!("/local/domain/{domid}\0");
        assert_eq!(host.ask(Kind::Rm, &home).as_deref(), Ok(&b"OK\0"[..]));
    }
    goes_on(&mut host);
    ends_clean(host, 1..guests + 1);
}

#[test]
fn row_4_fifty_deaths_in_one_look_seen_by_75() {
    deaths_in_one_look(75, 50);
}

#[test]
fn row_12_fifty_deaths_in_one_look_seen_by_150() {
    deaths_in_one_look(150, 50);
}

/// 994 nodes below a long name.
fn long_names(host: &mut Host, guest: &mut Client) -> usize {
    let top = format!("data/{}", "n".repeat(1900));
    until_refused(|n| host.ask_as(guest, 0, Kind::Mkdir, &format!("{top}/{}\0", nth(n))))
}

#[test]
fn row_5_the_death_of_a_domain_with_long_names() {
    let mut host = host(8, 8);
    let mut guests = (1..=3).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    for guest in &mut guests {
        assert!(long_names(&mut host, guest) > 900);
    }
    host.memory().reset_peaks();
    let before = host.memory().figures().pages;
    for domid in 1..=3 {
        host.world().destroy(DomId(domid));
    }
    let _ = host.simulation.settle();
    let peak = host.memory().figures().peak_pages;
    assert!(peak <= before + 16, "{before} pages before, up to {peak}");
    goes_on(&mut host);
    ends_clean(host, 1..1);
}

#[test]
fn row_6_a_guest_removes_a_subtree_in_a_transaction() {
    let mut host = host(8, 8);
    let mut guest = host.guest(1, 0).unwrap();
    let nodes = long_names(&mut host, &mut guest);
    let top = format!("data/{}\0", "n".repeat(1900));
    host.ask_as(&mut guest, 0, Kind::Watch, &format!("{}t\0", top.replace('\0', "/5/0\0")))
        .unwrap();
    host.memory().reset_peaks();
    let before = host.memory().figures().pages;
    let tx = host.begin_as(&mut guest).unwrap();
    let removed = host.ask_as(&mut guest, tx, Kind::Rm, &top);
    assert_eq!(removed.as_deref(), Ok(&b"OK\0"[..]), "{nodes} nodes");
    let answer = host.ask_as(&mut guest, tx, Kind::TransactionEnd, "T\0");
    assert_eq!(answer.as_deref(), Ok(&b"OK\0"[..]));
    let peak = host.memory().figures().peak_pages;
    assert!(peak <= before + 64, "{before} pages before, up to {peak}");
    goes_on(&mut host);
    ends_clean(host, 1..2);
}

#[test]
fn row_6_the_first_domain_removes_a_large_subtree_in_a_transaction() {
    let mut host = host(8, 32);
    let nodes = until_refused(|n| match n {
        100_000.. => Err(String::from("enough")),
        _ => host.ask(Kind::Write, &format!("/fill/{}/{n}\0v", n / 500)),
    });
    assert!(nodes > 50_000, "{nodes}");
    host.ask(Kind::Watch, "/fill/17\0t\0").unwrap();
    let tx = host.begin().unwrap();
    assert_eq!(host.ask_in(tx, Kind::Rm, "/fill\0").as_deref(), Ok(&b"OK\0"[..]));
    assert_eq!(host.ask_in(tx, Kind::TransactionEnd, "T\0").as_deref(), Ok(&b"OK\0"[..]));
    goes_on(&mut host);
    ends_clean(host, 1..1);
}

#[test]
fn row_7_xen_has_no_memory_left_for_a_grown_store() {
    let mut host = host(8, 64);
    let mut guests = (1..=5).map(|n| host.guest(n, 0).unwrap()).collect::<Vec<_>>();
    host.memory().set_growth(Growth::Until(512));
    let token = "T".repeat(1000);
    for guest in &mut guests {
        for n in 0..128 {
            is_answered(&host.ask_as(guest, 0, Kind::Watch, &format!("data\0{token}{n}\0")));
        }
        let value = "v".repeat(1900);
        until_refused(|n| host.ask_as(guest, 0, Kind::Write, &format!("data/{}\0{value}", nth(n))));
    }
    host.memory().set_growth(Growth::Refused);
    for guest in &mut guests {
        for n in 0..10 {
            is_answered(&host.ask_as(guest, 0, Kind::Rm, &format!("data/{n}\0")));
        }
    }
    goes_on(&mut host);
    ends_clean(host, 1..6);
}

#[test]
fn row_8_check_with_many_small_nodes() {
    let mut host = host(8, 64);
    let nodes = until_refused(|n| match n {
        380_000.. => Err(String::from("enough")),
        _ => host.ask(Kind::Mkdir, &format!("/f/{}/{n}\0", n / 1000)),
    });
    assert!(nodes > 250_000, "{nodes}");
    // What is left is little.
    let _ = until_refused(|n| host.ask(Kind::Write, &format!("/g/{n}\0{}", "v".repeat(1900))));
    host.memory().reset_peaks();
    let before = host.memory().figures().pages;
    assert_eq!(host.check(), Ok(()));
    let peak = host.memory().figures().peak_pages;
    assert!(peak <= before + 16, "{before} pages before, up to {peak}");
    assert_eq!(host.ask(Kind::Rm, "/f\0").as_deref(), Ok(&b"OK\0"[..]));
    assert_eq!(host.ask(Kind::Rm, "/g\0").as_deref(), Ok(&b"OK\0"[..]));
    goes_on(&mut host);
    ends_clean(host, 1..1);
}

/// 9: a chain of one-letter names that is removed in a transaction which has touched its end.
#[test]
fn row_9_a_chain_is_removed_in_a_transaction() {
    let mut host = host(8, 8);
    let mut guest = host.guest(1, 0).unwrap();
    let depth = 990;
    let path = format!("data{}", "/c".repeat(depth));
    host.ask_as(&mut guest, 0, Kind::Mkdir, &format!("{path}\0")).unwrap();
    let tx = host.begin_as(&mut guest).unwrap();
    host.ask_as(&mut guest, tx, Kind::Read, &format!("{path}\0")).unwrap();
    // The first domain asks while the guest's request lies in its ring: it is answered without waiting for all of it.
    put(&mut guest, tx, Kind::Rm, "data/c\0");
    put(&mut guest, tx, Kind::TransactionEnd, "T\0");
    let answer = host.ask(Kind::Read, "/local/domain/1/name\0");
    assert_eq!(answer.as_deref(), Ok(&b"guest 1"[..]));
    let replies = host.simulation.drain(&mut guest);
    let replies = replies.iter().map(|reply| &reply.payload[..]).collect::<Vec<_>>();
    assert_eq!(replies, [b"OK\0", b"OK\0"]);
    assert_eq!(host.ask_as(&mut guest, 0, Kind::Read, "data/c\0"), Err(String::from("ENOENT")));
    goes_on(&mut host);
    ends_clean(host, 1..2);
}

/// Guests have taken what there is.
fn is_full(host: &Host) {
    let stats = host.memory().stats();
    assert!(stats.used * 10 > stats.limit * 8, "not full: {stats:?}");
}

/// Guests at all their quotas, one after the other; says what the least and the greatest of them got.
fn crowd_at_quotas(host: &mut Host, guests: u16) -> Vec<Client> {
    let mut all = Vec::new();
    for domid in 1..=guests {
        // The toolstack can always make the next one.
        let mut guest = host.guest(domid, 40).unwrap();
        let _ = fill_up(host, &mut guest);
        all.push(guest);
    }
    all
}

#[test]
fn row_10_forty_guests_at_their_quotas() {
    let mut host = host(8, 64);
    let _greedy = crowd_at_quotas(&mut host, 40);
    is_full(&host);
    goes_on(&mut host);
    // An innocent guest, too, gets what it needs to live.
    let mut innocent = host.guest(50, 40).unwrap();
    for n in 0..20 {
        let write = format!("data/{n}\0value");
        assert_eq!(host.ask_as(&mut innocent, 0, Kind::Write, &write).as_deref(), Ok(&b"OK\0"[..]));
    }
    host.ask_as(&mut innocent, 0, Kind::Watch, "data\0token\0").unwrap();
    goes_on(&mut host);
    ends_clean(host, (1..41).chain(50..51));
}

#[test]
fn row_10_thirty_one_guests_in_8_without_more() {
    let mut host = host(8, 8);
    let _greedy = crowd_at_quotas(&mut host, 31);
    is_full(&host);
    goes_on(&mut host);
    ends_clean(host, 1..32);
}

/// 11: events take what is left, and the first domain still looks and cleans up.
#[test]
fn row_11_events_do_not_take_the_last_memory() {
    let mut host = host(8, 8);
    let mut guests = crowd_at_quotas(&mut host, 12);
    let token = "T".repeat(1000);
    for guest in &mut guests {
        is_answered(&host.ask_as(guest, 0, Kind::ResetWatches, "\0"));
        for n in 0..128 {
            is_answered(&host.ask_as(
                guest,
                0,
                Kind::Watch,
                &format!("/local/domain\0{token}{n}\0"),
            ));
        }
    }
    for n in 0..2000 {
        let domid = n % 12 + 1;
        let write = format!("/local/domain/{domid}/device/{}\0{n}", n % 40);
        assert_eq!(host.ask(Kind::Write, &write).as_deref(), Ok(&b"OK\0"[..]), "write {n}");
    }
    goes_on(&mut host);
    ends_clean(host, 1..13);
}

/// 13: memory that was filled and then got holes is as useful as before.
#[test]
fn row_13_holes_are_memory() {
    let mut host = host(8, 8);
    let value = "v".repeat(2500);
    let first = until_refused(|n| host.ask(Kind::Write, &format!("/a/{n}\0{value}")));
    for n in (0..first).step_by(2) {
        host.ask(Kind::Rm, &format!("/a/{n}\0")).unwrap();
    }
    let value = "v".repeat(4000);
    let second = until_refused(|n| host.ask(Kind::Write, &format!("/b/{n}\0{value}")));
    assert!(
        second * 10 >= first / 2 * 9,
        "{first} values, then {second} in the room of half of them"
    );
    host.ask(Kind::Rm, "/b\0").unwrap();
    host.ask(Kind::Rm, "/a\0").unwrap();
    goes_on(&mut host);
    ends_clean(host, 1..1);
}

/// 14: names chosen to make a live update impossible.
#[test]
fn row_14_a_live_update_beside_long_names() {
    let mut host = host(8, 64);
    for domid in 1..=30 {
        let mut guest = host.guest(domid, 0).unwrap();
        assert!(long_names(&mut host, &mut guest) > 900);
    }
    let stats = host.memory().stats();
    assert!(stats.used * 100 < stats.limit * 45, "{stats:?}");
    // The region has what the two servers leave of the domain.
    host.world().set_region_max(stats.limit - 2 * stats.used);
    assert_eq!(host.simulation.hand_over(), Ok(()));
    goes_on(&mut host);
    ends_clean(host, 1..31);
}

/// 15: a Xen that does not tell about one domain has not said that it died.
#[test]
fn row_15_a_refusal_to_tell_is_not_a_death() {
    for tells_changes in [true, false] {
        let mut host = host(8, 8);
        host.world().set_tells_changes(tells_changes);
        let mut hidden = host.guest(1, 0).unwrap();
        host.ask_as(&mut hidden, 0, Kind::Write, "data/x\0y").unwrap();
        host.world().set_hidden(DomId(1), true);
        let _mortal = host.guest(2, 0).unwrap();
        host.world().destroy(DomId(2));
        host.world().announce_change();
        let _ = host.simulation.settle();
        assert_eq!(host.ask(Kind::IsDomainIntroduced, "2\0").as_deref(), Ok(&b"F\0"[..]));
        assert_eq!(host.ask(Kind::IsDomainIntroduced, "1\0").as_deref(), Ok(&b"T\0"[..]));
        let read = host.ask_as(&mut hidden, 0, Kind::Read, "data/x\0");
        assert_eq!(read.as_deref(), Ok(&b"y"[..]));
        host.world().set_hidden(DomId(1), false);
        goes_on(&mut host);
        ends_clean(host, 1..2);
    }
}

/// The generation that DIRECTORY_PART shows.
fn generation(host: &mut Host, guest: &mut Client) -> u64 {
    let part = host.ask_as(guest, 0, Kind::DirectoryPart, "data\x000\0").unwrap();
    let text = part.split(|byte| *byte == 0).next().unwrap();
    core::str::from_utf8(text).unwrap().parse().unwrap()
}

/// 16: what a guest is shown says nothing of how much others do.
#[test]
fn row_16_a_generation_does_not_count_what_others_do() {
    let mut host = host(8, 8);
    let mut guest = host.guest(1, 0).unwrap();
    let mut steps = Vec::new();
    for others in 0..40 {
        for _ in 0..others {
            host.ask(Kind::Write, "/tool/busy\0x").unwrap();
        }
        let before = generation(&mut host, &mut guest);
        host.ask_as(&mut guest, 0, Kind::Mkdir, &format!("data/{others}\0")).unwrap();
        let after = generation(&mut host, &mut guest);
        assert_ne!(before, after, "a change shows");
        assert_eq!(after, generation(&mut host, &mut guest), "what did not change is the same");
        steps.push(after);
    }
    let close = steps.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1000).count();
    let rising = steps.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!(close < 3 && (5..35).contains(&rising), "it counts: {steps:?}");
    ends_clean(host, 1..2);
}
