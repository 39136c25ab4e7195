//! Records as text: a line each, for people.

use super::ByteOrder;
use super::read::Reader;
use super::record::{Connection, Endpoint, Node, Perms, Quotas, Record, RecordKind, Touch, Watch};
use core::fmt::{self, Display, Formatter, Write};

/// Bytes the way `xenstore-ls` shows a value: what is printable as it is, the rest with a backslash.
struct Escaped<'a>(&'a [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'\t' => f.write_str("\\t"),
                b'\n' => f.write_str("\\n"),
                b'\r' => f.write_str("\\r"),
                b'\\' => f.write_str("\\\\"),
                b' '..=b'~' => f.write_char(char::from(*byte)),
                0..=7 => write!(f, "\\{byte:03o}"),
                _ => write!(f, "\\x{byte:02x}"),
            }?;
        }
        Ok(())
    }
}

/// Stale entries have a `!` behind them.
impl Display for Perms<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for entry in self.iter() {
            write!(f, "{separator}{entry}{}", if entry.stale { "!" } else { "" })?;
            separator = ",";
        }
        Ok(())
    }
}

impl Display for Quotas<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.iter() {
            write!(f, "{separator}{}={value}", Escaped(name))?;
            separator = " ";
        }
        Ok(())
    }
}

impl Display for Touch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "deleted",
            Self::Read => "read",
            Self::Written => "written",
            Self::ReadAndWritten => "read and written",
        })
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { domid, target: None, port } => write!(f, "domain {domid} port {}", port.0),
            Self::Ring { domid, target: Some(target), port } => {
                write!(f, "domain {domid} target {target} port {}", port.0)
            }
            Self::Socket { fd } => write!(f, "socket {fd}"),
        }
    }
}

fn connection(connection: &Connection<'_>, f: &mut Formatter<'_>) -> fmt::Result {
    let Connection { id, endpoint, input, output, partial, unique_id } = connection;
    write!(f, "{} {}: {endpoint}", RecordKind::Connection, id.0)?;
    if let Some(unique_id) = unique_id {
        write!(f, " unique id {unique_id}")?;
    }
    if !input.is_empty() {
        write!(f, ", {} bytes in \"{}\"", input.len(), Escaped(input))?;
    }
    if !output.is_empty() {
        write!(f, ", {} bytes out ({partial} of a message", output.len())?;
        write!(f, " under way) \"{}\"", Escaped(output))?;
    }
    Ok(())
}

fn watch(watch: &Watch<'_>, f: &mut Formatter<'_>) -> fmt::Result {
    let Watch { conn, path, token, depth } = watch;
    let kind = if depth.is_some() { RecordKind::WatchExtended } else { RecordKind::Watch };
    write!(f, "{kind} {}: \"{}\" token \"{}\"", conn.0, Escaped(path), Escaped(token))?;
    depth.map_or(Ok(()), |depth| write!(f, " depth {depth}"))
}

fn node(node: &Node<'_>, f: &mut Formatter<'_>) -> fmt::Result {
    let Node { path, value, perms, pending } = node;
    write!(f, "{}", RecordKind::Node)?;
    if let Some(pending) = pending {
        write!(f, " {} transaction {}, {}:", pending.conn.0, pending.tx.0, pending.touch)?;
    }
    write!(f, " {} = \"{}\"  ({perms})", Escaped(path), Escaped(value))
}

impl Display for Record<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global(global) => {
                let kind = RecordKind::Global;
                write!(f, "{kind} socket {} event channels {}", global.socket, global.evtchn)
            }
            Self::Connection(it) => connection(it, f),
            Self::Watch(it) => watch(it, f),
            Self::Transaction(it) => {
                write!(f, "{} {}: transaction {}", RecordKind::Transaction, it.conn.0, it.tx.0)
            }
            Self::Node(it) => node(it, f),
            Self::GlobalQuota(quota) => {
                write!(f, "{}: {}", RecordKind::GlobalQuota, quota.per_domain)?;
                let only = quota.global_only;
                if only.is_empty() { Ok(()) } else { write!(f, "; global only: {only}") }
            }
            Self::Domain(domain) => {
                write!(f, "{} {}:", RecordKind::Domain, domain.domid)?;
                if let Some(features) = domain.features {
                    write!(f, " features {features:#x}")?;
                }
                let quotas = domain.quotas;
                if quotas.is_empty() { Ok(()) } else { write!(f, " {quotas}") }
            }
            Self::Unknown(it) => write!(f, "type {}: {} bytes, unknown", it.kind, it.body.len()),
        }
    }
}

/// A whole stream: a line for what the preamble says, one for each record with the byte at which it starts, one for
/// how it ends.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a>(pub &'a [u8]);

impl Display for Listing<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut reader = match Reader::new(self.0) {
            Ok(reader) => reader,
            Err(error) => return writeln!(f, "{error}"),
        };
        let order = match reader.byte_order() {
            ByteOrder::Little => "little",
            ByteOrder::Big => "big",
        };
        writeln!(f, "{:>8} version {}, {order} endian", 0, reader.version().number())?;
        loop {
            let offset = reader.offset();
            match reader.next() {
                None => return writeln!(f, "{offset:>8} {}", RecordKind::End),
                Some(Err(error)) => return writeln!(f, "{error}"),
                Some(Ok(record)) => writeln!(f, "{offset:>8} {record}")?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn bytes_look_as_in_xenstore_ls() {
        let shown = Escaped(b"a b~\t\n\r\\\"\0\x07\x08\x1f\x7f\xff").to_string();
        assert_eq!(shown, r#"a b~\t\n\r\\"\000\007\x08\x1f\x7f\xff"#);
    }
}
