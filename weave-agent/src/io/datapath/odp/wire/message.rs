//! Requests out, answers in: `struct nlmsghdr`, `struct genlmsghdr`, `struct ovs_header`, attributes.

use std::io::Cursor;

use neli::consts::nl::NlmF;
use neli::genl::{GenlmsghdrBuilder, NoUserHeader};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::{FromBytes, Size, ToBytes, TypeSize};

use super::attributes::{Attributes, Build};

/// `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Numbers below are netlink's own.
const FIRST_FAMILY: u16 = 16;
const NETLINK: usize = 16;
const GENERIC: usize = 4;
const OVS: usize = 4;

/// An attribute, or all of them, are too long for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too long for a netlink message")]
pub struct Unencodable;

/// `struct ovs_header`.
#[derive(Clone, Debug, PartialEq, Eq, Size, ToBytes, FromBytes)]
struct OvsHeader {
    datapath: u32,
}

impl TypeSize for OvsHeader {
    fn type_size() -> usize {
        OVS
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Do it, and say whether; with `echo`, say what it is then.
    Do {
        /// Its own answer besides.
        echo: bool,
    },
    /// The same, which must be new.
    Create,
    /// Tell of all.
    Dump,
    /// Do it, and say nothing unless it fails.
    Quietly,
}

impl Kind {
    fn flags(self) -> NlmF {
        match self {
            Self::Do { echo: false } => NlmF::REQUEST | NlmF::ACK,
            Self::Do { echo: true } => NlmF::REQUEST | NlmF::ACK | NlmF::ECHO,
            Self::Create => NlmF::REQUEST | NlmF::ACK | NlmF::ECHO | NlmF::CREATE | NlmF::EXCL,
            Self::Dump => NlmF::REQUEST | NlmF::DUMP,
            Self::Quietly => NlmF::REQUEST,
        }
    }
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// The family's number.
    pub family: u16,
    /// Of the family.
    pub command: u8,
    /// What kind it is.
    pub kind: Kind,
    /// The datapath it is for; `None`: the family's messages name none.
    pub datapath: Option<u32>,
    /// All else.
    pub attributes: Build,
}

impl Request {
    /// As bytes. The families' versions are 1, but 2 of `ovs_datapath`, which takes 1 all the same.
    ///
    /// # Errors
    /// When an attribute is too long to be one.
    pub fn encode(self, sequence: u32) -> Result<Vec<u8>, Unencodable> {
        let attributes = self.attributes.finish().ok_or(Unencodable)?;
        let (family, flags) = (self.family, self.kind.flags());
        match self.datapath {
            Some(datapath) => {
                let builder = GenlmsghdrBuilder::default().cmd(self.command).version(1).header(OvsHeader { datapath });
                let generic = builder.attrs(attributes).build_with_header().map_err(|_| Unencodable)?;
                encode(family, flags, sequence, generic)
            }
            None => {
                let builder = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default().cmd(self.command).version(1);
                encode(family, flags, sequence, builder.attrs(attributes).build().map_err(|_| Unencodable)?)
            }
        }
    }
}

fn encode<P: Size + ToBytes>(family: u16, flags: NlmF, sequence: u32, generic: P) -> Result<Vec<u8>, Unencodable> {
    let builder = NlmsghdrBuilder::default().nl_type(family).nl_flags(flags).nl_seq(sequence).nl_payload(NlPayload::Payload(generic));
    let mut bytes = Cursor::new(Vec::new());
    builder.build().map_err(|_| Unencodable)?.to_bytes(&mut bytes).map_err(|_| Unencodable)?;
    Ok(bytes.into_inner())
}

/// One of the messages that came.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Of the request it answers.
    pub sequence: u32,
    /// What it says.
    pub said: Said<'a>,
}

/// What a message says.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// It was done (0), or this error.
    Result(i32),
    /// All has been told.
    Done,
    /// Something of a family.
    Message {
        /// The family's number.
        family: u16,
        /// Of the family.
        command: u8,
        /// After the generic header.
        body: &'a [u8],
    },
}

