//! The recall task on the command line.

/// The value of `--data` that means the recall task; a file of this name is `./recall`.
pub const RECALL: &str = "recall";
/// Different tokens of the recall task, or fewer where the model's vocabulary is smaller.
pub const RECALL_VOCAB: usize = 64;
