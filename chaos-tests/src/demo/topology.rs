//! Who runs where in the demo: one global control plane, zones east and west, three workloads, two zone ingresses.
//!
//! In: nothing. Out: names, addresses and the folders of each process. Invariant: every process has a loopback address of its own
//! (127.x.y.z needs no set-up on Linux), so that all of them use the same ports as on machines of their own.
//! Source: issue text; ports as Kuma's. Not here: how they are started ([`super::programs`]).
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Ports, as Kuma's wherever it has one.
pub mod port {
    /// Zone control plane: bootstrap and xDS.
    pub const DP_SERVER: u16 = 5678;
    /// Every process of ours: `/ready`, `/healthy`, `/metrics`, `/stages`.
    pub const DIAGNOSTICS: u16 = 5680;
    /// Resource API, HTTPS.
    pub const API: u16 = 5682;
    /// Global control plane: sync with the zones.
    pub const KDS: u16 = 5685;
    /// Zone ingress.
    pub const INGRESS: u16 = 10001;
    /// A sidecar's readiness.
    pub const READINESS: u16 = 9902;
    /// A sidecar's inbound.
    pub const INBOUND: u16 = 8080;
    /// The application behind it.
    pub const APPLICATION: u16 = 18080;
    /// The frontend's outbound to the backend.
    pub const OUTBOUND: u16 = 20001;
}

/// The mesh of the demo.
pub const MESH: &str = "default";

/// One node of the global control plane.
#[derive(Clone, Debug)]
pub struct Global {
    /// Raft node id.
    pub id: u64,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl Global {
    /// Name of the process and of its folder.
    #[must_use]
    pub fn name(&self) -> String {
        format!("global-{}", self.id)
    }
}

/// A proxy: a sidecar beside a workload, or a zone ingress.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Name of the process and of its folder, unique in the demo, e.g. `frontend-east`.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Name of its Dataplane, unique within mesh and zone.
    pub dataplane: String,
    /// Its workload: the label `kuma.io/workload` and the last part of its SPIFFE ID.
    pub workload: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl Proxy {
    fn new(zone: &str, workload: &str, dataplane: &str, ip: [u8; 4]) -> Self {
        let name = format!("{workload}-{zone}");
        Self {
            name,
            zone: zone.into(),
            dataplane: dataplane.into(),
            workload: workload.into(),
            ip: ip.into(),
        }
    }

    /// Name of the application's process.
    #[must_use]
    pub fn application(&self) -> String {
        format!("{}-app", self.name)
    }

    /// Its id in xDS and as subject of stages.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{MESH}.{}", self.dataplane)
    }

    /// The identity that the demo's MeshIdentity gives it.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{MESH}.{}.mesh.local/workload/{}", self.zone, self.workload)
    }

    /// Its work folder; Envoy's admin socket lies in it.
    #[must_use]
    pub fn work_dir(&self, data: &Path) -> PathBuf {
        data.join(&self.name)
    }

    /// A port of its.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
}

/// A zone.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Address of its control plane.
    pub ip: Ipv4Addr,
    /// Its zone ingress.
    pub ingress: Proxy,
    /// Its workloads' sidecars.
    pub sidecars: Vec<Proxy>,
}

impl Zone {
    /// Name of its control plane's process and folder.
    #[must_use]
    pub fn control_plane(&self) -> String {
        format!("zone-{}", self.name)
    }

    /// All proxies.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.sidecars.iter().chain(std::iter::once(&self.ingress))
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Global control plane nodes.
    pub globals: Vec<Global>,
    /// Zones; the first has the frontend.
    pub zones: Vec<Zone>,
}

impl Default for Topology {
    fn default() -> Self {
        let zone = |name: &str, net: u8, sidecars: Vec<Proxy>| Zone {
            name: name.into(),
            ip: [127, 0, net, 1].into(),
            ingress: Proxy::new(name, "zone-ingress", "zone-ingress", [127, 0, net, 2]),
            sidecars,
        };
        let east = vec![
            Proxy::new("east", "frontend", "frontend-1", [127, 0, 1, 10]),
            Proxy::new("east", "backend", "backend-1", [127, 0, 1, 20]),
        ];
        let west = vec![Proxy::new("west", "backend", "backend-1", [127, 0, 2, 10])];
        Self {
            globals: vec![Global {
                id: 1,
                ip: [127, 0, 100, 1].into(),
            }],
            zones: vec![zone("east", 1, east), zone("west", 2, west)],
        }
    }
}

impl Topology {
    /// The zone of this name.
    ///
    /// # Panics
    /// If there is none: names are written down in this crate only.
    #[must_use]
    pub fn zone(&self, name: &str) -> &Zone {
        self.zones
            .iter()
            .find(|z| z.name == name)
            .unwrap_or_else(|| panic!("the topology has no zone {name}"))
    }

    /// The proxy of this name.
    ///
    /// # Panics
    /// If there is none: names are written down in this crate only.
    #[must_use]
    pub fn proxy(&self, name: &str) -> &Proxy {
        self.zones
            .iter()
            .flat_map(Zone::proxies)
            .find(|p| p.name == name)
            .unwrap_or_else(|| panic!("the topology has no proxy {name}"))
    }

    /// All sidecars.
    pub fn sidecars(&self) -> impl Iterator<Item = &Proxy> {
        self.zones.iter().flat_map(|z| &z.sidecars)
    }

    /// All proxies.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.zones.iter().flat_map(Zone::proxies)
    }

    /// Every address that some process listens on, with the process's name.
    #[must_use]
    pub fn addresses(&self) -> Vec<(SocketAddr, String)> {
        let mut all = Vec::new();
        let mut add = |ip: Ipv4Addr, name: &str, ports: &[u16]| all.extend(ports.iter().map(|p| ((ip, *p).into(), name.to_owned())));
        for global in &self.globals {
            add(global.ip, &global.name(), &[port::API, port::KDS, port::DIAGNOSTICS]);
        }
        for zone in &self.zones {
            add(zone.ip, &zone.control_plane(), &[port::DP_SERVER, port::API, port::DIAGNOSTICS]);
            add(
                zone.ingress.ip,
                &zone.ingress.name,
                &[port::INGRESS, port::READINESS, port::DIAGNOSTICS],
            );
            for sidecar in &zone.sidecars {
                add(sidecar.ip, &sidecar.name, &[port::INBOUND, port::READINESS, port::DIAGNOSTICS]);
                add(sidecar.ip, &sidecar.application(), &[port::APPLICATION]);
                if sidecar.workload == "frontend" {
                    add(sidecar.ip, &sidecar.name, &[port::OUTBOUND]);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_address_is_used_twice_and_no_process_has_two_names() {
        let topology = Topology::default();
        let addresses = topology.addresses();
        assert_eq!(addresses.iter().map(|(a, _)| a).collect::<BTreeSet<_>>().len(), addresses.len());
        let names: Vec<&str> = topology.proxies().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "frontend-east",
                "backend-east",
                "zone-ingress-east",
                "backend-west",
                "zone-ingress-west"
            ]
        );
        assert_eq!(
            topology.proxy("frontend-east").spiffe_id(),
            "spiffe://default.east.mesh.local/workload/frontend"
        );
    }
}
