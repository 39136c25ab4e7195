//! Payloads of every type: everything that is read out of a payload lies in it, and reading never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::request::{Grammar, Request};
use xenstore_stubdom::proto::text;
use xenstore_stubdom::proto::wire::Kind;

fuzz_target!(|input: (u8, u32, bool, &[u8])| {
    let (kind, features, privileged, payload) = input;
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    let inside = |part: &[u8]| {
        let (from, to) = (payload.as_ptr_range(), part.as_ptr_range());
        assert!(part.is_empty() || (from.start <= to.start && to.end <= from.end));
    };
    match Request::parse(kind, payload, Grammar { features, privileged }) {
        Ok(Request::SetPerms { path, perms }) => {
            inside(path);
            assert!(perms.count() > 0 && perms.iter().count() == perms.count());
        }
        Ok(Request::Write { path, value }) => {
            inside(path);
            inside(value);
            assert_eq!(path.len() + 1 + value.len(), payload.len());
        }
        Ok(Request::Watch { path, token, depth }) => {
            assert!(!path.contains(&0) && !token.contains(&0));
            assert!(depth.is_none() || features & 4 != 0);
        }
        Ok(Request::Introduce { .. } | Request::SetTarget { .. } | Request::Control { .. }) => {
            assert!(text::count_strings(payload) > 0);
        }
        Ok(_) | Err(_) => {}
    }
    let _ = (text::domid(payload), text::permission_domid(payload), text::atoi(payload));
    assert_eq!(text::strings(payload).count(), text::count_strings(payload));
});
