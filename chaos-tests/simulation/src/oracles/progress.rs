//! A majority that can work does work, and nobody disturbs it.
//! In: samples of all nodes and links. Out: two seconds without a leader although a majority is connected in both directions and its
//! disks work; an election although only others were disturbed.
//! Invariant: a leader counts only while a majority answers it; a majority is one in the eyes of all its members, also while the voters
//! change.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use ursa_store::Role;

use crate::note;
use crate::world::{Running, World};
use crate::{ms, pause};

/// Between samples.
const PERIOD: Duration = Duration::from_millis(25);
/// Longest time without a leader.
pub const LEADERLESS: Duration = Duration::from_secs(2);
/// How long a group must have been connected before an election in it is a wonder: its members have heard the leader by then.
const SETTLED: Duration = Duration::from_secs(1);

/// What one sample shows of a node that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which of its lives.
    pub life: u32,
    pub term: u64,
    /// It leads, and a majority answers.
    pub leads: bool,
    pub admitted: bool,
    /// Who votes, as it knows; two sets while that changes.
    pub voters: Vec<BTreeSet<u64>>,
}

/// Which nodes can hear each other, and what they are.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub nodes: BTreeMap<u64, Sample>,
    /// Pairs (smaller id first) connected in both directions, as on a good day.
    pub links: Vec<(u64, u64)>,
    /// The lead is being given away by request.
    pub handing_over: bool,
}

/// Pure: the rules over a sequence of pictures.
#[derive(Debug)]
pub struct Rules {
    /// Groups that are connected, each node in the same life, since when.
    groups: BTreeMap<Vec<(u64, u32)>, Instant>,
    led: Instant,
    /// The connected group in which a leader of the newest term was just seen.
    throne: Option<Vec<(u64, u32)>>,
    /// Life and term of each node when it was last seen.
    terms: BTreeMap<u64, (u32, u64)>,
    reported: bool,
}

impl Rules {
    pub fn new(now: Instant) -> Self {
        Self {
            groups: BTreeMap::new(),
            led: now,
            throne: None,
            terms: BTreeMap::new(),
            reported: false,
        }
    }

    fn newest_term(&self) -> Option<u64> {
        self.terms.values().map(|(_, term)| *term).max()
    }

    /// Takes in the terms; who has gone furthest within one life. A node that returns may bring a term from before.
    fn rose(&mut self, picture: &Picture) -> Option<(u64, u64)> {
        let mut furthest: Option<(u64, u64)> = None;
        for (id, sample) in &picture.nodes {
            let before = self.terms.insert(*id, (sample.life, sample.term));
            if before.is_some_and(|(life, term)| life == sample.life && term < sample.term)
                && furthest.is_none_or(|(_, term)| term < sample.term)
            {
                furthest = Some((*id, sample.term));
            }
        }
        furthest
    }

    /// Takes in the next picture; says what is wrong.
    pub fn next(&mut self, now: Instant, picture: &Picture) -> Option<String> {
        let groups = groups(picture);
        self.groups.retain(|group, _| groups.contains(group));
        for group in &groups {
            self.groups.entry(group.clone()).or_insert(now);
        }
        let leader = picture
            .nodes
            .iter()
            .find(|(_, sample)| sample.leads)
            .map(|(id, sample)| (*id, sample.term));
        if leader.is_some() {
            self.led = now;
            self.reported = false;
        }
        let known = self.newest_term();
        let rose = self.rose(picture).filter(|rose| Some(rose.1) > known);
        let throne = self.throne.take().filter(|_| !picture.handing_over);
        let disturbed = throne
            .filter(|group| self.groups.contains_key(group))
            .zip(rose)
            .map(|(group, (node, term))| {
                let ids: Vec<u64> = group.iter().map(|(id, _)| *id).collect();
                format!("node {node} goes to term {term} although a leader and its majority {ids:?} were not disturbed")
            });
        if let Some((id, term)) = leader {
            let settled = self.groups.iter().filter(|(group, since)| {
                group.iter().any(|(member, _)| *member == id) && now.saturating_duration_since(**since) >= SETTLED
            });
            // A leader that a newer term is about to depose does not count.
            let group = settled.min_by_key(|(_, since)| **since);
            let group = group.filter(|_| self.newest_term() == Some(term));
            self.throne = group.map(|(group, _)| group.clone());
        }
        if disturbed.is_some() {
            return disturbed;
        }
        let since = self.groups.values().map(|since| *since.max(&self.led)).min()?;
        let waited = now.saturating_duration_since(since);
        (waited > LEADERLESS && !std::mem::replace(&mut self.reported, true))
            .then(|| format!("no leader for {waited:?} although a majority was connected all the time"))
    }
}

