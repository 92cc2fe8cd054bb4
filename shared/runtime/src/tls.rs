//! TLS of a program's own servers: a private CA and server certificate made at first start, or those the operator gives; client trust in them.
//! In: a folder or files, the names and addresses the program is reached by. Out: rustls configs, the PEM texts others need.
//! Invariant: TLS 1.3 unless a stock peer needs 1.2; one crypto provider (aws-lc-rs); keys are 0600 and never logged;
//! a running server takes up a renewed certificate without a restart.
//! Not here: the mesh's own identities (ursa-pki).
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use time::OffsetDateTime;

use crate::error::Chain;
use crate::tasks::{OnExit, Tasks};

mod files;
#[cfg(test)]
mod tests;
mod verify;

pub use verify::server_verifier;

/// How often a running program looks whether its certificate must be renewed or was replaced on disk.
const CHECK_PERIOD: Duration = Duration::from_secs(3600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("TLS file {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// A file is no certificate or key, or they do not belong together.
    #[error("{what}: {reason}")]
    Invalid { what: String, reason: String },
    /// The certificate must be renewed but the CA's key is not in the folder.
    #[error("the server certificate {reason}, and {} to renew it with is missing", ca_key.display())]
    CannotRenew { reason: String, ca_key: PathBuf },
    /// A name to be certified is neither DNS name nor IP address.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    Name { name: String },
    /// Keys or certificates cannot be made.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
    /// rustls refuses the configuration.
    #[error("TLS configuration")]
    Config(#[from] rustls::Error),
}

/// Protocol versions that a server accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// TLS 1.3 alone.
    #[default]
    Tls13,
    /// Also 1.2, for stock Envoy bootstraps whose client maximum is 1.2.
    Tls12AndTls13,
}

impl Versions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls13 => &TLS13,
            Self::Tls12AndTls13 => &BOTH,
        }
    }
}

/// Makes aws-lc-rs the provider of the process, for libraries that use the default. First thing in `main`; again is harmless.
pub fn install_provider() {
    if aws_lc_rs::default_provider().install_default().is_err() {
        tracing::trace!("a crypto provider is already installed");
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Where the certificate came from, and so what renewing it means.
#[derive(Clone, Debug)]
enum Origin {
    /// `ca.crt ca.key server.crt server.key` in a folder of ours.
    Folder { dir: PathBuf, sans: Vec<String> },
    /// Files of the operator.
    Files { cert: PathBuf, key: PathBuf, ca: Option<PathBuf> },
}

/// A server certificate as loaded.
struct Loaded {
    certified: Arc<CertifiedKey>,
    chain_pem: String,
    ca_pem: String,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    not_after: OffsetDateTime,
}

/// Hands the newest certificate to each handshake.
struct Current(RwLock<Arc<Loaded>>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("not_after", &self.0.read().not_after)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().certified.clone())
    }
}

/// The identity of a program's servers. Clones share one certificate, also after its renewal.
#[derive(Clone, Debug)]
pub struct ServerTls {
    origin: Arc<Origin>,
    current: Arc<Current>,
    /// Of the first load: the CA does not change while the process runs.
    ca_pem: Arc<str>,
    chain_pem: Arc<str>,
}

impl ServerTls {
    /// Loads `ca.crt ca.key server.crt server.key` from `dir`; makes what is missing. The server certificate is renewed from the
    /// CA if it lacks one of `sans` (DNS names or IP addresses), is not the CA's, or ends within 30 days. Blocks on the disk.
    ///
    /// # Errors
    /// Files cannot be read or written, are damaged, or renewal needs a CA key that is not there.
    pub fn load_or_create(dir: &Path, sans: &[String]) -> Result<Self, Error> {
        Self::load_or_create_at(dir, sans, OffsetDateTime::now_utc())
    }

    fn load_or_create_at(dir: &Path, sans: &[String], now: OffsetDateTime) -> Result<Self, Error> {
        let origin = Origin::Folder {
            dir: dir.to_owned(),
            sans: sans.to_vec(),
        };
        Self::load(origin, now)
    }

