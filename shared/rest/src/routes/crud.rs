//! One resource: GET, PUT, DELETE, in Kuma's order of checks (`reference/api.md` 1.2).
//! Different: whether the caller may write is checked first, before anything of the body is read.

use axum::{body::Body, response::IntoResponse};
use http::StatusCode;
use ursa_model::{
    Kind, Resource, ResourceKey, Scope, Timestamp, Violations,
    kind::{mesh::Mesh, zone_insight::ZoneInsight},
};
use ursa_state::{Expect, Op, Put};

use super::Answer;
use crate::{
    body,
    call::{Call, json, shown},
    defaults,
    envelope::{Overview, insight_of},
    error::Error,
    rules::{self, Document},
    wait, warnings,
    write::{Write, WriteId, commit, now_ns},
};

const RETRIEVE: &str = "Could not retrieve a resource";
const DELETE: &str = "Could not delete a resource";
const CREATE: &str = "Failed to create a resource";
const UPDATE: &str = "Failed to update a resource";
const UPDATE_LABELS: &str = "Could not update a resource";

/// A resource, or its overview.
pub(super) fn get(kind: Kind, overview: bool, call: &Call) -> Answer {
    let mesh = call.mesh()?;
    call.require_read(kind)?;
    let resource = key(kind, mesh, call.param("name"))
        .and_then(|k| call.catalog.get(&k).cloned())
        .ok_or(Error::not_found(RETRIEVE))?;
    if !overview {
        return shown(call, &resource);
    }
    let insight = insight_of(kind)
        .and_then(|(insight, ..)| key(insight, mesh, resource.name()))
        .and_then(|k| call.catalog.get(&k).cloned());
    Ok(json(
        StatusCode::OK,
        &Overview {
            resource: &resource,
            insight: insight.as_deref(),
        },
    ))
}

/// A name that can be no key names nothing.
fn key(kind: Kind, mesh: &str, name: &str) -> Option<ResourceKey> {
    ResourceKey::new(kind, mesh, name).ok()
}

/// Creates or replaces a resource.
pub(super) async fn put(kind: Kind, call: Call, body: Body) -> Answer {
    call.require_write(kind)?;
    let format = body::format(&call.headers)?;
    let wait = wait::asked(&call)?;
    let mesh = call.mesh()?.to_owned();
    let name = call.param("name").to_owned();
    let bytes = body::read(&call.headers, body, &call.api().limits).await?;
    let id = WriteId::of(&call, &bytes)?;
    let value = body::parse(format, bytes).await.map_err(|why| Error::unparsable(kind, why))?;
    let document = Document::read(kind, value)?;
    let received_ns = now_ns();

    let site = &call.api().site;
    let existing = key(kind, &mesh, &name).and_then(|k| call.catalog.get(&k).cloned());
    let title = if existing.is_some() { UPDATE } else { CREATE };
    // Everything that is wrong is told at once, under the title of the first check that failed.
    let mut checks = Checks::default();
    checks.add(rules::PROCESS, rules::check_request(site, kind, &mesh, &name, &document));
    checks.add(rules::PROCESS, document.found.clone());
    checks.add(rules::PROCESS, token_secret(kind, &mesh, &name, &document).await?);
    checks.add("Bad Request", rules::check_workload(kind, &document));
    let labels = rules::compute_labels(site, kind, &mesh, &name, document.labels, &document.spec);
    if let Some(existing) = &existing {
        checks.add(UPDATE_LABELS, rules::check_owned(site, existing));
        let current = rules::compute_labels(site, kind, &mesh, &name, existing.labels.clone(), &existing.spec);
        checks.add(UPDATE_LABELS, rules::check_immutable(&current, &labels));
    }
    checks.add(title, rules::check_label_name(kind, &name));
    checks.done()?;
    let subject = ResourceKey::new(kind, &mesh, &name).map_err(|why| Error::invalid_field(rules::PROCESS, "name", why.to_string()))?;

    let owner = (kind.descriptor().scope == Scope::Mesh)
        .then(|| ResourceKey::mesh_itself(&mesh))
        .transpose();
    let owner = owner.map_err(|why| Error::invalid_field(title, "mesh", why.to_string()))?;
    let stored = preview(&subject, &document.spec, &labels, existing.as_deref());
    let expect = existing.as_ref().map_or(Expect::Absent, |e| Expect::Version(e.version));
    let mut ops = vec![Op::Put(Put {
        key: subject.clone(),
        labels,
        spec: document.spec,
        status: None,
        owner,
        expect,
    })];
    if kind == Kind::Mesh && existing.is_none() {
        let skip = stored.spec::<Mesh>().map(|m| m.skip_creating_initial_policies).unwrap_or_default();
        let more = defaults::of_mesh(site, &call.catalog, &name, &skip).await.map_err(|error| {
            tracing::error!(mesh = name, error = %ursa_runtime::error::Chain(&error), "cannot make the default resources of a mesh");
            Error::internal(title)
        })?;
        ops.extend(more);
    }
    let write = Write {
        subject,
        ops,
        warnings: warnings::about(&stored),
        title,
        received_ns,
        id,
        wait,
    };
    Ok(commit(&call, write).await)
}

