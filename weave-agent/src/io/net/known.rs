//! The addresses that ports have, so that not every container is entered to see whether one is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use super::ports::Port;
use crate::datapath::PortId;

/// What the ports had when we last knew. It only says when to look: nobody is refused for what is remembered.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Option<Addresses>>>);

type Addresses = BTreeMap<PortId, BTreeSet<IpAddr>>;

impl Known {
    /// These are all.
    pub fn learn(&self, ports: &[Port]) {
        *self.lock() = Some(ports.iter().map(|port| (port.id, bare(&port.addrs))).collect());
    }

    /// A port has these now; without any it is gone.
    pub fn set(&self, port: PortId, addrs: &[IpNet]) {
        if let Some(ports) = self.lock().as_mut() {
            match addrs {
                [] => drop(ports.remove(&port)),
                _ => drop(ports.insert(port, bare(addrs))),
            }
        }
    }

    /// May some port have one of these?
    pub(super) fn may_have(&self, addrs: &[IpNet]) -> bool {
        match &*self.lock() {
            None => true,
            Some(ports) => ports.values().any(|has| addrs.iter().any(|net| has.contains(&net.addr()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Addresses>> {
        // A panic elsewhere leaves nothing half-done here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bare(addrs: &[IpNet]) -> BTreeSet<IpAddr> {
    addrs.iter().map(IpNet::addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_may_be_anywhere_and_what_went_is_free() {
        let (known, addrs) = (Known::default(), ["10.32.0.1/16".parse().unwrap(), "fd00::1/64".parse().unwrap()]);
        known.set(PortId(3), &addrs);
        assert!(known.may_have(&addrs));
        known.learn(&[]);
        assert!(!known.may_have(&addrs));
        known.set(PortId(3), &addrs[..1]);
        assert!(known.may_have(&addrs) && !known.may_have(&addrs[1..]));
        known.set(PortId(3), &[]);
        assert!(!known.may_have(&addrs));
    }
}
