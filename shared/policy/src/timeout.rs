//! Timeouts with their defaults. Source: Kuma, `pkg/plugins/policies/meshtimeout/plugin`, `…/core/defaults`; dataplane.md 4 and 6.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;
use ursa_model::{
    duration::GoDuration,
    kind::{
        mesh_timeout::Conf,
        mesh_traffic_permission::{Match, SpiffeIdMatch, SpiffeIdMatchType},
    },
};

use crate::{
    inbound::{InboundRule, catch_all, specificity},
    merge::merge_confs,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Timeouts of a destination, a route or an inbound. Zero switches one off (`connect` is never zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TimeoutConf {
    /// Cluster: connect_timeout. Default 5 s.
    pub connect: Duration,
    /// HTTP and HTTP/2 (not gRPC) cluster: common_http_protocol_options.idle_timeout; tcp_proxy: idle_timeout. Default 1 h.
    /// The connection manager's own idle timeout is switched off.
    pub idle: Duration,
    /// Route: timeout. Default 15 s.
    pub request: Duration,
    /// Route: idle_timeout. Default 30 min.
    pub stream_idle: Duration,
    /// HTTP and HTTP/2 cluster: max_stream_duration. Off by default.
    pub max_stream: Duration,
    /// HTTP and HTTP/2 cluster: max_connection_duration. Off by default.
    pub max_connection: Duration,
    /// Connection manager: request_headers_timeout. Off by default.
    pub request_headers: Duration,
}

impl Default for TimeoutConf {
    /// What holds without policies, outbound and inbound.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: HOUR,
            request: Duration::from_secs(15),
            stream_idle: 30 * MINUTE,
            max_stream: Duration::ZERO,
            max_connection: Duration::ZERO,
            request_headers: Duration::ZERO,
        }
    }
}

impl TimeoutConf {
    /// What an inbound has when policies name only some of its callers: no policy speaks of the others, so Kuma leaves
    /// the values its generator wrote, which are twice the outbound's, or off.
    pub const UNTOUCHED_INBOUND: Self = Self {
        connect: Duration::from_secs(10),
        idle: Duration::from_secs(2 * 3600),
        request: Duration::ZERO,
        stream_idle: HOUR,
        max_stream: Duration::ZERO,
        max_connection: Duration::ZERO,
        request_headers: Duration::ZERO,
    };

    /// Takes over what a route's conf says of requests: `request` entirely, `stream_idle` only if it is set.
    pub(crate) fn for_route(&mut self, conf: &Conf) {
        let http = conf.http.clone().unwrap_or_default();
        self.request = http.request_timeout.map_or(Self::default().request, |d| d.0);
        if let Some(stream_idle) = http.stream_idle_timeout {
            self.stream_idle = stream_idle.0;
        }
    }
}

impl From<&Conf> for TimeoutConf {
    /// A merged conf, with defaults for what is absent.
    fn from(conf: &Conf) -> Self {
        let default = Self::default();
        let or = |set: Option<GoDuration>, default: Duration| set.map_or(default, |d| d.0);
        let http = conf.http.clone().unwrap_or_default();
        Self {
            connect: or(conf.connection_timeout, default.connect),
            idle: or(conf.idle_timeout, default.idle),
            request: or(http.request_timeout, default.request),
            stream_idle: or(http.stream_idle_timeout, default.stream_idle),
            max_stream: or(http.max_stream_duration, default.max_stream),
            max_connection: or(http.max_connection_duration, default.max_connection),
            request_headers: or(http.request_headers_timeout, default.request_headers),
        }
    }
}

/// Timeouts of an inbound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InboundTimeout {
    /// For all traffic.
    pub common: TimeoutConf,
    /// For some callers: routes cloned before the common one, in this order, each for callers that fulfil `matching`.
    pub callers: Vec<CallerTimeout>,
}

/// Timeouts of one kind of caller; absent ones are as for all traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallerTimeout {
    /// Its SPIFFE ID is always set.
    pub matching: Match,
    pub request: Option<Duration>,
    pub stream_idle: Option<Duration>,
}

