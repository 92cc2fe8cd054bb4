//! `/cluster/members` and `/cluster/leader`: who is in the group, changed while it runs. What there is, `GET /cluster` shows.
//! In: requests of administrators, on any node. Out: what was done, or why not. Invariants: the store decides; every request may be
//! repeated; a token is in its answer and nowhere else.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{post, put},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::info;
use ursa_rest::{Access, Caller, Error};
use ursa_runtime::lease::Deadline;
use ursa_store::{MemberChange, MemberDone, MemberError, Objection, Store};

/// A new node copies everything before it votes; who waits longer asks again.
const PATIENCE: Duration = Duration::from_secs(50);
const ACCESS: &str = "the members of the control plane";
/// A name and a number.
const MAX_BODY: usize = 16 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Invited {
    id: u64,
    address: String,
    #[serde(with = "humantime_serde", default = "an_hour")]
    valid_for: Duration,
}

fn an_hour() -> Duration {
    Duration::from_secs(3600)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Promoted {
    instead_of: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Moved {
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Leader {
    id: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    id: u64,
    done: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<String>,
}

/// The routes.
pub(crate) fn router(store: Store) -> Router {
    Router::new()
        .route("/cluster/members", post(invite))
        .route("/cluster/members/{id}", put(readdress).delete(remove))
        .route("/cluster/members/{id}/promote", post(promote))
        .route("/cluster/leader", post(transfer))
        .with_state(store)
}

/// An empty body is the default.
fn read<T: DeserializeOwned>(body: &Bytes, empty: Option<T>) -> Result<T, Error> {
    if body.len() > MAX_BODY {
        return Err(Error::bad_request(format_args!("the body has more than {MAX_BODY} bytes")));
    }
    match empty.filter(|_| body.is_empty()) {
        Some(default) => Ok(default),
        None => serde_json::from_slice(body).map_err(|error| Error::bad_request(format_args!("the body: {error}"))),
    }
}

fn refused(error: &MemberError) -> Error {
    match error {
        MemberError::Refused(objection) => match objection {
            Objection::NoAddress { .. } | Objection::BadValidity => Error::bad_request(objection),
            Objection::NoMember { .. } => Error::not_found("There is no such member: see GET /cluster"),
            objection => Error::conflict(objection),
        },
        MemberError::Store(error) => {
            tracing::warn!(%error, "the members cannot be changed now");
            Error::unavailable(&ursa_rest::Unavailable {
                reason: "the store has no quorum or did not answer in time; ask again, a repeat does no harm",
                leader: None,
            })
        }
    }
}

async fn change(store: &Store, caller: &Caller, id: u64, wanted: MemberChange) -> Result<Response, Error> {
    if !Access::default().is_admin(&caller.user) {
        return Err(Error::denied(&caller.user, ACCESS));
    }
    let text = format!("{wanted:?}");
    let done = store.change_members(wanted, Deadline::after(PATIENCE)).await;
    let outcome = done.as_ref().err().map(ToString::to_string).unwrap_or_default();
    info!(target: "audit", event = "members_changed", user = %caller.user.name, wanted = text, refused = outcome);
    let answer = |id, done| Answer {
        id,
        done,
        token: None,
        valid_until: None,
    };
    let (status, answer) = match done.map_err(|error| refused(&error))? {
        MemberDone::Invited { token, until } => {
            let answer = Answer {
                token: Some(token),
                valid_until: Some(until.rfc3339()),
                ..answer(id, "invited")
            };
            (StatusCode::CREATED, answer)
        }
        MemberDone::Promoted => (StatusCode::OK, answer(id, "promoted")),
        MemberDone::Removed => (StatusCode::OK, answer(id, "removed")),
        MemberDone::Moved => (StatusCode::OK, answer(id, "moved")),
        MemberDone::Leads { node } => (StatusCode::OK, answer(node, "leads")),
    };
    Ok((status, Json(answer)).into_response())
}

async fn invite(State(store): State<Store>, Extension(caller): Extension<Caller>, body: Bytes) -> Result<Response, Error> {
    let Invited { id, address, valid_for } = read(&body, None)?;
    if id == 0 {
        return Err(Error::bad_request("id: it is 1 or greater"));
    }
    let wanted = MemberChange::Invite {
        node: id,
        address,
        valid_ms: u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX),
    };
    change(&store, &caller, id, wanted).await
}

async fn promote(
    State(store): State<Store>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Response, Error> {
    let Promoted { instead_of } = read(&body, Some(Promoted::default()))?;
    change(&store, &caller, id, MemberChange::Promote { node: id, instead_of }).await
}

async fn readdress(
    State(store): State<Store>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Response, Error> {
    let Moved { address } = read(&body, None)?;
    change(&store, &caller, id, MemberChange::Move { node: id, address }).await
}

async fn remove(State(store): State<Store>, Extension(caller): Extension<Caller>, Path(id): Path<u64>) -> Result<Response, Error> {
    change(&store, &caller, id, MemberChange::Remove { node: id }).await
}

async fn transfer(State(store): State<Store>, Extension(caller): Extension<Caller>, body: Bytes) -> Result<Response, Error> {
    let Leader { id } = read(&body, Some(Leader::default()))?;
    change(&store, &caller, id.unwrap_or_default(), MemberChange::Transfer { to: id }).await
}
