//! The bytes of what nodes say to each other. Nothing here follows openraft's serde layout, which may change with any version of it.
//! In: plain structs. Out: bytes, and back.
//! Invariants: the first byte is a version, then JSON; what follows the JSON of an append are the entries, as they are in the log.
//! Fields are only ever added, with a default, so that two neighbouring versions understand each other during an upgrade.
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ursa_state::Applied;

use super::Refusal;
use super::promises::Promise;
use crate::log::{EntryId, Vote};

/// Version of the encoding written here.
const VERSION: u8 = 1;
/// Term, index and length before each entry.
const ENTRY_HEAD: usize = 20;
/// Entries of one request: the leader sends 300 at the most.
const MAX_ENTRIES: u32 = 100_000;

/// A leader's append or heartbeat, without the entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppendHead {
    pub(crate) vote: Vote,
    pub(crate) prev: Option<EntryId>,
    pub(crate) committed: Option<EntryId>,
    /// Milliseconds since a majority last acknowledged this leader; missing before the first time.
    #[serde(default)]
    pub(crate) quorum_age_ms: Option<u64>,
}

/// Answer to an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "append", rename_all = "snake_case")]
pub(crate) enum Appended {
    Success,
    Partial { upto: Option<EntryId> },
    Conflict,
    HigherVote { vote: Vote },
}

/// A candidate's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteCall {
    pub(crate) vote: Vote,
    pub(crate) last: Option<EntryId>,
    #[serde(default)]
    pub(crate) transfer: bool,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voted {
    pub(crate) vote: Vote,
    pub(crate) granted: bool,
    pub(crate) last: Option<EntryId>,
}

/// A leader hands over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) from: Vote,
    pub(crate) to: u64,
    pub(crate) last: Option<EntryId>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transfer", rename_all = "snake_case")]
pub(crate) enum Transferred {
    Accepted,
    VoteChanged {
        expected: Vote,
        actual: Vote,
    },
    NotFlushed {
        expected: Option<EntryId>,
        actual: Option<EntryId>,
    },
}

/// Head of a snapshot's transfer; the file says everything else about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Names the file's content; empty if it cannot be gone on with.
    #[serde(default)]
    pub(crate) id: String,
    /// What was sent before.
    #[serde(default)]
    pub(crate) offset: u64,
}

/// How much of a snapshot has arrived?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotAsk {
    pub(crate) id: String,
    pub(crate) size: u64,
}

/// So much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHave {
    pub(crate) offset: u64,
}

/// Answer to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installed {
    pub(crate) vote: Vote,
}

/// Head of a proposal that is passed on; its encoding follows, as in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProposeHead {
    /// Milliseconds that the caller waits.
    pub(crate) wait_ms: u64,
    /// The caller does not reach the leader: pass it on, once.
    #[serde(default)]
    pub(crate) relay: bool,
}

/// The question for a read barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BarrierCall {
    /// Milliseconds that the caller waits.
    pub(crate) wait_ms: u64,
    /// As in [`ProposeHead`].
    #[serde(default)]
    pub(crate) relay: bool,
}

/// What became of a proposal at the node it was passed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proposed", rename_all = "snake_case")]
pub(crate) enum Proposed {
    /// Committed at this index of the log.
    Done {
        index: u64,
        applied: Applied,
    },
    /// Not taken in; nothing was changed.
    NotLeader {
        leader: Option<u64>,
    },
    /// It may or may not be committed.
    Unknown {
        reason: String,
    },
    TooLarge {
        bytes: usize,
        limit: usize,
    },
    Invalid {
        reason: String,
    },
    /// Not taken in, for no majority could store it; nothing was changed.
    NoSpace {
        reason: String,
    },
}

/// Answer to the question for a read barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "barrier", rename_all = "snake_case")]
pub(crate) enum Barrier {
    /// Whoever has applied this entry may answer.
    At {
        index: u64,
    },
    NotLeader {
        leader: Option<u64>,
    },
    NoQuorum {
        reason: String,
    },
}

/// A hello of a node that is about to found a group; others say hello without words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hail {
    /// The members that it is configured with.
    pub(crate) members: BTreeMap<u64, String>,
}

impl Hail {
    /// Whether `node`, which is configured with `theirs`, founds the same group.
    ///
    /// # Errors
    /// [`Refusal::OtherMembers`], in the words of the one who said this.
    pub(crate) fn agrees(&self, node: u64, theirs: &BTreeMap<u64, String>) -> Result<(), Refusal> {
        if self.members == *theirs {
            return Ok(());
        }
        let list = |members: &BTreeMap<u64, String>| {
            let list: Vec<String> = members.iter().map(|(id, address)| format!("{id}={address}")).collect();
            list.join(" ")
        };
        Err(Refusal::OtherMembers {
            node,
            ours: list(&self.members),
            theirs: list(theirs),
        })
    }
}

/// Answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// It has taken its place in the group.
    pub(crate) admitted: bool,
    /// Its log holds more than the list of first members: there was a leader.
    pub(crate) founded: bool,
    /// The members in its log, with addresses.
    #[serde(default)]
    pub(crate) members: BTreeMap<u64, String>,
    /// What members have confirmed of their logs, as far as it knows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) confirmed: BTreeMap<u64, Promise>,
}

/// Version and JSON.
pub(crate) fn encode(message: &impl Serialize) -> Bytes {
    let mut bytes = vec![VERSION];
    // Plain structs of numbers and strings have a JSON form; were it not so, the receiver would say that the call is malformed.
    if let Err(error) = serde_json::to_writer(&mut bytes, message) {
        tracing::error!(%error, "a message between nodes cannot be encoded");
    }
    bytes.into()
}

fn malformed(reason: impl std::fmt::Display) -> Refusal {
    Refusal::Malformed {
        reason: reason.to_string(),
    }
}

/// Reverses [`encode`].
///
/// # Errors
/// [`Refusal::Malformed`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    match bytes {
        [VERSION, json @ ..] => serde_json::from_slice(json).map_err(malformed),
        [version, ..] => Err(malformed(format_args!("version {version} of the encoding, known is {VERSION}"))),
        [] => Err(malformed("it is empty")),
    }
}

/// Version, length of the JSON, JSON, rest.
pub(crate) fn encode_with(head: &impl Serialize, rest: &[u8]) -> Bytes {
    let json = serde_json::to_vec(head).unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(5 + json.len() + rest.len());
    bytes.put_u8(VERSION);
    bytes.put_u32_le(u32::try_from(json.len()).unwrap_or(u32::MAX));
    bytes.put_slice(&json);
    bytes.put_slice(rest);
    bytes.freeze()
}

/// Reverses [`encode_with`].
///
/// # Errors
/// [`Refusal::Malformed`].
pub(crate) fn decode_with<T: DeserializeOwned>(bytes: &Bytes) -> Result<(T, Bytes), Refusal> {
    let (version, after) = bytes.split_first().ok_or_else(|| malformed("it is empty"))?;
    if *version != VERSION {
        return Err(malformed(format_args!("version {version} of the encoding, known is {VERSION}")));
    }
    let (len, after) = after.split_first_chunk().ok_or_else(|| malformed("it is too short"))?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(malformed)?;
    let json = after.get(..len).ok_or_else(|| malformed("it is too short"))?;
    let head = serde_json::from_slice(json).map_err(malformed)?;
    Ok((head, bytes.slice_ref(after.get(len..).unwrap_or_default())))
}

/// Entries one after the other.
pub(crate) fn encode_entries<'a>(entries: impl ExactSizeIterator<Item = (EntryId, Bytes)> + 'a) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(u32::try_from(entries.len()).unwrap_or(u32::MAX));
    for (id, content) in entries {
        bytes.reserve(ENTRY_HEAD + content.len());
        bytes.put_u64_le(id.term);
        bytes.put_u64_le(id.index);
        bytes.put_u32_le(u32::try_from(content.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&content);
    }
    bytes.freeze()
}

