//! Statistics: `/mesh-insights`, `/global-insight`, `/global-insights`.

use std::sync::Arc;

use http::StatusCode;
use ursa_model::{Kind, Resource, ResourceKey};

use super::{Answer, list::Page};
use crate::{
    call::{Call, json},
    envelope::Computed,
    error::Error,
    insight::{self, MeshInsight},
    query::Filter,
};

fn envelope<'a>(call: &Call, mesh: &'a Resource) -> Computed<'a, MeshInsight> {
    Computed {
        kind: "MeshInsight",
        name: mesh.name(),
        created: mesh.created,
        modified: call.catalog.durable.time(),
        spec: insight::of_mesh(&call.catalog, mesh.name()),
    }
}

/// `GET /mesh-insights`.
pub(super) async fn meshes(call: Call) -> Answer {
    let size = call.query.size()?;
    let filter = Filter::by_name(&call.query);
    let matching: Vec<Arc<Resource>> = call
        .catalog
        .list(Kind::Mesh)
        .into_iter()
        .filter(|m| filter.matches_name(m.name()))
        .collect();
    let page = Page::cut(&call, size, matching)?;
    Ok(json(StatusCode::OK, &page.borrowed(|mesh| envelope(&call, mesh))))
}

/// `GET /mesh-insights/{name}`.
pub(super) async fn mesh(call: Call) -> Answer {
    let key = ResourceKey::mesh_itself(call.param("name")).ok();
    let mesh = key
        .and_then(|k| call.catalog.get(&k))
        .ok_or(Error::not_found("Could not retrieve a resource"))?;
    Ok(json(StatusCode::OK, &envelope(&call, mesh)))
}

/// `GET /global-insight`.
pub(super) async fn global(call: Call) -> Answer {
    Ok(json(StatusCode::OK, &insight::of_all(&call.catalog)))
}

/// `GET /global-insights`.
pub(super) async fn legacy_global(call: Call) -> Answer {
    Ok(json(StatusCode::OK, &insight::legacy(&call.catalog)))
}
