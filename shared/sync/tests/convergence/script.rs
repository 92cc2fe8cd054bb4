//! What may happen to a link, and the resources that it happens to.

use super::*;

pub const SOURCE_HISTORY: u128 = 0xa;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Down,
    Up,
}

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes a slot of the source with one of a few contents; 3 is one that the receiver must refuse.
    Put(usize, u8),
    Delete(usize),
    /// Switches another zone off or on.
    Switch(bool),
    /// A resource of the receiver's own.
    Local(u8),
    /// The sender hears of the newest content.
    Feed,
    /// Messages to the receiver, to the sender.
    Down(usize),
    Up(usize),
    /// The batch in the store is there.
    Stored,
    /// It is not.
    Failed,
    Retry,
    /// The grace of held removals is over.
    Grace,
    /// The sender says again what the receiver should hold.
    Heartbeat,
    /// Something changes a resource of the receiver that is the sender's: it is gone, or another.
    Corrupt(usize, bool),
    /// The link breaks; what was being stored is stored, or lost.
    Break {
        stored: bool,
    },
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SLOTS, 0..4_u8).prop_map(|(slot, variant)| Step::Put(slot, variant)),
        3 => (0..SLOTS).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Switch),
        1 => (0..3_u8).prop_map(Step::Local),
        5 => Just(Step::Feed),
        5 => (1..12_usize).prop_map(Step::Down),
        5 => (1..12_usize).prop_map(Step::Up),
        4 => Just(Step::Stored),
        1 => Just(Step::Failed),
        1 => Just(Step::Retry),
        1 => Just(Step::Grace),
        1 => Just(Step::Heartbeat),
        1 => (0..SLOTS, any::<bool>()).prop_map(|(n, gone)| Step::Corrupt(n, gone)),
        1 => any::<bool>().prop_map(|stored| Step::Break { stored }),
    ]
}

pub const SLOTS: usize = 14;

/// Key, labels and contents of a slot. Variant 3 is refused by the receiver, where the kind allows such a thing.
pub fn slot(way: Way, slot: usize, variant: u8) -> (ResourceKey, Labels, Value) {
    let global = |kind, mesh, name: &str, spec| (key(kind, mesh, name), labels_of(&[(ORIGIN, "global"), (DISPLAY_NAME, name)]), spec);
    let of_zone = |zone: &str, kind, name: &str, spec| {
        let labels = labels_of(&[(ORIGIN, "zone"), (ZONE, zone), (DISPLAY_NAME, name)]);
        (key(kind, "default", name), labels, spec)
    };
    let address = if variant == 3 {
        json!({"address": "", "port": 0})
    } else {
        json!({"address": "127.0.0.1", "port": 100 + u32::from(variant)})
    };
    let data = ["YQ==", "Yg==", "Yw==", ""][usize::from(variant)];
    let secret = if variant == 3 { json!({}) } else { json!({ "data": data }) };
    let mesh = json!({"skipCreatingInitialPolicies": [format!("v{variant}")]});
    let rule = json!({"targetRef": {"kind": "Mesh"}, "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": format!("spiffe://d/v{variant}")}}]}}]});
    let pem = format!("-----BEGIN CERTIFICATE-----\n{variant}\n-----END CERTIFICATE-----");
    let trust = json!({"trustDomain": "west.local", "caBundles": [{"type": "Pem", "pem": {"value": pem}}]});
    let dataplane = json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 80 + u32::from(variant)}]}});
    match (way, slot) {
        (Way::Down, 0) => global(Kind::Mesh, "", "m0", mesh),
        (Way::Down, 1) => global(Kind::Mesh, "", "m1", mesh),
        (Way::Down, 2) => global(Kind::Secret, "default", "s0", secret),
        (Way::Down, 3) => global(Kind::Config, "", "kuma-cluster-id", json!({"config": format!("v{variant}")})),
        (Way::Down, 4) => global(Kind::GlobalSecret, "", "g0", secret),
        (Way::Down, 5) => global(Kind::MeshTrafficPermission, "default", "p0", rule),
        (Way::Down, 6) => global(Kind::MeshTrafficPermission, "default", "p1", rule),
        (Way::Down, 7) => of_zone("west", Kind::MeshZoneAddress, "a0", address),
        (Way::Down, 8) => of_zone("west", Kind::MeshZoneAddress, "a1", address),
        (Way::Down, 9) => of_zone("west", Kind::MeshTrust, "t0", trust),
        (Way::Down, 10) => of_zone("north", Kind::MeshTrust, "t1", trust),
        (Way::Down, 11) => of_zone("east", Kind::MeshZoneAddress, "own", address),
        (Way::Down, 12) => global(Kind::Config, "", "not-for-zones", json!({"config": format!("v{variant}")})),
        (Way::Down, _) => of_zone("north", Kind::MeshZoneAddress, "a2", address),
        (Way::Up, 0 | 1) => of_zone("east", Kind::Dataplane, ["d0", "d1"][slot], dataplane),
        (Way::Up, 2..=5) => of_zone("east", Kind::MeshZoneAddress, ["a0", "a1", "a2", "a3"][slot - 2], address),
        (Way::Up, 6) => of_zone("east", Kind::MeshTrust, "t0", trust),
        (Way::Up, 7 | 8) => of_zone("east", Kind::MeshTrafficPermission, ["p0", "p1"][slot - 7], rule),
        (Way::Up, 9) => global(Kind::MeshTrafficPermission, "default", "from-global", rule),
        (Way::Up, 10 | 11) => (
            key(Kind::DataplaneInsight, "default", ["d0", "d1"][slot - 10]),
            Labels::new(),
            json!({"metadata": {"v": variant}}),
        ),
        (Way::Up, _) => of_zone(
            "east",
            Kind::MeshService,
            ["s0", "s1"][slot % 2],
            json!({"ports": [{"port": 80 + u32::from(variant)}]}),
        ),
    }
}
