//! Sessions and neighbours, as the threads see them: an immutable snapshot, looked at anew when its generation has changed.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tap::Tap;
use crate::sleeve::fragment::Reassembly;
use crate::sleeve::seal::{KeyRefused, Opener, Sealer};
use crate::sleeve::{Inbound, Key, Outbound, SAFE_DATAGRAM};

/// No path that is worth its name takes less: an IPv4 packet of 576 bytes (RFC 791), less its headers.
const LEAST: u16 = 548;
/// So many old sealers are remembered, lest one of them should count from zero again.
const REMEMBERED: usize = 64;

/// A neighbour, whatever the session.
#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) address: Ipv4Addr,
    /// Where it is: address and port in one word.
    remote: AtomicU64,
    /// Where we were told that it is.
    told: AtomicU64,
    datagram: AtomicU16,
    /// The youngest session of its that was heard; an older one does not say where it is.
    youngest: AtomicU64,
}

impl Neighbour {
    fn new(address: Ipv4Addr) -> Self {
        let zero = || AtomicU64::new(0);
        Self { address, remote: zero(), told: zero(), datagram: AtomicU16::new(SAFE_DATAGRAM), youngest: zero() }
    }

    pub(super) fn remote(&self) -> SocketAddrV4 {
        let word = self.remote.load(Ordering::Relaxed);
        SocketAddrV4::new(Ipv4Addr::from_bits((word >> 16) as u32), word as u16)
    }

    pub(super) fn datagram(&self) -> usize {
        self.datagram.load(Ordering::Relaxed).into()
    }

    pub(super) fn set_datagram(&self, datagram: u16) {
        self.datagram.store(datagram.max(LEAST), Ordering::Relaxed);
    }

    /// It is said to be there: believed if nothing was said before, or something else.
    fn tell(&self, remote: SocketAddrV4) {
        let word = word(remote);
        if self.told.swap(word, Ordering::Relaxed) != word {
            self.remote.store(word, Ordering::Relaxed);
        }
    }

    /// Its session of this age was heard from there. Is that elsewhere than before? Most often nothing is new, and nothing written.
    pub(super) fn heard_from(&self, remote: SocketAddrV4, age: u64) -> bool {
        let word = word(remote);
        let youngest = self.youngest.load(Ordering::Relaxed);
        if youngest < age {
            self.youngest.fetch_max(age, Ordering::Relaxed);
        }
        youngest <= age && self.remote.load(Ordering::Relaxed) != word && self.remote.swap(word, Ordering::Relaxed) != word
    }
}

fn word(remote: SocketAddrV4) -> u64 {
    u64::from(remote.ip().to_bits()) << 16 | u64::from(remote.port())
}

/// How to send to a neighbour.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) neighbour: Arc<Neighbour>,
    pub(super) sealer: Arc<Sealer>,
}

/// What a session that we accept leads to.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) neighbour: Arc<Neighbour>,
    pub(super) opener: Opener,
    pub(super) fragments: Mutex<Reassembly>,
    key: Key,
    pub(super) age: u64,
}

/// All of them at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    neighbours: BTreeMap<Ipv4Addr, Arc<Neighbour>>,
    ways: BTreeMap<Ipv4Addr, Way>,
    sources: BTreeMap<u32, Arc<Source>>,
}

impl Table {
    pub(super) fn way(&self, neighbour: Ipv4Addr) -> Option<&Way> {
        self.ways.get(&neighbour)
    }

    pub(super) fn source(&self, session: u32) -> Option<&Arc<Source>> {
        self.sources.get(&session)
    }

    pub(super) fn neighbours(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.values().map(|neighbour| &**neighbour)
    }

    /// That neighbour, which is known from now on.
    pub(super) fn neighbour(&mut self, address: Ipv4Addr) -> Arc<Neighbour> {
        self.neighbours.entry(address).or_insert_with(|| Arc::new(Neighbour::new(address))).clone()
    }

    /// Those that nothing leads to or from are forgotten.
    fn forget_unused(&mut self) {
        let Self { neighbours, ways, sources } = self;
        neighbours.retain(|address, _| ways.contains_key(address) || sources.values().any(|source| source.neighbour.address == *address));
    }
}

