//! Questions about other domains.

use crate::abi::domctl::{Domctl, GET_DOMAIN_STATE, GETDOMAININFO};
use crate::id::DomId;

/// The questions. Neither takes an address, and asking changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// `XEN_DOMCTL_get_domain_state`; about no domain: which one has changed?
    State,
    /// `XEN_DOMCTL_getdomaininfo` of this version of the interface.
    Info(u32),
}

impl Question {
    /// The hypercall's argument.
    #[must_use]
    pub fn about(self, domain: DomId) -> Domctl {
        let (cmd, interface_version) = match self {
            Self::State => (GET_DOMAIN_STATE, 0),
            Self::Info(version) => (GETDOMAININFO, version),
        };
        Domctl { cmd, interface_version, domain: domain.0, ..Default::default() }
    }
}

/// Asks Xen.
///
/// # Errors
/// Its refusal, as a positive errno.
#[cfg(target_os = "none")]
pub fn ask(question: Question, domain: DomId) -> Result<Domctl, i32> {
    let mut argument = question.about(domain);
    // SAFETY: (1) a question takes no address; (2) it is only answered.
    match unsafe { crate::hypercall::perform_on_memory(&mut argument) } {
        Ok(_) => Ok(argument),
        Err(error) => Err(error.code),
    }
}
