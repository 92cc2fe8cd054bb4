//! Fetches the bootstrap from a zone control plane.
//! In: addresses, the CA to trust, the request. Out: the bootstrap, or why there is none.
//! Invariant: every try has a deadline; what may pass by itself is retried with jittered pauses until the overall deadline, what
//! will not (the control plane says what is wrong with the request) ends at once with its words.
//! Source: Kuma `pkg/xds/bootstrap/handler.go` (status codes), kuma-dp (deadlines). Not here: the body, see [`super::request`].
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use prometheus_client::metrics::counter::Counter;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::{info, warn};
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{Deadline, within};
use ursa_runtime::{Backoff, CancellationToken, tls};

use super::answer::{Bootstrap, InvalidAnswer};
use super::request::BootstrapRequest;
use crate::http1;

/// Port of a control plane's proxy server, when the address names none. Source: Kuma.
const DEFAULT_PORT: u16 = 5678;
/// From connecting to the last byte of the answer. Source: kuma-dp.
const TRY_DEADLINE: Duration = Duration::from_secs(10);
/// A control plane that starts together with us is there within a second: ask again soon at first.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A bootstrap is some ten KiB, plus the CA; far beyond that it is not one.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// As much of a refusal as a person reads.
const MAX_REASON: usize = 2000;
/// The same failure again is logged once in so many tries.
const REPEAT_EVERY: u32 = 10;

/// Address of a zone control plane's proxy server. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane(Arc<Address>);

#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// Without brackets when it is an IPv6 address.
    host: String,
    port: u16,
    server_name: ServerName<'static>,
}

/// Why a text is no such address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not a URL.
    #[error("is not a URL such as https://zone-cp:5678")]
    Url,
    /// The token would travel in the clear.
    #[error("must begin with https://, for the request carries the token")]
    Scheme,
    /// The path is fixed.
    #[error("must have no path or user")]
    Path,
    /// Neither DNS name nor IP address.
    #[error("its host is neither a DNS name nor an IP address")]
    Host,
}

impl FromStr for ControlPlane {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.trim().parse().map_err(|_| InvalidAddress::Url)?;
        match uri.scheme_str() {
            Some("https") => {}
            Some(_) => return Err(InvalidAddress::Scheme),
            None => return Err(InvalidAddress::Url),
        }
        let authority = uri.authority().ok_or(InvalidAddress::Url)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(InvalidAddress::Path);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port_u16() {
            Some(port) => port,
            // A port out of range reads like none.
            None if authority.as_str().ends_with(authority.host()) => DEFAULT_PORT,
            None => return Err(InvalidAddress::Url),
        };
        let server_name = ServerName::try_from(host.clone()).map_err(|_| InvalidAddress::Host)?;
        Ok(Self(Arc::new(Address { host, port, server_name })))
    }
}

