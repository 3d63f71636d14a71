//! Training: where tokens come from, how the learning rate moves, the loop, and the folder that a run leaves behind.
//!
//! Which tokens a step sees depends on the seed and the step alone ([`data`]), so runs under different strategies,
//! layouts and numbers of ranks can be compared step by step.

mod batch;
pub mod chart;
pub mod companions;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod data;
pub mod documents;
mod formats;
pub mod learner;
mod learner_state;
pub mod learning_rate;
pub mod run_folder;
pub mod run_record;
mod text;
pub mod tokens;
pub mod trainer;
