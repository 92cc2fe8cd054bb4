//! The bootstrap answer: the YAML for Envoy, and what we must know of it.
//! In: the JSON body. Out: [`Bootstrap`], with the admin interface's address read from the YAML.
//! Invariant: the YAML is passed on byte for byte. It holds the token, so it has no Debug and goes only into a 0600 file.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::admin::AdminAddress;

/// What Envoy is started with.
#[derive(Clone)]
pub struct Bootstrap {
    /// The configuration, as the control plane wrote it.
    pub yaml: String,
    /// Where it puts Envoy's admin interface.
    pub admin: AdminAddress,
    /// `networking.address` of the Dataplane, when the control plane says it.
    pub address: Option<String>,
}

/// The control plane answered 200 with something else than a bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAnswer {
    /// No JSON of the expected shape.
    #[error("it is not the JSON of a bootstrap answer")]
    Json(#[source] serde_json::Error),
    /// `bootstrap` is not base64, or not UTF-8.
    #[error("its Envoy configuration is not base64 of text")]
    Encoding,
    /// The Envoy configuration is no YAML.
    #[error("its Envoy configuration is not valid YAML: {0}")]
    Yaml(String),
    /// Without the admin interface we can neither ask for readiness nor drain.
    #[error("its Envoy configuration names no admin interface on a unix socket or IP address")]
    NoAdmin,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    bootstrap: String,
    #[serde(default)]
    kuma_sidecar_configuration: SidecarConfiguration,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SidecarConfiguration {
    networking: Networking,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Networking {
    address: String,
}

/// The few fields of Envoy's bootstrap that concern us.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EnvoyBootstrap {
    admin: EnvoyAdmin,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EnvoyAdmin {
    address: EnvoyAddress,
}

/// Envoy reads both spellings of a field, the proto's and JSON's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EnvoyAddress {
    pipe: Option<EnvoyPipe>,
    #[serde(alias = "socketAddress")]
    socket_address: Option<EnvoySocketAddress>,
}

#[derive(Deserialize)]
struct EnvoyPipe {
    path: PathBuf,
}

#[derive(Deserialize)]
struct EnvoySocketAddress {
    address: IpAddr,
    #[serde(alias = "portValue")]
    port_value: u16,
}

impl Bootstrap {
    /// Reads the body of a 200.
    ///
    /// # Errors
    /// It is not what a control plane answers.
    pub fn from_answer(body: &[u8]) -> Result<Self, InvalidAnswer> {
        let answer: Answer = serde_json::from_slice(body).map_err(InvalidAnswer::Json)?;
        let yaml = STANDARD.decode(answer.bootstrap.trim()).map_err(|_| InvalidAnswer::Encoding)?;
        let yaml = String::from_utf8(yaml).map_err(|_| InvalidAnswer::Encoding)?;
        let address = answer.kuma_sidecar_configuration.networking.address;
        Self::from_yaml(yaml, Some(address).filter(|address| !address.is_empty()))
    }

    /// From an Envoy configuration.
    ///
    /// # Errors
    /// It is no YAML or has no admin interface.
    pub fn from_yaml(yaml: String, address: Option<String>) -> Result<Self, InvalidAnswer> {
        // Without a snippet: the text around an error could be the token.
        let options = serde_saphyr::options! { with_snippet: false };
        let parsed: EnvoyBootstrap =
            serde_saphyr::from_str_with_options(&yaml, options).map_err(|error| InvalidAnswer::Yaml(error.to_string()))?;
        let EnvoyAddress { pipe, socket_address } = parsed.admin.address;
        let admin = match (pipe, socket_address) {
            (Some(pipe), _) => AdminAddress::Unix(pipe.path),
            (None, Some(socket)) => AdminAddress::Tcp(SocketAddr::new(socket.address, socket.port_value)),
            (None, None) => return Err(InvalidAnswer::NoAdmin),
        };
        Ok(Self { yaml, admin, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(yaml: &str) -> Vec<u8> {
        let bootstrap = STANDARD.encode(yaml);
        serde_json::to_vec(&serde_json::json!({
            "bootstrap": bootstrap,
            "kumaSidecarConfiguration": {"networking": {"address": "127.0.1.10"}, "metrics": {"aggregate": []}},
        }))
        .unwrap()
    }

    const YAML: &str = "node: {id: default.web}\nadmin: {address: {pipe: {path: /run/w/a.sock, mode: 0600}}}\nlayered_runtime: {}\n";

    #[test]
    fn the_admin_socket_is_where_the_bootstrap_says() {
        let bootstrap = Bootstrap::from_answer(&answer(YAML)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(bootstrap.admin, AdminAddress::Unix("/run/w/a.sock".into()));
        assert_eq!(bootstrap.yaml, YAML, "byte for byte");
        assert_eq!(bootstrap.address.as_deref(), Some("127.0.1.10"));
        let tcp = "admin:\n  address:\n    socketAddress: {address: 127.0.0.1, portValue: 9901}\n";
        let bootstrap = Bootstrap::from_answer(&answer(tcp)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(bootstrap.admin, AdminAddress::Tcp("127.0.0.1:9901".parse().unwrap()));
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        let problem = |body: &[u8]| {
            Bootstrap::from_answer(body)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        assert!(problem(b"<html>").contains("JSON"));
        assert!(problem(br#"{"bootstrap": "%%"}"#).contains("base64"));
        assert!(problem(&answer("node: {id: x}")).contains("no admin interface"));
        assert!(problem(&answer("admin: [")).contains("YAML"));
        assert!(problem(&answer("admin: {address: {pipe: {path: \"secret-token\"")).contains("YAML"));
        assert!(!problem(&answer("admin: {address: {pipe: {path: \"secret-token\"")).contains("secret"));
    }
}
