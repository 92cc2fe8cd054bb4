//! Who is who in the handshake between nodes: TLS 1.3, both sides with a certificate of the cluster's CA that names a node.
//! In: PEM texts, which may be renewed while the process runs. Out: rustls configs.
//! Invariants: a connection exists only between two nodes of one cluster, and a client reaches the node it meant or none; a renewed
//! certificate is used from the next handshake on, and one that cannot be used never replaces one that can.
//! Source: `reference/crates.md` 3.4 (own verifiers for URI names). Not here: making certificates (`ursa_pki::node`).
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::sync::watch;
use ursa_pki::node::{self, NodeIdentity};

use super::Refusal;
use crate::error::OpenError;

/// gRPC speaks HTTP/2 alone.
const ALPN: &[u8] = b"h2";

/// Certificates of this node, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeTls {
    /// The cluster's CA; several while it is replaced.
    pub ca_pem: String,
    /// This node's chain, leaf first. The leaf names the node in a URI, see `ursa_pki::node`.
    pub cert_pem: String,
    /// The leaf's private key.
    pub key_pem: String,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// What the texts say.
struct Loaded {
    from: Arc<NodeTls>,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// This node in handshakes.
pub(crate) struct Identity {
    node: NodeIdentity,
    source: watch::Receiver<Arc<NodeTls>>,
    loaded: RwLock<Arc<Loaded>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn load(from: Arc<NodeTls>) -> Result<(NodeIdentity, Loaded), String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let chain = CertificateDer::pem_slice_iter(from.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| text(&error))?;
    let leaf = chain.first().ok_or("there is no certificate in it")?;
    let node = node::identity_of(leaf).map_err(|error| text(&error))?;
    let key = PrivateKeyDer::from_pem_slice(from.key_pem.as_bytes()).map_err(|error| format!("its key: {error}"))?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| format!("its key: {error}"))?;
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(from.ca_pem.as_bytes()) {
        let ca = ca.map_err(|error| format!("the CA: {error}"))?;
        roots.add(ca).map_err(|error| format!("the CA: {error}"))?;
    }
    if roots.is_empty() {
        return Err("the CA: there is no certificate in it".to_owned());
    }
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| format!("its key: {error}"))?;
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
    let loaded = Loaded {
        from,
        certified: Arc::new(certified),
        roots,
        clients: clients.map_err(|error| text(&error))?,
    };
    Ok((node, loaded))
}

fn foreign(reason: impl fmt::Display) -> Refusal {
    Refusal::ForeignCertificate {
        reason: reason.to_string(),
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

/// Why a handshake failed, in our words, if it was about certificates.
pub(crate) fn refusal_of(error: &std::io::Error) -> Option<Refusal> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            Some(inner.downcast_ref::<Refusal>().cloned().unwrap_or_else(|| foreign(inner)))
        }
        Error::InvalidCertificate(error) => Some(foreign(format_args!("{error:?}"))),
        // The other side's verdict on ours.
        Error::AlertReceived(alert) => Some(foreign(format_args!("the other side says {alert:?}"))),
        _ => None,
    }
}

impl Identity {
    /// Reads the texts.
    ///
    /// # Errors
    /// They cannot be used, or are another node's.
    pub(crate) fn new(node_id: u64, source: watch::Receiver<Arc<NodeTls>>) -> Result<Self, OpenError> {
        let from = source.borrow().clone();
        let (node, loaded) = load(from).map_err(|reason| OpenError::Certificate { reason })?;
        if node.id != node_id {
            return Err(OpenError::Certificate {
                reason: format!("it is node {}'s, this is node {node_id}", node.id),
            });
        }
        Ok(Self {
            node,
            source,
            loaded: RwLock::new(Arc::new(loaded)),
        })
    }

    /// The newest texts that can be used.
    fn current(&self) -> Arc<Loaded> {
        let newest = self.source.borrow().clone();
        let current = self.loaded.read().clone();
        if Arc::ptr_eq(&newest, &current.from) {
            return current;
        }
        let fresh = match load(newest.clone()) {
            Ok((node, loaded)) if node == self.node => Arc::new(loaded),
            outcome => {
                let reason = outcome.err().unwrap_or_else(|| "it is another node's".to_owned());
                tracing::error!(reason, "the renewed node certificate cannot be used, the one before stays");
                // Not looked at again.
                Arc::new(Loaded {
                    from: newest,
                    certified: current.certified.clone(),
                    roots: current.roots.clone(),
                    clients: current.clients.clone(),
                })
            }
        };
        *self.loaded.write() = fresh.clone();
        fresh
    }

    /// The node of this cluster that a certificate names.
    ///
    /// # Errors
    /// It names none.
    pub(crate) fn member(&self, certificate: &CertificateDer<'_>) -> Result<u64, Refusal> {
        let named = node::identity_of(certificate).map_err(foreign)?;
        if named.cluster != self.node.cluster {
            return Err(foreign(format_args!(
                "it is of cluster {}, this is {}",
                named.cluster, self.node.cluster
            )));
        }
        Ok(named.id)
    }

    /// For the listener: a client needs a certificate.
    pub(crate) fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs has cipher suites for TLS 1.3");
        let mut config = builder
            .with_client_cert_verifier(Arc::new(Clients(self.clone())))
            .with_cert_resolver(Arc::new(Ours(self.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection shows its certificate anew.
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// For connections to `node`.
    pub(crate) fn client_config(self: &Arc<Self>, node: u64) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs has cipher suites for TLS 1.3");
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Server {
                identity: self.clone(),
                node,
            }))
            .with_client_cert_resolver(Arc::new(Ours(self.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

/// Our own certificate, on either side.
#[derive(Debug)]
struct Ours(Arc<Identity>);

impl ResolvesServerCert for Ours {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl ResolvesClientCert for Ours {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

fn signature(message: &[u8], certificate: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
    rustls::crypto::verify_tls13_signature(
        message,
        certificate,
        signed,
        &aws_lc_rs::default_provider().signature_verification_algorithms,
    )
}

fn schemes() -> Vec<SignatureScheme> {
    aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
}

/// Lets nodes of the cluster in.
#[derive(Debug)]
struct Clients(Arc<Identity>);

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate; hints would only tell strangers about us.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.current().clients.verify_client_cert(leaf, chain, now)?;
        self.0.member(leaf).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Takes one node and no other for the server.
#[derive(Debug)]
struct Server {
    identity: Arc<Identity>,
    node: u64,
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.identity.current().roots, chain, now, algorithms)?;
        let is = self.identity.member(leaf).map_err(refused)?;
        if is != self.node {
            return Err(refused(Refusal::OtherNode { asked: self.node, is }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
