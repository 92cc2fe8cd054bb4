//! Who calls, as connection state that routes can match on: routes know nothing of certificates by themselves.

use envoy_types::{
    pb::{
        envoy::{
            config::core::v3::{SubstitutionFormatString, substitution_format_string::Format},
            extensions::filters::{
                common::set_filter_state::v3::{
                    FilterStateValue,
                    filter_state_value::{Key, Value},
                },
                network::set_filter_state::v3::Config,
            },
            r#type::matcher::v3::{FilterStateMatcher, filter_state_matcher::Matcher},
        },
        google::protobuf::Any,
    },
    util::pack_any,
};
use ursa_model::kind::mesh_traffic_permission::{Match, SpiffeIdMatchType};

use super::common::{inline_text, text};
use crate::build::plan::TextMatch;

const SPIFFE_ID: &str = "ursa.caller.spiffe_id";
const SNI: &str = "ursa.caller.sni";

/// The network filter that keeps both, once the handshake has proved them.
pub(super) fn remember() -> Any {
    let value = |key: &str, format: &str| FilterStateValue {
        key: Some(Key::ObjectKey(key.into())),
        factory_key: "envoy.string".into(),
        skip_if_empty: true,
        value: Some(Value::FormatString(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(inline_text(format))),
            omit_empty_values: true,
            ..SubstitutionFormatString::default()
        })),
        ..FilterStateValue::default()
    };
    pack_any(Config {
        on_downstream_tls_handshake: vec![value(SPIFFE_ID, "%DOWNSTREAM_PEER_URI_SAN%"), value(SNI, "%REQUESTED_SERVER_NAME%")],
        ..Config::default()
    })
}

/// What a route asks of the caller; all must hold.
pub(super) fn matchers(caller: &Match) -> Vec<FilterStateMatcher> {
    let matcher = |key: &str, test: TextMatch| FilterStateMatcher {
        key: key.into(),
        matcher: Some(Matcher::StringMatch(text(&test))),
    };
    let id = caller.spiffe_id.as_ref().map(|id| {
        let value = id.value.clone();
        matcher(
            SPIFFE_ID,
            match id.kind {
                SpiffeIdMatchType::Exact => TextMatch::Exact(value),
                SpiffeIdMatchType::Prefix => TextMatch::Prefix(value),
            },
        )
    });
    let sni = caller.sni.as_ref().map(|sni| matcher(SNI, TextMatch::Exact(sni.value.clone())));
    id.into_iter().chain(sni).collect()
}
