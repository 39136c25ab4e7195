//! Conversations with a xenstore as text, and their player.
//!
//! The player knows what to send and what has to come back. A [`Stage`] knows how bytes travel and how domains
//! come and go: the simulated world (`tests/transcripts.rs`), a guest on real Xen that has nothing but its own
//! ring (`src/bin/test-guest`), or dom0 with guests that it controls (`scripts/player`).
//!
//! # The files
//! A file holds conversations, each against a fresh server. `#` starts a comment line. Domain 0 is privileged
//! and connected; it and every other client reads its ring whenever the server signals, unless told otherwise.
//!
//! ```text
//! == title                   a conversation begins
//! options -E 20              (first line, if at all) what else the command line says
//! guest 7                    domain 7 is created by Xen and introduced by domain 0
//! domain 8                   domain 8 is created by Xen, no more
//!
//! 7 > READ name              domain 7 sends a request
//! 7 < "guest"                and the next message that it gets is this reply
//! 7 > READ name => "guest"   both in one line
//! 7.t > WRITE a x            the same in transaction t; a number is that very id
//! 7 < nothing                no message has come
//! 7 >> READ a                the request is in the ring, but the server has not run yet
//! go                         now it runs
//! ```
//!
//! Arguments are words, each sent with a NUL behind it, except the last of WRITE. In a word, `\s` is a blank,
//! `\0` a NUL, `\xHH` a byte, `\\` a backslash and `{ab*3}` is `ababab`; `''` is the empty word; `raw:x` is x
//! without a NUL. TRANSACTION_START and RESET_WATCHES without arguments have one NUL, as all clients send them. The type is a name of `docs/misc/xenstore.txt` or a number. A domain offers port 10
//! from its birth; `%port` in INTRODUCE stands for another that it offers, `%own` for the domid of the server's own domain.
//!
//! Messages: `OK`; an error's name; `"raw bytes"`; `[strings each with a NUL]`; `id t` (a number, from now on
//! called t); `any`; `part a b ''` (an answer to DIRECTORY_PART: a number, then these strings), `part=g a b` (the same, and
//! the number is the one called g, which the first such line names), `part!g a b` (it is another one); `has text` (a
//! reply that contains it); `event path token`; `nothing`. When a conversation
//! ends, no message may be left over, and the server's own check must be clean.
//!
//! The world: `shutdown 7`, `unshutdown 7`, `destroy 7`, `replace 7` (destroyed and created in one notification),
//! `revoke 7` and `grant 7` (grant entry 1), `sleep MS`, `word 7 NAME = N` (must be), `word 7 NAME := N` (the
//! domain writes it), `signal 7`, `rename 7` (another handle), `ran 7 NS` (it has run so long), `send 7 BYTES` (into
//! its ring, whatever they are), `firmware 7` (the rings filled, the indices zeroed), `unread 7` and `read 7` (stops and starts reading), `memory BYTES` (left in the
//! server's heap), `mute-xen` (Xen tells nothing about domains; `mute-xen ends`: but their end shows), `discard 7 TEXT` (leaves out the next messages as
//! long as they contain it), `old-xen` (Xen tells no changes and no unique ids), `still` (time stands still between the
//! lines), `fresh` (nothing is in the store but what the conversation makes), `update` (a live update, now), `failing-update` (one
//! whose successor fails at the last moment), `region BYTES` (room for what is handed over), `console TEXT` (some line since
//! the last such line says so), `loop N` ... `end` (the lines between, N times, `%i` being the round).
//!
//! # On real Xen
//! On real Xen a domain cannot choose its id, so the ids of the text are names. [`names`] puts the real ones in
//! wherever the protocol has an id. The server is not fresh there, so replies that depend on that are not compared
//! ([`Stage::is_fresh`]). Several blanks in texts for people count as one. If a stage cannot do something, the
//! conversation ends with [`Stop::Skip`] and the reason.
#![forbid(unsafe_code)]

pub mod names;
mod play;
mod words;

pub use play::{Message, Patience, Request, Stage, Stop, play};
pub use words::{show, unescape};

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// One conversation as it was written.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// What it shows.
    pub title: String,
    /// Line numbers in the file, and lines.
    lines: Vec<(usize, String)>,
}

impl Conversation {
    /// What else the server's command line has to say.
    #[must_use]
    pub fn options(&self) -> &str {
        let first = self.lines.first().and_then(|(_, line)| line.strip_prefix("options "));
        first.unwrap_or_default()
    }

    /// Its lines, loops as they were written.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(_, line)| line.as_str())
    }
}

/// The conversations of a file.
///
/// # Errors
/// What is wrong with the file.
pub fn conversations(text: &str) -> Result<Vec<Conversation>, String> {
    let mut all: Vec<Conversation> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(title) = line.strip_prefix("== ") {
            all.push(Conversation { title: title.to_owned(), lines: Vec::new() });
        } else if !line.is_empty() && !line.starts_with('#') {
            let current = all.last_mut().ok_or("a conversation starts with ==")?;
            current.lines.push((index + 1, line.to_owned()));
        }
    }
    Ok(all)
}

/// Whether a line creates a domain.
fn makes_domain(line: &str) -> bool {
    ["guest ", "domain ", "replace "].iter().any(|word| line.starts_with(word))
}

/// Replaces loops by their rounds. `rounds` may ask for fewer; it is told whether each creates a domain.
fn unroll(
    lines: &[(usize, String)],
    rounds: impl Fn(usize, bool) -> usize,
) -> Result<Vec<(usize, String)>, String> {
    let mut out = Vec::new();
    let mut rest = lines;
    while let Some(((number, line), tail)) = rest.split_first() {
        rest = tail;
        let Some(count) = line.strip_prefix("loop ") else {
            out.push((*number, line.clone()));
            continue;
        };
        let wrong = || format!("line {number}: loop N ... end");
        let length = rest.iter().position(|(_, line)| line == "end").ok_or_else(wrong)?;
        let (body, after) = rest.split_at(length);
        let count = count.parse().map_err(|_| wrong())?;
        for round in 0..rounds(count, body.iter().any(|(_, line)| makes_domain(line))) {
            let round = round.to_string();
            out.extend(body.iter().map(|(n, line)| (*n, line.replace("%i", &round))));
        }
        rest = after.get(1..).unwrap_or_default();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_unrolled_and_comments_left_out() {
        let text = "# c\n== one\noptions -E 3\nloop 2\nguest 7\nend\n\n== two\ngo\n";
        let all = conversations(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].options(), all[1].options()), ("-E 3", ""));
        let lines = unroll(&all[0].lines, |count, makes| if makes { 1 } else { count }).unwrap();
        let texts: Vec<_> = lines.iter().map(|(n, line)| (*n, line.as_str())).collect();
        assert_eq!(texts, [(3, "options -E 3"), (5, "guest 7")]);
        assert!(conversations("go").is_err());
        let open = conversations("== x\nloop 2\n").unwrap();
        assert!(unroll(&open[0].lines, |count, _| count).is_err());
    }
}
