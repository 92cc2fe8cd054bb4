//! Certificates and tokens: CAs, SPIFFE X.509-SVIDs, trust bundles, RS256 tokens as Kuma's; the certificates of a cluster's nodes.
//! Files that are encrypted to recipients ([`age`]).
//! Invariant: pure but for randomness: no clock (time is a parameter), no disk, no network; private keys never appear in Debug output.
//! Not here: where keys and CAs are stored (secrets in the store), the servers' own TLS (ursa-runtime).
pub mod age;
pub mod ca;
pub mod node;
pub mod spiffe;
pub mod token;
pub mod trust;

mod text;

pub use ca::{CaMaterial, CertificateAuthority, KeyType, Svid, renew_at};
pub use spiffe::{SpiffeId, TrustDomain};
pub use trust::{Bundle, TrustBundles, TrustedCa};
