//! The store of a real zone control plane on its disk: the keys and tokens that it makes at its first start are readable nowhere, but for
//! the administrator's token, which is for people.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use ursa_model::Kind;
use ursa_runtime::{
    CancellationToken, heartbeat,
    lease::{Deadline, within},
    tasks::Tasks,
};
use ursa_store::{Store, StoreConfig, disk::RealDisk};

const SOON: Duration = Duration::from_secs(60);

/// Ended with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// Files that hold any of these, in the clear or as base64 that begins at any byte.
fn holding(dir: &Path, values: &[Vec<u8>]) -> Vec<String> {
    let mut forms: Vec<Vec<u8>> = values.to_vec();
    for value in values {
        for shift in 0..3 {
            let text = STANDARD.encode([&vec![0; shift][..], value].concat());
            forms.push(text.as_bytes()[[0, 2, 3][shift]..text.len() - 4].to_vec());
        }
    }
    let mut found = Vec::new();
    for path in files(dir) {
        let bytes = std::fs::read(&path).unwrap();
        // The common beginning of keys would make every byte a candidate: what is inside tells them apart.
        let held = forms.iter().filter(|form| {
            let inside = &form[form.len() / 2..form.len() / 2 + 8];
            let candidates = bytes.windows(8).enumerate().filter(|(_, window)| *window == inside);
            let mut begins = candidates.filter_map(|(at, _)| at.checked_sub(form.len() / 2));
            begins.any(|begin| bytes[begin..].starts_with(form))
        });
        let held = held.count();
        if held > 0 {
            found.push(format!("{} holds {held}", path.strip_prefix(dir).unwrap().display()));
        }
    }
    found
}

async fn is_ready(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream
            .write_all(b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    matches!(within(SOON, ask).await, Ok(Some(true)))
}

async fn wait(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let (deadline, never) = (Deadline::after(SOON), CancellationToken::new());
    let mut ticker = heartbeat::every(Duration::from_millis(20), &never);
    while !is().await {
        assert!(!deadline.has_passed(), "in vain: {what}");
        ticker.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_zone_are_readable_nowhere_on_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(TcpListener::bind(("127.0.0.1", 0)).await.unwrap());
    }
    let ports: Vec<u16> = ports.into_iter().map(|port| port.local_addr().unwrap().port()).collect();
    let listen = |nth: usize| json!({ "address": format!("127.0.0.1:{}", ports[nth]) });
    let config = json!({ "zone": "west", "data_dir": data, "api": listen(0), "dp_server": listen(1), "diagnostics": listen(2) });
    let file = dir.path().join("zone.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_zone-cp"))
        .args(["run", "--config", file.to_str().unwrap()])
        .env_clear()
        .stdin(Stdio::null())
        .spawn();
    let mut program = Program(child.unwrap());
    wait("it is ready", async || is_ready(ports[2]).await).await;
    let pid = program.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait("it ends", async || program.0.try_wait().unwrap().is_some()).await;

    let tasks = Tasks::new();
    let store = Store::open(StoreConfig::new(&data, 1), Arc::new(RealDisk), &tasks).await.unwrap();
    let values: Vec<Vec<u8>> = store
        .view()
        .iter()
        .filter(|resource| matches!(resource.key.kind(), Kind::Secret | Kind::GlobalSecret))
        .map(|resource| STANDARD.decode(resource.spec["data"].as_str().unwrap()).unwrap())
        .collect();
    assert!(values.len() >= 2, "it made keys: {}", values.len());
    let old = store.encryption().key.unwrap();
    store.rotate_key().await.unwrap();
    let mut status = store.watch_encryption();
    within(SOON, status.wait_for(|status| status.settled)).await.unwrap().unwrap();
    store.shutdown().await.unwrap();
    assert_eq!(holding(&data, &values), ["admin-user-token holds 1"]);
    assert_eq!(
        holding(&data, &[old.to_string().into_bytes(), old.0.to_vec()]),
        Vec::<String>::new()
    );
    // The search itself.
    std::fs::write(data.join("log/planted"), [b"..", &values[0][..]].concat()).unwrap();
    assert!(holding(&data, &values).iter().any(|file| file.starts_with("log/planted")));
}
