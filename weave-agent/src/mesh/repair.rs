//! Whatever got lost is found by comparing: a digest of all that is known every [`PERIOD`](super::publisher::PERIOD), versions where
//! it differs, and records only where those do. A mesh at rest says next to nothing so, however many it has.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};

use super::link::Link;
use super::message::{Digest, Message, Record, Version, Versions};
use super::{LinkId, Mesh};
use crate::Time;
use crate::peer::PeerName;

/// The feature of those who compare; others are told everything.
pub(super) const COMPARES: &str = "compare";

impl Mesh {
    /// Has a neighbour compare what it knows with what we do.
    pub(super) fn repair(&mut self, now: Time, link: LinkId) {
        let compares = self.links.get(&link).and_then(Link::peer).is_some_and(|hello| hello.has(COMPARES));
        match compares {
            true => self.send(now, link, &Message::Digest(digest(&self.versions()))),
            false => self.send_everything(now, link),
        }
    }

    pub(super) fn compare_digest(&mut self, now: Time, link: LinkId, theirs: Digest) {
        let versions = self.versions();
        if digest(&versions) != theirs {
            self.send(now, link, &Message::Versions(Versions { versions, answer: false }));
        }
    }

    /// What the neighbour lacks goes there; for what we lack it is asked in the same way, but only once.
    pub(super) fn compare_versions(&mut self, now: Time, link: LinkId, theirs: &Versions) {
        let ours = self.versions();
        let newer = |(name, version): &(&PeerName, &Version)| theirs.versions.get(name).is_none_or(|theirs| theirs < version);
        let peers = ours.iter().filter(newer).map(|(name, _)| *name).collect();
        self.send_records(now, link, &peers);
        let lacks = |(name, theirs): (&PeerName, &Version)| self.topology.get(*name).is_none_or(|ours| version(ours) < *theirs);
        if !theirs.answer && theirs.versions.iter().any(lacks) {
            self.send(now, link, &Message::Versions(Versions { versions: ours, answer: true }));
        }
    }

    /// Of all that we would tell.
    fn versions(&self) -> BTreeMap<PeerName, Version> {
        let names = self.reachable.iter().chain([&self.config.name]);
        names.filter_map(|name| Some((*name, version(self.topology.get(*name)?)))).collect()
    }
}

fn version(record: &Record) -> Version {
    Version { version: record.version, uid: record.uid }
}

fn digest(versions: &BTreeMap<PeerName, Version>) -> Digest {
    let mut context = Context::new(&SHA256);
    for (name, Version { version, uid }) in versions {
        context.update(&name.0);
        context.update(&version.to_be_bytes());
        context.update(&uid.0.to_be_bytes());
    }
    let mut digest = Digest::default();
    digest.0.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::harness::{World, name, seconds};
    use crate::peer::PeerUid;

    /// Longer than what is compared every 30 s.
    const COMPARED: Time = seconds(35);

    #[test]
    fn a_record_that_got_lost_is_found_from_either_side() {
        for holder in [0, 1] {
            let mut world = World::line(3);
            world.run(seconds(60));
            let before = world.meshes[2].topology.clone();
            world.cut(0, 1);
            world.heal(0, 1);
            world.run(seconds(5));
            let version = world.version(1, holder);
            assert!(version > before.get(name(holder)).map(|record| record.version));
            world.meshes[2].topology = before;
            world.run(COMPARED);
            assert_eq!(world.version(2, holder), version);
        }
    }

    /// It would outbid us otherwise for as long as nobody new comes.
    #[test]
    fn a_later_record_of_ours_that_only_others_have_is_outbid() {
        let mut world = World::line(2);
        world.run(seconds(60));
        let ahead = Record { version: 1_000, ..world.meshes[0].topology.me().clone() };
        world.meshes[1].topology.merge(world.now, vec![ahead]);
        world.run(COMPARED);
        assert!(world.version(0, 0) > Some(1_000) && world.version(1, 0) == world.version(0, 0));
    }

    #[test]
    fn a_mesh_at_rest_says_next_to_nothing() {
        let mut world = World::full(12);
        world.run(seconds(60));
        let before: usize = world.sent.iter().sum();
        world.run(seconds(60));
        let said = (world.sent.iter().sum::<usize>() - before) / 12 / 60;
        assert!(said < 150, "{said} bytes a second each, of 11 heartbeats every 3 s and 8 digests every 30 s");
    }

    #[test]
    fn the_digest_is_of_names_versions_and_incarnations() {
        let of = |name: u8, version, uid| digest(&BTreeMap::from([(PeerName([name; 6]), Version { version, uid: PeerUid(uid) })]));
        assert_eq!(of(1, 2, 3), of(1, 2, 3));
        assert!([of(2, 2, 3), of(1, 3, 3), of(1, 2, 4), digest(&BTreeMap::new())].iter().all(|other| *other != of(1, 2, 3)));
    }
}