impl ControlPlane {
    /// `host:port`, as in the Host header. The control plane tells Envoy to come back to this host.
    fn authority(&self) -> String {
        let Address { host, port, .. } = &*self.0;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl fmt::Display for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// How long to go on asking.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Longest pause between two rounds over all addresses.
    pub backoff: Duration,
    /// Give up after this long.
    pub max_duration: Duration,
}

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA to trust is no CA.
    #[error("the CA certificate for the control plane cannot be used")]
    Ca(#[source] tls::Error),
    /// The request is wrong and asking again will not help. The text is the control plane's.
    #[error("{control_plane} refuses this proxy ({status}): {reason}")]
    Refused {
        control_plane: ControlPlane,
        status: StatusCode,
        reason: String,
    },
    /// Something else listens at this address.
    #[error("{control_plane} answered, but not with a bootstrap (is it the proxy port, 5678, of a zone control plane?)")]
    Answer {
        control_plane: ControlPlane,
        source: InvalidAnswer,
    },
    /// Nobody gave a bootstrap in time; the source is the last failure.
    #[error("no bootstrap from {} within {after:?}, {tries} tries; the last at {control_plane}", plural(*addresses))]
    GaveUp {
        control_plane: ControlPlane,
        addresses: usize,
        after: Duration,
        tries: u32,
        source: Failure,
    },
    /// The process should stop.
    #[error("stopped before the control plane gave a bootstrap")]
    Cancelled,
}

fn plural(addresses: usize) -> String {
    if addresses == 1 {
        "the control plane".to_owned()
    } else {
        format!("any of {addresses} control planes")
    }
}

/// A failed try that may go better the next time.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens, or the way there is broken.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// It listens but we do not believe it is the control plane.
    #[error("its certificate is not trusted (another CA than --ca-cert-file, or not made for this host name)")]
    Certificate(#[source] std::io::Error),
    /// No TLS.
    #[error("TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    /// No HTTP, or broken off.
    #[error("the exchange failed")]
    Exchange(#[source] http1::Error),
    /// Too slow.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// 404 with an empty body.
    #[error("it does not know this Dataplane yet: create it there, or give one with --dataplane-file")]
    UnknownDataplane,
    /// 5xx, or asked to come back later.
    #[error("it answered {0}: {1}")]
    Status(StatusCode, String),
}

/// What came of one try.
enum Outcome {
    Done(Bootstrap),
    Final(Error),
    Again(Failure),
}

/// Fetches bootstraps.
pub struct Client {
    control_planes: Vec<ControlPlane>,
    tls: Arc<ClientConfig>,
    retry: Retry,
    retries: Counter,
}

impl Client {
    /// `ca_pem`: the only CAs that are trusted. `retries` counts failed tries.
    ///
    /// # Errors
    /// [`Error::Ca`].
    pub fn new(control_planes: Vec<ControlPlane>, ca_pem: &[u8], retry: Retry, retries: Counter) -> Result<Self, Error> {
        let tls = tls::client_config(ca_pem, &["http/1.1"]).map_err(Error::Ca)?;
        Ok(Self {
            control_planes,
            tls,
            retry,
            retries,
        })
    }

    /// Asks each control plane in turn until one gives a bootstrap. Stops at once when `cancel` is cancelled.
    ///
    /// # Errors
    /// All but [`Error::Ca`].
    pub async fn fetch(&self, request: &BootstrapRequest, cancel: &CancellationToken) -> Result<Bootstrap, Error> {
        let body = Bytes::from(serde_json::to_vec(request).expect("text, numbers and maps with text keys are always JSON"));
        let deadline = Deadline::after(self.retry.max_duration);
        let mut pause = Backoff::new(FIRST_PAUSE.min(self.retry.backoff), self.retry.backoff);
        let mut log = RetryLog::default();
        let mut last = None;
        loop {
            for control_plane in &self.control_planes {
                if let (true, Some((at, failure))) = (deadline.has_passed(), last.take()) {
                    return Err(self.gave_up(at, log.tries, failure));
                }
                let outcome = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Err(Error::Cancelled),
                    outcome = self.attempt(control_plane, body.clone()) => outcome,
                };
                match outcome {
                    Outcome::Done(bootstrap) => {
                        info!(%control_plane, tries = log.tries + 1, "received the bootstrap");
                        return Ok(bootstrap);
                    }
                    Outcome::Final(error) => return Err(error),
                    Outcome::Again(failure) => {
                        self.retries.inc();
                        log.failed(control_plane, &failure);
                        last = Some((control_plane, failure));
                    }
                }
            }
            let go_on = tokio::select! {
                biased;
                go_on = pause.wait(cancel) => go_on,
                () = deadline.passed() => true, // the loop's head ends it
            };
            if !go_on || self.control_planes.is_empty() {
                return Err(Error::Cancelled);
            }
        }
    }

    fn gave_up(&self, control_plane: &ControlPlane, tries: u32, source: Failure) -> Error {
        let (addresses, after) = (self.control_planes.len(), self.retry.max_duration);
        Error::GaveUp {
            control_plane: control_plane.clone(),
            addresses,
            after,
            tries,
            source,
        }
    }

    async fn attempt(&self, control_plane: &ControlPlane, body: Bytes) -> Outcome {
        let limit = TRY_DEADLINE.min(self.retry.max_duration);
        let answer = within(limit, self.exchange(control_plane, "/bootstrap", body)).await;
        match answer.unwrap_or_else(|_| Err(Failure::Timeout(limit))) {
            Ok((status, body)) => judge(control_plane, status, &body),
            Err(failure) => Outcome::Again(failure),
        }
    }

    /// Who is asked, in turn.
    pub(super) fn control_planes(&self) -> &[ControlPlane] {
        &self.control_planes
    }

    /// One request. Has no deadline of its own.
    pub(super) async fn exchange(
        &self,
        control_plane: &ControlPlane,
        path: &'static str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let Address { host, port, server_name } = &*control_plane.0;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(Failure::Connect)?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(server_name.clone(), stream).await.map_err(handshake_failure)?;
        let request = Request::post(path)
            .header(header::HOST, control_plane.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("an address that was parsed is a valid header");
        http1::exchange(stream, request, MAX_ANSWER).await.map_err(Failure::Exchange)
    }
}

fn handshake_failure(error: std::io::Error) -> Failure {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(_)) => Failure::Certificate(error),
        _ => Failure::Handshake(error),
    }
}

