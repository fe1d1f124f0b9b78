//! What is out of order on this host: told in `status` until it is mended.

/// What is out of order.
#[derive(Debug, Default)]
pub struct Troubles {
    vxlan: Option<String>,
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

    /// Lines for `status`.
    pub fn all(&self) -> Vec<String> {
        self.vxlan.iter().cloned().collect()
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
    }
}
