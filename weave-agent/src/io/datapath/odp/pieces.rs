//! Frames as the module takes them from user space: of ordinary size, with their checksums finished.

use crate::io::datapath::cut::{self, Cut};
use crate::virtio::Offload;

/// The segments of a large frame, or the frame.
pub(super) fn pieces(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    if let Some(cut) = Cut::new(frame, offload) {
        let segment = |index| {
            let mut segment = Vec::with_capacity(cut.segment_len());
            cut.write(index, &mut segment);
            segment
        };
        return (0..cut.count()).map(segment).collect();
    }
    let mut whole = frame.to_vec();
    if offload.checksum.is_some() {
        // What says nonsense stays as it is.
        cut::finish(&mut whole, offload);
    }
    vec![whole]
}
