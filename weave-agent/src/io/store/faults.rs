//! What kills, copies and bad disks leave of a database.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::super::clock::Clock;
use super::tests::{paths, rng};
use std::collections::BTreeMap;

use super::*;

/// About what 200 containers take.
const SNAPSHOT: usize = 20_000;
/// Where the child of `an_agent_killed_…` works.
const CHILD: &str = "WEAVE_STORE_CHILD";

/// State and addresses that tell which transaction they are from.
pub(super) fn numbered(number: u64) -> Changes {
    let mut state = State::fresh(&mut rng(0));
    state.targets = vec![number.to_string()];
    let bytes: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(SNAPSHOT).collect();
    Changes { state: Some(state), ipam: Some(bytes.into()), names: Some(vec![(number.to_string(), [10, 0, 0, 1].into())]) }
}

/// Which transaction the store is at, all of it. `None`: a fresh one.
fn number(store: &Store, state: &State) -> Option<u64> {
    let number = state.targets.first()?.parse().unwrap();
    let whole = numbered(number);
    assert_eq!((Some(state), store.ipam().unwrap()), (whole.state.as_ref(), whole.ipam));
    assert_eq!(Some(store.names().unwrap()), whole.names);
    Some(number)
}

/// Open a copy on a host of its own: nothing in it is an error.
pub(super) fn opened(file: &[u8]) -> Option<u64> {
    let (_dir, paths) = paths();
    fs::create_dir_all(&paths.state).unwrap();
    fs::write(paths.state_file(), file).unwrap();
    let (store, state) = Store::open(&paths, &mut rng(1)).unwrap();
    assert!(!store.trusted());
    let number = number(&store, &state);
    store.commit(&numbered(1_000_000)).unwrap();
    drop(store);
    let (store, state) = Store::open(&paths, &mut rng(1)).unwrap();
    assert!(store.trusted() && self::number(&store, &state) == Some(1_000_000));
    number
}

fn with_transactions(count: u64) -> Vec<u8> {
    let (_dir, paths) = paths();
    let (store, _) = Store::open(&paths, &mut rng(1)).unwrap();
    (1..=count).for_each(|number| store.commit(&numbered(number)).unwrap());
    // As it is while the agent runs: not closed.
    fs::read(paths.state_file()).unwrap()
}

#[test]
fn a_copy_of_a_file_in_use_is_whole_or_set_aside() {
    let (_dir, paths) = paths();
    let (store, _) = Store::open(&paths, &mut rng(1)).unwrap();
    let done = AtomicBool::new(false);
    let copies = thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = 1..;
            while !done.load(Ordering::Relaxed) {
                store.commit(&numbered(numbers.next().unwrap())).unwrap();
            }
        });
        let copies: Vec<_> =
            (0..30).map(|n| (thread::sleep(Duration::from_millis(n % 7)), fs::read(paths.state_file()).unwrap()).1).collect();
        done.store(true, Ordering::Relaxed);
        copies
    });
    let numbers: Vec<_> = copies.iter().filter_map(|copy| opened(copy)).collect();
    println!("{} of {} copies hold a state: {numbers:?}", numbers.len(), copies.len());
    assert!(!numbers.is_empty());
}

#[test]
fn a_truncated_file_is_set_aside_or_an_earlier_state() {
    let (file, mut rng) = (with_transactions(20), rng(3));
    let whole = (0..60).filter(|_| opened(&file[..rng.random_range(0..file.len())]).is_some()).count();
    println!("{whole} of 60 truncated files hold a state");
    assert_eq!(opened(&file), Some(20));
}

