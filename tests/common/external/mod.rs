//! The external grid: shapes and masks of other projects' tests, and what runs them.

pub mod jax;
pub mod magi;
pub mod problem;
pub mod runner;
pub mod scale;
pub mod transformer_engine;
