//! Pieces that several of Envoy's messages share.

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, Metadata, RuntimeFractionalPercent, SocketAddress,
            address, config_source::ConfigSourceSpecifier, data_source, socket_address,
        },
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
    },
    google::protobuf,
};

use crate::build::plan::{Socket, TextMatch};

/// Everything comes over the one ADS stream.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

pub(super) fn address(socket: &Socket) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: socket.ip.to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(socket.port))),
            ..SocketAddress::default()
        })),
    }
}

/// Longest duration that Envoy takes is short of what 64 bits of nanoseconds hold, 292 years, which a policy may ask for. Nobody
/// sees the difference to this: 285 years.
const LONGEST: Duration = Duration::from_secs(9_000_000_000);

pub(super) fn duration(d: Duration) -> protobuf::Duration {
    let d = d.min(LONGEST);
    protobuf::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn uint(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

pub(super) fn boolean(value: bool) -> protobuf::BoolValue {
    protobuf::BoolValue { value }
}

pub(super) fn inline_text(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.into())),
        ..DataSource::default()
    }
}

/// A share in millionths.
pub(super) fn fraction(millionths: u32) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(FractionalPercent {
            numerator: millionths,
            denominator: DenominatorType::Million.into(),
        }),
        runtime_key: String::new(),
    }
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.into(),
        ..RegexMatcher::default()
    }
}

pub(super) fn text(test: &TextMatch) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(match test {
            TextMatch::Exact(t) => MatchPattern::Exact(t.clone()),
            TextMatch::Prefix(t) => MatchPattern::Prefix(t.clone()),
            TextMatch::Regex(t) => MatchPattern::SafeRegex(regex(t)),
        }),
        ..StringMatcher::default()
    }
}

/// Metadata of texts under one or more namespaces.
pub(super) fn metadata(namespaces: &[&str], tags: &BTreeMap<String, String>) -> Metadata {
    let fields = tags
        .iter()
        .map(|(k, v)| {
            (
                k.clone(),
                protobuf::Value {
                    kind: Some(protobuf::value::Kind::StringValue(v.clone())),
                },
            )
        })
        .collect();
    let tags = protobuf::Struct { fields };
    Metadata {
        filter_metadata: namespaces.iter().map(|n| ((*n).into(), tags.clone())).collect(),
        ..Metadata::default()
    }
}

/// The half of a TLS context that both sides have: TLS 1.3 by both bounds (a minimum alone breaks every upstream connection,
/// demo.md trap 1), the certificate and the trust bundle over SDS, and whom to accept on top of that.
pub(super) fn mesh_tls(identity: &str, trust: &str, accept: impl Iterator<Item = TextMatch>, alpn: &[&str]) -> CommonTlsContext {
    let sds = |name: &str| SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ads()),
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..TlsParameters::default()
        }),
        tls_certificate_sds_secret_configs: vec![sds(identity)],
        alpn_protocols: alpn.iter().map(|p| (*p).into()).collect(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: accept
                        .map(|t| SubjectAltNameMatcher {
                            san_type: SanType::Uri.into(),
                            matcher: Some(text(&t)),
                            ..Default::default()
                        })
                        .collect(),
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(sds(trust)),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}
