//! Lists of attributes: `struct nlattr` and what it holds, padded to four bytes.

use neli::genl::{AttrTypeBuilder, Nlattr, NlattrBuilder};
use neli::types::{Buffer, GenlBuffer};

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which the kernel sets on some.
const KIND: u16 = 0x3fff;
const HEADER: usize = 4;
/// An attribute's length is 16 bits, its header included.
const LONGEST: usize = u16::MAX as usize - HEADER;

/// The attributes of a list, one after another; a malformed one ends it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = self.0.get(HEADER..len)?;
        // The last one need not be padded.
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    }
}

/// A number in the machine's order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A number in network order.
pub(super) fn be16(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Text up to its zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// A list in the making. One attribute that is too long spoils it all: see [`Build::finish`].
#[derive(Debug)]
pub struct Build {
    list: GenlBuffer<u16, Buffer>,
    spoilt: bool,
}

impl Default for Build {
    fn default() -> Self {
        Self { list: GenlBuffer::new(), spoilt: false }
    }
}

impl Build {
    /// Appends one attribute.
    #[must_use]
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.append(kind, Buffer::from(value.to_vec()), value.len());
        self
    }

    /// Appends one, if there is anything to say.
    #[must_use]
    pub fn put_some<T: AsRef<[u8]>>(self, kind: u16, value: Option<T>) -> Self {
        match value {
            Some(value) => self.put(kind, value.as_ref()),
            None => self,
        }
    }

    /// Appends text with its zero.
    #[must_use]
    pub fn put_text(self, kind: u16, text: &str) -> Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Appends a list within the list.
    #[must_use]
    pub fn nest(mut self, kind: u16, inner: Self) -> Self {
        use neli::Size;
        self.spoilt |= inner.spoilt;
        let len = inner.list.padded_size();
        self.append(kind, inner.list, len);
        self
    }

    fn append<P: neli::Size + neli::ToBytes>(&mut self, kind: u16, value: P, len: usize) {
        match (len <= LONGEST).then(|| attribute(kind, value)).flatten() {
            Some(attribute) => self.list.push(attribute),
            None => self.spoilt = true,
        }
    }

    /// The list; `None` if one of its attributes was too long for one.
    pub fn finish(self) -> Option<GenlBuffer<u16, Buffer>> {
        (!self.spoilt).then_some(self.list)
    }

    /// As bytes.
    #[cfg(test)]
    pub(super) fn bytes(self) -> Vec<u8> {
        use neli::ToBytes;
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.finish().unwrap().to_bytes(&mut bytes).unwrap();
        bytes.into_inner()
    }
}

fn attribute<P: neli::Size + neli::ToBytes>(kind: u16, value: P) -> Option<Nlattr<u16, Buffer>> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build().ok()?;
    NlattrBuilder::default().nla_type(kind).nla_payload(value).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_read_and_padding_is_not() {
        let inner = Build::default().put(7, &[1, 2, 3, 4, 5]).put_text(8, "ab");
        let bytes = Build::default().put(1, &[9]).nest(2, inner).put_some::<[u8; 1]>(3, None).bytes();
        assert_eq!(bytes.len(), 8 + 4 + 12 + 8);
        let outer: Vec<_> = Attributes(&bytes).collect();
        assert_eq!(outer[0], (1, &[9][..]));
        let inner: Vec<_> = Attributes(outer[1].1).collect();
        assert_eq!((inner[0], text(inner[1].1).as_str()), ((7, &[1, 2, 3, 4, 5][..]), "ab"));
    }

    #[test]
    fn a_length_that_lies_ends_the_list() {
        let good = Build::default().put(1, &[1, 2, 3, 4]).bytes();
        for len in [0u16, 3, 9, 0xffff] {
            let mut bytes = [good.clone(), good.clone()].concat();
            bytes[8..10].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(Attributes(&bytes).count(), 1, "{len}");
        }
    }

    #[test]
    fn what_is_too_long_for_an_attribute_is_no_list() {
        assert!(Build::default().put(1, &vec![0; LONGEST]).finish().is_some());
        assert!(Build::default().put(1, &vec![0; LONGEST + 1]).finish().is_none());
        let inner = Build::default().put(1, &vec![0; LONGEST + 1]);
        assert!(Build::default().nest(1, inner).finish().is_none());
    }
}
