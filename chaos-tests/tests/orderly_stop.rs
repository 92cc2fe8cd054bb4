//! Who is told to stop fails no call: sidecars one after the other, zone ingresses one after the other. Real processes, real Envoys,
//! traffic at 200 requests/s per pair, open loop. Nothing hides a failure: neither the client nor the mesh retries (the mesh is made
//! without its initial policies, so there is no MeshRetry). Needs `ENVOY_BIN` and the built programs.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use ursa_chaos_tests::client::{Api, Mode, Target, Trust};
use ursa_chaos_tests::echo::Said;
use ursa_chaos_tests::harness::{Fleet, POLL, Poll, Spec, wait_through};
use ursa_chaos_tests::traffic::Shot;
use ursa_chaos_tests::traffic::load::{Judge, Load, Outcome, Plan};

const MESH: &str = "default";
const START: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Longest orderly end: the drain time below, and the end of Envoy.
const GRACE: Duration = Duration::from_secs(80);
const RATE: u32 = 200;

const DP_SERVER: u16 = 5678;
const DIAGNOSTICS: u16 = 5680;
const API: u16 = 5682;
const KDS: u16 = 5685;
const READINESS: u16 = 9902;
const INGRESS: u16 = 10001;
const INBOUND: u16 = 8080;
const APPLICATION: u16 = 18080;
const TO_EAST: u16 = 20001;
const TO_WEST: u16 = 20002;

/// A proxy: where it is and what it is.
#[derive(Clone, Copy)]
struct Proxy {
    process: &'static str,
    zone: u8,
    dataplane: &'static str,
    workload: &'static str,
    host: u8,
}

const fn proxy(process: &'static str, zone: u8, dataplane: &'static str, workload: &'static str, host: u8) -> Proxy {
    Proxy {
        process,
        zone,
        dataplane,
        workload,
        host,
    }
}

const EAST: u8 = 1;
const WEST: u8 = 2;
const FRONTEND: Proxy = proxy("frontend", EAST, "frontend-1", "frontend", 10);
const EAST_BACKENDS: [Proxy; 2] = [
    proxy("backend-east-1", EAST, "backend-1", "backend", 20),
    proxy("backend-east-2", EAST, "backend-2", "backend", 30),
];
const WEST_BACKEND: Proxy = proxy("backend-west", WEST, "backend-1", "backend", 10);
const INGRESSES: [Proxy; 2] = [
    proxy("ingress-1", WEST, "ingress-1", "zone-ingress", 2),
    proxy("ingress-2", WEST, "ingress-2", "zone-ingress", 3),
];

struct World {
    fleet: Fleet,
    dir: PathBuf,
    bin: PathBuf,
    envoy: PathBuf,
    /// Second octet of every address: tests at the same time do not meet.
    net: u8,
}

fn zone_name(zone: u8) -> &'static str {
    if zone == EAST { "east" } else { "west" }
}

