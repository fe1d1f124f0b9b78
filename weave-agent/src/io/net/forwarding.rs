//! Letting packets through the host, which is one setting for all its interfaces.

use std::fs;

use super::nat::NatError;

const V4: &str = "/proc/sys/net/ipv4/ip_forward";
const V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// Forward IPv4, IPv6, or both. It stays so: nobody knows who else has come to need it. Returns what has changed.
pub(super) fn enable(v4: bool, v6: bool) -> Result<Vec<String>, NatError> {
    let mut notes = Vec::new();
    if v4 && !is(V4, "1") {
        write(V4)?;
        notes.push("this host now forwards IPv4 packets (net.ipv4.ip_forward=1), and goes on when it is hidden".to_owned());
    }
    if v6 && !is(V6, "1") {
        keep_listening_to_routers();
        write(V6)?;
        notes.push("this host now forwards IPv6 packets (net.ipv6.conf.all.forwarding=1), and goes on when it is hidden".to_owned());
    }
    notes.iter().for_each(|note| tracing::info!("{note}"));
    Ok(notes)
}

/// A host that forwards ignores routers, and would lose the default route that it has from one.
fn keep_listening_to_routers() {
    for interface in fs::read_dir(INTERFACES).into_iter().flatten().flatten() {
        let path = interface.path().join("accept_ra");
        let path = path.to_string_lossy();
        if is(&path, "1")
            && let Err(error) = fs::write(&*path, "2")
        {
            tracing::warn!(%path, %error, "this interface no longer listens to IPv6 routers");
        }
    }
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

fn write(path: &str) -> Result<(), NatError> {
    fs::write(path, "1").map_err(|error| NatError::Forwarding { path: path.to_owned(), error })
}
