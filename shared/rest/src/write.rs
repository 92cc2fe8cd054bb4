//! Proposing a change and answering with its outcome.
//! Invariant: the status of the answer comes from what was applied, not from what was expected, so a retried request gets the
//! answer of the first.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tracing::error;
use ursa_model::{ResourceKey, Timestamp};
use ursa_runtime::{error::Chain, stages};
use ursa_state::{Applied, Catalog, Changeset, GlobalRevision, Op, OpError, OpResult, RequestId};
use uuid::Uuid;

use crate::{
    audit,
    backend::{Freshness, NotEarly, ProposeError},
    call::{Call, REQUEST_ID_HEADER, json, set_revision},
    error::Error,
    wait::{self, APPLIED_HEADER, Wait},
};

/// Answer to a write.
#[derive(Serialize)]
struct Success {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// A write that is about to be proposed.
pub(crate) struct Write {
    /// What it is about, for logs.
    pub(crate) subject: String,
    pub(crate) ops: Vec<Op>,
    pub(crate) warnings: Vec<String>,
    /// When the request had been read.
    pub(crate) received_ns: u64,
    pub(crate) id: WriteId,
    /// The answer is to wait for the zones.
    pub(crate) wait: Option<Wait>,
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Identity of a write: what the client sees and repeats, and what the store remembers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteId {
    pub(crate) client: RequestId,
    pub(crate) store: RequestId,
    /// The client chose it, so this may be a retry.
    pub(crate) chosen: bool,
}

impl WriteId {
    /// The store's id is derived from the client's and from the request itself: a client that uses one id for two different
    /// requests must not be told that the second was done.
    pub(crate) fn of(call: &Call, body: &[u8]) -> Result<Self, Error> {
        let chosen = call.request_id()?;
        let client = chosen.unwrap_or_else(|| RequestId(Uuid::new_v4().as_u128()));
        let mut hash = Sha256::new();
        hash.update(client.0.to_be_bytes());
        for part in [call.method.as_str().as_bytes(), call.uri.path().as_bytes(), body] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let store = digest.iter().take(16).fold(0_u128, |n, byte| (n << 8) | u128::from(*byte));
        Ok(Self {
            client,
            store: RequestId(store),
            chosen: chosen.is_some(),
        })
    }
}

/// What was decided about one resource: the write, whose own op is the first, and what an answer to it is called.
pub(crate) struct Decision {
    pub(crate) write: Write,
    pub(crate) subject: ResourceKey,
    pub(crate) title: &'static str,
}

/// A request to change one resource.
pub(crate) trait Decide: Sync {
    /// What to do, on the picture of `call`. `repeat`: the same may have been done before.
    fn decide(&self, call: &Call, repeat: bool) -> impl Future<Output = Result<Decision, Error>> + Send;
}

/// It was decided on a picture that may not have been the newest, and has to be decided again.
pub(crate) struct Again {
    /// What was decided first may be committed yet.
    doubt: bool,
}

/// Decides about one resource, proposes what was decided, and answers by the result. What is decided on a provisional picture and not
/// committed in its term is decided again on the newest.
pub(crate) async fn decide_and_commit(call: &mut Call, id: WriteId, asked: &impl Decide) -> Result<Response, Error> {
    let mut doubt = false;
    if call.term.is_some() {
        if let Ok(decision) = asked.decide(call, id.chosen).await {
            match commit(call, decision).await {
                Ok(response) => return Ok(response),
                Err(again) => doubt = again.doubt,
            }
        }
        let refreshed = call.refresh().await;
        refreshed.map_err(|error| if doubt { Error::outcome_unknown(id.client) } else { error })?;
    }
    let again = match asked.decide(call, id.chosen || doubt).await {
        Ok(decision) => match commit(call, decision).await {
            Ok(response) => return Ok(response),
            Err(again) => again,
        },
        // The first decision may be why this one is another.
        Err(_) if doubt => Again { doubt },
        Err(error) => {
            let mut response = error.into_response();
            set_revision(response.headers_mut(), &call.catalog, call.catalog.durable.revision());
            return Ok(response);
        }
    };
    error!(doubt = again.doubt, "a write could not be decided on the newest state");
    Err(Error::outcome_unknown(id.client))
}

async fn commit(call: &Call, decision: Decision) -> Result<Response, Again> {
    let Decision { write, subject, title } = decision;
    try_commit(call, write, |applied, _, warnings| answer(applied, &subject, warnings, title)).await
}

/// Proposes a write, and answers it with what `answer` makes of the outcome, of a picture that contains it, and of warnings; it is asked
/// twice, without warnings first.
pub(crate) async fn commit_with(
    call: &Call,
    write: Write,
    answer: impl Fn(&Applied, Option<&Catalog>, Vec<String>) -> Response,
) -> Response {
    let id = write.id.client;
    let done = try_commit(call, write, answer).await;
    done.unwrap_or_else(|_| Error::outcome_unknown(id).into_response())
}

async fn try_commit(
    call: &Call,
    write: Write,
    answer: impl Fn(&Applied, Option<&Catalog>, Vec<String>) -> Response,
) -> Result<Response, Again> {
    let Write {
        subject,
        ops,
        mut warnings,
        received_ns,
        id,
        wait,
    } = write;
    let mut set = Changeset::atomic(id.store, Timestamp::now(), ops);
    set.actor = call.caller.user.name.clone();
    let backend = &call.api().backend;
    let outcome = match call.term {
        None => backend.propose(set).await,
        Some(term) => match backend.propose_in(term, set).await {
            Ok(applied) => Ok(applied),
            Err(NotEarly::Failed(error)) => Err(error),
            Err(NotEarly::Deposed) => return Err(Again { doubt: false }),
            Err(NotEarly::Doubt) => return Err(Again { doubt: true }),
        },
    };
    let committed_ns = now_ns();
    let mut response = match outcome {
        Ok(applied) => {
            record_stages(call, &applied, &subject, received_ns, committed_ns);
            // Before the wait, which ends with the client: what is done is in the log, whoever hears of it.
            let after = call.api().backend.catalog(Freshness::Stale).await.ok();
            let status = answer(&applied, after.as_ref(), Vec::new()).status();
            audit::written(&call.caller, &call.method, &subject, applied.revision, status, &id.client);
            let zones = match wait {
                Some(wait) if applied.rejected.is_none() => Some(wait_for_zones(call, &applied, wait, &mut warnings).await),
                _ => None,
            };
            let mut response = answer(&applied, after.as_ref(), warnings);
            if let Some(told) = zones {
                response.headers_mut().insert(APPLIED_HEADER, told);
            }
            set_revision(response.headers_mut(), &call.catalog, applied.revision);
            response
        }
        Err(reason) => {
            audit::write_failed(&call.caller, &call.method, &subject, &reason, &id.client);
            propose_error(&reason, id.client).into_response()
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id.client.to_string()) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    Ok(response)
}

/// Waits until the zones have stored what was committed, and warns of those that have not.
async fn wait_for_zones(call: &Call, applied: &Applied, wait: Wait, warnings: &mut Vec<String>) -> HeaderValue {
    let wanted = GlobalRevision {
        history: call.catalog.durable.history_id(),
        revision: applied.revision,
    };
    let zones = wait.until_applied(&call.catalog, call.api().backend.observed(), wanted).await;
    let (told, behind) = wait::told(&zones, wanted.revision);
    warnings.extend(behind);
    told
}

/// How a failed proposal looks to the client.
pub(crate) fn propose_error(reason: &ProposeError, id: RequestId) -> Error {
    match reason {
        ProposeError::Unavailable(why) => Error::unavailable(why),
        ProposeError::Unknown => Error::outcome_unknown(id),
        ProposeError::TooLarge { bytes, limit } => Error::change_too_large(*bytes, *limit),
        ProposeError::NoSpace(why) => Error::no_space(why.clone()),
    }
}

/// Only a change has a revision of its own.
fn record_stages(call: &Call, applied: &Applied, subject: &str, received_ns: u64, committed_ns: u64) {
    let changed = applied.rejected.is_none() && applied.results.iter().any(|r| *r != OpResult::Unchanged);
    if !call.api().site.is_global() || !changed {
        return;
    }
    let history = call.catalog.durable.history_id().to_string();
    let recorder = &call.api().stages;
    recorder.record_at(stages::RECEIVED, &history, applied.revision, subject, received_ns);
    recorder.record_at(stages::COMMITTED, &history, applied.revision, subject, committed_ns);
}

fn answer(applied: &Applied, subject: &ResourceKey, warnings: Vec<String>, title: &'static str) -> Response {
    if let Some((_, reason)) = &applied.rejected {
        return rejected(reason, subject, title).into_response();
    }
    match applied.results.first() {
        Some(OpResult::Created) => json(StatusCode::CREATED, &Success { warnings }),
        Some(OpResult::Updated | OpResult::Unchanged | OpResult::Deleted(_)) => json(StatusCode::OK, &Success { warnings }),
        Some(OpResult::Refused(reason)) => rejected(reason, subject, title).into_response(),
        None => {
            error!(%subject, "the store applied a write without telling its result");
            Error::internal(title).into_response()
        }
    }
}

pub(crate) fn rejected(reason: &OpError, subject: &ResourceKey, title: &'static str) -> Error {
    match reason {
        OpError::Missing(key) if key == subject => Error::not_found(title),
        OpError::Exists(_) | OpError::Missing(_) | OpError::Conflict { .. } => Error::conflict(reason),
        OpError::OwnerMissing(owner) => Error::mesh_missing(title, owner.name()),
        OpError::OwnerCycle(_) => {
            error!(error = %Chain(reason), "a write of the API was malformed");
            Error::internal(title)
        }
    }
}
