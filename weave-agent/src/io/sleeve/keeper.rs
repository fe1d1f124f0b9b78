//! Keeping the TAP device: without it a sealed network carries nothing.

use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::table::Shared;
use super::tap;
use crate::io::net::{Device, Error, Netlink};

/// Makes the device anew for the threads that had it. They, their sessions and their numbers stay.
#[derive(Debug)]
pub struct Keeper {
    pub(super) name: String,
    pub(super) ifindex: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) wakes: Vec<Arc<EventFd>>,
}

impl Device for Keeper {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "tun"
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    async fn mend(&mut self, host: &Netlink) -> Result<u32, Error> {
        if let Some(link) = host.link_at(self.ifindex).await?.filter(|link| link.kind == self.kind()) {
            if link.name != self.name {
                host.set_down(link.index).await?;
                host.rename(link.index, &self.name).await?;
            }
            tap::settle(host, link.index).await?;
            return Ok(link.index);
        }
        let (ifindex, taps) = tap::make(host, &self.name, self.wakes.len()).await?;
        self.ifindex = ifindex;
        for ((tap, wake), lane) in taps.into_iter().zip(&self.wakes).zip(0..) {
            self.shared.plug(lane, tap);
            // It fails when it has been written 2^64 times without being read.
            let _ = wake.write(1);
        }
        Ok(ifindex)
    }
}
