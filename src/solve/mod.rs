//! Solvers: which rank holds which tokens, which documents run together, and in how many stages remote keys come.
//!
//! They count in integers and draw from generators with fixed seeds, so all ranks find the same without talking to each
//! other.

pub mod dispatch;
pub mod schedule;
pub mod stages;
