//! The fields of a flow's key, or of its mask: both are lists of the same attributes (`enum ovs_key_attr`).

use std::net::Ipv4Addr;

use super::attributes::{Attributes, Build, be16, number};
use crate::addr::Mac;

const ENCAP: u16 = 1;
const IN_PORT: u16 = 3;
const ETHERNET: u16 = 4;
const VLAN: u16 = 5;
const ETHERTYPE: u16 = 6;
const TUNNEL: u16 = 16;

/// `enum ovs_tunnel_key_attr`.
mod tunnel {
    pub(super) const ID: u16 = 0;
    pub(super) const SRC: u16 = 1;
    pub(super) const DST: u16 = 2;
    pub(super) const TOS: u16 = 3;
    pub(super) const TTL: u16 = 4;
    pub(super) const DONT_FRAGMENT: u16 = 5;
    pub(super) const CHECKSUM: u16 = 6;
    pub(super) const SOURCE_PORT: u16 = 9;
    pub(super) const PORT: u16 = 10;
    /// Only says that it is read from a netlink message and not from a tunnel: never sent.
    pub(super) const PAD: u16 = 14;
}

/// The fields that are there. In a mask, one that is not there is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fields {
    /// Number of the port that it came in by.
    pub in_port: Option<u32>,
    /// Outer headers.
    pub tunnel: Option<Tunnel>,
    /// Source and destination address.
    pub ethernet: Option<[Mac; 2]>,
    /// EtherType; of the outer tag, if there is one.
    pub ethertype: Option<u16>,
    /// The outer VLAN tag, and what is behind it.
    pub vlan: Option<Vlan>,
    /// All else: attribute and value.
    pub others: Vec<(u16, Vec<u8>)>,
}

/// A VLAN tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan {
    /// Priority, "there is a tag" (0x1000) and VLAN id; as a mask, which of these count.
    pub tci: u16,
    /// Attributes of what is behind it, as they came.
    pub inner: Vec<u8>,
}

/// Outer headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tunnel {
    /// The network identifier.
    pub id: Option<u64>,
    /// Source address.
    pub src: Option<Ipv4Addr>,
    /// Destination address.
    pub dst: Option<Ipv4Addr>,
    /// Type of service.
    pub tos: Option<u8>,
    /// Time to live.
    pub ttl: Option<u8>,
    /// DF.
    pub dont_fragment: bool,
    /// With a UDP checksum.
    pub checksum: bool,
    /// UDP source port.
    pub source_port: Option<u16>,
    /// UDP destination port.
    pub port: Option<u16>,
    /// All else: attribute and value.
    pub others: Vec<(u16, Vec<u8>)>,
}

impl Fields {
    /// From a list of attributes.
    pub fn read(attributes: &[u8]) -> Self {
        Self::read_keeping(attributes, true)
    }

    /// The same without `others`, which nobody asks for in a frame's key.
    pub fn read_known(attributes: &[u8]) -> Self {
        Self::read_keeping(attributes, false)
    }

    fn read_keeping(attributes: &[u8], others: bool) -> Self {
        let mut fields = Self::default();
        let mut tci = None;
        let mut inner = None;
        for (kind, value) in Attributes(attributes) {
            let known = match kind {
                IN_PORT => number(value).map(|port| fields.in_port = Some(port)),
                TUNNEL => {
                    fields.tunnel = Some(Tunnel::read(value, others));
                    Some(())
                }
                ETHERNET => macs(value).map(|macs| fields.ethernet = Some(macs)),
                ETHERTYPE => be16(value).map(|kind| fields.ethertype = Some(kind)),
                VLAN => be16(value).map(|value| tci = Some(value)),
                ENCAP => {
                    inner = Some(value);
                    Some(())
                }
                _ => None,
            };
            if known.is_none() && others {
                fields.others.push((kind, value.to_vec()));
            }
        }
        fields.vlan = tci.map(|tci| Vlan { tci, inner: inner.unwrap_or_default().to_vec() });
        fields
    }

    /// As a list of attributes.
    pub fn build(&self) -> Build {
        let ethernet = self.ethernet.map(|[src, dst]| [src.0, dst.0].concat());
        let mut list = Build::default().put_some(IN_PORT, self.in_port.map(u32::to_ne_bytes));
        if let Some(tunnel) = &self.tunnel {
            list = list.nest(TUNNEL, tunnel.build());
        }
        list = list.put_some(ETHERNET, ethernet).put_some(ETHERTYPE, self.ethertype.map(u16::to_be_bytes));
        if let Some(vlan) = &self.vlan {
            list = list.put(VLAN, &vlan.tci.to_be_bytes()).put(ENCAP, &vlan.inner);
        }
        self.others.iter().fold(list, |list, (kind, value)| list.put(*kind, value))
    }
}

