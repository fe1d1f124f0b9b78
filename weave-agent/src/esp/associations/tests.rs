use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::peer::ShortId;

const PORT: u16 = 6784;
const LIFETIME: Time = Time::from_secs(3600);

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn neighbour(us: u8, n: u8) -> Neighbour {
    Neighbour {
        name: PeerName([n; 6]),
        short: ShortId::new(u16::from(n)).unwrap(),
        connection: 1,
        local: address(us),
        remote: address(n),
        port: PORT,
        sleeve_port: 6783,
        aes: true,
        sealed: true,
        esp: true,
        big_tcp: false,
        outbound: true,
    }
}

/// A host with its kernel, which does as it is told unless it is broken.
struct Host {
    number: u8,
    associations: Associations,
    kernel: BTreeMap<Id, [u8; KEY]>,
    /// Outgoing ones in the order in which they came.
    added: Vec<Id>,
    protected: BTreeSet<Ipv4Addr>,
    refuses: bool,
    /// What the switch thinks.
    told: BTreeSet<Ipv4Addr>,
    mail: VecDeque<Bytes>,
}

impl Host {
    fn new(number: u8, incarnation: u8) -> Self {
        let mut seed = [number; 32];
        seed[0] = incarnation;
        Self {
            number,
            associations: Associations::new(seed, PORT, LIFETIME),
            kernel: BTreeMap::new(),
            added: Vec::new(),
            protected: BTreeSet::new(),
            refuses: false,
            told: BTreeSet::new(),
            mail: VecDeque::new(),
        }
    }

    /// Another agent on the same kernel.
    fn restart(&mut self, now: Time) {
        let before = std::mem::replace(self, Self::new(self.number, 99));
        (self.kernel, self.added, self.protected) = (before.kernel, before.added, before.protected);
        let found = Input::Found { protected: self.protected.clone(), ids: self.kernel.keys().copied().collect() };
        self.handle(now, found);
    }

    fn handle(&mut self, now: Time, input: Input) {
        self.associations.handle(now, input);
        self.settle(now);
    }

    fn pass(&mut self, now: Time) {
        self.associations.handle_timeout(now);
        self.settle(now);
    }

    fn settle(&mut self, now: Time) {
        while let Some(output) = self.associations.poll_output() {
            match output {
                Output::Tell { payload, .. } => self.mail.push_back(payload),
                Output::Protected { remote, protected: true } => {
                    assert!(self.protected.contains(&remote), "the switch is told before the kernel");
                    self.told.insert(remote);
                }
                Output::Protected { remote, protected: false } => drop(self.told.remove(&remote)),
                Output::Op(op) => self.carry_out(now, op),
            }
        }
    }

    fn carry_out(&mut self, now: Time, op: Op) {
        match op {
            Op::Protect(protection) => {
                self.protected.insert(protection.remote);
                self.associations.handle(now, Input::Protected(protection.remote));
            }
            Op::Unprotect(remote) => {
                assert!(!self.told.contains(&remote), "what may still be sent would go in clear");
                self.protected.remove(&remote);
            }
            Op::Add(id, _) if self.refuses => self.associations.handle(now, Input::Missing(id)),
            Op::Add(id, key) => {
                assert_eq!(self.kernel.insert(id, key.0), None, "a key is used twice");
                self.added.extend((id.direction == Direction::Out).then_some(id));
                self.associations.handle(now, Input::Installed(id));
            }
            Op::Remove(id) => drop(self.kernel.remove(&id)),
        }
    }

    /// What it sends with: the kernel takes the latest.
    fn sends(&self) -> Option<(Spi, [u8; KEY])> {
        let id = self.added.iter().rfind(|id| self.kernel.contains_key(id))?;
        Some((id.spi, self.kernel[id]))
    }

    fn of(&self, direction: Direction) -> Vec<(Spi, [u8; KEY])> {
        self.kernel.iter().filter(|(id, _)| id.direction == direction).map(|(id, key)| (id.spi, *key)).collect()
    }
}

/// Two hosts with a link.
struct Pair([Host; 2]);

impl Pair {
    fn linked() -> Self {
        let mut pair = Self([Host::new(1, 0), Host::new(2, 0)]);
        pair.link(Time::ZERO);
        pair
    }

