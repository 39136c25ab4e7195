//! Ports of this domain and their peers.

use crate::abi::event_channel::{
    AllocUnbound, BindInterdomain, BindVirq, Close, STATUS_INTERDOMAIN, STATUS_UNBOUND, Send,
    Status,
};
use crate::abi::xen::errno;
use crate::id::{DomId, EvtchnPort};
use crate::{DOMID_SELF, Refusal, hypercall};

/// The port that no domain can offer: Xen keeps it for itself.
const NO_PORT: u32 = 0;

/// The other end of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// This domain is bound to it.
    Bound(DomId),
    /// This domain may bind to it, or was bound to it and is not any more.
    Unbound(DomId),
    /// The port is free, or none between domains.
    None,
}

/// Binds a port of our own to one of another domain.
///
/// # Errors
/// Xen's refusal.
pub fn bind(domid: DomId, remote_port: u32) -> Result<EvtchnPort, Refusal> {
    let mut argument = BindInterdomain { remote_dom: domid.0, remote_port, ..Default::default() };
    hypercall::perform(&mut argument)?;
    Ok(EvtchnPort(argument.local_port))
}

/// Binds a port of our own to one of Xen's signals (`VIRQ_*`).
///
/// # Errors
/// Xen's refusal.
pub fn bind_virq(virq: u32) -> Result<EvtchnPort, Refusal> {
    let mut argument = BindVirq { virq, ..Default::default() };
    hypercall::perform(&mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// A new port for `peer` to bind to.
///
/// # Errors
/// Xen's refusal.
pub fn offer(peer: DomId) -> Result<EvtchnPort, Refusal> {
    let mut argument = AllocUnbound { dom: DOMID_SELF, remote_dom: peer.0, port: 0 };
    hypercall::perform(&mut argument)?;
    Ok(EvtchnPort(argument.port))
}

/// Gives a port up. One that is closed already is no harm.
pub fn close(port: EvtchnPort) {
    let _ = hypercall::perform(&mut Close { port: port.0 });
}

/// Signals the peer of a port. A peer that is gone is not an error.
pub fn signal(port: EvtchnPort) {
    let _ = hypercall::perform(&mut Send { port: port.0 });
}

/// The other end of a port of our own.
///
/// # Errors
/// Xen's refusal: behind the last port that has ever been used there is nothing to ask for.
pub fn peer(port: EvtchnPort) -> Result<Peer, Refusal> {
    let mut argument = Status { dom: DOMID_SELF, port: port.0, ..Default::default() };
    hypercall::perform(&mut argument)?;
    let [low, high, ..] = argument.u[0].to_le_bytes();
    let domid = DomId(u16::from_le_bytes([low, high]));
    Ok(match argument.status {
        STATUS_INTERDOMAIN => Peer::Bound(domid),
        // Xen still names the peer of a port that has lost it.
        STATUS_UNBOUND => Peer::Unbound(domid),
        _ => Peer::None,
    })
}

/// Whether there is no such domain. Xen checks the domain before it refuses the port, or finds that there is none left:
/// nothing to report, since none was wanted.
#[must_use]
pub fn is_missing(domid: DomId) -> bool {
    bind(domid, NO_PORT).is_err_and(|error| error.code == errno::ESRCH)
}
