use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::*;

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A host's directories, gone with it.
pub(super) fn paths() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths { run: dir.path().join("run"), state: dir.path().join("deep/state") };
    fs::create_dir_all(&paths.run).unwrap();
    (dir, paths)
}

fn open(paths: &Paths, seed: u64) -> (Store, State) {
    Store::open(paths, &mut rng(seed)).unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn ipam(text: &'static str) -> Changes {
    Changes { ipam: Some(Bytes::from_static(text.as_bytes())), ..Changes::default() }
}

#[test]
fn the_name_of_the_first_start_stays_and_so_does_all_else() {
    let (_dir, paths) = paths();
    let (store, first) = open(&paths, 1);
    assert!(store.ipam().unwrap().is_none() && store.names().unwrap().is_empty());
    drop(store);
    let (store, mut second) = open(&paths, 2);
    assert_eq!(first, second);
    second.short_id = Some(7);
    second.targets = vec!["10.0.0.2:6783".into()];
    second.exposed = vec!["10.32.0.1/16".parse().unwrap()];
    let names = vec![("db".to_owned(), "10.32.0.9".parse().unwrap()), ("db".to_owned(), "fd00::9".parse().unwrap())];
    store.commit(&Changes { state: Some(second.clone()), names: Some(names.clone()), ..ipam("ring") }).unwrap();
    drop(store);
    let (store, third) = open(&paths, 3);
    assert_eq!((third, store.names().unwrap(), store.ipam().unwrap()), (second, names, Some(Bytes::from("ring"))));
    assert_eq!(files(&paths.state), ["agent.redb"]);
}

#[test]
fn a_damaged_or_foreign_file_is_set_aside_and_a_fresh_one_made() {
    let (_dir, paths) = paths();
    fs::create_dir_all(&paths.state).unwrap();
    for (number, text) in ["", "x", "[]", &"no database ".repeat(100_000)].into_iter().enumerate() {
        fs::write(paths.state_file(), text).unwrap();
        let (store, state) = open(&paths, 1);
        assert!(!store.trusted() && store.notices().all()[0].contains("is damaged"), "{:?}", store.notices());
        drop(store);
        assert_eq!(open(&paths, 2).1, state);
        let aside = paths.state.join(format!("agent.redb.damaged-{}", number + 1));
        assert_eq!(fs::read_to_string(aside).unwrap(), text);
    }
    fs::remove_file(paths.state_file()).unwrap();
    drop(redb::Database::create(paths.state_file()).unwrap());
    drop(open(&paths, 1));
    assert!(paths.state.join("agent.redb.damaged-5").exists(), "a database of somebody else");
}

#[test]
fn a_file_of_a_later_version_is_refused_and_left_alone() {
    let (_dir, paths) = paths();
    let (store, _) = open(&paths, 1);
    let later = postcard::to_stdvec(&(2u32, 1u64, 1u64, "more")).unwrap();
    let transaction = store.locked().database().unwrap().begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("weave-agent");
    transaction.open_table(table).unwrap().insert("mark", later.as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(store);
    let error = format!("{:#}", Store::open(&paths, &mut rng(2)).unwrap_err());
    assert!(error.contains("a later version of weave-agent wrote it (its format is 2"), "{error}");
    assert_eq!(files(&paths.state), ["agent.redb"]);
}

#[test]
fn the_file_of_an_earlier_version_moves_in_once() {
    let (_dir, paths) = paths();
    fs::create_dir_all(&paths.state).unwrap();
    let old = r#"{"format": 1, "name": "02:00:00:00:00:07", "short_id": 7, "targets": ["h2"], "exposed": ["10.32.0.1/16"]}"#;
    fs::write(paths.old_state_file(), old).unwrap();
    let (store, state) = open(&paths, 1);
    assert_eq!((state.name.to_string().as_str(), state.short_id, state.targets.len()), ("02:00:00:00:00:07", Some(7), 1));
    assert_eq!(files(&paths.state), ["agent.redb"]);
    drop(store);
    // Died before it removed the old file: the database is what counts.
    fs::write(paths.old_state_file(), old.replace("h2", "h3")).unwrap();
    assert_eq!(open(&paths, 2).1, state);
    assert_eq!(files(&paths.state), ["agent.redb"]);
}

#[test]
fn a_damaged_file_of_an_earlier_version_is_set_aside() {
    let (_dir, paths) = paths();
    fs::create_dir_all(&paths.state).unwrap();
    let later = r#"{"format": 2, "name": "02:00:00:00:00:01"}"#;
    for (number, text) in ["", "{\"format\": 1", "[]", later, r#"{"format": 1, "name": "x"}"#].into_iter().enumerate() {
        fs::write(paths.old_state_file(), text).unwrap();
        drop(open(&paths, 1));
        fs::remove_file(paths.state_file()).unwrap();
        let aside = paths.state.join(format!("agent.json.damaged-{}", number + 1));
        assert_eq!(fs::read_to_string(aside).unwrap(), text);
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_a_notice_until_it_is() {
    let (_dir, paths) = paths();
    let (store, mut state) = open(&paths, 1);
    let (sender, receiver) = watch::channel(state.clone());
    let keeper = tokio::spawn(keep(store.clone(), receiver));
    // As with a full disk: the note beside the database cannot be written, nor removed.
    fs::remove_file(paths.latest()).unwrap();
    fs::create_dir(paths.latest()).unwrap();
    state.targets = vec!["h2".into()];
    sender.send_replace(state.clone());
    while store.notices().all().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(store.notices().all()[0].contains("agent.redb"), "{:?}", store.notices());
    fs::remove_dir(paths.latest()).unwrap();
    while !store.notices().all().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(sender);
    keeper.await.unwrap();
    drop(store);
    assert_eq!(open(&paths, 2).1, state);
}

#[tokio::test]
async fn names_that_could_not_be_written_are_once_they_can() {
    let (_dir, paths) = paths();
    let (store, _) = open(&paths, 1);
    let (sender, receiver) = watch::channel(Vec::new());
    let keeper = tokio::spawn(keep_names(store.clone(), receiver));
    fs::remove_file(paths.latest()).unwrap();
    fs::create_dir(paths.latest()).unwrap();
    let kept = crate::dns::Kept { name: "db".into(), address: [10, 32, 0, 9].into() };
    sender.send_replace(vec![kept.clone()]);
    while store.notices().all().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::remove_dir(paths.latest()).unwrap();
    while !store.notices().all().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(sender);
    keeper.await.unwrap();
    assert_eq!(store.names().unwrap(), [(kept.name, kept.address)]);
}

#[test]
fn two_agents_do_not_share_a_state_directory() {
    let (dir, ours) = paths();
    let theirs = Paths { run: dir.path().join("run2"), state: ours.state.clone() };
    fs::create_dir_all(&theirs.run).unwrap();
    let (store, state) = open(&ours, 1);
    let error = Store::open(&theirs, &mut rng(2)).unwrap_err().to_string();
    assert!(error.contains("another agent") && error.contains("--state-dir"), "{error}");
    drop(store);
    assert_eq!(open(&theirs, 2).1, state);
}

#[test]
fn only_what_was_stored_last_in_this_boot_is_trusted() {
    let (dir, paths) = paths();
    let (copy, early) = (dir.path().join("copy"), dir.path().join("early"));
    let (store, _) = open(&paths, 1);
    assert!(!store.trusted(), "a fresh file");
    drop(store);
    fs::copy(paths.state_file(), &early).unwrap();
    let (store, _) = open(&paths, 2);
    assert!(store.trusted());
    store.commit(&ipam("one")).unwrap();
    drop(store);
    fs::copy(paths.state_file(), &copy).unwrap();
    let (store, _) = open(&paths, 3);
    assert!(store.trusted(), "nothing has changed since");
    store.commit(&ipam("two")).unwrap();
    drop(store);
    fs::copy(&copy, paths.state_file()).unwrap();
    assert!(!open(&paths, 4).0.trusted(), "put back");
    // As many transactions later a copy has the same number; it is not the same.
    fs::copy(&early, paths.state_file()).unwrap();
    drop(open(&paths, 5));
    let (store, _) = open(&paths, 6);
    assert!(store.trusted());
    store.commit(&ipam("three")).unwrap();
    let generation = store.locked().mark.generation;
    drop(store);
    fs::copy(&early, &copy).unwrap();
    let other = Paths { run: dir.path().join("other-run"), state: dir.path().join("other") };
    fs::create_dir_all(&other.run).unwrap();
    fs::create_dir_all(&other.state).unwrap();
    fs::copy(&copy, other.state_file()).unwrap();
    let (store, _) = open(&other, 7);
    while store.locked().mark.generation < generation {
        store.commit(&ipam("four")).unwrap();
    }
    drop(store);
    fs::copy(other.state_file(), paths.state_file()).unwrap();
    assert!(!open(&paths, 8).0.trusted(), "another way from the same start");
    fs::remove_file(paths.latest()).unwrap();
    assert!(!open(&paths, 9).0.trusted(), "rebooted");
    let note = fs::read_to_string(paths.latest()).unwrap();
    fs::write(paths.latest(), format!("{}{}", if note.starts_with('0') { '1' } else { '0' }, &note[1..])).unwrap();
    assert!(!open(&paths, 10).0.trusted(), "a note of another boot");
}

#[test]
fn a_run_directory_that_takes_no_note_costs_trust_and_nothing_else() {
    let (_dir, paths) = paths();
    let (store, _) = open(&paths, 1);
    fs::remove_dir_all(&paths.run).unwrap();
    store.commit(&ipam("one")).unwrap();
    drop(store);
    fs::create_dir(&paths.run).unwrap();
    let (store, _) = open(&paths, 2);
    assert!(!store.trusted());
    assert_eq!(store.ipam().unwrap().unwrap(), "one");
}

#[tokio::test]
async fn what_changed_last_is_on_disk_when_the_keeper_ends() {
    let (_dir, paths) = paths();
    let (store, state) = open(&paths, 1);
    let (sender, receiver) = watch::channel(state);
    let keeper = tokio::spawn(keep(store, receiver));
    for id in 0..50 {
        sender.send_modify(|state| state.short_id = Some(id));
        tokio::task::yield_now().await;
    }
    drop(sender);
    keeper.await.unwrap();
    assert_eq!(open(&paths, 2).1.short_id, Some(49));
}

#[tokio::test]
async fn snapshots_that_wait_share_a_transaction_and_the_last_one_is_told() {
    let (_dir, paths) = paths();
    let (store, _) = open(&paths, 1);
    let before = store.locked().mark.generation;
    let (sender, receiver) = watch::channel(Snapshot::default());
    let (told, mut stored) = mpsc::unbounded_channel();
    let keeper = tokio::spawn(keep_ipam(store.clone(), receiver, move |number| {
        let told = told.clone();
        async move { told.send(number).unwrap() }
    }));
    for number in 1..=500u64 {
        sender.send_replace(Snapshot { number, bytes: number.to_be_bytes().to_vec().into() });
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(sender);
    keeper.await.unwrap();
    let mut numbers = Vec::new();
    while let Some(number) = stored.recv().await {
        numbers.push(number);
    }
    assert!(numbers.is_sorted() && numbers.last() == Some(&500) && numbers.len() < 20, "{numbers:?}");
    assert_eq!(store.locked().mark.generation - before, numbers.len() as u64);
    assert_eq!(store.ipam().unwrap().unwrap(), 500u64.to_be_bytes().as_slice());
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_told_and_tried_again() {
    let (dir, paths) = paths();
    let (store, _) = open(&paths, 1);
    let (elsewhere, old) = (dir.path().join("elsewhere"), dir.path().join("old"));
    fs::copy(paths.state_file(), &old).unwrap();
    store.commit(&ipam("zero")).unwrap();
    fs::rename(paths.state_file(), &elsewhere).unwrap();
    store.locked().database = None;
    let error = format!("{:#}", store.commit(&ipam("one")).unwrap_err());
    assert!(error.contains("cannot write") && error.ends_with("it is gone"), "{error}");
    let (sender, receiver) = watch::channel(Snapshot::default());
    let (told, mut stored) = mpsc::unbounded_channel();
    tokio::spawn(keep_ipam(store.clone(), receiver, move |number| {
        let told = told.clone();
        async move { told.send(number).unwrap() }
    }));
    sender.send_replace(Snapshot { number: 1, bytes: "two".into() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    sender.send_replace(Snapshot { number: 2, bytes: "three".into() });
    assert!(stored.try_recv().is_err());
    fs::copy(&old, paths.state_file()).unwrap();
    let error = format!("{:#}", store.commit(&ipam("one")).unwrap_err());
    assert!(error.contains("an older file"), "{error}");
    fs::rename(&elsewhere, paths.state_file()).unwrap();
    assert_eq!(stored.recv().await, Some(2));
    assert_eq!(store.ipam().unwrap().unwrap(), "three");
}
