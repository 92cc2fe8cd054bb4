//! What there is to try while the demo stays up. In: the running demo. Out: addresses and commands that can be pasted.
//! Invariant: whatever is tried, a killed process included, changes nothing about the verdict.
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use crate::demo::Demo;
use crate::demo::topology::port;
use crate::harness::wait::{Poll, wait_until};

/// How often it is looked whether something ended.
const LOOK: Duration = Duration::from_millis(100);
/// Nobody tries things for longer.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Stays up, and says when a process ends.
pub async fn until_stopped(demo: &Demo, stopped: impl Future<Output = &'static str>) {
    let mut told = BTreeSet::new();
    let watch = wait_until::<(), _>("the end", YEAR, LOOK, async || {
        for (name, how) in demo.fleet.unasked_exits() {
            if told.insert(name.clone()) {
                println!(
                    "{name} ended: {how}. The rest stays up. Its log: {}",
                    demo.fleet.log(&name).display()
                );
            }
        }
        Ok(Poll::NotYet(String::new()))
    });
    tokio::select! {
        _year = watch => {}
        name = stopped => println!("\n{name}: stopping"),
    }
}

/// Prints it.
pub async fn tell(demo: &mut Demo) {
    // Whole paths, so that a command works from any folder.
    let short = |path: std::path::PathBuf| path.canonicalize().unwrap_or(path).display().to_string();
    let Some(global) = demo.topology.globals.first() else { return };
    let curl = |control_plane: &str| {
        format!(
            "curl -sS --fail-with-body --cacert {} -H \"Authorization: Bearer $(cat {})\"",
            short(demo.places.ca_file(control_plane)),
            short(demo.places.admin_token_file(control_plane))
        )
    };
    let frontend = demo.topology.proxy("frontend-east");
    let call = format!("http://{}/", frontend.at(port::OUTBOUND));
    let api = format!("https://{}:{}", global.ip, port::API);
    let curl_global = curl(&global.name());
    println!("\n== It stays up until Ctrl-C. To try:");
    println!("\n the frontend calls the backend (its application speaks to its sidecar's outbound)\n   curl -s {call}");
    println!("\n zones, resources, proxies, at the global control plane\n   {curl_global} {api}/zones/_overview");
    println!("   {curl_global} {api}/meshes/default/meshservices");
    println!("   {curl_global} {api}/meshes/default/dataplane-insights");
    println!(
        "\n take the permission away, and give it back\n   {curl_global} -X DELETE {api}/meshes/default/meshtrafficpermissions/allow-frontend"
    );
    println!(
        "   {curl_global} -X PUT -H 'content-type: application/yaml' --data-binary @{} {api}/meshes/default/meshtrafficpermissions/allow-frontend",
        short(demo.places.resources.join("allow-frontend.yaml"))
    );
    println!("\n send calls with a header east, all others west");
    println!(
        "   {curl_global} -X PUT -H 'content-type: application/yaml' --data-binary @{} {api}/meshes/default/meshhttproutes/backend-canary",
        short(demo.places.resources.join("mesh-http-route-header.yaml"))
    );
    println!("   curl -s -H 'x-canary: yes' {call}");
    if demo.topology.is_cluster() {
        println!("\n any node answers any request; who leads, and how far each one is");
        for node in &demo.topology.globals {
            println!("   curl -s http://{}:{}/cluster", node.ip, port::DIAGNOSTICS);
        }
        println!(" kill one with kill -9 (process ids below); the other two go on, and zones and traffic with them");
    }
    println!("\n the zones' own APIs");
    for zone in &demo.topology.zones {
        println!(
            "   {} https://{}:{}/meshes/default/dataplanes/_overview",
            curl(&zone.control_plane()),
            zone.ip,
            port::API
        );
    }
    println!("\n what happened when: revisions and the stages that they reached; metrics are at /metrics");
    println!("   curl -s http://{}:{}/stages", global.ip, port::DIAGNOSTICS);
    for zone in &demo.topology.zones {
        println!("   curl -s http://{}:{}/stages", zone.ip, port::DIAGNOSTICS);
    }
    println!("\n the Envoys");
    for proxy in demo.topology.proxies() {
        let socket = proxy.work_dir(&demo.places.data).join(crate::envoy_admin::SOCKET);
        println!("   curl -s --unix-socket {} http://localhost/config_dump", short(socket));
    }
    let pids = demo
        .fleet
        .pids()
        .iter()
        .map(|(name, pid)| format!("{name} {pid}"))
        .collect::<Vec<_>>()
        .join(", ");
    println!("\n logs in {}, processes: {pids}", short(demo.fleet.dir().join("logs")));
}
