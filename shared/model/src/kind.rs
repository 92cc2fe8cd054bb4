//! Resource kinds: one table row each. To add a kind: one file in `kind/`, one row in [`kinds!`] below.
//! A row's facts come from Kuma's generated descriptors (api.md 1.1, kds.md 3); the tiers are ours (DESIGN.md 2).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

use crate::validate::Violations;

pub mod common;
pub mod config;
pub mod dataplane;
pub mod dataplane_insight;
pub mod mesh;
pub mod mesh_circuit_breaker;
pub mod mesh_http_route;
pub mod mesh_identity;
pub mod mesh_retry;
pub mod mesh_service;
pub mod mesh_timeout;
pub mod mesh_traffic_permission;
pub mod mesh_trust;
pub mod mesh_zone_address;
pub mod secret;
pub mod zone;
pub mod zone_insight;

/// A typed spec. Deserialising ignores unknown fields, as Kuma does; serialising gives the canonical JSON that is stored.
pub trait Spec: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Adds what is wrong; field paths are relative to the spec (`rules[0].default`), the caller adds `spec.`.
    fn validate(&self, out: &mut Violations);
}

/// Whether names of the kind are unique in a mesh or in the whole control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Global,
    Mesh,
}

/// Who may send this kind to whom; Kuma's six bits, so every rule can test a single one.
/// Source: Kuma, `pkg/core/resources/model/resource.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdsFlags(pub u8);

impl KdsFlags {
    pub const CONSUMED_BY_ZONE: u8 = 1;
    pub const CONSUMED_BY_GLOBAL: u8 = 4;
    pub const PROVIDED_BY_ZONE: u8 = 8;
    pub const PROVIDED_BY_GLOBAL: u8 = 16;
    pub const SYNCED_ACROSS_ZONES: u8 = 32;
    pub const DISABLED_BY_DEFAULT: u8 = 64;

    /// Global-owned objects flow to zones.
    pub const fn global_to_zones(self) -> bool {
        self.0 & 17 == 17
    }

    /// Zone-owned objects flow to the global.
    pub const fn zone_to_global(self) -> bool {
        self.0 & 12 == 12
    }

    /// Zone-owned objects are sent on to the other zones.
    pub const fn across_zones(self) -> bool {
        self.0 & Self::SYNCED_ACROSS_ZONES != 0
    }

    pub const fn provided_by_zone(self) -> bool {
        self.0 & Self::PROVIDED_BY_ZONE != 0
    }

    pub const fn provided_by_global(self) -> bool {
        self.0 & Self::PROVIDED_BY_GLOBAL != 0
    }

    /// A zone asks for the kind on GlobalToZoneSync.
    pub const fn requested_by_zone(self) -> bool {
        self.global_to_zones() || self.across_zones()
    }
}

/// How spec and status travel in KDS (kds.md 2.5) and look in REST (api.md 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Raw JSON in an `Any` without type URL; `spec` and `status` keys in REST.
    Json,
    /// The protobuf message of this full name; fields beside the meta in REST.
    Proto(&'static str),
}

/// What a write of the kind costs (DESIGN.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// A Raft entry; survives everything.
    Durable,
    /// Kept in memory and checkpointed; never a Raft entry.
    Observed,
}

/// Facts of a target-ref policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// It has `to` items (outbound).
    pub to: bool,
    /// It has `rules` (inbound).
    pub rules: bool,
}

/// One row of the table.
#[derive(Debug)]
pub struct Descriptor {
    pub kind: Kind,
    /// Type name on every wire, such as `MeshService`.
    pub name: &'static str,
    /// Path segment of the REST API, such as `meshservices`.
    pub path: &'static str,
    /// A second path segment that is accepted.
    pub path_alias: Option<&'static str>,
    pub singular_display: &'static str,
    pub plural_display: &'static str,
    pub scope: Scope,
    /// Short name in KRIs; empty when the kind has none.
    pub short: &'static str,
    pub flags: KdsFlags,
    pub encoding: Encoding,
    /// The name gets a hash suffix on its way from global to zone.
    pub hashed: bool,
    pub has_status: bool,
    /// Every access needs an administrator.
    pub admin_only: bool,
    /// Never writable over REST.
    pub read_only: bool,
    /// It has no REST path at all.
    pub internal: bool,
    /// The display name must be an RFC 1035 label.
    pub label_name: bool,
    /// It shows `snis` in REST.
    pub destination: bool,
    pub policy: Option<PolicyInfo>,
    pub tier_global: Tier,
    pub tier_zone: Tier,
    /// Parses, validates and canonicalises a spec; violations' fields are relative to the spec.
    pub canonical: fn(Value) -> Result<Value, Violations>,
}

/// Parses a spec into `T`, validates it and gives its canonical JSON: defaults filled in, unknown fields gone.
fn canonical<T: Spec>(spec: Value) -> Result<Value, Violations> {
    let mut found = Violations::default();
    let typed: T = match serde_path_to_error::deserialize(spec) {
        Ok(t) => t,
        Err(err) => {
            let path = err.path().to_string();
            found.add(if path == "." { String::new() } else { path }, err.inner().to_string());
            return Err(found);
        }
    };
    typed.validate(&mut found);
    found.into_result()?;
    serde_json::to_value(&typed).map_err(|err| {
        let mut found = Violations::default();
        found.add("", err.to_string());
        found
    })
}

