//! What a flow does (`enum ovs_action_attr`).

use super::attributes::{Attributes, Build, number};
use super::fields::Tunnel;

const OUTPUT: u16 = 1;
const USERSPACE: u16 = 2;
const SET: u16 = 3;
const PUSH_VLAN: u16 = 4;
/// Linux 4.8, commit f2a4d086ed4c.
const TRUNCATE: u16 = 13;
/// Linux 5.2, commit 4d5ec89fc8d1.
const CHECK_LENGTH: u16 = 21;
/// Within [`SET`].
const TUNNEL: u16 = 16;
/// `enum ovs_userspace_attr`.
const PID: u16 = 1;
const COOKIE: u16 = 2;
/// `enum ovs_check_pkt_len_attr`.
const AT_MOST: u16 = 1;
const LARGER: u16 = 2;
const FITS: u16 = 3;
/// Lists within lists beyond this are kept as they came. The kernel refuses so many.
const DEEPEST: u32 = 16;

/// One action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// To the port with this number.
    Output(u32),
    /// The next outputs to tunnels have these outer headers.
    SetTunnel(Tunnel),
    /// A VLAN tag is put into it.
    PushVlan {
        /// EtherType of the tag.
        kind: u16,
        /// Priority, 0x1000 ("there is a tag"; not sent so), VLAN id.
        tci: u16,
    },
    /// The next output sends no more than so many bytes of it.
    Truncate(u32),
    /// Up to user space: the socket with this netlink port id, which is told the cookie.
    Userspace {
        /// Port id of the socket.
        pid: u32,
        /// At most 16 bytes before Linux 3.19.
        cookie: Vec<u8>,
    },
    /// One of two lists.
    CheckLength {
        /// Bytes with Ethernet header, of each segment of a large frame; a tag beside the frame does not count.
        at_most: u16,
        /// If it is at most so long.
        fits: Vec<Self>,
        /// If it is longer.
        larger: Vec<Self>,
    },
    /// Attribute and value of what is not known.
    Other(u16, Vec<u8>),
}

/// From a list of attributes.
pub fn read_actions(attributes: &[u8]) -> Vec<Act> {
    read(attributes, 0)
}

fn read(attributes: &[u8], depth: u32) -> Vec<Act> {
    Attributes(attributes).map(|(kind, value)| one(kind, value, depth).unwrap_or_else(|| Act::Other(kind, value.to_vec()))).collect()
}

fn one(kind: u16, value: &[u8], depth: u32) -> Option<Act> {
    let find = |wanted| Attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    match kind {
        OUTPUT => number(value).map(Act::Output),
        SET => find(TUNNEL).map(|tunnel| Act::SetTunnel(Tunnel::read(tunnel, true))),
        PUSH_VLAN => {
            let [a, b, c, d] = *value.first_chunk()?;
            Some(Act::PushVlan { kind: u16::from_be_bytes([a, b]), tci: u16::from_be_bytes([c, d]) })
        }
        TRUNCATE => number(value).map(Act::Truncate),
        // With more than these two it is kept whole.
        USERSPACE if Attributes(value).all(|(kind, _)| kind == PID || kind == COOKIE) => {
            Some(Act::Userspace { pid: number(find(PID)?)?, cookie: find(COOKIE).unwrap_or_default().to_vec() })
        }
        CHECK_LENGTH if depth < DEEPEST => Some(Act::CheckLength {
            at_most: find(AT_MOST)?.first_chunk().map(|len| u16::from_ne_bytes(*len))?,
            fits: read(find(FITS).unwrap_or_default(), depth + 1),
            larger: read(find(LARGER).unwrap_or_default(), depth + 1),
        }),
        _ => None,
    }
}

/// As a list of attributes.
pub fn put_actions(actions: &[Act]) -> Build {
    actions.iter().fold(Build::default(), |list, action| match action {
        Act::Output(port) => list.put(OUTPUT, &port.to_ne_bytes()),
        Act::SetTunnel(tunnel) => list.nest(SET, Build::default().nest(TUNNEL, tunnel.build())),
        Act::PushVlan { kind, tci } => list.put(PUSH_VLAN, &[kind.to_be_bytes(), tci.to_be_bytes()].concat()),
        Act::Truncate(len) => list.put(TRUNCATE, &len.to_ne_bytes()),
        Act::Userspace { pid, cookie } => list.nest(USERSPACE, Build::default().put(PID, &pid.to_ne_bytes()).put(COOKIE, cookie)),
        Act::CheckLength { at_most, fits, larger } => {
            let lists = Build::default().put(AT_MOST, &at_most.to_ne_bytes());
            list.nest(CHECK_LENGTH, lists.nest(LARGER, put_actions(larger)).nest(FITS, put_actions(fits)))
        }
        Act::Other(kind, value) => list.put(*kind, value),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of each.
    pub(in super::super) fn all() -> Vec<Act> {
        let tunnel = super::super::fields::tests::full().tunnel.unwrap();
        vec![
            Act::Output(2),
            Act::SetTunnel(tunnel.clone()),
            Act::PushVlan { kind: 0x8100, tci: 0x1102 },
            Act::Truncate(60),
            Act::Userspace { pid: 0x5000_0000, cookie: vec![1, 2, 3] },
            Act::CheckLength {
                at_most: 1_500,
                fits: vec![Act::SetTunnel(tunnel), Act::Output(7)],
                larger: vec![Act::Userspace { pid: 1, cookie: Vec::new() }],
            },
            Act::Other(12, vec![1, 2, 3, 4]),
        ]
    }

    #[test]
    fn what_was_built_is_read_again_with_what_is_not_known() {
        assert_eq!(read_actions(&put_actions(&all()).bytes()), all());
    }

    #[test]
    fn lists_within_lists_end_somewhere() {
        let within = |actions, _| vec![Act::CheckLength { at_most: 1, fits: actions, larger: Vec::new() }];
        let deep = (0..100).fold(vec![Act::Output(1)], within);
        let bytes = put_actions(&deep).bytes();
        assert_eq!(put_actions(&read_actions(&bytes)).bytes(), bytes);
    }
}