/// Reverses [`encode_entries`].
///
/// # Errors
/// [`Refusal::Malformed`].
pub(crate) fn decode_entries(bytes: &[u8]) -> Result<Vec<(EntryId, &[u8])>, Refusal> {
    let short = || malformed("the entries are cut short");
    let (count, mut rest) = bytes.split_first_chunk().ok_or_else(short)?;
    let count = u32::from_le_bytes(*count);
    if count > MAX_ENTRIES {
        return Err(malformed("too many entries"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let (term, after) = rest.split_first_chunk().ok_or_else(short)?;
        let (index, after) = after.split_first_chunk().ok_or_else(short)?;
        let (len, after) = after.split_first_chunk().ok_or_else(short)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(malformed)?;
        let content = after.get(..len).ok_or_else(short)?;
        let id = EntryId {
            term: u64::from_le_bytes(*term),
            index: u64::from_le_bytes(*index),
        };
        entries.push((id, content));
        rest = after.get(len..).unwrap_or_default();
    }
    if rest.is_empty() {
        Ok(entries)
    } else {
        Err(malformed("there is more than the entries"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTE: Vote = Vote {
        term: 3,
        node_id: 2,
        committed: true,
    };
    const LAST: Option<EntryId> = Some(EntryId { term: 3, index: 9 });

    fn golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: T, json: &str) {
        let bytes = encode(&message);
        assert_eq!(bytes[0], VERSION);
        assert_eq!(std::str::from_utf8(&bytes[1..]).unwrap(), json);
        assert_eq!(decode::<T>(&bytes).unwrap(), message);
    }

    /// Two neighbouring versions talk to each other: these texts may be added to, never changed.
    #[test]
    fn golden_messages() {
        let vote = r#"{"term":3,"node_id":2,"committed":true}"#;
        let last = r#"{"term":3,"index":9}"#;
        golden(
            AppendHead {
                vote: VOTE,
                prev: None,
                committed: LAST,
                quorum_age_ms: Some(5),
            },
            &format!(r#"{{"vote":{vote},"prev":null,"committed":{last},"quorum_age_ms":5}}"#),
        );
        golden(Appended::Success, r#"{"append":"success"}"#);
        golden(Appended::Conflict, r#"{"append":"conflict"}"#);
        golden(
            Appended::Partial { upto: LAST },
            &format!(r#"{{"append":"partial","upto":{last}}}"#),
        );
        golden(
            Appended::HigherVote { vote: VOTE },
            &format!(r#"{{"append":"higher_vote","vote":{vote}}}"#),
        );
        golden(
            VoteCall {
                vote: VOTE,
                last: LAST,
                transfer: true,
            },
            &format!(r#"{{"vote":{vote},"last":{last},"transfer":true}}"#),
        );
        golden(
            Voted {
                vote: VOTE,
                granted: false,
                last: None,
            },
            &format!(r#"{{"vote":{vote},"granted":false,"last":null}}"#),
        );
        golden(
            Transfer {
                from: VOTE,
                to: 1,
                last: LAST,
            },
            &format!(r#"{{"from":{vote},"to":1,"last":{last}}}"#),
        );
        golden(Transferred::Accepted, r#"{"transfer":"accepted"}"#);
        golden(
            SnapshotHead {
                vote: VOTE,
                size: 7,
                id: "x".to_owned(),
                offset: 3,
            },
            &format!(r#"{{"vote":{vote},"size":7,"id":"x","offset":3}}"#),
        );
        let first: SnapshotHead = decode(format!("\x01{{\"vote\":{vote},\"size\":7}}").as_bytes()).unwrap();
        assert_eq!((first.id.as_str(), first.offset), ("", 0));
        golden(
            SnapshotAsk {
                id: "x".to_owned(),
                size: 7,
            },
            r#"{"id":"x","size":7}"#,
        );
        golden(SnapshotHave { offset: 3 }, r#"{"offset":3}"#);
        golden(Installed { vote: VOTE }, &format!(r#"{{"vote":{vote}}}"#));
        golden(ProposeHead { wait_ms: 7, relay: false }, r#"{"wait_ms":7,"relay":false}"#);
        golden(BarrierCall { wait_ms: 7, relay: true }, r#"{"wait_ms":7,"relay":true}"#);
        golden(
            Proposed::Done {
                index: 4,
                applied: Applied::default(),
            },
            r#"{"proposed":"done","index":4,"applied":{"revision":0,"results":[]}}"#,
        );
        golden(Proposed::NotLeader { leader: None }, r#"{"proposed":"not_leader","leader":null}"#);
        golden(Barrier::At { index: 4 }, r#"{"barrier":"at","index":4}"#);
        golden(
            Greeting {
                admitted: true,
                founded: false,
                members: BTreeMap::from([(1, "a:1".to_owned())]),
                confirmed: BTreeMap::new(),
            },
            r#"{"admitted":true,"founded":false,"members":{"1":"a:1"}}"#,
        );
        let first: Greeting = decode(b"\x01{\"admitted\":true,\"founded\":true}").unwrap();
        assert!(first.members.is_empty());
        let members = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        golden(Hail { members }, r#"{"members":{"1":"a:1","2":"b:1"}}"#);
        golden(
            Refusal::OtherNode { asked: 1, is: 2 },
            r#"{"refusal":"other_node","asked":1,"is":2}"#,
        );
        golden(
            Refusal::Introduce { node: 1, known: None },
            r#"{"refusal":"introduce","node":1,"known":null}"#,
        );
    }

    #[test]
    fn entries_come_back_and_anything_else_is_refused() {
        let first = EntryId { term: 1, index: 4 };
        let entries = [(first, Bytes::from_static(b"one")), (EntryId { term: 2, index: 5 }, Bytes::new())];
        let bytes = encode_entries(entries.clone().into_iter());
        let read = decode_entries(&bytes).unwrap();
        assert_eq!(read, [(entries[0].0, &b"one"[..]), (entries[1].0, &b""[..])]);
        for cut in 0..bytes.len() {
            assert!(decode_entries(&bytes[..cut]).is_err(), "{cut}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(decode_entries(&longer).is_err());
        let whole = encode_with(&Installed { vote: VOTE }, &bytes);
        let (head, rest) = decode_with::<Installed>(&whole).unwrap();
        assert_eq!((head.vote, rest), (VOTE, bytes.clone()));
        for cut in 0..whole.len() - bytes.len() {
            assert!(decode_with::<Installed>(&whole.slice(..cut)).is_err(), "{cut}");
        }
        assert!(decode::<Installed>(&[]).is_err());
        assert!(decode::<Installed>(b"\x09{}").unwrap_err().to_string().contains("version 9"));
    }
}
