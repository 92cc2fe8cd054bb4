//! Query parameters: paging, filters, format.
//! Source: Kuma, `pkg/api-server/{pagination,filters}`. Invariant: the number of parameters is bounded.

use http::Uri;
use ursa_model::{
    Kind, Labels, Resource, Violations,
    kind::dataplane::{Dataplane, GatewayType},
};

use crate::error::Error;

/// Title of errors in a list's parameters.
const TITLE: &str = "Could not retrieve resources";
const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;
/// Parameters of one request; each filter costs a comparison per resource.
const MAX_PARAMETERS: usize = 64;

/// Decoded parameters, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Error> {
        let all: Vec<(String, String)> = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .take(MAX_PARAMETERS + 1)
            .map(|(k, v)| (k.into_owned(), v.into_owned()))
            .collect();
        if all.len() > MAX_PARAMETERS {
            return Err(Error::bad_request(format_args!("more than {MAX_PARAMETERS} query parameters")));
        }
        Ok(Self(all))
    }

    /// The first value of a parameter; empty when it is absent, as in Go.
    pub(crate) fn first(&self, name: &str) -> &str {
        self.0.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v)
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Items per page.
    pub(crate) fn size(&self) -> Result<usize, Error> {
        let text = self.first("size");
        if text.is_empty() {
            return Ok(DEFAULT_SIZE);
        }
        let size: i64 = text.parse().map_err(|_| Error::page_size(TITLE, "invalid format"))?;
        match usize::try_from(size) {
            Err(_) | Ok(0) => Err(Error::page_size(TITLE, "must be greater than 0")),
            Ok(size) if size > MAX_SIZE => Err(Error::page_size(
                TITLE,
                format!("invalid page size of {size}. Maximum page size is {MAX_SIZE}"),
            )),
            Ok(size) => Ok(size),
        }
    }

    /// Index of the first item.
    pub(crate) fn offset(&self) -> Result<usize, Error> {
        let text = self.first("offset");
        if text.is_empty() {
            return Ok(0);
        }
        let shown: String = text.chars().take(64).collect();
        let offset: i64 = text.parse().map_err(|_| {
            Error::store_invalid(
                TITLE,
                format_args!("invalid offset: strconv.Atoi: parsing {shown:?}: invalid syntax"),
            )
        })?;
        usize::try_from(offset).map_err(|_| Error::store_invalid(TITLE, "invalid offset: must be non-negative"))
    }

    /// The query with another value of one parameter, keys in alphabetical order as Go's `url.Values` writes them.
    pub(crate) fn with(&self, name: &str, value: &str) -> String {
        let mut all: Vec<(&str, &str)> = self
            .0
            .iter()
            .filter(|(k, _)| k != name)
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        all.push((name, value));
        all.sort_by_key(|(k, _)| *k);
        form_urlencoded::Serializer::new(String::new()).extend_pairs(all).finish()
    }
}

/// Which resources of a list are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Part of the stored name.
    name: String,
    labels: Labels,
    dataplane: Option<DataplaneFilter>,
}

#[derive(Clone, Debug)]
struct DataplaneFilter {
    gateway: Gateway,
    /// Parts of values, by key.
    tags: Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gateway {
    Any,
    Yes,
    No,
    Delegated,
}

impl Filter {
    /// `route` is the route's pattern, which the field names of violations begin with.
    pub(crate) fn parse(kind: Kind, query: &Query, route: &str) -> Result<Self, Error> {
        let mut found = Violations::default();
        let mut filter = Self {
            name: query.first("name").to_owned(),
            ..Self::default()
        };
        for (key, value) in &query.0 {
            let Some(inner) = key.strip_prefix("filter[") else { continue };
            let label = inner.strip_prefix("labels.").and_then(|l| l.split_once(']'));
            match label {
                None => found.add(format!("{route}.{key}"), "filters are only supported on labels"),
                Some((label, "")) => {
                    filter.labels.insert(label.to_owned(), value.clone());
                }
                Some(_) => found.add(format!("{route}.{key}"), "advanced filters are not supported"),
            }
        }
        if !found.is_empty() {
            return Err(Error::invalid(TITLE, found));
        }
        if kind == Kind::Dataplane {
            filter.dataplane = Some(DataplaneFilter::parse(query, route)?);
        }
        Ok(filter)
    }

