//! What a change of one endpoint costs with 1,000 proxies: all of them built, as without notes of what was read, against those that
//! read the endpoint. And what the next world alone costs, as zones grow. Run with `--ignored --nocapture`; what is compared is measured
//! in one run.

#![allow(clippy::unwrap_used)]

#[path = "build_support/mod.rs"]
mod support;

use std::{collections::BTreeMap, sync::Arc};

use hdrhistogram::Histogram;
use serde_json::json;
use support::{MESH, Zone, spiffe_id};
use tokio::time::Instant;
use ursa_model::labels;
use ursa_zone_cp::{
    build::{Encoder, build, build_tracked},
    world::ProxyId,
};

const SERVICES: usize = 100;
const PROXIES: usize = 1_000;
/// Destinations of each proxy.
const OUTBOUNDS: usize = 5;
const CHANGES: usize = 20;

fn networking(i: usize, address: u32) -> serde_json::Value {
    let outbound: Vec<_> = (0..OUTBOUNDS)
        .map(|n| {
            let to = format!("s{}", (i * 7 + n * 13 + 1) % SERVICES);
            json!({"port": 20_000 + n, "backendRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: to}, "port": 80}})
        })
        .collect();
    let address = format!("10.{}.{}.{}", address, i / 250, i % 250 + 1);
    json!({"address": address, "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}], "outbound": outbound})
}

#[test]
#[ignore = "a measurement"]
fn an_endpoint_s_change_is_built_for_those_that_read_it() {
    let mut zone = Zone::new("east");
    zone.put_default_policies();
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}]);
    for i in 0..SERVICES {
        zone.put_service(&format!("s{i}"), "east", ports.clone(), &[spiffe_id("east", "x")], false);
    }
    for i in 0..PROXIES {
        zone.put_dataplane(&format!("p{i}"), &format!("s{}", i % SERVICES), networking(i, 0));
    }
    let ids: Vec<ProxyId> = (0..PROXIES).map(|i| ProxyId::new(MESH, &format!("p{i}"))).collect();
    let encoder = Encoder::default();
    let mut world = zone.world();
    let mut reads: BTreeMap<&ProxyId, _> = ids.iter().map(|id| (id, build_tracked(&world, id, &encoder).unwrap().1)).collect();
    let mut times: BTreeMap<&str, Histogram<u64>> = BTreeMap::new();
    let mut took = |what, since: Instant| {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap();
        times
            .entry(what)
            .or_insert_with(|| Histogram::new(3).unwrap())
            .record(micros)
            .unwrap();
    };
    let mut built = 0;
    for change in 0..CHANGES {
        let i = change * 37 % PROXIES;
        zone.put_dataplane(
            &format!("p{i}"),
            &format!("s{}", i % SERVICES),
            networking(i, u32::try_from(change).unwrap() + 1),
        );
        let start = Instant::now();
        let next = zone.next_world(&world);
        took("world", start);
        let start = Instant::now();
        for id in &ids {
            assert!(build(&next, id, &encoder).is_some());
        }
        took("all proxies", start);
        let start = Instant::now();
        let (old, new) = (world.mesh(MESH).unwrap().clone(), next.mesh(MESH).unwrap().clone());
        assert!(!Arc::ptr_eq(&old, &new));
        for id in &ids {
            if !reads[id].still_hold(&old, &new, &id.name) {
                reads.insert(id, build_tracked(&next, id, &encoder).unwrap().1);
                built += 1;
            }
        }
        took("those that read it", start);
        world = next;
    }
    for (what, times) in &times {
        println!(
            "{what}: p50 {} us, p99 {} us",
            times.value_at_quantile(0.5),
            times.value_at_quantile(0.99)
        );
    }
    println!("{} of {PROXIES} proxies built per change", built / CHANGES);
    assert!(built < CHANGES * PROXIES / 4, "{built} built");
}

/// Every change walks through all resources of its mesh, and parses only those that changed.
#[test]
#[ignore = "a measurement"]
fn the_next_world_of_a_larger_zone() {
    for proxies in [1_000, 10_000] {
        let mut zone = Zone::new("east");
        zone.put_default_policies();
        let services = proxies / 10;
        let ports = json!([{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}]);
        for i in 0..services {
            zone.put_service(&format!("s{i}"), "east", ports.clone(), &[spiffe_id("east", "x")], false);
        }
        let put = |zone: &mut Zone, i: usize, round: u32| {
            zone.put_dataplane(&format!("p{i}"), &format!("s{}", i % services), networking(i, round));
        };
        for i in 0..proxies {
            put(&mut zone, i, 0);
        }
        let mut times: BTreeMap<&str, Histogram<u64>> = BTreeMap::new();
        let mut world = zone.world();
        let mut measure = |what, zone: &mut Zone| {
            let start = Instant::now();
            let next = zone.next_world(&world);
            let micros = u64::try_from(start.elapsed().as_micros()).unwrap();
            times
                .entry(what)
                .or_insert_with(|| Histogram::new(3).unwrap())
                .record(micros)
                .unwrap();
            assert!(!next.same(&world));
            world = next;
        };
        for change in 1..=CHANGES {
            put(&mut zone, change * 37 % proxies, u32::try_from(change).unwrap());
            measure("an endpoint", &mut zone);
            zone.put_service(
                &format!("s{}", change % services),
                "east",
                ports.clone(),
                &[spiffe_id("east", &format!("y{change}"))],
                false,
            );
            measure("a service", &mut zone);
        }
        for (what, times) in &times {
            let [p50, p99] = [0.5, 0.99].map(|q| times.value_at_quantile(q));
            println!("{proxies} proxies and {services} services, {what} changes: the next world takes p50 {p50} us, p99 {p99} us");
        }
    }
}
