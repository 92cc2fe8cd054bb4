//! What this machine is like, as far as the control plane wants to know.
//! In: files of the operating system. Out: paths and numbers for the bootstrap request.
//! Source: kuma-dp looks at the same places.
use std::path::Path;

/// Where distributions keep the bundle of trusted CAs; the first that exists is taken.
const CA_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The two places of the memory limit: cgroup 2, then cgroup 1. A container sees its own limit there.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// cgroup 1 writes a number near 2^63 for "no limit".
const NO_LIMIT: u64 = 1 << 60;
/// One line per address; absent when the kernel has no IPv6.
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";
/// `::1`, as that file writes it.
const IPV6_LOOPBACK: &str = "00000000000000000000000000000001";

/// Path of the system's CA bundle, if it has one at a known place.
pub fn system_ca_path() -> Option<&'static Path> {
    CA_BUNDLES.iter().map(Path::new).find(|path| path.is_file())
}

/// Memory that this process may use, in bytes; 0 = not limited. Envoy's overload manager works with it.
pub fn memory_limit() -> u64 {
    let text = MEMORY_LIMITS.iter().find_map(|path| std::fs::read_to_string(path).ok());
    text.as_deref().map_or(0, parse_memory_limit)
}

fn parse_memory_limit(text: &str) -> u64 {
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT).unwrap_or(0)
}

/// Does this machine have an IPv6 loopback address?
pub fn has_ipv6() -> bool {
    std::fs::read_to_string(IPV6_ADDRESSES).is_ok_and(|text| text.lines().any(|line| line.starts_with(IPV6_LOOPBACK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_memory_limit("536870912\n"), 536_870_912);
        assert_eq!(parse_memory_limit("max\n"), 0);
        assert_eq!(parse_memory_limit("9223372036854771712\n"), 0);
        assert_eq!(parse_memory_limit(""), 0);
    }
}
