//! Secrets.

use envoy_types::{
    pb::envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret as Message, SpiffeCertValidatorConfig, TlsCertificate, secret::Type,
            spiffe_cert_validator_config::TrustDomain,
        },
    },
    util::pack_any,
};

use super::common::inline_text;
use crate::build::plan::Secret;

pub(super) fn encode(name: &str, secret: &Secret) -> Message {
    let content = match secret {
        Secret::Identity { chain_pem, key_pem } => Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(inline_text(chain_pem)),
            private_key: Some(inline_text(key_pem)),
            ..TlsCertificate::default()
        }),
        // The SPIFFE validator picks the bundle by the peer's trust domain, so that no domain's authority can vouch for another's.
        Secret::Trust { domains } => Type::ValidationContext(CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".into(),
                typed_config: Some(pack_any(SpiffeCertValidatorConfig {
                    trust_domains: domains
                        .iter()
                        .map(|(name, pem)| TrustDomain {
                            name: name.clone(),
                            trust_bundle: Some(inline_text(pem)),
                            ..TrustDomain::default()
                        })
                        .collect(),
                    ..SpiffeCertValidatorConfig::default()
                })),
            }),
            ..CertificateValidationContext::default()
        }),
    };
    Message {
        name: name.into(),
        r#type: Some(content),
    }
}