impl World {
    fn ip(&self, zone: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.net, zone, host)
    }

    fn at(&self, zone: u8, host: u8, port: u16) -> SocketAddr {
        (self.ip(zone, host), port).into()
    }

    fn spec(&self, name: &str, program: &str) -> Spec {
        Spec::new(name, self.bin.join(program)).arg("run")
    }

    fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn api(&self, plane: &str, at: SocketAddr) -> anyhow::Result<Api> {
        let home = self.dir.join(plane);
        let trust = Trust::from_ca_file(&home.join("tls/ca.crt"))?;
        Ok(Api::new(Target::Tls(at, trust)).with_token_file(&home.join("admin-user-token"))?)
    }

    async fn plane(&self, program: &str, name: &str, address: Ipv4Addr, more: Value) -> anyhow::Result<Api> {
        let at = |port: u16| json!({"address": format!("{address}:{port}")});
        let mut config = json!({"data_dir": self.dir.join(name), "api": at(API), "diagnostics": at(DIAGNOSTICS)});
        let fields = config.as_object_mut().context("an object")?;
        fields.extend(more.as_object().cloned().unwrap_or_default());
        let file = self.write(&format!("{name}.yaml"), &config.to_string())?;
        let spec = self.spec(name, program).opt("--config", file.display());
        self.fleet.start(spec.ready_at((address, DIAGNOSTICS).into(), "/ready"))?;
        self.fleet.wait_ready(name, START).await?;
        self.api(name, (address, API).into())
    }

    /// Starts everything and waits until the frontend reaches a backend in each zone.
    async fn start(&self) -> anyhow::Result<()> {
        let global_ip = self.ip(100, 1);
        let kds = json!({"kds": {"address": format!("{global_ip}:{KDS}")}, "node": {"id": 1}});
        let global = self.plane("global-cp", "global", global_ip, kds).await?;
        put(
            &global,
            "/meshes/default",
            json!({"type": "Mesh", "name": MESH, "skipCreatingInitialPolicies": ["*"]}),
        )
        .await?;
        let mut zones = Vec::new();
        for zone in [EAST, WEST] {
            let name = zone_name(zone);
            let token = token(&global, "/tokens/zone", json!({"zone": name, "validFor": "1h"})).await?;
            let token = self.write(&format!("{name}.token"), &token)?;
            let more = json!({
                "zone": name,
                "dp_server": {"address": self.at(zone, 1, DP_SERVER)},
                "global": {"addresses": [format!("grpcs://{global_ip}:{KDS}")], "ca_file": self.dir.join("global/tls/ca.crt"), "token_file": token},
            });
            zones.push(self.plane("zone-cp", name, self.ip(zone, 1), more).await?);
        }
        let all = [FRONTEND, WEST_BACKEND].into_iter().chain(EAST_BACKENDS).chain(INGRESSES);
        for proxy in all {
            let api = &zones[usize::from(proxy.zone - 1)];
            self.add(api, proxy).await?;
        }
        put(&global, "/meshes/default/meshidentities/identity", identity()).await?;
        put(&global, "/meshes/default/meshtrafficpermissions/allow", permission()).await?;
        for proxy in EAST_BACKENDS {
            self.answers(TO_EAST, proxy.process).await?;
        }
        self.answers(TO_WEST, WEST_BACKEND.process).await?;
        self.addresses(2).await
    }

    async fn add(&self, api: &Api, proxy: Proxy) -> anyhow::Result<()> {
        let mut body = json!({"name": proxy.dataplane, "mesh": MESH, "type": "dataplane", "workload": proxy.workload, "validFor": "1h"});
        let is_ingress = proxy.workload == "zone-ingress";
        if is_ingress {
            body["tags"] = json!({"kuma.io/listener-zoneingress": ["enabled"]});
        }
        let (token, _) = wait_through("a token: the zone's key comes from the global", SOON, POLL, async || {
            Ok(match token(api, "/tokens/dataplane", body.clone()).await {
                Ok(token) => Poll::Ready(token),
                Err(error) => Poll::NotYet(format!("{error:#}")),
            })
        })
        .await?;
        let token = self.write(&format!("{}.token", proxy.process), &token)?;
        let ip = self.ip(proxy.zone, proxy.host);
        let program = if is_ingress { "zone-ingress" } else { "dataplane" };
        let mut spec = self
            .spec(proxy.process, program)
            .opt("--cp-address", format!("https://{}", self.at(proxy.zone, 1, DP_SERVER)))
            .opt("--ca-cert-file", self.dir.join(zone_name(proxy.zone)).join("tls/ca.crt").display())
            .opt("--dataplane-token-file", token.display())
            .opt("--envoy", self.envoy.display())
            .opt("--concurrency", 1)
            .opt("--work-dir", self.dir.join(proxy.process).display())
            .opt("--drain-time", "30s")
            .opt("--drain-quiet", "500ms")
            .opt("--readiness-address", ip)
            .opt("--readiness-port", READINESS)
            .ready_at((ip, READINESS).into(), "/ready");
        if is_ingress {
            spec = spec
                .opt("--name", proxy.dataplane)
                .opt("--mesh", MESH)
                .opt("--address", ip)
                .opt("--port", INGRESS);
        } else {
            let application = self.at(proxy.zone, proxy.host, APPLICATION);
            let app = format!("{}-app", proxy.process);
            let echo = Spec::new(&app, self.bin.join("echo-workload"))
                .opt("--listen", application)
                .opt("--instance", proxy.process)
                .opt("--zone", zone_name(proxy.zone))
                .ready_at(application, "/");
            self.fleet.start(echo)?;
            self.fleet.wait_ready(&app, START).await?;
            let file = self.write(&format!("{}.yaml", proxy.process), &dataplane(proxy, ip).to_string())?;
            spec = spec.opt("--dataplane-file", file.display());
        }
        self.fleet.start(spec)?;
        self.fleet.wait_ready(proxy.process, START).await?;
        Ok(())
    }

    fn shot(&self, port: u16) -> Shot {
        Shot::get(Target::Tcp(self.at(FRONTEND.zone, FRONTEND.host, port)))
    }

    /// Waits until a call over this outbound is answered by this instance.
    async fn answers(&self, port: u16, instance: &str) -> anyhow::Result<()> {
        let api = Api::new(Target::Tcp(self.at(FRONTEND.zone, FRONTEND.host, port))).with_mode(Mode::NewConnection);
        wait_through(&format!("an answer of {instance}"), SOON, POLL, async || {
            let said = match api.get("/").await {
                Ok(answer) => answer.json::<Said>().map(|said| said.instance).unwrap_or_else(|_| answer.text()),
                Err(error) => error.to_string(),
            };
            Ok(Poll::when(said == instance, (), || said.clone()))
        })
        .await?;
        Ok(())
    }

    /// Waits until the zone in the east has so many addresses of ingresses in the west.
    async fn addresses(&self, wanted: u64) -> anyhow::Result<()> {
        let east = self.api("east", self.at(EAST, 1, API))?;
        wait_through(&format!("{wanted} addresses of ingresses"), SOON, POLL, async || {
            let all = east.get_json("/meshes/default/meshzoneaddresses").await?;
            Ok(Poll::when(all["total"] == wanted, (), || all.to_string()))
        })
        .await?;
        Ok(())
    }

    fn load(&self, port: u16, mode: Mode) -> Load {
        let judge: Judge = Arc::new(|answer| match answer.json::<Said>() {
            Ok(said) => Ok(said.instance),
            Err(_) => Err(format!("{} {}", answer.status, answer.text())),
        });
        Load::start(Plan {
            name: format!("{port} {mode:?}"),
            shot: self.shot(port),
            rate: RATE / 2,
            mode,
            judge,
        })
    }

    /// Half of the traffic with kept connections, half with new ones.
    fn traffic(&self, port: u16) -> [Load; 2] {
        [self.load(port, Mode::KeptAlive), self.load(port, Mode::NewConnection)]
    }

    /// SIGTERM, an orderly end, and a start.
    async fn roll(&self, proxy: Proxy) -> anyhow::Result<()> {
        let ending = self.fleet.terminate(proxy.process, GRACE).await?;
        anyhow::ensure!(ending.clean, "{}: {} after {:?}", ending.name, ending.how, ending.took);
        println!("{} ended after {:?}", proxy.process, ending.took);
        self.fleet.restart(proxy.process)?;
        self.fleet.wait_ready(proxy.process, START).await?;
        Ok(())
    }
}

