//! IPsec in the kernel (XFRM): associations and policies of one network namespace.
//!
//! Ours are told from those of others by their request ids ([`REQID_OUT`], [`REQID_IN`]).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{TryStream, TryStreamExt};
use netlink_packet_xfrm::constants::{XFRM_MODE_TRANSPORT, XFRM_POLICY_ALLOW, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_ESN};
use netlink_packet_xfrm::{UserTemplate, XfrmAttrs, policy, state};

use super::socket::{Error, Result};
use crate::esp::{Direction, Id, Key, Protection, Spi};

/// `wv` and a number, for what goes out.
pub const REQID_OUT: u32 = 0x7776_0001;
/// And for what comes in.
pub const REQID_IN: u32 = 0x7776_0002;

/// IANA's numbers.
const ESP: u8 = 50;
const UDP: u8 = 17;
/// Before policies of others that speak of all traffic between two hosts; lower comes first.
const PRIORITY: u32 = 0x100;
/// RFC 4106, as the kernel calls it, and its ICV's bits.
const AEAD: &str = "rfc4106(gcm(aes))";
const ICV: u32 = 128;
/// Packets that may overtake each other.
const REPLAY_WINDOW: u32 = 1024;
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A socket for IPsec in one namespace.
#[derive(Clone, Debug)]
pub struct Xfrm {
    handle: xfrmnetlink::Handle,
}

/// What of ours is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Associations.
    pub ids: BTreeSet<Id>,
    /// Policies.
    pub policies: BTreeSet<(Protection, Direction)>,
}

impl Present {
    /// Whether policies protect this both ways.
    pub fn protects(&self, protection: Protection) -> bool {
        [Direction::In, Direction::Out].iter().all(|direction| self.policies.contains(&(protection, *direction)))
    }
}

