//! What must be known about a frame to send it again as it was: where its headers are, and whether its checksum is finished.