/// The table, and what it takes to change it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    generation: AtomicU64,
    current: Mutex<Arc<Table>>,
    editor: Mutex<Editor>,
    /// Queues of a device that was made anew, by lane, for the threads to take.
    taps: Mutex<BTreeMap<u8, Tap>>,
}

#[derive(Debug, Default)]
struct Editor {
    /// Counts sessions accepted.
    ages: u64,
    former: VecDeque<(Key, Arc<Sealer>)>,
}

impl Shared {
    /// This lane's thread is to use another queue: it must be woken.
    pub(super) fn plug(&self, lane: u8, tap: Tap) {
        lock(&self.taps).insert(lane, tap);
    }

    /// If there is one.
    pub(super) fn take_tap(&self, lane: u8) -> Option<Tap> {
        lock(&self.taps).remove(&lane)
    }

    /// The table as it is now.
    pub(super) fn table(&self) -> Arc<Table> {
        lock(&self.current).clone()
    }

    /// The table as a thread has it. Takes a lock only if there is a newer one.
    pub(super) fn refresh(&self, seen: &mut u64, table: &mut Arc<Table>) -> bool {
        let generation = self.generation.load(Ordering::Acquire);
        if *seen == generation {
            return false;
        }
        (*seen, *table) = (generation, self.table());
        true
    }

    pub(super) fn accept(&self, inbound: &Inbound) -> Result<(), KeyRefused> {
        let mut editor = lock(&self.editor);
        let id = inbound.session.0.get();
        if self.table().source(id).is_some_and(|source| source.key == inbound.key && source.neighbour.address == inbound.neighbour) {
            return Ok(());
        }
        editor.ages += 1;
        let opener = Opener::new(inbound.session, inbound.cipher, &inbound.key)?;
        let (fragments, key, age) = (Mutex::default(), inbound.key.clone(), editor.ages);
        self.change(|table| {
            let neighbour = table.neighbour(inbound.neighbour);
            table.sources.insert(id, Arc::new(Source { neighbour, opener, fragments, key, age }));
        });
        Ok(())
    }

    pub(super) fn refuse(&self, session: u32) {
        let _editing = lock(&self.editor);
        self.change(|table| {
            table.sources.remove(&session);
            table.forget_unused();
        });
    }

    pub(super) fn send(&self, neighbour: Ipv4Addr, session: Option<&Outbound>) -> Result<(), KeyRefused> {
        let mut editor = lock(&self.editor);
        let sealer = session.map(|session| editor.sealer(session)).transpose()?;
        self.change(|table| match session.zip(sealer) {
            Some((session, sealer)) => {
                let known = table.neighbour(neighbour);
                known.tell(session.remote);
                table.ways.insert(neighbour, Way { neighbour: known, sealer });
            }
            None => {
                table.ways.remove(&neighbour);
                table.forget_unused();
            }
        });
        Ok(())
    }

    pub(super) fn path(&self, neighbour: Ipv4Addr, datagram: u16) {
        let _editing = lock(&self.editor);
        self.change(|table| table.neighbour(neighbour).set_datagram(datagram));
    }

    /// The caller holds the editor's lock, or changes would get lost.
    fn change(&self, edit: impl FnOnce(&mut Table)) {
        let mut table = Table::clone(&self.table());
        edit(&mut table);
        *lock(&self.current) = Arc::new(table);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Editor {
    /// The session's sealer: a new one unless it has sealed before, when it must go on counting.
    fn sealer(&mut self, session: &Outbound) -> Result<Arc<Sealer>, KeyRefused> {
        let is_it = |(key, sealer): &&(Key, Arc<Sealer>)| sealer.session() == session.session && *key == session.key;
        if let Some((_, sealer)) = self.former.iter().find(is_it) {
            return Ok(sealer.clone());
        }
        let sealer = Arc::new(Sealer::new(session.session, session.cipher, &session.key)?);
        if self.former.len() == REMEMBERED {
            self.former.pop_front();
        }
        self.former.push_back((session.key.clone(), sealer.clone()));
        Ok(sealer)
    }
}

/// A panic elsewhere leaves nothing half-done in what these locks protect.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
