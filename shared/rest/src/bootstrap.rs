//! The resources every control plane starts with: the default Mesh, a zone's own Zone, the keys that sign tokens, the first administrator's token,
//! the id of the deployment.
//! Invariant: idempotent, and one atomic changeset: a crash leaves all of it or nothing. Several nodes may do it at once.
//! Source: `reference/api.md` 4.4 and 5.1. Different: a federated zone has administrators of its own, since no address is trusted
//! and the keys of the global's user tokens do not leave the global.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use tracing::{error, info};
use ursa_model::{
    Kind, ResourceKey, Timestamp,
    kind::config::{CLUSTER_ID, Config},
    resource::InvalidKey,
};
use ursa_pki::token::{self, Family, IssueError, SigningKey, UserClaims};
use ursa_runtime::error::Chain;
use ursa_state::{Catalog, Changeset, Op, RequestId, Revision};
use uuid::Uuid;

use crate::{
    ADMIN, Backend, Freshness, ProposeError, Site, Unavailable,
    defaults::{self, create, secret, signing_keys},
    keys,
};

/// Life of the first administrator's token.
const ADMIN_TOKEN_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Attempts when another node writes the same at the same time; the second sees what the other wrote.
const ATTEMPTS: usize = 5;

/// What to create.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Mesh `default`, unless a federated zone: there the global owns the meshes. Default true.
    pub default_mesh: bool,
    /// The administrator's token. Default true.
    pub admin_token: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_mesh: true,
            admin_token: true,
        }
    }
}

/// What is there afterwards.
#[derive(Clone)]
pub struct Bootstrapped {
    /// Revision at which all of it is there.
    pub revision: Revision,
    /// How many resources were created.
    pub created: usize,
    /// Content of the GlobalSecret `admin-user-token`: a secret.
    pub admin_token: Option<String>,
    /// Id of the deployment; a federated zone learns it from its global.
    pub cluster_id: Option<String>,
}

