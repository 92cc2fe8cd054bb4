//! Our own encoding of what Raft keeps: entries in the log and the members in a snapshot. Nothing here follows openraft's serde
//! layout, which may change with any version of it.
//! In: entries. Out: bytes, and back. Invariants: the first byte is a version, the second a kind, the rest JSON (so the byte 0xFF, by which
//! the log finds its records, never occurs); what a version once wrote is readable for ever.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ursa_state::{Changeset, Command};

use crate::log::EntryId;

/// Version of the encoding written here.
const VERSION: u8 = 1;
/// Version of commands from [`crate::level::EXAMPLE`] on. No program knows that level.
#[cfg(any(test, feature = "testing"))]
const VERSION_OF_EXAMPLE: u8 = 2;
const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERS: u8 = 2;

/// A command on its way through Raft, with its encoding: it is encoded once, by whoever proposes it, and not in the core's loop.
#[derive(Clone)]
pub struct Proposal {
    command: Arc<Command>,
    encoded: Bytes,
}

impl Proposal {
    /// Encodes the command, and reads it back: an entry that could not be read would stop every replica at its next start, and
    /// what the leader applies must be to the last digit what the others will read.
    ///
    /// # Errors
    /// It has no JSON form, or one that is refused when read (too deep, a name that is none).
    pub fn new(command: &Command) -> Result<Self, serde_json::Error> {
        Self::at(command, crate::level::FIRST)
    }

    /// As [`Proposal::new`], in a group at this feature level.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn at(command: &Command, level: u32) -> Result<Self, serde_json::Error> {
        let mut encoded = vec![version_at(level), COMMAND];
        serde_json::to_writer(&mut encoded, command)?;
        let read = serde_json::from_slice(encoded.get(2..).unwrap_or_default())?;
        Ok(Self {
            command: Arc::new(read),
            encoded: encoded.into(),
        })
    }

    /// Takes over an encoding made elsewhere by [`Proposal::new`].
    ///
    /// # Errors
    /// It is none.
    pub fn decode(encoded: Bytes) -> Result<Self, String> {
        match Payload::decode(&encoded)? {
            Payload::Command(Self { command, .. }) => Ok(Self { command, encoded }),
            Payload::Blank | Payload::Members(_) => Err("it is no command".to_owned()),
        }
    }

    /// Reverses [`Proposal::decode`].
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Bytes it takes in the log.
    pub fn size(&self) -> usize {
        self.encoded.len()
    }
}

/// Short, for the log of the program: contents may be Secrets.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.command {
            Command::Init { history } => write!(f, "init {history}"),
            Command::Change(Changeset { id, ops, .. }) => write!(f, "changeset {id} of {} ops", ops.len()),
            Command::Compact { floor } => write!(f, "compact to {floor}"),
            Command::RaiseFeatureLevel { level } => write!(f, "feature level {level}"),
        }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Proposal {
    fn eq(&self, other: &Self) -> bool {
        self.encoded == other.encoded
    }
}

// openraft asks for serde on its data; nothing is ever stored or sent this way.
impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.command.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Command::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// How to reach a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of its cluster listener; empty in a group of one that has none.
    pub address: String,
    /// An operator has moved it there: this counts, whatever is configured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
}

impl Peer {
    /// A member with this address.
    pub fn at(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            moved: false,
        }
    }
}

/// Who is in the group. More than one set of voters only while it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub voters: Vec<BTreeSet<u64>>,
    /// Voters and learners.
    pub nodes: BTreeMap<u64, Peer>,
}

/// The members and the entry that made them so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembers {
    pub since: Option<EntryId>,
    pub members: Members,
}

/// Version of the encoding of commands at a feature level.
fn version_at(level: u32) -> u8 {
    #[cfg(any(test, feature = "testing"))]
    if level >= crate::level::EXAMPLE {
        return VERSION_OF_EXAMPLE;
    }
    let _ = level;
    VERSION
}

fn is_known(version: u8) -> bool {
    #[cfg(any(test, feature = "testing"))]
    if version == VERSION_OF_EXAMPLE {
        return true;
    }
    version == VERSION
}

/// Content of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    Command(Proposal),
    Members(Members),
}

