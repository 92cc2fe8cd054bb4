//! Three members of one of the two systems, as processes on loopback: ours, or etcd with the same number of members, TLS between
//! members and to clients, and its defaults otherwise.
//!
//! In: where the programs are. Out: running members, who leads, doors for clients. Invariant: dropping it ends them all.
//! Source: `global-cp --help`; etcd's configuration flags (Debian's package etcd-server).
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::client::{Door, MESH};
use super::usage::Usage;
use crate::client::{Api, Target, Trust};
use crate::demo::topology::port;
use crate::harness::{Fleet, POLL, Poll, Spec, ports, wait_until};

/// For anything to come up.
const START: Duration = Duration::from_secs(60);
/// etcd's ports, as usual.
const ETCD_CLIENT: u16 = 2379;
const ETCD_PEER: u16 = 2380;
const ETCD_METRICS: u16 = 2381;

/// Whose store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// global-cp.
    Ursa,
    /// The peer.
    Etcd,
}

impl System {
    /// As shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ursa => "ursa",
            Self::Etcd => "etcd",
        }
    }
}

/// Where programs are and data goes.
#[derive(Clone, Debug)]
pub struct Places {
    /// The built global-cp.
    pub global_cp: PathBuf,
    /// etcd, if it is installed.
    pub etcd: Option<PathBuf>,
    /// strace, if it is installed.
    pub strace: Option<PathBuf>,
    /// Folder of the run's data; on the disk that is measured.
    pub data: PathBuf,
    /// Second byte of all addresses, so that two runs do not meet.
    pub network: u8,
}

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// From 1.
    pub id: u64,
    /// Name of the process and its folder.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// See the module's header.
#[derive(Debug)]
pub struct Cluster {
    /// Which one.
    pub system: System,
    /// Its members.
    pub members: Vec<Member>,
    /// Their processes.
    pub fleet: Fleet,
    dir: PathBuf,
    token: Option<std::sync::Arc<str>>,
}

impl Cluster {
    /// Starts three members in `data/NAME` and waits until they accept writes. With `traced`, each runs under strace, which notes
    /// every sync in `NAME.syncs` there.
    ///
    /// # Errors
    /// A missing program, an address in use, a member that does not start.
    pub async fn start(system: System, places: &Places, name: &str, traced: bool) -> anyhow::Result<Self> {
        let dir = places.data.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let net = match system {
            System::Ursa => 1,
            System::Etcd => 2,
        };
        let members: Vec<Member> = (1..=3)
            .map(|id| Member {
                id,
                name: format!("{}-{id}", system.name()),
                ip: Ipv4Addr::new(127, places.network, net, u8::try_from(id).unwrap_or_default()),
            })
            .collect();
        let mut cluster = Self {
            system,
            members,
            fleet: Fleet::new(&dir)?,
            dir,
            token: None,
        };
        cluster.require_free()?;
        cluster.make_certificates(&places.global_cp).await?;
        for member in &cluster.members {
            let mut spec = match system {
                System::Ursa => cluster.global_cp(places, member)?,
                System::Etcd => cluster.etcd(places, member)?,
            };
            if traced {
                spec = under_strace(spec, places, &cluster.syncs_file(member))?;
            }
            cluster.fleet.start(spec)?;
        }
        for member in &cluster.members {
            cluster.fleet.wait_ready(&member.name, START).await?;
        }
        cluster.prepare().await?;
        Ok(cluster)
    }

    /// Where the syncs of a traced member are noted.
    #[must_use]
    pub fn syncs_file(&self, member: &Member) -> PathBuf {
        self.dir.join(format!("{}.syncs", member.name))
    }

    /// A member's own folder.
    #[must_use]
    pub fn data_of(&self, member: &Member) -> PathBuf {
        self.dir.join(&member.name)
    }

    fn require_free(&self) -> anyhow::Result<()> {
        let ports: &[u16] = match self.system {
            System::Ursa => &[port::API, port::CLUSTER, port::KDS, port::DIAGNOSTICS],
            System::Etcd => &[ETCD_CLIENT, ETCD_PEER, ETCD_METRICS],
        };
        let wanted = self
            .members
            .iter()
            .flat_map(|m| ports.iter().map(|port| ((m.ip, *port).into(), m.name.as_str())));
        Ok(ports::require_free(wanted)?)
    }

