//! The log against a disk that takes nothing for a while.
use std::io::ErrorKind;

use super::*;

const WHYS: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem];

/// Hands in entries and notes what was acknowledged.
struct Hand {
    log: Log<Text>,
    acknowledged: Arc<Mutex<Vec<u64>>>,
    next: u64,
}

impl Hand {
    fn new(log: Log<Text>, next: u64) -> Self {
        Self {
            log,
            acknowledged: Arc::default(),
            next,
        }
    }

    fn append(&mut self, len: usize) {
        let (index, acknowledged) = (self.next, self.acknowledged.clone());
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                acknowledged.lock().push(index);
            }
        });
        now(self.log.append(vec![text(1, index, len)], done)).unwrap();
        self.next += 1;
    }

    /// How many entries were acknowledged, in order.
    fn acknowledged(&self) -> u64 {
        let acknowledged = self.acknowledged.lock();
        assert!(
            acknowledged.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "out of order: {acknowledged:?}"
        );
        acknowledged.last().map_or(0, |last| last + 1)
    }
}

fn is_refused(log: &Log<Text>) -> bool {
    log.refused().borrow().is_some()
}

/// At any point of the log's life, several times: what is acknowledged meanwhile is on the disk, everything else follows in order once there
/// is room, and the power takes nothing that was acknowledged.
#[test]
fn a_disk_that_takes_nothing_is_waited_for() {
    let (mut waited, mut rolled, mut lost) = (0, 0, 0);
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        let mut hand = Hand::new(open(&disk).unwrap(), 0);
        for _ in 0..rng.random_range(1..4) {
            for _ in 0..rng.random_range(1..20) {
                hand.append(rng.random_range(0..200));
            }
            assert_eq!(hand.acknowledged(), hand.next, "seed {seed}");
            disk.refuse(Some(*WHYS.choose(&mut rng).unwrap()));
            for _ in 0..rng.random_range(1..12) {
                hand.append(rng.random_range(0..200));
                now(hand.log.retry()).unwrap();
            }
            assert!(hand.log.failure().borrow().is_none(), "seed {seed}");
            assert_eq!(hand.log.state().last, Some(id(1, hand.next - 1)), "it can be read");
            let (certain, given) = (hand.acknowledged(), hand.next);
            waited += u64::from(certain < given);
            if rng.random_range(0..3_u8) == 0 {
                let disk = disk.power_loss();
                disk.refuse(None);
                let found = Model::of(&open(&disk).unwrap()).entries.len() as u64;
                assert!((certain..=given).contains(&found), "seed {seed}: {found} of {certain} to {given}");
                lost += u64::from(found < given);
                break;
            }
            disk.refuse(None);
            now(hand.log.retry()).unwrap();
            assert_eq!((hand.acknowledged(), is_refused(&hand.log)), (given, false), "seed {seed}");
        }
        if !disk.is_on() || hand.acknowledged() < hand.next {
            continue;
        }
        rolled += u64::from(disk.files(Path::new(DIR)).unwrap().len() > 1);
        let expected = Model::of(&hand.log);
        drop(hand);
        assert_eq!(Model::of(&open(&disk.power_loss()).unwrap()), expected, "seed {seed}");
    }
    assert!(waited > 50 && rolled > 50 && lost > 10, "{waited}, {rolled}, {lost}");
}

/// The room that was taken ahead is for this: a full disk is known before it keeps a node from voting and purging.
#[test]
fn a_full_disk_is_known_early_and_still_takes_votes_and_marks() {
    let disk = SimDisk::new(1);
    let options = Options {
        segment_bytes: 1 << 20,
        ..Options::default()
    };
    let log: Log<Text> = Log::open(Arc::new(disk.clone()), Path::new(DIR), options, &Keys::default(), None).unwrap();
    let mut hand = Hand::new(log, 0);
    hand.append(100);
    disk.refuse(Some(ErrorKind::StorageFull));
    while !is_refused(&hand.log) {
        hand.append(1000);
    }
    assert_eq!(hand.acknowledged(), hand.next, "it is said before anything has to wait");
    for term in 2..1000 {
        let vote = Vote {
            term,
            node_id: 1,
            committed: false,
        };
        now(hand.log.save_vote(vote)).unwrap();
    }
    now(hand.log.truncate_after(Some(id(1, 5)))).unwrap();
    now(hand.log.purge(id(1, 3))).unwrap();
    let expected = Model::of(&hand.log);
    assert!(is_refused(&hand.log) && expected.vote.unwrap().term == 999);
    drop(hand);
    assert_eq!(Model::of(&open(&disk.power_loss()).unwrap()), expected);
}

/// What is purged is what makes room.
#[test]
fn purging_works_on_a_full_disk_and_makes_room() {
    let disk = SimDisk::new(1);
    let mut hand = Hand::new(open(&disk).unwrap(), 0);
    while disk.files(Path::new(DIR)).unwrap().len() < 4 {
        hand.append(100);
    }
    disk.refuse(Some(ErrorKind::StorageFull));
    now(hand.log.retry()).unwrap();
    now(hand.log.purge(id(1, hand.next - 1))).unwrap();
    assert_eq!(disk.files(Path::new(DIR)).unwrap().len(), 1);
}

#[test]
fn a_sync_that_fails_for_want_of_space_is_the_end_all_the_same() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    disk.fail_sync_with(0, ErrorKind::StorageFull);
    let failed = Arc::new(Mutex::new(None));
    let told = failed.clone();
    now(log.append(vec![text(1, 0, 5)], Box::new(move |result| *told.lock() = result.err()))).unwrap();
    assert!(failed.lock().is_some() && log.failure().borrow().is_some());
    now(log.retry()).unwrap_err();
}

#[test]
fn a_vote_that_is_not_written_is_not_given() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
    let vote = Vote {
        term: 7,
        node_id: 1,
        committed: false,
    };
    let given = async {
        let mut saved = std::pin::pin!(log.save_vote(vote));
        assert!(futures::poll!(&mut saved).is_pending());
        log.retry().await.unwrap();
        assert!(futures::poll!(&mut saved).is_pending());
        disk.refuse(None);
        log.retry().await.unwrap();
        saved.await
    };
    now(given).unwrap();
    drop(log);
    assert_eq!(Model::of(&open(&disk.power_loss()).unwrap()).vote, Some(vote));
}

#[test]
fn a_log_that_is_closed_while_the_disk_takes_nothing_acknowledges_nothing() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    now(log.append(vec![text(1, 0, 5)], Box::new(move |result| *told.lock() = Some(result)))).unwrap();
    assert_eq!(*answer.lock(), None);
    now(log.close()).unwrap_err();
    assert!(answer.lock().clone().unwrap().is_err());
    disk.refuse(None);
    assert_eq!(Model::of(&open(&disk.process_kill()).unwrap()), Model::default());
}
