//! Names and addresses of the underlay: everything follows from the configuration.

use std::net::Ipv4Addr;

use crate::{LabConfig, Underlay};

/// The host that has two uplinks on a routed underlay.
const TWO_UPLINKS: u8 = 2;

/// One cable from a host to the switch or router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// The host.
    pub host: u8,
    /// 0, or 1 for a second uplink.
    pub index: u8,
    /// What is at the other end.
    pub underlay: Underlay,
}

impl Uplink {
    /// The interface on the host.
    pub fn device(self) -> String {
        format!("eth{}", self.index)
    }

    /// The interface at the other end, in the namespace of the switch or router.
    pub fn port(self) -> String {
        format!("h{}-eth{}", self.host, self.index)
    }

    /// The host's address on this uplink, in a /24.
    pub fn address(self) -> Ipv4Addr {
        match self.underlay {
            Underlay::Flat | Underlay::Direct => Ipv4Addr::new(10, 99, 0, self.host),
            Underlay::Routed => self.routed(2),
        }
    }

    /// The router's address on this uplink.
    pub fn gateway(self) -> Option<Ipv4Addr> {
        (self.underlay == Underlay::Routed).then(|| self.routed(1))
    }

    fn routed(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99 - self.index, self.host, last)
    }
}

impl LabConfig {
    /// All cables of the underlay.
    pub fn uplinks(&self) -> Vec<Uplink> {
        (1..=self.hosts).flat_map(|host| self.uplinks_of(host)).collect()
    }

    /// The cables of one host.
    pub fn uplinks_of(&self, host: u8) -> Vec<Uplink> {
        let underlay = self.underlay;
        let two = underlay == Underlay::Routed && host == TWO_UPLINKS;
        (0..=u8::from(two)).map(|index| Uplink { host, index, underlay }).collect()
    }

    /// The address other hosts know this host by.
    pub fn underlay_address(&self, host: u8) -> Ipv4Addr {
        Uplink { host, index: 0, underlay: self.underlay }.address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_underlay_is_one_network() {
        let config = LabConfig::named("x");
        let addresses: Vec<_> = config.uplinks().iter().map(|uplink| uplink.address().to_string()).collect();
        assert_eq!(addresses, ["10.99.0.1", "10.99.0.2"]);
    }

    #[test]
    fn the_second_host_of_a_routed_underlay_has_two_uplinks() {
        let config = LabConfig { underlay: Underlay::Routed, hosts: 3, ..LabConfig::named("x") };
        let addresses: Vec<_> = config.uplinks().iter().map(|uplink| uplink.address().to_string()).collect();
        assert_eq!(addresses, ["10.99.1.2", "10.99.2.2", "10.98.2.2", "10.99.3.2"]);
    }
}
