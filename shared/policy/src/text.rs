//! KRIs as texts in serialised results, which are hashed.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use ursa_model::Kri;

pub(crate) fn kri<S: Serializer>(kri: &Kri, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(kri)
}

pub(crate) fn optional_kri<S: Serializer>(kri: &Option<Kri>, s: S) -> Result<S::Ok, S::Error> {
    kri.as_ref().map(Kri::to_string).serialize(s)
}

pub(crate) fn kri_keys<V: Serialize, S: Serializer>(map: &BTreeMap<Kri, V>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(map.iter().map(|(k, v)| (k.to_string(), v)))
}

pub(crate) fn kri_values<K: Serialize, S: Serializer>(map: &BTreeMap<K, Kri>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(map.iter().map(|(k, v)| (k, v.to_string())))
}
