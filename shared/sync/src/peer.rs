//! Who is at the other end: its features, its class, and the node metadata that says so.
//! In: node metadata of requests, gRPC metadata. Out: [`Features`], [`Line`], metadata to send.
//! Invariant: an extension of ours is used only when the peer announced it.
//! Source: Kuma, `pkg/kds/client/stream.go`; kds.md 2.2 and 8.2; facts.md F14.
//!
//! Negotiation. A zone announces in gRPC metadata `features` (every call) and in the node metadata of its first requests; a global
//! in the response header [`FEATURES_HEADER`] and in the node metadata of its first ZoneToGlobalSync requests. A receiver that
//! knows its peer's feature subscribes to it by a request of its own type_url, sent after the last initial request. An extension
//! (resume, chunked first set, digest) is added here as one more bit with a name.

use std::collections::BTreeMap;

use prost_types::{ListValue, Struct, Value, value};
use tonic::metadata::MetadataMap;
use ursa_model::ZoneName;
use ursa_proto::discovery::Node;

/// gRPC response header (global to zone) that lists features, comma separated.
pub const FEATURES_HEADER: &str = "ursa-features";
/// gRPC request metadata (zone to global) that names the process, so that a reconnect is told from a second zone of that name.
pub const INSTANCE_HEADER: &str = "ursa-instance-id";
/// gRPC request metadata of GlobalToZoneSync: `<history>:<revision>/<digest>`, what the zone holds of the global. Only a global that can
/// prove that it showed exactly this at that revision goes on from there; others ignore it.
pub const RESUME_HEADER: &str = "ursa-resume";
/// gRPC request metadata (zone to global): decimal number of the process's session, larger for each new one, the same on all its calls.
pub const SESSION_HEADER: &str = "ursa-session";
/// gRPC request metadata of HealthCheck (zone to global): decimal number of milliseconds. The answer comes when the other zones have stored
/// what the global has stored by then, or after that time, with [`BEHIND_HEADER`] and [`SILENT_HEADER`]. Others ignore it.
pub const WAIT_HEADER: &str = "ursa-wait";
/// gRPC response metadata: zones that are connected and have not stored it, comma separated, at most [`MAX_ZONES`]. Empty when there are none.
pub const BEHIND_HEADER: &str = "ursa-behind";
/// The same, of zones that are away or do not tell.
pub const SILENT_HEADER: &str = "ursa-silent";
/// Zones that are named in a header: 64 bytes each.
const MAX_ZONES: usize = 32;
/// Most features that are read from a peer.
const MAX_FEATURES: usize = 64;

/// Zones that are not known to have stored something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// Connected; they will say when they have.
    pub behind: Vec<ZoneName>,
    /// Away, or of a kind that does not tell.
    pub silent: Vec<ZoneName>,
}

impl Zones {
    /// As metadata of an answer. Of very many some are named.
    pub fn write(&self, out: &mut MetadataMap) {
        for (header, zones) in [(BEHIND_HEADER, &self.behind), (SILENT_HEADER, &self.silent)] {
            let names: Vec<&str> = zones.iter().take(MAX_ZONES).map(ZoneName::as_str).collect();
            if let Ok(value) = names.join(",").parse() {
                out.insert(header, value);
            }
        }
    }

