//! Which secrets hold the keys and revocations of a kind of token, and reading them out of a list of named secrets.
//! In: names and contents. Out: keys to verify with, revocations, the key to sign with; whether a content may be stored at all.
//! Invariant: the only place that knows the names. A broken secret never hides a good one, and is always named.
//! Source: `reference/api.md` 4.3. Not here: where secrets are kept and who may read them.
use super::{KeyError, KeySet, Kind, Revocations, SigningKey, VerifyingKey};

/// What names of the GlobalSecrets that sign zone tokens begin with.
pub const ZONE_KEY_PREFIX: &str = "zone-token-signing-key";
/// Longest id of a token in a list of revocations; ours and Kuma's are UUIDs of 36.
const MAX_ID_BYTES: usize = 256;

/// The secrets that belong to the tokens of one kind: Secrets of the mesh for data planes, GlobalSecrets otherwise.
///
/// Keys are called `<prefix>-<number>` (the number is the key id, the highest signs) or `<prefix>` alone (id 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    kind: Kind,
    prefix: String,
    revocations: String,
}

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Signs tokens.
    Key {
        /// The highest signs.
        serial: u64,
        /// As in the header of a token.
        id: &'a str,
    },
    /// Lists the ids of tokens that are not accepted any more.
    Revocations,
    /// It is called as if it were one of ours, and is ignored: a key's number is missing or no number.
    Misnamed,
}

/// Why a secret may not hold what it holds. The text says nothing of the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Not a key that could sign.
    #[error("must be an RSA private key that signs tokens, PEM (PKCS#1 or PKCS#8): {0}")]
    Key(KeyError),
    /// Not a list of token ids.
    #[error("must be the ids (jti) of tokens, separated by commas: {0}")]
    Revocations(&'static str),
}

/// Why there is no key to sign with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// None is stored; `name` is what the first would be called.
    #[error("no secret {name:?} or one with a higher number is there")]
    Missing { name: String },
    /// The newest is stored and cannot be used. An older one is not taken instead: its rotation may have had a reason.
    #[error("the secret {name:?} cannot be used")]
    Unusable { name: String, source: KeyError },
}

/// What the secrets of a family say.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Keys that tokens may be signed with.
    pub keys: KeySet,
    /// Tokens that are not accepted any more.
    pub revoked: Revocations,
    /// Names of keys that cannot be read, with the reason. Tokens signed with them are refused.
    pub unreadable: Vec<(String, KeyError)>,
}

impl Family {
    /// Tokens of users of the REST API.
    pub fn user() -> Self {
        Self {
            kind: Kind::User,
            prefix: "user-token-signing-key".into(),
            revocations: "user-token-revocations".into(),
        }
    }

    /// Tokens of zones.
    pub fn zone() -> Self {
        Self {
            kind: Kind::Zone,
            prefix: ZONE_KEY_PREFIX.into(),
            revocations: "zone-token-revocations".into(),
        }
    }

    /// Tokens of the data planes of a mesh.
    pub fn dataplane(mesh: &str) -> Self {
        Self {
            kind: Kind::Dataplane,
            prefix: format!("dataplane-token-signing-key-{mesh}"),
            revocations: format!("dataplane-token-revocations-{mesh}"),
        }
    }

    /// The family that a GlobalSecret called `name` belongs to, if it belongs to one. Revocations of data planes count here too:
    /// Kuma looks for them among the GlobalSecrets, whatever its documentation says.
    pub fn of_global(name: &str) -> Option<Self> {
        [Self::user(), Self::zone()]
            .into_iter()
            .find(|family| family.purpose(name).is_some())
            .or_else(|| {
                let mesh = name.strip_prefix("dataplane-token-revocations-")?;
                (!mesh.is_empty()).then(|| Self::dataplane(mesh))
            })
    }

    /// The family that a Secret of `mesh` called `name` belongs to, if it belongs to one.
    pub fn of_mesh(mesh: &str, name: &str) -> Option<Self> {
        let family = Self::dataplane(mesh);
        family.purpose(name).is_some().then_some(family)
    }

    /// Tokens of this kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What names of keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Name of the key with that number.
    pub fn key_name(&self, serial: u64) -> String {
        format!("{}-{serial}", self.prefix)
    }

    /// Name of the list of revocations.
    pub fn revocations(&self) -> &str {
        &self.revocations
    }