impl Xfrm {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel has no IPsec.
    pub fn here() -> Result<Self> {
        let (connection, handle, _) = xfrmnetlink::new_connection().map_err(|error| Error::new("opening a socket for IPsec", error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Tries whether the kernel takes associations of our kind. Nothing is left.
    ///
    /// # Errors
    /// With what it lacks.
    pub async fn probe(&self) -> Result<()> {
        let id = Id { remote: Ipv4Addr::LOCALHOST, local: Ipv4Addr::LOCALHOST, direction: Direction::Out, spi: Spi(u32::MAX) };
        // A probe of a killed agent may be left.
        self.remove(&id).await?;
        self.add(&id, 1, &Key([0; crate::esp::KEY])).await?;
        self.remove(&id).await
    }

    /// Adds an association for UDP to a port. One that is there already is an error: its counters would begin anew.
    pub async fn add(&self, id: &Id, port: u16, key: &Key) -> Result<()> {
        let (source, destination) = ends(id);
        let request = self.handle.state().add(source, destination).protocol(ESP).spi(id.spi.0).mode(XFRM_MODE_TRANSPORT);
        let request = request.reqid(reqid(id.direction)).flags(XFRM_STATE_ESN).replay_window(REPLAY_WINDOW, 0, 0, 0, 0);
        let what = || format!("adding the IPsec association {} ({AEAD}, {source} to {destination})", id.spi);
        let request = request.encryption_aead(AEAD, &key.0.to_vec(), ICV).map_err(explain(what))?;
        // What comes by it is its sender's: the kernel looks an association up by its number alone.
        let request = request.selector_addresses(source, 32, destination, 32).selector_protocol(UDP).selector_protocol_dst_port(port);
        request.execute().await.map_err(explain(what))
    }

    /// Removes one; one that is not there is no error.
    pub async fn remove(&self, id: &Id) -> Result<()> {
        let (source, destination) = ends(id);
        let request = self.handle.state().delete(source, destination).protocol(ESP).spi(id.spi.0);
        gone(request.execute().await.map_err(explain(|| format!("removing the IPsec association {}", id.spi))))
    }

    /// UDP to and from a neighbour's tunnel only under ESP: what has no association is dropped. Repeating it changes nothing.
    pub async fn protect(&self, protection: &Protection) -> Result<()> {
        for (direction, way) in [(Direction::Out, XFRM_POLICY_OUT), (Direction::In, XFRM_POLICY_IN)] {
            let (source, destination) = selected(protection.remote, direction);
            let request = self.handle.policy().update(source.0, source.1, destination.0, destination.1).direction(way);
            let request =
                request.action(XFRM_POLICY_ALLOW).priority(PRIORITY).selector_protocol(UDP).selector_protocol_dst_port(protection.port);
            let mut template = UserTemplate::default();
            template.source(&ANYWHERE);
            template.destination(&ANYWHERE);
            template.protocol(ESP);
            template.mode(XFRM_MODE_TRANSPORT);
            template.reqid(reqid(direction));
            let done = request.add_template(template).execute().await;
            done.map_err(explain(|| format!("adding an IPsec policy for {}", protection.remote)))?;
        }
        Ok(())
    }

    /// No longer, one way; a policy that is not there is no error.
    pub async fn unprotect(&self, protection: &Protection, direction: Direction) -> Result<()> {
        let way = if direction == Direction::Out { XFRM_POLICY_OUT } else { XFRM_POLICY_IN };
        let (source, destination) = selected(protection.remote, direction);
        let request = self.handle.policy().delete(source.0, source.1, destination.0, destination.1).direction(way);
        let done = request.selector_protocol(UDP).selector_protocol_dst_port(protection.port).execute().await;
        gone(done.map_err(explain(|| format!("removing an IPsec policy for {}", protection.remote))))
    }

    /// What of ours is there.
    pub async fn present(&self) -> Result<Present> {
        let states = collect("listing IPsec associations", self.handle.state().get_dump().execute()).await?;
        let policies = collect("listing IPsec policies", self.handle.policy().get_dump().execute()).await?;
        Ok(Present { ids: states.iter().filter_map(id_of).collect(), policies: policies.iter().filter_map(policy_of).collect() })
    }
}

const fn reqid(direction: Direction) -> u32 {
    match direction {
        Direction::Out => REQID_OUT,
        Direction::In => REQID_IN,
    }
}

fn direction(reqid: u32) -> Option<Direction> {
    match reqid {
        REQID_OUT => Some(Direction::Out),
        REQID_IN => Some(Direction::In),
        _ => None,
    }
}

/// Source and destination.
fn ends(id: &Id) -> (IpAddr, IpAddr) {
    match id.direction {
        Direction::Out => (id.local.into(), id.remote.into()),
        Direction::In => (id.remote.into(), id.local.into()),
    }
}

/// What a policy is about: source and destination with the length of their prefixes. Whatever address of ours it is: the kernel may
/// choose another than we would.
fn selected(remote: Ipv4Addr, direction: Direction) -> ((IpAddr, u8), (IpAddr, u8)) {
    let (here, there) = ((ANYWHERE, 0), (remote.into(), 32));
    match direction {
        Direction::Out => (here, there),
        Direction::In => (there, here),
    }
}

fn id_of(state: &state::ModifyMessage) -> Option<Id> {
    let info = &state.user_sa_info;
    let direction = direction(info.reqid)?;
    let (source, destination) = (info.saddr.to_ipv4(), info.id.daddr.to_ipv4());
    let (local, remote) = if direction == Direction::Out { (source, destination) } else { (destination, source) };
    Some(Id { remote, local, direction, spi: Spi(info.id.spi) })
}

fn policy_of(policy: &policy::ModifyMessage) -> Option<(Protection, Direction)> {
    let templates = policy.nlas.iter().filter_map(|attribute| if let XfrmAttrs::Template(list) = attribute { Some(list) } else { None });
    let direction = templates.flatten().find_map(|template| direction(template.reqid))?;
    let selector = &policy.user_policy_info.selector;
    let remote = if direction == Direction::Out { selector.daddr } else { selector.saddr };
    Some((Protection { remote: remote.to_ipv4(), port: selector.dport }, direction))
}

/// All that a dump yields, or its first error.
async fn collect<T>(what: &str, stream: impl TryStream<Ok = T, Error = xfrmnetlink::Error>) -> Result<Vec<T>> {
    stream.try_collect().await.map_err(explain(|| what.to_owned()))
}

fn gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

fn explain(what: impl FnOnce() -> String) -> impl FnOnce(xfrmnetlink::Error) -> Error {
    move |error| {
        let source = match error {
            xfrmnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Error::new(what(), source)
    }
}
