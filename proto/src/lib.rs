//! Protobuf messages and gRPC services of the wire: the delta protocol that KDS and ADS share, and KDS itself.
//! Field numbers are Kuma's and Envoy's; the messages are our own, so nothing outside `zone-cp` compiles envoy-types.
//! No logic here.
#![allow(clippy::all, missing_docs, rustdoc::all)]

/// Packages as prost nests them; use the short names below.
pub mod pkg {
    pub mod envoy {
        pub mod service {
            pub mod discovery {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.discovery.v3");
                }
            }
        }
    }
    pub mod kuma {
        pub mod mesh {
            pub mod v1alpha1 {
                tonic::include_proto!("kuma.mesh.v1alpha1");
            }
        }
        pub mod system {
            pub mod v1alpha1 {
                tonic::include_proto!("kuma.system.v1alpha1");
            }
        }
    }
    pub mod ursa {
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("ursa.peer.v1");
            }
        }
    }
}

/// Delta discovery: one message set for KDS and for ADS.
pub use pkg::envoy::service::discovery::v3 as discovery;
/// KDS services and messages, and Kuma's mesh resources that are protobuf.
pub use pkg::kuma::mesh::v1alpha1 as kds;
/// Kuma's system resources that are protobuf.
pub use pkg::kuma::system::v1alpha1 as system;
/// Traffic between the nodes of one replicated store.
pub use pkg::ursa::peer::v1 as peer;

/// The compiled descriptors of every file, for JSON <-> protobuf by reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