/// What an answer means.
fn judge(control_plane: &ControlPlane, status: StatusCode, body: &[u8]) -> Outcome {
    let control_plane = || control_plane.clone();
    match status {
        StatusCode::OK => match Bootstrap::from_answer(body) {
            Ok(bootstrap) => Outcome::Done(bootstrap),
            Err(source) => Outcome::Final(Error::Answer {
                control_plane: control_plane(),
                source,
            }),
        },
        StatusCode::NOT_FOUND if body.is_empty() => Outcome::Again(Failure::UnknownDataplane),
        // These two say themselves that later is better.
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Outcome::Again(Failure::Status(status, reason(body))),
        status if status.is_client_error() => Outcome::Final(Error::Refused {
            control_plane: control_plane(),
            status,
            reason: reason(body),
        }),
        status => Outcome::Again(Failure::Status(status, reason(body))),
    }
}

/// The peer's words, fit for one line of a log.
pub(super) fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = words.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
    if short.is_empty() { "no reason given".to_owned() } else { short }
}

/// Says what fails, once; and again when it fails otherwise, or for long.
#[derive(Default)]
struct RetryLog {
    tries: u32,
    same: u32,
    text: String,
}

impl RetryLog {
    fn failed(&mut self, control_plane: &ControlPlane, failure: &Failure) {
        self.tries = self.tries.saturating_add(1);
        let text = format!("{control_plane}: {}", Chain(failure));
        self.same = if text == self.text { self.same.saturating_add(1) } else { 0 };
        if self.same.is_multiple_of(REPEAT_EVERY) {
            warn!(%control_plane, tries = self.tries, error = %Chain(failure), "no bootstrap yet, asking again");
        }
        self.text = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, InvalidAddress> {
        text.parse::<ControlPlane>().map(|address| address.to_string())
    }

    #[test]
    fn addresses_are_checked_when_read() {
        assert_eq!(parse("https://127.0.1.1:5678").unwrap(), "https://127.0.1.1:5678");
        assert_eq!(parse("https://zone-cp/").unwrap(), "https://zone-cp:5678");
        assert_eq!(parse("https://[::1]:1").unwrap(), "https://[::1]:1");
        assert_eq!(parse("http://zone-cp:5678"), Err(InvalidAddress::Scheme));
        assert_eq!(parse("zone-cp:5678"), Err(InvalidAddress::Url));
        assert_eq!(parse("https://zone-cp:5678/bootstrap"), Err(InvalidAddress::Path));
        assert_eq!(parse("https://user@zone-cp"), Err(InvalidAddress::Path));
        assert_eq!(parse("https://a_b..c"), Err(InvalidAddress::Host));
        assert_eq!(parse("https://zone-cp:99999"), Err(InvalidAddress::Url));
    }

    #[test]
    fn statuses_mean_what_kuma_means() {
        let cp: ControlPlane = "https://cp".parse().unwrap();
        let outcome = |status: u16, body: &str| match judge(&cp, StatusCode::from_u16(status).unwrap(), body.as_bytes()) {
            Outcome::Done(_) => "done".to_owned(),
            Outcome::Final(error) => format!("final: {error}"),
            Outcome::Again(failure) => format!("again: {failure}"),
        };
        assert!(outcome(404, "").starts_with("again: it does not know this Dataplane"));
        assert!(outcome(404, "404: Page Not Found").starts_with("final"));
        assert!(outcome(422, "token\n\x07required ").ends_with("(422 Unprocessable Entity): token required"));
        assert!(outcome(400, "").ends_with("no reason given"));
        assert!(outcome(429, "").starts_with("again"));
        assert!(outcome(500, "x").starts_with("again"));
        assert!(outcome(302, "").starts_with("again"));
        assert!(outcome(200, "{}").starts_with("final"));
    }
}