async fn put(api: &Api, path: &str, body: Value) -> anyhow::Result<()> {
    api.put(path, &body).await?.success().with_context(|| path.to_owned())?;
    Ok(())
}

async fn token(api: &Api, path: &str, body: Value) -> anyhow::Result<String> {
    Ok(api.post(path, &body).await?.success()?.text().trim().to_owned())
}

fn identity() -> Value {
    json!({"type": "MeshIdentity", "mesh": MESH, "name": "identity", "spec": {
        "selector": {"dataplane": {"matchLabels": {}}},
        "spiffeID": {"trustDomain": "{{ .Mesh }}.{{ .Zone }}.mesh.local", "path": "/workload/{{ .Workload }}"},
        "provider": {"type": "Bundled", "bundled": {"meshTrustCreation": "Enabled", "insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}}})
}

fn permission() -> Value {
    json!({"type": "MeshTrafficPermission", "mesh": MESH, "name": "allow", "spec": {"rules": [{"default": {"allow": [
        {"spiffeID": {"type": "Exact", "value": "spiffe://default.east.mesh.local/workload/frontend"}}]}}]}})
}

fn dataplane(proxy: Proxy, ip: Ipv4Addr) -> Value {
    let mut networking = json!({"address": ip, "inbound": [
        {"port": INBOUND, "servicePort": APPLICATION, "serviceAddress": ip, "name": "http", "protocol": "http"}]});
    if proxy.workload == "frontend" {
        let to = |port: u16, zone: &str| {
            json!({"address": ip, "port": port, "backendRef": {"kind": "MeshService", "port": INBOUND,
                "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": zone}}})
        };
        networking["outbound"] = json!([to(TO_EAST, "east"), to(TO_WEST, "west")]);
    }
    json!({"type": "Dataplane", "mesh": MESH, "name": proxy.dataplane, "labels": {"kuma.io/workload": proxy.workload}, "networking": networking})
}

async fn all_right(traffic: [Load; 2]) -> Outcome {
    let mut all = Outcome::default();
    for load in traffic {
        let outcome = load.stop().await;
        println!("{}", outcome.summary());
        assert_eq!(outcome.failed, 0, "{:#?}", outcome.failures.iter().take(10).collect::<Vec<_>>());
        for (instance, count) in outcome.counts {
            *all.counts.entry(instance).or_default() += count;
        }
        all.ok += outcome.ok;
    }
    all
}

/// The folder of the built programs: that of this test.
fn programs() -> Option<PathBuf> {
    let bin = std::env::current_exe().ok()?.parent()?.parent()?.to_owned();
    let missing: Vec<_> = ["global-cp", "zone-cp", "dataplane", "zone-ingress", "echo-workload"]
        .into_iter()
        .filter(|p| !bin.join(p).is_file())
        .collect();
    if missing.is_empty() {
        return Some(bin);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{missing:?} are not built: `make build` makes them"
    );
    eprintln!("SKIPPED: {missing:?} are not built; `make build` makes them");
    None
}

fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("ENVOY_BIN").map(PathBuf::from).filter(|p| p.is_file());
    if path.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "ENVOY_BIN must name an Envoy: deploy/envoy/install.sh installs one"
        );
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy; deploy/envoy/install.sh installs one");
    }
    path.and_then(|p| Path::new(&p).canonicalize().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_to_stop_fails_no_call() {
    let (Some(bin), Some(envoy)) = (programs(), envoy()) else { return };
    // Short: Envoy's admin sockets lie in it.
    let dir = tempfile::Builder::new().prefix("ursa-stop-").tempdir_in("/tmp").unwrap();
    let world = World {
        fleet: Fleet::new(dir.path()).unwrap(),
        dir: dir.path().to_owned(),
        bin,
        envoy,
        net: u8::try_from(64 + std::process::id() % 128).unwrap(),
    };
    let result = scenario(&world).await;
    if result.is_err() || std::thread::panicking() {
        eprintln!("logs are kept in {}", dir.keep().join("logs").display());
    }
    result.unwrap();
}

async fn scenario(world: &World) -> anyhow::Result<()> {
    world.start().await?;

    println!("sidecars of the backend in the same zone, one after the other");
    let traffic = world.traffic(TO_EAST);
    for _round in 0..2 {
        for backend in EAST_BACKENDS {
            world.roll(backend).await?;
            world.answers(TO_EAST, backend.process).await?;
        }
    }
    let outcome = all_right(traffic).await;
    anyhow::ensure!(outcome.counts.len() == 2, "both answered: {:?}", outcome.counts);

    println!("ingresses of the other zone, one after the other");
    let traffic = world.traffic(TO_WEST);
    for ingress in INGRESSES {
        let ending = world.fleet.terminate(ingress.process, GRACE).await?;
        anyhow::ensure!(ending.clean, "{}: {} after {:?}", ending.name, ending.how, ending.took);
        println!("{} ended after {:?}", ingress.process, ending.took);
        world.addresses(1).await?;
        world.fleet.restart(ingress.process)?;
        world.fleet.wait_ready(ingress.process, START).await?;
        world.addresses(2).await?;
    }
    all_right(traffic).await;
    anyhow::ensure!(world.fleet.unasked_exits().is_empty(), "{:?}", world.fleet.unasked_exits());
    Ok(())
}
