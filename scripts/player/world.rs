//! The real world between conversations: the server and the guests that are ready.

use crate::Server;
use crate::guest::Guest;
use crate::limits;
use crate::link::Link;
use alloc::collections::BTreeMap;
use xenstore_stubdom::transcript::{Conversation, Stop};

/// Rounds of loops that make domains: each costs seconds here.
pub(crate) const ROUNDS_WITH_DOMAINS: usize = 2;

/// Everything that lives longer than a conversation.
pub(crate) struct World {
    pub(crate) server: Server,
    /// For the player's own requests.
    pub(crate) link: Link,
    /// Leaves out what takes long.
    pub(crate) is_quick: bool,
    pub(crate) idle: Vec<Guest>,
    made: usize,
    pub(crate) limits: limits::Limits,
}

impl World {
    pub(crate) fn open(server: Server, is_quick: bool) -> Result<Self, Stop> {
        let mut link = Link::open().map_err(|error| Stop::Lost(error.to_string()))?;
        let limits = limits::present(&mut link)?;
        Ok(Self { server, link, is_quick, idle: Vec::new(), made: 0, limits })
    }

    /// Has guests ready: to make one takes the toolstack, which the conversation should not notice.
    pub(crate) fn prepare(&mut self, conversation: &Conversation) -> Result<(), Stop> {
        let (mut count, mut rounds) = (0, 1);
        for line in conversation.lines() {
            match line.split_once(' ').map_or(line, |(first, _)| first) {
                "loop" => rounds = ROUNDS_WITH_DOMAINS,
                "end" => rounds = 1,
                "guest" | "domain" => count += rounds,
                _ => {}
            }
        }
        while self.idle.len() < count {
            self.made += 1;
            let guest = Guest::start(&mut self.link, self.made)?;
            self.idle.push(guest);
        }
        Ok(())
    }

    /// What the domains of a conversation will be called: it may speak of them before they are there.
    pub(crate) fn future_names(&self, conversation: &Conversation) -> BTreeMap<u16, u16> {
        let mut names = BTreeMap::new();
        let mut guests = self.idle.iter().rev();
        for line in conversation.lines() {
            let name = line.strip_prefix("guest ").or_else(|| line.strip_prefix("domain "));
            let name = name.and_then(|name| name.trim().parse().ok());
            if let Some((name, guest)) = name.and_then(|name| Some((name, guests.next()?))) {
                names.entry(name).or_insert(guest.domid);
            }
        }
        // Otherwise a domain that is not there yet is one that does not exist.
        names.retain(|name, _| {
            let special = format!("Domain/{name} ");
            conversation.lines().any(|line| line.contains(&special))
        });
        names
    }

    pub(crate) fn guest(&mut self) -> Result<Guest, Stop> {
        if let Some(guest) = self.idle.pop() {
            return Ok(guest);
        }
        self.made += 1;
        Guest::start(&mut self.link, self.made)
    }

    /// How many guests it took.
    pub(crate) fn made(&self) -> usize {
        self.made
    }

    /// Destroys the guests that are left.
    pub(crate) fn close(&mut self) {
        for guest in self.idle.drain(..) {
            drop(guest.destroy());
        }
    }
}
