//! The supervisor with a real Envoy. Needs ENVOY_BIN.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use ursa_proxy::bootstrap::{Client, Retry};
use ursa_proxy::envoy::KillSwitch;
use ursa_proxy::metrics::Metrics;
use ursa_proxy::readiness::{self, Phase};
use ursa_proxy::supervisor::Error;
use ursa_proxy::testing::{App, FakeControlPlane, PATIENCE, Reply, envoy_or_skip, free_address, get, static_bootstrap, until};
use ursa_proxy::{Admin, ProxyConfig, ProxySpec, Supervisor};
use ursa_runtime::config::Secret;
use ursa_runtime::error::Chain;
use ursa_runtime::{CancellationToken, OnExit, Readiness, Tasks, serve};

const TOKEN: &str = "ey.top.secret";

struct Proxy {
    tasks: Tasks,
    cp: FakeControlPlane,
    dir: TempDir,
    phases: watch::Receiver<Phase>,
    readiness: Readiness,
    metrics: Metrics,
    switch: KillSwitch,
    ready: SocketAddr,
}

impl Proxy {
    /// Readiness is served, nothing runs.
    async fn new(envoy: PathBuf, bootstrap: impl FnOnce(&std::path::Path) -> String, drain: Duration) -> (Self, Supervisor) {
        let (tasks, dir) = (Tasks::new(), tempfile::tempdir().unwrap());
        let work_dir = dir.path().join("w");
        ursa_runtime::fs::create_dir(&work_dir, 0o700).unwrap();
        let yaml = bootstrap(&work_dir);
        let cp = FakeControlPlane::start(&tasks, &dir.path().join("tls"), [Reply::bootstrap(&yaml)]).await;
        let (phase, phases) = watch::channel(Phase::Starting);
        let (readiness, metrics, switch) = (Readiness::new(), Metrics::default(), KillSwitch::default());

        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let ready = listener.local_addr().unwrap();
        let (router, owner) = (readiness::router(phases.clone()), tasks.clone());
        tasks.spawn("readiness", OnExit::Ignore, |cancel| {
            serve::http(listener, router, serve::Limits::default(), owner, cancel)
        });

        let mut config = ProxyConfig::default();
        config.drain.time = drain;
        config.drain.quiet = Duration::from_millis(300);
        config.envoy.concurrency = Some(1);
        let retry = Retry {
            backoff: Duration::from_millis(50),
            max_duration: Duration::from_secs(10),
        };
        let client = Client::new(vec![cp.url.parse().unwrap()], cp.ca_pem.as_bytes(), retry, Counter::default()).unwrap();
        let supervisor = Supervisor {
            config,
            spec: ProxySpec::new("default", "test"),
            client,
            envoy,
            work_dir,
            given_ca: None,
            token: Some(Secret::new(TOKEN.to_owned())),
            tasks: tasks.clone(),
            switch: switch.clone(),
            guarded: false,
            phase,
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        (
            Self {
                tasks,
                cp,
                dir,
                phases,
                readiness,
                metrics,
                switch,
                ready,
            },
            supervisor,
        )
    }

    async fn readiness(&self) -> String {
        get(self.ready, "/ready").await.unwrap()
    }

    async fn wait_ready(&self) {
        until("readiness 200", async || self.readiness().await.starts_with("HTTP/1.1 200")).await;
    }

    fn admin(&self) -> Admin {
        match &*self.phases.borrow() {
            Phase::Running(admin) => admin.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_running_request_is_not_cut_by_the_drain() {
    let Some(envoy) = envoy_or_skip("a_running_request_is_not_cut_by_the_drain") else {
        return;
    };
    let workload = Tasks::new();
    let (app, listen) = (App::start(&workload).await, free_address().await);
    let upstream = app.address;
    let limit = Duration::from_secs(30);
    let (proxy, supervisor) = Proxy::new(
        envoy,
        |dir| static_bootstrap(&dir.join("kuma-envoy-admin.sock"), listen, upstream),
        limit,
    )
    .await;
    assert!(proxy.readiness().await.contains("503") && proxy.readiness().await.ends_with("NOT_READY: starting"));

    let cancel = CancellationToken::new();
    let running = tokio::spawn(supervisor.run(cancel.clone()));
    proxy.wait_ready().await;
    until("the readiness guard", async || proxy.readiness.is_ready()).await;
    assert_eq!(proxy.metrics.envoy_live.get(), 1);
    let admin = proxy.admin();
    let bootstrap = proxy.dir.path().join("w/bootstrap.yaml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(bootstrap).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(get(listen, "/").await.unwrap().ends_with("whole"));
    let before = admin.connections().await.unwrap();
    assert!(before.total >= 1, "{before:?}");
    assert!(admin.config_dump().await.unwrap().starts_with(b"{"));
    let stats = admin.stats("server.live").await.unwrap();
    assert_eq!(String::from_utf8_lossy(&stats).trim(), "server.live: 1");

    // A request is on its way while the proxy is asked to stop.
    let slow = tokio::spawn(get(listen, "/slow"));
    app.slow_request_arrived().await;
    let asked = Instant::now();
    cancel.cancel();
    until("TERMINATING", async || proxy.readiness().await.ends_with("TERMINATING")).await;
    until("Envoy drains", async || {
        admin.ready().await.is_ok_and(|state| state.text == "DRAINING")
    })
    .await;
    assert_eq!(admin.connections().await.unwrap().active, 1);
    // Whoever has not heard of it yet is still served, and told to go.
    let late = get(listen, "/").await.unwrap();
    assert!(late.contains("connection: close") && late.ends_with("whole"), "{late}");
    assert!(!running.is_finished(), "a request is on its way");
    app.release();
    let answer = slow.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("whole"), "{answer}");
    tokio::time::timeout(limit, running).await.unwrap().unwrap().unwrap();
    assert!(
        asked.elapsed() < limit,
        "it ended when nobody was connected, not when the time was over"
    );
    assert!(admin.ready().await.is_err(), "Envoy is gone");
    assert_eq!((proxy.metrics.envoy_live.get(), proxy.metrics.drain_connections_cut.get()), (0, 0));
    proxy.tasks.shutdown(Duration::from_secs(5)).await;
    assert_eq!(proxy.tasks.running(), Vec::<String>::new());
}

#[tokio::test]
async fn the_drain_time_bounds_the_drain() {
    let Some(envoy) = envoy_or_skip("the_drain_time_bounds_the_drain") else {
        return;
    };
    let workload = Tasks::new();
    let (app, listen) = (App::start(&workload).await, free_address().await);
    let upstream = app.address;
    let limit = Duration::from_millis(700);
    let (proxy, supervisor) = Proxy::new(envoy, |dir| static_bootstrap(&dir.join("a.sock"), listen, upstream), limit).await;
    let cancel = CancellationToken::new();
    let running = tokio::spawn(supervisor.run(cancel.clone()));
    proxy.wait_ready().await;
    let endless = tokio::spawn(get(listen, "/slow"));
    app.slow_request_arrived().await;
    let asked = Instant::now();
    cancel.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    assert!(asked.elapsed() >= limit);
    assert_eq!(proxy.metrics.drain_connections_cut.get(), 1);
    let cut = endless.await.unwrap();
    assert!(!cut.as_ref().is_ok_and(|answer| answer.contains("200")), "{cut:?}");
}

/// Whoever is connected has half of the drain time, however long the control plane is silent.
#[tokio::test]
async fn a_control_plane_that_does_not_answer_leaves_time_for_those_who_are_connected() {
    let Some(envoy) = envoy_or_skip("a_control_plane_that_does_not_answer_leaves_time_for_those_who_are_connected") else {
        return;
    };
    let workload = Tasks::new();
    let (app, listen) = (App::start(&workload).await, free_address().await);
    let upstream = app.address;
    let limit = Duration::from_secs(16);
    let (proxy, mut supervisor) = Proxy::new(envoy, |dir| static_bootstrap(&dir.join("a.sock"), listen, upstream), limit).await;
    supervisor.config.drain.withdraw = limit * 2;
    proxy.cp.leave_drains_unanswered();
    let cancel = CancellationToken::new();
    let running = tokio::spawn(supervisor.run(cancel.clone()));
    proxy.wait_ready().await;
    let admin = proxy.admin();
    let slow = tokio::spawn(get(listen, "/slow"));
    app.slow_request_arrived().await;
    cancel.cancel();
    until("Envoy drains", async || {
        admin.ready().await.is_ok_and(|state| state.text == "DRAINING")
    })
    .await;
    app.release();
    let answer = slow.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    assert_eq!(proxy.metrics.drain_connections_cut.get(), 0);
    proxy.tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_envoy_that_refuses_its_bootstrap_is_quoted() {
    let Some(envoy) = envoy_or_skip("an_envoy_that_refuses_its_bootstrap_is_quoted") else {
        return;
    };
    let bootstrap = |dir: &std::path::Path| {
        let socket = dir.join("a.sock");
        format!(
            "admin: {{address: {{pipe: {{path: {}}}}}}}\nno_such_field: {TOKEN}\n",
            socket.display()
        )
    };
    let (proxy, supervisor) = Proxy::new(envoy, bootstrap, Duration::from_secs(1)).await;
    let result = tokio::time::timeout(PATIENCE, supervisor.run(CancellationToken::new()))
        .await
        .unwrap();
    let error = result.unwrap_err();
    let text = Chain(&error).to_string();
    assert!(matches!(error, Error::Died { was_live: false, .. }), "{text}");
    assert!(text.contains("exit code 1") && text.contains("no_such_field"), "{text}");
    assert!(!text.contains(TOKEN), "{text}");
    assert!(proxy.readiness().await.contains("503"));
}

#[tokio::test]
async fn an_envoy_that_is_killed_ends_the_proxy() {
    let Some(envoy) = envoy_or_skip("an_envoy_that_is_killed_ends_the_proxy") else {
        return;
    };
    let workload = Tasks::new();
    let (app, listen) = (App::start(&workload).await, free_address().await);
    let upstream = app.address;
    let (proxy, supervisor) = Proxy::new(
        envoy,
        |dir| static_bootstrap(&dir.join("a.sock"), listen, upstream),
        Duration::from_secs(1),
    )
    .await;
    let running = tokio::spawn(supervisor.run(CancellationToken::new()));
    proxy.wait_ready().await;
    until("live", async || proxy.metrics.envoy_live.get() == 1).await;
    proxy.switch.kill();
    let error = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Died { was_live: true, .. }), "{error}");
    assert!(error.to_string().contains("signal SIGKILL"), "{error}");
}
