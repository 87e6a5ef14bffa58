//! Proofs of inclusion and of consistency (RFC 6962, 2.1.1 and 2.1.2).
//!
//! Making one is two steps: which nodes it needs, and their hashes, which whoever has the tree looks
//! up. Checking one needs no tree. The checks follow RFC 9162, 2.1.3.2 and 2.1.4.2.

use super::{Hash, Node, node, perfect};

/// Why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    /// The leaf or the old size is not within the tree.
    #[error("it speaks of what is not within the tree")]
    Range,
    /// Too few or too many hashes for trees of these sizes.
    #[error("it has the wrong number of hashes for a tree of that size")]
    Length,
    /// The hashes lead to another root.
    #[error("it leads to another root")]
    Root,
}

/// The nodes of the proof that leaf `index` is in the tree of `size` leaves. A step may need several
/// nodes: the root of a tree that is not perfect is joined from its perfect trees.
pub fn inclusion_nodes(index: u64, size: u64) -> Option<Vec<Vec<Node>>> {
    (index < size).then(|| {
        let mut steps = Vec::new();
        path(index, 0, size, &mut steps);
        steps
    })
}

/// PATH(m, D[n]), from the leaf upwards.
fn path(index: u64, first: u64, end: u64, steps: &mut Vec<Vec<Node>>) {
    if end - first == 1 {
        return;
    }
    let middle = first + split(end - first);
    if index < middle {
        path(index, first, middle, steps);
        steps.push(perfect(middle, end).collect());
    } else {
        path(index, middle, end, steps);
        steps.push(perfect(first, middle).collect());
    }
}

/// The nodes of the proof that the tree of `old` leaves is the beginning of the one of `new` leaves.
/// Empty if they are the same, or if the old one is empty.
pub fn consistency_nodes(old: u64, new: u64) -> Option<Vec<Vec<Node>>> {
    if old > new {
        return None;
    }
    let mut steps = Vec::new();
    if old > 0 && old < new {
        subproof(old, 0, new, true, &mut steps);
    }
    Some(steps)
}

/// SUBPROOF(m, D[n], b).
fn subproof(old: u64, first: u64, end: u64, whole: bool, steps: &mut Vec<Vec<Node>>) {
    let size = end - first;
    if old == size {
        if !whole {
            steps.push(perfect(first, end).collect());
        }
        return;
    }
    let k = split(size);
    if old <= k {
        subproof(old, first, first + k, whole, steps);
        steps.push(perfect(first + k, end).collect());
    } else {
        subproof(old - k, first + k, end, false, steps);
        steps.push(perfect(first, first + k).collect());
    }
}

/// The greatest power of two below `n`, which is 2 at least.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The proof that [`inclusion_nodes`] describes, with hashes from `look_up`.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    look_up: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    inclusion_nodes(index, size).map(|steps| join(steps, look_up)).transpose()
}

/// The proof that [`consistency_nodes`] describes, with hashes from `look_up`.
pub fn consistency<E>(
    old: u64,
    new: u64,
    look_up: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    consistency_nodes(old, new).map(|steps| join(steps, look_up)).transpose()
}

/// One hash a step: perfect trees side by side are joined from the right.
fn join<E>(steps: Vec<Vec<Node>>, mut look_up: impl FnMut(Node) -> Result<Hash, E>) -> Result<Vec<Hash>, E> {
    let mut hashes = Vec::with_capacity(steps.len());
    for step in steps {
        let mut joined: Option<Hash> = None;
        for at in step.into_iter().rev() {
            let left = look_up(at)?;
            joined = Some(joined.map_or(left, |right| node(&left, &right)));
        }
        hashes.push(joined.expect("a step has a node"));
    }
    Ok(hashes)
}

/// The root that a proof of inclusion leads to. It holds if that is the tree's root.
pub fn root_from_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash]) -> Result<Hash, ProofFault> {
    if index >= size {
        return Err(ProofFault::Range);
    }
    let (mut at, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for other in proof {
        if last == 0 {
            return Err(ProofFault::Length);
        }
        if at & 1 == 1 || at == last {
            hash = node(other, &hash);
            // Up to where it is a right child: above that its left siblings are missing from the tree.
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, other);
        }
        at >>= 1;
        last >>= 1;
    }
    if last == 0 { Ok(hash) } else { Err(ProofFault::Length) }
}

