//! What a power cut leaves of a database.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use redb::backends::InMemoryBackend;
use redb::{BackendError, StorageBackend};

use super::faults::{numbered, opened};
use super::tests::rng;
use super::*;

/// A disk that may lose, in any order, what it was not told to sync.
#[derive(Debug)]
struct Disk {
    inner: InMemoryBackend,
    journal: Mutex<Journal>,
}

#[derive(Debug, Default)]
struct Journal {
    synced: Vec<u8>,
    pending: Vec<Order>,
}

#[derive(Debug)]
enum Order {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Debug)]
struct Plug(Arc<Disk>);

impl Disk {
    /// What is there after a power cut now: some of the sectors written since the last sync.
    fn cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let journal = self.journal.lock().unwrap();
        let mut file = journal.synced.clone();
        for order in &journal.pending {
            match order {
                Order::Length(length) => file.resize(*length as usize, 0),
                Order::Write(at, bytes) => {
                    for (sector, bytes) in bytes.chunks(512).enumerate().filter(|_| rng.random_bool(0.5)) {
                        let at = *at as usize + 512 * sector;
                        file[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
        }
        file
    }
}

impl StorageBackend for Plug {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.0.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.0.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.journal.lock().unwrap().pending.push(Order::Length(len));
        self.0.inner.set_len(len)
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        let mut journal = self.0.journal.lock().unwrap();
        journal.pending.clear();
        journal.synced = vec![0; self.0.inner.len()? as usize];
        self.0.inner.read(0, &mut journal.synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.journal.lock().unwrap().pending.push(Order::Write(offset, data.to_vec()));
        self.0.inner.write(offset, data)
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

#[test]
fn a_power_cut_at_any_point_leaves_the_last_state_that_was_reported_or_the_next() {
    let disk = Arc::new(Disk { inner: InMemoryBackend::new(), journal: Mutex::default() });
    let database = redb::Database::builder().create_with_backend(Plug(disk.clone())).unwrap();
    let mut mark = Mark::new(1);
    file::write(&database, &mark, &numbered(0)).unwrap();
    let (reported, done) = (Mutex::new(0), AtomicBool::new(false));
    let cuts = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                mark.generation += 1;
                file::write(&database, &mark, &numbered(mark.generation)).unwrap();
                *reported.lock().unwrap() = mark.generation;
            }
        });
        let mut rng = rng(5);
        let cuts: Vec<_> = (0..100)
            .map(|_| {
                thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
                let least = *reported.lock().unwrap();
                (least, disk.cut(&mut rng))
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        cuts
    });
    for (least, file) in cuts {
        let number = opened(&file).expect("nothing is set aside after a power cut");
        assert!(number >= least, "{number} of {least}");
    }
}
