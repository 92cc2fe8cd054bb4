//! One resource: GET, PUT, DELETE, in Kuma's order of checks (`reference/api.md` 1.2).
//! Different: whether the caller may write is checked first, before anything of the body is read.

use axum::body::Body;
use http::StatusCode;
use ursa_model::{Kind, Resource, ResourceKey, Scope, Timestamp, Violations, kind::mesh::Mesh};
use ursa_state::{Expect, Op, Put};

use super::Answer;
use crate::{
    body,
    call::{Call, Early, json, set_revision, shown},
    check, defaults,
    envelope::{Overview, insight_of},
    error::Error,
    past::{self, Point},
    rules::{self, Document},
    wait::{self, Wait},
    warnings,
    write::{Decide, Decision, Write, WriteId, decide_and_commit, now_ns},
};

const RETRIEVE: &str = "Could not retrieve a resource";
const DELETE: &str = "Could not delete a resource";

/// A resource, or its overview; as it was, if a revision is named.
pub(super) async fn get(kind: Kind, overview: bool, call: Call) -> Answer {
    match past::asked(&call, kind, overview)? {
        Some(point) => get_past(kind, point, call).await,
        None => get_now(kind, overview, &call),
    }
}

async fn get_past(kind: Kind, point: Point, call: Call) -> Answer {
    call.require_read(kind)?;
    let mesh = call.param("mesh").to_owned();
    let subject = key(kind, &mesh, call.param("name"));
    let (revision, resource) = past::look(&call, move |view| {
        let revision = point.resolve(view, "revision")?;
        let get = |key: Option<ResourceKey>| {
            let found = key.map(|key| view.past().get(&key, revision)).transpose();
            found.map(Option::flatten).map_err(|error| past::failed("revision", error))
        };
        if !mesh.is_empty() {
            get(ResourceKey::mesh_itself(&mesh).ok())?.ok_or(Error::not_found("Failed to retrieve Mesh"))?;
        }
        Ok((revision, get(subject)?.ok_or(Error::not_found(RETRIEVE))?))
    })
    .await?;
    let mut response = shown(&call, &resource)?;
    set_revision(response.headers_mut(), &call.catalog, revision);
    Ok(response)
}

fn get_now(kind: Kind, overview: bool, call: &Call) -> Answer {
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
pub(super) async fn put(kind: Kind, Early(mut call): Early, body: Body) -> Answer {
    call.require_write(kind)?;
    let format = body::format(&call.headers)?;
    let wait = wait::asked(&call)?;
    if call.mesh().is_err() {
        call.refresh().await?;
        call.mesh()?;
    }
    let bytes = body::read(&call.headers, body, &call.api().limits).await?;
    let id = WriteId::of(&call, &bytes)?;
    let value = body::parse(format, bytes).await.map_err(|why| Error::unparsable(kind, why))?;
    let document = Document::read(kind, value)?;
    let request = Request {
        kind,
        wait,
        id,
        received_ns: now_ns(),
    };
    decide_and_commit(&mut call, id, &Replacement { request, document }).await
}

/// What does not change when a write is decided again.
struct Request {
    kind: Kind,
    wait: Option<Wait>,
    id: WriteId,
    /// As [`Write::received_ns`].
    received_ns: u64,
}

impl Request {
    fn write(&self, subject: &ResourceKey, ops: Vec<Op>, warnings: Vec<String>) -> Write {
        Write {
            subject: subject.to_string(),
            ops,
            warnings,
            received_ns: self.received_ns,
            id: self.id,
            wait: self.wait.clone(),
        }
    }
}

struct Replacement {
    request: Request,
    document: Document,
}

impl Decide for Replacement {
    async fn decide(&self, call: &Call, _: bool) -> Result<Decision, Error> {
        decide_put(call, &self.request, &self.document).await
    }
}

struct Removal(Request);

impl Decide for Removal {
    async fn decide(&self, call: &Call, repeat: bool) -> Result<Decision, Error> {
        decide_delete(call, &self.0, repeat)
    }
}

async fn decide_put(call: &Call, request: &Request, document: &Document) -> Result<Decision, Error> {
    let kind = request.kind;
    let mesh = call.mesh()?.to_owned();
    let name = call.param("name").to_owned();
    let site = &call.api().site;
    let existing = key(kind, &mesh, &name).and_then(|k| call.catalog.get(&k).cloned());
    let title = if existing.is_some() { check::UPDATE } else { check::CREATE };
    let secret = token_secret(kind, &mesh, &name, document).await?;
    let labels = check::document(site, kind, &mesh, &name, document, existing.as_deref(), secret)
        .map_err(|refused| Error::invalid(refused.title, refused.found))?;
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
        spec: document.spec.clone(),
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
    let write = request.write(&subject, ops, warnings::about(&stored));
    Ok(Decision { write, subject, title })
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
pub(super) async fn delete(kind: Kind, Early(mut call): Early) -> Answer {
    call.require_write(kind)?;
    if call.mesh().is_err() {
        call.refresh().await?;
        call.mesh()?;
    }
    let id = WriteId::of(&call, &[])?;
    let request = Request {
        kind,
        wait: wait::asked(&call)?,
        id,
        received_ns: now_ns(),
    };
    decide_and_commit(&mut call, id, &Removal(request)).await
}

fn decide_delete(call: &Call, request: &Request, repeat: bool) -> Result<Decision, Error> {
    let kind = request.kind;
    let mesh = call.mesh()?.to_owned();
    let subject = key(kind, &mesh, call.param("name")).ok_or(Error::not_found(DELETE))?;
    match call.catalog.get(&subject).cloned() {
        Some(existing) => {
            refuse(DELETE, rules::check_owned(&call.api().site, &existing))?;
            refuse(DELETE, check::unused(&call.catalog, &call.api().backend.unknown_zones(), &subject))?;
        }
        // A retry of a delete that was done meets nothing; only the store knows what the first request was answered.
        None if repeat => {}
        None => return Err(Error::not_found(DELETE)),
    }
    let ops = vec![Op::Delete {
        key: subject.clone(),
        expect: Expect::Present,
    }];
    let write = request.write(&subject, ops, Vec::new());
    Ok(Decision {
        write,
        subject,
        title: DELETE,
    })
}
