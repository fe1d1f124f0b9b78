//! What the switch said besides flows, which the module cannot keep: a file in the run directory, for the next agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::datapath::{Op, PeerRoute, PortId, Source, TunnelKind};
use crate::peer::ShortId;
use crate::switch::Adopted;

/// The file's first bytes: its layout.
const LAYOUT: [u8; 8] = *b"odp-kep2";

type Address = [u8; 4];

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    layout: [u8; 8],
    /// The datapath that it was said of.
    pub(super) datapath: u32,
    short: Option<ShortId>,
    slots: BTreeMap<ShortId, Slot>,
    sources: BTreeMap<Address, Neighbour>,
    trees: BTreeMap<ShortId, (Option<Address>, Vec<ShortId>)>,
    flood_ports: Vec<PortId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    remote: Address,
    local: Address,
    port: u16,
    mtu: u16,
    tunnel: TunnelKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Neighbour {
    short: ShortId,
    local: Address,
    least: TunnelKind,
}

impl Told {
    pub(super) fn new(datapath: u32) -> Self {
        Self { layout: LAYOUT, datapath, ..Self::default() }
    }

    /// It is said of this datapath; `true`: of another one until now.
    pub(super) fn moves_to(&mut self, datapath: u32) -> bool {
        std::mem::replace(&mut self.datapath, datapath) != datapath
    }

    /// Remembers an order; `false` if it says nothing new, or is none of these.
    pub(super) fn hear(&mut self, op: &Op) -> bool {
        let before = self.clone();
        match op {
            Op::SetSelf(short) => self.short = Some(*short),
            Op::SetPeer(short, Some(route)) => drop(self.slots.insert(*short, Slot::from(route))),
            Op::SetPeer(short, None) => drop(self.slots.remove(short)),
            Op::SetSource { remote, neighbour: Some(Source { short, local, least }) } => {
                self.sources.insert(remote.octets(), Neighbour { short: *short, local: local.octets(), least: *least });
            }
            Op::SetSource { remote, neighbour: None } => drop(self.sources.remove(&remote.octets())),
            Op::SetTree { origin, parent: None, hops } if hops.is_empty() => drop(self.trees.remove(origin)),
            Op::SetTree { origin, parent, hops } => {
                self.trees.insert(*origin, (parent.map(|parent| parent.octets()), hops.clone()));
            }
            Op::SetFloodPorts(ports) => self.flood_ports.clone_from(ports),
            Op::Install(..) | Op::Remove(_) | Op::BumpEpoch | Op::Execute(..) | Op::Heartbeat { .. } => return false,
        }
        before != *self
    }

    /// All of it once more.
    pub(super) fn orders(&self) -> Vec<Op> {
        let adopted = self.adopted();
        let source = |(remote, source)| Op::SetSource { remote, neighbour: Some(source) };
        let mut orders: Vec<_> = adopted.short.map(Op::SetSelf).into_iter().collect();
        orders.extend(adopted.slots.into_iter().map(|(short, route)| Op::SetPeer(short, Some(route))));
        orders.extend(adopted.sources.into_iter().map(source));
        orders.extend(adopted.trees.into_iter().map(|(origin, parent, hops)| Op::SetTree { origin, parent, hops }));
        orders.push(Op::SetFloodPorts(adopted.flood_ports));
        orders
    }

    /// As the switch takes it over.
    pub(super) fn adopted(&self) -> Adopted {
        let source = |neighbour: &Neighbour| Source { short: neighbour.short, local: neighbour.local.into(), least: neighbour.least };
        Adopted {
            short: self.short,
            slots: self.slots.iter().map(|(short, slot)| (*short, slot.route())).collect(),
            sources: self.sources.iter().map(|(remote, neighbour)| (Ipv4Addr::from(*remote), source(neighbour))).collect(),
            trees: self.trees.iter().map(|(origin, (parent, hops))| (*origin, parent.map(Ipv4Addr::from), hops.clone())).collect(),
            flood_ports: self.flood_ports.clone(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.sources.is_empty()
    }
}

impl From<&PeerRoute> for Slot {
    fn from(route: &PeerRoute) -> Self {
        let PeerRoute { remote, local, port, mtu, tunnel, big: _ } = *route;
        Self { remote: remote.octets(), local: local.octets(), port, mtu, tunnel }
    }
}

impl Slot {
    fn route(&self) -> PeerRoute {
        PeerRoute { remote: self.remote.into(), local: self.local.into(), port: self.port, mtu: self.mtu, tunnel: self.tunnel, big: false }
    }
}

/// The file, if it shall be kept.
#[derive(Clone, Debug)]
pub(super) struct Keeper(Option<PathBuf>);

impl Keeper {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// What was kept of this datapath; what cannot be read is as if it were not there.
    pub(super) fn read(&self, datapath: u32) -> Option<Told> {
        let told: Told = postcard::from_bytes(&fs::read(self.0.as_ref()?).ok()?).ok()?;
        (told.layout == LAYOUT && told.datapath == datapath).then_some(told)
    }

    /// Whole or not at all.
    ///
    /// # Errors
    /// When the directory takes no file.
    pub(super) fn write(&self, told: &Told) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let bytes = postcard::to_stdvec(told).map_err(io::Error::other)?;
        let new = path.with_extension("new");
        fs::write(&new, bytes)?;
        fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let short = |id| ShortId::new(id).unwrap();
        let (remote, local) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
        let route = PeerRoute { remote, local, port: 6784, mtu: 1_400, tunnel: TunnelKind::Sleeve, big: false };
        let mut told = Told::new(3);
        for op in [
            Op::SetSelf(short(1)),
            Op::SetPeer(short(2), Some(route)),
            Op::SetSource { remote, neighbour: Some(Source { short: short(2), local, least: TunnelKind::Esp }) },
            Op::SetTree { origin: short(2), parent: Some(remote), hops: vec![short(3)] },
            Op::SetFloodPorts(vec![PortId(7)]),
        ] {
            assert!(told.hear(&op) && !told.hear(&op));
        }
        told
    }

    #[test]
    fn what_was_kept_is_what_was_said_of_the_same_datapath() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Some(dir.path().join("odp")));
        assert_eq!(keeper.read(3), None);
        keeper.write(&told()).unwrap();
        assert_eq!((keeper.read(3), keeper.read(4)), (Some(told()), None));
        let mut again = Told::new(3);
        for op in told().orders() {
            again.hear(&op);
        }
        assert_eq!(again, told());
        fs::write(dir.path().join("odp"), [0xff; 40]).unwrap();
        assert_eq!(keeper.read(3), None);
    }
}
