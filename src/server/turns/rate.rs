//! The write-rate limit: a guest that writes without pause must not keep everybody else's transactions
//! from ever committing (XSA-206).
//!
//! Writes are free while nobody could be disturbed. A change outside of transactions costs credit while any
//! transaction is open. A commit costs credit while there is another transaction. A domain without credit is not
//! read for a while. It never sees an error, and what it has written stays in its ring. Privileged domains never
//! pay.
//!
//! All domains share one income in equal parts. Each saves up to a burst. What it earns beyond that goes to a
//! reserve, from which domains in debt are helped. So one busy domain among idle ones may use the whole income. A
//! new domain gets its first burst from the reserve. The reserve may go into debt for that, but only so far: a
//! domain that is introduced again and again gains nothing.
//!
//! The constants are those of C xenstored (4.22 behaviour). A guest may rely on ten writes in a row at any
//! time and on its share of 200 writes a second.

/// What one write costs, in millionths of a write.
const COST: i64 = 1_000_000;

/// What a domain can save up: ten writes.
const BURST: i64 = 10 * COST;

/// What all domains together earn in a millisecond: 200 writes a second.
const INCOME_PER_MS: i64 = COST / 5;

/// The most that the reserve holds: a thousand writes.
const RESERVE_MAX: i64 = 1000 * COST;

/// How far the reserve goes into debt for new domains: five bursts.
const RESERVE_MIN: i64 = -5 * BURST;

/// What idle domains have left to the others.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct Reserve(i64);

impl Reserve {
    /// Gives as much of what is wanted as keeps the reserve above `floor`.
    fn take(&mut self, wanted: i64, floor: i64) -> i64 {
        let given = wanted.min(self.0.saturating_sub(floor)).max(0);
        self.0 = self.0.saturating_sub(given);
        given
    }

    fn put(&mut self, surplus: i64) {
        self.0 = self.0.saturating_add(surplus).min(RESERVE_MAX);
    }

    /// As a number, for a successor.
    pub(in crate::server) fn number(self) -> i64 {
        self.0
    }

    /// From such a number.
    pub(in crate::server) fn from_number(number: i64) -> Self {
        Self(number.clamp(RESERVE_MIN, RESERVE_MAX))
    }

    /// How many writes it is worth, for the administrator.
    pub(in crate::server) fn writes(self) -> i64 {
        self.0.div_euclid(COST)
    }
}

/// One domain's credit.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::server) struct WriteCredit {
    credit: i64,
    /// Up to when its income is in `credit`.
    since_ms: u64,
}

/// What each of so many domains earns in a millisecond.
fn share(domains: usize) -> i64 {
    let domains = i64::try_from(domains).unwrap_or(i64::MAX).max(1);
    INCOME_PER_MS.checked_div(domains).unwrap_or(1).max(1)
}

impl WriteCredit {
    /// The credit of a new domain.
    pub(in crate::server) fn new(now_ms: u64, reserve: &mut Reserve) -> Self {
        Self { credit: reserve.take(BURST, RESERVE_MIN), since_ms: now_ms }
    }

    /// The credit and the moment up to which its income is in it, for a successor.
    pub(in crate::server) fn numbers(self) -> (i64, u64) {
        (self.credit, self.since_ms)
    }

    /// From such numbers.
    pub(in crate::server) fn from_numbers((credit, since_ms): (i64, u64)) -> Self {
        Self { credit: credit.min(BURST), since_ms }
    }

    /// The domain is gone: what it saved goes to the others, its debts are forgotten.
    pub(in crate::server) fn leave(self, reserve: &mut Reserve) {
        reserve.put(self.credit.max(0));
    }

