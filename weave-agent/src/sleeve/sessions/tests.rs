//! Sessions between neighbours whose agents and links come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Input, LIFETIME, OVERLAP, Output, Sessions};
use crate::Time;
use crate::mesh::{Neighbour, View};
use crate::peer::{PeerName, ShortId};
use crate::sleeve::{Cipher, Inbound, Op, Outbound, SessionId};

fn neighbour(n: u8, sealed: bool) -> Neighbour {
    Neighbour {
        name: PeerName([n; 6]),
        short: ShortId::new(u16::from(n)).unwrap(),
        connection: 1,
        local: Ipv4Addr::new(10, 0, 0, 9),
        remote: Ipv4Addr::new(10, 0, 0, n),
        port: 6784,
        sleeve_port: 6783,
        aes: true,
        esp: false,
        big_tcp: false,
        sealed,
        outbound: true,
    }
}

/// One end: what its threads were told.
struct End {
    sessions: Sessions,
    accepted: BTreeMap<SessionId, Inbound>,
    sending: Option<(Outbound, u64)>,
    /// What it told the other and has not arrived.
    mail: VecDeque<bytes::Bytes>,
}

impl End {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self { sessions: Sessions::new(bytes, LIFETIME), accepted: BTreeMap::new(), sending: None, mail: VecDeque::new() }
    }

    fn handle(&mut self, now: Time, input: Input) {
        self.sessions.handle(now, input);
        self.sessions.handle_timeout(now);
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Tell { payload, .. } => self.mail.push_back(payload),
                Output::Op(Op::Accept(inbound)) => assert!(self.accepted.insert(inbound.session, inbound).is_none()),
                Output::Op(Op::Refuse(session)) => assert!(self.accepted.remove(&session).is_some()),
                Output::Op(Op::Send { session, .. }) => self.sending = session.map(|session| (session, 0)),
                Output::Op(_) => {}
            }
        }
    }
}

fn deliver(now: Time, from: &mut End, to: &mut End) {
    while let Some(payload) = from.mail.pop_front() {
        to.handle(now, Input::Told { peer: PeerName([1; 6]), payload });
    }
}

/// Both ends with a link between them.
fn linked(sealed: bool) -> [End; 2] {
    let mut ends = [End::new(1), End::new(2)];
    join(Time::ZERO, &mut ends, sealed);
    ends
}

fn join(now: Time, ends: &mut [End; 2], sealed: bool) {
    for end in ends.iter_mut() {
        end.handle(now, Input::LinkUp(neighbour(1, sealed)));
    }
    exchange(now, ends);
}

fn exchange(now: Time, [a, b]: &mut [End; 2]) {
    deliver(now, a, b);
    deliver(now, b, a);
}

/// What one sends the other takes.
fn understand(from: &End, to: &End) -> bool {
    let Some((sending, _)) = &from.sending else { return false };
    to.accepted.get(&sending.session).is_some_and(|inbound| (inbound.cipher, &inbound.key) == (sending.cipher, &sending.key))
}

#[test]
fn a_link_gives_each_direction_a_session_of_its_own() {
    let ends = linked(true);
    assert!(understand(&ends[0], &ends[1]) && understand(&ends[1], &ends[0]));
    let keys: BTreeSet<_> = ends.iter().map(|end| end.sending.as_ref().unwrap().0.key.0).collect();
    assert_eq!(keys.len(), 2);
    let (session, _) = ends[0].sending.as_ref().unwrap();
    assert_eq!((session.cipher, session.remote.to_string().as_str()), (Cipher::Aes256Gcm, "10.0.0.1:6783"));
}

#[test]
fn what_is_agreed_decides_the_cipher_and_a_neighbour_cannot_change_it() {
    let mut ends = linked(false);
    assert_eq!(ends[0].sending.as_ref().unwrap().0.cipher, Cipher::Clear);
    let mut sealed = End::new(3);
    sealed.handle(Time::ZERO, Input::LinkUp(neighbour(1, true)));
    ends[0].handle(Time::ZERO, Input::Worn(*ends[0].accepted.keys().next().unwrap()));
    deliver(Time::ZERO, &mut ends[0], &mut sealed);
    assert!(sealed.sending.is_none(), "clear text was offered");
    let plain = End::new(4);
    assert!(plain.sending.is_none());
}

