//! How a strategy is checked: one attention against a float64 oracle ([`trial`]), which the program's `verify` runs
//! too, and with the feature `conformance` a kit for strategies of one's own.

#[cfg(feature = "conformance")]
mod kit;
pub mod trial;

#[cfg(feature = "conformance")]
pub use kit::*;
