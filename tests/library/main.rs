//! Tests of the library, in one program: what they take of it is compiled once, not once per file.
//!
//! `cargo test --test library NAME` runs the tests of one file, or one test.

mod apart;
mod configs;
mod conformance;
#[path = "../common/devices.rs"]
mod devices;
mod dispatch;
mod dynamic;
mod external;
mod fixed_degrees;
mod foreign_device;
mod handler;
mod host;
mod mtp;
mod mutations;
mod orders;
#[path = "../common/packs.rs"]
mod packs;
mod padding;
mod plans;
mod queued;
mod refusals;
mod shells;
mod strategies;
mod support;
mod told;
