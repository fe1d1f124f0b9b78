//! What a replica is told at its start.

use ipnet::IpNet;

use super::block::{Block, Family};
use crate::peer::PeerName;

/// What addresses come from unless the user says otherwise, as Weave Net's script has it.
pub const DEFAULT_RANGE: &str = "10.32.0.0/12";

/// Most peers that seed a ring: as many as a mesh has.
pub const MAX_SEEDS: usize = 1 << 12;

/// How the first ring comes to be. Whoever hears of a ring takes it over, whatever is said here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// The peers agree: a majority of those that are known when the first address is wanted.
    Consensus,
    /// The peers agree: a majority of so many (ourselves included), or of those known, if these are more.
    ConsensusOf(usize),
    /// It is made from this list, which must be the same everywhere.
    Seed(Vec<PeerName>),
    /// Others make it; we have no vote.
    Observer,
}

/// One agent's address settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our name.
    pub name: PeerName,
    /// Free text, for people.
    pub nickname: String,
    /// What is handed out: one range, or one of each family. Must be the same on all hosts.
    pub ranges: Vec<IpNet>,
    /// What addresses are taken from if nobody says otherwise, at most one of each family; without one, its range.
    pub subnets: Vec<IpNet>,
    /// How the first ring comes to be.
    pub init: Init,
    /// The snapshot is certainly the last one that was stored, and this host has not booted since. If not, our free space is in
    /// quarantine until every other owner has told us what it knows. Also true if there is no
    /// snapshot because the name is new.
    pub trusted: bool,
}

/// A setting that cannot work, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// None, or several of a family.
    #[error("--ipalloc-range wants one range, or one of each family (for example {DEFAULT_RANGE},fd00:10:32::/64)")]
    Ranges,
    /// Its address has bits below the prefix.
    #[error("{option} {given} is not the start of a network: say {}", given.trunc())]
    Unaligned {
        /// Which option.
        option: &'static str,
        /// What was said.
        given: IpNet,
    },
    /// Too small or too large.
    #[error("{option} {given} will not do: it must have at least 4 addresses (/30, for IPv6 /126) and be no larger than /8 (for IPv6 /16)")]
    Size {
        /// Which option.
        option: &'static str,
        /// What was said.
        given: IpNet,
    },
    /// No container can have such an address.
    #[error("{option} {given} will not do: it holds groups, loopback or link-local addresses, which no container can have")]
    Special {
        /// Which option.
        option: &'static str,
        /// What was said.
        given: IpNet,
    },
    /// Nothing could ever be allocated from it.
    #[error("--ipalloc-default-subnet {subnet} lies outside --ipalloc-range {}", list(ranges))]
    Outside {
        /// What was said.
        subnet: IpNet,
        /// The ranges.
        ranges: Vec<IpNet>,
    },
    /// Containers would be told that others are beside them who are not.
    #[error("--ipalloc-default-subnet {subnet} is wider than --ipalloc-range {range}: say {range}, or a part of it")]
    Wider {
        /// It.
        subnet: IpNet,
        /// What it should be in.
        range: IpNet,
    },
    /// Two of one family.
    #[error("--ipalloc-default-subnet wants at most one subnet of each family")]
    Subnets,
    /// Nobody, or too many.
    #[error("--ipalloc-init seed= wants 1 to {MAX_SEEDS} names of peers")]
    Seeds,
}

