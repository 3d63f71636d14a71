//! Headings of options in help.

pub const MODEL: &str = "Model and data";
pub const PARALLELISM: &str = "Parallelism";
pub const TRAINING: &str = "Training";
pub const OUTPUT: &str = "Output";
pub const RUNNING: &str = "Machine";
