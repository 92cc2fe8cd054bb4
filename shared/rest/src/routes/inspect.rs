//! The inspect endpoints of kumactl and of Kuma's GUI: which policies hold for which proxy, and which proxies a policy is about.
//! Source: `reference/api.md` 1.5. Different: questions to a proxy's Envoy (`xds`, `stats`, `clusters`, `_config`) are answered with
//! where to ask it.

use std::collections::{BTreeMap, BTreeSet};

use axum::routing::get;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use ursa_model::{
    Kind, Kri, Resource, ResourceKey,
    kind::{ALL, dataplane::Dataplane, mesh_service::MeshService},
};
use ursa_policy::{InboundRule, Origin, Parsed, ResourceRules, resolve_outbound};

use super::{Answer, Routes, list::Page};
use crate::{
    call::{Call, json as answer},
    error::Error,
    inspect::{self, MeshPicture},
    query::Filter,
};

const INSPECT: &str = "failed inspect";
const NO_DATAPLANE: &str = "Could not retrieve Dataplane";
const NO_POLICY: &str = "Could not retrieve policy";

pub(super) fn routes(mut router: Routes) -> Routes {
    for kind in ALL.iter().copied().filter(|k| k.descriptor().policy.is_some()) {
        let item = format!("/meshes/{{mesh}}/{}/{{name}}", kind.descriptor().path);
        router = router.route(&format!("{item}/dataplanes"), get(async move |call: Call| attachments(kind, &call)));
        // kumactl asks with a hyphen.
        for resources in ["_resources", "-resources"] {
            router = router.route(
                &format!("{item}/{resources}/dataplanes"),
                get(async move |call: Call| of_policy(kind, &call)),
            );
        }
    }
    let proxy = "/meshes/{mesh}/dataplanes/{name}";
    router
        .route("/meshes/{mesh}/meshservices/{name}/_dataplanes", get(of_service))
        .route("/meshes/{mesh}/meshservices/{name}/_hostnames", get(hostnames))
        .route(&format!("{proxy}/policies"), get(matched_policies))
        .route(&format!("{proxy}/_policies"), get(proxy_policies))
        .route(&format!("{proxy}/_rules"), get(rules))
        .route(&format!("{proxy}/_layout"), get(layout))
        .route(&format!("{proxy}/_inbounds/{{kri}}/_policies"), get(inbound))
        .route(&format!("{proxy}/_outbounds/{{kri}}/_policies"), get(outbound))
        .route(&format!("{proxy}/_outbounds/{{kri}}/_routes"), get(outbound_routes))
        .route(&format!("{proxy}/_outbounds/{{kri}}/_routes/{{route}}/_policies"), get(outbound))
        .route(&format!("{proxy}/{{question}}"), get(of_envoy))
}

/// Identity of a resource, as lists of this API show it.
#[derive(Clone, Serialize)]
struct Meta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    mesh: &'a str,
    name: &'a str,
    labels: &'a ursa_model::Labels,
}

impl<'a> Meta<'a> {
    fn of(resource: &'a Resource) -> Self {
        Self {
            kind: resource.kind().name(),
            mesh: resource.mesh(),
            name: resource.name(),
            labels: &resource.labels,
        }
    }
}

/// The resource of the path.
fn resource(call: &Call, kind: Kind, title: &'static str) -> Result<std::sync::Arc<Resource>, Error> {
    let key = ResourceKey::new(kind, call.mesh()?, call.param("name")).ok();
    key.and_then(|k| call.catalog.get(&k).cloned()).ok_or(Error::not_found(title))
}

fn dataplane(call: &Call) -> Result<Parsed<Dataplane>, Error> {
    Parsed::parse(resource(call, Kind::Dataplane, NO_DATAPLANE)?).map_err(|_| Error::internal(INSPECT))
}

/// Dataplanes that a condition holds for, as a page.
fn page_of(call: &Call, wanted: impl Fn(&Parsed<Dataplane>) -> bool) -> Answer {
    let size = call.query.size()?;
    let filter = Filter::by_name(&call.query);
    let all = inspect::dataplanes(&call.catalog, call.mesh()?);
    let matching = all
        .into_iter()
        .filter(|d| filter.matches_name(d.resource.name()) && wanted(d))
        .collect();
    let page = Page::cut(call, size, matching)?;
    Ok(answer(StatusCode::OK, &page.borrowed(|d| Meta::of(&d.resource))))
}

