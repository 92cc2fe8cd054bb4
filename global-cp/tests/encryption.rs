//! Secrets on the disk of a real node: every byte of every file is searched for them, in the forms they could have, before and after a new
//! data key; and what a node says that is given the wrong key, or files of another time.

mod nodes;

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use nodes::{Cluster, data, init, run, wait};
use serde_json::{Value, json};
use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_runtime::tasks::Tasks;
use ursa_state::{Changeset, Op, RequestId};
use ursa_store::{Store, StoreConfig, disk::RealDisk};

/// Values that nobody else writes, and all that could give them away.
#[derive(Default)]
struct Scanner {
    /// By their first bytes.
    needles: HashMap<[u8; 8], Vec<(Vec<u8>, String)>>,
    drawn: u128,
}

impl Scanner {
    /// A new value, from now on searched for.
    fn draw(&mut self) -> Vec<u8> {
        self.drawn += 1;
        let value: Vec<u8> = (0..3).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
        self.search(&value, &format!("value {}", self.drawn));
        value
    }

    fn search(&mut self, value: &[u8], name: &str) {
        let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![value.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        // Base64 of a text that holds it, beginning at any byte; without the digits that the rest of the text decides.
        for shift in 0..3 {
            let text = STANDARD.encode([&vec![0; shift][..], value].concat());
            forms.push(text.as_bytes()[[0, 2, 3][shift]..text.len() - 4].to_vec());
        }
        for form in forms {
            let begin = *form.first_chunk().unwrap();
            self.needles.entry(begin).or_default().push((form, name.to_owned()));
        }
    }

    /// What is found below `dir`: file, offset and name. Every file is read whole.
    fn scan(&self, dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for path in files(dir) {
            let bytes = std::fs::read(&path).unwrap();
            for (at, window) in bytes.windows(8).enumerate() {
                let Some(needles) = self.needles.get(window) else { continue };
                for (form, name) in needles.iter().filter(|(form, _)| bytes[at..].starts_with(form)) {
                    found.push(format!("{}:{at}: {name} as {} bytes", path.display(), form.len()));
                }
            }
        }
        found
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

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(path, to).unwrap();
    }
}

#[test]
fn the_scanner_finds_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut scanner = Scanner::default();
    let value = scanner.draw();
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    let around = |shift: usize| STANDARD.encode([&b"ab"[..shift], &value, b"tail"].concat()).into_bytes();
    let forms = [
        value.clone(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        around(0),
        around(1),
        around(2),
    ];
    for (nth, form) in forms.iter().enumerate() {
        assert_eq!(scanner.scan(dir.path()), Vec::<String>::new());
        let path = dir.path().join("a/deep/place");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, [&vec![7; 100_001 + nth][..], form, b"end"].concat()).unwrap();
        assert_eq!(scanner.scan(dir.path()).len(), 1, "form {nth}");
        let mut other = form.clone();
        other[20] ^= 1;
        std::fs::write(&path, other).unwrap();
    }
}

