//! A page with anything in it, indices included: passes copy what lies between the indices and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xenstore_stubdom::proto::ring::{self, RING_SIZE, Requests, Responses, Word};
use xenstore_stubdom::sim::SimPage;

/// Where the four indices are, what the rings hold, and how much is taken and put at once.
type Input = (u32, u32, u32, u32, Vec<u8>, Vec<u16>, Vec<(u8, u8, u32)>);

const WORDS: [Word; 4] = [Word::ReqCons, Word::ReqProd, Word::RspCons, Word::RspProd];

fuzz_target!(|input: Input| {
    let (req_cons, req_used, rsp_cons, rsp_used, bytes, pieces, ambush) = input;
    let mut page = SimPage::default();
    // Near each other more often than chance would have it.
    let near =
        |cons: u32, used: u32| cons.wrapping_add(if used >> 31 == 0 { used % 1300 } else { used });
    page.set_word(Word::ReqCons, req_cons);
    page.set_word(Word::ReqProd, near(req_cons, req_used));
    page.set_word(Word::RspCons, rsp_cons);
    page.set_word(Word::RspProd, near(rsp_cons, rsp_used));
    for (index, byte) in (0..RING_SIZE).zip(&bytes) {
        page.put_request(req_cons.wrapping_add(index), *byte);
    }
    for (loads, word, value) in ambush.into_iter().take(8) {
        page.ambush(usize::from(loads) % 16, WORDS[usize::from(word) % 4], value);
    }
    if let Ok(mut pass) = Requests::open(&page) {
        let available = pass.available();
        assert!(available <= RING_SIZE as usize);
        let mut all = Vec::new();
        for piece in &pieces {
            let mut buffer = vec![0; usize::from(*piece) % 1500];
            let taken = pass.take(&page, &mut buffer);
            assert!(taken <= buffer.len());
            all.extend_from_slice(&buffer[..taken]);
        }
        assert!(all.len() + pass.available() == available);
        assert_eq!(pass.close(&mut page), !all.is_empty());
        if !all.is_empty() {
            // The index may have been another one at the moment of the snapshot, and was put back since.
            let first = page.word(Word::ReqCons).wrapping_sub(u32::try_from(all.len()).unwrap());
            let put = |index: u32| {
                let place = index.wrapping_sub(req_cons) % RING_SIZE;
                bytes.get(place as usize).copied().unwrap_or(0)
            };
            assert!((first..=u32::MAX).chain(0..).zip(&all).all(|(index, got)| *got == put(index)));
        }
    }
    if let Ok(mut pass) = Responses::open(&page) {
        let space = pass.space();
        assert!(space <= RING_SIZE as usize);
        let mut put = 0;
        for piece in &pieces {
            put += pass.put(&mut page, &vec![7; usize::from(*piece) % 1500]);
        }
        assert!(put + pass.space() == space);
        assert_eq!(pass.close(&mut page), put > 0);
    }
    let _ = (ring::has_requests(&page), ring::has_space(&page));
    ring::reset(&mut page);
});
