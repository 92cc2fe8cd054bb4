//! Why two nodes do not talk to each other: mistakes of set-up, each with its way out.
//! In: what was found. Out: a typed reason that crosses the wire. Invariant: whatever is refused had no effect.
use serde::{Deserialize, Serialize};
use ursa_state::HistoryId;

/// See the module's text. `Display` is for the operator and says the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// The address of one member leads to another.
    #[error("at the address of node {asked} node {is} answers: correct the address of node {asked} in the list of members")]
    OtherNode { asked: u64, is: u64 },
    /// The caller's words and its certificate do not agree.
    #[error("node {says} came with the certificate of node {is}: give each node its own certificate")]
    OtherCertificate { says: u64, is: u64 },
    /// Not from this cluster's CA, or names no node of it.
    #[error(
        "the certificate of the other side is not one of this cluster ({reason}): give all nodes certificates of the same cluster CA, and \
         check that the addresses of the members are theirs"
    )]
    ForeignCertificate { reason: String },
    /// Two groups that were founded or restored separately.
    #[error(
        "node {node} belongs to history {theirs}, this node to {ours}: they hold different data and are never mixed; decide which one is \
         right, and let the other node rejoin with an empty data folder under a new id"
    )]
    OtherHistory { node: u64, ours: HistoryId, theirs: HistoryId },
    /// A node came back without what it had promised.
    #[error(
        "the group knows node {node} with another data folder; a node that has lost its folder has also forgotten what it promised, and must \
         not vote: restore the folder it had, or remove node {node} from the group and add it anew under an id that was never used"
    )]
    OtherFolder { node: u64 },
    /// A copy of the data folder that is older than what the group has seen of it.
    #[error(
        "the data folder of node {node} is older than what the group has seen of it: it is a copy, or a newer one runs elsewhere; run the node \
         in one place only, on its newest folder, or remove it and add it anew under an id that was never used"
    )]
    OlderCopy { node: u64 },
    /// Two processes on copies of one folder.
    #[error("node {node} runs twice, on copies of one data folder: stop one of them for good")]
    Doubled { node: u64 },
    /// On its first start, before it may take part.
    #[error("node {node} has not taken its place in the group yet")]
    NotReady { node: u64 },
    /// The store behind the listener is gone or going.
    #[error("the store of node {node} has stopped")]
    Stopped { node: u64 },
    /// What was sent is not understood.
    #[error("the call cannot be understood ({reason}): do all nodes run versions that belong together?")]
    Malformed { reason: String },
}

impl Refusal {
    /// Passes by itself, without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotReady { .. } | Self::Stopped { .. } => true,
            Self::OtherNode { .. }
            | Self::OtherCertificate { .. }
            | Self::ForeignCertificate { .. }
            | Self::OtherHistory { .. }
            | Self::OtherFolder { .. }
            | Self::OlderCopy { .. }
            | Self::Doubled { .. }
            | Self::Malformed { .. } => false,
        }
    }

    /// It says that `node` is not the one the group knows.
    pub fn disowns(&self, node: u64) -> bool {
        match self {
            Self::OtherFolder { node: it } | Self::OlderCopy { node: it } | Self::Doubled { node: it } => *it == node,
            _ => false,
        }
    }
}
