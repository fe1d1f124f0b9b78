use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::exchange::{exchange, framed};
use super::*;
use crate::dns::{Domain, Transport};

const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(5);

fn zone(last: u8) -> Arc<Zone> {
    let entry = ("web.weave.local".parse().unwrap(), Ipv4Addr::new(10, 32, 0, last).into());
    Arc::new(Zone::new(Domain::default(), 1, [entry]))
}

async fn server(config: Config) -> (Server, SocketAddr, watch::Sender<Arc<Zone>>) {
    let (sender, zones) = watch::channel(zone(1));
    let server = Server::new(zones, config);
    let address = server.listen(LOCAL).await.unwrap();
    (server, address, sender)
}

fn nowhere() -> Config {
    Config { resolv_conf: "/nonexistent".into(), ..Config::default() }
}

/// A query for the A records of a name.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = vec![(id >> 8) as u8, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

async fn ask(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    socket.send_to(query, server).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

#[tokio::test]
async fn the_latest_zone_is_answered_from() {
    let (server, address, zones) = server(nowhere()).await;
    let web = query(7, "web.weave.local");
    assert_eq!(ask(address, &web).await[web.len() + 12..], [10, 32, 0, 1]);
    zones.send_replace(zone(2));
    assert_eq!(ask(address, &web).await[web.len() + 12..], [10, 32, 0, 2]);
    drop(zones);
    assert_eq!(ask(address, &web).await[web.len() + 12..], [10, 32, 0, 2]);
    let counts = server.status().counts;
    assert_eq!((counts.udp, counts.answered), (3, 3));
    assert_eq!(server.status().listening[0].address, address);
}

#[tokio::test]
async fn without_an_upstream_server_the_rest_gets_servfail_at_once() {
    let (server, address, _zones) = server(nowhere()).await;
    let reply = ask(address, &query(7, "www.example.com")).await;
    assert_eq!(reply[3] & 15, 2);
    assert_eq!(server.status().counts.failed, 1);
}

#[tokio::test]
async fn many_queries_on_one_connection_are_answered_and_a_silent_one_is_closed() {
    let (_server, address, _zones) = server(Config { idle: Duration::from_millis(300), ..nowhere() }).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let queries: Vec<u8> = (0..500_u16).flat_map(|id| framed(&query(id, "web.weave.local"))).collect();
    let (mut reader, mut writer) = stream.split();
    let write = async { writer.write_all(&queries).await.unwrap() };
    let read = async {
        for id in 0..500_u16 {
            let length = usize::from(reader.read_u16().await.unwrap());
            let mut reply = vec![0; length];
            reader.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply[..2], id.to_be_bytes());
        }
        reader.read(&mut [0]).await
    };
    let (_, end) = timeout(PATIENCE, async { tokio::join!(write, read) }).await.unwrap();
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_closing_a_place_closes_the_others() {
    let (server, address, _zones) = server(Config { connections: 2, ..nowhere() }).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    let ended = timeout(PATIENCE, streams[2].read(&mut [0])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(server.status().counts.refused, 1);
    assert!(server.close(address) && !server.close(address));
    let ended = timeout(PATIENCE, streams[0].read(&mut [0])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).await.is_err());
    // The address is free again.
    server.listen(address).await.unwrap();
}

#[tokio::test]
async fn one_client_with_many_silent_connections_does_not_shut_others_out() {
    let config = Config { connections_of_one: 3, first: Duration::from_millis(300), ..nowhere() };
    let (server, address, _zones) = server(config).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let from = |last| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        // Who is refused may be cut off while it still writes.
        let _ = stream.write_all(&framed(&query(7, "web.weave.local"))).await;
        timeout(PATIENCE, stream.read_u16()).await.unwrap().is_ok()
    };
    assert!(from(2).await && !from(1).await);
    assert_eq!(server.status().counts.refused, 8);
    // Before its first query a connection is given less time.
    for stream in &mut silent[..3] {
        let ended = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    assert!(from(1).await);
}

#[tokio::test]
async fn an_address_that_is_taken_or_not_ours_is_refused_with_advice() {
    let (server, address, _zones) = server(nowhere()).await;
    let error = server.listen(address).await.unwrap_err().to_string();
    assert!(error.contains("another name server listens there") && error.contains("--dns-listen-address"), "{error}");
    let error = server.listen("192.0.2.1:53".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("no interface has that address"), "{error}");
}

#[tokio::test]
async fn garbage_is_counted_and_the_next_query_answered() {
    let (server, address, _zones) = server(nowhere()).await;
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    for length in 0..12 {
        socket.send_to(&[0xff; 12][..length], address).await.unwrap();
    }
    let web = query(7, "web.weave.local");
    assert_eq!(ask(address, &web).await[..2], [0, 7]);
    assert_eq!(server.status().counts.garbage, 12);
}

#[tokio::test]
async fn only_the_server_itself_with_the_id_and_the_question_is_believed() {
    let upstream = UdpSocket::bind(LOCAL).await.unwrap();
    let address = upstream.local_addr().unwrap();
    let asked = query(7, "www.example.com");
    let answering = async {
        let mut buffer = [0; 512];
        let (length, client) = upstream.recv_from(&mut buffer).await.unwrap();
        let mut right = buffer[..length].to_vec();
        right[2] |= 0x80;
        let forged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut forged = right.clone();
            change(&mut forged);
            forged
        };
        let stranger = UdpSocket::bind(LOCAL).await.unwrap();
        stranger.send_to(&right, client).await.unwrap();
        upstream.send_to(&forged(&|bytes| bytes[0] ^= 1), client).await.unwrap();
        upstream.send_to(&forged(&|bytes| bytes[13] = b'x'), client).await.unwrap();
        upstream.send_to(&forged(&|bytes| bytes[2] &= 0x7f), client).await.unwrap();
        upstream.send_to(&[1, 2], client).await.unwrap();
        right[3] = 0x0f;
        upstream.send_to(&right, client).await.unwrap();
        right
    };
    let (answer, mut right) = tokio::join!(exchange(address, &asked, Transport::Udp, PATIENCE), answering);
    right[..2].copy_from_slice(&[0, 7]);
    assert_eq!(answer.unwrap(), right);
    let silence = exchange(address, &asked, Transport::Udp, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::TimedOut);
}
