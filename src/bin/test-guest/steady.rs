//! The role that must not notice anything. It does what an honest guest does all day, cuts each request in half
//! and judges each answer, for as long as dom0 wants. Meanwhile the server is replaced.

use crate::client::{Client, Message, XS_READ, XS_WATCH_EVENT, XS_WRITE};
use crate::hostile::{XS_TRANSACTION_START, XS_WATCH};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

const XS_TRANSACTION_END: u32 = 7;
const XS_ERROR: u32 = 16;

/// How long a transaction stays open, and a request stays cut: long enough to be hit by an update now and then.
const OPEN_MS: u64 = 120;
const CUT_MS: u64 = 25;

/// Goes on until dom0 writes `data/stop`; returns how many rounds there were.
pub(crate) fn play(client: &mut Client) -> Result<String, String> {
    let mut guest = Guest { client, events: 0, cut: 0 };
    guest.answer(0, XS_WRITE, b"data/steady\0start")?;
    guest.answer(0, XS_WATCH, b"data/steady\0token\0")?;
    guest.expect_event()?;
    let mut rounds = 0_u32;
    let mut value = b"start".to_vec();
    while guest.ask(0, XS_READ, b"data/stop\0")?.is_err() {
        rounds += 1;
        value = guest.commit(&value, rounds)?;
        guest.conflict(&value, rounds)?;
        value = format!("disturbed {rounds}").into_bytes();
    }
    let events = guest.events;
    if events != 1 + 2 * rounds {
        return Err(format!("{events} events in {rounds} rounds"));
    }
    Ok(format!(" ({rounds} rounds, {events} events)"))
}

struct Guest<'a> {
    client: &'a mut Client,
    events: u32,
    /// Where the next request is cut.
    cut: usize,
}

impl Guest<'_> {
    /// A transaction that commits: it sees what it has written, nobody else does before its end.
    fn commit(&mut self, before: &[u8], round: u32) -> Result<Vec<u8>, String> {
        let new = round.to_string().into_bytes();
        let tx = self.start()?;
        self.answer(tx, XS_WRITE, &[b"data/steady\0", &new[..]].concat())?;
        self.client.sleep(OPEN_MS);
        self.expect(tx, &new, "inside the transaction")?;
        self.expect(0, before, "outside the transaction")?;
        self.send(tx, XS_TRANSACTION_END, b"T\0")?;
        // C xenstored sends the events of a request ahead of its reply, and so must this server.
        self.expect_event()?;
        self.receive(XS_TRANSACTION_END)?.map_err(|error| format!("commit: {error}"))?;
        self.expect(0, &new, "after the commit")?;
        Ok(new)
    }

    /// A transaction that was disturbed: it must fail, whatever happened in between.
    fn conflict(&mut self, before: &[u8], round: u32) -> Result<(), String> {
        let tx = self.start()?;
        self.expect(tx, before, "in the transaction to be disturbed")?;
        self.answer(tx, XS_WRITE, b"data/other\0x")?;
        self.send(0, XS_WRITE, format!("data/steady\0disturbed {round}").as_bytes())?;
        self.expect_event()?;
        self.receive(XS_WRITE)?.map_err(|error| format!("write: {error}"))?;
        self.client.sleep(OPEN_MS);
        match self.ask(tx, XS_TRANSACTION_END, b"T\0")? {
            Err(error) if error == "EAGAIN" => Ok(()),
            other => Err(format!("the disturbed transaction ended with {other:?}")),
        }
    }

    fn start(&mut self) -> Result<u32, String> {
        let id = self.answer(0, XS_TRANSACTION_START, b"\0")?;
        let text = core::str::from_utf8(&id).unwrap_or("").trim_end_matches('\0');
        text.parse().map_err(|_| format!("\"{text}\" is no transaction id"))
    }

    fn expect(&mut self, tx: u32, value: &[u8], when: &str) -> Result<(), String> {
        let found = self.answer(tx, XS_READ, b"data/steady\0")?;
        if found == value {
            return Ok(());
        }
        let [found, value] = [&found[..], value].map(String::from_utf8_lossy);
        Err(format!("{when} the value is \"{found}\", not \"{value}\""))
    }

    fn expect_event(&mut self) -> Result<(), String> {
        let message = self.client.message()?;
        if message.kind != XS_WATCH_EVENT || message.payload != b"data/steady\0token\0" {
            return Err(format!("a message of type {} came instead of the event", message.kind));
        }
        self.events += 1;
        Ok(())
    }

    /// A request that has to succeed.
    fn answer(&mut self, tx: u32, kind: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.ask(tx, kind, payload)?.map_err(|error| format!("request of type {kind}: {error}"))
    }

    /// A request; `Ok(Err)` is an error as answer.
    fn ask(
        &mut self,
        tx: u32,
        kind: u32,
        payload: &[u8],
    ) -> Result<Result<Vec<u8>, String>, String> {
        self.send(tx, kind, payload)?;
        self.receive(kind)
    }

    /// Sends a request in two pieces, each time cut at another place.
    fn send(&mut self, tx: u32, kind: u32, payload: &[u8]) -> Result<(), String> {
        let message = self.client.request(tx, kind, payload);
        self.cut = (self.cut + 7) % message.len();
        self.client.send(&message[..self.cut])?;
        self.client.sleep(CUT_MS);
        self.client.send(&message[self.cut..])
    }

    /// The next message, which has to be the reply.
    fn receive(&mut self, kind: u32) -> Result<Result<Vec<u8>, String>, String> {
        let Message { kind: got, request, payload } = self.client.message()?;
        self.client.check_request(request)?;
        match got {
            _ if got == kind => Ok(Ok(payload)),
            XS_ERROR => {
                let text = String::from_utf8_lossy(&payload);
                Ok(Err(text.trim_end_matches('\0').to_string()))
            }
            _ => Err(format!("a message of type {got} answers a request of type {kind}")),
        }
    }
}
