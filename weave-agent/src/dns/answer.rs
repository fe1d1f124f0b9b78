//! A query becomes an answer, or is somebody else's to answer.
//!
//! Ours are: names in the domain, single words (they get the domain appended and are never asked elsewhere), the addresses that have
//! names, and those that are given out. Ours are answered with authority; unknown names and types with the domain's SOA, so that resolvers keep that too (RFC 2308).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, StaticCompressor};
use domain::base::opt::OptRecord;
use domain::base::wire::ParseError;
use domain::base::{Header, Message, MessageBuilder, Name, ParsedName, Question, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ptr, Soa};
use rand::Rng;
use rand::seq::SliceRandom;

use super::reverse::Reverse;
use super::zone::{Addresses, Zone, parent};

/// Largest answer over UDP, bytes, whatever the client offers: what passes every path unfragmented (DNS flag day 2020). Clients that offer
/// nothing get 512 (RFC 1035, 4.2.1); the rest comes over TCP.
pub const MAX_UDP: usize = 1232;
const MIN_UDP: usize = 512;
const MAX_TCP: usize = 65_535;
/// An OPT record without options.
const OPT: usize = 11;
/// What the SOA says of a zone that nobody transfers: refresh, retry, expire, seconds.
const SOA_TIMES: [u32; 3] = [3600, 600, 86_400];

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers are limited: see [`MAX_UDP`].
    Udp,
    /// Answers are whole.
    Tcp,
}

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask an upstream server.
    Forward,
    /// Nothing that deserves an answer: no query, or not even a header.
    Drop,
}

/// Answers a query. Never panics, whatever the bytes.
pub fn answer(query: &[u8], zone: &Zone, transport: Transport, rng: &mut impl Rng) -> Answer {
    let Ok(message) = Message::from_slice(query) else {
        return Answer::Drop;
    };
    if message.header().qr() {
        return Answer::Drop;
    }
    if message.header().opcode() != Opcode::QUERY {
        return Answer::Reply(refusal(query, Rcode::NOTIMP));
    }
    match Query::parse(message, transport) {
        Ok(query) => query.answer(zone, rng),
        Err(_) => Answer::Reply(refusal(query, Rcode::FORMERR)),
    }
}

/// The answer for a query that could not be forwarded; `None` if it is none.
pub fn servfail(query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    without_records(query, transport, |header| header.set_rcode(Rcode::SERVFAIL))
}

/// The answer that tells a client to ask over TCP; `None` if it asked nothing.
pub fn truncated(query: &[u8]) -> Option<Vec<u8>> {
    without_records(query, Transport::Udp, |header| header.set_tc(true))
}

/// The longest answer over UDP that a client takes, bytes (RFC 6891, 6.2.3). Forwarded answers may be as long, for whoever sent them knew.
pub fn udp_room(query: &[u8]) -> usize {
    let message = Message::from_slice(query).ok();
    message.and_then(|message| Query::parse(message, Transport::Udp).ok()).map_or(MIN_UDP, |query| query.offered.max(MIN_UDP))
}

fn without_records(query: &[u8], transport: Transport, change: impl FnOnce(&mut Header)) -> Option<Vec<u8>> {
    let message = Message::from_slice(query).ok().filter(|message| !message.header().qr())?;
    let query = Query::parse(message, transport).ok()?;
    Some(query.reply(|answer| change(answer.header_mut())))
}

/// A header without a question: what is left to say when the rest cannot be read.
fn refusal(query: &[u8], rcode: Rcode) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    if let Ok(message) = Message::from_slice(query) {
        let (asked, header) = (message.header(), builder.header_mut());
        header.set_id(asked.id());
        header.set_qr(true);
        header.set_opcode(asked.opcode());
        header.set_rd(asked.rd());
        header.set_rcode(rcode);
    }
    builder.finish()
}

type Target = StaticCompressor<Vec<u8>>;
type Builder = AnswerBuilder<Target>;

/// A well-formed query.
struct Query<'a> {
    message: &'a Message<[u8]>,
    question: Question<ParsedName<&'a [u8]>>,
    edns: Option<Edns>,
    /// What the client takes over UDP.
    offered: usize,
    limit: usize,
}

struct Edns {
    version: u8,
    dnssec_ok: bool,
}

