//! Merkle trees as RFC 6962 defines them (section 2.1), over SHA-256.
//!
//! ```text
//! leaf hash   SHA-256(0x00 ‖ data)
//! node hash   SHA-256(0x01 ‖ left ‖ right)
//! empty tree  SHA-256("")
//! ```
//! A tree of n leaves is a perfect tree over the greatest power of two below n, and the tree of the
//! rest beside it. So a tree only ever grows at its right edge, and its *frontier*, the perfect trees
//! it is made of, is all that growing needs.

mod frontier;
mod proof;

pub use frontier::Frontier;
pub use proof::{
    ProofFault, check_consistency, consistency, consistency_nodes, inclusion, inclusion_nodes,
    root_from_inclusion,
};

use sha2::{Digest as _, Sha256};

/// A hash of the tree.
pub type Hash = [u8; 32];

/// Hash of a leaf with this data.
pub fn leaf(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// Hash of the node above these two.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    Sha256::digest(bytes).into()
}

/// Root of the tree without leaves.
pub fn empty() -> Hash {
    Sha256::digest([]).into()
}

/// A perfect tree within a tree: it covers the leaves `index << level .. (index + 1) << level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u32,
    /// Counts the nodes of that level from the left.
    pub index: u64,
}

/// The perfect trees that the leaves `first..end` are made of, from left to right, where `first` is a
/// multiple of the greatest of them.
fn perfect(first: u64, end: u64) -> impl Iterator<Item = Node> {
    let mut at = first;
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|&left| left > 0)?;
        let level = left.ilog2();
        let node = Node { level, index: at >> level };
        at += 1 << level;
        Some(node)
    })
}

#[cfg(test)]
mod vectors {
    /// The data of the eight leaves that Certificate Transparency's implementations test with.
    pub(super) const DATA: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
}
