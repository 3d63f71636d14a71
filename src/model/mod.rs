//! The model: configuration, parameters and their files, fresh initialisation.

pub mod config;
pub mod init;
pub mod parameters;
pub mod weights;

pub use config::{Config, Family, Sizes};
pub use parameters::{Gradients, Master, Moments, ParameterId, ParameterList, Parameters};
