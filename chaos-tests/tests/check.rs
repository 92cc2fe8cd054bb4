//! `chaos check` against a real global of three nodes: as it is, while its leader dies, and through a node that lies.
//!
//! In: the built `global-cp` beside the test's own programs (`make build` makes it). Out: the verdicts of the check.
//! Invariant: what passes has left nothing behind; each lie is caught, and by the judge whose business it is.
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use ursa_chaos_tests::bench::cluster::{Cluster, Places, System};
use ursa_chaos_tests::check::{self, Options};
use ursa_chaos_tests::client::{Api, REQUEST_ID_HEADER, REVISION_HEADER, Target, Trust};
use ursa_chaos_tests::harness::{POLL, Poll, wait_through, wait_until};
use ursa_chaos_tests::oracles::{self, replicas};

const SOON: Duration = Duration::from_secs(60);
const API: u16 = 5682;
/// Long enough for every judge to see something; the lies come all the time.
const SHORT: Duration = Duration::from_secs(4);

/// Three nodes.
struct Installation {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Installation {
    /// `tag` tells those of one process apart.
    async fn start(tag: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_chaos")).parent().unwrap();
        let places = Places {
            global_cp: programs.join("global-cp"),
            etcd: None,
            strace: None,
            data: dir.path().to_owned(),
            // Those below are the demo's and the benchmark's, those above other tests'.
            network: 41 + tag + 3 * u8::try_from(std::process::id() % 7).unwrap(),
        };
        let cluster = Cluster::start(System::Ursa, &places, "nodes", false).await.unwrap();
        Self { cluster, dir }
    }

    fn api(&self, node: usize) -> Api {
        let trust = Trust::from_ca_file(&self.cluster.ca_file()).unwrap();
        let target = Target::Tls((self.cluster.members[node].ip, API).into(), trust);
        Api::new(target).with_token_file(&self.token_file()).unwrap()
    }

    fn token_file(&self) -> std::path::PathBuf {
        self.cluster.data_of(&self.cluster.members[0]).join("admin-user-token")
    }

    fn address(&self, node: usize) -> String {
        format!("https://{}:{API}", self.cluster.members[node].ip)
    }

    fn options(&self, addresses: &[String], duration: Duration) -> Options {
        Options {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ca_file: Some(self.cluster.ca_file()),
            token_file: self.token_file(),
            duration,
            mesh: "chaos-check-test".into(),
            rate: 30,
            longest_pause: None,
            out: self.dir.path().join("out"),
            yes: true,
            quiet: true,
        }
    }

    fn all(&self, duration: Duration) -> Options {
        self.options(&[0, 1, 2].map(|node| self.address(node)), duration)
    }

    /// Everything that is stored.
    async fn stored(&self) -> BTreeMap<String, Value> {
        let api = self.api(0);
        let copy = wait_through("a copy of what is stored", SOON, POLL, async || {
            Ok(match replicas::copy(&api).await? {
                Some(copy) => Poll::Ready(copy),
                None => Poll::NotYet("somebody writes".into()),
            })
        });
        copy.await.unwrap().0.resources
    }

    fn report(&self) -> Value {
        let report = std::fs::read(self.dir.path().join("out/report.json")).unwrap();
        serde_json::from_slice(&report).unwrap()
    }

