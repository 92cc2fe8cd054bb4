//! What an Envoy says about itself on its admin socket.
//!
//! In: the unix socket in the proxy's work folder. Out: statistics, certificates, listeners of the config dump.
//! Invariant: read only; nothing of the admin interface that changes the Envoy is called.
//! Source: Envoy documentation, "Administration interface".
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use crate::client::{Api, Mode, Target};

/// Name of the admin socket in a proxy's work folder, as kuma-dp names it.
pub const SOCKET: &str = "kuma-envoy-admin.sock";

/// The admin interface of one Envoy.
#[derive(Clone, Debug)]
pub struct EnvoyAdmin {
    api: Api,
}

impl EnvoyAdmin {
    /// The Envoy whose work folder this is.
    #[must_use]
    pub fn in_work_dir(dir: &Path) -> Self {
        Self::at(dir.join(SOCKET))
    }

    /// The Envoy behind this socket.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self {
            api: Api::new(Target::Unix(socket)).with_mode(Mode::NewConnection),
        }
    }

    /// All counters and gauges that were ever used.
    ///
    /// # Errors
    /// If the socket does not answer.
    pub async fn stats(&self) -> anyhow::Result<Stats> {
        let answer = self
            .api
            .get("/stats?usedonly")
            .await
            .with_context(|| format!("stats of {}", self.api.target()))?;
        Ok(Stats::parse(&answer.success()?.text()))
    }

    /// The URI names (SPIFFE IDs) of all certificates that this Envoy presents.
    ///
    /// # Errors
    /// If the socket does not answer, or not as expected.
    pub async fn certificate_uris(&self) -> anyhow::Result<Vec<String>> {
        let certs = self
            .api
            .get_json("/certs")
            .await
            .with_context(|| format!("certs of {}", self.api.target()))?;
        Ok(certificate_uris(&certs))
    }

    /// The listeners that came over xDS and are active.
    ///
    /// # Errors
    /// If the socket does not answer, or not as expected.
    pub async fn listeners(&self) -> anyhow::Result<Vec<Listener>> {
        let dump = self
            .api
            .get_json("/config_dump")
            .await
            .with_context(|| format!("config dump of {}", self.api.target()))?;
        Ok(listeners(&dump))
    }

    /// The addresses of the endpoints of each cluster that came over xDS.
    ///
    /// # Errors
    /// If the socket does not answer, or not as expected.
    pub async fn endpoints(&self) -> anyhow::Result<Endpoints> {
        let clusters = self
            .api
            .get_json("/clusters?format=json")
            .await
            .with_context(|| format!("clusters of {}", self.api.target()))?;
        Ok(endpoints(&clusters))
    }

    /// Envoy's version, as in "1.40.0".
    ///
    /// # Errors
    /// If the socket does not answer, or not as expected.
    pub async fn version(&self) -> anyhow::Result<String> {
        let info = self.api.get_json("/server_info").await?;
        let version = info["version"].as_str().context("no version in /server_info")?;
        // commit/version/state/build type/TLS library
        Ok(version.split('/').nth(1).unwrap_or(version).to_owned())
    }
}

/// The endpoints, as `ip:port`, of each cluster.
pub type Endpoints = BTreeMap<String, BTreeSet<String>>;

/// What `before` has and `now` has not: a cluster, or an endpoint of it.
#[must_use]
pub fn lost(before: &Endpoints, now: &Endpoints) -> Vec<String> {
    let mut lost = Vec::new();
    for (cluster, addresses) in before {
        match now.get(cluster) {
            None => lost.push(format!("cluster {cluster}")),
            Some(left) => lost.extend(addresses.difference(left).map(|address| format!("{address} of {cluster}"))),
        }
    }
    lost
}

fn endpoints(clusters: &Value) -> Endpoints {
    let address = |host: &Value| {
        let socket = &host["address"]["socket_address"];
        Some(format!("{}:{}", socket["address"].as_str()?, socket["port_value"]))
    };
    each(&clusters["cluster_statuses"])
        .filter(|cluster| cluster["added_via_api"].as_bool().unwrap_or_default())
        .map(|cluster| {
            let name = cluster["name"].as_str().unwrap_or_default().to_owned();
            (name, each(&cluster["host_statuses"]).filter_map(address).collect())
        })
        .collect()
}

/// Counters and gauges of one moment.
#[derive(Clone, Debug, Default)]
pub struct Stats(BTreeMap<String, u64>);

impl Stats {
    fn parse(text: &str) -> Self {
        // Histograms and texts are no numbers and are left out.
        Self(
            text.lines()
                .filter_map(|line| line.rsplit_once(": "))
                .filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)))
                .collect(),
        )
    }

    /// The sum over all names for which `wanted` holds.
    pub fn sum(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.0.iter().filter(|(name, _)| wanted(name)).map(|(_, value)| value).sum()
    }

    /// The sum of `listener.<address>.<stat>` over all listeners but the admin's, without the per-worker copies.
    #[must_use]
    pub fn of_listeners(&self, stat: &str) -> u64 {
        let end = format!(".{stat}");
        self.sum(|name| {
            name.starts_with("listener.") && name.ends_with(&end) && !name.contains(".worker_") && !name.starts_with("listener.admin.")
        })
    }

    /// The sum of `cluster.<name>.<stat>` over all clusters but the one of the control plane.
    #[must_use]
    pub fn of_clusters(&self, stat: &str) -> u64 {
        let end = format!(".{stat}");
        self.sum(|name| name.starts_with("cluster.") && name.ends_with(&end) && !name.starts_with("cluster.system_ads."))
    }
}

