//! The bootstrap request, complete: every field that kuma-dp sends, under its name on the wire.
//! In: facts about the proxy and its host. Out: JSON.
//! Invariant: it carries the dataplane token, so it has no Debug and is never logged.
//! Source: Kuma `pkg/xds/bootstrap/types/bootstrap_request.go`.
use std::collections::BTreeMap;

use serde::Serialize;

/// Body of `POST /bootstrap`.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapRequest {
    /// Mesh of the proxy.
    pub mesh: String,
    /// Name of its Dataplane.
    pub name: String,
    /// `dataplane`; zone proxies of Kuma 3 are Dataplanes too.
    pub proxy_type: String,
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_token: Option<String>,
    /// Path of the token's file on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_token_path: Option<String>,
    /// The Dataplane as JSON text, when the proxy brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_resource: Option<String>,
    /// What runs here.
    pub version: Version,
    /// PEM of the CA that Envoy should check the control plane with; empty: the control plane's own choice.
    pub ca_cert: String,
    /// Anything the control plane should find in the node's metadata.
    pub dynamic_metadata: BTreeMap<String, String>,
    /// Port of our DNS server; 0 (not sent): none.
    #[serde(skip_serializing_if = "is_zero")]
    pub dns_port: u32,
    /// Port of `/ready`.
    #[serde(skip_serializing_if = "is_zero")]
    pub readiness_port: u32,
    /// The name on the wire says the opposite of the meaning, for historical reasons: `true` = the probe proxy is ON.
    #[serde(rename = "appProbeProxyDisabled", skip_serializing_if = "is_false")]
    pub app_probe_proxy_enabled: bool,
    /// `linux`.
    pub operating_system: String,
    /// What this program can do, as Kuma names it.
    pub features: Vec<String>,
    /// What the proxy may use.
    pub resources: ProxyResources,
    /// Folder of all unix sockets.
    pub workdir: String,
    /// Certificate of the metrics listener.
    pub metrics_resources: MetricsResources,
    /// The operating system's CA bundle on this host.
    pub system_ca_path: String,
    /// Does this host have IPv6? (Kuma's name; camelCase would give `ipv6Enabled` as well.)
    #[serde(rename = "ipv6Enabled")]
    pub ipv6_enabled: bool,
    /// A SPIRE agent on this host.
    pub spire_resources: SpireResources,
}

/// What runs here.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Our program, in the place of kuma-dp.
    pub kuma_dp: KumaDpVersion,
    /// The Envoy.
    pub envoy: EnvoyVersion,
}

/// Build of our program.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KumaDpVersion {
    /// Semantic version.
    pub version: String,
    /// Tag it was built from.
    pub git_tag: String,
    /// Commit it was built from.
    pub git_commit: String,
    /// When.
    pub build_date: String,
}

/// Build of the Envoy binary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvoyVersion {
    /// e.g. `1.40.0`.
    pub version: String,
    /// `revision/version/status/type/ssl`: five parts.
    pub build: String,
    /// Is it of the line that our configuration is made for?
    pub kuma_dp_compatible: bool,
}

/// What the proxy may use.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyResources {
    /// Memory limit in bytes; 0: none.
    pub max_heap_size_bytes: u64,
}

/// Certificate of the metrics listener.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsResources {
    /// Path of the certificate; empty: none.
    pub cert_path: String,
    /// Path of its key.
    pub key_path: String,
}

/// A SPIRE agent on this host.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpireResources {
    /// Path of its socket; empty: none.
    pub socket_path: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_wire_names_are_kumas() {
        let request = BootstrapRequest {
            mesh: "default".into(),
            name: "frontend-1".into(),
            proxy_type: "dataplane".into(),
            dataplane_token: Some("t".into()),
            dataplane_token_path: Some("/t".into()),
            dataplane_resource: Some("{}".into()),
            version: Version {
                kuma_dp: KumaDpVersion {
                    version: "0.1.0".into(),
                    ..KumaDpVersion::default()
                },
                envoy: EnvoyVersion {
                    version: "1.40.0".into(),
                    build: "a/1.40.0/c/d/e".into(),
                    kuma_dp_compatible: true,
                },
            },
            ca_cert: "PEM".into(),
            dynamic_metadata: BTreeMap::from([("ursa.io/advertised-port".into(), "10001".into())]),
            dns_port: 15053,
            readiness_port: 9902,
            app_probe_proxy_enabled: true,
            operating_system: "linux".into(),
            features: vec!["feature-reuse-port".into()],
            resources: ProxyResources { max_heap_size_bytes: 7 },
            workdir: "/run/w".into(),
            metrics_resources: MetricsResources {
                cert_path: "c".into(),
                key_path: "k".into(),
            },
            system_ca_path: "/ca".into(),
            ipv6_enabled: true,
            spire_resources: SpireResources { socket_path: "/s".into() },
        };
        let wanted = json!({
            "mesh": "default", "name": "frontend-1", "proxyType": "dataplane", "dataplaneToken": "t",
            "dataplaneTokenPath": "/t", "dataplaneResource": "{}",
            "version": {
                "kumaDp": {"version": "0.1.0", "gitTag": "", "gitCommit": "", "buildDate": ""},
                "envoy": {"version": "1.40.0", "build": "a/1.40.0/c/d/e", "kumaDpCompatible": true},
            },
            "caCert": "PEM", "dynamicMetadata": {"ursa.io/advertised-port": "10001"}, "dnsPort": 15053,
            "readinessPort": 9902, "appProbeProxyDisabled": true, "operatingSystem": "linux",
            "features": ["feature-reuse-port"], "resources": {"maxHeapSizeBytes": 7}, "workdir": "/run/w",
            "metricsResources": {"certPath": "c", "keyPath": "k"}, "systemCaPath": "/ca", "ipv6Enabled": true,
            "spireResources": {"socketPath": "/s"},
        });
        assert_eq!(serde_json::to_value(request).unwrap(), wanted);
    }

    #[test]
    fn optional_fields_are_left_out_as_go_does() {
        let sent = serde_json::to_value(BootstrapRequest::default()).unwrap();
        for absent in [
            "dataplaneToken",
            "dataplaneTokenPath",
            "dataplaneResource",
            "dnsPort",
            "appProbeProxyDisabled",
        ] {
            assert!(sent.get(absent).is_none(), "{absent}");
        }
    }
}