/// `<policy>/_resources/dataplanes`.
fn of_policy(kind: Kind, call: &Call) -> Answer {
    let policy = resource(call, kind, NO_POLICY)?;
    page_of(call, |dataplane| !inspect::selected(&policy, dataplane).is_empty())
}

/// `<policy>/dataplanes`, for kumactl up to 2.14.
fn attachments(kind: Kind, call: &Call) -> Answer {
    let policy = resource(call, kind, NO_POLICY)?;
    let items: Vec<Value> = inspect::dataplanes(&call.catalog, call.mesh()?)
        .iter()
        .filter(|d| !inspect::selected(&policy, d).is_empty())
        .map(|d| {
            json!({
                "kind": "SidecarDataplane",
                "dataplane": {"mesh": d.resource.mesh(), "name": d.resource.name()},
                "attachments": [{"type": "dataplane"}],
            })
        })
        .collect();
    Ok(answer(StatusCode::OK, &json!({"total": items.len(), "items": items})))
}

/// `meshservices/{name}/_dataplanes`.
async fn of_service(call: Call) -> Answer {
    let service = resource(&call, Kind::MeshService, INSPECT)?;
    let spec: MeshService = service.spec().map_err(|_| Error::internal(INSPECT))?;
    page_of(&call, |dataplane| inspect::is_behind(&service, &spec.selector, &dataplane.resource))
}

/// `meshservices/{name}/_hostnames`: there are no HostnameGenerators yet. Kuma writes null for no items.
async fn hostnames(call: Call) -> Answer {
    resource(&call, Kind::MeshService, INSPECT)?;
    Ok(answer(StatusCode::OK, &json!({"total": 0, "items": null})))
}

/// `dataplanes/{name}/policies`, for kumactl up to 2.14 and Kuma's GUI.
async fn matched_policies(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let mut by_kind: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (policy, _) in inspect::policies_of(&call.catalog, call.mesh()?, &dataplane) {
        let shown = serde_json::to_value(crate::envelope::Envelope(&policy)).unwrap_or_default();
        by_kind.entry(policy.kind().name()).or_default().push(shown);
    }
    let items = if by_kind.is_empty() {
        Vec::new()
    } else {
        vec![json!({"type": "dataplane", "matchedPolicies": by_kind})]
    };
    Ok(answer(
        StatusCode::OK,
        &json!({"kind": "SidecarDataplane", "total": items.len(), "items": items}),
    ))
}

/// `dataplanes/{name}/_policies`: those with one configuration for the whole proxy. None of the kinds here has.
async fn proxy_policies(call: Call) -> Answer {
    dataplane(&call)?;
    Ok(answer(StatusCode::OK, &json!({"policies": []})))
}

fn origins(picture: &MeshPicture, origins: &[Origin]) -> Vec<Value> {
    origins
        .iter()
        .map(|o| {
            let meta = picture.resource(&o.policy).map(|r| json!(Meta::of(r)));
            json!({"resourceMeta": meta.unwrap_or_else(|| json!({"name": o.policy.name})), "ruleIndex": o.rule_index})
        })
        .collect()
}

/// Kinds of policies with what they say, by inbound and by destination.
#[derive(Default)]
struct OfKind {
    to: Vec<Value>,
    inbound: Vec<Value>,
}