fn macs(value: &[u8]) -> Option<[Mac; 2]> {
    let (src, rest) = value.split_first_chunk()?;
    Some([Mac(*src), Mac(*rest.first_chunk()?)])
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    value.first_chunk().map(|bytes: &[u8; 4]| Ipv4Addr::from(*bytes))
}

impl Tunnel {
    pub(super) fn read(attributes: &[u8], others: bool) -> Self {
        let mut read = Self::default();
        for (kind, value) in Attributes(attributes) {
            let known = match kind {
                tunnel::ID => value.first_chunk().map(|id| read.id = Some(u64::from_be_bytes(*id))),
                tunnel::SRC => address(value).map(|src| read.src = Some(src)),
                tunnel::DST => address(value).map(|dst| read.dst = Some(dst)),
                tunnel::TOS => value.first().map(|tos| read.tos = Some(*tos)),
                tunnel::TTL => value.first().map(|ttl| read.ttl = Some(*ttl)),
                tunnel::DONT_FRAGMENT => {
                    read.dont_fragment = true;
                    Some(())
                }
                tunnel::CHECKSUM => {
                    read.checksum = true;
                    Some(())
                }
                tunnel::SOURCE_PORT => be16(value).map(|port| read.source_port = Some(port)),
                tunnel::PORT => be16(value).map(|port| read.port = Some(port)),
                tunnel::PAD => Some(()),
                _ => None,
            };
            if known.is_none() && others {
                read.others.push((kind, value.to_vec()));
            }
        }
        read
    }

    pub(super) fn build(&self) -> Build {
        let list = Build::default()
            .put_some(tunnel::ID, self.id.map(u64::to_be_bytes))
            .put_some(tunnel::SRC, self.src.map(|src| src.octets()))
            .put_some(tunnel::DST, self.dst.map(|dst| dst.octets()))
            .put_some(tunnel::TOS, self.tos.map(|tos| [tos]))
            .put_some(tunnel::TTL, self.ttl.map(|ttl| [ttl]))
            .put_some(tunnel::DONT_FRAGMENT, self.dont_fragment.then_some([]))
            .put_some(tunnel::CHECKSUM, self.checksum.then_some([]))
            .put_some(tunnel::SOURCE_PORT, self.source_port.map(u16::to_be_bytes))
            .put_some(tunnel::PORT, self.port.map(u16::to_be_bytes));
        self.others.iter().fold(list, |list, (kind, value)| list.put(*kind, value))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// With everything in it.
    pub(in super::super) fn full() -> Fields {
        let tunnel = Tunnel {
            id: Some(0x00_1002),
            src: Some(Ipv4Addr::new(10, 0, 0, 2)),
            dst: Some(Ipv4Addr::new(10, 0, 0, 1)),
            tos: Some(0),
            ttl: Some(64),
            dont_fragment: true,
            checksum: true,
            source_port: Some(40_000),
            port: Some(6784),
            others: vec![(11, vec![1, 2, 3, 4])],
        };
        Fields {
            in_port: Some(3),
            tunnel: Some(tunnel),
            ethernet: Some([Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])]),
            ethertype: Some(0x8100),
            vlan: Some(Vlan { tci: 0x1007, inner: vec![6, 0, 6, 0, 8, 0, 0, 0] }),
            others: vec![(2, vec![0; 4]), (20, vec![0; 4]), (77, vec![1])],
        }
    }

    #[test]
    fn what_was_built_is_read_again_with_what_is_not_known() {
        assert_eq!(Fields::read(&full().build().bytes()), full());
        let known = Fields::read_known(&full().build().bytes());
        assert!(known.others.is_empty() && known.in_port == Some(3) && known.tunnel.is_some_and(|tunnel| tunnel.others.is_empty()));
    }

    #[test]
    fn a_value_that_is_too_short_is_kept_as_not_known() {
        let bytes = Build::default().put(IN_PORT, &[1, 2]).put(ETHERNET, &[0; 11]).bytes();
        assert_eq!(Fields::read(&bytes), Fields { others: vec![(3, vec![1, 2]), (4, vec![0; 11])], ..Fields::default() });
    }
}
