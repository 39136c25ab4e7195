//! What Xen says about other domains, by whichever call this Xen has.
//!
//! | Xen | `get_domain_state` | `getdomaininfo` | a missing domain |
//! |---|---|---|---|
//! | 4.15 | - | version 0x13 | the next higher one answers, else ESRCH |
//! | 4.16 | - | 0x14 | as 4.15 |
//! | 4.17 | - | 0x15 | as 4.15 |
//! | 4.18 | - | 0x16 | ESRCH |
//! | 4.19, 4.20 | - | 0x17 | ESRCH |
//! | 4.21 | yes | 0x17 | ESRCH |
//! | 4.22 | yes | 0x18 | EPERM, since this domain is not the control domain |
//!
//! Source: `xen/include/public/domctl.h` and `xen/common/domctl.c` at the tags of these releases. The fields of
//! `struct xen_domctl_getdomaininfo` that are read are at the same place in all of them. `get_domain_state` is
//! stable: its version is always 0. EPERM may mean that there is no such domain, or that a security policy refuses
//! to tell about one that lives. A refusal is no death. Then event channels decide, which say ESRCH only for a
//! missing domain.
//!
//! A version that is not Xen's own gets EACCES. Only the toolstack's flag for xenstore domains gives the right to
//! ask, and `xl` does not set it. Without that right, the answer to the right version is EPERM, and `channels` is
//! used instead.

use crate::proto::id::{DomId, EvtchnPort};
use crate::server::platform::{Change, DomainState, Identity, PlatformError};
use core::fmt;
use core::ops::RangeInclusive;
use xen_kernel_rt::abi::domctl::{Domctl, info, state};
use xen_kernel_rt::abi::xen::errno;
use xen_kernel_rt::domains::Question;

/// Versions of `getdomaininfo` whose structure is known.
const KNOWN: RangeInclusive<u32> = 0x13..=0x18;
/// Versions of future releases. They are tried, but not believed without a test.
const TO_COME: RangeInclusive<u32> = 0x19..=0x20;

/// Xen and the console as this file needs them; tests put other releases in their place.
pub(super) trait Hypervisor {
    /// Asks, and returns the answer or a positive errno.
    fn ask(&mut self, question: Question, domain: DomId) -> Result<Domctl, i32>;

    /// Binds `VIRQ_DOM_EXC`.
    fn bind_dom_exc(&mut self) -> Result<EvtchnPort, PlatformError>;

    /// Whether Xen has no such domain, not even a dying one. `false` where it does not say.
    fn is_missing(&mut self, domain: DomId) -> bool;

    /// This domain's id, where Xen tells.
    fn own_domid(&self) -> Option<DomId>;

    /// Prints a line on the console.
    fn say(&mut self, line: fmt::Arguments<'_>);
}

/// The port with the news that some domain changed, unless Xen gives it to another domain (from 4.21 on; older
/// ones give the port to everybody, and the news to the domain that the toolstack chose).
pub(super) fn bind_changes(xen: &mut impl Hypervisor) -> Option<EvtchnPort> {
    let bound = xen.bind_dom_exc();
    if let Err(error) = &bound {
        xen.say(format_args!(
            "xen: no VIRQ_DOM_EXC ({error}): the toolstack has not routed it to this domain, so the end of \
             other domains is seen only when the toolstack releases them"
        ));
    }
    bound.ok()
}

/// How to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    By(Question),
    /// By `getdomaininfo` of a version newer than this program: only its flags are read.
    ByFlags(Question),
    /// Not at all.
    Denied,
}

/// What Xen says of other domains.
#[derive(Debug)]
pub(super) struct Domctls {
    way: Way,
    /// An unexpected refusal has been reported: the next ones would say the same.
    has_complained: bool,
}

impl Domctls {
    /// Finds out what this Xen has, by asking about domain 0, and says so on the console.
    pub(super) fn probe(xen: &mut impl Hypervisor) -> Self {
        Self { way: find_way(xen), has_complained: false }
    }

