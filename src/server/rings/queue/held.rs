//! How many bytes messages take of the allocator, and how many of them are charged. Both sums are kept, since
//! nobody looks at all messages.

use super::{MESSAGE_BYTES, Message};

/// What messages take besides their records, and what is charged for them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Held {
    /// The blocks of all payloads.
    pub(super) blocks: usize,
    /// What the payloads cost that somebody pays for, and how many bytes those take.
    pub(super) charged: usize,
    pub(super) paid: usize,
}

impl Held {
    /// The sums with one message more, or one fewer.
    #[inline]
    pub(super) fn with(self, message: &Message, change: fn(usize, usize) -> usize) -> Self {
        let block = message.content.block();
        let (cost, taken) = match message.payer {
            Some(_) => (message.cost(), MESSAGE_BYTES.saturating_add(block)),
            None => (0, 0),
        };
        Self {
            blocks: change(self.blocks, block),
            charged: change(self.charged, cost),
            paid: change(self.paid, taken),
        }
    }
}
