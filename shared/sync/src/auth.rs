//! Who may be a zone: a zone token, checked against the keys in the store.
//! In: the newest view, a token. Out: yes, or why not. Invariant: a token names exactly one zone; absent scope means `cp`.
//! Source: api.md 4.3, facts.md F17. Not here: which secrets hold keys and revocations ([`ursa_pki::token::stored`]).

use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::watch;
use ursa_model::{Kind, Resource, ZoneName, kind::secret::Secret};
pub use ursa_pki::token::stored::ZONE_KEY_PREFIX as SIGNING_KEY_PREFIX;
use ursa_pki::token::{self, Family, Known, ZoneClaims};
use ursa_state::{HistoryId, View};

use crate::ports::{Denied, ZoneAuth};

/// Scope of a token by which a zone control plane may connect.
const SCOPE: &str = "cp";

/// Checks zone tokens with the keys that the store holds at that moment. Every zone asks every other second, and reading keys takes far
/// longer than checking a signature, so keys that were read are kept as long as the secrets they came from are unchanged.
#[derive(Clone, Debug)]
pub struct TokenAuth {
    views: watch::Receiver<View>,
    required: bool,
    keys: Arc<Mutex<Option<Arc<Keys>>>>,
}

#[derive(Debug)]
struct Keys {
    history: HistoryId,
    /// Names of the secrets, and the revisions at which they changed last.
    from: Vec<(String, u64)>,
    known: Known,
}

impl TokenAuth {
    /// Every zone must show a token.
    pub fn required(views: watch::Receiver<View>) -> Self {
        Self {
            views,
            required: true,
            keys: Arc::default(),
        }
    }

    /// A zone without a token is let in, for stock Kuma zones that cannot send one: the network must protect the port then. A
    /// token that is sent is checked all the same.
    pub fn optional(views: watch::Receiver<View>) -> Self {
        Self {
            views,
            required: false,
            keys: Arc::default(),
        }
    }

    /// Keys and revocations of zone tokens, as they are in this view.
    fn keys(&self, view: &View) -> Arc<Keys> {
        let family = Family::zone();
        let secrets = || view.list(Kind::GlobalSecret).filter(|s| family.purpose(s.name()).is_some());
        let history = view.history_id();
        let mut kept = self.keys.lock();
        let is_from = |keys: &&mut Arc<Keys>| {
            let from = keys.from.iter().map(|(name, at)| (name.as_str(), *at));
            keys.history == history && from.eq(secrets().map(|s| (s.name(), s.mod_revision)))
        };
        if let Some(keys) = kept.as_mut().filter(is_from) {
            return keys.clone();
        }
        let content = |secret: &Resource| secret.spec::<Secret>().ok().and_then(|s| s.bytes()).unwrap_or_default();
        let known = family.read(secrets().map(|s| (s.name(), content(s))));
        for (secret, error) in &known.unreadable {
            tracing::warn!(secret, %error, "zone tokens signed with this key are refused: it cannot be read");
        }
        let from = secrets().map(|s| (s.name().to_owned(), s.mod_revision)).collect();
        kept.insert(Arc::new(Keys { history, from, known })).clone()
    }
}

