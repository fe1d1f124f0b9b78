//! What is posted to the control API, and what such a post is answered.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Wanted;
use crate::password::Given;

/// `POST /connect`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// `host`, `host:port`, address.
    pub peers: Vec<String>,
    /// Forget all earlier targets first.
    #[serde(default)]
    pub replace: bool,
}

/// What `POST /connect` is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Names that mean nothing now, and why; they are tried again later.
    pub unresolved: Vec<String>,
}

/// `POST /forget`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// As they were given to `connect`.
    pub peers: Vec<String>,
}

/// `POST /passwords`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passwords {
    /// All that are accepted from now on, the one to dial with first.
    pub passwords: Vec<Given>,
}

/// What `POST /passwords` is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordsAccepted {
    /// How many there are now.
    pub accepted: usize,
}

/// `POST /attach`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Process id, path of a namespace, name under /run/netns, or Docker container.
    pub target: String,
    /// What it gets; a free address of the default subnet if nothing is said.
    #[serde(default)]
    pub addresses: Vec<Wanted>,
    /// Its name in the network, with or without the domain.
    #[serde(default)]
    pub name: Option<String>,
}

/// `POST /detach`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// As for `attach`.
    pub target: String,
    /// What it loses; everything if empty.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// `POST /expose`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    /// What the host gets; a free address of the default subnet if nothing is said.
    #[serde(default)]
    pub addresses: Vec<Wanted>,
    /// The host's name in the network.
    #[serde(default)]
    pub name: Option<String>,
    /// No NAT between these subnets and anywhere else.
    #[serde(default)]
    pub no_masq: bool,
}

/// What `POST /expose` is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposed {
    /// As for the others.
    #[serde(flatten)]
    pub changed: Changed,
    /// What else has changed, or must before packets flow: sentences for the user.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// `POST /hide`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hide {
    /// What the host loses; everything if empty.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// What `attach`, `detach`, `expose` and `hide` are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Addresses that came or went.
    pub changed: Vec<IpNet>,
    /// Addresses there are now.
    pub addresses: Vec<IpNet>,
}

/// `POST /dns/add`, `POST /dns/remove`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsChange {
    /// With or without the domain.
    pub name: String,
    /// What it has, or has no more; to remove: all if empty.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// `POST /dns/lookup`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsLookup {
    /// A name or an address.
    pub name: String,
}

/// What `POST /dns/lookup` is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsFound {
    /// Of the name.
    pub addresses: Vec<IpAddr>,
    /// Of the address.
    pub names: Vec<String>,
}

/// `POST /rmpeer`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rmpeer {
    /// Name or nickname.
    pub peer: String,
}

/// What `rmpeer` is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// From whom, as it was said.
    pub peer: String,
    /// How many addresses; text, because JSON readers round large numbers.
    pub addresses: String,
}

/// What `stop` and `reset` are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// The process that is about to end.
    pub pid: u32,
    /// Containers keep their network: nothing that they send is carried by the agent itself.
    #[serde(default)]
    pub carried_on: bool,
}

/// What any failed request is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What is wrong and what to do.
    pub error: String,
}
