//! ipam
#![allow(dead_code)]
mod block;
mod intervals;
mod ring;
mod space;
