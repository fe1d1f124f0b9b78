use domain::base::{RecordSection, ToName};
use domain::rdata::AllRecordData;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::dns::Domain;

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn zone() -> Zone {
    let mut entries: Vec<(String, IpAddr)> = vec![
        ("web.weave.local.".into(), "10.32.0.1".parse().unwrap()),
        ("web.weave.local.".into(), "10.32.0.2".parse().unwrap()),
        ("web.weave.local.".into(), "fd00::1".parse().unwrap()),
        ("a.b.weave.local.".into(), "10.32.0.3".parse().unwrap()),
    ];
    for n in 0..60 {
        entries.push(("many.weave.local.".into(), Ipv4Addr::new(10, 32, 1, n).into()));
        entries.push(("many.weave.local.".into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n.into()).into()));
    }
    let entries = entries.into_iter().map(|(name, address)| (name.parse().unwrap(), address));
    Zone::new(Domain::default(), 1, entries).giving_out(vec!["10.32.0.0/15".parse().unwrap()])
}

struct Ask {
    name: &'static str,
    qtype: Rtype,
    class: Class,
    edns: Option<(u16, u8)>,
    transport: Transport,
}

fn ask(name: &'static str, qtype: Rtype) -> Ask {
    Ask { name, qtype, class: Class::IN, edns: None, transport: Transport::Udp }
}

impl Ask {
    fn query(&self) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        question.push((Name::vec_from_str(self.name).unwrap(), self.qtype, self.class)).unwrap();
        let mut additional = question.additional();
        if let Some((size, version)) = self.edns {
            let opt = |opt: &mut domain::base::message_builder::OptBuilder<'_, Vec<u8>>| {
                opt.set_udp_payload_size(size);
                opt.set_version(version);
                opt.set_dnssec_ok(true);
                Ok(())
            };
            additional.opt(opt).unwrap();
        }
        additional.finish()
    }

    fn raw(&self) -> Answer {
        answer(&self.query(), &zone(), self.transport, &mut rng())
    }

    fn reply(&self) -> Message<Vec<u8>> {
        let Answer::Reply(bytes) = self.raw() else { panic!("{} is not answered", self.name) };
        Message::from_octets(bytes).unwrap()
    }
}

fn texts(section: RecordSection<'_, Vec<u8>>) -> Vec<String> {
    let records = section.into_records::<AllRecordData<_, _>>().map(Result::unwrap);
    records.map(|record| format!("{} {} {}", record.owner(), record.rtype(), record.data())).collect()
}

fn sorted(message: &Message<Vec<u8>>) -> Vec<String> {
    let mut texts = texts(message.answer().unwrap());
    texts.sort();
    texts
}

#[test]
fn a_name_has_its_addresses_by_type_with_authority() {
    let reply = ask("web.weave.local", Rtype::A).reply();
    let header = reply.header();
    assert!(header.qr() && header.aa() && header.rd() && header.ra() && !header.tc());
    assert_eq!((header.id(), header.rcode()), (0x1234, Rcode::NOERROR));
    assert_eq!(sorted(&reply), ["web.weave.local A 10.32.0.1", "web.weave.local A 10.32.0.2"]);
    assert_eq!(sorted(&ask("web.weave.local", Rtype::AAAA).reply()), ["web.weave.local AAAA fd00::1"]);
    assert_eq!(sorted(&ask("web.weave.local", Rtype::ANY).reply()).len(), 3);
    let ttl = reply.answer().unwrap().next().unwrap().unwrap().ttl();
    assert_eq!(ttl.as_secs(), 1);
}

#[test]
fn case_does_not_matter_and_is_given_back_as_it_came() {
    let reply = ask("wEb.WEAVE.local", Rtype::A).reply();
    assert_eq!(reply.sole_question().unwrap().qname().to_string(), "wEb.WEAVE.local");
    assert!(sorted(&reply).iter().all(|text| text.starts_with("wEb.WEAVE.local A ")));
}

#[test]
fn a_word_is_looked_up_in_the_domain_and_never_asked_elsewhere() {
    assert_eq!(sorted(&ask("Web", Rtype::A).reply()), ["Web A 10.32.0.1", "Web A 10.32.0.2"]);
    let unknown = ask("nobody", Rtype::A).reply();
    assert_eq!(unknown.header().rcode(), Rcode::NXDOMAIN);
    let soa = texts(unknown.authority().unwrap());
    assert!(soa[0].ends_with("SOA ns.weave.local. hostmaster.weave.local. 1 3600 600 86400 1"), "{soa:?}");
    assert!(unknown.authority().unwrap().next().unwrap().unwrap().owner().is_root());
    assert_eq!(ask(".", Rtype::NS).raw(), Answer::Forward);
}

