//! Datapaths, vports, flows and packets, as the module tells of them.

use super::action::{Act, read_actions};
use super::attributes::{Attributes, number, text};
use super::fields::Fields;

/// `enum ovs_datapath_attr`.
pub(crate) mod datapath {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const UPCALL_PID: u16 = 2;
    pub(crate) const STATS: u16 = 3;
    pub(crate) const FEATURES: u16 = 5;
    /// `OVS_DP_F_UNALIGNED`, `OVS_DP_F_VPORT_PIDS`.
    pub(crate) const UNALIGNED: u32 = 1;
    pub(crate) const VPORT_PIDS: u32 = 2;
}

/// `enum ovs_vport_attr`.
pub(crate) mod vport {
    pub(crate) const NUMBER: u16 = 1;
    pub(crate) const KIND: u16 = 2;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const OPTIONS: u16 = 4;
    pub(crate) const UPCALL_PIDS: u16 = 5;
    pub(crate) const STATS: u16 = 6;
    pub(crate) const IFINDEX: u16 = 8;
    /// Of a tunnel: within [`OPTIONS`].
    pub(crate) const PORT: u16 = 1;
}

/// `enum ovs_flow_attr`.
pub(crate) mod flow {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const ACTIONS: u16 = 2;
    pub(crate) const STATS: u16 = 3;
    pub(crate) const USED: u16 = 5;
    pub(crate) const MASK: u16 = 7;
    pub(crate) const UFID: u16 = 9;
    pub(crate) const UFID_FLAGS: u16 = 10;
    /// `OVS_UFID_F_OMIT_KEY | OVS_UFID_F_OMIT_MASK | OVS_UFID_F_OMIT_ACTIONS`.
    pub(crate) const BRIEF: u32 = 7;
}

/// `enum ovs_packet_attr`.
pub(crate) mod packet {
    pub(crate) const PACKET: u16 = 1;
    pub(crate) const KEY: u16 = 2;
    pub(crate) const ACTIONS: u16 = 3;
    pub(crate) const COOKIE: u16 = 4;
    /// `enum ovs_packet_cmd`.
    pub(crate) const MISS: u8 = 1;
    pub(crate) const ACTION: u8 = 2;
    pub(crate) const EXECUTE: u8 = 3;
}

/// A datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Datapath {
    /// Index of its own interface, by which all messages name it.
    pub ifindex: u32,
    /// Name of that.
    pub name: String,
    /// Features that its user asked for (`OVS_DP_F_…`).
    pub features: u32,
    /// Counters, if it told them.
    pub stats: Stats,
}

/// `struct ovs_dp_stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Frames that a flow was found for.
    pub hit: u64,
    /// Frames that none was found for.
    pub missed: u64,
    /// Those that nobody in user space could be told of.
    pub lost: u64,
    /// Flows.
    pub flows: u64,
}

impl Datapath {
    /// `None` without a name.
    pub fn read(ifindex: u32, attributes: Attributes<'_>) -> Option<Self> {
        let mut read = Self { ifindex, ..Self::default() };
        for (kind, value) in attributes {
            match kind {
                datapath::NAME => read.name = text(value),
                datapath::FEATURES => read.features = number(value).unwrap_or_default(),
                datapath::STATS => {
                    let [hit, missed, lost, flows] = words(value);
                    read.stats = Stats { hit, missed, lost, flows };
                }
                _ => {}
            }
        }
        (!read.name.is_empty()).then_some(read)
    }
}

/// What a vport is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VportKind {
    /// An interface that was there before.
    Netdev,
    /// An interface of the datapath's own.
    Internal,
    /// A GRE tunnel.
    Gre,
    /// A VXLAN tunnel.
    Vxlan,
    /// A Geneve tunnel.
    Geneve,
    /// Of this number (`enum ovs_vport_type`).
    Other(u32),
}

impl VportKind {
    const KNOWN: [(u32, Self, &str); 5] = [
        (1, Self::Netdev, "netdev"),
        (2, Self::Internal, "internal"),
        (3, Self::Gre, "gre"),
        (4, Self::Vxlan, "vxlan"),
        (5, Self::Geneve, "geneve"),
    ];

