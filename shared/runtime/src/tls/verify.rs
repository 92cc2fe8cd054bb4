//! Who a client believes a server to be: one whose certificate a given CA signed, or whose certificate is the given one itself.
//! In: the PEM text that the operator trusts. Out: a rustls verifier.
//! Invariant: name and dates always count; a certificate that was not given is only believed if a given one signed it.
//! Source: Kuma 2.14.3 at its first start makes one self-signed certificate that is CA and server certificate at once; WebPKI refuses
//! a CA in the place of a server, though that very certificate is what the operator handed over (docs/interop.md).
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, given, provider};

#[derive(Debug)]
struct Given {
    certificates: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
}

/// Believes servers with a certificate that one in `ca_pem` signed, or that is one of them.
///
/// # Errors
/// `ca_pem` holds no certificate, or one that cannot be a root.
pub fn server_verifier(ca_pem: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let certificates = given(ca_pem)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone())?;
    }
    let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| Error::Invalid {
            what: "CA".to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Arc::new(Given { certificates, signed }))
}

impl ServerCertVerifier for Given {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if !self.certificates.contains(server) {
            return self.signed.verify_server_cert(server, intermediates, name, ocsp, now);
        }
        verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
        let (_, parsed) = X509Certificate::from_der(server).map_err(|_| CertificateError::BadEncoding)?;
        let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < from {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > until {
            return Err(CertificateError::Expired.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A CA of that name, valid now; the name is also its server name.
    fn authority(name: &str) -> (rcgen::Certificate, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = time::OffsetDateTime::now_utc() - DAY;
        params.not_after = time::OffsetDateTime::now_utc() + DAY;
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate, Issuer::new(params, key))
    }

    fn check(ca: &rcgen::Certificate, server: &CertificateDer<'_>, name: &str, now: UnixTime) -> Result<(), TlsError> {
        let verifier = server_verifier(ca.pem().as_bytes()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(server, &[], &name, &[], now).map(|_| ())
    }

    #[test]
    fn the_given_certificate_itself_is_believed_for_its_name_and_time() {
        let (ca, _) = authority("kuma.example");
        let now = UnixTime::now();
        assert_eq!(check(&ca, ca.der(), "kuma.example", now), Ok(()));
        check(&ca, ca.der(), "other.example", now).unwrap_err();
        let later = |days: u32| UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + DAY * days);
        assert_eq!(
            check(&ca, ca.der(), "kuma.example", later(2)),
            Err(CertificateError::Expired.into())
        );
        let before = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) - DAY * 2);
        assert_eq!(
            check(&ca, ca.der(), "kuma.example", before),
            Err(CertificateError::NotValidYet.into())
        );
    }

    #[test]
    fn another_certificate_must_be_signed_and_be_no_ca() {
        let (ca, issuer) = authority("kuma.example");
        let now = UnixTime::now();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["kuma.example".to_owned()]).unwrap();
        let server = params.signed_by(&key, &issuer).unwrap();
        assert_eq!(check(&ca, server.der(), "kuma.example", now), Ok(()));
        check(&ca, server.der(), "other.example", now).unwrap_err();

        let (twin, _) = authority("kuma.example");
        check(&ca, twin.der(), "kuma.example", now).unwrap_err();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let below = params.signed_by(&key, &issuer).unwrap();
        check(&ca, below.der(), "kuma.example", now).unwrap_err();
        let alone = CertificateParams::new(["kuma.example".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        check(&ca, alone.der(), "kuma.example", now).unwrap_err();
    }

    #[test]
    fn text_without_a_certificate_is_refused() {
        for text in ["", "kuma.example"] {
            assert!(matches!(server_verifier(text.as_bytes()), Err(Error::Invalid { .. })), "{text:?}");
        }
    }
}