#[test]
fn a_file_with_wrong_bytes_is_whole_or_an_earlier_state_or_set_aside() {
    let (file, mut rng) = (with_transactions(20), rng(4));
    let used: Vec<usize> = (0..file.len()).filter(|at| file[*at] != 0).collect();
    let mut seen = BTreeMap::new();
    for round in 0..300 {
        let mut file = file.clone();
        for _ in 0..rng.random_range(1..4) {
            // The header is small, and most delicate.
            let at = if round % 3 == 0 { rng.random_range(0..512) } else { used[rng.random_range(0..used.len())] };
            file[at] ^= 1 << rng.random_range(0..8);
        }
        let number = opened(&file);
        assert!(number.is_none_or(|number| number <= 20));
        *seen.entry(number).or_insert(0) += 1;
    }
    println!("{seen:?}");
    assert!(seen.contains_key(&Some(20)));
}

/// The other process of the test below; alone it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let (store, state) = Store::open(&Paths { run: dir.join("run"), state: dir.join("state") }, &mut rng(1)).unwrap();
    for number in number(&store, &state).unwrap_or(0) + 1.. {
        store.commit(&numbered(number)).unwrap();
        writeln!(std::io::stderr(), "{number}").unwrap();
    }
}

#[test]
fn an_agent_killed_at_any_moment_knows_all_it_told_and_is_trusted() {
    let (dir, mut rng) = (tempfile::tempdir().unwrap(), rng(6));
    let paths = Paths { run: dir.path().join("run"), state: dir.path().join("state") };
    fs::create_dir(&paths.run).unwrap();
    let mut last = 0;
    for round in 0..50 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "io::store::faults::child", "--nocapture"]).env(CHILD, dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        told.read_to_string(&mut line).unwrap();
        let told: u64 = line.lines().last().unwrap().parse().unwrap();
        let (store, state) = Store::open(&paths, &mut self::rng(1)).unwrap();
        let kept = number(&store, &state).unwrap();
        assert!((told..=told + 1).contains(&kept) && told > last, "{kept} is kept and {told} was told");
        assert!(store.trusted(), "round {round}");
        last = kept;
    }
    println!("{last} transactions, 50 kills");
}

#[test]
fn transactions_and_the_start_are_quick_and_the_file_stays_small() {
    for size in [SNAPSHOT, 500_000] {
        let (_dir, paths) = paths();
        let (store, _) = Store::open(&paths, &mut rng(1)).unwrap();
        let mut times: Vec<Duration> = (1..=200).map(|number| timed(|| store.commit(&filled(number, size)).unwrap())).collect();
        times.sort();
        drop(store);
        let opened = timed(|| drop(Store::open(&paths, &mut rng(1)).unwrap()));
        let (p50, p99, length) = (times[100], times[198], paths.state_file().metadata().unwrap().len());
        println!("{size} bytes: committed in {p50:?} (p99 {p99:?}), opened and checked in {opened:?}, the file has {length} bytes");
        assert!(length < (1 << 20) + 8 * size as u64 && opened < Duration::from_secs(1));
    }
}

fn filled(number: u64, size: usize) -> Changes {
    Changes { ipam: Some(vec![number as u8; size].into()), ..numbered(number) }
}

fn timed(work: impl FnOnce()) -> Duration {
    let clock = Clock::new();
    let start = clock.now();
    work();
    clock.now() - start
}

/// So that a bad sector in the middle of the file is read, too.
#[test]
fn a_hole_in_the_file_is_found_at_the_start() {
    let (_dir, paths) = paths();
    let (store, _) = Store::open(&paths, &mut rng(1)).unwrap();
    store.commit(&numbered(1)).unwrap();
    drop(store);
    let bytes = fs::read(paths.state_file()).unwrap();
    let at = bytes.windows(16).position(|window| window == [0, 0, 0, 0, 0, 0, 0, 1].repeat(2)).unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(paths.state_file()).unwrap();
    file.seek(SeekFrom::Start(at as u64 + 4096)).unwrap();
    file.write_all(&[0; 512]).unwrap();
    let (store, state) = Store::open(&paths, &mut rng(2)).unwrap();
    assert!(number(&store, &state).is_none_or(|number| number < 1) && !store.trusted());
}
