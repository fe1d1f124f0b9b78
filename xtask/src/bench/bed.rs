//! The test bed: two bare hosts with a bridge and a kernel vxlan, and two hosts with agents, each pair on one cable.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::{Lab, LabConfig, Node, Place, Underlay, wait_for};

use super::rivals::{BRIDGED, addressed, batch, bridge};

/// The two ends of a cable that joins two containers and nothing else.
const CABLED: [&str; 2] = ["10.35.0.1", "10.35.0.2"];

/// Who carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// No overlay: the cable itself.
    Bare,
    /// A bridge and a kernel vxlan device on each host.
    Bridge,
    /// weave-agent as it was at another revision.
    Base,
    /// weave-agent.
    Ours,
}

/// Where the traffic goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// From a container on one host to one on another.
    BetweenHosts,
    /// From a container to another on the same host.
    OnOneHost,
}

/// Two places and the address of the second.
pub(crate) struct Path<'a> {
    pub(crate) from: Node<'a>,
    pub(crate) to: Node<'a>,
    pub(crate) address: String,
}

/// An agent to compare with.
pub(crate) struct Base {
    pub(crate) revision: String,
    pub(crate) agent: PathBuf,
}

impl Base {
    /// As tables call it.
    pub(crate) fn title(&self) -> String {
        format!("weave-agent at {}", self.revision)
    }
}

/// All labs; they go when this is dropped.
pub(crate) struct Bed {
    pub(crate) bare: Lab,
    base: Option<(String, Lab)>,
    pub(crate) ours: Lab,
}

impl Bed {
    pub(crate) fn make(base: Option<&Base>) -> Result<Self> {
        let config = |name| LabConfig { containers: 2, underlay: Underlay::Direct, ..LabConfig::named(name) };
        let bare = Lab::scenario(config("bare").without_agents())?;
        bridge(&bare)?;
        cable(&bare)?;
        let ours = Lab::scenario(config("bench"))?;
        let old = |base: &Base| -> Result<_> {
            let config = LabConfig { agent: Some(base.agent.clone()), ..config("base") };
            Ok((base.title(), Lab::scenario(config)?))
        };
        let bed = Self { bare, base: base.map(old).transpose()?, ours };
        for course in [Course::BetweenHosts, Course::OnOneHost] {
            bed.contenders(course).into_iter().try_for_each(|contender| bed.path(course, contender)?.works())?;
        }
        Ok(bed)
    }

    /// Who takes part, the project's own agent last.
    pub(crate) fn contenders(&self, course: Course) -> Vec<Contender> {
        let there = |contender: &Contender| match contender {
            Contender::Bridge => course == Course::BetweenHosts,
            Contender::Base => self.base.is_some(),
            Contender::Bare | Contender::Ours => true,
        };
        [Contender::Bare, Contender::Bridge, Contender::Base, Contender::Ours].into_iter().filter(there).collect()
    }

    pub(crate) fn title(&self, course: Course, contender: Contender) -> &str {
        match (contender, course) {
            (Contender::Bare, Course::BetweenHosts) => "host to host",
            (Contender::Bare, Course::OnOneHost) => "bare veth pair",
            (Contender::Bridge, _) => "bridge + kernel vxlan",
            (Contender::Base, _) => self.base.as_ref().map_or("", |(title, _)| title),
            (Contender::Ours, _) => "weave-agent",
        }
    }

    /// Where this contender's traffic runs.
    pub(crate) fn path(&self, course: Course, contender: Contender) -> Result<Path<'_>> {
        use Place::{Container, Host};
        let overlay = |lab: &Lab, place: Place| lab.overlay_address(&place.to_string()).map(|address| address.to_string());
        let far = match course {
            Course::BetweenHosts => Container(2, 1),
            Course::OnOneHost => Container(1, 2),
        };
        let (lab, places, address) = match (contender, course) {
            (Contender::Bare, Course::BetweenHosts) => (&self.bare, [Host(1), Host(2)], self.bare.host(2)?.address().to_string()),
            (Contender::Bare, Course::OnOneHost) => (&self.bare, [Container(1, 2), Container(2, 2)], CABLED[1].to_owned()),
            (Contender::Bridge, _) => (&self.bare, [Container(1, 1), Container(2, 1)], BRIDGED[1].to_owned()),
            (Contender::Base, _) => {
                let (_, lab) = self.base.as_ref().context("there is no other revision to compare with")?;
                (lab, [Container(1, 1), far], overlay(lab, far)?)
            }
            (Contender::Ours, _) => (&self.ours, [Container(1, 1), far], overlay(&self.ours, far)?),
        };
        Ok(Path { from: lab.node(places[0])?, to: lab.node(places[1])?, address })
    }

    pub(crate) fn labs(&self) -> impl Iterator<Item = &Lab> {
        [&self.bare, &self.ours].into_iter().chain(self.base.as_ref().map(|(_, lab)| lab))
    }
}

impl Path<'_> {
    /// Waits until the two ends reach each other.
    pub(crate) fn works(&self) -> Result<()> {
        let address = self.address.parse::<IpAddr>()?;
        wait_for("the two ends to reach each other", Duration::from_secs(20), || self.from.reaches(address)).map(drop)
    }
}

/// Joins the second containers of both hosts as if they were on one.
fn cable(lab: &Lab) -> Result<()> {
    let [near, far] = [lab.node(Place::Container(1, 2))?, lab.node(Place::Container(2, 2))?];
    batch(&near, &format!("link add ethwe type veth peer name ethwe netns {}\n", far.netns()))?;
    for (place, address) in [near, far].iter().zip(CABLED) {
        addressed(place, address)?;
    }
    Ok(())
}