    /// A CA and a certificate for each member, of the same kind for both systems.
    async fn make_certificates(&self, global_cp: &Path) -> anyhow::Result<()> {
        let ca = self.dir.join("ca");
        let pki = async |arguments: Vec<String>| -> anyhow::Result<()> {
            let mut command = tokio::process::Command::new(global_cp);
            let done = command.arg("pki").args(&arguments).env_clear().output().await?;
            let said = String::from_utf8_lossy(&done.stderr);
            anyhow::ensure!(done.status.success(), "global-cp pki {} failed: {said}", arguments.join(" "));
            Ok(())
        };
        let path = |path: &Path| path.display().to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        pki(words(&["init", "--cluster", "bench", "--out", &path(&ca)])).await?;
        for member in &self.members {
            let (id, address, out) = (member.id.to_string(), member.ip.to_string(), path(&self.pki(member)));
            pki(words(&[
                "node",
                "--ca",
                &path(&ca),
                "--id",
                &id,
                "--address",
                &address,
                "--out",
                &out,
            ]))
            .await?;
        }
        Ok(())
    }

    fn pki(&self, member: &Member) -> PathBuf {
        self.dir.join(format!("{}-pki", member.name))
    }

    /// The CA of all members' certificates.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca/ca.crt")
    }

    fn global_cp(&self, places: &Places, member: &Member) -> anyhow::Result<Spec> {
        let at = |port: u16| SocketAddr::from((member.ip, port)).to_string();
        let pki = self.pki(member);
        let members: Vec<Value> = self
            .members
            .iter()
            .map(|m| json!({"id": m.id, "address": SocketAddr::from((m.ip, port::CLUSTER)).to_string()}))
            .collect();
        let config = json!({
            "data_dir": self.data_of(member),
            "node": {"id": member.id},
            "api": {"address": at(port::API)},
            "kds": {"address": at(port::KDS)},
            "diagnostics": {"address": at(port::DIAGNOSTICS)},
            "cluster": {
                "listen": at(port::CLUSTER), "members": members,
                "cert_file": pki.join("node.crt"), "key_file": pki.join("node.key"), "ca_file": pki.join("ca.crt"),
            },
        });
        let path = self.dir.join(format!("{}.yaml", member.name));
        std::fs::write(&path, serde_saphyr::to_string(&config)?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Spec::new(&member.name, &places.global_cp)
            .arg("run")
            .opt("--config", path.display())
            .ready_at((member.ip, port::DIAGNOSTICS).into(), "/ready"))
    }

    fn etcd(&self, places: &Places, member: &Member) -> anyhow::Result<Spec> {
        let program = places.etcd.as_ref().context("etcd is not installed")?;
        let url = |ip: Ipv4Addr, port: u16| format!("https://{ip}:{port}");
        let all: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, url(m.ip, ETCD_PEER)))
            .collect();
        let pki = self.pki(member);
        let file = |name: &str| pki.join(name).display().to_string();
        let (client, peer) = (url(member.ip, ETCD_CLIENT), url(member.ip, ETCD_PEER));
        Ok(Spec::new(&member.name, program)
            .opt("--name", &member.name)
            .opt("--data-dir", self.data_of(member).display())
            .opt("--listen-client-urls", &client)
            .opt("--advertise-client-urls", &client)
            .opt("--listen-peer-urls", &peer)
            .opt("--initial-advertise-peer-urls", &peer)
            .opt("--listen-metrics-urls", format!("http://{}:{ETCD_METRICS}", member.ip))
            .opt("--initial-cluster", all.join(","))
            .opt("--cert-file", file("node.crt"))
            .opt("--key-file", file("node.key"))
            .opt("--peer-cert-file", file("node.crt"))
            .opt("--peer-key-file", file("node.key"))
            .opt("--peer-trusted-ca-file", file("ca.crt"))
            .arg("--peer-client-cert-auth")
            .opt("--logger", "zap")
            .opt("--log-level", "error")
            .ready_at((member.ip, ETCD_METRICS).into(), "/health"))
    }

    /// The mesh that the secrets lie in.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        let first = self.members.first().context("no members")?.clone();
        if self.system == System::Etcd {
            return Ok(());
        }
        let token = self.data_of(&first).join("admin-user-token");
        let token = std::fs::read_to_string(&token).with_context(|| format!("cannot read {}", token.display()))?;
        self.token = Some(token.trim().into());
        let api = Api::new(Target::Tls((first.ip, port::API).into(), Trust::from_ca_file(&self.ca_file())?)).with_token(&token);
        let mesh = json!({"type": "Mesh", "name": MESH});
        api.put(&format!("/meshes/{MESH}"), &mesh).await?.success()?;
        Ok(())
    }

    /// Where clients of this member go.
    ///
    /// # Errors
    /// If the CA cannot be read.
    pub fn door(&self, member: &Member) -> anyhow::Result<Door> {
        Ok(match self.system {
            System::Ursa => Door::Rest {
                address: (member.ip, port::API).into(),
                trust: Trust::from_ca_file(&self.ca_file())?,
                token: self.token.clone().unwrap_or_default(),
            },
            System::Etcd => Door::Etcd {
                address: (member.ip, ETCD_CLIENT).into(),
                ca_file: self.ca_file(),
            },
        })
    }

    /// Doors of all members but this one.
    ///
    /// # Errors
    /// As [`Cluster::door`].
    pub fn doors_but(&self, left_out: Option<u64>) -> anyhow::Result<Vec<Door>> {
        let members = self.members.iter().filter(|m| Some(m.id) != left_out);
        members.map(|m| self.door(m)).collect()
    }

    /// The member that leads. Waits until there is one.
    ///
    /// # Errors
    /// If there is none in time.
    pub async fn leader(&self) -> anyhow::Result<Member> {
        let what = format!("a leader of {}", self.system.name());
        let (leader, _) = wait_until(&what, START, POLL, async || {
            for member in &self.members {
                if self.leads(member).await.unwrap_or(false) {
                    return Ok(Poll::Ready(member.clone()));
                }
            }
            Ok(Poll::NotYet("no member says that it leads".into()))
        })
        .await?;
        Ok(leader)
    }

    async fn leads(&self, member: &Member) -> anyhow::Result<bool> {
        let at = |port: u16| Api::new(Target::Tcp((member.ip, port).into())).with_deadline(Duration::from_secs(1));
        Ok(match self.system {
            System::Ursa => {
                let seen = at(port::DIAGNOSTICS).get_json("/cluster").await?;
                seen["leader"].as_u64() == Some(member.id) && seen["quorum"].as_bool() == Some(true)
            }
            System::Etcd => {
                let text = at(ETCD_METRICS).get("/metrics").await?.success()?.text();
                text.lines().any(|line| line == "etcd_server_is_leader 1")
            }
        })
    }

    /// What each member has used so far, in their order.
    ///
    /// # Errors
    /// If one is gone.
    pub fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        let pids = self.fleet.pids();
        self.members
            .iter()
            .map(|member| match pids.iter().find(|(name, _)| *name == member.name) {
                Some((_, pid)) => Usage::of(*pid),
                None => bail!("{} does not run", member.name),
            })
            .collect()
    }

    /// Waits until this member is ready. Returns how long that took.
    ///
    /// # Errors
    /// It ended, or the deadline passed.
    pub async fn wait_ready(&self, member: &Member) -> anyhow::Result<Duration> {
        self.fleet.wait_ready(&member.name, START * 2).await
    }
}

/// The same program, with every sync noted. `-D`: the program stays our child, and gets our signals; the filter in the kernel stops
/// it at no other call.
fn under_strace(spec: Spec, places: &Places, to: &Path) -> anyhow::Result<Spec> {
    let strace = places.strace.as_ref().context("strace is not installed")?;
    let mut traced = Spec::new(&spec.name, strace)
        .arg("-D")
        .arg("-f")
        .arg("--seccomp-bpf")
        .arg("-qq")
        .arg("-ttt")
        .arg("-e")
        .arg("trace=fsync,fdatasync,sync_file_range,msync,sync,syncfs")
        .opt("-o", to.display())
        .arg(spec.program.display().to_string());
    traced.args.extend(spec.args);
    traced.ready = spec.ready;
    Ok(traced)
}