/// Changes the node's configuration.
fn configure(cluster: &Cluster, n: u8, encryption: &str) {
    let path = cluster.path(&format!("node{n}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.split("encryption:").next().unwrap();
    std::fs::write(path, format!("{begin}encryption: {encryption}\n")).unwrap();
}

async fn put(cluster: &Cluster, path: &str, kind: &str, value: &[u8]) {
    let name = path.rsplit('/').next().unwrap();
    let mut body = json!({ "type": kind, "name": name, "data": STANDARD.encode(value) });
    if kind == "Secret" {
        body["mesh"] = json!("default");
    }
    let answer = cluster.call(1, "PUT", path, Some(&body)).await;
    assert!(matches!(answer, Some((200 | 201, _))), "{path}: {answer:?}");
}

fn secret(n: usize) -> String {
    format!("/meshes/default/secrets/s{n}")
}

fn global_secret(n: usize) -> String {
    format!("/global-secrets/g{n}")
}

/// Secrets of both kinds: new ones, some written over, some deleted. The last is left as it is.
async fn fill(cluster: &Cluster, scanner: &mut Scanner) -> Vec<u8> {
    for n in 0..6 {
        put(cluster, &secret(n), "Secret", &scanner.draw()).await;
        put(cluster, &global_secret(n), "GlobalSecret", &scanner.draw()).await;
    }
    for n in 0..4 {
        put(cluster, &secret(n), "Secret", &scanner.draw()).await;
        put(cluster, &global_secret(n), "GlobalSecret", &scanner.draw()).await;
    }
    for path in [secret(0), secret(5), global_secret(0)] {
        let answer = cluster.call(1, "DELETE", &path, None).await;
        assert!(matches!(answer, Some((200, _))), "{answer:?}");
    }
    let last = scanner.draw();
    put(cluster, &secret(9), "Secret", &last).await;
    last
}

async fn reads(cluster: &Cluster, path: &str, value: &[u8]) {
    assert_eq!(cluster.get(1, path).await["data"], json!(STANDARD.encode(value)));
}

/// What the store itself does after some ten thousand changes: two snapshots, of different states.
async fn snapshots(dir: &Path) {
    let tasks = Tasks::new();
    let store = Store::open(StoreConfig::new(dir, 1), Arc::new(RealDisk), &tasks).await.unwrap();
    for n in 0..2_u64 {
        let key = ResourceKey::new(Kind::Mesh, "", &format!("none{n}")).unwrap();
        let id = RequestId(uuid::Uuid::new_v4().as_u128());
        store
            .propose(Changeset::each(id, Timestamp(n), vec![Op::delete(key)]))
            .await
            .unwrap();
        let applied = store.status().applied;
        store.snapshot().await.unwrap();
        wait("there is a snapshot", async || store.status().snapshot >= applied).await;
    }
    store.shutdown().await.unwrap();
}

fn encryption(cluster: &Cluster, args: &[&str]) -> String {
    let config = cluster.path("node1.yaml");
    let output = run(&[&["encryption"], args, &["--config", &config]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A start that must fail; what it says.
async fn refused(cluster: &mut Cluster) -> String {
    let before = cluster.log(1).len();
    cluster.start(1);
    assert_ne!(cluster.ended(1).await, 0);
    cluster.log(1)[before..].to_owned()
}

fn named(dir: &Path, part: &str) -> usize {
    files(dir)
        .iter()
        .filter(|path| path.strip_prefix(dir).unwrap().to_string_lossy().contains(part))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_readable_on_the_disk_and_a_rotation_leaves_no_old_key() {
    init();
    let mut cluster = Cluster::prepare(1, 0);
    let mut scanner = Scanner::default();
    let dir = cluster.dir.path().join("data1");
    cluster.start(1);
    cluster.ready(1).await;
    let kept = fill(&cluster, &mut scanner).await;
    reads(&cluster, &secret(9), &kept).await;
    let status = cluster.get(1, "/encryption").await;
    let old = status["key"].as_str().unwrap().to_owned();
    assert_eq!(cluster.status(1).await["encryption"], status, "the same for everyone");
    assert_eq!(scanner.scan(&dir), Vec::<String>::new(), "while it runs");
    assert_eq!(cluster.stop(1).await, 0);
    snapshots(&dir).await;
    assert!(
        named(&dir, ".snap") == 2 && named(&dir, "log/") > 1 && named(&dir, "cache/db/") > 1,
        "{:?}",
        files(&dir)
    );
    assert_eq!(scanner.scan(&dir), Vec::<String>::new(), "with snapshots and the cache");
    for private in ["encryption.key", "keys.json", "admin-user-token"] {
        let mode = std::fs::metadata(data(&cluster, 1, private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    let before = cluster.dir.path().join("before");
    copy(&dir, &before);

    cluster.start(1);
    cluster.ready(1).await;
    put(&cluster, &secret(1), "Secret", &scanner.draw()).await;
    assert!(encryption(&cluster, &["status"]).contains(&old));
    let rotated = encryption(&cluster, &["rotate"]);
    assert!(rotated.contains("there is no other") && !rotated.contains(&old), "{rotated}");
    reads(&cluster, &secret(9), &kept).await;
    // A loss of power, as far as a process can have one.
    cluster.kill(1);
    let mut ids = Scanner::default();
    let id: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&old[n * 2..n * 2 + 2], 16).unwrap()).collect();
    ids.search(&id, "the old key's id");
    assert!(ids.scan(&before).len() > 4, "the files of before name their key");
    assert_eq!([ids.scan(&dir), scanner.scan(&dir)].concat(), Vec::<String>::new());
    cluster.start(1);
    cluster.ready(1).await;
    reads(&cluster, &secret(9), &kept).await;
    assert_eq!(cluster.stop(1).await, 0);
    assert_eq!([ids.scan(&dir), scanner.scan(&dir)].concat(), Vec::<String>::new());

    // Files of before, with the keys of now.
    std::fs::copy(dir.join("keys.json"), before.join("keys.json")).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&before, &dir).unwrap();
    let said = refused(&mut cluster).await;
    assert!(said.contains("is not in keys.json") && said.contains(&old), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_in_the_clear_is_encrypted_and_the_key_can_be_kept_elsewhere() {
    init();
    let mut cluster = Cluster::prepare(1, 1);
    let mut scanner = Scanner::default();
    let dir = cluster.dir.path().join("data1");
    configure(&cluster, 1, "{ enabled: false }");
    cluster.start(1);
    cluster.ready(1).await;
    let kept = fill(&cluster, &mut scanner).await;
    assert_eq!(cluster.get(1, "/encryption").await["enabled"], json!(false));
    assert_eq!(cluster.stop(1).await, 0);
    let found = scanner.scan(&dir);
    assert!(
        found.iter().any(|at| at.contains("/log/")) && found.iter().any(|at| at.contains("/cache/")),
        "the same search, without encryption: {found:?}"
    );

    let file = |name: &str, n: u8| {
        let path = cluster.path(name);
        std::fs::write(&path, STANDARD.encode((0..32).map(|at| at ^ n).collect::<Vec<u8>>())).unwrap();
        path
    };
    let (first, second) = (file("first.key", 1), file("second.key", 2));
    configure(&cluster, 1, &format!("{{ key_file: {first} }}"));
    cluster.start(1);
    cluster.ready(1).await;
    wait("all of it is encrypted", async || {
        cluster.get(1, "/encryption").await["settled"] == Value::Bool(true)
    })
    .await;
    assert_eq!(scanner.scan(&dir), Vec::<String>::new(), "nothing of it is left");
    reads(&cluster, &secret(9), &kept).await;
    let key = cluster.get(1, "/encryption").await["key"].clone();
    assert_eq!(cluster.stop(1).await, 0);
    assert!(!dir.join("encryption.key").exists(), "the key is elsewhere");

    for (given, words) in [
        ("{ enabled: false }".to_owned(), "switch it on again"),
        (format!("{{ key_file: {second} }}"), "encryption.previous_key_files"),
        ("{ enabled: true }".to_owned(), "wrapped by it"),
        ("{ key_file: /nowhere/key }".to_owned(), "none is made in its place"),
    ] {
        configure(&cluster, 1, &given);
        let said = refused(&mut cluster).await;
        assert!(said.contains(words), "{given}: {said}");
    }
    configure(&cluster, 1, &format!("{{ key_file: {second}, previous_key_files: [{first}] }}"));
    cluster.start(1);
    cluster.ready(1).await;
    assert_eq!(cluster.stop(1).await, 0);
    configure(&cluster, 1, &format!("{{ key_file: {second} }}"));
    cluster.start(1);
    cluster.ready(1).await;
    reads(&cluster, &secret(9), &kept).await;
    assert_eq!(cluster.get(1, "/encryption").await["key"], key, "the data keys are the same");
    let (status, answer) = cluster.call(1, "GET", "/config", None).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(cluster.stop(1).await, 0);
    assert_eq!(scanner.scan(&dir), Vec::<String>::new());
}
