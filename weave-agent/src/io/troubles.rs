//! What is out of order on this host: told in `status` until it is mended.

use std::collections::BTreeMap;

use crate::datapath::PortId;

/// What is out of order.
#[derive(Debug, Default)]
pub struct Troubles {
    vxlan: Option<String>,
    mtu: BTreeMap<PortId, String>,
}

impl Troubles {
    /// What became of the vxlan device: mended, or not, and why.
    pub fn vxlan(&mut self, became: Result<(), String>) {
        match became {
            Ok(()) => {
                tracing::warn!("somebody changed the vxlan device: it has been mended");
                self.vxlan = None;
            }
            Err(why) => {
                let text = format!(
                    "the vxlan device is out of order, and with it broadcast, ARP and relays ({why}): it is tried again each second"
                );
                if self.vxlan.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                self.vxlan = Some(text);
            }
        }
    }

    /// Why some ports do not have the MTU that they should have: all that there is to say.
    pub fn mtu(&mut self, failures: BTreeMap<PortId, String>) {
        for (_, text) in failures.iter().filter(|(port, _)| !self.mtu.contains_key(port)) {
            tracing::warn!("{text}");
        }
        self.mtu = failures;
    }

    /// A port is gone, and its troubles with it.
    pub fn gone(&mut self, port: PortId) {
        self.mtu.remove(&port);
    }

    /// Lines for `status`.
    pub fn all(&self) -> Vec<String> {
        self.vxlan.iter().chain(self.mtu.values()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_until_it_is_mended() {
        let mut troubles = Troubles::default();
        assert_eq!(troubles.all(), Vec::<String>::new());
        troubles.vxlan(Err("no such port".into()));
        assert!(troubles.all().iter().any(|line| line.contains("no such port")));
        troubles.vxlan(Ok(()));
        assert_eq!(troubles.all(), Vec::<String>::new());
        troubles.mtu([(PortId(3), "too large".to_owned()), (PortId(4), "too small".to_owned())].into());
        troubles.gone(PortId(3));
        assert_eq!(troubles.all(), ["too small"]);
        troubles.mtu(BTreeMap::new());
        assert_eq!(troubles.all(), Vec::<String>::new());
    }
}
