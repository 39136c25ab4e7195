//! Every limit that a domain is held to, under the names and in the order of the newest C server.
//!
//! A limit of `n` means that exactly `n` are accepted; 0 means no limit. The three generations of the C
//! server differ by one at the edges (`docs/conformance.md`); this is the reading that every guest can live with.

/// A limit. The discriminant is its place in the answer of GET_QUOTA without arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Quota {
    /// Nodes that a domain owns.
    Nodes,
    /// Watches that a domain has set.
    Watches,
    /// Requests whose reply, or an event they caused, has not been read yet.
    Outstanding,
    /// Bytes of everything that the server holds for a domain.
    Memory,
    /// As `Memory`, but passing it is only logged.
    SoftMemory,
    /// Transactions that a domain has open.
    Transactions,
    /// Nodes that one transaction has touched.
    TransactionNodes,
    /// Entries in a permission list that a domain sets.
    NodePermissions,
    /// Bytes of a path, not counting `/local/domain/<domid>/` in front of it.
    PathMax,
    /// Bytes of a node: value, permissions and child names.
    NodeSize,
}

impl Quota {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// All of them, in the order of GET_QUOTA's answer.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Nodes,
        Self::Watches,
        Self::Outstanding,
        Self::Memory,
        Self::SoftMemory,
        Self::Transactions,
        Self::TransactionNodes,
        Self::NodePermissions,
        Self::PathMax,
        Self::NodeSize,
    ];

    /// The administrator's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Watches => "watches",
            Self::Outstanding => "outstanding",
            Self::Memory => "memory",
            Self::SoftMemory => "soft-memory",
            Self::Transactions => "transactions",
            Self::TransactionNodes => "transaction-nodes",
            Self::NodePermissions => "node-permissions",
            Self::PathMax => "path-max",
            Self::NodeSize => "node-size",
        }
    }

    /// What it limits, for people.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Nodes => "nodes owned by a domain",
            Self::Watches => "watches set by a domain",
            Self::Outstanding => "requests not yet answered in full",
            Self::Memory => "bytes held for a domain",
            Self::SoftMemory => "bytes held for a domain before a warning",
            Self::Transactions => "transactions open at once",
            Self::TransactionNodes => "nodes touched by one transaction",
            Self::NodePermissions => "entries of a permission list",
            Self::PathMax => "bytes of a path",
            Self::NodeSize => "bytes of a node",
        }
    }

    /// Whether it limits something that a domain has a stock of, rather than a single request.
    #[must_use]
    pub fn counts_stock(self) -> bool {
        matches!(
            self,
            Self::Nodes | Self::Watches | Self::Outstanding | Self::Memory | Self::Transactions
        )
    }

    /// The quota with this name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.name().as_bytes() == name)
    }
}

/// One value for each quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quotas([u32; Quota::COUNT]);

impl Default for Quotas {
    /// The defaults of the C server.
    fn default() -> Self {
        Self([1000, 128, 20, 2_621_440, 2_097_152, 10, 1024, 5, 2048, 2048])
    }
}

impl Quotas {
    /// All zero: no limit, or nothing used.
    pub const ZERO: Self = Self([0; Quota::COUNT]);

    /// The value of one quota.
    #[must_use]
    pub fn get(&self, quota: Quota) -> u32 {
        self.0.get(quota as usize).copied().unwrap_or(0)
    }

    /// Changes one value.
    pub fn set(&mut self, quota: Quota, value: u32) {
        if let Some(slot) = self.0.get_mut(quota as usize) {
            *slot = value;
        }
    }

    /// Whether `amount` stays within the limit.
    #[must_use]
    pub fn allows(&self, quota: Quota, amount: usize) -> bool {
        let limit = self.get(quota);
        limit == 0 || amount <= limit as usize
    }
}
