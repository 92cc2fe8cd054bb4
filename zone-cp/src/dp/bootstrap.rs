//! `POST /bootstrap`: the static configuration that a proxy's Envoy starts with. Source: dataplane.md 1.2 and 1.3, demo.md 2.
//! The token is passed on here and checked on the ADS stream.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};
use ursa_model::{Kind, ResourceKey, labels};

use super::ads::{Registered, Registrar};
use crate::world::ProxyId;

/// Largest request, in bytes: a Dataplane and a CA bundle.
const MAX_BODY: usize = 1024 * 1024;

/// What the handler needs.
#[derive(Clone)]
pub struct Bootstrap {
    pub registrar: Registrar,
    /// The CA that signed the data-plane server's certificate, PEM.
    pub ca_pem: Arc<str>,
    /// Names and addresses in that certificate.
    pub sans: Arc<[String]>,
    pub port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Request {
    mesh: String,
    name: String,
    proxy_type: String,
    dataplane_token: Option<String>,
    dataplane_token_path: Option<String>,
    dataplane_resource: Option<String>,
    version: Value,
    ca_cert: String,
    dynamic_metadata: BTreeMap<String, String>,
    dns_port: u32,
    readiness_port: u32,
    /// The name says the opposite of the meaning: true = the probe proxy is on.
    app_probe_proxy_disabled: bool,
    features: Vec<String>,
    workdir: String,
    metrics_resources: MetricsResources,
    system_ca_path: String,
    #[serde(rename = "ipv6Enabled")]
    ipv6_enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MetricsResources {
    cert_path: String,
    key_path: String,
}

/// The route, to be served beside ADS.
pub fn router(bootstrap: Bootstrap) -> Router {
    Router::new()
        .route("/bootstrap", post(handle))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(bootstrap)
}

/// An answer that is no bootstrap: kuma-dp treats a 4xx with a body as final and retries everything else.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, [(header::CONTENT_TYPE, "text/plain")], self.1).into_response()
    }
}

async fn handle(State(bootstrap): State<Bootstrap>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    match build(&bootstrap, &uri, &headers, &body) {
        Ok(response) => response,
        Err(refused) => {
            warn!(status = refused.0.as_u16(), reason = %refused.1, "bootstrap refused");
            refused.into_response()
        }
    }
}

fn build(bootstrap: &Bootstrap, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refused> {
    let request: Request =
        serde_json::from_slice(body).map_err(|e| Refused(StatusCode::BAD_REQUEST, format!("the request is no valid JSON: {e}")))?;
    let unprocessable = |text: String| Refused(StatusCode::UNPROCESSABLE_ENTITY, text);
    if !matches!(request.proxy_type.as_str(), "" | "dataplane") {
        return Err(unprocessable(format!(
            "proxy type {:?} is not supported, only dataplane is",
            request.proxy_type
        )));
    }
    if request.dataplane_token.as_deref().is_none_or(str::is_empty) && request.dataplane_token_path.as_deref().is_none_or(str::is_empty) {
        return Err(unprocessable("Dataplane Token is required. Generate token using 'kumactl generate dataplane-token > /path/file' and provide it via --dataplane-token-file=/path/file argument to Kuma DP".into()));
    }
    let registered = match &request.dataplane_resource {
        Some(text) => bootstrap.registrar.check(text).map_err(|e| unprocessable(e.to_string()))?,
        None => {
            let key = ResourceKey::new(Kind::Dataplane, &request.mesh, &request.name).map_err(|e| unprocessable(e.to_string()))?;
            bootstrap
                .registrar
                .stored(&key)
                .ok_or(Refused(StatusCode::NOT_FOUND, String::new()))?
        }
    };
    if !bootstrap.registrar.mesh_exists(&registered.proxy.mesh) {
        // Known again once the mesh arrives from the global: the empty body makes the client retry.
        return Err(Refused(StatusCode::NOT_FOUND, String::new()));
    }
    let host = host_of(uri, headers).ok_or_else(|| Refused(StatusCode::BAD_REQUEST, "the request has no Host".into()))?;
    if !bootstrap.sans.iter().any(|san| san == &host) {
        let text = format!(
            "SAN mismatch: {host:?} is not in the certificate of the data-plane server, which is valid for {}",
            bootstrap.sans.join(", ")
        );
        return Err(Refused(StatusCode::BAD_REQUEST, text));
    }
    let config = envoy(bootstrap, &request, &registered, &host);
    let text = serde_json::to_string_pretty(&config).map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    info!(proxy = %registered.proxy, "bootstrap served");
    let accepts_json = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("application/json"));
    if !accepts_json {
        return Ok(([(header::CONTENT_TYPE, "text/x-yaml")], text).into_response());
    }
    let answer = json!({
        "bootstrap": STANDARD.encode(text),
        "kumaSidecarConfiguration": {
            "networking": {"address": registered.spec.networking.address},
            "metrics": {"aggregate": null},
        },
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response())
}

/// The host that the client called, without the port: HTTP/2 names it in the URI, HTTP/1 in a header.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let authority = match uri.authority() {
        Some(authority) => authority.clone(),
        None => headers.get(header::HOST)?.to_str().ok()?.parse().ok()?,
    };
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