/// Whether the tree with root `old_root` is the beginning of the one with root `new_root`.
pub fn check_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofFault> {
    if old > new {
        return Err(ProofFault::Range);
    }
    if old == new || old == 0 {
        let same = old == 0 || old_root == new_root;
        let empty_root = old != 0 || *old_root == super::empty();
        return match (proof.is_empty(), same && empty_root) {
            (false, _) => Err(ProofFault::Length),
            (true, true) => Ok(()),
            (true, false) => Err(ProofFault::Root),
        };
    }
    // Where the old tree is perfect, its root is not sent along.
    let first = if old.is_power_of_two() { std::slice::from_ref(old_root) } else { &[] };
    let mut hashes = first.iter().chain(proof);
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let start = *hashes.next().ok_or(ProofFault::Length)?;
    let (mut old_hash, mut new_hash) = (start, start);
    for other in hashes {
        if last == 0 {
            return Err(ProofFault::Length);
        }
        if at & 1 == 1 || at == last {
            old_hash = node(other, &old_hash);
            new_hash = node(other, &new_hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node(&new_hash, other);
        }
        at >>= 1;
        last >>= 1;
    }
    match last {
        0 if old_hash == *old_root && new_hash == *new_root => Ok(()),
        0 => Err(ProofFault::Root),
        _ => Err(ProofFault::Length),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::super::vectors::DATA;
    use super::super::{Frontier, leaf};
    use super::*;

    const N: u64 = 70;

    struct Tree {
        leaves: Vec<Hash>,
        roots: Vec<Hash>,
        nodes: BTreeMap<Node, Hash>,
    }

    fn tree() -> Tree {
        let mut tree = Tree { leaves: Vec::new(), roots: Vec::new(), nodes: BTreeMap::new() };
        let mut frontier = Frontier::new();
        for i in 0..=N {
            tree.roots.push(frontier.root());
            let hash = leaf(&i.to_le_bytes());
            tree.leaves.push(hash);
            frontier.push_telling(hash, &mut |at, hash| {
                tree.nodes.insert(at, *hash);
            });
        }
        tree
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_no_other_is() {
        let tree = tree();
        for size in 1..=N {
            for index in 0..size {
                let proof = inclusion(index, size, |at| Ok::<_, Infallible>(tree.nodes[&at]));
                let proof = proof.unwrap().expect("within the tree");
                let root = |leaf: u64, index, size, proof: &[Hash]| {
                    root_from_inclusion(&tree.leaves[leaf as usize], index, size, proof)
                };
                assert_eq!(root(index, index, size, &proof), Ok(tree.roots[size as usize]));
                assert_ne!(
                    root((index + 1) % size.max(2), index, size, &proof),
                    Ok(tree.roots[size as usize])
                );
                if size > 1 {
                    assert_ne!(root(index, (index + 1) % size, size, &proof), Ok(tree.roots[size as usize]));
                }
                let mut longer = proof.clone();
                longer.push([7; 32]);
                assert_eq!(root(index, index, size, &longer), Err(ProofFault::Length));
                if let Some(shorter) = proof.len().checked_sub(1) {
                    assert_eq!(root(index, index, size, &proof[..shorter]), Err(ProofFault::Length));
                }
            }
            assert_eq!(inclusion_nodes(size, size), None);
        }
    }

    #[test]
    fn every_tree_is_the_beginning_of_every_later_one_and_of_no_other() {
        let tree = tree();
        for new in 0..=N {
            for old in 0..=new {
                let proof = consistency(old, new, |at| Ok::<_, Infallible>(tree.nodes[&at]));
                let proof = proof.unwrap().expect("in order");
                let (old_root, new_root) = (tree.roots[old as usize], tree.roots[new as usize]);
                assert_eq!(check_consistency(old, &old_root, new, &new_root, &proof), Ok(()), "{old} {new}");
                let other = leaf(b"another");
                if old > 0 {
                    assert!(check_consistency(old, &other, new, &new_root, &proof).is_err());
                    assert!(check_consistency(old, &old_root, new, &other, &proof).is_err());
                }
                for i in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[i][5] ^= 1;
                    let checked = check_consistency(old, &old_root, new, &new_root, &altered);
                    assert_eq!(checked, Err(ProofFault::Root));
                }
                let mut longer = proof.clone();
                longer.push([7; 32]);
                assert!(check_consistency(old, &old_root, new, &new_root, &longer).is_err());
                if let Some(shorter) = proof.len().checked_sub(1) {
                    let checked = check_consistency(old, &old_root, new, &new_root, &proof[..shorter]);
                    assert_eq!(checked, Err(ProofFault::Length));
                }
            }
            assert_eq!(consistency_nodes(new + 1, new), None);
        }
    }

    /// Proofs of Certificate Transparency's own tests, for the tree of its eight leaves.
    #[test]
    fn proofs_are_those_of_other_implementations() {
        let hex = |bytes: &[Hash]| bytes.iter().map(|h| crate::manifest::hex(h)).collect::<Vec<_>>();
        let mut nodes = BTreeMap::new();
        let mut frontier = Frontier::new();
        for data in DATA {
            frontier.push_telling(leaf(data), &mut |at, hash| {
                nodes.insert(at, *hash);
            });
        }
        let look_up = |at: Node| Ok::<_, Infallible>(nodes[&at]);
        let proof = inclusion(5, 8, look_up).unwrap().unwrap();
        assert_eq!(
            hex(&proof),
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
        let proof = consistency(6, 8, look_up).unwrap().unwrap();
        assert_eq!(
            hex(&proof),
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }
}