/// What was found so far.
#[derive(Default)]
struct Checks {
    title: Option<&'static str>,
    found: Violations,
}

impl Checks {
    fn add(&mut self, title: &'static str, found: Violations) {
        if found.is_empty() {
            return;
        }
        self.title.get_or_insert(title);
        for violation in found.0 {
            if !self.found.0.contains(&violation) {
                self.found.0.push(violation);
            }
        }
    }

    fn done(self) -> Result<(), Error> {
        match self.title {
            Some(title) => Err(Error::invalid(title, self.found)),
            None => Ok(()),
        }
    }
}

/// Checks the content of a secret of tokens, away from the async threads.
async fn token_secret(kind: Kind, mesh: &str, name: &str, document: &Document) -> Result<Violations, Error> {
    if rules::token_family(kind, mesh, name).is_none() {
        return Ok(Violations::default());
    }
    let (mesh, name, spec) = (mesh.to_owned(), name.to_owned(), document.spec.clone());
    let checked = tokio::task::spawn_blocking(move || rules::check_token_secret(kind, &mesh, &name, &spec)).await;
    checked.map_err(|error| {
        tracing::error!(error = %ursa_runtime::error::Chain(&error), "the thread that checks a secret failed");
        Error::internal(rules::PROCESS)
    })
}

fn refuse(title: &'static str, found: Violations) -> Result<(), Error> {
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(title, found))
    }
}

/// The resource as it is going to be stored, for what is derived from it.
fn preview(key: &ResourceKey, spec: &serde_json::Value, labels: &ursa_model::Labels, existing: Option<&Resource>) -> Resource {
    Resource {
        key: key.clone(),
        labels: labels.clone(),
        spec: spec.clone(),
        status: existing.and_then(|e| e.status.clone()),
        owner: None,
        created: Timestamp::default(),
        modified: Timestamp::default(),
        version: 0,
        create_revision: 0,
        mod_revision: 0,
    }
}

/// Deletes a resource and what it owns.
pub(super) async fn delete(kind: Kind, call: Call) -> Answer {
    call.require_write(kind)?;
    let mesh = call.mesh()?.to_owned();
    let wait = wait::asked(&call)?;
    let id = WriteId::of(&call, &[])?;
    let received_ns = now_ns();
    let subject = key(kind, &mesh, call.param("name")).ok_or(Error::not_found(DELETE))?;
    match call.catalog.get(&subject).cloned() {
        Some(existing) => {
            refuse(DELETE, rules::check_owned(&call.api().site, &existing))?;
            refuse(DELETE, check_unused(&call, &subject))?;
        }
        // A retry of a delete that was done meets nothing; only the store knows what the first request was answered.
        None if id.chosen => {}
        None => return Err(Error::not_found(DELETE)),
    }
    let ops = vec![Op::Delete {
        key: subject.clone(),
        expect: Expect::Present,
    }];
    let write = Write {
        subject,
        ops,
        warnings: Vec::new(),
        title: DELETE,
        received_ns,
        id,
        wait,
    };
    Ok(commit(&call, write).await.into_response())
}

/// A Mesh with proxies and a Zone that is connected stay.
fn check_unused(call: &Call, subject: &ResourceKey) -> Violations {
    let mut found = Violations::default();
    match subject.kind() {
        Kind::Mesh => {
            if !call.catalog.list_in(Kind::Dataplane, subject.name()).is_empty() {
                found.add("mesh", "unable to delete mesh, there are still some dataplanes attached");
            }
            for zone in call.api().backend.unknown_zones() {
                found.add(
                    "mesh",
                    format!("unable to delete mesh, the dataplanes of zone {zone} are not known since it has not connected yet"),
                );
            }
        }
        Kind::Zone => {
            let insight = key(Kind::ZoneInsight, "", subject.name()).and_then(|k| call.catalog.get(&k).cloned());
            if insight.and_then(|i| i.spec::<ZoneInsight>().ok()).is_some_and(|i| i.is_online()) {
                found.add(
                    "zone",
                    "unable to delete Zone, Zone CP is still connected, please shut it down first",
                );
            }
        }
        _ => {}
    }
    found
}
