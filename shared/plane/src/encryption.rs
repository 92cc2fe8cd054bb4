//! `/encryption`: how the data of this node is encrypted on its disk, and the rotation of its data key.
//! In: requests of administrators, at the node that is meant. Out: ids of keys and how much is left. Invariant: no key is ever shown.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tracing::info;
use ursa_rest::{Access, Caller, Error};
use ursa_runtime::lease::within;
use ursa_store::{EncryptionStatus, Store, seal};

const ACCESS: &str = "the encryption of the control plane's data";
/// Longest wait of a request; who waits longer asks again.
const PATIENCE: Duration = Duration::from_secs(50);

/// As it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EncryptionView {
    enabled: bool,
    /// Everything is encrypted with `key`.
    settled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Keys of before, under which there is still something.
    old_keys: Vec<String>,
    /// Id of the key-encryption key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encryption_key: Option<String>,
    /// What is left to encrypt anew.
    log_files_left: u64,
    snapshots_left: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<EncryptionStatus> for EncryptionView {
    fn from(status: EncryptionStatus) -> Self {
        Self {
            enabled: status.key.is_some(),
            settled: status.settled,
            key: status.key.map(|key| key.to_string()),
            old_keys: status.old_keys.iter().map(ToString::to_string).collect(),
            key_encryption_key: status.kek,
            log_files_left: status.log_files,
            snapshots_left: status.snapshots,
            problem: status.problem,
        }
    }
}

/// The routes.
pub(crate) fn router(store: Store) -> Router {
    Router::new()
        .route("/encryption", get(show))
        .route("/encryption/rotate", post(rotate))
        .with_state(store)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Wait for so long, but no longer than 50 s, until everything is encrypted with one key.
    #[serde(default, with = "humantime_serde")]
    wait: Duration,
}

fn allowed(caller: &Caller) -> Result<(), Error> {
    match Access::default().is_admin(&caller.user) {
        true => Ok(()),
        false => Err(Error::denied(&caller.user, ACCESS)),
    }
}

async fn show(
    State(store): State<Store>,
    Extension(caller): Extension<Caller>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<EncryptionView>, Error> {
    allowed(&caller)?;
    let mut status = store.watch_encryption();
    // Whether it is settled or the time is over, the answer says.
    let _ = within(wanted.wait.min(PATIENCE), status.wait_for(|status| status.settled)).await;
    Ok(Json(store.encryption().into()))
}

async fn rotate(State(store): State<Store>, Extension(caller): Extension<Caller>) -> Result<Response, Error> {
    allowed(&caller)?;
    let made = store.rotate_key().await;
    let refused = made.as_ref().err().map(ToString::to_string).unwrap_or_default();
    info!(target: "audit", event = "data_key_rotated", user = %caller.user.name, refused);
    match made {
        Ok(_) => Ok((StatusCode::ACCEPTED, Json(EncryptionView::from(store.encryption()))).into_response()),
        Err(error @ (seal::Error::Off | seal::Error::Busy { .. })) => Err(Error::conflict(error)),
        Err(error) => {
            tracing::error!(error = %ursa_runtime::error::Chain(&error), "no new data key could be made");
            Err(Error::unavailable(&ursa_rest::Unavailable {
                reason: "the new key could not be stored; nothing was changed, see the log of this node",
                leader: None,
            }))
        }
    }
}
