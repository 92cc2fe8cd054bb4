//! The main job of Ursa, on loopback, for real: policy from a global control plane to Envoys in two zones.
//!
//! In: built programs, an Envoy, the resource files of `deploy/demo`. Out: a narration with times; with `check` a report and a verdict.
//! Invariant: whatever happens, nothing of it runs on when this ends.
//! Source: issue text; `deploy/demo/README.md` for the resources. Further scenarios extend [`Demo`] by steps of their own.
pub mod after;
pub mod programs;
pub mod stay;
pub mod steps;
pub mod topology;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Answer, Api, Target, Trust};
use crate::echo::Said;
use crate::envoy_admin::EnvoyAdmin;
use crate::harness::logs::Allowed;
use crate::harness::{Fleet, ports};
use crate::report::Report;
use crate::traffic::Shot;
use crate::traffic::load::Judge;
use programs::{Places, path_of};
use topology::{Proxy, Topology, Zone, port};

/// For whatever takes tens of milliseconds when all is well. On a machine with two busy cores it may take seconds; what an issue bounds
/// is measured and has a limit of its own.
pub const SOON: Duration = Duration::from_secs(60);
/// For the start of a process.
pub const START: Duration = Duration::from_secs(120);

/// What the demo, or a scenario that builds on it, is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the report and the run's data go.
    pub out: PathBuf,
    /// Folder of the resource files.
    pub resources: PathBuf,
    /// Folder of the built programs.
    pub bin: PathBuf,
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// Check and end, instead of staying up.
    pub check: bool,
    /// Nodes of the global control plane: 1 or 3.
    pub nodes: u8,
    /// Changes of step 4.
    pub changes: u32,
    /// Leaders killed in step 5.
    pub kills: u32,
}

/// A running demo.
#[derive(Debug)]
pub struct Demo {
    /// Who runs where.
    pub topology: Topology,
    /// Where files are.
    pub places: Places,
    /// The processes.
    pub fleet: Fleet,
    /// What happened so far.
    pub report: Report,
    /// Changes of step 4.
    pub changes: u32,
    /// Leaders killed in step 5.
    pub kills: u32,
    /// WARN and ERROR lines that what was done brings about.
    pub allowed: Vec<Allowed>,
    /// Panics that what was done brings about in code of others.
    pub known_crashes: Vec<Allowed>,
    /// Counts the PUTs, which go to the nodes by turns.
    turn: usize,
}

/// Runs the demo to its end. Returns whether every check passed.
///
/// # Errors
/// If it cannot even begin (an address is taken, a program is missing), or the report cannot be written.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    let demo = Demo::prepare("demo", Topology::with_globals(options.nodes), &options)?;
    conduct(demo, &options, Demo::steps).await
}