    /// Uses the operator's files: `cert` (chain, leaf first), `key`, and the CA that clients should trust (by default the last of the chain).
    ///
    /// # Errors
    /// Files cannot be read, are damaged, or do not belong together.
    pub fn from_files(cert: &Path, key: &Path, ca: Option<&Path>) -> Result<Self, Error> {
        let origin = Origin::Files {
            cert: cert.to_owned(),
            key: key.to_owned(),
            ca: ca.map(Path::to_owned),
        };
        Self::load(origin, OffsetDateTime::now_utc())
    }

    fn load(origin: Origin, now: OffsetDateTime) -> Result<Self, Error> {
        let loaded = files::load(&origin, now)?;
        Ok(Self {
            origin: Arc::new(origin),
            ca_pem: loaded.ca_pem.as_str().into(),
            chain_pem: loaded.chain_pem.as_str().into(),
            current: Arc::new(Current(RwLock::new(Arc::new(loaded)))),
        })
    }

    /// A server config for TLS 1.3 that offers `alpn` in this order, e.g. `["h2", "http/1.1"]`.
    pub fn server_config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        self.server_config_for(alpn, Versions::Tls13)
    }

    /// As [`Self::server_config`] for the given versions.
    pub fn server_config_for(&self, alpn: &[&str], versions: Versions) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions.list())
            .expect("aws-lc-rs has cipher suites for TLS 1.2 and 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.current.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Looks once an hour, as a task, whether the certificate must be renewed or was replaced on disk, and takes the new one up.
    pub fn keep_fresh(&self, tasks: &Tasks) {
        let tls = self.clone();
        tasks.spawn("tls-renewal", OnExit::Shutdown, |cancel| async move {
            let mut ticker = crate::heartbeat::every(CHECK_PERIOD, &cancel);
            while ticker.tick().await {
                let tls = tls.clone();
                match tokio::task::spawn_blocking(move || tls.refresh(OffsetDateTime::now_utc())).await {
                    Ok(Ok(true)) => tracing::info!("a new server certificate is in use"),
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) => tracing::error!(error = %Chain(&error), "cannot renew the server certificate"),
                    Err(error) => tracing::error!(error = %Chain(&error), "cannot renew the server certificate"),
                }
            }
        });
    }

    /// Loads anew; `true` if the certificate is another one now.
    fn refresh(&self, now: OffsetDateTime) -> Result<bool, Error> {
        let loaded = files::load(&self.origin, now)?;
        let mut current = self.current.0.write();
        let changed = current.chain_pem != loaded.chain_pem;
        if changed {
            *current = Arc::new(loaded);
        }
        Ok(changed)
    }

    /// PEM of the CA that clients must trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// PEM of the server's chain, leaf first, as loaded at start (a renewal has another leaf).
    pub fn server_chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// Names and addresses that the certificate holds for.
    pub fn dns_and_ip_sans(&self) -> (Vec<String>, Vec<IpAddr>) {
        let current = self.current.0.read();
        (current.dns.clone(), current.ips.clone())
    }

    /// End of the certificate's validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.current.0.read().not_after
    }
}

/// A client config for TLS 1.3 that offers `alpn` and believes whom [`server_verifier`] believes.
///
/// # Errors
/// `ca_pem` holds no certificate, or one that cannot be a root.
pub fn client_config(ca_pem: &[u8], alpn: &[&str]) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(Versions::Tls13.list())?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// The certificates of a PEM text; at least one.
fn given(ca_pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |reason: String| Error::Invalid {
        what: "CA".to_owned(),
        reason,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(ca_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(error.to_string()))?;
    if certificates.is_empty() {
        return Err(invalid("no certificate in it".to_owned()));
    }
    Ok(certificates)
}

/// Names that a server on this machine should always be reachable by: localhost, the loopback addresses, the hostname.
pub fn local_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(hostname) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        let hostname = hostname.trim().to_ascii_lowercase();
        if !hostname.is_empty() && hostname != "localhost" && files::is_dns_name(&hostname) {
            names.push(hostname);
        }
    }
    names
}
