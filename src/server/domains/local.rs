//! More connections of the privileged domain, beside the ring that Xen gave it.
//!
//! Where the server runs as a program, each client of its socket gets a connection of its own, as with the C
//! daemon. Its watches and transactions are its own, and end with it. The image does not use this.

use crate::mem::NoMemory;
use crate::proto::id::{ConnId, EvtchnPort};
use crate::server::Server;
use crate::server::platform::Platform;
use crate::server::rings::Connection;

impl<P: Platform> Server<P> {
    /// Serves one more ring with the rights of the privileged domain. The platform reports news of this ring by
    /// `port`.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn open_local(&mut self, ring: P::Ring, port: EvtchnPort) -> Result<ConnId, NoMemory> {
        let queue = self.promise_connection()?;
        let mut connection = Connection::new(self.privileged, ring, Some(port), queue);
        connection.privileged = true;
        connection.is_local = true;
        self.attach(connection, port)
    }

    /// Its client is gone, and with it its watches, its transactions and what waited for it.
    pub fn close_local(&mut self, id: ConnId) {
        if !self.connections.get(id).is_some_and(|connection| connection.is_local) {
            return;
        }
        let Some(connection) = self.detach(id) else { return };
        if let Some(port) = connection.port {
            let _ = self.ports.remove(port);
            self.platform.unbind(port);
        }
    }
}