    /// Whether Xen answers nothing.
    pub(super) fn is_denied(&self) -> bool {
        self.way == Way::Denied
    }

    /// What Xen says of a domain.
    pub(super) fn state(&mut self, xen: &mut impl Hypervisor, domain: DomId) -> DomainState {
        let (Way::By(question) | Way::ByFlags(question)) = self.way else {
            return DomainState::Unknown;
        };
        match xen.ask(question, domain) {
            Ok(answer) if answer.domain != domain.0 => DomainState::Gone,
            Ok(answer) => self.read(&answer),
            Err(errno::ESRCH | errno::ENOENT) => DomainState::Gone,
            Err(errno::EPERM) if xen.is_missing(domain) => DomainState::Gone,
            Err(code) => {
                if !self.has_complained {
                    self.has_complained = true;
                    xen.say(format_args!(
                        "xen: the state of domain {domain} is unknown (domctl failed with error {code}); \
                         the next such answers are not reported"
                    ));
                }
                DomainState::Unknown
            }
        }
    }

    /// The next domain that changed.
    pub(super) fn next_change(&self, xen: &mut impl Hypervisor) -> Change {
        if self.way != Way::By(Question::State) {
            return Change::Unsupported;
        }
        match xen.ask(Question::State, DomId::INVALID) {
            Ok(answer) => Change::Domain(DomId(answer.domain), self.read(&answer)),
            Err(errno::ENOENT) => Change::Done,
            // Only the domain that VIRQ_DOM_EXC is bound to may ask.
            Err(_) => Change::Unsupported,
        }
    }

    /// Reads an answer.
    fn read(&self, answer: &Domctl) -> DomainState {
        match self.way {
            Way::Denied => DomainState::Unknown,
            Way::By(Question::State) => {
                let bits = answer.first();
                if bits & state::EXIST == 0 || bits & state::DEAD != 0 {
                    return DomainState::Gone;
                }
                let shutdown = bits & state::SHUTDOWN != 0;
                let control = bits & state::CAP_CONTROL != 0;
                DomainState::Exists {
                    shutdown,
                    control,
                    identity: Identity::Unique(answer.second()),
                }
            }
            Way::By(Question::Info(_)) | Way::ByFlags(_) => {
                let flags = answer.flags();
                if flags & info::DYING != 0 {
                    return DomainState::Gone;
                }
                let identity = if let Way::ByFlags(_) = self.way {
                    Identity::Unknown
                } else {
                    Identity::Traits {
                        handle: answer.info_handle(),
                        cpu_time: answer.info_cpu_time(),
                    }
                };
                // The flags do not tell who has control.
                let shutdown = flags & info::SHUTDOWN != 0;
                DomainState::Exists { shutdown, control: false, identity }
            }
        }
    }
}

/// The best way that Xen allows. Each outcome is one line on the console.
fn find_way(xen: &mut impl Hypervisor) -> Way {
    let Err(stable) = xen.ask(Question::State, DomId(0)) else {
        xen.say(format_args!("xen: domain states by get_domain_state"));
        return Way::By(Question::State);
    };
    for version in (*KNOWN.start()..=*TO_COME.end()).rev() {
        let question = Question::Info(version);
        match xen.ask(question, DomId(0)) {
            Err(errno::EACCES) => {}
            Err(code) => {
                xen.say(format_args!(
                    "xen: no right to ask for the state of domains (get_domain_state failed with error \
                     {stable}, getdomaininfo of version {version:#x} with error {code}): was this domain \
                     built as a xenstore domain?"
                ));
                return Way::Denied;
            }
            Ok(_) if KNOWN.contains(&version) => {
                xen.say(format_args!("xen: domain states by getdomaininfo, version {version:#x}"));
                return Way::By(question);
            }
            Ok(_) if is_understood(xen, question) => {
                xen.say(format_args!(
                    "xen: domain states by getdomaininfo, version {version:#x}: newer than this program, so \
                     only its flags are believed"
                ));
                return Way::ByFlags(question);
            }
            Ok(_) => {
                xen.say(format_args!(
                    "xen: no way to ask for the state of domains (get_domain_state failed with error \
                     {stable}, getdomaininfo of version {version:#x} is not understood)"
                ));
                return Way::Denied;
            }
        }
    }
    xen.say(format_args!(
        "xen: no way to ask for the state of domains (get_domain_state failed with error {stable}, \
         getdomaininfo has none of the versions {:#x} to {:#x})",
        KNOWN.start(),
        TO_COME.end()
    ));
    Way::Denied
}

