//! What is out of order on this host: told in `status` until it is mended.

use std::collections::BTreeMap;

use super::event::OwnDevice;
use crate::datapath::PortId;

/// What is out of order.
#[derive(Debug, Default)]
pub struct Troubles {
    devices: BTreeMap<OwnDevice, String>,
    mtu: BTreeMap<PortId, String>,
    big_tcp: Option<String>,
}

impl Troubles {
    /// What became of a device of ours: mended, or not, and why.
    pub fn device(&mut self, device: OwnDevice, became: Result<(), String>) {
        let (name, needed) = device.means();
        match became {
            Ok(()) => {
                tracing::warn!("somebody changed the {name} device: it has been mended");
                self.devices.remove(&device);
            }
            Err(why) => {
                let text = format!("the {name} device is out of order, and with it {needed} ({why}): it is tried again every few seconds");
                if self.devices.get(&device) != Some(&text) {
                    tracing::error!("{text}");
                }
                self.devices.insert(device, text);
            }
        }
    }

    /// Nothing is wrong with it, or no longer.
    pub fn well(&mut self, device: OwnDevice) {
        self.devices.remove(&device);
    }

    /// Why some ports do not have the MTU that they should have: all that there is to say.
    pub fn mtu(&mut self, failures: BTreeMap<PortId, String>) {
        for (_, text) in failures.iter().filter(|(port, _)| !self.mtu.contains_key(port)) {
            tracing::warn!("{text}");
        }
        self.mtu = failures;
    }

    /// Why there is no BIG TCP, though it is wanted.
    pub fn big_tcp(&mut self, obstacle: Option<String>) {
        if let Some(text) = obstacle.as_ref().filter(|_| self.big_tcp != obstacle) {
            tracing::warn!("{text}");
        }
        self.big_tcp = obstacle;
    }

    /// A port is gone, and its troubles with it.
    pub fn gone(&mut self, port: PortId) {
        self.mtu.remove(&port);
    }

    /// Lines for `status`.
    pub fn all(&self) -> Vec<String> {
        self.devices.values().chain(self.mtu.values()).chain(&self.big_tcp).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_until_it_is_mended() {
        let mut troubles = Troubles::default();
        assert_eq!(troubles.all(), Vec::<String>::new());
        troubles.device(OwnDevice::Vxlan, Err("no such port".into()));
        assert!(troubles.all().iter().any(|line| line.contains("no such port")));
        troubles.device(OwnDevice::Vxlan, Ok(()));
        assert_eq!(troubles.all(), Vec::<String>::new());
        troubles.mtu([(PortId(3), "too large".to_owned()), (PortId(4), "too small".to_owned())].into());
        troubles.gone(PortId(3));
        troubles.big_tcp(Some("no".to_owned()));
        assert_eq!(troubles.all(), ["too small", "no"]);
        troubles.big_tcp(None);
        troubles.mtu(BTreeMap::new());
        assert_eq!(troubles.all(), Vec::<String>::new());
    }
}
