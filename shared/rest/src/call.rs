//! One request as the handlers see it: who calls, the picture of the state to answer from, and the parts of the path.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{FromRequestParts, MatchedPath, RawPathParams},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use tracing::error;
use ursa_model::{Kind, Resource, ResourceKey};
use ursa_state::{Catalog, RequestId, Revision};

use crate::{
    Api, audit,
    auth::Caller,
    backend::Freshness,
    envelope::Envelope,
    error::Error,
    gate::Shared,
    kubernetes,
    query::{self, Query},
};

/// On every answer: revision of the store that a read was answered at, or that a write made.
pub const REVISION_HEADER: &str = "ursa-revision";
/// On every answer: the history that the revision belongs to.
pub const HISTORY_HEADER: &str = "ursa-history";
/// On writes, 32 hexadecimal digits chosen by the client: a request that is sent again with the same id, method, path and body
/// gets the answer of the first. The answer of every write carries the id.
pub const REQUEST_ID_HEADER: &str = "ursa-request-id";
/// On writes, any text of 1 to 255 visible characters: another way to choose the request id, which is made from it. Source: IETF
/// draft-ietf-httpapi-idempotency-key-header.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";
/// On reads: `true` answers from what this node has, without asking the leader. The query parameter `stale` says the same.
pub const STALE_HEADER: &str = "ursa-stale";

/// As the draft's examples and large services have it.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// What the gate found out about a request, as an extension of it.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) catalog: Catalog,
    /// The picture is provisional, good for a write that is committed in this term.
    pub(crate) term: Option<u64>,
    pub(crate) caller: Caller,
    pub(crate) https: bool,
}

/// A call that may have a provisional picture: for writes that are decided again if they are not committed on it.
pub(crate) struct Early(pub(crate) Call);

/// See the module's text.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) catalog: Catalog,
    /// As [`Context::term`]; only in what was an [`Early`] call.
    pub(crate) term: Option<u64>,
    pub(crate) caller: Caller,
    pub(crate) query: Query,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// Pattern of the route, such as `/meshes/{mesh}/dataplanes`.
    pub(crate) route: String,
    https: bool,
    params: BTreeMap<String, String>,
}

impl FromRequestParts<Arc<Shared>> for Call {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Error> {
        let Early(mut call) = Early::from_request_parts(parts, shared).await?;
        call.refresh().await?;
        Ok(call)
    }
}

impl FromRequestParts<Arc<Shared>> for Early {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Error> {
        let Some(context) = parts.extensions.get::<Context>().cloned() else {
            error!("a route was reached without passing the gate");
            return Err(Error::internal("Internal error"));
        };
        let params = RawPathParams::from_request_parts(parts, shared)
            .await
            .map_err(|_| Error::bad_request("the path is not UTF-8"))?;
        let params = params.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let route = parts
            .extensions
            .get::<MatchedPath>()
            .map(|p| p.as_str().to_owned())
            .unwrap_or_default();
        Ok(Self(Call {
            shared: shared.clone(),
            catalog: context.catalog,
            term: context.term,
            caller: context.caller,
            query: Query::parse(&parts.uri)?,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            route,
            https: context.https,
            params,
        }))
    }
}

impl Call {
    pub(crate) fn api(&self) -> &Api {
        &self.shared.api
    }

