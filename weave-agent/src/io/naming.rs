//! Names by hand, and names that go before their containers do: what may be added, and what can be removed here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::net::EXPOSE_PORT;
use crate::dns::{EntryStatus, Name, Owner};
use crate::peer::PeerName;

/// What was added to a name, or taken from it.
#[derive(Debug)]
pub struct NameChange {
    /// Which.
    pub name: Name,
    /// What it has now, or no more.
    pub addresses: Vec<IpAddr>,
}

/// Who a name belongs to that is a port's.
pub fn named_as(port: &str) -> Option<Owner> {
    if port == EXPOSE_PORT { Some(Owner::expose()) } else { port.parse().ok() }
}

/// Refuses addresses that mean nobody, or somebody else to each who asks.
pub fn findable(addresses: &[IpAddr]) -> Result<(), String> {
    let nobodys = |address: &IpAddr| match address.to_canonical() {
        other if other.is_unspecified() => Some("is no address, but the lack of one"),
        other if other.is_loopback() => Some("is whoever asks"),
        other if other.is_multicast() => Some("is a group"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("is everybody"),
        _ => None,
    };
    match addresses.iter().find_map(|address| Some((address, nobodys(address)?))) {
        Some((address, why)) => Err(format!("a name cannot have {address}, which {why}: give the address of one host or container")),
        None => Ok(()),
    }
}

/// The addresses to be taken from a name: those given, or all that it has on this host.
pub fn removable(me: PeerName, name: &Name, entries: &[EntryStatus], given: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
    let (ours, others): (Vec<&EntryStatus>, Vec<_>) = entries.iter().partition(|entry| entry.origin == me);
    let has = |address: &IpAddr| ours.iter().any(|entry| entry.address == *address);
    let advice = |of: Option<&&EntryStatus>| match of {
        Some(other) if other.nickname.is_empty() => format!("peer {} gave it, remove it there", other.origin),
        Some(other) => format!("run `weave-agent dns-remove {name} {}` on {}, which gave it", other.address, other.nickname),
        None => "`weave-agent status dns` lists all names".to_owned(),
    };
    if let Some(unknown) = given.iter().find(|address| !has(address)) {
        let hint = advice(others.iter().find(|entry| entry.address == *unknown));
        return Err(format!("{name} does not have the address {unknown} on this host: {hint}"));
    }
    if ours.is_empty() {
        return Err(format!("nobody has the name {name} on this host: {}", advice(others.first())));
    }
    Ok(if given.is_empty() { ours.iter().map(|entry| entry.address).collect() } else { given.to_vec() })
}

/// Who still has the name on this host without these addresses.
pub fn left(me: PeerName, entries: &[EntryStatus], removed: &[IpAddr]) -> Vec<Owner> {
    let left = entries.iter().filter(|entry| entry.origin == me && !removed.contains(&entry.address));
    left.map(|entry| entry.owner.clone()).collect()
}

/// What the next agent will register: the name is that of `left` only.
pub fn forget(names: &mut BTreeMap<String, Vec<Name>>, name: &Name, left: &[Owner]) {
    for (port, names) in names.iter_mut() {
        let stays = named_as(port).is_some_and(|owner| left.contains(&owner));
        names.retain(|other| stays || other != name);
    }
    names.retain(|_, names| !names.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: PeerName = PeerName([2, 0, 0, 0, 0, 1]);
    const OTHER: PeerName = PeerName([2, 0, 0, 0, 0, 2]);

    fn entry(origin: PeerName, address: &str, owner: &str) -> EntryStatus {
        let nickname = if origin == ME { String::new() } else { "h2".into() };
        let name = "web.weave.local.".parse().unwrap();
        EntryStatus {
            name,
            address: address.parse().unwrap(),
            owner: owner.parse().unwrap(),
            origin,
            nickname,
            version: 0,
            dead: false,
            reachable: true,
        }
    }

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_that_mean_nobody_are_refused_by_name() {
        assert_eq!(findable(&addresses("10.32.0.1 192.168.0.9 fd00::1 2001:db8::1")), Ok(()));
        for bad in ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0"] {
            let told = findable(&addresses(&format!("10.32.0.1 {bad}"))).unwrap_err();
            assert!(told.starts_with("a name cannot have ") && !told.contains("10.32.0.1"), "{told}");
        }
    }

    #[test]
    fn what_this_host_gave_can_be_removed_and_the_rest_is_said_where() {
        let name: Name = "web.weave.local.".parse().unwrap();
        let entries = [entry(ME, "10.32.0.1", "vethwepl1"), entry(ME, "10.40.0.9", "weave:extern"), entry(OTHER, "10.33.0.1", "vethwepl1")];
        let removable = |given: &str| removable(ME, &name, &entries, &addresses(given));
        assert_eq!(removable(""), Ok(addresses("10.32.0.1 10.40.0.9")));
        assert_eq!(removable("10.32.0.1"), Ok(addresses("10.32.0.1")));
        assert!(removable("10.33.0.1").unwrap_err().contains("run `weave-agent dns-remove web.weave.local. 10.33.0.1` on h2"));
        assert!(removable("10.32.0.7").unwrap_err().contains("`weave-agent status dns`"));
        let elsewhere = super::removable(ME, &name, &entries[2..], &[]).unwrap_err();
        assert!(elsewhere.contains("nobody has the name web.weave.local. on this host") && elsewhere.contains("on h2"), "{elsewhere}");
    }

    #[test]
    fn a_port_keeps_its_other_names_and_others_keep_this_one() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let web = name("web.weave.local.");
        let mut names = BTreeMap::from([
            ("vethwepl1".to_owned(), vec![web.clone(), name("www.weave.local.")]),
            ("vethwepl2".to_owned(), vec![web.clone()]),
            ("vethwepl3".to_owned(), vec![web.clone()]),
        ]);
        let entries = ["1", "2", "3"].map(|n| entry(ME, &format!("10.32.0.{n}"), &format!("vethwepl{n}")));
        forget(&mut names, &web, &left(ME, &entries, &addresses("10.32.0.1 10.32.0.2")));
        assert_eq!(names, BTreeMap::from([("vethwepl1".into(), vec![name("www.weave.local.")]), ("vethwepl3".into(), vec![web])]));
    }
}
