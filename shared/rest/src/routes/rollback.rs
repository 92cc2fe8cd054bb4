//! `POST /_rollback`: brings resources back to what they were at a revision, in one new changeset.
//! In: `{"to": revision or time, "type", "mesh", "name", "history", "dryRun"}`; all but `to` may be left out, and narrow what is rolled back.
//! Out: what was changed and what was left alone. For administrators. It passes what every write passes ([`crate::write`]): request ids,
//! preconditions, audit, stages, the wait for zones.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use ursa_model::{Kind, ResourceKey};
use ursa_state::{Applied, Catalog, Change, LogEntry, OpResult, Wanted};

use super::{
    Answer,
    history::{Named, Valued},
};
use crate::{
    body,
    call::{Call, json},
    error::Error,
    past::{self, PointText, Selection},
    rollback::{self, Plan, Skipped},
    wait,
    write::{Write, WriteId, commit_with, now_ns, rejected},
};

const TITLE: &str = "Could not roll back";

/// A misspelt `dryRun` must not be a roll-back.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    to: PointText,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    mesh: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    history: String,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done<'a, T> {
    history: String,
    /// The revision that was gone back to.
    to: u64,
    /// The new revision; in a dry run, and when there was nothing to do, the newest that there was.
    revision: u64,
    dry_run: bool,
    changes: Vec<T>,
    skipped: Vec<Left<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What differs and stays.
#[derive(Serialize)]
struct Left<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mesh: &'a str,
    name: &'a str,
    reason: &'a str,
}

/// `POST /_rollback`.
pub(super) async fn post(call: Call, body: Body) -> Answer {
    call.require_admin("the roll-back of resources")?;
    let format = body::format(&call.headers)?;
    let wait = wait::asked(&call)?;
    let bytes = body::read(&call.headers, body, &call.api().limits).await?;
    let id = WriteId::of(&call, &bytes)?;
    let value = body::parse(format, bytes).await.map_err(Error::bad_request)?;
    // Without this a list would do as well, its first element being `to`.
    if !value.is_object() {
        return Err(Error::bad_request("expected an object"));
    }
    let request: Request = serde_path_to_error::deserialize(value).map_err(Error::bad_request)?;
    let received_ns = now_ns();

    past::require_history(&call, &request.history)?;
    let selection = Selection::of(&call, &request.kind, &request.mesh, &request.name)?;
    let point = request.to.point("to")?;
    let subject = subject(&request.kind, &request.mesh, &request.name);
    let (shared, catalog) = (call.shared.clone(), call.catalog.clone());
    let (to, plan) = past::look(&call, move |view| {
        let to = point.resolve(view, "to")?;
        let differences = differences(&catalog, &selection, to)?;
        let unknown = shared.api.backend.unknown_zones();
        let named = selection.key().is_some();
        Ok((to, rollback::plan(&shared.api, &catalog, &unknown, differences, named)))
    })
    .await?;
    let Plan {
        ops,
        changes,
        skipped,
        found,
    } = plan;
    if !found.is_empty() {
        return Err(Error::invalid(TITLE, found));
    }
    let newest = call.catalog.durable.revision();
    if request.dry_run {
        let values: Vec<Valued<'_>> = changes.iter().map(Valued::of).collect();
        return Ok(json(StatusCode::OK, &done(&call, to, newest, true, values, &skipped, Vec::new())));
    }
    let write = Write {
        subject: format!("{subject} to revision {to}"),
        ops,
        warnings: Vec::new(),
        received_ns,
        id,
        wait,
    };
    // Without anything to do it is proposed all the same: only the store knows whether this is a retry.
    let answer = |applied: &Applied, after: Option<&Catalog>, warnings| answer(&call, to, applied, after, &skipped, warnings);
    Ok(commit_with(&call, write, answer).await)
}

/// What is different now from what was at `to`, and may be asked about.
fn differences(catalog: &Catalog, selection: &Selection, to: u64) -> Result<Vec<Change>, Error> {
    let (has, one) = (|key: &ResourceKey| selection.has(key), selection.key());
    let wanted = one.as_ref().map_or(Wanted::Those(&has), Wanted::Key);
    let view = &catalog.durable;
    let found = view.past().diff(to, view.revision(), wanted);
    found.map_err(|error| past::failed("to", error))
}

fn answer(call: &Call, to: u64, applied: &Applied, after: Option<&Catalog>, skipped: &[Skipped], warnings: Vec<String>) -> Response {
    if let Some((_, reason)) = &applied.rejected {
        let nothing = ResourceKey::first(Kind::Mesh, "");
        return rejected(reason, &nothing, TITLE).into_response();
    }
    let entry = after.and_then(|after| recorded(after, applied));
    let changes = entry.iter().flat_map(|entry| &entry.changes);
    let named = changes.map(|(key, operation)| Named::of(key, *operation)).collect();
    json(StatusCode::OK, &done(call, to, applied.revision, false, named, skipped, warnings))
}

/// What the changeset changed, resources that went with their owners included; a retry is told what the first did.
fn recorded(after: &Catalog, applied: &Applied) -> Option<LogEntry> {
    if applied.results.iter().all(|result| *result == OpResult::Unchanged) {
        return None;
    }
    let shown = |key: &ResourceKey| !key.kind().descriptor().internal;
    let before = applied.revision.saturating_sub(1);
    let log = after.durable.past().log(before, applied.revision, Wanted::Those(&shown), false, 1);
    log.ok()?.pop()
}

fn done<'a, T>(
    call: &Call,
    to: u64,
    revision: u64,
    dry_run: bool,
    changes: Vec<T>,
    skipped: &'a [Skipped],
    warnings: Vec<String>,
) -> Done<'a, T> {
    Done {
        history: call.catalog.durable.history_id().to_string(),
        to,
        revision,
        dry_run,
        changes,
        skipped: skipped
            .iter()
            .map(|left| Left {
                kind: left.key.kind().name(),
                mesh: left.key.mesh(),
                name: left.key.name(),
                reason: &left.reason,
            })
            .collect(),
        warnings,
    }
}

/// For the audit log.
fn subject(kind: &str, mesh: &str, name: &str) -> String {
    let parts: Vec<&str> = [kind, mesh, name].into_iter().filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => "everything".to_owned(),
        false => parts.join("/"),
    }
}
