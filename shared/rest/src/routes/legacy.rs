//! Paths of Kuma 2.14 that have nothing to show any more: older clients get an empty list instead of an error.
//! Source: `reference/api.md` 9.

use axum::routing::get;
use http::StatusCode;

use super::{Answer, Routes, list::Page};
use crate::{
    call::{Call, json},
    error::Error,
};

pub(super) fn routes(router: Routes) -> Routes {
    let mut router = router
        .route("/service-insights", get(empty))
        .route("/meshes/{mesh}/service-insights", get(empty))
        .route("/meshes/{mesh}/service-insights/{name}", get(none));
    for kind in ["zoneingresses", "zoneegresses"] {
        for path in [format!("/{kind}/_overview"), format!("/{kind}+insights")] {
            router = router.route(&path, get(empty));
        }
    }
    router
}

async fn empty(call: Call) -> Answer {
    let size = call.query.size()?;
    call.mesh()?;
    Ok(json(StatusCode::OK, &Page::cut(&call, size, Vec::<()>::new())?))
}

async fn none(call: Call) -> Answer {
    call.mesh()?;
    Err(Error::not_found("Could not retrieve a resource"))
}
