//! The program `zone-ingress` as a process, with a control plane over real TLS; the last test with a real Envoy (ENVOY_BIN).
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ursa_proxy::testing::{FakeControlPlane, Program, Reply, envoy_or_skip, free_address, get, static_bootstrap, until};
use ursa_runtime::Tasks;

const BINARY: &str = env!("CARGO_BIN_EXE_zone-ingress");

#[tokio::test]
async fn wrong_use_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(BINARY, dir.path(), &["run".into()], &[]);
    assert_eq!(program.ended().await.code(), Some(1));
    assert!(program.output().contains("--address is needed"), "{}", program.output());
}

#[tokio::test]
async fn it_runs_and_tells_its_address() {
    let Some(envoy) = envoy_or_skip("it_runs_and_tells_its_address") else {
        return;
    };
    let (dir, tasks, ready, listen) = (
        tempfile::tempdir().unwrap(),
        Tasks::new(),
        free_address().await,
        free_address().await,
    );
    let work_dir = dir.path().join("w");
    let socket = work_dir.join("kuma-envoy-admin.sock");
    let reply = Reply::bootstrap(&static_bootstrap(&socket, listen, listen));
    let cp = FakeControlPlane::start(&tasks, &dir.path().join("tls"), [reply]).await;
    let config = dir.path().join("config.yaml");
    let text = format!(
        "address: 127.0.1.2\negress_port: 10002\nproxy:\n  control_plane: {{addresses: [\"{}\"], ca_cert_file: {}}}\n  drain: {{quiet: 50ms}}\n",
        cp.url,
        cp.ca_file.display()
    );
    std::fs::write(&config, text).unwrap();
    let arguments = [
        "run".into(),
        format!("--config={}", config.display()),
        "--advertised-address=lb.east.example".into(),
        "--advertised-port=443".into(),
        format!("--work-dir={}", work_dir.display()),
        format!("--readiness-port={}", ready.port()),
        format!("--envoy={}", envoy.display()),
    ];
    let mut program = Program::start(BINARY, dir.path(), &arguments, &[("URSA_PROXY__ENVOY__CONCURRENCY", "1")]);
    until("ready", async || {
        get(ready, "/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    let (_, body) = cp.requests().remove(0);
    assert_eq!(body["dynamicMetadata"]["ursa.io/advertised-address"], "lb.east.example");
    assert_eq!(body["dynamicMetadata"]["ursa.io/advertised-port"], "443");
    assert_eq!(
        (&body["mesh"], &body["name"], &body["proxyType"]),
        (&"default".into(), &"zone-ingress".into(), &"dataplane".into())
    );
    let resource: Value = serde_json::from_str(body["dataplaneResource"].as_str().unwrap()).unwrap();
    assert_eq!(resource["networking"]["listeners"][1]["type"], "ZoneEgress");
    kill(Pid::from_raw(program.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.output());
    assert!(program.output().contains("drained: nobody is connected"), "{}", program.output());
}
