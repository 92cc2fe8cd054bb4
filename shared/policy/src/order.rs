//! The order of policies and of their items: later ones win. Total, so that it does not depend on how they were listed.
//! Source: Kuma, `pkg/plugins/policies/core/rules/{sort,outbound,inbound}`; dataplane.md 5.2.

use std::cmp::Reverse;

use ursa_model::{
    Origin, Resource,
    kind::common::{TargetKind, TargetRef},
};

use crate::{parsed::Parsed, select::Role};

/// Precedence of a policy or of one of its items: a greater rank wins. Fields are compared in order.
///
/// Kuma leaves equal ranks in the order of its list; here the stored name decides, then the place in the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank<'a> {
    /// Mesh before Dataplane, and a Dataplane without section before one with. The number of labels does not count.
    top: (TargetKind, bool),
    /// Made at the global, unknown, made in a zone.
    origin: u8,
    role: Role,
    /// Kind of the item's target; for a MeshService, without section before with. All equal for `rules` and whole policies.
    to: (TargetKind, bool),
    /// The lexicographically smaller name wins.
    display_name: Reverse<&'a str>,
    name: &'a str,
    index: usize,
}

fn has_section(target: &TargetRef) -> bool {
    target.section_name.as_deref().is_some_and(|s| !s.is_empty())
}

impl<'a> Rank<'a> {
    /// Rank of a whole policy, or of its `rules` item number `index`.
    pub fn of_rule(policy: &'a Resource, top: Option<&TargetRef>, index: usize) -> Self {
        Self {
            top: top.map_or((TargetKind::Mesh, false), |t| {
                (t.kind, t.kind == TargetKind::Dataplane && has_section(t))
            }),
            origin: match policy.origin() {
                Some(Origin::Global) => 0,
                None => 1,
                Some(Origin::Zone) => 2,
            },
            role: Role::of(policy),
            to: (TargetKind::Mesh, false),
            display_name: Reverse(policy.display_name()),
            name: policy.name(),
            index,
        }
    }

    /// Rank of a policy's `to` item number `index`.
    pub fn of_to(policy: &'a Resource, top: Option<&TargetRef>, to: &TargetRef, index: usize) -> Self {
        Self {
            to: (to.kind, to.kind == TargetKind::MeshService && has_section(to)),
            ..Self::of_rule(policy, top, index)
        }
    }
}

/// Puts policies into rising precedence.
pub(crate) fn sort<P>(policies: &mut [&Parsed<P>], top: impl Fn(&P) -> Option<&TargetRef>) {
    policies.sort_by(|a, b| Rank::of_rule(&a.resource, top(&a.spec), 0).cmp(&Rank::of_rule(&b.resource, top(&b.spec), 0)));
}

#[cfg(test)]
mod tests;
