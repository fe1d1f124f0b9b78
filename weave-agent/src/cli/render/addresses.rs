//! `status ipam`

use super::table::{peer, table};
use crate::status::{Ipam, IpamOwner, IpamRange};

/// The whole page.
pub fn ipam(status: &Ipam) -> String {
    let ring = match (status.ring.as_str(), status.votes) {
        ("off", _) => return "addresses are given by hand only (--ipalloc-range is empty)\n".to_owned(),
        ("none", _) => "nobody has wanted an address yet".to_owned(),
        ("awaiting", Some((votes, wanted))) => format!("the hosts are agreeing on who begins: {votes} of {wanted} take part"),
        (other, _) => other.to_owned(),
    };
    let ranges: String = status.ranges.iter().map(range).collect();
    let lines = |head: &str, all: &[String]| all.iter().map(|line| format!("{head}: {line}\n")).collect::<String>();
    format!("Ring: {ring}\n{ranges}{}{}{}", owned(status), lines("Waiting", &status.pending), lines("Warning", &status.warnings))
}

fn range(range: &IpamRange) -> String {
    let subnet = if range.subnet == range.range { String::new() } else { format!(", default subnet {}", range.subnet) };
    let quarantined = if range.quarantined == "0" { String::new() } else { format!(", {} not to be used yet", range.quarantined) };
    let head = format!("\nRange {}{subnet}: on this host {} in use, {} free{quarantined}\n", range.range, range.used, range.free);
    let rows: Vec<[String; 4]> = range.owners.iter().map(owner).collect();
    if rows.is_empty() { head } else { head + &table(["PEER", "ADDRESSES", "SHARE", ""], &rows) }
}

fn owner(owner: &IpamOwner) -> [String; 4] {
    let note = match (owner.me, owner.reachable) {
        (true, _) => "this agent",
        (false, true) => "",
        (false, false) => "unreachable",
    };
    let share = format!("{:.1} % in {}", owner.percent, owner.pieces);
    [peer(&owner.name, owner.nickname.as_deref()), owner.addresses.clone(), share, note.to_owned()]
}

fn owned(status: &Ipam) -> String {
    let addresses = |all: &[ipnet::IpNet]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let rows: Vec<[String; 2]> = status.owned.iter().map(|(port, all)| [port.clone(), addresses(all)]).collect();
    if rows.is_empty() { String::new() } else { format!("\n{}", table(["PORT", "ADDRESSES"], &rows)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_page_says_who_has_what() {
        let owner = |name: &str, nickname: &str, me, reachable| IpamOwner {
            name: name.into(),
            nickname: Some(nickname.into()),
            me,
            reachable,
            addresses: "524288".into(),
            percent: 50.0,
            pieces: 1,
        };
        let status = Ipam {
            ring: "ready".into(),
            ranges: vec![IpamRange {
                range: "10.32.0.0/12".parse().unwrap(),
                subnet: "10.32.0.0/16".parse().unwrap(),
                owners: vec![owner("02:00:00:00:00:01", "h1", true, true), owner("02:00:00:00:00:02", "h2", false, false)],
                free: "524286".into(),
                used: 1,
                quarantined: "7".into(),
            }],
            owned: BTreeMap::from([("vethwepl0000001".into(), vec!["10.32.0.1/16".parse().unwrap()])]),
            pending: vec![],
            warnings: vec!["look".into()],
            ..Ipam::default()
        };
        insta::assert_snapshot!(ipam(&status), @r"
        Ring: ready

        Range 10.32.0.0/12, default subnet 10.32.0.0/16: on this host 1 in use, 524286 free, 7 not to be used yet
        PEER                   ADDRESSES  SHARE
        02:00:00:00:00:01(h1)     524288  50.0 % in 1  this agent
        02:00:00:00:00:02(h2)     524288  50.0 % in 1  unreachable

        PORT             ADDRESSES
        vethwepl0000001  10.32.0.1/16
        Warning: look
        ");
    }

    #[test]
    fn without_a_ring_it_says_why() {
        let status = |ring: &str, votes| ipam(&Ipam { ring: ring.into(), votes, ..Ipam::default() });
        assert!(status("off", None).contains("by hand"));
        assert!(status("awaiting", Some((1, 2))).contains("1 of 2"));
    }
}
