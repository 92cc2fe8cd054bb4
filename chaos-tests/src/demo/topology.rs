//! Who runs where in the demo: a global control plane of one node or three, zones east and west, three workloads, two zone ingresses;
//! and who may join later.
//!
//! In: nothing. Out: names, addresses and the folders of each process. Invariant: every process has a loopback address of its own
//! (127.x.y.z needs no set-up on Linux), so that all of them use the same ports as on machines of their own.
//! Source: issue text; ports as Kuma's. Not here: how they are started ([`super::programs`]).
use std::collections::BTreeMap;
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
    /// Global control plane: its nodes among themselves.
    pub const CLUSTER: u16 = 5683;
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
/// The workload of zone ingresses.
const INGRESS: &str = "zone-ingress";

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
        Self {
            name: format!("{workload}-{zone}"),
            zone: zone.into(),
            dataplane: dataplane.into(),
            workload: workload.into(),
            ip: ip.into(),
        }
    }

    /// The second one of its workload in its zone.
    fn second(mut self) -> Self {
        self.name += "-2";
        self
    }

    /// It is a zone ingress.
    #[must_use]
    pub fn is_ingress(&self) -> bool {
        self.workload == INGRESS
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
    /// Zone ingresses that joined later.
    pub further_ingresses: Vec<Proxy>,
    /// Its workloads' sidecars.
    pub sidecars: Vec<Proxy>,
    /// A second ingress and second instances of its workloads, which a scenario may let join.
    pub spares: Vec<Proxy>,
}

impl Zone {
    /// Name of its control plane's process and folder.
    #[must_use]
    pub fn control_plane(&self) -> String {
        format!("zone-{}", self.name)
    }

    /// All zone ingresses.
    pub fn ingresses(&self) -> impl Iterator<Item = &Proxy> {
        std::iter::once(&self.ingress).chain(&self.further_ingresses)
    }

    /// All proxies but the spares.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.sidecars.iter().chain(self.ingresses())
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Global control plane nodes.
    pub globals: Vec<Global>,
    /// Zones; the first has the frontend.
    pub zones: Vec<Zone>,
    /// Addresses of fault proxies that stand between programs.
    pub links: Links,
}

/// Where programs connect instead of to each other. Empty: they connect directly.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Between nodes of the global: from whom, to whom.
    pub nodes: BTreeMap<(u64, u64), SocketAddr>,
    /// From a zone to a node of the global.
    pub zones: BTreeMap<(String, u64), SocketAddr>,
}

impl Default for Topology {
    fn default() -> Self {
        Self::with_globals(1)
    }
}

impl Topology {
    /// With a global control plane of so many nodes.
    #[must_use]
    pub fn with_globals(nodes: u8) -> Self {
        let zone = |name: &str, net: u8, sidecars: Vec<Proxy>, second: Proxy| Zone {
            name: name.into(),
            ip: [127, 0, net, 1].into(),
            ingress: Proxy::new(name, INGRESS, INGRESS, [127, 0, net, 2]),
            further_ingresses: Vec::new(),
            sidecars,
            spares: vec![
                Proxy::new(name, INGRESS, "zone-ingress-2", [127, 0, net, 3]).second(),
                second.second(),
            ],
        };
        let east = vec![
            Proxy::new("east", "frontend", "frontend-1", [127, 0, 1, 10]),
            Proxy::new("east", "backend", "backend-1", [127, 0, 1, 20]),
        ];
        let west = vec![Proxy::new("west", "backend", "backend-1", [127, 0, 2, 10])];
        Self {
            globals: (1..=nodes)
                .map(|n| Global {
                    id: u64::from(n),
                    ip: [127, 0, 100, n].into(),
                })
                .collect(),
            links: Links::default(),
            zones: vec![
                zone("east", 1, east, Proxy::new("east", "backend", "backend-2", [127, 0, 1, 21])),
                zone("west", 2, west, Proxy::new("west", "backend", "backend-2", [127, 0, 2, 11])),
            ],
        }
    }

    /// It is a cluster: several nodes that elect a leader.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.globals.len() > 1
    }

    /// Counts a spare among the running proxies of its zone.
    ///
    /// # Panics
    /// If there is no spare of this name: names are written down in this crate only.
    pub fn join(&mut self, name: &str) -> Proxy {
        for zone in &mut self.zones {
            if let Some(at) = zone.spares.iter().position(|p| p.name == name) {
                let proxy = zone.spares.remove(at);
                let among = if proxy.is_ingress() {
                    &mut zone.further_ingresses
                } else {
                    &mut zone.sidecars
                };
                among.push(proxy.clone());
                return proxy;
            }
        }
        panic!("the topology has no spare {name}")
    }

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
            if self.is_cluster() {
                add(global.ip, &global.name(), &[port::CLUSTER]);
            }
        }
        for zone in &self.zones {
            add(zone.ip, &zone.control_plane(), &[port::DP_SERVER, port::API, port::DIAGNOSTICS]);
            for proxy in zone.proxies().chain(&zone.spares) {
                add(proxy.ip, &proxy.name, &[port::READINESS, port::DIAGNOSTICS]);
                if proxy.is_ingress() {
                    add(proxy.ip, &proxy.name, &[port::INGRESS]);
                    continue;
                }
                add(proxy.ip, &proxy.name, &[port::INBOUND]);
                add(proxy.ip, &proxy.application(), &[port::APPLICATION]);
                if proxy.workload == "frontend" {
                    add(proxy.ip, &proxy.name, &[port::OUTBOUND]);
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
    fn a_spare_joins_its_zone() {
        let mut topology = Topology::with_globals(3);
        let addresses: BTreeSet<_> = topology.addresses().into_iter().collect();
        for spare in ["backend-west-2", "zone-ingress-west-2", "backend-east-2", "zone-ingress-east-2"] {
            assert_eq!(topology.join(spare).name, spare);
            assert_eq!(topology.proxy(spare).name, spare);
        }
        assert_eq!(topology.zone("west").ingresses().count(), 2);
        assert_eq!(topology.proxies().count(), 9);
        assert!(topology.zones.iter().all(|z| z.spares.is_empty()));
        assert_eq!(topology.addresses().into_iter().collect::<BTreeSet<_>>(), addresses);
    }

    #[test]
    fn no_address_is_used_twice_and_no_process_has_two_names() {
        let topology = Topology::with_globals(3);
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
