//! What a packet costs by the number of flows. `PROGRAMS_FLOWS=1000,1000000` says how many; `cargo xtask bench` does.

use vm_tests::figure;
use weave_ebpf::flow::{Flow, FlowKey, Mac, action};

use crate::cost::{fill, frame, measure_again, measure_each};
use crate::kernel::Kernel;
use crate::place::{one_cpu, private};
use crate::trampoline;

/// What a program says of a packet that goes on to another device.
const REDIRECTED: i32 = 7;
/// No common divisor with any number of flows that is a power of ten: neighbours in time are none in the table.
const STRIDE: u32 = 7_919;

#[test]
fn a_packet_is_found_among_however_many_flows() {
    private(|pins| {
        one_cpu();
        let sizes: Vec<u32> =
            std::env::var("PROGRAMS_FLOWS").unwrap_or_else(|_| "1000".to_owned()).split(',').map(|size| size.parse().unwrap()).collect();
        let mut kernel = Kernel::with_room_for(pins, sizes.iter().max().unwrap() + 16);
        let mut maps = kernel.maps();
        fill(&mut maps);
        let (nothing, mut there) = (trampoline::nothing(pins), 0);
        for size in sizes {
            (there..size)
                .for_each(|number| maps.set_flow(&key(number), &Flow { epoch: 1, action: action::PORT, target: 9, ..Flow::default() }));
            there = size;
            let program = kernel.program("from_port");
            let in_turn = |run: u32| packet(run * STRIDE % size);
            let (one, all) = (measure_again(program, &packet(0)), measure_each(program, REDIRECTED, in_turn));
            // As with every packet that is run once: what counting takes is not the program's.
            let all = all.saturating_sub(measure_each(&nothing, 0, in_turn));
            figure::say(&format!("from_port among {size} flows, one pair"), one as f64, "ns");
            figure::say(&format!("from_port among {size} flows, pairs in turn"), all as f64, "ns");
        }
    });
}

fn macs(number: u32) -> [Mac; 2] {
    let [a, b, c, d] = number.to_be_bytes();
    [[2, 7, a, b, c, d], [2, 8, a, b, c, d]]
}

fn key(number: u32) -> FlowKey {
    let [src, dst] = macs(number);
    // A test run without a context comes in by the loopback interface, 1.
    FlowKey { ingress: 1, src, dst, ..FlowKey::default() }
}

fn packet(number: u32) -> Vec<u8> {
    let ([src, dst], mut packet) = (macs(number), frame());
    packet[..6].copy_from_slice(&dst);
    packet[6..12].copy_from_slice(&src);
    packet
}