    /// Adds what has been earned since the last call. What is too much to save goes to the reserve.
    pub(in crate::server) fn earn(&mut self, now_ms: u64, domains: usize, reserve: &mut Reserve) {
        let elapsed = i64::try_from(now_ms.saturating_sub(self.since_ms)).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(share(domains)));
        self.since_ms = now_ms;
        let surplus = self.credit.saturating_sub(BURST).max(0);
        self.credit = self.credit.saturating_sub(surplus);
        reserve.put(surplus);
    }

    /// Pays for one write.
    pub(in crate::server) fn pay(&mut self, now_ms: u64, domains: usize, reserve: &mut Reserve) {
        self.earn(now_ms, domains, reserve);
        self.credit = self.credit.saturating_sub(COST);
        let debt = self.credit.min(0).saturating_neg();
        self.credit = self.credit.saturating_add(reserve.take(debt, 0));
    }

    /// Whether [`blocked_until`](Self::blocked_until) has to be asked.
    pub(in crate::server) fn is_in_debt(self) -> bool {
        self.credit < 0
    }

    /// The moment from which the domain may go on; `None` if it may now.
    pub(in crate::server) fn blocked_until(
        &mut self,
        now_ms: u64,
        domains: usize,
        reserve: &mut Reserve,
    ) -> Option<u64> {
        if self.credit >= 0 {
            return None;
        }
        self.earn(now_ms, domains, reserve);
        let debt = self.credit.min(0).saturating_neg();
        self.credit = self.credit.saturating_add(reserve.take(debt, 0));
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

    /// Writes as fast as it may from `start_ms` to `end_ms`.
    fn storm(
        credit: &mut WriteCredit,
        reserve: &mut Reserve,
        start_ms: u64,
        end_ms: u64,
        domains: usize,
    ) -> u32 {
        let (mut now_ms, mut writes) = (start_ms, 0);
        while now_ms < end_ms {
            match credit.blocked_until(now_ms, domains, reserve) {
                Some(until) => now_ms = until,
                None => {
                    credit.pay(now_ms, domains, reserve);
                    writes += 1;
                }
            }
        }
        writes
    }

    #[test]
    fn xsa_206_a_burst_is_free_and_then_the_rate_holds() {
        let mut reserve = Reserve::default();
        let mut credit = WriteCredit::new(1000, &mut reserve);
        let writes = storm(&mut credit, &mut reserve, 1000, 3000, 4);
        // 50 writes a second for each of four, for two seconds, and the burst.
        assert!((100..=112).contains(&writes), "{writes}");
    }

    #[test]
    fn what_idle_domains_earn_goes_to_the_busy_one() {
        let mut reserve = Reserve::default();
        let mut busy = WriteCredit::new(0, &mut reserve);
        let mut idle = [(); 3].map(|()| WriteCredit::new(0, &mut reserve));
        let mut writes = 0;
        for second in 0..10 {
            writes += storm(&mut busy, &mut reserve, second * 1000, second * 1000 + 1000, 4);
            for credit in &mut idle {
                credit.earn(second * 1000 + 1000, 4, &mut reserve);
            }
        }
        // All of the 200 a second, late by one second, and after the debt for the first bursts is paid.
        assert!((1700..=2010).contains(&writes), "{writes}");
    }

    #[test]
    fn the_reserve_is_bounded_both_ways() {
        let mut reserve = Reserve::default();
        for _ in 0..5 {
            assert_eq!(WriteCredit::new(0, &mut reserve).credit, BURST);
        }
        assert_eq!(reserve.writes(), -50);
        // Whoever comes now has to earn it, however often it comes.
        for _ in 0..100 {
            let mut credit = WriteCredit::new(0, &mut reserve);
            assert_eq!(credit.credit, 0);
            credit.pay(0, 1, &mut reserve);
            assert!(credit.blocked_until(0, 1, &mut reserve).is_some());
            credit.leave(&mut reserve);
        }
        let mut idle = WriteCredit::default();
        idle.earn(u64::MAX, 1, &mut reserve);
        assert_eq!((idle.credit, reserve.writes()), (BURST, 1000));
    }

    #[test]
    fn many_domains_get_little_but_not_nothing() {
        let mut reserve = Reserve::default();
        let mut credit = WriteCredit::new(0, &mut reserve);
        for _ in 0..20 {
            credit.pay(0, 1_000_000, &mut reserve);
        }
        assert!(credit.blocked_until(0, 1_000_000, &mut reserve).is_some());
        assert_eq!(credit.blocked_until(u64::MAX, 1_000_000, &mut reserve), None);
    }
}
