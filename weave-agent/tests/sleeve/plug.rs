//! Joins a container's port and the sleeve's device by two programs of the test's own, with one neighbour at the other end of everything:
//! what the real programs do but for looking anything up.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PROGRAM_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const STORE_BYTES: u32 = 9;
const REDIRECT: u32 = 23;
const LOAD_BYTES: u32 = 26;
const CHANGE_HEAD: u32 = 43;
const ADJUST_ROOM: u32 = 50;
/// `BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET`.
const KEEP: u32 = 1 | 1 << 5;
/// `BPF_ADJ_ROOM_MAC`.
const AT_MAC: u32 = 1;
/// `protocol` in `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const PREFIX: u32 = 14;

/// The two programs; they end when it is dropped.
pub(crate) struct Plug {
    _links: [OwnedFd; 2],
}

impl Plug {
    /// Frames of `port` go to `neighbour` by the device `sleeve`, and what comes out of it goes to `port`.
    pub(crate) fn new(port: u32, sleeve: u32, neighbour: Ipv4Addr, vni: u32) -> io::Result<Self> {
        let out = load(&to_sleeve(sleeve, neighbour, vni))?;
        let back = load(&from_sleeve(port))?;
        Ok(Self { _links: [attach(&out, port)?, attach(&back, sleeve)?] })
    }
}

const fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> [u8; 8] {
    let (off, imm) = (off.to_le_bytes(), imm.to_le_bytes());
    [code, dst | src << 4, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
}

const fn constant(register: u8, value: u32) -> [u8; 8] {
    instruction(0xb7, register, 0, 0, value)
}

const fn copy(dst: u8, src: u8) -> [u8; 8] {
    instruction(0xbf, dst, src, 0, 0)
}

const fn add(register: u8, value: i32) -> [u8; 8] {
    instruction(0x07, register, 0, 0, value as u32)
}

const fn call(function: u32) -> [u8; 8] {
    instruction(0x85, 0, 0, 0, function)
}

/// Store a word at the stack's `offset`.
const fn word(offset: i16, bytes: [u8; 4]) -> [u8; 8] {
    instruction(0x62, 10, 0, offset, u32::from_le_bytes(bytes))
}

/// The prefix is put together at the end of the stack: sixteen bytes from -16 on.
fn to_sleeve(sleeve: u32, neighbour: Ipv4Addr, vni: u32) -> Vec<u8> {
    let ([a, b, c, d], [_, x, y, z]) = (neighbour.octets(), vni.to_be_bytes());
    let code = [
        copy(6, 1),
        // Which EtherType, before the head changes.
        instruction(0x61, 7, 6, PROTOCOL, 0),
        copy(1, 6),
        constant(2, PREFIX),
        constant(3, 0),
        call(CHANGE_HEAD),
        word(-16, [2, 64, a, b]),
        word(-12, [c, d, 2, 0]),
        word(-8, [0, x, y, z]),
        word(-4, [0x08, 0x00, 0, 0]),
        instruction(0x55, 7, 0, 1, 0xdd86),
        word(-4, [0x86, 0xdd, 0, 0]),
        copy(1, 6),
        constant(2, 0),
        copy(3, 10),
        add(3, -16),
        constant(4, PREFIX),
        constant(5, 0),
        call(STORE_BYTES),
        constant(1, sleeve),
        constant(2, 0),
        call(REDIRECT),
        instruction(0x95, 0, 0, 0, 0),
    ];
    code.concat()
}

fn from_sleeve(port: u32) -> Vec<u8> {
    let bytes = |function, extra: &[[u8; 8]]| {
        [
            &[copy(1, 6), constant(2, if function == LOAD_BYTES { PREFIX } else { 0 }), copy(3, 10), add(3, -16), constant(4, 14)],
            extra,
            &[call(function)],
        ]
        .concat()
        .concat()
    };
    [
        copy(6, 1).to_vec(),
        [word(-16, [0; 4]), word(-12, [0; 4]), word(-8, [0; 4]), word(-4, [0; 4])].concat(),
        bytes(LOAD_BYTES, &[]),
        [copy(1, 6), constant(2, 0u32.wrapping_sub(PREFIX)), constant(3, AT_MAC), constant(4, KEEP), call(ADJUST_ROOM)].concat(),
        bytes(STORE_BYTES, &[constant(5, 0)]),
        [constant(1, port), constant(2, 0), call(REDIRECT), instruction(0x95, 0, 0, 0, 0)].concat(),
    ]
    .concat()
}

fn load(code: &[u8]) -> io::Result<OwnedFd> {
    let mut attribute = words(&[SCHED_CLS, (code.len() / 8) as u32]);
    attribute.extend((code.as_ptr() as u64).to_ne_bytes());
    attribute.extend((c"GPL".as_ptr() as u64).to_ne_bytes());
    bpf(PROGRAM_LOAD, &attribute)
}

fn attach(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    bpf(LINK_CREATE, &words(&[program.as_raw_fd() as u32, ifindex, TCX_INGRESS, 0, 0, 0, 0, 0]))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn bpf(command: i32, attribute: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the attribute's pointers are to what its makers hold; its size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), attribute.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: these commands return a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
