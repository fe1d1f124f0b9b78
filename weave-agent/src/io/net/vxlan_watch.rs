//! Keeping the vxlan device: somebody may delete it, set it down or rename it, and frames that need it would be lost without a word.

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

/// Keeps the vxlan device of one UDP port in order.
#[derive(Debug)]
pub struct VxlanWatch {
    host: Netlink,
    port: u16,
    device: VxlanDevice,
    /// The last attempt failed.
    broken: bool,
    notifications: Notifications,
}

impl VxlanWatch {
    /// Watch a device in the calling thread's namespace.
    pub fn new(host: Netlink, port: u16, device: VxlanDevice) -> Result<Self> {
        let notifications = Notifications::open(&[MulticastGroup::Link])?;
        Ok(Self { host, port, device, broken: false, notifications })
    }

    /// What next becomes of the device: it was mended, and has this index now; or it cannot be, and why.
    pub async fn next(&mut self) -> Result<u32> {
        loop {
            if self.is_right().await? {
                if std::mem::take(&mut self.broken) {
                    return Ok(self.device.ifindex);
                }
                self.wait(LOOK).await?;
            } else {
                return self.mend().await;
            }
        }
    }

    /// Does anything keep the device from being what it was?
    async fn is_right(&mut self) -> Result<bool> {
        let link = self.host.link_at(self.device.ifindex).await?;
        Ok(link.is_some_and(|link| link.up && link.name == self.device.name && link.kind == "vxlan"))
    }

    async fn mend(&mut self) -> Result<u32> {
        if self.broken {
            self.wait(AGAIN).await?;
        }
        self.broken = true;
        self.device = ensure_vxlan(&self.host, self.port).await?;
        self.broken = false;
        Ok(self.device.ifindex)
    }

    /// Until a message may be about the device, or nothing came for so long.
    async fn wait(&mut self, at_most: Duration) -> Result<()> {
        let (device, notifications) = (&self.device, &mut self.notifications);
        let heard = async {
            loop {
                match notifications.next().await? {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) => {
                        let link = parse(&message);
                        if link.index == device.ifindex || link.name == device.name {
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
