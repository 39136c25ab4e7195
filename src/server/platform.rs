//! What the server needs from the world, as one trait.
//!
//! It is implemented twice: by `platform` with hypercalls, and by `sim` with a seed. The trait belongs to the server. A
//! method that the simulated world cannot honour would show that the design is wrong.

use crate::proto::id::{DomId, EvtchnPort};
use crate::proto::ring::RingPage;
use crate::proto::sentence::Sentence;
use crate::proto::stream::Sink;
use core::fmt;

/// A refusal of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlatformError {
    /// The call that failed, by its public name (for example `GNTTABOP_map_grant_ref`).
    pub call: &'static str,
    /// The error, as a positive errno or GNTST number of that call.
    pub code: i32,
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed with error {}", self.call, self.code)
    }
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A peer signalled on this port.
    Port(EvtchnPort),
    /// Some domain came, went or shut down (VIRQ_DOM_EXC).
    DomainChange,
}

/// What distinguishes a domain from an earlier one with the same domid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// A number that no two domains share (Xen 4.21 on).
    Unique(u64),
    /// What older ones show: a name that the toolstack chose, and may change, and a clock.
    Traits {
        /// The domain's handle, usually the UUID of its configuration.
        handle: [u8; 16],
        /// Nanoseconds that it has run. This never goes down.
        cpu_time: u64,
    },
    /// Nothing.
    Unknown,
}

impl Identity {
    /// Whether the domain that looks like `now` is another one than the one that looked like `self`.
    ///
    /// Without a unique number this is a judgement. `held` says that the server maps a page of it. Xen gives a
    /// domid away only when the last page of its domain is free, so a new handle of a held domain means that a
    /// toolstack has renamed a living domain. A new handle of a domain that is not held means another domain. A
    /// domain that has run for less time than before is another one in any case.
    #[must_use]
    pub fn is_replaced_by(self, now: Self, held: bool) -> bool {
        match (self, now) {
            (Self::Unique(before), Self::Unique(now)) => before != now,
            (
                Self::Traits { handle: before, cpu_time: ran },
                Self::Traits { handle: now, cpu_time: runs },
            ) => runs < ran || !held && before != now,
            _ => false,
        }
    }
}

/// What Xen says about one domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainState {
    /// There is no such domain, or only its structure is left (the state `dead`).
    Gone,
    /// The domain exists.
    Exists {
        /// It has shut down or crashed, and waits for the toolstack.
        shutdown: bool,
        /// Xen lets it build and destroy domains.
        control: bool,
        /// What distinguishes it from earlier domains with its domid.
        identity: Identity,
    },
    /// Xen does not let this domain ask.
    Unknown,
}

/// An answer to "which domain changed next?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// This one; ask again for more.
    Domain(DomId, DomainState),
    /// No more domains.
    Done,
    /// This Xen has no such call: look at every domain with [`Platform::domain_state`].
    Unsupported,
}

/// Figures of the memory that the server lives in, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeapStats {
    /// Handed out.
    pub used: usize,
    /// Taken from the domain's memory so far, used or not.
    pub size: usize,
    /// What `size` can still grow to.
    pub limit: usize,
    /// What is left for blocks of any size, growth included: less than `limit` without `used`, since
    /// small blocks are cut from pages of their own.
    pub free: usize,
}

/// The world as the server sees it.
pub trait Platform {
    /// A mapped ring page; unmapped when dropped.
    type Ring: RingPage;

    /// Memory for the hand-over, which a successor finds again.
    type Region: Sink;

    /// Milliseconds since some fixed moment, the same one for a successor; never goes back.
    fn now_ms(&self) -> u64;

    /// As [`now_ms`](Self::now_ms), but as old as the hypervisor's last word on the time may be: about a second.
    /// It does not read the time stamp counter. Xen traps that on hosts where it is no clock, and for domains that
    /// came from elsewhere, and a trap alone would cost as much as the rest of a request.
    fn rough_ms(&self) -> u64;

    /// Microseconds since some fixed moment, the same one for a successor, as precise as the clock is. For figures
    /// only.
    fn now_us(&self) -> u64;

    /// The domid of the domain that the server runs in, where Xen tells.
    fn own_domid(&self) -> Option<DomId>;

    /// A key for hash tables that guests cannot guess; the same on every call.
    fn hash_seed(&self) -> u64;

    /// The next thing that happened, without waiting. Each signal is reported at least once
    /// after it was sent; several signals on one port may be reported as one.
    fn next_event(&mut self) -> Option<Event>;

    /// Sleeps until something happens or `now_ms` reaches `deadline_ms`. Returns at once if something
    /// has already happened; may return early for no reason.
    fn wait(&mut self, deadline_ms: Option<u64>);