#[test]
fn unknown_names_and_types_have_the_soa() {
    for (name, qtype, rcode) in [
        ("nobody.weave.local", Rtype::A, Rcode::NXDOMAIN),
        ("sub.web.weave.local", Rtype::A, Rcode::NXDOMAIN),
        ("web.weave.local", Rtype::MX, Rcode::NOERROR),
        ("a.b.weave.local", Rtype::AAAA, Rcode::NOERROR),
        ("b.weave.local", Rtype::A, Rcode::NOERROR),
        ("weave.local", Rtype::A, Rcode::NOERROR),
    ] {
        let reply = ask(name, qtype).reply();
        assert_eq!((reply.header().rcode(), reply.header().aa()), (rcode, true), "{name}");
        assert!(sorted(&reply).is_empty());
        let soa = texts(reply.authority().unwrap());
        assert_eq!(soa, ["weave.local SOA ns.weave.local. hostmaster.weave.local. 1 3600 600 86400 1"], "{name}");
    }
    assert!(sorted(&ask("weave.local", Rtype::SOA).reply())[0].starts_with("weave.local SOA"));
}

#[test]
fn an_address_has_its_names_and_others_are_asked_elsewhere() {
    assert_eq!(sorted(&ask("1.0.32.10.in-addr.ARPA", Rtype::PTR).reply()), ["1.0.32.10.in-addr.ARPA PTR web.weave.local."]);
    let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert!(sorted(&ask(v6, Rtype::PTR).reply())[0].ends_with("PTR web.weave.local."));
    let none = ask("1.0.32.10.in-addr.arpa", Rtype::A).reply();
    assert_eq!((none.header().rcode(), none.header_counts().nscount()), (Rcode::NOERROR, 1));
    for elsewhere in
        ["9.9.9.9.in-addr.arpa", "01.0.32.10.in-addr.arpa", "1.0.34.10.in-addr.arpa", "10.in-addr.arpa", "x.ip6.arpa", "www.example.com"]
    {
        assert_eq!(ask(elsewhere, Rtype::PTR).raw(), Answer::Forward, "{elsewhere}");
    }
}

#[test]
fn what_is_given_out_and_has_no_name_is_nobodys_and_never_asked_elsewhere() {
    for (name, rcode) in [("9.9.33.10.in-addr.arpa", Rcode::NXDOMAIN), ("9.33.10.in-addr.arpa", Rcode::NOERROR)] {
        for qtype in [Rtype::PTR, Rtype::TXT] {
            let reply = ask(name, qtype).reply();
            assert_eq!((reply.header().rcode(), reply.header().aa(), reply.header_counts().ancount()), (rcode, true, 0), "{name}");
            let soa = texts(reply.authority().unwrap());
            assert_eq!(soa, ["33.10.in-addr.arpa SOA ns.weave.local. hostmaster.weave.local. 1 3600 600 86400 1"], "{name}");
        }
    }
}

#[test]
fn what_does_not_fit_udp_is_cut_and_whole_over_tcp() {
    let plain = ask("many.weave.local", Rtype::A);
    let cut = plain.reply();
    assert!(cut.header().tc() && cut.as_slice().len() <= 512);
    // 12 of header, 22 of question, 16 per address.
    assert_eq!(cut.header_counts().ancount(), (512 - 12 - 22) / 16);
    let whole = Ask { transport: Transport::Tcp, ..plain }.reply();
    assert_eq!((whole.header().tc(), whole.header_counts().ancount()), (false, 60));
    let larger = Ask { edns: Some((1232, 0)), ..ask("many.weave.local", Rtype::A) }.reply();
    assert_eq!((larger.header().tc(), larger.header_counts().ancount()), (false, 60));
    let capped = Ask { edns: Some((65_000, 0)), ..ask("many.weave.local", Rtype::AAAA) }.reply();
    assert!(capped.header().tc() && capped.as_slice().len() <= MAX_UDP && capped.as_slice().len() > MAX_UDP - 28);
    assert!(capped.opt().is_some());
}

#[test]
fn edns_is_answered_in_kind_and_later_versions_are_refused() {
    let opt = |size, version| Ask { edns: Some((size, version)), ..ask("web.weave.local", Rtype::A) }.reply();
    let fine = opt(100, 0);
    let record = fine.opt().unwrap();
    assert_eq!((record.udp_payload_size(), record.version(), record.dnssec_ok()), (1232, 0, true));
    assert_eq!(fine.header_counts().ancount(), 2);
    let bad = opt(1232, 1);
    assert_eq!((bad.opt_rcode(), bad.header_counts().ancount()), (OptRcode::BADVERS, 0));
    assert!(ask("web.weave.local", Rtype::A).reply().opt().is_none());
}