    /// From `enum ovs_vport_type`.
    pub fn from_number(number: u32) -> Self {
        Self::KNOWN.iter().find(|(known, ..)| *known == number).map_or(Self::Other(number), |(_, kind, _)| *kind)
    }

    /// As in `enum ovs_vport_type`.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => Self::KNOWN.iter().find(|(_, kind, _)| *kind == known).map_or(0, |(number, ..)| *number),
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        Self::KNOWN.iter().find(|(_, kind, _)| *kind == self).map_or("other", |(.., name)| name)
    }

    /// From a word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::KNOWN.iter().find(|(.., known)| *known == name).map(|(_, kind, _)| *kind)
    }
}

/// A port of a datapath.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Vport {
    /// The datapath it is one of.
    pub datapath: u32,
    /// Its number there.
    pub number: u32,
    /// What it is.
    pub kind: VportKind,
    /// Name of its interface.
    pub name: String,
    /// Index of its interface, if the kernel tells (Linux 4.19).
    pub ifindex: Option<u32>,
    /// UDP port of a tunnel.
    pub udp_port: Option<u16>,
    /// Sockets that are told of misses.
    #[serde(skip)]
    pub upcall_pids: Vec<u32>,
    /// Frames and bytes received, then sent.
    pub traffic: [u64; 4],
}

impl Vport {
    /// `None` without number and name.
    pub fn read(datapath: u32, attributes: Attributes<'_>) -> Option<Self> {
        let mut number_of = None;
        let (kind, name, traffic) = (VportKind::Other(0), String::new(), [0; 4]);
        let mut read = Self { datapath, number: 0, kind, name, ifindex: None, udp_port: None, upcall_pids: Vec::new(), traffic };
        for (kind, value) in attributes {
            match kind {
                vport::NUMBER => number_of = number(value),
                vport::KIND => read.kind = VportKind::from_number(number(value).unwrap_or_default()),
                vport::NAME => read.name = text(value),
                vport::OPTIONS => read.udp_port = udp_port(value),
                vport::UPCALL_PIDS => read.upcall_pids = value.chunks_exact(4).filter_map(number).collect(),
                vport::STATS => {
                    let [received, sent, received_bytes, sent_bytes] = words(value);
                    read.traffic = [received, received_bytes, sent, sent_bytes];
                }
                vport::IFINDEX => read.ifindex = number(value),
                _ => {}
            }
        }
        read.number = number_of?;
        (!read.name.is_empty()).then_some(read)
    }
}

fn udp_port(options: &[u8]) -> Option<u16> {
    let (_, value) = Attributes(options).find(|(kind, _)| *kind == vport::PORT)?;
    value.first_chunk().map(|port| u16::from_ne_bytes(*port))
}

/// A flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The name that its maker gave it.
    pub ufid: Option<Vec<u8>>,
    /// What it matches.
    pub key: Fields,
    /// Which bits of that; `None`: all.
    pub mask: Option<Fields>,
    /// What it does; nothing drops.
    pub actions: Vec<Act>,
    /// Frames that matched; a large one counts as one.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last one did: milliseconds on the monotonic clock.
    pub used: Option<u64>,
}

impl Flow {
    /// As far as it was told.
    pub fn read(attributes: Attributes<'_>) -> Self {
        let mut read = Self::default();
        for (kind, value) in attributes {
            match kind {
                flow::KEY => read.key = Fields::read(value),
                flow::MASK => read.mask = Some(Fields::read(value)),
                flow::ACTIONS => read.actions = read_actions(value),
                flow::STATS => [read.packets, read.bytes] = words(value),
                flow::USED => read.used = words::<1>(value).first().copied(),
                flow::UFID => read.ufid = Some(value.to_vec()),
                _ => {}
            }
        }
        read
    }
}

/// What the module asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketCommand {
    /// No flow was found.
    Miss,
    /// A flow said so.
    Action,
}