/// Does what `act` does with a prepared demo, judges it, stays up if asked to, and ends everything. Returns whether every check passed.
///
/// # Errors
/// If the report cannot be written.
pub async fn conduct(mut demo: Demo, options: &Options, act: impl AsyncFnOnce(&mut Demo) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    let fleet = demo.fleet.clone();
    let mut stop = Stop::listen()?;

    let ran = tokio::select! {
        ran = act(&mut demo) => ran,
        ended = fleet.unasked_exit() => Err(anyhow::anyhow!(ended)),
        name = stop.asked() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    let complete = ran.is_ok();
    if let Err(error) = ran {
        demo.report.check("all steps ran to their end", false, format!("{error:#}"));
    }
    // The verdict is taken here: what whoever tries things does to it afterwards is theirs.
    let judged = after::judge(&mut demo, complete).await;
    let stays = complete && !options.check;
    if stays {
        stay::tell(&mut demo).await;
        stay::until_stopped(&demo, stop.asked()).await;
    }
    after::end(&mut demo, judged, stays).await;
    drop(fleet);

    let (_, failed) = demo.report.finish();
    let path = options.out.join("report.json");
    demo.report
        .write_json(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    for failure in demo.report.failures() {
        println!("failed: {failure}");
    }
    println!("report: {}    logs: {}", path.display(), demo.fleet.dir().join("logs").display());
    demo.report.write_summary(&options.out.join("summary.txt"))?;
    Ok(failed == 0)
}

impl Demo {
    /// Checks that everything is there and nothing is in the way, and makes the run's folder.
    ///
    /// # Errors
    /// A missing program, an address in use, a folder that is not ours.
    pub fn prepare(title: &str, topology: Topology, options: &Options) -> anyhow::Result<Self> {
        for program in ["global-cp", "zone-cp", "dataplane", "zone-ingress", "echo-workload"] {
            let path = options.bin.join(program);
            anyhow::ensure!(path.is_file(), "{} is missing: `make build` makes it", path.display());
        }
        anyhow::ensure!(
            options.envoy.is_file(),
            "there is no Envoy at {}: `make envoy` installs one",
            options.envoy.display()
        );
        let addresses = topology.addresses();
        ports::require_free(addresses.iter().map(|(address, user)| (*address, user.as_str())))?;
        let data = data_folder(&options.out)?;
        programs::fresh_folder(&data)?;
        let absolute = |path: &Path| path.canonicalize().with_context(|| format!("cannot use {}", path.display()));
        let places = Places {
            bin: absolute(&options.bin)?,
            envoy: absolute(&options.envoy)?,
            resources: absolute(&options.resources)?,
            data: absolute(&data)?,
            shim: None,
        };
        let fleet = Fleet::new(&places.data)?;
        let mut report = Report::new(title);
        report.about("cores", std::thread::available_parallelism().map_or(0, usize::from));
        report.about("debug_assertions", cfg!(debug_assertions));
        report.about("nodes", topology.globals.len());
        report.about("changes", options.changes);
        report.about("kills", options.kills);
        Ok(Self {
            topology,
            places,
            fleet,
            report,
            changes: options.changes,
            kills: options.kills,
            allowed: Vec::new(),
            known_crashes: Vec::new(),
            turn: 0,
        })
    }

    /// All steps, in order.
    async fn steps(&mut self) -> anyhow::Result<()> {
        steps::bring_up::run(self).await.context("step 1")?;
        steps::identity::run(self).await.context("step 2")?;
        steps::canary::run(self).await.context("step 3")?;
        steps::propagation::run(self).await.context("step 4")?;
        steps::survive::run(self).await
    }

    /// A client of a control plane's API, with its CA and its admin token.
    ///
    /// # Errors
    /// If the control plane has not made them yet.
    pub fn api(&self, control_plane: &str, ip: std::net::Ipv4Addr) -> anyhow::Result<Api> {
        let trust = Trust::from_ca_file(&self.places.ca_file(control_plane))?;
        let token = self.places.admin_token_file(control_plane);
        Api::new(Target::Tls((ip, port::API).into(), trust))
            .with_token_file(&token)
            .with_context(|| format!("cannot read {}", token.display()))
    }

    /// A client of the global control plane.
    ///
    /// # Errors
    /// As [`Demo::api`].
    pub fn global(&self) -> anyhow::Result<Api> {
        let global = self.topology.globals.first().context("no global control plane")?;
        self.api(&global.name(), global.ip)
    }

    /// A client of each node of the global control plane, in the order of the topology.
    ///
    /// # Errors
    /// As [`Demo::api`].
    pub fn nodes(&self) -> anyhow::Result<Vec<Api>> {
        self.topology.globals.iter().map(|g| self.api(&g.name(), g.ip)).collect()
    }

    /// A client of a zone's control plane.
    ///
    /// # Errors
    /// As [`Demo::api`].
    pub fn zone(&self, zone: &Zone) -> anyhow::Result<Api> {
        self.api(&zone.control_plane(), zone.ip)
    }

    /// A client of a diagnostics port.
    #[must_use]
    pub fn diagnostics(&self, ip: std::net::Ipv4Addr) -> Api {
        Api::new(Target::Tcp((ip, port::DIAGNOSTICS).into()))
    }

    /// The Envoy of a proxy.
    #[must_use]
    pub fn envoy(&self, proxy: &Proxy) -> EnvoyAdmin {
        EnvoyAdmin::in_work_dir(&proxy.work_dir(&self.places.data))
    }

    /// Sends a resource file to the next node of the global control plane. Returns the revision at which it is committed and how long that took.
    ///
    /// # Errors
    /// If it is refused, or the answer has no revision.
    pub async fn apply(&mut self, file: &str) -> anyhow::Result<(u64, Duration)> {
        let resource = self.places.resource(file)?;
        let nodes = self.nodes()?;
        let node = nodes.get(self.turn % nodes.len().max(1)).context("no global control plane")?;
        self.turn += 1;
        let answer = node
            .put(&path_of(&resource)?, &resource)
            .await?
            .success()
            .with_context(|| format!("PUT of {file}"))?;
        let revision = answer
            .revision()
            .with_context(|| format!("the answer to the PUT of {file} has no revision"))?;
        self.report.did(
            &format!("PUT {} {} (revision {revision})", text(&resource["type"]), text(&resource["name"])),
            answer.took(),
        );
        Ok((revision, answer.took()))
    }

    /// The call that the demo is about: the frontend's request to the backend, through its sidecar's outbound listener.
    #[must_use]
    pub fn call(&self) -> Shot {
        Shot::get(Target::Tcp(self.topology.proxy("frontend-east").at(port::OUTBOUND)))
    }
}

/// A right answer is 200 from a workload; it counts for the zone that answered.
#[must_use]
pub fn answered() -> Judge {
    Arc::new(|answer| said(answer).map(|said| said.zone))
}

/// What the workload said, or what came instead.
///
/// # Errors
/// Status and start of the body, if it is no 200 or not from the workload.
pub fn said(answer: &Answer) -> Result<Said, String> {
    if answer.status != http::StatusCode::OK {
        return Err(describe(answer));
    }
    answer.json().map_err(|error| error.to_string())
}

/// Status and start of the body, in one line.
#[must_use]
pub fn describe(answer: &Answer) -> String {
    format!("{} {:?}", answer.status, answer.text().chars().take(120).collect::<String>())
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The longest path of a unix socket is 107 bytes; the longest name below the data folder takes about fifty.
const LONGEST_DATA_PATH: usize = 55;

/// `<out>/data`, or a folder in /tmp if that path is too long for Envoy's admin socket.
fn data_folder(out: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let data = out.canonicalize()?.join("data");
    if data.as_os_str().len() <= LONGEST_DATA_PATH {
        return Ok(data);
    }
    let user = std::env::var_os("USER")
        .unwrap_or_default()
        .to_string_lossy()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "");
    Ok(std::env::temp_dir().join(format!("ursa-demo-{user}")))
}

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _got = self.interrupt.recv() => "Ctrl-C",
            _got = self.terminate.recv() => "SIGTERM",
        }
    }
}
