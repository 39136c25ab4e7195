//! The write-rate limit: a guest that writes without pause must not keep everybody else's transactions
//! from ever committing (XSA-206).
//!
//! Writes are free while nobody could be disturbed. While a transaction is open, each one costs credit, and
//! a domain without credit is not read for a while; it never sees an error. The constants are those
//! of C xenstored (4.22 behaviour). Other than there, a domain cannot borrow from what others left.

/// What one write costs, in millionths of a write.
const COST: i64 = 1_000_000;

/// What a domain can save up: ten writes.
const BURST: i64 = 10_000_000;

/// What all domains together earn in a millisecond: 200 writes a second.
const INCOME_PER_MS: i64 = 200_000;

/// One domain's credit.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteCredit {
    credit: i64,
    /// Up to when its income is in `credit`.
    since_ms: u64,
}

impl Default for WriteCredit {
    fn default() -> Self {
        Self { credit: BURST, since_ms: 0 }
    }
}

/// What each of so many domains earns in a millisecond.
fn share(domains: usize) -> i64 {
    let domains = i64::try_from(domains).unwrap_or(i64::MAX).max(1);
    INCOME_PER_MS.checked_div(domains).unwrap_or(1).max(1)
}

impl WriteCredit {
    /// Adds what has been earned since the last call.
    fn earn(&mut self, now_ms: u64, domains: usize) {
        let elapsed = i64::try_from(now_ms.saturating_sub(self.since_ms)).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(share(domains))).min(BURST);
        self.since_ms = now_ms;
    }

    /// Pays for one write.
    pub(super) fn pay(&mut self, now_ms: u64, domains: usize) {
        self.earn(now_ms, domains);
        self.credit = self.credit.saturating_sub(COST);
    }

    /// The moment from which the domain may go on; `None` if it may now.
    pub(super) fn blocked_until(&mut self, now_ms: u64, domains: usize) -> Option<u64> {
        if self.credit >= 0 {
            return None;
        }
        self.earn(now_ms, domains);
        if self.credit >= 0 {
            return None;
        }
        let missing = self.credit.unsigned_abs().div_ceil(share(domains).unsigned_abs().max(1));
        Some(now_ms.saturating_add(missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let mut credit = WriteCredit::default();
        let (mut now_ms, mut writes) = (1000, 0);
        while now_ms < 3000 {
            match credit.blocked_until(now_ms, 4) {
                Some(until) => now_ms = until,
                None => {
                    credit.pay(now_ms, 4);
                    writes += 1;
                }
            }
        }
        // 50 writes a second for each of four, for two seconds, and the burst.
        assert!((100..=112).contains(&writes), "{writes}");
    }

    #[test]
    fn many_domains_get_little_but_not_nothing() {
        let mut credit = WriteCredit::default();
        for _ in 0..20 {
            credit.pay(0, 1_000_000);
        }
        assert!(credit.blocked_until(0, 1_000_000).is_some());
        assert_eq!(credit.blocked_until(u64::MAX, 1_000_000), None);
    }
}
