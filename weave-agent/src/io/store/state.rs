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
    #[serde(default, with = "one_or_many")]
    pub names: BTreeMap<String, Vec<dns::Name>>,
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

/// Earlier versions knew one name per port, and wrote it as it is; they can still read what has no more.
mod one_or_many {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::dns::Name;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(Name),
        Many(Vec<Name>),
    }

    pub(super) fn serialize<S: Serializer>(all: &BTreeMap<String, Vec<Name>>, serializer: S) -> Result<S::Ok, S::Error> {
        let written = |names: &Vec<Name>| match names.as_slice() {
            [name] => Names::One(name.clone()),
            names => Names::Many(names.to_vec()),
        };
        serializer.collect_map(all.iter().map(|(port, names)| (port, written(names))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<Name>>, D::Error> {
        let read = |names| match names {
            Names::One(name) => vec![name],
            Names::Many(names) => names,
        };
        let all = BTreeMap::<String, Names>::deserialize(deserializer)?;
        Ok(all.into_iter().map(|(port, names)| (port, read(names))).collect())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn one_name_of_a_port_is_written_as_earlier_versions_did() {
        let mut state = State::fresh(&mut StdRng::seed_from_u64(1));
        let names = |all: &[&str]| all.iter().map(|name| name.parse().unwrap()).collect::<Vec<dns::Name>>();
        state.names =
            BTreeMap::from([("a".into(), names(&["web.weave.local."])), ("b".into(), names(&["x.weave.local.", "y.weave.local."]))]);
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(json["names"]["a"], "web.weave.local.");
        assert_eq!(serde_json::from_value::<State>(json).unwrap(), state);
    }
}
