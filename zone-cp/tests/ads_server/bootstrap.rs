//! `POST /bootstrap`.

use serde_json::json;

use crate::common::{MESH, TestZone, backend};

#[tokio::test]
async fn a_bad_bootstrap_request_gets_a_reason() {
    let zone = TestZone::start().await;
    let good = || json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": "x", "dataplaneResource": backend("dp-1")});
    let with = |field: &str, value: serde_json::Value| {
        let mut request = good();
        request[field] = value;
        request
    };
    assert_eq!(zone.post("/bootstrap", good().to_string()).await.0, 200);
    let cases = [
        ("[]".to_owned(), 400, "no JSON object"),
        ("{".to_owned(), 400, "no valid JSON"),
        ("null".to_owned(), 400, "no JSON object"),
        (with("caCert", json!("junk")).to_string(), 400, "caCert"),
        (
            with("caCert", json!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).to_string(),
            400,
            "caCert",
        ),
        (with("readinessPort", json!(70_000)).to_string(), 422, "readinessPort"),
        (with("dnsPort", json!(1_000_000)).to_string(), 422, "dnsPort"),
        (with("readinessPort", json!(-1)).to_string(), 400, "JSON"),
        (with("proxyType", json!("ingress")).to_string(), 422, "ingress"),
        (with("dataplaneToken", json!("")).to_string(), 422, "Dataplane Token"),
        (with("dataplaneResource", json!("{}")).to_string(), 422, "Dataplane"),
        (json!({"mesh": MESH, "name": "nobody", "dataplaneToken": "x"}).to_string(), 404, ""),
    ];
    for (body, status, part) in cases {
        let (got, text) = zone.post("/bootstrap", body.clone()).await;
        assert_eq!(got, status, "{body}: {text}");
        assert!(text.contains(part) && (status != 404 || text.is_empty()), "{body}: {text}");
    }
}
