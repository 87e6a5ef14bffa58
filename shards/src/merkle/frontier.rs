//! The right edge of a tree.

use super::{Hash, Node, empty, node, perfect};

/// The perfect trees that a tree of some size is made of, the greatest first: one for each bit that is
/// set in the size.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

impl Frontier {
    /// The most hashes that a frontier has.
    pub const HASHES_MAX: usize = 64;

    /// Of a tree without leaves.
    pub const fn new() -> Frontier {
        Frontier { size: 0, hashes: Vec::new() }
    }

    /// From what [`Frontier::size`] and [`Frontier::hashes`] gave. `None` if their numbers do not agree.
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Option<Frontier> {
        (size.count_ones() as usize == hashes.len()).then_some(Frontier { size, hashes })
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The perfect trees' roots, the greatest tree first.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Adds a leaf, by its hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_telling(leaf, &mut |_, _| {});
    }

    /// Adds a leaf, and tells every node that is complete now, the leaf first.
    pub fn push_telling(&mut self, leaf: Hash, complete: &mut dyn FnMut(Node, &Hash)) {
        self.push_perfect(0, leaf, complete);
    }

    /// Adds the same leaf so often, in steps that double.
    pub fn push_repeated(&mut self, leaf: Hash, mut count: u64) {
        let mut perfect = vec![leaf];
        while count > 0 {
            let level = count.ilog2().min(self.size.trailing_zeros());
            while perfect.len() <= level as usize {
                let last = perfect[perfect.len() - 1];
                perfect.push(node(&last, &last));
            }
            self.push_perfect(level, perfect[level as usize], &mut |_, _| {});
            count -= 1 << level;
        }
    }

    /// Adds a perfect tree of `1 << level` leaves, of which the size must be a multiple.
    fn push_perfect(&mut self, level: u32, root: Hash, complete: &mut dyn FnMut(Node, &Hash)) {
        let mut at = Node { level, index: self.size >> level };
        let mut hash = root;
        complete(at, &hash);
        // Each bit that is set from there on is a perfect tree as large as the one that has just become whole.
        for _ in 0..at.index.trailing_ones() {
            let left = self.hashes.pop().expect("one hash for each bit that is set");
            hash = node(&left, &hash);
            at = Node { level: at.level + 1, index: at.index >> 1 };
            complete(at, &hash);
        }
        self.hashes.push(hash);
        self.size += 1 << level;
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return empty() };
        hashes.fold(*last, |right, left| node(left, &right))
    }

    /// Which nodes its hashes are.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        perfect(0, self.size)
    }
}

impl std::fmt::Debug for Frontier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frontier({}, {})", self.size, crate::manifest::hex(&self.root()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::leaf;
    use super::super::vectors::DATA;
    use super::*;

    /// The definition of RFC 6962, word for word.
    pub(in super::super) fn root_of(leaves: &[Hash]) -> Hash {
        match leaves.len() {
            0 => empty(),
            1 => leaves[0],
            n => {
                let k = 1 << (n - 1).ilog2();
                node(&root_of(&leaves[..k]), &root_of(&leaves[k..]))
            }
        }
    }

    /// The eight leaves and the roots that Certificate Transparency's implementations test with.
    #[test]
    fn roots_are_those_of_other_implementations() {
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::new();
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(crate::manifest::hex(&frontier.root()), *root, "{size} leaves");
            if let Some(data) = DATA.get(size) {
                frontier.push(leaf(data));
            }
        }
    }

    #[test]
    fn a_leaf_that_repeats_is_added_as_if_one_by_one() {
        for first in 0..20u64 {
            let mut slow = Frontier::new();
            (0..first).for_each(|i| slow.push(leaf(&i.to_le_bytes())));
            for count in 0..70 {
                let mut quick = slow.clone();
                quick.push_repeated([7; 32], count);
                let mut one_by_one = slow.clone();
                (0..count).for_each(|_| one_by_one.push([7; 32]));
                assert_eq!(quick, one_by_one, "{first} {count}");
            }
        }
        let mut huge = Frontier::new();
        huge.push_repeated([7; 32], u64::MAX);
        assert_eq!((huge.size(), huge.hashes().len()), (u64::MAX, 64));
    }

    #[test]
    fn a_frontier_is_the_tree_that_the_definition_makes() {
        let leaves: Vec<Hash> = (0..200u32).map(|i| leaf(&i.to_le_bytes())).collect();
        let mut frontier = Frontier::new();
        let mut nodes = std::collections::BTreeMap::new();
        for (i, &hash) in leaves.iter().enumerate() {
            assert_eq!(frontier.root(), root_of(&leaves[..i]), "{i} leaves");
            let same = Frontier::from_parts(frontier.size(), frontier.hashes().to_vec());
            assert_eq!(same.as_ref(), Some(&frontier));
            for (node, hash) in frontier.nodes().zip(frontier.hashes()) {
                assert_eq!(nodes.get(&node), Some(hash), "told when it became complete");
            }
            frontier.push_telling(hash, &mut |node, hash| assert!(nodes.insert(node, *hash).is_none()));
        }
        for (at, hash) in &nodes {
            let first = (at.index << at.level) as usize;
            assert_eq!(*hash, root_of(&leaves[first..first + (1 << at.level)]), "{at:?}");
        }
        assert_eq!(Frontier::from_parts(3, vec![[0; 32]]), None);
    }
}
