//! A workload behind a proxy.
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use ursa_runtime::{OnExit, Tasks, serve};

use super::program::until;

/// What every answer holds.
pub const BODY: &str = "whole";

/// An HTTP server that answers `/` at once, and `/slow` only after [`App::release`]. Ends with the [`Tasks`] it was started in.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    waiting: watch::Receiver<usize>,
    release: watch::Sender<bool>,
}

impl App {
    /// # Panics
    /// There is no free port.
    pub async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (arrived, waiting) = watch::channel(0);
        let (release, released) = watch::channel(false);
        let slow = move || {
            let (arrived, mut released) = (arrived.clone(), released.clone());
            async move {
                arrived.send_modify(|count| *count += 1);
                let _ = released.wait_for(|go| *go).await;
                BODY
            }
        };
        let app = Router::new().route("/", get(|| async { BODY })).route("/slow", get(slow));
        let owner = tasks.clone();
        tasks.spawn("app", OnExit::Ignore, |cancel| {
            serve::http(listener, app, serve::Limits::default(), owner, cancel)
        });
        Self { address, waiting, release }
    }

    /// Lets the requests for `/slow` go.
    pub fn release(&self) {
        self.release.send_replace(true);
    }

    /// Waits until a request for `/slow` has arrived.
    pub async fn slow_request_arrived(&self) {
        until("a request for /slow", async || *self.waiting.borrow() > 0).await;
    }
}
