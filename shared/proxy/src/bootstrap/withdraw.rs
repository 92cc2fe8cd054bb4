//! Tells the zone control plane that this proxy is about to end: `POST /drain`, our own extension beside `POST /bootstrap`.
//! In: who this proxy is and which run of it. Out: nothing new is sent here any more, or why that is not known.
//! Invariant: asking again changes nothing, so a failed try is repeated until the limit; a stock control plane (404) is left alone.
//! Source: the zone control plane's `dp/drain.rs`.
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tracing::debug;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{Deadline, within};
use ursa_runtime::{Backoff, CancellationToken};

use super::client::{Client, reason};

/// Where it is asked.
const PATH: &str = "/drain";
/// Pauses between rounds over all control planes: one that restarts is back soon.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Body of the request. It carries the token, so it has no Debug.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainRequest {
    /// Mesh of the proxy.
    pub mesh: String,
    /// Name of its Dataplane.
    pub name: String,
    /// The dataplane token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_token: Option<String>,
    /// The run that ends.
    pub instance: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// So many proxies of the zone run without this one; of an ingress, the other zones know as well.
    Applied { proxies: u64 },
    /// It is withdrawn, but these proxies did not take the news, in time or at all.
    Behind { proxies: Vec<String> },
    /// It is withdrawn in its zone; whether the other zones know is not known, for this reason. They had the time.
    Elsewhere(String),
    /// The control plane does not know how, or does not know this proxy.
    Unknown,
    /// It says no, for this reason.
    Refused(String),
    /// Nobody answered in time; the last failure.
    Failed(String),
}

impl fmt::Display for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied { proxies } => write!(f, "applied by {proxies} proxies"),
            Self::Behind { proxies } => write!(f, "not taken by {}", proxies.join(", ")),
            Self::Elsewhere(reason) => write!(f, "not confirmed of the other zones: {reason}"),
            Self::Unknown => f.write_str("the control plane does not know how"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Failed(failure) => write!(f, "no answer: {failure}"),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    applied: bool,
    #[serde(default)]
    proxies: u64,
    #[serde(default)]
    behind: Vec<String>,
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    elsewhere: Option<Elsewhere>,
}

/// Of the other zones.
#[derive(Deserialize)]
struct Elsewhere {
    confirmed: bool,
    #[serde(default)]
    behind: Vec<String>,
    #[serde(default)]
    reason: Option<String>,
}

impl Elsewhere {
    fn why(self) -> String {
        let behind = (!self.behind.is_empty()).then(|| format!("behind are {}", self.behind.join(", ")));
        let all: Vec<String> = behind.into_iter().chain(self.reason).collect();
        all.join("; ")
    }
}

impl Client {
    /// Asks the control planes in turn, until one answers or `limit` has passed.
    pub async fn withdraw(&self, request: &DrainRequest, limit: Duration) -> Withdrawn {
        let body = Bytes::from(serde_json::to_vec(request).expect("texts are always JSON"));
        let deadline = Deadline::after(limit);
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let never = CancellationToken::new();
        let mut last = "there was no time".to_owned();
        loop {
            for control_plane in self.control_planes() {
                let answer = within(deadline.remaining(), self.exchange(control_plane, PATH, body.clone())).await;
                match answer {
                    Ok(Ok((status, body))) => match judge(status, &body) {
                        Ok(outcome) => return outcome,
                        Err(failure) => last = failure,
                    },
                    Ok(Err(failure)) => last = Chain(&failure).to_string(),
                    Err(late) => last = late.to_string(),
                }
                debug!(%control_plane, error = last, "not withdrawn yet");
                if deadline.has_passed() {
                    return Withdrawn::Failed(last);
                }
            }
            tokio::select! {
                biased;
                () = deadline.passed() => return Withdrawn::Failed(last),
                _ = pause.wait(&never) => {}
            }
        }
    }
}

/// What an answer means; an error may pass by itself.
fn judge(status: StatusCode, body: &[u8]) -> Result<Withdrawn, String> {
    match status {
        StatusCode::OK => match serde_json::from_slice::<Answer>(body) {
            Ok(answer) if !answer.applied => Ok(Withdrawn::Behind {
                proxies: [answer.behind, answer.refused].concat(),
            }),
            Ok(Answer {
                elsewhere: Some(elsewhere),
                ..
            }) if !elsewhere.confirmed => Ok(Withdrawn::Elsewhere(elsewhere.why())),
            Ok(answer) => Ok(Withdrawn::Applied { proxies: answer.proxies }),
            Err(_) => Ok(Withdrawn::Unknown),
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(Withdrawn::Unknown),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(format!("it answered {status}")),
        status if status.is_client_error() => Ok(Withdrawn::Refused(reason(body))),
        status => Err(format!("it answered {status}: {}", reason(body))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_they_say() {
        let ok = |text: &str| judge(StatusCode::OK, text.as_bytes()).unwrap();
        assert_eq!(
            ok(r#"{"revision": 9, "applied": true, "proxies": 3, "behind": []}"#),
            Withdrawn::Applied { proxies: 3 }
        );
        assert_eq!(
            ok(r#"{"revision": 9, "applied": false, "proxies": 3, "behind": ["default.x"]}"#),
            Withdrawn::Behind {
                proxies: vec!["default.x".into()]
            }
        );
        assert_eq!(
            ok(r#"{"revision": 9, "applied": false, "proxies": 3, "behind": ["default.x"], "refused": ["default.y"]}"#),
            Withdrawn::Behind {
                proxies: vec!["default.x".into(), "default.y".into()]
            }
        );
        let confirmed = r#"{"revision": 9, "applied": true, "proxies": 3, "behind": [], "elsewhere": {"confirmed": true}}"#;
        assert_eq!(ok(confirmed), Withdrawn::Applied { proxies: 3 });
        let not = r#"{"applied": true, "proxies": 3, "elsewhere": {"confirmed": false, "behind": ["east"], "reason": "late"}}"#;
        assert_eq!(ok(not), Withdrawn::Elsewhere("behind are east; late".into()));
        assert_eq!(ok("<html>"), Withdrawn::Unknown);
        assert_eq!(judge(StatusCode::NOT_FOUND, b"404 page not found"), Ok(Withdrawn::Unknown));
        assert_eq!(
            judge(StatusCode::CONFLICT, b"another run"),
            Ok(Withdrawn::Refused("another run".into()))
        );
        assert!(judge(StatusCode::SERVICE_UNAVAILABLE, b"no quorum").is_err());
    }
}
