//! Errors: one enum per area, each message with the values in it and, at its end, what to do.

mod comm;
mod layout;
mod mask;
mod model;
mod placement;
mod plan;
mod support;

pub use comm::CommError;
pub use layout::LayoutError;
pub use mask::MaskError;
pub use model::{DataError, ModelError};
pub use placement::PlacementError;
pub use plan::{PlanError, ScheduleError};
pub use support::SupportError;

use thiserror::Error;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum Error {
    /// A batch, its documents, or a matrix that does not match them.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Tensors of different placements in one call, or a placement that a handler did not make.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Another rank failed, fell silent, or broke the protocol.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A combination of strategy, layout and kernel (or degree) that does not work.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// A model: its configuration, its weights, its tokens.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Training data, output folders, files.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A plan that does not hold together; a defect of the strategy that made it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Documents that cannot be scheduled.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl Error {
    /// Whether the caller's input is wrong (exit code 2), as opposed to a failure at run time (exit code 1).
    pub fn is_input(&self) -> bool {
        let failed_data = |error: &DataError| {
            matches!(error, DataError::Write { .. } | DataError::Logits { .. } | DataError::Diverged { .. })
        };
        match self {
            Error::Comm(_) | Error::Plan(_) => false,
            Error::Data(error) => !failed_data(error),
            _ => true,
        }
    }
}
