//! The kernel's maps, typed. Keys and values travel as bytes (zerocopy), so no `unsafe` is needed here.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use super::batch;
use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use weave_ebpf::flow::{Bucket, Config, FloodPorts, Flow, FlowKey, PeerSlot, Source, Tree};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An array map of `V`, whose size is `N` bytes.
pub(super) struct Slots<V, const N: usize>(Array<MapData, [u8; N]>, PhantomData<V>);

impl<V: FromBytes + IntoBytes + Immutable, const N: usize> Slots<V, N> {
    fn new(name: &str, map: Map) -> Result<Self> {
        const { assert!(size_of::<V>() == N) };
        Ok(Self(map.try_into().with_context(|| format!("map {name}"))?, PhantomData))
    }

    pub(super) fn get(&self, index: u32) -> Result<V> {
        decode(&self.0.get(&index, 0)?)
    }

    pub(super) fn set(&mut self, index: u32, value: &V) -> Result<()> {
        Ok(self.0.set(index, encode::<V, N>(value)?, 0)?)
    }
}

/// A hash map from `K` (`M` bytes) to `V` (`N` bytes).
pub(super) struct Table<K, V, const M: usize, const N: usize> {
    map: HashMap<MapData, [u8; M], [u8; N]>,
    /// For what aya has no call for.
    descriptor: Option<OwnedFd>,
    shape: PhantomData<(K, V)>,
}

impl<K, V, const M: usize, const N: usize> Table<K, V, M, N>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    fn new(name: &str, map: Map) -> Result<Self> {
        const { assert!(size_of::<K>() == M && size_of::<V>() == N) };
        let descriptor = batch::descriptor(&map)?;
        Ok(Self { map: map.try_into().with_context(|| format!("map {name}"))?, descriptor, shape: PhantomData })
    }

    pub(super) fn insert(&mut self, key: &K, value: &V) -> Result<()> {
        Ok(self.map.insert(encode::<K, M>(key)?, encode::<V, N>(value)?, 0)?)
    }

    /// Removing what is not there is no error.
    pub(super) fn remove(&mut self, key: &K) -> Result<()> {
        match self.map.remove(&encode::<K, M>(key)?) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All entries; those that go away meanwhile are left out.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>> {
        let at_once = self.descriptor.as_ref().and_then(|map| batch::entries::<M, N>(map.as_fd()).ok());
        // Before Linux 5.6 each takes two system calls.
        let all = at_once.unwrap_or_else(|| self.map.iter().flatten().collect());
        all.iter().map(|(key, value)| Ok((decode(key)?, decode(value)?))).collect()
    }
}

fn encode<T: IntoBytes + Immutable, const N: usize>(value: &T) -> Result<[u8; N]> {
    Ok(value.as_bytes().try_into()?)
}

fn decode<T: FromBytes>(bytes: &[u8]) -> Result<T> {
    T::read_from_bytes(bytes).ok().context("a map's value has another size than the program that made it said")
}

/// All maps but the upcall ring.
pub(super) struct Tables {
    pub(super) config: Slots<Config, { size_of::<Config>() }>,
    pub(super) flows: Table<FlowKey, Flow, { size_of::<FlowKey>() }, { size_of::<Flow>() }>,
    pub(super) peers: Slots<PeerSlot, { size_of::<PeerSlot>() }>,
    pub(super) sources: Table<[u8; 4], Source, 4, { size_of::<Source>() }>,
    pub(super) locals: Table<[u8; 4], [u8; 4], 4, 4>,
    pub(super) trees: Slots<Tree, { size_of::<Tree>() }>,
    pub(super) flood_ports: Slots<FloodPorts, { size_of::<FloodPorts>() }>,
    pub(super) buckets: Table<u32, Bucket, 4, { size_of::<Bucket>() }>,
    pub(super) counts: PerCpuArray<MapData, u64>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(object: &mut aya::Ebpf) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for name in ["CONFIG", "FLOWS", "PEERS", "SOURCES", "LOCALS", "TREES", "FLOOD_PORTS", "BUCKETS", "COUNTS"] {
            let Some(map) = object.take_map(name) else {
                bail!("the BPF object has no map {name}: it belongs to another version; run `cargo xtask build-ebpf`");
            };
            maps.insert(name, map);
        }
        let mut take = |name: &'static str| maps.remove(name).context("taken twice");
        Ok(Self {
            config: Slots::new("CONFIG", take("CONFIG")?)?,
            flows: Table::new("FLOWS", take("FLOWS")?)?,
            peers: Slots::new("PEERS", take("PEERS")?)?,
            sources: Table::new("SOURCES", take("SOURCES")?)?,
            locals: Table::new("LOCALS", take("LOCALS")?)?,
            trees: Slots::new("TREES", take("TREES")?)?,
            flood_ports: Slots::new("FLOOD_PORTS", take("FLOOD_PORTS")?)?,
            buckets: Table::new("BUCKETS", take("BUCKETS")?)?,
            counts: take("COUNTS")?.try_into().context("map COUNTS")?,
        })
    }

    /// Sum of one counter over all CPUs.
    pub(super) fn count(&self, index: u32) -> Result<u64> {
        Ok(self.counts.get(&index, 0)?.iter().sum())
    }
}

/// Changes whenever a map's shape does, so that maps of another version are never mistaken for ours.
pub(super) fn layout() -> u64 {
    let sizes = [
        size_of::<Config>(),
        size_of::<FlowKey>(),
        size_of::<Flow>(),
        size_of::<PeerSlot>(),
        size_of::<Source>(),
        size_of::<Tree>(),
        size_of::<FloodPorts>(),
        size_of::<Bucket>(),
        weave_ebpf::stats::COUNTERS as usize,
        // Raised by hand when a field changes its meaning but not its size.
        2,
    ];
    sizes.iter().fold(0, |sum: u64, &size| sum.wrapping_mul(1_099).wrapping_add(size as u64))
}
