//! Context parallelism whose strategy and layout are types.

pub mod comm;
pub mod degree;
pub mod error;
pub mod handler;
pub mod layout;
pub mod mask;
pub mod model;
pub mod ops;
pub mod oracle;
pub mod order;
pub mod plan;
pub mod rope;
pub mod strategy;
pub mod tensor;
pub mod train;
