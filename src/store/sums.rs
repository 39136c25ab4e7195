//! Where the bytes are: what the store takes of the allocator, what of it is charged, and what the accounts say.

use super::Store;
use super::deaths::Cleanup;
use super::events::{Announcement, Work};
use super::removal::Removal;
use super::row::Row;
use crate::mem::{block_bytes, room_bytes};

/// Sums of bytes. Each is found another way, so that they can be compared.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sums {
    /// What is taken of the allocator, as every structure knows of itself.
    pub taken: usize,
    /// What the accounts of all domains say together.
    pub accounts: usize,
    /// What they ought to say, by the number of all records and the lengths of all blocks for which domains are charged.
    pub charged: usize,
    /// What of `taken` that is: a record or a block that several are charged for counts once.
    pub paid: usize,
}

impl Store {
    /// The sums. `charged` and `accounts` are the same if nothing goes on that was begun ([`is_idle`](Self::is_idle)):
    /// otherwise there may be nodes that are nobody's. What is charged for the server's messages is in `accounts` only.
    #[must_use]
    pub fn sums(&self) -> Sums {
        let works = self.conns.iter().map(|(_, conn)| conn.work.taken());
        let taken = [
            self.tree.taken(),
            self.watches.taken(),
            self.conns.taken(),
            self.transactions.taken(),
            room_bytes(&self.spelling),
            self.rest.as_ref().map_or(0, Announcement::taken),
            self.cleanup.taken(),
        ];
        let taken = taken.into_iter().chain(works).fold(0, usize::saturating_add);
        let (nodes, tree) = self.tree.charged(self.watches.name_blocks());
        let (watched, watches) = self.watches.charged();
        let (held, transactions) = self.transactions.charged();
        let together = |parts: [usize; 3]| parts.into_iter().fold(0, usize::saturating_add);
        Sums {
            taken,
            accounts: self.tree.domains.sum(),
            charged: together([nodes, watched, held]),
            paid: together([tree, watches, transactions]),
        }
    }
}

impl Work {
    /// Bytes that it takes of the allocator.
    fn taken(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Announce(news) => news.taken(),
            Self::Remove(removal) => removal.taken(),
            Self::Make(row) => row.taken(),
            Self::Fill(fill) => fill.taken(),
        }
    }
}

impl Announcement {
    fn taken(&self) -> usize {
        block_bytes(self.path().len()).saturating_add(self.room())
    }
}

impl Removal {
    fn taken(&self) -> usize {
        let news = self.rest.news.as_ref().map_or(0, Announcement::taken);
        let path = self.path.as_ref().map_or(0, |path| block_bytes(path.len()));
        path.saturating_add(news)
    }
}

impl Row {
    fn taken(&self) -> usize {
        let value = self.value.as_ref().map_or(0, |value| block_bytes(value.len()));
        block_bytes(self.path.len()).saturating_add(value)
    }
}

impl Cleanup {
    fn taken(&self) -> usize {
        let news = self.news.as_ref().map_or(0, Announcement::taken);
        self.removal.as_ref().map_or(0, Removal::taken).saturating_add(news)
    }
}
