//! Copies a store from one server to another: all nodes, with their values and permissions.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use xenstore_stubdom::proto::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};

/// The ring of dom0, through its kernel.
const DEVICE: &str = "/dev/xen/xenbus";

/// Nodes below one another; no toolstack goes further.
const DEPTH_MAX: usize = 64;

/// A connection that waits for its answers.
struct Link<S> {
    stream: S,
    /// For people.
    name: String,
}

impl<S: Read + Write> Link<S> {
    fn ask(&mut self, kind: Kind, path: &str, rest: &[u8]) -> Result<Vec<u8>, String> {
        let Self { stream, name } = self;
        let what = |what: &dyn core::fmt::Display| format!("{name}: {kind:?} {path}: {what}");
        let payload = [path.as_bytes(), &[0], rest].concat();
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind: kind.number(), req_id: 0, tx_id: 0, len };
        let bytes = [&header.to_bytes()[..], &payload].concat();
        stream.write_all(&bytes).map_err(|error| what(&error))?;
        let mut header = [0; HEADER_SIZE];
        stream.read_exact(&mut header).map_err(|error| what(&error))?;
        let header = Header::from_bytes(&header);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > PAYLOAD_MAX {
            return Err(what(&"the answer is too long"));
        }
        let mut payload = vec![0; len];
        stream.read_exact(&mut payload).map_err(|error| what(&error))?;
        if header.kind == kind.number() {
            Ok(payload)
        } else {
            Err(what(&String::from_utf8_lossy(&payload).trim_end_matches('\0')))
        }
    }
}

/// From a socket to the kernel of dom0, whose server runs in domain `domid`.
pub(crate) fn copy(socket: &str, domid: u16) -> Result<(), String> {
    let stream = UnixStream::connect(socket).map_err(|error| format!("{socket}: {error}"))?;
    let mut from = Link { stream, name: socket.to_owned() };
    let device = File::options().read(true).write(true).open(DEVICE);
    let stream = device.map_err(|error| format!("{DEVICE}: {error}"))?;
    let mut to = Link { stream, name: DEVICE.to_owned() };
    copy_below(&mut from, &mut to, "", 0)?;
    to.ask(Kind::Write, "/tool/xenstored/domid", domid.to_string().as_bytes())?;
    Ok(())
}

/// Copies what is below a node; the root is the empty path here.
fn copy_below<S: Read + Write, T: Read + Write>(
    from: &mut Link<S>,
    to: &mut Link<T>,
    path: &str,
    depth: usize,
) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("{path}: too deep"));
    }
    let children = from.ask(Kind::Directory, if path.is_empty() { "/" } else { path }, &[])?;
    let children = String::from_utf8_lossy(&children);
    for child in children.split('\0').filter(|child| !child.is_empty()) {
        let path = format!("{path}/{child}");
        let value = from.ask(Kind::Read, &path, &[])?;
        let permissions = from.ask(Kind::GetPerms, &path, &[])?;
        to.ask(Kind::Write, &path, &value)?;
        to.ask(Kind::SetPerms, &path, &permissions)?;
        copy_below(from, to, &path, depth + 1)?;
    }
    Ok(())
}
