//! Which policies apply to a proxy, merged how. Pure: no I/O, no clock, no Envoy types.
//!
//! In: the policies of one mesh ([`Policies`]), its services ([`Destinations`]) and a proxy's Dataplane. Out: [`Matched`], the
//! merged configuration of each inbound and of each destination, with defaults applied, for whoever builds Envoy's
//! configuration from it. Equal input gives equal output, in whatever order the policies are listed.
//! Source: Kuma, `pkg/plugins/policies/core/{matchers,rules}`; dataplane.md 5.
//!
//! ```text
//! let destinations = Destinations::new(services);                  // once per change of a MeshService
//! let matched = match_proxy(&policies, &destinations, &dataplane, "default");
//! for (section, rules) in &matched.inbound {                        // every inbound and listener has an entry
//!     rules.permissions();                                          // lists for RBAC; empty lists deny all
//!     rules.timeout();                                              // inbound cluster, HCM, routes
//!     rules.circuit_breaker();                                      // inbound cluster; None: only track_remaining
//! }
//! for destination in outbounds {                                    // KRI with section
//!     let routes = matched.outbound.http_routes(&destination, &destinations); // empty: not HTTP, build a tcp_proxy
//!     for route in &routes {
//!         matched.outbound.timeout(&destination, route.policy.as_ref());      // .request and .stream_idle
//!         matched.outbound.retry(&destination, route.policy.as_ref(), protocol);
//!     }
//!     matched.outbound.timeout(&destination, None);                  // cluster, HCM, tcp_proxy
//!     matched.outbound.connect_attempts(&destination);               // tcp_proxy
//!     matched.outbound.circuit_breaker(&destination);                // cluster
//! }
//! ```
//! Here also: the policies a new Mesh gets ([`defaults`]). Not here: MeshMultiZoneService and MeshExternalService, which
//! resolve to nothing until their kinds exist.

pub mod circuit_breaker;
pub mod defaults;
pub mod destinations;
pub mod inbound;
pub mod matching;
pub mod merge;
pub mod order;
pub mod outbound;
pub mod parsed;
pub mod permissions;
pub mod retry;
pub mod routes;
pub mod select;
mod text;
pub mod timeout;

#[cfg(test)]
mod testing;

pub use circuit_breaker::{CircuitBreakerConf, Outliers};
pub use destinations::{Backend, Destinations, resolve_backend, resolve_outbound};
pub use inbound::{InboundRule, InboundRules};
pub use matching::{Matched, Policies, Shadow, match_proxy, match_proxy_with};
pub use outbound::{Origin, OutboundRules, ResourceRule, ResourceRules};
pub use parsed::Parsed;
pub use permissions::{Permission, Permissions};
pub use retry::RetryPolicy;
pub use routes::{DEFAULT_ROUTE, Route, RouteBackend};
pub use select::{Selected, selects};
pub use timeout::{CallerTimeout, InboundTimeout, TimeoutConf};