/// Several networks as people write them.
pub(super) fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Config {
    /// Itself, if it can work.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn checked(mut self) -> Result<Self, ConfigError> {
        if self.ranges.is_empty() || !one_of_each(&self.ranges) {
            return Err(ConfigError::Ranges);
        }
        if !one_of_each(&self.subnets) {
            return Err(ConfigError::Subnets);
        }
        self.ranges.iter().try_for_each(|range| check("--ipalloc-range", *range))?;
        for subnet in &self.subnets {
            check("--ipalloc-default-subnet", *subnet)?;
            if !self.ranges.iter().any(|range| overlap(*range, *subnet)) {
                return Err(ConfigError::Outside { subnet: *subnet, ranges: self.ranges });
            }
            if let Some(range) = self.ranges.iter().find(|range| subnet.contains(*range) && *range != subnet) {
                return Err(ConfigError::Wider { subnet: *subnet, range: *range });
            }
        }
        if let Init::Seed(peers) = &mut self.init {
            peers.sort();
            peers.dedup();
            if !(1..=MAX_SEEDS).contains(&peers.len()) {
                return Err(ConfigError::Seeds);
            }
        }
        // IPv4 first, so that the order in which they were given does not matter.
        self.ranges.sort();
        Ok(self)
    }

    /// The default subnet of a range.
    pub(super) fn subnet(&self, range: IpNet) -> IpNet {
        self.subnets.iter().find(|subnet| overlap(range, **subnet)).copied().unwrap_or(range)
    }
}

fn one_of_each(nets: &[IpNet]) -> bool {
    let of = |family| nets.iter().filter(|net| Family::of(net.addr()) == family).count();
    of(Family::V4) <= 1 && of(Family::V6) <= 1
}

/// Whether two networks have addresses in common.
pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    Family::of(a.addr()) == Family::of(b.addr()) && !Block::of(a).and(Block::of(b)).is_empty()
}

fn check(option: &'static str, given: IpNet) -> Result<(), ConfigError> {
    if given != given.trunc() {
        return Err(ConfigError::Unaligned { option, given });
    }
    let (least, most) = if given.addr().is_ipv4() { (8, 30) } else { (16, 126) };
    if !(least..=most).contains(&given.prefix_len()) {
        return Err(ConfigError::Size { option, given });
    }
    let special = ["224.0.0.0/3", "127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "ff00::/8", "fe80::/10"];
    if special.iter().filter_map(|net| net.parse().ok()).any(|net| overlap(net, given)) {
        return Err(ConfigError::Special { option, given });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ranges: &[&str], subnets: &[&str]) -> Config {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let name = PeerName([2, 0, 0, 0, 0, 1]);
        Config { name, nickname: "h1".into(), ranges: nets(ranges), subnets: nets(subnets), init: Init::Consensus, trusted: true }
    }

    #[test]
    fn one_range_of_each_family_will_do() {
        let both = config(&["fd00:10:32::/64", DEFAULT_RANGE], &["fd00:10:32::/80"]).checked().unwrap();
        assert_eq!(list(&both.ranges), "10.32.0.0/12,fd00:10:32::/64");
        assert_eq!(both.subnet(both.ranges[0]), both.ranges[0]);
        assert_eq!(both.subnet(both.ranges[1]).to_string(), "fd00:10:32::/80");
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |ranges: &[&str], subnets: &[&str]| config(ranges, subnets).checked().unwrap_err().to_string();
        assert!(refused(&[], &[]).contains("--ipalloc-range wants one"));
        assert!(refused(&["10.0.0.0/16", "10.1.0.0/16"], &[]).contains("--ipalloc-range wants one"));
        assert!(refused(&["10.32.0.1/12"], &[]).contains("say 10.32.0.0/12"));
        assert!(refused(&["10.32.0.0/31"], &[]).contains("at least 4"));
        assert!(refused(&["::/0"], &[]).contains("no larger"));
        for special in ["224.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "ff00::/16", "fe80::/64"] {
            assert!(refused(&[special], &[]).contains("no container can have"), "{special}");
        }
        assert!(refused(&["10.32.0.0/12"], &["10.48.0.0/24"]).contains("10.48.0.0/24 lies outside --ipalloc-range 10.32.0.0/12"));
        assert!(refused(&["10.32.0.0/12"], &["10.0.0.0/8"]).contains("10.0.0.0/8 is wider than --ipalloc-range 10.32.0.0/12"));
        let mut seeds = config(&["10.32.0.0/12"], &[]);
        seeds.init = Init::Seed(Vec::new());
        assert_eq!(seeds.checked(), Err(ConfigError::Seeds));
    }
}
