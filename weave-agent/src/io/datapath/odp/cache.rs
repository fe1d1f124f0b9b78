//! Which flows of ours the module has. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL};
use weave_ebpf::stats::DropReason;

use super::compile::{Variant, variant_of};
use super::ports::Ports;
use super::wire::{Act, Fields, Flow};
use crate::addr::Mac;
use crate::datapath::{Action, PortId};
use crate::peer::ShortId;

/// A flow's name: it says whose it is and what the switch said, which its actions do not.
pub(super) type Ufid = [u8; 16];

/// Ours begin so.
const MARK: [u8; 2] = *b"wv";
/// Kinds of frames that one flow of the switch's may have flows of its own for.
const MOST_VARIANTS: usize = 16;
/// Strangers that are kept from asking, each by a flow.
const MOST_BLANKETS: usize = 256;

/// What a flow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    /// A flow of the switch's, for frames of one kind.
    Flow(FlowKey, Variant),
    /// Heartbeats of a neighbour, or what its module makes of ours.
    Heartbeats(Ipv4Addr, bool),
    /// All that comes from an address, which is dropped.
    Blanket(Ipv4Addr),
    /// All that comes by the sleeve's device with this number: a socket takes it before.
    Silence(u32),
}

/// A flow of ours.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) of: Of,
    /// What the switch said.
    pub(super) action: Action,
    pub(super) key: Fields,
    pub(super) mask: Fields,
    pub(super) actions: Vec<Act>,
    /// Counters that each of its frames counts for.
    pub(super) counts: Vec<u32>,
    /// Frames, bytes, and time of the last one, when it was asked last.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) used: Option<u64>,
}

impl Record {
    pub(super) fn ufid(&self) -> Ufid {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        (&self.key, &self.mask).hash(&mut hasher);
        let (kind, target) = number(self.action);
        let of = match self.of {
            Of::Flow(..) => 1,
            Of::Heartbeats(..) => 2,
            Of::Blanket(_) => 3,
            Of::Silence(_) => 4,
        };
        let mut ufid = [0; 16];
        ufid[..2].copy_from_slice(&MARK);
        (ufid[2], ufid[3]) = (of, kind);
        ufid[4..8].copy_from_slice(&target.to_be_bytes());
        ufid[8..].copy_from_slice(&hasher.finish().to_be_bytes());
        ufid
    }
}

/// FNV-1a: a name must be the same in the next agent.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
}

fn number(action: Action) -> (u8, u32) {
    match action {
        Action::Drop(reason) => (0, reason.index()),
        Action::Port(port) => (1, port.0),
        Action::Peer(short) => (2, short.get().into()),
        Action::Flood(short) => (3, short.get().into()),
    }
}

/// A flow of the switch's that one of the module's was made for.
pub(super) type Meant = (FlowKey, Variant, Action);

/// What an earlier agent's flow was for, and what the switch had said; `None` if it is not ours.
pub(super) fn meant(flow: &Flow, ports: &Ports) -> Option<(Ufid, Option<Meant>)> {
    let ufid: Ufid = flow.ufid.as_deref()?.try_into().ok()?;
    if ufid[..2] != MARK {
        return None;
    }
    let target = u32::from_be_bytes([ufid[4], ufid[5], ufid[6], ufid[7]]);
    let short = || ShortId::new(u16::try_from(target).ok()?);
    let action = match ufid[3] {
        0 => DropReason::from_index(target).map(Action::Drop),
        1 => Some(Action::Port(PortId(target))),
        2 => short().map(Action::Peer),
        3 => short().map(Action::Flood),
        _ => None,
    };
    let is_flow = ufid[2] == 1;
    let key = action.filter(|_| is_flow).and_then(|action| flow_key(flow, ports).map(|(key, variant)| (key, variant, action)));
    Some((ufid, key))
}