impl<'a> Query<'a> {
    fn parse(message: &'a Message<[u8]>, transport: Transport) -> Result<Self, ParseError> {
        let question = message.sole_question()?;
        let mut edns = None;
        let mut offered = MIN_UDP;
        for record in message.answer()?.chain(message.authority()?) {
            record?;
        }
        for record in message.additional()? {
            let Some(record) = record?.into_record::<domain::base::opt::Opt<_>>()? else { continue };
            let opt = OptRecord::from_record(record);
            offered = usize::from(opt.udp_payload_size());
            if edns.replace(Edns { version: opt.version(), dnssec_ok: opt.dnssec_ok() }).is_some() {
                return Err(ParseError::form_error("two OPT records"));
            }
        }
        let limit = match transport {
            Transport::Udp => offered.clamp(MIN_UDP, MAX_UDP),
            Transport::Tcp => MAX_TCP,
        };
        Ok(Self { message, question, edns, offered, limit })
    }

    fn answer(&self, zone: &Zone, rng: &mut impl Rng) -> Answer {
        if self.edns.as_ref().is_some_and(|edns| edns.version > 0) {
            // The rest of the code, BADVERS, is in the OPT record.
            return Answer::Reply(self.reply(|_| ()));
        }
        if self.question.qclass() != Class::IN {
            return Answer::Reply(self.reply(|answer| answer.header_mut().set_rcode(Rcode::REFUSED)));
        }
        let mut wire = Vec::with_capacity(255);
        // A vector takes any name.
        let Ok(()) = self.question.qname().compose_canonical(&mut wire);
        match Place::of(&wire, zone) {
            Place::Domain => Answer::Reply(self.by_name(zone, &wire, zone.suffix(), rng)),
            Place::Word => {
                let full = [&wire[..wire.len() - 1], zone.suffix()].concat();
                Answer::Reply(self.by_name(zone, &full, &[0], rng))
            }
            Place::Reverse(asked) => self.by_address(zone, &asked, &wire),
            Place::Elsewhere => Answer::Forward,
        }
    }

    /// `apex`: what the SOA is of.
    fn by_name(&self, zone: &Zone, wire: &[u8], apex: &[u8], rng: &mut impl Rng) -> Vec<u8> {
        let qtype = self.question.qtype();
        if matches!(qtype, Rtype::AXFR | Rtype::IXFR) {
            return self.reply(|answer| answer.header_mut().set_rcode(Rcode::REFUSED));
        }
        let Some(addresses) = zone.find(wire) else {
            return self.nothing(zone, apex, Rcode::NXDOMAIN);
        };
        if qtype == Rtype::SOA && wire == zone.suffix() {
            return self.reply(|answer| {
                answer.header_mut().set_aa(true);
                push_soa(answer, zone, apex);
            });
        }
        let records = shuffled(addresses, qtype, rng);
        if records.is_empty() {
            return self.nothing(zone, apex, Rcode::NOERROR);
        }
        self.reply(|answer| {
            answer.header_mut().set_aa(true);
            self.push_addresses(answer, zone, &records);
        })
    }

    fn push_addresses(&self, answer: &mut Builder, zone: &Zone, records: &[IpAddr]) {
        let (name, ttl) = (self.question.qname(), Ttl::from_secs(zone.ttl()));
        for record in records {
            let pushed = match record {
                IpAddr::V4(address) => answer.push((name, Class::IN, ttl, A::new(*address))),
                IpAddr::V6(address) => answer.push((name, Class::IN, ttl, Aaaa::new(*address))),
            };
            // As many as fit: resolvers that never use TCP can do with them.
            if pushed.is_err() {
                answer.header_mut().set_tc(true);
                break;
            }
        }
    }

    /// Ours are the addresses that have names, and those of the ranges that are given out: nobody else knows of them.
    fn by_address(&self, zone: &Zone, asked: &Reverse, wire: &[u8]) -> Answer {
        let range = zone.range_of(asked.net);
        let names = asked.address().map(|address| zone.names(address)).filter(|names| names.len() > 0);
        let apex = range.map_or(wire, |range| asked.apex(wire, range));
        let Some(names) = names else {
            // Above an address there may be others with names.
            let rcode = if asked.address().is_some() { Rcode::NXDOMAIN } else { Rcode::NOERROR };
            return range.map_or(Answer::Forward, |_| Answer::Reply(self.nothing(zone, apex, rcode)));
        };
        if !matches!(self.question.qtype(), Rtype::PTR | Rtype::ANY) {
            return Answer::Reply(self.nothing(zone, apex, Rcode::NOERROR));
        }
        let ttl = Ttl::from_secs(zone.ttl());
        Answer::Reply(self.reply(|answer| {
            answer.header_mut().set_aa(true);
            for name in names {
                let Ok(target) = Name::from_octets(name.wire()) else { continue };
                if answer.push((self.question.qname(), Class::IN, ttl, Ptr::new(target))).is_err() {
                    answer.header_mut().set_tc(true);
                    break;
                }
            }
        }))
    }

