//! What the kernel tells unasked.

use std::io;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::proto::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup};

use super::socket::{Error, Result};

/// Room for a burst, such as a full routing table from a routing daemon; what does not fit is told as an overrun.
const RECEIVE_BUFFER: u32 = 4 << 20;

/// A message, or word of lost ones.
pub(super) type Payload = NetlinkPayload<RouteNetlinkMessage>;

/// A subscription to some groups of messages in one namespace.
pub(super) struct Notifications {
    messages: BoxStream<'static, Payload>,
    /// Keeps the connection open.
    _handle: Handle,
}

impl Notifications {
    /// Subscribe in the calling thread's namespace.
    pub(super) fn open(groups: &[MulticastGroup]) -> Result<Self> {
        let explain = |e| Error::new("subscribing to netlink messages", e);
        let (mut connection, handle, messages) = rtnetlink::new_multicast_connection(groups).map_err(explain)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER).map_err(explain)?;
        tokio::spawn(connection);
        Ok(Self { messages: messages.map(|(message, _)| message.payload).boxed(), _handle: handle })
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Payload> {
        let closed = || Error::new("listening for netlink messages", io::ErrorKind::UnexpectedEof.into());
        self.messages.next().await.ok_or_else(closed)
    }
}

impl std::fmt::Debug for Notifications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notifications")
    }
}