/// One active listener.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u64,
    /// How many filter chains it has, the default one included.
    pub chains: usize,
    /// How many of them have a transport socket, which is what terminates TLS.
    pub chains_with_tls: usize,
    /// The server names (SNI) that its chains match.
    pub server_names: Vec<String>,
}

fn listeners(dump: &Value) -> Vec<Listener> {
    each(&dump["configs"])
        .flat_map(|config| each(&config["dynamic_listeners"]))
        .map(|dynamic| &dynamic["active_state"]["listener"])
        .filter(|listener| listener.is_object())
        .map(|listener| {
            let default = &listener["default_filter_chain"];
            let chains: Vec<&Value> = each(&listener["filter_chains"])
                .chain(default.is_object().then_some(default))
                .collect();
            Listener {
                name: listener["name"].as_str().unwrap_or_default().to_owned(),
                port: listener["address"]["socket_address"]["port_value"].as_u64().unwrap_or_default(),
                chains: chains.len(),
                chains_with_tls: chains.iter().filter(|chain| chain["transport_socket"].is_object()).count(),
                server_names: chains
                    .iter()
                    .flat_map(|chain| each(&chain["filter_chain_match"]["server_names"]))
                    .filter_map(|name| name.as_str().map(str::to_owned))
                    .collect(),
            }
        })
        .collect()
}

fn certificate_uris(certs: &Value) -> Vec<String> {
    let mut uris: Vec<String> = each(&certs["certificates"])
        .flat_map(|certificate| each(&certificate["cert_chain"]))
        .flat_map(|part| each(&part["subject_alt_names"]))
        .filter_map(|name| name["uri"].as_str().map(str::to_owned))
        .collect();
    uris.sort_unstable();
    uris.dedup();
    uris
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stats_are_summed_by_listener() {
        let stats = Stats::parse(
            "listener.127.0.2.10_8080.ssl.versions.TLSv1.3: 2\nlistener.127.0.2.10_8080.worker_0.ssl.versions.TLSv1.3: 2\n\
             listener.admin.downstream_cx_total: 9\ncluster.system_ads.ssl.versions.TLSv1.3: 1\ncluster.k.ssl.versions.TLSv1.3: 4\n\
             cluster.k.name: \"text\"\nlistener.x.downstream_cx_length_ms: P0(1,1)\n",
        );
        assert_eq!(stats.of_listeners("ssl.versions.TLSv1.3"), 2);
        assert_eq!(stats.of_clusters("ssl.versions.TLSv1.3"), 4);
        assert_eq!(stats.of_listeners("downstream_cx_total"), 0);
    }

    #[test]
    fn a_tls_context_in_any_chain_is_seen() {
        let dump = json!({"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump"}, {"dynamic_listeners": [
            {"name": "ingress", "active_state": {"listener": {"name": "ingress", "address": {"socket_address": {"port_value": 10001}},
                "filter_chains": [{"filter_chain_match": {"server_names": ["sni.a"]}}, {"transport_socket": {"name": "tls"}}]}}},
            {"name": "warming", "warming_state": {}}]}]});
        let found = listeners(&dump);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].port, found[0].chains, found[0].chains_with_tls), (10001, 2, 1));
        assert_eq!(found[0].server_names, ["sni.a"]);
    }

    #[test]
    fn a_lost_endpoint_is_named_and_a_new_one_is_no_loss() {
        let host = |ip: &str| json!({"address": {"socket_address": {"address": ip, "port_value": 8080}}});
        let clusters = |hosts: Vec<Value>| {
            endpoints(
                &json!({"cluster_statuses": [{"name": "k", "added_via_api": true, "host_statuses": hosts},
                {"name": "system_ads", "host_statuses": [host("127.0.0.1")]}]}),
            )
        };
        let (two, one) = (
            clusters(vec![host("127.0.2.10"), host("127.0.2.11")]),
            clusters(vec![host("127.0.2.10")]),
        );
        assert_eq!(two.len(), 1);
        assert_eq!(lost(&two, &one), ["127.0.2.11:8080 of k"]);
        assert_eq!(lost(&one, &two), Vec::<String>::new());
        assert_eq!(lost(&one, &Endpoints::new()), ["cluster k"]);
    }

    #[test]
    fn certificates_are_known_by_their_uri() {
        let certs = json!({"certificates": [{"ca_cert": [], "cert_chain": [{"subject_alt_names": [{"uri": "spiffe://a/b"}, {"dns": "x"}]}]},
            {"cert_chain": [{"subject_alt_names": [{"uri": "spiffe://a/b"}]}]}]});
        assert_eq!(certificate_uris(&certs), ["spiffe://a/b"]);
    }
}
