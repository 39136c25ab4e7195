//! The text inside payloads: strings that end in NUL, and numbers as the C library reads them.
//!
//! Clients rely on each of these readings ("C xenstored 4.22 behaviour"): `strtoul` in base 10 for domids, `atoi`
//! for ports and the like, `strtol` in base 0 for domids of permissions.

use super::id::DomId;
use core::fmt;

/// How many strings a payload holds: bytes behind the last NUL are none.
#[must_use]
pub fn count_strings(payload: &[u8]) -> usize {
    count(payload, 0)
}

/// How often a byte is there. It looks at 8 at a time: paths of many levels pass here at each request.
#[must_use]
pub fn count(bytes: &[u8], byte: u8) -> usize {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let pattern = u64::from_le_bytes([byte; 8]);
    let (mut rest, mut found) = (bytes, 0_usize);
    while let Some((word, more)) = rest.split_first_chunk() {
        let word = u64::from_le_bytes(*word) ^ pattern;
        // The top bits of the bytes that are 0, and of no others: nothing is carried over.
        let zeros = !((word & LOW).wrapping_add(LOW) | word | LOW);
        let sum = (zeros >> 7).wrapping_mul(0x0101_0101_0101_0101) >> 56;
        found = found.wrapping_add(sum as usize);
        rest = more;
    }
    found.wrapping_add(rest.iter().filter(|other| **other == byte).count())
}

/// The place of a byte. It looks at 8 at a time.
#[must_use]
pub fn place(bytes: &[u8], byte: u8) -> Option<usize> {
    let pattern = u64::from_le_bytes([byte; 8]);
    let (mut rest, mut at) = (bytes, 0_usize);
    while let Some((word, more)) = rest.split_first_chunk() {
        let word = u64::from_le_bytes(*word) ^ pattern;
        if let Some(found) = first_zero(word.to_le_bytes()) {
            return Some(at.wrapping_add(found));
        }
        at = at.wrapping_add(8);
        rest = more;
    }
    rest.iter().position(|other| *other == byte).map(|found| at.wrapping_add(found))
}

/// The strings of a payload, without their NULs; bytes behind the last NUL are left out.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    payload.split_inclusive(|byte| *byte == 0).filter_map(|part| part.strip_suffix(&[0]))
}

/// The one string that a payload consists of: exactly one NUL, as its last byte.
#[must_use]
pub fn only_string(payload: &[u8]) -> Option<&[u8]> {
    payload.strip_suffix(&[0]).filter(|text| !has_nul(text))
}

/// Whether there is a NUL among these bytes. It reads 8 at a time, since every path of a live update passes here.
#[must_use]
pub fn has_nul(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((word, more)) = rest.split_first_chunk() {
        if first_zero(*word).is_some() {
            return true;
        }
        rest = more;
    }
    // The last word overlaps the one before.
    bytes.last_chunk().map_or_else(|| rest.contains(&0), |word| first_zero(*word).is_some())
}

/// The place of the first byte that is 0: only then a borrow reaches a top bit that was clear.
#[inline]
#[must_use]
pub fn first_zero(word: [u8; 8]) -> Option<usize> {
    let word = u64::from_le_bytes(word);
    let zeros = word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080;
    // Above a byte that is 0 there may be false ones, below the first there is none.
    (zeros != 0).then_some((zeros.trailing_zeros() / 8) as usize)
}

/// The first `N` strings of a payload that holds at least so many.
#[must_use]
pub fn first_strings<const N: usize>(payload: &[u8]) -> Option<[&[u8]; N]> {
    let mut found: [&[u8]; N] = [&[]; N];
    let mut rest = payload;
    for slot in &mut found {
        (*slot, rest) = split_first_string(rest)?;
    }
    Some(found)
}

/// The strings of a payload that holds exactly `N`.
#[must_use]
pub fn exact_strings<const N: usize>(payload: &[u8]) -> Option<[&[u8]; N]> {
    if count_strings(payload) == N { first_strings(payload) } else { None }
}

/// The bytes before the first NUL and everything behind it.
#[must_use]
pub fn split_first_string(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = place(payload, 0)?;
    let (text, rest) = payload.split_at_checked(end)?;
    Some((text, rest.get(1..).unwrap_or(&[])))
}

/// What the C library's number readers find at the start of a text.
struct Scanned {
    negative: bool,
    /// The digits' value, `u64::MAX` if they were too many for it.
    magnitude: u64,
    /// The digits were too many.
    overflow: bool,
    /// Bytes read; 0 if there was no number.
    consumed: usize,
}

