//! Limits of a running server: CONTROL sets those that a fresh server would get on its command line.

use crate::Server;
use crate::link::Link;
use xenstore_stubdom::proto::wire::Kind;
use xenstore_stubdom::transcript::Stop;

/// Names and values.
pub(crate) type Limits = Vec<(String, String)>;

/// What the server says its limits are; none from oxenstored, which does not tell.
pub(crate) fn present(link: &mut Link) -> Result<Limits, Stop> {
    let mut text = link.call(Kind::Control, &["quota"])?.unwrap_or_default();
    text += &link.call(Kind::Control, &["quota-soft"])?.unwrap_or_default();
    let numbers = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let value = rest.split_whitespace().next()?;
        value.parse::<u32>().ok()?;
        Some((name.trim().to_owned(), value.to_owned()))
    });
    Ok(numbers.collect())
}

/// Changes limits.
pub(crate) fn set(link: &mut Link, server: Server, limits: &Limits) -> Result<(), Stop> {
    for (name, value) in limits {
        let result = match (server, name.strip_prefix("soft-")) {
            (_, Some(soft)) => link.call(Kind::Control, &["quota-soft", "set", soft, value])?,
            (Server::Ours, None) => link.call(Kind::SetQuota, &[name, value])?,
            (_, None) => link.call(Kind::Control, &["quota", "set", name, value])?,
        };
        if let Err(error) = result {
            return Err(Stop::Skip(format!("limit {name} cannot be {value} here: {error}")));
        }
    }
    Ok(())
}

/// What options of the command line mean.
pub(crate) fn from_options(options: &str, server: Server) -> Result<Limits, Stop> {
    if server == Server::Oxenstored && !options.is_empty() {
        return Err(Stop::Skip("limits of oxenstored are fixed when it starts".to_owned()));
    }
    let mut limits = Limits::new();
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        let name = match word {
            "-E" => "nodes",
            "-W" | "--watch-nb" => "watches",
            "-t" => "transactions",
            "-S" => "node-size",
            "-M" => "path-max",
            "-Q" => "",
            _ => return Err(Stop::Skip(format!("command line option {word}"))),
        };
        let value = words.next().ok_or("an option without a value")?;
        let (name, value) = value.split_once('=').unwrap_or((name, value));
        limits.push((name.to_owned(), value.to_owned()));
    }
    Ok(limits)
}
