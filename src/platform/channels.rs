//! What event channels show about domains where Xen answers no questions: in a domain without the toolstack's flag
//! for xenstore domains, as `xl` builds them.
//!
//! When a domain dies, Xen closes its ports before it announces the death (`domain_kill` and `evtchn_destroy` in
//! `xen/common`). So by then our end of its channel has no peer any more. For a domain without a channel, the
//! server can only try whether it exists. Both need no right at all.
//!
//! This cannot show whether a domain has shut down; the flag would. It also cannot distinguish a death from a
//! living domain that closes its store port itself. Such a domain counts as gone, which harms nobody else. A port
//! that the server closes while the peer lives is only muted, since that domain's death would not show otherwise,
//! and Xen keeps a dead domain as long as the server maps its page.

use crate::proto::id::{DomId, EvtchnPort};
use crate::server::platform::{DomainState, PlatformError};
use alloc::collections::BTreeMap;
use xen_kernel_rt::abi::xen::errno;
use xen_kernel_rt::events::{self, PORTS, Peer, is_missing};
use xen_kernel_rt::start::Machine;
use xen_kernel_rt::{Refusal, console};

/// The domain to which this domain's own console and store channels also lead. It never dies.
const FIRST: DomId = DomId(0);

/// A channel to a domain.
#[derive(Clone, Copy, Debug)]
struct Channel {
    port: EvtchnPort,
    /// The server has closed it.
    muted: bool,
    /// Its peer was already gone in an earlier sweep.
    is_over: bool,
}

/// The channels to all domains, one each at most.
#[derive(Debug)]
pub(super) struct Channels {
    own_domid: Option<DomId>,
    of: BTreeMap<DomId, Channel>,
}

/// Binds a port of our own to one of another domain. It reports the end of all ports, since only the administrator
/// can do something about it.
pub(super) fn bind(domid: DomId, remote_port: u32) -> Result<EvtchnPort, PlatformError> {
    let bound = events::bind(domid, remote_port);
    if bound.as_ref().is_err_and(|error| error.code == errno::ENOSPC) {
        console::line(format_args!(
            "xen: no event channel is left for domain {domid}: this domain may have as many as it was built with, and {} at \
             most; each guest takes one",
            PORTS - 1
        ));
    }
    bound.map_err(|Refusal { call, code }| PlatformError { call, code })
}

/// Whether a port of our own has a peer.
fn has_peer(port: EvtchnPort) -> bool {
    matches!(events::peer(port), Ok(Peer::Bound(_)))
}

impl Channels {
    /// Finds the channels that an earlier image of this domain has bound.
    pub(super) fn new(own_domid: Option<DomId>) -> Self {
        let mut of = BTreeMap::new();
        for port in (1..PORTS).map(EvtchnPort) {
            // Behind the last port that has ever been used there is nothing to ask for.
            let Ok(peer) = events::peer(port) else { break };
            if let Peer::Bound(domid) | Peer::Unbound(domid) = peer {
                of.insert(domid, Channel { port, muted: false, is_over: false });
            }
        }
        Self { own_domid, of }
    }

    /// Binds, and remembers for whom.
    pub(super) fn bind(
        &mut self,
        machine: &Machine,
        domid: DomId,
        remote_port: u32,
    ) -> Result<EvtchnPort, PlatformError> {
        // One that only this table knows may hold the very port that is offered.
        let old = self.of.get(&domid).copied();
        if let Some(old) = old.filter(|old| old.muted || !has_peer(old.port)) {
            if domid != FIRST {
                close(machine, old);
            }
            self.of.remove(&domid);
        }
        let port = bind(domid, remote_port)?;
        self.of.insert(domid, Channel { port, muted: false, is_over: false });
        Ok(port)
    }

    /// Closes a port, or only mutes it as long as its peer lives.
    pub(super) fn unbind(&mut self, machine: &Machine, port: EvtchnPort) {
        let found = self.of.iter_mut().find(|(_, channel)| channel.port == port);
        match found {
            Some((_, channel)) if has_peer(port) => {
                channel.muted = true;
                machine.mute(port, true);
            }
            Some((&domid, &mut channel)) => {
                close(machine, channel);
                self.of.remove(&domid);
            }
            None => machine.close_port(port),
        }
    }

    /// Closes muted ports that have had no peer since the last time: in between the server has been told.
    pub(super) fn sweep(&mut self, machine: &Machine) {
        self.of.retain(|_, channel| {
            if channel.is_over {
                close(machine, *channel);
                return false;
            }
            channel.is_over = channel.muted && !has_peer(channel.port);
            true
        });
    }

    /// Whether a domain is gone; nothing else is known.
    pub(super) fn state(&self, domid: DomId) -> DomainState {
        if self.own_domid == Some(domid) {
            return DomainState::Unknown;
        }
        let is_gone = match self.of.get(&domid) {
            Some(channel) => !has_peer(channel.port),
            None => is_missing(domid),
        };
        if is_gone { DomainState::Gone } else { DomainState::Unknown }
    }
}

/// Closes a port for good. The next owner of its number is heard again.
fn close(machine: &Machine, channel: Channel) {
    machine.close_port(channel.port);
    if channel.muted {
        machine.mute(channel.port, false);
    }
}
