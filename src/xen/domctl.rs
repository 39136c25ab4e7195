//! What Xen says of other domains, by whichever call this Xen has.
//!
//! Xen 4.21 has a stable call that also tells which domain changed. Older ones have `getdomaininfo`, which
//! wants to hear the exact version of its interface; trying a few finds it. Without the right to ask, which
//! only the toolstack's flag for xenstore domains gives (`xl` does not), the answer is always "unknown", and `channels`
//! has to do.

use super::abi::domctl::{Domctl, GET_DOMAIN_STATE, GETDOMAININFO, info, state};
use super::abi::xen::errno;
use super::{console, hypercall};
use crate::proto::id::DomId;
use crate::server::platform::{Change, DomainState, Identity};
use core::ops::RangeInclusive;

/// Versions that are tried: 0x15 is Xen 4.17's, 0x18 4.22's; the rest is for releases to come.
const VERSIONS: RangeInclusive<u32> = 0x15..=0x20;

/// What is left without answers, for people.
const FALLBACK: &str =
    "their end will show in their event channels, and a shutdown will be announced for all of them";

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(super) enum Domctls {
    /// With `get_domain_state`.
    State,
    /// With `getdomaininfo` of this version.
    Info(u32),
    /// Not at all.
    Denied,
}

/// Asks, and returns the answer or a positive errno.
fn ask(cmd: u32, interface_version: u32, domain: DomId) -> Result<Domctl, i32> {
    let mut argument = Domctl { cmd, interface_version, domain: domain.0, ..Default::default() };
    // SAFETY: (1) the two commands of this file take no addresses; (2) they only answer questions.
    match unsafe { hypercall::perform_on_memory(&mut argument) } {
        Ok(_) => Ok(argument),
        Err(error) => Err(error.code),
    }
}

impl Domctls {
    /// Finds out what this Xen has, by asking about domain 0, and says so on the console.
    pub(super) fn probe() -> Self {
        let Err(stable) = ask(GET_DOMAIN_STATE, 0, DomId(0)) else {
            console::line(format_args!("xen: domain states by get_domain_state"));
            return Self::State;
        };
        // EACCES means another version, anything else that this was the right one.
        for version in VERSIONS {
            match ask(GETDOMAININFO, version, DomId(0)) {
                Ok(_) => {
                    console::line(format_args!(
                        "xen: domain states by getdomaininfo, version {version:#x}"
                    ));
                    return Self::Info(version);
                }
                Err(errno::EACCES) => {}
                Err(code) => {
                    console::line(format_args!(
                        "xen: XEN_DOMCTL_getdomaininfo failed with error {code}: this domain has no right to \
                         ask for the state of others; {FALLBACK}"
                    ));
                    return Self::Denied;
                }
            }
        }
        console::line(format_args!(
            "xen: XEN_DOMCTL_get_domain_state failed with error {stable}, and no version of \
             getdomaininfo is known here; {FALLBACK}"
        ));
        Self::Denied
    }

    /// Whether Xen answers nothing.
    pub(super) fn is_denied(self) -> bool {
        matches!(self, Self::Denied)
    }

    /// What Xen says of a domain.
    pub(super) fn state(self, domain: DomId) -> DomainState {
        let answer = match self {
            Self::State => ask(GET_DOMAIN_STATE, 0, domain),
            Self::Info(version) => ask(GETDOMAININFO, version, domain),
            Self::Denied => return DomainState::Unknown,
        };
        match answer {
            // getdomaininfo of old answers for the next higher domain if there is no such one.
            Ok(answer) if answer.domain != domain.0 => DomainState::Gone,
            Ok(answer) => self.read(&answer),
            // A caller that is not the control domain gets EPERM for a missing domain from 4.22 on.
            Err(errno::ESRCH | errno::EPERM | errno::ENOENT) => DomainState::Gone,
            Err(code) => {
                console::line(format_args!(
                    "xen: the state of domain {domain} is unknown: domctl failed with error {code}"
                ));
                DomainState::Unknown
            }
        }
    }

    /// The next domain that changed.
    pub(super) fn next_change(self) -> Change {
        match self {
            Self::State => match ask(GET_DOMAIN_STATE, 0, DomId::INVALID) {
                Ok(answer) => Change::Domain(DomId(answer.domain), self.read(&answer)),
                Err(errno::ENOENT) => Change::Done,
                // Only the domain that VIRQ_DOM_EXC is bound to may ask.
                Err(_) => Change::Unsupported,
            },
            Self::Info(_) | Self::Denied => Change::Unsupported,
        }
    }

    /// Reads an answer.
    fn read(self, answer: &Domctl) -> DomainState {
        match self {
            Self::State => {
                let bits = answer.first();
                if bits & state::EXIST == 0 || bits & state::DEAD != 0 {
                    DomainState::Gone
                } else {
                    let shutdown = bits & state::SHUTDOWN != 0;
                    let control = bits & state::CAP_CONTROL != 0;
                    let identity = Identity::Unique(answer.second());
                    DomainState::Exists { shutdown, control, identity }
                }
            }
            Self::Info(_) | Self::Denied => {
                let flags = answer.first() >> 32;
                if flags & info::DYING != 0 {
                    DomainState::Gone
                } else {
                    let shutdown = flags & info::SHUTDOWN != 0;
                    let (handle, cpu_time) = (answer.info_handle(), answer.info_cpu_time());
                    // The flags do not tell who has control.
                    let identity = Identity::Traits { handle, cpu_time };
                    DomainState::Exists { shutdown, control: false, identity }
                }
            }
        }
    }
}
