//! How each program of the demo is started: its configuration, its arguments, where it says that it is ready.
//!
//! In: the topology and the folder of the run. Out: [`Spec`]s, and configuration files written to that folder.
//! Invariant: everything a process writes lies in a folder of its own below the run's. Source: the programs' own `--help`.
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::topology::{Global, MESH, Proxy, Topology, Zone, port};
use crate::faults::shim::Shim;
use crate::harness::Spec;

/// Where programs, Envoy, resources and the run's data are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Folder of the built programs.
    pub bin: PathBuf,
    /// The real Envoy binary.
    pub envoy: PathBuf,
    /// The demo's resource files.
    pub resources: PathBuf,
    /// The run's folder: data, tokens, logs.
    pub data: PathBuf,
    /// Brings faults of disk and clock into the nodes of the global.
    pub shim: Option<Shim>,
}

/// Begins the name of every node of the global control plane.
const GLOBAL: &str = "global-";

/// What the harness needs of a sidecar's drain: long enough for requests in progress, short enough for a demo that ends.
const DRAIN: [(&str, &str); 2] = [("--drain-time", "3s"), ("--drain-quiet", "200ms")];

impl Places {
    /// The program of this name.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The CA certificate of a control plane's servers: the cluster's, or the one that it made at its first start.
    #[must_use]
    pub fn ca_file(&self, control_plane: &str) -> PathBuf {
        let cluster = self.cluster_ca().join("ca.crt");
        if control_plane.starts_with(GLOBAL) && cluster.exists() {
            return cluster;
        }
        self.data.join(control_plane).join("tls/ca.crt")
    }

    /// Folder of the global cluster's CA. Absent while the global is a single node.
    #[must_use]
    pub fn cluster_ca(&self) -> PathBuf {
        self.data.join("pki/ca")
    }

    /// Folder of a node's certificate.
    #[must_use]
    pub fn node_pki(&self, global: &Global) -> PathBuf {
        self.data.join("pki").join(global.name())
    }

    /// The commands that make the cluster's CA and a certificate for each node, as an operator would.
    #[must_use]
    pub fn pki_commands(&self, topology: &Topology) -> Vec<Vec<String>> {
        let ca = self.cluster_ca().display().to_string();
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let mut commands = vec![words(&["pki", "init", "--out", &ca, "--cluster", "demo"])];
        for global in &topology.globals {
            let (id, address, out) = (global.id.to_string(), global.ip.to_string(), self.node_pki(global));
            commands.push(words(&[
                "pki",
                "node",
                "--ca",
                &ca,
                "--id",
                &id,
                "--address",
                &address,
                "--out",
                &out.display().to_string(),
            ]));
        }
        commands
    }

    /// The admin token that a control plane made at its first start.
    #[must_use]
    pub fn admin_token_file(&self, control_plane: &str) -> PathBuf {
        self.data.join(control_plane).join("admin-user-token")
    }

    /// Where the demo puts a token that it has got for this process.
    #[must_use]
    pub fn token_file(&self, process: &str) -> PathBuf {
        self.data.join("tokens").join(process)
    }

    /// A resource file as JSON.
    ///
    /// # Errors
    /// If it cannot be read, or is no YAML.
    pub fn resource(&self, file: &str) -> anyhow::Result<Value> {
        let path = self.resources.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", path.display()))
    }

