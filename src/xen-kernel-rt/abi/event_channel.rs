//! `xen/include/public/event_channel.h`.

/// `struct evtchn_bind_interdomain`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BindInterdomain {
    /// Whose port.
    pub remote_dom: u16,
    /// The port there.
    pub remote_port: u32,
    /// Out: the port here.
    pub local_port: u32,
}
const _: () = assert!(size_of::<BindInterdomain>() == 12);

/// `struct evtchn_bind_virq`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BindVirq {
    /// One of `xen::VIRQ_*`.
    pub virq: u32,
    /// Global and per-domain ones: 0.
    pub vcpu: u32,
    /// Out.
    pub port: u32,
}
const _: () = assert!(size_of::<BindVirq>() == 12);

/// `struct evtchn_alloc_unbound`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AllocUnbound {
    /// Whose port it will be.
    pub dom: u16,
    /// Who may bind to it.
    pub remote_dom: u16,
    /// Out.
    pub port: u32,
}
const _: () = assert!(size_of::<AllocUnbound>() == 8);

/// `struct evtchn_status`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Status {
    /// Whose port.
    pub dom: u16,
    /// The port.
    pub port: u32,
    /// Out: one of `EVTCHNSTAT_*`.
    pub status: u32,
    /// Out: the processor that it is bound to.
    pub vcpu: u32,
    /// Out: depends on the status.
    pub u: [u32; 2],
}
const _: () = assert!(size_of::<Status>() == 24);

/// `EVTCHNSTAT_unbound`: the port has no peer yet, or none any more.
pub const STATUS_UNBOUND: u32 = 1;
/// `EVTCHNSTAT_interdomain`: the port has a peer.
pub const STATUS_INTERDOMAIN: u32 = 2;

/// `struct evtchn_close`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Close {
    /// The port to close.
    pub port: u32,
}

/// `struct evtchn_send`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Send {
    /// The local port whose peer gets the event.
    pub port: u32,
}
