//! Which shard an event belongs to: xxh3 of its key, reduced to the number of shards.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The rule of one layout generation; it stands in `log.manifest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// Seed of the hash.
    pub seed: u64,
    /// Number of shards, at least one.
    pub shards: u32,
}

impl Router {
    /// Index of the shard within the layout, `0..shards`.
    ///
    /// Multiply-and-shift instead of a remainder: no division on the producer's path, and every
    /// shard gets the same share of the hash space to within one part in 2^32.
    #[inline]
    pub fn route(&self, key: &[u8]) -> u32 {
        if self.shards == 1 {
            return 0;
        }
        let hash = xxh3_64_with_seed(key, self.seed);
        ((hash as u128 * self.shards as u128) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_gets_its_share() {
        let router = Router { seed: 7, shards: 5 };
        let mut counts = [0u32; 5];
        for i in 0..50_000u32 {
            counts[router.route(&i.to_le_bytes()) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (9_000..11_000).contains(&n)), "{counts:?}");
    }

    /// The layout is part of the format: a key that moved would break a producer's order.
    #[test]
    fn routes_are_frozen() {
        let router = Router { seed: 0, shards: 4 };
        let routes: Vec<u32> =
            ["", "a", "alice", "order-4711"].iter().map(|k| router.route(k.as_bytes())).collect();
        assert_eq!(routes, FROZEN);
    }
    const FROZEN: [u32; 4] = [0, 3, 1, 3];
}
