//! Turns each revision of the zone's store into the [`World`] that proxies are configured from, and derives what follows from it.
//! In: the store's views, who is connected, the renewal of certificates. Out: `watch<Arc<World>>`, and changesets of derived
//! resources. Invariant: the world is published before anything is proposed, so a change is never held up by what follows from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ursa_model::{Kind, Resource, Timestamp, ZoneName, labels};
use ursa_pki::ca::CertificateAuthority;
use ursa_runtime::{backoff::Backoff, lease::Deadline};
use ursa_state::{Applied, Changeset, Op, OpResult, RequestId, View};

use crate::{
    connections::{Connected, Connections, Peer},
    derive::{addresses, services, trust},
    dp::phase::{self, Phase},
    issuer::Issuer,
    resolve::Resolver,
    world::{ProxyId, World},
};

/// How long a Dataplane outlives its proxy's connection, and this process' start: a restart of the control plane or of the
/// network must never shrink an endpoint list.
pub const LEASE: Duration = Duration::from_secs(60);
/// How often services in their grace are looked at. Off the path of any change.
const GRACE_CHECK: Duration = Duration::from_secs(60);

/// Stores a changeset of derived resources.
pub trait Propose: Send + Sync + 'static {
    fn propose(&self, set: Changeset) -> BoxFuture<'static, Result<Applied, String>>;
}

/// See the module's text.
pub struct Reconciler {
    pub zone: ZoneName,
    pub views: watch::Receiver<View>,
    pub connections: Connections,
    pub store: Arc<dyn Propose>,
    pub worlds: watch::Sender<Arc<World>>,
}

/// When a proxy that is not connected loses its Dataplane.
#[derive(Default)]
struct Leases {
    away: BTreeMap<ProxyId, Away>,
    /// Who was connected at the last look.
    before: Connected,
}

#[derive(Debug)]
struct Away {
    deadline: Deadline,
    /// Whose stream this process saw end.
    left: Option<Peer>,
}

impl Away {
    /// It is the one that asked to drain. What a stock proxy wanted is told by the drain alone.
    fn left_in_order(&self, stored: &Resource) -> bool {
        let drained = || Phase::of(stored) == Phase::Draining;
        match self.left.as_ref().map(|peer| peer.instance.as_deref()) {
            Some(Some(run)) => phase::is_drained_by(stored, run),
            Some(None) => drained(),
            None => false,
        }
    }
}

impl Reconciler {
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut issuer = Issuer::default();
        let mut leases = Leases::default();
        let mut connected = self.connections.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut known_problems: Vec<String> = Vec::new();
        let mut resolver = Resolver::default();
        loop {
            // In this order: a proxy stores its Dataplane before it shows as connected, so the view holds it.
            let now_connected = connected.borrow_and_update().clone();
            let view = self.views.borrow_and_update().clone();
            let mut problems = Vec::new();
            let before = World {
                names: resolver.names(),
                ..self.worlds.borrow().as_ref().clone()
            };
            let mut world = before.next(&view, issuer.svids(), &mut problems);
            resolver.want(&world);
            problems.extend(resolver.problems());
            world.seen = now_connected.clone();
            issuer.update(&world, &view, now_connected.keys(), OffsetDateTime::now_utc(), &mut problems);
            world.svids = issuer.svids();
            let world = Arc::new(world);
            // A look at leases and graces wakes no proxy.
            self.worlds.send_if_modified(|published| {
                let changed = !published.same(&world);
                if changed {
                    *published = world.clone();
                }
                changed
            });

            let mut ops = derive(&world, &view, &now_connected, Timestamp::now(), &mut problems);
            ops.extend(serving(&world, &now_connected));
            ops.extend(leases.expired(&view, &now_connected));
            problems.sort();
            problems.dedup();
            if problems != known_problems {
                for problem in problems.iter().filter(|p| !known_problems.contains(p)) {
                    warn!(zone = %self.zone, "{problem}");
                }
                known_problems = problems;
            }
            let failed = !ops.is_empty() && !self.store_derived(ops).await;
            if !failed {
                backoff.reset();
            }
            let renewal = issuer
                .next_renewal(OffsetDateTime::now_utc())
                .unwrap_or(GRACE_CHECK)
                .min(GRACE_CHECK);
            let wake = Deadline::after(leases.next().map_or(renewal, |l| l.min(renewal)));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = backoff.wait(&cancel), if failed => {}
                () = wake.passed() => {}
                changed = self.views.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                () = resolver.changed() => {}
                () = self.connections.served() => {}
            }
        }
    }

    async fn store_derived(&self, ops: Vec<Op>) -> bool {
        let count = ops.len();
        let set = Changeset::each(RequestId(rand::random()), Timestamp::now(), ops);
        match self.store.propose(set).await {
            Ok(applied) => {
                // What was refused is derived again from the next view, if it is still wanted then.
                for result in &applied.results {
                    if let OpResult::Refused(why) = result {
                        warn!(zone = %self.zone, %why, "a derived resource was refused");
                    }
                }
                info!(zone = %self.zone, revision = applied.revision, ops = count, "derived resources stored");
                true
            }
            Err(error) => {
                warn!(zone = %self.zone, %error, "derived resources could not be stored, trying again");
                false
            }
        }
    }
}

