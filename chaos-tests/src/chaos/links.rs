//! The links of a scenario: between all nodes of the global, and from each zone to each node.
//!
//! In: a topology. Out: the same, all of whose connections pass [`Link`]s of this process.
//! Invariant: a link carries requests there and answers back; a cut direction between two nodes therefore concerns both links of the pair.
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::demo::topology::{Topology, port};
use crate::faults::{Link, Partition, Way, Weather};

/// The links of a run.
#[derive(Debug)]
pub struct Links {
    /// From a node, to a node.
    nodes: BTreeMap<(u64, u64), Link>,
    /// From a zone, to a node.
    zones: BTreeMap<(String, u64), Link>,
}

impl Links {
    /// Makes a link for every connection from node to node and from zone to node, and has the topology use them.
    ///
    /// # Errors
    /// If an address is taken.
    pub async fn between(topology: &mut Topology) -> anyhow::Result<Self> {
        let mut links = Self {
            nodes: BTreeMap::new(),
            zones: BTreeMap::new(),
        };
        // The certificates of a node name its address: a link to it listens there too, on a port of its own.
        let any_port = |ip: Ipv4Addr| (ip, 0).into();
        for to in &topology.globals {
            for from in topology.globals.iter().filter(|from| from.id != to.id) {
                let link = Link::new(any_port(to.ip), (to.ip, port::CLUSTER).into()).await?;
                topology.links.nodes.insert((from.id, to.id), link.address());
                links.nodes.insert((from.id, to.id), link);
            }
            for zone in &topology.zones {
                let link = Link::new(any_port(to.ip), (to.ip, port::KDS).into()).await?;
                topology.links.zones.insert((zone.name.clone(), to.id), link.address());
                links.zones.insert((zone.name.clone(), to.id), link);
            }
        }
        Ok(links)
    }

    /// Has exactly this cut between the nodes.
    pub fn cut(&self, partition: &Partition) {
        let way = |from, to| if partition.cuts(from, to) { Way::Silent } else { Way::Open };
        for ((from, to), link) in &self.nodes {
            link.set(Weather {
                there: way(*from, *to),
                back: way(*to, *from),
                cut: false,
            });
        }
    }

    /// The same weather on every link between nodes.
    pub fn between_nodes(&self, weather: Weather) {
        self.nodes.values().for_each(|link| link.set(weather));
    }

    /// The link of a zone to a node.
    #[must_use]
    pub fn zone_to(&self, zone: &str, node: u64) -> Option<&Link> {
        self.zones.get(&(zone.to_owned(), node))
    }

    /// The same weather on every link of a zone.
    pub fn of_zone(&self, zone: &str, weather: Weather) {
        let of_it = self.zones.iter().filter(|((z, _), _)| z == zone);
        of_it.for_each(|(_, link)| link.set(weather));
    }

    /// Fair weather everywhere.
    pub fn heal(&self) {
        self.between_nodes(Weather::FAIR);
        self.zones.values().for_each(|link| link.set(Weather::FAIR));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cut_direction_loses_requests_and_answers() {
        let mut topology = Topology::with_globals(3);
        let links = Links::between(&mut topology).await.unwrap();
        assert_eq!((topology.links.nodes.len(), topology.links.zones.len()), (6, 6));
        links.cut(&Partition::of_one(1, &[1, 2, 3], true, false));
        let weather = |from, to| links.nodes[&(from, to)].weather();
        assert_eq!((weather(1, 2), weather(2, 1)), (Weather::DEAF, Weather::MUTE));
        assert_eq!(weather(2, 3), Weather::FAIR);
        links.heal();
        assert_eq!(weather(1, 2), Weather::FAIR);
    }
}
