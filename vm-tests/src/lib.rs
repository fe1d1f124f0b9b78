//! Hosts made of network namespaces (the lab).
