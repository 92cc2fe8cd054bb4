//! Whom a client trusts: exactly one CA file, nothing from the machine.
//!
//! In: a PEM file with one or more CA certificates. Out: a rustls client configuration, shared by all connections.
//! Invariant: the server's certificate and its name or address are always verified; there is no way to switch that off.
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::Error;

/// A set of trusted CAs, cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust(pub(super) Arc<ClientConfig>);

impl Trust {
    /// Trusts the CAs of this PEM file.
    ///
    /// # Errors
    /// [`Error::CaFile`] if the file cannot be read, holds no certificate, or one that is no certificate.
    pub fn from_ca_file(path: &Path) -> Result<Self, Error> {
        let bad = |problem: String| Error::CaFile {
            path: path.display().to_string(),
            problem,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
            let certificate = certificate.map_err(|e| bad(e.to_string()))?;
            roots.add(certificate).map_err(|e| bad(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("no certificate in it".into()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}
