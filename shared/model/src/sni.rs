//! The SNI that names a destination across zones. Source: Kuma, `pkg/core/resources/sni/sni.go`.

use crate::{labels, name::is_dns1123_label, resource::Resource};

/// Longest SNI, in bytes.
const MAX_SNI: usize = 253;

/// `sni.<short>.<mesh>[.<zone>[.<namespace>]].<name>.<section>`; the zone and namespace only for a resource of a zone.
/// `None` when a part is no RFC 1123 label or the whole is too long: such a destination cannot be reached across zones.
pub fn sni(resource: &Resource, section: &str) -> Option<String> {
    let short = resource.kind().descriptor().short;
    if !resource.kind().descriptor().destination {
        return None;
    }
    let mut parts = vec![short, resource.mesh()];
    if let Some(zone) = resource.zone() {
        parts.push(zone);
        parts.extend(resource.label(labels::K8S_NAMESPACE));
    }
    parts.push(resource.display_name());
    parts.push(section);
    if !parts.iter().all(|p| is_dns1123_label(p)) {
        return None;
    }
    let text = format!("sni.{}", parts.join("."));
    (text.len() <= MAX_SNI).then_some(text)
}