/// Whether the flags of an unknown version are where they have always been: the known flags of this domain must be
/// in them. A wrong bit taken for a dead domain would cost a living one its connection.
fn is_understood(xen: &mut impl Hypervisor, question: Question) -> bool {
    let Some(own) = xen.own_domid() else { return false };
    let Ok(answer) = xen.ask(question, own) else { return false };
    let expected = info::HVM_GUEST | info::XS_DOMAIN | info::RUNNING;
    let shown = answer.flags() & (expected | info::DYING | info::SHUTDOWN | info::PAUSED);
    answer.domain == own.0 && answer.first() & 0xffff == u64::from(own.0) && shown == expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    /// What a missing domain is answered with.
    #[derive(Clone, Copy, Debug)]
    enum Missing {
        NextHigher,
        Esrch,
        Eperm,
    }

    /// Who `VIRQ_DOM_EXC` is given to.
    #[derive(Clone, Copy, Debug)]
    enum Virq {
        Everybody,
        HandlerOnly,
    }

    /// A domain as Xen has it.
    #[derive(Clone, Copy, Debug)]
    struct Simulated {
        domid: u16,
        flags: u64,
        unique: u64,
    }

    /// A release of Xen, as the table at the top of this file has it.
    #[derive(Clone, Debug)]
    struct Xen {
        has_state: bool,
        version: u32,
        missing: Missing,
        virq: Virq,
        /// The toolstack made this domain a xenstore domain and the handler of `VIRQ_DOM_EXC`.
        is_xenstore: bool,
        /// A security policy refuses this call in any case.
        forbidden: Option<Question>,
        /// A security policy refuses to tell of this domain.
        secret: Option<u16>,
        /// The structure has become another one: its words are so many places further on.
        shift: usize,
        domains: Vec<Simulated>,
        changed: Vec<u16>,
        lines: Vec<String>,
    }

    const OWN: DomId = DomId(1);
    const LIVE: u64 = info::HVM_GUEST;

    fn xen(has_state: bool, version: u32, missing: Missing, virq: Virq) -> Xen {
        let domains = [
            Simulated { domid: 0, flags: 0, unique: 100 },
            Simulated { domid: 1, flags: LIVE | info::XS_DOMAIN | info::RUNNING, unique: 101 },
            Simulated { domid: 5, flags: LIVE, unique: 105 },
            Simulated { domid: 6, flags: LIVE | info::SHUTDOWN, unique: 106 },
            Simulated { domid: 7, flags: LIVE | info::DYING, unique: 107 },
        ];
        Xen {
            has_state,
            version,
            missing,
            virq,
            is_xenstore: true,
            forbidden: None,
            secret: None,
            shift: 0,
            domains: domains.to_vec(),
            changed: [0, 1, 5, 9].to_vec(),
            lines: Vec::new(),
        }
    }

    /// The release with this number.
    fn release(name: &str) -> Xen {
        use Missing::{Eperm, Esrch, NextHigher};
        use Virq::{Everybody, HandlerOnly};
        match name {
            "4.15" => xen(false, 0x13, NextHigher, Everybody),
            "4.16" => xen(false, 0x14, NextHigher, Everybody),
            "4.17" => xen(false, 0x15, NextHigher, Everybody),
            "4.18" => xen(false, 0x16, Esrch, Everybody),
            "4.19" | "4.20" => xen(false, 0x17, Esrch, Everybody),
            "4.21" => xen(true, 0x17, Esrch, HandlerOnly),
            "4.22" => xen(true, 0x18, Eperm, HandlerOnly),
            "4.30" => xen(true, 0x2a, Eperm, HandlerOnly),
            _ => unreachable!("no such release"),
        }
    }

    const OLD: [&str; 6] = ["4.15", "4.16", "4.17", "4.18", "4.19", "4.20"];
    const NEW: [&str; 3] = ["4.21", "4.22", "4.30"];

    impl Xen {
        fn answer(&self, question: Question, domain: &Simulated) -> Domctl {
            let mut answer = question.about(DomId(domain.domid));
            match question {
                Question::State => {
                    let shutdown =
                        if domain.flags & info::SHUTDOWN == 0 { 0 } else { state::SHUTDOWN };
                    let dead = if domain.flags & info::DYING == 0 { 0 } else { state::DEAD };
                    let control = if domain.domid == 0 { state::CAP_CONTROL } else { 0 };
                    answer.u[0] = state::EXIST | shutdown | dead | control;
                    answer.u[1] = domain.unique;
                }
                Question::Info(_) => {
                    answer.u[self.shift] = u64::from(domain.domid) | domain.flags << 32;
                    // cpu_time, and the first byte of the handle
                    answer.u[self.shift + 7] = domain.unique * 1000;
                    answer.u[self.shift + 9] = domain.unique << 32;
                }
            }
            answer
        }

        fn changed(&mut self) -> Result<Domctl, i32> {
            if self.changed.is_empty() {
                return Err(errno::ENOENT);
            }
            let domid = self.changed.remove(0);
            match self.domains.iter().find(|domain| domain.domid == domid) {
                Some(domain) => Ok(self.answer(Question::State, domain)),
                None => Ok(Question::State.about(DomId(domid))),
            }
        }
    }

    impl Hypervisor for Xen {
        // In the order of do_domctl().
        fn ask(&mut self, question: Question, domain: DomId) -> Result<Domctl, i32> {
            let fits = match question {
                Question::State => self.has_state,
                Question::Info(version) => self.version == version,
            };
            if !fits || self.forbidden == Some(question) {
                return Err(errno::EACCES);
            }
            let nobody = question == Question::State && domain == DomId::INVALID;
            let mut found = self.domains.iter().find(|other| other.domid == domain.0);
            if found.is_none() && !nobody {
                match self.missing {
                    Missing::Eperm => return Err(errno::EPERM),
                    Missing::Esrch => return Err(errno::ESRCH),
                    Missing::NextHigher => {
                        found = self.domains.iter().find(|other| other.domid > domain.0);
                    }
                }
            }
            if !self.is_xenstore || self.secret == Some(domain.0) {
                return Err(errno::EPERM);
            }
            if nobody {
                return self.changed();
            }
            found.map(|found| self.answer(question, found)).ok_or(errno::ESRCH)
        }

        fn bind_dom_exc(&mut self) -> Result<EvtchnPort, PlatformError> {
            match self.virq {
                Virq::HandlerOnly if !self.is_xenstore => {
                    Err(PlatformError { call: "EVTCHNOP_bind_virq", code: 16 })
                }
                Virq::HandlerOnly | Virq::Everybody => Ok(EvtchnPort(7)),
            }
        }

        fn is_missing(&mut self, domain: DomId) -> bool {
            !self.domains.iter().any(|other| other.domid == domain.0)
        }

        fn own_domid(&self) -> Option<DomId> {
            Some(OWN)
        }

        fn say(&mut self, line: fmt::Arguments<'_>) {
            self.lines.push(format!("{line}"));
        }
    }

    fn exists(state: DomainState) -> Option<bool> {
        match state {
            DomainState::Exists { shutdown, .. } => Some(shutdown),
            DomainState::Gone | DomainState::Unknown => None,
        }
    }

    /// Starts on a release: the way that is found, and everything that is said.
    fn start(xen: &mut Xen) -> (Domctls, Option<EvtchnPort>) {
        let changes = bind_changes(xen);
        (Domctls::probe(xen), changes)
    }

    #[test]
    fn every_release_tells_who_lives() {
        for name in OLD.into_iter().chain(NEW) {
            let mut xen = release(name);
            let (mut domctls, changes) = start(&mut xen);
            assert_eq!(changes, Some(EvtchnPort(7)), "{name}");
            let expected = if NEW.contains(&name) {
                String::from("xen: domain states by get_domain_state")
            } else {
                format!("xen: domain states by getdomaininfo, version {:#x}", xen.version)
            };
            assert_eq!(xen.lines, [expected], "{name}");
            let mut state = |domid| domctls.state(&mut xen, DomId(domid));
            assert_eq!(exists(state(0)), Some(false), "{name}");
            assert_eq!(exists(state(5)), Some(false), "{name}");
            assert_eq!(exists(state(6)), Some(true), "{name}");
            // Dead; missing with another one behind it; missing and the last one.
            for gone in [7, 3, 9] {
                assert_eq!(state(gone), DomainState::Gone, "{name}: {gone}");
            }
            assert_eq!(xen.lines.len(), 1, "{name}");
        }
    }

    #[test]
    fn identities_are_the_best_that_a_release_has() {
        for name in OLD {
            let mut xen = release(name);
            let state = start(&mut xen).0.state(&mut xen, DomId(5));
            let mut handle = [0; 16];
            handle[0] = 105;
            let identity = Identity::Traits { handle, cpu_time: 105_000 };
            assert_eq!(state, DomainState::Exists { shutdown: false, control: false, identity });
        }
        for name in NEW {
            let mut xen = release(name);
            let state = start(&mut xen).0.state(&mut xen, DomId(0));
            let identity = Identity::Unique(100);
            assert_eq!(state, DomainState::Exists { shutdown: false, control: true, identity });
        }
    }

    #[test]
    fn changes_are_listed_from_4_21_on() {
        for name in NEW {
            let mut xen = release(name);
            let (domctls, _) = start(&mut xen);
            let mut seen = Vec::new();
            while let Change::Domain(domid, state) = domctls.next_change(&mut xen) {
                seen.push((domid.0, exists(state)));
            }
            let live = Some(false);
            assert_eq!(seen, [(0, live), (1, live), (5, live), (9, None)], "{name}");
            assert_eq!(domctls.next_change(&mut xen), Change::Done, "{name}");
        }
        for name in OLD {
            let mut xen = release(name);
            assert_eq!(start(&mut xen).0.next_change(&mut xen), Change::Unsupported, "{name}");
        }
    }

    #[test]
    fn without_the_right_to_ask_nothing_is_known_and_that_is_said() {
        for name in OLD.into_iter().chain(NEW) {
            let mut xen = release(name);
            xen.is_xenstore = false;
            let (mut domctls, changes) = start(&mut xen);
            assert!(domctls.is_denied(), "{name}");
            assert_eq!(domctls.state(&mut xen, DomId(5)), DomainState::Unknown, "{name}");
            assert_eq!(domctls.next_change(&mut xen), Change::Unsupported, "{name}");
            let virq = "xen: no VIRQ_DOM_EXC (EVTCHNOP_bind_virq failed with error 16): the toolstack has not \
                        routed it to this domain, so the end of other domains is seen only when the \
                        toolstack releases them";
            let (stable, version) = match name {
                "4.30" => (1, None),
                name => (if NEW.contains(&name) { 1 } else { 13 }, Some(xen.version)),
            };
            let right = match version {
                Some(version) => format!(
                    "xen: no right to ask for the state of domains (get_domain_state failed with error {stable}, \
                     getdomaininfo of version {version:#x} with error 1): was this domain built as a xenstore \
                     domain?"
                ),
                None => String::from(
                    "xen: no way to ask for the state of domains (get_domain_state failed with error 1, \
                     getdomaininfo has none of the versions 0x13 to 0x20)",
                ),
            };
            if NEW.contains(&name) {
                assert_eq!(changes, None, "{name}");
                assert_eq!(xen.lines, [String::from(virq), right], "{name}");
            } else {
                // These give the port to everybody, and nothing ever comes through it.
                assert_eq!(changes, Some(EvtchnPort(7)), "{name}");
                assert_eq!(xen.lines, [right], "{name}");
            }
        }
    }

    #[test]
    fn a_policy_against_the_stable_call_leaves_the_other_one() {
        for (name, version) in [("4.21", "0x17"), ("4.22", "0x18")] {
            let mut xen = release(name);
            xen.forbidden = Some(Question::State);
            let (mut domctls, _) = start(&mut xen);
            let line = format!("xen: domain states by getdomaininfo, version {version}");
            assert_eq!(xen.lines, [line]);
            assert_eq!(exists(domctls.state(&mut xen, DomId(6))), Some(true));
            assert_eq!(domctls.state(&mut xen, DomId(9)), DomainState::Gone);
        }
    }

    #[test]
    fn an_unknown_structure_is_believed_as_far_as_it_can_be_checked() {
        let mut xen = release("4.22");
        xen.forbidden = Some(Question::State);
        xen.version = 0x19;
        let (mut domctls, _) = start(&mut xen);
        let line = "xen: domain states by getdomaininfo, version 0x19: newer than this program, so only its flags \
                    are believed";
        assert_eq!(xen.lines, [line]);
        let identity = Identity::Unknown;
        let state = DomainState::Exists { shutdown: true, control: false, identity };
        assert_eq!(domctls.state(&mut xen, DomId(6)), state);
        assert_eq!(domctls.state(&mut xen, DomId(7)), DomainState::Gone);

        let mut xen = release("4.22");
        xen.forbidden = Some(Question::State);
        xen.version = 0x19;
        xen.shift = 1;
        let (mut domctls, _) = start(&mut xen);
        let line = "xen: no way to ask for the state of domains (get_domain_state failed with error 13, \
                    getdomaininfo of version 0x19 is not understood)";
        assert_eq!(xen.lines, [line]);
        assert_eq!(domctls.state(&mut xen, DomId(6)), DomainState::Unknown);
    }

    #[test]
    fn a_refusal_to_tell_of_a_domain_is_not_its_death() {
        for name in OLD.into_iter().chain(NEW) {
            let mut xen = release(name);
            let (mut domctls, _) = start(&mut xen);
            xen.secret = Some(5);
            assert_eq!(domctls.state(&mut xen, DomId(5)), DomainState::Unknown, "{name}");
            // Others are told of as before, and when it is gone that is seen.
            assert_eq!(exists(domctls.state(&mut xen, DomId(6))), Some(true), "{name}");
            assert_eq!(domctls.state(&mut xen, DomId(9)), DomainState::Gone, "{name}");
            xen.domains.retain(|domain| domain.domid != 5);
            assert_eq!(domctls.state(&mut xen, DomId(5)), DomainState::Gone, "{name}");
        }
    }

    #[test]
    fn an_odd_refusal_is_reported_once() {
        let mut xen = release("4.17");
        let (mut domctls, _) = start(&mut xen);
        xen.forbidden = Some(Question::Info(0x15));
        for _ in 0..3 {
            assert_eq!(domctls.state(&mut xen, DomId(5)), DomainState::Unknown);
        }
        let line = "xen: the state of domain 5 is unknown (domctl failed with error 13); the next such answers are \
                    not reported";
        assert_eq!(xen.lines[1..], [line]);
    }
}