impl Payload {
    /// See the module's text.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Blank => Bytes::from_static(&[VERSION, BLANK]),
            Self::Command(proposal) => proposal.encoded.clone(),
            Self::Members(members) => {
                let mut bytes = vec![VERSION, MEMBERS];
                serde_json::to_writer(&mut bytes, members).expect("numbers and strings always have a JSON form");
                bytes.into()
            }
        }
    }

    /// Reverses [`Payload::encode`].
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [VERSION, BLANK] => Ok(Self::Blank),
            [version, COMMAND, json @ ..] if is_known(*version) => {
                let command = serde_json::from_slice(json).map_err(|error| format!("the command cannot be read: {error}"))?;
                Ok(Self::Command(Proposal {
                    command: Arc::new(command),
                    encoded: Bytes::copy_from_slice(bytes),
                }))
            }
            [VERSION, MEMBERS, json @ ..] => serde_json::from_slice(json)
                .map(Self::Members)
                .map_err(|error| format!("the members cannot be read: {error}")),
            [VERSION, kind, ..] => Err(format!("kind {kind} is not known here; a newer program wrote it")),
            [version, ..] => Err(format!(
                "version {version} is not known here (this program knows {VERSION}); a newer program wrote it"
            )),
            [] => Err("it is empty".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ursa_model::{Kind, ResourceKey};
    use ursa_state::{HistoryId, RequestId};

    fn golden(payload: &Payload, text: &str) {
        let bytes = payload.encode();
        assert_eq!(&bytes[..1], [VERSION]);
        assert_eq!(std::str::from_utf8(&bytes[2..]).unwrap(), text);
        assert_eq!(&Payload::decode(&bytes).unwrap(), payload);
    }

    fn command(command: Command) -> Payload {
        Payload::Command(Proposal::new(&command).unwrap())
    }

    /// The layout is a promise to every later version: these texts may be added to, never changed.
    #[test]
    fn golden_payloads() {
        golden(&Payload::Blank, "");
        golden(
            &command(Command::Init { history: HistoryId(10) }),
            r#"{"command":"init","history":"0000000000000000000000000000000a"}"#,
        );
        golden(&command(Command::Compact { floor: 7 }), r#"{"command":"compact","floor":7}"#);
        golden(
            &command(Command::RaiseFeatureLevel { level: 2 }),
            r#"{"command":"raise_feature_level","level":2}"#,
        );
        let set = Changeset {
            id: RequestId(1),
            actor: "me".to_owned(),
            ..Changeset::default()
        };
        let expected = command(Command::Change(set.clone()));
        let bytes = expected.encode();
        let text = std::str::from_utf8(&bytes[2..]).unwrap();
        assert!(
            text.starts_with(r#"{"command":"change","id":"00000000000000000000000000000001","at":"#),
            "{text}"
        );
        assert!(text.ends_with(r#","mode":"atomic","ops":[],"actor":"me"}"#), "{text}");
        let members = Members {
            voters: vec![BTreeSet::from([1, 2])],
            nodes: BTreeMap::from([(1, Peer::at("a:1")), (2, Peer::default())]),
        };
        golden(
            &Payload::Members(members),
            r#"{"voters":[[1,2]],"nodes":{"1":{"address":"a:1"},"2":{"address":""}}}"#,
        );
        let moved = Peer {
            moved: true,
            ..Peer::at("b:1")
        };
        let members = Members {
            voters: vec![BTreeSet::from([1])],
            nodes: BTreeMap::from([(1, moved)]),
        };
        golden(
            &Payload::Members(members),
            r#"{"voters":[[1]],"nodes":{"1":{"address":"b:1","moved":true}}}"#,
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert!(Payload::decode(&[]).unwrap_err().contains("empty"));
        assert!(Payload::decode(&[2, 0]).unwrap_err().contains("version 2"));
        assert!(Payload::decode(&[1, 9]).unwrap_err().contains("kind 9"));
        assert!(Payload::decode(b"\x01\x01{").unwrap_err().contains("command cannot be read"));
    }

    #[test]
    fn what_could_not_be_read_back_is_refused() {
        let delete = |key| {
            Command::Change(Changeset {
                ops: vec![ursa_state::Op::delete(key)],
                ..Changeset::default()
            })
        };
        assert!(Proposal::new(&delete(ResourceKey::mesh_itself("default").unwrap())).is_ok());
        assert!(
            Proposal::new(&delete(ResourceKey::first(Kind::Mesh, ""))).is_err(),
            "a key without a name"
        );
    }

    #[test]
    fn the_short_form_shows_no_content() {
        let set = Changeset {
            actor: "hunter2".to_owned(),
            ..Changeset::default()
        };
        let proposal = Proposal::new(&Command::Change(set)).unwrap();
        assert!(!format!("{proposal} {proposal:?}").contains("hunter2"));
    }
}
