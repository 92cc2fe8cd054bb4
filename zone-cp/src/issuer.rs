//! Issues a certificate to every connected proxy that a MeshIdentity selects, and renews it at two thirds of its life.
//! In: world, view (the CA's secrets), who is connected, the time. Out: the certificates by proxy and when to look again.
//! Keys live in memory only: a restart issues anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;
use time::OffsetDateTime;
use tracing::info;
use ursa_model::{ResourceKey, kind::mesh_identity::MeshIdentity, kri::Kri};
use ursa_pki::ca::CertificateAuthority;
use ursa_policy::Parsed;
use ursa_state::View;

use crate::{
    derive::{identity, trust},
    world::{IssuedSvid, ProxyId, Svids, World},
};

/// Life of a certificate unless the MeshIdentity says otherwise.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Shortest life: below that, renewal would never end.
const MIN_EXPIRY: Duration = Duration::from_secs(10);
/// A renewal that fails is tried again after this.
const RETRY: time::Duration = time::Duration::seconds(30);
/// No certificate is renewed sooner than this after it was issued, however little of its CA's life is left.
const MIN_RENEWAL: time::Duration = time::Duration::seconds(1);

/// What a certificate was issued for: it is issued anew when any of this changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    identity: String,
    spiffe_id: String,
    ca_pem: Arc<str>,
    expiry: Duration,
}

#[derive(Debug)]
struct Entry {
    basis: Basis,
    svid: Arc<IssuedSvid>,
    renew_at: OffsetDateTime,
}

impl Entry {
    /// Neither due nor, after a step back of the clock, yet to become valid.
    fn is_good(&self, now: OffsetDateTime) -> bool {
        self.renew_at > now && self.svid.not_before <= now.unix_timestamp()
    }
}

/// Certificate and key of each identity's CA, PEM; `None` where it has none yet.
type StoredCas = BTreeMap<ResourceKey, Option<(Arc<str>, String)>>;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Issuer {
    /// By certificate, those in use.
    authorities: BTreeMap<Arc<str>, Arc<CertificateAuthority>>,
    issued: BTreeMap<ProxyId, Entry>,
    svids: Arc<Svids>,
    /// Certificates issued since start.
    pub total: u64,
}

impl Issuer {
    /// Certificates issued so far, by proxy.
    pub fn svids(&self) -> Arc<Svids> {
        self.svids.clone()
    }

