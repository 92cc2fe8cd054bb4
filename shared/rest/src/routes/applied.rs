//! `GET /zones/_applied?revision=N&history=H&wait=5s`: which zones have stored a revision, the newest unless one is named.
//! Anybody may ask; only administrators may wait.

use http::StatusCode;
use serde::Serialize;
use ursa_state::GlobalRevision;

use super::Answer;
use crate::{
    call::{Call, json},
    error::Error,
    wait::{self, ZoneState},
};

const TITLE: &str = "Could not retrieve resources";

#[derive(Serialize)]
struct Applied {
    history: String,
    revision: u64,
    /// No zone that is connected and reports is behind.
    applied: bool,
    zones: Vec<ZoneState>,
}

pub(super) async fn get(call: Call) -> Answer {
    let newest = call.catalog.durable.at_global();
    let history = call.query.first("history");
    if !history.is_empty() && history != newest.history.to_string() {
        return Err(Error::invalid_field(
            TITLE,
            "history",
            format!(
                "this control plane is at history {}, to which revisions of another do not belong",
                newest.history
            ),
        ));
    }
    let revision = match call.query.first("revision") {
        "" => newest.revision,
        text => text
            .parse()
            .map_err(|_| Error::invalid_field(TITLE, "revision", "must be a whole number"))?,
    };
    if revision > newest.revision {
        // Nobody can have stored it.
        let reason = format!("must be at most {}, the newest that this control plane knows", newest.revision);
        return Err(Error::invalid_field(TITLE, "revision", reason));
    }
    let wanted = GlobalRevision {
        history: newest.history,
        revision,
    };
    let observed = call.api().backend.observed();
    let zones = match wait::asked(&call)? {
        Some(wait) => wait.until_applied(&call.catalog, observed, wanted).await,
        None => {
            let now = observed.borrow().clone();
            wait::zones(&call.catalog, &now, wanted)
        }
    };
    let body = Applied {
        history: newest.history.to_string(),
        revision,
        applied: !zones.iter().any(ZoneState::is_pending),
        zones,
    };
    Ok(json(StatusCode::OK, &body))
}