/// `dataplanes/{name}/_rules`.
async fn rules(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let picture = MeshPicture::of(&call.catalog, call.mesh()?);
    let matched = picture.matched(&dataplane);
    let mut kinds: BTreeMap<&'static str, OfKind> = BTreeMap::new();
    let to = |kri: &Kri, confs: Vec<Value>, from: Vec<Value>| {
        let meta = picture.resource(kri).map(|r| json!(Meta::of(r)));
        json!({
            "resourceMeta": meta.unwrap_or_else(|| json!({"name": kri.name})), "resourceSectionName": kri.section,
            "conf": confs, "origin": from,
        })
    };
    let out = &matched.outbound;
    kinds.entry("MeshTimeout").or_default().to = of_destinations(&out.timeouts, &picture, to);
    kinds.entry("MeshRetry").or_default().to = of_destinations(&out.retries, &picture, to);
    kinds.entry("MeshCircuitBreaker").or_default().to = of_destinations(&out.circuit_breakers, &picture, to);
    kinds.entry("MeshHTTPRoute").or_default().to = out
        .http_routes
        .iter()
        .map(|(kri, rules)| {
            let confs = rules.iter().map(|r| json!({"matches": r.matches, "default": r.conf})).collect();
            let from: BTreeSet<Origin> = rules.iter().map(|r| r.origin.clone()).collect();
            let from: Vec<Origin> = from.into_iter().collect();
            to(kri, confs, origins(&picture, &from))
        })
        .collect();
    let permissions: Vec<_> = inspect::policies_of(&call.catalog, call.mesh()?, &dataplane)
        .into_iter()
        .filter(|(p, _)| p.kind() == Kind::MeshTrafficPermission)
        .collect();
    for (section, rules) in &matched.inbound {
        let head = inbound_head(&dataplane.spec, section);
        let mut add = |kind, rules: Vec<Value>| {
            if !rules.is_empty() {
                let entry = json!({"inbound": head, "rules": rules});
                kinds.entry(kind).or_default().inbound.push(entry);
            }
        };
        add("MeshTimeout", of_inbound(&rules.timeouts, &picture));
        add("MeshCircuitBreaker", of_inbound(&rules.circuit_breakers, &picture));
        let allowed = permissions.iter().filter(|(_, selected)| selected.sections.contains(section));
        add(
            "MeshTrafficPermission",
            allowed.flat_map(|(policy, _)| permission(policy)).collect(),
        );
    }
    let rules: Vec<Value> = kinds
        .into_iter()
        .filter(|(_, k)| !k.to.is_empty() || !k.inbound.is_empty())
        .map(|(kind, k)| json!({"type": kind, "toResourceRules": k.to, "inboundRules": k.inbound, "warnings": []}))
        .collect();
    let body = json!({
        "resource": Meta::of(&dataplane.resource), "rules": rules, "httpMatches": [], "warnings": matched.warnings,
    });
    Ok(answer(StatusCode::OK, &body))
}

fn of_destinations<C: Serialize>(
    rules: &ResourceRules<C>,
    picture: &MeshPicture,
    show: impl Fn(&Kri, Vec<Value>, Vec<Value>) -> Value,
) -> Vec<Value> {
    rules
        .iter()
        .map(|(kri, rule)| show(kri, vec![json!(rule.conf)], origins(picture, &rule.origins)))
        .collect()
}

fn of_inbound<C: Serialize>(rules: &[InboundRule<C>], picture: &MeshPicture) -> Vec<Value> {
    rules
        .iter()
        .map(|rule| {
            let mut shown = json!({"conf": [rule.conf], "origin": origins(picture, std::slice::from_ref(&rule.origin))});
            if let (Some(matching), Some(map)) = (&rule.matching, shown.as_object_mut()) {
                map.insert("match".into(), json!(matching));
            }
            shown
        })
        .collect()
}

/// The rules of a permission as they are written: their lists are not merged but tried one after another.
fn permission(policy: &Resource) -> Vec<Value> {
    let rules = policy.spec.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
    rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| json!({"conf": [rule.get("default")], "origin": [{"resourceMeta": Meta::of(policy), "ruleIndex": index}]}))
        .collect()
}

fn inbound_head(dataplane: &Dataplane, section: &str) -> Value {
    let net = &dataplane.networking;
    let inbounds = net.inbound.iter().map(|i| (i.section(), i.port));
    let port = inbounds
        .chain(net.listeners.iter().map(|l| (l.section(), l.port)))
        .find(|(s, _)| s == section)
        .map_or(0, |(_, port)| port);
    json!({"name": section, "port": port, "tags": {}})
}

