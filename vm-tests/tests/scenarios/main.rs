//! Agents on hosts made of network namespaces, with real packets: what issue and README promise, one file a promise.

mod addresses;
mod big_tcp;
mod esp;
mod failover;
mod flood;
mod life;
mod mesh;
mod mixed;
mod moves;
mod names;
mod observe;
mod odp;
mod openvswitch;
mod relay;
mod restart;
mod secret;
mod sleeve;
mod speed;
mod strangers;
mod tampering;
mod traces;
mod userspace;
mod xdp;
