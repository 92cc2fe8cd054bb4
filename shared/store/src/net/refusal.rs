//! Why two nodes do not talk to each other: mistakes of set-up, each with its way out.
//! In: what was found. Out: a typed reason that crosses the wire. Invariant: whatever is refused had no effect.
use serde::{Deserialize, Serialize};
use ursa_state::HistoryId;
use uuid::Uuid;

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
         not vote: run it on that very folder if it still exists (a backup of it will not do, it is older), or remove node {node} from the \
         group and add a new one with an empty folder under an id that was never used"
    )]
    OtherFolder { node: u64 },
    /// A copy of the data folder that is older than what the group has seen of it.
    #[error(
        "the data folder of node {node} is not the one that the group has seen last: it is a copy or a restored backup, or another copy has run \
         since; run the node in one place only, on the folder it ran on last, or remove it from the group and add a new one with an empty folder \
         under an id that was never used"
    )]
    OlderCopy { node: u64 },
    /// A node came back with less of its log than it had confirmed.
    #[error(
        "node {node} has come back without entries of its log that it had confirmed (it had those up to {had}, it has {}): its log was cut \
         short, so it must neither vote nor be counted on: put back the files of its data folder as they were, or remove node {node} from the \
         group and add a new one with an empty folder under an id that was never used",
        has.map_or_else(|| "none".to_owned(), |has| format!("those up to {has}"))
    )]
    Shortened { node: u64, had: u64, has: Option<u64> },
    /// Its program does not know the feature level that the group is at.
    #[error(
        "node {node} runs a version that knows feature levels {min} to {max}, and the group is at level {level}: install the version that the \
         other nodes run on node {node}"
    )]
    Level { node: u64, level: u32, min: u32, max: u32 },
    /// Two processes on copies of one folder.
    #[error("node {node} runs twice, on copies of one data folder: stop one of them for good")]
    Doubled { node: u64 },
    /// The node has started again, or was never met: before it is noted it must have written down what is known of it.
    #[error("node {node} has just started and introduces itself")]
    Introduce {
        node: u64,
        /// The boot under which it is known.
        known: Option<Uuid>,
    },
    /// A certificate of the cluster, but no member of the group.
    #[error(
        "node {node} is no member of the group as far as node {here} knows: add it to the group first; if it has been added while node {here} \
         was away, add it to the list of members of node {here} too"
    )]
    NotMember { node: u64, here: u64 },
    /// It was a member once.
    #[error(
        "node {node} was removed from the group of history {history}, takes no part in it any more, and its id is not used again: stop it for \
         good; to use the machine anew, give it an empty folder and an id that was never used, and add that one"
    )]
    HasLeft { node: u64, history: HistoryId },
    /// Two nodes that are to found one group disagree about who founds it.
    #[error(
        "node {node} is configured with the members {theirs}, this node with {ours}: give all nodes the same list of members, then the group \
         is founded"
    )]
    OtherMembers { node: u64, ours: String, theirs: String },
    /// It would have to write something down.
    #[error("the disk of node {node} takes nothing at the moment ({reason})")]
    DiskRefuses { node: u64, reason: String },
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
            Self::NotReady { .. } | Self::Stopped { .. } | Self::Introduce { .. } | Self::DiskRefuses { .. } => true,
            Self::OtherNode { .. }
            | Self::OtherCertificate { .. }
            | Self::ForeignCertificate { .. }
            | Self::OtherHistory { .. }
            | Self::OtherFolder { .. }
            | Self::OlderCopy { .. }
            | Self::Shortened { .. }
            | Self::Level { .. }
            | Self::Doubled { .. }
            | Self::NotMember { .. }
            | Self::HasLeft { .. }
            | Self::OtherMembers { .. }
            | Self::Malformed { .. } => false,
        }
    }

    /// It says that `node` is not the one the group knows.
    pub fn disowns(&self, node: u64) -> bool {
        match self {
            Self::OtherFolder { node: it }
            | Self::OlderCopy { node: it }
            | Self::Shortened { node: it, .. }
            | Self::Doubled { node: it }
            | Self::HasLeft { node: it, .. } => *it == node,
            // The other way round it may be the one who says this that is behind.
            Self::Level { node: it, level, max, .. } => *it == node && level > max,
            _ => false,
        }
    }
}
