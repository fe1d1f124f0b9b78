//! The module's flows, made and changed as the switch's are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weave_ebpf::flow::FlowKey;
use weave_ebpf::stats::DropReason;

use super::cache::{Cache, Meant, Of, Record, Ufid, meant};
use super::compile::{Compiled, Sight, Variant};
use super::kernel::{Kernel, Wanted};
use super::ports::Ports;
use super::wire::{Act, Fields, Flow};
use crate::addr::Mac;
use crate::datapath::{Action, FlowEntry};
use crate::io::datapath::tables::Tables;

/// Misses that are remembered, each until the switch says what it wants.
const MOST_REMEMBERED: usize = 4_096;

/// All flows of ours, and the module that has them.
pub(super) struct Flows {
    pub(super) kernel: Kernel,
    pub(super) datapath: u32,
    pub(super) cache: Cache,
    /// Of what kind the last miss of a key was.
    pub(super) last: BTreeMap<FlowKey, Variant>,
}

impl Flows {
    pub(super) fn new(kernel: Kernel, datapath: u32) -> Self {
        Self { kernel, datapath, cache: Cache::default(), last: BTreeMap::new() }
    }

    pub(super) fn remember(&mut self, key: FlowKey, variant: Variant) {
        if self.last.len() >= MOST_REMEMBERED {
            self.last.clear();
        }
        self.last.insert(key, variant);
    }

    /// Makes the flow for frames of one kind, unless it is there, or each must be looked at.
    pub(super) fn make(&mut self, sight: Sight<'_>, key: &FlowKey, action: Action, variant: Variant) -> Result<()> {
        let Some(record) = record(sight, key, action, variant) else { return Ok(()) };
        if self.cache.has(&record.of) || !self.cache.has_room(&record.of) {
            return Ok(());
        }
        self.add(record)
    }

    /// Makes a flow that is not the switch's, or makes it anew. What it drops is for this reason.
    pub(super) fn replace(
        &mut self,
        tables: &Tables,
        of: Of,
        (key, mask): (Fields, Fields),
        actions: Vec<Act>,
        reason: DropReason,
    ) -> Result<()> {
        let before: Vec<_> = self.cache.find(&of).into_iter().collect();
        self.forget(tables, &before)?;
        let counts = if matches!(of, Of::Blanket(_)) { vec![reason.index()] } else { Vec::new() };
        self.add(Record { of, action: Action::Drop(reason), key, mask, actions, counts, packets: 0, bytes: 0, used: None })
    }

    fn add(&mut self, record: Record) -> Result<()> {
        let ufid = record.ufid();
        let made = self.kernel.add_flows(self.datapath, [wanted(ufid, &record)])?;
        let refused = made.into_iter().find_map(Result::err);
        if let Some(error) = refused {
            return Err(error).with_context(|| {
                format!("the module refuses a flow: {:?} mask {:?} actions {:?}", record.key, record.mask, record.actions)
            });
        }
        self.cache.insert(ufid, record);
        Ok(())
    }

    /// What these do is worked out once more; where it differs the module is told, without a gap.
    pub(super) fn compile_again(&mut self, sight: Sight<'_>, ufids: &[Ufid]) -> Result<()> {
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for ufid in ufids {
            let Some(before) = self.cache.get_mut(ufid) else { continue };
            let Of::Flow(key, variant) = before.of else { continue };
            match record(sight, &key, before.action, variant) {
                Some(now) if now.of == before.of && (&now.key, &now.mask) == (&before.key, &before.mask) => {
                    if (&now.actions, &now.counts) != (&before.actions, &before.counts) {
                        changed.push((*ufid, now));
                    }
                }
                // Its frames come up, and are looked at.
                _ => gone.push(*ufid),
            }
        }
        self.change(sight.tables, changed)?;
        self.forget(sight.tables, &gone)
    }