/// Every majority whose members are all connected with each other, and which all of them take for one.
fn groups(picture: &Picture) -> Vec<Vec<(u64, u32)>> {
    let linked = |a: u64, b: u64| a == b || picture.links.contains(&(a.min(b), a.max(b)));
    let votes = |id: &u64, sample: &Sample| sample.admitted && sample.voters.iter().flatten().any(|voter| voter == id);
    let voters = picture.nodes.iter().filter(|(id, sample)| votes(id, sample));
    let up: Vec<(u64, u32)> = voters.map(|(id, sample)| (*id, sample.life)).collect();
    let decides = |group: &[(u64, u32)]| {
        let known = group.iter().filter_map(|(id, _)| picture.nodes.get(id));
        let mut configs = known.flat_map(|sample| &sample.voters);
        !group.is_empty() && configs.all(|config| group.iter().filter(|(id, _)| config.contains(id)).count() > config.len() / 2)
    };
    (1_u32..1 << up.len())
        .map(|set| {
            up.iter()
                .enumerate()
                .filter(|(nth, _)| set >> nth & 1 == 1)
                .map(|(_, node)| *node)
                .collect::<Vec<_>>()
        })
        .filter(|group| group.iter().all(|a| group.iter().all(|b| linked(a.0, b.0))) && decides(group))
        .collect()
}

fn sample(running: &Running) -> Sample {
    let status = running.store.status();
    Sample {
        life: running.life.number,
        term: status.term,
        leads: status.role == Role::Leader && status.quorum,
        admitted: status.admitted,
        voters: status.voters,
    }
}

