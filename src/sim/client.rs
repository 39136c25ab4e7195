//! An honest client that saves on signals exactly as current Linux does. After writing, it signals only if the
//! server had caught up before. After reading, it signals only if the response ring was full. So a server that
//! relies on more signals hangs.

use super::page::SimPage;
use super::world::World;
use crate::proto::id::DomId;
use crate::proto::ring::{RING_SIZE, Word};
use crate::proto::wire::{HEADER_SIZE, Header};
use alloc::vec::Vec;

/// A message from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A client on the ring of its domain.
#[derive(Debug)]
pub struct Client {
    world: World,
    domid: DomId,
    page: SimPage,
    /// Bytes read that are not yet a whole message.
    inbox: Vec<u8>,
    next_req_id: u32,
}

impl Client {
    pub(super) fn new(world: World, domid: DomId) -> Self {
        let page = world.page(domid);
        Self { world, domid, page, inbox: Vec::new(), next_req_id: 1 }
    }

    /// The domain's page, for clients that break the rules.
    #[must_use]
    pub fn page(&self) -> &SimPage {
        &self.page
    }

    /// A request as bytes, and the `req_id` chosen for it.
    pub fn request(&mut self, kind: u32, tx_id: u32, payload: &[u8]) -> (Vec<u8>, u32) {
        let req_id = self.next_req_id;
        self.next_req_id = self.next_req_id.wrapping_add(1);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Header { kind, req_id, tx_id, len }.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        (bytes, req_id)
    }

    /// Writes as many bytes as fit into the request ring; returns how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let prod = self.page.word(Word::ReqProd);
        let used = prod.wrapping_sub(self.page.word(Word::ReqCons));
        let space = RING_SIZE.saturating_sub(used) as usize;
        let mut index = prod;
        for byte in bytes.iter().take(space) {
            self.page.put_request(index, *byte);
            index = index.wrapping_add(1);
        }
        self.page.set_word(Word::ReqProd, index);
        if index != prod && self.page.word(Word::ReqCons) == prod {
            self.world.signal(self.domid);
        }
        bytes.len().min(space)
    }

    /// Reads at most `limit` bytes from the response ring; returns how many.
    pub fn read(&mut self, limit: usize) -> usize {
        let cons = self.page.word(Word::RspCons);
        let available = self.page.word(Word::RspProd).wrapping_sub(cons);
        let taken = (available.min(RING_SIZE) as usize).min(limit);
        let mut index = cons;
        for _ in 0..taken {
            self.inbox.push(self.page.response(index));
            index = index.wrapping_add(1);
        }
        self.page.set_word(Word::RspCons, index);
        if taken > 0 && available == RING_SIZE {
            self.world.signal(self.domid);
        }
        taken
    }

    /// What is in the response ring and was not read.
    #[must_use]
    pub fn unread(&self) -> Vec<u8> {
        let cons = self.page.word(Word::RspCons);
        let available = self.page.word(Word::RspProd).wrapping_sub(cons).min(RING_SIZE);
        (0..available).map(|at| self.page.response(cons.wrapping_add(at))).collect()
    }

    /// The next whole message of what has been read.
    pub fn next_message(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_SIZE];
        header.copy_from_slice(self.inbox.get(..HEADER_SIZE)?);
        let header = Header::from_bytes(&header);
        let end = HEADER_SIZE.checked_add(usize::try_from(header.len).ok()?)?;
        let payload = self.inbox.get(HEADER_SIZE..end)?.to_vec();
        self.inbox.drain(..end);
        Some(Message { header, payload })
    }

    /// Whether bytes of an unfinished message have been read.
    #[must_use]
    pub fn is_amid_message(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Forgets what has been read, as after the ring was reset.
    pub fn forget(&mut self) {
        self.inbox.clear();
    }
}
