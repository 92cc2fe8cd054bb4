//! The hash suffix that names synced resources. Source: Kuma, `pkg/kds/hash` (64-bit FNV-1a, Kubernetes' safe encoding).
//! Not injective ("0" and "f" map to the same letter); it must be copied exactly all the same.

/// Longest name a resource may have, in bytes (a Kubernetes object name).
pub const MAX_NAME: usize = 253;
/// `-` and 16 characters.
const SUFFIX: usize = 17;
/// Kubernetes' alphabet without vowels and look-alikes.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `<name cut to 236 bytes>-<16 characters>`, where the characters encode FNV-1a over mesh, name and each extra value.
/// `extra` holds the zone and the Kubernetes namespace, each only if its label is present.
pub fn hashed(mesh: &str, name: &str, extra: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in [mesh, name].into_iter().chain(extra.iter().copied()) {
        for byte in part.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    let mut cut = name.len().min(MAX_NAME - SUFFIX);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut out = String::with_capacity(cut + SUFFIX);
    out.push_str(&name[..cut]);
    out.push('-');
    for c in format!("{hash:016x}").bytes() {
        out.push(char::from(ALPHABET[usize::from(c) % ALPHABET.len()]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        for (mesh, name, extra, want) in [
            (
                "default",
                "default-timeout-global",
                vec![],
                "default-timeout-global-54dbd4c66zwbcf9c",
            ),
            ("default", "redis-zone-1", vec!["zone-1"], "redis-zone-1-2v6wfvvcvbc9f55d"),
            ("default", "redis-zone-2", vec!["zone-2"], "redis-zone-2-ff29vc4685c6f594"),
            (
                "default",
                "default-timeout-zone-1",
                vec!["zone-1"],
                "default-timeout-zone-1-c58w24w4vw27f454",
            ),
            ("default", "backend", vec!["west"], "backend-d49vb4d82969fv4f"),
            ("default", "backend", vec!["east"], "backend-d2622w4zxzdb6cfw"),
            ("default", "zone-ingress", vec!["west"], "zone-ingress-xw2dzb9ccb74x47f"),
            ("default", "zone-ingress", vec!["east"], "zone-ingress-dbfz95298fc5bzzw"),
            ("default", "frontend-1", vec!["east"], "frontend-1-4794zvx24vxdvzb9"),
            ("default", "backend-1", vec!["west"], "backend-1-bv8bz2f55764xz77"),
            ("default", "identity", vec![], "identity-fx89fx8cww447z7x"),
            ("default", "allow-frontend", vec![], "allow-frontend-9586fw9x6wd94z46"),
            ("default", "backend-canary", vec![], "backend-canary-b5xbbx75f4488895"),
            (
                "default",
                "mesh-timeout-all-default",
                vec![],
                "mesh-timeout-all-default-bv8z44b7bzb99xc7",
            ),
            (
                "default",
                "mesh-timeout-to-all-default",
                vec![],
                "mesh-timeout-to-all-default-d22c55fzc2d6cd84",
            ),
            (
                "",
                "synced-universal-mesh-service",
                vec![],
                "synced-universal-mesh-service-46484vczc724vc29",
            ),
        ] {
            assert_eq!(hashed(mesh, name, &extra), want);
        }
    }

    #[test]
    fn long_names_are_cut_to_fit() {
        let name = "a".repeat(300);
        assert_eq!(hashed("m", &name, &[]).len(), MAX_NAME);
    }
}