/// Why the defaults could not be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the state")]
    Read(#[from] Unavailable),
    #[error("cannot write the default resources")]
    Write(#[from] ProposeError),
    #[error("other nodes kept writing the same resources")]
    Contended,
    #[error("cannot make a default resource")]
    Make(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot sign the administrator's token")]
    Sign(#[source] IssueError),
}

impl Error {
    /// Trying again later may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read(_) | Self::Contended => true,
            Self::Write(ProposeError::Unavailable(_) | ProposeError::Unknown | ProposeError::NoSpace(_)) => true,
            Self::Write(ProposeError::TooLarge { .. }) | Self::Make(_) | Self::Sign(_) => false,
        }
    }
}

impl From<defaults::Error> for Error {
    fn from(error: defaults::Error) -> Self {
        Self::Make(Box::new(error))
    }
}

impl From<InvalidKey> for Error {
    fn from(error: InvalidKey) -> Self {
        Self::Make(Box::new(error))
    }
}

/// Creates what is missing.
///
/// # Errors
/// See [`Error::is_retryable`]; a caller retries those with a back-off.
pub async fn ensure_defaults(backend: &dyn Backend, site: &Site, options: &Options) -> Result<Bootstrapped, Error> {
    for _ in 0..ATTEMPTS {
        let catalog = backend.catalog(Freshness::Linearizable).await?;
        let ops = missing(&catalog, site, options).await?;
        if ops.is_empty() {
            return Ok(found(&catalog, 0));
        }
        let created = ops.len();
        let mut set = Changeset::atomic(RequestId(Uuid::new_v4().as_u128()), Timestamp::now(), ops);
        set.actor = "mesh-system:control-plane".into();
        let applied = backend.propose(set).await?;
        if applied.rejected.is_some() {
            continue;
        }
        info!(created, revision = applied.revision, "created the default resources");
        return Ok(found(&backend.catalog(Freshness::Linearizable).await?, created));
    }
    Err(Error::Contended)
}

fn found(catalog: &Catalog, created: usize) -> Bootstrapped {
    let text = |name: &str| {
        let key = ResourceKey::new(Kind::GlobalSecret, "", name).ok()?;
        String::from_utf8(keys::content(catalog.get(&key)?)).ok()
    };
    Bootstrapped {
        revision: catalog.durable.revision(),
        created,
        admin_token: text(keys::ADMIN_TOKEN),
        cluster_id: cluster_id(catalog),
    }
}

/// The id of the deployment, once it has one.
pub fn cluster_id(catalog: &Catalog) -> Option<String> {
    let key = ResourceKey::new(Kind::Config, "", CLUSTER_ID).ok()?;
    catalog.get(&key)?.spec::<Config>().ok().map(|c| c.config)
}

async fn missing(catalog: &Catalog, site: &Site, options: &Options) -> Result<Vec<Op>, Error> {
    let owns_meshes = !site.is_federated();
    let mut ops = Vec::new();
    if owns_meshes {
        if cluster_id(catalog).is_none() {
            let spec = Config {
                config: Uuid::new_v4().to_string(),
            };
            let spec = serde_json::to_value(spec).map_err(|error| Error::Make(Box::new(error)))?;
            ops.push(create(site, ResourceKey::new(Kind::Config, "", CLUSTER_ID)?, spec, None));
        }
        if !keys::has_key(catalog, &Family::zone(), "") {
            ops.push(new_key(site, &Family::zone()).await?.0);
        }
        let default = ResourceKey::mesh_itself("default")?;
        if options.default_mesh && catalog.get(&default).is_none() {
            ops.push(create(site, default, serde_json::json!({}), None));
            ops.extend(defaults::of_mesh(site, catalog, "default", &[]).await?);
        }
    }
    if let Site::Zone { name, .. } = site {
        let key = ResourceKey::new(Kind::Zone, "", name.as_str())?;
        if catalog.get(&key).is_none() {
            ops.push(create(site, key, serde_json::json!({}), None));
        }
    }
    let users = Family::user();
    let mut made = None;
    if !keys::has_key(catalog, &users, "") {
        let (op, key) = new_key(site, &users).await?;
        ops.push(op);
        made = Some(key);
    }
    if options.admin_token && catalog.get(&ResourceKey::new(Kind::GlobalSecret, "", keys::ADMIN_TOKEN)?).is_none() {
        let signing = match made {
            Some(key) => Ok(("1".to_owned(), key)),
            None => {
                let secrets = keys::of_family(catalog, &users, "");
                blocking(move || Ok(users.signing_key(keys::named(&secrets)))).await?
            }
        };
        match signing {
            Ok((key_id, key)) => ops.push(admin_token(site, key_id, key).await?),
            // Without the API nobody could mend it, so it must not keep the API from being served.
            Err(reason) => error!(error = %Chain(&reason), "there is no administrator's token: it cannot be signed"),
        }
    }
    Ok(ops)
}

/// The GlobalSecret with the first administrator's token.
async fn admin_token(site: &Site, key_id: String, key: SigningKey) -> Result<Op, Error> {
    let claims = UserClaims {
        name: ADMIN.into(),
        groups: vec![ADMIN.into()],
    };
    let issued =
        blocking(move || token::issue(&key, &key_id, &claims, ADMIN_TOKEN_LIFE, OffsetDateTime::now_utc()).map_err(Error::Sign)).await?;
    let name = keys::ADMIN_TOKEN;
    Ok(secret(site, Kind::GlobalSecret, "", name, issued.token.as_bytes(), None)?)
}

/// The GlobalSecret with the first key of a family, and that key.
async fn new_key(site: &Site, family: &Family) -> Result<(Op, SigningKey), Error> {
    let key = signing_keys(1).await?.pop().ok_or_else(|| Error::Make("no key was made".into()))?;
    let op = secret(
        site,
        Kind::GlobalSecret,
        "",
        &family.key_name(1),
        key.private_pem().as_bytes(),
        None,
    )?;
    Ok((op, key))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|error| Error::Make(Box::new(error)))?
}