/// Envoy's bootstrap. YAML is asked for; JSON is YAML.
fn envoy(bootstrap: &Bootstrap, request: &Request, registered: &Registered, host: &str) -> Value {
    let ca = if request.ca_cert.is_empty() {
        bootstrap.ca_pem.as_ref()
    } else {
        &request.ca_cert
    };
    let is_ip = host.parse::<IpAddr>().is_ok();
    let socket = format!("{}/kuma-envoy-admin.sock", request.workdir);
    let token = match &request.dataplane_token {
        Some(token) if !token.is_empty() => json!({"key": "authorization", "value": token.trim()}),
        _ => Value::Null,
    };
    let mut metadata = json!({
        "version": request.version,
        "features": request.features,
        "workdir": request.workdir,
        "dataplane.proxyType": "dataplane",
        "dataplane.admin.socketPath": socket,
        "dynamicMetadata": request.dynamic_metadata,
        "ipv6Enabled": request.ipv6_enabled,
    });
    if let Value::Object(fields) = &mut metadata {
        let mut text = |key: &str, value: String| {
            if !value.is_empty() && value != "0" {
                fields.insert(key.into(), value.into());
            }
        };
        text(
            "dataplane.resource",
            request.dataplane_resource.as_ref().map(|_| registered.json()).unwrap_or_default(),
        );
        text("dataplane.dns.port", request.dns_port.to_string());
        text("dataplane.readinessReporter.port", request.readiness_port.to_string());
        text(
            "dataplane.appProbeProxy.enabled",
            if request.app_probe_proxy_disabled {
                "true".into()
            } else {
                String::new()
            },
        );
        text("metricsCertPath", request.metrics_resources.cert_path.clone());
        text("metricsKeyPath", request.metrics_resources.key_path.clone());
        text("systemCaPath", request.system_ca_path.clone());
    }
    let proxy: &ProxyId = &registered.proxy;
    let mut grpc = json!({
        "envoy_grpc": {
            "cluster_name": "system_ads",
            // Envoy's own reconnect back-off grows to 30 s.
            "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "2s"}},
        },
    });
    if !token.is_null() {
        grpc["initial_metadata"] = json!([token]);
    }
    // An address is no server name (RFC 6066): servers complain.
    let server_name = if is_ip { "" } else { host };
    json!({
        "node": {
            "id": proxy.to_string(),
            "cluster": registered.labels.get(labels::WORKLOAD).map_or("unknown", String::as_str),
            "metadata": metadata,
        },
        "admin": {"address": {"pipe": {"path": socket, "mode": 0o600}}},
        "layered_runtime": {"layers": [{"name": "kuma", "static_layer": {
            "re2.max_program_size.error_level": 4_294_967_295u64, "re2.max_program_size.warn_level": 1000}}]},
        "default_regex_engine": {"name": "envoy.regex_engines.google_re2", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.regex_engines.v3.GoogleRE2"}},
        "stats_config": {"stats_tags": [
            {"tag_name": "name", "regex": "^grpc\\.((.+)\\.)"},
            {"tag_name": "status", "regex": "^grpc.*streams_closed(_([0-9]+))"},
            {"tag_name": "worker", "regex": "(worker_([0-9]+)\\.)"},
            {"tag_name": "listener", "regex": "((.+?)\\.)rbac\\."}]},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [grpc],
            },
        },
        "static_resources": {
            "secrets": [{
                "name": "cp_validation_ctx",
                "validation_context": {
                    "trusted_ca": {"inline_string": ca},
                    "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": host}},
                        {"san_type": "IP_ADDRESS", "matcher": {"exact": host}},
                    ],
                },
            }],
            "clusters": [{
                "name": "system_ads",
                "type": if is_ip { "STATIC" } else { "STRICT_DNS" },
                "connect_timeout": "1s",
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 10}},
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}},
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                        "sni": server_name,
                        "common_tls_context": {
                            "alpn_protocols": ["h2"],
                            // Envoy's client would stop at TLS 1.2 unless told.
                            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                            "combined_validation_context": {
                                "default_validation_context": {},
                                "validation_context_sds_secret_config": {"name": "cp_validation_ctx"},
                            },
                        },
                    },
                },
                "load_assignment": {"cluster_name": "system_ads", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": host, "port_value": bootstrap.port}}}}]}]},
            }],
        },
    })
}
