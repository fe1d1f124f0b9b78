//! What comes in by a port is the switch's alone: after our packet socket has had it, a filter drops it, so that the
//! host's stack neither answers nor forwards it.

use nix::errno::Errno;

use crate::io::datapath::tc::{self, CREATE, DELETE_FILTER, EXCLUSIVELY, INGRESS, NEW_FILTER, Place};

/// After everybody else's.
const PRIORITY: u32 = 0xfffe;
/// `ETH_P_ALL`.
const ALL: u16 = 3;
/// `linux/pkt_cls.h`, `linux/tc_act/tc_gact.h`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const MATCHALL_ACT: u16 = 2;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const GACT_PARMS: u16 = 2;
const SHOT: u32 = 2;

/// Drops all that comes in by an interface and nobody took before.
///
/// # Errors
/// When the kernel has no such filter, or the interface is gone.
pub(super) fn raise(ifindex: u32) -> nix::Result<()> {
    match tc::make_clsact(ifindex) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    match tc::request(NEW_FILTER, CREATE | EXCLUSIVELY, place(ifindex), &filter()) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets it through to the stack again. What is not there is no error.
pub(super) fn lower(ifindex: u32) {
    // Nothing depends on it: it comes after all other filters.
    let _ = tc::request(DELETE_FILTER, 0, place(ifindex), &[]);
}

fn place(ifindex: u32) -> Place {
    Place { ifindex, handle: 0, parent: INGRESS, info: PRIORITY << 16 | u32::from(ALL.to_be()) }
}

fn filter() -> Vec<u8> {
    // `struct tc_gact`: index, capabilities, action, two counts.
    let gact: Vec<u8> = [0, 0, SHOT, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let action = [attribute(ACT_KIND, b"gact\0"), attribute(ACT_OPTIONS, &attribute(GACT_PARMS, &gact))].concat();
    let options = attribute(MATCHALL_ACT, &attribute(1, &action));
    [attribute(KIND, b"matchall\0"), attribute(OPTIONS, &options)].concat()
}

/// `struct nlattr` and what it holds, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = [(len as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}
