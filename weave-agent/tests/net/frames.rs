use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use weave_agent::addr::Mac;
use weave_agent::datapath::Frame;
use weave_agent::frame::ones_complement_sum;
use weave_agent::io::net::{Netlink, RawSender, announce};

use crate::host::{Namespace, PATIENCE, attached, on_a_host, sh};

const ADDRESSES: [u8; 8] = [10, 32, 0, 9, 10, 32, 0, 1];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet device whose other end is us, and which can do nothing by itself: what is sent there must be finished.
struct Tap(File);

impl Tap {
    fn new(name: &str) -> Self {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // `struct ifreq`: the name, then the flags.
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which is 40 bytes long.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        sh(&format!("sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1 && ip link set {name} up"));
        Self(file)
    }

    /// The next frame.
    fn read(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = (&self.0).read(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }
}

fn ethernet(to: Mac, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &[2, 0, 0, 0, 0, 9], &[8, 0], payload].concat()
}

/// An IPv4 packet whose transport checksum at `at` is unfinished: it has the sum of the pseudo header.
fn packet(protocol: u8, mut transport: Vec<u8>, at: usize) -> Vec<u8> {
    let length = (transport.len() as u16).to_be_bytes();
    let pseudo = ones_complement_sum(&[&ADDRESSES, &[0, protocol], &length]);
    transport[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    let mut header = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&(transport.len() as u16 + 20).to_be_bytes());
    header.extend(ADDRESSES);
    let sum = !ones_complement_sum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, transport].concat()
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 7) as u8).collect()
}

fn tcp(data: &[u8]) -> Vec<u8> {
    let header = [0, 80, 0, 81, 0, 0, 0, 100, 0, 0, 0, 200, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    packet(TCP, [&header[..], data].concat(), 16)
}

fn udp(data: &[u8]) -> Vec<u8> {
    let mut header = [0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&(data.len() as u16 + 8).to_be_bytes());
    packet(UDP, [&header[..], data].concat(), 6)
}

fn checksum_is_right(ip: &[u8]) -> bool {
    let transport = &ip[20..];
    let pseudo = [&ip[12..20], &[0, ip[9]], &(transport.len() as u16).to_be_bytes()].concat();
    ones_complement_sum(&[&pseudo, transport]) == 0xffff
}

fn frame(bytes: Vec<u8>, gso_size: u16) -> Frame {
    Frame { bytes: Bytes::from(bytes), gso_size }
}

async fn index_of(name: &str) -> u32 {
    Netlink::here().unwrap().link_named(name).await.unwrap().unwrap().index
}

#[test]
fn a_large_segment_is_cut_and_each_piece_has_a_right_checksum() {
    on_a_host(async || {
        let tap = Tap::new("tap0");
        let sender = RawSender::new().unwrap();
        let data = payload(5_000);
        sender.send(index_of("tap0").await, None, &frame(ethernet(Mac::BROADCAST, &tcp(&data)), 1400)).unwrap();
        let mut received = Vec::new();
        for length in [1400, 1400, 1400, 800] {
            let piece = tap.read();
            assert!(checksum_is_right(&piece[14..]));
            assert_eq!(piece.len(), 14 + 20 + 20 + length);
            received.extend_from_slice(&piece[54..]);
        }
        assert_eq!(received, data);
    });
}

#[test]
fn an_unfinished_checksum_is_finished_and_a_wrong_one_stays_wrong() {
    on_a_host(async || {
        let tap = Tap::new("tap0");
        let (sender, index) = (RawSender::new().unwrap(), index_of("tap0").await);
        for packet in [tcp(&payload(99)), udp(&payload(100))] {
            sender.send(index, None, &frame(ethernet(Mac::BROADCAST, &packet), 0)).unwrap();
            assert!(checksum_is_right(&tap.read()[14..]));
        }
        let mut wrong = ethernet(Mac::BROADCAST, &udp(&payload(100)));
        wrong[40] ^= 0x55;
        sender.send(index, Some(7), &frame(wrong.clone(), 0)).unwrap();
        assert_eq!(tap.read(), wrong);
        // Not IP, and too short to be anything.
        let odd = [&[0xff; 12][..], &[0x88, 0xb5, 1, 2, 3]].concat();
        sender.send(index, None, &frame(odd.clone(), 0)).unwrap();
        assert_eq!(tap.read(), odd);
        sender.send(index, None, &frame(vec![1, 2, 3], 0)).unwrap_err();
    });
}

#[test]
fn large_datagrams_reach_a_containers_socket_whole() {
    on_a_host(async || {
        let container = Namespace::new();
        let port = attached(&container, &["10.32.0.1/16"]).await.port;
        let socket = container.netns().run(|| UdpSocket::bind("10.32.0.1:8081")).await.unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let data = payload(3_000);
        RawSender::new().unwrap().send(port.id.0, None, &frame(ethernet(port.mac, &udp(&data)), 1_200)).unwrap();
        let mut received = Vec::new();
        for length in [1_200, 1_200, 600] {
            let mut buffer = [0; 2_000];
            assert_eq!(socket.recv(&mut buffer).unwrap(), length);
            received.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(received, data);
    });
}

#[test]
fn a_mark_comes_with_the_frame_it_was_given_to() {
    on_a_host(async || {
        sh("ip link add v0 type veth peer name v1 && ip addr add 10.32.0.1/16 dev v1 && ip link set v0 up && ip link set v1 up");
        // Marked packets find no way to the socket.
        sh("ip rule add pref 10 fwmark 0x80000001 blackhole && ip rule add pref 11 lookup local && ip rule del pref 0");
        let link = Netlink::here().unwrap().link_named("v1").await.unwrap().unwrap();
        let (sender, index) = (RawSender::new().unwrap(), index_of("v0").await);
        let socket = UdpSocket::bind("10.32.0.1:8081").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let marks = [None, Some(0x8000_0001), Some(2), Some(0x8000_0001), Some(0x8000_0001), None];
        for (length, mark) in (1..).zip(marks) {
            sender.send(index, mark, &frame(ethernet(link.mac.unwrap(), &udp(&payload(length))), 0)).unwrap();
        }
        let received = [(); 3].map(|()| socket.recv(&mut [0; 100]).unwrap());
        assert_eq!(received, [1, 3, 6]);
    });
}

#[test]
fn addresses_are_announced_where_a_port_can_hear_it() {
    on_a_host(async || {
        let container = Namespace::new();
        let port = attached(&container, &["10.32.0.1/16", "fd00:32::1/64"]).await.port;
        let ear = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be())))).unwrap();
        ear.set_read_timeout(Some(PATIENCE)).unwrap();
        announce(&container.netns(), "ethwe", port.mac, &port.addrs).await.unwrap();
        let heard = |what: &dyn Fn(&[u8]) -> bool| {
            let mut buffer = [0; 2_000];
            loop {
                let length = (&ear).read(&mut buffer).unwrap();
                if what(&buffer[..length]) {
                    break;
                }
            }
        };
        heard(&|bytes| bytes[12..14] == [8, 6] && bytes[22..28] == port.mac.0 && bytes[28..32] == [10, 32, 0, 1]);
        heard(&|bytes| bytes[12..14] == [0x86, 0xdd] && bytes[20] == 58 && bytes[54] == 136 && bytes[80..86] == port.mac.0);
    });
}
