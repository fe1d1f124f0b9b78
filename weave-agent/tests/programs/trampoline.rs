//! A program of the test's own that puts a tunnel key beside a packet and goes on with `from_vxlan`.
//!
//! `BPF_PROG_TEST_RUN` has no way to give a packet the metadata that a vxlan device leaves with it. This program takes
//! it from the context's `cb`: VNI, outer source (host order), outer TTL.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use aya::programs::SchedClassifier;
use weave_ebpf::vxlan;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE: i32 = 2;
const PROGRAM_LOAD: i32 = 5;
const PIN: i32 = 6;
const PROGRAM_ARRAY: u32 = 3;
const SCHED_CLS: u32 = 3;
const STORE_BYTES: u32 = 9;
const TAIL_CALL: u32 = 12;
const SET_TUNNEL_KEY: u32 = 21;
const REDIRECT: u32 = 23;
const HASH_RECALC: u32 = 34;
const ADJUST_ROOM: u32 = 50;
const REDIRECT_PEER: u32 = 155;
/// `BPF_ADJ_ROOM_MAC`, and its flags as the programs say them (`linux/bpf.h`).
const AT_MAC: u32 = 1;
const FIXED_GSO: u64 = 1;
const ENCAPSULATE: u64 = FIXED_GSO | 1 << 1 | 1 << 4 | 1 << 6 | 14 << 56;
const DECAPSULATE: u64 = FIXED_GSO | 1 << 5;
/// `struct bpf_tunnel_key`: id, remote address, tos, ttl, ext, label, local address.
const KEY_SIZE: u32 = 44;
const KEY_TTL: i16 = 21;
const KEY_LOCAL: i16 = 28;
/// Where it stands on the stack.
const KEY: i16 = -48;
/// `cb` in `struct __sk_buff`.
const CB: i16 = 48;

/// Loads the trampoline into `target`.
pub(crate) fn load(target: &SchedClassifier, pins: &Path) -> SchedClassifier {
    let array = program_array(target).unwrap();
    let program = load_program(&instructions(array.as_raw_fd())).unwrap();
    let pin = pins.join("trampoline");
    pin_program(&program, &pin).unwrap();
    // The map closes here, and with its last descriptor it would forget the program: the array is kept by a pin.
    pin_program(&array, &pins.join("trampoline-array")).unwrap();
    SchedClassifier::from_pin(pin).unwrap()
}

/// Loads a program that does nothing: what every run costs.
pub(crate) fn nothing(pins: &Path) -> SchedClassifier {
    pinned(pins, "nothing", &[move_constant(0, 0), EXIT])
}

/// Loads a program that does to any frame what only the kernel's helpers can do when it goes to a peer: its hash, room for headers, headers (of
/// zeros), a redirect.
pub(crate) fn helpers_that_encapsulate(pins: &Path) -> SchedClassifier {
    let (r1, r2, r6) = (1, 2, 6);
    let code = [
        [move_register(r6, r1), call(HASH_RECALC)].to_vec(),
        adjust_room(vxlan::OUTER as i32, ENCAPSULATE),
        store(&[0; 8]),
        [move_constant(r1, 1), move_constant(r2, 0), call(REDIRECT), EXIT].to_vec(),
    ];
    pinned(pins, "encapsulate", &code.concat())
}

/// The same for a packet whose frame is for a local port.
pub(crate) fn helpers_that_decapsulate(pins: &Path) -> SchedClassifier {
    let (r1, r2, r6) = (1, 2, 6);
    let code = [
        [move_register(r6, r1)].to_vec(),
        adjust_room(-(vxlan::OUTER as i32), DECAPSULATE),
        store(&[0; 2]),
        [move_constant(r1, 1), move_constant(r2, 0), call(REDIRECT_PEER), EXIT].to_vec(),
    ];
    pinned(pins, "decapsulate", &code.concat())
}

/// `bpf_skb_adjust_room` of the context in register 6, at the link layer's end.
fn adjust_room(difference: i32, flags: u64) -> Vec<[u8; 8]> {
    let (r1, r2, r3, r4, r6) = (1, 2, 3, 4, 6);
    let (low, high) = (flags as u32, (flags >> 32) as u32);
    let flags = [instruction(0x18, r4, 0, 0, low), instruction(0, 0, 0, 0, high)];
    let arguments = [move_register(r1, r6), move_constant(r2, difference as u32), move_constant(r3, AT_MAC)];
    [&arguments[..], &flags, &[call(ADJUST_ROOM)]].concat()
}

/// `bpf_skb_store_bytes` of these words to the beginning of the packet.
fn store(zeros: &[u64]) -> Vec<[u8; 8]> {
    let (r1, r2, r3, r4, r5, r6, r10) = (1, 2, 3, 4, 5, 6, 10);
    let size = size_of_val(zeros) as i16;
    let mut code: Vec<_> = (-size..0).step_by(8).map(|off| instruction(0x7a, r10, 0, off, 0)).collect();
    code.extend([
        move_register(r1, r6),
        move_constant(r2, 0),
        move_register(r3, r10),
        instruction(0x07, r3, 0, 0, i32::from(-size) as u32),
    ]);
    code.extend([move_constant(r4, size as u32), move_constant(r5, 0), call(STORE_BYTES)]);
    code
}

