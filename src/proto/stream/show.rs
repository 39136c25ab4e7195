//! Records as text: a line each, for people.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::{ConnId, DomId, EvtchnPort, TxId};
    use crate::proto::perms::{Access, Entry};
    use crate::proto::stream::{Domain, Global, GlobalQuota, Pending, Transaction, Unknown};
    use alloc::string::ToString;

    #[test]
    fn bytes_look_as_in_xenstore_ls() {
        let shown = Escaped(b"a b~\t\n\r\\\"\0\x07\x08\x1f\x7f\xff").to_string();
        assert_eq!(shown, r#"a b~\t\n\r\\"\000\007\x08\x1f\x7f\xff"#);
    }

    #[test]
    fn a_line_for_each_record() {
        let entries = [
            Entry { domid: DomId(0), access: Access::None, stale: false },
            Entry { domid: DomId(5), access: Access::Both, stale: true },
        ];
        let (conn, tx) = (ConnId(3), TxId(9));
        let node = Node {
            path: b"/a",
            value: b"x\0",
            perms: Perms::from(&entries[..]),
            pending: Some(Pending { conn, tx, touch: Touch::ReadAndWritten }),
        };
        let limits: [(&[u8], u32); 2] = [(b"nodes", 1000), (b"watches", 0)];
        let quotas = Quotas::from(&limits[..]);
        let ring = |target| Endpoint::Ring { domid: DomId(7), target, port: EvtchnPort(11) };
        let connection = Connection {
            id: conn,
            endpoint: ring(Some(DomId(2))),
            input: b"in",
            output: b"out\0",
            partial: 2,
            unique_id: Some(77),
        };
        let quiet = Connection {
            endpoint: ring(None),
            input: &[],
            output: &[],
            unique_id: None,
            ..connection
        };
        let socket = Connection { endpoint: Endpoint::Socket { fd: 6 }, ..quiet };
        let watch = Watch { conn, path: b"@releaseDomain", token: b"t\n", depth: Some(2) };
        let expected = [
            (
                Record::Global(Global { socket: -1, evtchn: 4 }),
                "GLOBAL_DATA socket -1 event channels 4",
            ),
            (
                Record::Connection(connection),
                r#"CONNECTION_DATA 3: domain 7 target 2 port 11 unique id 77, 2 bytes in "in", 4 bytes out (2 of a message under way) "out\000""#,
            ),
            (Record::Connection(quiet), "CONNECTION_DATA 3: domain 7 port 11"),
            (Record::Connection(socket), "CONNECTION_DATA 3: socket 6"),
            (
                Record::Watch(watch),
                r#"WATCH_DATA_EXTENDED 3: "@releaseDomain" token "t\n" depth 2"#,
            ),
            (
                Record::Watch(Watch { depth: None, ..watch }),
                r#"WATCH_DATA 3: "@releaseDomain" token "t\n""#,
            ),
            (Record::Transaction(Transaction { conn, tx }), "TRANSACTION_DATA 3: transaction 9"),
            (
                Record::Node(node),
                r#"NODE_DATA 3 transaction 9, read and written: /a = "x\000"  (n0,b5!)"#,
            ),
            (Record::Node(Node { pending: None, ..node }), r#"NODE_DATA /a = "x\000"  (n0,b5!)"#),
            (
                Record::GlobalQuota(GlobalQuota { per_domain: quotas, global_only: Quotas::NONE }),
                "GLOBAL_QUOTA_DATA: nodes=1000 watches=0",
            ),
            (
                Record::GlobalQuota(GlobalQuota { per_domain: quotas, global_only: quotas }),
                "GLOBAL_QUOTA_DATA: nodes=1000 watches=0; global only: nodes=1000 watches=0",
            ),
            (
                Record::Domain(Domain { domid: DomId(7), features: Some(14), quotas }),
                "DOMAIN_DATA 7: features 0xe nodes=1000 watches=0",
            ),
            (
                Record::Domain(Domain { domid: DomId(7), features: None, quotas: Quotas::NONE }),
                "DOMAIN_DATA 7:",
            ),
            (Record::Unknown(Unknown { kind: 99, body: b"12345" }), "type 99: 5 bytes, unknown"),
        ];
        for (record, line) in expected {
            assert_eq!(record.to_string(), line);
        }
    }
}
