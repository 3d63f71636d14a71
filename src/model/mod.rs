//! The model: configuration, parameters and their files, fresh initialisation, forward and backward, loss,
//! multi-token prediction.

pub mod architecture;
mod block;
pub mod config;
mod gpt;
pub mod init;
pub mod inputs;
mod layer;
pub mod loss;
mod mirrored;
pub mod mtp;
mod network;
pub mod parameters;
mod projected;
pub mod weights;

pub use architecture::{Architecture, FixedHeads, FromConfig, HeadsFit};
pub use config::{Config, Family, Sizes};
pub use gpt::{Activations, GptModel};
pub use mirrored::{DynMirrored, Mirrored};
pub use network::{DynActivations, DynModel};
pub use parameters::{Gradients, Master, Moments, ParameterId, ParameterList, Parameters};