#[test]
fn a_session_is_followed_by_another_in_time_and_goes_after_the_overlap() {
    let mut ends = linked(true);
    let first = ends[0].sending.as_ref().unwrap().0.session;
    for end in &mut ends {
        assert_eq!(end.sessions.poll_timeout(), Some(LIFETIME));
        end.handle(LIFETIME, Input::LinkDown(PeerName([9; 6])));
    }
    assert!(understand(&ends[0], &ends[1]), "the old one still works when the new one is on its way");
    exchange(LIFETIME, &mut ends);
    assert!(understand(&ends[0], &ends[1]));
    assert_ne!(ends[0].sending.as_ref().unwrap().0.session, first);
    assert!(ends[1].accepted.contains_key(&first));
    ends[1].handle(LIFETIME + OVERLAP, Input::LinkDown(PeerName([9; 6])));
    assert!(!ends[1].accepted.contains_key(&first));
    assert_eq!(ends[1].accepted.len(), 1);
}

#[test]
fn sessions_outlive_their_link_and_end_with_their_peer() {
    let mut ends = linked(true);
    ends[0].handle(Time::from_secs(1), Input::LinkDown(PeerName([1; 6])));
    assert!(understand(&ends[0], &ends[1]));
    assert_eq!(ends[0].sessions.poll_timeout(), None, "nothing can be told without a link");
    let view = View { name: PeerName([9; 6]), short: ShortId::new(9).unwrap(), peers: BTreeMap::new(), hops: Vec::new() };
    ends[0].handle(Time::from_secs(2), Input::View(Arc::new(view)));
    assert!(ends[0].sending.is_none() && ends[0].accepted.is_empty());
}

#[test]
fn a_neighbour_that_becomes_secret_keeps_nothing_of_before() {
    let mut ends = linked(false);
    join(Time::from_secs(1), &mut ends, true);
    for end in &ends {
        assert!(end.accepted.values().all(|inbound| inbound.cipher == Cipher::Aes256Gcm));
    }
    assert!(understand(&ends[0], &ends[1]) && understand(&ends[1], &ends[0]));
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let mut ends = linked(true);
    for payload in [&[][..], &[0; 64], &[0xff; 40], &[1, 0]] {
        ends[0].handle(Time::ZERO, Input::Told { peer: PeerName([1; 6]), payload: bytes::Bytes::copy_from_slice(payload) });
        ends[0].handle(Time::ZERO, Input::Told { peer: PeerName([7; 6]), payload: bytes::Bytes::copy_from_slice(payload) });
    }
    assert!(understand(&ends[0], &ends[1]));
}

/// Restarts, broken links, worn and old sessions, offers that come twice or late: each datagram has a nonce of its own.
#[test]
fn no_nonce_is_used_twice_in_a_million_events() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut ends = linked(true);
    let (mut used, mut seed, mut now, mut sent) = (BTreeSet::new(), 10, Time::ZERO, 0_u32);
    for _ in 0..1_000_000 {
        now += Time::from_secs(rng.random_range(0..400));
        let at = usize::from(rng.random_bool(0.5));
        match rng.random_range(0..10) {
            0 => {
                seed += 1;
                ends[at] = End::new(seed);
                join(now, &mut ends, true);
            }
            1 => join(now, &mut ends, true),
            2 => ends[at].handle(now, Input::LinkDown(PeerName([1; 6]))),
            3 => {
                let worn = ends[at].accepted.keys().next_back().copied();
                worn.into_iter().for_each(|session| ends[at].handle(now, Input::Worn(session)));
            }
            4 => {
                let again: Vec<_> = ends[at].mail.iter().cloned().collect();
                ends[at].mail.extend(again);
            }
            5 => exchange(now, &mut ends),
            _ => {
                if let Some((session, counter)) = &mut ends[at].sending {
                    assert!(used.insert((session.key.0, *counter)), "{session:?} {counter}");
                    *counter += 1;
                    sent += 1;
                }
            }
        }
    }
    assert!(sent > 300_000, "{sent}");
}
