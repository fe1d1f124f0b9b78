//! What must be known about a frame to send it again as it was: where its headers are, and whether its checksum is finished.
//!
//! Frames come from containers: nothing here panics, whatever the bytes.

/// The Internet checksum's sum (RFC 1071) over the concatenation of `parts`; every part but the last must be of even length.
pub fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = pairs
        .map(|pair| {
            u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    fold(sum)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