fn picture(world: &World) -> Picture {
    let up = world.all_running();
    let nodes: BTreeMap<u64, Sample> = up.iter().map(|running| (running.life.node, sample(running))).collect();
    let well: Vec<u64> = nodes.keys().copied().filter(|id| world.is_disk_well(*id)).collect();
    let pairs = well.iter().flat_map(|a| well.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
    let links = pairs.filter(|(a, b)| world.network.is_usual(*a, *b)).collect();
    let nodes = nodes
        .into_iter()
        .map(|(id, sample)| {
            let admitted = sample.admitted && well.contains(&id);
            (id, Sample { admitted, ..sample })
        })
        .collect();
    Picture {
        nodes,
        links,
        handing_over: world.is_handing_over(),
    }
}

/// Watches the world as long as it lasts.
pub async fn watch(world: World) {
    pause(ms(1)).await;
    let mut rules = Rules::new(Instant::now());
    let mut known = None;
    loop {
        let picture = picture(&world);
        let leader = picture.nodes.iter().find(|(_, s)| s.leads).map(|(id, s)| (*id, s.term));
        if leader != known {
            note!(world.trace, "leader: {leader:?}");
            known = leader;
        }
        if let Some(wrong) = rules.next(Instant::now(), &picture) {
            world.judge.report("progress", wrong);
        }
        pause(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node outside of the majority goes to a term of its own.
    #[test]
    fn an_election_outside_of_an_undisturbed_majority_is_seen() {
        let calm = std::iter::repeat_n(shot(Some(1), 1, &[(1, 2)]), 30);
        let mut lonely = shot(Some(1), 1, &[(1, 2)]);
        lonely.nodes.get_mut(&3).unwrap().term = 2;
        assert_eq!(judge(calm.clone().chain([lonely.clone()])).len(), 1);
        // One that returns with it is no wonder, nor what follows from it.
        lonely.nodes.get_mut(&3).unwrap().life = 2;
        let mut after = shot(None, 3, &[(1, 2)]);
        after.nodes.get_mut(&3).unwrap().life = 2;
        assert_eq!(judge(calm.chain([lonely, after])), Vec::<String>::new());
    }

    fn shot(leader: Option<u64>, term: u64, links: &[(u64, u64)]) -> Picture {
        let nodes = (1..=3).map(|id| {
            let sample = Sample {
                life: 1,
                term,
                leads: leader == Some(id),
                admitted: true,
                voters: vec![BTreeSet::from([1, 2, 3])],
            };
            (id, sample)
        });
        Picture {
            nodes: nodes.collect(),
            links: links.to_vec(),
            handing_over: false,
        }
    }

    const ALL: [(u64, u64); 3] = [(1, 2), (1, 3), (2, 3)];

    /// Feeds pictures 100 ms apart.
    fn judge(pictures: impl IntoIterator<Item = Picture>) -> Vec<String> {
        let start = Instant::now();
        let mut rules = Rules::new(start);
        let times = (0..).map(|n| start + Duration::from_millis(100) * n);
        times.zip(pictures).filter_map(|(at, picture)| rules.next(at, &picture)).collect()
    }

    #[test]
    fn a_majority_without_a_leader_is_seen_once() {
        let none = |n| std::iter::repeat_n(shot(None, 1, &ALL), n);
        assert_eq!(judge(none(20)), Vec::<String>::new());
        assert_eq!(judge(none(60)).len(), 1);
        // Two of three are a majority; links of which no two ends meet are none.
        assert_eq!(judge(std::iter::repeat_n(shot(None, 1, &[(2, 3)]), 60)).len(), 1);
        assert_eq!(judge(std::iter::repeat_n(shot(None, 1, &[]), 60)), Vec::<String>::new());
        // A leader in between starts the clock again.
        let led = none(15).chain([shot(Some(1), 1, &ALL)]).chain(none(15));
        assert_eq!(judge(led), Vec::<String>::new());
    }

    #[test]
    fn a_majority_is_one_in_the_eyes_of_all_of_its_members() {
        let with = |voters: &[&[u64]]| {
            let mut shot = shot(None, 1, &[(1, 2)]);
            let sets = voters.iter().map(|set| set.iter().copied().collect());
            shot.nodes.get_mut(&2).unwrap().voters = sets.collect();
            judge(std::iter::repeat_n(shot, 60)).len()
        };
        assert_eq!(with(&[&[1, 2, 3]]), 1);
        assert_eq!(with(&[&[1, 2, 3], &[1, 2, 3, 4]]), 0, "two of four do not decide");
        assert_eq!(with(&[&[1, 2, 3], &[1, 2, 4]]), 1, "both do");
        assert_eq!(with(&[&[1, 3, 4]]), 0, "it has no vote itself");
        assert_eq!(with(&[]), 0, "it knows of no group");
    }

    #[test]
    fn an_election_within_an_undisturbed_majority_is_seen() {
        let calm = std::iter::repeat_n(shot(Some(1), 1, &[(1, 2)]), 30);
        assert_eq!(judge(calm.clone()), Vec::<String>::new());
        assert_eq!(judge(calm.clone().chain([shot(None, 2, &[(1, 2)])])).len(), 1);
        // The link between leader and follower was cut: no wonder.
        assert_eq!(judge(calm.chain([shot(None, 2, &[(2, 3)])])), Vec::<String>::new());
    }
}