/// `dataplanes/{name}/_layout`.
async fn layout(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let picture = MeshPicture::of(&call.catalog, call.mesh()?);
    let own = dataplane.kri();
    let net = &dataplane.spec.networking;
    let inbounds: Vec<Value> = net
        .inbound
        .iter()
        .map(|i| {
            let section = i.section();
            let protocol = if i.protocol.is_empty() { "tcp" } else { &i.protocol };
            json!({
                "kri": own.clone().with_section(section.as_str()).to_string(), "port": i.port, "protocol": protocol,
                "proxyResourceName": format!("self_inbound_dp_{section}"),
            })
        })
        .collect();
    let listeners: Vec<Value> = net
        .listeners
        .iter()
        .map(|l| {
            let section = l.section();
            json!({
                "kri": own.clone().with_section(section.as_str()).to_string(), "type": l.kind, "port": l.port,
                "proxyResourceName": format!("self_inbound_dp_{section}"),
            })
        })
        .collect();
    let outbounds: BTreeMap<String, Value> = outbounds(&dataplane, &picture)
        .into_iter()
        .map(|(kri, port, protocol)| {
            let kri = kri.to_string();
            let shown = json!({"kri": kri, "port": port, "protocol": protocol, "proxyResourceName": kri});
            (kri, shown)
        })
        .collect();
    let body = json!({
        "kri": own.to_string(), "labels": dataplane.resource.labels, "inbounds": inbounds, "listeners": listeners,
        "outbounds": outbounds.into_values().collect::<Vec<_>>(),
    });
    Ok(answer(StatusCode::OK, &body))
}

/// Destinations that a proxy names, with port and protocol.
fn outbounds(dataplane: &Parsed<Dataplane>, picture: &MeshPicture) -> Vec<(Kri, u32, String)> {
    let namespace = dataplane.resource.label(ursa_model::labels::K8S_NAMESPACE).unwrap_or_default();
    let named = dataplane.spec.networking.outbound.iter().filter_map(|o| o.backend_ref.as_ref());
    named
        .filter_map(|o| resolve_outbound(o, namespace, &picture.destinations))
        .map(|backend| (backend.kri(), backend.port.port, backend.port.app_protocol.clone()))
        .collect()
}

fn kri_of(call: &Call, part: &str) -> Result<Kri, Error> {
    call.param(part).parse().map_err(Error::bad_request)
}

fn shown_origins<'a>(from: impl IntoIterator<Item = &'a Origin>) -> Vec<Value> {
    let kris: BTreeSet<String> = from.into_iter().map(|o| o.policy.to_string()).collect();
    kris.into_iter().map(|kri| json!({"kri": kri})).collect()
}

/// `_inbounds/{kri}/_policies`: inbounds and listeners.
async fn inbound(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let kri = kri_of(&call, "kri")?;
    let matched = MeshPicture::of(&call.catalog, call.mesh()?).matched(&dataplane);
    let rules = (kri.clone().with_section("") == dataplane.kri())
        .then(|| matched.inbound.get(&kri.section))
        .flatten()
        .ok_or(Error::not_found(INSPECT))?;
    let mut policies = Vec::new();
    push_inbound(&mut policies, "MeshTimeout", &rules.timeouts);
    push_inbound(&mut policies, "MeshCircuitBreaker", &rules.circuit_breakers);
    let permissions: Vec<_> = inspect::policies_of(&call.catalog, call.mesh()?, &dataplane)
        .into_iter()
        .filter(|(p, selected)| p.kind() == Kind::MeshTrafficPermission && selected.sections.contains(&kri.section))
        .filter_map(|(p, _)| Some((Kri::of(&p)?, p)))
        .collect();
    if !permissions.is_empty() {
        let rules: Vec<Value> = permissions
            .iter()
            .flat_map(|(kri, p)| {
                let rules = p.spec.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
                let rules = rules.into_iter().enumerate();
                rules.map(|(i, rule)| json!({"kri": rule_kri(kri, i), "conf": rule.get("default")}))
            })
            .collect();
        let from: Vec<Value> = permissions.iter().map(|(kri, _)| json!({"kri": kri.to_string()})).collect();
        policies.push(json!({"kind": "MeshTrafficPermission", "rules": rules, "origins": from}));
    }
    Ok(answer(StatusCode::OK, &json!({"policies": policies})))
}