/// Defaults of a row, so that a row states only what is special.
const fn row(kind: Kind, name: &'static str, path: &'static str, canonical: fn(Value) -> Result<Value, Violations>) -> Descriptor {
    Descriptor {
        kind,
        name,
        path,
        path_alias: None,
        singular_display: name,
        plural_display: name,
        scope: Scope::Mesh,
        short: "",
        flags: KdsFlags(0),
        encoding: Encoding::Json,
        hashed: true,
        has_status: false,
        admin_only: false,
        read_only: false,
        internal: false,
        label_name: false,
        destination: false,
        policy: None,
        tier_global: Tier::Durable,
        tier_zone: Tier::Durable,
        canonical,
    }
}

macro_rules! kinds {
    ($( $kind:ident($spec:ty), $path:literal, [$singular:literal, $plural:literal], { $($field:ident : $value:expr),* $(,)? } ; )*) => {
        /// A resource kind. Ordered by the table, which is the order of writing a set: a mesh before what lives in it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($kind),* }

        /// Every kind, in table order.
        pub const ALL: &[Kind] = &[$(Kind::$kind),*];

        static TABLE: &[Descriptor] = &[$(
            Descriptor {
                singular_display: $singular,
                plural_display: $plural,
                $($field: $value,)*
                ..row(Kind::$kind, stringify!($kind), $path, canonical::<$spec>)
            }
        ),*];
    };
}

const G2Z: KdsFlags = KdsFlags(17);
const Z2G: KdsFlags = KdsFlags(12);
const BOTH: KdsFlags = KdsFlags(29);
const Z2G_ACROSS: KdsFlags = KdsFlags(12 | 32);
const POLICY: KdsFlags = KdsFlags(29 | 32);
/// Flows down, and a zone may make its own, which stay there.
const SECRETS: KdsFlags = KdsFlags(25);
/// Each control plane manages its own; never on KDS.
const OWN: KdsFlags = KdsFlags(24);

kinds! {
    Mesh(mesh::Mesh), "meshes", ["Mesh", "Meshes"], {
        scope: Scope::Global, short: "m", flags: G2Z, encoding: Encoding::Proto("kuma.mesh.v1alpha1.Mesh"), hashed: false, label_name: true };
    Zone(zone::Zone), "zones", ["Zone", "Zones"], {
        scope: Scope::Global, short: "z", flags: OWN, encoding: Encoding::Proto("kuma.system.v1alpha1.Zone"), hashed: false, label_name: true };
    ZoneInsight(zone_insight::ZoneInsight), "zone-insights", ["Zone Insight", "Zone Insights"], {
        scope: Scope::Global, flags: OWN, encoding: Encoding::Proto("kuma.system.v1alpha1.ZoneInsight"), hashed: false, read_only: true,
        tier_global: Tier::Observed, tier_zone: Tier::Observed };
    Config(config::Config), "configs", ["Config", "Configs"], {
        scope: Scope::Global, flags: SECRETS, encoding: Encoding::Proto("kuma.system.v1alpha1.Config"), hashed: false, internal: true };
    GlobalSecret(secret::Secret), "globalsecrets", ["Global Secret", "Global Secrets"], {
        path_alias: Some("global-secrets"), scope: Scope::Global, flags: SECRETS,
        encoding: Encoding::Proto("kuma.system.v1alpha1.Secret"), hashed: false, admin_only: true };
    Secret(secret::Secret), "secrets", ["Secret", "Secrets"], {
        flags: SECRETS, encoding: Encoding::Proto("kuma.system.v1alpha1.Secret"), hashed: false, admin_only: true };
    Dataplane(dataplane::Dataplane), "dataplanes", ["Dataplane", "Dataplanes"], {
        short: "dp", flags: Z2G, encoding: Encoding::Proto("kuma.mesh.v1alpha1.Dataplane"), tier_global: Tier::Observed };
    DataplaneInsight(dataplane_insight::DataplaneInsight), "dataplane-insights", ["Dataplane Insight", "Dataplane Insights"], {
        flags: Z2G, encoding: Encoding::Proto("kuma.mesh.v1alpha1.DataplaneInsight"), read_only: true,
        tier_global: Tier::Observed, tier_zone: Tier::Observed };
    MeshService(mesh_service::MeshService), "meshservices", ["Mesh Service", "Mesh Services"], {
        short: "msvc", flags: Z2G_ACROSS, has_status: true, label_name: true, destination: true };
    MeshZoneAddress(mesh_zone_address::MeshZoneAddress), "meshzoneaddresses", ["Mesh Zone Address", "Mesh Zone Addresses"], {
        short: "mza", flags: Z2G_ACROSS };
    MeshIdentity(mesh_identity::MeshIdentity), "meshidentities", ["Mesh Identity", "Mesh Identities"], {
        short: "mid", flags: BOTH, has_status: true };
    MeshTrust(mesh_trust::MeshTrust), "meshtrusts", ["Mesh Trust", "Mesh Trusts"], {
        short: "mtrust", flags: BOTH, has_status: true };
    MeshTrafficPermission(mesh_traffic_permission::MeshTrafficPermission), "meshtrafficpermissions",
        ["Mesh Traffic Permission", "Mesh Traffic Permissions"], {
        short: "mtp", flags: POLICY, policy: Some(PolicyInfo { to: false, rules: true }) };
    MeshHTTPRoute(mesh_http_route::MeshHTTPRoute), "meshhttproutes", ["Mesh HTTP Route", "Mesh HTTP Routes"], {
        short: "mhttpr", flags: POLICY, policy: Some(PolicyInfo { to: true, rules: false }) };
    MeshTimeout(mesh_timeout::MeshTimeout), "meshtimeouts", ["Mesh Timeout", "Mesh Timeouts"], {
        short: "mt", flags: POLICY, policy: Some(PolicyInfo { to: true, rules: true }) };
    MeshRetry(mesh_retry::MeshRetry), "meshretries", ["Mesh Retry", "Mesh Retries"], {
        short: "mr", flags: POLICY, policy: Some(PolicyInfo { to: true, rules: false }) };
    MeshCircuitBreaker(mesh_circuit_breaker::MeshCircuitBreaker), "meshcircuitbreakers",
        ["Mesh Circuit Breaker", "Mesh Circuit Breakers"], {
        short: "mcb", flags: POLICY, policy: Some(PolicyInfo { to: true, rules: true }) };
}

