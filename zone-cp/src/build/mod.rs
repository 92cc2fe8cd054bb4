//! Builds the configuration of one proxy.
//! In: the [`World`] and the proxy's id. Out: a [`ProxySnapshot`]: everything its Envoy is served, encoded, with versions.
//! Invariant: pure. No clock, no I/O, no randomness; equal worlds give equal versions, and what a proxy does not depend on
//! leaves its versions alone. Everything that is named is contained ([`plan::check`]).
//!
//! ```text
//! World ── match policies ──> Plan (our model, hashed) ── encode ──> ProxySnapshot (Envoy's messages)
//! ```
//! Source: dataplane.md 2 and 6; the shapes that carried real traffic, demo.md. Routes and HTTP permissions travel over RDS, which
//! Kuma inlines in the listener: a change of them then drains no connection. Not here: how a snapshot reaches Envoy
//! ([`crate::xds`]), and listeners of a zone egress, which serve MeshExternalServices.

use std::{collections::BTreeMap, net::IpAddr};

use ursa_model::kind::dataplane::Dataplane;
use ursa_policy::{Destinations, Matched, Parsed, match_proxy};

use crate::{
    snapshot::ProxySnapshot,
    world::{MeshWorld, ProxyId, World},
};

mod encode;
pub mod endpoints;
mod inbound;
pub mod names;
mod outbound;
pub mod plan;
mod reads;
mod routes;
mod tls;
mod zone_ingress;

pub use encode::Encoder;
pub use plan::Plan;
pub use reads::Reads;

use plan::{Listener, Socket};

/// The configuration of a proxy; `None` when the world has no such proxy. `encoder` only saves work. Of the world it reads the
/// zone's name, the proxy's mesh and the proxy's certificate, and for the record its revisions.
pub fn build(world: &World, proxy: &ProxyId, encoder: &Encoder) -> Option<ProxySnapshot> {
    build_tracked(world, proxy, encoder).map(|(snapshot, _)| snapshot)
}

/// [`build`], and what it read of the mesh.
pub fn build_tracked(world: &World, proxy: &ProxyId, encoder: &Encoder) -> Option<(ProxySnapshot, Reads)> {
    plan_tracked(world, proxy).map(|(plan, reads)| (encoder.snapshot(world, plan), reads))
}

/// What [`build`] would encode, in our own model: for tests, dry runs and diffs.
pub fn plan(world: &World, proxy: &ProxyId) -> Option<Plan> {
    plan_tracked(world, proxy).map(|(plan, _)| plan)
}

/// [`plan`], and what it read of the mesh.
pub fn plan_tracked(world: &World, proxy: &ProxyId) -> Option<(Plan, Reads)> {
    let mesh = world.mesh(&proxy.mesh)?;
    let dataplane = mesh.dataplanes.get(&proxy.name)?;
    let matched = match_proxy(&mesh.policies, &mesh.destinations, dataplane, &mesh.mesh);
    let mut plan = Plan::default();
    let security = tls::security(world, mesh, dataplane, world.svids.get(proxy), &mut plan);
    let mut builder = Builder {
        mesh,
        dataplane,
        destinations: &mesh.destinations,
        matched: &matched,
        security,
        plan,
        reads: Reads::default(),
        used: BTreeMap::new(),
    };
    inbound::build(&mut builder);
    zone_ingress::build(&mut builder);
    outbound::build(&mut builder);
    for warning in &matched.warnings {
        builder.plan.warn(warning.clone());
    }
    Some((builder.plan, builder.reads))
}

/// A plan in the making, and what it is made of.
struct Builder<'a> {
    mesh: &'a MeshWorld,
    dataplane: &'a Parsed<Dataplane>,
    destinations: &'a Destinations,
    matched: &'a Matched,
    security: tls::Security,
    plan: Plan,
    reads: Reads,
    /// Where listeners already are, by port: Envoy refuses a second one at the same place.
    used: BTreeMap<u16, Vec<IpAddr>>,
}

impl Builder<'_> {
    /// Adds a listener. `false` when another has its name or socket.
    fn listen(&mut self, name: &str, listener: Listener) -> bool {
        if self.plan.listeners.contains_key(name) {
            self.plan.warn(format!("{name} is left out: there is one of this name"));
            return false;
        }
        let Socket { ip, port } = listener.socket;
        let others = self.used.entry(port).or_default();
        // The wildcard address is every address.
        if others
            .iter()
            .any(|other| *other == ip || other.is_unspecified() || ip.is_unspecified())
        {
            self.plan
                .warn(format!("{name} does not listen at {}: another listener does", listener.socket));
            return false;
        }
        others.push(ip);
        self.plan.listeners.insert(name.into(), listener);
        true
    }
}