    /// Failed checks of the last report, with the judge.
    fn failed(&self) -> Vec<(String, String)> {
        let report = self.report();
        let steps = report["scenarios"][0]["steps"].as_array().unwrap().iter();
        let checks = steps.flat_map(|step| step["checks"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        checks
            .filter(|check| check["verdict"] == "failed")
            .map(|check| {
                (
                    text(&check["oracle"]),
                    format!("{}: {}", text(&check["name"]), text(&check["detail"])),
                )
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_passes_also_while_its_leader_dies_and_nothing_is_left_behind() {
    let it = Installation::start(0).await;
    let before = it.stored().await;
    let never = std::future::pending::<()>;
    let passed = check::run(&it.all(SHORT), never()).await.unwrap();
    assert!(passed, "{:#?}", it.failed());
    assert_eq!(it.stored().await, before);
    let page = std::fs::read_to_string(it.dir.path().join("out/report.html")).unwrap();
    assert!(page.contains("0 failed") && page.contains("<td class=passed>"), "{page}");

    // The leader dies in the middle, and comes back.
    let options = it.all(Duration::from_secs(8));
    let dies = async {
        let working = async || -> anyhow::Result<Poll<()>> {
            let seen = it.api(0).get("/meshes/chaos-check-test/meshtrafficpermissions").await?;
            Ok(Poll::when(
                seen.status.is_success() && seen.text().contains("register-once"),
                (),
                || seen.status.to_string(),
            ))
        };
        wait_until("writes are made", SOON, POLL, working).await.unwrap();
        let leader = it.cluster.leader().await.unwrap();
        let fleet = &it.cluster.fleet;
        fleet.signal(&leader.name, nix::sys::signal::Signal::SIGKILL).unwrap();
        fleet.wait_gone(&leader.name, SOON).await.unwrap();
        let others = |id: u64| it.cluster.members.iter().position(|m| m.id != id).unwrap();
        let other = it.api(others(leader.id));
        let led = async || -> anyhow::Result<Poll<()>> {
            let seen = other.get_json("/cluster").await?;
            Ok(Poll::when(seen["leader"].as_u64().is_some_and(|id| id != leader.id), (), || {
                seen.to_string()
            }))
        };
        wait_until("another one leads", SOON, POLL, led).await.unwrap();
        fleet.restart(&leader.name).unwrap();
    };
    let (passed, ()) = tokio::join!(check::run(&options, never()), dies);
    assert!(passed.unwrap(), "{:#?}", it.failed());
    let reported = it.report().to_string();
    assert!(
        reported.contains(" terms with a leader") && !reported.contains("\"1 terms"),
        "{reported}"
    );
    assert_eq!(it.stored().await, before);

    // A mesh that is there is not touched; nor is anything without a yes; nor with a limit that cannot be kept does it pass.
    it.api(0)
        .put("/meshes/chaos-check-test", &json!({"type": "Mesh", "name": "chaos-check-test"}))
        .await
        .unwrap()
        .success()
        .unwrap();
    let before = it.stored().await;
    let error = check::run(&it.all(SHORT), never()).await.unwrap_err();
    assert!(error.to_string().contains("choose another name with --mesh"), "{error:#}");
    let mut options = it.all(Duration::from_secs(1));
    options.yes = false;
    let error = check::run(&options, never()).await.unwrap_err();
    assert!(error.to_string().contains("say --yes"), "{error:#}");
    assert_eq!(it.stored().await, before);
    let impatient = Options {
        mesh: "chaos-check-impatient".into(),
        longest_pause: Some(Duration::from_nanos(1)),
        ..it.all(Duration::from_secs(1))
    };
    assert!(!check::run(&impatient, never()).await.unwrap());
    assert!(
        it.failed().iter().any(|(_, text)| text.contains("longest time without")),
        "{:?}",
        it.failed()
    );
    assert_eq!(it.stored().await, before);
}

/// What a node says that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Reads show an older value.
    Stale,
    /// Writes are acknowledged, and every other run of them is not done.
    Loses,
    /// The history lacks a revision.
    Gap,
    /// A list at a revision shows something else.
    OtherView,
    /// It leads too.
    TwoLeaders,
    /// A zone is behind that is said not to be.
    ZoneBehind,
}

/// A node, as it is heard through somebody who lies.
struct Liar {
    api: Api,
    lie: Mutex<Lie>,
    shown: Mutex<BTreeMap<String, VecDeque<Value>>>,
    writes: Mutex<(u64, String)>,
    looks: AtomicU64,
}

impl Liar {
    async fn start(api: Api, servers: &mut JoinSet<()>) -> (Arc<Self>, String) {
        let liar = Arc::new(Self {
            api,
            lie: Mutex::new(Lie::None),
            shown: Mutex::default(),
            writes: Mutex::default(),
            looks: AtomicU64::default(),
        });
        let router = Router::new().fallback(pass).with_state(liar.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (liar, address)
    }

    fn edit(&self, uri: &Uri, body: &mut Value) {
        let path = uri.path();
        let query = uri.query().unwrap_or_default();
        match *self.lie.lock() {
            Lie::Stale if path.contains("/register-") => {
                let mut shown = self.shown.lock();
                let earlier = shown.entry(path.to_owned()).or_default();
                earlier.push_back(body.clone());
                if earlier.len() > 8 {
                    *body = earlier.pop_front().unwrap();
                }
            }
            Lie::Gap if path == "/_history" => {
                let items = body["items"].as_array_mut().unwrap();
                if items.len() > 1 {
                    items.remove(1);
                }
            }
            Lie::OtherView if query.contains("revision=") && path.ends_with("/meshtrafficpermissions") => {
                if let Some(first) = body["items"].as_array_mut().and_then(|items| items.first_mut()) {
                    first["spec"]["targetRef"]["kind"] = json!("Mesh");
                }
            }
            // It stops in time: in the end all are waited for until they agree.
            Lie::TwoLeaders if path == "/cluster" && self.looks.fetch_add(1, Ordering::Relaxed) < 6 => {
                body["role"] = json!("leader");
                body["leader"] = body["nodeId"].clone();
            }
            Lie::ZoneBehind if path == "/zones/_overview" => {
                let open = json!([{"id": "1", "globalInstanceId": "x"}]);
                body["items"] = json!([{"name": "east", "zoneInsight": {"subscriptions": open}}]);
            }
            Lie::ZoneBehind if path == "/zones/_applied" => {
                body["zones"] = json!([{"name": "east", "online": true, "reports": true, "stored": 1, "applied": false}]);
            }
            _ => {}
        }
    }

    /// Whether this write is only said to be done. As many in a row as were done before: a single one the next would cover.
    fn loses(&self, uri: &Uri) -> bool {
        let mut writes = self.writes.lock();
        writes.0 += 1;
        *self.lie.lock() == Lie::Loses && uri.path().contains("/register-") && writes.0 / 20 % 2 == 1
    }
}

async fn pass(State(liar): State<Arc<Liar>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let question = uri.path_and_query().unwrap().as_str();
    let api = liar.api.fork();
    let answer = match method {
        Method::PUT if liar.loses(&uri) => {
            let revision = liar.writes.lock().1.clone();
            return ([(HeaderName::from_static(REVISION_HEADER), revision)], "{}").into_response();
        }
        Method::PUT => {
            let id = headers.get(REQUEST_ID_HEADER).map(|id| id.to_str().unwrap().parse().unwrap());
            let body: Value = serde_json::from_slice(&body).unwrap();
            api.put_once(question, &body, id.unwrap_or_else(uuid::Uuid::new_v4)).await
        }
        Method::DELETE => api.delete(question).await,
        _ => api.get(question).await,
    };
    let Ok(answer) = answer else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let revision = answer.revision().unwrap_or_default().to_string();
    liar.writes.lock().1.clone_from(&revision);
    let applied = answer
        .headers
        .get("ursa-applied")
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    let mut shown: Value = answer.json().unwrap_or_default();
    if answer.status.is_success() && method == Method::GET {
        liar.edit(&uri, &mut shown);
    }
    let headers = [
        (HeaderName::from_static(REVISION_HEADER), revision),
        (HeaderName::from_static("ursa-applied"), applied),
    ];
    (answer.status, headers, shown.to_string()).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_is_caught_by_the_judge_whose_business_it_is() {
    let it = Installation::start(1).await;
    let (before, mut servers) = (it.stored().await, JoinSet::new());
    let (liar, address) = Liar::start(it.api(2), &mut servers).await;
    // The leader must be heard without lies: of two who say that they lead, one does.
    let leader = it.cluster.leader().await.unwrap();
    if leader.id == it.cluster.members[2].id {
        let done = it
            .api(0)
            .post("/cluster/leader", &json!({"id": it.cluster.members[0].id}))
            .await
            .unwrap();
        done.success().unwrap();
    }
    let lies = [
        (Lie::None, None),
        (Lie::Stale, Some(oracles::REGISTERS)),
        (Lie::Loses, Some(oracles::REGISTERS)),
        (Lie::Gap, Some(oracles::STREAMS)),
        (Lie::OtherView, Some(oracles::REPLICAS)),
        (Lie::TwoLeaders, Some(oracles::LEADERSHIP)),
        (Lie::ZoneBehind, Some(oracles::APPLIED)),
    ];
    for (lie, judge) in lies {
        *liar.lie.lock() = lie;
        liar.shown.lock().clear();
        let options = it.options(&[it.address(0), it.address(1), address.clone()], SHORT);
        let passed = check::run(&options, std::future::pending()).await.unwrap();
        let failed = it.failed();
        assert_eq!(passed, judge.is_none(), "{lie:?}: {failed:#?}");
        let caught = judge.is_none_or(|judge| failed.iter().any(|(oracle, _)| oracle == judge));
        assert!(caught, "{lie:?}: {failed:#?}");
        assert_eq!(it.stored().await, before, "{lie:?}");
    }
}

#[test]
fn without_a_yes_it_only_says_what_it_would_do() {
    let token = tempfile::NamedTempFile::new().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["check", "--address", "https://127.0.0.1:1", "--token-file"])
        .arg(token.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(
        !run.status.success() && text.contains("makes the mesh chaos-check-") && text.contains("Nothing was done: say --yes"),
        "{text}"
    );
    let run = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["check", "--address", "http://cp.example", "--token-file", "/nowhere"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && text.contains("only to a loopback address"), "{text}");
}