/// Timeouts from an inbound's rules.
pub(crate) fn inbound_timeout(rules: &[InboundRule<Conf>]) -> InboundTimeout {
    let common = match catch_all(rules) {
        Some(conf) => TimeoutConf::from(&conf),
        None if rules.is_empty() => TimeoutConf::default(),
        None => TimeoutConf::UNTOUCHED_INBOUND,
    };
    InboundTimeout {
        common,
        callers: callers(rules),
    }
}

/// Timeouts of a chain of a zone ingress or egress: those of rules that name exactly its SNI and no caller, else those for all
/// traffic.
pub(crate) fn chain_timeout(rules: &[InboundRule<Conf>], sni: &str) -> Option<TimeoutConf> {
    let named = rules.iter().filter(|r| {
        r.matching
            .as_ref()
            .is_some_and(|m| m.spiffe_id.is_none() && m.sni.as_ref().is_some_and(|s| s.value == sni))
    });
    let common = catch_all(rules).map(|conf| TimeoutConf::from(&conf));
    let Ok(Some(named)) = merge_confs(named.map(|r| &r.conf)) else {
        return common;
    };
    let mut out = TimeoutConf::from(&named);
    if named.http.as_ref().is_none_or(|h| h.stream_idle_timeout.is_none())
        && let Some(common) = common
    {
        out.stream_idle = common.stream_idle;
    }
    Some(out)
}

/// Callers in the order of Kuma's cloned routes: exact before prefix, with SNI before without, the longer prefix first. Each gets
/// the merge of all rules that hold for it, the more specific ones last.
fn callers(rules: &[InboundRule<Conf>]) -> Vec<CallerTimeout> {
    let mut named: Vec<(&Match, &SpiffeIdMatch, &Conf)> = rules
        .iter()
        .filter(|r| {
            r.conf
                .http
                .as_ref()
                .is_some_and(|h| h.request_timeout.is_some() || h.stream_idle_timeout.is_some())
        })
        .filter_map(|r| r.matching.as_ref().and_then(|m| Some((m, m.spiffe_id.as_ref()?, &r.conf))))
        .collect();
    named.sort_by_key(|(m, ..)| rank(m));
    // So that many callers cost no comparison of each with each.
    let mut by_text: BTreeMap<(SpiffeIdMatchType, &str), Vec<usize>> = BTreeMap::new();
    for (i, (_, id, _)) in named.iter().enumerate() {
        by_text.entry((id.kind, id.value.as_str())).or_default().push(i);
    }
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (matching, id, _) in &named {
        if !seen.insert(*matching) {
            continue;
        }
        let prefixes = (0..=id.value.len())
            .filter_map(|end| id.value.get(..end))
            .map(|text| (SpiffeIdMatchType::Prefix, text));
        let itself = (id.kind == SpiffeIdMatchType::Exact).then_some((id.kind, id.value.as_str()));
        let mut holding: Vec<&(&Match, &SpiffeIdMatch, &Conf)> = itself
            .into_iter()
            .chain(prefixes)
            .filter_map(|text| by_text.get(&text))
            .flatten()
            .filter_map(|i| named.get(*i))
            .filter(|(wide, ..)| wide.sni.is_none() || wide.sni == matching.sni)
            .collect();
        // Least specific first; equally specific ones stay as they are, which is in rising precedence.
        holding.sort_by_key(|(m, ..)| Reverse(rank(m)));
        let Ok(Some(conf)) = merge_confs(holding.iter().map(|(.., conf)| *conf)) else {
            continue;
        };
        let http = conf.http.unwrap_or_default();
        out.push(CallerTimeout {
            matching: (*matching).clone(),
            request: http.request_timeout.map(|d| d.0),
            stream_idle: http.stream_idle_timeout.map(|d| d.0),
        });
    }
    out
}

/// Smaller is more specific.
fn rank(matching: &Match) -> ((u8, bool), Reverse<usize>) {
    let prefix = matching.spiffe_id.as_ref().filter(|id| id.kind == SpiffeIdMatchType::Prefix);
    (specificity(Some(matching)), Reverse(prefix.map_or(0, |id| id.value.len())))
}

#[cfg(test)]
mod tests;
