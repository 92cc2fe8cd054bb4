//! Tokens of data planes, zones and users: RS256 JWTs, byte for byte what Kuma issues and accepts.
//! In: claims, a signing key, the time; or a token, keys by id, revocations, the time. Out: a token; or its claims, or why not.
//! Invariant: no algorithm but RS256, ever; nothing of a token is believed before its signature is checked.
//! Source: `reference/api.md` 4.3. Not here: which secrets hold keys and revocations ([`stored`]), and who may ask for a token.
//! Stricter than Kuma: `exp` and `jti` must be there, and two claims that differ in case only are refused.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

mod claims;
mod key;
pub mod stored;
#[cfg(test)]
mod tests;

pub use claims::{Claims, DataplaneClaims, UserClaims, ZoneClaims};
pub use key::{KeyError, SigningKey, VerifyingKey};
pub use stored::{Family, Known};

/// Longest token; one with every tag of a large workload is far below.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest key id; Kuma's are small numbers.
pub const MAX_KEY_ID_BYTES: usize = 128;
/// A token begins a little before it was issued: clocks differ. As Kuma's.
pub const BACKDATE: Duration = Duration::seconds(5);

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A proxy.
    Dataplane,
    /// A zone.
    Zone,
    /// A user of the REST API.
    User,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dataplane => "dataplane",
            Self::Zone => "zone",
            Self::User => "user",
        })
    }
}

/// Why a token is not accepted. None of the texts holds any part of the token that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("token is malformed: {0}")]
    Malformed(&'static str),
    #[error("token is signed with {0:?}; only RS256 is accepted")]
    BadAlgorithm(String),
    #[error("there is no signing key with id {0:?}")]
    UnknownKey(String),
    #[error("signature of the token does not fit")]
    BadSignature,
    #[error("token expired at {0}")]
    Expired(OffsetDateTime),
    #[error("token is not valid before {0}")]
    NotYetValid(OffsetDateTime),
    #[error("token {jti} is revoked")]
    Revoked { jti: String },
    #[error("this is not a {expected} token")]
    WrongKind { expected: Kind },
}

/// Why a token cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("token would be longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("a validity of {0:?} is not possible")]
    Validity(std::time::Duration),
    #[error("key id {0:?} is empty or too long")]
    KeyId(String),
    #[error("cannot sign")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Registered claims, as Kuma writes them.
#[derive(Debug, Serialize)]
struct Registered {
    exp: i64,
    nbf: i64,
    iat: i64,
    jti: String,
}

#[derive(Serialize)]
struct Payload<'a, C> {
    #[serde(flatten)]
    private: &'a C,
    #[serde(flatten)]
    registered: Registered,
}

/// A new token and what the audit log needs of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The token: a secret.
    pub token: String,
    /// Its id, by which it can be revoked.
    pub jti: String,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("jti", &self.jti)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Signs a token for `claims` with the key that others know as `key_id`. It is valid from `now` less [`BACKDATE`] to `now` plus
/// `valid_for`, in whole seconds.
///
/// # Errors
/// `valid_for` is below a second or beyond any date; the token would be too long; signing fails.
pub fn issue<C: Claims>(
    key: &SigningKey,
    key_id: &str,
    claims: &C,
    valid_for: std::time::Duration,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    if key_id.is_empty() || key_id.len() > MAX_KEY_ID_BYTES {
        return Err(IssueError::KeyId(key_id.chars().take(32).collect()));
    }
    let life = Duration::try_from(valid_for).ok().filter(|life| *life >= Duration::SECOND);
    let expires_at = life.and_then(|life| now.checked_add(life)).ok_or(IssueError::Validity(valid_for))?;
    let begin = now.saturating_sub(BACKDATE).unix_timestamp();
    let jti = Uuid::new_v4().to_string();
    let registered = Registered {
        exp: expires_at.unix_timestamp(),
        nbf: begin,
        iat: begin,
        jti: jti.clone(),
    };
    let header = Header {
        kid: Some(key_id.to_owned()),
        ..Header::new(Algorithm::RS256)
    };
    let payload = Payload {
        private: claims,
        registered,
    };
    let token = jsonwebtoken::encode(&header, &payload, &key.encoding_key()).map_err(IssueError::Sign)?;
    if token.len() > MAX_TOKEN_BYTES {
        return Err(IssueError::TooLong);
    }
    Ok(Issued { token, jti, expires_at })
}

/// An accepted token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validated<C> {
    /// What it says.
    pub claims: C,
    /// Its id.
    pub jti: String,
    /// Id of the key it was signed with.
    pub key_id: String,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

/// Checks `token` and reads its claims.
///
/// # Errors
/// The first thing that is wrong with it, in this order: form, algorithm, key, signature, time, revocation, kind.
pub fn validate<C: Claims>(token: &str, keys: &KeySet, revoked: &Revocations, now: OffsetDateTime) -> Result<Validated<C>, Error> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Error::TooLong);
    }
    let key_id = key_id(token)?;
    let key = keys.get(&key_id).ok_or_else(|| Error::UnknownKey(key_id.clone()))?;
    let claims = Folded::new(verify(token, key)?)?;
    let (expires, begins) = (claims.time("exp")?, claims.time("nbf")?);
    let issued = claims.time("iat")?;
    let expires_at = expires.ok_or(Error::Malformed("it has no exp"))?;
    if now >= expires_at {
        return Err(Error::Expired(expires_at));
    }
    if let Some(begin) = begins.max(issued).filter(|begin| now < *begin) {
        return Err(Error::NotYetValid(begin));
    }
    let jti = claims
        .text("jti")?
        .filter(|jti| !jti.is_empty())
        .ok_or(Error::Malformed("it has no jti"))?
        .to_owned();
    if revoked.contains(&jti) {
        return Err(Error::Revoked { jti });
    }
    Ok(Validated {
        claims: C::from_claims(&claims)?,
        jti,
        key_id,
        expires_at,
    })
}