#[test]
fn other_classes_operations_and_transfers_are_refused() {
    let chaos = Ask { class: Class::CH, ..ask("version.bind", Rtype::TXT) }.reply();
    assert_eq!(chaos.header().rcode(), Rcode::REFUSED);
    assert_eq!(ask("weave.local", Rtype::AXFR).reply().header().rcode(), Rcode::REFUSED);
    let mut update = ask("web.weave.local", Rtype::A).query();
    update[2] |= 5 << 3;
    let Answer::Reply(reply) = answer(&update, &zone(), Transport::Udp, &mut rng()) else { panic!() };
    assert_eq!(Message::from_octets(reply).unwrap().header().rcode(), Rcode::NOTIMP);
}

#[test]
fn garbage_is_dropped_and_a_broken_question_is_said_to_be() {
    let zone = zone();
    let query = ask("web.weave.local", Rtype::A).query();
    let verdict = |bytes: &[u8]| answer(bytes, &zone, Transport::Udp, &mut rng());
    assert_eq!(verdict(&query[..11]), Answer::Drop);
    let mut response = query.clone();
    response[2] |= 0x80;
    assert_eq!(verdict(&response), Answer::Drop);
    let two = {
        let mut two = query.clone();
        two[5] = 2;
        two
    };
    let late = {
        let mut late = query.clone();
        late[11] = 1;
        late
    };
    let unknown_label = {
        let mut bad = query.clone();
        bad[12] = 0x43;
        bad
    };
    for broken in [&query[..20], &query[..12], &two, &late, &unknown_label] {
        let Answer::Reply(reply) = verdict(broken) else { panic!("{broken:?}") };
        let reply = Message::from_octets(reply).unwrap();
        assert_eq!((reply.header().rcode(), reply.header().id()), (Rcode::FORMERR, 0x1234));
    }
}

#[test]
fn a_query_that_cannot_be_forwarded_gets_servfail() {
    let query = Ask { edns: Some((1232, 0)), ..ask("www.example.com", Rtype::A) }.query();
    let reply = Message::from_octets(servfail(&query, Transport::Udp).unwrap()).unwrap();
    assert_eq!(reply.header().rcode(), Rcode::SERVFAIL);
    assert!(reply.sole_question().unwrap().qname().name_eq(&Name::vec_from_str("www.example.com").unwrap()));
    assert_eq!(servfail(&[1, 2, 3], Transport::Udp), None);
}

#[test]
fn addresses_come_in_every_order() {
    let (zone, mut rng) = (zone(), rng());
    let query = ask("web.weave.local", Rtype::A).query();
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let Answer::Reply(reply) = answer(&query, &zone, Transport::Udp, &mut rng) else { panic!() };
        firsts.insert(texts(Message::from_octets(reply).unwrap().answer().unwrap()).remove(0));
    }
    assert_eq!(firsts.len(), 2);
}

/// Whatever is said, it is a well-formed response with the query's id, of a size that the transport takes.
fn check(query: &[u8], transport: Transport, rng: &mut StdRng) -> bool {
    let Answer::Reply(reply) = answer(query, &zone(), transport, rng) else { return false };
    assert!(reply.len() <= if transport == Transport::Udp { MAX_UDP } else { MAX_TCP });
    assert_eq!(reply[..2], query[..2]);
    let reply = Message::from_octets(reply).unwrap();
    assert!(reply.header().qr());
    assert!(reply.iter().all(|record| record.is_ok()));
    true
}

#[test]
fn a_corpus_of_10_000_mutated_queries_is_survived() {
    let mut rng = StdRng::seed_from_u64(20_000);
    let asks = [
        ask("web.weave.local", Rtype::A),
        ask("many.weave.local", Rtype::AAAA),
        ask("nobody", Rtype::A),
        ask("1.0.32.10.in-addr.arpa", Rtype::PTR),
        Ask { edns: Some((1232, 0)), ..ask("b.weave.local", Rtype::ANY) },
    ];
    let mut answered = 0;
    for n in 0..10_000 {
        let mut query = asks[n % asks.len()].query();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..query.len());
            match rng.random_range(0..5) {
                0 => query[at] ^= 1 << rng.random_range(0..8),
                1 => query[at] = rng.random(),
                2 => query.insert(at, rng.random()),
                3 if query.len() > 1 => _ = query.remove(at),
                _ if at > 0 => query.truncate(at),
                _ => {}
            }
        }
        let transport = if n % 2 == 0 { Transport::Udp } else { Transport::Tcp };
        answered += usize::from(check(&query, transport, &mut rng));
    }
    assert!(answered > 3_000, "{answered}");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool, query: bool) {
        if query && bytes.len() > 12 {
            let odd = bytes[11] & 1;
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, odd]);
        }
        check(&bytes, if tcp { Transport::Tcp } else { Transport::Udp }, &mut rng());
        let _ = servfail(&bytes, Transport::Udp);
    }
}
