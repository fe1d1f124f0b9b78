//! Answers of the kernel, mutated: whatever comes of them, nobody panics.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::attributes::Build;
use super::object::{datapath, flow, packet, vport};
use super::{Answers, Datapath, Family, Flow, Kind, Packet, Request, Vport, action, fields, put_actions};

const CASES: u32 = 1_000_000;

/// One answer of each kind, as the kernel would lay it out.
fn answers() -> Vec<Vec<u8>> {
    let message = |command, attributes| {
        let request = Request { family: 30, command, kind: Kind::Quietly, datapath: Some(5), attributes };
        request.encode(1).unwrap()
    };
    let flow = || {
        Build::default()
            .nest(flow::KEY, fields::tests::full().build())
            .nest(flow::MASK, fields::tests::full().build())
            .nest(flow::ACTIONS, put_actions(&action::tests::all()))
            .put(flow::STATS, &[1; 16])
            .put(flow::USED, &[0; 8])
            .put(flow::UFID, &[7; 16])
    };
    let name = |kind| Build::default().put_text(kind, "weave-odp");
    let options = Build::default().put(vport::PORT, &6784u16.to_ne_bytes());
    let port = name(vport::NAME).put(vport::NUMBER, &[1, 0, 0, 0]).put(vport::KIND, &[4, 0, 0, 0]).nest(vport::OPTIONS, options);
    let upcall = Build::default().put(packet::PACKET, &[2; 90]).nest(packet::KEY, fields::tests::full().build());
    let group = Build::default().put_text(1, "ovs_vport").put(2, &[9, 0, 0, 0]);
    vec![
        message(1, name(datapath::NAME).put(datapath::STATS, &[1; 32]).put(datapath::FEATURES, &[3, 0, 0, 0])),
        message(1, port.put(vport::UPCALL_PIDS, &[1; 12]).put(vport::STATS, &[1; 64])),
        [message(1, flow()), message(1, flow())].concat(),
        message(packet::ACTION, upcall.put(packet::COOKIE, &[1; 8])),
        message(1, Build::default().put(1, &[30, 0]).nest(7, Build::default().nest(1, group))),
    ]
}

/// Some bytes changed, some places given a number that is likely to hurt, some cut off or doubled.
fn mutate(answer: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..answer.len());
        match rng.next_u32() % 8 {
            0 => answer.truncate(at.max(1)),
            1 => answer.splice(at..at, [0, 4, 0xff]).for_each(drop),
            2 => drop(answer.remove(at)),
            3 | 4 => {
                let aligned = at & !3;
                let word = [0, 1, 3, 4, 5, 8, 0x7fff, 0xfffc, 0xffff][rng.random_range(0..9)];
                answer.iter_mut().skip(aligned).zip(u16::to_ne_bytes(word)).for_each(|(byte, new)| *byte = new);
            }
            5 => answer[at] ^= 1 << (rng.next_u32() % 8),
            _ => answer[at] = rng.next_u32() as u8,
        }
        if answer.is_empty() {
            answer.push(0);
        }
    }
}

/// Everything that could be done with an answer. How much was understood: the compiler shall not leave it out.
fn read(bytes: &[u8]) -> usize {
    let mut understood = 0;
    for answer in Answers(bytes) {
        understood += usize::from(answer.plain().and_then(Family::read).is_some());
        let Some((command, ifindex, attributes)) = answer.of_datapath() else { continue };
        understood += usize::from(Datapath::read(ifindex, attributes).is_some());
        understood += usize::from(Vport::read(ifindex, attributes).is_some());
        understood += usize::from(Packet::read(command, attributes).is_some());
        let flow = Flow::read(attributes);
        understood += flow.actions.len() + flow.key.others.len();
    }
    understood
}

#[test]
fn a_million_mutated_answers_are_read_without_a_panic() {
    let (answers, mut rng) = (answers(), StdRng::seed_from_u64(5));
    assert!(answers.iter().all(|answer| read(answer) > 0));
    let mut understood = 0;
    for case in 0..CASES {
        let mut answer = answers[case as usize % answers.len()].clone();
        mutate(&mut answer, &mut rng);
        understood += read(&answer);
    }
    // Most are damaged a little only: a reader that gave up at once would show here.
    assert!(understood > CASES as usize, "{understood}");
}
