//! What a roll-back is: the changes that bring resources back to what they were at a revision, as one changeset on top of what there is.
//! In: a catalog, what differs from then. Out: ops with preconditions, what is left alone and why, what is refused and why.
//! Pure. Invariants: nothing is written that a PUT or DELETE of the same would refuse today; what another control plane owns, and what
//! credentials rest on, is left alone unless it is named.

use std::collections::BTreeSet;

use ursa_model::{Kind, Resource, ResourceKey, Violations, ZoneName};
use ursa_state::{Catalog, Change, Expect, Op, Put};

use crate::{
    Api, check,
    keys::ADMIN_TOKEN,
    rules::{self, Document},
};

/// Why something that differs stays as it is.
pub(crate) struct Skipped {
    pub(crate) key: ResourceKey,
    pub(crate) reason: String,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Plan {
    /// Puts in the order of keys, so that an owner comes before what it owns; then deletes in the other order.
    pub(crate) ops: Vec<Op>,
    /// What the ops do, by key: from what there is to what there was.
    pub(crate) changes: Vec<Change>,
    pub(crate) skipped: Vec<Skipped>,
    /// What is wrong; nothing may be done then.
    pub(crate) found: Violations,
}

/// The plan for `differences`, which lead from then (`before`) to now (`after`). `named`: a single resource was asked for by name.
/// Checks keys of tokens, so not on an async thread.
pub(crate) fn plan(api: &Api, catalog: &Catalog, unknown_zones: &[ZoneName], differences: Vec<Change>, named: bool) -> Plan {
    let mut plan = Plan::default();
    // A mesh that comes back needs its keys, which were removed with it and not for themselves.
    let returning: BTreeSet<String> = differences
        .iter()
        .filter(|d| d.key.kind() == Kind::Mesh && d.after.is_none())
        .map(|d| d.key.name().to_owned())
        .collect();
    // Meshes come before what is in them.
    let mut leaving = BTreeSet::new();
    let mut deletes = Vec::new();
    for Change {
        key,
        before: then,
        after: now,
    } in differences
    {
        let its_mesh_returns = now.is_none() && returning.contains(key.mesh());
        if let Some(reason) = hands_off(api, &key, then.as_deref(), now.as_deref(), named || its_mesh_returns) {
            // What goes with its mesh needs no op of its own.
            match (named, leaving.contains(key.mesh())) {
                (_, true) => plan.changes.push(Change {
                    key,
                    before: now,
                    after: None,
                }),
                (true, false) => plan.found.add(key.to_string(), reason),
                (false, false) => plan.skipped.push(Skipped { key, reason }),
            }
            continue;
        }
        match &then {
            Some(then) => match put(api, then, now.as_deref()) {
                Ok(put) => plan.ops.push(Op::Put(put)),
                Err(found) => plan.add_all(&key, found),
            },
            None => {
                plan.add_all(&key, check::unused(catalog, unknown_zones, &key));
                if key.kind() == Kind::Mesh {
                    leaving.insert(key.name().to_owned());
                }
                let version = now.as_ref().map_or(0, |now| now.version);
                let expect = Expect::Version(version);
                deletes.push(Op::Delete { key: key.clone(), expect });
            }
        }
        plan.changes.push(Change {
            key,
            before: now,
            after: then,
        });
    }
    plan.check_owners(catalog);
    deletes.reverse();
    plan.ops.extend(deletes);
    plan
}

impl Plan {
    fn add_all(&mut self, key: &ResourceKey, found: Violations) {
        for violation in found.0 {
            let field = match violation.field.as_str() {
                "" => key.to_string(),
                field => format!("{key}: {field}"),
            };
            self.found.add(field, violation.reason);
        }
    }

    /// What is put back needs its owner: there, or put back as well, and not on its way out.
    fn check_owners(&mut self, catalog: &Catalog) {
        let of = |operation: fn(&Change) -> bool| -> BTreeSet<ResourceKey> {
            self.changes.iter().filter(|c| operation(c)).map(|c| c.key.clone()).collect()
        };
        let (back, gone) = (of(|c| c.after.is_some()), of(|c| c.after.is_none()));
        let owned = self
            .changes
            .iter()
            .filter_map(|c| Some((&c.key, c.after.as_ref()?.owner.as_ref()?)));
        let missing: Vec<(String, String)> = owned
            .filter(|(_, owner)| gone.contains(owner) || (catalog.get(owner).is_none() && !back.contains(owner)))
            .map(|(key, owner)| {
                (
                    key.to_string(),
                    format!("{owner}, to which it belongs, is not there: roll that back as well"),
                )
            })
            .collect();
        for (key, reason) in missing {
            self.found.add(key, reason);
        }
    }
}

/// Why a resource is not touched.
fn hands_off(api: &Api, key: &ResourceKey, then: Option<&Resource>, now: Option<&Resource>, credentials_too: bool) -> Option<String> {
    if api.is_read_only(key.kind()) {
        return Some("resources of this type belong to another control plane and can only be read here".to_owned());
    }
    let ours = |resource: &Resource| rules::check_owned(&api.site, resource).is_empty();
    if !then.is_none_or(ours) || !now.is_none_or(ours) {
        return Some("it belongs to another control plane and can only be changed there".to_owned());
    }
    if !credentials_too && is_credential(key) {
        return Some("tokens depend on it: roll it back by its name if that is meant".to_owned());
    }
    None
}

/// Keys and revocations of tokens: rolling them back by the way could shut everybody out, or let somebody in again.
fn is_credential(key: &ResourceKey) -> bool {
    rules::token_family(key.kind(), key.mesh(), key.name()).is_some() || (key.kind() == Kind::GlobalSecret && key.name() == ADMIN_TOKEN)
}

/// The put that makes it what it was, if it may be that today.
fn put(api: &Api, then: &Resource, now: Option<&Resource>) -> Result<Put, Violations> {
    let (kind, mesh, name) = (then.kind(), then.mesh(), then.name());
    let document = Document::of(then);
    let secret = rules::check_token_secret(kind, mesh, name, &document.spec);
    let labels = check::document(&api.site, kind, mesh, name, &document, now, secret).map_err(|refused| refused.found)?;
    Ok(Put {
        key: then.key.clone(),
        labels,
        spec: document.spec,
        status: None,
        owner: then.owner.clone(),
        expect: now.map_or(Expect::Absent, |now| Expect::Version(now.version)),
    })
}