/// `isspace` in the C locale.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// Reads a number as `strtol` and `strtoul` do: blanks, a sign, digits.
fn scan(text: &[u8], base: Base) -> Scanned {
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if !is_blank(*first) {
            break;
        }
        rest = tail;
    }
    let negative = rest.first() == Some(&b'-');
    if let [b'-' | b'+', tail @ ..] = rest {
        rest = tail;
    }
    let (radix, digits) = base.resolve(rest);
    let mut scanned = Scanned { negative, magnitude: 0, overflow: false, consumed: 0 };
    rest = digits;
    while let [first, tail @ ..] = rest {
        let Some(digit) = char::from(*first).to_digit(radix) else { break };
        let next = scanned
            .magnitude
            .checked_mul(u64::from(radix))
            .and_then(|value| value.checked_add(u64::from(digit)));
        scanned.overflow |= next.is_none();
        scanned.magnitude = next.unwrap_or(u64::MAX);
        rest = tail;
        scanned.consumed = text.len().saturating_sub(rest.len());
    }
    if scanned.overflow {
        scanned.magnitude = u64::MAX;
    }
    scanned
}

/// The base of a number.
#[derive(Clone, Copy)]
enum Base {
    Ten,
    /// As in C source: `0x` sixteen, `0` eight, else ten.
    FromPrefix,
}

impl Base {
    /// The radix, and the text from its first digit on.
    fn resolve(self, text: &[u8]) -> (u32, &[u8]) {
        match (self, text) {
            (Self::FromPrefix, [b'0', b'x' | b'X', digits @ ..])
                if digits.first().is_some_and(u8::is_ascii_hexdigit) =>
            {
                (16, digits)
            }
            (Self::FromPrefix, [b'0', ..]) => (8, text),
            _ => (10, text),
        }
    }
}

/// A domid argument: the whole text must be a decimal number from 0 to 65535. Leading blanks and a sign
/// are tolerated, and the empty text is 0.
#[must_use]
pub fn domid(text: &[u8]) -> Option<DomId> {
    let scanned = scan(text, Base::Ten);
    if scanned.consumed != text.len() || scanned.overflow {
        return None;
    }
    // `strtoul` takes a minus sign and negates without a sign.
    let value = if scanned.negative { scanned.magnitude.wrapping_neg() } else { scanned.magnitude };
    u16::try_from(value).ok().map(DomId)
}

/// The domid behind the letter of a permission: the whole text must be a number, in base 16 or 8 if its
/// prefix says so; at least one digit.
#[must_use]
pub fn permission_domid(text: &[u8]) -> Option<DomId> {
    let scanned = scan(text, Base::FromPrefix);
    if scanned.consumed == 0 || scanned.consumed != text.len() {
        return None;
    }
    if scanned.negative && scanned.magnitude != 0 {
        return None;
    }
    u16::try_from(scanned.magnitude).ok().map(DomId)
}

/// `atoi`: garbage is 0, what follows the digits is ignored, and too large numbers wrap.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "what `atoi` does with what `strtol` returns")]
pub fn atoi(text: &[u8]) -> i32 {
    let scanned = scan(text, Base::Ten);
    let limited = i64::try_from(scanned.magnitude);
    let value = if scanned.negative {
        limited.map_or(i64::MIN, i64::wrapping_neg)
    } else {
        limited.unwrap_or(i64::MAX)
    };
    value as i32
}

/// `atoi` stored in an unsigned variable: ports, feature masks, quota values.
#[must_use]
pub fn atoi_unsigned(text: &[u8]) -> u32 {
    u32::from_le_bytes(atoi(text).to_le_bytes())
}

/// A number in decimal.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    digits: [u8; 20],
    used: usize,
}

impl Decimal {
    /// The digits of a number, without leading zeros.
    #[must_use]
    pub fn new(value: u64) -> Self {
        let mut new = Self { digits: [0; 20], used: 0 };
        let mut rest = value;
        for slot in new.digits.iter_mut().rev() {
            // A remainder of ten fits.
            *slot = b'0'.saturating_add(u8::try_from(rest % 10).unwrap_or(0));
            new.used = new.used.saturating_add(1);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        new
    }

    /// The digits.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.digits.len().saturating_sub(self.used)..).unwrap_or(&[])
    }
}

