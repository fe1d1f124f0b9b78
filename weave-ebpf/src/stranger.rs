//! Before the stack has seen a packet: is it one that [`crate::fastpath`] drops anyway, once it has?

use crate::fastpath::{NO_MAC, Tables, is_anybodys, macs};
use crate::flow::{Config, Ipv4, short_ids, source};
use crate::packet::Packet;
use crate::stats::DropReason;
use crate::vxlan::{self, OUTER};

/// Why a packet on an underlay interface need not be made an skb of: whatever the stack does with it, `from_underlay` or, after
/// it, `from_vxlan` drops it for this reason. `None`: they decide.
///
/// They are a stranger's VXLAN to an address of ours (`is_ours`), and a neighbour's whose VNI is no peer's. What is not plain
/// (options, fragments, tags, no inner header), is for somebody behind us or may have to be told apart as `unsealed` passes.
/// Unlike [`fastpath::from_underlay`](crate::fastpath::from_underlay) it does not mind a UDP checksum: right or wrong, such a packet
/// gets no further.
#[inline(always)]
pub fn refuse<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    tables: &T,
    config: &Config,
    is_ours: impl FnOnce(Ipv4) -> bool,
) -> Option<DropReason> {
    let Ok((outer, _)) = vxlan::parse_any(packet, config.port as u16) else {
        return None;
    };
    let [dst, src] = macs(packet, OUTER)?;
    let Some(source) = tables.source(outer.src) else {
        // Perhaps we are only its router.
        return is_ours(outer.dst).then_some(DropReason::Stranger);
    };
    if source.local != outer.dst || source.flags & (source::SEALED | source::ESP) != 0 {
        return None;
    }
    let (to, _) = short_ids(outer.vni);
    let is_heartbeat = to == config.short && src == NO_MAC && dst == NO_MAC;
    (!is_heartbeat && !is_anybodys(tables, config, outer.vni)).then_some(DropReason::UnknownPeer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastpath::CachedFlow;
    use crate::flow::{Flow, FlowKey, PeerSlot, Source, slot, vni};
    use crate::stats::Counter;
    use crate::vxlan::{Fields, Path, headers};

    const OURS: Ipv4 = [10, 0, 0, 1];
    const NEIGHBOUR: Ipv4 = [10, 0, 0, 2];
    const STRANGER: Ipv4 = [10, 0, 0, 9];
    const CONFIG: Config =
        Config { epoch: 0, short: 1, vxlan_ifindex: 0, port: 6784, features: 0, upcall_rate: 0, upcall_burst: 0, reserved: 0 };

    /// One neighbour, of these flags, with short id 2.
    struct One(u32);

    impl CachedFlow for Flow {
        fn epoch(&self) -> u32 {
            self.epoch
        }
        fn action(&self) -> u32 {
            self.action
        }
        fn target(&self) -> u32 {
            self.target
        }
        fn flags(&self) -> u32 {
            self.flags
        }
        fn count(&self, _: u32, _: u32) {}
    }

    impl Tables for One {
        fn flow(&self, _: &FlowKey) -> Option<impl CachedFlow> {
            None::<Flow>
        }
        fn peer(&self, short: u32) -> Option<PeerSlot> {
            let flags = if short == 2 { slot::VALID } else { 0 };
            Some(PeerSlot { flags, ..PeerSlot::default() })
        }
        fn source(&self, address: Ipv4) -> Option<Source> {
            (address == NEIGHBOUR).then_some(Source { local: OURS, short: 2, flags: self.0 })
        }
        fn parent(&self, _: u32) -> Option<Ipv4> {
            None
        }
        fn admit(&self, _: u32, _: &Config) -> bool {
            true
        }
        fn count(&self, _: Counter) {}
        fn refuse(&self, _: DropReason) {}
    }

    fn packet(from: Ipv4, to: Ipv4, vni: u32, inner: [u8; 6]) -> Vec<u8> {
        let path = Path { local: from, remote: to, port: 6784, mtu: 0, next_hop: Some((1, [2; 6], [4; 6])), esp: false, big: false };
        let outer = headers(&vxlan::slot(&path), vni, Fields::new(34, 0));
        [outer.as_slice(), &inner, &inner, &[8, 0], &[0; 20]].concat()
    }

    fn refused(flags: u32, packet: &[u8]) -> Option<DropReason> {
        refuse(packet, &One(flags), &CONFIG, |address| address == OURS)
    }

    #[test]
    fn strangers_are_refused_and_neighbours_are_not() {
        let refused = |from, to, vni| refused(0, &packet(from, to, vni, [6; 6]));
        assert_eq!(refused(STRANGER, OURS, vni(1, 2)), Some(DropReason::Stranger));
        assert_eq!(refused(NEIGHBOUR, OURS, vni(1, 2)), None);
        // In transit.
        assert_eq!(refused(NEIGHBOUR, OURS, vni(7, 2)), None);
        // Of a peer that nobody told us of, and of ourselves.
        assert_eq!(refused(NEIGHBOUR, OURS, vni(1, 3)), Some(DropReason::UnknownPeer));
        assert_eq!(refused(NEIGHBOUR, OURS, vni(1, 1)), Some(DropReason::UnknownPeer));
    }

    #[test]
    fn what_is_for_somebody_behind_us_passes() {
        for from in [STRANGER, NEIGHBOUR] {
            assert_eq!(refused(0, &packet(from, [10, 0, 0, 77], vni(1, 3), [6; 6])), None);
        }
    }

    #[test]
    fn heartbeats_of_neighbours_pass_whoever_they_say_they_are_and_those_of_strangers_do_not() {
        assert_eq!(refused(0, &packet(NEIGHBOUR, OURS, vni(1, 3), NO_MAC)), None);
        assert_eq!(refused(0, &packet(STRANGER, OURS, vni(1, 2), NO_MAC)), Some(DropReason::Stranger));
    }

    #[test]
    fn what_must_be_sealed_is_left_to_who_says_unsealed() {
        for flags in [source::SEALED, source::ESP] {
            assert_eq!(refused(flags, &packet(NEIGHBOUR, OURS, vni(1, 3), [6; 6])), None);
        }
    }

    #[test]
    fn a_udp_checksum_is_no_way_past_and_what_is_not_plain_passes() {
        let good = packet(STRANGER, OURS, vni(1, 2), [6; 6]);
        let mut with_checksum = good.clone();
        with_checksum[40] = 1;
        assert_eq!(refused(0, &with_checksum), Some(DropReason::Stranger));
        // IPv6, options, a fragment, TCP, another port, no VNI, reserved bits.
        for (at, value) in [(12, 0x86), (14, 0x46), (20, 0x20), (23, 6), (37, 1), (42, 0), (49, 1)] {
            let mut other = good.clone();
            other[at] = value;
            assert_eq!(refused(0, &other), None, "byte {at}");
        }
        // Behind a VLAN tag.
        let tagged = [&good[..12], &[0x81, 0, 0, 7], &good[12..]].concat();
        assert_eq!(refused(0, &tagged), None);
        for len in 0..OUTER + 14 {
            assert_eq!(refused(0, &good[..len]), None, "{len} bytes");
        }
        assert_eq!(refused(0, &good[..OUTER + 14]), Some(DropReason::Stranger));
    }
}
