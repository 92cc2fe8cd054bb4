//! The bootstrap client against a control plane over real TLS.
use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tempfile::TempDir;
use tokio::net::TcpListener;
use ursa_proxy::bootstrap::{BootstrapRequest, Client, Error, Failure, Retry};
use ursa_proxy::testing::{FakeControlPlane, Reply};
use ursa_runtime::error::Chain;
use ursa_runtime::{CancellationToken, Tasks};

const YAML: &str = "admin: {address: {pipe: {path: /run/w/a.sock}}}\n";
const QUICK: Retry = Retry {
    backoff: Duration::from_millis(20),
    max_duration: Duration::from_secs(20),
};

struct Fixture {
    cp: FakeControlPlane,
    retries: Counter,
    _tasks: Tasks,
    _dir: TempDir,
}

impl Fixture {
    async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        let (tasks, dir) = (Tasks::new(), tempfile::tempdir().unwrap());
        let cp = FakeControlPlane::start(&tasks, dir.path(), replies).await;
        Self {
            cp,
            retries: Counter::default(),
            _tasks: tasks,
            _dir: dir,
        }
    }

    fn client(&self, urls: &[&str], ca_pem: &str, retry: Retry) -> Client {
        let control_planes = urls.iter().map(|url| url.parse().unwrap()).collect();
        Client::new(control_planes, ca_pem.as_bytes(), retry, self.retries.clone()).unwrap()
    }

    async fn fetch(&self) -> Result<String, Error> {
        let client = self.client(&[&self.cp.url], &self.cp.ca_pem, QUICK);
        client
            .fetch(&request(), &CancellationToken::new())
            .await
            .map(|bootstrap| bootstrap.yaml)
    }
}

fn request() -> BootstrapRequest {
    BootstrapRequest {
        mesh: "default".into(),
        name: "frontend-1".into(),
        proxy_type: "dataplane".into(),
        dataplane_token: Some("ey.J.w".into()),
        dynamic_metadata: BTreeMap::from([("k".into(), "v".into())]),
        ..BootstrapRequest::default()
    }
}

/// A port on which nobody listens.
async fn dead_url() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    format!("https://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn the_request_is_kuma_dps() {
    let fixture = Fixture::new([Reply::bootstrap(YAML)]).await;
    assert_eq!(fixture.fetch().await.unwrap(), YAML);
    let requests = fixture.cp.requests();
    let (headers, body) = &requests[0];
    assert_eq!(headers["accept"], "application/json");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["host"].to_str().unwrap(), fixture.cp.url.trim_start_matches("https://"));
    assert!(headers.get("authorization").is_none(), "the token is in the body");
    assert_eq!(
        (&body["mesh"], &body["name"], &body["dataplaneToken"]),
        (&"default".into(), &"frontend-1".into(), &"ey.J.w".into())
    );
    assert_eq!(body["dynamicMetadata"]["k"], "v");
}

#[tokio::test]
async fn what_may_pass_is_retried() {
    let replies = [
        Reply::new(404, ""),
        Reply::new(500, "raft has no leader"),
        Reply::new(503, ""),
        Reply::bootstrap(YAML),
    ];
    let fixture = Fixture::new(replies).await;
    assert_eq!(fixture.fetch().await.unwrap(), YAML);
    assert_eq!((fixture.cp.requests().len(), fixture.retries.get()), (4, 3));
}

