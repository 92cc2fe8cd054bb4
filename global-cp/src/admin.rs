//! A client of a control plane's REST API, for the commands of this program that ask a running one.
//! In: where it is and who asks, by flags or from its configuration file. Out: its answers, or why there is none, with the way out.
//! Invariant: the server must prove itself by the CA; the token goes nowhere else, and is never printed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use ursa_runtime::{config, fs, lease::within, tls};

use crate::config::Config;

/// A control plane holds a request for as long as a leader is elected.
const PATIENCE: Duration = Duration::from_secs(60);
/// A PEM file, a token.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_ANSWER: usize = 64 * 1024 * 1024;

type Connection = http1::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>;

/// Which control plane to ask, and as whom. What is not given is taken from its configuration file, so that on its machine nothing needs
/// to be.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE", env = "CONFIG_PATH")]
    pub config: Option<PathBuf>,
    /// Its REST API; a zone control plane's works too.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// The CA of its certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// An administrator's token.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// See the module's text.
pub struct Admin {
    address: String,
    ca_pem: Vec<u8>,
    token: String,
}

impl Access {
    /// # Errors
    /// A file cannot be read, or the configuration is wrong.
    pub fn open(&self) -> Result<Admin> {
        let config = config::load::<Config>(self.config.as_deref(), &serde_json::json!({}))?;
        let read = |path: &Path, flag: &str| {
            fs::read_bounded(path, MAX_FILE).with_context(|| format!("cannot read {}; {flag} names another file", path.display()))
        };
        let ca = self.ca_file.clone().unwrap_or_else(|| ca_file(&config));
        let token = self.token_file.clone().unwrap_or_else(|| config.data_dir.join("admin-user-token"));
        let token = String::from_utf8(read(&token, "--token-file")?).context("the token is not text")?;
        Ok(Admin {
            address: self.address.clone().unwrap_or_else(|| reachable(&config)),
            ca_pem: read(&ca, "--ca-file")?,
            token: token.trim().to_owned(),
        })
    }
}

fn ca_file(config: &Config) -> PathBuf {
    match (&config.tls.ca_file, &config.tls.cert_file, &config.cluster) {
        (Some(ca), ..) => ca.clone(),
        (None, None, Some(cluster)) => cluster.ca_file.clone(),
        _ => config.data_dir.join("tls/ca.crt"),
    }
}

/// Who listens everywhere is reached from here.
fn reachable(config: &Config) -> String {
    let mut address = config.api.address;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address.to_string()
}

impl Admin {
    /// One request and its answer.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal: with the control plane's own words.
    pub async fn call(&self, method: Method, path: &str) -> Result<Value> {
        self.ask(method, path, Bytes::new()).await
    }

    /// As [`Admin::call`], with a body.
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        self.ask(method, path, body.to_string().into()).await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value> {
        let answered = within(PATIENCE, self.exchange(method, path, body)).await;
        let (status, body) = answered.with_context(|| format!("{} does not answer", self.address))??;
        match status.is_success() {
            true => Ok(serde_json::from_slice(&body).unwrap_or_default()),
            false => Err(self.refused(status, &body)),
        }
    }

    /// A request whose answer may be large: `take` gets it in pieces, after the headers of a success were handed to `begin`.
    ///
    /// # Errors
    /// As [`Admin::call`]; those of `take`; the answer breaks off, or stands still.
    pub async fn download(
        &self,
        path: &str,
        body: &Value,
        begin: impl FnOnce(&HeaderMap),
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut sender, connection) = within(PATIENCE, self.connect())
            .await
            .with_context(|| format!("{} does not answer", self.address))??;
        let request = self.request(Method::POST, path, body.to_string().into())?;
        let mut connection = pin!(connection);
        let mut whole = pin!(async {
            let answer = within(PATIENCE, sender.send_request(request)).await;
            let answer = answer.with_context(|| format!("{} does not answer", self.address))??;
            let status = answer.status();
            if !status.is_success() {
                let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
                let body = body.map_err(|error| anyhow::anyhow!("the answer breaks off: {error}"))?;
                return Err(self.refused(status, &body.to_bytes()));
            }
            begin(answer.headers());
            let mut body = answer.into_body();
            loop {
                let piece = within(PATIENCE, body.frame()).await;
                let Some(piece) = piece.with_context(|| format!("{} sends nothing any more", self.address))? else {
                    return Ok(());
                };
                if let Some(bytes) = piece.context("the answer breaks off")?.data_ref() {
                    take(bytes)?;
                }
            }
        });
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                done = &mut whole => return done,
                _ = &mut connection, if !ended => ended = true,
            }
        }
    }

    fn refused(&self, status: StatusCode, body: &Bytes) -> anyhow::Error {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        anyhow::anyhow!("{} answers {status}: {}: {}", self.address, text("title"), text("detail"))
    }

    async fn connect(&self) -> Result<(http1::SendRequest<Full<Bytes>>, Connection)> {
        let host = match self.address.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host.trim_start_matches('[').trim_end_matches(']'),
            _ => bail!("{:?} is not host:port", self.address),
        };
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host:?} is neither a name nor an IP address"))?;
        let tls = tls::client_config(&self.ca_pem, &["http/1.1"]).context("the CA")?;
        let stream = TcpStream::connect(&self.address)
            .await
            .with_context(|| format!("cannot connect to {}; is the control plane running?", self.address))?;
        let stream = TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .with_context(|| format!("TLS with {}; --ca-file names the CA of its certificate", self.address))?;
        Ok(http1::handshake(TokioIo::new(stream)).await?)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.address)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("the request")
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let (mut sender, connection) = self.connect().await?;
        let request = self.request(method, path, body)?;
        let mut connection = pin!(connection);
        let mut exchange = pin!(async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("the answer breaks off: {error}"))?;
            anyhow::Ok((status, body.to_bytes()))
        });
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                done = &mut exchange => return done,
                _ = &mut connection, if !ended => ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_comes_from_the_configuration() {
        let mut config = Config::default();
        assert_eq!(reachable(&config), "127.0.0.1:5682");
        assert_eq!(ca_file(&config), Path::new("/var/lib/ursa/global-cp/tls/ca.crt"));
        config.api.address = "[::]:1".parse().unwrap();
        assert_eq!(reachable(&config), "[::1]:1");
        config.api.address = "10.0.0.1:1".parse().unwrap();
        assert_eq!(reachable(&config), "10.0.0.1:1");
        config.cluster = Some(ursa_plane::config::Cluster {
            ca_file: "/cluster/ca.crt".into(),
            ..Default::default()
        });
        assert_eq!(ca_file(&config), Path::new("/cluster/ca.crt"));
        config.tls.ca_file = Some("/tls/ca.crt".into());
        assert_eq!(ca_file(&config), Path::new("/tls/ca.crt"));
    }
}