impl<'a> Answer<'a> {
    /// The datapath that a message of an OVS family is of, and its attributes.
    pub fn of_datapath(&self) -> Option<(u8, u32, Attributes<'a>)> {
        match self.said {
            Said::Message { command, body, .. } => {
                let (datapath, attributes) = body.split_first_chunk::<OVS>()?;
                Some((command, u32::from_ne_bytes(*datapath), Attributes(attributes)))
            }
            _ => None,
        }
    }

    /// The attributes of a message of a family without a header of its own.
    pub fn plain(&self) -> Option<Attributes<'a>> {
        match self.said {
            Said::Message { body, .. } => Some(Attributes(body)),
            _ => None,
        }
    }
}

/// The messages of a datagram; a malformed one ends it. Written by hand: neli's reader of headers believes their lengths.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a>(pub &'a [u8]);

impl<'a> Iterator for Answers<'a> {
    type Item = Answer<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let header: &[u8; NETLINK] = self.0.first_chunk()?;
            let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *header;
            let len = u32::from_ne_bytes([a, b, c, d]) as usize;
            let payload = self.0.get(NETLINK..len)?;
            self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
            let sequence = u32::from_ne_bytes([g, h, i, j]);
            if let Some(said) = said(u16::from_ne_bytes([e, f]), payload) {
                return Some(Answer { sequence, said });
            }
        }
    }
}

fn said(kind: u16, payload: &[u8]) -> Option<Said<'_>> {
    match kind {
        ERROR => payload.first_chunk().map(|error| Said::Result(i32::from_ne_bytes(*error).saturating_neg())),
        // A list that ended before its end: the datapath is gone, say.
        DONE => match payload.first_chunk().map(|error| i32::from_ne_bytes(*error)) {
            Some(error) if error < 0 => Some(Said::Result(error.saturating_neg())),
            _ => Some(Said::Done),
        },
        family if family >= FIRST_FAMILY => {
            let (&[command, ..], body) = payload.split_first_chunk::<GENERIC>()?;
            Some(Said::Message { family, command, body })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(datapath: Option<u32>, kind: Kind) -> Vec<u8> {
        Request { family: 30, command: 3, kind, datapath, attributes: Build::default().put(7, &[1, 2]) }.encode(9).unwrap()
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_wants_it() {
        let bytes = request(Some(5), Kind::Dump);
        let expected: [&[u8]; 8] = [
            &32u32.to_ne_bytes(),
            &30u16.to_ne_bytes(),
            &0x301u16.to_ne_bytes(),
            &9u32.to_ne_bytes(),
            &[0; 4],
            &[3, 1, 0, 0],
            &5u32.to_ne_bytes(),
            &[6, 0, 7, 0, 1, 2, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(request(None, Kind::Quietly).len(), 28);
    }

    #[test]
    fn answers_are_read_one_after_another() {
        let mut error = request(None, Kind::Quietly);
        error[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        error[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        let mut done = request(None, Kind::Quietly);
        done[4..6].copy_from_slice(&DONE.to_ne_bytes());
        let bytes = [request(Some(5), Kind::Dump), error, done].concat();
        let answers: Vec<_> = Answers(&bytes).collect();
        let [message, refused, end] = answers.as_slice() else { panic!("{answers:?}") };
        let (command, datapath, mut attributes) = message.of_datapath().unwrap();
        assert_eq!((command, datapath, attributes.next(), message.sequence), (3, 5, Some((7, &[1, 2][..])), 9));
        assert!(matches!(refused.said, Said::Result(17)) && matches!(end.said, Said::Done));
    }

    #[test]
    fn a_list_that_the_kernel_broke_off_is_no_list() {
        let mut bytes = request(None, Kind::Quietly);
        bytes[4..6].copy_from_slice(&DONE.to_ne_bytes());
        for (error, expected) in [(0i32, None), (-19, Some(19)), (32, None)] {
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            let said = Answers(&bytes).next().map(|answer| answer.said);
            let told = said.and_then(|said| if let Said::Result(error) = said { Some(error) } else { None });
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_length_that_lies_ends_the_datagram() {
        for len in [0u32, 15, 29, u32::MAX] {
            let mut bytes = request(None, Kind::Quietly);
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(Answers(&bytes).count(), 0, "{len}");
        }
    }
}
