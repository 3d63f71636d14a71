//! Attention over ranks: a plan of one rank's programs, and the one executor that runs the programs of any strategy.

mod gradients;
mod plan;
mod prepared;
mod rehearse;
mod run;
mod slots;
mod swap;
mod tell;
mod walk;
mod wire;

pub use gradients::QkvGradients;
pub(crate) use plan::expect_groups;
pub use plan::{AttentionPlan, RankPlan};
pub use run::{AttentionSaved, backward, backward_apart, forward};
pub(crate) use tell::{Tell, tell};
