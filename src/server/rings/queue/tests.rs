//! Tests of queues and messages.

use super::*;

/// A queue among all messages.
struct One {
    messages: Messages,
    queue: Queue,
    bytes: usize,
    causes: usize,
}

fn reply(len: u32) -> Header {
    Header { kind: 2, req_id: 1, tx_id: 0, len }
}

impl One {
    fn new() -> Self {
        let mut messages = Messages::new(1).unwrap();
        let queue = messages.new_queue().unwrap();
        Self { messages, queue, bytes: 0, causes: 0 }
    }

    fn reply(&mut self, text: &'static [u8], cause: u64) {
        let header = reply(text.len().try_into().unwrap());
        let (payload, cause) = (Cow::Borrowed(text), Some(CauseId(cause)));
        let Self { messages, queue, .. } = self;
        messages.push_reply(queue, header, &payload, cause, Some(DomId(1))).unwrap();
    }

    fn event(&mut self, text: &str, deadline_ms: Option<u64>) {
        let Self { messages, queue, .. } = self;
        if !messages.swallows(queue, text.as_bytes()) {
            let cause = Some(CauseId(1));
            let payer = Some(DomId(1));
            messages.push_event(queue, text.as_bytes(), cause, deadline_ms, payer).unwrap();
        }
    }

    fn settle(&mut self, mut done: Done) {
        while let Some(released) = self.messages.settle(&mut done) {
            self.bytes += released.refund.map_or(0, |(_, bytes)| bytes);
            self.causes += usize::from(released.cause.is_some());
        }
        assert!(done.is_empty() && done.last == NIL);
    }

    fn write(&mut self, put: impl FnMut(&[u8]) -> usize) {
        let mut done = Done::NONE;
        self.queue.write(&mut self.messages, put, &mut done);
        self.settle(done);
    }

    fn expire(&mut self, now_ms: u64) -> usize {
        let mut done = Done::NONE;
        let (dropped, more) = self.queue.expire(&mut self.messages, now_ms, 1000, &mut done);
        assert!(!more);
        self.settle(done);
        dropped
    }

    fn drain(&mut self, step: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !self.queue.is_empty() {
            let mut left = step;
            self.write(|from| {
                let n = from.len().min(left);
                left -= n;
                bytes.extend_from_slice(&from[..n]);
                n
            });
        }
        bytes
    }
}

#[test]
fn any_cut_gives_the_same_bytes() {
    let fill = |one: &mut One| {
        one.reply(b"", 1);
        one.event("/a\0t\0", None);
        one.reply(b"OK\0", 2);
        one.messages.push_kept(&mut one.queue, reply(7), b"ENOMEM\0");
    };
    let mut whole = One::new();
    fill(&mut whole);
    assert_eq!(
        whole.queue.held(&whole.messages),
        message_cost(0) + message_cost(3) + message_cost(5)
    );
    assert!(!whole.queue.can_reply());
    let expected = whole.drain(1000);
    assert_eq!(expected.len(), 4 * 16 + 8 + 7);
    assert_eq!(
        (whole.bytes, whole.causes),
        (message_cost(0) + message_cost(3) + message_cost(5), 3)
    );
    assert!(whole.queue.can_reply());
    assert_eq!(whole.messages.len(), 1, "the record that is kept");
    for step in 1..40 {
        let mut one = One::new();
        fill(&mut one);
        assert_eq!(one.drain(step), expected);
    }
}

#[test]
fn a_waiting_event_swallows_its_repetition_until_it_is_written() {
    let mut one = One::new();
    let mut other = one.messages.new_queue().unwrap();
    for round in 0..3 {
        for name in 0..100 {
            one.event(&alloc::format!("/{name}"), Some(round));
        }
    }
    assert_eq!(one.queue.len(), 100);
    // Also one that has been started, and those of special names; but not what waits for others.
    one.write(|from| from.len().min(5));
    one.event("/0", None);
    one.event("@releaseDomain", None);
    one.event("@releaseDomain", None);
    assert_eq!(one.queue.len(), 101);
    assert!(!one.messages.swallows(&other, b"/0"));
    one.drain(999);
    one.event("/0", None);
    assert_eq!(one.queue.len(), 1);
    let mut done = Done::NONE;
    one.queue.clear(&mut one.messages, &mut done);
    assert!(!one.messages.swallows(&one.queue, b"/0"));
    one.settle(done);
    let mut done = Done::NONE;
    core::mem::swap(&mut one.queue, &mut other);
    one.messages.end_queue(&mut other, &mut done);
    assert!(done.is_empty());
    assert_eq!(one.messages.len(), 1);
}

