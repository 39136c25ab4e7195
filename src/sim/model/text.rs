//! What a payload says, read in the simplest way: this shares nothing with the server's own reader.

use alloc::vec::Vec;
use std::format;

/// A domid that stands for every domain in a permission list.
pub(super) const ANY: u16 = 32757;

/// The first domid that no domain can have.
pub(super) const RESERVED: u16 = 0x7ff0;

/// The strings of a payload; what is behind the last NUL is none.
pub(super) fn strings(payload: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = payload.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    all.pop();
    all
}

/// The one string of a payload that has nothing else.
pub(super) fn single(payload: &[u8]) -> Option<Vec<u8>> {
    match strings(payload).as_slice() {
        [one] if payload.last() == Some(&0) => Some(one.clone()),
        _ => None,
    }
}

/// A number as `strtol` sees it: its value, limited to what no argument can mean, and how many bytes it took.
fn number(text: &[u8], any_base: bool) -> (i128, usize) {
    let blanks = text.iter().take_while(|byte| matches!(byte, 9..=13 | 32)).count();
    let mut at = blanks;
    let negative = text.get(at) == Some(&b'-');
    if matches!(text.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    let mut base = 10;
    if any_base && text.get(at) == Some(&b'0') {
        base = 8;
        let hex = matches!(text.get(at + 1), Some(b'x' | b'X'));
        if hex && text.get(at + 2).is_some_and(u8::is_ascii_hexdigit) {
            base = 16;
            at += 2;
        }
    }
    let digits = text[at..].iter().take_while(|byte| char::from(**byte).is_digit(base)).count();
    if digits == 0 {
        return (0, 0);
    }
    let mut value: i128 = 0;
    for byte in &text[at..at + digits] {
        let digit = char::from(*byte).to_digit(base).unwrap_or(0);
        value = (value * i128::from(base) + i128::from(digit)).min(1 << 80);
    }
    (if negative { -value } else { value }, at + digits)
}

/// A domid argument.
pub(super) fn domid(text: &[u8]) -> Option<u16> {
    let (value, used) = number(text, false);
    if used != text.len() || value.abs() >= 1 << 64 {
        return None;
    }
    // A minus sign wraps around, as `strtoul` does.
    u16::try_from(value.rem_euclid(1 << 64)).ok()
}

/// The domid in a permission.
pub(super) fn permission_domid(text: &[u8]) -> Option<u16> {
    let (value, used) = number(text, true);
    if used == 0 || used != text.len() { None } else { u16::try_from(value).ok() }
}

/// `atoi` of a 64-bit C library.
pub(super) fn atoi(text: &[u8]) -> i32 {
    let (value, _) = number(text, false);
    let limited = value.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    let low = u32::try_from(limited.rem_euclid(1 << 32)).unwrap_or(0);
    i32::from_le_bytes(low.to_le_bytes())
}

/// `atoi` stored without a sign.
pub(super) fn atoi_unsigned(text: &[u8]) -> u32 {
    u32::from_le_bytes(atoi(text).to_le_bytes())
}

/// A path in canonical form, and how many bytes of it the client did not spell.
pub(super) fn canonical(
    raw: &[u8],
    special: bool,
    domid: u16,
    max: u32,
) -> Option<(Vec<u8>, usize)> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(byte);
    if !raw.iter().all(legal) || raw.starts_with(b"@") && !special {
        return None;
    }
    let home = match raw.first() {
        Some(b'/' | b'@') => Vec::new(),
        _ => format!("/local/domain/{domid}/").into_bytes(),
    };
    let path = [&home[..], raw].concat();
    if path.len() > 1 && path.ends_with(b"/") || path.windows(2).any(|two| two == b"//") {
        return None;
    }
    let mut counted = path.len();
    if let Some(rest) = path.strip_prefix(b"/local/domain/") {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if (1..=5).contains(&digits) && rest.get(digits) == Some(&b'/') {
            counted = rest.len() - digits - 1;
        }
    }
    let longest = if home.is_empty() { 3072 } else { 2048 };
    let fits = raw.len() <= longest && (max == 0 || counted <= max as usize);
    fits.then_some((path, home.len()))
}

/// The path of the node above; nothing is above `/`, and the root is above special names.
pub(super) fn parent(path: &[u8]) -> Option<Vec<u8>> {
    if path == b"/" {
        return None;
    }
    let slash = path.iter().rposition(|byte| *byte == b'/').filter(|_| path.starts_with(b"/"));
    Some(match slash {
        Some(slash) if slash > 0 => path[..slash].to_vec(),
        _ => b"/".to_vec(),
    })
}

/// The last component of a path.
pub(super) fn name(path: &[u8]) -> Vec<u8> {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path).to_vec()
}

/// The path of a child.
pub(super) fn child(path: &[u8], name: &[u8]) -> Vec<u8> {
    let stem = if path == b"/" { &b""[..] } else { path };
    [stem, b"/", name].concat()
}

/// Every string with a NUL behind it.
pub(super) fn join<T: AsRef<[u8]>>(strings: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut all = Vec::new();
    for string in strings {
        all.extend_from_slice(string.as_ref());
        all.push(0);
    }
    all
}