/// A frame that came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Why.
    pub command: PacketCommand,
    /// It, whole; of a large one, each segment by itself.
    pub frame: &'a [u8],
    /// Where it came in, and what is in it.
    pub key: Fields,
    /// What the flow's action said to tell us.
    pub cookie: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` if it is none, or has no frame.
    pub fn read(command: u8, attributes: Attributes<'a>) -> Option<Self> {
        let command = match command {
            packet::MISS => PacketCommand::Miss,
            packet::ACTION => PacketCommand::Action,
            _ => return None,
        };
        let (mut frame, mut key, mut cookie) = (None, Fields::default(), &[][..]);
        for (kind, value) in attributes {
            match kind {
                packet::PACKET => frame = Some(value),
                packet::KEY => key = Fields::read_known(value),
                packet::COOKIE => cookie = value,
                _ => {}
            }
        }
        Some(Self { command, frame: frame?, key, cookie })
    }
}

/// The first 64-bit words; zero for those that are not there.
fn words<const N: usize>(value: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(value.chunks_exact(8)) {
        *word = bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::action::{put_actions, tests::all};
    use super::super::attributes::Build;
    use super::super::fields::tests::full;
    use super::*;

    fn eights(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn a_datapath_has_a_name_and_counters() {
        let list = Build::default().put_text(datapath::NAME, "ovs-system").put(datapath::STATS, &eights(&[1, 2, 3, 4])).put(99, &[]);
        let read = Datapath::read(5, Attributes(&list.bytes())).unwrap();
        assert_eq!((read.ifindex, read.name.as_str(), read.stats), (5, "ovs-system", Stats { hit: 1, missed: 2, lost: 3, flows: 4 }));
        assert_eq!(Datapath::read(5, Attributes(&[])), None);
    }

    #[test]
    fn a_vport_of_a_kind_that_is_not_known_is_one_all_the_same() {
        for (number, kind) in [(1, VportKind::Netdev), (4, VportKind::Vxlan), (88, VportKind::Other(88))] {
            let list = Build::default()
                .put(vport::NUMBER, &2u32.to_ne_bytes())
                .put(vport::KIND, &u32::to_ne_bytes(number))
                .put_text(vport::NAME, "port")
                .nest(vport::OPTIONS, Build::default().put(vport::PORT, &6784u16.to_ne_bytes()).put(9, &[1]))
                .put(vport::UPCALL_PIDS, &[1, 0, 0, 0, 2, 0, 0, 0, 9])
                .put(vport::STATS, &eights(&[1, 2, 3, 4, 5, 6, 7, 8]));
            let read = Vport::read(5, Attributes(&list.bytes())).unwrap();
            assert_eq!((read.kind, read.kind.number(), read.number, read.udp_port), (kind, number, 2, Some(6784)));
            assert_eq!((read.upcall_pids, read.traffic), (vec![1, 2], [1, 3, 2, 4]));
        }
    }

    #[test]
    fn a_flow_with_more_than_we_know_is_read() {
        let list = Build::default()
            .nest(flow::KEY, full().build())
            .nest(flow::MASK, full().build())
            .nest(flow::ACTIONS, put_actions(&all()))
            .put(flow::STATS, &eights(&[7, 700]))
            .put(flow::USED, &eights(&[9]))
            .put(flow::UFID, &[3; 16])
            .put(55, &[1, 2]);
        let read = Flow::read(Attributes(&list.bytes()));
        assert_eq!((read.key, read.mask, read.actions), (full(), Some(full()), all()));
        assert_eq!((read.packets, read.bytes, read.used, read.ufid), (7, 700, Some(9), Some(vec![3; 16])));
    }

    #[test]
    fn a_packet_has_a_frame() {
        let list = Build::default().put(packet::PACKET, &[1; 60]).nest(packet::KEY, full().build()).put(packet::COOKIE, &[4]);
        let bytes = list.bytes();
        let read = Packet::read(packet::ACTION, Attributes(&bytes)).unwrap();
        assert_eq!((read.command, read.frame.len(), read.key.in_port, read.cookie), (PacketCommand::Action, 60, Some(3), &[4][..]));
        assert_eq!(Packet::read(packet::EXECUTE, Attributes(&bytes)), None);
        assert_eq!(Packet::read(packet::MISS, Attributes(&[])), None);
    }
}
