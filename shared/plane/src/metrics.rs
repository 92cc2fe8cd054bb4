//! `GET /cluster` as gauges, read from the store when they are asked for: nothing to keep up to date, nothing that can be stale.
//! Names: `leader` is Kuma's; the others are ours. Labels are ids of members and the five roles.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::status::{ClusterView, Shown};

const ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "stopped"];

/// See the module's text.
pub(crate) struct ClusterMetrics(pub(crate) Shown);

impl fmt::Debug for ClusterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterMetrics")
    }
}

fn number(value: Option<u64>) -> i64 {
    value.map_or(0, |v| i64::try_from(v).unwrap_or(i64::MAX))
}

fn flag(value: bool) -> i64 {
    i64::from(value)
}

fn gauge(value: i64, encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstGauge::new(value).encode(encoder)
}

fn plain(view: &ClusterView) -> [(&'static str, &'static str, i64); 14] {
    let healthy = view.members.iter().filter(|m| m.healthy).count();
    [
        ("leader", "Whether this node leads its group", flag(view.role == "leader")),
        (
            "raft_leader_id",
            "Who leads as far as this node knows; 0: nobody",
            number(view.leader),
        ),
        ("raft_term", "Term of this node", number(Some(view.term))),
        ("raft_last_log_index", "Newest entry of this node's log", number(view.logs.last_log)),
        (
            "raft_applied_index",
            "Newest entry that this node has applied",
            number(view.logs.applied),
        ),
        (
            "raft_snapshot_index",
            "Newest entry in a snapshot of this node",
            number(view.logs.snapshot),
        ),
        (
            "raft_purged_index",
            "Newest entry that this node's log no longer has",
            number(view.purged),
        ),
        (
            "raft_lag_entries",
            "Entries that this node has stored and not applied",
            number(Some(view.lag)),
        ),
        (
            "store_feature_level",
            "Feature level of the group, as far as this node has applied",
            i64::from(view.feature_level),
        ),
        (
            "raft_quorum",
            "Whether a majority was in contact within the last lease",
            flag(view.quorum),
        ),
        (
            "store_disk_refuses",
            "Whether the disk of this node takes nothing: writes are refused until it does",
            flag(view.disk_refuses.is_some()),
        ),
        ("store_revision", "Revision of this node's view", number(Some(view.revision))),
        (
            "ready",
            "Whether this node answers linearizable reads and its servers are up",
            flag(view.not_ready.is_empty()),
        ),
        (
            "raft_members_healthy",
            "Members heard within the last seconds, this one included",
            i64::try_from(healthy).unwrap_or(i64::MAX),
        ),
    ]
}

impl Collector for ClusterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(view) = self.0.view() else { return Ok(()) };
        for (name, help, value) in plain(&view) {
            gauge(value, encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Time since a majority was in contact";
        let age = encoder.encode_descriptor("raft_quorum_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(seconds(view.quorum_age_ms)).encode(age)?;
        let help = "Syncs of the log since the start";
        let syncs = encoder.encode_descriptor("store_log_syncs", help, None, MetricType::Counter)?;
        ConstCounter::new(view.log_syncs).encode(syncs)?;
        let help = "Time that these took: by their number, how long a sync takes";
        let time = encoder.encode_descriptor("store_log_sync", help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(Duration::from_micros(view.log_sync_micros).as_secs_f64()).encode(time)?;
        let sizes = [
            ("store_size", "What is stored, without its history", Some(view.store_bytes)),
            ("store_max_size", "What store_size may become", Some(view.store_max_bytes)),
            (
                "store_disk_free",
                "Free space of the file system with the data folder",
                view.disk_free_bytes,
            ),
        ];
        for (name, help, bytes) in sizes {
            if bytes.is_some() {
                gauge(
                    number(bytes),
                    encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?,
                )?;
            }
        }
        let mut roles = encoder.encode_descriptor("raft_role", "1 at the role of this node", None, MetricType::Gauge)?;
        for role in ROLES {
            gauge(flag(view.role == role), roles.encode_family(&[("role", role)])?)?;
        }
        let mut healthy = encoder.encode_descriptor("raft_member_healthy", "Whether a member was heard lately", None, MetricType::Gauge)?;
        for member in &view.members {
            gauge(flag(member.healthy), healthy.encode_family(&[("member", member.id.to_string())])?)?;
        }
        let help = "Newest feature level that a member knows, by its own word";
        let mut levels = encoder.encode_descriptor("store_member_feature_level_max", help, None, MetricType::Gauge)?;
        for member in &view.members {
            if let Some(known) = member.feature_levels {
                gauge(i64::from(known.max), levels.encode_family(&[("member", member.id.to_string())])?)?;
            }
        }
        let mut lag = encoder.encode_descriptor(
            "raft_member_lag_entries",
            "Entries that a member has not applied, by its own word",
            None,
            MetricType::Gauge,
        )?;
        for member in &view.members {
            if let Some(behind) = member.lag {
                gauge(number(Some(behind)), lag.encode_family(&[("member", member.id.to_string())])?)?;
            }
        }
        Ok(())
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}
