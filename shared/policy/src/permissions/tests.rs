//! Lists of a proxy's permissions: order, origin, shadow denials (facts.md F8).

use serde_json::{Value, json};

use crate::{
    Permission, Permissions, Policies,
    testing::{matched, permission},
};

fn id(name: &str) -> Value {
    json!({"spiffeID": {"type": "Exact", "value": format!("spiffe://default.east.mesh.local/workload/{name}")}})
}

fn of(policies: &Policies, section: &str) -> Permissions {
    matched(policies).inbound[section].permissions().clone()
}

fn shown(list: &[Permission]) -> Vec<(String, usize)> {
    list.iter().map(|p| (p.policy.to_string(), p.matches.len())).collect()
}

#[test]
fn without_policy_there_are_no_lists_so_all_are_denied() {
    assert_eq!(of(&Policies::default(), "http"), Permissions::default());
}

#[test]
fn lists_keep_the_order_and_the_policy() {
    let policies = Policies {
        permissions: vec![
            permission(
                "section",
                &[],
                json!({"targetRef": {"kind": "Dataplane", "sectionName": "http"},
                "rules": [{"default": {"deny": [id("c")], "allow": []}}]}),
            ),
            permission(
                "b",
                &[],
                json!({"rules": [{"default": {"allow": [id("a"), id("b")], "allowWithShadowDeny": [id("s")]}},
                {"default": {"deny": [id("d")], "allow": [{}]}}]}),
            ),
            permission("a", &[], json!({"rules": [{"default": {"allow": [id("e")]}}]})),
            permission(
                "not-me",
                &[],
                json!({"targetRef": {"kind": "Dataplane", "labels": {"kuma.io/workload": "backend"}},
                "rules": [{"default": {"allow": [id("x")]}}]}),
            ),
        ],
        ..Policies::default()
    };
    let kri = |name: &str| format!("kri_mtp_default___{name}_");
    let http = of(&policies, "http");
    assert_eq!(shown(&http.deny), [(kri("b"), 1), (kri("section"), 1)]);
    assert_eq!(shown(&http.allow), [(kri("b"), 3), (kri("a"), 1)]);
    assert_eq!(shown(&http.shadow_deny), [(kri("b"), 1)]);
    assert_eq!(
        http.allow[0].matches[2].spiffe_id.as_ref().unwrap().value,
        "spiffe://default.east.mesh.local/workload/s"
    );

    let other = of(&policies, "9090");
    assert_eq!(shown(&other.deny), [(kri("b"), 1)]);
    assert_eq!(other.allow, http.allow);
}

#[test]
fn an_sni_is_noticed() {
    let with = |list: &str, caller: Value| {
        let rule = json!({"default": {list: [caller]}});
        of(
            &Policies {
                permissions: vec![permission("a", &[], json!({"rules": [rule]}))],
                ..Policies::default()
            },
            "http",
        )
        .needs_sni()
    };
    let sni = json!({"sni": {"type": "Exact", "value": "a"}});
    assert!(with("deny", sni.clone()) && with("allow", sni.clone()) && with("allowWithShadowDeny", sni));
    assert!(!with("allow", id("a")));
}

#[test]
fn results_serialise_with_kris_as_texts() {
    let policies = Policies {
        permissions: vec![permission("a", &[], json!({"rules": [{"default": {"deny": [id("x")]}}]}))],
        ..Policies::default()
    };
    let json = serde_json::to_value(matched(&policies)).unwrap();
    assert_eq!(
        json["inbound"]["http"]["permissions"]["deny"][0],
        json!({"policy": "kri_mtp_default___a_", "matches": [id("x")]})
    );
    assert_eq!(json["outbound"]["timeouts"]["mesh"], "kri_m____default_");
}
