//! Issuing tokens for proxies, zones and users, with the newest signing key in the store.
//! Source: `reference/api.md` 1.6 and 4.3; the scope of a zone token: `reference/facts.md` F17.
//! Different: the caller's right is checked first; a body that is no JSON gets an error that says so.

use std::{collections::BTreeMap, time::Duration};

use axum::body::Body;
use serde::{Deserialize, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use tracing::error;
use ursa_model::{Kind, Violations, duration::GoDuration, name};
use ursa_pki::token::{self, Claims, DataplaneClaims, Family, IssueError, UserClaims, ZoneClaims, stored::NoKey};
use ursa_runtime::error::Chain;

use super::{Answer, text};
use crate::{audit, body, call::Call, error::Error, keys};

const INVALID: &str = "Invalid request";
const ISSUE: &str = "Could not issue a token";
/// Ten years, for dataplane and zone tokens whose request says nothing.
const DEFAULT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct DataplaneRequest {
    name: String,
    mesh: String,
    tags: Option<BTreeMap<String, Vec<String>>>,
    #[serde(rename = "type")]
    kind: String,
    workload: String,
    valid_for: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ZoneRequest {
    zone: String,
    scope: Option<Vec<String>>,
    valid_for: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UserRequest {
    name: String,
    groups: Option<Vec<String>>,
    valid_for: String,
}

/// `POST /tokens/dataplane`.
pub(super) async fn dataplane(call: Call, body: Body) -> Answer {
    call.require_admin("generate dataplane token")?;
    let request: DataplaneRequest = read(&call, body).await?;
    let mut found = Violations::default();
    if request.mesh.is_empty() {
        found.add("mesh", "cannot be empty");
    } else if let Err(why) = name::check_stored_name(&request.mesh) {
        found.add("mesh", why.to_string());
    }
    if !matches!(request.kind.as_str(), "" | "dataplane") {
        found.add("type", format!("{} is not a valid proxy type", request.kind));
    }
    let life = life(&request.valid_for, Some(DEFAULT_LIFE), &mut found);
    refuse(found)?;
    let family = Family::dataplane(&request.mesh);
    let mesh = request.mesh.clone();
    let subject = format!("{}/{}", request.mesh, request.name);
    let claims = DataplaneClaims {
        name: request.name,
        mesh: request.mesh,
        tags: request.tags.unwrap_or_default(),
        proxy_type: request.kind,
        workload: request.workload,
    };
    issue(&call, family, mesh, claims, life, subject).await
}

/// `POST /tokens/zone`.
pub(super) async fn zone(call: Call, body: Body) -> Answer {
    call.require_admin("generate zone token")?;
    let request: ZoneRequest = read(&call, body).await?;
    let mut found = Violations::default();
    if request.zone.is_empty() {
        found.add("zone", "cannot be empty");
    } else if !name::is_dns1035_label(&request.zone) {
        found.add("zone", name::InvalidName::NotLabel.to_string());
    }
    let scope = request.scope.unwrap_or_default();
    if scope.iter().any(|s| !matches!(s.as_str(), "cp" | "ingress" | "egress")) {
        found.add("scope", "must be any of: cp, ingress, egress");
    }
    let life = life(&request.valid_for, Some(DEFAULT_LIFE), &mut found);
    refuse(found)?;
    let subject = request.zone.clone();
    let claims = ZoneClaims { zone: request.zone, scope };
    issue(&call, Family::zone(), String::new(), claims, life, subject).await
}

/// `POST /tokens/user`.
pub(super) async fn user(call: Call, body: Body) -> Answer {
    call.require_admin("generate user token")?;
    let request: UserRequest = read(&call, body).await?;
    let mut found = Violations::default();
    if request.name.is_empty() {
        found.add("name", "cannot be empty");
    }
    let life = life(&request.valid_for, None, &mut found);
    refuse(found)?;
    let subject = request.name.clone();
    let claims = UserClaims {
        name: request.name,
        groups: request.groups.unwrap_or_default(),
    };
    issue(&call, Family::user(), String::new(), claims, life, subject).await
}

async fn read<T: DeserializeOwned>(call: &Call, body: Body) -> Result<T, Error> {
    let format = body::format(&call.headers)?;
    let bytes = body::read(&call.headers, body, &call.api().limits).await?;
    let value = body::parse(format, bytes).await.map_err(Error::bad_request)?;
    serde_path_to_error::deserialize(value).map_err(Error::bad_request)
}

fn refuse(found: Violations) -> Result<(), Error> {
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(INVALID, found))
    }
}

/// Life of the token. `default` is for an empty text; without one the text must be there.
fn life(text: &str, default: Option<Duration>, found: &mut Violations) -> Duration {
    if text.is_empty() {
        return default.unwrap_or_else(|| {
            found.add("validFor", "cannot be empty");
            Duration::ZERO
        });
    }
    match text.parse::<GoDuration>() {
        Ok(GoDuration(life)) if life >= Duration::from_secs(1) => life,
        Ok(GoDuration(Duration::ZERO)) => {
            found.add("validFor", "cannot be empty or nil");
            Duration::ZERO
        }
        Ok(_) => {
            found.add("validFor", "must be at least a second");
            Duration::ZERO
        }
        Err(why) => {
            found.add("validFor", format!("is invalid: {why}"));
            Duration::ZERO
        }
    }
}

/// Why signing failed.
enum Failure {
    Key(NoKey),
    Issue(IssueError),
}

async fn issue<C: Claims + Send + 'static>(
    call: &Call,
    family: Family,
    mesh: String,
    claims: C,
    life: Duration,
    subject: String,
) -> Answer {
    let secrets = keys::of_family(&call.catalog, &family, &mesh);
    let prefix = family.prefix().to_owned();
    // Signing takes a millisecond of a processor, so away from the async threads.
    let signed = spawn_blocking(move || {
        let (key_id, key) = family.signing_key(keys::named(&secrets)).map_err(Failure::Key)?;
        token::issue(&key, &key_id, &claims, life, OffsetDateTime::now_utc()).map_err(Failure::Issue)
    });
    match signed.await {
        Ok(Ok(issued)) => {
            audit::token_issued(
                &call.caller,
                &C::KIND,
                &subject,
                &issued.jti,
                &issued.expires_at,
                call.catalog.durable.revision(),
            );
            Ok(text(issued.token))
        }
        Ok(Err(Failure::Key(why))) => Err(no_key(&why, &mesh)),
        Ok(Err(Failure::Issue(why @ (IssueError::TooLong | IssueError::Validity(_))))) => {
            let field = if matches!(why, IssueError::TooLong) { "" } else { "validFor" };
            Err(Error::invalid_field(INVALID, field, why.to_string()))
        }
        Ok(Err(Failure::Issue(why))) => {
            error!(prefix, error = %Chain(&why), "cannot sign a token");
            Err(Error::internal(ISSUE))
        }
        Err(why) => {
            error!(prefix, error = %Chain(&why), "the thread that signs a token failed");
            Err(Error::internal(ISSUE))
        }
    }
}

/// What the operator can do about it: both are a matter of what is stored, not of this program.
fn no_key(why: &NoKey, mesh: &str) -> Error {
    let (kind, place) = if mesh.is_empty() {
        (Kind::GlobalSecret, String::new())
    } else {
        (Kind::Secret, format!(" in mesh {mesh:?}"))
    };
    match why {
        NoKey::Missing { name } => Error::signing_key(format!("there is no signing key: {kind} of name {name:?}{place} is not found")),
        NoKey::Unusable { name, source } => Error::broken_signing_key(format!(
            "{kind} {name:?}{place} cannot be used ({source}): replace it, or delete it to sign with the key before it"
        )),
    }
}
