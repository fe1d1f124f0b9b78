//! What the agent itself keeps.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::dns;
use crate::peer::PeerName;

/// What the agent itself keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Our name in the mesh.
    #[serde(with = "as_text")]
    pub name: PeerName,
    /// The short id we had last.
    #[serde(default)]
    pub short_id: Option<u16>,
    /// What we were told to connect to.
    #[serde(default)]
    pub targets: Vec<String>,
    /// The host's own addresses on the network.
    #[serde(default)]
    pub exposed: Vec<IpNet>,
    /// Those of them that have NAT behind them.
    #[serde(default)]
    pub masqueraded: Vec<IpNet>,
    /// What the owners of the ports were called, by the port's interface.
    #[serde(default)]
    pub attached: BTreeMap<String, String>,
    /// What they are called in the network, by the port's interface.
    #[serde(default)]
    pub names: BTreeMap<String, dns::Name>,
    /// What the last `launch` that went well was told, and those before it.
    #[serde(default)]
    pub settings: Settings,
}

impl State {
    /// Of an agent that has never run.
    pub fn fresh(rng: &mut impl Rng) -> Self {
        let name = PeerName::random(rng);
        Self {
            name,
            short_id: None,
            targets: Vec::new(),
            exposed: Vec::new(),
            masqueraded: Vec::new(),
            attached: BTreeMap::new(),
            names: BTreeMap::new(),
            settings: Settings::default(),
        }
    }
}

mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::peer::PeerName;

    pub(super) fn serialize<S: Serializer>(name: &PeerName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