fn pinned(pins: &Path, name: &str, code: &[[u8; 8]]) -> SchedClassifier {
    let program = load_program(&code.concat()).unwrap();
    let pin = pins.join(name);
    pin_program(&program, &pin).unwrap();
    SchedClassifier::from_pin(pin).unwrap()
}

/// One instruction: opcode, destination and source register, offset, immediate.
const fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> [u8; 8] {
    let (off, imm) = (off.to_le_bytes(), imm.to_le_bytes());
    [code, dst | src << 4, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
}

const fn move_register(dst: u8, src: u8) -> [u8; 8] {
    instruction(0xbf, dst, src, 0, 0)
}

const fn move_constant(dst: u8, value: u32) -> [u8; 8] {
    instruction(0xb7, dst, 0, 0, value)
}

const fn call(function: u32) -> [u8; 8] {
    instruction(0x85, 0, 0, 0, function)
}

const EXIT: [u8; 8] = instruction(0x95, 0, 0, 0, 0);

fn instructions(array: i32) -> Vec<u8> {
    let (r0, r1, r2, r3, r4, r6, r10) = (0, 1, 2, 3, 4, 6, 10);
    let load_word = |dst, src, off| instruction(0x61, dst, src, off, 0);
    let store_zero = |off| instruction(0x7a, r10, 0, off, 0);
    let store_word = |off, src| instruction(0x63, r10, src, off, 0);
    let store_byte = |off, src| instruction(0x73, r10, src, off, 0);
    let mut code = vec![move_register(r6, r1)];
    code.extend((KEY..0).step_by(8).map(store_zero));
    code.extend([load_word(r2, r6, CB), store_word(KEY, r2)]);
    // What is local to the sender of a key is remote to its reader.
    code.extend([load_word(r2, r6, CB + 4), store_word(KEY + KEY_LOCAL, r2)]);
    code.extend([load_word(r2, r6, CB + 8), store_byte(KEY + KEY_TTL, r2)]);
    code.extend([move_register(r1, r6), move_register(r2, r10), instruction(0x07, r2, 0, 0, i32::from(KEY) as u32)]);
    code.extend([move_constant(r3, KEY_SIZE), move_constant(r4, 0), call(SET_TUNNEL_KEY)]);
    // A 64-bit load whose source register 1 says: the immediate is a map's descriptor.
    code.extend([move_register(r1, r6), instruction(0x18, r2, 1, 0, array as u32), [0; 8]]);
    code.extend([move_constant(r3, 0), call(TAIL_CALL)]);
    code.extend([move_constant(r0, 99), EXIT]);
    code.concat()
}

fn program_array(target: &SchedClassifier) -> io::Result<OwnedFd> {
    let array = descriptor(MAP_CREATE, &words(&[PROGRAM_ARRAY, 4, 4, 1]))?;
    let (key, value) = (0u32, target.fd().map_err(io::Error::other)?.as_fd().as_raw_fd());
    let mut attribute = words(&[array.as_raw_fd() as u32, 0]);
    attribute.extend(address(&raw const key));
    attribute.extend(address(&raw const value));
    attribute.extend([0; 8]);
    bpf(MAP_UPDATE, &attribute)?;
    Ok(array)
}

/// With the verifier's own words if it refuses.
fn load_program(code: &[u8]) -> io::Result<OwnedFd> {
    let (license, mut log) = (c"GPL", vec![0u8; 1 << 14]);
    let mut attribute = words(&[SCHED_CLS, (code.len() / 8) as u32]);
    attribute.extend(address(code.as_ptr()));
    attribute.extend(address(license.as_ptr()));
    attribute.extend(words(&[1, log.len() as u32]));
    attribute.extend(address(log.as_mut_ptr()));
    descriptor(PROGRAM_LOAD, &attribute).map_err(|error| {
        let words = String::from_utf8_lossy(&log).trim_end_matches('\0').replace('\n', "; ");
        io::Error::other(format!("{error}: {words}"))
    })
}

/// A register is read that nobody wrote.
#[test]
#[ignore = "fails on purpose: for `cargo xtask vm --self-test`"]
fn a_program_that_the_verifier_refuses() {
    load_program(&[instruction(0xbf, 0, 9, 0, 0), instruction(0x95, 0, 0, 0, 0)].concat()).unwrap();
}

fn pin_program(program: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attribute = address(path.as_ptr());
    attribute.extend(words(&[program.as_raw_fd() as u32, 0]));
    bpf(PIN, &attribute).map(drop)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn address<T>(pointer: *const T) -> Vec<u8> {
    (pointer as u64).to_ne_bytes().to_vec()
}

fn descriptor(command: i32, attribute: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attribute)?;
    // SAFETY: these commands return a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf(command: i32, attribute: &[u8]) -> io::Result<i32> {
    // SAFETY: the attribute's pointers are to locals of the callers, which outlive the call; its size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), attribute.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