    fn write_config(&self, process: &str, config: &Value) -> anyhow::Result<PathBuf> {
        let path = self.data.join("config").join(format!("{process}.yaml"));
        let text = serde_saphyr::to_string(config).with_context(|| format!("configuration of {process}"))?;
        std::fs::create_dir_all(self.data.join("config"))?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A node of the global control plane.
    ///
    /// # Errors
    /// If its configuration cannot be written.
    pub fn global(&self, topology: &Topology, global: &Global) -> anyhow::Result<Spec> {
        let at = |port: u16| format!("{}:{port}", global.ip);
        let mut config = json!({
            "data_dir": self.data.join(global.name()),
            "node": {"id": global.id},
            "api": {"address": at(port::API)},
            "kds": {"address": at(port::KDS)},
            "diagnostics": {"address": at(port::DIAGNOSTICS)},
        });
        if topology.is_cluster() {
            let pki = self.node_pki(global);
            let member = |id: u64, address: std::net::SocketAddr| json!({"id": id, "address": address.to_string()});
            let members: Vec<Value> = topology
                .globals
                .iter()
                .map(|g| member(g.id, (g.ip, port::CLUSTER).into()))
                .collect();
            let own = topology.links.nodes.iter().filter(|((from, _), _)| *from == global.id);
            let detours: Vec<Value> = own.map(|((_, to), address)| member(*to, *address)).collect();
            config["cluster"] = json!({
                "listen": at(port::CLUSTER), "members": members, "dial": detours,
                "cert_file": pki.join("node.crt"), "key_file": pki.join("node.key"), "ca_file": pki.join("ca.crt"),
            });
        }
        let mut spec = self.control_plane("global-cp", &global.name(), &config, (global.ip, port::DIAGNOSTICS).into())?;
        if let Some(shim) = &self.shim {
            for (name, value) in shim.environment(&global.name())? {
                spec = spec.env(name, value);
            }
        }
        Ok(spec)
    }

    /// The control plane of a zone.
    ///
    /// # Errors
    /// If its configuration cannot be written.
    pub fn zone(&self, topology: &Topology, zone: &Zone) -> anyhow::Result<Spec> {
        let at = |port: u16| format!("{}:{port}", zone.ip);
        let first = topology.globals.first().context("a topology without a global control plane")?;
        let globals: Vec<String> = topology
            .globals
            .iter()
            .map(|to| {
                let direct = (to.ip, port::KDS).into();
                let address = topology.links.zones.get(&(zone.name.clone(), to.id)).copied();
                format!("grpcs://{}", address.unwrap_or(direct))
            })
            .collect();
        let name = zone.control_plane();
        let config = json!({
            "zone": zone.name,
            "data_dir": self.data.join(&name),
            "global": {"addresses": globals, "ca_file": self.ca_file(&first.name()), "token_file": self.token_file(&name)},
            "api": {"address": at(port::API)},
            "dp_server": {"address": at(port::DP_SERVER)},
            "diagnostics": {"address": at(port::DIAGNOSTICS)},
        });
        self.control_plane("zone-cp", &name, &config, (zone.ip, port::DIAGNOSTICS).into())
    }

    fn control_plane(&self, program: &str, name: &str, config: &Value, ready: std::net::SocketAddr) -> anyhow::Result<Spec> {
        let config = self.write_config(name, config)?;
        Ok(Spec::new(name, self.program(program))
            .arg("run")
            .opt("--config", config.display())
            .ready_at(ready, "/ready"))
    }

    /// The application behind a sidecar.
    #[must_use]
    pub fn application(&self, sidecar: &Proxy) -> Spec {
        let address = sidecar.at(port::APPLICATION);
        Spec::new(sidecar.application(), self.program("echo-workload"))
            .opt("--listen", address)
            .opt("--instance", &sidecar.name)
            .opt("--zone", &sidecar.zone)
            .ready_at(address, "/")
    }

    /// A sidecar.
    #[must_use]
    pub fn sidecar(&self, zone: &Zone, sidecar: &Proxy) -> Spec {
        let dataplane = self.resources.join("dataplanes").join(format!("{}.yaml", sidecar.name));
        self.proxy("dataplane", zone, sidecar).opt("--dataplane-file", dataplane.display())
    }

    /// A zone ingress.
    #[must_use]
    pub fn ingress(&self, zone: &Zone, ingress: &Proxy) -> Spec {
        self.proxy("zone-ingress", zone, ingress)
            .opt("--name", &ingress.dataplane)
            .opt("--mesh", MESH)
            .opt("--address", ingress.ip)
            .opt("--port", port::INGRESS)
    }

    fn proxy(&self, program: &str, zone: &Zone, proxy: &Proxy) -> Spec {
        let mut spec = Spec::new(&proxy.name, self.program(program))
            .arg("run")
            .opt("--cp-address", format!("https://{}:{}", zone.ip, port::DP_SERVER))
            .opt("--ca-cert-file", self.ca_file(&zone.control_plane()).display())
            .opt("--dataplane-token-file", self.token_file(&proxy.name).display())
            .opt("--envoy", self.envoy.display())
            // One worker each: there are more Envoys here than cores.
            .opt("--concurrency", 1)
            .opt("--work-dir", proxy.work_dir(&self.data).display())
            .opt("--readiness-address", proxy.ip)
            .opt("--readiness-port", port::READINESS)
            .opt("--diagnostics-address", proxy.at(port::DIAGNOSTICS))
            .ready_at(proxy.at(port::READINESS), "/ready");
        for (option, value) in DRAIN {
            spec = spec.opt(option, value);
        }
        spec
    }
}

/// Where a resource lives in the API: by its own `type`, `mesh` and `name`.
///
/// # Errors
/// If it has none of these, or its type is not one of the demo's.
pub fn path_of(resource: &Value) -> anyhow::Result<String> {
    let field = |name: &str| resource[name].as_str().with_context(|| format!("a resource without {name}"));
    let collection = match field("type")? {
        "Mesh" => return Ok(format!("/meshes/{}", field("name")?)),
        "MeshIdentity" => "meshidentities",
        "MeshTrafficPermission" => "meshtrafficpermissions",
        "MeshHTTPRoute" => "meshhttproutes",
        other => anyhow::bail!("the demo does not know the type {other}"),
    };
    Ok(format!("/meshes/{}/{collection}/{}", field("mesh")?, field("name")?))
}

/// The run's folder, made empty. Only a folder that an earlier run made is ever emptied.
///
/// # Errors
/// If it holds something else, or cannot be made.
pub fn fresh_folder(path: &Path) -> anyhow::Result<()> {
    let mark = path.join(".ursa-demo");
    if path.exists() {
        anyhow::ensure!(
            mark.exists() || path.read_dir()?.next().is_none(),
            "{} is not a folder of the demo, remove it yourself",
            path.display()
        );
        std::fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    std::fs::create_dir_all(path.join("tokens")).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::write(mark, "Made by the demo; emptied at its next start.\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(data: &Path) -> Places {
        let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
        Places {
            bin: "bin".into(),
            envoy: "envoy".into(),
            resources,
            data: data.to_owned(),
            shim: None,
        }
    }

    #[test]
    fn every_resource_file_is_yaml_and_has_a_path() {
        let places = places(Path::new("/nowhere"));
        for dir in ["", "propagation"] {
            for file in std::fs::read_dir(places.resources.join(dir))
                .unwrap()
                .map(|f| f.unwrap().path())
                .filter(|f| f.extension().is_some_and(|e| e == "yaml"))
            {
                let resource = places.resource(file.to_str().unwrap()).unwrap();
                assert!(path_of(&resource).unwrap().starts_with("/meshes/default"), "{}", file.display());
            }
        }
        for sidecar in Topology::default().sidecars() {
            let dataplane = places.resource(&format!("dataplanes/{}.yaml", sidecar.name)).unwrap();
            assert_eq!(dataplane["name"], sidecar.dataplane.as_str());
            assert_eq!(dataplane["labels"]["kuma.io/workload"], sidecar.workload.as_str());
            assert_eq!(dataplane["networking"]["address"], sidecar.ip.to_string());
        }
    }

    #[test]
    fn configurations_are_yaml_and_say_what_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let (places, topology) = (places(dir.path()), Topology::default());
        let spec = places.zone(&topology, topology.zone("west")).unwrap();
        assert_eq!(spec.args[..2], ["run", "--config"]);
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(&spec.args[2]).unwrap()).unwrap();
        assert_eq!(config["global"]["addresses"][0], "grpcs://127.0.100.1:5685");
        assert_eq!(
            (config["zone"].as_str(), config["dp_server"]["address"].as_str()),
            (Some("west"), Some("127.0.2.1:5678"))
        );
    }