/// Header of a token, before anything is believed.
#[derive(Deserialize)]
struct RawHeader {
    alg: Option<Value>,
    kid: Option<Value>,
    crit: Option<Value>,
}

/// The key id, of a token whose form and algorithm are right.
fn key_id(token: &str) -> Result<String, Error> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Error::Malformed("it has not three parts"));
    };
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| Error::Malformed("header is not base64url"))?;
    let header: RawHeader = serde_json::from_slice(&header).map_err(|_| Error::Malformed("header is not JSON"))?;
    match header.alg {
        Some(Value::String(alg)) if alg == "RS256" => {}
        Some(Value::String(alg)) => return Err(Error::BadAlgorithm(alg.chars().take(16).collect())),
        _ => return Err(Error::Malformed("header has no alg")),
    }
    // RFC 7515, 4.1.11: what is critical and not understood must be refused.
    if header.crit.is_some() {
        return Err(Error::Malformed("header has critical extensions"));
    }
    match header.kid {
        Some(Value::String(kid)) if !kid.is_empty() && kid.len() <= MAX_KEY_ID_BYTES => Ok(kid),
        Some(_) => Err(Error::Malformed("header has no usable kid")),
        None => Err(Error::Malformed("header has no kid")),
    }
}

/// The payload, if the signature fits. Time is checked by the caller, against the caller's clock.
fn verify(token: &str, key: &VerifyingKey) -> Result<Map<String, Value>, Error> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding_key(), &validation);
    decoded.map(|data| data.claims).map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature => Error::BadSignature,
        ErrorKind::Base64(_) => Error::Malformed("it is not base64url"),
        _ => Error::Malformed("payload is not a JSON object"),
    })
}

/// Claims by lower-cased name: Go's JSON decoder, by which Kuma reads them, does not look at the case of a name.
pub struct Folded(BTreeMap<String, Value>);

impl Folded {
    fn new(claims: Map<String, Value>) -> Result<Self, Error> {
        let count = claims.len();
        let folded: BTreeMap<_, _> = claims.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        if folded.len() == count {
            Ok(Self(folded))
        } else {
            Err(Error::Malformed("a claim is there twice"))
        }
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A text; `null` counts as absent, as in Go.
    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Error::Malformed("a claim has the wrong type")),
        }
    }

    /// Anything serde can read; absent and `null` are the default.
    fn value<T: serde::de::DeserializeOwned + Default>(&self, name: &str) -> Result<T, Error> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(value) => T::deserialize(value).map_err(|_| Error::Malformed("a claim has the wrong type")),
        }
    }

    /// RFC 7519 NumericDate: seconds since 1970, possibly with a fraction (cut off).
    fn time(&self, name: &str) -> Result<Option<OffsetDateTime>, Error> {
        const WRONG: Error = Error::Malformed("a time is not a number of seconds");
        let seconds = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (Some(seconds), _) => seconds,
                // The range of i64 is checked, so the cast cuts off the fraction and nothing else.
                (None, Some(seconds)) if seconds.abs() < 1e15 => seconds.trunc() as i64,
                _ => return Err(WRONG),
            },
            Some(_) => return Err(WRONG),
        };
        OffsetDateTime::from_unix_timestamp(seconds).map(Some).map_err(|_| WRONG)
    }
}

/// Keys that tokens of one kind (and mesh) may be signed with, by key id.
#[derive(Clone, Debug, Default)]
pub struct KeySet(BTreeMap<String, VerifyingKey>);

impl KeySet {
    /// No key: no token is accepted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key, or replaces the one with the same id.
    pub fn insert(&mut self, key_id: impl Into<String>, key: VerifyingKey) {
        self.0.insert(key_id.into(), key);
    }

    /// The key with that id.
    pub fn get(&self, key_id: &str) -> Option<&VerifyingKey> {
        self.0.get(key_id)
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<I: Into<String>> FromIterator<(I, VerifyingKey)> for KeySet {
    fn from_iter<T: IntoIterator<Item = (I, VerifyingKey)>>(keys: T) -> Self {
        Self(keys.into_iter().map(|(id, key)| (id.into(), key)).collect())
    }
}

/// Ids of tokens that are not accepted any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeSet<String>);

impl Revocations {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads Kuma's form: ids separated by commas, white space around them ignored.
    pub fn parse(list: &str) -> Self {
        Self(
            list.split(',')
                .map(str::trim)
                .filter(|id| !id.is_empty())
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Adds those of another list.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    /// Is that token revoked?
    pub fn contains(&self, jti: &str) -> bool {
        self.0.contains(jti)
    }
}
