//! What is between two hosts: a thread that passes datagrams on, or does something to them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::bed::PORT;

/// What happens to a datagram, in percent.
#[derive(Clone, Copy)]
pub(crate) struct Treatment {
    pub(crate) lost: u8,
    pub(crate) repeated: u8,
    /// It comes after the next one.
    pub(crate) late: u8,
}

impl Treatment {
    pub(crate) const FAITHFUL: Self = Self { lost: 0, repeated: 0, late: 0 };
}

/// Datagrams with the side (0 or 1) that they were going to.
pub(crate) type Record = Vec<(usize, Vec<u8>)>;

/// The wire. Each host sees it as the other.
pub(crate) struct Wire {
    sockets: Arc<[UdpSocket; 2]>,
    record: Arc<Mutex<Record>>,
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Wire {
    /// In the calling thread's namespace.
    pub(crate) fn new(treatment: Treatment) -> Self {
        let socket = |i| UdpSocket::bind((Ipv4Addr::new(192, 168, i, 254), PORT)).unwrap();
        let sockets = Arc::new([socket(1), socket(2)]);
        for socket in sockets.iter() {
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket2::SockRef::from(socket).set_recv_buffer_size(4 << 20).unwrap();
        }
        let (record, cut, stop) = (Arc::<Mutex<Record>>::default(), Arc::default(), Arc::default());
        let mut wire = Self { sockets, record, cut, stop, threads: Vec::new() };
        for from in 0..2 {
            let (sockets, record, cut, stop) = (wire.sockets.clone(), wire.record.clone(), wire.cut.clone(), wire.stop.clone());
            wire.threads.push(thread::spawn(move || pass_on(&sockets, from, treatment, &record, &cut, &stop)));
        }
        wire
    }

    /// All that has passed.
    pub(crate) fn record(&self) -> Record {
        self.record.lock().unwrap().clone()
    }

    /// Nothing passes any more, or all does again.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// Send something to one side.
    pub(crate) fn send(&self, side: usize, datagram: &[u8]) {
        // A full queue loses it, as a wire would.
        let _ = self.sockets[side].send_to(datagram, host(side));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

pub(crate) fn host(side: usize) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::new(192, 168, side as u8 + 1, 1), PORT).into()
}

fn pass_on(sockets: &[UdpSocket; 2], from: usize, treatment: Treatment, record: &Mutex<Record>, cut: &AtomicBool, stop: &AtomicBool) {
    let (to, mut rng, mut buffer) = (1 - from, StdRng::seed_from_u64(from as u64), vec![0; 65_536]);
    let mut late: Option<Vec<u8>> = None;
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = sockets[from].recv(&mut buffer) else { continue };
        let datagram = &buffer[..length];
        record.lock().unwrap().push((to, datagram.to_vec()));
        let mut chance = |percent| rng.random_range(0..100_u8) < percent;
        if chance(treatment.lost) || cut.load(Ordering::Relaxed) {
            continue;
        }
        if late.is_none() && chance(treatment.late) {
            late = Some(datagram.to_vec());
            continue;
        }
        let copies = 1 + usize::from(chance(treatment.repeated));
        let held = late.take();
        for datagram in std::iter::repeat_n(datagram, copies).chain(held.as_deref()) {
            let _ = sockets[to].send_to(datagram, host(to));
        }
    }
}
