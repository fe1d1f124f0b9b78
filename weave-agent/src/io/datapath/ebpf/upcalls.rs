//! The perf rings: samples in, [`Upcall`]s out.

use anyhow::{Context, Result};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{MapData, PerfEventArray};
use aya::util::online_cpus;
use bytes::Bytes;
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use weave_ebpf::flow::{UpcallHeader, upcall};
use zerocopy::FromBytes;

use crate::datapath::{Frame, Upcall};
use crate::io::datapath::Upcalls;

/// Bytes of all rings, and of one CPU's at least and at most: eight of the largest frames, and ten thousand small ones.
const RINGS: usize = 16 << 20;
const RING: (usize, usize) = (512 << 10, 2 << 20);
/// Upcalls of one batch: what else the agent has to do waits no longer than for so many.
const BATCH: usize = 256;
/// Batches that may wait for the router; when it is slower than that, the rings fill and the kernel counts what is lost.
const BATCHES: usize = 64;

/// Opens one ring per CPU and a task for each. Must be called inside a tokio runtime.
pub(super) fn open(mut map: PerfEventArray<MapData>) -> Result<Upcalls> {
    let (sender, upcalls) = Upcalls::channel(BATCHES);
    let cpus = online_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    let pages = pages(cpus.len())?;
    for cpu in cpus {
        let ring = map.open(cpu, Some(pages)).with_context(|| format!("cannot open the upcall ring of CPU {cpu}"))?;
        // SAFETY: the buffer owns its descriptor, never changes it and closes it only when dropped.
        let ring = unsafe { AsyncFd::register(ring)? };
        tokio::spawn(drain(ring, sender.clone()));
    }
    Ok(upcalls)
}

/// Pages of one CPU's ring, a power of two (`perf_event_open(2)`).
fn pages(cpus: usize) -> Result<usize> {
    let page =
        sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok()).context("the system does not tell its page size")?;
    let bytes = (RINGS / cpus.max(1)).clamp(RING.0, RING.1);
    Ok(1 << (bytes / page).max(1).ilog2())
}

async fn drain(mut ring: AsyncFd<PerfEventArrayBuffer<MapData>>, batches: mpsc::Sender<Vec<Upcall>>) {
    loop {
        let mut all = match ring.readable_mut().await {
            Ok(mut guard) => {
                // Before reading: an event that comes meanwhile makes it ready again.
                guard.clear_ready();
                read_all(guard.get_inner_mut()).into_iter()
            }
            Err(error) => return tracing::error!(%error, "an upcall ring failed"),
        };
        while all.len() > 0 {
            if batches.send(all.by_ref().take(BATCH).collect()).await.is_err() {
                return;
            }
        }
    }
}

fn read_all(ring: &mut PerfEventArrayBuffer<MapData>) -> Vec<Upcall> {
    let mut all = Vec::new();
    ring.for_each(|event| match event {
        PerfEvent::Sample { head, tail: [] } => all.extend(decode(head)),
        PerfEvent::Sample { head, tail } => all.extend(decode(&[head, tail].concat())),
        // The program counted each of them when it found no room.
        PerfEvent::Lost { count } => tracing::debug!(count, "the upcall ring was full"),
    });
    all
}

/// One sample: header, packet, padding. `None` if it is not what our programs write.
fn decode(sample: &[u8]) -> Option<Upcall> {
    let (header, packet) = UpcallHeader::read_from_prefix(sample).ok()?;
    let inner = packet.get(header.offset as usize..header.len as usize)?;
    let bytes = if header.vlan == 0 { Bytes::copy_from_slice(inner) } else { tagged(inner, header.vlan)? };
    match header.kind {
        upcall::MISS | upcall::TOO_BIG => {
            let frame = Frame { bytes, gso_size: header.gso_size as u16 };
            let key = header.key;
            Some(if header.kind == upcall::MISS { Upcall::Miss { key, frame } } else { Upcall::TooBig { key, frame } })
        }
        upcall::HEARTBEAT => Some(Upcall::Heartbeat { key: header.key, frame: bytes }),
        _ => None,
    }
}

/// Puts the VLAN tag that the kernel kept beside the packet back into it.
fn tagged(frame: &[u8], vlan: u32) -> Option<Bytes> {
    let (macs, rest) = frame.split_at_checked(12)?;
    Some([macs, &vlan.to_be_bytes(), rest].concat().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weave_ebpf::flow::FlowKey;
    use zerocopy::IntoBytes;

    use super::*;

    fn sample(header: UpcallHeader, packet: &[u8]) -> Vec<u8> {
        [header.as_bytes(), packet, &[0; 5]].concat()
    }

    #[test]
    fn rings_are_powers_of_two_and_no_host_gives_all_its_memory() {
        let sizes = [1, 2, 8, 12, 64, 512].map(|cpus| pages(cpus).unwrap());
        assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.iter().all(|pages| pages.is_power_of_two()), "{sizes:?}");
    }

    #[test]
    fn the_frame_begins_after_the_outer_headers_and_ends_before_the_padding() {
        let header = UpcallHeader { kind: upcall::MISS, len: 6, offset: 2, ..UpcallHeader::default() };
        let frame = Frame { bytes: Bytes::from_static(&[3, 4, 5, 6]), gso_size: 0 };
        assert_eq!(decode(&sample(header, &[1, 2, 3, 4, 5, 6])), Some(Upcall::Miss { key: FlowKey::default(), frame }));
    }

    #[test]
    fn a_vlan_tag_beside_the_packet_goes_back_into_it() {
        let header = UpcallHeader { kind: upcall::MISS, len: 14, vlan: 0x8100_0007, ..UpcallHeader::default() };
        let Some(Upcall::Miss { frame, .. }) = decode(&sample(header, &[9; 14])) else { panic!() };
        assert_eq!(frame.bytes[10..], [9, 9, 0x81, 0, 0, 7, 9, 9]);
    }

    proptest! {
        #[test]
        fn any_sample_is_an_upcall_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