impl ZoneAuth for TokenAuth {
    fn check(&self, zone: &ZoneName, token: Option<&str>) -> Result<(), Denied> {
        let Some(token) = token else {
            return if self.required { Err(Denied::Missing) } else { Ok(()) };
        };
        let view = self.views.borrow().clone();
        let known = &self.keys(&view).known;
        let valid = token::validate::<ZoneClaims>(token, &known.keys, &known.revoked, OffsetDateTime::now_utc())
            .map_err(|error| Denied::Invalid(error.to_string()))?;
        if valid.claims.zone != zone.as_str() {
            return Err(Denied::OtherZone {
                token_zone: valid.claims.zone.chars().take(64).collect(),
            });
        }
        if !valid.claims.scope.is_empty() && !valid.claims.scope.iter().any(|s| s == SCOPE) {
            return Err(Denied::Invalid("its scope does not hold \"cp\"".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use std::time::Duration;
    use ursa_model::labels::Site;
    use ursa_pki::token::{SigningKey, issue};
    use ursa_state::Role;

    #[test]
    fn a_token_is_checked_with_the_keys_of_the_store() {
        let memory = Memory::new(Role::Global, 1);
        let put = |name: &str, text: &str| {
            let spec = serde_json::to_value(Secret::of(text.as_bytes())).unwrap();
            memory.put(Site::Global, Kind::GlobalSecret, "", name, spec);
        };
        let key = SigningKey::generate().unwrap();
        put("zone-token-signing-key-2", &key.private_pem());
        put("zone-token-signing-key-broken", "no key");
        let token = |zone: &str, scope: &[&str], kid: &str| {
            let claims = ZoneClaims {
                zone: zone.into(),
                scope: scope.iter().map(|s| (*s).to_owned()).collect(),
            };
            issue(&key, kid, &claims, Duration::from_secs(60), OffsetDateTime::now_utc()).unwrap()
        };
        let auth = TokenAuth::required(memory.views());
        let east: ZoneName = "east".parse().unwrap();
        let good = token("east", &[], "2");
        assert_eq!(auth.check(&east, Some(&good.token)), Ok(()));
        assert_eq!(auth.check(&east, Some(&token("east", &["ingress", "cp"], "2").token)), Ok(()));
        assert!(matches!(
            auth.check(&east, Some(&token("east", &["ingress"], "2").token)),
            Err(Denied::Invalid(_))
        ));
        assert!(matches!(
            auth.check(&east, Some(&token("east", &[], "3").token)),
            Err(Denied::Invalid(_))
        ));
        assert_eq!(
            auth.check(&east, Some(&token("west", &[], "2").token)),
            Err(Denied::OtherZone { token_zone: "west".into() })
        );
        assert_eq!(auth.check(&east, None), Err(Denied::Missing));
        let optional = TokenAuth::optional(memory.views());
        assert_eq!(optional.check(&east, None), Ok(()));
        assert!(optional.check(&east, Some("x")).is_err(), "a token that is sent must be good");
        put("zone-token-revocations", &good.jti);
        assert!(matches!(auth.check(&east, Some(&good.token)), Err(Denied::Invalid(_))));
    }

    #[test]
    fn keys_are_read_once_until_a_secret_of_theirs_changes() {
        let memory = Memory::new(Role::Global, 1);
        let put = |name: &str, text: &str| {
            let spec = serde_json::to_value(Secret::of(text.as_bytes())).unwrap();
            memory.put(Site::Global, Kind::GlobalSecret, "", name, spec);
        };
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let name = "zone-token-signing-key-1";
        put(name, &old.private_pem());
        let auth = TokenAuth::required(memory.views());
        let keys = || auth.keys(&memory.view());
        let first = keys();
        put("another-secret", "x");
        assert!(Arc::ptr_eq(&first, &keys()), "another secret is no reason to read them again");
        assert!(Arc::ptr_eq(&first, &auth.clone().keys(&memory.view())), "clones share them");
        let zone: ZoneName = "east".parse().unwrap();
        let check = |key: &SigningKey| {
            let claims = ZoneClaims {
                zone: "east".into(),
                scope: vec![],
            };
            let token = issue(key, "1", &claims, Duration::from_secs(60), OffsetDateTime::now_utc()).unwrap();
            auth.check(&zone, Some(&token.token)).is_ok()
        };
        assert!(check(&old) && !check(&new));
        put(name, &new.private_pem());
        assert!(!check(&old) && check(&new), "the key was replaced");
        put("zone-token-signing-key-2", &old.private_pem());
        assert_eq!(keys().from.len(), 2);
        memory.delete(Kind::GlobalSecret, "", name);
        assert!(!check(&old) && !check(&new), "the key was deleted");
    }
}
