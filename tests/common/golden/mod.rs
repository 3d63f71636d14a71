//! Kinds of golden cases: how each is read, run and compared.

pub mod batch;
pub mod combinations;
pub mod hf;
pub mod model;
pub mod report;
pub mod roll;
pub mod rope;
#[path = "../safetensors.rs"]
pub mod safetensors;
pub mod tokens;
