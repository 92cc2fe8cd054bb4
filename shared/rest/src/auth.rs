//! Who calls, and what they may do.
//! In: the Authorization header and the secrets of a [`Catalog`]. Out: a [`Caller`], or why the token is not accepted.
//! Invariant: the address of the caller decides nothing. Without a token a caller is anonymous, with a bad one they get 401.
//! Source: `reference/api.md` 4. Stricter: no localhost administrator; writes of every kind and `/config` need an administrator.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::warn;
use ursa_pki::token::{self, Family, Known, UserClaims, Validated};
use ursa_state::{Catalog, HistoryId};

use crate::keys;

/// Name and group of the administrator that is made at first start.
pub const ADMIN: &str = "mesh-system:admin";
const AUTHENTICATED: &str = "mesh-system:authenticated";
const ANONYMOUS: &str = "mesh-system:anonymous";
const UNAUTHENTICATED: &str = "mesh-system:unauthenticated";
/// Accepted tokens that are remembered: far more than the clients of one node have.
const REMEMBERED: usize = 1024;
/// Case-sensitive, as Kuma's.
const BEARER: &str = "Bearer ";

/// A user of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
        }
    }
}

impl fmt::Display for User {
    /// `name/group,group`, as Kuma writes it in its reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.groups.join(","))
    }
}

/// Who made a request, from where.
#[derive(Clone, Debug)]
pub struct Caller {
    pub user: User,
    /// Id of the token, if there was one.
    pub jti: Option<String>,
    /// The peer of the connection; `None` where the server does not tell.
    pub peer: Option<SocketAddr>,
}

/// Who is an administrator.
#[derive(Clone, Debug)]
pub struct Access {
    pub admin_users: BTreeSet<String>,
    pub admin_groups: BTreeSet<String>,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            admin_users: [ADMIN.to_owned()].into(),
            admin_groups: [ADMIN.to_owned()].into(),
        }
    }
}

impl Access {
    pub fn is_admin(&self, user: &User) -> bool {
        self.admin_users.contains(&user.name) || user.groups.iter().any(|g| self.admin_groups.contains(g))
    }
}

/// Checks user tokens against the keys in the store. Parsed keys are kept as long as the secrets they came from, the revocations among
/// them, are unchanged, and so are the tokens that were accepted: an RSA signature is half of what a small read costs.
#[derive(Debug, Default)]
pub(crate) struct Authenticator(Mutex<Option<Arc<Keys>>>);

#[derive(Debug)]
struct Keys {
    history: HistoryId,
    /// Names and versions of the secrets.
    from: Vec<(String, u64)>,
    known: Known,
    /// By SHA-256 of the token.
    accepted: Mutex<HashMap<[u8; 32], Validated<UserClaims>>>,
}

impl Keys {
    /// What a token says, if it is valid now. Only its end can change that while keys and revocations are the same.
    fn validate(&self, token: &str, now: OffsetDateTime) -> Result<Validated<UserClaims>, token::Error> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(valid) = self.accepted.lock().get(&digest).filter(|valid| now < valid.expires_at) {
            return Ok(valid.clone());
        }
        let valid = token::validate::<UserClaims>(token, &self.known.keys, &self.known.revoked, now)?;
        let mut accepted = self.accepted.lock();
        if accepted.len() >= REMEMBERED {
            accepted.clear();
        }
        accepted.insert(digest, valid.clone());
        Ok(valid)
    }
}

impl Authenticator {
    /// The user and the id of their token. Without a Bearer token: the anonymous user.
    pub(crate) fn authenticate(
        &self,
        catalog: &Catalog,
        headers: &HeaderMap,
        now: OffsetDateTime,
    ) -> Result<(User, Option<String>), token::Error> {
        let Some(token) = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix(BEARER))
        else {
            return Ok((User::anonymous(), None));
        };
        let keys = self.keys(catalog);
        let valid = keys.validate(token, now)?;
        let mut user = User {
            name: valid.claims.name,
            groups: valid.claims.groups,
        };
        user.groups.push(AUTHENTICATED.into());
        Ok((user, Some(valid.jti)))
    }

    fn keys(&self, catalog: &Catalog) -> Arc<Keys> {
        let family = Family::user();
        let secrets = keys::of_family(catalog, &family, "");
        let from: Vec<(String, u64)> = secrets.iter().map(|s| (s.name().to_owned(), s.mod_revision)).collect();
        let history = catalog.durable.history_id();
        let mut cached = self.0.lock();
        if let Some(keys) = cached.as_ref().filter(|k| k.history == history && k.from == from) {
            return keys.clone();
        }
        let known = family.read(keys::named(&secrets));
        for (secret, error) in &known.unreadable {
            warn!(secret, %error, "user tokens signed with this key are refused: it cannot be read");
        }
        let keys = Arc::new(Keys {
            history,
            from,
            known,
            accepted: Mutex::default(),
        });
        *cached = Some(keys.clone());
        keys
    }
}