    /// No such name, or nothing of that type.
    fn nothing(&self, zone: &Zone, apex: &[u8], rcode: Rcode) -> Vec<u8> {
        let mut answer = self.begin();
        answer.header_mut().set_aa(true);
        answer.header_mut().set_rcode(rcode);
        let mut authority = answer.authority();
        if let Some((owner, soa)) = soa(zone, apex) {
            // It is left out of an answer that has no room for it.
            let _ = authority.push((owner, Class::IN, Ttl::from_secs(zone.ttl()), soa));
        }
        self.end(authority.additional())
    }

    fn reply(&self, fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
        let mut answer = self.begin();
        fill(&mut answer);
        self.end(answer.additional())
    }

    fn begin(&self) -> Builder {
        let Ok(mut builder) = MessageBuilder::from_target(Target::new(Vec::with_capacity(MIN_UDP)));
        let header = builder.header_mut();
        let asked = self.message.header();
        header.set_id(asked.id());
        header.set_qr(true);
        header.set_opcode(asked.opcode());
        header.set_rd(asked.rd());
        header.set_ra(true);
        let mut question = builder.question();
        // As it was asked, letter for letter; a header and a name fit any limit.
        let _ = question.push(self.question);
        let mut answer = question.answer();
        // The limit is the first length that is too long.
        answer.as_builder_mut().set_push_limit(self.limit + 1 - self.edns.as_ref().map_or(0, |_| OPT));
        answer
    }

    fn end(&self, mut additional: AdditionalBuilder<Target>) -> Vec<u8> {
        if let Some(edns) = &self.edns {
            additional.clear_push_limit();
            // The room for it was left free.
            let _ = additional.opt(|opt| {
                opt.set_udp_payload_size(MAX_UDP as u16);
                opt.set_dnssec_ok(edns.dnssec_ok);
                if edns.version > 0 {
                    opt.set_rcode(OptRcode::BADVERS);
                }
                Ok(())
            });
        }
        additional.finish().into_target()
    }
}

/// Who answers for a name.
enum Place {
    /// We: it is in the domain.
    Domain,
    /// We: it is a single word.
    Word,
    /// We, if we know the address, or give it out.
    Reverse(Reverse),
    /// Others.
    Elsewhere,
}

impl Place {
    /// Of a lower-case name.
    fn of(wire: &[u8], zone: &Zone) -> Self {
        let mut rest = wire;
        while rest.len() > zone.suffix().len() {
            rest = parent(rest);
        }
        if rest == zone.suffix() {
            return Self::Domain;
        }
        if wire.len() > 1 && parent(wire) == [0] {
            return Self::Word;
        }
        Reverse::of(wire).map_or(Self::Elsewhere, Self::Reverse)
    }
}

/// What a type asks for, in random order: clients take the first.
fn shuffled(addresses: &Addresses, qtype: Rtype, rng: &mut impl Rng) -> Vec<IpAddr> {
    let v4: &[Ipv4Addr] = if matches!(qtype, Rtype::A | Rtype::ANY) { &addresses.v4 } else { &[] };
    let v6: &[Ipv6Addr] = if matches!(qtype, Rtype::AAAA | Rtype::ANY) { &addresses.v6 } else { &[] };
    let mut records: Vec<IpAddr> = v4.iter().copied().map(IpAddr::from).chain(v6.iter().copied().map(IpAddr::from)).collect();
    records.shuffle(rng);
    records
}

fn push_soa(answer: &mut Builder, zone: &Zone, apex: &[u8]) {
    if let Some((owner, soa)) = soa(zone, apex) {
        let _ = answer.push((owner, Class::IN, Ttl::from_secs(zone.ttl()), soa));
    }
}

/// A record and whose it is.
type OwnedSoa<'a> = (&'a Name<[u8]>, Soa<Name<Vec<u8>>>);

/// The SOA of `apex`. Its last field is how long "no" may be kept (RFC 2308, 4).
fn soa<'a>(zone: &'a Zone, apex: &'a [u8]) -> Option<OwnedSoa<'a>> {
    let below = |label: &[u8]| Name::from_octets([label, zone.suffix()].concat()).ok();
    let [refresh, retry, expire] = SOA_TIMES.map(Ttl::from_secs);
    let soa = Soa::new(below(b"\x02ns")?, below(b"\x0ahostmaster")?, Serial(1), refresh, retry, expire, Ttl::from_secs(zone.ttl()));
    Some((Name::from_slice(apex).ok()?, soa))
}

#[cfg(test)]
mod tests;
