//! Who a proxy is, as its program knows it.
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::VERSION;
use crate::bootstrap::{BootstrapRequest, EnvoyVersion, KumaDpVersion, MetricsResources, ProxyResources, SpireResources, Version};
use crate::host;

/// Inbounds refuse ports that the Dataplane does not name. Nothing but Envoy's configuration is needed for it.
const STRICT_INBOUND_PORTS: &str = "feature-strict-inbound-ports";
/// Each worker of Envoy has a listening socket of its own. As above.
const REUSE_PORT: &str = "feature-reuse-port";
/// Key in the dynamic metadata: tells runs of one proxy apart, so that a late request of an ended run cannot end the next one.
const INSTANCE: &str = "ursa.io/instance";
/// Outbound listeners are bound to real addresses.
const BIND_OUTBOUNDS: &str = "feature-bind-outbounds";

/// Who a proxy is.
#[derive(Clone, Debug)]
pub struct ProxySpec {
    /// Mesh of the Dataplane.
    pub mesh: String,
    /// Name of the Dataplane; with the mesh, the proxy's identity.
    pub name: String,
    /// `dataplane`; the only type of Kuma 3.
    pub proxy_type: String,
    /// The Dataplane as JSON text; `None`: it exists at the control plane.
    pub dataplane: Option<String>,
    /// Names this run; random.
    pub instance: String,
    /// Put into the node's metadata under `dynamicMetadata`.
    pub dynamic_metadata: BTreeMap<String, String>,
    /// Bind outbound listeners to real addresses.
    pub bind_outbounds: bool,
    /// Strict inbound ports, see Kuma's feature of that name.
    pub strict_inbound_ports: bool,
    /// Reuse of ports, likewise.
    pub reuse_port: bool,
    /// Certificate and key of the metrics listener.
    pub metrics_certificate: Option<(PathBuf, PathBuf)>,
    /// Bundle of CAs on this host; `None`: looked for at the usual places.
    pub system_ca_path: Option<PathBuf>,
    /// May Envoy use IPv6? Only if this host has it, too.
    pub ipv6: bool,
    /// Memory limit in bytes; 0: that of the cgroup.
    pub max_memory_bytes: u64,
}

impl ProxySpec {
    /// A Dataplane with everything else at Kuma's defaults.
    pub fn new(mesh: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            mesh: mesh.into(),
            name: name.into(),
            proxy_type: "dataplane".to_owned(),
            dataplane: None,
            instance: format!("{:032x}", rand::random::<u128>()),
            dynamic_metadata: BTreeMap::new(),
            bind_outbounds: false,
            strict_inbound_ports: true,
            reuse_port: true,
            metrics_certificate: None,
            system_ca_path: None,
            ipv6: true,
            max_memory_bytes: 0,
        }
    }

    /// Only what this program really does, or what needs nothing of it: a feature is a promise to the control plane.
    fn features(&self) -> Vec<String> {
        [
            (STRICT_INBOUND_PORTS, self.strict_inbound_ports),
            (REUSE_PORT, self.reuse_port),
            (BIND_OUTBOUNDS, self.bind_outbounds),
        ]
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(feature, _)| feature.to_owned())
        .collect()
    }

    /// The request, as far as it depends on the proxy and its host.
    pub(super) fn request(&self, envoy: EnvoyVersion) -> BootstrapRequest {
        let (cert, key) = self.metrics_certificate.clone().unwrap_or_default();
        let system_ca = self.system_ca_path.as_deref().or_else(|| host::system_ca_path());
        let max_heap_size_bytes = if self.max_memory_bytes > 0 {
            self.max_memory_bytes
        } else {
            host::memory_limit()
        };
        let mut dynamic_metadata = self.dynamic_metadata.clone();
        dynamic_metadata.insert(INSTANCE.to_owned(), self.instance.clone());
        BootstrapRequest {
            mesh: self.mesh.clone(),
            name: self.name.clone(),
            proxy_type: self.proxy_type.clone(),
            dataplane_resource: self.dataplane.clone(),
            version: Version { kuma_dp: build(), envoy },
            dynamic_metadata,
            operating_system: std::env::consts::OS.to_owned(),
            features: self.features(),
            resources: ProxyResources { max_heap_size_bytes },
            metrics_resources: MetricsResources {
                cert_path: super::text(&cert),
                key_path: super::text(&key),
            },
            system_ca_path: system_ca.map(super::text).unwrap_or_default(),
            ipv6_enabled: self.ipv6 && host::has_ipv6(),
            spire_resources: SpireResources::default(),
            ..BootstrapRequest::default()
        }
    }
}

/// This build. Commit and date are known when the release's build sets them.
fn build() -> KumaDpVersion {
    let known = |value: Option<&str>| value.unwrap_or("unknown").to_owned();
    KumaDpVersion {
        version: VERSION.to_owned(),
        git_tag: known(option_env!("URSA_GIT_TAG")),
        git_commit: known(option_env!("URSA_GIT_COMMIT")),
        build_date: known(option_env!("URSA_BUILD_DATE")),
    }
}
