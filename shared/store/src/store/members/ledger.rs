//! What is stored beside the list of members in the log: who was given a token, and who has left. A resource that no API shows, so it is
//! replicated, in snapshots, backups and histories like all others.
//! In: views. Out: what they say, and changesets. Invariants: no token is stored, only its digest; an id that left stays.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_state::{Changeset, Expect, Op, Put, RequestId, View};
use uuid::Uuid;

use super::Objection;
use crate::error::Error;
use crate::store::Store;

/// Name of the resource.
pub(crate) const NAME: &str = "ursa-members";
/// A token that was used or has ended is remembered for so long, to say so to whoever brings it.
const REMEMBERED_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// One token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Invitation {
    digest: String,
    pub(super) address: String,
    until: Timestamp,
    /// The data folder of the node that came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_by: Option<Uuid>,
}

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    #[serde(default)]
    pub(super) invited: BTreeMap<u64, Invitation>,
    #[serde(default)]
    pub(super) left: BTreeSet<u64>,
    /// Of the resource; missing before the first.
    #[serde(skip)]
    version: Option<u64>,
}

fn digest(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Ledger {
    /// What a view says.
    ///
    /// # Errors
    /// It cannot be read; a newer program wrote it.
    pub(crate) fn of(view: &View) -> Result<Self, String> {
        let key = key()?;
        let Some(resource) = view.get(&key) else {
            return Ok(Self::default());
        };
        let text = resource.spec.get("config").and_then(serde_json::Value::as_str).unwrap_or_default();
        let mut ledger: Self = serde_json::from_str(text).map_err(|error| format!("{key}: {error}"))?;
        ledger.version = Some(resource.version);
        Ok(ledger)
    }

    /// Those who have left.
    pub(crate) fn left(&self) -> &BTreeSet<u64> {
        &self.left
    }

    /// Makes a token for a node, in place of one that was made before.
    pub(super) fn invite(&mut self, node: u64, address: String, now: Timestamp, valid_ms: u64) -> (String, Timestamp) {
        self.invited.retain(|_, one| one.until.0.saturating_add(REMEMBERED_MS) > now.0);
        let token = format!("{node}.{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let until = Timestamp(now.0.saturating_add(valid_ms));
        let invitation = Invitation {
            digest: digest(&token),
            address,
            until,
            used_by: None,
        };
        self.invited.insert(node, invitation);
        (token, until)
    }

    /// Takes the token of a node that comes with this data folder. `true`: it had not been used before. Gives its address too.
    ///
    /// # Errors
    /// Why it is not let in.
    pub(super) fn take(&mut self, node: u64, token: &str, folder: Uuid, now: Timestamp) -> Result<(String, bool), Objection> {
        if self.left.contains(&node) {
            return Err(Objection::HasLeft { node });
        }
        let one = self.invited.get_mut(&node).ok_or(Objection::NotInvited { node })?;
        if one.digest != digest(token) {
            return Err(Objection::WrongToken { node });
        }
        match one.used_by {
            Some(by) if by == folder => Ok((one.address.clone(), false)),
            Some(_) => Err(Objection::TokenUsed { node }),
            None if one.until <= now => Err(Objection::TokenExpired { node, until: one.until }),
            None => {
                one.used_by = Some(folder);
                Ok((one.address.clone(), true))
            }
        }
    }
}

fn key() -> Result<ResourceKey, String> {
    ResourceKey::new(Kind::Config, "", NAME).map_err(|error| error.to_string())
}

impl Store {
    /// Stores a changed ledger, unless another one was stored meanwhile.
    pub(super) async fn keep_ledger(&self, ledger: &Ledger) -> Result<(), Error> {
        let text = serde_json::to_string(ledger).map_err(|error| Error::Invalid(error.to_string()))?;
        let put = Put {
            key: key().map_err(Error::Invalid)?,
            labels: Default::default(),
            spec: serde_json::json!({ "config": text }),
            status: None,
            owner: None,
            expect: ledger.version.map_or(Expect::Absent, Expect::Version),
        };
        let id = RequestId(Uuid::new_v4().as_u128());
        let set = Changeset::atomic(id, Timestamp::now(), vec![Op::Put(put)]);
        self.propose(set).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_token_is_for_one_node_once_and_for_a_time() {
        let mut ledger = Ledger::default();
        let (mine, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(ledger.take(4, "x", mine, NOW), Err(Objection::NotInvited { node: 4 }));
        let (token, until) = ledger.invite(4, "a:1".to_owned(), NOW, 1000);
        assert!(token.starts_with("4.") && token.len() > 60 && until == Timestamp(1_001_000));
        assert!(!serde_json::to_string(&ledger).unwrap().contains(&token[2..]), "it is not stored");
        assert_eq!(ledger.take(4, "x", mine, NOW), Err(Objection::WrongToken { node: 4 }));
        assert_eq!(ledger.take(5, &token, mine, NOW), Err(Objection::NotInvited { node: 5 }));
        let expired = Err(Objection::TokenExpired { node: 4, until });
        assert_eq!(ledger.clone().take(4, &token, mine, until), expired);
        assert_eq!(ledger.take(4, &token, mine, NOW), Ok(("a:1".to_owned(), true)));
        // The answer may have been lost: the same folder may ask again, also later.
        assert_eq!(ledger.take(4, &token, mine, Timestamp(9_000_000)), Ok(("a:1".to_owned(), false)));
        assert_eq!(ledger.take(4, &token, theirs, NOW), Err(Objection::TokenUsed { node: 4 }));
        let (second, _) = ledger.invite(4, "a:1".to_owned(), NOW, 1000);
        assert_eq!(ledger.take(4, &token, mine, NOW), Err(Objection::WrongToken { node: 4 }));
        ledger.left.insert(4);
        assert_eq!(ledger.take(4, &second, mine, NOW), Err(Objection::HasLeft { node: 4 }));
    }

    #[test]
    fn old_tokens_are_forgotten() {
        let mut ledger = Ledger::default();
        ledger.invite(4, "a:1".to_owned(), NOW, 1000);
        ledger.invite(5, "a:2".to_owned(), Timestamp(NOW.0 + 2000), 1000);
        assert_eq!(ledger.invited.len(), 2, "not at once");
        ledger.invite(6, "a:3".to_owned(), Timestamp(NOW.0 + 1000 + REMEMBERED_MS), 1000);
        assert_eq!(ledger.invited.keys().copied().collect::<Vec<_>>(), [5, 6]);
    }
}
