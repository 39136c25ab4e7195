//! Text for people: what guests choose made harmless, and numbers made short.

use std::fmt::Write as _;

/// Bytes as printable ASCII: everything else, and the backslash, is `\xHH`. So no name or value can move a cursor,
/// break a line, or imitate another with letters that look alike.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// The beginning of a printable text, with `~` at the end if there is more.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short = text.chars().take(width.saturating_sub(1)).collect::<String>();
    if width > 0 {
        short.push('~');
    }
    short
}

/// Bytes in at most six characters: `812`, `12.4K`, `3.2M`.
#[must_use]
pub fn bytes(number: u64) -> String {
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];
    let Some((unit, shift)) = units.into_iter().rev().find(|(_, shift)| number >> shift > 0) else {
        return number.to_string();
    };
    // In tenths, rounded down; a whole unit has fewer than 1024.
    let tenths = (u128::from(number) * 10) >> shift;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if whole < 100 { format!("{whole}.{tenth}{unit}") } else { format!("{whole}{unit}") }
}

/// A number in at most six characters: `99999`, `123K`, `4567M`.
#[must_use]
pub fn count(number: u64) -> String {
    match number {
        0..=99_999 => number.to_string(),
        100_000..=99_999_999 => format!("{}K", number / 1000),
        100_000_000..=99_999_999_999 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

/// How often something happens in a second; `-` if that is not known yet.
#[must_use]
pub fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) if rate < 99_999.5 => format!("{rate:.0}"),
        Some(rate) if rate < 99_999_500.0 => format!("{:.0}K", rate / 1000.0),
        Some(rate) => format!("{:.0}M", rate / 1_000_000.0),
    }
}

/// A time as `3d 04:12:09`.
#[must_use]
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}d {clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, cut, duration, printable, rate};

    #[test]
    fn nothing_but_printable_ascii_comes_out() {
        let all = (0..=u8::MAX).collect::<Vec<_>>();
        let text = printable(&all);
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert_eq!(printable(b"\x1b[2J\n\\\xe2\x80\xae"), "\\x1b[2J\\x0a\\\\\\xe2\\x80\\xae");
    }

    #[test]
    fn short_forms_stay_short() {
        for shift in 0..64 {
            for number in [1_u64 << shift, (1_u64 << shift) - 1, u64::MAX >> shift] {
                assert!(bytes(number).len() <= 6, "{}", bytes(number));
            }
        }
        assert_eq!(bytes(1023), "1023");
        assert_eq!(bytes(12_700), "12.4K");
        assert_eq!(bytes(64 << 20), "64.0M");
        assert_eq!(count(99_999), "99999");
        assert_eq!(count(1_234_567), "1234K");
        assert_eq!(rate(None), "-");
        assert_eq!(rate(Some(0.0)), "0");
        assert_eq!(rate(Some(1.25)), "1.2");
        assert_eq!(rate(Some(1234.4)), "1234");
        assert_eq!(duration(3_600_000 * 49 + 61_000), "2d 01:01:01");
        assert_eq!(
            (cut("abcdef", 4), cut("abcd", 4), cut("ab", 0)),
            ("abc~".into(), "abcd".into(), String::new())
        );
    }
}