fn rule_kri(policy: &Kri, index: usize) -> String {
    policy.clone().with_section(format!("rule-{index}")).to_string()
}

fn push_inbound<C: Serialize>(policies: &mut Vec<Value>, kind: &str, rules: &[InboundRule<C>]) {
    if rules.is_empty() {
        return;
    }
    let shown: Vec<Value> = rules
        .iter()
        .map(|r| json!({"kri": rule_kri(&r.origin.policy, r.origin.rule_index), "conf": r.conf}))
        .collect();
    policies.push(json!({"kind": kind, "rules": shown, "origins": shown_origins(rules.iter().map(|r| &r.origin))}));
}

/// `_outbounds/{kri}/_policies`, and for one route `_outbounds/{kri}/_routes/{route}/_policies`.
async fn outbound(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let picture = MeshPicture::of(&call.catalog, call.mesh()?);
    let destination = destination(&call, &dataplane, &picture)?;
    let route = match call.param("route") {
        "" => None,
        _ => Some(kri_of(&call, "route")?),
    };
    let out = picture.matched(&dataplane).outbound;
    let mut policies = Vec::new();
    push_outbound(&mut policies, "MeshTimeout", &out.timeouts, &destination, route.as_ref());
    push_outbound(&mut policies, "MeshRetry", &out.retries, &destination, route.as_ref());
    push_outbound(
        &mut policies,
        "MeshCircuitBreaker",
        &out.circuit_breakers,
        &destination,
        route.as_ref(),
    );
    Ok(answer(StatusCode::OK, &json!({"policies": policies})))
}

fn push_outbound<C: Serialize>(policies: &mut Vec<Value>, kind: &str, rules: &ResourceRules<C>, destination: &Kri, route: Option<&Kri>) {
    let rule = match route {
        Some(route) => rules.get_for_route(route, destination),
        None => rules.get(destination),
    };
    if let Some(rule) = rule {
        policies.push(json!({"kind": kind, "conf": [rule.conf], "origins": shown_origins(&rule.origins)}));
    }
}

/// The destination of the path, which the proxy must name.
fn destination(call: &Call, dataplane: &Parsed<Dataplane>, picture: &MeshPicture) -> Result<Kri, Error> {
    let kri = kri_of(call, "kri")?;
    let known = outbounds(dataplane, picture).into_iter().any(|(have, ..)| have == kri);
    if known { Ok(kri) } else { Err(Error::not_found(INSPECT)) }
}

/// `_outbounds/{kri}/_routes`.
async fn outbound_routes(call: Call) -> Answer {
    let dataplane = dataplane(&call)?;
    let picture = MeshPicture::of(&call.catalog, call.mesh()?);
    let destination = destination(&call, &dataplane, &picture)?;
    let out = picture.matched(&dataplane).outbound;
    let rules = out.http_routes.get(&destination);
    let shown: Vec<Value> = rules
        .iter()
        .map(|r| json!({"kri": rule_kri(&r.origin.policy, r.origin.rule_index), "matches": r.matches, "conf": r.conf}))
        .collect();
    let routes = if shown.is_empty() {
        Vec::new()
    } else {
        vec![json!({"kind": "MeshHTTPRoute", "rules": shown, "origins": shown_origins(rules.iter().map(|r| &r.origin))})]
    };
    Ok(answer(StatusCode::OK, &json!({"routes": routes})))
}

/// `xds`, `stats`, `clusters`: what only the proxy's Envoy knows.
async fn of_envoy(call: Call) -> Answer {
    let question = call.param("question");
    if !matches!(question, "xds" | "stats" | "clusters" | "_config") {
        return Err(Error::no_route());
    }
    dataplane(&call)?;
    Err(Error::not_yet(
        "this version does not ask a proxy's Envoy from here: ask it where it runs, at the socket kuma-envoy-admin.sock in the work folder of its `dataplane` (paths /config_dump, /stats, /clusters)",
    ))
}
