//! Whether the accounts are true: what domains are charged, and the server's own part, are together what the
//! allocator has handed out.
//!
//! Every structure knows how many bytes it takes of the allocator, and for how many of them domains are charged.
//! The rest is the server's own: pages and indices of tables, unused places in them, connections, requests that
//! are being read, and buffers that are kept. What several domains use is charged in full to each: names, places
//! with watches, and what a node has in reserve.
//!
//! So *accounts + the server's own - what is charged beyond what is taken = what is used*, to the byte.

use crate::mem::{block_bytes, room_bytes};
use crate::server::Server;
use crate::server::platform::Platform;
use crate::store::Sums;
use core::fmt::Arguments;

impl<P: Platform> Server<P> {
    /// The sums of the store and of all layers above it.
    fn all_sums(&self) -> Sums {
        let store = self.store.sums();
        let (charged, paid) = self.messages.charged();
        let own = [
            self.connections.taken(),
            self.messages.taken(),
            self.ports.taken(),
            self.domains.taken(),
            self.causes.taken(),
            self.timers.taken(),
            room_bytes(&self.existing),
            room_bytes(&self.reply),
            room_bytes(&self.said),
            block_bytes(self.command_line.capacity()),
            room_bytes(&self.options.complaints),
            self.upload.as_ref().map_or(0, |upload| upload.taken()),
            self.dump.as_ref().map_or(0, |dump| dump.taken()),
            self.checking.as_ref().map_or(0, |checking| checking.taken()),
        ];
        let complaints = self.options.complaints.iter().map(|line| block_bytes(line.capacity()));
        Sums {
            taken: own.into_iter().chain(complaints).fold(store.taken, usize::saturating_add),
            accounts: store.accounts,
            charged: store.charged.saturating_add(charged),
            paid: store.paid.saturating_add(paid),
        }
    }

    /// Compares the sums with each other, and with what the allocator says, of which `besides` bytes belong to the
    /// caller. It leaves out what cannot be compared: while something goes on, some nodes are nobody's.
    pub(in crate::server) fn check_sums(
        &self,
        besides: usize,
        report: &mut dyn FnMut(Arguments<'_>),
    ) {
        let Sums { taken, accounts, charged, paid } = self.all_sums();
        if let Some(held) = self.platform.held() {
            let used = self.platform.heap().used;
            let known = taken.saturating_add(held).saturating_add(besides);
            if used != known {
                report(format_args!("{used} bytes are used, of which {known} are known"));
            }
        }
        if accounts != charged && self.store.is_idle() && self.trash.is_empty() {
            let (own, beyond) = (taken.saturating_sub(paid), charged.saturating_sub(paid));
            report(format_args!(
                "the accounts say {accounts} bytes, of {taken} that are taken {own} are the server's, and {beyond} are \
                 charged beyond the rest"
            ));
        }
    }
}