    /// The other way; `None` when the answer does not say.
    pub fn read(metadata: &MetadataMap) -> Option<Self> {
        let names = |header| -> Option<Vec<ZoneName>> {
            let text = metadata.get(header)?.to_str().ok()?;
            let names = text.split(',').filter(|name| !name.is_empty()).take(MAX_ZONES);
            names.map(|name| name.parse().ok()).collect()
        };
        Some(Self {
            behind: names(BEHIND_HEADER)?,
            silent: names(SILENT_HEADER)?,
        })
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Features(u16);

impl Features {
    /// Hashed names in both directions.
    pub const HASH_SUFFIX: Self = Self(1);
    /// Understands HostnameGenerators that select MeshMultiZoneServices.
    pub const HG_MZ_SELECTOR: Self = Self(1 << 1);
    /// Wants producer policies of other zones.
    pub const PRODUCER_POLICY_FLOW: Self = Self(1 << 2);
    /// Announced by Kuma, read by nobody.
    pub const ZONE_TOKEN: Self = Self(1 << 3);
    /// Kuma 2.14 alone.
    pub const OPTIONAL_TOP_LEVEL_TARGET_REF: Self = Self(1 << 4);
    /// Sends health checks.
    pub const ZONE_PING_HEALTH: Self = Self(1 << 5);
    /// Sends and understands progress markers.
    pub const PROGRESS: Self = Self(1 << 6);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::HASH_SUFFIX, "hash-suffix"),
        (Self::HG_MZ_SELECTOR, "hg-mz-selector"),
        (Self::PRODUCER_POLICY_FLOW, "producer-policy-flow"),
        (Self::ZONE_TOKEN, "zone-token"),
        (Self::OPTIONAL_TOP_LEVEL_TARGET_REF, "optional-top-level-target-ref"),
        (Self::ZONE_PING_HEALTH, "zone-ping-health"),
        (Self::PROGRESS, "ursa-progress"),
    ];

    /// What our own node metadata announces, zone and global alike.
    pub const OURS_IN_NODE: Self =
        Self(Self::HASH_SUFFIX.0 | Self::HG_MZ_SELECTOR.0 | Self::PRODUCER_POLICY_FLOW.0 | Self::ZONE_TOKEN.0 | Self::PROGRESS.0);
    /// What our zone's gRPC metadata announces.
    pub const OURS_IN_METADATA: Self = Self(Self::ZONE_PING_HEALTH.0 | Self::HASH_SUFFIX.0 | Self::PROGRESS.0);

    pub const fn contains(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Features by name; unknown names are other people's and ignored.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut out = Self::default();
        for name in names.into_iter().take(MAX_FEATURES) {
            if let Some((feature, _)) = Self::NAMES.iter().find(|(_, n)| *n == name.trim()) {
                out = out.with(*feature);
            }
        }
        out
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .iter()
            .filter(move |(feature, _)| self.contains(*feature))
            .map(|(_, name)| *name)
    }
}

/// What decides how resources are written for a zone, beside what is hidden from it. Ursa zones read what Kuma 3 reads and so
/// share its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// Kuma 2: needs `meshServices.mode: Exclusive` in every Mesh (facts.md F1).
    V2,
    /// Kuma 3 and Ursa.
    V3,
}

/// What a peer said of itself in the node of its first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub features: Features,
    /// `version.kumaCp`, for the ZoneInsight: version, git tag, git commit, build date.
    pub version: [String; 4],
    /// The peer's display configuration as JSON text; bounded.
    pub config: String,
    /// `control-plane-id`: the instance.
    pub instance: String,
}

/// Longest `config` that is kept of a peer: it is stored in each of up to ten subscriptions.
const MAX_CONFIG: usize = 64 * 1024;
/// Longest other text kept of a peer.
const MAX_TEXT: usize = 256;

fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl Peer {
    /// Reads node metadata. Never fails: what is missing or of another shape is left out.
    pub fn of(node: Option<&Node>) -> Self {
        let Some(fields) = node.and_then(|n| n.metadata.as_ref()).map(|m| &m.fields) else {
            return Self::default();
        };
        let text = |name: &str| fields.get(name).and_then(as_str).unwrap_or_default();
        let names = match fields.get("features").and_then(|v| v.kind.as_ref()) {
            Some(value::Kind::ListValue(list)) => Features::from_names(list.values.iter().filter_map(as_str)),
            _ => Features::default(),
        };
        let kuma_cp = fields
            .get("version")
            .and_then(as_struct)
            .and_then(|v| v.fields.get("kumaCp"))
            .and_then(as_struct);
        let version = ["version", "gitTag", "gitCommit", "buildDate"].map(|name| {
            cut(
                kuma_cp.and_then(|v| v.fields.get(name)).and_then(as_str).unwrap_or_default(),
                MAX_TEXT,
            )
        });
        let config = text("config");
        Self {
            features: names,
            version,
            // Half a JSON document is none.
            config: if config.len() <= MAX_CONFIG {
                config.to_owned()
            } else {
                String::new()
            },
            instance: cut(text("control-plane-id"), MAX_TEXT),
        }
    }

    pub fn line(&self) -> Line {
        let major_2 = self.version[0].strip_prefix('v').unwrap_or(&self.version[0]).starts_with("2.");
        if major_2 || self.features.contains(Features::OPTIONAL_TOP_LEVEL_TARGET_REF) {
            Line::V2
        } else {
            Line::V3
        }
    }
}