/// Ops that bring everything derived to what the world says; empty at the fixed point.
pub fn derive(world: &World, view: &View, connected: &Connected, now: Timestamp, problems: &mut Vec<String>) -> Vec<Op> {
    // An ingress is told to other zones once its Envoy listens, and not any more once it drains.
    let advertised = connected
        .iter()
        .filter(|(p, c)| c.is_serving() && phase_of(world, p) != Some(Phase::Draining))
        .filter_map(|(p, c)| c.advertised.clone().map(|a| (p.clone(), a)))
        .collect();
    let mut ops = Vec::new();
    for mesh in world.meshes.values() {
        for missing in trust::missing(world, mesh, view, problems) {
            match CertificateAuthority::generate(&missing.trust_domain, OffsetDateTime::now_utc()) {
                Ok(ca) => {
                    info!(mesh = %mesh.mesh, identity = missing.identity.resource.name(), trust_domain = %missing.trust_domain, "certificate authority made");
                    ops.extend(trust::store_ca(world, missing.identity, &ca));
                    ops.extend(trust::publish(world, mesh, missing.identity, &ca));
                }
                Err(err) => problems.push(format!("{}: cannot make a CA: {err}", missing.identity.resource.key)),
            }
        }
        for identity in &mesh.identities {
            if let Some(ca) = trust::stored_ca(view, identity) {
                ops.extend(trust::publish(world, mesh, identity, &ca));
            }
        }
        ops.extend(services::wanted(world, mesh, now, problems));
        ops.extend(addresses::wanted(world, mesh, view, &advertised, problems));
    }
    ops
}

fn phase_of(world: &World, proxy: &ProxyId) -> Option<Phase> {
    let dataplane = world.mesh(&proxy.mesh)?.dataplanes.get(&proxy.name)?;
    Some(Phase::of(&dataplane.resource))
}

/// Ops that make Dataplanes ready whose proxies serve: they have taken their listeners, or it was another run that drained. The latter
/// happens when nobody was connected as that one asked: it was late, and this one was on its way back. A run that asked itself stays as
/// it asked; what a stock proxy wants, its Envoy's health tells.
fn serving(world: &World, connected: &Connected) -> Vec<Op> {
    let mut ops = Vec::new();
    for (proxy, connection) in connected.iter().filter(|(_, c)| c.is_serving()) {
        let Some(dataplane) = world.mesh(&proxy.mesh).and_then(|mesh| mesh.dataplanes.get(&proxy.name)) else {
            continue;
        };
        let stored = &dataplane.resource;
        let why = match (Phase::of(stored), connection.peer.instance.as_deref()) {
            (Phase::Starting, _) => "its Envoy listens",
            (Phase::Draining, Some(run)) if !phase::is_drained_by(stored, run) => "it was not this run that asked to drain",
            (Phase::Draining | Phase::Serving, _) => continue,
        };
        info!(%proxy, "{why}: traffic may be sent to it");
        ops.push(phase::serve(stored, connection.given.as_deref()));
    }
    ops
}

impl Leases {
    /// Deletes of Dataplanes whose proxy has been away for a whole lease, or left in order. A proxy that is seen away for the first
    /// time (also after a start) gets a whole lease. With nobody connected leases do not run, for then it is this control plane
    /// that is cut off, or nobody is there who could be told; they begin anew when the first comes back.
    fn expired(&mut self, view: &View, connected: &Connected) -> Vec<Op> {
        let mut away = BTreeMap::new();
        let mut ops = Vec::new();
        for dataplane in view
            .list(Kind::Dataplane)
            .filter(|d| phase::is_by_proxy(d) && d.label(labels::ZONE).is_some())
        {
            let proxy = ProxyId::new(dataplane.mesh(), dataplane.name());
            if connected.contains_key(&proxy) {
                continue;
            }
            let mut state = self.away.remove(&proxy).unwrap_or_else(|| Away {
                deadline: Deadline::after(LEASE),
                left: None,
            });
            if let Some(before) = self.before.get(&proxy) {
                state.left = Some(before.peer.clone());
            }
            if connected.is_empty() || self.before.is_empty() {
                state.deadline.renew(LEASE);
            }
            if state.left_in_order(dataplane) {
                info!(%proxy, "it left in order, the Dataplane is removed");
                ops.push(Op::delete(dataplane.key.clone()));
            } else if state.deadline.has_passed() {
                info!(%proxy, "its proxy has been away for {LEASE:?}, the Dataplane is removed");
                ops.push(Op::delete(dataplane.key.clone()));
            }
            away.insert(proxy, state);
        }
        self.away = away;
        self.before = connected.clone();
        ops
    }

    fn next(&self) -> Option<Duration> {
        let open = self.away.values().map(|a| &a.deadline).filter(|d| !d.has_passed());
        open.map(Deadline::remaining).min()
    }
}
