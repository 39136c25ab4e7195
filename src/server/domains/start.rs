//! The server's first steps: it finds out who has control and who waits for it, and sends the event that starts
//! the first domain.
//!
//! Source: "C xenstored 4.22 behaviour"; for the page words, `docs/misc/xenstore-ring.txt`.

use super::lifecycle::CHANGES_PER_SCAN;
use crate::mem::TryVec;
use crate::proto::id::DomId;
use crate::proto::ring::{RingPage, Word};
use crate::server::Server;
use crate::server::platform::{Change, DomainState, Identity, Platform};
use alloc::vec::Vec;

/// Where Xen does not list the domains, those below this domid are tried one by one: a builder that starts domains
/// before this one counts up from 1.
const LOW_DOMIDS: u16 = 256;

/// The domains that exist when the server starts, and the first of them that has control, if Xen shows it.
pub(in crate::server) fn find_existing<P: Platform>(
    platform: &mut P,
) -> (Vec<DomId>, Option<DomId>) {
    let (mut existing, mut first) = (Vec::new(), None);
    for _ in 0..CHANGES_PER_SCAN {
        match platform.next_change() {
            Change::Domain(domid, DomainState::Exists { control, .. }) => {
                // Whoever finds no place here is introduced by the toolstack.
                let _is_in = existing.try_push(domid);
                if control && first.is_none() {
                    first = Some(domid);
                }
            }
            Change::Domain(_, DomainState::Gone | DomainState::Unknown) => {}
            Change::Done => break,
            Change::Unsupported => {
                for domid in (1..LOW_DOMIDS).map(DomId) {
                    if platform.domain_state(domid) != DomainState::Gone {
                        let _is_in = existing.try_push(domid);
                    }
                }
                break;
            }
        }
    }
    (existing, first)
}

impl<P: Platform> Server<P> {
    /// Serves the domain that the toolstack named on the command line, or that left its port in its page. Its ring
    /// is not reset: requests may wait in it. Its kernel starts with the first event that it gets, so that event
    /// comes last.
    pub(in crate::server) fn open_first(&mut self) {
        let domid = self.options.first_domain;
        let identity = self.identity(domid);
        let page = self.platform.map_ring(domid);
        // A command line that is written before the port exists cannot name it.
        let named = page.as_ref().map_or(0, |page| page.load(Word::EvtchnPort));
        let port = self.options.event_port.unwrap_or(named);
        if port == 0 {
            self.platform.log(format_args!(
                "no option --event, and no port in the ring page: domain {domid} is not served until it \
                 is introduced"
            ));
        }
        let page = match page {
            Ok(page) if port != 0 => page,
            Ok(_) => return,
            Err(error) => {
                let what = "its ring cannot be mapped";
                self.platform.log(format_args!("domain {domid}: {what}: {error}"));
                return;
            }
        };
        if let Some(domain) = self.domains.get_mut(domid) {
            domain.identity = identity;
        }
        self.connect_existing(domid, page, port, identity);
    }

    /// Serves the domains that were there before the server and whose builder left a port in their page. The
    /// toolstack introduces all others.
    pub(in crate::server) fn open_existing(&mut self) {
        for domid in core::mem::take(&mut self.existing) {
            if self.own_domid == Some(domid) || self.connection_of(domid).is_some() {
                continue;
            }
            // Most grant nothing to this domain.
            let Ok(page) = self.platform.map_ring(domid) else { continue };
            let port = page.load(Word::EvtchnPort);
            if port != 0 {
                let identity = self.identity(domid);
                self.connect_existing(domid, page, port, identity);
            }
            if self.connection_of(domid).is_some() {
                self.platform.log(format_args!("domain {domid} was there before, and is served"));
            }
        }
    }

    /// Connects a domain that may have written requests already.
    fn connect_existing(&mut self, domid: DomId, page: P::Ring, port: u32, identity: Identity) {
        let Ok(id) = self.open(domid, page, port, identity) else { return };
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.ring.store(Word::Connection, 0);
        if let Some(port) = connection.port {
            self.platform.notify(port);
        }
        self.mark_ready(id);
    }
}
