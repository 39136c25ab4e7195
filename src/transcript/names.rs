//! Domain ids of a transcript as names for real domains.
//!
//! A number is an id where the protocol says so: after `/local/domain/`, `@introduceDomain/` and
//! `@releaseDomain/`, in the arguments of requests about domains, in permission entries, and after the word
//! `domain` in texts for people.

use crate::proto::wire::Kind;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};

/// What a domain of the text is really called.
pub type Real<'a> = &'a dyn Fn(u16) -> u16;

/// The texts directly in front of an id.
const PREFIXES: [&str; 5] =
    ["/local/domain/", "@introduceDomain/", "@releaseDomain/", "domain ", "Domain "];

/// A number as the real id's digits, with what a C library takes in front of it; anything else stays.
fn number(text: &str, real: Real<'_>) -> String {
    for prefix in ["\\s", "+", "0"] {
        if let Some(rest) = text.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
            return format!("{prefix}{}", number(rest, real));
        }
    }
    match text.parse() {
        Ok(domid) => real(domid).to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Replaces the ids behind the `PREFIXES`.
#[must_use]
pub fn in_text(text: &str, real: Real<'_>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = PREFIXES.iter().filter_map(|p| Some(rest.find(p)? + p.len())).min() {
        let (head, tail) = rest.split_at(at);
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits);
        out += head;
        out += &number(digits, real);
        rest = tail;
    }
    out + rest
}

/// Replaces the id in a permission entry such as `b7`.
#[must_use]
pub fn in_permission(entry: &str, real: Real<'_>) -> String {
    match entry.split_at_checked(1) {
        Some((letter @ ("n" | "r" | "w" | "b"), digits)) => {
            format!("{letter}{}", number(digits, real))
        }
        _ => entry.to_owned(),
    }
}

/// An argument of a request, `index` counted from 0, of `count`; `first` is the first of them.
#[must_use]
pub fn in_argument(
    kind: Option<Kind>,
    (index, count): (usize, usize),
    first: &str,
    argument: &str,
    real: Real<'_>,
) -> String {
    let is_domid = match kind {
        Some(
            Kind::GetDomainPath
            | Kind::Introduce
            | Kind::Release
            | Kind::IsDomainIntroduced
            | Kind::Resume
            | Kind::GetFeature
            | Kind::SetFeature,
        ) => index == 0,
        Some(Kind::SetTarget) => index <= 1,
        Some(Kind::GetQuota) => index == 0 && count >= 2,
        Some(Kind::SetQuota) => index == 0 && count >= 3,
        Some(Kind::Control) => index == 1 && first == "quota",
        _ => false,
    };
    if is_domid {
        return number(argument, real);
    }
    if kind == Some(Kind::SetPerms) && index > 0 {
        return in_permission(argument, real);
    }
    in_text(argument, real)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(domid: u16) -> u16 {
        if domid == 7 { 19 } else { domid }
    }

    #[test]
    fn ids_are_replaced_where_the_protocol_has_them() {
        let text = |text| in_text(text, &real);
        assert_eq!(
            text("/local/domain/7/x /local/domain/7"),
            "/local/domain/19/x /local/domain/19"
        );
        assert_eq!(text("/local/domain/77 /7"), "/local/domain/77 /7");
        assert_eq!(text("/local/domain//7"), "/local/domain//7");
        assert_eq!(text("@releaseDomain/7 domain 7: 7"), "@releaseDomain/19 domain 19: 7");
        let permission = |entry| in_permission(entry, &real);
        assert_eq!([permission("b7"), permission("x7"), permission("n7x")], ["b19", "x7", "n7x"]);
        let argument = |kind, at, first, text| in_argument(Some(kind), at, first, text, &real);
        assert_eq!(argument(Kind::Introduce, (0, 3), "7", "7"), "19");
        assert_eq!(argument(Kind::Introduce, (2, 3), "7", "7"), "7");
        assert_eq!(argument(Kind::Release, (0, 1), "", "\\s+007"), "\\s+0019");
        assert_eq!(argument(Kind::Release, (0, 1), "", "0x7"), "0x7");
        assert_eq!(argument(Kind::SetQuota, (0, 2), "7", "7"), "7");
        assert_eq!(argument(Kind::Control, (1, 2), "quota", "7"), "19");
        assert_eq!(argument(Kind::SetPerms, (1, 2), "a", "r7"), "r19");
        assert_eq!(argument(Kind::Write, (1, 2), "a", "7"), "7");
    }
}
