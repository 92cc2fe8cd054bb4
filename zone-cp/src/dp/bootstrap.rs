//! `POST /bootstrap`: the static configuration that a proxy's Envoy starts with. Source: dataplane.md 1.2 and 1.3, demo.md 2.
//! The token is passed on here and checked on the ADS stream.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Extension, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};
use ursa_model::{Kind, ResourceKey, labels};
use ursa_pki::{Bundle, TrustedCa};
use ursa_runtime::{serve, throttle::Throttle};

use super::{
    ads::{Registered, Registrar},
    metadata,
};
use crate::world::ProxyId;

/// Largest request, in bytes: a Dataplane and a CA bundle.
const MAX_BODY: usize = 1024 * 1024;

/// What the handler needs.
#[derive(Clone)]
pub struct Bootstrap {
    pub registrar: Registrar,
    /// Refusals are logged once a minute each.
    pub refusals: Throttle,
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
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    body: String,
    /// For our log, when the body must be empty.
    reason: Option<String>,
}

impl Refused {
    fn new(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            body: body.into(),
            reason: None,
        }
    }

    fn unprocessable(body: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, body)
    }

    /// Not known yet: the empty body makes the client try again.
    fn unknown(reason: String) -> Self {
        Self {
            reason: Some(reason),
            ..Self::new(StatusCode::NOT_FOUND, "")
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain")], self.body).into_response()
    }
}

async fn handle(
    State(bootstrap): State<Bootstrap>,
    peer: Option<Extension<serve::Peer>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match build(&bootstrap, &uri, &headers, &body) {
        Ok(response) => response,
        Err(refused) => {
            let address = peer.map(|Extension(peer)| peer.addr);
            let reason = refused.reason.as_deref().unwrap_or(&refused.body);
            let from = address.map(|a| a.ip().to_string()).unwrap_or_default();
            if let Some(repeated) = bootstrap.refusals.pass(&format!("bootstrap\n{from}\n{reason}")) {
                let (status, address) = (refused.status.as_u16(), address.map(tracing::field::display));
                warn!(status, address, reason, repeated, "bootstrap refused");
            }
            refused.into_response()
        }
    }
}

/// The request, as far as it can be checked by itself.
fn parse(body: &[u8]) -> Result<Request, Refused> {
    let bad = |e: serde_json::Error| Refused::new(StatusCode::BAD_REQUEST, format!("the request is no valid JSON: {e}"));
    let value: Value = serde_json::from_slice(body).map_err(bad)?;
    if !value.is_object() {
        return Err(Refused::new(StatusCode::BAD_REQUEST, "the request is no JSON object"));
    }
    let request: Request = serde_json::from_value(value).map_err(bad)?;
    if !matches!(request.proxy_type.as_str(), "" | "dataplane") {
        let text = format!("proxy type {:?} is not supported, only dataplane is", request.proxy_type);
        return Err(Refused::unprocessable(text));
    }
    for (field, port) in [("dnsPort", request.dns_port), ("readinessPort", request.readiness_port)] {
        if u16::try_from(port).is_err() {
            return Err(Refused::unprocessable(format!("{field}: {port} is no port")));
        }
    }
    if !request.ca_cert.is_empty() {
        let bundle = Bundle::parse(&request.ca_cert).map_err(|e| Refused::new(StatusCode::BAD_REQUEST, format!("caCert: {e}")))?;
        if !bundle.certificates().iter().any(TrustedCa::is_ca) {
            return Err(Refused::new(StatusCode::BAD_REQUEST, "caCert: it is no certificate authority"));
        }
    }
    if request.dataplane_token.as_deref().is_none_or(str::is_empty) && request.dataplane_token_path.as_deref().is_none_or(str::is_empty) {
        return Err(Refused::unprocessable(
            "Dataplane Token is required. Generate token using 'kumactl generate dataplane-token > /path/file' and provide it via --dataplane-token-file=/path/file argument to Kuma DP",
        ));
    }
    Ok(request)
}

fn build(bootstrap: &Bootstrap, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refused> {
    let request = parse(body)?;
    let registered = match &request.dataplane_resource {
        Some(text) => bootstrap.registrar.check(text).map_err(|e| Refused::unprocessable(e.to_string()))?,
        None => {
            let key = ResourceKey::new(Kind::Dataplane, &request.mesh, &request.name).map_err(|e| Refused::unprocessable(e.to_string()))?;
            bootstrap
                .registrar
                .stored(&key)
                .ok_or_else(|| Refused::unknown(format!("{key} does not exist")))?
        }
    };
    let mesh = &registered.proxy.mesh;
    if !bootstrap.registrar.mesh_exists(mesh) {
        // Known again once the mesh arrives from the global.
        return Err(Refused::unknown(format!("mesh {mesh} does not exist in this zone yet")));
    }
    let host = host_of(uri, headers).ok_or_else(|| Refused::new(StatusCode::BAD_REQUEST, "the request has no Host"))?;
    if !bootstrap.sans.iter().any(|san| san == &host) {
        let text = format!(
            "SAN mismatch: {host:?} is not in the certificate of the data-plane server, which is valid for {}",
            bootstrap.sans.join(", ")
        );
        return Err(Refused::new(StatusCode::BAD_REQUEST, text));
    }
    let config = envoy(bootstrap, &request, &registered, &host);
    let text = serde_json::to_string_pretty(&config).map_err(|e| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
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
    // Ours tell by themselves when they drain; of others their Envoy tells.
    let hds = (!request.dynamic_metadata.contains_key(metadata::INSTANCE)).then(|| {
        json!({
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [grpc.clone()],
        })
    });
    // An address is no server name (RFC 6066): servers complain.
    let server_name = if is_ip { "" } else { host };
    let mut config = json!({
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
    });
    if let (Some(hds), Some(fields)) = (hds, config.as_object_mut()) {
        fields.insert("hds_config".into(), hds);
    }
    config
}
