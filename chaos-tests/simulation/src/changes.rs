//! What became of the members, counted over a run or over many.
//! In: what was done. Out: numbers, a line of them. Invariant: only what had come to its end counts.
use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What became of the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Nodes that came and have everything.
    pub joined: u64,
    pub promoted: u64,
    pub removed: u64,
    /// Dead nodes whose vote another one got.
    pub replaced: u64,
    pub moved: u64,
    /// Nodes that lost their folder.
    pub wiped: u64,
    /// How often one of these was told that it has no part any more.
    pub refused: u64,
}

impl AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.joined += other.joined;
        self.promoted += other.promoted;
        self.removed += other.removed;
        self.replaced += other.replaced;
        self.moved += other.moved;
        self.wiped += other.wiped;
        self.refused += other.refused;
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nodes: {} joined, {} promoted, {} removed, {} replaced, {} moved, {} wiped and {} times refused",
            self.joined, self.promoted, self.removed, self.replaced, self.moved, self.wiped, self.refused
        )
    }
}