#[test]
fn events_of_special_names_are_bounded() {
    let mut one = One::new();
    for n in 0..1000 {
        let text = alloc::format!("@releaseDomain/{n}");
        if !one.queue.has_too_many_specials(text.as_bytes()) {
            one.event(&text, None);
        }
    }
    let most = one.queue.len();
    assert!(most > 20 && most * message_cost(16) <= SPECIAL_MAX, "{most}");
    assert!(!one.queue.has_too_many_specials(b"/a"));
    one.drain(1);
    assert_eq!(one.queue.special, 0);
}

#[test]
fn unread_events_expire_but_replies_and_a_started_event_stay() {
    let mut one = One::new();
    one.event("/started", Some(10));
    one.write(|_| 3);
    one.reply(b"", 1);
    for n in 0..50 {
        one.event(&alloc::format!("/{n}"), Some(10));
    }
    one.event("/later", Some(20));
    assert_eq!(one.expire(9), 0);
    assert_eq!(one.queue.len(), 53);
    assert_eq!(one.expire(10), 50);
    assert_eq!((one.queue.len(), one.queue.earliest_ms()), (3, Some(20)));
    // What expired no longer swallows; what is still there does.
    one.event("/7", Some(30));
    one.event("/later", Some(30));
    assert_eq!(one.queue.len(), 4);
    assert_eq!(one.expire(30), 2);
    assert_eq!(one.queue.len(), 2);
    let mut done = Done::NONE;
    one.queue.clear(&mut one.messages, &mut done);
    one.settle(done);
    assert!(one.queue.is_empty());
    assert_eq!(one.queue.earliest_ms(), None);
}

#[test]
fn events_get_their_deadlines_and_expire_in_slices() {
    let mut one = One::new();
    for n in 0..100 {
        one.event(&alloc::format!("/{n}"), None);
    }
    assert_eq!(one.queue.earliest_ms(), None);
    one.queue.date(&mut one.messages, 10, 60);
    assert!(one.queue.has_undated());
    one.queue.date(&mut one.messages, 20, 60);
    assert!(!one.queue.has_undated());
    one.event("/new", None);
    assert!(one.queue.has_undated());
    let mut done = Done::NONE;
    let expire =
        |one: &mut One, done: &mut Done, most| one.queue.expire(&mut one.messages, 20, most, done);
    assert_eq!(expire(&mut one, &mut done, 30), (30, true));
    assert_eq!(one.queue.earliest_ms(), Some(10));
    assert_eq!(expire(&mut one, &mut done, 70), (70, false));
    assert_eq!((one.queue.len(), one.queue.earliest_ms()), (1, None));
    one.settle(done);
    assert_eq!(one.causes, 100);
}

#[test]
fn all_events_go_but_replies_and_a_started_event_stay() {
    for started in [0, 5] {
        let mut one = One::new();
        one.event("/started", None);
        one.reply(b"reply\0", 1);
        one.event("/a", Some(7));
        one.event("/b", None);
        one.reply(b"another\0", 2);
        let mut left = started;
        one.write(|bytes| {
            let taken = bytes.len().min(left);
            left -= taken;
            taken
        });
        let mut done = Done::NONE;
        one.queue.drop_events(&mut one.messages, &mut done);
        one.settle(done);
        assert_eq!(one.queue.len(), if started > 0 { 3 } else { 2 });
        let bytes = one.drain(100);
        assert!(bytes.windows(6).any(|part| part == b"reply\0"));
        assert!(bytes.windows(8).any(|part| part == b"another\0"));
        assert_eq!(bytes.windows(8).any(|part| part == b"/started"), started > 0);
        assert!(!bytes.windows(2).any(|part| part == b"/a" || part == b"/b"));
    }
}

#[test]
fn a_reader_that_never_reads_costs_no_memory_for_what_expired() {
    let mut one = One::new();
    one.reply(b"", 1);
    for n in 0..10_000_u64 {
        one.event(&alloc::format!("/{n}"), Some(n));
        one.expire(n.saturating_sub(10));
    }
    assert!(one.messages.len() < 50);
}
