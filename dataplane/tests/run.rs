//! The program `dataplane` as a process, with a control plane over real TLS; the last tests with a real Envoy (ENVOY_BIN).
use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use ursa_proxy::admin::{Admin, AdminAddress};
use ursa_proxy::testing::{App, FakeControlPlane, Program, Reply, envoy_or_skip, free_address, get, static_bootstrap, until};
use ursa_runtime::Tasks;

const BINARY: &str = env!("CARGO_BIN_EXE_dataplane");
const DATAPLANE: &str = "{type: Dataplane, mesh: default, name: {{ name }}, networking: {address: 127.0.0.1}}";

/// A temporary folder with everything that one proxy needs.
struct Site {
    dir: TempDir,
    tasks: Tasks,
    ready: SocketAddr,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "ey.J.w\n").unwrap();
        Self {
            dir,
            tasks: Tasks::new(),
            ready: free_address().await,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("w/kuma-envoy-admin.sock")
    }

    async fn control_plane(&self, reply: Reply) -> FakeControlPlane {
        FakeControlPlane::start(&self.tasks, &self.dir.path().join("tls"), [reply]).await
    }

    /// Flags as a unit file of kuma-dp has them, and some environment.
    fn run(&self, cp: &FakeControlPlane, envoy: &Path) -> Program {
        let ca = cp.ca_file.to_string_lossy();
        let arguments = [
            "run".to_owned(),
            format!("--ca-cert-file={ca}"),
            format!("--dataplane-token-file={}", self.path("token")),
            format!("--dataplane={DATAPLANE}"),
            "--dataplane-var=name=web-1".to_owned(),
            format!("--work-dir={}", self.path("w")),
            format!("--readiness-port={}", self.ready.port()),
            "--drain-quiet=200ms".to_owned(),
            "--concurrency=1".to_owned(),
        ];
        let environment = [
            ("KUMA_CONTROL_PLANE_URL", cp.url.as_str()),
            ("KUMA_DATAPLANE_DRAIN_TIME", "15s"),
            ("KUMA_NO_SUCH_THING", "1"),
            ("KUMA_DNS_ENABLED", "true"),
            ("ENVOY_BIN", envoy.to_str().unwrap()),
            ("HOST_IP", "10.0.0.7"),
        ];
        Program::start(BINARY, self.dir.path(), &arguments, &environment)
    }

    /// A script that answers only `--version`.
    fn fake_envoy(&self) -> std::path::PathBuf {
        let version = "echo 'envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL'";
        ursa_proxy::testing::script(self.dir.path(), "fake-envoy", version)
    }

    async fn is_ready(&self) -> bool {
        get(self.ready, "/ready")
            .await
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

fn signal(program: &Program, signal: Signal) {
    kill(Pid::from_raw(program.pid()), signal).unwrap();
}

#[tokio::test]
async fn wrong_use_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(BINARY, dir.path(), &["run".into()], &[]);
    assert_eq!(program.ended().await.code(), Some(1));
    assert!(
        program.output().starts_with("error: invalid configuration: who is this proxy?"),
        "{}",
        program.output()
    );
    let mut version = Program::start(BINARY, dir.path(), &["version".into()], &[]);
    assert!(version.ended().await.success());
    assert_eq!(version.output(), format!("dataplane {}\n", ursa_proxy::VERSION));
}

#[tokio::test]
async fn a_refusal_of_the_control_plane_ends_the_program_with_its_words() {
    let site = Site::new().await;
    let cp = site.control_plane(Reply::new(422, "mesh: mesh \"default\" does not exist")).await;
    let mut program = site.run(&cp, &site.fake_envoy());
    assert_eq!(program.ended().await.code(), Some(1));
    let output = program.output();
    assert!(
        output.contains("mesh \\\"default\\\" does not exist") || output.contains("mesh \"default\" does not exist"),
        "{output}"
    );
    assert!(
        output.contains("KUMA_NO_SUCH_THING") && output.contains("no DNS server"),
        "{output}"
    );
    assert!(!output.contains("ey.J.w"), "the token is nowhere in: {output}");

    let (headers, body) = cp.requests().remove(0);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(body["dataplaneToken"], "ey.J.w");
    assert_eq!((&body["mesh"], &body["name"]), (&"default".into(), &"web-1".into()));
    assert_eq!(body["workdir"], site.path("w"));
    assert_eq!(body["caCert"], cp.ca_pem);
    assert_eq!(body["version"]["envoy"]["build"], "abc/1.40.0/Clean/RELEASE/BoringSSL");
    assert_eq!(body["version"]["envoy"]["kumaDpCompatible"], true);
    assert_eq!(body["readinessPort"], site.ready.port());
    assert_eq!(body["dynamicMetadata"]["HOST_IP"], "10.0.0.7");
    assert!(body["dataplaneResource"].as_str().unwrap().contains("\"web-1\""));
    assert!(body.get("dnsPort").is_none(), "there is no DNS server");
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_zero() {
    let Some(envoy) = envoy_or_skip("sigterm_drains_and_ends_with_zero") else {
        return;
    };
    let site = Site::new().await;
    let (app, listen) = (App::start(&site.tasks).await, free_address().await);
    let cp = site
        .control_plane(Reply::bootstrap(&static_bootstrap(&site.socket(), listen, app.address)))
        .await;
    let mut program = site.run(&cp, &envoy);
    until("ready", async || site.is_ready().await).await;
    until("the program knows", async || program.output().contains("Envoy is ready")).await;
    let slow = tokio::spawn(get(listen, "/slow"));
    app.slow_request_arrived().await;
    signal(&program, Signal::SIGTERM);
    until("TERMINATING", async || {
        get(site.ready, "/ready").await.is_ok_and(|answer| answer.ends_with("TERMINATING"))
    })
    .await;
    app.release();
    assert!(slow.await.unwrap().unwrap().ends_with("whole"));
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.output());
    let output = program.output();
    for step in [
        "received the bootstrap",
        "Envoy started",
        "Envoy is ready",
        "draining",
        "drained: nobody is connected",
        "Envoy stopped",
    ] {
        assert!(output.contains(step), "{step:?} is missing in:\n{output}");
    }
    assert!(!output.contains(" ERROR "), "{output}");
}

