//! Addresses of Dataplanes and of zone ingresses that are DNS names, resolved here, as Kuma does: an Envoy is only told IP addresses.
//! In: the names that a world holds, and a resolver. Out: one IP address for each name, and a wake-up when one changed.
//! Invariant: a name that does not resolve any more keeps the address it had; a fault of the DNS takes no endpoint away.
//! Source: dataplane.md 1.8 (the smallest address as text, kept for 10 s).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt,
    future::{self, BoxFuture},
    stream,
};
use ursa_runtime::lease::{Deadline, within};

use crate::world::World;

/// How long a name's address is taken for granted; Kuma's DNS cache.
const REFRESH: Duration = Duration::from_secs(10);
/// A resolver that takes longer is taken for dead, for that name and time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lookups under way at once: each occupies a thread.
const AT_ONCE: usize = 16;
/// Most names looked up; others stay unresolved, which the proxies concerned report.
const MAX_NAMES: usize = 10_000;

/// IP addresses by name.
pub type Names = BTreeMap<String, IpAddr>;

/// Asks for the addresses of a name.
pub type Lookup = fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;

/// Every name with what became of it.
type Round = Vec<(String, Result<IpAddr, String>)>;

/// See the module's text.
pub struct Resolver {
    lookup: Lookup,
    wanted: BTreeSet<String>,
    names: Arc<Names>,
    /// By name, why it has no newer address.
    failures: BTreeMap<String, String>,
    /// Names that were looked up since they are wanted.
    tried: BTreeSet<String>,
    due: Deadline,
    /// Kept over calls of [`Resolver::changed`] that are given up.
    running: Option<BoxFuture<'static, Round>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(system)
    }
}

/// The system's resolver.
fn system(name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
    Box::pin(async move {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|socket| socket.ip()).collect())
    })
}

impl Resolver {
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            wanted: BTreeSet::new(),
            names: Arc::default(),
            failures: BTreeMap::new(),
            tried: BTreeSet::new(),
            due: Deadline::after(REFRESH),
            running: None,
        }
    }

    /// What is known now.
    pub fn names(&self) -> Arc<Names> {
        self.names.clone()
    }

    /// Takes note of the names that a world holds.
    pub fn want(&mut self, world: &World) {
        let wanted: BTreeSet<String> = names_in(world).into_iter().take(MAX_NAMES).collect();
        if wanted == self.wanted {
            return;
        }
        self.tried.retain(|name| wanted.contains(name));
        self.failures.retain(|name, _| wanted.contains(name));
        self.wanted = wanted;
    }

    /// What does not resolve, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.failures
            .iter()
            .map(|(name, why)| format!("the name {name} does not resolve: {why}"))
    }

    /// Returns when [`Resolver::names`] or [`Resolver::problems`] changed; never when no name is wanted. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let running = match &mut self.running {
                Some(running) => running,
                None => {
                    if self.wanted.is_empty() && self.names.is_empty() {
                        return future::pending().await;
                    }
                    if self.wanted.is_subset(&self.tried) && !self.wanted.is_empty() {
                        self.due.passed().await;
                    }
                    let lookup = self.lookup;
                    let names: Vec<String> = self.wanted.iter().cloned().collect();
                    let round = stream::iter(names)
                        .map(move |name| async move {
                            let found = resolve(lookup, &name).await;
                            (name, found)
                        })
                        .buffer_unordered(AT_ONCE)
                        .collect();
                    self.running.insert(Box::pin(round))
                }
            };
            let round = running.await;
            self.running = None;
            self.due = Deadline::after(REFRESH);
            if self.take(round) {
                return;
            }
        }
    }

    fn take(&mut self, round: Round) -> bool {
        let mut names: Names = self
            .names
            .iter()
            .filter(|(name, _)| self.wanted.contains(*name))
            .map(|(name, ip)| (name.clone(), *ip))
            .collect();
        let mut failures = BTreeMap::new();
        for (name, found) in round.into_iter().filter(|(name, _)| self.wanted.contains(name)) {
            self.tried.insert(name.clone());
            match found {
                Ok(ip) => {
                    names.insert(name, ip);
                }
                Err(why) => {
                    failures.insert(name, why);
                }
            }
        }
        let changed = names != *self.names || failures != self.failures;
        if names != *self.names {
            self.names = Arc::new(names);
        }
        self.failures = failures;
        changed
    }
}

async fn resolve(lookup: Lookup, name: &str) -> Result<IpAddr, String> {
    match within(PATIENCE, lookup(name.to_owned())).await {
        Ok(Ok(found)) => found
            .into_iter()
            .filter(|ip| !ip.is_unspecified())
            .min_by_key(ToString::to_string)
            .ok_or_else(|| "it has no address".to_owned()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// Every address of a world that is no IP address.
fn names_in(world: &World) -> BTreeSet<String> {
    let of_mesh = |mesh: &Arc<crate::world::MeshWorld>| {
        let proxies = mesh.dataplanes.values().map(|d| d.spec.networking.address.clone());
        let ingresses = mesh.addresses.iter().map(|a| a.spec.address.clone());
        proxies
            .chain(ingresses)
            .filter(|a| !a.is_empty() && a.parse::<IpAddr>().is_err())
            .collect::<Vec<_>>()
    };
    world.meshes.values().flat_map(of_mesh).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// `good.test` moves at the second look; `gone.test` is there only at the first; `slow.test` never answers.
    fn lookup(name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        static GOOD: AtomicU32 = AtomicU32::new(0);
        static GONE: AtomicU32 = AtomicU32::new(0);
        let ip = |text: &str| text.parse::<IpAddr>().map_err(io::Error::other);
        Box::pin(async move {
            match name.as_str() {
                "good.test" if GOOD.fetch_add(1, Ordering::Relaxed) == 0 => Ok(vec![ip("10.0.0.9")?, ip("10.0.0.10")?]),
                "good.test" => Ok(vec![ip("10.0.0.11")?]),
                "gone.test" if GONE.fetch_add(1, Ordering::Relaxed) == 0 => Ok(vec![ip("10.0.0.2")?]),
                "slow.test" => future::pending().await,
                _ => Err(io::Error::other("no such name")),
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn names_follow_the_dns_and_outlive_its_faults() {
        let mut resolver = Resolver::new(lookup);
        resolver.wanted = ["good.test", "gone.test", "slow.test"].map(str::to_owned).into();
        // Given up half-way and taken up again, as the reconciler does.
        assert!(within(Duration::from_secs(1), resolver.changed()).await.is_err());
        resolver.changed().await;
        let text = |r: &Resolver| r.names().iter().map(|(n, ip)| format!("{n}={ip}")).collect::<Vec<_>>();
        assert_eq!(text(&resolver), ["gone.test=10.0.0.2", "good.test=10.0.0.10"]);
        assert_eq!(resolver.problems().count(), 1);
        resolver.changed().await;
        assert_eq!(text(&resolver), ["gone.test=10.0.0.2", "good.test=10.0.0.11"]);
        assert_eq!(resolver.problems().count(), 2);
        // What nobody wants is forgotten, and then nothing wakes anybody.
        resolver.wanted.clear();
        resolver.changed().await;
        assert!(resolver.names().is_empty());
        assert!(within(Duration::from_secs(3600), resolver.changed()).await.is_err());
    }
}
