//! Keeping our devices: somebody may delete one, set it down or rename it, and frames that need it would be lost without a word.

use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::time::timeout;

use super::link::parse;
use super::notify::Notifications;
use super::socket::{Netlink, Result};
use super::vxlan::{VxlanDevice, ensure_vxlan};

/// A device that cannot be had is tried for again this often; one that is well is looked at, in case its end went unheard.
const AGAIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(30);

/// A device that must be there, up, and called as we call it.
pub trait Device: Send {
    /// What it is called.
    fn name(&self) -> &str;

    /// Which kind the kernel says it is of.
    fn kind(&self) -> &'static str;

    /// Its index when it was last in order.
    fn ifindex(&self) -> u32;

    /// Puts it in order; returns its index.
    ///
    /// # Errors
    /// When the kernel refuses, or somebody else has its name.
    fn mend(&mut self, host: &Netlink) -> impl Future<Output = Result<u32>> + Send;
}

/// The vxlan device of a UDP port.
#[derive(Debug)]
pub struct Vxlan {
    /// The port.
    pub port: u16,
    /// As it was made.
    pub made: VxlanDevice,
}

impl Device for Vxlan {
    fn name(&self) -> &str {
        &self.made.name
    }

    fn kind(&self) -> &'static str {
        "vxlan"
    }

    fn ifindex(&self) -> u32 {
        self.made.ifindex
    }

    async fn mend(&mut self, host: &Netlink) -> Result<u32> {
        self.made = ensure_vxlan(host, self.port).await?;
        Ok(self.made.ifindex)
    }
}

/// Keeps a device in order.
#[derive(Debug)]
pub struct DeviceWatch<D> {
    host: Netlink,
    device: D,
    /// The last attempt failed.
    broken: bool,
    notifications: Notifications,
}

impl<D: Device> DeviceWatch<D> {
    /// Watch a device in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel's messages cannot be had.
    pub fn new(host: Netlink, device: D) -> Result<Self> {
        let notifications = Notifications::open(&[MulticastGroup::Link])?;
        Ok(Self { host, device, broken: false, notifications })
    }

    /// What next becomes of the device: it was mended, and has this index now; or it cannot be, and why.
    pub async fn next(&mut self) -> Result<u32> {
        loop {
            if self.is_right().await? {
                if std::mem::take(&mut self.broken) {
                    return Ok(self.device.ifindex());
                }
                self.wait(LOOK).await?;
            } else {
                return self.mend().await;
            }
        }
    }

    /// Does anything keep the device from being what it was?
    async fn is_right(&mut self) -> Result<bool> {
        let link = self.host.link_at(self.device.ifindex()).await?;
        Ok(link.is_some_and(|link| link.up && link.name == self.device.name() && link.kind == self.device.kind()))
    }

    async fn mend(&mut self) -> Result<u32> {
        if self.broken {
            self.wait(AGAIN).await?;
        }
        self.broken = true;
        let ifindex = self.device.mend(&self.host).await?;
        self.broken = false;
        Ok(ifindex)
    }

    /// Until a message may be about the device, or nothing came for so long.
    async fn wait(&mut self, at_most: Duration) -> Result<()> {
        let (device, notifications) = (&self.device, &mut self.notifications);
        let heard = async {
            loop {
                match notifications.next().await? {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) => {
                        let link = parse(&message);
                        if link.index == device.ifindex() || link.name == device.name() {
                            return Ok(());
                        }
                    }
                    NetlinkPayload::Overrun(_) => return Ok(()),
                    _ => {}
                }
            }
        };
        timeout(at_most, heard).await.unwrap_or(Ok(()))
    }
}