/// Writes bytes in base64 (RFC 4648, section 4), padding included.
///
/// # Errors
/// `to` takes no more.
pub fn write_base64(to: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (shift, needs) in [(18, 1), (12, 1), (6, 2), (0, 3)] {
            let letter = LETTERS.get((bits >> shift & 63) as usize).copied().map(char::from);
            to.write_char(letter.filter(|_| group.len() >= needs).unwrap_or('='))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec::Vec;

    #[test]
    fn strings_end_in_nul_and_a_tail_is_none() {
        assert_eq!(strings(b"a\0\0bc\0tail").collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
        assert_eq!(strings(b"tail").count(), 0);
        assert_eq!(count_strings(b"a\0\0bc\0tail"), 3);
        assert_eq!(count_strings(b""), 0);
        let bytes =
            core::array::from_fn::<u8, 64, _>(|n| [0, b'/', 0x2e, 0x80, 0xff, b'a', 1][n % 7]);
        for from in 0..bytes.len() {
            for byte in [0, b'/', 0x2e, 0x80, 0xff, 7] {
                let rest = &bytes[from..];
                assert_eq!(count(rest, byte), rest.iter().filter(|other| **other == byte).count());
                assert_eq!(place(rest, byte), rest.iter().position(|other| *other == byte));
            }
        }
    }

    #[test]
    fn one_string_means_one_nul_at_the_end() {
        assert_eq!(only_string(b"abc\0"), Some(&b"abc"[..]));
        assert_eq!(only_string(b"\0"), Some(&b""[..]));
        for bad in [&b""[..], b"abc", b"a\0b\0", b"a\0b", b"\0\0"] {
            assert_eq!(only_string(bad), None);
        }
    }

    #[test]
    fn a_nul_is_found_wherever_it_is() {
        for len in 0..40 {
            for fill in [1, 0x7f, 0x80, 0x81, 0xff] {
                let mut bytes = alloc::vec![fill; len];
                assert!(!has_nul(&bytes));
                for at in 0..len {
                    bytes[at] = 0;
                    assert!(has_nul(&bytes), "{at} of {len}");
                    bytes[at] = fill;
                }
            }
        }
    }

    #[test]
    fn counted_strings() {
        assert_eq!(exact_strings(b"a\0b\0"), Some([&b"a"[..], b"b"]));
        assert_eq!(exact_strings(b"a\0b\0tail"), Some([&b"a"[..], b"b"]));
        assert_eq!(exact_strings::<2>(b"a\0b\0c\0"), None);
        assert_eq!(exact_strings::<2>(b"a\0b"), None);
        assert_eq!(first_strings(b"a\0b\0c\0"), Some([&b"a"[..], b"b"]));
        assert_eq!(first_strings::<2>(b"a\0"), None);
        assert_eq!(split_first_string(b"a\0b\0c"), Some((&b"a"[..], &b"b\0c"[..])));
        assert_eq!(split_first_string(b"a\0"), Some((&b"a"[..], &b""[..])));
        assert_eq!(split_first_string(b"a"), None);
    }

    #[test]
    fn domids_must_be_whole_decimal_numbers() {
        let good = [
            (&b"0"[..], 0),
            (b"", 0),
            (b"65535", 65535),
            (b" \t\n7", 7),
            (b"+7", 7),
            (b"-0", 0),
            (b"007", 7),
            // Nobody sends it, but this is what `strtoul` makes of it.
            (b"-18446744073709551615", 1),
        ];
        for (text, value) in good {
            assert_eq!(domid(text), Some(DomId(value)), "{text:?}");
        }
        let bad = [
            &b"x"[..],
            b"1x",
            b"65536",
            b"-1",
            b"7 ",
            b" ",
            b"-",
            b"+",
            b"--7",
            b"0x10",
            b"99999999999999999999",
            b"18446744073709551616",
            b"-99999999999999999999",
        ];
        for text in bad {
            assert_eq!(domid(text), None, "{text:?}");
        }
    }

    #[test]
    fn permission_domids_know_the_prefixes_of_c() {
        let good = [(&b"0"[..], 0), (b"5", 5), (b"0x10", 16), (b"010", 8), (b" 5", 5), (b"+5", 5)];
        for (text, value) in good {
            assert_eq!(permission_domid(text), Some(DomId(value)), "{text:?}");
        }
        for text in [&b""[..], b" ", b"5x", b"0x", b"08", b"x", b"-1", b"65536", b"5 ", b"-"] {
            assert_eq!(permission_domid(text), None, "{text:?}");
        }
    }

    #[test]
    fn atoi_is_that_of_the_c_library() {
        let cases = [
            (&b"12"[..], 12),
            (b"", 0),
            (b"x", 0),
            (b"12junk", 12),
            (b" -7", -7),
            (b"2147483648", i32::MIN),
            (b"4294967295", -1),
            (b"4294967296", 0),
            (b"99999999999999999999", -1),
            (b"-99999999999999999999", 0),
            (b"0x10", 0),
        ];
        for (text, value) in cases {
            assert_eq!(atoi(text), value, "{text:?}");
        }
        assert_eq!(atoi_unsigned(b"-1"), u32::MAX);
    }

    #[test]
    fn decimal_output() {
        for value in [0, 7, 10, 1234, u64::MAX] {
            assert_eq!(
                *Decimal::new(value).as_bytes(),
                *alloc::string::ToString::to_string(&value).as_bytes()
            );
        }
    }

    #[test]
    fn base64_of_the_rfc() {
        let all = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (bytes, expected) in all {
            let mut text = String::new();
            write_base64(&mut text, bytes.as_bytes()).unwrap();
            assert_eq!(text, expected);
        }
        let mut text = String::new();
        write_base64(&mut text, &[0xfb, 0xff, 0xbf]).unwrap();
        assert_eq!(text, "+/+/");
    }
}
