//! What this control plane is, and who asks.

use http::StatusCode;
use serde::Serialize;

use super::Answer;
use crate::{
    bootstrap::cluster_id,
    call::{Call, json},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    hostname: &'a str,
    /// kumactl refuses to talk to anything else.
    product: &'static str,
    version: &'a str,
    instance_id: &'a str,
    cluster_id: String,
    gui: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    based_on_kuma: Option<&'a str>,
}

/// `GET /`.
pub(super) async fn index(call: Call) -> Answer {
    let info = &call.api().info;
    let index = Index {
        hostname: &info.hostname,
        product: "Kuma",
        version: &info.version,
        instance_id: &info.instance_id,
        cluster_id: cluster_id(&call.catalog).unwrap_or_default(),
        gui: "",
        based_on_kuma: info.based_on_kuma.as_deref(),
    };
    Ok(json(StatusCode::OK, &index))
}

/// `GET /config`: for administrators, since it tells paths and addresses.
pub(super) async fn config(call: Call) -> Answer {
    call.require_admin("control-plane metadata")?;
    Ok(json(StatusCode::OK, &call.api().config))
}

#[derive(Serialize)]
struct WhoAmI<'a> {
    name: &'a str,
    groups: &'a [String],
}

/// `GET /who-am-i`.
pub(super) async fn who_am_i(call: Call) -> Answer {
    let user = &call.caller.user;
    Ok(json(
        StatusCode::OK,
        &WhoAmI {
            name: &user.name,
            groups: &user.groups,
        },
    ))
}