fn as_str(value: &Value) -> Option<&str> {
    match value.kind.as_ref()? {
        value::Kind::StringValue(s) => Some(s),
        _ => None,
    }
}

fn as_struct(value: &Value) -> Option<&Struct> {
    match value.kind.as_ref()? {
        value::Kind::StructValue(s) => Some(s),
        _ => None,
    }
}

/// What we say of ourselves.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Name of the zone of this stream, at both ends.
    pub zone: String,
    /// Our process.
    pub instance: String,
    /// Our version.
    pub version: String,
    /// Display configuration as JSON: `{"store":{"type":..}}` at least, from a zone; empty from a global.
    pub config: String,
}

impl Identity {
    /// The node of an initial request, with everything that a real peer reads from it.
    pub fn full_node(&self) -> Node {
        let string = |s: &str| Value {
            kind: Some(value::Kind::StringValue(s.to_owned())),
        };
        let structure = |fields: Vec<(&str, Value)>| Value {
            kind: Some(value::Kind::StructValue(Struct {
                fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            })),
        };
        let version = structure(vec![
            ("version", string(&self.version)),
            ("gitTag", string("")),
            ("gitCommit", string("")),
            ("buildDate", string("")),
        ]);
        let features = ListValue {
            values: Features::OURS_IN_NODE.names().map(string).collect(),
        };
        let fields: BTreeMap<String, Value> = [
            ("version".to_owned(), structure(vec![("kumaCp", version)])),
            ("config".to_owned(), string(&self.config)),
            ("control-plane-id".to_owned(), string(&self.instance)),
            (
                "features".to_owned(),
                Value {
                    kind: Some(value::Kind::ListValue(features)),
                },
            ),
        ]
        .into();
        Node {
            id: self.zone.clone(),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
        }
    }

    /// The node of an ACK. Never leave it out: a real Kuma panics on a request without node.
    pub fn bare_node(&self) -> Node {
        Node {
            id: self.zone.clone(),
            ..Node::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_say_is_what_we_read() {
        let me = Identity {
            zone: "east".into(),
            instance: "east-1".into(),
            version: "0.1.0".into(),
            config: "{}".into(),
        };
        let peer = Peer::of(Some(&me.full_node()));
        assert_eq!(peer.features, Features::OURS_IN_NODE);
        assert_eq!(
            (peer.version[0].as_str(), peer.config.as_str(), peer.instance.as_str()),
            ("0.1.0", "{}", "east-1")
        );
        assert_eq!(peer.line(), Line::V3);
        assert_eq!(Peer::of(Some(&me.bare_node())), Peer::default());
        assert_eq!(Peer::of(None), Peer::default());
    }

    #[test]
    fn a_2_14_zone_is_known_by_version_or_feature() {
        let with = |version: &str, features| Peer {
            version: [version.into(), "".into(), "".into(), "".into()],
            features,
            ..Peer::default()
        };
        assert_eq!(with("2.14.3", Features::default()).line(), Line::V2);
        assert_eq!(with("", Features::OPTIONAL_TOP_LEVEL_TARGET_REF).line(), Line::V2);
        assert_eq!(with("3.0.0", Features::default()).line(), Line::V3);
    }

    #[test]
    fn unknown_features_are_ignored() {
        let features = Features::from_names(["hash-suffix", "whatever", " ursa-progress"]);
        assert!(features.contains(Features::HASH_SUFFIX) && features.contains(Features::PROGRESS));
        assert_eq!(features.names().collect::<Vec<_>>(), ["hash-suffix", "ursa-progress"]);
    }
}