    /// Makes a provisional picture the newest, and looks again whether the caller may call.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        if self.term.is_none() {
            return Ok(());
        }
        let newest = self.api().backend.catalog(Freshness::Linearizable).await;
        self.catalog = newest.map_err(|unavailable| Error::unavailable(&unavailable))?;
        self.term = None;
        let authenticator = &self.shared.authenticator;
        match authenticator.authenticate(&self.catalog, &self.headers, OffsetDateTime::now_utc()) {
            Ok((user, jti)) => {
                self.caller.user = user;
                self.caller.jti = jti;
                Ok(())
            }
            Err(reason) => {
                audit::token_refused(self.caller.peer, &self.method, self.uri.path(), &reason);
                Err(Error::unauthenticated())
            }
        }
    }

    /// A place among the requests that wait for zones; `None` when all are taken.
    pub(crate) fn waiting_place(&self) -> Option<OwnedSemaphorePermit> {
        self.shared.waiters.clone().try_acquire_owned().ok()
    }

    /// A place among the requests that read the past; `None` when all are taken. Administrators have places of their own.
    pub(crate) fn place_in_the_past(&self) -> Option<OwnedSemaphorePermit> {
        let [anybody, admins] = &self.shared.historians;
        let is_admin = self.api().access.is_admin(&self.caller.user);
        let places = if is_admin { admins } else { anybody };
        places.clone().try_acquire_owned().ok()
    }

    /// A part of the path; empty when the route has none of that name.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// The mesh of the path, checked to exist; empty for a kind of global scope and for a list over all meshes.
    pub(crate) fn mesh(&self) -> Result<&str, Error> {
        let mesh = self.param("mesh");
        if mesh.is_empty() {
            return Ok(mesh);
        }
        let exists = ResourceKey::mesh_itself(mesh).is_ok_and(|key| self.catalog.get(&key).is_some());
        if exists {
            Ok(mesh)
        } else {
            Err(Error::not_found("Failed to retrieve Mesh"))
        }
    }

    /// Refuses a caller who is no administrator; `what` completes "cannot access".
    pub(crate) fn require_admin(&self, what: impl std::fmt::Display) -> Result<(), Error> {
        if self.api().access.is_admin(&self.caller.user) {
            return Ok(());
        }
        audit::denied(&self.caller, &self.method, self.uri.path(), &what);
        Err(Error::denied(&self.caller.user, what))
    }

    /// Refuses a read of a kind that only administrators may read.
    pub(crate) fn require_read(&self, kind: Kind) -> Result<(), Error> {
        if kind.descriptor().admin_only {
            self.require_write(kind)
        } else {
            Ok(())
        }
    }

    /// Refuses a write by anybody but an administrator.
    pub(crate) fn require_write(&self, kind: Kind) -> Result<(), Error> {
        self.require_admin(format_args!("the resource of type \"{kind}\""))
    }

    /// This request's URL with another offset: absolute if the request names its host. Forwarded headers are not believed.
    pub(crate) fn next_link(&self, offset: usize) -> String {
        self.link_with("offset", &offset.to_string())
    }

    /// This request's URL with another value of one parameter, as [`Call::next_link`].
    pub(crate) fn link_with(&self, name: &str, value: &str) -> String {
        let host = self
            .headers
            .get(header::HOST)
            .and_then(|h| h.to_str().ok())
            .or_else(|| self.uri.authority().map(|a| a.as_str()));
        let rest = format!("{}?{}", self.uri.path(), self.query.with(name, value));
        match host {
            Some(host) => format!("{}://{host}{rest}", if self.https { "https" } else { "http" }),
            None => rest,
        }
    }

    /// The request id that the client chose.
    pub(crate) fn request_id(&self) -> Result<Option<RequestId>, Error> {
        let value = match (self.headers.get(REQUEST_ID_HEADER), self.headers.get(IDEMPOTENCY_HEADER)) {
            (None, None) => return Ok(None),
            (None, Some(key)) => return id_of(key).map(Some),
            (Some(_), Some(_)) => {
                return Err(Error::bad_request(format_args!(
                    "a request has {REQUEST_ID_HEADER} or {IDEMPOTENCY_HEADER}, not both"
                )));
            }
            (Some(value), None) => value,
        };
        match value
            .to_str()
            .ok()
            .and_then(|v| v.parse::<RequestId>().ok())
            .filter(|id| *id != RequestId::default())
        {
            Some(id) => Ok(Some(id)),
            None => Err(Error::bad_request(format_args!(
                "{REQUEST_ID_HEADER} must be 32 hexadecimal digits, not all zero"
            ))),
        }
    }
}

/// The request id that an idempotency key stands for.
fn id_of(key: &HeaderValue) -> Result<RequestId, Error> {
    let key = key.as_bytes();
    if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY || !key.iter().all(|b| (b' '..=b'~').contains(b)) {
        return Err(Error::bad_request(format_args!(
            "{IDEMPOTENCY_HEADER} must be 1 to {MAX_IDEMPOTENCY_KEY} visible characters"
        )));
    }
    let mut hash = Sha256::new();
    hash.update(IDEMPOTENCY_HEADER);
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    Ok(RequestId(
        digest.iter().take(16).fold(0_u128, |n, byte| (n << 8) | u128::from(*byte)),
    ))
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (
            status,
            [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            bytes,
        )
            .into_response(),
        Err(error) => {
            error!(%error, "an answer cannot be written as JSON");
            Error::internal("Internal error").into_response()
        }
    }
}

/// One resource, in the format that was asked for.
pub(crate) fn shown(call: &Call, resource: &Resource) -> Result<Response, Error> {
    match query::format(&call.query)? {
        query::Format::Universal => Ok(json(StatusCode::OK, &Envelope(resource))),
        query::Format::Kubernetes => {
            let namespace = Some(call.query.first("namespace")).filter(|n| !n.is_empty());
            let object = kubernetes::object(resource, namespace.unwrap_or(kubernetes::SYSTEM_NAMESPACE));
            Ok(json(StatusCode::OK, &object))
        }
    }
}

/// Names the revision of an answer.
pub(crate) fn set_revision(headers: &mut HeaderMap, catalog: &Catalog, revision: Revision) {
    headers.insert(REVISION_HEADER, HeaderValue::from(revision));
    if let Ok(history) = HeaderValue::from_str(&catalog.durable.history_id().to_string()) {
        headers.insert(HISTORY_HEADER, history);
    }
}