#[tokio::test]
async fn a_second_signal_ends_everything_at_once() {
    let Some(envoy) = envoy_or_skip("a_second_signal_ends_everything_at_once") else {
        return;
    };
    let site = Site::new().await;
    let (app, listen) = (App::start(&site.tasks).await, free_address().await);
    let cp = site
        .control_plane(Reply::bootstrap(&static_bootstrap(&site.socket(), listen, app.address)))
        .await;
    let mut program = site.run(&cp, &envoy);
    until("ready", async || site.is_ready().await).await;
    let _slow = tokio::spawn(get(listen, "/slow"));
    app.slow_request_arrived().await;
    signal(&program, Signal::SIGINT);
    until("TERMINATING", async || {
        get(site.ready, "/ready").await.is_ok_and(|answer| answer.ends_with("TERMINATING"))
    })
    .await;
    signal(&program, Signal::SIGINT);
    assert_eq!(program.ended().await.code(), Some(2), "{}", program.output());
    assert!(get(listen, "/").await.is_err(), "Envoy is gone too");
}

#[tokio::test]
async fn envoy_does_not_outlive_a_killed_program() {
    let Some(envoy) = envoy_or_skip("envoy_does_not_outlive_a_killed_program") else {
        return;
    };
    let site = Site::new().await;
    let listen = free_address().await;
    let cp = site
        .control_plane(Reply::bootstrap(&static_bootstrap(&site.socket(), listen, listen)))
        .await;
    let mut program = site.run(&cp, &envoy);
    until("ready", async || site.is_ready().await).await;
    let admin = Admin::new(AdminAddress::Unix(site.socket()));
    assert!(admin.ready().await.unwrap().live);
    signal(&program, Signal::SIGKILL);
    assert!(!program.ended().await.success());
    until("Envoy's end", async || admin.ready().await.is_err()).await;
    assert!(get(listen, "/").await.is_err());
}

#[tokio::test]
async fn a_bootstrap_that_envoy_refuses_ends_the_program_with_its_reason() {
    let Some(envoy) = envoy_or_skip("a_bootstrap_that_envoy_refuses_ends_the_program_with_its_reason") else {
        return;
    };
    let site = Site::new().await;
    let yaml = format!(
        "admin: {{address: {{pipe: {{path: {}}}}}}}\nno_such_field: 1\n",
        site.socket().display()
    );
    let cp = site.control_plane(Reply::bootstrap(&yaml)).await;
    let mut program = site.run(&cp, &envoy);
    assert_eq!(program.ended().await.code(), Some(1));
    let output = program.output();
    assert!(
        output.contains("Envoy ended by itself (exit code 1)") && output.contains("no_such_field"),
        "{output}"
    );
}

#[tokio::test]
async fn two_programs_do_not_share_a_folder() {
    let Some(envoy) = envoy_or_skip("two_programs_do_not_share_a_folder") else {
        return;
    };
    let site = Site::new().await;
    let listen = free_address().await;
    let cp = site
        .control_plane(Reply::bootstrap(&static_bootstrap(&site.socket(), listen, listen)))
        .await;
    let first = site.run(&cp, &envoy);
    until("ready", async || site.is_ready().await).await;
    let second_dir = tempfile::tempdir().unwrap();
    let arguments = [
        "run".into(),
        "--name=a".into(),
        "--mesh=default".into(),
        format!("--work-dir={}", site.path("w")),
        format!("--cp-address={}", cp.url),
        format!("--ca-cert-file={}", cp.ca_file.display()),
    ];
    let mut second = Program::start(BINARY, second_dir.path(), &arguments, &[]);
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(
        second.output().contains(&format!("is in use by process {}", first.pid())),
        "{}",
        second.output()
    );
    assert!(site.is_ready().await);
}