    fn link(&mut self, now: Time) {
        let [a, b] = &mut self.0;
        a.handle(now, Input::LinkUp(neighbour(1, 2)));
        b.handle(now, Input::LinkUp(neighbour(2, 1)));
        self.talk(now);
    }

    fn talk(&mut self, now: Time) {
        let [a, b] = &mut self.0;
        while !a.mail.is_empty() || !b.mail.is_empty() {
            for payload in std::mem::take(&mut a.mail) {
                b.handle(now, Input::Told { peer: PeerName([1; 6]), payload });
            }
            for payload in std::mem::take(&mut b.mail) {
                a.handle(now, Input::Told { peer: PeerName([2; 6]), payload });
            }
        }
    }

    fn pass(&mut self, now: Time) {
        self.0.iter_mut().for_each(|host| host.pass(now));
        self.talk(now);
    }

    /// Whatever one sends with the other takes.
    fn understand(&self) {
        let [a, b] = &self.0;
        for (from, to) in [(a, b), (b, a)] {
            let sent = from.sends().unwrap_or_else(|| panic!("host {} cannot send", from.number));
            assert!(to.of(Direction::In).contains(&sent), "what is sent is not taken");
        }
    }
}

#[test]
fn two_hosts_protect_first_and_have_one_association_each_way() {
    let pair = Pair::linked();
    pair.understand();
    for host in &pair.0 {
        assert_eq!((host.kernel.len(), host.told.len()), (2, 1));
    }
}

#[test]
fn a_neighbour_that_cannot_or_need_not_leaves_nothing() {
    let mut pair = Pair::linked();
    let [a, _] = &mut pair.0;
    a.handle(Time::from_secs(1), Input::LinkUp(Neighbour { esp: false, ..neighbour(1, 2) }));
    assert!(a.kernel.is_empty() && a.protected.is_empty() && a.told.is_empty());
}

#[test]
fn keys_are_followed_by_others_and_the_old_are_taken_for_a_while() {
    let mut pair = Pair::linked();
    let first = pair.0[0].sends().unwrap();
    pair.pass(LIFETIME);
    pair.understand();
    assert_ne!(pair.0[0].sends(), Some(first));
    assert!(pair.0[0].of(Direction::Out).contains(&first), "what was begun with it");
    pair.pass(LIFETIME + FAREWELL);
    assert!(!pair.0[0].of(Direction::Out).contains(&first));
    assert!(pair.0[1].of(Direction::In).contains(&first), "what is under way");
    pair.pass(LIFETIME + OVERLAP);
    assert!(!pair.0[1].of(Direction::In).contains(&first));
    pair.understand();
}

#[test]
fn an_association_that_somebody_removed_is_followed_by_another_at_either_end() {
    for (host, direction) in [(0, Direction::In), (0, Direction::Out), (1, Direction::In)] {
        let mut pair = Pair::linked();
        let id = *pair.0[host].kernel.keys().find(|id| id.direction == direction).unwrap();
        pair.0[host].kernel.remove(&id);
        pair.0[host].handle(Time::from_secs(5), Input::Missing(id));
        pair.talk(Time::from_secs(5));
        pair.pass(Time::from_secs(6));
        pair.understand();
        assert!(!pair.0[host].kernel.contains_key(&id), "its nonces would begin anew");
    }
}

#[test]
fn an_agent_that_restarts_uses_what_it_finds_until_it_has_its_own() {
    let mut pair = Pair::linked();
    let before = pair.0[0].sends();
    pair.0[0].restart(Time::from_secs(10));
    assert_eq!((pair.0[0].sends(), pair.0[0].told.len()), (before, 1));
    pair.understand();
    pair.0[1].handle(Time::from_secs(11), Input::LinkDown(PeerName([1; 6])));
    pair.link(Time::from_secs(11));
    pair.understand();
    pair.pass(Time::from_secs(10) + OVERLAP);
    pair.understand();
    assert!(!pair.0[0].of(Direction::Out).contains(&before.unwrap()), "what was found goes");
    pair.pass(Time::from_secs(11) + OVERLAP);
    for host in &pair.0 {
        assert_eq!(host.kernel.len(), 2);
    }
}

