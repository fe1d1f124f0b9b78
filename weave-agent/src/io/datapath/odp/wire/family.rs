//! Families of generic netlink, by name.

use super::attributes::{Attributes, text};

/// `linux/genetlink.h`.
const ID: u16 = 1;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// What the kernel says of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// The message type of its messages.
    pub id: u16,
    /// Its multicast groups: name and number.
    pub groups: Vec<(String, u32)>,
}

impl Family {
    /// From the attributes of `CTRL_CMD_NEWFAMILY`; `None` without an id.
    pub fn read(attributes: Attributes<'_>) -> Option<Self> {
        let mut family = Self::default();
        for (kind, value) in attributes {
            match kind {
                ID => family.id = value.first_chunk().map(|id| u16::from_ne_bytes(*id))?,
                GROUPS => family.groups = Attributes(value).filter_map(|(_, group)| read_group(group)).collect(),
                _ => {}
            }
        }
        (family.id != 0).then_some(family)
    }

    /// The number of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(group, _)| group == name).map(|(_, id)| *id)
    }
}

fn read_group(attributes: &[u8]) -> Option<(String, u32)> {
    let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    Some((text(find(GROUP_NAME)?), super::attributes::number(find(GROUP_ID)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::datapath::odp::wire::Build;

    #[test]
    fn a_family_has_an_id_and_its_groups() {
        let group = Build::default().put(GROUP_ID, &9u32.to_ne_bytes()).put_text(GROUP_NAME, "ovs_vport");
        let groups = Build::default().nest(1, group).nest(2, Build::default());
        let bytes = Build::default().put(ID, &33u16.to_ne_bytes()).nest(GROUPS, groups).bytes();
        let family = Family::read(Attributes(&bytes)).unwrap();
        assert_eq!((family.id, family.group("ovs_vport"), family.group("other")), (33, Some(9), None));
        assert_eq!(Family::read(Attributes(&[])), None);
    }
}