fn flow_key(flow: &Flow, ports: &Ports) -> Option<(FlowKey, Variant)> {
    let (key, mask) = (&flow.key, flow.mask.as_ref()?);
    let number = key.in_port?;
    let [src, dst] = key.ethernet?;
    let mut variant = variant_of(key)?;
    let flow_key = if number == ports.vxlan() {
        let tunnel = key.tunnel.as_ref()?;
        if mask.tunnel.as_ref()?.ttl != Some(u8::MAX) {
            variant.ttl = None;
        }
        let in_transit = mask.ethernet? == [Mac([0; 6]); 2];
        let [src, dst] = if in_transit { [[0; 6]; 2] } else { [src.0, dst.0] };
        FlowKey { ingress: INGRESS_TUNNEL, vni: u32::try_from(tunnel.id?).ok()?, outer_src: tunnel.src?.octets(), src, dst }
    } else {
        FlowKey { ingress: ports.ifindex(number)?, vni: 0, outer_src: [0; 4], src: src.0, dst: dst.0 }
    };
    Some((flow_key, variant))
}

/// All flows of ours.
#[derive(Debug, Default)]
pub(super) struct Cache {
    records: BTreeMap<Ufid, Record>,
    by_of: BTreeMap<Of, Ufid>,
    /// Peers and what depends on them are many to many; a changed slot looks for its own here.
    by_peer: BTreeMap<ShortId, BTreeSet<Ufid>>,
    blankets: usize,
}

impl Cache {
    pub(super) fn has(&self, of: &Of) -> bool {
        self.by_of.contains_key(of)
    }

    /// Whether there may be one more for this.
    pub(super) fn has_room(&self, of: &Of) -> bool {
        match of {
            Of::Flow(key, _) => self.variants(key).count() < MOST_VARIANTS,
            Of::Blanket(_) => self.blankets < MOST_BLANKETS,
            Of::Heartbeats(..) | Of::Silence(_) => true,
        }
    }

    pub(super) fn insert(&mut self, ufid: Ufid, record: Record) {
        self.by_of.insert(record.of, ufid);
        self.blankets += usize::from(matches!(record.of, Of::Blanket(_)));
        if let Some(peer) = peer(&record) {
            self.by_peer.entry(peer).or_default().insert(ufid);
        }
        self.records.insert(ufid, record);
    }

    pub(super) fn remove(&mut self, ufid: &Ufid) -> Option<Record> {
        let record = self.records.remove(ufid)?;
        self.by_of.remove(&record.of);
        self.blankets -= usize::from(matches!(record.of, Of::Blanket(_)));
        if let Some(of_peer) = peer(&record).and_then(|peer| self.by_peer.get_mut(&peer)) {
            of_peer.remove(ufid);
        }
        Some(record)
    }

    pub(super) fn get_mut(&mut self, ufid: &Ufid) -> Option<&mut Record> {
        self.records.get_mut(ufid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Ufid, &Record)> {
        self.records.iter()
    }

    pub(super) fn find(&self, of: &Of) -> Option<Ufid> {
        self.by_of.get(of).copied()
    }

    /// Those of one flow of the switch's.
    pub(super) fn of_key(&self, key: &FlowKey) -> Vec<Ufid> {
        self.variants(key).map(|(_, ufid)| *ufid).collect()
    }

    /// Those that are so for what they are.
    pub(super) fn those(&self, which: impl Fn(&Record) -> bool) -> Vec<Ufid> {
        self.records.iter().filter(|(_, record)| which(record)).map(|(ufid, _)| *ufid).collect()
    }

    /// Those that go to one peer.
    pub(super) fn to_peer(&self, peer: ShortId) -> Vec<Ufid> {
        self.by_peer.get(&peer).into_iter().flatten().copied().collect()
    }

    fn variants(&self, key: &FlowKey) -> impl Iterator<Item = (&Of, &Ufid)> {
        let end = Variant { tag: Some(u16::MAX), ttl: Some(u8::MAX) };
        self.by_of.range(Of::Flow(*key, Variant::default())..=Of::Flow(*key, end))
    }
}

fn peer(record: &Record) -> Option<ShortId> {
    match record.action {
        Action::Peer(short) => Some(short),
        _ => None,
    }
}
