//! Statistics over a mesh and over all of them, computed when they are asked for: there is no counter that could go wrong.
//! Source: Kuma, `api/mesh/v1alpha1/mesh_insight.proto`, `pkg/insights`; the status rule: `reference/api.md` 7.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use ursa_model::{
    Kind, Resource, ResourceKey, Scope, Timestamp,
    kind::{
        ALL,
        dataplane::{Dataplane, InboundState, ListenerState},
        dataplane_insight::DataplaneInsight,
        mesh_service::MeshServiceStatus,
        zone_insight::ZoneInsight,
    },
    labels,
};
use ursa_state::Catalog;

/// Whether a proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Online,
    Offline,
    PartiallyDegraded,
}

/// Status of a proxy: a gateway's is its connection's; otherwise all, some or none of its inbounds and listeners are ready.
pub(crate) fn status(dataplane: &Dataplane, insight: Option<&DataplaneInsight>) -> Status {
    let online = insight.is_some_and(DataplaneInsight::is_online);
    let net = &dataplane.networking;
    if net.gateway.is_some() {
        return if online { Status::Online } else { Status::Offline };
    }
    let total = net.inbound.len() + net.listeners.len();
    let inbounds = net
        .inbound
        .iter()
        .filter(|i| i.state != InboundState::NotReady && i.health.as_ref().is_none_or(|h| h.ready))
        .count();
    let ready = inbounds + net.listeners.iter().filter(|l| l.state == ListenerState::Ready).count();
    match ready {
        _ if !online => Status::Offline,
        0 => Status::Offline,
        ready if ready < total => Status::PartiallyDegraded,
        _ => Status::Online,
    }
}

/// Counts as protobuf's JSON shows them: zeros are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stat {
    #[serde(skip_serializing_if = "is_zero")]
    total: u32,
    #[serde(skip_serializing_if = "is_zero")]
    online: u32,
    #[serde(skip_serializing_if = "is_zero")]
    offline: u32,
    #[serde(skip_serializing_if = "is_zero")]
    partially_degraded: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Stat {
    fn count(&mut self, status: Status) {
        self.total += 1;
        match status {
            Status::Online => self.online += 1,
            Status::Offline => self.offline += 1,
            Status::PartiallyDegraded => self.partially_degraded += 1,
        }
    }
}

