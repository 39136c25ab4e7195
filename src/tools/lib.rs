//! Programs with which people in dom0 look at a xenstore.
//!
//! * [`link`]: requests and their answers, over `/dev/xen/xenbus` or a Unix socket.
//! * [`values`]: the answers of `CONTROL stats --values`, taken apart.
//! * [`collect`]: what is known of the store and of each domain, from one such answer a second.
//! * [`top`]: that as a view for a terminal, or as text. [`metrics`]: that for Prometheus.
//! * [`tree`]: the nodes of a store, or of a saved stream.
//! * [`text`]: nothing that a guest chooses reaches a terminal as it is.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod collect;
pub mod link;
pub mod metrics;
pub mod text;
pub mod top;
pub mod tree;
pub mod values;