impl Kind {
    pub fn descriptor(self) -> &'static Descriptor {
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.descriptor().name
    }

    /// The kind served at a REST path segment.
    pub fn by_path(path: &str) -> Option<Self> {
        TABLE
            .iter()
            .find(|d| !d.internal && (d.path == path || d.path_alias == Some(path)))
            .map(|d| d.kind)
    }

    /// The kind with this short name in a KRI.
    pub fn by_short(short: &str) -> Option<Self> {
        TABLE.iter().find(|d| !d.short.is_empty() && d.short == short).map(|d| d.kind)
    }
}

/// A type name that names no kind known here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown resource type {0:?}")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        TABLE
            .iter()
            .find(|d| d.name == s)
            .map(|d| d.kind)
            .ok_or_else(|| UnknownKind(s.chars().take(64).collect()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_in_enum_order_and_names_are_unique() {
        for (i, kind) in ALL.iter().enumerate() {
            assert_eq!(*kind as usize, i);
            assert_eq!(kind.descriptor().kind, *kind);
            assert_eq!(kind.name().parse::<Kind>().unwrap(), *kind);
            assert_eq!(ALL.iter().filter(|k| k.descriptor().path == kind.descriptor().path).count(), 1);
        }
    }

    #[test]
    fn a_spec_of_the_wrong_shape_names_the_field() {
        for (kind, spec, field, reason) in [
            (
                Kind::MeshTimeout,
                json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"requestTimeout": 5}}}]}),
                "to[0].default.http.requestTimeout",
                "invalid type: integer `5`, expected a string",
            ),
            (
                Kind::MeshTimeout,
                json!({"to": [{"targetRef": {"kind": "Mesh"}}, {"default": {}}]}),
                "to[1]",
                "missing field `targetRef`",
            ),
            (
                Kind::MeshHTTPRoute,
                json!({"to": [{"targetRef": {"kind": "MeshService"}, "rules": [{"matches": [{"path": {"type": "Glob", "value": "/"}}]}]}]}),
                "to[0].rules[0].matches[0].path.type",
                "unknown variant `Glob`",
            ),
            (
                Kind::MeshTrafficPermission,
                json!({"rules": [{"default": {"allow": {}}}]}),
                "rules[0].default.allow",
                "invalid type: map, expected a sequence",
            ),
            (Kind::MeshZoneAddress, json!({"address": "a"}), "", "missing field `port`"),
            (
                Kind::Dataplane,
                json!({"networking": {"inbound": [{"port": "x"}]}}),
                "networking.inbound[0].port",
                "invalid type",
            ),
        ] {
            let found = (kind.descriptor().canonical)(spec).unwrap_err();
            assert_eq!(found.0.len(), 1);
            assert_eq!(found.0[0].field, field);
            assert!(found.0[0].reason.contains(reason), "{found}");
        }
    }

    #[test]
    fn directions_follow_kds_md_section_3() {
        assert!(Kind::Mesh.descriptor().flags.global_to_zones() && !Kind::Mesh.descriptor().flags.zone_to_global());
        assert!(!Kind::MeshService.descriptor().flags.global_to_zones() && Kind::MeshService.descriptor().flags.requested_by_zone());
        assert!(Kind::MeshTrust.descriptor().flags.zone_to_global() && !Kind::MeshTrust.descriptor().flags.across_zones());
        assert!(!Kind::Zone.descriptor().flags.requested_by_zone() && !Kind::Zone.descriptor().flags.zone_to_global());
    }
}
