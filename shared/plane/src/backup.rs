//! `POST /cluster/backup`: everything that this node has applied, as one file that is encrypted to the recipients of the request.
//! In: an administrator's request, on any node. Out: the file, as it is made. Invariants: writes go on meanwhile; what leaves the process
//! is encrypted; one backup at a time, and one that nobody takes is given up; one that breaks off ends as a broken answer, never as a
//! short one.

use std::{
    io::{self, BufWriter, Write},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use tokio::{runtime::Handle, sync::Semaphore, sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};
use ursa_model::Timestamp;
use ursa_pki::age::{MAX_RECIPIENTS, Recipient};
use ursa_rest::{Access, Caller, Error};
use ursa_runtime::{error::Chain, lease::within};
use ursa_store::{Store, backup::Export};

const ACCESS: &str = "a backup of the control plane";
/// Many recipients.
const MAX_BODY: usize = 64 * 1024;
/// Bytes that are handed over at a time, and how many such pieces wait for the client.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;
/// A client that takes nothing for so long has gone.
const STALLED: Duration = Duration::from_secs(60);

const HISTORY: &str = "ursa-backup-history";
const REVISION: &str = "ursa-backup-revision";
const RESOURCES: &str = "ursa-backup-resources";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    recipients: Vec<String>,
}

#[derive(Clone)]
struct Parts {
    store: Store,
    turn: Arc<Semaphore>,
}

/// The route.
pub(crate) fn router(store: Store) -> Router {
    let turn = Arc::new(Semaphore::new(1));
    Router::new()
        .route("/cluster/backup", post(backup).layer(DefaultBodyLimit::max(MAX_BODY)))
        .with_state(Parts { store, turn })
}

fn recipients(body: &Bytes) -> Result<Vec<Recipient>, Error> {
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| Error::bad_request(format_args!("the body: {error}")))?;
    let count = wanted.recipients.len();
    if count == 0 || count > MAX_RECIPIENTS {
        return Err(Error::bad_request(format_args!(
            "recipients: between 1 and {MAX_RECIPIENTS} are needed, not {count}; a backup is always encrypted"
        )));
    }
    let parsed = wanted.recipients.iter().map(|text| text.parse::<Recipient>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| Error::bad_request(format_args!("recipients: {error}")))
}

async fn backup(State(parts): State<Parts>, Extension(caller): Extension<Caller>, body: Bytes) -> Result<Response, Error> {
    if !Access::default().is_admin(&caller.user) {
        return Err(Error::denied(&caller.user, ACCESS));
    }
    let recipients = recipients(&body)?;
    let turn = parts.turn.try_acquire_owned();
    let turn = turn.map_err(|_| Error::conflict("a backup is being made at this node: wait until it is done, or ask another node"))?;
    let export = parts
        .store
        .export(env!("CARGO_PKG_VERSION"), Timestamp::now())
        .await
        .map_err(|error| {
            warn!(%error, "no backup can be made");
            Error::unavailable(&ursa_rest::Unavailable {
                reason: "the store has stopped",
                leader: None,
            })
        })?;
    let head = &export.head;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (HeaderName::from_static(HISTORY), head.history.to_string()),
        (HeaderName::from_static(REVISION), head.revision.to_string()),
        (HeaderName::from_static(RESOURCES), head.resources().to_string()),
    ];
    let to: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    info!(target: "audit", event = "backup_begun", user = %caller.user.name, history = %head.history, revision = head.revision, recipients = ?to);
    let (sender, receiver) = mpsc::channel(PIECES);
    let runtime = Handle::current();
    spawn_blocking(move || {
        let _turn = turn;
        make(&export, &recipients, Pieces { sender, runtime });
    });
    Ok((StatusCode::OK, headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// Writes it into the answer. Blocks.
fn make(export: &Export, recipients: &[Recipient], pieces: Pieces) {
    let sender = pieces.clone();
    let mut out = BufWriter::with_capacity(PIECE, pieces);
    let written = export.write(recipients, &mut out).and_then(|()| Ok(out.flush()?));
    // What is left in it after a failure goes nowhere.
    let (_, _) = out.into_parts();
    let revision = export.head.revision;
    match written {
        Ok(()) => info!(target: "audit", event = "backup_done", revision),
        Err(error) => {
            let error = Chain(&error).to_string();
            warn!(target: "audit", event = "backup_broke_off", revision, error);
            // Seen by the client as an answer that breaks off; if it is gone already, nobody minds.
            let _ = sender.send(Err(io::Error::other(error)));
        }
    }
}

/// The answer's body, to be written to by a thread.
#[derive(Clone)]
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        match self.runtime.block_on(within(STALLED, self.sender.send(piece))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing any more")),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Ok(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