type Stats = BTreeMap<String, Stat>;

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct DpVersions {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    kuma_dp: Stats,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    envoy: Stats,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mtls {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    issued_backends: Stats,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    supported_backends: Stats,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ByType {
    standard: Stat,
    gateway: Stat,
    gateway_delegated: Stat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Total {
    total: u32,
}

/// One mesh.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeshInsight {
    dataplanes: Stat,
    dp_versions: DpVersions,
    #[serde(rename = "mTLS")]
    mtls: Mtls,
    dataplanes_by_type: ByType,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    resources: BTreeMap<&'static str, Total>,
}

fn is_insight(kind: Kind) -> bool {
    kind.name().ends_with("Insight")
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn insight_of(catalog: &Catalog, dataplane: &Resource) -> Option<DataplaneInsight> {
    let key = ResourceKey::new(Kind::DataplaneInsight, dataplane.mesh(), dataplane.name()).ok()?;
    catalog.get(&key)?.spec().ok()
}

fn or_unknown(version: Option<&str>) -> String {
    version.filter(|v| !v.is_empty()).unwrap_or("unknown").to_owned()
}

/// Statistics of one mesh.
pub(crate) fn of_mesh(catalog: &Catalog, mesh: &str) -> MeshInsight {
    let mut found = MeshInsight::default();
    for kind in ALL
        .iter()
        .copied()
        .filter(|k| k.descriptor().scope == Scope::Mesh && !is_insight(*k))
    {
        let total = count(catalog.list_in(kind, mesh).len());
        if total > 0 {
            found.resources.insert(kind.name(), Total { total });
        }
    }
    for resource in catalog.list_in(Kind::Dataplane, mesh) {
        let Ok(dataplane) = resource.spec::<Dataplane>() else { continue };
        let insight = insight_of(catalog, &resource);
        let status = status(&dataplane, insight.as_ref());
        found.dataplanes.count(status);
        if dataplane.networking.gateway.is_some() {
            found.dataplanes_by_type.gateway_delegated.count(status);
        } else {
            found.dataplanes_by_type.standard.count(status);
        }
        let version = insight
            .as_ref()
            .and_then(|i| i.subscriptions.last())
            .and_then(|s| s.version.as_ref());
        let kuma_dp = or_unknown(version.and_then(|v| v.kuma_dp.as_ref()).map(|v| v.version.as_str()));
        let envoy = or_unknown(version.and_then(|v| v.envoy.as_ref()).map(|v| v.version.as_str()));
        found.dp_versions.kuma_dp.entry(kuma_dp).or_default().count(status);
        found.dp_versions.envoy.entry(envoy).or_default().count(status);
        if let Some(mtls) = insight.and_then(|i| i.mtls) {
            found.mtls.issued_backends.entry(mtls.issued_backend).or_default().count(status);
            for backend in mtls.supported_backends {
                found.mtls.supported_backends.entry(backend).or_default().count(status);
            }
        }
    }
    found.dataplanes_by_type.gateway = found.dataplanes_by_type.gateway_delegated;
    found
}

/// Counts of which zeros are shown.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct FullStatus {
    total: u32,
    online: u32,
    offline: u32,
    partially_degraded: u32,
}

impl FullStatus {
    fn add(&mut self, stat: &Stat) {
        self.total += stat.total;
        self.online += stat.online;
        self.offline += stat.offline;
        self.partially_degraded += stat.partially_degraded;
    }

    /// One service, of whose proxies `online` of `total` serve.
    fn count(&mut self, online: u32, total: u32) {
        self.total += 1;
        if total == 0 || online == 0 {
            self.offline += 1;
        } else if online == total {
            self.online += 1;
        } else {
            self.partially_degraded += 1;
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Services {
    internal: FullStatus,
    external: Total,
    gateway_delegated: FullStatus,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct OnlineTotal {
    online: u32,
    total: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Zones {
    control_planes: OnlineTotal,
    zone_egresses: OnlineTotal,
    zone_ingresses: OnlineTotal,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dataplanes {
    standard: FullStatus,
    gateway_delegated: FullStatus,
}

/// All meshes and zones.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GlobalInsight {
    created_at: String,
    services: Services,
    zones: Zones,
    dataplanes: Dataplanes,
    policies: Total,
    meshes: Total,
    resources: BTreeMap<&'static str, Total>,
}

/// Statistics of everything.
pub(crate) fn of_all(catalog: &Catalog) -> GlobalInsight {
    let mut found = GlobalInsight {
        created_at: Timestamp::now().rfc3339(),
        ..GlobalInsight::default()
    };
    for mesh in catalog.list(Kind::Mesh) {
        let insight = of_mesh(catalog, mesh.name());
        found.meshes.total += 1;
        found.dataplanes.standard.add(&insight.dataplanes_by_type.standard);
        found
            .dataplanes
            .gateway_delegated
            .add(&insight.dataplanes_by_type.gateway_delegated);
        for (kind, total) in insight.resources {
            found.resources.entry(kind).or_default().total += total.total;
        }
    }
    for kind in ALL.iter().copied() {
        let descriptor = kind.descriptor();
        if descriptor.policy.is_some() {
            found.policies.total += found.resources.get(kind.name()).map_or(0, |t| t.total);
        }
        let counted = descriptor.scope == Scope::Global
            && !descriptor.internal
            && !descriptor.admin_only
            && !is_insight(kind)
            && !matches!(kind, Kind::Mesh | Kind::Zone);
        let total = if counted { count(catalog.list(kind).len()) } else { 0 };
        if total > 0 {
            found.resources.insert(kind.name(), Total { total });
        }
    }
    for service in catalog.list(Kind::MeshService) {
        let proxies = service.status::<MeshServiceStatus>().unwrap_or_default().dataplane_proxies;
        let healthy = proxies.healthy.unwrap_or(0);
        let serving = proxies.connected.unwrap_or(healthy).min(healthy);
        found.services.internal.count(serving, proxies.total.unwrap_or(0));
    }
    for (online, total) in gateway_services(catalog).into_values() {
        found.services.gateway_delegated.count(online, total);
    }
    for zone in catalog.list(Kind::ZoneInsight) {
        found.zones.control_planes.total += 1;
        found.zones.control_planes.online += u32::from(zone.spec::<ZoneInsight>().is_ok_and(|i| i.is_online()));
    }
    found
}

/// Proxies online and in total, of each service that is a gateway: by tag, else by workload, else each for itself.
fn gateway_services(catalog: &Catalog) -> BTreeMap<(String, u8, String), (u32, u32)> {
    let mut services: BTreeMap<(String, u8, String), (u32, u32)> = BTreeMap::new();
    for resource in catalog.list(Kind::Dataplane) {
        let Ok(dataplane) = resource.spec::<Dataplane>() else { continue };
        let Some(gateway) = &dataplane.networking.gateway else { continue };
        let text = |t: Option<&str>| t.filter(|t| !t.is_empty()).map(str::to_owned);
        let (rank, name) = match (
            text(gateway.tags.get("kuma.io/service").map(String::as_str)),
            text(resource.label(labels::WORKLOAD)),
        ) {
            (Some(service), _) => (0, service),
            (None, Some(workload)) => (1, workload),
            (None, None) => (2, resource.name().to_owned()),
        };
        let counts = services.entry((resource.mesh().to_owned(), rank, name)).or_default();
        counts.1 += 1;
        let online = status(&dataplane, insight_of(catalog, &resource).as_ref()) == Status::Online;
        counts.0 += u32::from(online);
    }
    services
}

/// The older form: how many there are of each kind of global scope.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GlobalInsights {
    #[serde(rename = "type")]
    kind: &'static str,
    creation_time: String,
    resources: BTreeMap<&'static str, Total>,
}

pub(crate) fn legacy(catalog: &Catalog) -> GlobalInsights {
    let kinds: BTreeSet<Kind> = ALL
        .iter()
        .copied()
        .filter(|k| k.descriptor().scope == Scope::Global && !k.descriptor().internal && !is_insight(*k))
        .collect();
    GlobalInsights {
        kind: "GlobalInsights",
        creation_time: Timestamp::now().rfc3339(),
        resources: kinds
            .into_iter()
            .map(|k| {
                (
                    k.name(),
                    Total {
                        total: count(catalog.list(k).len()),
                    },
                )
            })
            .collect(),
    }
}