    /// What a secret of that name is for; `None` if it is none of this family's.
    pub fn purpose<'a>(&self, name: &'a str) -> Option<Purpose<'a>> {
        if name == self.revocations {
            return Some(Purpose::Revocations);
        }
        let rest = name.strip_prefix(&self.prefix)?;
        if rest.is_empty() {
            return Some(Purpose::Key { serial: 0, id: "0" });
        }
        let id = rest.strip_prefix('-')?;
        let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        match id.parse() {
            Ok(serial) if digits => Some(Purpose::Key { serial, id }),
            // In a mesh `a` this may as well be a key of a mesh `a-b` that somebody put in the wrong place.
            _ => Some(Purpose::Misnamed),
        }
    }

    /// Whether `content` is what a secret called `name` must hold. Secrets of other names may hold anything.
    ///
    /// # Errors
    /// It is no private key, or no list of ids.
    pub fn check(&self, name: &str, content: &[u8]) -> Result<(), ContentError> {
        match self.purpose(name) {
            Some(Purpose::Key { .. }) => SigningKey::parse(content).map(drop).map_err(ContentError::Key),
            Some(Purpose::Revocations) => check_revocations(content).map_err(ContentError::Revocations),
            Some(Purpose::Misnamed) | None => Ok(()),
        }
    }

    /// Reads keys and revocations. Secrets that do not belong to the family are skipped; lists of revocations are united.
    pub fn read<'a, B: AsRef<[u8]>>(&self, secrets: impl IntoIterator<Item = (&'a str, B)>) -> Known {
        let mut known = Known::default();
        for (name, content) in secrets {
            match self.purpose(name) {
                Some(Purpose::Key { id, .. }) => match VerifyingKey::parse(content.as_ref()) {
                    Ok(key) => known.keys.insert(id, key),
                    Err(error) => known.unreadable.push((name.to_owned(), error)),
                },
                // One stray byte must not make every revoked token good again.
                Some(Purpose::Revocations) => known
                    .revoked
                    .extend(&Revocations::parse(&String::from_utf8_lossy(content.as_ref()))),
                Some(Purpose::Misnamed) | None => {}
            }
        }
        known
    }

    /// Id and content of the newest key: the one that signs.
    pub fn newest<'a, B>(&self, secrets: impl IntoIterator<Item = (&'a str, B)>) -> Option<(&'a str, B)> {
        secrets
            .into_iter()
            .filter_map(|(name, content)| match self.purpose(name) {
                Some(Purpose::Key { serial, id }) => Some((serial, id, content)),
                _ => None,
            })
            .max_by_key(|(serial, ..)| *serial)
            .map(|(_, id, content)| (id, content))
    }

    /// The key that signs, with its id. Parsing checks the key, which takes a millisecond: not on an async thread.
    ///
    /// # Errors
    /// There is none, or the newest is broken.
    pub fn signing_key<'a, B: AsRef<[u8]>>(&self, secrets: impl IntoIterator<Item = (&'a str, B)>) -> Result<(String, SigningKey), NoKey> {
        let (id, content) = self.newest(secrets).ok_or_else(|| NoKey::Missing { name: self.key_name(1) })?;
        match SigningKey::parse(content.as_ref()) {
            Ok(key) => Ok((id.to_owned(), key)),
            Err(source) => Err(NoKey::Unusable {
                name: if id == "0" {
                    self.prefix.clone()
                } else {
                    format!("{}-{id}", self.prefix)
                },
                source,
            }),
        }
    }
}