#[test]
fn what_is_found_of_those_who_do_not_come_back_goes() {
    let mut pair = Pair::linked();
    let [a, _] = &mut pair.0;
    a.restart(Time::from_secs(10));
    a.pass(Time::from_secs(10) + OVERLAP);
    assert!(a.kernel.is_empty() && a.protected.is_empty() && a.told.is_empty());
}

#[test]
fn a_kernel_that_refuses_is_asked_once_a_second_and_the_neighbour_is_told_nothing() {
    let mut a = Host::new(1, 0);
    a.refuses = true;
    a.handle(Time::ZERO, Input::LinkUp(neighbour(1, 2)));
    for ms in (0..10_000).step_by(100) {
        a.pass(Time::from_millis(ms));
    }
    assert!(a.mail.is_empty() && a.kernel.is_empty());
    assert_eq!(a.associations.poll_timeout(), Some(Time::from_secs(10)));
}

#[test]
fn a_number_told_twice_is_begun_once_and_a_reserved_one_never() {
    let mut a = Host::new(1, 0);
    a.handle(Time::ZERO, Input::LinkUp(neighbour(1, 2)));
    let offer = |spi| postcard::to_stdvec(&Message::Offer { spi: Spi(spi), key: [1; 32], salt: [2; 4] }).unwrap().into();
    let told = |payload| Input::Told { peer: PeerName([2; 6]), payload };
    a.handle(Time::ZERO, told(offer(255)));
    assert_eq!(a.sends(), None);
    a.handle(Time::ZERO, told(offer(256)));
    a.handle(Time::ZERO, told(offer(257)));
    a.handle(Time::ZERO, told(offer(256)));
    assert_eq!(a.sends().map(|(spi, _)| spi.0), Some(257));
}

#[test]
fn a_neighbour_that_wants_others_all_the_time_gets_one_a_second() {
    let mut a = Host::new(1, 0);
    a.handle(Time::ZERO, Input::LinkUp(neighbour(1, 2)));
    let want: Bytes = postcard::to_stdvec(&Message::Want).unwrap().into();
    for ms in 0..5_000 {
        a.handle(Time::from_millis(ms), Input::Told { peer: PeerName([2; 6]), payload: want.clone() });
        a.pass(Time::from_millis(ms));
    }
    assert_eq!(a.mail.len(), 5);
}

proptest! {
    #[test]
    fn whatever_a_neighbour_says_nothing_breaks(payload in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut pair = Pair::linked();
        pair.0[0].handle(Time::ZERO, Input::Told { peer: PeerName([2; 6]), payload: payload.into() });
        prop_assert!(pair.0[0].of(Direction::In).len() == 1);
    }
}

#[test]
fn of_many_that_are_told_while_the_kernel_is_busy_the_latest_is_taken() {
    let mut associations = Associations::new([5; 32], PORT, LIFETIME);
    associations.handle(Time::ZERO, Input::LinkUp(neighbour(1, 2)));
    while associations.poll_output().is_some() {}
    for spi in 1000..100_000 {
        let payload = postcard::to_stdvec(&Message::Offer { spi: Spi(spi), key: [1; 32], salt: [2; 4] }).unwrap().into();
        associations.handle(Time::ZERO, Input::Told { peer: PeerName([2; 6]), payload });
    }
    let Some(Output::Op(Op::Add(first, _))) = associations.poll_output() else { panic!() };
    assert_eq!((first.spi, associations.poll_output()), (Spi(1000), None));
    associations.handle(Time::ZERO, Input::Installed(first));
    let added = std::iter::from_fn(|| associations.poll_output()).find_map(|output| match output {
        Output::Op(Op::Add(id, _)) => Some(id.spi),
        _ => None,
    });
    assert_eq!(added, Some(Spi(99_999)));
}

#[test]
fn whom_an_earlier_agent_protected_and_who_need_not_be_sealed_any_more_is_free_at_once() {
    let mut a = Host::new(1, 0);
    a.protected.insert(address(2));
    a.restart(Time::ZERO);
    assert_eq!(a.told.len(), 1);
    a.handle(Time::ZERO, Input::LinkUp(Neighbour { sealed: false, ..neighbour(1, 2) }));
    assert!(a.told.is_empty() && a.protected.is_empty());
}