    /// Whether the ring of the first domain is left unread on purpose; told when it changes, or again. Whoever watches from
    /// outside can then tell a server that waits from one that is silent.
    fn hold_back(&mut self, _is_held: bool) {}

    /// Maps the ring page of a domain (its grant entry 1).
    ///
    /// # Errors
    /// The hypervisor's refusal, for example where the domain grants nothing.
    fn map_ring(&mut self, domid: DomId) -> Result<Self::Ring, PlatformError>;

    /// Binds a port of our own to `remote_port` of a domain.
    ///
    /// # Errors
    /// The hypervisor's refusal, for example where the port is not offered to us.
    fn bind(&mut self, domid: DomId, remote_port: u32) -> Result<EvtchnPort, PlatformError>;

    /// Closes a port. Never fails; a port that is gone already is fine.
    fn unbind(&mut self, port: EvtchnPort);

    /// Signals the peer of a port. A peer that is gone is not an error.
    fn notify(&mut self, port: EvtchnPort);

    /// What Xen says about a domain.
    fn domain_state(&mut self, domid: DomId) -> DomainState;

    /// The next domain whose state changed since it was last reported here; at the start that is every
    /// domain that exists.
    fn next_change(&mut self) -> Change;

    /// Tries to have at least `bytes` of heap free, and lets the heap grow where possible. `false` if fewer are
    /// free.
    fn reserve(&mut self, bytes: usize) -> bool;

    /// The heap's figures.
    fn heap(&self) -> HeapStats;

    /// Bytes of the heap's `used` that the platform itself holds. `None` where nobody knows, or where the server
    /// has no heap of its own.
    fn held(&self) -> Option<usize> {
        None
    }

    /// How many hypercalls this image has made; 0 where there is no hypervisor.
    fn hypercalls(&self) -> u64 {
        0
    }

    /// Prints one line on the console.
    fn log(&mut self, line: fmt::Arguments<'_>);

    // Live update.

    /// Checks whether an image can take this one's place: its form, what it is, what it understands. Returns the
    /// highest version of the private part that both know.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    fn check_image(&mut self, image: &[u8]) -> Result<u32, Sentence>;

    /// Makes a little more memory ready for a hand-over, if it needs more, so that the hand-over itself need not
    /// ask for it while nobody is served. Called with each piece of an image that comes.
    fn prepare(&mut self) {}

    /// An empty region.
    ///
    /// # Errors
    /// The hypervisor's refusal, for example for want of memory.
    fn new_region(&mut self) -> Result<Self::Region, PlatformError>;

    /// What [`adopt_ring`](Self::adopt_ring) of a successor needs to find a mapped ring page again. No two
    /// mapped pages have the same.
    fn ring_token(&self, ring: &Self::Ring) -> u64;

    /// Takes over a ring page that the predecessor mapped. Nothing changes for the hypervisor.
    ///
    /// # Errors
    /// There is no such page.
    fn adopt_ring(&mut self, domid: DomId, token: u64) -> Result<Self::Ring, PlatformError>;

    /// Gives up a ring page that somebody else goes on using: it must not be unmapped.
    fn leave_ring(&mut self, ring: Self::Ring) {
        core::mem::forget(ring);
    }

    /// Starts a new image on trial with what the region holds: `stream_len` bytes of stream, followed by the
    /// private part. If it has not finished when [`now_ms`](Self::now_ms) reaches `deadline_ms`, the trial has
    /// failed. Returns only if it failed, with the reason as a sentence.
    fn replace(
        &mut self,
        image: &[u8],
        command_line: &str,
        region: Self::Region,
        stream_len: usize,
        deadline_ms: u64,
    ) -> Sentence;

    /// As [`replace`](Self::replace), with a fresh copy of this instance's own image, after a failure.
    fn restart(
        &mut self,
        _command_line: &str,
        _region: Self::Region,
        _stream_len: usize,
        _deadline_ms: u64,
    ) -> Sentence {
        Sentence::from("there is no fresh copy of this program")
    }

    /// Offers what the region holds, as in [`replace`](Self::replace), to a program in dom0 that puts another domain in the
    /// place of this one. Returns only if that program has this domain go on: why, as a sentence.
    fn offer(&mut self, _line: &str, _region: Self::Region, _stream_len: usize) -> Sentence {
        Sentence::from("there is nobody who puts another domain in the place of this one")
    }

    /// Fails on purpose, to test what comes after it; `false` if there is no failure of that name.
    fn fail(&mut self, _what: &[u8]) -> bool {
        false
    }

    /// The trial of this instance is over. From now on it owns what its predecessor had, and there is no way back.
    fn commit(&mut self) {}
}
