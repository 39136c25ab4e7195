//! Words of a transcript as bytes, and bytes as text.

use super::play::Message;
use crate::proto::ring::Word;
use crate::proto::wire::Kind;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Bytes of a payload that people get to see.
const SHOWN_MAX: usize = 200;

/// A message for people.
#[must_use]
pub fn show(message: &Message) -> String {
    let payload: Vec<u8> = message.payload.iter().take(SHOWN_MAX).copied().collect();
    let len = message.payload.len();
    match Kind::from_number(message.header.kind) {
        Some(kind) => format!("{kind:?}, {len} bytes: {}", payload.escape_ascii()),
        None => format!("type {}, {len} bytes: {}", message.header.kind, payload.escape_ascii()),
    }
}

/// Whether a reply's payload is the expected one.
pub(super) fn matches(expected: &str, payload: &[u8]) -> Result<bool, String> {
    if expected == "any" {
        return Ok(true);
    }
    if expected == "OK" {
        return Ok(payload == b"OK\0");
    }
    if let Some(text) = expected.strip_prefix("part ") {
        let generation = payload.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let rest = payload.get(generation..).and_then(|rest| rest.strip_prefix(&[0]));
        return Ok(generation > 0 && rest == Some(&strings(text)?[..]));
    }
    if let Some(text) = expected.strip_prefix("has ") {
        return Ok(String::from_utf8_lossy(payload).contains(text));
    }
    if let Some(text) = expected.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Ok(payload == unescape(text)?);
    }
    if let Some(text) = expected.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok(payload == strings(text)?);
    }
    Ok(false)
}

/// A part whose generation has a name: the name, the strings, and whether the generation has to be the one of that
/// name, or another one.
pub(super) fn named_part(expected: &str) -> Option<(&str, &str, bool)> {
    let rest = expected.strip_prefix("part")?;
    let (rest, is_same) = match rest.strip_prefix('=') {
        Some(rest) => (rest, true),
        None => (rest.strip_prefix('!')?, false),
    };
    let (name, rest) = rest.split_once(' ')?;
    Some((name, rest, is_same))
}

/// Words, each with a NUL behind it.
pub(super) fn strings(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        bytes.extend(unescape(word)?);
        bytes.push(0);
    }
    Ok(bytes)
}

/// The bytes that a word stands for.
///
/// # Errors
/// What is wrong with it.
pub fn unescape(word: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    if word == "''" {
        return Ok(out);
    }
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        if let Some((inner, tail)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            let (unit, count) = inner.rsplit_once('*').ok_or("{text*count}")?;
            let count = count.parse().map_err(|_| "{text*count}")?;
            out.extend(unescape(unit)?.repeat(count));
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("\\x") {
            let digits = tail.get(..2).ok_or("\\xHH")?;
            out.push(u8::from_str_radix(digits, 16).map_err(|_| "\\xHH")?);
            rest = tail.get(2..).unwrap_or_default();
        } else if first == '\\' {
            out.push(match rest.as_bytes().get(1) {
                Some(b's') => b' ',
                Some(b'0') => 0,
                Some(b'\\') => b'\\',
                _ => return Err(format!("what is {rest}?")),
            });
            rest = rest.get(2..).unwrap_or_default();
        } else {
            out.extend_from_slice(first.encode_utf8(&mut [0; 4]).as_bytes());
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
    }
    Ok(out)
}

/// The number of a type given by number or name.
pub(super) fn kind(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    // `GET_DOMAIN_PATH` is the variant GetDomainPath.
    let found = Kind::ALL.into_iter().find(|kind| {
        let variant = format!("{kind:?}").to_uppercase();
        variant == name.replace('_', "")
    });
    found.map(Kind::number).ok_or_else(|| format!("{name} is no type"))
}

/// A word of the ring page by the name that `xs_wire.h` gives it.
pub(super) fn word(name: &str) -> Result<Word, String> {
    Ok(match name {
        "req_cons" => Word::ReqCons,
        "req_prod" => Word::ReqProd,
        "rsp_cons" => Word::RspCons,
        "rsp_prod" => Word::RspProd,
        "server_features" => Word::ServerFeatures,
        "connection" => Word::Connection,
        "error" => Word::Error,
        "evtchn_port" => Word::EvtchnPort,
        _ => return Err(name.to_string() + " is no word"),
    })
}
