//! One query, one server, one answer.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use domain::base::Message;
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::dns::Transport;

/// No answer over UDP is longer.
const LONGEST: usize = 65_535;

/// Asks `server`. The query gets an id of its own and the socket a port of its own; an answer must come from that server, to that port,
/// with that id and question, or it is none.
pub(super) async fn exchange(server: SocketAddr, query: &[u8], transport: Transport, patience: Duration) -> io::Result<Vec<u8>> {
    let mut asked = query.to_vec();
    let id: [u8; 2] = super::generator().random();
    asked.get_mut(..2).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&id);
    let answer = async {
        match transport {
            Transport::Udp => over_udp(server, &asked).await,
            Transport::Tcp => over_tcp(server, &asked).await,
        }
    };
    let mut answer = timeout(patience, answer).await.map_err(|_| io::ErrorKind::TimedOut)??;
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // From here on the kernel takes packets of this server only, and tells if it does not listen.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&framed(query)).await?;
    loop {
        let length = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        if is_answer(query, &answer) {
            return Ok(answer);
        }
    }
}

/// The message with its length before it (RFC 1035, 4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // Ours have at most 65,535 bytes, theirs came with such a length.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), message].concat()
}

fn is_answer(query: &[u8], bytes: &[u8]) -> bool {
    let (Ok(query), Ok(answer)) = (Message::from_slice(query), Message::from_slice(bytes)) else {
        return false;
    };
    answer.is_answer(query)
}
