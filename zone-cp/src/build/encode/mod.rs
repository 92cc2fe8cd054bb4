//! Turns a plan into Envoy's messages, and keeps their bytes: proxies with an equal resource share one encoding.
//! In: a [`Plan`]. Out: a [`ProxySnapshot`]. Invariant: versions are hashes of the plan, never of encoded bytes, because the
//! messages hold hash maps and equal ones encode differently (crates.md 3.2).

use std::{collections::HashMap, fmt, io, mem, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::plan::Plan;
use crate::{
    snapshot::{ProxySnapshot, XdsResource, XdsType},
    world::World,
};

mod caller;
mod cluster;
mod common;
mod endpoint;
mod listener;
mod rbac;
mod route;
mod secret;

/// Part of every version. Raise it when the encoding of an unchanged plan changes, otherwise an Envoy that reconnects after an
/// upgrade of the control plane would name the version it holds and keep the old encoding.
const ENCODING: u32 = 1;

/// Bytes of encoded resources kept in each of the two generations, names and versions included. A zone with 10,000 distinct
/// resources of 3 KiB fits.
const GENERATION_BYTES: usize = 32 * 1024 * 1024;

/// What an entry costs beside its bytes: key, version and map slot, about.
const ENTRY_OVERHEAD: usize = 160;

/// Identifies an encoding: the type and the whole hash, so that no two contents can meet.
type Key = (XdsType, [u8; 32]);

/// A cache of encoded resources, shared by all proxies of a zone. It only saves work: with or without it the snapshot has the
/// same versions and the same meaning. Bounded; what was not used for a while is encoded again.
#[derive(Default)]
pub struct Encoder {
    cache: Mutex<Cache>,
}

/// Two generations: when the young one is full it becomes the old one, and what is used of that moves over.
#[derive(Default)]
struct Cache {
    young: HashMap<Key, XdsResource>,
    old: HashMap<Key, XdsResource>,
    /// Of the young generation.
    bytes: usize,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.cache.lock();
        write!(f, "Encoder({} + {} resources)", cache.young.len(), cache.old.len())
    }
}

impl Encoder {
    /// The snapshot of a plan made from `world`.
    pub fn snapshot(&self, world: &World, plan: Plan) -> ProxySnapshot {
        let mut snapshot = ProxySnapshot {
            zone_revision: world.zone_revision,
            global: world.global,
            ..ProxySnapshot::default()
        };
        let Plan {
            secrets,
            clusters,
            endpoints,
            listeners,
            routes,
            warnings,
        } = plan;
        let mut put = |kind: XdsType, name: String, resource: XdsResource| {
            snapshot.resources.entry(kind).or_default().insert(name, resource);
        };
        for (name, secret) in secrets {
            let resource = if secret.is_private() {
                fresh(&digest(XdsType::Secret, &name, &secret), secret::encode(&name, &secret))
            } else {
                self.shared(XdsType::Secret, &name, &secret, || secret::encode(&name, &secret))
            };
            put(XdsType::Secret, name, resource);
        }
        for (name, cluster) in clusters {
            let resource = self.shared(XdsType::Cluster, &name, &cluster, || cluster::encode(&name, &cluster));
            put(XdsType::Cluster, name, resource);
        }
        for (name, endpoints) in endpoints {
            let resource = self.shared(XdsType::Endpoint, &name, &endpoints, || endpoint::encode(&name, &endpoints));
            put(XdsType::Endpoint, name, resource);
        }
        for (name, listener) in listeners {
            let resource = self.shared(XdsType::Listener, &name, &listener, || listener::encode(&name, &listener));
            put(XdsType::Listener, name, resource);
        }
        for (name, routes) in routes {
            let resource = self.shared(XdsType::Route, &name, &routes, || route::encode(&name, &routes));
            put(XdsType::Route, name, resource);
        }
        snapshot.warnings = warnings;
        snapshot
    }

    fn shared<M: Message>(&self, kind: XdsType, name: &str, plan: &impl Serialize, encode: impl FnOnce() -> M) -> XdsResource {
        let hash = digest(kind, name, plan);
        if let Some(known) = self.cache.lock().get(&(kind, hash)) {
            return known;
        }
        // Outside the lock: two proxies may encode the same at once, which costs a little work and nothing else.
        let resource = fresh(&hash, encode());
        self.cache.lock().insert((kind, hash), resource.clone());
        resource
    }
}

impl Cache {
    fn get(&mut self, key: &Key) -> Option<XdsResource> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let found = self.old.remove(key)?;
        self.insert(*key, found.clone());
        Some(found)
    }

    fn insert(&mut self, key: Key, resource: XdsResource) {
        let cost = resource.bytes.len() + ENTRY_OVERHEAD;
        if cost > GENERATION_BYTES {
            return;
        }
        if self.bytes + cost > GENERATION_BYTES {
            self.old = mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(key, resource).is_none() {
            self.bytes += cost;
        }
    }
}

fn fresh(hash: &[u8; 32], message: impl Message) -> XdsResource {
    XdsResource {
        version: version(hash),
        bytes: Bytes::from(message.encode_to_vec()),
    }
}

/// First half of SHA-256 in hexadecimal is plenty for telling successive contents of one resource apart: 16 digits.
fn version(hash: &[u8; 32]) -> Arc<str> {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    format!("{:016x}", u64::from_be_bytes([a, b, c, d, e, f, g, h])).into()
}

struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hash of a resource's canonical serialisation: JSON of structs and ordered maps, so field and key order are fixed.
fn digest(kind: XdsType, name: &str, plan: &impl Serialize) -> [u8; 32] {
    let mut out = HashWriter(Sha256::new());
    // Neither can fail: the writer never does, and the plan holds only what JSON can say. If it ever did, the hash would cover a
    // prefix, which a test over all plan types would show as equal versions.
    let header = serde_json::to_writer(&mut out, &(ENCODING, kind.short(), name));
    let body = serde_json::to_writer(&mut out, plan);
    debug_assert!(header.is_ok() && body.is_ok(), "a plan must be representable in JSON");
    out.0.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(megabytes: usize) -> XdsResource {
        XdsResource {
            version: "0".into(),
            bytes: vec![0; megabytes * 1024 * 1024].into(),
        }
    }

    #[test]
    fn the_cache_keeps_what_is_used_and_stays_bounded() {
        let key = |n: u8| (XdsType::Cluster, [n; 32]);
        let mut cache = Cache::default();
        cache.insert(key(0), resource(1));
        for n in 1..=40 {
            cache.insert(key(n), resource(10));
            assert!(cache.get(&key(0)).is_some(), "used all the time");
            let held: usize = cache.young.values().chain(cache.old.values()).map(|r| r.bytes.len()).sum();
            assert!(held <= 2 * GENERATION_BYTES);
        }
        assert!(cache.get(&key(1)).is_none(), "not used for long");
        cache.insert(key(99), resource(33));
        assert!(cache.get(&key(99)).is_none(), "too large to keep");
    }

    #[test]
    fn versions_tell_name_type_and_content_apart() {
        let version = |kind, name, content: &str| version(&digest(kind, name, &content));
        let one = version(XdsType::Cluster, "a", "x");
        assert_eq!(one, version(XdsType::Cluster, "a", "x"));
        assert_eq!(one.len(), 16);
        for other in [
            version(XdsType::Listener, "a", "x"),
            version(XdsType::Cluster, "b", "x"),
            version(XdsType::Cluster, "a", "y"),
        ] {
            assert_ne!(one, other);
        }
    }
}