fn check_revocations(content: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(content).map_err(|_| "it is no text")?;
    let mut ids = 0_usize;
    for id in text.split(',').map(str::trim) {
        if id.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("there is white space within an id");
        }
        if id.len() > MAX_ID_BYTES {
            return Err("an id is longer than 256 bytes");
        }
        ids += usize::from(!id.is_empty());
    }
    if ids == 0 && text.contains(|c: char| !c.is_whitespace() && c != ',') {
        return Err("there is no id in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap());

    #[test]
    fn names_and_serial_numbers() {
        let user = Family::user();
        assert_eq!(
            user.purpose("user-token-signing-key-12"),
            Some(Purpose::Key { serial: 12, id: "12" })
        );
        assert_eq!(user.purpose("user-token-signing-key"), Some(Purpose::Key { serial: 0, id: "0" }));
        assert_eq!(user.purpose("user-token-revocations"), Some(Purpose::Revocations));
        for misnamed in [
            "user-token-signing-key-",
            "user-token-signing-key-x",
            "user-token-signing-key-1-2",
            "user-token-signing-key-+1",
            "user-token-signing-key-99999999999999999999999",
        ] {
            assert_eq!(user.purpose(misnamed), Some(Purpose::Misnamed), "{misnamed}");
        }
        for other in [
            "user-token-signing-keys",
            "zone-token-signing-key-1",
            "x",
            "",
            "user-token-revocations-1",
        ] {
            assert_eq!(user.purpose(other), None, "{other}");
        }
        // The key of mesh `a-b` is none of mesh `a`.
        assert_eq!(
            Family::dataplane("a").purpose("dataplane-token-signing-key-a-b-1"),
            Some(Purpose::Misnamed)
        );
        assert_eq!(Family::of_global("zone-token-signing-key-1"), Some(Family::zone()));
        assert_eq!(Family::of_global("dataplane-token-revocations-m"), Some(Family::dataplane("m")));
        assert_eq!(Family::of_global("dataplane-token-signing-key-m-1"), None);
        assert_eq!(Family::of_global("admin-user-token"), None);
        assert_eq!(
            Family::of_mesh("m", "dataplane-token-signing-key-m-1"),
            Some(Family::dataplane("m"))
        );
        assert_eq!(Family::of_mesh("m", "user-token-signing-key-1"), None);
    }

    #[test]
    fn a_broken_secret_hides_no_good_one_and_is_named() {
        let family = Family::zone();
        let pem = KEY.private_pem();
        let secrets: Vec<(&str, &[u8])> = vec![
            ("zone-token-signing-key-1", pem.as_bytes()),
            ("zone-token-signing-key-2", b"junk"),
            ("zone-token-signing-key-x", b"junk"),
            ("zone-token-revocations", b"a, b\xff ,c\n"),
            ("other", b"junk"),
        ];
        let known = family.read(secrets.iter().copied());
        assert!(known.keys.get("1").is_some() && known.keys.get("2").is_none());
        assert_eq!(
            known.unreadable.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["zone-token-signing-key-2"]
        );
        assert!(known.revoked.contains("a") && known.revoked.contains("c"));

        let error = family.signing_key(secrets.iter().copied()).unwrap_err();
        assert!(
            matches!(&error, NoKey::Unusable { name, .. } if name == "zone-token-signing-key-2"),
            "{error}"
        );
        assert!(!error.to_string().contains("junk"));
        let (id, _) = family.signing_key(secrets.iter().copied().take(1)).unwrap();
        assert_eq!(id, "1");
        assert_eq!(
            family.signing_key(Vec::<(&str, &[u8])>::new()).unwrap_err(),
            NoKey::Missing {
                name: "zone-token-signing-key-1".into()
            }
        );
    }

    #[test]
    fn what_may_be_stored() {
        let family = Family::dataplane("m");
        let key = "dataplane-token-signing-key-m-1";
        family.check(key, KEY.private_pem().as_bytes()).unwrap();
        for bad in [b"".as_slice(), b"junk", b"\xff\xfe", KEY.public_pem().as_bytes()] {
            let error = family.check(key, bad).unwrap_err();
            assert!(error.to_string().starts_with("must be an RSA private key"), "{error}");
        }
        let list = "dataplane-token-revocations-m";
        for good in ["", "\n", "a", "a,b", " a , b\n", "a,,b,"] {
            family
                .check(list, good.as_bytes())
                .unwrap_or_else(|error| panic!("{good:?}: {error}"));
        }
        for bad in [b"a\nb".as_slice(), b"a b", b"\xff", &[b'a'; 300], b"a\0b"] {
            assert!(family.check(list, bad).is_err(), "{bad:?}");
        }
        family.check("dataplane-token-signing-key-m-x", b"junk").unwrap();
        family.check("something-else", b"junk").unwrap();
    }

    proptest! {
        #[test]
        fn any_names_and_contents_are_read(secrets in prop::collection::vec(("(user-token-signing-key(-[0-9]{0,25})?|user-token-revocations|[a-z-]{0,9})", prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
            let family = Family::user();
            let list = || secrets.iter().map(|(name, content)| (name.as_str(), content));
            let known = family.read(list());
            prop_assert!(known.keys.is_empty());
            prop_assert!(family.signing_key(list()).is_err());
            for (name, content) in list() {
                let accepted = family.check(name, content).is_ok();
                if accepted && family.purpose(name) == Some(Purpose::Revocations) {
                    // What is accepted takes effect, id by id.
                    for id in String::from_utf8_lossy(content).split(',').map(str::trim).filter(|id| !id.is_empty()) {
                        prop_assert!(known.revoked.contains(id));
                    }
                }
            }
        }
    }
}