    fn change(&mut self, tables: &Tables, changed: Vec<(Ufid, Record)>) -> Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        // What they dropped until now was for the reasons until now.
        if changed.iter().any(|(ufid, _)| self.cache.get_mut(ufid).is_some_and(|before| !before.counts.is_empty())) {
            self.harvest(tables)?;
        }
        let results = self.kernel.set_flows(self.datapath, changed.iter().map(|(ufid, record)| wanted(*ufid, record)))?;
        let mut missing = Vec::new();
        for ((ufid, now), result) in changed.into_iter().zip(results) {
            match (result, self.cache.get_mut(&ufid)) {
                (Ok(()), Some(before)) => (before.actions, before.counts) = (now.actions, now.counts),
                _ => missing.push(ufid),
            }
        }
        self.forget(tables, &missing)
    }

    /// Deletes flows; what they had counted is not lost.
    pub(super) fn forget(&mut self, tables: &Tables, ufids: &[Ufid]) -> Result<()> {
        if ufids.is_empty() {
            return Ok(());
        }
        let told = self.kernel.delete_flows(self.datapath, ufids)?;
        for (ufid, told) in ufids.iter().zip(told) {
            let Some(mut record) = self.cache.remove(ufid) else { continue };
            if let Some(flow) = told {
                count(tables, &mut record, &flow);
            }
            credit(tables, &record);
        }
        Ok(())
    }

    /// All are gone, and those to come are of this datapath; what they had counted when it was asked last is not lost.
    pub(super) fn start_over(&mut self, tables: &Tables, datapath: u32) {
        self.datapath = datapath;
        std::mem::take(&mut self.cache).iter().for_each(|(_, record)| credit(tables, record));
    }

    /// What the module has counted since. Flows that somebody else deleted are forgotten, but for those that no frame's
    /// coming up would bring back.
    pub(super) fn harvest(&mut self, tables: &Tables) -> io::Result<()> {
        let mut absent: BTreeSet<Ufid> = self.cache.iter().map(|(ufid, _)| *ufid).collect();
        for flow in self.kernel.flows(self.datapath, true)? {
            let Some(ufid) = flow.ufid.as_deref().and_then(|ufid| Ufid::try_from(ufid).ok()) else { continue };
            absent.remove(&ufid);
            if let Some(record) = self.cache.get_mut(&ufid) {
                count(tables, record, &flow);
            }
        }
        for ufid in absent {
            let Some(record) = self.cache.remove(&ufid) else { continue };
            credit(tables, &record);
            if matches!(record.of, Of::Heartbeats(..) | Of::Silence(_))
                && let Err(error) = self.add(Record { packets: 0, bytes: 0, used: None, ..record })
            {
                tracing::warn!("somebody deleted a flow of ours, and the module does not take it back: {error:#}");
            }
        }
        Ok(())
    }

    /// The switch's flows, with what the module counted for each.
    pub(super) fn counted(&self, entries: Vec<FlowEntry>, now: Duration) -> Vec<FlowEntry> {
        let mut by_key: BTreeMap<FlowKey, FlowEntry> = entries.into_iter().map(|entry| (entry.key, entry)).collect();
        for (_, record) in self.cache.iter() {
            let Of::Flow(key, _) = record.of else { continue };
            let Some(entry) = by_key.get_mut(&key) else { continue };
            entry.packets += record.packets;
            entry.bytes += record.bytes;
            if let Some(used) = record.used {
                let idle = now.saturating_sub(Duration::from_millis(used));
                entry.idle = Some(entry.idle.map_or(idle, |before| before.min(idle)));
            }
        }
        by_key.into_values().collect()
    }

    /// Frames that the module could tell nobody of, since the datapath was made.
    pub(super) fn lost(&self) -> io::Result<u64> {
        let all = self.kernel.datapaths()?;
        Ok(all.iter().find(|datapath| datapath.ifindex == self.datapath).map_or(0, |datapath| datapath.stats.lost))
    }

    /// Takes over what an earlier agent made, as far as it would be made so now. What is not ours stays as it is.
    pub(super) fn adopt(&mut self, tables: &mut Tables, ports: &Ports) -> Result<()> {
        let mut stale = Vec::new();
        for flow in self.kernel.flows(self.datapath, false)? {
            let Some((ufid, meant)) = meant(&flow, ports) else { continue };
            match meant.and_then(|(key, variant, action)| self.adopt_one(tables, ports, &ufid, &flow, (key, variant, action)).ok()) {
                Some(()) => {}
                None => stale.push(ufid),
            }
        }
        self.kernel.delete_flows(self.datapath, &stale)?;
        let all: Vec<_> = self.cache.iter().map(|(ufid, _)| *ufid).collect();
        self.compile_again(Sight { tables, ports }, &all)
    }

    fn adopt_one(&mut self, tables: &mut Tables, ports: &Ports, ufid: &Ufid, flow: &Flow, (key, variant, action): Meant) -> Result<()> {
        let Some(mut now) = record(Sight { tables, ports }, &key, action, variant) else { bail!("not what would be made now") };
        if now.ufid() != *ufid {
            bail!("made in another way");
        }
        if tables.action(&key).is_none() {
            tables.apply(&crate::datapath::Op::Install(key, action))?;
        }
        (now.packets, now.bytes, now.used) = (flow.packets, flow.bytes, flow.used);
        // As it is in the module: what differs is said when all are known.
        now.actions.clone_from(&flow.actions);
        self.cache.insert(*ufid, now);
        Ok(())
    }
}

/// What would be made for such frames; `None` if each must be looked at.
fn record(sight: Sight<'_>, key: &FlowKey, action: Action, variant: Variant) -> Option<Record> {
    let Compiled { actions, counts, by_ttl } = sight.compile(key, action, variant, true)?;
    let ttl = if by_ttl { Some(variant.ttl.unwrap_or(weave_ebpf::vxlan::TTL)) } else { None };
    let variant = Variant { ttl, ..variant };
    let (fields, mask) = sight.pattern(key, variant)?;
    Some(Record { of: Of::Flow(*key, variant), action, key: fields, mask, actions, counts, packets: 0, bytes: 0, used: None })
}

fn wanted(ufid: Ufid, record: &Record) -> Wanted<'_> {
    Wanted { ufid, key: &record.key, mask: &record.mask, actions: &record.actions }
}

/// What is new since the last time is counted for whatever its frames count for.
fn count(tables: &Tables, record: &mut Record, flow: &Flow) {
    let more = flow.packets.saturating_sub(record.packets);
    record.counts.iter().for_each(|index| tables.add(*index, more));
    (record.packets, record.bytes, record.used) = (flow.packets, flow.bytes, flow.used);
}

/// What a flow of the module's has counted is its switch's flow's.
fn credit(tables: &Tables, record: &Record) {
    if let Of::Flow(key, _) = record.of {
        tables.credit(&key, record.packets, record.bytes, record.used.map_or(0, |used| used.saturating_mul(1_000_000)));
    }
}

/// All that comes in by a port.
pub(super) fn all_of_port(number: u32) -> (Fields, Fields) {
    let ethernet = Some([Mac([0; 6]); 2]);
    let fields = |in_port| Fields { in_port: Some(in_port), ethernet, ..Fields::default() };
    (fields(number), fields(u32::MAX))
}