    /// Issues what is missing, renews what is due and forgets who left.
    pub fn update<'a>(
        &mut self,
        world: &World,
        view: &View,
        connected: impl Iterator<Item = &'a ProxyId>,
        now: OffsetDateTime,
        problems: &mut Vec<String>,
    ) {
        let connected: BTreeSet<&ProxyId> = connected.collect();
        let mut changed = false;
        let before = self.issued.len();
        self.issued.retain(|proxy, _| connected.contains(proxy));
        changed |= self.issued.len() != before;
        // Read once per identity, not per proxy.
        let mut stored = StoredCas::new();
        for proxy in connected {
            let wanted = match self.basis(world, view, proxy, &mut stored, problems) {
                Ok(wanted) => wanted,
                Err(problem) => {
                    // What it holds stays until it expires: a passing fault must not take a certificate away.
                    problems.push(problem);
                    self.postpone(proxy, now);
                    continue;
                }
            };
            let Some((basis, id)) = wanted else {
                changed |= self.issued.remove(proxy).is_some();
                continue;
            };
            if self.issued.get(proxy).is_some_and(|e| e.basis == basis && e.is_good(now)) {
                continue;
            }
            match self.issue(&basis, &id, now) {
                Ok(entry) => {
                    info!(%proxy, spiffe_id = %entry.basis.spiffe_id, serial = %entry.svid.serial, renew_at = %entry.renew_at, "certificate issued");
                    self.issued.insert(proxy.clone(), entry);
                    self.total += 1;
                    changed = true;
                }
                Err(err) => {
                    problems.push(format!("{proxy}: cannot issue a certificate: {err}"));
                    self.postpone(proxy, now);
                }
            }
        }
        self.authorities.retain(|pem, _| stored.values().flatten().any(|ca| ca.0 == *pem));
        if changed {
            self.svids = Arc::new(self.issued.iter().map(|(p, e)| (p.clone(), e.svid.clone())).collect());
        }
    }

    /// How long until the next certificate is due; `None` without certificates.
    pub fn next_renewal(&self, now: OffsetDateTime) -> Option<Duration> {
        let next = self.issued.values().map(|e| e.renew_at).min()?;
        Some((next - now).try_into().unwrap_or(Duration::ZERO))
    }

    /// Looks at a renewal that failed again later: without this, the one that is due would wake the reconciler without end.
    fn postpone(&mut self, proxy: &ProxyId, now: OffsetDateTime) {
        if let Some(entry) = self.issued.get_mut(proxy) {
            entry.renew_at = entry.renew_at.max(now.saturating_add(RETRY));
        }
    }

    fn basis(
        &mut self,
        world: &World,
        view: &View,
        proxy: &ProxyId,
        stored: &mut StoredCas,
        problems: &mut Vec<String>,
    ) -> Result<Option<(Basis, Kri)>, String> {
        let Some(mesh) = world.mesh(&proxy.mesh) else { return Ok(None) };
        let Some(dataplane) = mesh.dataplanes.get(&proxy.name) else {
            return Ok(None);
        };
        let Some(chosen) = identity::of_proxy(mesh, dataplane).first().copied() else {
            return Ok(None);
        };
        if !world.is_bound(&chosen.spec, &dataplane.resource) {
            problems.push(format!(
                "{proxy} gets no certificate of {}: its token is not bound to its workload; generate the token with --workload",
                chosen.resource.key
            ));
            return Ok(None);
        }
        // An identity whose CA is not made yet issues nothing; the change that makes it comes back here.
        let ca = stored
            .entry(chosen.resource.key.clone())
            .or_insert_with(|| trust::stored_ca(view, chosen).map(|ca| (ca.cert_pem.into(), ca.key_pem)))
            .as_ref();
        let Some((cert_pem, key_pem)) = ca else { return Ok(None) };
        let id = identity::spiffe_id(chosen, world.zone.as_str(), dataplane).map_err(|e| format!("{proxy}: {e}"))?;
        if !self.authorities.contains_key(cert_pem) {
            let ca = CertificateAuthority::load(cert_pem, key_pem).map_err(|e| format!("CA of {}: {e}", chosen.resource.key))?;
            self.authorities.insert(cert_pem.clone(), Arc::new(ca));
        }
        let kri = Kri::of(&chosen.resource).unwrap_or_default();
        let basis = Basis {
            identity: kri.to_string(),
            spiffe_id: id.to_string(),
            ca_pem: cert_pem.clone(),
            expiry: expiry(chosen),
        };
        Ok(Some((basis, kri)))
    }

    fn issue(&self, basis: &Basis, identity: &Kri, now: OffsetDateTime) -> Result<Entry, String> {
        let ca = self.authorities.get(&basis.ca_pem).ok_or("its CA is gone")?;
        let id = basis.spiffe_id.parse().map_err(|e: ursa_pki::spiffe::Error| e.to_string())?;
        let svid = ca.issue(&id, basis.expiry, now).map_err(|e| e.to_string())?;
        let jitter: f64 = rand::rng().random_range(-0.1..0.1);
        let renew_at = ursa_pki::ca::renew_at(svid.not_before, svid.not_after, jitter).max(now.saturating_add(MIN_RENEWAL));
        Ok(Entry {
            basis: basis.clone(),
            svid: Arc::new(IssuedSvid {
                secret_name: identity.to_string(),
                spiffe_id: basis.spiffe_id.clone(),
                chain_pem: svid.cert_chain_pem,
                key_pem: svid.key_pem,
                serial: svid.serial,
                not_before: svid.not_before.unix_timestamp(),
                not_after: svid.not_after.unix_timestamp(),
            }),
            renew_at,
        })
    }
}

fn expiry(identity: &Parsed<MeshIdentity>) -> Duration {
    identity
        .spec
        .provider
        .as_ref()
        .and_then(|p| p.bundled.as_ref())
        .and_then(|b| b.certificate_parameters.as_ref())
        .and_then(|c| c.expiry)
        .map_or(DEFAULT_EXPIRY, |e| if e.0.is_zero() { DEFAULT_EXPIRY } else { e.0.max(MIN_EXPIRY) })
}