    /// For things that are no resources: only the name counts.
    pub(crate) fn by_name(query: &Query) -> Self {
        Self {
            name: query.first("name").to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn matches_name(&self, name: &str) -> bool {
        name.contains(&self.name)
    }

    pub(crate) fn matches(&self, resource: &Resource) -> bool {
        self.matches_name(resource.name())
            && self.labels.iter().all(|(k, v)| resource.labels.get(k) == Some(v))
            && self.dataplane.as_ref().is_none_or(|f| f.matches(resource))
    }
}

impl DataplaneFilter {
    fn parse(query: &Query, route: &str) -> Result<Self, Error> {
        let mode = query.first("gateway").to_lowercase();
        let gateway = match mode.as_str() {
            "" => Gateway::Any,
            "true" => Gateway::Yes,
            "false" => Gateway::No,
            "delegated" => Gateway::Delegated,
            _ => {
                return Err(Error::invalid_field(
                    TITLE,
                    format!("{route}.gateway"),
                    format!("should use `true`, `false` or `delegated` instead of {mode}"),
                ));
            }
        };
        let tags = query
            .all("tag")
            .filter_map(|t| t.split_once(':'))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Ok(Self { gateway, tags })
    }

    fn matches(&self, resource: &Resource) -> bool {
        if self.gateway == Gateway::Any && self.tags.is_empty() {
            return true;
        }
        let gateway = resource.spec::<Dataplane>().ok().and_then(|d| d.networking.gateway);
        let wanted = match self.gateway {
            Gateway::Any => true,
            Gateway::Yes => gateway.is_some(),
            Gateway::No => gateway.is_none(),
            Gateway::Delegated => gateway.as_ref().is_some_and(|g| g.kind == GatewayType::Delegated),
        };
        let holds = |labels: &Labels| {
            self.tags
                .iter()
                .all(|(k, part)| labels.get(k).is_some_and(|v| v.contains(part.as_str())))
        };
        wanted && (gateway.as_ref().is_some_and(|g| holds(&g.tags)) || holds(&resource.labels))
    }
}

/// How a single resource is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Universal,
    Kubernetes,
}

/// The `format` of a single resource.
pub(crate) fn format(query: &Query) -> Result<Format, Error> {
    const TITLE: &str = "Could not retrieve a resource";
    match query.first("format") {
        "" | "universal" => Ok(Format::Universal),
        "k8s" | "kubernetes" => Ok(Format::Kubernetes),
        _ => Err(Error::invalid_field(TITLE, "format", "must be one of: k8s, kubernetes, universal")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn sizes_and_offsets() {
        assert_eq!(query("").size().unwrap(), 100);
        assert_eq!(query("size=1000").size().unwrap(), 1000);
        for bad in ["size=0", "size=-1", "size=1001", "size=x", "size=1.5", "size=99999999999999999999"] {
            assert_eq!(query(bad).size().unwrap_err().status(), 400, "{bad}");
        }
        assert_eq!(query("offset=7").offset().unwrap(), 7);
        assert!(
            query("offset=x")
                .offset()
                .unwrap_err()
                .to_string()
                .contains(r#"invalid: invalid offset: strconv.Atoi: parsing "x": invalid syntax"#)
        );
        assert!(query("offset=-1").offset().is_err());
    }

    #[test]
    fn the_next_link_keeps_the_other_parameters() {
        assert_eq!(
            query("size=2&offset=2&filter[labels.a]=b%26c").with("offset", "4"),
            "filter%5Blabels.a%5D=b%26c&offset=4&size=2"
        );
    }

    #[test]
    fn filters() {
        let route = "/meshes/{mesh}/dataplanes";
        for bad in [
            "filter[labelds.x]=1",
            "filter[labels.x][eq]=1",
            "filter[labels.x=1",
            "gateway=maybe",
        ] {
            let error = Filter::parse(Kind::Dataplane, &query(bad), route).unwrap_err();
            assert!(error.to_string().contains("/meshes/{mesh}/dataplanes."), "{error}");
        }
        assert!(Filter::parse(Kind::Mesh, &query("gateway=maybe"), route).is_ok());
        let many = (0..65).map(|i| format!("a{i}=1&")).collect::<String>();
        assert!(Query::parse(&format!("/x?{many}").parse().unwrap()).is_err());
    }
}
