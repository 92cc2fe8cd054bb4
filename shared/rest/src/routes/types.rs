//! Which kinds there are: `/_resources` and, for policies alone, `/policies`.

use http::StatusCode;
use serde::Serialize;
use ursa_model::{
    Kind, Scope,
    kind::{ALL, Descriptor},
};

use super::{Answer, SharedState};
use crate::call::json;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    name: &'static str,
    read_only: bool,
    path: &'static str,
    singular_display_name: &'static str,
    plural_display_name: &'static str,
    is_experimental: bool,
    is_target_ref_based: bool,
    is_inbound: bool,
    is_outbound: bool,
}

#[derive(Serialize)]
struct Policies {
    policies: Vec<Policy>,
}

/// `GET /policies`.
pub(super) async fn policies(shared: SharedState) -> Answer {
    let mut policies: Vec<Policy> = served()
        .filter_map(|d| {
            let info = d.policy?;
            Some(Policy {
                name: d.name,
                read_only: shared.api.is_read_only(d.kind),
                path: d.path,
                singular_display_name: d.singular_display,
                plural_display_name: d.plural_display,
                is_experimental: false,
                is_target_ref_based: true,
                is_inbound: info.rules,
                is_outbound: info.to,
            })
        })
        .collect();
    policies.sort_by_key(|p| p.name);
    Ok(json(StatusCode::OK, &Policies { policies }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    name: &'static str,
    scope: &'static str,
    read_only: bool,
    path: &'static str,
    singular_display_name: &'static str,
    plural_display_name: &'static str,
    short_name: &'static str,
    include_in_federation: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyType>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyType {
    is_target_ref: bool,
    has_to_target_ref: bool,
    has_from_target_ref: bool,
    has_rules_target_ref: bool,
    is_from_as_rules: bool,
}

#[derive(Serialize)]
struct Types {
    resources: Vec<Type>,
}

/// `GET /_resources`. `readOnly` is Kuma's: it does not say that Dataplanes cannot be written at the global (`reference/api.md` 1.3).
pub(super) async fn resources(shared: SharedState) -> Answer {
    let api = &shared.api;
    let mut resources: Vec<Type> = served()
        .map(|d| Type {
            name: d.name,
            scope: match d.scope {
                Scope::Global => "Global",
                Scope::Mesh => "Mesh",
            },
            read_only: api.read_only || api.site.is_federated() || d.read_only,
            path: d.path,
            singular_display_name: d.singular_display,
            plural_display_name: d.plural_display,
            short_name: d.short,
            include_in_federation: d.flags.global_to_zones() && !d.read_only,
            policy: d.policy.map(|p| PolicyType {
                is_target_ref: true,
                has_to_target_ref: p.to,
                has_from_target_ref: false,
                has_rules_target_ref: p.rules,
                is_from_as_rules: false,
            }),
        })
        .collect();
    resources.extend([
        computed("MeshInsight", "Global", "mesh-insights", "Mesh Insight", "Mesh Insights"),
        computed("ServiceInsight", "Mesh", "service-insights", "Service Insight", "Service Insights"),
    ]);
    resources.sort_by_key(|t| t.name);
    Ok(json(StatusCode::OK, &Types { resources }))
}

/// A kind that is computed on reading.
fn computed(name: &'static str, scope: &'static str, path: &'static str, singular: &'static str, plural: &'static str) -> Type {
    Type {
        name,
        scope,
        read_only: true,
        path,
        singular_display_name: singular,
        plural_display_name: plural,
        short_name: "",
        include_in_federation: false,
        policy: None,
    }
}

fn served() -> impl Iterator<Item = &'static Descriptor> {
    ALL.iter().copied().map(Kind::descriptor).filter(|d| !d.internal)
}