    #[test]
    fn a_cluster_names_its_members_and_a_link_takes_the_place_of_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let (places, mut topology) = (places(dir.path()), Topology::with_globals(3));
        topology.links.nodes.insert((2, 3), "127.0.100.1:7023".parse().unwrap());
        topology.links.zones.insert(("west".into(), 1), "127.0.100.1:7101".parse().unwrap());
        let config = |spec: Spec| -> Value { serde_saphyr::from_str(&std::fs::read_to_string(&spec.args[2]).unwrap()).unwrap() };
        let node = config(places.global(&topology, &topology.globals[1]).unwrap());
        assert_eq!(node["cluster"]["members"][2], json!({"id": 3, "address": "127.0.100.3:5683"}));
        assert_eq!(node["cluster"]["dial"], json!([{"id": 3, "address": "127.0.100.1:7023"}]));
        let zone = config(places.zone(&topology, topology.zone("west")).unwrap());
        assert_eq!(zone["global"]["addresses"][0], "grpcs://127.0.100.1:7101");
        assert_eq!(zone["global"]["addresses"][2], "grpcs://127.0.100.3:5685");
        let commands = places.pki_commands(&topology);
        assert_eq!(commands.len(), 4);
        assert_eq!(
            commands[3][..6],
            ["pki", "node", "--ca", &places.cluster_ca().display().to_string(), "--id", "3"]
        );
    }

    #[test]
    fn only_a_folder_of_the_demo_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fresh_folder(&path).unwrap();
        std::fs::write(path.join("old"), "x").unwrap();
        fresh_folder(&path).unwrap();
        assert!(!path.join("old").exists());
        let precious = dir.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("thesis"), "x").unwrap();
        assert!(fresh_folder(&precious).is_err());
        assert!(precious.join("thesis").exists());
    }
}