#[tokio::test]
async fn a_refusal_ends_at_once_with_the_control_planes_words() {
    let fixture = Fixture::new([Reply::new(422, "token is required\n"), Reply::bootstrap(YAML)]).await;
    let error = fixture.fetch().await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }));
    let wanted = format!(
        "{} refuses this proxy (422 Unprocessable Entity): token is required",
        fixture.cp.url
    );
    assert_eq!(error.to_string(), wanted);
    assert_eq!(fixture.cp.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_no_bootstrap_says_so() {
    let fixture = Fixture::new([Reply::new(200, "<html>hello</html>")]).await;
    assert!(matches!(fixture.fetch().await, Err(Error::Answer { .. })));
}

#[tokio::test]
async fn a_control_plane_of_another_ca_is_not_believed() {
    let fixture = Fixture::new([Reply::bootstrap(YAML)]).await;
    let other = Fixture::new([]).await;
    let retry = Retry {
        max_duration: Duration::from_millis(200),
        ..QUICK
    };
    let client = fixture.client(&[&fixture.cp.url], &other.cp.ca_pem, retry);
    let error = client.fetch(&request(), &CancellationToken::new()).await.err().unwrap();
    assert!(
        matches!(
            error,
            Error::GaveUp {
                source: Failure::Certificate(_),
                ..
            }
        ),
        "{error:?}"
    );
    let text = Chain(&error).to_string();
    assert!(text.contains("--ca-cert-file") && text.contains("UnknownIssuer"), "{text}");
    assert!(error.source().is_some());
    assert!(fixture.cp.requests().is_empty(), "the token was not sent");
}

#[tokio::test]
async fn several_control_planes_are_tried_in_turn() {
    let fixture = Fixture::new([Reply::bootstrap(YAML)]).await;
    let dead = dead_url().await;
    // A pause would take a minute: the second address is asked without one.
    let retry = Retry {
        backoff: Duration::from_secs(60),
        max_duration: Duration::from_secs(120),
    };
    let client = fixture.client(&[&dead, &fixture.cp.url], &fixture.cp.ca_pem, retry);
    let bootstrap = client.fetch(&request(), &CancellationToken::new()).await;
    assert!(bootstrap.is_ok());
    assert_eq!(fixture.retries.get(), 1);
}

#[tokio::test]
async fn it_gives_up_in_time_and_says_what_failed() {
    let fixture = Fixture::new([]).await;
    let dead = dead_url().await;
    let retry = Retry {
        max_duration: Duration::from_millis(100),
        ..QUICK
    };
    let client = fixture.client(&[&dead], &fixture.cp.ca_pem, retry);
    let error = client.fetch(&request(), &CancellationToken::new()).await.err().unwrap();
    let text = Chain(&error).to_string();
    assert!(
        text.contains(&dead) && text.contains("cannot connect: Connection refused"),
        "{text}"
    );
}

#[tokio::test]
async fn one_that_accepts_and_stays_silent_does_not_hold_us() {
    let fixture = Fixture::new([]).await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let retry = Retry {
        max_duration: Duration::from_millis(100),
        ..QUICK
    };
    let error = fixture
        .client(&[&url], &fixture.cp.ca_pem, retry)
        .fetch(&request(), &CancellationToken::new())
        .await
        .err();
    assert!(
        matches!(
            error,
            Some(Error::GaveUp {
                source: Failure::Timeout(_),
                ..
            })
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_cancellation_ends_the_asking() {
    let fixture = Fixture::new([Reply::new(503, "")]).await;
    let cancel = CancellationToken::new();
    let client = fixture.client(
        &[&fixture.cp.url],
        &fixture.cp.ca_pem,
        Retry {
            backoff: Duration::from_secs(60),
            ..QUICK
        },
    );
    let asked = async {
        while fixture.cp.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let request = request();
    let (result, ()) = tokio::join!(client.fetch(&request, &cancel), asked);
    assert!(matches!(result.err(), Some(Error::Cancelled)));
}

#[test]
fn a_file_that_is_no_ca_is_refused_at_once() {
    let refused = Client::new(Vec::new(), b"not PEM", QUICK, Counter::default()).err();
    assert!(matches!(refused, Some(Error::Ca(_))));
}

#[test]
fn the_systems_cas_can_be_used() {
    let Some(path) = ursa_proxy::host::system_ca_path() else {
        return eprintln!("SKIPPED the_systems_cas_can_be_used: this machine has no CA bundle");
    };
    let pem = std::fs::read(path).unwrap();
    Client::new(Vec::new(), &pem, QUICK, Counter::default()).unwrap();
}
